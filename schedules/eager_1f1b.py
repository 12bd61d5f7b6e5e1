"""Eager 1F1B: twice the warm-up of 1F1B, so that the F and the B of a steady step are independent and overlap.

Zhuang et al. 2022, https://arxiv.org/abs/2211.05322. Rank r warms up with 2(P-1-r)+1 forwards and holds at most
2(P-r) micro-batches; it fills at M >= 2P-1. B is the full backward.
"""

from collections.abc import Iterator

from simpipe.simulator.program import Action, B, F, Slot

NAME = "eager-1f1b"


def order(rank: int, ranks: int, microbatches: int, overlap: bool = True) -> Iterator[Action | Slot]:
    """As 1F1B with a longer warm-up; `overlap` makes every steady pair one F&B slot."""
    warm_up = min(2 * (ranks - 1 - rank) + 1, microbatches)
    for m in range(warm_up):
        yield F(rank, m)
    for m in range(warm_up, microbatches):
        if overlap:
            yield F(rank, m) & B(rank, m - warm_up)
        else:
            yield F(rank, m)
            yield B(rank, m - warm_up)
    for m in range(microbatches - warm_up, microbatches):
        yield B(rank, m)
