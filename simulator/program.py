"""Program: which action each rank runs in which order, and nothing of time.

An *action* is one pass of one stage over one micro-batch. A *slot* is what a rank runs side by side on
purpose: one action, or an F with a B. A *program* is the list of slots of every rank. Its text is PyTorch's
pipelining schedule text: a row a rank, a cell a slot, `0F3` for stage 0, forward, micro-batch 3, and
`(0F7;7B3)OVERLAP_F_B` for an overlapped slot.
"""

from __future__ import annotations

import csv
import gc
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property
from itertools import chain, islice, pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simpipe.simulator import kernels
from simpipe.simulator.errors import ProgramError
from simpipe.simulator.kernels import Ints

MAX_ACTIONS = 20_000_000
"""Largest program accepted: about 2 GB of arrays once it is simulated."""

MAX_RANKS = 65_536


SHOWN = 8
"""Ranks that a deadlock's explanation shows at most."""


class Kind(IntEnum):
    """F forward; I backward for the input; W backward for the weights; B full backward, I and W in one."""

    F = 0
    I = 1  # noqa: E741 - the field's name
    W = 2
    B = 3


KINDS = tuple(Kind)


class Action(NamedTuple):
    """One pass of `stage` over `microbatch`; prints as `0F3`. `a & b` is the slot that overlaps an F with a B."""

    stage: int
    kind: Kind
    microbatch: int

    def __str__(self) -> str:
        return f"{self.stage}{KINDS[self.kind].name}{self.microbatch}"

    def __and__(self, other: Action) -> Slot:
        return (self, other)


Slot = tuple[Action, ...]


class Post(NamedTuple):
    """Where a rank posts a message, in PyTorch's words: `SEND_F`, `RECV_F`, `SEND_B` or `RECV_B`.

    `stage` is the sending or the receiving stage. Only blocking point-to-point communication looks at it.
    """

    stage: int
    word: str
    microbatch: int


_new = tuple.__new__


def F(stage: int, microbatch: int) -> Action:
    """Forward of a stage."""
    return _new(Action, (stage, Kind.F, microbatch))


def I(stage: int, microbatch: int) -> Action:  # noqa: E743 - the field's name
    """Backward for the input of a stage."""
    return _new(Action, (stage, Kind.I, microbatch))


def W(stage: int, microbatch: int) -> Action:
    """Backward for the weights of a stage."""
    return _new(Action, (stage, Kind.W, microbatch))


def B(stage: int, microbatch: int) -> Action:
    """Full backward of a stage: I and W in one."""
    return _new(Action, (stage, Kind.B, microbatch))


def SEND_F(stage: int, microbatch: int) -> Post:
    """`stage` sends its activation on."""
    return Post(stage, "SEND_F", microbatch)


def RECV_F(stage: int, microbatch: int) -> Post:
    """`stage` receives the activation of the stage before it."""
    return Post(stage, "RECV_F", microbatch)


Row = Iterable[Action | Slot | Post]


