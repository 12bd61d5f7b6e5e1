"""DualPipe: micro-batches enter from both ends, and the F of one direction hides the communication of the other's B.

DeepSeek-V3, section 3.2.1, https://arxiv.org/abs/2412.19437, and https://github.com/deepseek-ai/DualPipe. Rank r
holds the stages r and P-1-r. B is the full backward, split into I and W where that shortens the ends.
"""

from collections import deque
from collections.abc import Iterator
from math import isclose

from simpipe.schedules import Formula
from simpipe.simulator.errors import ScheduleError
from simpipe.simulator.program import RECV_F, SEND_F, Action, B, F, I, Post, Slot, W

BUBBLE = Formula(
    "(P/2-1)(F&B+B-3W)",
    lambda c: (c.P / 2 - 1) * (c.FB + c.B - 3 * c.W),
    "for I = F, W <= F and B <= F&B <= F + B",
    lambda c: isclose(c.I, c.F) and c.W <= c.F and c.B <= c.FB <= c.F + c.B,
)


def check(ranks: int, microbatches: int) -> None:
    """Two halves of ranks, two directions of micro-batches, and enough of them to fill the pipe both ways."""
    if ranks % 2:
        raise ScheduleError(f"DualPipe takes an even number of ranks, at least 2, not {ranks}")
    if microbatches % 2 or microbatches < 2 * ranks:
        raise ScheduleError(
            f"DualPipe takes an even number of micro-batches, at least 2 x ranks = {2 * ranks}, not {microbatches}"
        )


def order(rank: int, ranks: int, microbatches: int) -> Iterator[Action | Slot | Post]:
    """The second direction's micro-batches are numbered from M/2 on; it enters from the last rank."""
    each_way = microbatches // 2
    numbered = (0, each_way) if rank < ranks // 2 else (each_way, 0)
    return eight_steps(min(rank, ranks - 1 - rank), ranks, each_way, *numbered)


def eight_steps(h: int, ranks: int, each_way: int, first0: int, first1: int) -> Iterator[Action | Slot | Post]:
    """The order of a rank h places from its end of the pipe, each direction having `each_way` micro-batches.

    Direction 0 enters from that end, so the rank is its stage h; its micro-batches count from first0 on. Direction 1
    enters from the other end and counts from first1 on. Posts are stated where DualPipe does not receive right before
    and send right after a slot; those of a stage without a neighbour belong to no message.
    """
    stage0, stage1 = h, ranks - 1 - h
    outside = ranks // 2 - 1 - h  # steps away from the middle ranks
    f0, b0 = iter(range(first0, first0 + each_way)), iter(range(first0, first0 + each_way))
    f1, b1 = iter(range(first1, first1 + each_way)), iter(range(first1, first1 + each_way))
    deferred: deque[Action] = deque()

    def split(stage: int, m: int) -> Action:
        deferred.append(W(stage, m))
        return I(stage, m)

    # Step 1: F0
    for _ in range(2 * outside):
        yield F(stage0, next(f0))
    # Step 2: F0 F1
    for _ in range(h + 1):
        m = next(f0)
        yield F(stage0, m)
        yield RECV_F(stage0, m + 1)
        yield F(stage1, next(f1))
        if outside:
            yield SEND_F(stage0, m)
    # Step 3: I1 W1 F1
    for _ in range(outside):
        yield split(stage1, next(b1))
        m = next(f1)
        yield RECV_F(stage1, m)
        yield deferred.popleft()
        yield F(stage1, m)
    # Step 4, the main one: F0&B1 F1&B0, on the middle ranks F0 B1 first
    for n in range(each_way - ranks + h + 1):
        if n or outside:
            yield F(stage0, next(f0)) & B(stage1, next(b1))
        else:
            m = next(f0)
            yield F(stage0, m)
            yield SEND_F(stage1, first1 + h)  # of the last F1 of step 2
            yield B(stage1, next(b1))
            yield SEND_F(stage0, m)
        yield F(stage1, next(f1)) & B(stage0, next(b0))
    # Step 5: B1 F1&B0
    for _ in range(outside):
        yield B(stage1, next(b1))
        yield F(stage1, next(f1)) & B(stage0, next(b0))
    # Step 6: B1 B0, the second half of them split
    for n in range(2 * (h + 1)):
        backward = B if n <= h else split
        yield backward(stage0, next(b0)) if n % 2 else backward(stage1, next(b1))
    # Step 7: W I0
    for _ in range(outside):
        yield deferred.popleft()
        yield split(stage0, next(b0))
    # Step 8: W
    yield from deferred
