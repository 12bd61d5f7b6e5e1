"""Links: how fast bytes cross each rank's links over time.

Every transfer counts at its mean rate between its latency and its end: where links are shared its rate changes within
that time, so a link's sum can pass its capacity for a moment while the bytes are right.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.trace import Trace


class LinkUse(NamedTuple):
    """A step function of each link that anything crosses, one after the other: `rate` (bytes/s) holds from `time`."""

    link: Ints
    time: Floats
    rate: Floats


def use(trace: Trace) -> LinkUse:
    """The use of every link in bytes/s; links are numbered as in the graph. Messages of no bytes are not in it."""
    graph, row = trace.graph, trace.row
    task, link = graph.route.keys, graph.route.items
    moved = trace.loads.work[row, task] * trace.loads.weight[row]
    start = trace.start[task] + trace.loads.latency[row, task]
    seconds = trace.end[task] - start
    some = np.flatnonzero((moved > 0) & (seconds > 0))
    rate = moved[some] / seconds[some]
    time = np.concatenate([start[some], trace.end[task[some]]])
    change = np.concatenate([rate, -rate])
    of = np.concatenate([link[some], link[some]])
    order = np.lexsort((time, of))
    of, time, change = of[order], time[order], change[order]
    total = np.cumsum(change)
    last = np.append((of[1:] != of[:-1]) | (time[1:] > time[:-1]), True) if len(of) else np.zeros(0, bool)
    of, time, total = of[last], time[last], total[last]
    total[np.append(of[1:] != of[:-1], True)[: len(of)]] = 0.0  # what is left at each link's end is rounding
    return LinkUse(of, time, np.maximum(total, 0.0))
