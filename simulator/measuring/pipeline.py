"""Pipelines: a small dense model's stages run by PyTorch's own pipeline schedules, in a process a rank on the CPU.

The processes talk by gloo. Each times its own chunks, all ranks at the same time since they share the machine, and
messages to and fro: what a prediction takes. In turn with that it runs steps, and notes when each pass of each stage
starts and ends; receiving and sending lie between them. Processes of one machine read the same clock.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import distributed
from torch.distributed import pipelining
from torch.distributed.pipelining import _backward, schedules
from torch.profiler import ProfilerActivity, profile, record_function

from simpipe.simulator.costs.given import Costs
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.parallel import Parallel, stages
from simpipe.simulator.measuring import processes
from simpipe.simulator.measuring.chunks import Chunk, check
from simpipe.simulator.program import Action, Kind, Program


class Schedule(NamedTuple):
    """One of PyTorch's schedules. chunks: stages a rank. turns: whether every other chunk runs back, as a V."""

    chunks: int
    turns: bool
    make: Callable[..., Any]


SCHEDULES = {
    "GPipe": Schedule(1, False, schedules.ScheduleGPipe),
    "1F1B": Schedule(1, False, schedules.Schedule1F1B),
    "Interleaved1F1B": Schedule(2, False, schedules.ScheduleInterleaved1F1B),
    "InterleavedZeroBubble": Schedule(2, False, schedules.ScheduleInterleavedZeroBubble),
    "ZBVZeroBubble": Schedule(2, True, schedules.ScheduleZBVZeroBubble),
}
"""PyTorch's schedules by their names there."""


class Pass(NamedTuple):
    """One pass of one stage that ran: seconds of the machine's clock."""

    action: Action
    start: float
    end: float


class Size(NamedTuple):
    """What is run: processes, micro-batches a step, sequences of one, tokens of one; steps timed after one that is not,
    and timings of each chunk in turn with each."""

    ranks: int = 2
    microbatches: int = 8
    microbatch_size: int = 2
    sequence: int = 128
    steps: int = 7
    repeats: int = 3


class Run(NamedTuple):
    """A schedule that ran. seconds: (stages, 4) median F, I, W and B of a chunk by itself. p2p: of one message. steps:
    of each step, by rank, the passes in the order they ran."""

    name: str
    seconds: np.ndarray[Any, np.dtype[np.float64]]
    p2p: float
    steps: list[list[list[Pass]]]

    @property
    def program(self) -> Program:
        """The order that ran, in the last step."""
        return Program.from_rows([[each.action for each in row] for row in self.steps[-1]], self.name)

    @property
    def costs(self) -> Costs:
        """What was measured of single chunks and messages."""
        forward, inputs, weights, backward = self.seconds.T.tolist()
        return Costs(F=forward, I=inputs, W=weights, B=backward, p2p=self.p2p)

    @property
    def spans(self) -> list[float]:
        """Seconds of each step, from the first start to the last end of any rank."""
        passes = [[each for row in step for each in row] for step in self.steps]
        return [max(each.end for each in step) - min(each.start for each in step) for step in passes]


def run(model: Model, names: Sequence[str], size: Size, profiles: Path | None = None) -> list[Run]:
    """Run some of SCHEDULES, one after another. profiles: a folder for each rank's profile of one more step.

    Raises ModelError where the model is not of the kind that a Chunk can be.
    """
    check(model)
    with tempfile.TemporaryDirectory() as folder:
        processes.together(_rank, (size, model, list(names), folder, profiles), size.ranks)
        found = [torch.load(f"{folder}/{rank}.pt", weights_only=False) for rank in range(size.ranks)]
    runs = []
    for name, parts in zip(names, zip(*found, strict=True), strict=True):
        timed = {stage: seconds for part in parts for stage, seconds in part["seconds"].items()}
        seconds = np.median([timed[stage] for stage in range(len(timed))], axis=1)
        steps = [list(step) for step in zip(*(part["steps"] for part in parts), strict=True)]
        runs.append(Run(name, seconds, float(np.median(parts[0]["p2p"])), steps))
    return runs