@dataclass(frozen=True, eq=False)
class Program:
    """The order of every rank as flat arrays, rank by rank. Make one with `from_rows` or `from_csv`.

    stage, kind, microbatch: (actions,). slot_start: (slots + 1,) first action of each slot.
    rank_start: (ranks + 1,) first slot of each rank. posts: where messages are posted, as
    {(word, stage, micro-batch): (rank, slots of the rank before it)}; empty where the order does not say.
    Two programs are equal when their slots are.
    """

    stage: Ints
    kind: Ints
    microbatch: Ints
    slot_start: Ints
    rank_start: Ints
    posts: dict[tuple[str, int, int], tuple[int, int]] = field(default_factory=dict)
    name: str = ""

    @staticmethod
    def from_rows(rows: Iterable[Row], name: str = "") -> Program:
        """Build a program from one iterable of actions, overlapped slots and posts per rank."""
        flats: list[Ints] = []
        sizes: list[Ints] = []
        slots: list[int] = []
        posts: dict[tuple[str, int, int], tuple[int, int]] = {}
        total = 0
        collecting = gc.isenabled()
        gc.disable()  # a million small tuples, none of them cyclic
        try:
            for rank, row in enumerate(rows):
                actions, lengths = _flatten(rank, row, posts)
                total += len(actions)
                if total > MAX_ACTIONS:
                    raise ProgramError(f"the order has more than {MAX_ACTIONS:,} actions, the most that simpipe takes")
                flats.append(np.fromiter(chain.from_iterable(actions), np.int64, 3 * len(actions)).reshape(-1, 3))
                sizes.append(lengths)
                slots.append(len(lengths))
        finally:
            if collecting:
                gc.enable()
        table = np.concatenate(flats) if flats else np.empty((0, 3), np.int64)
        lengths = np.concatenate(sizes) if sizes else np.empty(0, np.int64)
        stage, kind, microbatch = (np.ascontiguousarray(table[:, column]) for column in range(3))
        return Program(stage, kind, microbatch, _starts(lengths), _starts(np.array(slots, np.int64)), posts, name)

    @staticmethod
    def from_csv(text: str, name: str = "", source: str = "schedule text") -> Program:
        """Read PyTorch's schedule text: a row a rank, a cell a slot, empty cells idle and ignored.

        Of PyTorch's lowered format, SEND and RECV cells become posts and UNSHARD, RESHARD and REDUCE_GRAD
        are skipped. Raises ProgramError with row and cell.
        """
        try:
            lines = csv.reader(io.StringIO(text.removeprefix("\ufeff")), strict=True)
            rows = [(lines.line_num, row) for row in lines if row]
        except csv.Error as error:
            raise ProgramError(f"{source} is not comma-separated text: {error}") from None
        if not rows:
            raise ProgramError(f"{source} is empty; write one row a rank and one cell an action, as 0F0,0B0")
        known: dict[str, tuple[Action | Slot | Post, ...]] = {}

        def parse(rank: int, line: int, row: list[str]) -> Iterator[Action | Slot | Post]:
            for column, cell in enumerate(row, 1):
                if cell not in known:
                    known[cell] = _parse_cell(cell, f"{source}, row {line} (rank {rank}), cell {column}")
                yield from known[cell]

        return Program.from_rows([parse(rank, line, row) for rank, (line, row) in enumerate(rows)], name)

    def to_csv(self, posts: bool = False) -> str:
        """Write PyTorch's compute-only schedule text; `from_csv` reads an equal program back.

        With `posts`, PyTorch's lowered cells say too where messages are posted, as far as the program does.
        """
        rows = [list(map(slot_text, row)) for row in self.order]
        if posts:
            for (word, stage, microbatch), (rank, before) in sorted(self.posts.items(), key=lambda p: -p[1][1]):
                rows[rank].insert(before, f"{stage}{word}{microbatch}")
        return "".join(",".join(row) + "\n" for row in rows)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Program):
            return NotImplemented
        names = ("rank_start", "slot_start", "stage", "kind", "microbatch")
        return all(np.array_equal(getattr(self, name), getattr(other, name)) for name in names)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<Program {self.name}: {self.ranks} ranks, {self.microbatches} micro-batches, {self.stages} stages>"

    @cached_property
    def order(self) -> tuple[tuple[Slot, ...], ...]:
        """`order[rank]`, the slots of each rank as tuples of actions."""
        columns = (self.stage.tolist(), self.kind.tolist(), self.microbatch.tolist())
        actions = [_new(Action, (stage, KINDS[kind], mb)) for stage, kind, mb in zip(*columns, strict=True)]
        cuts = self.slot_start.tolist()
        slots = [tuple(actions[a:b]) for a, b in pairwise(cuts)]
        cuts = self.rank_start.tolist()
        return tuple(tuple(slots[a:b]) for a, b in pairwise(cuts))

    @property
    def ranks(self) -> int:
        return len(self.rank_start) - 1

    @property
    def slots(self) -> int:
        return len(self.slot_start) - 1

    @cached_property
    def stages(self) -> int:
        """Distinct stages, counted from stage 0."""
        return int(self.stage.max(initial=-1)) + 1

    @cached_property
    def microbatches(self) -> int:
        return int(self.microbatch.max(initial=-1)) + 1

    @cached_property
    def slot_rank(self) -> Ints:
        """(slots,) the rank of each slot."""
        return np.repeat(np.arange(self.ranks), np.diff(self.rank_start))

    @cached_property
    def action_slot(self) -> Ints:
        """(actions,) the slot of each action."""
        return np.repeat(np.arange(self.slots), np.diff(self.slot_start))

    @cached_property
    def action_rank(self) -> Ints:
        """(actions,) the rank of each action."""
        return self.slot_rank[self.action_slot]

    @cached_property
    def forward_of(self) -> Ints:
        """(actions,) the F of each action's stage and micro-batch; of a checked program."""
        key = self.stage * self.microbatches + self.microbatch
        table = np.empty(self.stages * self.microbatches, np.int64)
        forwards = np.flatnonzero(self.kind == Kind.F)
        table[key[forwards]] = forwards
        return np.asarray(table[key], np.int64)

    @cached_property
    def placement(self) -> tuple[tuple[int, ...], ...]:
        """The stages each rank holds, ascending: what its list says it runs."""
        held = np.unique(self.action_rank * self.stages + self.stage)
        start, stages = kernels.csr(held // self.stages, held % self.stages, self.ranks)
        return tuple(tuple(part.tolist()) for part in np.split(stages, start[1:-1]))

    @property
    def chunks(self) -> int:
        """The largest number of stages that one rank holds."""
        return max(map(len, self.placement), default=0)

    @property
    def parameter_copies(self) -> float:
        """How often each stage's parameters exist, on average: 1, or 2 for a bidirectional schedule."""
        return sum(map(len, self.placement)) / max(self.stages, 1)

    @cached_property
    def dependencies(self) -> Dependencies:
        """Who feeds whom. Raises ProgramError where an action is missing, doubled or misplaced."""
        return _dependencies(self)

    @cached_property
    def unit_time(self) -> Ints:
        """(slots,) when each slot starts if every F, I and W took one unit and messages none.

        Raises ProgramError with the shortest cycle where the order deadlocks.
        """
        links = self.dependencies
        crossing = links.crossing
        sources = np.concatenate([self._inner_slots, self.action_slot[links.source[crossing]]])
        targets = np.concatenate([self._inner_slots + 1, self.action_slot[links.target[crossing]]])
        start, succ = kernels.csr(sources, targets, self.slots)
        waits = np.bincount(targets, minlength=self.slots)
        passes = np.where(self.kind == Kind.B, 2, 1)
        weight = np.add.reduceat(passes, self.slot_start[:-1]) if self.slots else passes
        order, level, done = kernels.run(kernels.topological, self.slots, start, succ, waits, weight)
        if done < self.slots:
            stuck = np.ones(self.slots, bool)
            stuck[order[:done]] = False
            raise ProgramError(_explain_deadlock(self, sources, targets, stuck))
        return np.asarray(level, np.int64)

    @property
    def _inner_slots(self) -> Ints:
        """Slots that have a successor on their rank: all but the last of each."""
        inner = np.ones(self.slots, bool)
        last = self.rank_start[1:][np.diff(self.rank_start) > 0] - 1
        inner[last] = False
        return np.flatnonzero(inner)

    def action_text(self, action: int) -> str:
        """An action by its index, as `0F3`."""
        return f"{self.stage[action]}{KINDS[self.kind[action]].name}{self.microbatch[action]}"

    def check(self) -> Program:
        """Prove that the program can run, or raise ProgramError; returns the program.

        Every stage forwards and backwards (B, or I and W) every micro-batch exactly once, on one rank; W
        follows I; a slot is one action or an F with a B that do not need each other; nothing deadlocks.
        """
        _ = self.unit_time
        return self


class Dependencies(NamedTuple):
    """Edges between actions of neighbouring passes: F to the next stage's F, the last F to its backward, and
    each backward (I or B) to the backward of the stage before.

    source, target: (edges,) action indices. forward: (edges,) whether an activation (not a gradient) travels.
    crossing: (edges,) whether it leaves the rank, so that a message carries it.
    """

    source: Ints
    target: Ints
    forward: NDArray[np.bool_]
    crossing: NDArray[np.bool_]


def slot_text(slot: Slot) -> str:
    """`0F3`, or `(0F7;7B3)OVERLAP_F_B`."""
    return str(slot[0]) if len(slot) == 1 else f"({';'.join(map(str, slot))})OVERLAP_F_B"


def _flatten(rank: int, row: Row, posts: dict[tuple[str, int, int], tuple[int, int]]) -> tuple[Sequence[Action], Ints]:
    """The actions of a row and the length of each slot; notes the posts."""
    items = list(islice(row, MAX_ACTIONS + 1))
    if len(items) > MAX_ACTIONS:
        raise ProgramError(f"rank {rank} runs more than {MAX_ACTIONS:,} slots; does its schedule ever end?")
    if all(type(item) is Action for item in items):
        return items, np.ones(len(items), np.int64)  # type: ignore[return-value]
    actions: list[Action] = []
    lengths: list[int] = []
    for item in items:
        if isinstance(item, Action):
            actions.append(item)
            lengths.append(1)
        elif isinstance(item, Post):
            posts[item.word, item.stage, item.microbatch] = (rank, len(lengths))
        else:
            actions.extend(item)
            lengths.append(len(item))
    return actions, np.array(lengths, np.int64)


def _starts(lengths: Ints) -> Ints:
    starts = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=starts[1:])
    return starts


