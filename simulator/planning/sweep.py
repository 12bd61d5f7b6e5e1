"""Sweep: a plan of values per key becomes a job; what cannot be is pruned before anything is simulated, and counted.

A plan is a YAML file: `base` holds what all rows have, `grid` lists of values by key, of which every combination is a
row, `alternatives` sets of keys that go together (a machine with its GPUs and price), crossed with the grid; they
override `base`.
`constraints` are conditions on a row's keys and on what follows from them (FACTS); `objective` is a column of results.
"""

from __future__ import annotations

import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from simpipe import schedules
from simpipe.simulator.costs.model_files import SHAPE_KEYS
from simpipe.simulator.efficiency import GB
from simpipe.simulator.errors import SimpipeError, nearest, show
from simpipe.simulator.planning import execution, jobs
from simpipe.simulator.planning.constraints import Constraint, ConstraintError
from simpipe.simulator.planning.evaluation import COLUMNS, EXTRA_KEYS, scenario_of
from simpipe.simulator.planning.jobs import Job
from simpipe.simulator.planning.tables import Row
from simpipe.simulator.scenario import KEYS, PATHS, Scenario
from simpipe.simulator.yaml_file import read_yaml

MAX_COMBINATIONS = 1_000_000

PARTS = ("base", "grid", "alternatives", "constraints", "objective")

OF_A_BATCH = ("global_batch", "sequence")
"""Keys of which steps must have the same, that their times can be compared."""

FACTS = {
    "dp": "data parallel size",
    "edp": "expert-data parallel size",
    "microbatches": "micro-batches of a pipeline",
    "experts": "the model's routed experts, 0 without any",
    "heads": "its attention heads",
    "hidden": "its hidden size",
    "model_layers": "its layers",
    "gpus_per_node": "the machine's GPUs a node",
    "memory_gb": "memory of a GPU",
}
"""What constraints may name beside a scenario's keys."""


class SweepError(SimpipeError):
    """A plan cannot be read or leaves nothing to simulate: one sentence with file and part."""


@dataclass(frozen=True)
class Grid:
    """All combinations of a plan. sets: the alternatives. values: those of each key of the grid."""

    base: Row
    sets: list[Row]
    values: dict[str, list[Any]]

    @property
    def count(self) -> int:
        return len(self.sets) * math.prod(map(len, self.values.values()))

    @property
    def columns(self) -> list[str]:
        """Keys of a row, in order."""
        return list(dict.fromkeys([*self.base, *(key for keys in self.sets for key in keys), *self.values]))

    @property
    def usual(self) -> str:
        """The objective of a plan that names none: the step, or where steps are of different batches, the rate."""
        batches = {str([keys.get(key) for key in OF_A_BATCH]) for keys in self.sets}
        alike = len(batches) == 1 and not any(len(self.values.get(key, ())) > 1 for key in OF_A_BATCH)
        return "step_time_s" if alike else "tokens_per_s"

    def row(self, number: int) -> Row:
        """A combination by its number: the last key of the grid changes first."""
        chosen: Row = {}
        for key, values in reversed(self.values.items()):
            number, index = divmod(number, len(values))
            chosen[key] = values[index]
        row = self.base | self.sets[number] | chosen
        return {key: row.get(key) for key in self.columns}


@dataclass(frozen=True)
class Plan:
    """A plan that was read, and the folder where its paths start."""

    source: str
    folder: str
    grid: Grid
    constraints: list[Constraint]
    objective: str


def read(path: str | Path) -> Plan:
    """The plan of a YAML file. Raises SweepError or ConstraintError."""
    table = read_yaml(Path(path), SweepError)
    for part in table:
        if part not in PARTS:
            raise SweepError(f"{path}: a plan has no part {part!r}; {nearest(part, PARTS)}")
    base = _keys(path, "base", table.get("base") or {})
    values = _keys(path, "grid", table.get("grid") or {})
    for key, some in values.items():
        if not isinstance(some, list) or not some:
            raise SweepError(f"{path}: grid.{key} must be a list of values, as [1, 2, 4], not {show(some)}")
        if key in base:
            raise SweepError(f"{path}: {key} is both in base and in grid; it takes one of them")
    sets = table.get("alternatives") or [{}]
    if not isinstance(sets, list) or not all(isinstance(keys, dict) for keys in sets):
        raise SweepError(f"{path}: alternatives must be a list of sets of keys, as - {{hardware: h100, gpus: 64}}")
    for keys in sets:
        for key in _keys(path, "alternatives", keys):
            if key in values:
                raise SweepError(f"{path}: {key} is both in alternatives and in grid; it takes one of them")
    conditions = table.get("constraints") or []
    if not isinstance(conditions, list):
        raise SweepError(f"{path}: constraints must be a list of conditions, as - tp <= 8")
    try:
        parsed = [Constraint.parse(text) for text in conditions]
    except ConstraintError as error:
        raise ConstraintError(f"{path}: {error}") from None
    grid = Grid(base, sets, values)
    if not grid.columns:
        raise SweepError(f"{path} holds nothing to sweep; give base and grid")
    if grid.count > MAX_COMBINATIONS:
        most = f"a sweep takes at most {MAX_COMBINATIONS:,}; narrow its grid"
        raise SweepError(f"{path} makes {grid.count:,} combinations, and {most}")
    objective = objective_of(table.get("objective", grid.usual), f"{path}: objective")
    folder = os.path.abspath(Path(path).parent)
    return Plan(str(path), folder, grid, parsed, objective)


