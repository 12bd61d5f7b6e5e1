"""What ranks do for their stages' weights outside slots: parameters gathered, gradients reduced.

Tasks are on each rank's data-parallel stream, which is first in, first out: they are sorted by the slot whose end lets
them start. Dense weights are reduced over the data- and context-parallel GPUs, experts over those that hold the same
ones. At the step's end come, one after another, what only some ranks have to add up:

* the two copies of a stage (DualPipe): all without ZeRO, with it each rank the part of the shard that it updates;
* gradients of weights that every tensor-parallel GPU has, where each has seen a part of the sequence (Megatron-LM's
  all-reduce of norms' gradients);
* those of vocabulary tables that several ranks hold for different stages, tied or for MTP (Megatron-LM's all-reduce of
  embedding gradients, of the whole table unless gradients are sharded).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
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
    """A sync with its exchange, and where it stands among those of its ranks."""

    sync: Sync
    exchange: Exchange
    when: tuple[int, int, int] = (0, 0, 0)


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
            for stage in held:
                found += self._gathers(rank, stage)
                found += self._reductions(rank, stage)
        found.sort(key=lambda timed: timed.when)
        ends = [*self._copies(), *self._replicated(), *self._tables()]
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
        """ZeRO 1 and 2: parameters once, pass by pass as the stage's first forward comes to them; before the rank's
        first slot if that is not overlapped. ZeRO 3: the same if it keeps them, else before every F, I and B of the
        stage, fetched while the slot before it runs."""
        p, program, parts = self.parallel, self.program, self._parts(rank, stage)
        start, first = int(program.rank_start[rank]), int(self._first[rank, stage])
        whole = self._gather(stage, parts.values())
        if p.gathers_each_visit:
            ahead = 2 if p.gather_overlap else 1
            needs = (program.action_rank == rank) & (program.stage == stage) & (program.kind != Kind.W)
            for slot in np.unique(program.action_slot[needs]).tolist():
                after = ((slot - ahead, -1),) if slot - ahead >= start else ()
                sync = _sync("all-gather", (rank,), after, ((slot, -1),))
                yield Timed(sync, whole, (slot - ahead, 0, slot))
        elif p.zero and p.gather_overlap:
            for number, piece in enumerate(self.laid(first).starts):
                some = [held for (of, _), held in parts.items() if of == number]
                sync = _sync("all-gather", (rank,), (), ((first, piece),))
                yield Timed(sync, self._gather(stage, some), (first - 1, 0, number))
        elif p.zero:
            yield Timed(_sync("all-gather", (rank,), (), ((start, -1),)), whole, (first - 1, 0, 0))

    def _gather(self, stage: int, some: Iterable[Weights]) -> Exchange:
        """From the shards of all copies of the stage."""
        held = sum(some, Weights())
        copies = sum(stage in other for other in self.program.placement)
        return self._over_peers(collectives.all_gather, held.dense_bytes, held.expert_bytes, copies)

    # Gradients.

    def _reductions(self, rank: int, stage: int) -> Iterator[Timed]:
        """Gradients in buckets, each once the last micro-batch's weight gradients of its layers are there.

        ZeRO 2 and 3 reduce every micro-batch's, after its slot.
        """
        p, program = self.parallel, self.program
        name, way = "reduce-scatter", collectives.reduce_scatter
        if p.zero == 0:
            name, way = "all-reduce", collectives.all_reduce
        if p.zero >= 2:
            makes = np.isin(program.kind, (Kind.W, Kind.B)) & (program.stage == stage) & (program.action_rank == rank)
            whole = sum(self._parts(rank, stage).values(), Weights())
            buckets = [Bucket((slot, -1), whole) for slot in program.action_slot[makes].tolist()]
        else:
            buckets = self._buckets(rank, stage)
        for order, (place, held) in enumerate(buckets):
            exchange = self._over_peers(way, held.dense * p.gradient_bytes, held.experts * p.gradient_bytes)
            yield Timed(_sync(name, (rank,), (place,)), exchange, (place[0], 1, order))

    def _buckets(self, rank: int, stage: int) -> list[Bucket]:
        """Full ones as the stage's last backward completes them, by what each leg of a layer really holds."""
        parts, slot = dict(self._parts(rank, stage)), int(self._last[rank, stage])
        made = self.laid(slot).gradients
        if not self.parallel.gradient_overlap or not made:
            end = slot if self.parallel.gradient_overlap else int(self.program.rank_start[rank + 1]) - 1
            return [Bucket((end, -1), sum(parts.values(), Weights()))]
        found, held = list[Bucket](), Weights()
        for gradients in made:
            held += parts.pop((gradients.number, gradients.leg), Weights())
            if (held.dense + held.experts) * self.parallel.gradient_bytes >= BUCKET_BYTES:
                found.append(Bucket((slot, gradients.piece), held))
                held = Weights()
        return [*found, Bucket((slot, made[-1].piece), sum(parts.values(), held))]

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
            held = sum(self._parts(ranks[0], stage).values(), Weights())
            size = held.dense + held.experts
            if p.zero:
                size = (held.dense / (p.dp * p.cp) + held.experts / p.edp) / len(ranks)
            exchange = between(self.cluster, p, ranks[0], ranks[1], size * p.gradient_bytes)
            yield Timed(
                _sync("reduce copies", ranks, tuple((int(self._last[rank, stage]), -1) for rank in ranks)), exchange
            )

    def _replicated(self) -> Iterator[Timed]:
        p = self.parallel
        if p.tp > 1 and p.sequence_parallel:
            for rank, held in enumerate(self.program.placement):
                whole = sum((part for stage in held for part in self._parts(rank, stage).values()), Weights())
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


def _sync(name: str, ranks: tuple[int, ...], after: tuple[Place, ...], before: tuple[Place, ...] = ()) -> Sync:
    return Sync(name, ranks, "data-parallel", after, before)
