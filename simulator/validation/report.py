"""Report: every case of some families predicted, and the errors of each family beside what other simulators report."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from statistics import mean
from typing import Any, NamedTuple

from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.planning.execution import local
from simpipe.simulator.uncertainty import LEVEL
from simpipe.simulator.validation.cases import Case, Family, ValidationError, cases, families, variants
from simpipe.simulator.validation.predict import PREDICT, measured_seconds

CHUNK = 6
"""Cases that go to a worker at once."""

AIM, WORST, MEMORY_AIM = 0.05, 0.15, 0.03
"""Mean absolute error of times, error of any case, mean absolute error of memory that are aimed at."""


class Outcome(NamedTuple):
    """A case predicted. measured, low and high are seconds, the ends equal where nothing is left open; bytes too.

    Those that the case has no figure of are None. refused: why the case cannot be expressed, empty if it can. interval:
    the seconds that hold the measured ones with probability LEVEL, where a prediction says so.
    """

    case: Case
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    memory: float | None = None
    refused: str = ""
    interval: tuple[float, float] | None = None

    @property
    def held(self) -> bool | None:
        """Whether the interval holds the measured time."""
        if self.interval is None or self.measured is None:
            return None
        return self.interval[0] <= self.measured <= self.interval[1]

    @property
    def errors(self) -> tuple[float, float] | None:
        """Predicted over measured time less one, of both ends."""
        if not self.measured or self.low is None or self.high is None:
            return None
        return self.low / self.measured - 1, self.high / self.measured - 1

    @property
    def error(self) -> float | None:
        """That of the time, or of the middle of a range."""
        return self.errors and sum(self.errors) / 2

    @property
    def memory_error(self) -> float | None:
        return self.memory / self.case.memory - 1 if self.memory and self.case.memory else None

    def to_dict(self) -> dict[str, Any]:
        """Plain values: seconds, bytes, errors as shares."""
        return {
            "case": self.case.name,
            "settings": dict(self.case.settings),
            "published": self.case.measured,
            "unit": self.case.unit,
            "measured_s": self.measured,
            "predicted_s": [self.low, self.high],
            "error": self.errors,
            "interval_s": self.interval,
            "measured_bytes": self.case.memory,
            "predicted_bytes": self.memory,
            "memory_error": self.memory_error,
            "other_s": self.case.other[0],
            "other_bytes": self.case.other[1],
            "refused": self.refused,
        }


class Errors(NamedTuple):
    """Errors over some cases: how many, mean (bias), mean absolute, the one farthest from 0, and its case."""

    cases: int
    bias: float
    mean: float
    worst: float
    where: str


class Result(NamedTuple):
    """A family's outcomes and their errors; None where it has no such figures. other: the source's own simulator's."""

    family: Family
    outcomes: list[Outcome]
    time: Errors | None
    memory: Errors | None
    other: Errors | None

    @property
    def inside(self) -> int:
        """Cases whose measured time lies in the predicted range."""
        return sum(1 for o in self.outcomes if o.errors and o.errors[0] <= 0 <= o.errors[1])

    @property
    def coverage(self) -> float | None:
        """The share of measured times that the intervals hold; None where there are none."""
        held = [o.held for o in self.outcomes if o.held is not None]
        return sum(held) / len(held) if held else None

    @property
    def parts(self) -> dict[Any, Result]:
        """The same of each value of the setting that the family tells apart."""
        by = self.family.by
        values = dict.fromkeys(o.case.settings[by] for o in self.outcomes) if by else ()
        return {v: summed(self.family, [o for o in self.outcomes if o.case.settings[by] == v]) for v in values}

    @property
    def aimed(self) -> bool:
        """Whether the family counts for the aim: a prediction of which nothing is left open."""
        return not self.family.choices and not self.family.replay

    def to_dict(self) -> dict[str, Any]:
        """Plain values, cases included."""
        f = self.family
        facts = {name: getattr(f, name) for name in ("key", "title", "source", "mfu", "fitted", "others", "replay")}
        lists = {"assumed": list(f.assumed), "open": dict(f.choices)}
        errors = {name: e and e._asdict() for name, e in (("time", self.time), ("memory", self.memory))}
        intervals = {"interval_level": LEVEL, "interval_coverage": self.coverage}
        apart = {str(value): part.time and part.time._asdict() for value, part in self.parts.items()}
        cases = [outcome.to_dict() for outcome in self.outcomes]
        return facts | lists | errors | intervals | {"by": {f.by: apart} if f.by else {}, "cases": cases}


def predict(family: Family, case: Case, draws: int = 0) -> Outcome:
    """One case, with every choice of what its family leaves open; steps with an interval from so many draws."""
    seconds, sizes, refused, interval = [], [], "", None
    for choice in variants(family):
        settings = {**case.settings, **choice, "draws": draws}
        try:
            found = PREDICT[family.kind](settings)
        except SimpipeError as error:
            refused = str(error)
            continue
        seconds.append(found.seconds)
        sizes.append(found.memory)
        interval = found.interval
    if not seconds:
        return Outcome(case, refused=refused)
    measured = None if case.measured is None else measured_seconds(case.settings, case.measured, case.unit)
    memory = max(sizes) if case.memory else None
    return Outcome(case, measured, min(seconds), max(seconds), memory, interval=None if family.choices else interval)


