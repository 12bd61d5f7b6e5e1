"""Replay: the measured computations of a production run through its schedule, with free links.

A replay takes the durations of every operation from the run and asks of the schedule only when each starts: its
span stands beside the measured one. What differs are transfers, launch gaps and whatever the order does not say.
It predicts nothing.

Who made the bubble is told in three ways, each by stage and micro-batch of a worker pipeline (a dp_rank):

* *waited*: seconds that ranks idled, between their first and last slot, for the message of that stage and
  micro-batch, the input that ended the bubble;
* *made*: the same seconds by what ran at the other end: where the sender idled too, by what it waited for in turn;
* *saved*: what would be gained if the operations of that stage, or of that micro-batch, took the median time of
  their kind, simulated on the same graph. Peers of a stage are all workers and stages of the step, so that a stage
  which is slow everywhere, an uneven cut, shows too. Peers of a micro-batch are the other micro-batches of the same
  worker and stage, so that a slow worker does not look like many slow micro-batches.

A step ends when its slowest worker pipeline ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simpipe.simulator import bubbles, engines
from simpipe.simulator.bubbles import COOL_DOWN, WARM_UP
from simpipe.simulator.costs.measured import OPTYPES, Axis, Operations
from simpipe.simulator.errors import CostsError
from simpipe.simulator.graph import Engine, Graph, Loads
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.program import KINDS, Kind, Program
from simpipe.simulator.trace import Trace, simulate_all

if TYPE_CHECKING:
    import pandas as pd

TASKS_AT_ONCE = 4_000_000
"""Tasks of one simulated batch of counterfactuals: about 130 MB of times."""

NOTABLE = 0.01
"""A worker or stage is called slow when a step would gain at least this share of its span."""


class Slow(NamedTuple):
    """A slow stage of one worker, or of all (worker None).

    saved: seconds a step gains, on average, at the median time. share: of the simulated step span. forward,
    backward: its median time as a multiple of the step's median of the kind, averaged over the steps.
    """

    worker: int | None
    stage: int
    saved: float
    share: float
    forward: float
    backward: float


@dataclass(frozen=True, eq=False)
class Replay:
    """Replayed steps of a run; all times in seconds.

    source, schedule: the table and the program. steps, workers: those replayed, as the table numbers them.
    measured, simulated: (steps, workers) spans.
    head, tail: (steps, workers, ranks) bubbles before a rank's first and after its last slot.
    waited, made: (steps, workers, stages, micro-batches) bubbles in between, by the operation whose message ended
    them, and by the one that ran meanwhile.
    without_stage, without_microbatch: (steps, workers, stages or micro-batches) span if it took the median time.
    slowdown: (steps, workers, 2, stages) median F and B of a stage over the step's median of the kind.
    stage_means: (steps,) span with every duration replaced by the mean of its stage and kind over the step's workers.
    """

    source: str
    schedule: str
    steps: Ints
    workers: Ints
    measured: Floats
    simulated: Floats
    head: Floats
    tail: Floats
    waited: Floats
    made: Floats
    without_stage: Floats
    without_microbatch: Floats
    slowdown: Floats
    stage_means: Floats

    @property
    def stages(self) -> int:
        return int(self.waited.shape[2])

    @property
    def microbatches(self) -> int:
        return int(self.waited.shape[3])

    @property
    def error(self) -> Floats:
        """(steps, workers) simulated span / measured span - 1."""
        return self.simulated / self.measured - 1

    @property
    def mean_absolute_error(self) -> float:
        """Over all steps and workers."""
        return float(np.abs(self.error).mean())

    @property
    def stage_means_error(self) -> float:
        """The mean absolute error if only the mean of each stage and kind were known, not each worker's own."""
        return float(np.abs(self.stage_means[:, None] / self.measured - 1).mean())

    @property
    def step_span(self) -> Floats:
        """(steps,) simulated seconds until the slowest worker pipeline ends."""
        return np.asarray(self.simulated.max(axis=1), float)

    @cached_property
    def saved_by_worker(self) -> Floats:
        """(steps, workers, stages) seconds a step gains if one stage of one worker took the median time."""
        return self._gained(self.without_stage)

    @cached_property
    def saved_by_stage(self) -> Floats:
        """(steps, stages) seconds a step gains if a stage took the median time on all workers."""
        return np.asarray(self.step_span[:, None] - self.without_stage.max(axis=1), float)

    @cached_property
    def saved_by_microbatch(self) -> Floats:
        """(steps, workers, micro-batches) seconds a worker's own span shrinks if one micro-batch took the median."""
        return np.asarray(self.simulated[:, :, None] - self.without_microbatch, float)

    @cached_property
    def step_saved_by_microbatch(self) -> Floats:
        """(steps, workers, micro-batches) the same for the step, which other workers may hold up."""
        return self._gained(self.without_microbatch)

    @property
    def slow_worker(self) -> Slow | None:
        """The stage of one worker that costs the steps most; None below NOTABLE."""
        saved = self.saved_by_worker.mean(axis=0)
        worker, stage = np.unravel_index(int(saved.argmax()), saved.shape)
        return self._slow(int(worker), int(stage), float(saved[worker, stage]))

    @property
    def slow_stage(self) -> Slow | None:
        """The stage that costs the steps most over all workers together; None below NOTABLE."""
        saved = self.saved_by_stage.mean(axis=0)
        stage = int(saved.argmax())
        return self._slow(None, stage, float(saved[stage]))

    def _slow(self, worker: int | None, stage: int, saved: float) -> Slow | None:
        share = saved / float(self.step_span.mean())
        if share < NOTABLE:
            return None
        kinds = self.slowdown[:, slice(None) if worker is None else [worker], :, stage].mean(axis=(0, 1))
        number = None if worker is None else int(self.workers[worker])
        return Slow(number, stage, saved, share, float(kinds[0]), float(kinds[1]))

    def _gained(self, without: Floats) -> Floats:
        """(steps, workers, n) seconds a step gains where one worker's span becomes `without` and others stay."""
        count = len(self.workers)
        others = np.where(np.eye(count, dtype=bool), 0.0, self.simulated[:, None, :]).max(axis=2)
        return np.asarray(self.step_span[:, None, None] - np.maximum(others[:, :, None], without), float)

    def to_frame(self) -> pd.DataFrame:
        """A row per step and worker: spans and bubbles in seconds, and what cost its own span most.

        `head`, `tail` and `waited` are sums over ranks; `stage_saved` and `microbatch_saved` are the seconds by
        which this worker's span would shrink.
        """
        import pandas as pd

        count = len(self.workers)
        by_stage = (self.simulated[:, :, None] - self.without_stage).reshape(-1, self.stages)
        by_microbatch = self.saved_by_microbatch.reshape(-1, self.microbatches)
        return pd.DataFrame(
            {
                "step": np.repeat(self.steps, count),
                "dp_rank": np.tile(self.workers, len(self.steps)),
                "measured": self.measured.ravel(),
                "simulated": self.simulated.ravel(),
                "error": self.error.ravel(),
                "head": self.head.sum(axis=2).ravel(),
                "tail": self.tail.sum(axis=2).ravel(),
                "waited": self.waited.sum(axis=(2, 3)).ravel(),
                "stage": by_stage.argmax(axis=1),
                "stage_saved": by_stage.max(axis=1),
                "microbatch": by_microbatch.argmax(axis=1),
                "microbatch_saved": by_microbatch.max(axis=1),
            }
        )

    @property
    def bubble_shares(self) -> dict[str, float]:
        """What share of all ranks' time in the steps they idle: between slots, before the first and after the last,
        and until the slowest worker of the step has ended."""
        ranks, workers = self.head.shape[2], len(self.workers)
        whole = float(self.step_span.sum()) * workers * ranks
        slowest = float((self.step_span[:, None] - self.simulated).sum()) * ranks
        idle = {"waits": self.waited.sum(), "warm_up": self.head.sum(), "cool_down": self.tail.sum()}
        return {name: float(seconds) / whole for name, seconds in (idle | {"slowest_worker": slowest}).items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers, lists and dictionaries; `by_worker` and `by_microbatch` are means over the steps."""
        return {
            "source": self.source,
            "schedule": self.schedule,
            "stages": self.stages,
            "microbatches": self.microbatches,
            "steps": self.steps.tolist(),
            "workers": self.workers.tolist(),
            "mean_absolute_error": self.mean_absolute_error,
            "worst_error": float(self.error.ravel()[np.abs(self.error).argmax()]),
            "stage_means_error": self.stage_means_error,
            "bubble_shares": self.bubble_shares,
            "slow_worker": self.slow_worker and self.slow_worker._asdict(),
            "slow_stage": self.slow_stage and self.slow_stage._asdict(),
            "by_worker": self._by_worker(),
            "by_stage": [
                {"stage": stage, "step_saved": saved}
                for stage, saved in enumerate(self.saved_by_stage.mean(axis=0).tolist())
            ],
            "by_microbatch": self._by_microbatch(),
            "rows": self.to_frame().to_dict("records"),
        }

    def _by_worker(self) -> list[dict[str, Any]]:
        columns = {
            "waited": self.waited.sum(axis=3),
            "made": self.made.sum(axis=3),
            "step_saved": self.saved_by_worker,
            "forward_slowdown": self.slowdown[:, :, 0],
            "backward_slowdown": self.slowdown[:, :, 1],
        }
        return self._averaged("stage", columns)

    def _by_microbatch(self) -> list[dict[str, Any]]:
        columns = {
            "waited": self.waited.sum(axis=2),
            "made": self.made.sum(axis=2),
            "saved": self.saved_by_microbatch,
            "step_saved": self.step_saved_by_microbatch,
        }
        return self._averaged("microbatch", columns)

    def _averaged(self, item: str, columns: dict[str, Floats]) -> list[dict[str, Any]]:
        """Records of (steps, workers, items) arrays, averaged over the steps."""
        means = {name: values.mean(axis=0).tolist() for name, values in columns.items()}
        count = next(iter(columns.values())).shape[2]
        return [
            {"dp_rank": worker, item: k, **{name: values[w][k] for name, values in means.items()}}
            for w, worker in enumerate(self.workers.tolist())
            for k in range(count)
        ]


def replay(
    program: Program, operations: Operations, steps: Sequence[int] | None = None, workers: Sequence[int] | None = None,
    engine: Engine = "auto",
) -> Replay:  # fmt: skip
    """Replay steps and workers (dp_ranks) of a run, all of them by default, over one Graph.

    The time it takes grows with steps x workers x (stages + micro-batches) simulated runs. Raises CostsError where
    the table does not fit the program or lacks a step or worker.
    """
    check_fits(program, operations)
    at_step = places(operations, "step", steps)
    at_worker = places(operations, "worker", workers)
    numbers, dp_ranks = operations.steps[at_step], operations.workers[at_worker]
    shape = (len(numbers), len(dp_ranks))
    traces = simulate_all(program, [operations.costs(s, w) for s in numbers for w in dp_ranks], engine)
    waits = [_waits(trace) for trace in traces]
    head, tail, waited, made = (np.stack(part).reshape(*shape, *part[0].shape) for part in zip(*waits, strict=True))
    chosen = operations.seconds[np.ix_(at_step, at_worker)]
    medians = np.median(operations.seconds[at_step], axis=(1, 3, 4))  # (steps, kinds), over all workers of the table
    without = _without_each(traces[0], chosen, medians, engine)
    split = program.stages
    return Replay(
        source=operations.source,
        schedule=program.name,
        steps=numbers,
        workers=dp_ranks,
        measured=operations.spans[np.ix_(at_step, at_worker)],
        simulated=np.array([trace.makespan for trace in traces]).reshape(shape),
        head=head,
        tail=tail,
        waited=waited,
        made=made,
        without_stage=without[:, :, :split],
        without_microbatch=without[:, :, split:],
        slowdown=_ratio(np.median(chosen, axis=4), medians[:, None, :, None]),
        stage_means=_with_stage_means(traces[0], chosen, engine),
    )


def describe(replay: Replay, most: int = 3) -> list[str]:
    """The replay in a few short lines, with the `most` makers of bubbles and slow micro-batches."""
    size = f"{plural(len(replay.steps), 'step')} x {plural(len(replay.workers), 'worker')} (dp_rank)"
    shape = f"{replay.stages} stages x {replay.microbatches} micro-batches"
    return [
        f"replay of {replay.source} as {replay.schedule}: {size}, {shape}",
        _error_line(replay),
        f"with means per stage instead of each worker's own times: {replay.stage_means_error:.2%}",
        *_slow_lines(replay),
        _bubble_line(replay),
        *_maker_lines(replay, most),
        _microbatch_line(replay, most),
    ]


def _error_line(replay: Replay) -> str:
    i, j = np.unravel_index(int(np.abs(replay.error).argmax()), replay.error.shape)
    return (
        f"simulated span against measured: mean absolute error {replay.mean_absolute_error:.2%}, "
        f"worst {replay.error[i, j]:+.2%} (step {replay.steps[i]}, dp_rank {replay.workers[j]})"
    )


def _slow_lines(replay: Replay) -> list[str]:
    worker, stage = replay.slow_worker, replay.slow_stage
    lines = []
    if worker:
        lines.append(f"slow worker: dp_rank {worker.worker}, stage {worker.stage} {_cost(worker)}")
    if stage and (not worker or stage.share - worker.share >= NOTABLE):
        lines.append(f"slow stage: {stage.stage} on all {plural(len(replay.workers), 'worker')} {_cost(stage)}")
    return lines or [f"no slow worker or stage: none costs a step {NOTABLE:.0%}"]


def _cost(slow: Slow) -> str:
    return (
        f"(F {slow.forward:.2f}x, B {slow.backward:.2f}x the median); at the median a step would be "
        f"{slow.saved:.3g} s ({slow.share:.1%}) shorter"
    )


def _bubble_line(replay: Replay) -> str:
    shares = replay.bubble_shares
    parts = ", ".join(f"{name.replace('_', ' ')} {share:.1%}" for name, share in shares.items())
    return f"bubble: {sum(shares.values()):.1%} of all ranks' time until the slowest worker has ended ({parts})"


def _maker_lines(replay: Replay, most: int) -> list[str]:
    """Whose running made ranks wait, per step."""
    made = replay.made.mean(axis=0)
    total = float(made.sum())
    if total == 0:
        return []

    def listed(values: Floats, what: str) -> str:
        found = [f"dp_rank {replay.workers[w]} {what} {k} {values[w, k]:.3g} s" for w, k in _largest(values, most)]
        return ", ".join(found)

    return [
        f"waits of {total:.3g} s a step, over all ranks, made by: {listed(made.sum(axis=2), 'stage')}",
        f"by micro-batch: {listed(made.sum(axis=1), 'micro-batch')}",
    ]


def _microbatch_line(replay: Replay, most: int) -> str:
    saved = replay.saved_by_microbatch
    worst = [
        f"step {replay.steps[i]} dp_rank {replay.workers[j]} micro-batch {m} {saved[i, j, m]:.3g} s"
        for i, j, m in _largest(saved, most)
        if saved[i, j, m] >= NOTABLE / 10 * replay.simulated[i, j]
    ]
    text = ", ".join(worst) or f"none costs its worker {NOTABLE / 10:.1%}"
    return f"slow micro-batches, beside others of their worker: {text}"


def _largest(values: Floats, most: int) -> list[tuple[int, ...]]:
    """The indices of the largest values above 0, the first of equal ones first."""
    order = np.argsort(-values, axis=None, kind="stable")[:most]
    return [tuple(np.unravel_index(at, values.shape)) for at in order.tolist() if values.flat[at] > 0]


def plural(count: int, noun: str) -> str:
    return f"{count} {noun}" + ("" if count == 1 else "s")


def places(operations: Operations, what: Axis, asked: Sequence[int] | None) -> list[int]:
    """Indices of the steps or workers asked for, each once; all of them for None."""
    if asked is None:
        return list(range(len(operations.steps if what == "step" else operations.workers)))
    if len(asked) == 0:
        raise CostsError(f"a replay takes at least one {what}")
    return [operations.at(what, number) for number in dict.fromkeys(asked)]


def check_fits(program: Program, operations: Operations) -> None:
    split = np.flatnonzero((program.kind != Kind.F) & (program.kind != Kind.B))
    if len(split):
        kind = KINDS[program.kind[split[0]]].name
        raise CostsError(
            f"{program.name} runs {kind} on its own, but {operations.source} measured the whole backward "
            f"({OPTYPES[1]}); replay a schedule of F and B, as 1f1b"
        )
    has, measured = (program.stages, program.microbatches), (operations.stages, operations.microbatches)
    if has != measured:
        raise CostsError(
            f"{program.name} has {has[0]} stages x {has[1]} micro-batches; "
            f"{operations.source} measured {measured[0]} x {measured[1]}"
        )


def _waits(trace: Trace) -> tuple[Floats, Floats, Floats, Floats]:
    """Bubble seconds at the head and the tail of each rank, and in between as `waited` and `made`."""
    program, graph = trace.program, trace.graph
    found = bubbles.find(trace)
    head, tail = (_sums(found.rank, found.causes[:, cause], program.ranks) for cause in (WARM_UP, COOL_DOWN))
    mailed = np.flatnonzero((found.ended_by >= 0) & graph.message[found.ended_by])
    sender = np.full(program.slots, -1, np.int64)  # of the message that the bubble before a slot waits for
    sender[found.slot[mailed]] = graph.rank[found.ended_by[mailed]]
    inner = mailed[found.causes[mailed, WARM_UP] == 0]
    start, end = found.start[inner], found.end[inner]
    maker = graph.action[found.ended_by[inner]]
    waited = _by_operation(program, maker, end - start)
    made = np.zeros_like(waited)
    rank = program.action_rank[maker]
    while len(rank):
        running, seconds, rank, start, end = _look_at(trace, sender, rank, start, end)
        made += _by_operation(program, program.slot_start[running], seconds)
    return head, tail, waited, made


def _look_at(
    trace: Trace, sender: Ints, rank: Ints, start: Floats, end: Floats
) -> tuple[Ints, Floats, Ints, Floats, Floats]:
    """What ranks did in some intervals (rank, start, end): (slots, seconds) they ran, and where to look instead
    while they idled, again as intervals. This ends, for ranks that waited for each other would be a deadlock.
    """
    ran, idle = [], []
    for one in np.unique(rank).tolist():
        mine = rank == one
        slots = trace.graph.rank_slots.items[slice(*trace.graph.rank_slots.start[one : one + 2])]
        begins, ends = trace.slot_start[slots], trace.slot_end[slots]
        free = np.concatenate([[0.0], ends[:-1]])
        low = np.searchsorted(ends, start[mine], side="right")
        count = np.maximum(np.searchsorted(free, end[mine], side="left") - low, 0)
        which = np.repeat(np.arange(len(count)), count)
        at = np.arange(len(which)) - np.repeat(np.cumsum(count) - count - low, count)
        since, until = start[mine][which], end[mine][which]
        ran.append((slots[at], np.minimum(until, ends[at]) - np.maximum(since, begins[at])))
        idle.append((sender[slots[at]], np.maximum(since, free[at]), np.minimum(until, begins[at])))
    running, seconds = (np.concatenate(part) for part in zip(*ran, strict=True))
    to, since, until = (np.concatenate(part) for part in zip(*idle, strict=True))
    more = np.flatnonzero((to >= 0) & (until > since))
    return running, np.maximum(seconds, 0.0), to[more], since[more], until[more]


def _by_operation(program: Program, actions: Ints, seconds: Floats) -> Floats:
    """(stages, micro-batches) sums of seconds by the stage and micro-batch of their actions."""
    size = program.stages * program.microbatches
    place = program.stage[actions] * program.microbatches + program.microbatch[actions]
    return _sums(place, seconds, size).reshape(program.stages, program.microbatches)


def _sums(place: Ints, seconds: Floats, size: int) -> Floats:
    return np.asarray(np.bincount(place, seconds, size), float)


def _without_each(trace: Trace, chosen: Floats, medians: Floats, engine: Engine) -> Floats:
    """(steps, workers, stages + micro-batches) spans if each stage, then each micro-batch, took the median time.

    chosen: (steps, workers, kinds, stages, micro-batches) seconds. medians: (steps, kinds) of the step's workers.
    """
    graph, program = trace.graph, trace.program
    fixes = program.stages + program.microbatches
    own = by_action(program, chosen)
    typical = by_action(program, np.broadcast_to(medians[:, None, :, None, None], chosen.shape))
    usual = by_action(program, np.broadcast_to(np.median(chosen, axis=4, keepdims=True), chosen.shape))
    spans = np.empty(len(own) * fixes)
    at_once = max(1, TASKS_AT_ONCE // graph.tasks)
    for begin in range(0, len(spans), at_once):
        index = np.arange(begin, min(begin + at_once, len(spans)))
        row, fix = np.divmod(index, fixes)
        seconds = np.where(program.stage == fix[:, None], typical[row], own[row])
        seconds = np.where(program.microbatch == fix[:, None] - program.stages, usual[row], seconds)
        spans[index] = spans_with(graph, trace.loads, seconds, engine)
    return spans.reshape(*chosen.shape[:2], fixes)


def _with_stage_means(trace: Trace, chosen: Floats, engine: Engine) -> Floats:
    """(steps,) spans with every duration replaced by the mean of its kind and stage over the step's workers."""
    means = chosen.mean(axis=(1, 4), keepdims=True)
    means = np.broadcast_to(means, (len(chosen), 1, *chosen.shape[2:]))
    return spans_with(trace.graph, trace.loads, by_action(trace.program, means), engine)


def by_action(program: Program, seconds: Floats) -> Floats:
    """(rows, actions) of (steps, workers, kinds, stages, micro-batches) seconds."""
    backward = (program.kind == Kind.B).astype(np.int64)
    picked = seconds[:, :, backward, program.stage, program.microbatch]
    return np.asarray(picked.reshape(-1, len(backward)), float)


def spans_with(graph: Graph, loads: Loads, seconds: Floats, engine: Engine) -> Floats:
    """(rows,) spans with other (rows, actions) durations, everything else as in the first row of the loads."""
    rows = len(seconds)
    work = np.repeat(loads.work[:1], rows, axis=0)
    work[:, : graph.program.slots] = np.add.reduceat(seconds, graph.program.slot_start[:-1], axis=1)
    first = {
        name: np.broadcast_to(part[:1], (rows, *part.shape[1:])) for name, part in vars(loads).items() if name != "work"
    }
    _, end = engines.times(graph, replace(loads, work=work, **first), engine)
    return np.asarray(end.max(axis=1), float)


def _ratio(part: Floats, whole: Floats) -> Floats:
    """part / whole; 1 where both are 0 and infinity never: where only the median is 0, how slow cannot be told."""
    return np.divide(part, whole, out=np.ones_like(part), where=whole > 0)
