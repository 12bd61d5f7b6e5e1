"""Predictions of validation cases: from a case's settings to seconds and bytes, one function a kind.

Everything follows from settings, a machine, a model and a stack: no case or family is known by name here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np

from simpipe import schedules
from simpipe.simulator import uncertainty
from simpipe.simulator.calibration import slot
from simpipe.simulator.costs import collectives, operators
from simpipe.simulator.costs.cluster import Cluster, load_cluster
from simpipe.simulator.costs.model import GroupedAttention, Mlp, Model
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import Parallel, parallel_keys
from simpipe.simulator.costs.stack import Stack, load_stack
from simpipe.simulator.efficiency import efficiency
from simpipe.simulator.program import Kind, Program
from simpipe.simulator.trace import Trace, simulate
from simpipe.simulator.uncertainty import LEVEL
from simpipe.simulator.validation import production
from simpipe.simulator.validation.cases import FOLDER

GPT_VOCABULARY, PADDED_TO = 50257, 128
"""GPT-2's, which Megatron pads to a multiple of 128 tensor-parallel parts; `padded_alone`: even if not split."""


class Predicted(NamedTuple):
    """Seconds of what was timed, bytes at the peak of the GPU that holds most, without the framework's, and the seconds
    between which the measured ones lie with probability LEVEL, where what is predicted from says so."""

    seconds: float
    memory: float = 0.0
    interval: tuple[float, float] | None = None


def step(settings: Mapping[str, Any]) -> Predicted:
    """A training step; its interval from so many `draws` of what its curves may be off."""
    trace, costs = _run(settings, _model(settings))
    ranks = efficiency(trace, costs).memory_per_rank
    draws = settings.get("draws", 0)
    drawn = uncertainty.interval(trace, costs, draws) if draws else None
    peak = max(rank.peak_bytes - rank.by_kind["framework"] for rank in ranks)
    return Predicted(trace.makespan, peak, drawn and (drawn.low, drawn.high))


def layer(settings: Mapping[str, Any]) -> Predicted:
    """What a second layer adds to the slots of the kind `part` (F or B)."""
    kind, model, found = Kind[settings["part"]], _model(settings), []
    for layers in (1, 2):
        trace, _ = _run(settings, replace(model, layers=layers))
        slots = trace.program.action_slot[trace.program.kind == kind]
        found.append(float(np.sum(trace.slot_end[slots] - trace.slot_start[slots])))
    return Predicted(found[1] - found[0])


def components(settings: Mapping[str, Any]) -> Predicted:
    """Kernels of a `phase` of the last layer's pass `part` beside a communication kernel; or the whole overlapped slot
    of `slot_layers` such layers, F with B."""
    model, cluster = _model(settings), _cluster(settings)
    parallel, stack = _parallel(settings).check(model, cluster), _stack(settings)
    passes = operators.passes(model, cluster, parallel, stack, model.layer(model.layers - 1))
    if settings["part"] in passes._fields:
        steps = [step for step in getattr(passes, settings["part"]) if step.phase == settings["phase"]]
        return Predicted(sum(step.beside for step in steps))
    layers = (passes,) * settings["slot_layers"]
    trace = slot.simulated(slot.LayersOnly(model, cluster, parallel, stack=stack, layers=layers))
    return Predicted(float(trace.slot_end[1] - trace.slot_start[1]))


def activations(settings: Mapping[str, Any]) -> Predicted:
    """What the first stage keeps for its backwards, the embedding and its dropout included."""
    trace, costs = _run(settings, _model(settings))
    memory = efficiency(trace, costs).memory_per_rank[0]
    return Predicted(0.0, memory.by_kind["activations"])


def collective(settings: Mapping[str, Any]) -> Predicted:
    """A collective of one node by itself; `bytes` are the whole buffer."""
    cluster = _cluster(settings)
    exchange = getattr(collectives, settings["collective"])(cluster, float(settings["bytes"]), settings["group"])
    return _by_curve(cluster, "collectives", collectives.seconds(cluster, exchange))


def gemm(settings: Mapping[str, Any]) -> Predicted:
    """A product by itself, m x k by k x n."""
    (m, n, k), cluster = (settings[size] for size in "mnk"), _cluster(settings)
    format = settings["format"]
    return _by_curve(cluster, f"gpu.gemm.{format}", cluster.gemm_seconds(m, n, k, format))


def _by_curve(cluster: Cluster, curve: str, seconds: float) -> Predicted:
    """With the interval that the residuals of a profile's curve make, as `uncertainty.interval` draws them."""
    fit = cluster.fitted(curve)
    apart = NormalDist().inv_cdf((1 + LEVEL) / 2) * fit.residual * math.sqrt(1 + 1 / max(fit.points, 1))
    return Predicted(seconds, interval=(seconds * math.exp(-apart), seconds * math.exp(apart)))


