"""Summary: the figures of a run, each as the field defines it.

bubble = makespan - busy (Megatron, DeepSeek). span bubble = last end - own first start - busy (the zero-bubble
papers, which ignore the stagger at the start). bubble rate = sum of bubbles / (ranks x makespan). span bubble
rate = (s - busy) / s of the rank with the longest span s. ideal = the largest busy time of any rank. Busy is
time inside slots. waiting + transfer = bubble: a rank waits until the message it needs is on its way, and then
for its transfer; before its first slot too, so that transfer is at least the cause waits_for_transfer.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from simpipe.simulator import bubbles
from simpipe.simulator.graph import INTERVAL
from simpipe.simulator.trace import Trace


@dataclass(frozen=True)
class RankSummary:
    """One rank's figures: seconds, bytes, and micro-batches' activations through 1/P of the layers."""

    rank: int
    stages: list[int]
    busy: float
    bubble_time: float
    span_bubble_time: float
    bubble_count: int
    longest_bubble: float
    waiting_time: float
    transfer_time: float
    bubble_causes: dict[str, float]
    peak_activations: float
    peak_activation_bytes: float
    parameter_bytes: float


@dataclass(frozen=True)
class Summary:
    """A run's figures; see the module for what each is."""

    schedule: str
    ranks: int
    microbatches: int
    stages: int
    chunks: int
    parameter_copies: float
    makespan: float
    ideal: float
    bubble_rate: float
    span_bubble_rate: float
    bubble_time: float
    bubble_count: int
    longest_bubble: float
    waiting_time: float
    transfer_time: float
    bubble_causes: dict[str, float]
    peak_activations: float
    peak_activation_bytes: float
    per_rank: list[RankSummary]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries, in the order of the fields."""
        return asdict(self)


def summarize(trace: Trace) -> Summary:
    """The figures of a run. `bubble_time`, waiting and transfer of the whole are sums over ranks."""
    program = trace.program
    per_rank = _per_rank(trace)
    spans = [(r.busy + r.span_bubble_time, r.span_bubble_time) for r in per_rank]
    longest_span, idle = max(spans)
    bubble_time = sum(r.bubble_time for r in per_rank)
    return Summary(
        schedule=program.name,
        ranks=program.ranks,
        microbatches=program.microbatches,
        stages=program.stages,
        chunks=program.chunks,
        parameter_copies=program.parameter_copies,
        makespan=trace.makespan,
        ideal=max(r.busy for r in per_rank),
        bubble_rate=_ratio(bubble_time, program.ranks * trace.makespan),
        span_bubble_rate=_ratio(idle, longest_span),
        bubble_time=bubble_time,
        bubble_count=sum(r.bubble_count for r in per_rank),
        longest_bubble=max(r.longest_bubble for r in per_rank),
        waiting_time=sum(r.waiting_time for r in per_rank),
        transfer_time=sum(r.transfer_time for r in per_rank),
        bubble_causes={c: sum(r.bubble_causes[c] for r in per_rank) for c in bubbles.CAUSES},
        peak_activations=max(r.peak_activations for r in per_rank),
        peak_activation_bytes=max(r.peak_activation_bytes for r in per_rank),
        per_rank=per_rank,
    )


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _rest(whole: float, part: float) -> float:
    """What is left of a time, 0 where that is rounding."""
    return whole - part if whole - part > INTERVAL * whole else 0.0


def _per_rank(trace: Trace) -> list[RankSummary]:
    program, graph = trace.program, trace.graph
    slots = graph.rank_slots
    starts, ends = trace.slot_start[slots.items], trace.slot_end[slots.items]
    first, last = slots.start[:-1], slots.start[1:] - 1
    busy = np.add.reduceat(ends - starts, first)
    span = ends[last] - starts[first]
    found = bubbles.find(trace, 0.0)  # what is too short to be called a bubble counts in the sums all the same
    called = found.end - found.start > INTERVAL * trace.makespan
    causes = np.stack([np.bincount(found.rank, found.causes[:, c], program.ranks) for c in range(len(bubbles.CAUSES))])
    flight = np.bincount(found.rank, found.in_flight, program.ranks)
    count = np.bincount(found.rank[called], minlength=program.ranks)
    longest = np.zeros(program.ranks)
    np.maximum.at(longest, found.rank, found.end - found.start)
    levels = (trace.activations, trace.activation_bytes)
    peaks = [np.maximum.reduceat(level.during, program.rank_start[:-1]) for level in levels]
    parameters = trace.loads.parameters[trace.row]
    return [
        RankSummary(
            rank=rank,
            stages=list(program.placement[rank]),
            busy=float(busy[rank]),
            bubble_time=_rest(trace.makespan, float(busy[rank])),
            span_bubble_time=_rest(float(span[rank]), float(busy[rank])),
            bubble_count=int(count[rank]),
            longest_bubble=float(longest[rank]),
            waiting_time=_rest(trace.makespan - float(flight[rank]), float(busy[rank])),
            transfer_time=float(flight[rank]),
            bubble_causes=dict(zip(bubbles.CAUSES, causes[:, rank].tolist(), strict=True)),
            peak_activations=float(peaks[0][rank]),
            peak_activation_bytes=float(peaks[1][rank]),
            parameter_bytes=float(parameters[list(program.placement[rank])].sum()),
        )
        for rank in range(program.ranks)
    ]
