"""What ranks do for their stages' weights outside slots: parameters gathered, gradients reduced.

Tasks are on each rank's data-parallel stream, which is first in, first out: they are sorted by the slot whose end lets
them start. Dense weights are reduced over the data- and context-parallel GPUs, experts over those that hold the same
ones. At the step's end come, one after another, what only some ranks have to add up:

* the two copies of a stage (DualPipe): all without ZeRO, with it each rank the part of the shard that it updates;
* gradients of weights that every tensor-parallel GPU has, where each has seen a part of the sequence (Megatron-LM's
  all-reduce of norms' gradients);
* those of experts that lie on several GPUs of an expert-parallel group, once each GPU has those of its own tokens;
* those of vocabulary tables that several ranks hold for different stages, tied or for MTP (Megatron-LM's all-reduce of
  embedding gradients, of the whole table unless gradients are sharded).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from simpipe.simulator.costs import collectives, memory
from simpipe.simulator.costs.cluster import Cluster
from simpipe.simulator.costs.collectives import Exchange
from simpipe.simulator.costs.memory import Part, Weights
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.overlap import Laid
from simpipe.simulator.costs.parallel import Parallel, Stage
from simpipe.simulator.kernels import Ints
from simpipe.simulator.plan import Sync
from simpipe.simulator.program import Kind, Program

BUCKET_BYTES = 160e6
"""Gradients reduced at once: 40 million parameters in fp32, Megatron-LM's bucket."""

NORM_BYTES = 8.0
"""What the barrier's all-reduce sums over all GPUs: the squared gradient norm, and whether any gradient overflowed."""

Collective = Callable[[Cluster, float, int, int], Exchange]
Place = tuple[int, int]
"""A slot and the index of an operation in it, -1 for the slot's end or start."""


def between(cluster: Cluster, parallel: Parallel, source: int, target: int, size: float) -> Exchange:
    """Bytes from each GPU of a pipeline rank to its like of another. Ranks are the outermost dimension of the layout:
    each has consecutive GPUs, as Megatron-LM orders them."""
    width = parallel.gpus // parallel.ranks
    return collectives.point_to_point(cluster, size, source * width, target * width, width)


def barrier_latency(cluster: Cluster, parallel: Parallel) -> float:
    """Of the gradient norm's sum over all GPUs; nobody's optimizer starts before."""
    return collectives.seconds(cluster, collectives.all_reduce(cluster, NORM_BYTES, parallel.gpus))


class Timed(NamedTuple):
    """A sync with its exchange, and where it stands among those of its ranks: by the place whose end lets it start, a
    slot's own end after all operations in it."""

    sync: Sync
    exchange: Exchange
    when: tuple[int, float] = (0, 0)


class Bucket(NamedTuple):
    """Weights whose gradients are reduced together, once the operations at a place have ended."""

    place: Place
    weights: Weights


