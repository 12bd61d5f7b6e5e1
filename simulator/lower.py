"""Lowering: Program and costs become a Graph (structure) and Loads (numbers).

A slot becomes the tasks of its template, every dependency that leaves a rank a message. A slot's results leave when
its last task ends. Dependencies within a rank need no edge: the order of its slots keeps them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simpipe.simulator.errors import CostsError, ProgramError
from simpipe.simulator.graph import (
    ACTIVATION,
    BARRIER,
    GRADIENT,
    OPTIMIZER,
    OVERLAPPED,
    STREAMS,
    SYNC,
    Graph,
    Loads,
    Ragged,
)
from simpipe.simulator.kernels import Ints
from simpipe.simulator.plan import Numbers, Operation, Plan, StepCosts, Sync, Template
from simpipe.simulator.program import Dependencies, Kind, Program


def lower(program: Program, *costs: StepCosts) -> tuple[Graph, Loads]:
    """The Graph of a program and one row of Loads for each of the costs, which must share one structure.

    Raises ProgramError where the program cannot run, CostsError where costs do not fit it or each other.
    """
    plans = [cost.plan(program.check()) for cost in costs]
    if not all(plan.key == plans[0].key for plan in plans):
        raise CostsError("costs simulated together must agree on operations, exchange, barrier and optimizer step")
    graph = structure(program, plans[0])
    return graph, loads(graph, costs)


def structure(program: Program, plan: Plan) -> Graph:
    """The Graph: the tasks of slots in the program's order, then messages, syncs, the barrier and the optimizers."""
    return _Builder(program, plan, program.dependencies).graph()


def apart(program: Program, costs: StepCosts) -> tuple[Graph, Loads]:
    """As `lower`, but ranks know nothing of each other: no messages. The program need not be complete."""
    none = np.empty(0, np.int64)
    graph = _Builder(program, costs.plan(program), Dependencies(none, none, none > 0, none > 0)).graph()
    return graph, loads(graph, (costs,))


def loads(graph: Graph, costs: tuple[StepCosts, ...]) -> Loads:
    """One row of numbers for each of the costs."""
    program, rows = graph.program, len(costs)
    latency, work, held, slowed = (np.zeros((rows, graph.tasks)) for _ in range(4))
    weight = np.ones((rows, len(graph.route.items)))
    capacity = np.full((rows, graph.links), np.inf)
    for row, cost in enumerate(costs):
        cost.fill(graph, Numbers(*(part[row] for part in (latency, work, weight, capacity, held, slowed))))
    return Loads(
        latency,
        work,
        weight,
        capacity,
        held,
        slowed,
        activation=np.stack([cost.activation(program) for cost in costs]),
        release=np.stack([cost.release(program) for cost in costs]),
        parameters=np.stack([cost.parameters(program) for cost in costs]),
    )


class _Messages(NamedTuple):
    """Messages between ranks: the actions that make and take each, and their slots' ranks."""

    maker: Ints
    taker: Ints
    forward: NDArray[np.bool_]
    sender: Ints
    receiver: Ints


