"""Cases: published measurements, a tidy table a family in `published/`, and what each family states in `families.toml`.

A row of a table holds what was measured and the settings of a case; a family holds those that all its rows share. A
setting is a key of a scenario, or one of OWN. `measured` is in the row's `unit`; rows without it have memory only.
"""

from __future__ import annotations

import csv
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

from simpipe.simulator.errors import SimpipeError

FOLDER = Path(__file__).parent / "published"

MEASURED = ("case", "measured", "unit", "memory_gib", "memory_gb", "other_s", "other_gib")
"""Columns that are no settings."""

BYTES = {"memory_gib": 2.0**30, "memory_gb": 1e9}


class ValidationError(SimpipeError):
    """A family is asked for that there is none of."""


@dataclass(frozen=True)
class Family:
    """Cases of one source.

    kind: what is predicted, see predict.py. settings: those of every case. choices: values over which a setting is
    left open; then a case is predicted as a range, and left out of the aim. assumed: what the source leaves out, in
    sentences. mfu: the FLOPs convention of what was published. fitted: what was fitted to it, and on which rows.
    others: what other simulators report on the same cases. replay: whether a case is timed from its own operations.
    by: a setting whose values' errors are told apart too.
    """

    key: str
    title: str
    kind: str
    file: str
    source: str
    mfu: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: Mapping[str, list[Any]] = field(default_factory=dict)
    assumed: tuple[str, ...] = ()
    fitted: str = ""
    others: str = ""
    replay: bool = False
    by: str = ""


@dataclass(frozen=True)
class Case:
    """One measurement. row: its number in the table, from 0. measured: in `unit`, None where only memory was measured.
    memory: bytes at the peak, as PyTorch's allocator counts. other: seconds and bytes by the source's own simulator."""

    name: str
    row: int
    settings: Mapping[str, Any]
    measured: float | None
    unit: str
    memory: float | None
    other: tuple[float | None, float | None] = (None, None)


@cache
def families() -> dict[str, Family]:
    """All of them by key, in the order they are shown."""
    table = tomllib.loads((FOLDER / "families.toml").read_text(encoding="utf-8"))
    return {key: Family(key, **(given | {"assumed": tuple(given.get("assumed", ()))})) for key, given in table.items()}


def cases(family: Family, every: int = 1) -> list[Case]:
    """Each `every`-th case of a family."""
    with (FOLDER / family.file).open(encoding="utf-8", newline="") as file:
        return [_case(family, number, row) for number, row in enumerate(csv.DictReader(file)) if number % every == 0]


def _case(family: Family, number: int, row: Mapping[str, str]) -> Case:
    own = {key: _value(text) for key, text in row.items() if key not in MEASURED and text != ""}
    memory = next((float(row[key]) * unit for key, unit in BYTES.items() if row.get(key)), None)
    measured, other, size = (float(row[key]) if row.get(key) else None for key in ("measured", "other_s", "other_gib"))
    others = (other, size and size * 2.0**30)
    return Case(row["case"], number, {**family.settings, **own}, measured, row.get("unit") or "s", memory, others)


def _value(text: str) -> Any:
    """A whole number, true or false, or text."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isascii() and text.isdigit() else text


def variants(family: Family) -> list[dict[str, Any]]:
    """The settings to try for what a family leaves open: one empty choice where it leaves nothing."""
    return [dict(zip(family.choices, values, strict=True)) for values in product(*family.choices.values())]
