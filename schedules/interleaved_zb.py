"""Interleaved zero bubble: interleaved 1F1B with the backward split, a shorter warm-up and the W in the gaps.

PyTorch's ScheduleInterleavedZeroBubble, https://docs.pytorch.org/docs/stable/distributed.pipelining.html, after
https://arxiv.org/abs/2401.10241. Stage = chunk * P + rank.
"""

from collections.abc import Iterator

from simpipe.schedules import interleaved_1f1b
from simpipe.schedules.interleaved_1f1b import group_size, passes
from simpipe.simulator.program import Action, F, I, W

NAME = "interleaved-zb"

check = interleaved_1f1b.check


def order(rank: int, ranks: int, microbatches: int, chunks: int = 2, group: int | None = None) -> Iterator[Action]:
    """Warm-up forwards, then F and I in turn; once more than `rank` I are done, each step ends with the oldest W."""
    forwards, backwards = passes(rank, ranks, microbatches, chunks, group)
    total = len(forwards)
    warm_up = min((chunks - 1) * group_size(ranks, microbatches, group) + ranks - 1 - rank, total)
    for k in range(warm_up):
        yield F(*forwards[k])
    for k in range(total):
        if warm_up + k < total:
            yield F(*forwards[warm_up + k])
        yield I(*backwards[k])
        if k >= rank:
            yield W(*backwards[k - rank])
    for k in range(max(0, total - rank), total):
        yield W(*backwards[k])
