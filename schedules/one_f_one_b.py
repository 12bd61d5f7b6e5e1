"""1F1B: each rank keeps as many micro-batches alive as it is stages from the end.

PipeDream-Flush, Narayanan et al. 2021, https://arxiv.org/abs/2104.04473, section 2.2.
"""

from collections.abc import Iterator

from simpipe.schedules import Formula
from simpipe.simulator.program import Action, B, F

NAME = "1f1b"

BUBBLE = Formula("(P-1)(F+B)", lambda c: (c.P - 1) * (c.F + c.B), "always", lambda c: True)


def order(rank: int, ranks: int, microbatches: int) -> Iterator[Action]:
    """Warm-up forwards, pairs of one forward and one backward, cool-down backwards."""
    warm_up = min(ranks - 1 - rank, microbatches)
    for m in range(warm_up):
        yield F(rank, m)
    for m in range(warm_up, microbatches):
        yield F(rank, m)
        yield B(rank, m - warm_up)
    for m in range(microbatches - warm_up, microbatches):
        yield B(rank, m)
