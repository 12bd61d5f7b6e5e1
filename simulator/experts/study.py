"""Study: what each way to balance comes to on a model, from the violation of its experts to the time of a step.

Strategies run side by side from the same seed. At the end of each, one micro-batch of an expert-parallel group is
routed and its experts are placed on the group's ranks: the fullest rank of each layer sets the pace of dispatch,
grouped GEMM and combine there. With a scenario the step is simulated with those loads, and once with none out of
balance.

Rows are shared out evenly to the experts of that rank: uneven ones fill tiles worse, which takes DeepSeek-V3's grouped
GEMM 0.3 % longer on average, 1.2 % at worst. Its NIC is taken to be loaded as much over the mean as itself. That is an
upper bound: what crosses the network depends on the load of whole nodes, 1.13 x the mean where, with nothing balancing
the affinities assumed here, the fullest rank has 1.76 x. So exchanges, and what imbalance costs, come out too long.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from simpipe.simulator import case
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.experts import placement
from simpipe.simulator.experts.balance import STRATEGIES, Affinities, Gate, History, Sample, Strategy, follow
from simpipe.simulator.experts.routing import Router
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.scenario import Scenario
from simpipe.simulator.trace import simulate

LAST = 20
"""Steps at the end over which a strategy's violation is averaged."""

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


@dataclass(frozen=True, eq=False)
class Outcome:
    """What a strategy comes to. imbalance: (layers,) tokens of the fullest GPU over the mean. step_time_s: None without
    a scenario."""

    history: History
    imbalance: Floats
    step_time_s: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain figures; per layer where the name says so."""
        history, imbalance = self.history, self.imbalance
        expert = history.loads.max(1) / history.loads.mean(1) - 1
        return {
            "strategy": history.strategy,
            "violation_first": float(history.violation[0].mean()),
            "violation_last": float(history.violation[-LAST:].mean()),
            "violation_last_worst_layer": float(history.violation[-LAST:].mean(0).max()),
            "microbatch_violation": float(expert.mean()),
            "gpu_imbalance": float(imbalance.mean()),
            "gpu_imbalance_worst_layer": float(imbalance.max()),
            "popularity_moved": history.moved,
            "update_speed_last": float(history.speed[-1]),
            "step_time_s": self.step_time_s,
            "violation_per_layer": history.violation[-LAST:].mean(0).tolist(),
            "gpu_imbalance_per_layer": imbalance.tolist(),
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
    """MaxVio of equal experts from drawing `tokens` tokens: the largest of so many normal deviates, nearly."""
    mean = tokens * router.topk / router.experts
    return float(np.sqrt(2 * np.log(router.experts) / mean))


def run(
    model: Model, affinities: Affinities, strategies: Sequence[str], plan: Plan, placing: Placing, seed: int,
    workers: int = 1, scenario: Scenario | None = None, progress: Progress = lambda name, step: None,
) -> Study:  # fmt: skip
    """Run strategies by name. scenario: whose step each one's loads slow down. Raises SimpipeError."""
    router, layers = router_of(model), model.layers - model.dense_layers
    _check(plan, router)
    placement.place(np.ones(router.experts), placing.ep, router.groups, placing.redundant, placing.way)
    histories = []
    for name, strategy in [(name, _strategy(name)) for name in strategies]:  # a wrong one is told before any is run
        gate = Gate(router, layers, affinities, seed, workers)
        histories.append(follow(gate, name, strategy, *plan, progress=_teller(progress, name)))
    return _study(model, router, plan, placing, histories, scenario)


def recorded(model: Model, loads: Ints, plan: Plan, placing: Placing, scenario: Scenario | None = None) -> Study:
    """The study of (layers, experts) recorded loads, of one micro-batch or more."""
    violation = (loads.max(1) / loads.mean(1) - 1)[None]
    history = History("recorded", violation, np.zeros(1), loads, loads, 0.0)
    return _study(model, router_of(model), plan, placing, [history], scenario)


def _study(
    model: Model, router: Router, plan: Plan, placing: Placing, histories: list[History], scenario: Scenario | None
) -> Study:
    outcomes, balanced = [], None if scenario is None else _step(scenario)
    for history in histories:
        placed = [
            placement.place(load, placing.ep, router.groups, placing.redundant, placing.way)
            for load in history.expected
        ]
        imbalance = placement.fullest(history.loads, placed)
        outcomes.append(Outcome(history, imbalance, None if scenario is None else _step(scenario, imbalance)))
    noise = sampling(router, plan.sample.sequences * plan.sample.tokens)
    layers = model.layers - model.dense_layers
    more = 0.0 if scenario is None or not placing.redundant else _redundant_bytes(model, placing, scenario)
    return Study(model.name, router, layers, plan, placing, noise, tuple(outcomes), balanced, more)


def _redundant_bytes(model: Model, placing: Placing, scenario: Scenario) -> float:
    made = case.modelled(scenario)
    assert isinstance(made.costs, ModelledCosts)
    assert model.experts
    more = replace(model.experts, routed=model.experts.routed + placing.redundant, groups=1, groups_per_token=1)
    other = ModelledCosts(replace(model, experts=more), made.costs.cluster, made.costs.parallel)
    ranks = range(made.program.ranks)
    own, all_held = ([sum(c.static_bytes(made.program, r).values()) for r in ranks] for c in (made.costs, other))
    return max(held - less for held, less in zip(all_held, own, strict=True))


def loaded(scenario: Scenario, imbalance: Floats | None = None) -> Scenario:
    """A scenario whose layers are loaded so; without loads, one in balance."""
    loads = [] if imbalance is None else [max(1.0, float(load)) for load in imbalance]
    return scenario.with_(expert_imbalance=1.0, layer_imbalance=loads)


def _step(scenario: Scenario, imbalance: Floats | None = None) -> float:
    """Seconds of a step with these loads."""
    made = case.modelled(loaded(scenario, imbalance))
    return simulate(made.program, made.costs).makespan


def _strategy(name: str) -> Strategy:
    if name not in STRATEGIES:
        raise SimpipeError(f"--strategy is {name!r}; it is {', '.join(STRATEGIES)}")
    return STRATEGIES[name]


def _teller(progress: Progress, name: str) -> Callable[[int], None]:
    return lambda step: progress(name, step)


def _check(plan: Plan, router: Router) -> None:
    if router.topk > router.experts // router.groups * router.limit:
        raise SimpipeError(f"a token takes {router.topk} experts, but can reach {router.experts} at most")
    for key, value in {"steps": plan.steps, "tokens": plan.sample.tokens, "sequences": plan.sample.sequences}.items():
        if not 1 <= value <= 10_000_000:
            raise SimpipeError(f"--{key} must be from 1 to 10000000, not {value}")
    if not 0 <= plan.seen < math.inf:
        raise SimpipeError(f"--seen is {plan.seen}; it takes tokens, 0 or more, as 14.3e12")