def _rank(rank: int, size: Size, model: Model, names: list[str], folder: str, profiles: Path | None) -> None:
    """One process: everything it has to say of each schedule goes into a file.

    Chunks, messages and steps take turns, so that a machine that others use is as busy for the one as for the other.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    store = distributed.FileStore(f"{folder}/store", size.ranks)
    distributed.init_process_group("gloo", rank=rank, world_size=size.ranks, store=store)
    try:
        pipelines = {name: _Pipeline(rank, size, model, SCHEDULES[name]) for name in names}
        for pipeline in pipelines.values():
            pipeline.step()
        for _ in range(size.steps):
            for pipeline in pipelines.values():
                pipeline.turn()
        if profiles is not None:
            for name, pipeline in pipelines.items():
                with profile(activities=[ProfilerActivity.CPU]) as recorded:
                    pipeline.step()
                recorded.export_chrome_trace(str(profiles / f"{name}-rank{rank}.json"))
        torch.save([pipeline.measured for pipeline in pipelines.values()], f"{folder}/{rank}.pt")
    finally:
        distributed.destroy_process_group()


class _Pipeline:
    """A rank's part of a pipeline, and what was measured of it: seconds of each stage's F, I, W and B, of a message,
    and steps as passes, all by turn."""

    def __init__(self, rank: int, size: Size, model: Model, chosen: Schedule) -> None:
        self.rank, self.size, self.model = rank, size, model
        self.chunks = _chunks(rank, size, model, chosen)
        self.last = chosen.chunks * size.ranks - 1
        parts = [
            pipelining.PipelineStage(chunk, index, self.last + 1, torch.device("cpu"))
            for index, chunk in self.chunks.items()
        ]
        self.passes: list[Pass] = []
        for part in parts:
            _noted(part, self.passes)
        self.schedule = chosen.make(parts if chosen.chunks > 1 else parts[0], size.microbatches, loss_fn=_loss)
        self.tokens = torch.randint(model.vocabulary, (size.microbatches * size.microbatch_size, size.sequence))
        self.measured: dict[str, Any] = {"seconds": {index: [] for index in self.chunks}, "p2p": [], "steps": []}

    def step(self) -> list[Pass]:
        """Run a step; the passes in the order they ran."""
        self.passes.clear()
        distributed.barrier()
        inputs = (self.tokens,) if 0 in self.chunks else ()
        target = {"target": self.tokens} if self.last in self.chunks else {}
        self.schedule.step(*inputs, **target)
        for chunk in self.chunks.values():
            chunk.zero_grad()
        return list(self.passes)

    def turn(self) -> None:
        """Time the chunks, a message and a step."""
        self.measured["p2p"].append(_message_seconds(self.rank, self.size, self.model))
        for index, chunk in self.chunks.items():
            self.measured["seconds"][index].append(_chunk_seconds(chunk, self.size, self.model))
        self.measured["steps"].append(self.step())


def _chunks(rank: int, size: Size, model: Model, chosen: Schedule) -> dict[int, Chunk]:
    """The rank's stages by number."""
    ranks, count = size.ranks, chosen.chunks * size.ranks
    batch = size.microbatches * size.microbatch_size
    parallel = Parallel(ranks=ranks, gpus=ranks, global_batch=batch, sequence=size.sequence)
    placed = [
        chunk * ranks + (ranks - 1 - rank if chosen.turns and chunk % 2 else rank) for chunk in range(chosen.chunks)
    ]
    every = stages(model, parallel, count)
    return {index: Chunk(model, every[index]) for index in placed}


def _loss(output: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    """The last chunk's output is the loss already."""
    return output.sum()


# Timing by itself.


def _chunk_seconds(chunk: Chunk, size: Size, model: Model) -> list[float]:
    """Median seconds of F, I, W and B, as PyTorch's stages run them: the first has nothing to differentiate for, so
    that its I is empty and its W the whole backward."""
    shape = (size.microbatch_size, size.sequence)
    first, last = bool(len(chunk.embedding)), bool(len(chunk.head))
    times = []
    for _ in range(size.repeats):
        x = torch.randint(model.vocabulary, shape) if first else torch.randn(*shape, model.hidden, requires_grad=True)

        def forward(x: torch.Tensor = x) -> torch.Tensor:
            return _loss(chunk(x), x) if last else chunk(x)

        forwards, out = _timed(forward)
        grown = None if last else [torch.randn_like(out)]
        whole, _ = _timed(partial(_backward.stage_backward, out if last else (out,), grown, (x,)))
        out = forward()
        if first:
            inputs = 0.0
            weights, _ = _timed(partial(_backward.stage_backward, out if last else (out,), grown, (x,)))
        else:
            inputs, (_, groups) = _timed(partial(_backward.stage_backward_input, [out], grown, [x], chunk.parameters()))
            weights, _ = _timed(partial(_backward.stage_backward_weight, chunk.parameters(), groups))
        times.append([forwards, inputs, weights, whole])
    chunk.zero_grad()
    return [float(seconds) for seconds in np.median(np.array(times), axis=0)]


def _timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Seconds of a call, and what it gives."""
    began = time.perf_counter()
    result = call()
    return time.perf_counter() - began, result


def _message_seconds(rank: int, size: Size, model: Model) -> float:
    """Median seconds of one message between the first two ranks: half of there and back."""
    message = torch.zeros(size.microbatch_size, size.sequence, model.hidden)
    times = []
    for _ in range(4 * size.repeats):
        distributed.barrier()
        began = time.perf_counter()
        for sender in (0, 1):
            if rank == sender:
                distributed.send(message, 1 - rank)
            elif rank < 2:
                distributed.recv(message, 1 - rank)
        times.append((time.perf_counter() - began) / 2)
    return float(np.median(times))


# Noting what runs.


def _noted(stage: Any, passes: list[Pass]) -> None:
    """Let a PyTorch pipeline stage note its passes, and name them in a profile as schedule text does."""
    forward, backward, weight = (
        stage.forward_one_chunk,
        stage.backward_one_chunk,
        stage.backward_weight_one_chunk,
    )
    index = stage.stage_index

    @contextlib.contextmanager
    def note(kind: Kind, microbatch: int) -> Iterator[None]:
        action = Action(index, kind, microbatch)
        with record_function(str(action)):
            start = time.perf_counter()
            yield
            passes.append(Pass(action, start, time.perf_counter()))

    def noted_forward(microbatch: int, *args: Any, **kwargs: Any) -> Any:
        with note(Kind.F, microbatch):
            return forward(microbatch, *args, **kwargs)

    def noted_backward(microbatch: int, *args: Any, full_backward: bool = True, **kwargs: Any) -> Any:
        with note(Kind.B if full_backward else Kind.I, microbatch):
            return backward(microbatch, *args, full_backward=full_backward, **kwargs)

    def noted_weight(microbatch: int, *args: Any, **kwargs: Any) -> Any:
        with note(Kind.W, microbatch):
            return weight(microbatch, *args, **kwargs)

    stage.forward_one_chunk = noted_forward
    stage.backward_one_chunk = noted_backward
    stage.backward_weight_one_chunk = noted_weight
