"""Interleaved 1F1B with one more warm-up forward, so that every steady step is one overlapped F&B slot.

Megatron-LM's overlap of expert-parallel communication, https://github.com/NVIDIA/Megatron-LM, also of Kimi K2,
https://arxiv.org/abs/2507.20534. Stage = chunk * P + rank. B is the full backward.
"""

from collections.abc import Iterator

from simpipe.schedules import interleaved_1f1b
from simpipe.schedules.interleaved_1f1b import group_size, passes
from simpipe.simulator.errors import ScheduleError
from simpipe.simulator.program import Action, B, F, Slot

NAME = "interleaved-1f1b-overlap"

BUBBLE = interleaved_1f1b.BUBBLE._replace(
    domain="for M >= P and F, B <= F&B <= F + B", holds=lambda c: c.M >= c.P and max(c.F, c.B) <= c.FB <= c.F + c.B
)


def check(ranks: int, microbatches: int, chunks: int, group: int | None = None) -> None:
    """As interleaved 1F1B, with at least 2 chunks: one alone would need the F of its own B."""
    if chunks < 2:
        raise ScheduleError(f"{NAME} takes at least 2 chunks per rank, not {chunks}")
    interleaved_1f1b.check(ranks, microbatches, group)


def order(
    rank: int, ranks: int, microbatches: int, chunks: int = 2, group: int | None = None
) -> Iterator[Action | Slot]:
    """Warm-up forwards, overlapped slots of one forward and one backward, cool-down backwards."""
    forwards, backwards = passes(rank, ranks, microbatches, chunks, group)
    total = len(forwards)
    warm_up = min(2 * (ranks - 1 - rank) + (chunks - 1) * group_size(ranks, microbatches, group) + 1, total)
    for k in range(warm_up):
        yield F(*forwards[k])
    for k in range(warm_up, total):
        yield F(*forwards[k]) & B(*backwards[k - warm_up])
    for k in range(total - warm_up, total):
        yield B(*backwards[k])
