"""Prediction: the spans of steps that a run has yet to do, from the operations of steps it has done.

Means give one span. Distributions give an interval: a sample draws one of the known steps for the levels of all workers
and stages, and for each worker its micro-batches out of all known ones, each with its F and B on every stage. So what
varies together stays together: a step's level over workers and stages (clocks, the day), a micro-batch's length over
stages. Operations drawn each by itself would even out: a 90 % interval then holds 9 to 22 % of two production runs.
What the replay of the drawn step lacks (transfers, launch gaps) is that step's measured over replayed span, and
stays with the sample. n known steps know their spread and their mean only so well: deviations from the mean of the
samples grow by sqrt((n + 1) / (n - 1)), the standard deviation of a new step over that of the n.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from simpipe.simulator.costs.given import Costs
from simpipe.simulator.costs.measured import Operations
from simpipe.simulator.errors import CostsError
from simpipe.simulator.graph import Engine
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.lower import lower
from simpipe.simulator.program import Program
from simpipe.simulator.replay import TASKS_AT_ONCE, by_action, check_fits, places, plural, spans_with

SAMPLES = 2000
"""Steps drawn: an end of the 95 % interval has 50 of them beyond."""

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Of the intervals whose coverage is reported."""

SHOWN_LEVEL = 0.9

LEAST_STEPS = 2
"""Steps to calibrate on at least; one step says nothing of how steps differ."""


@dataclass(frozen=True, eq=False)
class Forecast:
    """Spans that a run's known steps foretell of any other step; all times in seconds.

    samples: (samples, workers) spans drawn for one step. worker_means: (workers,) span with each worker's mean of a
    stage and kind over the known steps. stage_means: the span with the mean over workers too.
    """

    samples: Floats
    worker_means: Floats
    stage_means: float

    @cached_property
    def median(self) -> Floats:
        """(workers,) the median of the samples."""
        return np.asarray(np.median(self.samples, axis=0), float)

    def interval(self, level: float) -> Floats:
        """(2, workers) ends of the interval that holds a worker's span with probability `level`."""
        return _interval(self.samples, level)

    def step_interval(self, level: float) -> Floats:
        """(2,) the same for a step, which ends with its slowest worker."""
        return _interval(self.samples.max(axis=1), level)


@dataclass(frozen=True, eq=False)
class Prediction(Forecast):
    """A forecast beside the measured spans of some steps.

    source, later: the tables calibrated on and predicted. known, steps: their steps. workers: the dp_ranks.
    measured: (steps, workers) seconds.
    """

    source: str
    later: str
    schedule: str
    known: Ints
    steps: Ints
    workers: Ints
    measured: Floats

    def coverage(self, level: float) -> float:
        """The share of measured spans, over steps and workers, that the interval holds."""
        return _held(self.measured, self.interval(level))

    def step_coverage(self, level: float) -> float:
        """The share of measured steps, each until its slowest worker ends, that the interval holds."""
        return _held(self.measured.max(axis=1), self.step_interval(level))

    def errors(self) -> dict[str, float]:
        """Mean absolute error of the span over steps and workers, by what was known."""

        def error(span: Floats | float) -> float:
            return float(np.abs(span / self.measured - 1).mean())

        return {
            "stage_means": error(self.stage_means),
            "worker_means": error(self.worker_means),
            "distributions": error(self.median),
        }

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries."""
        low, high = self.interval(SHOWN_LEVEL).tolist()
        return {
            "source": self.source,
            "predicted": self.later,
            "schedule": self.schedule,
            "calibrated_on_steps": self.known.tolist(),
            "predicted_steps": self.steps.tolist(),
            "mean_absolute_error": self.errors(),
            "coverage": [
                {"level": level, "workers": self.coverage(level), "steps": self.step_coverage(level)}
                for level in LEVELS
            ],
            "interval_level": SHOWN_LEVEL,
            "step_interval_s": self.step_interval(SHOWN_LEVEL).tolist(),
            "workers": [
                {
                    "dp_rank": worker,
                    "span_s": self.median[j],
                    "interval_s": [low[j], high[j]],
                    "worker_means_s": self.worker_means[j],
                    "measured_s": self.measured[:, j].tolist(),
                }
                for j, worker in enumerate(self.workers.tolist())
            ],
        }


def predict(
    program: Program, operations: Operations, later: Operations | None = None, seed: int = 0, engine: Engine = "auto"
) -> Prediction:
    """Predict the steps of `later` from all of `operations`, or without it the second half of the steps from the first.

    Raises CostsError where the tables do not fit the program or each other, or have too few steps.
    """
    if later is None:
        operations, later = _halves(operations)
    check_fits(program, operations)
    check_fits(program, later)
    if len(operations.steps) < LEAST_STEPS:
        raise CostsError(
            f"{operations.source} has {plural(len(operations.steps), 'step')} to calibrate on; "
            f"it takes at least {LEAST_STEPS}"
        )
    columns = places(operations, "worker", later.workers.tolist())
    found = forecast(program, operations.seconds[:, columns], operations.spans[:, columns], seed, engine)
    return Prediction(
        samples=found.samples,
        worker_means=found.worker_means,
        stage_means=found.stage_means,
        source=operations.source,
        later=later.source,
        schedule=program.name,
        known=operations.steps,
        steps=later.steps,
        workers=later.workers,
        measured=later.spans,
    )


def forecast(program: Program, known: Floats, measured: Floats, seed: int = 0, engine: Engine = "auto") -> Forecast:
    """What known steps foretell. known: (steps, workers, kinds, stages, micro-batches) seconds of their operations, of
    at least LEAST_STEPS; measured: (steps, workers) their spans."""
    drawn = _draw(program, known, measured / replayed(program, known, engine), seed, engine)
    means = known.mean(axis=(0, 4))  # (workers, kinds, stages)
    both = np.concatenate([means, means.mean(axis=0, keepdims=True)])
    both = np.broadcast_to(both[..., None], (*both.shape, program.microbatches))
    of_means = _spans(program, both, engine)
    return Forecast(drawn, of_means[:-1], float(of_means[-1]))


def replayed(program: Program, known: Floats, engine: Engine = "auto") -> Floats:
    """(steps, workers) spans with the steps' own operations, as `forecast` takes them, and free links."""
    return _spans(program, known.reshape(-1, *known.shape[2:]), engine).reshape(known.shape[:2])


