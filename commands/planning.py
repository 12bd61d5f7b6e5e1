"""batch, sweep and plan: many configurations, from a spreadsheet, a plan of values, or searched for."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpipe.commands.options import (
    GlobalBatch,
    Gpus,
    Hardware,
    Json,
    ModelName,
    Precision,
    Sequence,
    Sets,
    number,
    print_json,
    settings_of,
    words,
)
from simpipe.simulator.errors import OutputError, SimpipeError

if TYPE_CHECKING:
    from simpipe.simulator.planning.jobs import Job
    from simpipe.simulator.planning.tables import Sheet

VIEWS = (".html", ".png", ".svg")
"""Endings of outputs that are drawn."""

Executor = Annotated[
    str, typer.Option(metavar="NAME", help="Who computes: local (processes of this machine), or dask://host:port.")
]
Workers = Annotated[int | None, number("Local processes. Default: one a processor, fewer for few rows.")]
Results = Annotated[
    list[str] | None, words("Where to write: .csv, .parquet, .xlsx, .html, .png or .svg; repeatable.", "PATH", "--out")
]


def batch(
    cases: Annotated[
        str | None, typer.Argument(metavar="[CASES]", help="A table of scenarios, a row each: .csv, .parquet or .xlsx.")
    ] = None,
    out: Results = None,
    template: Annotated[bool, typer.Option("--template", help="Write a documented example to --out instead.")] = False,
    executor: Executor = "local",
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Simulate every row of a spreadsheet: the same rows come back with their figures beside them.

    Columns are named as the keys of a scenario file; others are carried through. A row that is impossible says why in
    `status`. Interrupted, the same command goes on where it was.
    """
    from simpipe.simulator.planning import jobs, tables
    from simpipe.simulator.planning import template as templates

    outs = out or ["cases.csv" if template else "results.csv"]
    if template:
        if cases is not None:
            raise SimpipeError(f"--template writes an example; it takes no table {cases}")
        check_outs(outs, views=False)
        for path in outs:
            templates.write(path)
        print("\n".join(f"wrote {path}" for path in outs))
        return
    if cases is None:
        raise SimpipeError("batch takes a table of scenarios, as cases.csv; --template writes one to start from")
    check_outs(outs, source=cases)
    job, remarks = jobs.of_table(tables.read(cases), cases)
    for remark in remarks:
        typer.echo(f"simpipe: {cases}: {remark}", err=True)
    run_job(job, outs, executor, workers, json)


def sweep(
    plan: Annotated[str, typer.Argument(metavar="PLAN", help="A plan (.yaml): base, grid, alternatives, constraints.")],
    out: Results = None,
    objective: Annotated[str | None, words("The column that tells the best, instead of the plan's.", "COLUMN")] = None,
    executor: Executor = "local",
    workers: Workers = None,
    json: Json = False,
) -> None:
    """Simulate every combination of a plan's values that can be, and say which is best.

    A plan holds keys of a scenario: `base` those of all rows, `grid` lists of values, `alternatives` sets of keys that
    go together, `constraints` as `ep divides experts`. What cannot be is pruned before, and counted by reason.
    """
    from simpipe.simulator.planning import sweep as sweeps

    outs = out or ["results.csv"]
    check_outs(outs)
    read = sweeps.read(plan)
    if objective is not None:
        read = replace(read, objective=sweeps.objective_of(objective, "--objective"))
    job, pruned = sweeps.job_of(read)
    for line in [] if json else sweeps.told(pruned):
        print(f"pruned {line}")
    run_job(job, outs, executor, workers, json, {"pruned": dict(pruned)})


