"""Slots as single tasks: how long each kind of slot takes when it runs alone, and a whole step from those times.

The operations of every kind of slot are run once, by the same engines, with nothing beside them. In the step, a slot
is then one task of that length. Messages, reductions, gathers and the optimizer stay what they are and share links with
each other. What is left out: transfers inside slots slow down, and are slowed by, messages and syncs; gathers
and reductions start layer by layer inside slots, here before and after whole ones. Without either, both are equal.
For DeepSeek-V3 on 2,048 H800 it is 0.1 to 0.7 % too fast at 120 micro-batches, but plain 1F1B 1.7 %, and 4.7 % at 32:
there reductions share NICs with the exposed exchanges of each rank's last backward, one rank after another. ZeRO 2 and
3 have traffic beside every slot (8 % at 120), so their steps are run in full.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from simpipe.simulator import engines, kernels
from simpipe.simulator.costs.cluster import Cluster
from simpipe.simulator.costs.collectives import Exchange, behind
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.offload import Hosted
from simpipe.simulator.costs.stack import Stack
from simpipe.simulator.graph import Graph
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.lower import apart, loads, structure
from simpipe.simulator.plan import WHOLE, Numbers, Plan, Sync
from simpipe.simulator.program import Program
from simpipe.simulator.trace import Trace
from simpipe.simulator.trace import simulate as run_in_full

KEPT, KINDS_KEPT = 64, 20_000
"""Programs whose graphs are remembered, and kinds of slots whose times are."""


Profiles = tuple[Cluster, Stack]


@dataclass(frozen=True, eq=False)
class SlotCosts:
    """The costs of a modelled step of one program, its slots being single tasks; implements plan.StepCosts.

    seconds, exposed: (slots,) the time of each, and of it that in which its rank computes nothing.
    """

    costs: ModelledCosts
    seconds: Floats
    exposed: Floats
    syncs: dict[Sync, Exchange | Hosted]

    def plan(self, program: Program) -> Plan:
        """One task a slot; all else as the modelled step has it."""
        return Plan(
            (WHOLE,), np.zeros(program.slots, np.int64), tuple(self.syncs), self.costs.all_links,
            self.costs.message_links, barrier=True, optimizer=True,
        )  # fmt: skip

    def fill(self, graph: Graph, numbers: Numbers) -> None:
        """Slots take the time they take alone."""
        numbers.work[: graph.program.slots] = self.seconds
        numbers.capacity[:] = self.costs.capacities(graph.program)
        self.costs.fill_outside(graph, numbers, list(self.syncs.values()))

    def exposed_per_rank(self, program: Program) -> Floats:
        """(ranks,) seconds inside slots in which a rank computes nothing."""
        return np.asarray(np.add.reduceat(self.exposed, program.rank_start[:-1]), float)

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
    """A step of modelled costs, a slot being one task where that is near the full run."""
    if costs.parallel.zero >= 2:
        return in_full(program, costs)
    slots = slot_costs(program, costs)
    graph = _graph(program, slots.plan(program))
    numbers = loads(graph, (slots,))
    start, end = engines.times(graph, numbers, "compiled")
    return Step(Trace(graph, numbers, 0, start[0], end[0]), slots.exposed_per_rank(program))


def in_full(program: Program, costs: ModelledCosts) -> Step:
    """A step with all operations of its slots."""
    trace = run_in_full(program, costs)
    return Step(trace, trace.exposed_communication)


def least_seconds(program: Program, costs: ModelledCosts) -> float:
    """What a step run in full takes at least: its slots alone with nothing to wait for but messages and each other, or
    the collectives of a rank's data-parallel stream, one after another."""
    slots = replace(slot_costs(program, costs), syncs={})
    graph = _graph(program, slots.plan(program))
    _, end = engines.times(graph, loads(graph, (slots,)), "compiled")
    return float(max(end.max(), costs.sync_seconds(program).max()))


