"""Memory: bytes that a GPU holds for its stages, and for each micro-batch that is between its F and its backward.

Every count is a sum over Model's operations of what the backward of each one reads: a matrix product its input, the
attention core Q, K, V, its output and the softmax's statistics, a norm and an activation function their inputs.
A tensor that two operations read is kept once. `Kernels` says how attention is computed: fused (flash), as training
does today, or with its scores in memory and dropout masks, as Megatron's formulas count (arXiv 2205.05198).

Bytes are exact bytes; "GB" of that paper's figures are GiB. Norms' means and variances (4 bytes a row) are left out.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple

from simpipe.simulator.costs.cluster import BYTES_PER_ELEMENT
from simpipe.simulator.costs.collectives import expert_spread
from simpipe.simulator.costs.model import Activation, Core, Layer, Linear, Lookup, Model, Norm, Operation
from simpipe.simulator.costs.offload import AVERAGE_BYTES, Shard
from simpipe.simulator.costs.parallel import Parallel, Stage

Bytes = dict[str, float]

FRAMEWORK_BYTES = 2.0 * 2**30
"""Assumed, per GPU: CUDA context, library workspaces, communicators' buffers and the allocator's fragments."""

HIDDEN_BYTES = 2.0
"""The residual stream and its gradient, norms, embedding, router, attention core and head are bf16 in every format."""

LOGIT_BYTES = 6.0
"""Per logit with a fused cross entropy: the bf16 logit (later its gradient) and the fp32 softmax."""

E5M6_BYTES = 1.5
"""What DeepSeek-V3 keeps of the attention's output, for its core and for the product after it (2412.19437, 3.3.3)."""

SCALE_BYTES = 4 / 128
"""Per element of fp8 scaled by blocks: an fp32 scale for 128 elements."""


class Kernels(NamedTuple):
    """flash: attention's scores are never in memory. dropout: masks of 1 byte are kept, and the dropped scores.
    logit_bytes: of a logit at the peak. gathered: products keep their input as sequence parallelism gathered it."""

    flash: bool = True
    dropout: bool = False
    logit_bytes: float = LOGIT_BYTES
    gathered: bool = False


FUSED = Kernels()
MEGATRON = Kernels(flash=False, dropout=True)
"""As the formulas of arXiv 2205.05198 and the runs of the Zero Bubble paper (2401.10241) count."""


# What operations share among GPUs: by name, as Model gives them.


class _Split(NamedTuple):
    """Regions (see `_rows`) in which a matrix product's input and output lie."""

    input: str
    output: str


_COLUMN, _ROW = _Split("sequence", "tensor"), _Split("tensor", "sequence")
_REPLICATED = _Split("sequence", "sequence")
_SPLITS = {
    "attention.out": _ROW,
    "mlp.down": _ROW,
    "shared.down": _ROW,
    "attention.q_down": _REPLICATED,
    "attention.kv_down": _REPLICATED,
    "router": _REPLICATED,
    "mtp.join": _REPLICATED,
    "experts.up": _Split("dispatched", "expert"),
    "experts.down": _Split("expert", "dispatched"),
}
"""Products split other than by columns."""

_HIGH_PRECISION = ("router", "head")
"""Products that fp8 training leaves in bf16."""

_REMADE = {"attention.out": (), "experts.up": (), "mlp.down": ("swiglu",), "shared.down": ("swiglu",)}
_REMADE |= {"experts.down": ("swiglu",)}
"""Recomputations that make a product's input anew; any other product reads a norm's output ("norms")."""

_MASKED = ("attention.out", "mlp.down")
"""Products whose output passes a dropout, where there is one."""


def _rows(parallel: Parallel, region: str) -> float:
    """Rows of one micro-batch that a GPU holds, counting a width divided by n as 1 / n of the rows.

    "sequence": the residual stream. "tensor": widths divided by tensor parallelism. "dispatched": tokens at their
    experts, one for each of a token's experts, where each GPU sends its part of the tokens. "expert": the same, of
    widths divided by expert tensor parallelism.
    """
    tokens = parallel.tokens / parallel.cp
    if region == "tensor":
        return tokens / parallel.tp
    if region == "sequence":
        return tokens / parallel.tp if parallel.sequence_parallel else tokens
    return tokens / parallel.tp * parallel.load.gpu * (parallel.etp if region == "dispatched" else 1)