_ACTION = re.compile(r"(\d{1,9})([FIWB])(\d{1,9})", re.ASCII)
_OVERLAP = re.compile(r"\(([^;()]*);([^;()]*)\)OVERLAP_F_B", re.ASCII)
_POST = re.compile(r"(\d{1,9})((?:SEND|RECV)_[FB])(\d{1,9})", re.ASCII)
_SKIPPED = re.compile(r"\d+(UNSHARD|RESHARD|REDUCE_GRAD)\d*", re.ASCII)


def _parse_cell(cell: str, place: str) -> tuple[Action | Slot | Post, ...]:
    text = cell.strip()
    if not text or _SKIPPED.fullmatch(text):
        return ()
    if match := _ACTION.fullmatch(text):
        return (_action(match),)
    if match := _POST.fullmatch(text):
        return (Post(int(match[1]), match[2], int(match[3])),)
    if match := _OVERLAP.fullmatch(text):
        parts = [_ACTION.fullmatch(part.strip()) for part in match.groups()]
        if parts[0] and parts[1]:
            return ((_action(parts[0]), _action(parts[1])),)
    raise ProgramError(f"{place}: {text[:40]!r} is no action; write stage, F, I, W or B, micro-batch, as 0F3")


def _action(match: re.Match[str]) -> Action:
    return Action(int(match[1]), Kind[match[2]], int(match[3]))