def later_step(settings: Mapping[str, Any]) -> Predicted:
    """The span of a worker of a step that a `run` has yet to do: the middle of what its known steps foretell."""
    run = settings["run"], settings["operations"], settings["known"]
    worker = production.known(*run).workers.index(settings["dp_rank"])
    found = production.forecast(settings["schedule"], *run)
    low, high = found.interval(LEVEL)[:, worker].tolist()
    return Predicted(float(found.median[worker]), interval=(low, high))


def replayed_step(settings: Mapping[str, Any]) -> Predicted:
    """The span of a worker of a known step with its own operations."""
    run = settings["run"], settings["operations"], settings["known"]
    steps = production.known(*run)
    place = steps.steps.index(settings["step"]), steps.workers.index(settings["dp_rank"])
    return Predicted(float(production.replayed(settings["schedule"], *run)[place]))


PREDICT: dict[str, Callable[[Mapping[str, Any]], Predicted]] = {
    "step": step,
    "layer": layer,
    "components": components,
    "activations": activations,
    "collective": collective,
    "gemm": gemm,
    "later_step": later_step,
    "replayed_step": replayed_step,
}


def measured_seconds(settings: Mapping[str, Any], measured: float, unit: str) -> float:
    """Seconds of what was published as a throughput. TFLOP/s a GPU count `flops`: `all-pairs` are the model's with all
    pairs of attention (arXiv 2204.02311, appendix B), `recomputed` those of arXiv 2104.04473, equation 3, which counts
    recomputation too."""
    if unit == "s":
        return measured
    model, parallel = _model(settings), _parallel(settings)
    each: dict[str, Callable[[], float]] = {
        "tokens/s/GPU": lambda: parallel.global_batch * parallel.sequence,
        "samples/s/GPU": lambda: parallel.global_batch,
        "TFLOP/s/GPU": lambda: _flops(settings, model, parallel) / 1e12,
    }
    return each[unit]() / parallel.gpus / measured


def _flops(settings: Mapping[str, Any], model: Model, parallel: Parallel) -> float:
    batch, s, h, layers, words = parallel.global_batch, parallel.sequence, model.hidden, model.layers, model.vocabulary
    if settings["flops"] == "recomputed":
        return 96 * batch * s * layers * h**2 * (1 + s / (6 * h) + words / (16 * layers * h))
    return batch * s * sum(model.training_flops(s, causal=False).values())


# Settings.


def _run(settings: Mapping[str, Any], model: Model) -> tuple[Trace, ModelledCosts]:
    cluster = _cluster(settings)
    parallel = _parallel(settings).check(model, cluster)
    costs = ModelledCosts(model, cluster, parallel, stack=_stack(settings))
    return simulate(_order(settings.get("schedule", "1f1b"), parallel.ranks, parallel.microbatches), costs), costs


@lru_cache(maxsize=256)
def _order(schedule: str, ranks: int, microbatches: int) -> Program:
    """A schedule by its name, with options as interleaved-1f1b:chunks=2."""
    name, options = schedules.parse(schedule)
    return schedules.program(name, ranks, microbatches, options.pop("chunks", None), **options)


def _parallel(settings: Mapping[str, Any]) -> Parallel:
    return Parallel.of({key: value for key, value in settings.items() if key in parallel_keys()})


@lru_cache(maxsize=64)
def _profile(name: str) -> Cluster:
    return load_cluster(_path(name))


def _cluster(settings: Mapping[str, Any]) -> Cluster:
    """A machine, by its name or itself."""
    named = settings["hardware"]
    return named if isinstance(named, Cluster) else _profile(named)


def _stack(settings: Mapping[str, Any]) -> Stack:
    """A stack, by its name or itself."""
    named = settings["stack"]
    return named if isinstance(named, Stack) else load_stack(named)


def _path(name: str) -> Path | str:
    """A profile beside the cases, or a name."""
    return FOLDER / name if name.endswith(".toml") else name


def _model(settings: Mapping[str, Any]) -> Model:
    """By name, with as many layers as the case has; or GPT by its sizes."""
    model = load_model(_path(settings["model"])) if "model" in settings else _gpt(settings)
    return replace(model, layers=settings["model_layers"]) if "model_layers" in settings else model


def _gpt(settings: Mapping[str, Any]) -> Model:
    """GPT as Megatron-LM builds it: biases, LayerNorm, learned positions, 4 x hidden, head tied to the embedding."""
    layers, hidden, heads = (settings[size] for size in ("model_layers", "hidden", "heads"))
    tp = settings.get("tp", 1)
    multiple = PADDED_TO * tp if tp > 1 or settings.get("padded_alone", True) else 1
    words = settings.get("vocabulary", -(-GPT_VOCABULARY // multiple) * multiple)
    return Model(
        f"gpt {hidden} x {layers}",
        "its row",
        layers,
        hidden,
        words,
        GroupedAttention(heads, heads, hidden // heads, qkv_bias=True, out_bias=True),
        Mlp(4 * hidden, gated=False, bias=True),
        layer_norm=True,
        positions=settings["sequence"],
        tied_head=True,
    )
