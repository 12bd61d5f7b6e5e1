"""Lowering: Program and costs become a Graph (structure) and Loads (numbers).

Every slot is one task on its rank's compute stream, every dependency that leaves a rank a message. A slot's
results leave when it ends. Dependencies within a rank need no edge: the order of its slots keeps them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from simpipe.simulator.costs.given import Costs, Exchange
from simpipe.simulator.errors import CostsError
from simpipe.simulator.graph import ACTIVATION, BARRIER, GRADIENT, OPTIMIZER, OVERLAPPED, STREAMS, Graph, Loads, Ragged
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.program import Kind, Program


def lower(program: Program, *costs: Costs) -> tuple[Graph, Loads]:
    """The Graph of a program and one row of Loads for each of the costs.

    The costs must agree on what shapes the graph: `exchange`, `barrier` and whether there is an optimizer step.
    Raises ProgramError where the program cannot run, CostsError where costs do not fit it.
    """
    shapes = {(cost.exchange, cost.barrier, cost.barrier or cost.optimizer > 0) for cost in costs}
    if len(shapes) != 1:
        raise CostsError("costs simulated together must agree on exchange, barrier and having an optimizer step")
    graph = structure(program, *shapes.pop())
    return graph, loads(graph, costs)


def structure(program: Program, exchange: Exchange = "async", barrier: bool = False, optimizer: bool = False) -> Graph:
    """The Graph: slots first, in the program's order, then messages, then the barrier and the optimizers."""
    slots, ranks = program.check().slots, program.ranks
    links = program.dependencies
    maker, taker = links.source[links.crossing], links.target[links.crossing]
    sender, receiver = program.action_rank[maker], program.action_rank[taker]
    message = slots + np.arange(len(maker))
    end = slots + len(maker)
    final = np.arange(end, end + barrier)
    steps = np.arange(end + barrier, end + barrier + ranks * optimizer)
    step_ranks = np.arange(ranks)[: len(steps)]
    tasks = end + len(final) + len(steps)

    first = program.slot_start[:-1]
    paired = np.diff(program.slot_start) == 2
    occupied = [np.stack([np.arange(slots), program.slot_rank], axis=1)]
    occupied += [np.stack([np.repeat(final, ranks), np.tile(np.arange(ranks), barrier)], axis=1)]
    occupied += [np.stack([steps, step_ranks], axis=1)]
    crossed = np.stack([np.repeat(message, 2), np.stack([sender, ranks + receiver], axis=1).ravel()], axis=1)
    none = np.full(len(final) + len(steps), -1, np.int64)
    return Graph(
        program=program,
        rank=np.concatenate([program.slot_rank, sender, np.zeros(len(final), np.int64), step_ranks]),
        streams=_ragged(occupied, tasks),
        needs=_ragged(_exchanges(program, maker, taker, exchange), tasks),
        route=_ragged([crossed], tasks),
        stream_rank=np.arange(ranks),
        stream_name=np.full(ranks, STREAMS.index("compute")),
        links=2 * ranks,
        word=np.concatenate([
            np.where(paired, OVERLAPPED, program.kind[first]),
            np.where(links.forward[links.crossing], ACTIVATION, GRADIENT),
            np.full(len(final), BARRIER), np.full(len(steps), OPTIMIZER),
        ]),
        action=np.concatenate([first, maker, none]),
        partner=np.concatenate([np.where(paired, first + 1, -1), taker, none]),
        slot=np.concatenate([
            np.arange(slots), np.full(len(maker) + len(final), -1, np.int64), slots + np.arange(len(steps))
        ]),
        slot_rank=np.concatenate([program.slot_rank, step_ranks]),
    )  # fmt: skip


def loads(graph: Graph, costs: Sequence[Costs]) -> Loads:
    """One row of numbers for each of the costs."""
    program = graph.program
    shape = (len(costs), graph.tasks)
    latency, work = np.zeros(shape), np.zeros(shape)
    message = np.flatnonzero(graph.message)
    for row, cost in enumerate(costs):
        work[row, : program.slots] = cost.per_slot(program)
        latency[row, message] = cost.p2p
        work[row, message] = cost.message(program, graph.action[message])
        work[row, graph.word == OPTIMIZER] = cost.optimizer
    return Loads(
        latency=latency,
        work=work,
        capacity=_rows([np.full(graph.links, cost.bandwidth) for cost in costs]),
        held=np.broadcast_to(0.0, shape),
        slowed=np.broadcast_to(0.0, shape),
        activation=_rows([cost.activation(program) for cost in costs]),
        release=_rows([np.array(cost.released_by_input) for cost in costs]),
        parameters=_rows([cost.parameters(program) for cost in costs]),
    )


def _rows(parts: Sequence[Floats]) -> Floats:
    return np.stack(parts)


def _ragged(edges: Sequence[Ints], tasks: int) -> Ragged:
    """Lists by task from (task, item) pairs."""
    pairs = np.concatenate(edges)
    return Ragged.grouped(pairs[:, 0], pairs[:, 1], tasks)


def _exchanges(program: Program, maker: Ints, taker: Ints, exchange: Exchange) -> list[Ints]:
    """Who waits for whom around each message, as (task, task it needs) pairs.

    An asynchronous message leaves when its maker's slot ends, and its taker's slot waits for it. A blocking one
    also waits for the receiver to come to it, and holds the sender's next slot. Where the order says where
    messages are posted, that holds, and the rest is posted right beside maker and taker. Where it does not, a
    receive is posted as soon as a free-running pipeline with F = I = W would have made the message: later would
    block, and in most schedules deadlock, its sender.
    """
    source, target = program.action_slot[maker], program.action_slot[taker]
    message = program.slots + np.arange(len(maker))
    pairs = [np.stack([message, source], axis=1), np.stack([target, message], axis=1)]
    if exchange == "async":
        return pairs
    sent, received = source + 1, _early_receives(program, source, target)
    if program.posts:
        received = target.copy()
        _apply_posts(program, maker, taker, sent, received)
    for rank, at in ((program.action_rank[maker], sent), (program.action_rank[taker], received)):
        inside = at > program.rank_start[rank]
        pairs.append(np.stack([message[inside], at[inside] - 1], axis=1))
        inside = at < program.rank_start[rank + 1]
        pairs.append(np.stack([at[inside], message[inside]], axis=1))
    return pairs


def _apply_posts(program: Program, maker: Ints, taker: Ints, sent: Ints, received: Ints) -> None:
    """Move the boundaries of messages whose posts the order states."""
    columns = (program.kind[maker], program.stage[maker], program.stage[taker], program.microbatch[maker])
    for index, (kind, from_stage, to_stage, microbatch) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        letter = "F" if kind == Kind.F else "B"
        for boundary, key in ((sent, ("SEND_", from_stage)), (received, ("RECV_", to_stage))):
            post = program.posts.get((key[0] + letter, key[1], microbatch))
            if post is not None:
                boundary[index] = program.rank_start[post[0]] + post[1]


def _early_receives(program: Program, source: Ints, target: Ints) -> Ints:
    """The receiver's first slot that starts, in unit time, no earlier than the message is made."""
    passes = np.where(program.kind == Kind.B, 2, 1)
    made = program.unit_time[source] + np.add.reduceat(passes, program.slot_start[:-1])[source]
    horizon = int(made.max(initial=0)) + 2
    rank = program.slot_rank
    key = rank * horizon + program.unit_time  # ascending: slots of a rank start one after the other
    return np.asarray(np.searchsorted(key, rank[target] * horizon + made), np.int64)
