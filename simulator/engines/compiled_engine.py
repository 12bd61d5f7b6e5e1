"""The compiled engine: the same rules over the same arrays, as loops that Numba compiles.

Where nothing is contended, every duration is known beforehand, and the start of a task is the latest end of
its inputs: one pass in topological order. Otherwise an event loop with a heap, in which only the transfers that
share links with a change, directly or through others, have their speeds found anew.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np

from simpipe.simulator import kernels
from simpipe.simulator.graph import SLOWEST, Graph, Loads
from simpipe.simulator.kernels import Floats, Ints


def times(graph: Graph, loads: Loads) -> tuple[Floats, Floats]:
    """Start and end of every task: two (rows, tasks) arrays in seconds."""
    if not loads.contended(graph):
        durations = np.ascontiguousarray(loads.durations(graph))
        starts, ends = kernels.compiled(longest_path)(graph.order, *graph.inputs, durations)
        return starts, ends
    numbers = (loads.latency, loads.work, loads.held, loads.slowed, loads.weight, loads.capacity)
    rows = [np.ascontiguousarray(part) for part in numbers]
    kernels.announce(contended)
    return contended(*graph.outputs, graph.waits, *graph.streams, graph.stream_rank, graph.rank, *graph.route, *rows)  # type: ignore[no-any-return]


def longest_path(order: Ints, input_start: Ints, inputs: Ints, durations: Floats) -> tuple[Floats, Floats]:
    """Start and end (rows, tasks) where every task starts at the latest end of its inputs."""
    starts = np.empty_like(durations)
    ends = np.empty_like(durations)
    for row in range(durations.shape[0]):
        start = starts[row]
        end = ends[row]
        duration = durations[row]
        for task in order:
            begin = 0.0
            for k in range(input_start[task], input_start[task + 1]):
                begin = max(begin, end[inputs[k]])
            start[task] = begin
            end[task] = begin + duration[task]
    return starts, ends


SAME = 1e-12
"""Links whose shares differ by less, relative to them, are settled together."""

WAITING, DELAYED, WORKING, SHARING, ENDED = 0, 1, 2, 3, 4
"""What a task is at: SHARING work runs at a speed that others influence, WORKING does not."""


@numba.njit(cache=True)
def _push(heap: Floats, tasks: Ints, size: int, time: float, task: int) -> tuple[Floats, Ints, int]:
    """Add an event to a binary heap ordered by (time, task), growing it when full."""
    if size == len(heap):
        bigger = np.empty(2 * size, heap.dtype)
        bigger[:size] = heap
        heap = bigger
        longer = np.empty(2 * size, tasks.dtype)
        longer[:size] = tasks
        tasks = longer
    at = size
    while at > 0:
        up = (at - 1) >> 1
        if heap[up] < time or (heap[up] == time and tasks[up] <= task):
            break
        heap[at] = heap[up]
        tasks[at] = tasks[up]
        at = up
    heap[at] = time
    tasks[at] = task
    return heap, tasks, size + 1


@numba.njit(cache=True)
def _pop(heap: Floats, tasks: Ints, size: int) -> int:
    """Remove the first event; returns the new size."""
    size -= 1
    time, task = heap[size], tasks[size]
    at = 0
    while True:
        down = 2 * at + 1
        if down >= size:
            break
        other = down + 1
        if other < size and (heap[other] < heap[down] or (heap[other] == heap[down] and tasks[other] < tasks[down])):
            down = other
        if time < heap[down] or (time == heap[down] and task <= tasks[down]):
            break
        heap[at] = heap[down]
        tasks[at] = tasks[down]
        at = down
    heap[at] = time
    tasks[at] = task
    return size


@numba.njit(cache=True)
def _link(head: Ints, after: Ints, before: Ints, group: int, entry: int) -> None:
    """Put an entry at the head of a group's doubly linked list."""
    after[entry] = head[group]
    before[entry] = -1
    if head[group] >= 0:
        before[head[group]] = entry
    head[group] = entry


@numba.njit(cache=True)
def _unlink(head: Ints, after: Ints, before: Ints, group: int, entry: int) -> None:
    if before[entry] >= 0:
        after[before[entry]] = after[entry]
    else:
        head[group] = after[entry]
    if after[entry] >= 0:
        before[after[entry]] = before[entry]


@numba.njit(cache=True)
def _mark(dirty: Any, items: Ints, count: int, item: int) -> int:
    """Add an item to a set kept as flags and a list; returns the new size."""
    if not dirty[item]:
        dirty[item] = True
        items[count] = item
        count += 1
    return count


@numba.njit(cache=True)
def _is_repeated(stream_rank: Ints, streams: Ints, first: int, at: int) -> bool:
    """Whether an earlier stream of the same task is on the same rank."""
    for k in range(first, at):  # noqa: SIM110 - compiled
        if stream_rank[streams[k]] == stream_rank[streams[at]]:
            return True
    return False


