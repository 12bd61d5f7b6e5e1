"""What a page holds of a run: columns of slots, messages, bubbles, memory and operations, and a header of figures.

Slots are numbered rank by rank in the order they run, each rank's optimizer step last. Times are ticks of the run's
clock. Dependencies, bubbles and their causes, slack and the critical path are the trace's; the page adds none.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

import numpy as np
from numpy.typing import NDArray

from simpipe.simulator import bubbles, links
from simpipe.simulator.costs.given import Costs
from simpipe.simulator.graph import ACTIVATION, OVERLAPPED, STREAMS, WORDS
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.program import Kind
from simpipe.simulator.summary import Summary
from simpipe.simulator.trace import Levels, Trace
from simpipe.simulator.views import detail, lanes
from simpipe.simulator.views.columns import Clock, Columns

if TYPE_CHECKING:
    from simpipe.simulator.costs.modelled import ModelledCosts

BINS, MOST_BINS = 4000, 64_000
"""Columns of time in which the use of a link is averaged: of each rank, and of all together."""

FINE = 2.0**30
"""Ticks a second, at most, of the operations within slots: 1 ns."""


def add(columns: Columns, prefix: str, trace: Trace, summary: Summary, name: str | None = None) -> dict[str, Any]:
    """Add a run's columns, their names behind `prefix`, and return its header."""
    return _Run(columns, prefix, trace).header(summary, name)