def _dependencies(program: Program) -> Dependencies:
    stages, microbatches = program.stages, program.microbatches
    _check_slots(program)
    forward = _position(program, Kind.F)
    weight = _position(program, Kind.W)
    full = _position(program, Kind.B)
    inputs = _position(program, Kind.I)
    backward = _merge_backward(program, full, inputs, weight)
    for needed, needs in ((forward, backward), (inputs, weight)):
        _check_follows(program, needed[needs >= 0], needs[needs >= 0])
    sources = [forward[:-1], forward[-1], backward[1:]]
    targets = [forward[1:], backward[-1], backward[:-1]]
    source = np.concatenate([part.ravel() for part in sources])
    target = np.concatenate([part.ravel() for part in targets])
    is_forward = np.arange(len(source)) < stages * microbatches
    crossing = program.action_rank[source] != program.action_rank[target]
    _check_follows(program, source[~crossing], target[~crossing])
    return Dependencies(source, target, is_forward, crossing)


def _check_slots(program: Program) -> None:
    """Every slot is one action or an F with a B."""
    negative = np.flatnonzero((program.stage < 0) | (program.microbatch < 0))
    if len(negative):
        where = _place(program, int(negative[0]))
        raise ProgramError(f"{where} has a negative stage or micro-batch; both count from 0")
    if program.ranks == 0 or len(program.stage) == 0:
        raise ProgramError("the order has no action; write one row a rank and one cell an action, as 0F0,0B0")
    lengths = np.diff(program.slot_start)
    first = program.slot_start[:-1][lengths == 2]
    kinds = np.sort(np.stack([program.kind[first], program.kind[first + 1]]), axis=0)
    good = np.ones(len(lengths), bool)
    good[(lengths < 1) | (lengths > 2)] = False
    good[np.flatnonzero(lengths == 2)] = (kinds[0] == Kind.F) & (kinds[1] == Kind.B)
    if not good.all():
        slot = int(np.argmin(good))
        where = _slot_place(program, slot)
        raise ProgramError(f"{where} is {_slot_of(program, slot)}; a slot is one action, or an F with a B")
    empty = np.flatnonzero(np.diff(program.rank_start) == 0)
    if len(empty):
        raise ProgramError(f"rank {empty[0]} has no action; every one of the {program.ranks} ranks needs at least one")