@numba.njit(cache=True)
def contended(
    output_start: Ints, outputs: Ints, waits: Ints, stream_start: Ints, streams: Ints, stream_rank: Ints,
    task_rank: Ints, route_start: Ints, route: Ints,
    latencies: Floats, works: Floats, helds: Floats, sloweds: Floats, weights: Floats, capacities: Floats,
) -> Any:  # fmt: skip
    """Start and end (rows, tasks) by an event loop; see `times` of the SimPy engine for the rules.

    One long function on purpose: its dozen state arrays would be the arguments of every piece.
    """
    rows, tasks = works.shape
    links = capacities.shape[1]
    ranks = max(task_rank.max(), stream_rank.max() if len(stream_rank) else 0) + 1
    starts = np.zeros((rows, tasks))
    ends = np.zeros((rows, tasks))
    route_task = np.empty(len(route), np.int64)
    for task in range(tasks):
        for k in range(route_start[task], route_start[task + 1]):
            route_task[k] = task

    for row in range(rows):
        latency, work, held, slowed = latencies[row], works[row], helds[row], sloweds[row]
        weight, capacity, start, end = weights[row], capacities[row], starts[row], ends[row]
        shared = np.empty(len(route), np.bool_)  # route entries that limit their transfer
        for k in range(len(route)):
            shared[k] = weight[k] > 0 and np.isfinite(capacity[route[k]])
        left = waits.copy()
        phase = np.zeros(tasks, np.int8)
        due = np.full(tasks, np.inf)  # when the task's next event is; an event of another time is void
        rest = np.zeros(tasks)  # work left at `since`
        since = np.zeros(tasks)
        speed = np.zeros(tasks)
        heap = np.empty(1024)
        heap_task = np.empty(1024, np.int64)
        size = 0
        flow_head = np.full(links, -1)  # per link, the route entries of the transfers on it
        flow_after = np.empty(len(route), np.int64)
        flow_before = np.empty(len(route), np.int64)
        slow_head = np.full(ranks, -1)  # per rank, the computations under way that can be slowed
        slow_after = np.empty(tasks, np.int64)
        slow_before = np.empty(tasks, np.int64)
        rank_held = np.zeros(ranks)
        rank_holders = np.zeros(ranks, np.int64)
        link_dirty = np.zeros(links, np.bool_)
        rank_dirty = np.zeros(ranks, np.bool_)
        dirty_links = np.empty(links, np.int64)
        dirty_ranks = np.empty(ranks, np.int64)
        tight = np.empty(links, np.int64)
        free = np.empty(links)
        wanted = np.empty(links)  # weights of the transfers on a link that are not settled
        users = np.empty(links, np.int64)  # and how many there are
        seen = np.zeros(tasks, np.int64)
        settled = np.zeros(tasks, np.int64)
        flows = np.empty(tasks, np.int64)
        stamp = 0
        queue = np.empty(tasks, np.int64)  # tasks whose inputs have all ended, in that order
        queued = 0
        taken = 0
        dirty_link_count = 0
        dirty_rank_count = 0
        for task in range(tasks):
            if left[task] == 0:
                queue[queued] = task
                queued += 1
        now = 0.0

        while True:
            # everything that happens at this instant
            while True:
                if taken < queued:
                    task = queue[taken]
                    taken += 1
                    start[task] = now
                    if held[task] > 0:
                        for k in range(stream_start[task], stream_start[task + 1]):
                            rank = stream_rank[streams[k]]
                            if _is_repeated(stream_rank, streams, stream_start[task], k):
                                continue
                            rank_held[rank] += held[task]
                            rank_holders[rank] += 1
                            dirty_rank_count = _mark(rank_dirty, dirty_ranks, dirty_rank_count, rank)
                    phase[task] = DELAYED
                    if latency[task] > 0:
                        due[task] = now + latency[task]
                        heap, heap_task, size = _push(heap, heap_task, size, due[task], task)
                        continue
                elif size > 0 and heap[0] <= now:
                    task = heap_task[0]
                    valid = heap[0] == due[task] and phase[task] != ENDED
                    size = _pop(heap, heap_task, size)
                    if not valid:
                        continue
                else:
                    break

                if phase[task] == DELAYED and work[task] > 0:  # its latency is over, its work begins
                    finite = False
                    for k in range(route_start[task], route_start[task + 1]):
                        finite = finite or shared[k]
                    if finite:
                        phase[task] = SHARING
                        rest[task] = work[task]
                        since[task] = now
                        speed[task] = 0.0
                        due[task] = np.inf
                        for k in range(route_start[task], route_start[task + 1]):
                            if not shared[k]:
                                continue
                            link = route[k]
                            _link(flow_head, flow_after, flow_before, link, k)
                            dirty_link_count = _mark(link_dirty, dirty_links, dirty_link_count, link)
                        continue
                    if route_start[task] == route_start[task + 1]:
                        if slowed[task] > 0:
                            phase[task] = SHARING
                            rest[task] = work[task]
                            since[task] = now
                            speed[task] = 0.0
                            due[task] = np.inf
                            rank = task_rank[task]
                            _link(slow_head, slow_after, slow_before, rank, task)
                            dirty_rank_count = _mark(rank_dirty, dirty_ranks, dirty_rank_count, rank)
                        else:
                            phase[task] = WORKING
                            due[task] = now + work[task]
                            heap, heap_task, size = _push(heap, heap_task, size, due[task], task)
                        continue

                # the task ends
                if phase[task] == SHARING:
                    if route_start[task] == route_start[task + 1]:
                        _unlink(slow_head, slow_after, slow_before, task_rank[task], task)
                    for k in range(route_start[task], route_start[task + 1]):
                        if not shared[k]:
                            continue
                        link = route[k]
                        _unlink(flow_head, flow_after, flow_before, link, k)
                        dirty_link_count = _mark(link_dirty, dirty_links, dirty_link_count, link)
                phase[task] = ENDED
                end[task] = now
                if held[task] > 0:
                    for k in range(stream_start[task], stream_start[task + 1]):
                        rank = stream_rank[streams[k]]
                        if _is_repeated(stream_rank, streams, stream_start[task], k):
                            continue
                        rank_holders[rank] -= 1
                        rank_held[rank] = rank_held[rank] - held[task] if rank_holders[rank] else 0.0
                        dirty_rank_count = _mark(rank_dirty, dirty_ranks, dirty_rank_count, rank)
                for k in range(output_start[task], output_start[task + 1]):
                    left[outputs[k]] -= 1
                    if left[outputs[k]] == 0:
                        queue[queued] = outputs[k]
                        queued += 1

            # computations beside communication that came or went
            for d in range(dirty_rank_count):
                rank = dirty_ranks[d]
                rank_dirty[rank] = False
                task = slow_head[rank]
                while task >= 0:
                    fresh = max(1 - slowed[task] * rank_held[rank], SLOWEST)
                    if fresh != speed[task]:
                        rest[task] -= speed[task] * (now - since[task])
                        since[task] = now
                        speed[task] = fresh
                        due[task] = now + max(rest[task], 0.0) / fresh
                        heap, heap_task, size = _push(heap, heap_task, size, due[task], task)
                    task = slow_after[task]
            dirty_rank_count = 0

            # transfers connected to a link whose users changed; dirty_links grows to all links they cross
            stamp += 1
            flow_count = 0
            d = 0
            while d < dirty_link_count:
                link = dirty_links[d]
                d += 1
                free[link] = capacity[link]
                users[link] = 0
                wanted[link] = 0.0
                entry = flow_head[link]
                while entry >= 0:
                    users[link] += 1
                    wanted[link] += weight[entry]
                    task = route_task[entry]
                    if seen[task] != stamp:
                        seen[task] = stamp
                        flows[flow_count] = task
                        flow_count += 1
                        for k in range(route_start[task], route_start[task + 1]):
                            if shared[k]:
                                dirty_link_count = _mark(link_dirty, dirty_links, dirty_link_count, route[k])
                    entry = flow_after[entry]
            unsettled = flow_count
            settled_at = 0.0  # shares never fall, but for rounding
            while unsettled > 0:
                share = np.inf
                for d in range(dirty_link_count):
                    link = dirty_links[d]
                    if users[link] > 0:
                        share = min(share, free[link] / wanted[link])
                share = max(share, settled_at)
                settled_at = share
                tight_count = 0
                for d in range(dirty_link_count):
                    link = dirty_links[d]
                    if users[link] > 0 and free[link] <= share * wanted[link] * (1 + SAME):
                        tight[tight_count] = link
                        tight_count += 1
                for d in range(tight_count):
                    entry = flow_head[tight[d]]
                    while entry >= 0:
                        task = route_task[entry]
                        entry = flow_after[entry]
                        if settled[task] == stamp:
                            continue
                        settled[task] = stamp
                        unsettled -= 1
                        for k in range(route_start[task], route_start[task + 1]):
                            if not shared[k]:
                                continue
                            link = route[k]
                            free[link] = max(free[link] - share * weight[k], 0.0)
                            users[link] -= 1
                            wanted[link] = 0.0  # summed anew: weights may be of very different size
                            other = flow_head[link] if users[link] > 0 else -1
                            while other >= 0:
                                if settled[route_task[other]] != stamp:
                                    wanted[link] += weight[other]
                                other = flow_after[other]
                        if share != speed[task]:
                            rest[task] -= speed[task] * (now - since[task])
                            since[task] = now
                            speed[task] = share
                            due[task] = now + max(rest[task], 0.0) / share
                            heap, heap_task, size = _push(heap, heap_task, size, due[task], task)
            for d in range(dirty_link_count):
                link_dirty[dirty_links[d]] = False
            dirty_link_count = 0

            while size > 0 and (heap[0] != due[heap_task[0]] or phase[heap_task[0]] == ENDED):
                size = _pop(heap, heap_task, size)
            if size == 0:
                break
            now = heap[0]
    return starts, ends
