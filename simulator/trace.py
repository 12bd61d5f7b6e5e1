"""Trace: when every task of a run started and ended, and what follows from it alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from simpipe.simulator import engines, kernels
from simpipe.simulator.costs.given import Costs
from simpipe.simulator.graph import INTERVAL, OPTIMIZER, OVERLAPPED, STREAMS, WORDS, Engine, Graph, Loads
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.lower import lower
from simpipe.simulator.plan import END, StepCosts
from simpipe.simulator.program import Kind, Program

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes


def simulate(program: Program, costs: StepCosts | None = None, engine: Engine = "auto") -> Trace:
    """Run a program. Without costs F = I = W = 1 s per 1/P of the layers, F&B = F + B, and links are free.

    Raises ProgramError where the program cannot run, CostsError where the costs do not fit it.
    """
    return simulate_all(program, [costs or Costs()], engine)[0]


def simulate_all(program: Program, costs: Sequence[StepCosts], engine: Engine = "auto") -> list[Trace]:
    """Run a program once with each of the costs, over one Graph."""
    graph, loads = lower(program, *costs)
    start, end = engines.times(graph, loads, engine)
    return [Trace(graph, loads, row, start[row], end[row], costs[row]) for row in range(loads.rows)]


class Levels(NamedTuple):
    """What a rank's slots keep: (slots,) while each runs and after it ended, in slot order."""

    during: Floats
    after: Floats


