"""A schedule of one's own: 1F1B that warms up with one forward more, where memory allows it.

`simpipe run --schedule examples/my_schedule.py --ranks 4 --microbatches 8` runs it; `extra` is an option.
"""

from collections.abc import Iterator

from simpipe import Action, B, F


def order(rank: int, ranks: int, microbatches: int, extra: int = 1) -> Iterator[Action]:
    """What one rank runs, in order."""
    warm_up = min(ranks - 1 - rank + extra, microbatches)
    for m in range(warm_up):
        yield F(rank, m)
    for m in range(warm_up, microbatches):
        yield B(rank, m - warm_up)
        yield F(rank, m)
    for m in range(microbatches - warm_up, microbatches):
        yield B(rank, m)
