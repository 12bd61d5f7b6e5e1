"""Costs from first principles: a model, a machine and a parallel layout become the operations of every slot.

Stages whose layers are of the same kinds cost the same, so a step has few templates. Links are a rank's share of its
node: NVLink and NICs, each direction its own, shared by expert-parallel exchange, pipeline messages and the
data-parallel reduction alike.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar

import numpy as np

from simpipe.simulator.costs import collectives, memory, offload, operators, step
from simpipe.simulator.costs.cluster import Cluster
from simpipe.simulator.costs.collectives import Exchange
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.offload import Hosted
from simpipe.simulator.costs.operators import Passes
from simpipe.simulator.costs.overlap import Laid, lay_out
from simpipe.simulator.costs.parallel import Parallel, Stage, stages
from simpipe.simulator.costs.share import Step
from simpipe.simulator.costs.stack import Stack, load_stack
from simpipe.simulator.graph import BARRIER, OPTIMIZER, SYNC, Graph
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.plan import END, LAUNCHES, Numbers, Operation, Plan, Sync, Template
from simpipe.simulator.program import KINDS, Kind, Program

T = TypeVar("T")

KERNEL = "kernel"
"""The link that stands for what the SMs of a communication kernel can move."""


class Shape(NamedTuple):
    """What a stage costs follows from: kind and expert load of each of its layers, and what else it holds."""

    layers: tuple[tuple[str, float | tuple[float, ...]], ...]
    embedding: bool
    head: bool
    mtp: bool


SlotKey = tuple[tuple[str, Shape], ...]
"""What a slot runs apart from its micro-batches: kind of each action and the shape of its stage."""

Tokens = tuple[int, ...]
"""Tokens per sequence of the micro-batch of each of a slot's actions."""


class Piece(NamedTuple):
    """Numbers of one operation, as Loads holds them: see there."""

    latency: float
    work: float
    held: float
    slowed: float
    weights: tuple[float, ...]


class PassSeconds(NamedTuple):
    """What a pass takes at least: on the compute stream; and as a chain, what can run beside it left out."""

    compute: float
    chain: float


