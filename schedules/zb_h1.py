"""ZB-H1 (ZB1P): 1F1B with the backward split; the W fill most of its bubble at the same memory.

Qi et al. 2024, https://arxiv.org/abs/2401.10241, section 2.1; there B means our I.
"""

from collections.abc import Iterator

from simpipe.schedules import Formula
from simpipe.simulator.errors import ScheduleError
from simpipe.simulator.program import Action, F, I, W

NAME = "zb-h1"

BUBBLE = Formula(
    "(P-1)(F+B-2W)",
    lambda c: (c.P - 1) * (c.F + c.B - 2 * c.W),
    "for F >= W and I >= W",
    lambda c: c.F >= c.W and c.I >= c.W,
)


def check(ranks: int, microbatches: int) -> None:
    """The warm-up of rank 0 takes P - 1 micro-batches and the steady state one more."""
    if microbatches < ranks:
        raise ScheduleError(f"ZB-H1 takes at least ranks = {ranks} micro-batches, not {microbatches}")


def order(rank: int, ranks: int, microbatches: int) -> Iterator[Action]:
    """Warm-up forwards as 1F1B, then F and I; once more than `rank` I are done, each step ends with the oldest W."""
    warm_up = ranks - 1 - rank
    for m in range(warm_up):
        yield F(rank, m)
    for m in range(microbatches):
        if m + warm_up < microbatches:
            yield F(rank, m + warm_up)
        yield I(rank, m)
        if m >= rank:
            yield W(rank, m - rank)
    for m in range(microbatches - rank, microbatches):
        yield W(rank, m)