def objective_of(name: Any, place: str) -> str:
    """A column of results that has a better end. Raises SweepError."""
    known = [column for column, what in COLUMNS.items() if what.better]
    if name not in known:
        raise SweepError(f"{place} must be one of {', '.join(known)}, not {show(name)}")
    return str(name)


def _keys(path: str | Path, part: str, keys: Any) -> Row:
    if not isinstance(keys, dict):
        raise SweepError(f"{path}: {part} must hold keys and values, as `tp: 8`, not {show(keys)}")
    known = [*KEYS, *SHAPE_KEYS, *EXTRA_KEYS]
    for key in keys:
        if key not in known:
            raise SweepError(f"{path}: {part} has an unknown key {show(key)}; {nearest(key, known)}")
    return keys


def job_of(plan: Plan) -> tuple[Job, Counter[str]]:
    """The job of a plan's possible combinations, and how many others there are by reason.

    Raises SweepError where none is left.
    """
    grid, pruned = plan.grid, Counter[str]()
    left = array("q")
    for number in range(grid.count):
        try:
            reason = why_not(jobs.anchored_row(grid.row(number), plan.folder), plan.constraints)
        except ConstraintError as error:
            raise ConstraintError(f"{plan.source}: {error}") from None
        if reason:
            pruned[reason] += 1
        else:
            left.append(number)
    if not left:
        raise SweepError(f"{plan.source} leaves none of its {grid.count} combinations: {'; '.join(told(pruned))}")
    used = {key: {str(grid.row(number).get(key)) for number in left} for key in (*PATHS, "costs")}
    files = (path for key, names in used.items() for name in names for path in jobs.files({key: name}, plan.folder))
    mark = execution.fingerprint([{"grid": grid.__dict__, "left": left.tobytes().hex()}], files)
    return Job(
        grid.columns, len(left), lambda number: grid.row(left[number]), mark, plan.folder, plan.objective
    ), pruned


def told(pruned: Counter[str]) -> list[str]:
    """Reasons with how many combinations each excludes, the most first."""
    return [f"{count} by {reason}" for reason, count in sorted(pruned.items(), key=lambda item: (-item[1], item[0]))]


def why_not(row: Row, constraints: Iterable[Constraint]) -> str:
    """Why a combination cannot be simulated, numbers left out so that equal reasons count together; empty if it can.

    Raises ConstraintError for a condition that has no answer.
    """
    later = []
    for constraint in constraints:
        if not all(row.get(name) is not None for name in constraint.names):
            later.append(constraint)
        elif not constraint.holds(row):
            return f"`{constraint.text}`"
    if row.get("costs") is not None:
        return next((f"`{c.text}`" for c in later if not c.holds(row)), "")
    try:
        scenario = scenario_of(row)
        values = facts(scenario)
    except SimpipeError as error:
        return without_numbers(str(error))
    return next((f"`{c.text}`" for c in later if not c.holds(values)), "")


def impossible(row: Row) -> str:
    """Why model, machine and sizes of a row do not go together, numbers left out; empty where they do."""
    try:
        scenario_of(row).load()
    except SimpipeError as error:
        return without_numbers(str(error))
    return ""


def facts(scenario: Scenario) -> Mapping[str, Any]:
    """What constraints may name: the scenario's keys and FACTS. Raises SimpipeError for one that cannot be."""
    loaded = scenario.load()
    spec, parallel, model, cluster = loaded.schedule, loaded.parallel, loaded.model, loaded.cluster
    _check_size(spec.name, parallel.ranks, parallel.microbatches, spec.chunks, tuple(sorted(spec.options.items())))
    return scenario.to_dict() | {
        "dp": parallel.dp,
        "edp": parallel.edp,
        "microbatches": parallel.microbatches,
        "experts": model.experts.routed if model.experts else 0,
        "heads": model.attention.heads,
        "hidden": model.hidden,
        "model_layers": model.layers,
        "gpus_per_node": cluster.node.gpus,
        "memory_gb": cluster.gpu.memory / GB,
    }


@lru_cache(maxsize=4096)
def _check_size(name: str, ranks: int, microbatches: int, chunks: int | None, options: tuple[Any, ...]) -> None:
    if not name.endswith(".csv"):
        schedules.load(name).size(ranks, microbatches, chunks, **dict(options))


def without_numbers(sentence: str) -> str:
    """`gpus = 64 is not a multiple of ranks x tp = 3 x 8 = 24` without what differs from row to row."""
    return re.sub(r"(?<![\w.])[0-9]+(?:[.,][0-9]+)*(?!\w)", "N", sentence)
