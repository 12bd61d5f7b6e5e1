"""Recorded: a real run of a pipeline as a Trace, so that measured and simulated runs have the same figures and views.

From PyTorch profiles (Kineto, .json or .json.gz), a file a rank or a folder of them: named ranges become actions, `0F3`
as schedule text writes them or `PP:0F3` as PyTorch's schedules name them, the innermost where one holds another, on the
GPU where the profile has them there; `Forward 3` and `Backward 3` of PyTorch's GPipe are of the stage with the rank's
number. PyTorch's own ranges begin with the waiting for their input, which is cut off. Or from the tables of production
runs (`costs/measured.py`).

The order is the one that ran. A profile does not say when a message arrives: one to a rank that idles travels until the
slot that takes it starts, one to a busy rank takes no time. What is left of a gap is a late start: launching, or the
host. Clocks of ranks that contradict the order of cause and effect are moved by the least that mends it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from simpipe.simulator.calibration.readers import kineto
from simpipe.simulator.calibration.timings import read_bytes
from simpipe.simulator.costs import measured
from simpipe.simulator.costs.given import Costs
from simpipe.simulator.costs.measured import Operations
from simpipe.simulator.errors import ProgramError, SimpipeError
from simpipe.simulator.graph import Graph
from simpipe.simulator.kernels import Floats
from simpipe.simulator.lower import lower
from simpipe.simulator.program import KINDS, Action, Kind, Program
from simpipe.simulator.trace import Trace, simulate

ACTION = re.compile(r"(?:PP:)?(\d{1,6})([FIWB])(\d{1,6})", re.ASCII)
SINGLE = re.compile(r"(Forward|Backward) (\d{1,6})", re.ASCII)

OVERLAP = 0.05
"""Actions of a rank that overlap by less than this share of the shorter are a clock's rounding; others cannot be."""

ENDINGS = (".json", ".json.gz")


class RecordedError(SimpipeError):
    """A recorded run cannot be read, or is none of a pipeline: one sentence with file, place and value."""


class Ran(NamedTuple):
    """An action that ran on a rank, in seconds of the run's clock. waits: its time may begin with waiting for input."""

    rank: int
    action: Action
    start: float
    end: float
    waits: bool = False


@dataclass(frozen=True)
class Recording:
    """One step of one pipeline. source: the file. label: which step of it. ran: its actions."""

    source: str
    label: str
    ran: tuple[Ran, ...]

    @property
    def span(self) -> float:
        """Seconds from the first start to the last end."""
        return max(each.end for each in self.ran) - min(each.start for each in self.ran)


class Imported(NamedTuple):
    """A recorded run: which, its trace, its actions' seconds as costs, and by how many seconds ranks' clocks moved."""

    recording: Recording
    trace: Trace
    costs: Costs
    moved: Floats

    def replayed(self) -> Trace:
        """The same order and durations simulated: free links, no late starts."""
        return simulate(self.trace.program, self.costs)


def read(paths: Sequence[str], step: int | None = None, worker: int | None = None) -> Imported:
    """Import a step of a run: profiles of all ranks, a folder of them, or one table of operations.

    step: by its number in a table, or by its place in profiles from 0; by default the one with the median span. worker:
    a table's dp_rank; by default the step's slowest. Raises SimpipeError.
    """
    table = Path(paths[0]).suffix.lower() in (".parquet", ".csv")
    recording = _of_table(paths, step, worker) if table else _of_profiles(paths, step, worker)
    return imported(recording)


def of_operations(operations: Operations, step: int, worker: int, program: Program) -> Imported:
    """A step of a worker pipeline that ran in a program's order. Raises RecordedError where it ran in another."""
    found = imported(_recording(operations, operations.at("step", step), operations.at("worker", worker)))
    ran = found.trace.program
    if ran != program:
        raise RecordedError(
            f"{operations.source}, {found.recording.label}: {_first_difference(ran, program)}; recorded and simulated "
            "runs are compared in one order"
        )
    return found