class _Builder:
    """The state of one lowering: where each slot's tasks begin, and the edges found so far."""

    def __init__(self, program: Program, plan: Plan, links: Dependencies) -> None:
        self.program, self.plan = program, plan
        maker, taker = links.source[links.crossing], links.target[links.crossing]
        at = program.action_rank
        self.messages = _Messages(maker, taker, links.forward[links.crossing], at[maker], at[taker])
        sizes = np.array([len(template) for template in plan.templates])[plan.template_of]
        self.first = np.concatenate([[0], np.cumsum(sizes)])  # of each slot's tasks
        self.last = self.first[1:] - 1
        self.message = self.first[-1] + np.arange(len(maker))
        after = self.first[-1] + len(maker)
        self.sync = after + np.arange(len(plan.syncs))
        self.barrier = after + len(plan.syncs) + np.arange(plan.barrier)
        ranks = program.ranks * plan.optimizer
        self.optimizer = after + len(plan.syncs) + plan.barrier + np.arange(ranks)
        self.tasks = int(after + len(plan.syncs) + plan.barrier + ranks)
        self.names = [name for name in STREAMS if name in self._used_streams()]
        slot_streams = {stream for template in plan.templates for op in template for stream in op.streams}
        if len(slot_streams) > 1:  # or a slot's tasks could run beside those of the slot before it
            assert all(slot_streams == set(template[-1].streams) for template in plan.templates)

    def graph(self) -> Graph:
        program, plan, messages = self.program, self.plan, self.messages
        names = {name: number for number, name in enumerate(self.operations)}
        operation, part = self._by_task(lambda op: names[op.name]), self._by_task(lambda op: op.part)
        slot = np.repeat(np.arange(program.slots), np.diff(self.first))
        paired = np.diff(program.slot_start)[slot] == 2
        action = program.slot_start[slot] + np.maximum(part, 0)
        whole = paired & (part < 0)
        others = [len(messages.maker), len(plan.syncs), len(self.barrier), len(self.optimizer)]
        none = np.full(sum(others[1:]), -1)
        tail = np.repeat([SYNC, BARRIER, OPTIMIZER], others[1:])
        step_slot = program.slots + np.arange(len(self.optimizer))
        sync_name = np.array([names[sync.name] for sync in plan.syncs], np.int64)
        sync_rank = np.array([sync.ranks[0] for sync in plan.syncs], np.int64)
        ranks = np.arange(program.ranks)
        return Graph(
            program=program,
            rank=np.concatenate([
                program.slot_rank[slot], messages.sender, sync_rank, np.zeros(len(self.barrier), np.int64),
                ranks[: len(self.optimizer)],
            ]),
            streams=self._streams(),
            needs=self._needs(),
            route=self._routes(),
            stream_rank=np.repeat(ranks, len(self.names)),
            stream_name=np.tile([STREAMS.index(name) for name in self.names], program.ranks),
            link_names=plan.links,
            word=np.concatenate([
                np.where(whole, OVERLAPPED, program.kind[action]),
                np.where(messages.forward, ACTIVATION, GRADIENT), tail,
            ]),
            action=np.concatenate([action, messages.maker, none]),
            partner=np.concatenate([np.where(whole, action + 1, -1), messages.taker, none]),
            operation=np.concatenate([
                operation, np.zeros(others[0], np.int64), sync_name, np.zeros(sum(others[2:]), np.int64)
            ]),
            operations=tuple(names),
            slot=np.concatenate([slot, np.full(sum(others[:3]), -1), step_slot]),
            slot_rank=np.concatenate([program.slot_rank, ranks[: len(self.optimizer)]]),
        )  # fmt: skip

    @property
    def operations(self) -> list[str]:
        """Names of operations and syncs, the empty one first."""
        named = [op.name for template in self.plan.templates for op in template]
        return list(dict.fromkeys(["", *named, *(sync.name for sync in self.plan.syncs)]))

    def _used_streams(self) -> set[str]:
        used = {stream for template in self.plan.templates for op in template for stream in op.streams}
        return used | {"compute"} | {sync.stream for sync in self.plan.syncs}

    def _each_template(self) -> Iterator[tuple[Template, Ints, Ints]]:
        """Every template with its slots, and the first task of each of those as a column."""
        for number, template in enumerate(self.plan.templates):
            slots = np.flatnonzero(self.plan.template_of == number)
            yield template, slots, self.first[slots][:, None]

    def _by_task(self, value: Callable[[Operation], int]) -> Ints:
        """(tasks of slots,) a value of each one's operation."""
        found = np.empty(self.first[-1], np.int64)
        for template, _, first in self._each_template():
            found[first + np.arange(len(template))] = [value(operation) for operation in template]
        return found

    def _spread(
        self, chosen: Callable[[Operation], Iterable[str]], place: Callable[[Ints, Sequence[str]], Ints]
    ) -> list[Ints]:
        """(task, item) pairs from names that operations have; `place` finds a name's item on a slot's rank."""
        found = []
        for template, slots, first in self._each_template():
            pairs = [(index, name) for index, operation in enumerate(template) for name in chosen(operation)]
            if pairs:
                index, names = np.array([i for i, _ in pairs]), [name for _, name in pairs]
                found.append(_pairs(first + index, place(self.program.slot_rank[slots][:, None], names)))
        return found

    def _stream(self, rank: Ints, names: Sequence[str]) -> Ints:
        return np.asarray(rank * len(self.names) + np.array([self.names.index(name) for name in names]), np.int64)

    def _link(self, rank: Ints, kinds: Sequence[str]) -> Ints:
        return np.asarray(
            rank * len(self.plan.links) + np.array([self.plan.links.index(kind) for kind in kinds]), np.int64
        )

    def _streams(self) -> Ragged:
        """What each task occupies; the barrier and an optimizer step their ranks' compute streams."""
        ranks = np.arange(self.program.ranks)
        pairs = self._spread(lambda operation: operation.streams, self._stream)
        index, stream = self._by_sync(lambda sync: [(rank, self.names.index(sync.stream)) for rank in sync.ranks])
        pairs.append(_pairs(self.sync[index], stream[:, 0] * len(self.names) + stream[:, 1]))
        pairs += [_pairs(task, self._stream(ranks, ["compute"])) for task in self.barrier]
        pairs.append(_pairs(self.optimizer, self._stream(ranks[: len(self.optimizer)], ["compute"])))
        return _ragged(pairs, self.tasks)

    def _routes(self) -> Ragged:
        """The links of each task, in the order of their kinds; a message leaves its sender and enters its receiver."""
        leaves, enters = self.plan.message_links
        pairs = self._spread(lambda operation: operation.links, self._link)
        pairs.append(_pairs(self.message[:, None], self._link(self.messages.sender[:, None], leaves)))
        pairs.append(_pairs(self.message[:, None], self._link(self.messages.receiver[:, None], enters)))
        number = {kind: number for number, kind in enumerate(self.plan.links)}
        index, link = self._by_sync(lambda sync: [(rank, number[kind]) for rank in sync.ranks for kind in sync.links])
        pairs.append(_pairs(self.sync[index], link[:, 0] * len(number) + link[:, 1]))
        return _ragged(pairs, self.tasks)

    def _needs(self) -> Ragged:
        """What each task waits for besides its streams."""
        pairs = []
        for template, _, first in self._each_template():
            inner = [(index, need) for index, operation in enumerate(template) for need in operation.needs]
            index, need = np.array(inner, np.int64).reshape(-1, 2).T
            pairs.append(_pairs(first + index, first + need))
        made, taken = self.program.action_slot[self.messages.maker], self.program.action_slot[self.messages.taker]
        pairs += [_pairs(self.message, self.last[made]), *self._before(taken, self.message)]
        if self.plan.exchange == "blocking":
            pairs += self._rendezvous(made, taken)
        return _ragged([*pairs, *self._around()], self.tasks)

    def _by_sync(self, items: Callable[[Sync], Iterable[tuple[int, int]]]) -> tuple[Ints, Ints]:
        """(n,) which sync and (n, 2) the item, for the items of each sync, in order."""
        found = [(index, *item) for index, sync in enumerate(self.plan.syncs) for item in items(sync)]
        array = np.array(found, np.int64).reshape(-1, 3)
        return array[:, 0], array[:, 1:]

    def _around(self) -> Iterator[Ints]:
        """What syncs wait for, and what waits for them."""
        index, place = self._by_sync(lambda sync: sync.after)
        slot, piece = place.T
        yield _pairs(self.sync[index], np.where(piece < 0, self.last[slot], self.first[slot] + piece))
        index, place = self._by_sync(lambda sync: sync.before)
        slot, piece = place.T
        inside = piece >= 0
        yield _pairs(self.first[slot[inside]] + piece[inside], self.sync[index[inside]])
        yield from self._before(slot[~inside], self.sync[index[~inside]])
        for task, sync in zip(self.sync.tolist(), self.plan.syncs, strict=True):
            if sync.follows:
                yield _pairs(task, self._followed(task, sync))
            if sync.closing:
                yield from (_pairs(task, self.barrier), _pairs(self.optimizer[list(sync.ranks)], task))
            elif not sync.before:
                ranks = list(sync.ranks)[: len(self.optimizer)]
                yield _pairs(self.barrier if len(self.barrier) else self.optimizer[ranks], task)

    def _followed(self, task: int, sync: Sync) -> Ints:
        """The earlier syncs that one follows."""
        if not sync.follows:
            return np.empty(0, np.int64)
        earlier = zip(self.sync[: task - self.sync[0]].tolist(), self.plan.syncs, strict=False)
        named = (other for other, each in earlier if each.name in sync.follows and {*each.ranks} & {*sync.ranks})
        return np.array([*named], np.int64)

    def _before(self, slots: Ints, tasks: Ints) -> list[Ints]:
        """The first tasks of some slots each wait for the task beside it: all that wait for nothing in their slot."""
        found = []
        for number, template in enumerate(self.plan.templates):
            here = np.flatnonzero(self.plan.template_of[slots] == number)
            roots = np.array([index for index, operation in enumerate(template) if not operation.needs], np.int64)
            found.append(_pairs(self.first[slots[here]][:, None] + roots, tasks[here][:, None]))
        return found

    def _rendezvous(self, made: Ints, taken: Ints) -> list[Ints]:
        """A blocking message waits for both ends to come to it and holds the next slot of both."""
        program, messages = self.program, self.messages
        sent, received = _boundaries(program, messages.maker, messages.taker, made, taken)
        pairs = []
        for rank, at in ((messages.sender, sent), (messages.receiver, received)):
            inside = at > program.rank_start[rank]
            pairs.append(_pairs(self.message[inside], self.last[at[inside] - 1]))
            inside = at < program.rank_start[rank + 1]
            pairs += self._before(at[inside], self.message[inside])
        return pairs


