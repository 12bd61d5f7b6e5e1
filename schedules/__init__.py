"""Schedules: one file each, found here by the name the file states.

A schedule file is a module with

* `order(rank, ranks, microbatches)`: a generator of what one rank runs, in order: actions (`F(stage, mb)`),
  overlapped slots (`F(a, m) & B(b, n)`) and, where messages are posted elsewhere than beside the action that
  makes or takes them, posts (`RECV_F(stage, mb)`). A `chunks` parameter makes the stages per rank a choice;
  further keyword parameters are the schedule's options;
* optionally `NAME` (else the file's name), `check(ranks, microbatches, ...)` with parameters of `order` that
  raises ScheduleError for a size it cannot take, and `BUBBLE`, its closed formula.

The first paragraph of the module's docstring is what `simpipe list schedules` prints.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import math
import pkgutil
import re
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, redirect_stdout
from dataclasses import dataclass
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from simpipe.simulator.costs.given import Costs
from simpipe.simulator.errors import ProgramError, ScheduleError, SimpipeError
from simpipe.simulator.program import MAX_ACTIONS, MAX_RANKS, Action, Post, Program, Row


class Case(NamedTuple):
    """What a closed formula is a function of: sizes, and seconds for 1/P of the layers (one rank's share).

    P ranks, M micro-batches, v chunks per rank; F, I, W, B = full backward, FB = an overlapped F&B.
    A formula assumes equal stages and free links.
    """

    P: int
    M: int
    v: int
    F: float
    I: float  # noqa: E741 - the field's name
    W: float
    B: float
    FB: float


class Formula(NamedTuple):
    """A closed formula for the bubble of the rank that idles most, and where it is exact: "always", or "for ..."."""

    text: str
    seconds: Callable[[Case], float]
    domain: str
    holds: Callable[[Case], bool]


@dataclass(frozen=True)
class Schedule:
    """A recipe: sizes and options in, Program out."""

    name: str
    summary: str
    order: Callable[..., Row]
    check: Callable[..., None] | None
    bubble: Formula | None
    source: str

    @property
    def options(self) -> dict[str, Any]:
        """Option names and their defaults: the parameters of `order` after the sizes."""
        return {
            name: parameter.default
            for name, parameter in inspect.signature(self.order).parameters.items()
            if name not in ("rank", "ranks", "microbatches")
        }

    def to_dict(self) -> dict[str, Any]:
        """Name, summary, options with their defaults, and the closed formula's text and domain."""
        formula = self.bubble and {"text": self.bubble.text, "domain": self.bubble.domain}
        return {"name": self.name, "summary": self.summary, "options": self.options, "formula": formula}

    def program(self, ranks: int, microbatches: int, chunks: int | None = None, **options: Any) -> Program:
        """The schedule at a size. Raises ScheduleError where the size or an option does not fit."""
        size = self.size(ranks, microbatches, chunks, **options)
        is_own = self.source.endswith(".py")
        with _guarded(self.source) if is_own else nullcontext():
            rows = (self.order(rank, **size) for rank in range(ranks))
            program = Program.from_rows(map(_checked, range(ranks), rows) if is_own else rows, self.name).check()
        return self._sized(program, ranks, microbatches, chunks)

    def size(self, ranks: int, microbatches: int, chunks: int | None = None, **options: Any) -> dict[str, Any]:
        """What `order` takes besides its rank. Raises ScheduleError where the size or an option does not fit."""
        self._check_size(ranks, microbatches, 1 if chunks is None else chunks)
        known = self.options
        unknown = sorted(set(options) - set(known))
        wrong = [name for name in options if name in known and not _fits(options[name], known[name])]
        if wrong:
            takes = "true or false" if isinstance(known[wrong[0]], bool) else "a whole number"
            raise ScheduleError(f"{self.name}: option {wrong[0]} is {options[wrong[0]]!r}; it takes {takes}")
        if unknown:
            raise ScheduleError(f"{self.name} has no option {unknown[0]!r}; it has {', '.join(known) or 'none'}")
        if chunks is not None and "chunks" in known:
            options["chunks"] = chunks
        required = {name for name, default in known.items() if default is inspect.Parameter.empty}
        if missing := sorted(required - set(options)):
            raise ScheduleError(f"{self.source}: option {missing[0]} has no default; give it, as {missing[0]}=1")
        size = {"ranks": ranks, "microbatches": microbatches, **known, **options}
        if self.check:
            wanted = inspect.signature(self.check).parameters
            with _guarded(self.source) if self.source.endswith(".py") else nullcontext():
                self.check(**{name: value for name, value in size.items() if name in wanted})
        return size

    def _check_size(self, ranks: int, microbatches: int, chunks: int) -> None:
        for what, value in (("ranks", ranks), ("micro-batches", microbatches), ("chunks per rank", chunks)):
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ScheduleError(f"{self.name} takes at least 1 of {what}, a whole number, not {value!r}")
        if ranks > MAX_RANKS:
            raise ScheduleError(f"{self.name} was asked for {ranks:,} ranks; simpipe takes at most {MAX_RANKS:,}")
        asked = 3 * ranks * microbatches * chunks
        if asked > MAX_ACTIONS:
            raise ScheduleError(
                f"{ranks:,} ranks x {microbatches:,} micro-batches make up to {asked:,} actions; "
                f"simpipe takes at most {MAX_ACTIONS:,}"
            )

    def _sized(self, program: Program, ranks: int, microbatches: int, chunks: int | None) -> Program:
        if program.microbatches != microbatches:
            raise ScheduleError(
                f"{self.source}: runs {program.microbatches} micro-batches where {microbatches} were asked for"
            )
        if chunks not in (None, program.chunks):
            raise ScheduleError(f"{self.name} has {program.chunks} chunks per rank, not {chunks}")
        return program


def program(
    name_or_path: str | Path, ranks: int | None = None, microbatches: int | None = None,
    chunks: int | None = None, **options: Any,
) -> Program:  # fmt: skip
    """The program of a schedule by name, of a schedule file (`mine.py`) or of schedule text (`order.csv`).

    Text states its own size: ranks, microbatches and chunks may be left out and must fit where they are given.
    Raises ScheduleError or ProgramError.
    """
    if str(name_or_path).lower().endswith(".csv"):
        return _from_text(Path(name_or_path), ranks, microbatches, chunks, options)
    schedule = load(name_or_path)
    if ranks is None or microbatches is None:
        raise ScheduleError(f"{schedule.name} needs a number of ranks and of micro-batches")
    return schedule.program(ranks, microbatches, chunks, **options)


def load(name_or_path: str | Path) -> Schedule:
    """A schedule by its name, or from a user's file ending in .py. Raises ScheduleError."""
    if str(name_or_path).endswith(".py"):
        return _describe(_load_file(Path(name_or_path)), str(name_or_path))
    found = catalogue()
    name = str(name_or_path)
    if name not in found:
        near = difflib.get_close_matches(name, found, n=1, cutoff=0.3)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(found)}"
        raise ScheduleError(f"unknown schedule {name!r}; {hint} (a file of your own ends in .py or .csv)")
    return found[name]