def _first_difference(ran: Program, other: Program) -> str:
    """Where a program differs from another of as many actions on each rank, or how many it has."""
    if len(ran.kind) != len(other.kind) or (ran.rank_start != other.rank_start).any():
        return (
            f"it has {len(ran.kind)} actions on {ran.ranks} ranks, but {other.name} {len(other.kind)} on {other.ranks}"
        )
    columns = ((ran.stage, other.stage), (ran.kind, other.kind), (ran.microbatch, other.microbatch))
    at = int(np.argmax(np.any([one != two for one, two in columns], axis=0)))
    return f"rank {ran.action_rank[at]} ran {ran.action_text(at)} where {other.name} has {other.action_text(at)}"


def imported(recording: Recording) -> Imported:
    """The trace of a recording. Raises RecordedError where it is none of a pipeline's step."""
    rows = _rows(recording)
    try:
        program = Program.from_rows(
            [[each.action for each in row] for row in rows], f"recorded {recording.label}"
        ).check()
    except ProgramError as error:
        raise RecordedError(f"{recording.source}, {recording.label}: {error}") from None
    ran = [each for row in rows for each in row]
    start, end = np.array([each.start for each in ran]), np.array([each.end for each in ran])
    waits = np.array([each.waits for each in ran])
    moved = _clocks(recording, program, np.where(waits, end, start), end)
    start, end = start + moved[program.action_rank], end + moved[program.action_rank]
    links = program.dependencies
    np.maximum.at(start, links.target, np.where(waits[links.target], end[links.source], -np.inf))
    first = start.min()
    start, end = start - first, end - first
    costs = _costs(program, end - start)
    graph, loads = lower(program, costs)
    return Imported(recording, Trace(graph, loads, 0, *_times(graph, start, end)), costs, moved)


def per_stage(found: Imported) -> str:
    """Costs as TOML for `--costs`: medians of each stage and kind, and of the messages that an idle rank waited for."""
    trace, program = found.trace, found.trace.program
    seconds = trace.slot_end - trace.slot_start
    lines = [f"# medians of {found.recording.source}, {found.recording.label}, in seconds"]
    for kind in KINDS:
        at = [np.flatnonzero((program.kind == kind) & (program.stage == stage)) for stage in range(program.stages)]
        if any(len(actions) for actions in at):
            medians = [float(np.median(seconds[actions])) if len(actions) else 0.0 for actions in at]
            lines.append(f"{kind.name} = [{', '.join(f'{value:.6g}' for value in medians)}]")
    travel = (trace.end - trace.start)[trace.graph.message]
    waited = travel[travel > 0]
    lines.append(f"p2p = {float(np.median(waited)) if len(waited) else 0.0:.6g}")
    return "\n".join(lines) + "\n"


# Reading.


def _of_table(paths: Sequence[str], step: int | None, worker: int | None) -> Recording:
    if len(paths) > 1:
        raise RecordedError(f"{paths[0]} is a table of a whole run; give it alone, not with {paths[1]}")
    operations = measured.read(paths[0])
    slowest = operations.spans.max(axis=1)
    i = operations.at("step", step) if step is not None else _middle(slowest.tolist())
    j = operations.at("worker", worker) if worker is not None else int(operations.spans[i].argmax())
    return _recording(operations, i, j)


def _recording(operations: Operations, i: int, j: int) -> Recording:
    """Of the step and the worker at these places."""
    kinds = (Kind.F, Kind.B)
    index = np.indices(operations.seconds.shape[2:]).reshape(3, -1).T.tolist()
    begin = operations.start[i, j].min()
    ran = []
    for kind, stage, microbatch in index:
        start = float(operations.start[i, j, kind, stage, microbatch] - begin)
        seconds = float(operations.seconds[i, j, kind, stage, microbatch])
        ran.append(Ran(stage, Action(stage, kinds[kind], microbatch), start, start + seconds))
    label = f"step {operations.steps[i]} dp_rank {operations.workers[j]}"
    return Recording(operations.source, label, tuple(ran))


