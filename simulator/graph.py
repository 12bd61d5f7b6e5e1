"""Graph: what a run consists of, as flat arrays. Loads: its numbers.

A *task* occupies a set of streams, on any ranks; it starts when it heads all of them and the tasks it depends
on have ended. A stream runs its tasks in the order of their index. A task first waits out its latency, then
does its work: seconds of computation, or bytes over a route of links that it shares fairly with others. The
two engines know nothing beyond this module.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simpipe.simulator import kernels
from simpipe.simulator.errors import ProgramError
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.program import SHOWN, Program

KERNEL_STREAMS = ("send", "forward", "receive")
"""Streams inside an exchange kernel: what groups of its warps do (costs/exchange_kernels.py)."""

STREAMS = (
    *("compute", "weight-gradient", "expert-parallel", "tensor-parallel", "pipeline", "data-parallel", "host"),
    "offload",
    *KERNEL_STREAMS,
)
"""Streams a rank can have. Messages between ranks occupy none; views show them on `pipeline`."""

WORDS = ("F", "I", "W", "B", "F&B", "activation", "gradient", "sync", "barrier", "optimizer")
"""What a task is: of an action, of a whole overlapped pair, a message, a sync, or a part of the step's end."""

OVERLAPPED, ACTIVATION, GRADIENT, SYNC, BARRIER, OPTIMIZER = 4, 5, 6, 7, 8, 9

SLOWEST = 0.01
"""A computation beside communication keeps at least this share of its speed, however many SMs are held."""

INTERVAL = 1e-9
"""Idle time shorter than this share of the makespan is rounding, not a bubble."""


