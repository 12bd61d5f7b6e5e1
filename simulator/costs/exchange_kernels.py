"""Dispatch and combine kernels: tasks of specialised warps, chunk by chunk, on the same engines as a step.

SMs are split into channels of two, each with an equal part of a GPU's tokens. A channel's warps share three tasks: a
dispatch sends chunks to other nodes, forwards what came from there over NVLink, and receives; a combine sends over
NVLink, forwards to other nodes what it adds up, and receives and adds. Within a node there is no forwarding. All
channels of all GPUs work alike, so one is simulated, with its share of NIC and NVLink: each task a stream, each chunk a
task of the graph that waits out what a chunk costs and then moves its bytes.

Warps are a link. `static`: each task has an equal part of them, whether it needs it or not. `dynamic`: what is under
way shares all of them, max-min fairly, so that all tasks get through their tokens equally fast and an idle one's warps
help the others (DeepSeek-V3, arXiv 2412.19437, section 3.2.2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Literal, NamedTuple

import numpy as np

from simpipe.simulator import engines
from simpipe.simulator.costs.cluster import ExchangeKernel
from simpipe.simulator.graph import KERNEL_STREAMS, Engine, Graph
from simpipe.simulator.kernels import Floats
from simpipe.simulator.lower import loads, structure
from simpipe.simulator.plan import END, Numbers, Operation, Plan
from simpipe.simulator.program import Program

Way = Literal["dispatch", "combine"]

CHANNEL_SMS = 2
BUFFERED = 2
"""Chunks that fit between a task and the next; with fewer, tasks would wait for each other."""

MOST_CACHE = 0.9
"""Of the L2 cache, what communication leaves computation at most to go without: replacement is fair to both."""

SIMULATED = 16
"""Chunks simulated at most: further ones take as long each as the second quarter of these does, when the pipeline has
filled and does not drain yet."""

LINKS = ("network", "nvlink", "warps", *KERNEL_STREAMS)


class Spread(NamedTuple):
    """Where a token's experts are, on average: distinct nodes and ranks, and those of them that are not its own.

    A rank on another node counts as own if it has the sender's place there: the token comes to it over the NIC.
    """

    nodes: float
    ranks: float
    other_nodes: float
    other_ranks: float

    def loaded(self, network: float, nvlink: float) -> Spread:
        """The same where the links that carry most have so many times the mean: of what goes to nodes, and to ranks."""
        return Spread(self.nodes * network, self.ranks * nvlink, self.other_nodes * network, self.other_ranks * nvlink)


class KernelSetting(NamedTuple):
    """How a kernel is run: on how many SMs, how a channel's warps are shared out between its tasks (`dynamic` or
    `static`), and how many tokens of a channel move at once."""

    sms: int
    warps: str
    chunk_tokens: int


class Task(NamedTuple):
    """What one of a channel's tasks moves for a token: bytes sent over NIC and NVLink, and by its warps."""

    stream: str
    network: float
    nvlink: float
    warps: float


