"""Study: what each way to balance comes to on a model, from the violation of its experts to the time of a step.

Strategies run side by side from the same seed. At the end of each, experts are placed on the ranks of an
expert-parallel group by the loads of its second half, and one micro-batch is routed to them: in each layer the fullest
rank sets the pace of the grouped GEMM, its experts' rows in tiles as they come; the NIC and the NVLink that carry most
that of dispatch and combine, to which a token with several experts on a node goes once. With a scenario the step is
simulated with those loads, and once with none out of balance. Without one the group is taken to lie on one node.

Time goes by the fullest GPU of each layer, which all wait for; memory by the GPU that has most over the layers of its
rank, of as many such micro-batches as are under way.

Recorded loads do not say which experts share a token; links are then taken to carry what ranks and nodes compute.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from simpipe.simulator import case
from simpipe.simulator.costs import collectives
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import Load, Parallel
from simpipe.simulator.efficiency import memory_of
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.experts import placement
from simpipe.simulator.experts.balance import STRATEGIES, Affinities, Gate, History, Sample, Strategy, follow
from simpipe.simulator.experts.placement import Placed, Traffic
from simpipe.simulator.experts.routing import Router
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.lower import loads as loads_of
from simpipe.simulator.program import Program
from simpipe.simulator.scenario import Scenario
from simpipe.simulator.trace import simulate

LAST = 20
"""Steps at the end over which a strategy's violation is averaged."""

COMPARED = ("none", "auxiliary", "bias+sequence")
"""Ways to balance that are compared where none are named."""

SAMPLED = Sample(16, 256)
"""What is routed of a step where nothing else is said."""

Progress = Callable[[str, int], None]


class Placing(NamedTuple):
    """Where experts lie: on `ep` ranks, in one of placement.WAYS, so many of them once more."""

    ep: int
    way: str = "contiguous"
    redundant: int = 0


class Plan(NamedTuple):
    """How a study runs: so many steps from `seen` tokens on, each standing for `each` tokens of which a sample is
    routed; and the micro-batch that ends it."""

    steps: int
    sample: Sample
    microbatch: Sample
    seen: float
    each: float


