"""Slots as few tasks: how long each kind of slot takes when it runs alone, and a whole step from those times.

The operations of every kind of slot are run once, by the same engines, with nothing beside them. In the step, a slot
is then one task of that length, or some in a row where gathers and reductions start inside it, layer by layer.
Messages, reductions, gathers and the optimizer stay what they are, share links with each other, and slow computation
by the SMs that they hold. What is left out: transfers inside slots slow down, and are slowed by, messages and syncs.
Without either, both are equal. Of random layouts of dense models and Mixtral, 2 to 64 micro-batches, 1 in 75 is off by
more than 0.5 %, at most 1.1 %.
DeepSeek-V3 on 2,048 H800 is 0.4 % too fast at 120 micro-batches, but plain 1F1B 1.2 %, and 3.4 % at 32: there
reductions share NICs with the exposed exchanges of each rank's last backward, one rank after another. ZeRO 2 and 3
have traffic beside every slot (4 to 10 %), so their steps are run in full.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import OrderedDict
from dataclasses import dataclass, replace
from functools import cache, cached_property
from typing import Any, NamedTuple

import numpy as np

from simpipe.simulator import engines, kernels
from simpipe.simulator.costs.cluster import Cluster
from simpipe.simulator.costs.collectives import Exchange
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.offload import Hosted
from simpipe.simulator.costs.stack import Stack
from simpipe.simulator.graph import Graph
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.lower import apart, loads, structure
from simpipe.simulator.plan import Numbers, Operation, Plan, Sync, Template
from simpipe.simulator.program import Program
from simpipe.simulator.trace import Trace
from simpipe.simulator.trace import simulate as run_in_full

KEPT, KINDS_KEPT = 64, 20_000
"""Graphs that are remembered, and kinds of slots whose times are."""


Profiles = tuple[Cluster, Stack]


class Alone(NamedTuple):
    """A slot run with nothing beside it: its seconds, those in which its rank computes nothing, how much longer all of
    it takes for each share of the SMs that is held outside, and (operations,) when each starts and ends."""

    seconds: float
    exposed: float
    slowed: float
    starts: Floats
    ends: Floats


@dataclass(frozen=True, eq=False)
class SlotCosts:
    """The costs of a modelled step of one program, its slots being few tasks; implements plan.StepCosts.

    alone: (slots,) each as it runs alone. syncs: as the modelled step has them.
    """

    costs: ModelledCosts
    alone: tuple[Alone, ...]
    syncs: tuple[tuple[Sync, Exchange | Hosted], ...] = ()

    @cached_property
    def seconds(self) -> Floats:
        """(slots,) of each."""
        return np.array([slot.seconds for slot in self.alone])

    @cached_property
    def _cuts(self) -> dict[int, list[float]]:
        """{slot: seconds since its start at which a sync starts or is waited for}."""
        found: dict[int, set[float]] = {}
        for sync, _ in self.syncs:
            for slot, piece in (place for place in sync.after if place[1] >= 0):
                found.setdefault(slot, set()).add(float(self.alone[slot].ends[piece]))
            for slot, piece in (place for place in sync.before if place[1] >= 0):
                found.setdefault(slot, set()).add(float(self.alone[slot].starts[piece]))
        return {slot: sorted(at for at in cuts if 0 < at < self.seconds[slot]) for slot, cuts in found.items()}

    def _moved(self, sync: Sync) -> Sync:
        """The sync, its places being tasks of cut slots."""
        after, before = [], []
        for slot, piece in sync.after:
            cuts = self._cuts.get(slot, [])
            number = bisect_left(cuts, self.alone[slot].ends[piece]) if piece >= 0 else len(cuts)
            after.append((slot, number if number < len(cuts) else -1))
        for slot, piece in sync.before:
            number = bisect_right(self._cuts.get(slot, []), self.alone[slot].starts[piece]) if piece >= 0 else 0
            before.append((slot, number or -1))
        return sync._replace(after=tuple(after), before=tuple(before))

    def plan(self, program: Program) -> Plan:
        """Slots cut where syncs start or are waited for; all else as the modelled step has it."""
        sizes = np.ones(program.slots, np.int64)
        for slot, cuts in self._cuts.items():
            sizes[slot] += len(cuts)
        found, template_of = np.unique(sizes, return_inverse=True)
        return Plan(
            tuple(map(_template, found.tolist())), template_of, tuple(self._moved(sync) for sync, _ in self.syncs),
            self.costs.all_links, self.costs.message_links, barrier=True, optimizer=True,
        )  # fmt: skip

    def fill(self, graph: Graph, numbers: Numbers) -> None:
        """Slots take the time they take alone."""
        first = graph.slot_tasks.items[graph.slot_tasks.start[:-1]][: graph.program.slots]
        sizes = np.diff(graph.slot_tasks.start)[: graph.program.slots]
        numbers.work[first] = self.seconds
        numbers.slowed[: sizes.sum()] = np.repeat([slot.slowed for slot in self.alone], sizes)
        for slot, cuts in self._cuts.items():
            lengths = np.diff([0.0, *cuts, self.seconds[slot]])
            numbers.work[first[slot] + np.arange(len(lengths))] = lengths
        numbers.capacity[:] = self.costs.capacities(graph.program)
        self.costs.fill_outside(graph, numbers, [exchange for _, exchange in self.syncs])

    def exposed_per_rank(self, trace: Trace) -> Floats:
        """(ranks,) seconds inside slots in which a rank computes nothing, what it waits there for gathers included."""
        inside = slice(int(trace.graph.slot_tasks.start[len(self.alone)]))
        busy = np.bincount(trace.graph.slot[inside], (trace.end - trace.start)[inside])
        waited = (trace.slot_end - trace.slot_start)[: len(self.alone)] - busy
        exposed = np.array([slot.exposed for slot in self.alone]) + waited
        return np.asarray(np.add.reduceat(exposed, trace.program.rank_start[:-1]), float)

    def activation(self, program: Program) -> Floats:
        """(actions,) bytes that each F keeps."""
        return self.costs.activation(program)

    def release(self, program: Program) -> Floats:
        """(stages,) the share of an activation that I frees."""
        return self.costs.release(program)

    def parameters(self, program: Program) -> Floats:
        """(stages,) bytes of parameters."""
        return self.costs.parameters(program)


class Step(NamedTuple):
    """A simulated step. exposed: (ranks,) seconds inside slots in which a rank computes nothing."""

    trace: Trace
    exposed: Floats


def simulate(program: Program, costs: ModelledCosts) -> Step:
    """A step of modelled costs, a slot being few tasks where that is near the full run."""
    if costs.parallel.zero >= 2:
        return in_full(program, costs)
    slots = replace(slot_costs(program, costs), syncs=tuple(costs.syncs(program)))
    graph = _graph(program, slots.plan(program))
    numbers = loads(graph, (slots,))
    start, end = engines.times(graph, numbers, "compiled")
    trace = Trace(graph, numbers, 0, start[0], end[0])
    return Step(trace, slots.exposed_per_rank(trace))


def in_full(program: Program, costs: ModelledCosts) -> Step:
    """A step with all operations of its slots."""
    trace = run_in_full(program, costs)
    return Step(trace, trace.exposed_communication)


def least_seconds(program: Program, costs: ModelledCosts) -> float:
    """What a step run in full takes at least: its slots alone with nothing to wait for but messages and each other, or
    the collectives of a rank's data-parallel stream, one after another."""
    slots = slot_costs(program, costs)
    graph = _graph(program, slots.plan(program))
    _, end = engines.times(graph, loads(graph, (slots,)), "compiled")
    return float(max(end.max(), costs.sync_seconds(program).max()))


