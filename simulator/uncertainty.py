"""Uncertainty: how far off a modelled step may be, from how far off the fits are that its costs come from.

A curve's residual says how far timings lie from it. Each kind of operation of a step is drawn that much longer or
shorter, the same wherever it runs; what all of a curve's operations share is drawn too, the less the more timings the
fit saw. Then the step is run again: draws are rows of Loads over one Graph.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from simpipe.simulator import engines
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.profile import covered
from simpipe.simulator.costs.share import Step
from simpipe.simulator.graph import Loads
from simpipe.simulator.kernels import Floats
from simpipe.simulator.trace import Trace

LEVEL = 0.9
DRAWS = 200

AFFORDABLE = 3_000_000
"""Tasks in all that draws may have without being asked for: about a second."""

FEWEST = 40
"""Draws below which their quantiles say little."""

ROUNDED = 1.02
"""How far beyond a fit's range does not count: a profile states it to three digits."""

AT_ONCE = 3_000_000
"""Tasks of the draws that are in memory together."""


class Interval(NamedTuple):
    """`level` of the draws end within `low` to `high` seconds."""

    level: float
    low: float
    high: float
    draws: int


def is_known(costs: ModelledCosts) -> bool:
    """Whether the machine's profile says of any curve how far off it is."""
    return any(figure.fitted.residual for figure in costs.cluster.figures.values())


def default_draws(trace: Trace) -> int:
    """As many as are worth their time unasked, up to DRAWS; 0 where those would be too few."""
    most = min(DRAWS, AFFORDABLE // trace.graph.tasks)
    return most if most >= FEWEST else 0


def interval(trace: Trace, costs: ModelledCosts, draws: int, seed: int = 0) -> Interval | None:
    """Of the makespan of a modelled run; None where no fit says how far off it is."""
    random = np.random.default_rng(seed)
    kinds = [(_parts(step, costs), step.name, tasks) for step, tasks in costs.steps(trace.graph)]
    known = [(parts, name, tasks) for parts, name, tasks in kinds if parts]
    if not known or draws < 2:
        return None
    names = dict.fromkeys(name for _, name, _ in known)
    curves = dict.fromkeys(curve for parts, _, _ in known for curve in parts)
    own = {name: random.standard_normal(draws) for name in names}
    common = {curve: random.standard_normal(draws) for curve in curves}
    factors = []
    for parts, name, tasks in known:
        apart = np.sqrt(sum(part**2 for part, _ in parts.values())) * own[name]
        factors.append((tasks, np.exp(apart + sum(part * common[c] / np.sqrt(n) for c, (part, n) in parts.items()))))
    spans = []
    rows = max(1, AT_ONCE // trace.graph.tasks)
    for first in range(0, draws, rows):
        chosen = slice(first, min(first + rows, draws))
        loads = _repeated(trace.loads, trace.row, chosen.stop - first)
        for tasks, factor in factors:
            loads.work[:, tasks] *= factor[chosen, None]
        spans.append(engines.times(trace.graph, loads)[1].max(axis=1))
        _progress(chosen.stop, draws)
    found: Floats = np.concatenate(spans)
    low, high = np.quantile(found, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(LEVEL, float(low), float(high), draws)


def _parts(step: Step, costs: ModelledCosts) -> dict[str, tuple[float, int]]:
    """By curve: the standard deviation of the log of a step's time that is due to it, and the timings it was fitted to.

    Kernels of a step that are alike are off together.
    """
    cluster, total = costs.cluster, sum(kernel.seconds for kernel in step.kernels)
    if step.network_bytes or step.nvlink_bytes:
        fit = cluster.fitted(collectives_curve(step))
        return {collectives_curve(step): (fit.residual, max(fit.points, 1))} if fit.residual else {}
    alike: dict[tuple[str, float], float] = {}
    for kernel in step.kernels:
        key = (f"gpu.{kernel.family}.{kernel.format}".rstrip("."), kernel.amount)
        alike[key] = alike.get(key, 0.0) + kernel.seconds
    squares: dict[str, float] = {}
    for (curve, _), seconds in alike.items():
        squares[curve] = squares.get(curve, 0.0) + (seconds / total) ** 2
    fits = {curve: cluster.fitted(curve) for curve in squares}
    return {
        curve: (fit.residual * squares[curve] ** 0.5, max(fit.points, 1)) for curve, fit in fits.items() if fit.residual
    }


def collectives_curve(step: Step) -> str:
    """The part of a profile that a transfer's time comes from."""
    return "exchange" if step.stream == "expert-parallel" else "collectives"


def _repeated(loads: Loads, row: int, rows: int) -> Loads:
    """One row of loads, as often; only the work is to be changed."""
    return replace(loads, **{name: np.repeat(part[row : row + 1], rows, axis=0) for name, part in vars(loads).items()})


def _progress(done: int, draws: int) -> None:
    if sys.stderr.isatty():
        print(f"\rdraw {done} of {draws}" + ("\r\x1b[K" if done == draws else ""), end="", file=sys.stderr, flush=True)


def extrapolated(trace: Trace, costs: ModelledCosts) -> list[str]:
    """For each curve whose kernels do more or less work than the timings that it was fitted to, a sentence."""
    beyond: dict[str, tuple[float, float]] = {}
    kernels = {
        (f"gpu.{k.family}.{k.format}".rstrip("."), k.amount) for s, _ in costs.steps(trace.graph) for k in s.kernels
    }
    sentences = []
    for curve, amount in kernels:
        low, high = beyond.get(curve, (np.inf, 0.0))
        beyond[curve] = min(low, amount), max(high, amount)
    for curve, (least, most) in sorted(beyond.items()):
        known = covered(costs.cluster.fitted(curve).range)
        if known and (least * ROUNDED < known[0] or most > known[1] * ROUNDED):
            low, high, unit = known
            used = f"used from {least:.2g} to {most:.2g}"
            sentences.append(f"{curve} is extrapolated: fitted from {low:.2g} to {high:.2g} {unit}, {used}")
    return sentences