def _split(operation: Linear) -> _Split:
    return _SPLITS.get(operation.name, _COLUMN)


def _computes_in(parallel: Parallel, name: str) -> str:
    """The number format of product `name`'s operands."""
    return "bf16" if name in _HIGH_PRECISION else parallel.compute_format


def _element_bytes(number_format: str) -> float:
    """Of activations and their gradients, scales included."""
    return BYTES_PER_ELEMENT[number_format] + (SCALE_BYTES if number_format == "fp8_block" else 0.0)


# Parameters and what goes with them.


class Weights(NamedTuple):
    """Parameters on one GPU: how many, and the bytes of their working copy; experts' apart, for they are sharded over
    the expert-data-parallel group. replicated: of the dense ones, those that every tensor-parallel GPU has."""

    dense: float = 0.0
    experts: float = 0.0
    dense_bytes: float = 0.0
    expert_bytes: float = 0.0
    replicated: float = 0.0

    def __add__(self, other: Weights) -> Weights:  # type: ignore[override]
        return Weights(*(one + two for one, two in zip(self, other, strict=True)))


def weights(model: Model, parallel: Parallel, stages: Sequence[Stage]) -> Weights:
    """Parameters of a rank's stages on one GPU. Tables that several of the stages use are there once."""
    total, seen = Weights(), set[str]()
    for stage in stages:
        own = tables(model, parallel, stage) - seen
        seen |= own
        total = sum(parts(model, parallel, stage, own).values(), total)
    return total


def tables(model: Model, parallel: Parallel, stage: Stage) -> set[str]:
    """The vocabulary's tables that a stage reads: a tied head elsewhere, and MTP, hold a copy of the embedding's.
    Without shared tables those of MTP are its own (`mtp.embedding`)."""
    own = {"embedding"} if stage.embedding or (stage.head and model.tied_head) else set[str]()
    own |= {"head"} if stage.head and not model.tied_head else set()
    read = {"embedding"} if model.tied_head else {"embedding", "head"}
    return own | ({t if parallel.shared_tables else f"mtp.{t}" for t in read} if stage.mtp else set())


Part = tuple[int, str]
"""A pass of a stage, by its number in the forward's order, and its leg: weights whose gradients come together."""


def parts(model: Model, parallel: Parallel, stage: Stage, own: Collection[str]) -> dict[Part, Weights]:
    """A stage's parameters by pass and leg, with those of its tables that its rank does not hold for another stage.

    The passes are the embedding, each layer, of each MTP module what joins, its layer and its head, and the head.
    Router and norm of a mixture's layer are in the attention's leg. What is no layer has a leg called attention.
    """
    passes = list[dict[str, list[Operation]]]()
    if stage.embedding:
        passes.append({"attention": [*model.embedding[1:]]})
    passes += [_halves(model.layer(index)) for index in stage.layers]
    joins = len(passes)
    for _ in range(model.mtp_modules * stage.mtp):
        layer, module = model.layer(model.layers - 1), model.mtp_module
        join = module[: -len(layer.operations) - len(model.head)]
        passes.append({"attention": [operation for operation in join if not isinstance(operation, Lookup)]})
        passes += [_halves(layer), {"attention": [model.head[0]]}]
    if stage.head:
        passes.append({"attention": [model.head[0]]})
    read_by_mtp = stage.mtp and parallel.shared_tables
    places = {"embedding": 0 if stage.embedding else joins if read_by_mtp else -1, "mtp.embedding": joins}
    places |= {"head": -1 if stage.head else joins + 2, "mtp.head": joins + 2}
    for table in sorted(own):
        operation = model.embedding[0] if table.endswith("embedding") else model.head[1]
        passes[places[table]]["attention"].append(operation)
    return {(n, leg): _weights(parallel, tuple(ops)) for n, legs in enumerate(passes) for leg, ops in legs.items()}


def _halves(layer: Layer) -> dict[str, list[Operation]]:
    """A layer's operations by leg."""
    inside = [o for o in layer.mlp if layer.kind == "dense" or o.component in ("experts", "shared")]
    return {"attention": [*layer.attention, *(o for o in layer.mlp if o not in inside)], "mlp": inside}


