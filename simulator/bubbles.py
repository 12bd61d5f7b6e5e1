"""Bubbles: the idle intervals of every rank, and why each is there.

A bubble is a maximal idle interval of a rank longer than 1e-9 of the makespan, before its first slot and after
its last one included. Before the first slot the pipeline fills (warm-up), after the last it drains (cool-down).
In between, the rank waits for the last-arriving input of its next slot, and the bubble's time goes to

* waits_for_transfer while that message is on its way, or parameters are gathered;
* waits_for_forward or waits_for_gradient while the slot that makes it runs, or itself waits for its inputs;
* blocked_by_order while that slot had all its inputs but its rank's order had not come to it, and, where
  communication blocks, while the message was made but its other end had not come to it;
* barrier where the next slot is the optimizer's, behind the barrier;
* late_start where the slot had all its inputs and its rank stood still all the same, which only recorded runs do.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simpipe.simulator.graph import ACTIVATION, BARRIER, INTERVAL, SYNC
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.trace import Trace

CAUSES = (
    "warm_up",
    "cool_down",
    "waits_for_forward",
    "waits_for_gradient",
    "waits_for_transfer",
    "blocked_by_order",
    "barrier",
    "late_start",
)
WARM_UP, COOL_DOWN, FORWARD, GRADIENT, TRANSFER, ORDER, AT_BARRIER, LATE = range(8)


class Bubbles(NamedTuple):
    """One entry a bubble, by rank and time.

    rank, start, end: where and when. slot: the slot it ends at, -1 for the end of the run. ended_by: the task
    whose end ends it, the last-arriving input of that slot; -1 for none. causes: (bubbles, 8) seconds by cause,
    in the order of CAUSES; they add up to end - start. in_flight: seconds of it in which that input, a message,
    was on its way; the rest is waiting.
    """

    rank: Ints
    start: Floats
    end: Floats
    slot: Ints
    ended_by: Ints
    causes: Floats
    in_flight: Floats


def find(trace: Trace, least: float = INTERVAL) -> Bubbles:
    """All bubbles of a run; or with another `least`, all idle intervals longer than that share of the makespan."""
    graph = trace.graph
    slots = graph.rank_slots
    starts, ends = trace.slot_start[slots.items], trace.slot_end[slots.items]
    first = slots.start[:-1]  # every rank has a slot, so the last slot's index is first[1:] - 1
    idle_from = np.concatenate([[0.0], ends[:-1]])
    idle_from[first] = 0.0
    rank = np.concatenate([graph.slot_rank[slots.items], np.arange(graph.ranks)])
    start = np.concatenate([idle_from, ends[slots.start[1:] - 1]])
    end = np.concatenate([starts, np.full(graph.ranks, trace.makespan)])
    slot = np.concatenate([slots.items, np.full(graph.ranks, -1)])
    is_head = np.zeros(len(rank), bool)
    is_head[first] = True
    keep = np.flatnonzero(end - start > least * trace.makespan)
    keep = keep[np.lexsort((start[keep], rank[keep]))]
    rank, start, end, slot = rank[keep], start[keep], end[keep], slot[keep]
    ended_by, causes, in_flight = _explain(trace, rank, start, end, slot, is_head[keep])
    return Bubbles(rank, start, end, slot, ended_by, causes, in_flight)


def critical_seconds(trace: Trace, found: Bubbles) -> Floats:
    """(bubbles,) seconds of each in which what it waits for is on the critical path.

    What it waits for is the chain of last-arriving inputs, from the task that ends it back to where the bubble starts.
    A chain that has come to the critical path stays on it. Shortening the rest of the bubble would not shorten the run.
    """
    critical = np.zeros(trace.graph.tasks, bool)
    critical[trace.critical_path] = True
    reached = np.full(len(found.rank), -np.inf)
    chain = found.ended_by.copy()
    going = np.flatnonzero(chain >= 0)
    while len(going):
        tasks = chain[going]
        reached[going[critical[tasks]]] = trace.end[tasks[critical[tasks]]]
        going = going[~critical[tasks] & (trace.end[tasks] > found.start[going])]
        chain[going] = trace.last_inputs(chain[going])
        going = going[chain[going] >= 0]
    return np.asarray(np.clip(reached, found.start, found.end) - found.start, float)


def longest(trace: Trace, most: int) -> list[dict[str, Any]]:
    """The longest bubbles, the earlier first where they tie: where each is, what ends it, and its seconds by cause."""
    found = find(trace)
    length = found.end - found.start
    chosen = np.lexsort((found.rank, found.start, -np.round(length, 12)))[:most]
    return [
        {
            "rank": int(found.rank[n]),
            "start": float(found.start[n]),
            "end": float(found.end[n]),
            "ended_by": trace.graph.describe(int(found.ended_by[n])) if found.ended_by[n] >= 0 else None,
            "causes": {cause: float(found.causes[n, c]) for c, cause in enumerate(CAUSES) if found.causes[n, c] > 0},
        }
        for n in chosen.tolist()
    ]


def _explain(
    trace: Trace, rank: Ints, start: Floats, end: Floats, slot: Ints, is_head: NDArray[np.bool_]
) -> tuple[Ints, Floats, Floats]:
    """ended_by, causes and in_flight of the bubbles."""
    graph = trace.graph
    ended_by = np.full(len(rank), -1, np.int64)
    inner = np.flatnonzero(slot >= 0)
    ended_by[inner] = trace.last_inputs(_first_tasks(trace, slot[inner]))
    causes = np.zeros((len(rank), len(CAUSES)))
    waited = np.flatnonzero((ended_by >= 0) & ~is_head)
    late = end[waited] - np.clip(trace.end[ended_by[waited]], start[waited], end[waited])
    causes[waited, LATE] = np.where(late > INTERVAL * trace.makespan, late, 0.0)
    end = end - causes[:, LATE]
    length = end - start
    in_flight = np.zeros(len(rank))
    causes[is_head, WARM_UP] = length[is_head]
    causes[slot < 0, COOL_DOWN] = length[slot < 0]
    at_barrier = ~is_head & (ended_by >= 0) & (graph.word[ended_by] == BARRIER)
    causes[at_barrier, AT_BARRIER] = length[at_barrier]

    sent = np.flatnonzero((ended_by >= 0) & (graph.message[ended_by] | (graph.word[ended_by] == SYNC)))
    left = np.clip(trace.start[ended_by[sent]], start[sent], end[sent])
    in_flight[sent] = end[sent] - left
    sent, left = sent[~is_head[sent]], left[~is_head[sent]]
    causes[sent, TRANSFER] = in_flight[sent]
    by_sync = graph.word[ended_by[sent]] == SYNC
    causes[sent[by_sync], TRANSFER] = length[sent[by_sync]]
    sent, left = sent[~by_sync], left[~by_sync]
    message = ended_by[sent]
    maker = trace.program.action_slot[graph.action[message]]
    made = np.clip(trace.slot_end[maker], start[sent], left)
    began = np.clip(trace.slot_start[maker], start[sent], made)
    ready = np.clip(_inputs_ready(trace)[maker], start[sent], began)
    causes[sent, ORDER] = (began - ready) + (left - made)
    wanted = np.where(graph.word[message] == ACTIVATION, FORWARD, GRADIENT)
    causes[sent, wanted] = (ready - start[sent]) + (made - began)
    return ended_by, causes, in_flight


def _first_tasks(trace: Trace, slots: Ints) -> Ints:
    """The task with which each slot starts."""
    tasks = trace.graph.slot_tasks
    index = np.flatnonzero(trace.start[tasks.items] == trace.slot_start[tasks.keys])
    first = np.full(len(trace.graph.slot_rank), -1, np.int64)
    first[tasks.keys[index[::-1]]] = tasks.items[index[::-1]]
    return first[slots]


def _inputs_ready(trace: Trace) -> Floats:
    """(slots,) when the last activation or gradient that a slot needs had arrived."""
    graph, program = trace.graph, trace.program
    ready = np.zeros(len(graph.slot_rank))
    links = program.dependencies
    inside = ~links.crossing
    np.maximum.at(
        ready, program.action_slot[links.target[inside]], trace.slot_end[program.action_slot[links.source[inside]]]
    )
    message = np.flatnonzero(graph.message)
    np.maximum.at(ready, program.action_slot[graph.partner[message]], trace.end[message])
    return ready
