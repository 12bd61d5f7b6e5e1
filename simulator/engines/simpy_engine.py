"""The reference engine: the rules of execution as SimPy processes.

A process per stream walks through the stream's tasks; tasks without a stream (messages) start by themselves.
What runs at a speed that others influence is kept in a `Machine`, which knows the fair share of every link and
what communication leaves to the computation beside it.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Generator
from itertools import pairwise
from typing import Any

import numpy as np
import simpy

from simpipe.simulator.graph import SLOWEST, Graph, Loads
from simpipe.simulator.kernels import Floats


def times(graph: Graph, loads: Loads) -> tuple[Floats, Floats]:
    """Start and end of every task: two (rows, tasks) arrays in seconds."""
    start, end = np.zeros((loads.rows, graph.tasks)), np.zeros((loads.rows, graph.tasks))
    collecting = gc.isenabled()
    gc.disable()  # SimPy's events are many, short-lived and not cyclic
    try:
        for row in range(loads.rows):
            run = _Run(graph, loads, row)
            start[row], end[row] = run.start, run.end
    finally:
        if collecting:
            gc.enable()
    return start, end


class _Run:
    """One run of the graph with one row of loads."""

    def __init__(self, graph: Graph, loads: Loads, row: int) -> None:
        self.env = simpy.Environment()
        self.latency = loads.latency[row].tolist()
        self.left = graph.waits.tolist()  # inputs that have not ended
        starts = graph.outputs.start.tolist()
        items = graph.outputs.items.tolist()
        self.outputs = [items[a:b] for a, b in pairwise(starts)]
        self.gate: dict[int, simpy.Event] = {}  # what a stream's process waits at
        self.start = [0.0] * graph.tasks
        self.end = [0.0] * graph.tasks
        self.on_stream: list[bool] = (np.diff(graph.streams.start) > 0).tolist()
        self.machine = Machine(self.env, graph, loads, row) if loads.contended(graph) else None
        self.seconds = loads.durations(graph)[row].tolist()  # of the tasks that the machine does not concern
        for own in _walks(graph):
            self.env.process(self.walk(own))
        for task, on_stream in enumerate(self.on_stream):
            if not on_stream and not self.left[task]:
                self.env.process(self.perform(task))
        self.env.run()
        assert not any(self.left), "the graph's order was checked, so every task must have run"

    def walk(self, own: list[int]) -> Generator[simpy.Event, Any, None]:
        """A stream: one task after the other, each once its inputs are there."""
        for task in own:
            if self.left[task]:
                self.gate[task] = self.env.event()
                yield self.gate[task]
            if self.machine:
                yield from self.perform(task)
            else:
                self.start[task] = self.env.now
                if self.seconds[task]:
                    yield self.env.timeout(self.seconds[task])
                self.finish(task)

    def perform(self, task: int) -> Generator[simpy.Event, Any, None]:
        """A task from start to end."""
        self.start[task] = self.env.now
        if self.machine and self.machine.concerns(task):
            self.machine.enter(task)
            if self.latency[task]:
                yield self.env.timeout(self.latency[task])
            if done := self.machine.work(task):
                yield done
            self.machine.leave(task)
        elif self.seconds[task]:
            yield self.env.timeout(self.seconds[task])
        self.finish(task)

    def finish(self, task: int) -> None:
        """The end of a task: whoever waited for nothing else starts."""
        self.end[task] = self.env.now
        for other in self.outputs[task]:
            self.left[other] -= 1
            if self.left[other]:
                continue
            if self.on_stream[other]:
                if other in self.gate:
                    self.gate.pop(other).succeed()
            elif self.machine and self.machine.concerns(other):
                self.env.process(self.perform(other))
            else:
                self.start[other] = self.env.now
                if self.seconds[other]:
                    _call(self.env.timeout(self.seconds[other], other), self.arrive)
                else:
                    self.finish(other)

    def arrive(self, event: simpy.Event) -> None:
        """A message has arrived."""
        assert event.value is not None
        self.finish(event.value)


class Machine:
    """What runs at a speed that depends on its neighbours: transfers on links, computation beside communication.

    Links are shared max-min fairly: of the links whose flows are not settled, the one that gives each the least
    settles them at that speed, until all are. A computation loses `slowed` times the share of SMs held on its
    rank. Speeds are found anew whenever something enters or leaves.
    """

    def __init__(self, env: simpy.Environment, graph: Graph, loads: Loads, row: int) -> None:
        self.env = env
        self.work_of = loads.work[row].tolist()
        self.held = loads.held[row].tolist()
        self.slowed = loads.slowed[row].tolist()
        self.capacity = loads.capacity[row].tolist()
        weights = loads.weight[row].tolist()
        self.routed: list[bool] = (np.diff(graph.route.start) > 0).tolist()
        self.routes: list[dict[int, float]] = [{} for _ in range(graph.tasks)]  # finite links and their weights
        for task, link, weight in zip(graph.route.keys.tolist(), graph.route.items.tolist(), weights, strict=True):
            if weight > 0 and np.isfinite(self.capacity[link]):
                self.routes[task][link] = weight
        self.rank = graph.rank.tolist()
        self.holds_on = [graph.stream_rank[_items(graph.streams, task)].tolist() for task in range(graph.tasks)]
        self.running: dict[int, float] = {}  # tasks that hold SMs, and the share they hold
        self.left: dict[int, float] = {}  # work left of the tasks under way
        self.speed: dict[int, float] = {}
        self.done: dict[int, simpy.Event] = {}
        self.since = 0.0
        self.alarm = 0  # counts changes: a timeout set before the last one is void

    def concerns(self, task: int) -> bool:
        return self.routed[task] or self.held[task] > 0 or self.slowed[task] > 0

    def enter(self, task: int) -> None:
        """A task starts: from now on it holds its SMs."""
        if self.held[task]:
            self.settle()
            self.running[task] = self.held[task]
            self.change()

    def work(self, task: int) -> simpy.Event | None:
        """Begin a task's work; the event of its end, or None where there is nothing to do."""
        if not self.work_of[task] or (self.routed[task] and not self.routes[task]):
            return None
        self.settle()
        self.left[task] = self.work_of[task]
        self.done[task] = self.env.event()
        self.change()
        return self.done[task]

    def leave(self, task: int) -> None:
        """A task has ended: its SMs are free."""
        if self.held[task]:
            self.settle()
            del self.running[task]
            self.change()

    def settle(self) -> None:
        """Account for the work done at the speeds so far."""
        passed = self.env.now - self.since
        for task in self.left:
            self.left[task] -= passed * self.speed[task]
        self.since = self.env.now

    def change(self) -> None:
        """Find all speeds anew, and wake up when the first task is done."""
        self.speed = self.fair_shares() | self.computing_speeds()
        self.alarm += 1
        if self.left:
            first = min(self.left, key=lambda task: (max(self.left[task], 0.0) / self.speed[task], task))
            wait = max(self.left[first], 0.0) / self.speed[first]
            _call(self.env.timeout(wait, (self.alarm, first)), self.complete)

    def complete(self, event: simpy.Event) -> None:
        assert event.value is not None
        alarm, task = event.value
        if alarm == self.alarm:
            self.settle()
            del self.left[task]
            self.done.pop(task).succeed()
            self.change()

    def fair_shares(self) -> dict[int, float]:
        """Bytes of work per second of every transfer under way, max-min fair."""
        unsettled = [task for task in self.left if self.routed[task]]
        free = {link: self.capacity[link] for task in unsettled for link in self.routes[task]}
        share: dict[int, float] = {}
        settled_at = 0.0  # shares never fall, but for rounding
        while unsettled:
            wanted = {link: sum(self.routes[task].get(link, 0.0) for task in unsettled) for link in free}
            speed, tightest = min((free[link] / weight, link) for link, weight in wanted.items() if weight)
            speed = settled_at = max(speed, settled_at)
            for task in [task for task in unsettled if tightest in self.routes[task]]:
                share[task] = speed
                unsettled.remove(task)
                for link, weight in self.routes[task].items():
                    free[link] = max(free[link] - speed * weight, 0.0)
        return share

    def computing_speeds(self) -> dict[int, float]:
        """Seconds of work per second of every computation under way."""
        held: dict[int, float] = {}
        for task, share in self.running.items():
            for rank in set(self.holds_on[task]):
                held[rank] = held.get(rank, 0.0) + share
        computing = [task for task in self.left if not self.routed[task]]
        return {t: max(1 - self.slowed[t] * held.get(self.rank[t], 0.0), SLOWEST) for t in computing}


def _call(event: simpy.Event, function: Callable[[simpy.Event], None]) -> None:
    """Call a function when an event happens: lighter than a process where nothing follows."""
    assert event.callbacks is not None
    event.callbacks.append(function)


def _walks(graph: Graph) -> list[list[int]]:
    """The tasks of each stream; one that occupies several belongs to the first, and the others wait for it."""
    first = graph.streams.start[:-1][np.diff(graph.streams.start) > 0]
    tasks = graph.streams.keys[first]
    walks: list[list[int]] = [[] for _ in graph.stream_rank]
    for task, stream in zip(tasks.tolist(), graph.streams.items[first].tolist(), strict=True):
        walks[stream].append(task)
    return walks


def _items(ragged: tuple[np.ndarray, np.ndarray], task: int) -> list[int]:
    start, items = ragged
    return items[start[task] : start[task + 1]].tolist()  # type: ignore[no-any-return]
