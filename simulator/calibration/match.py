"""Match: the kernels of a trace that records no shapes, paired with those that a model's layer runs.

A named range is a part of a pass (see `kernel_classes.toml`). Where it launches as many kernels of a family as the
model's part has, they are paired from the shortest to the longest: an implementation may run them in another order.
Where not, because it fuses or splits, the time in which any of them runs is shared out over the model's, in proportion
to what the base profile takes each for. The first half of a range's visits is fitted, the second predicted.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simpipe.simulator.calibration import trace as traces
from simpipe.simulator.calibration.classes import COMPUTATION, Classes
from simpipe.simulator.calibration.timings import Timings, TimingsError, write_shape
from simpipe.simulator.calibration.trace import Trace
from simpipe.simulator.costs import operators
from simpipe.simulator.costs.cluster import Cluster
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.operators import Passes
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.costs.share import Kernel
from simpipe.simulator.costs.stack import load_stack

if TYPE_CHECKING:
    import pandas as pd

PRODUCTS = ("gemm", "grouped_gemm")


def timings(trace: Trace, model: Model, cluster: Cluster, parallel: Parallel, classes: Classes) -> Timings:
    """Rows of all kernels of a trace's layers, shapes from the model. Raises TimingsError where no range is known."""
    layer = model.layer(model.layers - 1)
    passes = operators.passes(model, cluster, parallel, load_stack(), layer)
    rows: list[dict[str, Any]] = []
    shared: set[str] = set()
    inside = trace.kernels[trace.kernels["range"] != ""]
    for (name, visit), kernels in inside.groupby(["range", "visit"], sort=True):
        part = classes.part(str(name))
        if part is None:
            continue
        half = inside.loc[inside["range"] == name, "visit"].max() // 2
        wanted = _kernels(passes, *part)
        found = _paired(kernels, wanted, trace.sms or cluster.gpu.sms, shared, str(name))
        found += _gaps(kernels, wanted) + _exchanged(kernels, model, parallel, part[0])
        rows += [{**row, "tested": int(visit > half)} for row in found]
    if not rows:
        names = ", ".join(name[:40] for name in sorted(set(inside["range"]))[:8]) or "none"
        raise TimingsError(f"{trace.source}: no named range is a part of a layer, as attn(F); there are {names}")
    which = ", ".join(sorted(shared))
    remark = f"{trace.source}: kernels of {which} are not one by one the model's; their time is shared out"
    return Timings.of(rows, trace.source, remarks=(remark,) if shared else ())


def _kernels(passes: Passes, way: str, part: str) -> list[Kernel]:
    steps = getattr(passes, way)
    return [kernel for step in steps if step.phase == part for kernel in step.kernels]


def _paired(kernels: pd.DataFrame, wanted: list[Kernel], sms: int, shared: set[str], name: str) -> list[dict[str, Any]]:
    """Timings of the model's kernels of a part from the trace's."""
    families = [[family] for family in COMPUTATION]
    counts = kernels["kind"].value_counts()
    if any(counts.get(family, 0) != sum(k.family == family for k in wanted) for family in PRODUCTS):
        families = [[*PRODUCTS], *(family for family in families if family[0] not in PRODUCTS)]
    rows = []
    for family in families:
        there = kernels[kernels["kind"].isin(family)].sort_values("seconds")
        ours = sorted((kernel for kernel in wanted if kernel.family in family), key=lambda kernel: kernel.seconds)
        if not there["seconds"].sum() or not ours:
            continue
        if len(there) == len(ours):
            rows += [
                _row(kernel, seconds, sms - held)
                for kernel, seconds, held in zip(ours, there["seconds"], there["held"], strict=True)
            ]
            continue
        shared.add(name)
        factor = traces.busy(there) / sum(kernel.seconds for kernel in ours)
        held = float((there["held"] * there["seconds"]).sum() / there["seconds"].sum())
        rows += [_row(kernel, kernel.seconds * factor, sms - held) for kernel in ours]
    return rows


def _row(kernel: Kernel, seconds: float, sms: float) -> dict[str, Any]:
    row = {"operator": kernel.family, "format": kernel.format, "seconds": float(seconds)}
    if kernel.family == "memory_bound":
        return {**row, "bytes": kernel.amount}
    return {**row, "shape": _shape(kernel), "sms": max(1, round(sms))}


def _shape(kernel: Kernel) -> str:
    if kernel.family not in PRODUCTS:
        return write_shape(**{name: int(value) for name, value in kernel.shape[0]._asdict().items()})
    m, (_, n, k) = sum(shape[0] for shape in kernel.shape), kernel.shape[0]
    groups = {"groups": len(kernel.shape)} if kernel.family == "grouped_gemm" else {}
    return write_shape(m=m, n=n, k=k, **groups, output_bytes=round(kernel.output_bytes))


def _exchanged(kernels: pd.DataFrame, model: Model, parallel: Parallel, way: str) -> list[dict[str, Any]]:
    """Kernels that move tokens between experts, and the time in which others of their range only wait; a forward's
    dispatch is the one that finds out where tokens go."""
    moving = kernels[kernels["kind"].isin(("dispatch", "combine"))]
    if not len(moving) or model.experts is None:
        return []
    p, experts = parallel, model.experts
    limit = experts.groups_per_token if experts.groups_per_token < experts.groups else 0
    shape = write_shape(
        tokens=p.tokens // (p.cp * p.tp), hidden=model.hidden, topk=experts.topk, experts=experts.routed,
        nodes_per_token=limit,
    )  # fmt: skip
    formats = {"dispatch": p.dispatch_format, "combine": p.combine_format}
    shapes = {"dispatch": f"{shape} {write_shape(repeated=int(way != 'forward'))}", "combine": shape}
    rows = [
        {"operator": kind, "format": formats[kind], "shape": shapes[kind], "sms": blocks, "ranks": p.ep,
         "seconds": seconds}
        for kind, blocks, seconds in zip(moving["kind"], moving["blocks"], moving["seconds"], strict=True)
    ]  # fmt: skip
    waits = traces.busy(kernels[kernels["kind"] == "wait"])
    return [*rows, {"operator": "exchange_wait", "seconds": waits}] if waits else rows


def _gaps(kernels: pd.DataFrame, wanted: Sequence[Kernel]) -> list[dict[str, Any]]:
    """The time of a part in which nothing of it computes, for each kernel that the model has there."""
    computing = kernels[kernels["kind"].isin(COMPUTATION)]
    if len(computing) < 2 or len(wanted) < 2:
        return []
    wall = float((computing["start"] + computing["seconds"]).max() - computing["start"].min())
    gap = (wall - traces.busy(computing)) / len(wanted)
    return [{"operator": "kernel_gap", "seconds": gap}] if gap > 0 else []