@dataclass(frozen=True, eq=False)
class ModelledCosts:
    """The costs of a step of `model` on `cluster`, laid out as `parallel`; implements plan.StepCosts.

    speeds: how many times as long as its profile says each rank computes; those left out are 1. lengths: tokens per
    sequence of each micro-batch, if not all are the layout's `sequence`; each costs what a step of that length does.
    stack: the software; by default a present-day one.
    of_slots: what was found of slots so far; costs of one model and cluster, whose layouts agree in
    Parallel.of_slots, may share it.
    """

    model: Model
    cluster: Cluster
    parallel: Parallel
    speeds: tuple[float, ...] = ()
    lengths: tuple[int, ...] = ()
    stack: Stack = field(default_factory=load_stack)
    of_slots: dict[Any, Any] = field(default_factory=dict, repr=False)
    _known: dict[Any, Any] = field(default_factory=dict, repr=False)

    # What StepCosts asks for.

    def plan(self, program: Program) -> Plan:
        """A template for each kind of slot, and what reduces gradients and gathers parameters outside them."""
        syncs = tuple(sync for sync, _ in self.syncs(program))
        return replace(self.plan_slots(program), syncs=syncs, barrier=True, optimizer=True)

    def plan_slots(self, program: Program) -> Plan:
        """The part of the plan that is of slots and links alone."""
        kinds, template_of = self._kinds(program)
        templates = tuple(self._template(key) for key in kinds)
        return Plan(templates, template_of, (), self.all_links, self.message_links)

    @cached_property
    def links(self) -> tuple[str, ...]:
        """A rank's links: its share of NICs, NVLink and oversubscribed switches each way, and a kernel's."""
        kinds = collectives.capacities(self.cluster)
        return (*(f"{kind}_{way}" for kind in kinds for way in ("out", "in")), KERNEL)

    @property
    def all_links(self) -> tuple[str, ...]:
        """Those, and the ones to the host's memory where something is kept there."""
        return self.links + offload.links(self.parallel)

    @property
    def _message_kinds(self) -> tuple[str, ...]:
        """The kinds of links that messages take: NVLink where a rank's GPUs do not fill a domain, or where they change
        rails there."""
        kinds = [*collectives.capacities(self.cluster)]
        domain, gpus = self.cluster.node.nvlink.domain_gpus, self.cluster.node.gpus
        if self.parallel.gpus <= domain:
            return ("nvlink",)
        inside = self._stage_gpus < domain or (self.cluster.network.planes > 1 and self._stage_gpus % gpus > 0)
        return tuple(kind for kind in kinds if kind != "nvlink" or inside)

    @property
    def message_links(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """The links that a message leaves by, and those it arrives by."""
        kinds = self._message_kinds
        return tuple(f"{kind}_out" for kind in kinds), tuple(f"{kind}_in" for kind in kinds)

    def fill(self, graph: Graph, numbers: Numbers) -> None:
        """Latency, work, weights, held and slowed of every task, and the links' capacities."""
        self.fill_slots(graph, numbers)
        self.fill_outside(graph, numbers, [exchange for _, exchange in self.syncs(graph.program)])

    def fill_slots(self, graph: Graph, numbers: Numbers) -> None:
        """The numbers of the tasks in slots, and the links' capacities."""
        program = graph.program
        first = graph.slot_tasks.items[graph.slot_tasks.start[:-1]][: program.slots]
        for key, tokens, slots in self.alike(program):
            self._fill_slots(graph, numbers, first[slots][:, None], self._pieces(key, tokens))
        self._slow_down(graph, numbers)
        numbers.capacity[:] = self.capacities(program)

    def steps(self, graph: Graph) -> Iterator[tuple[Step, Ints]]:
        """Each step of each kind of slot, and the tasks that are it."""
        first = graph.slot_tasks.items[graph.slot_tasks.start[:-1]][: graph.program.slots]
        for key, tokens, slots in self.alike(graph.program):
            for number, piece in enumerate(self._laid(key, tokens).pieces):
                yield piece.step, first[slots] + number

    def capacities(self, program: Program) -> Floats:
        """(links,) of each rank's links; that of a communication kernel is 1, its weight the inverse of its limit."""
        return np.tile(self._rank_capacities, program.ranks)

    def fill_outside(self, graph: Graph, numbers: Numbers, exchanges: Sequence[Exchange | Hosted]) -> None:
        """The numbers of messages, optimizer steps, and syncs, whose `exchanges` are in the order of their tasks."""
        self._fill_messages(graph, numbers)
        self._fill_syncs(graph, numbers, exchanges)
        numbers.latency[graph.word == BARRIER] = step.barrier_latency(self.cluster, self.parallel)
        ranks = range(graph.program.ranks)
        numbers.work[graph.word == OPTIMIZER] = [self._optimizer_seconds(graph.program, rank) for rank in ranks]

    def activation(self, program: Program) -> Floats:
        """(actions,) bytes that each F keeps, after recomputation."""
        length = self._tokens(program) / self.parallel.sequence  # all that is kept is proportional to it
        kept = self._by_stage(
            program,
            "activation",
            lambda s: memory.total(memory.activation(self.model, self.parallel, s, self._kernels)),
            self.of_slots,
        )
        return np.where(program.kind == Kind.F, np.array(kept)[program.stage], 0.0) * length

    def release(self, program: Program) -> Floats:
        """(stages,) the share of an activation that I frees: negative where I leaves more for W than it frees.

        I keeps for W the gradients of products' outputs, and the inputs that it recomputed.
        """
        return np.array(self._by_stage(program, "release", self._stage_release, self.of_slots))

    def _stage_release(self, stage: Stage) -> float:
        split = memory.released_by_input(self.model, self.parallel, stage, self._kernels)
        freed, kept, added = map(memory.total, split)
        return (freed - added) / (freed + kept) if freed + kept else 0.0

    def parameters(self, program: Program) -> Floats:
        """(stages,) bytes of parameters on each GPU of a stage."""
        return np.array(
            self._by_stage(program, "parameters", lambda s: memory.static(self.model, self.parallel, [s])["parameters"])
        )

    # What its figures ask for.

    def static_bytes(self, program: Program, rank: int) -> dict[str, float]:
        """Bytes by kind that a GPU of a rank holds all step long."""
        held = program.placement[rank]
        copies = _copies_of(program, rank)
        shapes = self._shapes(program)
        key = ("static", *(shapes[stage] for stage in held), copies)
        if key not in self._known:
            self._known[key] = memory.static(self.model, self.parallel, self._held(program)[rank], copies)
        return self._known[key]  # type: ignore[no-any-return]

    def transient_bytes(self, program: Program) -> Floats:
        """(slots,) bytes that a slot needs while it runs, beside activations; an F&B slot what both actions need."""
        tokens, brought = self._tokens(program), np.zeros(len(program.kind))
        for length in {*(self.lengths or (self.parallel.sequence,))}:
            for kind in np.flatnonzero(np.bincount(program.kind)).tolist():
                each = np.array([memory.total(kinds) for kinds in self._transient(program, length, kind)])
                here = (program.kind == kind) & (tokens == length)
                brought[here] = each[program.stage[here]]
        return np.asarray(np.add.reduceat(brought, program.slot_start[:-1]), float)

    def transient_kinds(self, program: Program, slot: int) -> dict[str, float]:
        """The same of one slot, by kind."""
        actions = range(int(program.slot_start[slot]), int(program.slot_start[slot + 1]))
        tokens = self._tokens(program)
        parts = [
            self._transient(program, int(tokens[action]), int(program.kind[action]))[program.stage[action]]
            for action in actions
        ]
        return {kind: sum(part[kind] for part in parts) for kind in parts[0]}

    def computed_flops(self, program: Program) -> float:
        """FLOPs of a step's matrix products on a GPU of each rank, recomputation included, loads being balanced."""
        p = self.parallel
        if not p.balanced:
            balanced = p.with_load(1.0)
            return replace(self, parallel=balanced, of_slots={}, _known={}).computed_flops(program)
        return sum(
            len(slots) * sum(piece.step.flops for piece in self._laid(key, tokens).pieces)
            for key, tokens, slots in self.alike(program)
        )

    def pass_seconds(self) -> tuple[PassSeconds, PassSeconds, PassSeconds]:
        """Of one micro-batch through all layers, embedding, MTP and head: forward, for inputs, for weights."""
        if "passes" in self.of_slots:
            return self.of_slots["passes"]  # type: ignore[no-any-return]
        every = Stage(0, tuple(range(self.model.layers)), True, True, self.model.mtp_modules > 0)
        found = [[0.0, 0.0] for _ in range(3)]
        for passes in self._passes(self._shape(every), self.parallel.sequence):
            for totals, steps in zip(found, passes, strict=True):
                totals[0] += sum(step.latency + step.seconds for step in steps if "compute" in step.streams)
                totals[1] += sum(self._least_seconds(step) for step in steps if not step.name.startswith("shared."))
        forward, inputs, weights = (PassSeconds(*totals) for totals in found)
        self.of_slots["passes"] = forward, inputs, weights
        return forward, inputs, weights

    def sync_seconds(self, program: Program) -> Floats:
        """(ranks,) of a rank's collectives outside slots, one after another with nothing beside them."""
        seconds = np.zeros(program.ranks)
        for sync, exchange in self.syncs(program):
            if isinstance(exchange, Exchange):
                seconds[list(sync.ranks)] += self._alone(self._transfer(exchange, self.parallel.communication_sms))
        return seconds

    def _least_seconds(self, step: Step) -> float:
        """Of a step with nothing beside it."""
        return self._alone(self._piece(step))

    def _alone(self, piece: Piece) -> float:
        rates = [weight / capacity for weight, capacity in zip(piece.weights, self._rank_capacities, strict=False)]
        return piece.latency + (piece.work * max(rates) if rates else piece.work)

    @cached_property
    def _rank_capacities(self) -> list[float]:
        each_way = np.repeat([*collectives.capacities(self.cluster).values()], 2).tolist()
        return [*each_way, 1.0, *offload.capacities(self.cluster, self.parallel)]

    def trained_tokens(self) -> int:
        """Tokens of a step."""
        p = self.parallel
        return p.dp * p.microbatch_size * sum(self.lengths or p.microbatches * (p.sequence,))

    def model_flops(self, causal: bool) -> float:
        """FLOPs of a step that the model asks for, over all GPUs: without recomputation, without MTP."""
        p = self.parallel
        found = Counter(self.lengths or p.microbatches * (p.sequence,))
        return (
            p.dp
            * p.microbatch_size
            * sum(
                count * tokens * sum(self.model.training_flops(tokens, causal=causal).values())
                for tokens, count in sorted(found.items())
            )
        )

    def _transient(self, program: Program, tokens: int, kind: int) -> list[dict[str, float]]:
        of, kernels, name = (self.model, self.parallel.with_sequence(tokens)), self._kernels, KINDS[kind].name
        return self._by_stage(program, ("transient", tokens, kind), lambda s: memory.transient(*of, s, kernels, name))

    def _by_stage(
        self, program: Program, what: Any, value: Callable[[Stage], T], known: dict[Any, Any] | None = None
    ) -> list[T]:
        """A value of each stage, found once for stages of equal layers and kept in `known`."""
        known = self._known if known is None else known
        every = self.stages(program)
        shapes = self._shapes(program)
        for shape, stage in zip(shapes, every, strict=True):
            if (what, shape) not in known:
                known[what, shape] = value(stage)
        return [known[what, shape] for shape in shapes]

    @property
    def _kernels(self) -> memory.Kernels:
        stack = self.stack
        return memory.Kernels(stack.fused_attention, stack.dropout, stack.logit_bytes, stack.keeps_gathered)

    # Stages and kinds of slots.

    def stages(self, program: Program) -> tuple[Stage, ...]:
        """The model's layers over the program's stages."""
        if program.stages not in self._known:
            self._known[program.stages] = stages(self.model, self.parallel, program.stages)
        return self._known[program.stages]  # type: ignore[no-any-return]

    def _held(self, program: Program) -> list[list[Stage]]:
        """The stages of each rank."""
        every = self.stages(program)
        return [[every[stage] for stage in held] for held in program.placement]

    def _kinds(self, program: Program) -> tuple[list[SlotKey], Ints]:
        """The kinds of slots there are, and (slots,) which one each is. Stages of equal layers are one class."""
        key = ("kinds", id(program))
        if key not in self._known:
            self._known[key] = program, self._find_kinds(program)  # the program too, that nothing else gets its id
        return self._known[key][1]  # type: ignore[no-any-return]

    def _find_kinds(self, program: Program) -> tuple[list[SlotKey], Ints]:
        every = self.stages(program)
        shapes = self._shapes(program)
        likeness = np.array([shapes.index(shape) for shape in shapes])
        code = program.kind * len(every) + likeness[program.stage]
        base = len(KINDS) * len(every) + 1
        first = program.slot_start[:-1]
        second = np.where(np.diff(program.slot_start) == 2, code[np.minimum(first + 1, len(code) - 1)] + 1, 0)
        codes, template_of = np.unique(code[first] * base + second, return_inverse=True)
        keys = []
        for number in codes.tolist():
            one, two = divmod(number, base)
            actions = [one] if two == 0 else [one, two - 1]
            keys.append(tuple((KINDS[a // len(every)].name, shapes[a % len(every)]) for a in actions))
        return keys, np.asarray(template_of, np.int64)

    def alike(self, program: Program) -> Iterator[tuple[SlotKey, Tokens, Ints]]:
        """Slots that cost the same: their key, the length of each action's micro-batch, which they are."""
        kinds, template_of = self._kinds(program)
        length = self._tokens(program)
        for number, key in enumerate(kinds):
            slots = np.flatnonzero(template_of == number)
            each = length[program.slot_start[slots][:, None] + np.arange(len(key))]
            found, which = np.unique(each, axis=0, return_inverse=True)
            for row, tokens in enumerate(found.tolist()):
                yield key, tuple(tokens), slots[which.reshape(-1) == row]

    def _shapes(self, program: Program) -> list[Shape]:
        """The shape of each stage."""
        key = ("shapes", program.stages)
        if key not in self._known:
            self._known[key] = [self._shape(stage) for stage in self.stages(program)]
        return self._known[key]  # type: ignore[no-any-return]

    def _shape(self, stage: Stage) -> Shape:
        layers = tuple(
            (self.model.layer(index).kind, self.parallel.layer_load(self.model, index)) for index in stage.layers
        )
        return Shape(layers, stage.embedding, stage.head, stage.mtp)

    def _laid(self, key: SlotKey, tokens: Tokens = ()) -> Laid:
        """A slot of one or two actions; its structure is the same for every length."""
        tokens = tokens or (self.parallel.sequence,) * len(key)
        if (key, tokens) not in self.of_slots:
            passes = {kind: self._passes(shape, n) for (kind, shape), n in zip(key, tokens, strict=True)}
            forward = passes.get("F", [])
            backward = next((found[::-1] for kind, found in passes.items() if kind != "F"), [])
            parts = {kind: number for number, kind in enumerate(passes)}
            self.of_slots[key, tokens] = lay_out(forward, backward, parts, self.parallel.overlap)
        return self.of_slots[key, tokens]  # type: ignore[no-any-return]

    def _passes(self, shape: Shape, tokens: int) -> list[Passes]:
        """A stage's passes, in the order of its forward: embedding, layers, MTP modules, head."""
        found = [self._outer_passes(operators.embedding_passes, tokens)] if shape.embedding else []
        found += [self._layer_passes(kind, load, tokens) for kind, load in shape.layers]
        found += self._outer_passes(operators.mtp_passes, tokens) if shape.mtp else ()
        return found + ([self._outer_passes(operators.head_passes, tokens)] if shape.head else [])

    def _outer_passes(self, make: Callable[[Model, Cluster, Parallel, Stack], T], tokens: int) -> T:
        """Passes of what is none of the layers, found once."""
        if (make, tokens) not in self.of_slots:
            parallel = self.parallel.with_sequence(tokens)
            self.of_slots[make, tokens] = make(self.model, self.cluster, parallel, self.stack)
        return self.of_slots[make, tokens]  # type: ignore[no-any-return]

    def _layer_passes(self, kind: str, load: float | tuple[float, ...], tokens: int) -> Passes:
        """A layer's passes, found once for layers of a kind and load."""
        key = ("layer", kind, load, tokens)
        if key not in self.of_slots:
            layer = self.model.layer(0 if kind == "dense" else self.model.layers - 1)
            parallel = self.parallel.with_sequence(tokens).with_load(load)
            self.of_slots[key] = operators.passes(self.model, self.cluster, parallel, self.stack, layer)
        return self.of_slots[key]  # type: ignore[no-any-return]

    # Operations.

    def _template(self, key: SlotKey) -> Template:
        """A slot's operations, and one that ends it on all streams that slots use."""
        laid, part = self._laid(key), -1 if len(key) == 2 else 0
        found = [
            Operation(piece.step.name, piece.step.streams, piece.needs, piece.part, self._links_of(piece.step))
            for piece in laid.pieces
        ]
        last = (len(found) - 1,) if found else ()
        if self.stack.host.aside:
            found.append(Operation(LAUNCHES, ("host",), (), 0))
        return (*found, Operation(END, self._streams, last, part))

    @cached_property
    def _streams(self) -> tuple[str, ...]:
        """The streams that steps of any layer occupy."""
        kinds = sorted({self.model.layer(index).kind for index in range(self.model.layers)})
        passes = [self._layer_passes(kind, self.parallel.expert_imbalance, self.parallel.sequence) for kind in kinds]
        steps = [step for layer in passes for part in layer for step in part]
        host = ["host"] if self.stack.host.aside else []
        return tuple(dict.fromkeys(["compute", *(name for step in steps for name in step.streams), *host]))

    def _links_of(self, step: Step) -> tuple[str, ...]:
        return self.links if step.network_bytes or step.nvlink_bytes else ()

    def _pieces(self, key: SlotKey, tokens: Tokens) -> list[Piece]:
        """Those of the steps; of the host, which launches their kernels beside them; and of the end, with what the host
        waits there for messages."""
        steps, host = [piece.step for piece in self._laid(key, tokens).pieces], self.stack.host
        found = [self._piece(step) for step in steps]
        if host.aside:
            found.append(Piece(0.0, host.launch * sum(step.launches for step in steps), 0.0, 0.0, ()))
        waits = host.sync if self.parallel.ranks > 1 else 0.0
        return [*found, Piece(waits, 0.0, 0.0, 0.0, ())]

    def _piece(self, step: Step) -> Piece:
        if self._links_of(step):
            return self._transfer(step.exchange, step.sms)
        held = self.parallel.communication_sms / self.cluster.gpu.sms
        beside = step.beside * self.cluster.gpu.interference
        slowed = (1 - step.seconds / beside) / held if held and beside > step.seconds else 0.0
        return Piece(step.latency, step.seconds, 0.0, slowed, ())

    def _transfer(self, exchange: Exchange, sms: int) -> Piece:
        """Work in bytes over all links together; each link's weight is its share of them.

        What it fills of the L2 cache slows what computes beside it, as if it held more SMs.
        """
        total, moved = exchange.network_bytes + exchange.nvlink_bytes, collectives.link_bytes(exchange)
        shares = [moved[kind] / total if total else 0.0 for kind in collectives.capacities(self.cluster)]
        weights = (*(share for share in shares for _ in range(2)), 1 / exchange.rate_limit)
        left = (1 - sms / self.cluster.gpu.sms) * (1 - exchange.cache_share) ** self.cluster.exchange.l2_exponent
        return Piece(exchange.latency, total, 1 - left, 0.0, weights)

    def _fill_slots(self, graph: Graph, numbers: Numbers, first: Ints, pieces: list[Piece]) -> None:
        """The tasks of all slots of one kind; `first` is a column of each one's first task."""
        tasks = first + np.arange(len(pieces))
        for name in ("latency", "work", "held", "slowed"):
            getattr(numbers, name)[tasks] = [getattr(piece, name) for piece in pieces]
        routed = [(index, weight) for index, piece in enumerate(pieces) for weight in enumerate(piece.weights)]
        if routed:
            index, (link, weight) = np.array([i for i, _ in routed]), zip(*(pair for _, pair in routed), strict=True)
            numbers.weight[graph.route.start[first + index] + np.array(link)] = weight

    def _fill_messages(self, graph: Graph, numbers: Numbers) -> None:
        """By the ranks at both ends and the micro-batch's length. One that its rate limits fills its links as long."""
        program, message, kinds = graph.program, np.flatnonzero(graph.message), self._message_kinds
        to, length = program.action_rank[graph.partner[message]], self._tokens(program)[graph.action[message]]
        sizes = program.ranks, program.ranks, int(length.max(initial=0)) + 1
        code = np.ravel_multi_index((graph.rank[message], to, length), sizes)  # sorted faster than three columns
        found, which = np.unique(code, return_inverse=True)
        sent = [
            step.between(self.cluster, self.parallel, source, target, self._message_bytes(tokens))
            for source, target, tokens in zip(*(part.tolist() for part in np.unravel_index(found, sizes)), strict=True)
        ]
        most = np.array([max(exchange.network_bytes, exchange.nvlink_bytes) for exchange in sent])
        moved = [collectives.link_bytes(exchange) for exchange in sent]
        weights = np.array([[part[kind] for kind in kinds] for part in moved]).reshape(-1, len(kinds)) / most[:, None]
        weights *= np.array([collectives.slowed(self.cluster, exchange) for exchange in sent])[:, None]
        numbers.latency[message] = np.array([exchange.latency for exchange in sent])[which]
        numbers.work[message] = most[which]
        entries = graph.route.start[message][:, None] + np.arange(2 * len(kinds))
        numbers.weight[entries] = np.tile(weights, 2)[which]

    def _fill_syncs(self, graph: Graph, numbers: Numbers, exchanges: Sequence[Exchange | Hosted]) -> None:
        known: dict[int, Piece] = {}
        for task, exchange in zip(np.flatnonzero(graph.word == SYNC).tolist(), exchanges, strict=True):
            if isinstance(exchange, Hosted):
                numbers.work[task] = exchange.seconds + exchange.bytes
                continue
            if id(exchange) not in known:
                known[id(exchange)] = self._transfer(exchange, self.parallel.communication_sms)
            piece = known[id(exchange)]
            numbers.latency[task], numbers.work[task], numbers.held[task] = piece[:3]
            entries = slice(graph.route.start[task], graph.route.start[task + 1])
            numbers.weight[entries] = np.resize(piece.weights, entries.stop - entries.start)  # on each of its ranks

    def _slow_down(self, graph: Graph, numbers: Numbers) -> None:
        """Slow ranks compute longer."""
        inside = np.flatnonzero((graph.slot >= 0) & (graph.action >= 0))
        computes = (np.diff(graph.route.start)[inside] == 0) & ~np.isin(inside, graph.launches)
        speeds = np.ones(graph.program.ranks)
        speeds[: len(self.speeds)] = self.speeds
        numbers.work[inside] *= np.where(computes, speeds[graph.rank[inside]], 1.0)

    def _tokens(self, program: Program) -> Ints:
        """(actions,) tokens per sequence of each one's micro-batch."""
        lengths = np.array(self.lengths or (self.parallel.sequence,) * program.microbatches, np.int64)
        return lengths[program.microbatch]

    # Outside slots.

    @property
    def _stage_gpus(self) -> int:
        return self.parallel.gpus // self.parallel.ranks

    def _message_bytes(self, tokens: int) -> float:
        """A boundary activation or its gradient, bf16, on one GPU."""
        p = self.parallel.with_sequence(tokens)
        split = p.cp * (p.tp if p.sequence_parallel or self.stack.scattered_messages else 1)
        return 2.0 * p.tokens * self.model.hidden / split

    def _optimizer_seconds(self, program: Program, rank: int) -> float:
        """A memory-bound kernel reads and writes its shard of gradients, master weights and moments; then come the
        stack's other passes over them, moving averages kept there, and what the stack does once a step."""
        p, moved = self.parallel, 0.0
        if p.optimizer_device == "gpu":
            moved += 2 * (p.master_bytes + 2 * p.moment_bytes + p.gradient_bytes) + self.stack.optimizer_bytes
        if p.averages == "gpu":
            moved += p.master_bytes + 2 * offload.AVERAGE_BYTES
        return self.cluster.memory_seconds(moved * self.updated(program, rank).parameters) + self.stack.host.step

    def updated(self, program: Program, rank: int) -> offload.Shard:
        """What a GPU of a rank updates."""
        return memory.updated(self.model, self.parallel, self._held(program)[rank], _copies_of(program, rank))

    def syncs(self, program: Program) -> list[tuple[Sync, Exchange | Hosted]]:
        """What ranks do for their stages' gradients and parameters, in the order of each one's data-parallel stream,
        and then what their hosts do."""
        kinds, template_of = self._kinds(program)
        outside = step.Outside(
            self.model, self.cluster, self.parallel, program, self.stages(program),
            lambda slot: self._laid(kinds[template_of[slot]]),
        )  # fmt: skip
        done: list[tuple[Sync, Exchange | Hosted]] = []
        done += [(timed.sync._replace(links=self.links), timed.exchange) for timed in outside.syncs()]
        for rank in range(program.ranks):
            done += offload.syncs(self.cluster, self.parallel, rank, self.updated(program, rank))
        return done


def _copies_of(program: Program, rank: int) -> int:
    """Ranks that hold a rank's stages, itself included."""
    return max(sum(stage in other for other in program.placement) for stage in program.placement[rank])
