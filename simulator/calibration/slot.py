"""Slot: an overlapped F&B slot as a trace recorded it, beside the same layers simulated on a profile.

A phase is a part of a layer's pass on a stream, as the trace names its ranges. Computation is measured from its first
kernel's start to its last one's end; an exchange by the kernels that move tokens, since how long it waits for other
ranks one rank's trace does not explain. Where the trace's products never have more blocks than SMs that its exchanges
leave, they are taken to keep off those SMs all the time, as DeepSeek's do, and not only while an exchange runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from simpipe.simulator.calibration import trace as traces
from simpipe.simulator.calibration.classes import Classes
from simpipe.simulator.calibration.match import PRODUCTS
from simpipe.simulator.calibration.trace import Trace as Recorded
from simpipe.simulator.costs import operators
from simpipe.simulator.costs.cluster import Cluster
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.modelled import ModelledCosts, Shape
from simpipe.simulator.costs.operators import Passes
from simpipe.simulator.costs.overlap import COMMUNICATION
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.costs.share import Step
from simpipe.simulator.costs.stack import load_stack
from simpipe.simulator.program import Program
from simpipe.simulator.trace import Trace, simulate

ORDER = "0F0,(0F1;0B0)OVERLAP_F_B,0B1"
"""A run whose slot 1 is an overlapped pair."""


class Phase(NamedTuple):
    """Seconds from the slot's start to a phase's first start and last end, and what it takes (see above)."""

    name: str
    layer: int
    stream: str
    start: float
    end: float
    seconds: float


class Slots(NamedTuple):
    """The phases of a recorded and of a simulated slot, by start, and their spans in seconds."""

    measured: tuple[Phase, ...]
    simulated: tuple[Phase, ...]
    measured_span: float
    simulated_span: float

    def order(self, stream: str) -> tuple[list[str], list[str]]:
        """The phases of a stream by their start, recorded and simulated."""
        measured, simulated = ([p.name for p in side if p.stream == stream] for side in self[:2])
        return measured, simulated

    def seconds(self, name: str) -> tuple[float, float]:
        """What a phase takes, mean over its layers, recorded and simulated."""
        measured, simulated = ([p.seconds for p in side if p.name == name] for side in self[:2])
        return sum(measured) / len(measured), sum(simulated) / len(simulated)


@dataclass(frozen=True, eq=False)
class LayersOnly(ModelledCosts):
    """Modelled costs of which every stage is the same given layers, in the order of their forward, and nothing else."""

    layers: tuple[Passes, ...] = ()

    def _passes(self, shape: Shape, tokens: int) -> list[Passes]:
        return list(self.layers)


def simulated(costs: LayersOnly) -> Trace:
    """A run whose slot 1 overlaps a forward of the layers with their backward."""
    return simulate(Program.from_csv(ORDER, "slot"), costs)


def compare(recorded: Recorded, model: Model, cluster: Cluster, parallel: Parallel, classes: Classes) -> Slots | None:
    """The recorded slot beside a simulated one of as many layers; None where the trace has no F&B of known ranges."""
    named = recorded.kernels[recorded.kernels["range"] != ""]
    names = {part: name for name in named["range"].unique() if (part := classes.part(name)) is not None}
    if ("forward", "mlp") not in names or ("input", "mlp") not in names:
        return None
    layers = int(named.loc[named["range"] == names["forward", "mlp"], "visit"].max()) + 1
    one = operators.passes(model, cluster, parallel, load_stack(), model.layer(model.layers - 1))
    if _keeps_off(recorded):
        one = Passes(*(tuple(map(_beside, steps)) for steps in one))
    passes = tuple(_numbered(one, names, ahead, layers - 1 - ahead) for ahead in range(layers))
    alone = replace(parallel, ranks=1, gpus=parallel.gpus // parallel.ranks, stage_layers="even", zero=0)
    trace = simulated(LayersOnly(model, cluster, alone, layers=passes))
    measured = _measured(named, set(names.values()), names)
    waits = cluster.exchange.wait
    start, end = float(trace.slot_start[1]), float(trace.slot_end[1])
    return Slots(tuple(measured), tuple(_simulated(trace, waits)), recorded.span, end - start)


def _keeps_off(recorded: Recorded) -> bool:
    """Whether products leave an exchange's SMs to it even while none runs."""
    products = recorded.kernels[recorded.kernels["kind"].isin(PRODUCTS)]
    exchanges = recorded.kernels[recorded.kernels["kind"].isin(("dispatch", "combine"))]
    if not len(products) or not len(exchanges):
        return False
    return bool(products["blocks"].quantile(0.9) <= recorded.sms - exchanges["blocks"].median())


def _beside(step: Step) -> Step:
    """A step with products, always as long as beside an exchange."""
    has_products = any(kernel.family in PRODUCTS for kernel in step.kernels)
    return step._replace(seconds=step.beside) if has_products else step


def _numbered(passes: Passes, names: dict[tuple[str, str], str], ahead: int, back: int) -> Passes:
    """A layer's passes with each step named after its phase and the layer as it comes in its own direction."""

    def renamed(way: str, steps: Sequence[Step], layer: int) -> tuple[Step, ...]:
        return tuple(step._replace(name=f"{names.get((way, step.phase), way)}:{layer}") for step in steps)

    return Passes(
        renamed("forward", passes.forward, ahead),
        renamed("input", passes.input, back),
        renamed("weight", passes.weight, back),
    )


def _measured(named: Any, known: set[str], names: dict[tuple[str, str], str]) -> list[Phase]:
    talking = {name for (_, part), name in names.items() if part in COMMUNICATION}
    origin = float(named["start"].min())
    found = []
    for (name, visit), kernels in named[named["range"].isin(known)].groupby(["range", "visit"]):
        start, end = float(kernels["start"].min()), float((kernels["start"] + kernels["seconds"]).max())
        moving = kernels[kernels["kind"].isin(COMMUNICATION)]  # the parts of a layer are called as the kernels are
        seconds = traces.busy(moving) if name in talking else end - start
        stream = "expert-parallel" if name in talking else "compute"
        found.append(Phase(str(name), int(visit), stream, start - origin, end - origin, seconds))
    return sorted(found, key=lambda phase: phase.start)


def _simulated(trace: Trace, waits: float) -> list[Phase]:
    frame = trace.to_frame()
    frame = frame[(frame["slot"] == 1) & frame["operation"].str.contains(":", regex=False)]
    origin = float(trace.slot_start[1])
    found = []
    for label, tasks in frame.groupby("operation"):
        name, _, layer = str(label).rpartition(":")
        start, end = float(tasks["start"].min()), float(tasks["end"].max())
        stream = "expert-parallel" if (tasks["stream"] == "expert-parallel").all() else "compute"
        longest = float((tasks["end"] - tasks["start"]).max())
        seconds = longest - waits if stream == "expert-parallel" else end - start
        found.append(Phase(name, int(layer), stream, start - origin, end - origin, seconds))
    return sorted(found, key=lambda phase: phase.start)
