"""What the drawings show, as columns: blocks in lanes, columns of many blocks, memory as steps."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.trace import Levels, Trace

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
