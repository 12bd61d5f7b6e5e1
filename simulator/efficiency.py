"""Efficiency: what a modelled step means for training: throughput, MFU, exposed communication, memory.

`mfu` counts the model's FLOPs without recomputation and with causal attention, over the dense BF16 peak; MTP modules
are not counted, as in DeepSeek's own figures. `mfu_noncausal` counts full attention; `mfu_format_peak` divides by the
peak of the format that matrix products are computed in; `hfu` counts what is computed, recomputation and MTP included.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from simpipe.simulator.costs import memory
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.kernels import Floats
from simpipe.simulator.trace import Trace

GB = 1e9


@dataclass(frozen=True)
class RankMemory:
    """One GPU of a rank at its peak, in bytes by kind."""

    rank: int
    peak_bytes: float
    by_kind: dict[str, float]


@dataclass(frozen=True)
class Efficiency:
    """A step's figures. Seconds, tokens, bytes; FLOP/s in TFLOP/s where the name says so. Per GPU where it says so.

    stage_layers: layers of each stage.
    """

    step_time_s: float
    tokens_per_s: float
    tokens_per_s_per_gpu: float
    tflops_per_gpu: float
    mfu: float
    mfu_noncausal: float
    mfu_format_peak: float
    hfu: float
    exposed_communication_s: float
    memory: RankMemory
    capacity_bytes: float
    fits: bool
    exposed_communication_per_rank_s: list[float]
    memory_per_rank: list[RankMemory]
    stage_layers: list[int]

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries, in the order of the fields."""
        return asdict(self)

    @property
    def excess(self) -> str:
        """What does not fit, in a sentence; empty where all does."""
        return excess(self.memory, self.capacity_bytes)


def excess(worst: RankMemory, capacity: float) -> str:
    """What of the rank that needs most does not fit, in a sentence; empty where all does."""
    if worst.peak_bytes <= capacity:
        return ""
    kind = max(worst.by_kind, key=lambda name: worst.by_kind[name])
    over, most = (worst.peak_bytes - capacity) / GB, worst.by_kind[kind] / GB
    return (
        f"rank {worst.rank} does not fit: {worst.peak_bytes / GB:.1f} GB are {over:.1f} GB more than a GPU's "
        f"{capacity / GB:.1f}; most of it is {kind}, {most:.1f} GB"
    )


def efficiency(trace: Trace, costs: ModelledCosts, exposed: Floats | None = None) -> Efficiency:
    """The figures of a trace that was simulated with `costs`.

    exposed: (ranks,) seconds of exposed communication, where the trace has slots as single tasks and cannot say.
    """
    cluster, parallel = costs.cluster, costs.parallel
    step = trace.makespan
    tokens = costs.trained_tokens()
    causal, full = (costs.model_flops(causal=c) / (step * parallel.gpus) for c in (True, False))
    peak = cluster.peak("bf16")
    per_rank = memory_of(trace, costs)
    exposed = trace.exposed_communication if exposed is None else exposed
    worst = max(per_rank, key=lambda rank: rank.peak_bytes)
    return Efficiency(
        step_time_s=step,
        tokens_per_s=tokens / step,
        tokens_per_s_per_gpu=tokens / step / parallel.gpus,
        tflops_per_gpu=causal / 1e12,
        mfu=causal / peak,
        mfu_noncausal=full / peak,
        mfu_format_peak=causal / cluster.peak(parallel.compute_format),
        hfu=costs.computed_flops(trace.program) / (trace.program.ranks * step * peak),
        exposed_communication_s=float(exposed.mean()),
        memory=worst,
        capacity_bytes=cluster.gpu.memory,
        fits=worst.peak_bytes <= cluster.gpu.memory,
        exposed_communication_per_rank_s=exposed.tolist(),
        memory_per_rank=per_rank,
        stage_layers=[len(stage.layers) for stage in costs.stages(trace.program)],
    )


def memory_of(trace: Trace, costs: ModelledCosts) -> list[RankMemory]:
    """Each rank's memory at its peak, which follows from the order alone."""
    brought = costs.transient_bytes(trace.program)
    return [_peak(trace, costs, rank, brought) for rank in range(trace.program.ranks)]


def _peak(trace: Trace, costs: ModelledCosts, rank: int, transient: Floats) -> RankMemory:
    """A rank's memory while the slot runs that needs most: what stays all step, activations, what the slot brings."""
    program = trace.program
    slots = slice(int(program.rank_start[rank]), int(program.rank_start[rank + 1]))
    kept = trace.activation_bytes.during[slots]
    brought = transient[slots]
    peak = int(np.argmax(kept + brought))
    pending = float(trace.weight_gradient_bytes.during[slots][peak])
    by_kind = dict(costs.static_bytes(program, rank)) | {"activations": float(kept[peak]) - pending}
    by_kind["weight_gradient_inputs"] = pending
    by_kind |= costs.transient_kinds(program, slots.start + peak)
    return RankMemory(rank, memory.total(by_kind), by_kind)