def untimed(program: Program, costs: ModelledCosts) -> Trace:
    """A step in which nothing takes time: what ranks keep follows from the order alone."""
    none = np.empty(0)
    slots = SlotCosts(costs, (Alone(0.0, 0.0, 0.0, none, none),) * program.slots)
    graph = _graph(program, slots.plan(program))
    return Trace(graph, loads(graph, (slots,)), 0, np.zeros(graph.tasks), np.zeros(graph.tasks))


_shared: OrderedDict[Any, tuple[Profiles, dict[Any, Any]]] = OrderedDict()
"""What was found of slots, by all that it depends on; with the profiles, that no others get their ids."""


def _key(costs: ModelledCosts) -> tuple[Any, ...]:
    """What slots of given layers depend on."""
    return id(costs.cluster), id(costs.stack), costs.model, costs.parallel.of_slots


def _profiles(costs: ModelledCosts) -> Profiles:
    return costs.cluster, costs.stack


def sharing(costs: ModelledCosts) -> ModelledCosts:
    """The costs, knowing what others that run the same slots found."""
    _, found = _shared.setdefault(_key(costs), (_profiles(costs), costs.of_slots))
    _shared.move_to_end(_key(costs))
    if len(_shared) > KEPT:
        _shared.popitem(last=False)
    return replace(costs, of_slots=found)