@lru_cache(maxsize=1024)
def _weights(parallel: Parallel, operations: tuple[Operation, ...]) -> Weights:
    """fp8 formats keep weights in 1 byte (and scales), other operations' and the head's in bf16."""
    total = Weights()
    for operation in operations:
        count = _local_parameters(operation, parallel)
        size = count * _weight_bytes(operation, parallel)
        if operation.component == "experts":
            total += Weights(experts=count, expert_bytes=size)
        else:
            total += Weights(dense=count, dense_bytes=size, replicated=_replicated(operation))
    return total


def _replicated(operation: Operation) -> float:
    """Elements that every tensor-parallel GPU has, of what is no expert's."""
    if not isinstance(operation, Linear):
        return 0.0 if operation.name == "embedding.tokens" else operation.parameters
    split = _split(operation)
    if "tensor" not in split:
        return operation.parameters
    return operation.bias * operation.fan_out if split.output != "tensor" else 0.0


def static(model: Model, parallel: Parallel, stages: Sequence[Stage], copies: int = 1) -> Bytes:
    """Bytes per GPU of a rank that holds `stages`, all step long: parameters, gradients, optimizer, framework.

    copies: ranks that hold each of these stages (DualPipe: 2); they share ZeRO's shards, except that each adds up its
    own gradients until the step's end. ZeRO 1 shards the optimizer's state (master weights and two moments), 2 the
    gradients too, 3 the parameters too. Gradients are a buffer that lives all step. Moving averages are sharded as the
    optimizer's state; neither is there if it is on the CPU.
    """
    held = weights(model, parallel, stages)
    counts = held.dense, held.experts
    shard = _sharded(parallel, 1, copies, counts)
    states = parallel.master_bytes + 2 * parallel.moment_bytes if parallel.optimizer_device == "gpu" else 0
    found = {
        "parameters": _sharded(
            parallel, 3 if parallel.gathers_each_visit else 4, copies, (held.dense_bytes, held.expert_bytes)
        ),
        "gradients": _sharded(parallel, 2, 1, counts) * parallel.gradient_bytes,
        "optimizer": shard * states,
        "framework": FRAMEWORK_BYTES,
    }
    return found | ({"averages": shard * AVERAGE_BYTES} if parallel.averages == "gpu" else {})


def updated(model: Model, parallel: Parallel, stages: Sequence[Stage], copies: int = 1) -> Shard:
    """What a GPU of a rank that holds `stages` updates in a step; arguments as of `static`."""
    held = weights(model, parallel, stages)
    count, size = held.dense + held.experts, held.dense_bytes + held.expert_bytes
    return Shard(_sharded(parallel, 1, copies, (held.dense, held.experts)), size / count if count else 0.0)


def _sharded(parallel: Parallel, stage: int, copies: int, sizes: tuple[float, float]) -> float:
    """What a GPU holds of dense and expert sizes that ZeRO shards from `stage` on."""
    if parallel.zero < stage:
        return sum(sizes)
    dense, experts = sizes
    return (dense / (parallel.dp * parallel.cp) + experts / parallel.edp) / copies


def _weight_bytes(operation: Operation, parallel: Parallel) -> float:
    """Per element of the working copy; blocks of fp8 weights are of 128 x 128."""
    if not isinstance(operation, Linear):
        return HIDDEN_BYTES
    number_format = _computes_in(parallel, operation.name)
    return BYTES_PER_ELEMENT[number_format] + (SCALE_BYTES / 128 if number_format == "fp8_block" else 0.0)


def _local_parameters(operation: Operation, parallel: Parallel) -> float:
    """Elements on one GPU. Norms, the router, latent down-projections and the position table are on every one."""
    if isinstance(operation, Linear):
        split = _split(operation)
        bias = operation.bias * operation.fan_out * operation.copies
        matrix = operation.parameters - bias
        if operation.component == "experts":
            there = operation.copies + parallel.redundant_experts
            return operation.parameters / operation.copies * there / (parallel.ep * parallel.etp)
        if "tensor" not in split:
            return operation.parameters
        return matrix / parallel.tp + bias / (parallel.tp if split.output == "tensor" else 1)
    if operation.name == "embedding.tokens":
        return operation.parameters / parallel.tp
    return operation.parameters


