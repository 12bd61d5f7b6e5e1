"""Costs given by hand: on the command line, in Python, or in a TOML file.

A number stands for 1/P of the layers, P being the number of ranks: a stage costs its share of it, all of it
where there are as many stages as ranks, half of it where there are twice as many (a V schedule, two chunks).
A list gives one number per stage, and a list of lists one per stage and micro-batch; these are not scaled.
"""

from __future__ import annotations

import difflib
import math
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_args

import numpy as np

from simpipe.simulator.errors import CostsError
from simpipe.simulator.graph import OPTIMIZER, Graph
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.plan import WHOLE, Exchange, Numbers, Plan
from simpipe.simulator.program import Kind, Program

Cost = float | Sequence[float] | Sequence[Sequence[float]] | Floats


@dataclass(frozen=True, eq=False)
class Costs:
    """Costs of a step. Seconds and bytes; see the module for number, list and list of lists.

    F, I, W: forward, backward for the input, backward for the weights; 1 s where neither they nor B are given. B: full
    backward, I + W if not given. A kind that a program runs must be given, once one is.
    FB: an overlapped F&B slot, by the stage of its forward; F + B of its two stages if not given.
    p2p: latency of a message between ranks, not scaled. message_bytes: its size, a number (not scaled) or one for the
    boundary behind each stage, for activations and gradients alike. bandwidth: bytes/s that a rank can send, and as
    many that it can receive, shared fairly by what is under way at once. exchange: `async` messages occupy nobody;
    `blocking` ones hold both ends from the moment that both have come to them, as one batch before the next slot.
    activation_bytes: kept from F to the backward; released_by_input: the share of it that I frees, W the rest.
    parameter_bytes: of a stage. optimizer: seconds per rank after its last slot. barrier: whether all ranks
    wait for each other before it. Raises CostsError for anything negative, infinite or not a number.
    """

    F: Cost | None = None
    I: Cost | None = None  # noqa: E741 - the field's name
    W: Cost | None = None
    B: Cost | None = None
    FB: Cost | None = None
    p2p: float = 0.0
    message_bytes: float | Sequence[float] = 0.0
    bandwidth: float = math.inf
    exchange: Exchange = "async"
    activation_bytes: Cost = 0.0
    released_by_input: float = 0.0
    parameter_bytes: float | Sequence[float] = 0.0
    optimizer: float = 0.0
    barrier: bool = False

    def __post_init__(self) -> None:
        if all(getattr(self, name) is None for name in ("F", "I", "W", "B")):
            for name in ("F", "I", "W"):
                object.__setattr__(self, name, 1.0)
        for name, depth in _DEPTH.items():
            value = getattr(self, name)
            if value is not None or name not in ("F", "I", "W", "B", "FB"):
                _check_number(name, value, depth, infinite=name == "bandwidth")
        if self.bandwidth < LEAST_BANDWIDTH:
            least = f"it is at least {LEAST_BANDWIDTH:g} bytes/s (leave it out for free links)"
            raise CostsError(f"cost bandwidth is {self.bandwidth}; {least}")
        if self.released_by_input > 1:
            raise CostsError(f"cost released_by_input is {self.released_by_input}; a share is at most 1")
        if not isinstance(self.exchange, str) or self.exchange not in get_args(Exchange):
            raise CostsError(f"cost exchange is {self.exchange!r}; it is 'async' or 'blocking'")
        if not isinstance(self.barrier, bool):
            raise CostsError(f"cost barrier is {self.barrier!r}; it is true or false")

    @staticmethod
    def parse(text: str) -> Costs:
        """Read `F=1,I=1,W=1,FB=3,p2p=0.5`. Raises CostsError."""
        given: dict[str, Any] = {}
        for part in filter(None, (part.strip() for part in text.split(","))):
            name, equals, value = (piece.strip() for piece in part.partition("="))
            if not equals:
                raise CostsError(f"cost {part!r} is not of the form name=number, as F=1")
            if name in given:
                raise CostsError(f"cost {name} is given twice: {given[name]} and {value}")
            given[name] = _parse_value(name, value)
        return _costs_of(given, "--costs")

    @staticmethod
    def read(path: str | Path) -> Costs:
        """Read a TOML file whose keys are this class's fields. Raises CostsError with file and key."""
        try:
            given = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, ValueError, RecursionError) as error:
            raise CostsError(f"{path} is no TOML file: {error}") from None
        except OSError as error:
            raise CostsError(f"{path} cannot be read: {error.strerror}") from None
        return _costs_of(given, str(path))

    @property
    def is_compute_only(self) -> bool:
        """Whether nothing but computation takes time: free links and no step at the end."""
        free = not np.any(self.message_bytes) or math.isinf(self.bandwidth)
        return free and self.p2p == 0 and self.exchange == "async" and self.optimizer == 0 and not self.barrier

    def numbers(self) -> dict[str, float] | None:
        """F, I, W, B and FB per 1/P of the layers where they are plain numbers, else None (no closed formula)."""
        given = {name: getattr(self, name) for name in ("F", "I", "W", "B", "FB")}
        if any(cost is None for name, cost in given.items() if name in ("F", "I", "W")):
            return None
        if any(isinstance(cost, Sequence | np.ndarray) for cost in given.values()):
            return None
        found = {name: float(cost) for name, cost in given.items() if cost is not None}
        found.setdefault("B", found["I"] + found["W"])
        found.setdefault("FB", found["F"] + found["B"])
        return found

    def per_action(self, program: Program) -> Floats:
        """(actions,) seconds of each action run alone."""
        seconds = np.empty(len(program.kind))
        for kind in Kind:
            at = np.flatnonzero(program.kind == kind)
            if len(at) == 0:
                continue
            split = kind == Kind.B and self.B is None
            for number, name in enumerate(("I", "W") if split else (kind.name,)):
                cost = getattr(self, name)
                if cost is None:
                    which = program.action_text(int(at[0]))
                    raise CostsError(f"cost {name} is missing: the program runs {which}; give it, as {name}=1")
                seconds[at] = _at(name, cost, program, at) + (seconds[at] if number else 0.0)
        return seconds

    def per_slot(self, program: Program) -> Floats:
        """(slots,) seconds of each slot: its action's, or those of an overlapped pair."""
        alone = self.per_action(program)
        first = program.slot_start[:-1]
        seconds: Floats = np.add.reduceat(alone, first)
        pairs = np.flatnonzero(np.diff(program.slot_start) == 2)
        if self.FB is not None and len(pairs):
            forward = first[pairs] + (program.kind[first[pairs]] != Kind.F)
            seconds[pairs] = _at("FB", self.FB, program, forward)
        return seconds

    def tables(self, program: Program) -> dict[str, Floats]:
        """The seconds of each kind that is given, F, I, W, B and FB: (stages, 1), or (stages, micro-batches)."""
        given = {name: getattr(self, name) for name in ("F", "I", "W", "B", "FB")}
        return {name: _table(name, cost, program) for name, cost in given.items() if cost is not None}

    def activation(self, program: Program) -> Floats:
        """(actions,) bytes that each F keeps; 0 for other actions."""
        kept = np.zeros(len(program.kind))
        at = np.flatnonzero(program.kind == Kind.F)
        kept[at] = _at("activation_bytes", self.activation_bytes, program, at)
        return kept

    def parameters(self, program: Program) -> Floats:
        """(stages,) bytes of parameters."""
        return _per_stage("parameter_bytes", self.parameter_bytes, program, program.ranks / program.stages)

    def release(self, program: Program) -> Floats:
        """(stages,) the share of an activation that I frees."""
        return np.full(program.stages, float(self.released_by_input))

    def plan(self, program: Program) -> Plan:
        """Every slot is one task; an optimizer step where it takes time or has a barrier."""
        slots = np.zeros(program.slots, np.int64)
        step = self.barrier or self.optimizer > 0
        return Plan((WHOLE,), slots, exchange=self.exchange, barrier=self.barrier, optimizer=step)

    def fill(self, graph: Graph, numbers: Numbers) -> None:
        """Slots take their seconds, messages their latency and bytes."""
        program = graph.program
        numbers.work[: program.slots] = self.per_slot(program)
        numbers.work[graph.word == OPTIMIZER] = self.optimizer
        message = np.flatnonzero(graph.message)
        boundary = _per_stage("message_bytes", self.message_bytes, program, 1.0)
        before = np.minimum(program.stage[graph.action[message]], program.stage[graph.partner[message]])
        numbers.latency[message] = self.p2p
        numbers.work[message] = boundary[before]
        numbers.capacity[:] = self.bandwidth