@dataclass(frozen=True)
class _Run:
    columns: Columns
    prefix: str
    trace: Trace

    def header(self, summary: Summary, name: str | None) -> dict[str, Any]:
        trace, program = self.trace, self.trace.program
        self._add_slots()
        self._add_messages()
        self._add_bubbles()
        return {
            "prefix": self.prefix,
            "name": lanes.printable(name or program.name),
            "title": lanes.title(trace, name),
            "ranks": program.ranks,
            "stages": program.stages,
            "microbatches": program.microbatches,
            "perSecond": self.clock.per_second,
            "operationsPerSecond": self.fine,
            "makespan": trace.makespan,
            "figures": _figures(summary),
            "perRank": self._per_rank(summary),
            "memory": self._memory(),
            "links": self._links(),
            "others": self._others(),
            "operations": self._operations(),
            "opened": self._opened(),
            "costs": self._costs(),
        }

    def _add(self, name: str, values: Any, delta: bool = False) -> None:
        self.columns.add(f"{self.prefix}.{name}", values, delta)

    @cached_property
    def clock(self) -> Clock:
        return Clock.of(np.concatenate([self.trace.start, self.trace.end]), lanes.horizon(self.trace))

    @property
    def fine(self) -> float:
        """Ticks a second of operations within slots."""
        return min(FINE, self.clock.per_second)

    @cached_property
    def order(self) -> Ints:
        """(slots,) the graph's slots as the page numbers them."""
        return self.trace.graph.rank_slots.items

    @cached_property
    def page_slot(self) -> Ints:
        """(slots,) the page's number of each of the graph's slots."""
        numbers = np.empty(len(self.order), np.int64)
        numbers[self.order] = np.arange(len(self.order))
        return numbers

    @cached_property
    def starts(self) -> Ints:
        return self.clock.ticks(self.trace.slot_start)[self.order]

    @cached_property
    def ends(self) -> Ints:
        return self.clock.ticks(self.trace.slot_end)[self.order]

    @cached_property
    def first(self) -> Ints:
        """(ranks,) the first slot of each rank."""
        return self.trace.graph.rank_slots.start[:-1]

    def _before(self, after: Ints) -> Ints:
        """What held after the slot before on the same rank, 0 before the first."""
        before = np.concatenate([[0], after[:-1]])
        before[self.first] = 0
        return before

    def _add_slots(self) -> None:
        trace, graph, program = self.trace, self.trace.graph, self.trace.program
        head = program.slot_start[:-1]
        paired = np.diff(program.slot_start) == 2
        forward = head + (paired & (program.kind[head] != Kind.F))
        steps = np.full(len(graph.slot_rank) - program.slots, -1)
        word = np.where(paired, OVERLAPPED, program.kind[head])
        columns = {
            "word": np.concatenate([word, np.full(len(steps), WORDS.index("optimizer"))]),
            "stage": np.concatenate([program.stage[forward], steps]),
            "microbatch": np.concatenate([program.microbatch[forward], steps]),
        }
        for name, values in columns.items():
            self._add(name, values[self.order], delta=name == "microbatch")
        pairs = np.flatnonzero(paired)
        pairs = pairs[np.argsort(self.page_slot[pairs])]
        backward = head[pairs] + (program.kind[head[pairs]] == Kind.F)
        self._add("pairStage", program.stage[backward])
        self._add("pairMicrobatch", program.microbatch[backward], delta=True)
        self._add("slots", np.diff(graph.rank_slots.start))
        self._add("gap", self.starts - self._before(self.ends))
        self._add("length", self.ends - self.starts)
        tasks = graph.slot_tasks
        self._add(
            "slack", self.clock.ticks(np.minimum.reduceat(trace.slack[tasks.items], tasks.start[:-1]))[self.order]
        )
        critical = np.zeros(len(graph.slot_rank), bool)
        on_path = graph.slot[trace.critical_path]
        critical[on_path[on_path >= 0]] = True
        self._add("critical", critical[self.order])

    def _add_messages(self) -> None:
        trace, graph, program = self.trace, self.trace.graph, self.trace.program
        message = np.flatnonzero(graph.message)
        maker, taker = (self.page_slot[program.action_slot[part[message]]] for part in (graph.action, graph.partner))
        start, end = self.clock.ticks(trace.start[message]), self.clock.ticks(trace.end[message])
        self._add("maker", maker, delta=True)
        self._add("taker", taker, delta=True)
        self._add("isActivation", graph.word[message] == ACTIVATION)
        self._add("messageLag", start - self.ends[maker])
        self._add("messageLength", end - start)
        critical = np.zeros(graph.tasks, bool)
        critical[trace.critical_path] = True
        self._add("messageCritical", critical[message])
        inner = program.dependencies
        for name, actions in (("innerSource", inner.source), ("innerTarget", inner.target)):
            self._add(name, self.page_slot[program.action_slot[actions[~inner.crossing]]], delta=True)

    def _add_bubbles(self) -> None:
        """Where each bubble is (the slot behind it, or the number of slots + its rank at the end) and its causes.

        The main cause has no column: it is what the others leave of the bubble.
        """
        trace, graph = self.trace, self.trace.graph
        found = bubbles.find(trace)
        self._add("bubbleAt", np.where(found.slot >= 0, self.page_slot[found.slot], len(self.order) + found.rank), True)
        main = found.causes.argmax(axis=1)
        self._add("bubbleMain", main)
        rest = self.clock.ticks(found.causes)
        rest[np.arange(len(main)), main] = 0
        for cause, name in enumerate(bubbles.CAUSES):
            self._add(f"bubble.{name}", rest[:, cause])
        self._add("bubbleCritical", self.clock.ticks(bubbles.critical_seconds(trace, found)))
        number = np.full(graph.tasks, -1)
        message = np.flatnonzero(graph.message)
        number[message] = np.arange(len(message))
        others = self._other_tasks
        number[others] = len(message) + np.arange(len(others))
        self._add("bubbleEndedBy", np.where(found.ended_by >= 0, number[found.ended_by], -1), delta=True)

    @cached_property
    def _other_tasks(self) -> Ints:
        """Tasks that are neither in a slot nor messages: syncs and the barrier."""
        graph = self.trace.graph
        return np.flatnonzero((graph.slot < 0) & ~graph.message)

    def _others(self) -> list[dict[str, Any]]:
        graph, trace = self.trace.graph, self.trace
        found = []
        for task in self._other_tasks.tolist():
            streams = graph.streams.items[graph.streams.start[task] : graph.streams.start[task + 1]]
            found.append(
                {
                    "text": graph.describe(task),
                    "word": WORDS[graph.word[task]],
                    "name": graph.operations[graph.operation[task]] or WORDS[graph.word[task]],
                    "start": float(trace.start[task]),
                    "end": float(trace.end[task]),
                    "ranks": graph.stream_rank[streams].tolist(),
                    "stream": STREAMS[graph.stream_name[streams[0]]] if len(streams) else "",
                }
            )
        return found

    def _per_rank(self, summary: Summary) -> list[dict[str, Any]]:
        """Where each rank's step goes, in seconds: computation by kind, waits within slots, bubbles by cause."""
        trace, graph = self.trace, self.trace.graph
        program = trace.program
        head = program.slot_start[:-1]
        steps = np.full(len(graph.slot_rank) - program.slots, WORDS.index("optimizer"))
        word = np.concatenate([np.where(np.diff(program.slot_start) == 2, OVERLAPPED, program.kind[head]), steps])
        computed = trace.slot_end - trace.slot_start - trace.slot_exposed - trace.launch_bound
        launches = np.bincount(graph.slot_rank, trace.launch_bound, graph.ranks)
        seconds = np.bincount(graph.slot_rank * len(WORDS) + word, computed, graph.ranks * len(WORDS))
        by_rank = seconds.reshape(graph.ranks, -1)
        return [
            {
                "stages": figures.stages,
                "busy": figures.busy,
                "bubble": figures.bubble_time,
                "bubbles": figures.bubble_count,
                "longest": figures.longest_bubble,
                "kinds": {WORDS[w]: float(by_rank[figures.rank, w]) for w in np.flatnonzero(by_rank[figures.rank])},
                "exposed": float(trace.exposed_communication[figures.rank]),
                "launches": float(launches[figures.rank]),
                "causes": {cause: value for cause, value in figures.bubble_causes.items() if value},
                "peak": figures.peak_activations,
                "peakBytes": figures.peak_activation_bytes,
            }
            for figures in summary.per_rank
        ]

    # Memory and links.

    def _memory(self) -> dict[str, Any]:
        """Levels over time by kind, those that stay all step as numbers; the capacity where it is known."""
        trace = self.trace
        if not trace.loads.activation[trace.row].any():
            self._add_levels("activations", trace.activations)
            return {"unit": "micro-batches", "levels": self._levels, "static": [], "capacity": None}
        pending = trace.weight_gradient_bytes
        total = trace.activation_bytes
        if pending.during.any():
            rest = Levels(total.during - pending.during, total.after - pending.after)
            self._add_levels("activations", rest)
            self._add_levels("weight gradient inputs", pending)
        else:
            self._add_levels("activations", total)
        parameters = trace.loads.parameters[trace.row]
        static = [{"parameters": float(parameters[list(held)].sum())} for held in trace.program.placement]
        capacity = None
        if trace.costs is not None and not isinstance(trace.costs, Costs):
            costs = cast("ModelledCosts", trace.costs)
            brought = costs.transient_bytes(trace.program)
            self._add_levels("buffers of a slot", Levels(brought, np.zeros_like(brought)))
            static = [dict(costs.static_bytes(trace.program, rank)) for rank in range(trace.program.ranks)]
            capacity = costs.cluster.gpu.memory
        kinds = sorted({kind for rank in static for kind in rank if any(other.get(kind) for other in static)})
        return {
            "unit": "bytes",
            "levels": self._levels,
            "static": [{kind: rank.get(kind, 0.0) for kind in kinds} for rank in static],
            "capacity": capacity,
        }

    @cached_property
    def _levels(self) -> list[dict[str, Any]]:
        return []

    def _add_levels(self, kind: str, levels: Levels) -> None:
        """A kind of memory while each of the program's slots runs and after it: what each slot takes, and frees."""
        number = len(self._levels)
        scale = Clock.of(np.concatenate([levels.during, levels.after]), float(levels.during.max(initial=0.0)) or 1.0)
        steps = np.zeros(len(self.order) - len(levels.during))
        during, after = (scale.ticks(np.concatenate([part, steps]))[self.order] for part in levels)
        self._add(f"taken.{number}", during - self._before(after))
        self._add(f"freed.{number}", during - after)
        self._levels.append({"kind": kind, "per": scale.per_second})

    def _links(self) -> dict[str, Any] | None:
        """The use of each rank's links, averaged over columns of time; None where nothing takes time.

        As a share of what a link carries, or as bytes/s where that is unlimited; without bytes, the messages under way.
        """
        trace, graph = self.trace, self.trace.graph
        bins = int(np.clip(MOST_BINS // graph.ranks, 50, BINS))
        span = lanes.horizon(trace)
        found = links.use(trace)
        kinds = []
        names = graph.link_names
        capacity = trace.loads.capacity[trace.row].reshape(graph.ranks, len(names))
        for number, name in enumerate(names):
            mine = found.link % len(names) == number
            if mine.any():
                rate = _mean_rates(found, mine, len(names), graph.ranks, span, bins)
                limited = bool(np.isfinite(capacity[:, number]).all())
                kinds.append(
                    (name, "share" if limited else "bytes/s", rate / capacity[:, number, None] if limited else rate)
                )
        message = np.flatnonzero(graph.message)
        if not kinds and (trace.end[message] > trace.start[message]).any():
            receiver = trace.program.action_rank[graph.partner[message]]
            for name, rank in (("sending", graph.rank[message]), ("receiving", receiver)):
                use = _under_way(rank, trace.start[message], trace.end[message], graph.ranks, span, bins)
                kinds.append((name, "messages", use))
        for number, (_, _, use) in enumerate(kinds):
            scale = float(use.max(initial=0.0)) or 1.0
            self._add(f"link.{number}", np.rint(use * (1000 / scale)).astype(np.int64).ravel(), delta=True)
        described = [{"name": name, "unit": unit, "most": float(use.max(initial=0.0))} for name, unit, use in kinds]
        return {"bins": bins, "kinds": described} if kinds else None

    # Operations of modelled slots.

    def _operations(self) -> list[list[dict[str, Any]]] | None:
        """The kinds of slots, each a list of operations; None where a slot is one task."""
        trace, graph = self.trace, self.trace.graph
        if not detail.modelled(trace):
            return None
        cuts, tasks = graph.slot_tasks
        hidden = [code for code, name in enumerate(graph.operations) if name in detail.HIDDEN]
        shown = ~np.isin(graph.operation[tasks], hidden)
        part = graph.action[tasks] - trace.program.slot_start[np.minimum(graph.slot[tasks], trace.program.slots - 1)]
        keys: dict[bytes, int] = {}
        kinds: list[list[dict[str, Any]]] = []
        numbers = []
        codes = np.stack([graph.operation[tasks], part, np.diff(graph.streams.start)[tasks]], axis=1)
        for slot in self.order.tolist():
            if slot >= trace.program.slots:
                numbers.append(-1)
                continue
            key = codes[cuts[slot] : cuts[slot + 1]].tobytes()
            if key not in keys:
                keys[key] = len(kinds)
                kinds.append(_kind_of_slot(trace, slot))
            numbers.append(keys[key])
        self._add("kindOfSlot", numbers)
        inside = np.flatnonzero(shown & (graph.slot[tasks] < trace.program.slots))
        inside = inside[np.argsort(self.page_slot[graph.slot[tasks[inside]]], kind="stable")]
        task = tasks[inside]
        fine = self.fine
        origin = trace.slot_start[graph.slot[task]]
        start, end = (np.rint((part - origin) * fine).astype(np.int64) for part in (trace.start[task], trace.end[task]))
        self._add("operationStart", start)
        self._add("operationLength", end - start)
        self._add("exposed", self.clock.ticks(np.maximum(trace.slot_exposed, 0.0))[self.order])
        return kinds

    def _opened(self) -> int | None:
        """The slot that shows what a slot consists of."""
        slot = detail.choose(self.trace)
        return None if slot is None else int(self.page_slot[slot])

    # What re-timing needs.

    def _costs(self) -> dict[str, Any]:
        """Costs as given, so that the page can time the order again; without them slots as long as they were.

        `exact` says whether that gives what the engines give, `why` in words why not.
        """
        trace, costs = self.trace, self.trace.costs
        if not isinstance(costs, Costs):
            why = "Slots are stretched as wholes: what overlaps inside them, and on links, is not simulated again."
            return {"exact": False, "why": why, "tables": None, "latency": 0.0}
        self._add_further_edges()
        tables = costs.tables(trace.program)
        for name, table in tables.items():
            self.columns.add_floats(f"{self.prefix}.cost.{name}", table.ravel())
        contended = trace.loads.contended(trace.graph)
        why = "Messages take the time they took here: how they share links is not simulated again." if contended else ""
        return {"exact": not contended, "why": why, "tables": list(tables), "latency": costs.p2p}

    def _add_further_edges(self) -> None:
        """What tasks wait for beside the order of their rank and the messages that their slot takes.

        Nodes are slots, then messages, then other tasks.
        """
        graph, program = self.trace.graph, self.trace.program
        message = np.flatnonzero(graph.message)
        node = np.full(graph.tasks, -1)
        inside = graph.slot >= 0
        node[inside] = self.page_slot[graph.slot[inside]]
        node[message] = len(self.order) + np.arange(len(message))
        node[self._other_tasks] = len(self.order) + len(message) + np.arange(len(self._other_tasks))
        source, target = graph.inputs.items, graph.inputs.keys
        made = graph.message[target] & (graph.slot[source] == program.action_slot[graph.action[target]])
        taken = graph.message[source] & (graph.slot[target] == program.action_slot[graph.partner[source]])
        follows = inside[source] & inside[target] & (node[target] == node[source] + 1)
        follows &= graph.rank[source] == graph.rank[target]
        further = np.flatnonzero(~(made | taken | follows))
        self._add("furtherSource", node[source[further]], delta=True)
        self._add("furtherTarget", node[target[further]], delta=True)


def _under_way(rank: Ints, start: Floats, end: Floats, ranks: int, span: float, bins: int) -> Floats:
    """(ranks, bins) how many of some intervals hold at once on each rank, on average over each column of time."""
    times = np.concatenate([start, end]) * (bins / span)
    place = np.clip(np.floor(times).astype(np.int64), 0, bins)
    sign = np.concatenate([np.ones(len(start)), -np.ones(len(end))])
    row = np.concatenate([rank, rank]) * (bins + 2)
    # A step up at x holds over the rest of its own column and over all later ones.
    part = sign * (place + 1 - times)
    changes = np.bincount(row + place, part, ranks * (bins + 2))
    changes += np.bincount(row + place + 1, sign - part, ranks * (bins + 2))
    return np.asarray(np.maximum(np.cumsum(changes.reshape(ranks, -1), axis=1)[:, :bins], 0.0), float)


def _mean_rates(
    found: links.LinkUse, mine: NDArray[np.bool_], names: int, ranks: int, span: float, bins: int
) -> Floats:
    """(ranks, bins) the mean rate of one kind of link over each column of time."""
    rank, time, rate = found.link[mine] // names, found.time[mine], found.rate[mine]
    seconds = np.diff(time, append=time[-1:])
    seconds[rank != np.append(rank[1:], -1)] = 0.0  # a link's last entry is its end, with nothing on it
    moved = np.concatenate([[0.0], np.cumsum(rate * seconds)])
    edges = np.linspace(0.0, span, bins + 1)
    cuts = np.searchsorted(rank, np.arange(ranks + 1))
    means = np.zeros((ranks, bins))
    for number, (first, end) in enumerate(itertools.pairwise(cuts.tolist())):
        if first < end:
            means[number] = np.diff(np.interp(edges, time[first:end], moved[first:end])) * (bins / span)
    return means


def _kind_of_slot(trace: Trace, slot: int) -> list[dict[str, Any]]:
    """The operations of a slot in task order: name, family, pass, streams, and whether of the slot's second action."""
    drawn = detail.operations(trace, slot)
    program = trace.program
    found = []
    for _, rows in drawn.groupby("task", sort=True):
        row = rows.iloc[0]
        found.append(
            {
                "name": row["operation"],
                "family": row["family"],
                "pass": row["pass"],
                "streams": rows["stream"].tolist(),
                "forward": bool(program.kind[trace.graph.action[row["task"]]] == Kind.F),
            }
        )
    return found


def _figures(summary: Summary) -> dict[str, Any]:
    """The run's own figures, without those per rank."""
    return {name: value for name, value in summary.to_dict().items() if name != "per_rank"}