# Activations.


class Tensor(NamedTuple):
    """Something that the forward makes and the backward reads: bytes of one micro-batch on one GPU.

    component: the operation it is counted under. remade: recomputations that drop it. linear: W reads it.
    """

    component: str
    bytes: float
    remade: tuple[str, ...] = ()
    linear: bool = False


class Split(NamedTuple):
    """Bytes by component around an I that leaves W for later.

    freed, kept: what I frees of the activation, and what stays for W; together they are `activation`.
    added: what I leaves for W that F did not: gradients of products' outputs, and recomputed inputs.
    """

    freed: Bytes
    kept: Bytes
    added: Bytes


def activation(model: Model, parallel: Parallel, stage: Stage, kernels: Kernels = FUSED) -> Bytes:
    """Bytes per GPU that one micro-batch keeps from its F to its backward, by component, after recomputation.

    Logits are not in it: the stage with the head runs the backward right after the forward; see `transient`.
    """
    return _sum(_kept(_stage_tensors(model, parallel, stage, kernels), parallel))


def layer_activation(model: Model, parallel: Parallel, index: int, kernels: Kernels = FUSED) -> Bytes:
    """The same of decoder layer `index` (from 0) alone."""
    return _sum(_kept(_layer_tensors(model.layer(index), _of_layer(model, parallel, index), kernels), parallel))


def released_by_input(model: Model, parallel: Parallel, stage: Stage, kernels: Kernels = FUSED) -> Split:
    """What I frees of an activation, and what W still needs: 32 sbh for a GPT layer without recomputation."""
    tensors = tuple(_stage_tensors(model, parallel, stage, kernels))
    kept = tuple(_kept(tensors, parallel))
    remade = (t for t in tensors if t.linear and not _is_kept(t, parallel))
    gradients = (g for operation, at in _operations(model, parallel, stage) for g in _gradients(operation, at))
    return Split(
        freed=_sum(t for t in kept if not t.linear),
        kept=_sum(t for t in kept if t.linear),
        added=_sum((*remade, *gradients)),
    )


def _sum(tensors: Iterable[Tensor]) -> Bytes:
    totals: Bytes = {}
    for tensor in tensors:
        totals[tensor.component] = totals.get(tensor.component, 0.0) + tensor.bytes
    return totals


def _is_kept(tensor: Tensor, parallel: Parallel) -> bool:
    return parallel.recompute.isdisjoint(tensor.remade)


def _kept(tensors: Iterable[Tensor], parallel: Parallel) -> Iterator[Tensor]:
    return (tensor for tensor in tensors if _is_kept(tensor, parallel))


def _of_layer(model: Model, parallel: Parallel, index: int) -> Parallel:
    """The layout with decoder layer `index`'s own expert load."""
    return parallel.with_load(parallel.layer_load(model, index)) if parallel.layer_imbalance else parallel


def _operations(model: Model, parallel: Parallel, stage: Stage) -> Iterator[tuple[Operation, Parallel]]:
    """A stage's operations, each with the expert load it sees."""
    yield from ((operation, parallel) for operation in model.embedding * stage.embedding)
    for index in stage.layers:
        at = _of_layer(model, parallel, index)
        yield from ((operation, at) for operation in model.layer(index).operations)
    yield from ((operation, parallel) for operation in model.mtp_module * model.mtp_modules * stage.mtp)
    yield from ((operation, parallel) for operation in model.head * stage.head)


def _stage_tensors(model: Model, parallel: Parallel, stage: Stage, kernels: Kernels) -> Iterator[Tensor]:
    if stage.embedding:
        yield from _tensors(model.embedding, parallel, kernels)
    for index in stage.layers:
        yield from _layer_tensors(model.layer(index), _of_layer(model, parallel, index), kernels)
    if stage.mtp:
        yield from tuple(_mtp_tensors(model, parallel, kernels)) * model.mtp_modules
    if stage.head:
        yield from _tensors(model.head, parallel, kernels)


