"""DeepSeek-V3's overlapped F&B slot of 4 MoE layers: published trace, replayed with gaps, and from shapes alone.

    python benchmarks/overlapped_slot.py

The replay takes the busy times of each phase from the trace (tests/published) and lays them out as a modelled slot. Two
constants say what lies between: the gap before a kernel, and the share of the second weight-gradient stream's busy time
that the first one does not hide; both are fitted on layers 0 and 1 and predict layers 2 and 3 and the span.
"""

from __future__ import annotations

import csv
from pathlib import Path
from statistics import mean, median
from typing import NamedTuple

import numpy as np

from simpipe import Program, Trace, program, simulate
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts, Shape
from simpipe.simulator.costs.operators import Passes
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.costs.share import Step

PHASES = Path(__file__).parents[1] / "tests" / "published" / "deepseek_v3_trace_phases.csv"
SPAN = 129.012e-3
"""Seconds from the first kernel's start to the last one's end."""


class Phase(NamedTuple):
    """Seconds busy and from first start to last end, and kernels, of a phase on a stream."""

    busy: float
    wall: float
    start: float
    kernels: int


Phases = dict[tuple[int, str, int], Phase]


def read() -> Phases:
    """By layer, phase and stream."""
    found = {}
    for row in csv.DictReader(PHASES.read_text().splitlines()):
        start, end = float(row["start_us"]) * 1e-6, float(row["end_us"]) * 1e-6
        key = int(row["layer"]), row["phase"], int(row["stream"])
        found[key] = Phase(float(row["busy_us"]) * 1e-6, end - start, start, int(row["kernels"]))
    return found


def fit(phases: Phases, layers: tuple[int, ...] = (0, 1)) -> tuple[float, float]:
    """Seconds before each kernel, and the share of the second weight-gradient stream that sticks out."""
    plain = [p for (layer, name, stream), p in phases.items() if layer in layers and stream == 7 and name != "mlp(W)"]
    gap = median((p.wall - p.busy) / p.kernels for p in plain)
    shares = []
    for layer in layers:
        first, second = phases[layer, "mlp(W)", 7], phases[layer, "mlp(W)", 23]
        shares.append((first.wall - first.busy - gap * first.kernels) / second.busy)
    return gap, mean(shares)


def steps(phases: Phases, gap: float, share: float, layer: int, names: dict[str, str]) -> tuple[Step, ...]:
    """Phases of a layer as steps of as many seconds."""
    found = []
    for name, phase in names.items():
        is_transfer = phase in ("dispatch", "combine")
        measured = phases[layer, name, 27 if is_transfer else 7]
        seconds = measured.busy + (0.0 if is_transfer else gap * measured.kernels)
        if name == "mlp(W)":
            seconds += share * phases[layer, name, 23].busy
        found.append(Step(name, phase, "expert-parallel" if is_transfer else "compute", seconds, seconds))
    return tuple(found)


def passes(phases: Phases, gap: float, share: float, layers: tuple[int, ...] = (0, 1, 2, 3)) -> list[Passes]:
    """The layers in the order of the forward; the trace numbers those of the backward as they run."""
    forward = {"attn(F)": "attention", "dispatch(F)": "dispatch", "mlp(F)": "mlp", "combine(F)": "combine"}
    back = {"combine(B)": "combine", "mlp(B)": "mlp", "dispatch(B)": "dispatch", "attn(B)": "attention"}
    weight = {"mlp(W)": "mlp", "attn(W)": "attention"}
    return [
        Passes(
            steps(phases, gap, share, ahead, forward),
            steps(phases, gap, share, behind, back),
            steps(phases, gap, share, behind, weight),
        )
        for ahead, behind in zip(layers, reversed(layers), strict=True)
    ]


class Replay(ModelledCosts):
    """Modelled costs of which every stage is some measured layers."""

    def __init__(self, measured: list[Passes]) -> None:
        parallel = Parallel(ranks=1, gpus=64, ep=64, global_batch=128, sequence=4096)
        super().__init__(load_model("deepseek-v3"), load_cluster("h800"), parallel)
        object.__setattr__(self, "measured", measured)

    def _passes(self, shape: Shape, tokens: int) -> list[Passes]:
        return self.measured  # type: ignore[attr-defined,no-any-return]


def slot(costs: ModelledCosts) -> Trace:
    """A run whose slot 1 is the overlapped pair."""
    order = Program.from_csv("0F0,(0F1;0B0)OVERLAP_F_B,0B1", "slot")
    return simulate(order, costs)


def span(trace: Trace, number: int = 1) -> float:
    """Seconds of a slot."""
    return float(trace.slot_end[number] - trace.slot_start[number])


def recorded_order(phases: Phases, stream: int) -> list[str]:
    """The phases of a stream by their start."""
    return [name for (_, name, s), _ in sorted(phases.items(), key=lambda item: item[1].start) if s == stream]


def simulated_order(trace: Trace, stream: str) -> list[str]:
    """The same of the simulated slot."""
    frame = trace.to_frame()
    return list(frame[(frame["slot"] == 1) & (frame["stream"] == stream)].sort_values("start")["operation"])


def from_shapes() -> float:
    """Seconds of the slot of a rank whose two stages have 4 MoE layers each, from the profile alone."""
    settings = {"precision": "fp8_block", "dispatch_format": "fp8", "combine_format": "bf16", "moment_bytes": 2}
    parallel = Parallel.of(
        {"ranks": 16, "gpus": 2048, "ep": 64, "global_batch": 5120, "sequence": 4096, **settings}
        | {"recompute": ["norms", "mla_up", "swiglu"]}
    )
    order = program("dualpipe", ranks=16, microbatches=parallel.microbatches)
    trace = simulate(order, ModelledCosts(load_model("deepseek-v3"), load_cluster("h800"), parallel))
    pairs = np.flatnonzero((np.diff(order.slot_start) == 2) & (order.slot_rank == 5))
    return float(np.median([span(trace, number) for number in pairs]))


def main() -> None:
    phases = read()
    gap, share = fit(phases)
    print(
        f"fitted on layers 0 and 1: {gap * 1e6:.2f} us before a kernel, {share:.0%} of the second W stream sticks out"
    )
    cases = [
        ("measured span", SPAN),
        ("busy times alone", span(slot(Replay(passes(phases, 0.0, 0.0))))),
        ("busy times and modelled gaps", span(slot(Replay(passes(phases, gap, share))))),
        ("from shapes and the profile alone", from_shapes()),
    ]
    for label, seconds in cases:
        print(f"{label:<36}{seconds * 1e3:8.2f} ms  {seconds / SPAN - 1:+.1%}")
    unseen = span(slot(Replay(passes(phases, gap, share, (2, 3)))))
    measured = phases[3, "attn(W)", 7].start + phases[3, "attn(W)", 7].wall - phases[2, "combine(B)", 27].start
    error = unseen / measured - 1
    print(f"layers 2 and 3: measured {measured * 1e3:.2f} ms, predicted {unseen * 1e3:.2f} ms, {error:+.1%}")
    trace = slot(Replay(passes(phases, gap, share)))
    for number, stream in ((7, "compute"), (27, "expert-parallel")):
        same = recorded_order(phases, number) == simulated_order(trace, stream)
        print(f"order on the {stream} stream as recorded: {same}")


if __name__ == "__main__":
    main()
