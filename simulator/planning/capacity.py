"""Capacity: what training a scenario takes, and what a search of the layouts around it would train it with.

The search is `simpipe plan`'s, with all that FREE does not name as the scenario has it; so it takes seconds.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from simpipe.simulator.planning import advice, evaluation, search
from simpipe.simulator.planning.search import ALIKE, SIZES, Found, Limits, Outcome, SearchError
from simpipe.simulator.planning.tables import Row, plain
from simpipe.simulator.scenario import Scenario

FREE = ("schedule", "chunks", "ranks", "ep", "microbatch_size")
"""Keys that are searched."""

ASKED = ("model", "hardware", "gpus", "global_batch", "sequence")
"""What it is asked by options of their own."""


@dataclass(frozen=True, eq=False)
class Capacity:
    """own: tokens a second, days, GPU-hours and cost of the scenario itself. given: what the search was given. outcome:
    what it came to; None where it found nothing, with the reason in `missing`."""

    own: Row
    given: Row
    outcome: Outcome | None
    missing: str = ""

    @cached_property
    def ranked(self) -> list[Found]:
        """What was found, the fastest first."""
        return self.outcome.ranked if self.outcome else []

    def place_of(self, scenario: Scenario) -> int | None:
        """Where in `ranked` the scenario's own schedule and sizes are; None where they are not."""
        own = scenario.to_dict()
        same = (all(one.row.get(key) == own.get(key) for key in SIZES) for one in self.ranked)
        return next((place for place, is_own in enumerate(same) if is_own), None)

    def to_dict(self) -> dict[str, Any]:
        """Plain figures."""
        found = self.own | {"searched": list(FREE), "command": command(self.given)}
        if self.outcome is None:
            return found | {"missing": self.missing}
        return found | advice.counts(self.outcome) | {"recommended": advice.table(self.outcome)}


def capacity(
    scenario: Scenario,
    tokens: float,
    tokens_per_s: float,
    pool: Executor,
    heard: Callable[[int, Outcome], None] = lambda *_: None,
) -> Capacity:
    """Of training on so many tokens. tokens_per_s: what the scenario's step does."""
    keys = scenario.to_dict() | {"token_budget": tokens}
    own = {"tokens_per_s": tokens_per_s}
    own |= evaluation.money(keys, own)
    given = {key: value for key, value in keys.items() if key not in FREE} | ALIKE
    try:
        outcome = search.search(given, Limits(), pool, heard)
    except SearchError as error:
        return Capacity(own, given, None, str(error))
    search.include(outcome, given | {key: keys[key] for key in FREE if key in keys}, Limits(), pool)
    return Capacity(own, given, outcome)


def command(given: Row) -> str:
    """The command line of the same search: options for what they ask, --set for sizes and what is not a default."""
    least = {"model": given["model"], "hardware": given["hardware"], "schedule": "1f1b", "sequence": given["sequence"]}
    usual = Scenario.of(least | dict.fromkeys(("ranks", "gpus", "global_batch"), 1)).to_dict()
    words = [part for key in ASKED for part in (f"--{key.replace('_', '-')}", str(given[key]))]
    words += ["--tokens", f"{given['token_budget']:g}"]
    for key, value in given.items():
        chosen = key in SIZES or (key in usual and value != usual[key])
        if chosen and key not in (*ASKED, *ALIKE):
            words += ["--set", f"{key}={_text(value)}"]
    return shlex.join(["simpipe", "plan", *words])


def _text(value: Any) -> str:
    """As YAML of one line reads it."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "{" + str(plain(value)) + "}"
    return f"[{plain(value)}]" if isinstance(value, list) else str(value)
