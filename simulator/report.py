"""Report: everything simpipe has to say of one training run, and how it compares with what was published of it.

Each part is what another command computes; what was published is read from a file, each figure with its source.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simpipe.simulator import ablation, case, inference, savings, tuning
from simpipe.simulator.costs import collectives
from simpipe.simulator.costs.cluster import BYTES_PER_ELEMENT, load_cluster
from simpipe.simulator.costs.exchange_kernels import KernelSetting
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.experts import study
from simpipe.simulator.experts.balance import Affinities, Sample
from simpipe.simulator.graph import OPTIMIZER, OVERLAPPED, WORDS
from simpipe.simulator.planning import evaluation
from simpipe.simulator.scenario import EXAMPLES, Scenario
from simpipe.simulator.trace import Trace

TRAINING_TOKENS = 14.8e12
"""Of DeepSeek-V3 (arXiv 2412.19437): what the capacity answer is for."""

STRATEGIES = ("none", "auxiliary", "bias+sequence")
"""Ways to balance that are compared."""

SERVED, CONTEXT = 64, 4096
"""Requests a GPU and tokens each of the decode bounds: two micro-batches of 32, as arXiv 2505.09343 takes them."""

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
    """A run in all its parts. balance, kernels: None where no experts are elsewhere."""

    scenario: Scenario
    trace: Trace
    figures: case.Figures
    balance: study.Study | None
    kernels: tuning.Landscape | None
    savings: list[dict[str, Any]]
    ablation: list[dict[str, Any]]
    capacity: dict[str, Any]
    caches: list[inference.Cache]
    compared: list[Compared]

    def to_dict(self) -> dict[str, Any]:
        """What --json prints."""
        return {
            "scenario": self.scenario.to_dict(),
            "step": self.figures.to_dict(),
            "balance": self.balance.to_dict() if self.balance else None,
            "kernels": tuning.to_dict(self.kernels) if self.kernels else None,
            "savings": self.savings,
            "switched_off": self.ablation,
            "capacity": self.capacity,
            "kv_cache": [cache.to_dict() for cache in self.caches],
            "published": [row._asdict() for row in self.compared],
        }


def make(
    scenario: Scenario, steps: int = 200, seed: int = 0, workers: int = 1, told: Progress = lambda part: None
) -> Report:
    """All parts. steps: of the study of balance. Raises SimpipeError."""
    told("the step")
    made = case.modelled(scenario)
    trace, figures = case.simulated(made)
    assert isinstance(made.costs, ModelledCosts)
    model = made.costs.model
    balance = _balance(scenario, steps, seed, workers, told) if model.experts else None
    kernels = _kernels(scenario, told) if scenario.parallel.ep > 1 else None
    switched = ablation.to_dict(ablation.table(scenario, balance, lambda off: told(f"without {off}")))
    saved = savings.to_dict(savings.table(scenario, lambda saving: told(f"memory: {saving}")))
    told("capacity and decoding")
    capacity = evaluation.figures(scenario.to_dict() | {"token_budget": TRAINING_TOKENS})
    caches = inference.caches(_serving(made.costs, scenario.hardware))
    own = _figures(scenario, made.costs, trace, figures, capacity)
    return Report(scenario, trace, figures, balance, kernels, saved, switched, capacity, caches, compare(own, scenario))


def _balance(scenario: Scenario, steps: int, seed: int, workers: int, told: Progress) -> study.Study:
    p, model = scenario.parallel, scenario.load().model
    group = max(1, p.ep // (p.tp * p.cp)) * p.microbatch_size
    plan = study.Plan(steps, Sample(16, 256), Sample(group, p.sequence), 0.0, p.global_batch * p.sequence)
    return study.run(
        model, Affinities(), STRATEGIES, plan, study.Placing(p.ep), seed, workers, scenario,
        lambda name, step: told(f"balance, {name}: step {step} of {steps}"),
    )  # fmt: skip


def _kernels(scenario: Scenario, told: Progress) -> tuning.Landscape:
    return tuning.tune(scenario, lambda done, total: told(f"kernels: setting {done} of {total}"))


def _serving(costs: ModelledCosts, hardware: str) -> inference.Serving:
    """The model on one expert a GPU, on the scenario's machine or another."""
    machine, experts = load_cluster(hardware), costs.model.experts
    most = experts.routed if experts else 1
    if machine.node.nvlink.domain_gpus > machine.node.gpus:  # a rack of NVLink: experts stay within it
        most = math.gcd(most, 2 ** int(math.log2(machine.node.nvlink.domain_gpus)))
    return inference.Serving(costs.model, machine, SERVED, CONTEXT, ep=most)


def _figures(
    scenario: Scenario, costs: ModelledCosts, trace: Trace, figures: case.Figures, capacity: dict[str, Any]
) -> dict[str, float]:
    """What simpipe says of every figure that may be published, by name."""
    facts = costs.model.facts(scenario.parallel.sequence)
    found = {
        "parameters": facts["parameters"]["all"],
        "activated_parameters": facts["activated_parameters"]["all"],
        "training_flops_per_token": facts["training_flops_per_token"]["all"],
        "kv_bytes_per_token": facts["kv_cache_bytes_per_token"],
        "peak_activations": figures.summary.peak_activations,
        "parameter_copies": figures.summary.parameter_copies,
        "gpu_hours_per_trillion_tokens": capacity["gpu_hours_per_trillion_tokens"],
        "nvlink_over_network": (
            collectives.nvlink_bandwidth(costs.cluster) / collectives.network_bandwidth(costs.cluster)
        ),
    }
    return found | _components(trace) | (_exchanges(costs) if costs.model.experts else {})


def _components(trace: Trace) -> dict[str, float]:
    """Seconds that a rank spends in slots of each kind, mean of ranks, and of the median F&B slot."""
    graph, ranks = trace.graph, trace.program.ranks
    seconds = trace.slot_end - trace.slot_start
    last = graph.slot_tasks.items[graph.slot_tasks.start[1:] - 1]
    word = graph.word[last]
    inside = {name: float(seconds[word == code].sum()) / ranks for code, name in enumerate(WORDS)}
    found = {
        "forwards_alone_s": inside["F"],
        "backwards_alone_s": inside["I"] + inside["W"] + inside["B"],
        "optimizer_s": inside[WORDS[OPTIMIZER]],
    }
    pairs = seconds[word == OVERLAPPED]
    if len(pairs):
        found |= {"overlapped_slots_s": inside["F&B"], "overlapped_slot_s": float(np.median(pairs))}
    return found


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
        found[name] = inference.caches(_serving(costs, hardware))[0].decode.exchange
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
