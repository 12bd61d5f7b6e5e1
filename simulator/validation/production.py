"""Production runs: what the steps of a run took that are known, and what they foretell of later ones.

A table of operations has a row for each run, worker (dp_rank), step, stage and kind, with the milliseconds of its
micro-batches in a row; a table of known steps has their spans, a row for each run, worker and step.
"""

from __future__ import annotations

import csv
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from simpipe import schedules
from simpipe.simulator import prediction
from simpipe.simulator.kernels import Floats
from simpipe.simulator.prediction import Forecast
from simpipe.simulator.program import Program
from simpipe.simulator.validation.cases import FOLDER


class Known(NamedTuple):
    """A run's known steps. seconds: (steps, workers, kinds, stages, micro-batches); spans: (steps, workers)."""

    steps: list[int]
    workers: list[int]
    seconds: Floats
    spans: Floats


@lru_cache(maxsize=8)
def known(run: str, operations: str, spans: str) -> Known:
    """From the two tables of these names in `published/`."""
    found = {(int(row["step"]), int(row["dp_rank"])): float(row["measured"]) for row in _rows(spans, run)}
    took = {
        (int(row["step"]), int(row["dp_rank"]), row["kind"], int(row["stage"])): row["milliseconds"].split()
        for row in _rows(operations, run)
    }
    steps, workers = (sorted({key[axis] for key in found}) for axis in (0, 1))
    stages = 1 + max(stage for *_, stage in took)
    seconds = [
        [[[took[step, worker, kind, stage] for stage in range(stages)] for kind in "FB"] for worker in workers]
        for step in steps
    ]
    each = [[found[step, worker] for worker in workers] for step in steps]
    return Known(steps, workers, np.array(seconds, float) / 1e3, np.array(each))


@lru_cache(maxsize=8)
def forecast(schedule: str, run: str, operations: str, spans: str) -> Forecast:
    """What a run's known steps foretell, as `simpipe run --predict` does."""
    steps = known(run, operations, spans)
    return prediction.forecast(_program(schedule, steps), steps.seconds, steps.spans)


@lru_cache(maxsize=8)
def replayed(schedule: str, run: str, operations: str, spans: str) -> Floats:
    """(steps, workers) spans with each known step's own operations."""
    steps = known(run, operations, spans)
    return prediction.replayed(_program(schedule, steps), steps.seconds)


def _program(schedule: str, steps: Known) -> Program:
    *_, stages, microbatches = steps.seconds.shape
    return schedules.program(schedule, stages, microbatches)


def _rows(table: str, run: str) -> list[dict[str, str]]:
    with (FOLDER / table).open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["run"] == run]