def _position(program: Program, kind: Kind) -> Ints:
    """(stages, micro-batches) the index of each action of a kind, -1 where there is none; F must be complete."""
    stages, microbatches = program.stages, program.microbatches
    index = np.flatnonzero(program.kind == kind)
    key = program.stage[index] * microbatches + program.microbatch[index]
    ordered = np.argsort(key, kind="stable")
    key, index = key[ordered], index[ordered]
    doubled = np.flatnonzero(key[1:] == key[:-1])
    if len(doubled):
        one, other = int(index[doubled[0]]), int(index[doubled[0] + 1])
        places = f"{_place(program, one)} and {_place(program, other)}"
        raise ProgramError(f"{program.action_text(one)} happens twice: {places}; each action happens exactly once")
    if kind == Kind.F and len(key) < stages * microbatches:
        gap = np.flatnonzero(key != np.arange(len(key)))
        stage, microbatch = divmod(int(gap[0]) if len(gap) else len(key), microbatches)
        raise ProgramError(
            f"{stage}F{microbatch} is missing: {stages} stages x {microbatches} micro-batches need "
            f"{stages * microbatches} forwards, the order has {len(key)}"
        )
    table = np.full(stages * microbatches, -1, np.int64)
    table[key] = index
    return table.reshape(stages, microbatches)


def _merge_backward(program: Program, full: Ints, inputs: Ints, weight: Ints) -> Ints:
    """(stages, micro-batches) the action that yields the input gradient: B, or I where a W goes with it."""
    wrong = (
        ((full >= 0) & (inputs >= 0), "both B and I: a micro-batch is backwarded once, by B or by I and W"),
        ((full >= 0) & (weight >= 0), "both B and W: a micro-batch is backwarded once, by B or by I and W"),
        ((inputs >= 0) & (weight < 0), "I without W: a split backward needs both"),
        ((inputs < 0) & (weight >= 0), "W without I: a split backward needs both"),
        ((inputs < 0) & (full < 0), "no backward: it needs B, or I and W"),
    )
    for mask, what in wrong:
        if mask.any():
            stage, microbatch = np.unravel_index(int(np.argmax(mask)), mask.shape)
            raise ProgramError(f"stage {stage}, micro-batch {microbatch} has {what}")
    return np.where(full >= 0, full, inputs)


