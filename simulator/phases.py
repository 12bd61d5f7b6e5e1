"""Phases: what a modelled step's time goes to, as table 4 of "Insights into DeepSeek-V3" (arXiv 2505.09343) divides it.

From the last backward of any rank to the next step's first forward nobody runs slots: gradients that no backward hides
are reduced, their norm is summed over all GPUs, weights are updated, and the first parameters gathered. The table calls
that `opt`. Of the rest, slots are counted as means of ranks, and what is in none is bubble; so the phases add up.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simpipe.simulator.graph import BARRIER, OPTIMIZER, OVERLAPPED, STREAMS, WORDS
from simpipe.simulator.trace import Trace


class Phases(NamedTuple):
    """Seconds. forwards, overlapped, backwards: in F slots, in F&B slots, in I, W and B slots. reduced: from the last
    backward to the barrier. updated: barrier and optimizer. gathered: from the start to the first computation."""

    forwards: float
    overlapped: float
    backwards: float
    bubbles: float
    reduced: float
    updated: float
    gathered: float

    @property
    def between(self) -> float:
        """From the last backward to the next step's first forward."""
        return self.reduced + self.updated + self.gathered


def phases(trace: Trace) -> Phases:
    """The phases of a modelled step, which ends with a barrier and the optimizer."""
    graph = trace.graph
    tasks = graph.streams.keys[graph.stream_name[graph.streams.items] == STREAMS.index("compute")]
    first = float(trace.start[tasks].min())
    word = graph.word[graph.slot_tasks.items[graph.slot_tasks.start[1:] - 1]]
    seconds = trace.slot_end - np.maximum(trace.slot_start, first)
    inside = {name: float(seconds[word == code].sum()) / graph.ranks for code, name in enumerate(WORDS)}
    last = float(trace.slot_end[word != OPTIMIZER].max())
    barrier = float(trace.start[graph.word == BARRIER].min())
    backwards = inside["I"] + inside["W"] + inside["B"]
    slots = inside["F"] + inside["F&B"] + backwards
    return Phases(
        forwards=inside["F"],
        overlapped=inside["F&B"],
        backwards=backwards,
        bubbles=last - first - slots,
        reduced=barrier - last,
        updated=trace.makespan - barrier,
        gathered=first,
    )


def overlapped_slot(trace: Trace) -> float | None:
    """Seconds of the median F&B slot; None where there is none."""
    tasks = trace.graph.slot_tasks
    pairs = trace.graph.word[tasks.items[tasks.start[1:] - 1]] == OVERLAPPED
    return float(np.median((trace.slot_end - trace.slot_start)[pairs])) if pairs.any() else None