@cache
def catalogue() -> dict[str, Schedule]:
    """Every schedule in this folder by name, sorted."""
    modules = [importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__)]
    schedules = [_describe(module, module.__name__.rpartition(".")[2]) for module in modules]
    return {schedule.name: schedule for schedule in sorted(schedules, key=lambda s: s.name)}


def _fits(value: Any, default: Any) -> bool:
    """Whether an option's value is of its default's kind; without a default it is a whole number."""
    return isinstance(value, bool) == isinstance(default, bool) and (value is None or isinstance(value, int))


class ClosedForm(NamedTuple):
    """A schedule's formula evaluated: seconds of bubble on the rank that idles most, and whether that is exact.

    `outside` says which of its conditions does not hold, empty where all do.
    """

    text: str
    domain: str
    seconds: float
    outside: str


def closed_form(name_or_path: str | Path, program: Program, costs: Costs) -> ClosedForm | None:
    """The schedule's closed formula for these costs; None where it has none or costs differ by stage."""
    if str(name_or_path).endswith(".csv"):
        return None
    formula, seconds = load(name_or_path).bubble, costs.numbers()
    if formula is None or seconds is None:
        return None
    case = Case(P=program.ranks, M=program.microbatches, v=program.chunks, **seconds)
    reasons = [] if costs.is_compute_only else ["it knows no communication and no optimizer step"]
    reasons += [] if math.isclose(case.B, case.I + case.W) else ["it takes B = I + W"]
    reasons += [] if formula.holds(case) else [f"it is exact {formula.domain}"]
    return ClosedForm(formula.text, formula.domain, float(formula.seconds(case)), "; ".join(reasons))


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Split `interleaved-1f1b:chunks=4,group=8` into the name or path and its options."""
    name, colon, tail = text.rpartition(":")
    if not colon or "=" not in tail:
        return text, {}
    options: dict[str, Any] = {}
    words = {"true": True, "false": False}
    for part in tail.split(","):
        key, _, value = (piece.strip().lower() for piece in part.partition("="))
        if value not in words and not re.fullmatch("-?[0-9]{1,9}", value):
            raise ScheduleError(f"schedule option {part!r} is not name=whole number or name=true, as group=8")
        if key in ("ranks", "microbatches"):
            raise ScheduleError(f"{key} is no option of a schedule; give --{key}")
        options[key] = words[value] if value in words else int(value)
    return name, options


@contextmanager
def _guarded(source: str) -> Iterator[None]:
    """Run a user's code: what it raises becomes one sentence, what it prints goes to stderr."""
    try:
        with redirect_stdout(sys.stderr):
            yield
    except SimpipeError as error:
        raise type(error)(f"{source}: {error}") from None
    except (Exception, SystemExit) as error:
        raise ScheduleError(_blame(source, error)) from error


