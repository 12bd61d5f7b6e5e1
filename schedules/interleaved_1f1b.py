"""Interleaved 1F1B: v chunks per rank take turns by groups of micro-batches, which cuts the bubble by v.

Narayanan et al. 2021, https://arxiv.org/abs/2104.04473, section 2.2. Stage = chunk * P + rank. B is the full
backward. The table of passes is shared by the schedules of this family.
"""

from collections.abc import Iterator

from simpipe.schedules import Formula
from simpipe.simulator.errors import ScheduleError
from simpipe.simulator.program import Action, B, F

NAME = "interleaved-1f1b"

BUBBLE = Formula("(P-1)(F+B)/v", lambda c: (c.P - 1) * (c.F + c.B) / c.v, "for M >= P", lambda c: c.M >= c.P)


def check(ranks: int, microbatches: int, group: int | None = None) -> None:
    """Every group, the last one too, holds at least P micro-batches, or all where there are fewer."""
    size = group_size(ranks, microbatches, group)
    least, last = min(ranks, microbatches), microbatches % size if size else 0
    if group is None and last:
        raise ScheduleError(
            f"{microbatches} micro-batches do not divide into M // P = {microbatches // ranks} interleave groups; "
            f"state a group of {least} to {microbatches}"
        )
    if not least <= size <= microbatches:
        raise ScheduleError(f"an interleave group takes {least} to {microbatches} micro-batches, not {size}")
    if 0 < last < ranks:
        raise ScheduleError(
            f"an interleave group takes at least ranks = {ranks} micro-batches, not {last} "
            f"as the last of {microbatches} in groups of {size}"
        )


def group_size(ranks: int, microbatches: int, group: int | None) -> int:
    """N, the micro-batches that one chunk runs before the next chunk's turn: as stated, or by PyTorch's rule."""
    return microbatches // max(1, microbatches // ranks) if group is None else group


def passes(
    rank: int, ranks: int, microbatches: int, chunks: int, group: int | None
) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The (stage, micro-batch) of each forward and of each backward, in order: by groups, chunk-major inside.

    Backwards take the same table with the chunks reversed. The last group may be smaller, as Megatron's.
    """
    size = group_size(ranks, microbatches, group)
    table = [
        (chunk, m)
        for first in range(0, microbatches, size)
        for chunk in range(chunks)
        for m in range(first, min(first + size, microbatches))
    ]
    forwards = [(chunk * ranks + rank, m) for chunk, m in table]
    backwards = [((chunks - 1 - chunk) * ranks + rank, m) for chunk, m in table]
    return forwards, backwards


def order(rank: int, ranks: int, microbatches: int, chunks: int = 2, group: int | None = None) -> Iterator[Action]:
    """Warm-up forwards, pairs of one forward and one backward, cool-down backwards."""
    forwards, backwards = passes(rank, ranks, microbatches, chunks, group)
    total = len(forwards)
    warm_up = min(2 * (ranks - 1 - rank) + (chunks - 1) * group_size(ranks, microbatches, group), total)
    for k in range(warm_up):
        yield F(*forwards[k])
    for k in range(warm_up, total):
        yield F(*forwards[k])
        yield B(*backwards[k - warm_up])
    for k in range(total - warm_up, total):
        yield B(*backwards[k])
