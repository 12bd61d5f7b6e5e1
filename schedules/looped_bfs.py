"""Looped BFS: each of a rank's chunks runs all micro-batches before the next chunk does.

Breadth-first pipeline parallelism, Lamy-Poirier 2022, https://arxiv.org/abs/2211.05953. Stage = chunk * P + rank.
B is the full backward.
"""

from collections.abc import Iterator

from simpipe.simulator.program import Action, B, F

NAME = "looped-bfs"


def order(rank: int, ranks: int, microbatches: int, chunks: int = 2) -> Iterator[Action]:
    """Stage by stage all forwards, then the exact reverse in backwards."""
    stages = range(rank, chunks * ranks, ranks)
    for stage in stages:
        for m in range(microbatches):
            yield F(stage, m)
    for stage in reversed(stages):
        for m in reversed(range(microbatches)):
            yield B(stage, m)