def planned(layout: Parallel | None, ep: int, steps: int, sample: Sample = SAMPLED, seen: float = 0.0) -> Plan:
    """The plan of a layout: steps of its batch, and what the `ep` GPUs of a group route of a micro-batch. Without one a
    step is the sample, and each GPU has a sequence of it."""
    if layout is None:
        return Plan(steps, sample, Sample(ep, sample.tokens), seen, sample.sequences * sample.tokens)
    group = max(1, ep // (layout.tp * layout.cp)) * layout.microbatch_size
    return Plan(steps, sample, Sample(group, layout.sequence), seen, layout.global_batch * layout.sequence)


class Cost(NamedTuple):
    """What a strategy's loads make of a step. peak_bytes: of the GPU that needs most."""

    step_time_s: float
    peak_bytes: float
    fits: bool


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a strategy comes to. traffic: of one micro-batch in each layer. cost: None without a scenario."""

    history: History
    traffic: tuple[Traffic, ...]
    cost: Cost | None = None

    @property
    def loads(self) -> Ints:
        """(layers, experts) tokens of that micro-batch."""
        return np.array([layer.loads for layer in self.traffic])

    @property
    def imbalance(self) -> list[Load]:
        """Of each layer."""
        return [layer.imbalance for layer in self.traffic]

    def to_dict(self) -> dict[str, Any]:
        """Plain figures; per layer where the name says so."""
        history, loads = self.history, self.loads
        expert = loads.max(1) / loads.mean(1) - 1
        network, nvlink, imbalance = np.array([[load.network, load.nvlink, load.gpu] for load in self.imbalance]).T
        return {
            "strategy": history.strategy,
            "violation_first": float(history.violation[0].mean()),
            "violation_last": float(history.violation[-LAST:].mean()),
            "violation_last_worst_layer": float(history.violation[-LAST:].mean(0).max()),
            "microbatch_violation": float(expert.mean()),
            "gpu_imbalance": float(imbalance.mean()),
            "gpu_imbalance_worst_layer": float(imbalance.max()),
            "network_imbalance": float(network.mean()),
            "nvlink_imbalance": float(nvlink.mean()),
            "popularity_moved": history.moved,
            "update_speed_last": float(history.speed[-1]),
            **(self.cost._asdict() if self.cost else dict.fromkeys(Cost._fields)),
            "violation_per_layer": history.violation[-LAST:].mean(0).tolist(),
            "gpu_imbalance_per_layer": imbalance.tolist(),
            "network_imbalance_per_layer": network.tolist(),
            "nvlink_imbalance_per_layer": nvlink.tolist(),
        }


@dataclass(frozen=True, eq=False)
class Study:
    """Strategies on one basis. sampling: MaxVio that drawing so few tokens gives a layer whose experts are equal.
    balanced_s: the time of a step with none out of balance, redundant_bytes: what redundant experts' weights, gradients
    and optimizer states take on a GPU of the rank that has most of them; None and 0 without a scenario."""

    model: str
    router: Router
    layers: int
    plan: Plan
    placing: Placing
    sampling: float
    outcomes: tuple[Outcome, ...]
    balanced_s: float | None = None
    redundant_bytes: float = 0.0

    def rows(self) -> list[dict[str, Any]]:
        """A row a strategy, with what it adds to a balanced step."""
        rows = [outcome.to_dict() for outcome in self.outcomes]
        for row in rows:
            known = row["step_time_s"] is not None and self.balanced_s is not None
            row["costs"] = row["step_time_s"] / self.balanced_s - 1 if known else None
        return rows

    def to_dict(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "model": self.model,
            "router": self.router._asdict(),
            "layers": self.layers,
            "steps": self.plan.steps,
            "sampled_tokens": self.plan.sample.sequences * self.plan.sample.tokens,
            "placing": self.placing._asdict(),
            "sampling_violation": self.sampling,
            "balanced_step_time_s": self.balanced_s,
            "redundant_bytes": self.redundant_bytes,
            "strategies": self.rows(),
        }


def router_of(model: Model) -> Router:
    """The router of a model's layers. Raises SimpipeError where it has no experts."""
    experts = model.experts
    if experts is None:
        raise SimpipeError(f"{model.name} has no experts to balance; take a model that has some, as deepseek-v3")
    limited = experts.groups_per_token < experts.groups
    groups = (experts.groups, experts.groups_per_token) if limited else (1, 1)
    return Router(experts.routed, experts.topk, *groups)


def sampling(router: Router, tokens: int) -> float:
    """MaxVio of equal experts from drawing `tokens` tokens: the largest of so many loads, binomial and of a fixed sum,
    by Blom's normal score and with Cornish and Fisher's correction for skewness."""
    experts, share = router.experts, router.topk / router.experts
    if share == 1:
        return 0.0
    deviation = math.sqrt(tokens * share * (1 - share))
    largest = NormalDist().inv_cdf((experts - 0.375) / (experts + 0.25))
    largest += (largest**2 - 1) / 6 * (1 - 2 * share) / deviation
    return largest * math.sqrt(experts / (experts - 1)) * deviation / (tokens * share)


def run(
    model: Model, affinities: Affinities, strategies: Sequence[str], plan: Plan, placing: Placing, seed: int,
    workers: int = 1, scenario: Scenario | None = None, progress: Progress = lambda name, step: None,
) -> Study:  # fmt: skip
    """Run strategies by name. scenario: whose step each one's loads slow down. Raises SimpipeError."""
    router, layers = router_of(model), model.layers - model.dense_layers
    _check(plan, router)
    _placed(np.ones((1, router.experts)), router, placing)
    found = []
    for name, strategy in [(name, _strategy(name)) for name in strategies]:  # a wrong one is told before any is run
        gate = Gate(router, layers, affinities, seed, workers)
        run = plan.steps, plan.sample, plan.seen, plan.each
        history = follow(gate, name, strategy, *run, progress=_teller(progress, name))
        placed = _placed(history.expected, router, placing)
        found.append((history, gate.microbatch(plan.microbatch, placed, _on_node(placing, scenario))))
    return _study(model, router, plan, placing, found, scenario)


def recorded(model: Model, loads: Ints, plan: Plan, placing: Placing, scenario: Scenario | None = None) -> Study:
    """The study of (layers, experts) recorded loads, of one micro-batch or more."""
    violation = (loads.max(1) / loads.mean(1) - 1)[None]
    history, router = History("recorded", violation, np.zeros(1), loads, 0.0), router_of(model)
    on_node, placed = _on_node(placing, scenario), _placed(loads, router, placing)
    found = [placement.estimated(layer, at, on_node) for layer, at in zip(loads, placed, strict=True)]
    return _study(model, router, plan, placing, [(history, found)], scenario)


def _placed(expected: Ints | Floats, router: Router, placing: Placing) -> list[Placed]:
    """Each layer's experts on the group's ranks."""
    given = placing.ep, router.groups, placing.redundant, placing.way
    return [placement.place(layer, *given) for layer in expected]


def _on_node(placing: Placing, scenario: Scenario | None) -> int:
    """Ranks of a group that share a node."""
    if scenario is None:
        return placing.ep
    return collectives.on_node(scenario.load().cluster, placing.ep, scenario.parallel.etp)


def _study(
    model: Model, router: Router, plan: Plan, placing: Placing, found: list[tuple[History, list[Traffic]]],
    scenario: Scenario | None,
) -> Study:  # fmt: skip
    balanced = None if scenario is None else _balanced(scenario)
    outcomes = [Outcome(history, tuple(layers)) for history, layers in found]
    if scenario is not None:
        outcomes = [
            replace(one, cost=_cost(loaded(scenario, one.traffic, placing.redundant), one.traffic)) for one in outcomes
        ]
    noise = sampling(router, plan.sample.sequences * plan.sample.tokens)
    layers = model.layers - model.dense_layers
    more = 0.0 if scenario is None else _redundant_bytes(scenario, placing.redundant)
    return Study(model.name, router, layers, plan, placing, noise, tuple(outcomes), balanced, more)


def _redundant_bytes(scenario: Scenario, redundant: int) -> float:
    without, with_them = (_static_bytes(loaded(scenario, redundant=number)) for number in (0, redundant))
    return max(held - less for held, less in zip(with_them, without, strict=True))


def _static_bytes(scenario: Scenario) -> list[float]:
    """Of a GPU of each rank."""
    made = case.modelled(scenario)
    assert isinstance(made.costs, ModelledCosts)
    return [sum(made.costs.static_bytes(made.program, rank).values()) for rank in range(made.program.ranks)]


def loaded(scenario: Scenario, traffic: Sequence[Traffic] = (), redundant: int | None = None) -> Scenario:
    """A scenario whose layers are loaded so, with so many redundant experts or its own; without loads, in balance."""
    loads = [[*load[:2], *load.experts] for load in (layer.imbalance for layer in traffic)]
    return scenario.with_(expert_imbalance=1.0, layer_imbalance=loads, redundant_experts=redundant)


def _balanced(scenario: Scenario) -> float:
    """Seconds of a step in balance, without redundant experts."""
    made = case.modelled(loaded(scenario, redundant=0))
    return simulate(made.program, made.costs).makespan


def _cost(scenario: Scenario, traffic: Sequence[Traffic]) -> Cost:
    """Of a step that is loaded so. What GPUs hold follows from the order, not from when it runs."""
    made = case.modelled(scenario)
    assert isinstance(made.costs, ModelledCosts)
    trace = simulate(made.program, made.costs)
    held = held_over_mean(made.costs, made.program, traffic)
    parallel = replace(made.costs.parallel, layer_imbalance=held)
    costs = replace(made.costs, parallel=parallel, of_slots={}, _known={})
    holding = replace(trace, loads=loads_of(trace.graph, (costs,)), row=0, costs=costs)
    peak = max(rank.peak_bytes for rank in memory_of(holding, costs))
    return Cost(trace.makespan, peak, peak <= costs.cluster.gpu.memory)


def held_over_mean(costs: ModelledCosts, program: Program, traffic: Sequence[Traffic]) -> tuple[float, ...]:
    """For each layer with experts, tokens over the mean of the GPU that has most over all layers of the layer's rank:
    another GPU is the fullest in each layer, so what one of them holds is less than their sum."""
    rows = np.array([layer.rows.sum(1) / layer.rows.sum(1).mean() for layer in traffic])
    stages, dense, held = costs.stages(program), costs.model.dense_layers, np.ones(len(rows))
    for placed in program.placement:
        own = [layer - dense for stage in placed for layer in stages[stage].layers if layer >= dense]
        if own:
            held[own] = np.maximum(held[own], rows[own].mean(0).max())
    return tuple(held.tolist())


def _strategy(name: str) -> Strategy:
    if name not in STRATEGIES:
        raise SimpipeError(f"--strategy is {name!r}; it is {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def _teller(progress: Progress, name: str) -> Callable[[int], None]:
    return lambda step: progress(name, step)


def sample(tokens: int, sequences: int) -> Sample:
    """So many tokens of so many sequences. Raises SimpipeError where they are not equally many of each."""
    _check_range("tokens", tokens)
    _check_range("sequences", sequences)
    if tokens % sequences:
        raise SimpipeError(f"--tokens {tokens} is not a multiple of --sequences {sequences}")
    return Sample(sequences, tokens // sequences)


def _check_range(key: str, value: int) -> None:
    if not 1 <= value <= 10_000_000:
        raise SimpipeError(f"--{key} must be from 1 to 10000000, not {value}")


def _check(plan: Plan, router: Router) -> None:
    if router.topk > router.experts // router.groups * router.limit:
        raise SimpipeError(f"a token takes {router.topk} experts, but can reach {router.experts} at most")
    _check_range("steps", plan.steps)
    if not 0 <= plan.seen < math.inf:
        raise SimpipeError(f"--seen is {plan.seen}; it takes tokens, 0 or more, as 14.3e12")