def _layer_tensors(layer: Layer, parallel: Parallel, kernels: Kernels) -> Iterator[Tensor]:
    """Recomputation "full" keeps the layer's input only, "mlp" the input of the MLP's first product only."""
    first, *attention = _tensors(layer.attention, parallel, kernels)
    norm, entry, *mlp = _tensors(layer.mlp, parallel, kernels)
    rest = (*attention, norm, entry, *(_remade_too(t, "mlp") for t in mlp))
    yield first
    yield from (_remade_too(tensor, "full") for tensor in rest)


def _mtp_tensors(model: Model, parallel: Parallel, kernels: Kernels) -> Iterator[Tensor]:
    """An MTP module: "full" keeps the two inputs that it joins, and the head's norm and product."""
    operations = model.mtp_module
    layer = model.layer(model.layers - 1)
    join = len(operations) - len(layer.operations) - len(model.head)
    before = tuple(_tensors(operations[:join], parallel, kernels))
    yield from (_remade_too(tensor, "full") if tensor.linear else tensor for tensor in before)
    yield from (_remade_too(tensor, "full") for tensor in _layer_tensors(layer, parallel, kernels))
    yield from _tensors(operations[-len(model.head) :], parallel, kernels)


def _remade_too(tensor: Tensor, how: str) -> Tensor:
    return tensor._replace(remade=(*tensor.remade, how))


def _tensors(operations: Sequence[Operation], parallel: Parallel, kernels: Kernels) -> Iterator[Tensor]:
    """What each operation in turn must keep."""
    latent = any(operation.name == "attention.kv_up" for operation in operations)
    for operation in operations:
        match operation:
            case Norm():
                yield _norm_input(operation, parallel)
            case Linear():
                yield from _linear_input(operation, parallel, kernels)
            case Core():
                yield from _core(operation, parallel, kernels, latent)
            case Activation():
                yield _activation_input(operation, parallel)
            case Lookup(name="embedding.tokens"):
                yield from _lookup(operation, parallel, kernels)


def _norm_input(norm: Norm, parallel: Parallel) -> Tensor:
    region = "sequence" if norm.rows == 1 else "tensor"  # a norm of each head
    return Tensor("norms", HIDDEN_BYTES * norm.width * norm.rows * _rows(parallel, region))


def _linear_input(linear: Linear, parallel: Parallel, kernels: Kernels) -> Iterator[Tensor]:
    """A product's input in the format of its operands, and what lies between it and the next operation."""
    if not _is_twin(linear, parallel):
        size = _input_bytes(linear, parallel) * linear.fan_in * linear.used
        remade = _REMADE.get(linear.name, ("norms",))
        whole = kernels.gathered and _split(linear) is _COLUMN
        rows = parallel.tokens / parallel.cp if whole else _rows(parallel, _split(linear).input)
        yield Tensor(linear.component, size * rows, remade, linear=True)
    if kernels.dropout and linear.name in _MASKED:
        yield Tensor(linear.component, linear.fan_out * _rows(parallel, "sequence"))
    if linear.name == "router":  # fp32 scores
        yield Tensor("router", 4.0 * linear.fan_out * _rows(parallel, "sequence"))
    if linear.name == "experts.up":  # the permutation and the routing weights, 4 bytes each
        yield Tensor("experts", 8.0 * linear.used * _rows(parallel, "sequence"))


def _is_twin(linear: Linear, parallel: Parallel) -> bool:
    """Whether an earlier product of the layer keeps the same input in the same format."""
    shared = linear.name == "shared.up" and _kept_in(parallel, "shared.up") == _kept_in(parallel, "router")
    return linear.name == "attention.kv_down" or shared


def _input_bytes(linear: Linear, parallel: Parallel) -> float:
    if linear.name == "attention.out" and _kept_in(parallel, linear.name) == "fp8_block":
        return E5M6_BYTES
    return _element_bytes(_kept_in(parallel, linear.name))


def _kept_in(parallel: Parallel, name: str) -> str:
    """The format in which product `name` keeps its input."""
    return "bf16" if parallel.kept_format == "bf16" else _computes_in(parallel, name)