def slot_costs(program: Program, costs: ModelledCosts) -> SlotCosts:
    """The costs of a program's slots without syncs, found by running one slot of each kind alone.

    Kinds that another layout or schedule had are not run again.
    """
    speeds = np.ones(program.ranks)
    speeds[: len(costs.speeds)] = costs.speeds
    common = _key(costs)
    chosen, missing = [], []
    kinds: list[tuple[Any, Ints]] = []
    for key, tokens, slots in costs.alike(program):
        for speed in np.unique(speeds[program.slot_rank[slots]]).tolist():
            here = slots[speeds[program.slot_rank[slots]] == speed]
            kinds.append(((common, key, tokens, speed), here))
            if kinds[-1][0] not in _times:
                missing.append(kinds[-1][0])
                chosen.append(int(here[0]))
    if chosen:
        for key, found in zip(missing, one_each(program, costs, np.array(chosen, np.int64)), strict=True):
            _times[key] = _profiles(costs), found
    which = np.empty(program.slots, np.int64)
    for number, (key, here) in enumerate(kinds):
        _times.move_to_end(key)
        which[here] = number
    each = [_times[key][1] for key, _ in kinds]
    while len(_times) > KINDS_KEPT:
        _times.popitem(last=False)
    return SlotCosts(costs, tuple(each[number] for number in which.tolist()))


_times: OrderedDict[Any, tuple[Profiles, Alone]] = OrderedDict()
"""Kinds of slots as they run alone; with the profiles as well."""


def alone(program: Program, costs: ModelledCosts) -> Trace:
    """The slots of a program, which need not be complete, with nothing between or beside the ranks' slots."""
    graph, numbers = apart(program, _Alone(costs))
    kernels.compiled(kernels.topological)  # many small graphs are worth it too
    start, end = engines.times(graph, numbers, "compiled")
    return Trace(graph, numbers, 0, start[0], end[0])


def one_each(program: Program, costs: ModelledCosts, slots: Ints) -> list[Alone]:
    """Some slots, each run with nothing beside it."""
    last = int(program.action_slot[np.argmax(program.stage)])  # an excerpt without the last stage would have fewer
    slots = np.append(slots, last)
    speeds = np.ones(program.ranks)
    speeds[: len(costs.speeds)] = costs.speeds
    own = replace(costs, speeds=tuple(speeds[program.slot_rank[slots]].tolist()))
    trace = alone(_excerpt(program, slots), own)
    exposed, found = trace.exposed_communication.tolist(), []
    for slot, start in enumerate(trace.slot_start[:-1].tolist()):
        tasks = trace.graph.slot_tasks.items[slice(*trace.graph.slot_tasks.start[slot : slot + 2])]
        starts, ends = trace.start[tasks] - start, trace.end[tasks] - start
        slowed = (trace.loads.slowed[0] * trace.loads.work[0])[tasks].sum() / ends.max() if ends.max() else 0.0
        found.append(Alone(float(ends.max()), exposed[slot], float(slowed), starts, ends))
    return found


def _excerpt(program: Program, slots: Ints) -> Program:
    """A program in which each of some slots is all that a rank runs."""
    sizes = np.diff(program.slot_start)[slots]
    actions = np.concatenate([np.arange(program.slot_start[slot], program.slot_start[slot + 1]) for slot in slots])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    columns = (program.stage[actions], program.kind[actions], program.microbatch[actions])
    return Program(*columns, starts, np.arange(len(slots) + 1), {}, program.name)


@dataclass(frozen=True, eq=False)
class _Alone:
    """Modelled costs of slots, and of nothing outside them; implements plan.StepCosts."""

    costs: ModelledCosts

    def plan(self, program: Program) -> Plan:
        return self.costs.plan_slots(program)

    def fill(self, graph: Graph, numbers: Numbers) -> None:
        self.costs.fill_slots(graph, numbers)

    def activation(self, program: Program) -> Floats:
        return np.zeros(len(program.kind))

    def release(self, program: Program) -> Floats:
        return np.zeros(program.stages)

    def parameters(self, program: Program) -> Floats:
        return np.zeros(program.stages)


@cache
def _template(size: int) -> Template:
    """Tasks in a row on the compute stream."""
    return tuple(Operation("", ("compute",), (number - 1,) if number else ()) for number in range(size))


_graphs: OrderedDict[Any, Graph] = OrderedDict()
"""By plan and the id of their program, which each keeps."""


def _graph(program: Program, plan: Plan) -> Graph:
    """The graph of a program and plan, built once for equal ones that follow each other closely."""
    key = id(program), plan.key
    if key not in _graphs:
        _graphs[key] = structure(program, plan)
    _graphs.move_to_end(key)
    if len(_graphs) > KEPT:
        _graphs.popitem(last=False)
    return _graphs[key]