def untimed(program: Program, costs: ModelledCosts) -> Trace:
    """A step in which nothing takes time: what ranks keep follows from the order alone."""
    none = np.zeros(program.slots)
    slots = SlotCosts(costs, none, none, {})
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
    """The costs of a program's slots as single tasks, found by running one slot of each kind alone.

    Kinds that another layout or schedule had are not run again.
    """
    speeds = np.ones(program.ranks)
    speeds[: len(costs.speeds)] = costs.speeds
    common = _key(costs)
    seconds, exposed, chosen, missing = np.empty(program.slots), np.empty(program.slots), [], []
    kinds: list[tuple[Any, Ints]] = []
    for key, tokens, slots in costs.alike(program):
        for speed in np.unique(speeds[program.slot_rank[slots]]).tolist():
            here = slots[speeds[program.slot_rank[slots]] == speed]
            kinds.append(((common, key, tokens, speed), here))
            if kinds[-1][0] not in _times:
                missing.append(kinds[-1][0])
                chosen.append(int(here[0]))
    if chosen:
        found = one_each(program, costs, np.array(chosen, np.int64))
        for key, times in zip(missing, found, strict=True):
            _times[key] = (_profiles(costs), *times)
    for key, here in kinds:
        _times.move_to_end(key)
        _, seconds[here], exposed[here] = _times[key]
    while len(_times) > KINDS_KEPT:
        _times.popitem(last=False)
    return SlotCosts(costs, seconds, exposed, _merged(costs.syncs(program)))


_times: OrderedDict[Any, tuple[Profiles, float, float]] = OrderedDict()
"""Seconds and exposed seconds of kinds of slots; with the profiles as well."""


def alone(program: Program, costs: ModelledCosts) -> Trace:
    """The slots of a program, which need not be complete, with nothing between or beside the ranks' slots."""
    graph, numbers = apart(program, _Alone(costs))
    kernels.compiled(kernels.topological)  # many small graphs are worth it too
    start, end = engines.times(graph, numbers, "compiled")
    return Trace(graph, numbers, 0, start[0], end[0])


def one_each(program: Program, costs: ModelledCosts, slots: Ints) -> list[tuple[float, float]]:
    """Seconds, and exposed seconds, of some slots, each run with nothing beside it."""
    last = int(program.action_slot[np.argmax(program.stage)])  # an excerpt without the last stage would have fewer
    slots = np.append(slots, last)
    speeds = np.ones(program.ranks)
    speeds[: len(costs.speeds)] = costs.speeds
    own = replace(costs, speeds=tuple(speeds[program.slot_rank[slots]].tolist()))
    trace = alone(_excerpt(program, slots), own)
    seconds = trace.slot_end - trace.slot_start
    return list(zip(seconds.tolist(), trace.exposed_communication.tolist(), strict=True))[:-1]


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


def _merged(syncs: list[tuple[Sync, Exchange | Hosted]]) -> dict[Sync, Exchange | Hosted]:
    """Syncs before and after whole slots; those that then are alike are one."""
    found: dict[Sync, Exchange | Hosted] = {}
    for sync, exchange in syncs:
        after, before = (tuple((slot, -1) for slot, _ in places) for places in (sync.after, sync.before))
        whole = sync._replace(after=after, before=before)
        other = found.get(whole)
        if isinstance(other, Exchange) and isinstance(exchange, Exchange):
            exchange = behind(other, exchange)
        found[whole] = exchange
    return found


_graphs: OrderedDict[int, tuple[Program, list[tuple[Plan, Graph]]]] = OrderedDict()


def _graph(program: Program, plan: Plan) -> Graph:
    """The graph of a program and plan, built once for equal ones."""
    _, known = _graphs.setdefault(id(program), (program, []))
    _graphs.move_to_end(id(program))
    if len(_graphs) > KEPT:
        _graphs.popitem(last=False)
    for other, graph in known:
        if plan.same_as(other):
            return graph
    known.append((plan, structure(program, plan)))
    return known[-1][1]
