"""Trace: the kernels of a profile of one GPU, whoever recorded it: what they are, where they ran, what ran beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simpipe.simulator.calibration.classes import COMMUNICATION, COMPUTATION, Classes
from simpipe.simulator.calibration.timings import Kernels, Timings
from simpipe.simulator.kernels import Floats

if TYPE_CHECKING:
    import pandas as pd


class Event(NamedTuple):
    """A kernel as recorded: start and duration in seconds, thread blocks, when it was launched (or its start), and
    what the operator that launched it is called and took (dimensions and types of its inputs)."""

    name: str
    stream: int
    start: float
    seconds: float
    blocks: int
    launched: float
    operator: str = ""
    inputs: tuple[tuple[int, ...], ...] = ()
    types: tuple[str, ...] = ()


class Range(NamedTuple):
    """A named range of the launching threads, in seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, eq=False)
class Trace:
    """kernels: a row each, by start: name, kind (its class), guessed, stream, start and seconds, blocks, range (the
    innermost named range that launched it, "" for none), visit (how many ranges of that name came before), held (SMs
    that communication kernels held beside it, on average over its time), beside (share of its time beside one)."""

    source: str
    sms: int
    gpu: str
    kernels: pd.DataFrame

    @property
    def span(self) -> float:
        """Seconds from the first kernel's start to the last one's end."""
        ends = self.kernels["start"] + self.kernels["seconds"]
        return float(ends.max() - self.kernels["start"].min())


def of(events: Sequence[Event], ranges: Sequence[Range], classes: Classes, source: str, sms: int, gpu: str) -> Trace:
    """The trace of some kernels, classified, placed in their ranges, with what ran beside each."""
    import pandas as pd

    events = sorted(events, key=lambda event: event.start)
    known = classes.of_kernels(event.name for event in events)
    table = pd.DataFrame(
        {
            "name": [event.name for event in events],
            "kind": [known[event.name][0] for event in events],
            "guessed": [known[event.name][1] for event in events],
            "stream": np.array([event.stream for event in events], np.int64),
            "start": np.array([event.start for event in events], float),
            "seconds": np.array([event.seconds for event in events], float),
            "blocks": np.array([event.blocks for event in events], np.int64),
            "event": np.arange(len(events)),
        }
    )
    table["range"], table["visit"] = _places(events, ranges)
    table = table[table["kind"] != "ignore"].reset_index(drop=True)
    table["held"], table["beside"] = _beside(table, sms)
    return Trace(source, sms, gpu, table)


def coverage(trace: Trace) -> Kernels:
    """How much of the kernels' time each class is, and what was guessed."""
    by_class = trace.kernels.groupby("kind")["seconds"]
    guessed = trace.kernels[trace.kernels["guessed"]].groupby("name")["seconds"].sum().sort_values(ascending=False)
    seconds, number = (
        {str(kind): value for kind, value in part.items()} for part in (by_class.sum(), by_class.count())
    )
    return Kernels(seconds, number, {str(name): float(value) for name, value in guessed.items()})


def _places(events: Sequence[Event], ranges: Sequence[Range]) -> tuple[list[str], list[int]]:
    """Name and number of the innermost range that each kernel was launched in."""
    counts: dict[str, int] = {}
    numbered = []
    for place in sorted(ranges, key=lambda item: (item.start, -item.end)):
        number = counts.get(place.name, 0)
        counts[place.name] = number + 1
        numbered.append((place, number))
    names, visits = [""] * len(events), [0] * len(events)
    within: list[tuple[Range, int]] = []
    ahead = iter([*numbered, None])
    upcoming = next(ahead)
    for index in sorted(range(len(events)), key=lambda i: events[i].launched):
        at = events[index].launched
        while upcoming is not None and upcoming[0].start <= at:
            within = [item for item in within if item[0].end > upcoming[0].start]
            within.append(upcoming)
            upcoming = next(ahead)
        inside = next((item for item in reversed(within) if item[0].end > at), None)
        if inside:
            names[index], visits[index] = inside[0].name, inside[1]
    return names, visits


