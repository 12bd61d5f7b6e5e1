"""What the drawings show, as columns: blocks in lanes, columns of many blocks, memory as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.trace import Levels, Trace
from simpipe.simulator.views import palette

if TYPE_CHECKING:
    import pandas as pd

LANE = 0.8
"""Height of a lane's blocks; lanes are 1 apart, rank 0 at y = 0, y grows downwards."""


class Steps(NamedTuple):
    """A step function for each rank, one after the other: `value` holds from `time` to the next one's."""

    rank: Ints
    time: Floats
    value: Floats


def blocks(trace: Trace) -> pd.DataFrame:
    """The rows of `trace.slots()`, as drawn: adds y (centre) and height; of an F&B the F lies above, the B below."""
    frame = trace.slots()
    upper = np.where(frame["kind"] == "F", -1, 1)
    frame["y"] = frame["rank"] + np.where(frame["paired"], upper * LANE / 4, 0.0)
    frame["height"] = np.where(frame["paired"], LANE / 2, LANE)
    return frame


def pairs(drawn: pd.DataFrame) -> pd.DataFrame:
    """The overlapped slots among blocks: one row each, as high as the lane."""
    whole = drawn[drawn["paired"] & (drawn["kind"] == "F")].copy()
    whole["y"] = whole["rank"].astype(float)
    whole["height"] = LANE
    return whole


def columns(trace: Trace, drawn: pd.DataFrame, count: int) -> pd.DataFrame:
    """Blocks too many to draw, merged: time cut into `count` columns, and in each a band per rank and kind.

    A band is as high as its kind's share of the column, so that coloured area stays time. Columns as in
    `blocks`, and seconds: the time of the kind in the column.
    """
    import pandas as pd

    edges = np.linspace(0.0, horizon(trace), count + 1)
    width = horizon(trace) / count
    bands = []
    base = np.zeros((trace.program.ranks, count))
    for kind in palette.KINDS:
        share = _share(drawn[drawn["kind"] == kind], trace.program.ranks, edges) / width
        rank, column = np.nonzero(share > 1e-9)
        height = share[rank, column] * LANE
        y = rank - LANE / 2 + base[rank, column] + height / 2
        base[rank, column] += height
        bands.append(
            pd.DataFrame(
                {"rank": rank, "kind": kind, "start": edges[column], "end": edges[column + 1], "y": y}
                | {"height": height, "seconds": share[rank, column] * width}
            )
        )
    return pd.concat(bands, ignore_index=True)


def _share(drawn: pd.DataFrame, ranks: int, edges: Floats) -> Floats:
    """(ranks, columns) seconds of some blocks between neighbouring edges; half of an F&B counts half."""
    shares = np.zeros((ranks, len(edges) - 1))
    ordered = drawn.sort_values(["rank", "start"], kind="stable")
    at = np.searchsorted(ordered["rank"], np.arange(ranks + 1))
    start, end = ordered["start"].to_numpy(), ordered["end"].to_numpy()
    seconds = (end - start) * ordered["height"].to_numpy() / LANE
    for rank in range(ranks):
        part = slice(at[rank], at[rank + 1])
        done = np.cumsum(seconds[part])
        when = np.stack([start[part], end[part]], axis=1).ravel()
        total = np.stack([done - seconds[part], done], axis=1).ravel()
        if len(when):
            shares[rank] = np.diff(np.interp(edges, when, total))
    return shares


def horizon(trace: Trace) -> float:
    """Seconds that the time axis spans: the makespan, or 1 where all costs are 0."""
    return trace.makespan or 1.0


def memory(trace: Trace) -> tuple[Steps, str]:
    """What the ranks keep over time, and its unit: bytes where the costs state them, else micro-batches."""
    if trace.loads.activation[trace.row].any():
        return steps(trace, trace.activation_bytes), "bytes"
    return steps(trace, trace.activations), "micro-batches"


def steps(trace: Trace, levels: Levels) -> Steps:
    """The levels of slots over time: where a slot follows at once, only what holds from there on."""
    program = trace.program
    times = np.stack([trace.slot_start[: program.slots], trace.slot_end[: program.slots]], axis=1).ravel()
    values = np.stack([levels.during, levels.after], axis=1).ravel()
    rank = np.repeat(program.slot_rank, 2)
    last = np.append((rank[1:] != rank[:-1]) | (times[1:] > times[:-1]), True)
    return _changes(rank[last], times[last], values[last])


def thinned(found: Steps, ranks: int, span: float, count: int) -> Steps:
    """The highest value in each of `count` columns of the time axis."""
    column = np.minimum((found.time / span * count).astype(np.int64), count - 1)
    cell = found.rank * count + column
    before = np.searchsorted(cell, np.arange(ranks * count)) - 1
    same_rank = found.rank[before] == np.repeat(np.arange(ranks), count)
    highest = np.where(same_rank & (before >= 0), found.value[before], 0.0)
    np.maximum.at(highest, cell, found.value)
    edges = np.tile(np.arange(count) * (span / count), ranks)
    return _changes(np.repeat(np.arange(ranks), count), edges, highest)


def _changes(rank: Ints, time: Floats, value: Floats) -> Steps:
    """Without the points that say what held before."""
    changed = np.insert((rank[1:] != rank[:-1]) | (value[1:] != value[:-1]), 0, True)
    return Steps(rank[changed], time[changed], value[changed])


def title(trace: Trace, name: str | None = None) -> str:
    """The run in a few words."""
    program = trace.program
    return f"{printable(name or program.name)}: {program.ranks} ranks, {program.microbatches} micro-batches"


def printable(name: str) -> str:
    """A schedule's name is the user's, so it is cut short and made printable."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return (name if len(name) <= 60 else name[:59] + "…") or "schedule"


def number(value: float) -> str:
    """A figure for reading: six digits, no trailing zeros."""
    return f"{value:.6g}"
