"""ZB-V: the memory of 1F1B and hardly a bubble, with two chunks per rank in the shape of a V.

Qi et al. 2024, https://arxiv.org/abs/2401.10241, section 6; there B means our I. Rank r holds the stages r and
2P-1-r. It fills at M >= 2P-1.
"""

from collections.abc import Iterator

from simpipe.simulator.program import Action, F, I, W

NAME = "zb-v"


def order(rank: int, ranks: int, microbatches: int) -> Iterator[Action]:
    """The rule for at least 2P-1 micro-batches; of fewer, its order for 2P-1 without those that are missing."""
    filled = max(microbatches, 2 * ranks - 1)
    actions = filled_order(rank, ranks, filled)
    return actions if filled == microbatches else (a for a in actions if a.microbatch < microbatches)


def filled_order(rank: int, ranks: int, microbatches: int) -> Iterator[Action]:
    """c0 is the chunk on the way down the V, c1 the one on the way back up."""
    c0, c1 = rank, 2 * ranks - 1 - rank
    warm_up, steady = 2 * (ranks - rank) - 1, microbatches - ranks
    for m in range(warm_up):
        yield F(c0, m)
    for m in range(rank):
        yield F(c1, m)
        yield F(c0, m + warm_up)
    for m in range(ranks - rank):
        yield F(c1, m + rank)
        yield I(c1, m)
        yield W(c1, m)
    for m in range(steady):
        if m + warm_up + rank < microbatches:
            yield F(c0, m + warm_up + rank)
        yield I(c0, m)
        yield W(c0, m)
        yield F(c1, m + ranks)
        yield I(c1, m + ranks - rank)
        yield W(c1, m + ranks - rank)
    for m in range(steady, steady + rank):
        yield I(c0, m)
        yield I(c1, m + ranks - rank)
    for m in range(steady + rank, microbatches):
        yield I(c0, m)
        yield W(c0, m - rank)
    for chunk in (c1, c0):
        for m in range(microbatches - rank, microbatches):
            yield W(chunk, m)
