"""Fitting: the parameters of a curve from times, robust to outliers, each with how sure it is.

Residuals are logarithms of predicted over measured time, since times span decades. Their loss is Cauchy's, at the scale
that 1.4826 times their median absolute value gives: an outlier hardly counts. Each parameter is pulled, as by one
timing more, to where the base profile has it, so that what the timings say nothing of stays there, as unsure as it was.

How sure a parameter is comes from a bootstrap: timings drawn anew, each draw one Newton step from the fit (Salibian-
Barrera and Zamar 2002, "fast and robust bootstrap"), which takes no further run of the curve.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np

from simpipe.simulator.calibration.timings import library
from simpipe.simulator.kernels import Floats

SEED, DRAWS = 20_261, 400

EFFICIENT = 2.385
"""Cauchy's scale over the residuals' standard deviation, at which a normal sample loses 5 % of its information."""

FEW_SCALE = 0.05
"""The scale at least, where there are hardly more timings than parameters, which then explain them all."""

ANOTHER = 1.0
"""Where the base is further off than this (median of the log), it is another kind of machine, as a CPU: no parameter is
held to it until they have come near by plain least squares."""

ROUNDS = 4
"""Times that the scale is found anew."""


class Parameter(NamedTuple):
    """One number of a curve: where it starts, its bounds, how far off it may be before any timing is seen.

    It is fitted as its logarithm of `shift` more, or as it is where shift is None; `width` is in that scale.
    """

    name: str
    start: float
    low: float
    high: float
    width: float
    shift: float | None = 0.0

    def into(self, value: Floats | float) -> Floats:
        return np.asarray(value if self.shift is None else np.log(np.asarray(value) + self.shift), float)

    def freely(self, value: Floats | float) -> Floats:
        return np.asarray(value if self.shift is None else np.exp(value) - self.shift, float)

    def back(self, value: Floats | float) -> Floats:
        return np.clip(self.freely(value), self.low, self.high)


class Fit(NamedTuple):
    """values, sigma: (parameters,) with a standard deviation each, bounds aside. draws: (DRAWS, parameters) as the data
    allow. residuals: (points,) log of predicted over measured time. scale: their standard deviation, outliers aside."""

    values: Floats
    sigma: Floats
    draws: Floats
    residuals: Floats
    scale: float


Curve = Callable[[Floats], Floats]
"""From (parameters,) to (points,) seconds."""


def fit(curve: Curve, measured: Floats, parameters: list[Parameter]) -> Fit:
    """The parameters at which a curve explains the `measured` seconds, all above 0."""
    optimize = library("scipy.optimize")
    bounds = np.array([(float(p.into(p.low)), float(p.into(p.high))) for p in parameters]).T
    prior = np.array([float(p.into(p.start)) for p in parameters])
    width = np.array([p.width for p in parameters])
    seen = np.log(measured)

    def apart(at: Floats) -> Floats:
        values = np.array([float(p.back(x)) for p, x in zip(parameters, at, strict=True)])
        return np.log(curve(values)) - seen

    at = np.clip(prior, bounds[0] + 1e-9, bounds[1] - 1e-9)
    least = FEW_SCALE if len(measured) <= len(parameters) + 2 else 1e-3
    if abs(np.median(apart(at))) > ANOTHER:
        far = partial(_far, apart, prior, width)
        at = prior = optimize.least_squares(far, at, bounds=bounds, x_scale=width, max_nfev=200).x
    scale = max(spread(apart(at)), least)
    for _ in range(ROUNDS):
        target = partial(_pulled, apart, scale, prior, width)
        solved = optimize.least_squares(
            target,
            at,
            partial(_slopes, target, bounds),
            bounds=bounds,
            x_scale=width,
            ftol=1e-4,
            xtol=1e-4,
            max_nfev=20,
        )
        at, before, scale = solved.x, scale, max(spread(apart(solved.x)), least)
        if abs(scale - before) < 0.01 * before:
            break
    slopes = _slopes(apart, bounds, at)
    draws = _bootstrap(apart(at) / scale, slopes / scale, (at - prior) / width, width)
    moved = np.clip(at + draws, *bounds)
    back = np.array([p.back(column) for p, column in zip(parameters, moved.T, strict=True)]).T
    free = np.array([p.freely(column) for p, column in zip(parameters, (at + draws).T, strict=True)])
    values = np.array([float(p.back(x)) for p, x in zip(parameters, at, strict=True)])
    return Fit(values, free.std(axis=1), back, apart(at), scale)


def spread(residuals: Floats) -> float:
    """Their standard deviation about 0, were the middle of them normal; at least a thousandth."""
    return max(1.4826 * float(np.median(np.abs(residuals))), 1e-3)


def _pulled(apart: Curve, scale: float, prior: Floats, width: Floats, at: Floats) -> Floats:
    """What is squared and summed: Cauchy's loss of each residual, and how far each parameter is from its start."""
    bent = apart(at) / scale / EFFICIENT
    return np.concatenate([np.sign(bent) * EFFICIENT * np.sqrt(np.log1p(bent**2)), (at - prior) / width])


def _far(apart: Curve, prior: Floats, width: Floats, at: Floats) -> Floats:
    """What is squared and summed where the base may be off by any factor."""
    return np.concatenate([apart(at), 0.01 * (at - prior) / width])


def _slopes(curve: Curve, bounds: Floats, at: Floats) -> Floats:
    """(points, parameters) derivatives, by central differences within the bounds."""
    columns = []
    for index in range(len(at)):
        step = 1e-3 * max(1.0, abs(at[index]))
        up, down = at.copy(), at.copy()
        up[index] = min(at[index] + step, bounds[1][index])
        down[index] = max(at[index] - step, bounds[0][index])
        columns.append((curve(up) - curve(down)) / (up[index] - down[index]))
    return np.array(columns).T


def _bootstrap(residuals: Floats, slopes: Floats, pulled: Floats, width: Floats) -> Floats:
    """(DRAWS, parameters) steps from the fit that timings drawn anew would have made; residuals in their scale."""
    random = np.random.default_rng(SEED)
    points = len(residuals)
    weigh = 1 / (1 + (residuals / EFFICIENT) ** 2)
    bend = max(float(np.mean((1 - (residuals / EFFICIENT) ** 2) * weigh**2)), 0.2)
    steps = []
    for _ in range(DRAWS):
        count = np.bincount(random.integers(0, points, points), minlength=points)
        guess = random.standard_normal(len(width))
        rising = bend * (slopes.T * count) @ slopes + np.diag(1 / width**2)
        steps.append(-np.linalg.solve(rising, slopes.T @ (count * weigh * residuals) + (pulled - guess) / width))
    return np.array(steps)