def plan(
    model: ModelName = None,
    hardware: Hardware = None,
    gpus: Gpus = None,
    global_batch: GlobalBatch = None,
    sequence: Sequence = None,
    precision: Precision = None,
    set: Sets = None,
    tokens: Annotated[float | None, typer.Option(metavar="N", help="Tokens to train on.", show_default=False)] = None,
    deadline: Annotated[
        float | None, typer.Option(metavar="DAYS", help="Most days for --tokens.", show_default=False)
    ] = None,
    budget: Annotated[
        float | None, typer.Option(metavar="USD", help="Most for --tokens; GPUs need a price.", show_default=False)
    ] = None,
    max_memory: Annotated[
        float | None, typer.Option(metavar="GB", help="Of a GPU. Default: all it has.", show_default=False)
    ] = None,
    executor: Executor = "local",
    workers: Workers = None,
    json: Json = False,
    out: Results = None,
) -> None:
    """Find what trains a model fastest on some GPUs: schedule, stages, parallel sizes, micro-batch, recomputation.

    Whatever --set fixes, as tp=8 or zero=2, is not searched. Layers are laid out by work and slots overlap within
    themselves, unless --set says otherwise.
    """
    from simpipe.simulator.planning import advice, execution, jobs, search

    given: dict[str, Any] = {
        "model": model,
        "hardware": hardware,
        "gpus": gpus,
        "global_batch": global_batch,
        "sequence": sequence,
    }
    for key, value in given.items():
        if value is None:
            raise SimpipeError(f"plan needs --{key.replace('_', '-')}")
    given |= search.ALIKE | {"precision": precision, "token_budget": tokens}
    given |= settings_of(set or [])
    given = {key: value for key, value in given.items() if value is not None}
    if tokens is None and (deadline is not None or budget is not None):
        raise SimpipeError("--deadline and --budget are for training on --tokens; give them")
    amounts = {"tokens": tokens, "deadline": deadline, "budget": budget, "max-memory": max_memory}
    for name, amount in amounts.items():
        if amount is not None and not 0 < amount < float("inf"):
            raise SimpipeError(f"--{name} is {amount:g}; it takes a finite number above 0")
    limits = search.Limits(max_memory, deadline, budget)
    check_outs(out or [])
    search.check(given, limits)
    with execution.executor_of(executor, workers, search.WAVE) as (pool, _), search.progress() as heard:
        outcome = search.search(given, limits, pool, heard)
    turned = advice.sensitivity(outcome.ranked[: 1 + advice.RUNNERS_UP])
    about = advice.interval(outcome.ranked[0])
    rows = advice.table(outcome)
    for path in out or []:
        columns = dict.fromkeys(key for row in rows for key in row)
        write_rows(path, list(columns), rows, jobs.sheet(rows))
    if json:
        print_json(advice.facts(outcome, turned, about))
    else:
        print("\n".join([*advice.describe(outcome, turned, about), *(f"wrote {path}" for path in out or [])]))


def run_job(
    job: Job, outs: list[str], executor: str, workers: int | None, json: bool, more: dict[str, Any] | None = None
) -> None:
    """Run a job to its outputs, and say what it came to; `more` goes into the JSON."""
    from simpipe.simulator.planning import execution, jobs

    try:
        with execution.executor_of(executor, workers, job.count) as (pool, count), jobs.progress(job) as heard:
            tally = jobs.run(job, outs, pool, count, heard, write_rows)
    except KeyboardInterrupt:
        typer.echo(f"simpipe: interrupted; the same command goes on from {outs[0]}.journal", err=True)
        raise
    if json:
        print_json(jobs.facts(job, tally) | (more or {}) | {"wrote": outs})
    else:
        print("\n".join([*jobs.summary(job, tally), *(f"wrote {path}" for path in outs)]))


def check_outs(outs: list[str], views: bool = True, source: str | None = None) -> None:
    """Refuse, before anything is computed, outputs whose endings name no format, that have no folder, or that are the
    table that is read."""
    from simpipe.simulator.files import check_apart, check_place
    from simpipe.simulator.planning import tables

    for out in map(Path, outs):
        if not views or out.suffix.lower() not in VIEWS:
            tables.ending_of(out, OutputError)
        check_place(out)
    check_apart(outs, [source] if source is not None else [])


def write_rows(out: str, columns: Iterable[str], rows: Iterable[dict[str, Any]], sheet: Sheet) -> None:
    """Write rows with their figures as a table, a page or a picture, by the file's ending."""
    from simpipe.simulator.planning import tables
    from simpipe.simulator.planning.evaluation import COLUMNS

    if Path(out).suffix.lower() not in VIEWS:
        tables.write(out, list(columns), rows, sheet)
        return
    from simpipe.simulator.views import results

    results.write(list(rows), [name for name in columns if name not in COLUMNS], Path(out).stem, Path(out))