def _core(core: Core, parallel: Parallel, kernels: Kernels, latent: bool) -> Iterator[Tensor]:
    """Q, K, V; the output, unless the product after it keeps it in a format that the core can read; the softmax.

    Without flash the softmax's output is kept (2 bytes a score), and with dropout a mask and the dropped scores (3).
    """
    rows, name = _rows(parallel, "tensor"), core.component
    width = core.heads * core.qk_dim + core.kv_heads * (core.qk_dim + core.v_dim)
    yield Tensor(name, HIDDEN_BYTES * width * rows, ("mla_up",) if latent else ())
    if parallel.compute_format not in ("bf16", "fp16", "fp8_block"):
        yield Tensor(name, HIDDEN_BYTES * core.heads * core.v_dim * rows)
    yield Tensor(name, _softmax_bytes(core, parallel, kernels), ("core", "selective"))


def _softmax_bytes(core: Core, parallel: Parallel, kernels: Kernels) -> float:
    each = 4.0 if kernels.flash else (5.0 if kernels.dropout else 2.0) * parallel.sequence
    return each * core.heads * _rows(parallel, "tensor")


def _activation_input(function: Activation, parallel: Parallel) -> Tensor:
    """Kept in fp8 where its output is recomputed and products are in fp8_block, as DeepSeek-V3 does."""
    caches_fp8 = _kept_in(parallel, function.name) == "fp8_block" and "swiglu" in parallel.recompute
    each = _element_bytes("fp8_block") if caches_fp8 else HIDDEN_BYTES
    return Tensor(function.component, each * _activation_elements(function, parallel) * (1 + function.gated))


def _activation_elements(function: Activation, parallel: Parallel) -> float:
    """Elements of its output."""
    region = "expert" if function.component == "experts" else "tensor"
    return function.width * function.used * _rows(parallel, region)


def _lookup(table: Lookup, parallel: Parallel, kernels: Kernels) -> Iterator[Tensor]:
    """Token numbers of 8 bytes, and the mask of the dropout after the embedding."""
    yield Tensor("embedding", 8.0 * parallel.tokens / parallel.cp)
    if kernels.dropout and not table.borrowed:
        yield Tensor("embedding", table.width * _rows(parallel, "sequence"))


def _gradients(operation: Operation, parallel: Parallel) -> Iterator[Tensor]:
    """The gradient of an operation's output, where W reads it."""
    if isinstance(operation, Linear):
        size = _element_bytes(_computes_in(parallel, operation.name)) * operation.fan_out * operation.used
        yield Tensor(operation.component, size * _rows(parallel, _split(operation).output), linear=True)
    elif operation.name == "embedding.tokens":
        assert isinstance(operation, Lookup)
        size = HIDDEN_BYTES * operation.width
        yield Tensor(operation.component, size * _rows(parallel, "sequence"), linear=True)


# What lives within a slot.


_ONLY_IN = {
    "recompute": "FIB",
    "logits": "FIB",
    "expert_buffers": "FIB",
    "gathered": "FIB",
    "working": "IB",
    "buckets": "WB",
}
"""The actions that need a kind of transient bytes, where not all do. A forward has what it drops until its layer is
done; W has what I kept for it."""


def transient(model: Model, parallel: Parallel, stage: Stage, kernels: Kernels = FUSED, action: str = "B") -> Bytes:
    """Bytes per GPU beside static and activations while the stage runs an action (F, I, W or B) of one micro-batch; an
    F&B slot runs two.

    logits: of the head and each MTP module. expert_buffers: what dispatch receives and combine sends, of one layer.
    boundary: a message received and one being sent, to and from each neighbour. recompute: what recomputation brings
    back, of one layer. working: gradients under way inside a layer. gathered, buckets: with ZeRO 3 the parameters, with
    ZeRO 2 and 3 the gradients of two layers, one at work and one on its way. Each of the layer that has most of it.
    """
    layers = _distinct_layers(model, parallel, stage)
    found = {
        "logits": _logits(model, parallel, stage, kernels),
        "expert_buffers": max((_expert_buffers(model, layer, at) for layer, at in layers), default=0.0),
        "boundary": _boundary(model, parallel, stage),
        "recompute": max((_dropped(layer, at, kernels) for layer, at in layers), default=0.0),
        "working": max((_working(layer, model, at, kernels) for layer, at in layers), default=0.0),
        "gathered": max((_gathered(layer, at) for layer, at in layers), default=0.0),
        "buckets": max((_buckets(layer, at) for layer, at in layers), default=0.0),
    }
    return {kind: size if action in _ONLY_IN.get(kind, action) else 0.0 for kind, size in found.items()}


