"""Calibrate: from files of timings to fitted curves, and what to say of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simpipe.simulator.calibration import classes as patterns
from simpipe.simulator.calibration import curves, match, readers, slot, writing
from simpipe.simulator.calibration.curves import Curve
from simpipe.simulator.calibration.slot import Slots
from simpipe.simulator.calibration.timings import Kernels, Timings, TimingsError
from simpipe.simulator.costs.cluster import Cluster, load_cluster
from simpipe.simulator.costs.profile import YAML_ENDINGS

if TYPE_CHECKING:
    from simpipe.simulator.scenario import Loaded


class Calibration(NamedTuple):
    """Fitted curves, the machine they started from, the timings, the profile as text (or a file of costs, where timings
    are of whole passes), and, where a trace and its model have one, an overlapped slot as recorded and simulated."""

    base: Cluster
    curves: tuple[Curve, ...]
    timings: Timings
    profile: str
    slots: tuple[Slots, ...] = ()


def calibrate(
    sources: Sequence[str], base: str, loaded: Loaded | None = None, classes: str | None = None
) -> Calibration:
    """Fit the profile `base` to what files of timings say. `loaded`: the model that traces without shapes are of, and
    how it was laid out. Raises SimpipeError, one sentence, for a file that is unsound or says nothing."""
    base = os.path.abspath(base) if base.endswith((".toml", *YAML_ENDINGS)) else base
    cluster = load_cluster(base)
    rules = patterns.read(classes)
    read = [readers.read(source, rules) for source in sources]
    timings = Timings.together(read)
    if loaded:
        matched = [match.timings(t, loaded.model, cluster, loaded.parallel, rules) for t in timings.traces]
        own = timings.table[~timings.table["source"].isin([t.source for t in timings.traces])]
        together = Timings.together([*matched, *read])
        table = Timings.together([*matched, Timings(own)]).table
        timings = Timings(table, tuple(r for m in matched for r in m.remarks), together.traces, together.kernels)
    _check_together(timings)
    if timings.table["operator"].isin(writing.STEP).any():
        return Calibration(cluster, (), timings, writing.costs(timings))
    fitted = tuple(curves.fit(timings, cluster))
    text = writing.profile(fitted, base, timings.remarks)
    if loaded and timings.traces:
        text += writing.BESIDE
    found = Calibration(cluster, fitted, timings, text)
    if not loaded:
        return found
    with TemporaryDirectory() as folder:
        (Path(folder) / "fitted.toml").write_text(text, encoding="utf-8")
        better = load_cluster(Path(folder) / "fitted.toml")
    compared = [slot.compare(t, loaded.model, better, loaded.parallel, rules) for t in timings.traces]
    return found._replace(slots=tuple(filter(None, compared)))


def _check_together(timings: Timings) -> None:
    """Refuse what one profile, or one file of costs, cannot be of. Raises TimingsError."""
    if not len(timings.table):
        raise TimingsError("nothing to fit: " + "; ".join(timings.remarks or ("there are no timings",)))
    gpus = {trace.gpu: trace.source for trace in timings.traces if trace.gpu}
    if len(gpus) > 1:
        seen = ", ".join(f"{gpu or 'a GPU'} ({source})" for gpu, source in gpus.items())
        raise TimingsError(f"a profile is of one machine, but the traces are of {seen}; calibrate to each alone")
    whole = timings.table["operator"].isin(writing.STEP)
    if whole.any() and not whole.all():
        kernels, passes = (", ".join(sorted(set(timings.table["source"][chosen]))) for chosen in (~whole, whole))
        raise TimingsError(f"{kernels} is of kernels, {passes} of whole passes by stage; calibrate to each alone")


def to_dict(found: Calibration) -> dict[str, Any]:
    """Everything as plain values: what `simpipe calibrate --json` prints."""
    return {
        "base": found.base.name,
        "curves": [_curve(curve) for curve in found.curves],
        "profile": found.profile,
        "kernels": [_kernels(kernels) for kernels in found.timings.kernels],
        "slots": [_slots(slots) for slots in found.slots],
        "remarks": list(found.timings.remarks),
    }


def _curve(curve: Curve) -> dict[str, Any]:
    mean, absolute = curve.error(curve.judged)
    return {
        "key": curve.problem.key,
        "operator": curve.operator,
        "format": curve.format,
        "points": curve.points,
        "tested": int(curve.tested.sum()),
        "mean_error": mean,
        "mean_absolute_error": absolute,
        "residual": curve.residual,
        "parameters": {
            name: {"value": float(value), "uncertainty": float(sigma), "base": parameter.start}
            for name, value, sigma, parameter in zip(
                curve.names, curve.fit.values, curve.fit.sigma, curve.problem.parameters, strict=True
            )
        },
        "by_work": by_work(curve),
        "sources": list(curve.sources),
    }


def by_work(curve: Curve) -> list[dict[str, Any]]:
    """Error by hundredfold ranges of work, of the timings that judge a curve."""
    if not curve.problem.unit:
        return []
    rows = []
    decade = np.floor(np.log10(np.maximum(curve.problem.work, 1.0)) / 2).astype(int)
    for each in np.unique(decade[curve.judged]).tolist():
        chosen = curve.judged & (decade == each)
        mean, absolute = curve.error(chosen)
        low = 100.0**each
        rows.append(
            {"from": low, "to": 100 * low, "unit": curve.problem.unit, "timings": int(chosen.sum()),
             "mean_error": mean, "mean_absolute_error": absolute}
        )  # fmt: skip
    return rows


def _kernels(kernels: Kernels) -> dict[str, Any]:
    total = sum(kernels.seconds.values())
    return {
        "classes": {
            kind: {"seconds": seconds, "kernels": kernels.number[kind], "share": seconds / total if total else 0.0}
            for kind, seconds in sorted(kernels.seconds.items(), key=lambda item: -item[1])
        },
        "guessed": kernels.guessed,
    }


def _slots(slots: Slots) -> dict[str, Any]:
    names = list(dict.fromkeys(phase.name for phase in slots.measured))
    return {
        "measured_span_s": slots.measured_span,
        "simulated_span_s": slots.simulated_span,
        "same_order": {name: len(set(map(tuple, slots.order(name)))) == 1 for name in ("compute", "expert-parallel")},
        "phases": {name: dict(zip(("measured_s", "simulated_s"), slots.seconds(name), strict=True)) for name in names},
    }


def describe(found: Calibration) -> list[str]:
    """The same as text."""
    if not found.curves:
        return ["costs of a step, for `simpipe run --costs`:", *about(found), *found.profile.splitlines()]
    lines = [f"{found.base.name} calibrated to {len(found.timings.table)} timings", *about(found)]
    for curve in found.curves:
        mean, absolute = curve.error(curve.judged)
        seen = f"{curve.tested.sum()} left out" if curve.tested.any() else "none left out"
        label = f"{curve.operator} {curve.format}".rstrip()
        lines += ["", f"{label}: {curve.points} fitted, {seen}: mean error {mean:+.1%}, mean absolute {absolute:.1%}"]
        for name, value, sigma, parameter in zip(
            curve.names, curve.fit.values, curve.fit.sigma, curve.problem.parameters, strict=True
        ):
            lines.append(f"  {name:<23}{value:<12.4g}± {sigma:<10.2g} was {parameter.start:.4g}")
        for row in by_work(curve):
            lines.append(
                f"  {row['from']:.0e} to {row['to']:.0e} {row['unit']}: {row['timings']} timings, mean error "
                f"{row['mean_error']:+.1%}, mean absolute {row['mean_absolute_error']:.1%}"
            )
    for slots in found.slots:
        lines += ["", *_describe_slots(slots)]
    return lines


def _describe_slots(slots: Slots) -> list[str]:
    told = _slots(slots)
    error = slots.simulated_span / slots.measured_span - 1
    lines = [
        f"overlapped slot: measured {slots.measured_span * 1e3:.2f} ms, simulated on the fitted profile "
        f"{slots.simulated_span * 1e3:.2f} ms ({error:+.1%})"
    ]
    lines += [f"  {line}" for line in orders_of(slots)]
    for name, seconds in told["phases"].items():
        measured, simulated = seconds["measured_s"], seconds["simulated_s"]
        both = f"{measured * 1e3:8.3f} ms measured {simulated * 1e3:8.3f} ms simulated"
        lines.append(f"  {name:<14}{both}  {simulated / measured - 1:+.1%}")
    return lines


def orders_of(slots: Slots) -> list[str]:
    """Whether the phases of each stream are simulated in the recorded order."""
    return [
        f"order on the {stream} stream {'as recorded' if same else 'DIFFERS from the recorded one'}"
        for stream, same in _slots(slots)["same_order"].items()
    ]


def about(found: Calibration) -> list[str]:
    """What the kernels of traces are, what was guessed, and remarks on how files were read."""
    lines = []
    for kernels in found.timings.kernels:
        total = sum(kernels.seconds.values()) or 1.0
        ordered = sorted(kernels.seconds.items(), key=lambda item: -item[1])
        lines.append("kernels: " + ", ".join(f"{kind} {seconds / total:.1%}" for kind, seconds in ordered))
        if kernels.guessed:
            share = sum(kernels.guessed.values()) / total
            lines.append(
                f"no pattern knows {len(kernels.guessed)} names, {share:.2%} of the time, taken as memory_bound:"
            )
            lines += [f"  {seconds * 1e6:9.1f} us  {name[:90]}" for name, seconds in list(kernels.guessed.items())[:5]]
    return lines + list(found.timings.remarks)