def _of_profiles(paths: Sequence[str], step: int | None, worker: int | None) -> Recording:
    if worker is not None:
        raise RecordedError("--worker chooses from a table of operations; give the profiles of one pipeline's ranks")
    source = paths[0] if len(paths) == 1 else f"{paths[0]} and {len(paths) - 1} more"
    steps = _steps(source, [_profile(path) for path in files_of(paths)])
    if step is not None and not 0 <= step < len(steps):
        raise RecordedError(f"{source} has no step {step}; it has {len(steps)}, counted from 0")
    chosen = step if step is not None else _middle([recording.span for recording in steps])
    return steps[chosen]


def _middle(spans: Sequence[float]) -> int:
    """The place of the median, the shorter of two."""
    return int(np.argsort(spans, kind="stable")[(len(spans) - 1) // 2])


def files_of(paths: Sequence[str]) -> list[Path]:
    """The files that are named, and those in folders by their names' numbers; RecordedError where one has none."""
    found: list[Path] = []
    for path in map(Path, paths):
        inside = [file for file in path.iterdir() if file.name.lower().endswith(ENDINGS)] if path.is_dir() else [path]
        if not inside:
            raise RecordedError(f"{path} holds no profile: no file in it ends in {' or '.join(ENDINGS)}")
        found += sorted(inside, key=lambda file: [int(n) if n.isdigit() else n for n in re.split(r"(\d+)", file.name)])
    return found


class _Profile(NamedTuple):
    """A rank's profile: the file, the rank it says it is of, and (name, start, end) of ranges in whole nanoseconds."""

    path: Path
    rank: int | None
    ranges: list[tuple[str, int, int]]


def _profile(path: Path) -> _Profile:
    data = read_bytes(path)
    if not kineto.recognises(bytes(data[:65_536])):
        raise RecordedError(f"{path} is no PyTorch profile and no table (.parquet, .csv) of operations")
    rank, ranges = kineto.ranges(path, data)
    return _Profile(path, rank, [each for each in ranges if ACTION.fullmatch(each[0]) or SINGLE.fullmatch(each[0])])


def _steps(source: str, profiles: Sequence[_Profile]) -> list[Recording]:
    """One recording for each time that all actions ran."""
    told = [profile.rank for profile in profiles]
    numbered = None not in told and len(set(told)) == len(told)
    ordered = sorted(profiles, key=lambda profile: profile.rank or 0) if numbered else list(profiles)
    ran = [_actions(rank, profile) for rank, profile in enumerate(ordered)]
    owner: dict[Action, int] = {}
    for rank, actions in enumerate(ran):
        if not actions:
            raise RecordedError(
                f"{ordered[rank].path} has no range that names an action, as 0F3; name the passes with "
                "torch.profiler.record_function"
            )
        for action in actions:
            if owner.setdefault(action, rank) != rank:
                both = f"{ordered[owner[action]].path} and {ordered[rank].path} both run {action}"
                raise RecordedError(f"{both}; give the profiles of one pipeline's ranks")
    counts = {len(times) for actions in ran for times in actions.values()}
    steps = min(counts)  # a profile may begin or end within a step: its last actions are then missing
    origin = min(times[0][0] for actions in ran for times in actions.values())
    return [
        Recording(
            source,
            f"step {step}",
            tuple(
                Ran(rank, action, (times[step][0] - origin) * 1e-9, (times[step][1] - origin) * 1e-9, times[step][2])
                for rank, actions in enumerate(ran)
                for action, times in actions.items()
            ),
        )
        for step in range(steps)
    ]


def _actions(rank: int, profile: _Profile) -> dict[Action, list[tuple[int, int, bool]]]:
    """When each action ran, time after time, and whether that may begin with waiting; of ranges within each other the
    innermost."""
    found: dict[Action, list[tuple[int, int, bool]]] = {}
    for name, start, end in sorted(profile.ranges, key=lambda each: (each[1], -each[2])):
        times = found.setdefault(_action(rank, name), [])
        if times and end <= times[-1][1]:
            times.pop()
        times.append((start, end, not name[0].isdigit()))
    return found


def _action(rank: int, name: str) -> Action:
    if match := ACTION.fullmatch(name):
        return Action(int(match[1]), Kind[match[2]], int(match[3]))
    match = SINGLE.fullmatch(name)
    assert match
    return Action(rank, Kind.F if match[1] == "Forward" else Kind.B, int(match[2]))


# From actions to a trace.


def _rows(recording: Recording) -> list[list[Ran]]:
    """The actions of each rank by start, one after another. Raises RecordedError where two run at once."""
    ranks = sorted({each.rank for each in recording.ran})
    rows = []
    for rank in ranks:
        row: list[Ran] = []
        for each in sorted((each for each in recording.ran if each.rank == rank), key=lambda each: each.start):
            if row and each.start < row[-1].end:
                before = row[-1]
                shorter = min(each.end - each.start, before.end - before.start)
                if before.end - each.start > OVERLAP * shorter:
                    raise RecordedError(
                        f"{recording.source}, {recording.label}: rank {rank} runs {before.action} and {each.action} at "
                        "once; a range is one pass after another"
                    )
                row.append(each._replace(start=before.end, end=max(each.end, before.end)))
            else:
                row.append(each)
        rows.append(row)
    return rows


def _clocks(recording: Recording, program: Program, start: Floats, end: Floats) -> Floats:
    """(ranks,) seconds to move clocks by, so that no action starts before what it needs has ended; the least.

    start: of an action that may wait for its input, when it has ended.

    Each message says that its receiver's clock may be behind its sender's by no more than the time between them: the
    longest path of what is to be made up, found by as many rounds as there are ranks.
    """
    links = program.dependencies
    crossing = np.flatnonzero(links.crossing)
    source, target = links.source[crossing], links.target[crossing]
    sender, receiver = program.action_rank[source], program.action_rank[target]
    lacking = end[source] - start[target]
    moved = np.zeros(program.ranks)
    for _ in range(program.ranks + 1):
        wanted = moved.copy()
        np.maximum.at(wanted, receiver, moved[sender] + lacking)
        if (wanted <= moved + 1e-12).all():
            return moved
        moved = wanted
    worst = int(lacking.argmax())
    needed, early = program.action_text(int(source[worst])), program.action_text(int(target[worst]))
    raise RecordedError(
        f"{recording.source}, {recording.label}: {early} starts {lacking[worst]:.3g} s before {needed} has ended, "
        "which it needs, and no shift of clocks mends that"
    )


def _costs(program: Program, seconds: Floats) -> Costs:
    """(actions,) seconds as costs by stage and micro-batch."""
    given: dict[str, Any] = {}
    for kind in KINDS:
        at = np.flatnonzero(program.kind == kind)
        if len(at):
            table = np.zeros((program.stages, program.microbatches))
            table[program.stage[at], program.microbatch[at]] = seconds[at]
            given[kind.name] = table
    return Costs(**given)


def _times(graph: Graph, start: Floats, end: Floats) -> tuple[Floats, Floats]:
    """(tasks,) start and end: slots as they ran, then messages."""
    program = graph.program
    message = np.flatnonzero(graph.message)
    maker, taker = graph.action[message], graph.partner[message]
    free = np.concatenate([[0.0], end[:-1]])  # when the rank before an action had ended what came before
    free[program.rank_start[:-1]] = 0.0
    idle = free[taker] <= end[maker]
    begins, ends = np.zeros(graph.tasks), np.zeros(graph.tasks)
    begins[: program.slots], ends[: program.slots] = start, end
    begins[message] = end[maker]
    ends[message] = np.where(idle, np.maximum(start[taker], end[maker]), end[maker])
    return begins, ends


def describe(found: Imported, replayed: Trace) -> Iterator[str]:
    """What was read, and what the same durations come to with free links and no late starts."""
    error = replayed.makespan / found.trace.makespan - 1
    yield f"recorded: {found.recording.source}, {found.recording.label}"
    yield f"replayed with its own durations and free links: {replayed.makespan:.4g} s ({error:+.2%})"
    if found.moved.any():
        moved = ", ".join(f"rank {rank} by {seconds:.3g} s" for rank, seconds in enumerate(found.moved) if seconds)
        yield f"clocks moved so that nothing starts before what it needs: {moved}"