@dataclass(frozen=True)
class Outside:
    """The syncs of a step. stages: of the program. laid: a slot's operations."""

    model: Model
    cluster: Cluster
    parallel: Parallel
    program: Program
    stages: Sequence[Stage]
    laid: Callable[[int], Laid]

    def syncs(self) -> list[Timed]:
        """All of them, in the order of each rank's stream."""
        found = list[Timed]()
        for rank, held in enumerate(self.program.placement):
            found += self._visits(rank) if self.parallel.gathers_each_visit else ()
            for stage in () if self.parallel.gathers_each_visit else held:
                found += self._gathers(rank, stage)
            for stage in held:
                found += self._reductions(rank, stage)
        found.sort(key=lambda timed: timed.when)
        ends = [*self._copies(), *self._redundant(), *self._replicated(), *self._tables()]
        return [timed for timed in [*found, *ends] if timed.exchange.network_bytes + timed.exchange.nvlink_bytes]

    # Where weights are and when they are used.

    @cached_property
    def _first(self) -> Ints:
        """(ranks, stages) the first slot of each stage."""
        return self._extreme(np.ones(len(self.program.kind), bool), np.minimum, self.program.slots)

    @cached_property
    def _last(self) -> Ints:
        """(ranks, stages) the last slot that makes a stage's weight gradients."""
        return self._extreme(np.isin(self.program.kind, (Kind.W, Kind.B)), np.maximum, -1)

    def _extreme(self, chosen: np.ndarray, which: np.ufunc, start: int) -> Ints:
        program = self.program
        found = np.full((program.ranks, program.stages), start, np.int64)
        which.at(found, (program.action_rank[chosen], program.stage[chosen]), program.action_slot[chosen])
        return found

    def _parts(self, rank: int, stage: int) -> dict[Part, Weights]:
        """A stage's weights. A table that several stages of the rank read is with the one whose gradients come last."""
        own = self._read(stage)
        for other in self.program.placement[rank]:
            later = (self._last[rank, other], other) > (self._last[rank, stage], stage)
            own -= self._read(other) if later else set()
        key = (self.stages[stage], frozenset(own))
        if key not in self._known:
            self._known[key] = memory.parts(self.model, self.parallel, self.stages[stage], own)
        return self._known[key]

    def _read(self, stage: int) -> set[str]:
        return memory.tables(self.model, self.parallel, self.stages[stage])

    @cached_property
    def _known(self) -> dict[tuple[Stage, frozenset[str]], dict[Part, Weights]]:
        return {}

    # Parameters.

    def _gathers(self, rank: int, stage: int) -> Iterator[Timed]:
        """Once a step: pass by pass as the stage's first forward comes to them, or all before the rank's first slot."""
        p, program = self.parallel, self.program
        first, parts = int(self._first[rank, stage]), self._parts(rank, stage)
        if p.zero and p.gather_overlap:
            part = int(program.stage[program.slot_start[first]] != stage)
            needs = [((first, begun.piece), begun.number) for begun in self.laid(first).starts if begun.part == part]
            pieces = [(place, _held(parts, number)) for place, number in needs]
        elif p.zero:
            pieces = [((int(program.rank_start[rank]), -1), sum(parts.values(), Weights()))]
        else:
            pieces = []
        for place, held in pieces:
            yield Timed(_sync("all-gather", (rank,), (), (place,)), self._gather(stage, held), (first - 1, math.inf))

    def _visits(self, rank: int) -> Iterator[Timed]:
        """ZeRO 3 that does not keep parameters: those of each pass before each time it runs forward or back, fetched
        while the pass before it runs, as PyTorch's FSDP does, or once that has ended, if it is not overlapped."""
        program = self.program
        start = int(program.rank_start[rank])
        ready: list[Place] = []  # what the pass before waits for
        when = (start - 1, math.inf)
        exchanges: dict[Place, Exchange] = {}
        for slot in range(start, int(program.rank_start[rank + 1])):
            first, laid = int(program.slot_start[slot]), self.laid(slot)
            for begun in laid.starts:
                stage = int(program.stage[first + begun.part])
                needs = [(slot, piece) for piece in laid.pieces[begun.piece].needs]
                own = needs or ([(slot - 1, -1)] if slot > start else [])
                after, ready = (ready, own) if self.parallel.gather_overlap else (own, own)
                if (stage, begun.number) not in exchanges:
                    held = _held(self._parts(rank, stage), begun.number)
                    exchanges[stage, begun.number] = self._gather(stage, held)
                sync = _sync("all-gather", (rank,), tuple(after), ((slot, begun.piece),))
                when = max([when, *map(_ended, after)])  # in the order of need, also where two passes interleave
                yield Timed(sync, exchanges[stage, begun.number], when)

    def _gather(self, stage: int, held: Weights) -> Exchange:
        """From the shards of all copies of the stage."""
        copies = sum(stage in other for other in self.program.placement)
        return self._over_peers(collectives.all_gather, held.dense_bytes, held.expert_bytes, copies)

    # Gradients.

    def _reductions(self, rank: int, stage: int) -> Iterator[Timed]:
        """Gradients in buckets, each once the weight gradients of its layers are there: of a stage's last micro-batch,
        or with ZeRO 2 and 3 of every one. What is not overlapped comes at the rank's end, or before its next slot."""
        p, program = self.parallel, self.program
        name, way = "reduce-scatter", collectives.reduce_scatter
        if p.zero == 0:
            name, way = "all-reduce", collectives.all_reduce
        last = int(program.rank_start[rank + 1]) - 1
        slots = [int(self._last[rank, stage])]
        if p.zero >= 2:
            makes = np.isin(program.kind, (Kind.W, Kind.B)) & (program.stage == stage) & (program.action_rank == rank)
            slots = program.action_slot[makes].tolist()
        exchanges: dict[Weights, Exchange] = {}
        for slot in slots:
            end = slot if p.gradient_overlap or p.zero >= 2 else last
            before = ((slot + 1, -1),) if p.zero >= 2 and not p.gradient_overlap and slot < last else ()
            for place, held in self._buckets(rank, stage, slot) or [Bucket((end, -1), self._whole(rank, stage))]:
                if held not in exchanges:
                    exchanges[held] = self._over_peers(
                        way, held.dense * p.gradient_bytes, held.experts * p.gradient_bytes
                    )
                yield Timed(_sync(name, (rank,), (place,), before), exchanges[held], _ended(place))

    def _buckets(self, rank: int, stage: int, slot: int) -> list[Bucket]:
        """Full ones as a slot completes them, by what each leg of a layer really holds; none if nothing overlaps."""
        parts = dict(self._parts(rank, stage))
        made = self.laid(slot).gradients
        if not self.parallel.gradient_overlap or not made:
            return []
        found, held = list[Bucket](), Weights()
        for gradients in made:
            held += parts.pop((gradients.number, gradients.leg), Weights())
            if (held.dense + held.experts) * self.parallel.gradient_bytes >= BUCKET_BYTES:
                found.append(Bucket((slot, gradients.piece), held))
                held = Weights()
        return [*found, Bucket((slot, made[-1].piece), sum(parts.values(), held))]

    def _whole(self, rank: int, stage: int) -> Weights:
        return sum(self._parts(rank, stage).values(), Weights())

    def _over_peers(self, way: Collective, dense: float, experts: float, copies: int = 1) -> Exchange:
        """A collective of dense weights' bytes over their peers, and then of experts' over theirs."""
        p = self.parallel
        first = way(self.cluster, dense, p.dp * p.cp * copies, p.tp)
        return collectives.behind(first, way(self.cluster, experts, p.edp * copies, p.ep * p.etp))

    # At the end.

    def _copies(self) -> Iterator[Timed]:
        p = self.parallel
        for stage in range(self.program.stages):
            ranks = tuple(rank for rank, held in enumerate(self.program.placement) if stage in held)
            if len(ranks) < 2:
                continue
            held = self._whole(ranks[0], stage)
            size = held.dense + held.experts
            if p.zero:
                size = (held.dense / (p.dp * p.cp) + held.experts / p.edp) / len(ranks)
            exchange = between(self.cluster, p, ranks[0], ranks[1], size * p.gradient_bytes)
            yield Timed(
                _sync("reduce copies", ranks, tuple((int(self._last[rank, stage]), -1) for rank in ranks)), exchange
            )

    def _redundant(self) -> Iterator[Timed]:
        """Rings over the copies of each expert. All of one that has c copies send 2 (c - 1) times its gradient, so that
        all GPUs together send it twice for each copy too many, whichever experts those are."""
        p, experts, placement = self.parallel, self.model.experts, self.program.placement
        if experts is None or not p.redundant_experts:
            return
        sent, over = 2 * p.redundant_experts / (experts.routed + p.redundant_experts), p.copies_over(experts)
        for rank, held in enumerate(placement):
            whole = sum((self._whole(rank, stage) for stage in held), Weights())
            shards = p.edp * sum(held[0] in other for other in placement) if p.zero else 1
            size = sent * whole.experts / shards * p.gradient_bytes * over / (over - 1)
            exchange = collectives.all_to_all(self.cluster, size, over, p.etp)
            yield Timed(_sync("reduce experts", (rank,), (self._end(rank),)), exchange)

    def _replicated(self) -> Iterator[Timed]:
        p = self.parallel
        if p.tp > 1 and p.sequence_parallel:
            for rank, held in enumerate(self.program.placement):
                whole = sum((self._whole(rank, stage) for stage in held), Weights())
                exchange = collectives.all_reduce(self.cluster, whole.replicated * p.gradient_bytes, p.tp, 1)
                yield Timed(_sync("reduce norms", (rank,), (self._end(rank),)), exchange)

    def _tables(self) -> Iterator[Timed]:
        """Nothing where all that hold a table hold it for the same stages: then copies are added up already."""
        p, placement = self.parallel, self.program.placement
        sharded = p.dp * p.cp if p.zero >= 2 else 1
        for table, operation in (("embedding", self.model.embedding[0]), ("head", self.model.head[-1])):
            readers = {n for n in range(len(self.stages)) if any(own.endswith(table) for own in self._read(n))}
            ranks = tuple(rank for rank, held in enumerate(placement) if readers & set(held))
            if len({frozenset(readers & set(placement[rank])) for rank in ranks}) > 1:
                size = p.gradient_bytes * operation.parameters / p.tp / sharded
                apart = (ranks[-1] - ranks[0]) // (len(ranks) - 1) * (p.gpus // p.ranks)
                exchange = collectives.all_reduce(self.cluster, size, len(ranks), apart)
                yield Timed(_sync(f"reduce {table}", ranks, tuple(map(self._end, ranks))), exchange)

    def _end(self, rank: int) -> Place:
        return int(self._last[rank].max()), -1


def _ended(place: Place) -> tuple[int, float]:
    """A place by when it ends, among those of its rank."""
    slot, index = place
    return slot, math.inf if index < 0 else index


def _held(parts: dict[Part, Weights], number: int) -> Weights:
    """What a pass holds."""
    return sum((held for (of, _), held in parts.items() if of == number), Weights())


def _sync(name: str, ranks: tuple[int, ...], after: tuple[Place, ...], before: tuple[Place, ...] = ()) -> Sync:
    return Sync(name, ranks, "data-parallel", after, before)
