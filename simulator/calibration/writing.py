"""Writing: fitted curves as a profile, over the base that they started from."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from simpipe.simulator.calibration.curves import Curve
from simpipe.simulator.calibration.timings import Timings, TimingsError

if TYPE_CHECKING:
    import pandas as pd

_TIMES = ("floor", "hop", "wait", "kernel_gap", "launch_latency", "dispatch_floor", "combine_floor")
UNITS = dict.fromkeys(_TIMES, ("_us", 1e6)) | {"fill": ("_bytes", 1.0), "warp_bandwidth": ("_gb_per_s", 1e-9)}
"""How a profile spells a parameter that has a unit, and what its SI value is multiplied by."""


BESIDE = """
[exchange.l2_exponent]
value = 0
source = "simpipe calibrate: nothing beyond the curves, which are of kernels that ran beside communication"

[gpu.interference]
value = 1
source = "simpipe calibrate: nothing beyond the curves, which are of kernels that ran beside communication"
"""
"""What a profile says of interference whose curves were fitted to an overlapped trace: they have it in them."""


def profile(curves: Sequence[Curve], base: str, remarks: Sequence[str]) -> str:
    """A profile as TOML: what was fitted, over `base`, each figure with its source and how sure it is."""
    sources = sorted({source for curve in curves for source in curve.sources})
    lines = [*(f"# {_one_line(remark)}" for remark in remarks)]
    lines += [f"description = {_text(f'{base}, calibrated to ' + ', '.join(sources))}", f"base = {_text(base)}"]
    for curve in curves:
        for key, figures in _figures(curve).items():
            if len(figures) == 1:
                ((name, figure),) = figures.items()
                lines += ["", f"[{key}.{name}]", *figure, *_said(curve)]
            else:
                inline = [f"{name} = {{ {', '.join(figure)} }}" for name, figure in figures.items()]
                lines += ["", f"[{key}]", *_said(curve), *inline]
    return "\n".join(lines) + "\n"


STEP = ("F", "I", "W", "B", "p2p")
"""Operators that are parts of a step as a whole, for a file of costs."""


def costs(timings: Timings) -> str:
    """Medians of a step's passes by stage, and how far their times are spread, as a file of costs.

    Raises TimingsError where a stage is left out.
    """
    stages = _stages(timings)
    lines = [f"# from {', '.join(sorted(set(timings.table['source'])))}: medians, in seconds"]
    for operator in STEP:
        part = timings.table[timings.table["operator"] == operator]
        if not len(part):
            continue
        if operator == "p2p":
            lines.append(f"p2p = {part['seconds'].median():.6g}")
            continue
        by_stage = part.groupby(stages[part.index])["seconds"]
        wide = (by_stage.std() / by_stage.mean()).max()
        values = [f"{value:.6g}" for value in by_stage.median()]
        text = values[0] if len(values) == 1 else f"[{', '.join(values)}]"
        lines.append(f"{operator} = {text}" + (f"  # varies by {wide:.1%}" if wide > 0 else ""))
    return "\n".join(lines) + "\n"


def _stages(timings: Timings) -> pd.Series[int]:
    """The stage of each pass. Raises TimingsError unless each kind of pass has all of them, from 0 or from 1."""
    passes = timings.table[timings.table["operator"] != "p2p"]
    stages = passes["shape"].str.removeprefix("stage=").astype(int)
    wanted = range(1 if stages.min() == 1 else 0, int(stages.max()) + 1) if len(stages) else range(0)
    for operator, own in stages.groupby(passes["operator"]):
        there = set(own)
        missing = next((stage for stage in wanted if stage not in there), None)
        if missing is not None:
            place = ", ".join(sorted(set(passes["source"])))
            raise TimingsError(
                f"{place}: no {operator} of stage {missing} is timed; each stage to the last, {wanted[-1]}, needs one"
            )
    return stages


def _said(curve: Curve) -> list[str]:
    mean, absolute = curve.error(curve.judged)
    how = f"{curve.judged.sum()} timings left out" if curve.tested.any() else "the same timings"
    source = f"simpipe calibrate: {curve.operator} of {', '.join(curve.sources)}; mean error on {how} {mean:+.1%}, "
    lines = [f"source = {_text(f'{source}mean absolute {absolute:.1%}')}", f"points = {curve.points}"]
    if curve.problem.unit:
        fitted = curve.problem.work[~curve.tested]
        lines.append(f"range = {_text(f'{fitted.min():.3g} to {fitted.max():.3g} {curve.problem.unit}')}")
    return [*lines, f"residual = {curve.residual:.4g}"]


def _figures(curve: Curve) -> dict[str, dict[str, list[str]]]:
    """By table and name, value and uncertainty of each parameter; one whose name has dots is of another table."""
    tables: dict[str, dict[str, list[str]]] = {}
    for named, value, sigma in zip(curve.names, curve.fit.values, curve.fit.sigma, strict=True):
        table, _, name = named.rpartition(".")
        unit, scale = UNITS.get(name, ("", 1.0))
        said = [f"value = {value * scale:.5g}", f"uncertainty = {sigma * scale:.2g}"]
        tables.setdefault(table or curve.problem.key, {})[name + unit] = said
    return tables


def _text(text: str) -> str:
    return json.dumps(_one_line(text), ensure_ascii=False)


def _one_line(text: str) -> str:
    return "".join(letter if letter.isprintable() else "?" for letter in text)