def _checked(rank: int, row: Row) -> Row:
    """The items of a user's row, each an action, a slot or a post of whole numbers."""
    for number, item in enumerate(row):
        parts = item if isinstance(item, tuple) and not isinstance(item, Action | Post) else (item,)
        for part in parts:
            numbers = (part.stage, part.microbatch) if isinstance(part, Action | Post) else ("",)
            if not parts or not all(type(value) is int and 0 <= value < 10**9 for value in numbers):
                what = f"rank {rank}, item {number} is {repr(item)[:80]}"
                raise ScheduleError(f"{what}; yield F(stage, micro-batch), or F(...) & B(...)")
        yield item


def _describe(module: ModuleType, source: str) -> Schedule:
    order = getattr(module, "order", None)
    if not callable(order):
        raise ScheduleError(f"{source} defines no function order(rank, ranks, microbatches)")
    missing = {"rank", "ranks", "microbatches"} - set(inspect.signature(order).parameters)
    if missing:
        raise ScheduleError(f"{source}: order() lacks the parameter {', '.join(sorted(missing))}")
    name = getattr(module, "NAME", Path(source).stem)
    summary = " ".join((inspect.getdoc(module) or "").split("\n\n")[0].split())
    return Schedule(name, summary, order, getattr(module, "check", None), getattr(module, "BUBBLE", None), source)


def _load_file(path: Path) -> ModuleType:
    try:
        return _run_file(path, path.stat().st_mtime_ns)
    except OSError as error:
        raise ScheduleError(f"{path} cannot be read: {error.strerror}") from None


@lru_cache(maxsize=16)
def _run_file(path: Path, changed: int) -> ModuleType:
    """The module of a user's file, run once for each time it `changed`."""
    spec = importlib.util.spec_from_file_location(f"simpipe_user_schedule_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    keep, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # leave no __pycache__ beside a user's file
    try:
        with _guarded(str(path)):
            spec.loader.exec_module(module)
    finally:
        sys.dont_write_bytecode = keep
    return module


def _blame(source: str, error: BaseException) -> str:
    """File, line and text of an error inside a schedule file."""
    if isinstance(error, SyntaxError):
        return f"{source}, line {error.lineno or 1}: {error.msg}"
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame.lineno for frame in frames if Path(frame.filename).resolve() == Path(source).resolve()]
    return f"{source}{f', line {own[-1]}' if own else ''}: {type(error).__name__}: {error}"


def _from_text(
    path: Path, ranks: int | None, microbatches: int | None, chunks: int | None, options: dict[str, Any]
) -> Program:
    if options:
        raise ScheduleError(f"{path} is schedule text and takes no option {next(iter(options))!r}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ScheduleError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    try:
        found = Program.from_csv(text, path.stem, str(path)).check()
    except ProgramError as error:
        message = str(error)
        raise ProgramError(message if message.startswith(str(path)) else f"{path}: {message}") from None
    asked = {"ranks": ranks, "micro-batches": microbatches, "chunks": chunks}
    for what, has in zip(asked, (found.ranks, found.microbatches, found.chunks), strict=True):
        if asked[what] not in (None, has):
            raise ScheduleError(f"{path} has {has} {what}, not {asked[what]}")
    return found
