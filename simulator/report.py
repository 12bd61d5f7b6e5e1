"""Report: everything simpipe has to say of one training run, and how it compares with what was published of it.

Each part is what another command computes; what was published is read from a file, each figure with its source.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from simpipe.simulator import ablation, case, inference, savings, tuning
from simpipe.simulator.costs import collectives
from simpipe.simulator.costs.cluster import BYTES_PER_ELEMENT, load_cluster
from simpipe.simulator.costs.exchange_kernels import KernelSetting
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.experts import study
from simpipe.simulator.phases import Phases, overlapped_slot, phases
from simpipe.simulator.planning.capacity import Capacity, capacity
from simpipe.simulator.scenario import EXAMPLES, Scenario
from simpipe.simulator.trace import Trace, simulate

TRAINING_TOKENS = 14.8e12
"""Of DeepSeek-V3 (arXiv 2412.19437): what the capacity answer is for."""

SERVED = 64
"""Requests a GPU of the decode bounds: two micro-batches of 32, as arXiv 2505.09343 takes them."""

NVL72 = "gb200-nvl72"
"""The machine of its bound over NVLink."""

Progress = Callable[[str], None]


class Compared(NamedTuple):
    """A figure in SI, its published value and where that is from; both None where it is not published."""

    figure: str
    simpipe: float
    published: float | None
    source: str


@dataclass(frozen=True, eq=False)
class Report:
    """A run in all its parts. bare: the step's phases where gradients and parameters move beside nothing. balance,
    kernels: None where no experts are elsewhere. seed: of what balance draws."""

    scenario: Scenario
    trace: Trace
    figures: case.Figures
    phases: Phases
    bare: Phases
    balance: study.Study | None
    kernels: tuning.Landscape | None
    savings: list[dict[str, Any]]
    ablation: list[dict[str, Any]]
    capacity: Capacity
    serving: inference.Serving
    caches: list[inference.Cache]
    compared: list[Compared]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "scenario": self.scenario.to_dict(),
            "step": self.figures.to_dict(),
            "phases_s": self.phases._asdict(),
            "phases_nothing_hidden_s": self.bare._asdict(),
            "balance": self.balance.to_dict() if self.balance else None,
            "kernels": tuning.to_dict(self.kernels) if self.kernels else None,
            "savings": self.savings,
            "switched_off": self.ablation,
            "capacity": self.capacity.to_dict(),
            "kv_cache": [cache.to_dict() for cache in self.caches],
            "published": [row._asdict() for row in self.compared],
        }


def make(
    scenario: Scenario,
    pool: Executor,
    steps: int = 200,
    seed: int = 0,
    workers: int = 1,
    told: Progress = lambda part: None,
) -> Report:
    """All parts. pool: who simulates what capacity is searched among. steps: of the study of balance; workers: threads
    that route for it. Raises SimpipeError."""
    told("the step")
    made = case.modelled(scenario)
    trace, figures = case.simulated(made)
    assert isinstance(made.costs, ModelledCosts)
    assert figures.efficiency
    model = made.costs.model
    balance = ablation.balance_of(scenario, steps, seed, workers, told)
    kernels = _kernels(scenario, told) if scenario.parallel.ep > 1 else None
    switched = ablation.to_dict(ablation.table(scenario, balance, told))
    saved = savings.to_dict(savings.table(scenario, lambda saving: told(f"memory: {saving}")))
    rate = figures.efficiency.tokens_per_s
    searched = capacity(scenario, TRAINING_TOKENS, rate, pool, lambda n, of: told(f"plan: {n} of {of.candidates}"))
    told("decoding")
    serving = _serving(model, scenario.hardware)
    own = _figures(made.costs, figures, searched) | _times(trace)
    own |= _exchanges(made.costs) if model.experts else {}
    return Report(
        scenario, trace, figures, phases(trace), _bare(scenario), balance, kernels, saved, switched, searched, serving,
        inference.caches(serving), compare(own, scenario), seed,
    )  # fmt: skip


def _bare(scenario: Scenario) -> Phases:
    made = case.modelled(scenario.with_(gradient_overlap=False, gather_overlap=False))
    return phases(simulate(made.program, made.costs))


def _kernels(scenario: Scenario, told: Progress) -> tuning.Landscape:
    return tuning.tune(scenario, lambda done, total: told(f"kernels: setting {done} of {total}"))


def _serving(model: Model, hardware: str) -> inference.Serving:
    machine = load_cluster(hardware)
    spread, weights = inference.spread(model, machine), inference.weights_of(machine)
    return inference.Serving(model, machine, SERVED, inference.context_of(model), ep=spread, weights=weights)


def _figures(costs: ModelledCosts, figures: case.Figures, found: Capacity) -> dict[str, float]:
    """What follows of model, order and whole step, of every figure that may be published, by name."""
    facts = costs.model.facts(costs.parallel.sequence)
    assert figures.efficiency
    return {
        "parameters": facts["parameters"]["all"],
        "activated_parameters": facts["activated_parameters"]["all"],
        "training_flops_per_token": facts["training_flops_per_token"]["all"],
        "kv_bytes_per_token": facts["kv_cache_bytes_per_token"],
        "peak_activations": figures.summary.peak_activations,
        "parameter_copies": figures.summary.parameter_copies,
        "mfu": figures.efficiency.mfu,
        "gpu_hours_per_trillion_tokens": found.own["gpu_hours_per_trillion_tokens"],
        "nvlink_over_network": (
            collectives.nvlink_bandwidth(costs.cluster) / collectives.network_bandwidth(costs.cluster)
        ),
    }


def _times(trace: Trace) -> dict[str, float]:
    """The step, its phases, and a slot."""
    found, slot = phases(trace), overlapped_slot(trace)
    times = {
        "step_time_s": trace.makespan,
        "forwards_alone_s": found.forwards,
        "backwards_alone_s": found.backwards,
        "bubbles_s": found.bubbles,
        "between_steps_s": found.between,
    }
    return times if slot is None else times | {"overlapped_slots_s": found.overlapped, "overlapped_slot_s": slot}


def _exchanges(costs: ModelledCosts) -> dict[str, float]:
    """Bandwidth of exchanges with nothing beside them, counted as DeepEP does, and the bounds they set to decoding."""
    p, model, cluster = costs.parallel, costs.model, costs.cluster
    experts = model.experts
    assert experts
    limit = experts.groups_per_token if experts.groups_per_token < experts.groups else None
    kernel = KernelSetting(p.communication_sms, p.communication_warps, p.communication_chunk)
    spread = collectives.expert_spread(experts.routed, experts.topk, p.ep, cluster.node.nvlink.domain_gpus, limit)
    found = {}
    for name, way, number_format in (
        ("dispatch", collectives.dispatch, p.dispatch_format), ("combine", collectives.combine, p.combine_format)
    ):  # fmt: skip
        each = BYTES_PER_ELEMENT[number_format]
        done = way(cluster, p.tokens, experts.topk, model.hidden, each, p.ep, limit, experts.routed, kernel)
        copies = spread.nodes if done.network_bytes else spread.ranks
        moved = p.tokens * collectives.token_bytes(model.hidden, each) * copies
        if done.network_bytes + done.nvlink_bytes:
            found[f"{name}_gb_per_s"] = moved / collectives.seconds(cluster, done) / 1e9
    for name, hardware in (("decode_exchange_s", cluster.name), ("decode_exchange_nvl72_s", NVL72)):
        found[name] = inference.caches(_serving(model, hardware))[0].decode.exchange
    return found


def compare(own: dict[str, float], scenario: Scenario) -> list[Compared]:
    """Own figures beside those published of the scenario's model, in the order of their file, then the others."""
    known = published(scenario.model)
    names = [*(name for name in known if name in own), *(name for name in own if name not in known)]
    nothing: tuple[None, str] = (None, "")
    return [Compared(name, float(own[name]), *known.get(name, nothing)) for name in names]


def published(model: str) -> dict[str, tuple[float, str]]:
    """{figure: (value, source)} of a model's training; empty where nothing is known. Raises SimpipeError."""
    path = EXAMPLES / f"{Path(model).stem.replace('-', '_')}_published.toml"
    if not path.is_file():
        return {}
    try:
        rows = tomllib.loads(path.read_text(encoding="utf-8"))["figures"]
        return {row["figure"]: (float(row["value"]), row["source"]) for row in rows}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SimpipeError(f"{path} is no file of published figures: {error}") from None
