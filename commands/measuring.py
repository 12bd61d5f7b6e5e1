"""measure: time a model's operators on this machine."""

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
    setting,
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
    given |= ({"precision": precision} if precision else {}) | dict(setting(text) for text in set or [])
    if not out.lower().endswith(".csv"):
        raise SimpipeError(f"--out {out}: a table of timings ends in .csv")
    try:
        from simpipe.simulator.measuring import session as sessions
        from simpipe.simulator.measuring.kernels import device_of
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "torch":
            raise
        raise SimpipeError("measuring needs PyTorch: pip install 'simpipe[measure]'") from None
    from simpipe.simulator.costs.model import load_model
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
