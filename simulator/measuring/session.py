"""Session: everything there is to time of a model on this machine, one after another into a table."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.measuring import collectives, kernels
from simpipe.simulator.measuring.pieces import Piece, pieces
from simpipe.simulator.measuring.table import Table

MOST_PROCESSES = 16
"""On a CPU."""


class Task(NamedTuple):
    """One thing to time, by name."""

    name: str
    run: Callable[[], None]


class Session(NamedTuple):
    """tasks: what is left to time. left_out: names of pieces that do not fit into memory. table: where times go."""

    tasks: list[Task]
    left_out: list[str]
    table: Table


def session(model: Model, parallel: Parallel, device: torch.device, ranks: int, path: Path) -> Session:
    """What is to be timed, less what the table at `path` holds. Raises SimpipeError."""
    table = Table.open(path, kernels.describe(device))
    tasks: list[Task] = []
    left_out: list[str] = []
    for piece in pieces(model, parallel):
        if table.has(**_key(piece)):
            continue
        name = f"{piece.component} {piece.of}"
        if kernels.fits(piece, device):
            tasks.append(Task(name, lambda piece=piece: _time(piece, device, table, left_out)))  # type: ignore[misc]
        else:
            left_out.append(_too_large(piece))
    for operator in collectives.OPERATORS if ranks > 1 else ():
        sizes = collectives.sizes(device.type)
        if not all(table.has(operator=operator, bytes=float(size), ranks=ranks) for size in sizes):
            tasks.append(Task(operator, lambda operator=operator: _collect(operator, ranks, device, table)))  # type: ignore[misc]
    return Session(tasks, left_out, table)


def processes(asked: int | None, device: torch.device) -> int:
    """Processes to time collectives among: all GPUs unless asked otherwise; 1 for none. Raises SimpipeError."""
    there = torch.cuda.device_count() if device.type == "cuda" else MOST_PROCESSES
    if asked is None:
        return there if device.type == "cuda" else 1
    if not 1 <= asked <= there:
        raise SimpipeError(f"--processes is {asked}; here it is 1 (no collectives) to {there}")
    return asked


def _key(piece: Piece) -> dict[str, str | float]:
    return {
        "component": piece.component,
        "pass": piece.of,
        "operator": piece.operator,
        "shape": piece.shape,
        "format": piece.format,
        "bytes": piece.bytes if piece.operator == "memory_bound" else "",
    }


def _too_large(piece: Piece) -> str:
    return f"{piece.component} {piece.of} {piece.shape}, {piece.bytes / 1e9:.3g} GB"


def _time(piece: Piece, device: torch.device, table: Table, left_out: list[str]) -> None:
    try:
        timing = kernels.time_piece(piece, device)
    except torch.cuda.OutOfMemoryError:  # it took more than `fits` knew of
        left_out.append(_too_large(piece))
        return
    table.add(timing.seconds, timing.repeats, **_key(piece))


def _collect(operator: str, ranks: int, device: torch.device, table: Table) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what pieces had, the processes need
    for size, timing in collectives.measure(operator, ranks, device.type):
        table.add(timing.seconds, timing.repeats, operator=operator, bytes=float(size), ranks=ranks)


def describe(table: Table) -> Sequence[str]:
    """Milliseconds by component and pass."""
    return list(_lines(table))


def _lines(table: Table) -> Iterator[str]:
    passes = ("forward", "input", "weight")
    yield f"{'component':<24}" + "".join(f"{f'{of}, ms':>14}" for of in passes)
    for component, seconds in table.by_component().items():
        yield f"{component:<24}" + "".join(
            f"{seconds[of] * 1e3:>14.4g}" if of in seconds else " " * 14 for of in passes
        )
    collected = sorted({(row["operator"], row["ranks"]) for row in table.rows.values() if row["ranks"]})
    if collected:
        yield "collectives: " + ", ".join(f"{operator} on {ranks}" for operator, ranks in collected)
