"""ZB-H2 (ZB2P): almost twice the memory of 1F1B, rows tilted into a parallelogram with no bubble inside.

Qi et al. 2024, https://arxiv.org/abs/2401.10241, section 2.2; there B means our I.
"""

from collections.abc import Iterator

from simpipe.simulator.errors import ScheduleError
from simpipe.simulator.program import Action, F, I, W

NAME = "zb-h2"


def check(ranks: int, microbatches: int) -> None:
    """The warm-up of rank 0 takes 2P - 1 micro-batches."""
    if microbatches < 2 * ranks - 1:
        raise ScheduleError(f"ZB-H2 takes at least 2 x ranks - 1 = {2 * ranks - 1} micro-batches, not {microbatches}")


def order(rank: int, ranks: int, microbatches: int) -> Iterator[Action]:
    """Warm-up forwards, then per micro-batch I, the oldest W once more than 2r I are done, and F while any is left."""
    warm_up = 2 * (ranks - rank) - 1
    for m in range(warm_up):
        yield F(rank, m)
    for m in range(microbatches):
        yield I(rank, m)
        if m >= 2 * rank:
            yield W(rank, m - 2 * rank)
        if m + warm_up < microbatches:
            yield F(rank, m + warm_up)
    for m in range(microbatches - 2 * rank, microbatches):
        yield W(rank, m)