def run(
    keys: Sequence[str] = (),
    every: int = 1,
    workers: int = 1,
    done: Callable[[int, int], None] = lambda n, of: None,
    draws: int = 0,
) -> list[Result]:
    """The families of some keys, or all; each `every`-th case, steps with an interval from so many `draws`. `done` is
    told how many cases are finished, of how many.

    Raises ValidationError.
    """
    known = families()
    for key in keys:
        if key not in known:
            raise ValidationError(f"there is no family {key!r}; there are {', '.join(known)}")
    chosen = [family for key, family in known.items() if not keys or key in keys]
    work = [(family.key, chunk) for family in chosen for chunk in _chunks(cases(family, every))]
    total, finished = sum(len(chunk) for _, chunk in work), 0
    found: dict[str, list[Outcome]] = {family.key: [] for family in chosen}
    with local(workers) as pool:
        for (key, _), outcomes in zip(work, _results(pool, work, draws), strict=True):
            found[key] += outcomes
            finished += len(outcomes)
            done(finished, total)
    return [summed(family, found[family.key]) for family in chosen]


def _results(pool: Executor, work: Sequence[tuple[str, list[Case]]], draws: int) -> Any:
    return pool.map(_predicted, [key for key, _ in work], [chunk for _, chunk in work], [draws] * len(work))


def _predicted(key: str, chunk: list[Case], draws: int) -> list[Outcome]:
    """Worker side: a family travels by its key."""
    family = families()[key]
    return [predict(family, case, draws) for case in chunk]


def _chunks(found: list[Case]) -> list[list[Case]]:
    return [found[start : start + CHUNK] for start in range(0, len(found), CHUNK)]


def summed(family: Family, outcomes: list[Outcome]) -> Result:
    """A family's result."""
    times = [(o.error, o.case.name) for o in outcomes]
    sizes = [(o.memory_error, o.case.name) for o in outcomes]
    theirs = [(o.case.other[0] / o.measured - 1 if o.case.other[0] and o.measured else None, "") for o in outcomes]
    return Result(family, outcomes, _errors(times), _errors(sizes), _errors(theirs))


def _errors(pairs: Sequence[tuple[float | None, str]]) -> Errors | None:
    known = [(error, name) for error, name in pairs if error is not None]
    if not known:
        return None
    values = [error for error, _ in known]
    worst, where = max(known, key=lambda pair: abs(pair[0]))
    return Errors(len(known), mean(values), mean(map(abs, values)), worst, where)


def verdict(results: Sequence[Result]) -> str:
    """How the families that count stand to the aim, in a sentence."""
    times = [r for r in results if r.aimed and r.time]
    if not times:
        return "No family here counts for the aim: each leaves settings open or replays."
    average = mean(r.time.mean for r in times if r.time)
    beyond = sum(1 for r in times for o in r.outcomes if o.error is not None and abs(o.error) > WORST)
    sizes = [r.memory.mean for r in results if r.aimed and r.memory]
    memory = f"; memory {mean(sizes):.1%} (aim {MEMORY_AIM:.0%})" if sizes else ""
    missed = ", ".join(r.family.key for r in times if r.time and r.time.mean > AIM)
    behind = f" Beyond {AIM:.0%} in the mean: {missed}." if missed else ""
    return (
        f"Mean absolute error of times over {len(times)} families {average:.1%} (aim {AIM:.0%}), {beyond} cases beyond "
        f"{WORST:.0%}{memory}.{behind}"
    )


def lines(results: Sequence[Result]) -> list[str]:
    """The table, what each family assumes, and how it stands to the aim."""
    title = max(len(r.family.title) for r in results)
    head = (
        f"{'':<{title}}  {'cases':>5} {'bias':>7} {'mean':>6} {'worst':>7}   memory: {'mean':>5} {'worst':>6}   others"
    )
    out = ["Predicted over measured, less one. mean: of absolute errors.", "", head]
    for r in results:
        out.append(f"{r.family.title:<{title}}  {_line(r.time, r)}   {_memory(r.memory):>20}   {_others(r)}".rstrip())
    out.append("")
    for r in results:
        notes = [
            *r.family.assumed,
            *([f"fitted: {r.family.fitted}"] if r.family.fitted else []),
            f"MFU: {r.family.mfu}",
        ]
        if r.family.choices:
            left = ", ".join(f"{key} {values}" for key, values in r.family.choices.items())
            notes.append(f"left open: {left}; {r.inside} of {len(r.outcomes)} measured times lie in the range")
        if r.coverage is not None:
            notes.append(f"intervals of {LEVEL:.0%} hold {r.coverage:.0%} of the measured times")
        notes += [f"{r.family.by} {value}: {_part(part)}" for value, part in r.parts.items()]
        refused = [o for o in r.outcomes if o.refused]
        notes += [f"not expressed: {o.case.name}: {o.refused}" for o in refused]
        out += [f"{r.family.key}: {r.family.source}", *(f"  {note}" for note in notes)]
    return [*out, "", verdict(results)]


def _line(errors: Errors | None, result: Result) -> str:
    if errors is None:
        return f"{len(result.outcomes):>5} {'':>7} {'':>6} {'':>7}"
    mark = "" if result.aimed else " (range)" if result.family.choices else " (replay)"
    return f"{errors.cases:>5} {errors.bias:>+7.1%} {errors.mean:>6.1%} {errors.worst:>+7.1%}{mark}"


def _part(result: Result) -> str:
    """Errors and coverage of some of a family's cases."""
    errors = result.time
    told = (
        f"{errors.cases} cases, bias {errors.bias:+.1%}, mean {errors.mean:.1%}, worst {errors.worst:+.1%}"
        if errors
        else "none"
    )
    return told + (f", intervals hold {result.coverage:.0%}" if result.coverage is not None else "")


def _memory(errors: Errors | None) -> str:
    return f"{errors.mean:.1%} {errors.worst:>+7.1%}" if errors else ""


def _others(result: Result) -> str:
    same = result.other
    own = f"on these rows bias {same.bias:+.1%}, mean {same.mean:.1%}, worst {same.worst:+.1%}; " if same else ""
    return own + result.family.others
