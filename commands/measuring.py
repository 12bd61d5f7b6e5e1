"""measure: time a model's operators on this machine. import-trace: a real run as a trace like any other."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from simpipe.commands.options import (
    Cp,
    Ep,
    File,
    Json,
    MicrobatchSize,
    ModelName,
    Precision,
    Sequence,
    Sets,
    Tp,
    number,
    print_json,
    settings_of,
    words,
)
from simpipe.simulator.errors import SimpipeError


def measure(
    scenario: File = None,
    model: ModelName = None,
    out: Annotated[
        str, words("The table to write, or to go on with, as timings.csv.", "FILE", "--out")
    ] = "timings.csv",
    device: Annotated[str | None, words("cpu or cuda. Default: a GPU, where there is one.", "NAME")] = None,
    processes: Annotated[
        int | None, number("GPUs (or on a CPU, processes) that collectives are timed among. Default: all GPUs.")
    ] = None,
    sequence: Sequence = None,
    microbatch_size: MicrobatchSize = None,
    tp: Tp = None,
    cp: Cp = None,
    ep: Ep = None,
    precision: Precision = None,
    set: Sets = None,
    json: Json = False,
) -> None:
    """Time the operators of a model's layers on this machine with PyTorch: forward and both backwards, by component.

    Shapes are those of one GPU. The table goes to `simpipe calibrate`. What was timed is kept if you interrupt; the
    same command goes on.
    """
    flags = {"sequence": sequence, "microbatch_size": microbatch_size, "tp": tp, "cp": cp, "ep": ep}
    given: dict[str, Any] = {key: value for key, value in flags.items() if value is not None}
    given |= ({"precision": precision} if precision else {}) | settings_of(set or [])
    if not out.lower().endswith(".csv"):
        raise SimpipeError(f"--out {out}: a table of timings ends in .csv")
    try:
        from simpipe.simulator.measuring import session as sessions
        from simpipe.simulator.measuring.kernels import device_of
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise SimpipeError("measuring needs PyTorch: pip install 'simpipe[measure]'") from None
    from simpipe.simulator.costs.model_files import load_model
    from simpipe.simulator.measuring.pieces import layout
    from simpipe.simulator.scenario import Scenario

    here = device_of(device)
    if scenario:
        loaded = Scenario.read(scenario, **given, **({"model": model} if model else {})).load()
        shape, parallel = loaded.model, loaded.parallel
    elif model:
        shape, parallel = load_model(model), layout(given, here.type)
    else:
        raise SimpipeError("there is nothing to measure: give --model, or a scenario file")
    todo = sessions.session(shape, parallel, here, sessions.processes(processes, here), Path(out))
    with typer.progressbar(todo.tasks, file=sys.stderr, hidden=not sys.stderr.isatty()) as tasks:
        for task in tasks:
            task.run()
    for name in todo.left_out:
        print(f"left out, too large for the memory here: {name}", file=sys.stderr)
    print_json(todo.table.by_component()) if json else print(
        "\n".join([*sessions.describe(todo.table), f"wrote {out}"])
    )


def import_trace(
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...",
            help="PyTorch profiles of all ranks (.json, .json.gz) or a folder of them, or a table (.parquet, .csv).",
        ),
    ],
    step: Annotated[
        int | None,
        number(
            "Which step: a table's number, or which one in profiles, from 0. Default: the one with the median span."
        ),
    ] = None,
    worker: Annotated[int | None, number("Which worker (dp_rank) of a table. Default: the step's slowest.")] = None,
    json: Json = False,
    out: Annotated[
        list[str] | None,
        words("Where to write; repeatable. As for `run`, or .toml for its costs by stage.", "PATH", "--out"),
    ] = None,
) -> None:
    """Turn a real run's profile into a trace: the timeline, bubbles and figures of `run`, as measured.

    Ranges named as actions (0F3, PP:0F3) become slots. `simpipe compare --trace FILE` lays it beside simulated runs.
    """
    from simpipe.simulator import case as cases
    from simpipe.simulator import recorded, views
    from simpipe.simulator.files import atomic, check_apart
    from simpipe.simulator.views import console

    drawn = [target for target in out or [] if not target.lower().endswith(".toml")]
    views.check(drawn)
    views.check_endings([target for target in out or [] if target not in drawn], (".toml",))
    check_apart(out or [], recorded.files_of(files))
    found = recorded.read(files, step, worker)
    figures = cases.figures_of(found.trace)
    for target in out or []:
        if target in drawn:
            views.write(found.trace, target)
        else:
            with atomic(Path(target)) as draft:
                draft.write_text(recorded.per_stage(found), encoding="utf-8", newline="\n")
    replayed = found.replayed()
    if json:
        print_json(figures.to_dict() | {"replayed_makespan": replayed.makespan, "clocks_moved_s": found.moved.tolist()})
    else:
        told = [*recorded.describe(found, replayed), "", *console.run(figures)]
        print("\n".join([*told, *(f"wrote {target}" for target in out or [])]))