def describe(prediction: Prediction, most: int = 8) -> list[str]:
    """The prediction in a few short lines, with the `most` slowest workers."""
    found, errors = prediction, prediction.errors()
    low, high = found.interval(SHOWN_LEVEL)
    slowest = np.argsort(-found.median, kind="stable")[:most]
    rows = [
        f"{found.workers[j]:>7}  {found.median[j]:8.4g} s   {_range(low[j], high[j]):<20}"
        f"  {found.worker_means[j]:8.4g} s   {_range(found.measured[:, j].min(), found.measured[:, j].max())}"
        for j in slowest
    ]
    return [
        f"prediction of {_steps(found.later, found.steps)} as {found.schedule}",
        f"calibrated on {_steps(found.source, found.known)}",
        "mean absolute error of the span: "
        + ", ".join(f"{error:.2%} with {name.replace('_', ' ')}" for name, error in errors.items()),
        "",
        f"dp_rank      median   {SHOWN_LEVEL:.0%} interval         worker means  measured",
        *rows,
        *([f"and {plural(len(found.workers) - most, 'faster worker')}"] if len(found.workers) > most else []),
        "",
        "interval  holds of workers' spans  of steps",
        *(f"{level:>8.0%}  {found.coverage(level):>23.0%}  {found.step_coverage(level):>8.0%}" for level in LEVELS),
    ]


def _range(low: float, high: float) -> str:
    return f"{low:.4g} to {high:.4g} s"


def _steps(source: str, steps: Ints) -> str:
    return f"{plural(len(steps), 'step')} ({steps[0]} to {steps[-1]}) of {source}"


def _halves(operations: Operations) -> tuple[Operations, Operations]:
    """The first half of the steps and the rest. Raises CostsError where there are too few."""
    half = len(operations.steps) // 2
    if half < LEAST_STEPS:
        raise CostsError(
            f"{operations.source} has {plural(len(operations.steps), 'step')}; to predict half of them takes at least "
            f"{2 * LEAST_STEPS}"
        )
    return operations.some_steps(slice(half)), operations.some_steps(slice(half, None))


def _draw(program: Program, known: Floats, lacking: Floats, seed: int, engine: Engine) -> Floats:
    """(samples, workers) spans. known: (steps, workers, kinds, stages, micro-batches) seconds. lacking: (steps,
    workers) measured over replayed span."""
    rng = np.random.default_rng(seed)
    steps, workers, *_, microbatches = known.shape
    step = rng.integers(0, steps, SAMPLES)
    drawn = np.empty((SAMPLES, workers))
    for worker in range(workers):
        level, deviation = _parts(known[:, worker])
        chosen = rng.integers(0, steps * microbatches, (SAMPLES, microbatches))
        seconds = level[step, :, :, None] * deviation[chosen].transpose(0, 2, 3, 1)
        drawn[:, worker] = _spans(program, seconds, engine) * lacking[step, worker]
    mean = drawn.mean(axis=0)
    return np.asarray(np.maximum(mean + (drawn - mean) * np.sqrt((steps + 1) / (steps - 1)), 0.0), float)


def _parts(known: Floats) -> tuple[Floats, Floats]:
    """(steps, kinds, stages) levels in seconds, and (steps x micro-batches, kinds, stages) factors of micro-batches.

    A step's mean over n micro-batches varies by their variance / n alone, which the factors bring back when they are
    drawn: levels are drawn in to the overall mean so that it does not count twice; factors, which deviate from a mean
    of their own, are spread by n / (n - 1) (Davison and Hinkley 1997, section 3.8).
    """
    microbatches = known.shape[-1]
    means = known.mean(axis=-1)
    mean = means.mean(axis=0)
    factors = np.divide(known, means[..., None], out=np.ones_like(known), where=means[..., None] > 0) - 1
    if microbatches > 1:
        within = known.var(axis=-1, ddof=1).mean(axis=0) / microbatches
        between = means.var(axis=0, ddof=1)
        kept = np.clip(1 - np.divide(within, between, out=np.ones_like(within), where=between > 0), 0, 1)
        means = mean + np.sqrt(kept) * (means - mean)
        factors = factors * np.sqrt(microbatches / (microbatches - 1))
    columns = np.maximum(1 + factors, 0).transpose(0, 3, 1, 2)
    return means, columns.reshape(-1, *columns.shape[2:])


def _spans(program: Program, seconds: Floats, engine: Engine) -> Floats:
    """(rows,) spans of one pipeline with (rows, kinds, stages, micro-batches) seconds."""
    graph, loads = lower(program, Costs())
    at_once = max(1, TASKS_AT_ONCE // graph.tasks)
    parts = [seconds[begin : begin + at_once] for begin in range(0, len(seconds), at_once)]
    return np.concatenate([spans_with(graph, loads, by_action(program, part[:, None]), engine) for part in parts])


def _interval(samples: Floats, level: float) -> Floats:
    return np.asarray(np.quantile(samples, [(1 - level) / 2, (1 + level) / 2], axis=0), float)


def _held(measured: Floats, interval: Floats) -> float:
    return float(((measured >= interval[0]) & (measured <= interval[1])).mean())
