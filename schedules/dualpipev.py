"""DualPipeV: DualPipe cut in half, so that one rank holds both of its stages and parameters exist once.

https://github.com/deepseek-ai/DualPipe (DualPipeV, after https://hackmd.io/@ufotalent/r1lVXsa9Jg). Rank r holds the
stages r and 2P-1-r. B is the full backward.
"""

from collections.abc import Iterator

from simpipe.schedules import dualpipe
from simpipe.simulator.errors import ScheduleError
from simpipe.simulator.program import Action, Post, Slot

BUBBLE = dualpipe.BUBBLE._replace(text="(P-1)(F&B+B-3W)/2", seconds=lambda c: (c.P - 1) * (c.FB + c.B - 3 * c.W) / 2)


def check(ranks: int, microbatches: int) -> None:
    """Enough micro-batches to fill the V both ways."""
    if microbatches < 2 * ranks:
        raise ScheduleError(f"DualPipeV takes at least 2 x ranks = {2 * ranks} micro-batches, not {microbatches}")


def order(rank: int, ranks: int, microbatches: int) -> Iterator[Action | Slot | Post]:
    """The first half of the ranks of DualPipe(2P, 2M), both directions numbering the same micro-batches."""
    return dualpipe.eight_steps(rank, 2 * ranks, microbatches, 0, 0)