def _pairs(task: Ints | int, item: Ints | int) -> Ints:
    """(n, 2) of a task and an item of it."""
    return np.stack(np.broadcast_arrays(task, item), axis=-1).reshape(-1, 2)


def _ragged(edges: list[Ints], tasks: int) -> Ragged:
    """Lists by task from (task, item) pairs."""
    pairs = np.concatenate([np.empty((0, 2), np.int64), *edges])
    return Ragged.grouped(pairs[:, 0], pairs[:, 1], tasks)


def _boundaries(program: Program, maker: Ints, taker: Ints, made: Ints, taken: Ints) -> tuple[Ints, Ints]:
    """Before which slot of the sender and of the receiver each blocking message is exchanged.

    Where the order says where messages are posted, that holds, and the rest is posted right beside maker and taker.
    Where it does not, a receive is posted as soon as a free-running pipeline with F = I = W would have made the
    message: later would block, and in most schedules deadlock, its sender.
    """
    if not program.posts:
        return made + 1, _early_receives(program, made, taken)
    sent, received = made + 1, taken.copy()
    _apply_posts(program, maker, taker, sent, received)
    return sent, received


def _apply_posts(program: Program, maker: Ints, taker: Ints, sent: Ints, received: Ints) -> None:
    """Move the boundaries of messages whose posts the order states."""
    columns = (program.kind[maker], program.stage[maker], program.stage[taker], program.microbatch[maker])
    for index, (kind, from_stage, to_stage, microbatch) in enumerate(zip(*(c.tolist() for c in columns), strict=True)):
        letter = "F" if kind == Kind.F else "B"
        for boundary, key in ((sent, ("SEND_", from_stage)), (received, ("RECV_", to_stage))):
            word = key[0] + letter
            post = program.posts.get((word, key[1], microbatch))
            if post is not None:
                action = int((maker if boundary is sent else taker)[index])
                boundary[index] = _posted(program, f"{key[1]}{word}{microbatch}", post, action, boundary is sent)


def _posted(program: Program, post: str, place: tuple[int, int], action: int, is_sent: bool) -> int:
    """Before which slot a post stands. Raises ProgramError where its action is elsewhere or on the wrong side."""
    rank, before = place
    at, own = int(program.rank_start[rank]) + before, int(program.action_slot[action])
    if rank != program.action_rank[action] or (at <= own if is_sent else at > own):
        side = f"{'after' if is_sent else 'before'} {program.action_text(action)} of rank {program.action_rank[action]}"
        raise ProgramError(f"rank {rank} has {post} before its slot {before}; it belongs {side}")
    return at


def _early_receives(program: Program, source: Ints, target: Ints) -> Ints:
    """The receiver's first slot that starts, in unit time, no earlier than the message is made."""
    passes = np.where(program.kind == Kind.B, 2, 1)
    made = program.unit_time[source] + np.add.reduceat(passes, program.slot_start[:-1])[source]
    horizon = int(made.max(initial=0)) + 2
    rank = program.slot_rank
    key = rank * horizon + program.unit_time  # ascending: slots of a rank start one after the other
    return np.asarray(np.searchsorted(key, rank[target] * horizon + made), np.int64)