def _check_follows(program: Program, needed: Ints, needs: Ints) -> None:
    """Each of `needs` is on the rank of `needed` and in a later slot."""
    bad = program.action_rank[needed] != program.action_rank[needs]
    if bad.any():
        one, other = int(needed[np.argmax(bad)]), int(needs[np.argmax(bad)])
        first, second = (f"{program.action_text(a)} is on rank {program.action_rank[a]}" for a in (one, other))
        raise ProgramError(f"{first} and {second}; the passes of a stage over a micro-batch belong on one rank")
    bad = program.action_slot[needed] >= program.action_slot[needs]
    if bad.any():
        one, other = int(needed[np.argmax(bad)]), int(needs[np.argmax(bad)])
        first, second = (f"{program.action_text(a)} ({_place(program, a)})" for a in (one, other))
        grid = _grid(program, {int(program.action_slot[one]), int(program.action_slot[other])})
        raise ProgramError(f"deadlock: {second} needs {first}, which the same rank runs no earlier\n{grid}")


def _explain_deadlock(program: Program, source: Ints, target: Ints, stuck: NDArray[np.bool_]) -> str:
    """The shortest cycle of ranks that wait for each other, and the grid around where they stand.

    A rank stands at its first slot that never starts. It waits for a slot of another rank, at or behind the one where
    that rank stands.
    """
    at = np.full(program.ranks, -1, np.int64)
    never = np.flatnonzero(stuck)[::-1]
    at[program.slot_rank[never]] = never
    waits = np.flatnonzero(stuck[source] & (target == at[program.slot_rank[target]]))
    waits = waits[program.slot_rank[source[waits]] != program.slot_rank[target[waits]]]
    waiting, awaited = program.slot_rank[target[waits]], program.slot_rank[source[waits]]
    start, order = kernels.csr(waiting, np.arange(len(waits)), program.ranks)
    cycle = kernels.shortest_cycle(start, awaited[order], at >= 0)
    steps = []
    for rank, other in zip(cycle, cycle[1:] + cycle[:1], strict=True):
        edge = next(e for e in order[start[rank] : start[rank + 1]] if awaited[e] == other)
        slot = int(source[waits[edge]])
        where = "where it stands" if slot == at[other] else f"which comes after {_slot_of(program, int(at[other]))}"
        steps.append(
            f"rank {rank} stands at {_slot_of(program, int(at[rank]))} and waits for {_slot_of(program, slot)} of rank "
            f"{other}, {where}"
        )
    marked = {int(at[rank]) for rank in cycle} | {
        int(source[waits[e]]) for e in range(len(waits)) if waiting[e] in cycle[:SHOWN]
    }
    left_out = [f"and {len(steps) - SHOWN} ranks more"] if len(steps) > SHOWN else []
    return "deadlock: " + "; ".join(steps[:SHOWN] + left_out) + "\n" + _grid(program, marked)


def _grid(program: Program, marked: set[int], around: int = 3) -> str:
    """The rows of the marked slots, a few slots to each side, the marked ones as >0F3<."""
    lines = []
    for rank in sorted({int(program.slot_rank[slot]) for slot in marked})[:SHOWN]:
        first, end = int(program.rank_start[rank]), int(program.rank_start[rank + 1])
        shown = {n for slot in marked if first <= slot < end for n in range(slot - around, slot + around + 1)}
        cells: list[str] = []
        for slot in sorted(n for n in shown if first <= n < end):
            if cells and slot - 1 not in shown:
                cells.append("...")
            text = _slot_of(program, slot)
            cells.append(f">{text}<" if slot in marked else text)
        lines.append(f"  rank {rank}, from slot {max(first, min(shown)) - first}: " + " ".join(cells))
    return "\n".join(lines)


def _slot_of(program: Program, slot: int) -> str:
    actions = range(int(program.slot_start[slot]), int(program.slot_start[slot + 1]))
    return "&".join(program.action_text(action) for action in actions)


def _slot_place(program: Program, slot: int) -> str:
    rank = int(program.slot_rank[slot])
    return f"rank {rank}, slot {slot - program.rank_start[rank]}"


def _place(program: Program, action: int) -> str:
    return _slot_place(program, int(program.action_slot[action]))
