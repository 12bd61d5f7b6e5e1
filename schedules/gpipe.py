"""GPipe: all forwards, then all backwards, so every micro-batch is alive at once.

Huang et al. 2019, https://arxiv.org/abs/1811.06965. B is the full backward.
"""

from collections.abc import Iterator

from simpipe.schedules import Formula
from simpipe.simulator.program import Action, B, F

BUBBLE = Formula("(P-1)(F+B)", lambda c: (c.P - 1) * (c.F + c.B), "always", lambda c: True)


def order(rank: int, ranks: int, microbatches: int) -> Iterator[Action]:
    """All forwards, then all backwards, both ascending."""
    for m in range(microbatches):
        yield F(rank, m)
    for m in range(microbatches):
        yield B(rank, m)