@dataclass(frozen=True, eq=False)
class Trace:
    """A run: its graph, the row of loads it was run with, and (tasks,) start and end in seconds.

    costs: those that the loads are of, where they are known.
    """

    graph: Graph
    loads: Loads
    row: int
    start: Floats
    end: Floats
    costs: StepCosts | None = None

    def __repr__(self) -> str:
        return f"<Trace of {self.program!r}: {self.graph.tasks} tasks, makespan {self.makespan:g} s>"

    def plot(self, ax: Axes | None = None) -> Axes:
        """Draw the lanes of all ranks with Matplotlib into `ax`, or into a figure of their own; returns the axes."""
        from simpipe.simulator.views import picture

        return picture.draw(self, ax)

    def _repr_html_(self) -> str:
        """A notebook shows a run as a picture with its figures."""
        from simpipe.simulator.views import notebook

        return notebook.html(self)

    @property
    def program(self) -> Program:
        return self.graph.program

    @cached_property
    def makespan(self) -> float:
        """Seconds from 0 to the end of the last task."""
        return float(self.end.max(initial=0.0))

    @cached_property
    def slot_start(self) -> Floats:
        """(slots,) when each slot's first task started."""
        tasks = self.graph.slot_tasks
        return np.asarray(np.minimum.reduceat(self.start[tasks.items], tasks.start[:-1]), float)

    @cached_property
    def slot_end(self) -> Floats:
        """(slots,) when each slot's last task ended."""
        tasks = self.graph.slot_tasks
        return np.asarray(np.maximum.reduceat(self.end[tasks.items], tasks.start[:-1]), float)

    @cached_property
    def slot_exposed(self) -> Floats:
        """(slots,) seconds of each slot in which the compute stream does nothing: what computation does not hide.

        Time in which a slot waits for its host alone is not in it: see `launch_bound`.
        """
        graph = self.graph
        tasks = graph.streams.keys[graph.stream_name[graph.streams.items] == STREAMS.index("compute")]
        tasks = tasks[graph.slot[tasks] >= 0]
        busy = np.bincount(graph.slot[tasks], self.end[tasks] - self.start[tasks], len(graph.slot_rank))
        return np.asarray(self.slot_end - self.slot_start - busy - self.launch_bound, float)

    @cached_property
    def exposed_communication(self) -> Floats:
        """(ranks,) the same of all slots of a rank."""
        exposed = np.bincount(self.graph.slot_rank, self.slot_exposed, self.graph.ranks)
        return np.asarray(np.where(exposed > INTERVAL * self.makespan, exposed, 0.0), float)

    @cached_property
    def launch_bound(self) -> Floats:
        """(slots,) seconds at the end of each slot in which only its host works: the GPU waits for more kernels."""
        graph, alone = self.graph, self.graph.launches
        seconds = np.zeros(len(graph.slot_rank))
        if not len(alone):
            return seconds
        others = self.slot_start.copy()
        works = (graph.slot >= 0) & (self.end > self.start)
        works[alone] = False
        np.maximum.at(others, graph.slot[works], self.end[works])
        seconds[graph.slot[alone]] = np.maximum(self.end[alone] - others[graph.slot[alone]], 0.0)
        return seconds

    @cached_property
    def slack(self) -> Floats:
        """(tasks,) seconds by which each task could end later without a later end of the run.

        With the durations of this run: where links are contended, moving a task would change them.
        """
        start, items = self.graph.outputs
        duration = self.end - self.start
        size = self.graph.tasks
        latest = kernels.run(_latest_ends, size, self.graph.order, start, items, duration, self.makespan)
        return np.asarray(np.maximum(latest - self.end, 0.0), float)

    @cached_property
    def critical_path(self) -> list[int]:
        """The tasks of one chain that lasts as long as the run: from its end back, the last input of each."""
        start, items = self.graph.inputs
        path = [int(np.argmax(self.end))] if self.graph.tasks else []
        while len(inputs := items[start[path[-1]] : start[path[-1] + 1]]):
            path.append(int(inputs[np.argmax(self.end[inputs])]))
        return path[::-1]

    @cached_property
    def critical_seconds(self) -> dict[str, float]:
        """Seconds of the critical path by kind of task; they add up to the makespan."""
        path = np.array(self.critical_path, np.int64)
        word = self.graph.word[path]
        seconds = np.bincount(word, self.end[path] - self.start[path], len(WORDS))
        return {WORDS[w]: float(seconds[w]) for w in np.unique(word)}

    def last_inputs(self, tasks: Ints) -> Ints:
        """The last-arriving input of each of some tasks, the earlier task where several tie; -1 for none."""
        start, items = self.graph.inputs
        lengths = start[tasks + 1] - start[tasks]
        found = np.full(len(tasks), -1, np.int64)
        some = np.flatnonzero(lengths)
        if len(some) == 0:
            return found
        first = np.concatenate([[0], np.cumsum(lengths[some])[:-1]])
        inside = np.arange(lengths[some].sum()) - np.repeat(first, lengths[some])
        inputs = items[np.repeat(start[tasks[some]], lengths[some]) + inside]
        ends = self.end[inputs]
        latest = np.repeat(np.maximum.reduceat(ends, first), lengths[some])
        found[some] = np.minimum.reduceat(np.where(ends == latest, inputs, self.graph.tasks), first)
        return found

    def levels(self, kept: Floats, release: Floats) -> Levels:
        """What ranks keep over time of `kept` (actions,), allotted at the start of the F's slot.

        B frees it at the end of its slot, or I the share `release` (stages,) of it and W the rest.
        """
        program = self.program
        shares = np.stack([np.zeros_like(release), release, 1 - release, np.ones_like(release)])
        freed_by = shares[program.kind, program.stage]
        freed = kept[program.forward_of] * freed_by
        after = self._sum_up(np.where(program.kind == Kind.F, kept, 0.0) - freed)
        return Levels(after + np.add.reduceat(freed, program.slot_start[:-1]), after)

    def _sum_up(self, changes: Floats) -> Floats:
        """(slots,) what (actions,) changes come to on their rank by the end of each slot."""
        program = self.program
        total = np.cumsum(np.add.reduceat(changes, program.slot_start[:-1]))
        base = np.concatenate([[0.0], total])[program.rank_start[:-1]]
        return np.asarray(total - np.repeat(base, np.diff(program.rank_start)), float)

    @cached_property
    def activations(self) -> Levels:
        """Live activations in units of one micro-batch's through 1/P of the layers."""
        each = np.full(len(self.program.kind), self.program.ranks / self.program.stages)
        return self.levels(each, np.maximum(self._release, 0.0))

    @cached_property
    def activation_bytes(self) -> Levels:
        """Live activations in bytes, as the costs state them."""
        return self.levels(self.loads.activation[self.row], self._release)

    @cached_property
    def weight_gradient_bytes(self) -> Levels:
        """The part of the live activations, in bytes, of micro-batches whose I is done and whose W is not."""
        program, kept = self.program, self.loads.activation[self.row]
        left = kept[program.forward_of] * (1 - self._release)[program.stage]
        changes = left * ((program.kind == Kind.I).astype(float) - (program.kind == Kind.W))
        after = self._sum_up(changes)
        return Levels(after - np.add.reduceat(changes, program.slot_start[:-1]), after)

    @property
    def _release(self) -> Floats:
        return np.asarray(self.loads.release[self.row], float)

    def slots(self) -> pd.DataFrame:
        """A row per action and optimizer step, as long as its slot, in slot order: what a timeline draws.

        Columns: slot, rank, kind, stage and microbatch (-1 for none), start and end in seconds, paired (one of an
        F&B), slack in seconds (of the slot's tasks, the least), critical (one of its tasks is).
        """
        import pandas as pd

        graph, program = self.graph, self.program
        steps = np.arange(program.slots, len(graph.slot_rank))
        slot = np.concatenate([program.action_slot, steps])
        none = np.full(len(steps), -1)
        tasks = graph.slot_tasks
        slack = np.minimum.reduceat(self.slack[tasks.items], tasks.start[:-1])
        critical = np.zeros(len(graph.slot_rank), bool)
        on_path = graph.slot[self.critical_path]
        critical[on_path[on_path >= 0]] = True
        return pd.DataFrame(
            {
                "slot": slot,
                "rank": graph.slot_rank[slot],
                "kind": _words(np.concatenate([program.kind, np.full(len(steps), OPTIMIZER)]), WORDS),
                "stage": np.concatenate([program.stage, none]),
                "microbatch": np.concatenate([program.microbatch, none]),
                "start": self.slot_start[slot],
                "end": self.slot_end[slot],
                "paired": np.concatenate([np.diff(program.slot_start)[program.action_slot] == 2, none < -1]),
                "slack": slack[slot],
                "critical": critical[slot],
            }
        )

    def to_frame(self) -> pd.DataFrame:
        """A row per action (or operation of one), message and step task, in task order.

        Columns: task, rank, stream, kind (F, I, W, B, activation, gradient, sync, barrier, optimizer), operation
        (empty where a slot is one task), stage and microbatch (-1 for none), start and end in seconds, slot (-1 for
        none; the two rows of an F&B slot that is one task share it), peer (the rank that a message goes to, else -1),
        slack in seconds, critical (on the critical path). Tasks that only end a slot are left out.
        """
        import pandas as pd

        graph, program = self.graph, self.program
        ends = graph.operations.index(END) if END in graph.operations else -1
        pairs = np.flatnonzero((graph.word == OVERLAPPED) & (graph.operation != ends))
        shown = np.sort(np.concatenate([np.flatnonzero(graph.operation != ends), pairs]))
        second = np.concatenate([[False], shown[1:] == shown[:-1]])
        action = np.where(second, graph.partner[shown], graph.action[shown])
        has = action >= 0
        word = graph.word[shown]
        kind = np.where(word == OVERLAPPED, program.kind[action], word)
        message = graph.message[shown]
        stream = np.full(graph.tasks, STREAMS.index("pipeline"))
        on = np.flatnonzero(np.diff(graph.streams.start) > 0)
        stream[on] = graph.stream_name[graph.streams.items[graph.streams.start[on]]]
        critical = np.zeros(graph.tasks, bool)
        critical[self.critical_path] = True
        return pd.DataFrame(
            {
                "task": shown,
                "rank": graph.rank[shown],
                "stream": _words(stream[shown], STREAMS),
                "kind": _words(kind, WORDS),
                "operation": _words(graph.operation[shown], graph.operations),
                "stage": np.where(has, program.stage[action], -1),
                "microbatch": np.where(has, program.microbatch[action], -1),
                "start": self.start[shown],
                "end": self.end[shown],
                "slot": graph.slot[shown],
                "peer": np.where(message, program.action_rank[graph.partner[shown]], -1),
                "slack": self.slack[shown],
                "critical": critical[shown],
            }
        )


def _words(codes: Ints, words: tuple[str, ...]) -> pd.Categorical[Any]:
    """A column of few different words, kept as codes."""
    import pandas as pd

    return pd.Categorical.from_codes(codes, dtype=pd.CategoricalDtype(list(words)))


def _latest_ends(order: Ints, output_start: Ints, outputs: Ints, duration: Floats, makespan: float) -> Floats:
    """(tasks,) the latest end of each task that keeps the makespan, from the last task backwards."""
    latest = np.full(len(order), makespan)
    for k in range(len(order) - 1, -1, -1):
        task = order[k]
        for j in range(output_start[task], output_start[task + 1]):
            other = outputs[j]
            latest[task] = min(latest[task], latest[other] - duration[other])
    return latest