def _beside(table: pd.DataFrame, sms: int) -> tuple[Floats, Floats]:
    """SMs that communication holds on average while each kernel runs, and the share of its time beside any.

    A communication kernel holds an SM a block, but one does not run beside itself or others of its stream.
    """
    talks = table["kind"].isin(COMMUNICATION).to_numpy()
    start, end = table["start"].to_numpy(), (table["start"] + table["seconds"]).to_numpy()
    seconds = np.maximum(end - start, 1e-12)
    held, beside = np.zeros(len(table)), np.zeros(len(table))
    if not talks.any():
        return held, beside
    blocks = np.minimum(table["blocks"].to_numpy(), sms)[talks].astype(float)
    times = np.concatenate([start[talks], end[talks]])
    order = np.argsort(times, kind="stable")
    at = times[order]
    holds = np.cumsum(np.concatenate([blocks, -blocks])[order])
    there = np.cumsum(np.concatenate([np.ones(talks.sum()), -np.ones(talks.sum())])[order]) > 0
    widths = np.diff(at)
    area_held = np.concatenate([[0.0], np.cumsum(np.minimum(holds[:-1], sms) * widths)])
    area_there = np.concatenate([[0.0], np.cumsum(there[:-1] * widths)])
    held = (np.interp(end, at, area_held) - np.interp(start, at, area_held)) / seconds
    beside = (np.interp(end, at, area_there) - np.interp(start, at, area_there)) / seconds
    held[talks], beside[talks] = 0.0, 0.0
    return held, np.clip(beside, 0.0, 1.0)


def busy(kernels: pd.DataFrame) -> float:
    """Seconds in which at least one of some kernels runs."""
    if not len(kernels):
        return 0.0
    order = np.argsort(kernels["start"].to_numpy(), kind="stable")
    start = kernels["start"].to_numpy()[order]
    end = np.maximum.accumulate((kernels["start"] + kernels["seconds"]).to_numpy()[order])
    before = np.concatenate([[-np.inf], end[:-1]])
    return float(np.maximum(end - np.maximum(start, before), 0.0).sum())


def timings(trace: Trace, events: Sequence[Event]) -> Timings:
    """Rows for the kernels whose shape the profiler recorded; gaps between back-to-back kernels of a stream."""
    events = sorted(events, key=lambda event: event.start)
    rows = []
    table = trace.kernels
    columns = (table[name].tolist() for name in ("event", "kind", "seconds", "held", "beside"))
    for index, kind, seconds, held, beside in zip(*columns, strict=True):
        shaped = _shaped(kind, events[index]) if kind in COMPUTATION and events[index].inputs else None
        if shaped and seconds > 0:
            rows.append({**shaped, "seconds": seconds, "sms": round(trace.sms - held) if held else 0, "beside": beside})
    rows += _gaps(trace)
    remarks = [] if any(row["operator"] != "kernel_gap" for row in rows) else [
        f"{trace.source} records no shapes: give the model with --scenario, or record with record_shapes=True"
    ]  # fmt: skip
    return Timings.of(rows, trace.source, remarks=tuple(remarks), traces=(trace,), kernels=(coverage(trace),))


FORMATS = {"c10::BFloat16": "bf16", "c10::Half": "fp16", "float": "fp32", "c10::Float8_e4m3fn": "fp8"}


def _shaped(kind: str, event: Event) -> dict[str, Any] | None:
    """Operator, shape and format of a product from the dimensions of what went in."""
    from simpipe.simulator.calibration.timings import write_shape

    matrices = [size for size in event.inputs if len(size) >= 2]
    format = FORMATS.get(event.types[0] if event.types else "", "")
    if kind != "gemm" or not format or len(matrices) < 2:
        return None
    left, right = matrices[-2:] if event.operator.endswith("addmm") else matrices[:2]
    rows = int(np.prod(left[:-1]))
    inner = left[-1]
    if event.operator.endswith("linear"):
        columns = right[0]
    elif event.operator.endswith("mm") and len(left) == len(right) == 2 and right[0] == inner:
        columns = right[1]
    else:
        return None
    return {"operator": "gemm", "shape": write_shape(m=rows, n=columns, k=inner), "format": format}


BACK_TO_BACK = 20e-6
"""A longer gap between two kernels of a stream waits for the host or for another stream."""


def _gaps(trace: Trace) -> list[dict[str, Any]]:
    """The gaps on the stream that computes most."""
    computing = trace.kernels[trace.kernels["kind"].isin(COMPUTATION)]
    if not len(computing):
        return []
    main = computing[computing["stream"] == computing.groupby("stream")["seconds"].sum().idxmax()]
    gaps = main["start"].to_numpy()[1:] - (main["start"] + main["seconds"]).to_numpy()[:-1]
    return [{"operator": "kernel_gap", "seconds": gap} for gap in gaps[(gaps > 0) & (gaps < BACK_TO_BACK)].tolist()]