class Ragged(NamedTuple):
    """Lists of integers of different lengths: list i is `items[start[i]:start[i + 1]]`."""

    start: Ints
    items: Ints

    @staticmethod
    def of(lists: Sequence[Sequence[int]]) -> Ragged:
        lengths = np.array([len(part) for part in lists], np.int64)
        flat = [item for part in lists for item in part]
        return Ragged(np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64), np.array(flat, np.int64))

    @staticmethod
    def grouped(keys: Ints, items: Ints, size: int) -> Ragged:
        """List k holds the items whose key is k, in the given order."""
        return Ragged(*kernels.csr(keys, items, size))

    @property
    def keys(self) -> Ints:
        """The list that each item belongs to."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))


@dataclass(frozen=True, eq=False)
class Graph:
    """The structure of a run. `lower` builds it from a Program.

    rank: (tasks,) where a task is shown; a message at its sender. streams: those each task occupies.
    needs: the tasks each one depends on, stream order aside. route: the links its bytes cross.
    stream_rank, stream_name: (streams,) the rank, and the index in STREAMS. link_names: the links that every rank has,
    in the order of their numbers.
    word: (tasks,) index in WORDS. action: (tasks,) the program's action it runs or whose result it carries,
    -1 for none. partner: (tasks,) the B of an overlapped slot, or the action that takes a message; -1 for none.
    slot: (tasks,) the slot it belongs to, ascending while not -1 (none). slot_rank: (slots,).
    """

    program: Program
    rank: Ints
    streams: Ragged
    needs: Ragged
    route: Ragged
    stream_rank: Ints
    stream_name: Ints
    link_names: tuple[str, ...]
    word: Ints
    action: Ints
    partner: Ints
    operation: Ints
    operations: tuple[str, ...]
    slot: Ints
    slot_rank: Ints

    @property
    def tasks(self) -> int:
        return len(self.rank)

    @property
    def ranks(self) -> int:
        return self.program.ranks

    @property
    def links(self) -> int:
        """How many links there are; those of a rank follow each other, in the order of their names."""
        return len(self.link_names) * self.ranks

    @cached_property
    def launches(self) -> Ints:
        """The tasks that only a host works on: launching the kernels of a slot."""
        entry = np.flatnonzero(self.stream_name[self.streams.items] == STREAMS.index("host"))
        tasks = self.streams.keys[entry]
        return np.asarray(tasks[np.diff(self.streams.start)[tasks] == 1], np.int64)

    @cached_property
    def inputs(self) -> Ragged:
        """For each task all it starts after, ascending: what it depends on and its predecessor on each stream."""
        by_stream = Ragged.grouped(self.streams.items, self.streams.keys, len(self.stream_rank))
        follows = np.flatnonzero(np.diff(by_stream.keys) == 0) + 1
        before, after = by_stream.items[follows - 1], by_stream.items[follows]
        source = np.concatenate([self.needs.items, before])
        target = np.concatenate([self.needs.keys, after])
        start = np.zeros(self.tasks + 1, np.int64)
        np.cumsum(np.bincount(target, minlength=self.tasks), out=start[1:])
        return Ragged(start, np.sort(target * self.tasks + source) % self.tasks)

    @cached_property
    def outputs(self) -> Ragged:
        """For each task those that have it among their inputs, ascending."""
        return Ragged.grouped(self.inputs.items, self.inputs.keys, self.tasks)

    @cached_property
    def waits(self) -> Ints:
        """(tasks,) how many inputs each task has."""
        return np.diff(self.inputs.start)

    @cached_property
    def order(self) -> Ints:
        """(tasks,) every task after its inputs. Raises ProgramError where tasks wait for each other."""
        none = np.zeros(self.tasks, np.int64)
        start, items = self.outputs
        order, _, done = kernels.run(kernels.topological, self.tasks, start, items, self.waits, none)
        if done < self.tasks:
            stuck = np.ones(self.tasks, bool)
            stuck[order[:done]] = False
            cycle = kernels.shortest_cycle(start, items, stuck)
            steps = [self.describe(task) for task in [*cycle[::-1], cycle[-1]]]
            shown = steps if len(steps) <= SHOWN else [*steps[:SHOWN], f"{len(steps) - SHOWN} more"]
            raise ProgramError("deadlock: " + " waits for ".join(shown))
        return np.asarray(order, np.int64)

    @cached_property
    def message(self) -> NDArray[np.bool_]:
        """(tasks,) whether a task carries an activation or a gradient between ranks."""
        return np.isin(self.word, (ACTIVATION, GRADIENT))

    @cached_property
    def slot_tasks(self) -> Ragged:
        """The tasks of each slot."""
        inside = np.flatnonzero(self.slot >= 0)
        return Ragged.grouped(self.slot[inside], inside, len(self.slot_rank))

    @cached_property
    def rank_slots(self) -> Ragged:
        """The slots of each rank in the order it runs them."""
        return Ragged.grouped(self.slot_rank, np.arange(len(self.slot_rank)), self.ranks)

    def describe(self, task: int) -> str:
        """A task in words: `0F3 on rank 0`, `activation 0F3 from rank 0 to rank 1`, `the barrier`."""
        program, word = self.program, int(self.word[task])
        if word == BARRIER:
            return "the barrier"
        if word == SYNC:
            return f"{self.operations[self.operation[task]]} on rank {self.rank[task]}"
        if word == OPTIMIZER:
            return f"the optimizer on rank {self.rank[task]}"
        name = program.action_text(int(self.action[task]))
        if self.message[task]:
            to = program.action_rank[self.partner[task]]
            return f"the {WORDS[word]} of {name} from rank {self.rank[task]} to rank {to}"
        if word == OVERLAPPED:
            name += "&" + program.action_text(int(self.partner[task]))
        return f"{name} on rank {self.rank[task]}"


@dataclass(frozen=True, eq=False)
class Loads:
    """The numbers of a Graph: one row a configuration, sample or replica, all of them runs of the same structure.

    latency: (rows, tasks) seconds before a task's work begins. work: (rows, tasks) seconds of computation, or
    bytes where the task has a route. weight: (rows, route items) bytes on that link for each byte of work.
    capacity: (rows, links) bytes/s of each link, infinity allowed.
    held: (rows, tasks) share of the SMs that a task holds while it runs, of each rank that has a stream of it.
    slowed: (rows, tasks) how much of what is held on its `rank` a computation loses: its speed is 1 - slowed x held.
    activation: (rows, actions) bytes that an F keeps until its backward. release: (rows, stages) the share of it freed
    by I rather than W; negative where I leaves more for W than it frees. parameters: (rows, stages) bytes.
    """

    latency: Floats
    work: Floats
    weight: Floats
    capacity: Floats
    held: Floats
    slowed: Floats
    activation: Floats
    release: Floats
    parameters: Floats

    @property
    def rows(self) -> int:
        return len(self.work)

    def contended(self, graph: Graph) -> bool:
        """Whether durations depend on what runs beside a task, so that they are not known beforehand."""
        routed = np.diff(graph.route.start) > 0
        shared = np.isfinite(self.capacity).any() and bool((self.work[:, routed] > 0).any())
        return bool(shared or ((self.held > 0).any() and (self.slowed > 0).any()))

    def durations(self, graph: Graph) -> Floats:
        """(rows, tasks) seconds from start to end of each task where nothing is contended."""
        routed = np.diff(graph.route.start) > 0
        return self.latency + np.where(routed, 0.0, self.work)


Engine = Literal["auto", "simpy", "compiled"]