MOST = 1e15
"""Largest cost, in seconds or bytes: far beyond any step, and far from where sums lose or overflow."""

LEAST_BANDWIDTH = 1e-3

_DEPTH = {
    "F": 2, "I": 2, "W": 2, "B": 2, "FB": 2, "activation_bytes": 2, "message_bytes": 1, "parameter_bytes": 1,
    "p2p": 0, "bandwidth": 0, "released_by_input": 0, "optimizer": 0,
}  # fmt: skip
"""How deep each number may be nested: 0 a number, 1 per stage, 2 per stage and micro-batch."""


def _check_number(name: str, value: Any, depth: int, infinite: bool, place: str = "") -> None:
    """Every number in `value` is finite (or infinite where allowed), not negative, and nested at most `depth`."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        if depth == 0:
            raise CostsError(f"cost {name}{place} is a list; it takes a number")
        if len(value) == 0:
            raise CostsError(f"cost {name}{place} is an empty list; it takes one number per stage")
        if len({isinstance(part, Sequence) and not isinstance(part, str) for part in value}) > 1:
            raise CostsError(f"cost {name}{place} mixes numbers and lists")
        lengths = [len(part) for part in value if isinstance(part, Sequence) and not isinstance(part, str)]
        if len(set(lengths)) > 1:
            raise CostsError(
                f"cost {name} has rows of {lengths[0]} and {min(set(lengths) - {lengths[0]})} micro-batches"
            )
        for index, part in enumerate(value):
            _check_number(name, part, depth - 1, infinite, f"{place}[{index}]")
    elif isinstance(value, bool) or not isinstance(value, int | float | np.integer | np.floating):
        raise CostsError(f"cost {name}{place} is {value!r}; it takes a number")
    elif not 0 <= value <= MOST and not (infinite and value == math.inf):
        raise CostsError(f"cost {name}{place} is {_short(value)}; it takes a finite number, 0 or more, up to {MOST:g}")


def _short(value: Any) -> str:
    return str(value) if not isinstance(value, int) or value < 10**20 else "a whole number of more than 20 digits"


def _parse_value(name: str, text: str) -> Any:
    if name == "exchange":
        return text
    if name == "barrier":
        return {"true": True, "false": False}.get(text, text)
    try:
        return float(text)
    except ValueError:
        raise CostsError(f"cost {name} is {text!r}; it takes a number, as {name}=1.5") from None


def _costs_of(given: dict[str, Any], source: str) -> Costs:
    known = [field.name for field in fields(Costs)]
    for name in given:
        if name not in known:
            lowered = {field.lower(): field for field in known}
            near = difflib.get_close_matches(name.lower(), lowered, n=1)
            hint = f"did you mean {lowered[near[0]]}?" if near else f"costs are {', '.join(known)}"
            raise CostsError(f"{source}: unknown cost {name!r}; {hint}")
    try:
        return Costs(**given)
    except CostsError as error:
        raise CostsError(f"{source}: {error}") from None


def _at(name: str, cost: Cost, program: Program, actions: Ints) -> Floats:
    """The cost of each of some actions: a number's share, or looked up by stage and micro-batch."""
    table = _table(name, cost, program)
    column = program.microbatch[actions] if table.shape[1] > 1 else 0
    return np.asarray(table[program.stage[actions], column], float)


def _table(name: str, cost: Cost, program: Program) -> Floats:
    """A cost by stage and, where it is given so, micro-batch: (stages, 1 or micro-batches)."""
    table = np.asarray(cost, float)
    if table.ndim < 2:
        return _per_stage(name, table, program, program.ranks / program.stages)[:, None]
    if table.shape != (program.stages, program.microbatches):
        raise CostsError(
            f"cost {name} is for {table.shape[0]} stages x {table.shape[1]} micro-batches; "
            f"the program has {program.stages} x {program.microbatches}"
        )
    return table


def _per_stage(name: str, cost: Any, program: Program, share: float) -> Floats:
    """(stages,) a number times the share of a stage, or the list as given."""
    table = np.asarray(cost, float)
    if table.ndim == 0:
        return np.full(program.stages, float(table) * share)
    if len(table) != program.stages:
        raise CostsError(f"cost {name} is for {len(table)} stages; the program has {program.stages}")
    return table
