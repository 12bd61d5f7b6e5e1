"""batch: many configurations in a spreadsheet."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from simpipe.commands.options import Json, number, print_json, words
from simpipe.simulator.errors import SimpipeError

if TYPE_CHECKING:
    from simpipe.simulator.planning.jobs import Job

Executor = Annotated[
    str, typer.Option(metavar="NAME", help="Who computes: local (processes of this machine), or dask://host:port.")
]
Workers = Annotated[int | None, number("Local processes. Default: one a processor, fewer for few rows.")]
Results = Annotated[list[str] | None, words("Where to write: .csv, .parquet or .xlsx; repeatable.", "PATH", "--out")]


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
        for path in outs:
            templates.write(path)
        print("\n".join(f"wrote {path}" for path in outs))
        return
    if cases is None:
        raise SimpipeError("batch takes a table of scenarios, as cases.csv; --template writes one to start from")
    job, remarks = jobs.of_table(tables.read(cases), cases)
    for remark in remarks:
        typer.echo(f"simpipe: {cases}: {remark}", err=True)
    run_job(job, outs, executor, workers, json)


def run_job(job: Job, outs: list[str], executor: str, workers: int | None, json: bool) -> None:
    """Run a job to its outputs, and say what it came to."""
    from simpipe.simulator.planning import execution, jobs

    jobs.check(outs)
    pool, count = execution.executor_of(executor, workers, job.count)
    try:
        with jobs.progress(job) as heard:
            tally = jobs.run(job, outs, pool, count, heard)
    except KeyboardInterrupt:
        typer.echo(f"simpipe: interrupted; the same command goes on from {outs[0]}.journal", err=True)
        raise
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    if json:
        print_json(jobs.facts(job, tally) | {"wrote": outs})
    else:
        print("\n".join([*jobs.summary(job, tally), *(f"wrote {path}" for path in outs)]))