class Run(NamedTuple):
    """A kernel's run on one GPU: its `tokens` through the tasks. network, nvlink: bytes/s that the links reach."""

    kernel: ExchangeKernel
    network: float
    nvlink: float
    tasks: tuple[Task, ...]
    tokens: float
    setting: KernelSetting

    @property
    def channels(self) -> int:
        return max(1, self.setting.sms // CHANNEL_SMS)

    @property
    def chunks(self) -> float:
        """Of each channel; the last one may be a part of one."""
        return self.tokens / self.channels / self.setting.chunk_tokens


def dispatch_tasks(kernel: ExchangeKernel, payload: float, spread: Spread) -> tuple[Task, ...]:
    """A token of `payload` bytes to where its experts are. The sender looks at each token, wanted or not."""
    copy, (nodes, ranks, other_nodes, other_ranks) = payload + kernel.copy_overhead, spread
    receive = Task("receive", 0.0, 0.0, ranks * copy)
    if not other_nodes:
        return Task("send", 0.0, other_ranks * payload, ranks * copy + kernel.token_overhead), receive
    send = Task("send", other_nodes * payload, 0.0, nodes * copy + kernel.token_overhead)
    return send, Task("forward", 0.0, other_ranks * payload, ranks * copy), receive


def combine_tasks(kernel: ExchangeKernel, payload: float, spread: Spread) -> tuple[Task, ...]:
    """A token's results, added up on each node and then where it came from."""
    copy, (nodes, ranks, other_nodes, other_ranks) = payload + kernel.copy_overhead, spread

    def added(terms: float, sums: float) -> float:
        return kernel.sum_read * terms * copy + kernel.sum_write * sums * payload

    send = Task("send", 0.0, other_ranks * payload, ranks * copy)
    if not other_nodes:
        return send, Task("receive", 0.0, 0.0, added(ranks, 1))
    forward = Task("forward", other_nodes * payload, 0.0, added(ranks, nodes))
    return send, forward, Task("receive", 0.0, 0.0, added(nodes, 1))


def run(
    kernel: ExchangeKernel,
    way: Way,
    links: tuple[float, float],
    tokens: float,
    payload: float,
    spread: Spread,
    setting: KernelSetting,
) -> Run:
    """A run of `tokens` of `payload` bytes; links: bytes/s that large transfers reach on NIC and NVLink."""
    tasks = dispatch_tasks(kernel, payload, spread) if way == "dispatch" else combine_tasks(kernel, payload, spread)
    network, nvlink = links
    reached = network * kernel.network_efficiency, nvlink * kernel.nvlink_efficiency
    return Run(kernel, *reached, tasks, tokens, setting)


def floor(kernel: ExchangeKernel, way: Way, nodes: int) -> float:
    """Seconds of a kernel without tokens; across nodes ranks find each other in rounds, each with twice as many."""
    alone = kernel.dispatch_floor if way == "dispatch" else kernel.combine_floor
    return alone + kernel.round_floor * math.log2(nodes)


@dataclass(frozen=True, eq=False)
class ChannelCosts:
    """One channel's work on a run, as the F of a step that does nothing else; implements plan.StepCosts.

    Two rows of Loads may differ in anything but the number of tasks and chunks.
    """

    run: Run
    chunks: int

    def plan(self, program: Program) -> Plan:
        return _plan(tuple(task.stream for task in self.run.tasks), self.chunks)

    def fill(self, graph: Graph, numbers: Numbers) -> None:
        run, kernel = self.run, self.run.kernel
        tasks = channel_tasks(graph).reshape(self.chunks, -1)
        sizes = np.full(self.chunks, float(run.setting.chunk_tokens))
        if run.chunks < self.chunks:
            sizes[-1] *= run.chunks % 1
        numbers.latency[tasks] = kernel.chunk_overhead
        numbers.work[tasks] = sizes[:, None]
        for number, task in enumerate(run.tasks):
            entries = graph.route.start[tasks[:, number]][:, None] + np.arange(4)
            numbers.weight[entries] = (task.network, task.nvlink, task.warps, task.warps)
        warps = run.setting.sms * kernel.warps_per_sm * kernel.warp_bandwidth / run.channels
        own = warps / len(run.tasks) if run.setting.warps == "static" else math.inf
        numbers.capacity[:] = (run.network / run.channels, run.nvlink / run.channels, warps, own, own, own)

    def activation(self, program: Program) -> Floats:
        return np.zeros(len(program.kind))

    def release(self, program: Program) -> Floats:
        return np.zeros(program.stages)

    parameters = release


def _plan(streams: tuple[str, ...], chunks: int) -> Plan:
    found: list[Operation] = []
    for chunk in range(chunks):
        for number, stream in enumerate(streams):
            behind = [len(found) - 1] if number else []
            if number + 1 < len(streams) and chunk >= BUFFERED:
                behind.append((chunk - BUFFERED) * len(streams) + number + 1)
            found.append(Operation(stream, (stream,), tuple(behind), 0, (*LINKS[:3], stream)))
    ends = Operation(END, streams, (len(found) - 1,), 0)
    templates = ((*found, ends), (Operation(END, streams, (), 0),))
    return Plan(templates, np.arange(2), links=LINKS, message_links=((), ()))


@lru_cache(maxsize=64)
def _graph(streams: tuple[str, ...], chunks: int) -> Graph:
    """Of so many chunks through these tasks: kernels differ in their numbers alone."""
    return structure(channel_program(), _plan(streams, chunks))


def channel_tasks(graph: Graph) -> np.ndarray:
    """The tasks of all chunks, chunk by chunk."""
    return graph.slot_tasks.items[: graph.slot_tasks.start[1] - 1]


@lru_cache(maxsize=1)
def channel_program() -> Program:
    """The kernel is the forward of a rank whose backward does nothing: a program has both."""
    return Program.from_csv("0F0,0B0", "exchange kernel")


def times(runs: Sequence[Run], engine: Engine = "auto") -> Floats:
    """(runs,) seconds from the first chunk's start to the last one's end."""
    found = np.empty(len(runs))
    shape = [
        (tuple(task.stream for task in run.tasks), min(math.ceil(run.chunks), SIMULATED)) for run in runs
    ]  # fmt: skip
    for streams, count in sorted(set(shape)):
        rows = [row for row, own in enumerate(shape) if own == (streams, count)]
        graph = _graph(streams, count)
        numbers = loads(graph, tuple(ChannelCosts(runs[row], count) for row in rows))
        _, end = engines.times(graph, numbers, engine)
        done = end[:, channel_tasks(graph)].reshape(len(rows), count, -1)[:, :, -1]
        found[rows] = done[:, -1]
        if count == SIMULATED:
            steady = (done[:, count // 2] - done[:, count // 4]) / (count // 2 - count // 4)
            found[rows] += steady * [max(runs[row].chunks - count, 0.0) for row in rows]
    return found


@lru_cache(maxsize=4096)
def seconds(run: Run) -> float:
    """The same of one run."""
    return float(times([run])[0])


def cache_share(run: Run, l2: float) -> float:
    """Share of the L2 cache that chunks under way fill: what arrives stays there until the next task has read it."""
    arriving = sum(task.network + task.nvlink for task in run.tasks)
    return min(MOST_CACHE, BUFFERED * run.setting.chunk_tokens * run.channels * arriving / l2)