def _distinct_layers(model: Model, parallel: Parallel, stage: Stage) -> list[tuple[Layer, Parallel]]:
    """One layer of each kind and load in the stage, its MTP module's included, with the load that it sees."""
    found = {}
    for index in stage.layers:
        layer = model.layer(index)
        found[layer.kind, parallel.layer_load(model, index)] = layer, _of_layer(model, parallel, index)
    if stage.mtp and model.mtp_modules:
        layer = model.layer(model.layers - 1)
        found[layer.kind, parallel.expert_imbalance] = layer, parallel
    return list(found.values())


def _logits(model: Model, parallel: Parallel, stage: Stage, kernels: Kernels) -> float:
    heads = stage.head + stage.mtp * model.mtp_modules
    return kernels.logit_bytes * heads * model.vocabulary * _rows(parallel, "tensor")


def _expert_buffers(model: Model, layer: Layer, parallel: Parallel) -> float:
    """A token comes once to each GPU that has experts of it; the experts' outputs are there once per expert."""
    if layer.kind != "moe":
        return 0.0
    assert model.experts
    experts, ep = model.experts, parallel.ep
    spread = expert_spread(experts.routed, experts.topk, ep, ep, experts.groups_per_token, experts.groups)
    arrivals = spread.ranks if ep * parallel.etp > 1 else 0.0
    dispatch, combine = _element_bytes(parallel.dispatch_format), _element_bytes(parallel.combine_format)
    elements = model.hidden * _rows(parallel, "dispatched")
    return elements * (arrivals * (dispatch + combine) + experts.topk * combine)


def _boundary(model: Model, parallel: Parallel, stage: Stage) -> float:
    neighbours = 0 if parallel.ranks == 1 else 2 - stage.embedding - stage.head
    return 2 * neighbours * HIDDEN_BYTES * model.hidden * _rows(parallel, "sequence")


def _dropped(layer: Layer, parallel: Parallel, kernels: Kernels) -> float:
    tensors = _layer_tensors(layer, parallel, kernels)
    return math.fsum(tensor.bytes for tensor in tensors if not _is_kept(tensor, parallel))


def _working(layer: Layer, model: Model, parallel: Parallel, kernels: Kernels) -> float:
    """Gradients of a half's input and output, and of both sides of its attention core or activation function; with
    sequence parallelism a half's input once more as gathered, and its gradient before it is scattered."""
    residual = HIDDEN_BYTES * model.hidden * _rows(parallel, "sequence")
    whole = HIDDEN_BYTES * model.hidden * parallel.tokens / parallel.cp
    gathered = 2 * whole if parallel.tp > 1 and parallel.sequence_parallel else 0.0
    inner = max(_inner_gradients(operation, parallel, kernels) for operation in layer.operations)
    return 2 * residual + gathered + inner


def _inner_gradients(operation: Operation, parallel: Parallel, kernels: Kernels) -> float:
    if isinstance(operation, Activation):
        return HIDDEN_BYTES * _activation_elements(operation, parallel) * (2 + operation.gated)
    if not isinstance(operation, Core):
        return 0.0
    width = (operation.heads + operation.kv_heads) * (operation.qk_dim + operation.v_dim)
    scores = 0 if kernels.flash else 2 * operation.heads * parallel.sequence
    return HIDDEN_BYTES * (width + scores) * _rows(parallel, "tensor")


def _gathered(layer: Layer, parallel: Parallel) -> float:
    sizes = (_local_parameters(o, parallel) * _weight_bytes(o, parallel) for o in layer.operations)
    return 2 * math.fsum(sizes) if parallel.gathers_each_visit else 0.0


def _buckets(layer: Layer, parallel: Parallel) -> float:
    counts = (_local_parameters(operation, parallel) for operation in layer.operations)
    return 2 * parallel.gradient_bytes * math.fsum(counts) if parallel.zero >= 2 else 0.0


def total(bytes_by_kind: Mapping[str, float]) -> float:
    """The sum of a table of bytes."""
    return math.fsum(bytes_by_kind.values())
