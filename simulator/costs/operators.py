"""Computation: the kernels of a layer's passes on one GPU, by shape; knows no schedule and no order of slots.

A pass is a chain of steps, derived from the model's own list of operations. Matrix products and attention take the
machine's curves; everything else moves bytes: a step's bytes are what its kernels read and write, each tensor once.
Which kernels there are was read off the published DeepSeek-V3 training trace (github.com/deepseek-ai/profile-data) and
Megatron-LM; none of their times is used.

* A Linear's columns are split over the tensor-parallel group, or its rows where it closes a half of the layer; router
  and MLA down-projections are not split. Sequence parallel, what is not split sees tokens / tp.
* fp8: a Linear casts its input by row, its output's gradient by row, and both by column for the weight gradient,
  unless the kernel before wrote them so; each weight is transposed once a micro-batch, for the input's gradient, or
  for the forward in experts. What crossed the network in fp8 is cast by column only when its weight gradient is due.
  Head, router, core and norms stay in bf16.
* The residual stream's norms add first: a half's output is added by the norm behind it.
* The input pass holds everything of the backward but weight gradients' products: dQ, dK and dV, the gradients of
  biases and of norms' gains.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from simpipe.simulator.costs import collectives
from simpipe.simulator.costs.cluster import BYTES_PER_ELEMENT, Attention, Cluster
from simpipe.simulator.costs.collectives import Exchange
from simpipe.simulator.costs.exchange_kernels import KernelSetting
from simpipe.simulator.costs.model import (
    Activation,
    Core,
    LatentAttention,
    Layer,
    Linear,
    Lookup,
    Model,
    Norm,
    Operation,
)
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.costs.stack import DROPOUT, EAGER_SOFTMAX, FUSED_NORM, SOFTMAX, Stack, Traffic

ROW_PARALLEL = {"attention.out", "mlp.down", "shared.down", "experts.down"}
WHOLE = {"router", "attention.q_down", "attention.kv_down", "mtp.join"}
"""Linears whose rows are split by tensor parallelism, and those that are not split; the others' columns are."""

RESIDUAL = {"norms.attention", "norms.mlp", "norms.final"}
FUSED_CAST = {"mlp.down", "shared.down", "experts.down"}
"""Linears whose input the activation function writes in fp8 already."""

GATING_FORWARD, GATING_BACKWARD = 40, 24
"""Kernels of an unfused router beside its product, each over all scores in fp32, as the trace counts them: sigmoid,
bias, group and expert top-k, normalisation, balance loss and statistics."""

FP32 = 4
DROPPED = {"attention.out", "mlp.down"}
"""Linears whose output passes a dropout, where there is one."""


class Kernel(NamedTuple):
    """A kernel by its curve (`gemm`, `attention_forward`, `memory_bound`, ...; "" as format where it has none).

    shape: the products (m, n, k) of a GEMM, or one Attention; nothing where only bytes count. amount: its FLOPs, or
    bytes moved. output_bytes: of a product, moved an output element. seconds: on all SMs.
    """

    family: str
    format: str
    shape: tuple[Any, ...]
    amount: float
    seconds: float
    output_bytes: float = 2.0


class Step(NamedTuple):
    """One kernel or some kernels in a row, on one GPU.

    phase: the part of the pass it stands in. seconds: on all SMs with nothing beside; beside: on those that a
    communication kernel leaves; both 0 where it moves bytes between GPUs. Bytes are those sent, per direction.
    latency: gaps before its kernels, and of a transfer. sms: those that a communication kernel holds. flops: of matrix
    products. kernels: those that compute. What moves bytes has the numbers of its Exchange.
    """

    name: str
    phase: str
    stream: str
    seconds: float = 0.0
    beside: float = 0.0
    network_bytes: float = 0.0
    nvlink_bytes: float = 0.0
    latency: float = 0.0
    sms: int = 0
    flops: float = 0.0
    rate_limit: float = math.inf
    cache_share: float = 0.0
    kernels: tuple[Kernel, ...] = ()
    leaf_bytes: float = 0.0
    spine_bytes: float = 0.0

    @property
    def launches(self) -> int:
        """Kernels that take the host time. A collective's launch takes little: on a slow host, iterations measured by
        vTrain (arXiv 2312.12391) do not grow with tensor parallelism."""
        return len(self.kernels)

    @property
    def exchange(self) -> Exchange:
        """What its bytes put on links."""
        return Exchange(*(getattr(self, name) for name in Exchange._fields))

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams it holds. Weight gradients on their own stream take all SMs, so nothing computes beside them:
        in the trace kernels of the two streams alternate."""
        return (self.stream, "compute") if self.stream == "weight-gradient" else (self.stream,)


class Passes(NamedTuple):
    """A layer's steps, each pass in the order it runs: forward, backward for the input, backward for the weights."""

    forward: tuple[Step, ...]
    input: tuple[Step, ...]
    weight: tuple[Step, ...]


class _Work(NamedTuple):
    """Kernels in a row: seconds on all SMs, seconds beside communication, FLOPs of products, the kernels."""

    seconds: float = 0.0
    beside: float = 0.0
    flops: float = 0.0
    kernels: tuple[Kernel, ...] = ()


def _together(works: Sequence[_Work]) -> _Work:
    kernels = tuple(kernel for work in works for kernel in work.kernels)
    seconds, beside = sum(work.seconds for work in works), sum(work.beside for work in works)
    return _Work(seconds, beside, sum(work.flops for work in works), kernels)


def _ceil(whole: float, parts: int) -> int:
    return math.ceil(whole / parts)


Shape = tuple[int, int, int]
"""Rows, fan-in, fan-out of a product as forward runs it on this GPU."""


@dataclass(frozen=True)
class Share:
    """What one GPU has of a model: the sizes of its operations."""

    model: Model
    parallel: Parallel

    @property
    def tokens(self) -> int:
        """Of a micro-batch, where the tensor-parallel group works on the same ones."""
        return _ceil(self.parallel.tokens, self.parallel.cp)

    @property
    def own(self) -> int:
        """Tokens where the layer is not split."""
        return _ceil(self.tokens, self.parallel.tp) if self.parallel.sequence_parallel else self.tokens

    @property
    def routed(self) -> int:
        """Tokens that this GPU sends to experts."""
        return _ceil(self.tokens, self.parallel.tp)

    def expert_rows(self) -> list[int]:
        """Rows of each local expert on the busiest GPU."""
        experts, p = self.model.experts, self.parallel
        assert experts
        rows = round(self.routed * experts.topk * p.etp * p.expert_imbalance)
        local = experts.routed // p.ep
        return [rows // local + (i < rows % local) for i in range(local)]

    def shapes(self, linear: Linear) -> list[Shape]:
        """One product, or one for each local expert."""
        expert = linear.copies > 1
        parts = self.parallel.etp if expert else 1 if linear.name in WHOLE else self.parallel.tp
        closing = linear.name in ROW_PARALLEL
        fan_in = _ceil(linear.fan_in, parts) if closing else linear.fan_in
        fan_out = linear.fan_out if closing else _ceil(linear.fan_out, parts)
        rows = self.expert_rows() if expert else [self.own if linear.name in WHOLE else self.tokens]
        return [(m, fan_in, fan_out) for m in rows]

    def inner(self, activation: Activation) -> float:
        """Elements that an activation function writes."""
        expert = activation.name.startswith("experts.")
        rows, parts = (sum(self.expert_rows()), self.parallel.etp) if expert else (self.tokens, self.parallel.tp)
        return rows * activation.width / parts

    def normed(self, norm: Norm) -> float:
        """Elements of a norm: heads are split, the residual stream and latent vectors are not."""
        return norm.width * (self.tokens * norm.rows / self.parallel.tp if norm.rows > 1 else self.own)

    def attended(self, core: Core) -> Attention:
        """Each of the context-parallel group has as many causal pairs: those of its queries over half of the keys."""
        p = self.parallel
        queries = _ceil(p.sequence, p.cp)
        heads, kv_heads = _ceil(core.heads, p.tp), _ceil(core.kv_heads, p.tp)
        keys = _ceil(p.sequence + queries, 2)
        return Attention(p.microbatch_size, heads, kv_heads, queries, keys, core.qk_dim, core.v_dim)


@dataclass(frozen=True)
class _Share(Share):
    """What kernels take there."""

    cluster: Cluster
    stack: Stack

    # Formats.

    @property
    def plain(self) -> str:
        """The format of what stays out of fp8."""
        return "bf16" if self.fp8 else self.parallel.compute_format

    @property
    def fp8(self) -> bool:
        return self.parallel.compute_format.startswith("fp8")

    @property
    def sent_fp8(self) -> bool:
        return self.parallel.ep > 1 and self.parallel.dispatch_format.startswith("fp8")

    @property
    def keeps_fp8(self) -> bool:
        """Whether the inputs of activation functions are kept in fp8, their outputs not at all (DeepSeek-V3)."""
        p = self.parallel
        return p.compute_format == "fp8_block" and p.kept_format == "compute" and "swiglu" in p.recompute

    def casts(self, linear: Linear) -> bool:
        return self.fp8 and linear.name not in ("router", "head")

    def drops(self, linear: Linear) -> bool:
        return self.stack.dropout and linear.name in DROPPED

    def arrives(self, linear: Linear, name: str) -> bool:
        """Whether the hidden-wide side of the experts, `name`'s, crossed the network in fp8."""
        return self.sent_fp8 and linear.name == name

    # Kernels.

    def _left(self) -> int:
        """SMs beside a communication kernel."""
        return max(1, self.cluster.gpu.sms - self.parallel.communication_sms)

    def moved(self, *bytes_each: float) -> _Work:
        """A kernel for each amount of bytes read and written."""
        times = {amount: self.cluster.memory_seconds(amount) for amount in bytes_each if amount}
        kernels = tuple(Kernel("memory_bound", "", (), each, times[each]) for each in bytes_each if each)
        seconds = sum(kernel.seconds for kernel in kernels)
        return _Work(seconds, seconds, 0.0, kernels)

    @property
    def norm(self) -> Traffic:
        """LayerNorm is one kernel everywhere."""
        return FUSED_NORM if self.model.layer_norm else self.stack.norm

    def products(self, linear: Linear, shapes: Sequence[Shape], output_bytes: float = 2.0) -> _Work:
        """Products m x n x k, in one kernel."""
        kind = self.parallel.compute_format if self.casts(linear) else self.plain
        flops = sum(2.0 * m * n * k for m, n, k in shapes)
        family = "grouped_gemm" if linear.copies > 1 else "gemm"
        alone, beside = (
            self.cluster.products_seconds(family, shapes, kind, sms, output_bytes) for sms in (None, self._left())
        )
        return _Work(alone, beside, flops, (Kernel(family, kind, tuple(shapes), flops, alone, output_bytes),))

    def each(self, elements: float, traffic: Iterable[float]) -> _Work:
        """A kernel for each number of bytes an element."""
        return self.moved(*(elements * size for size in traffic))

    def attention(self, core: Core, backward: bool) -> _Work:
        """The core, fused or not."""
        return self._fused_core(core, backward) if self.stack.fused_attention else self._unfused_core(core, backward)

    def _unfused_core(self, core: Core, backward: bool) -> _Work:
        """Products over all pairs, masked ones too, with a softmax and a dropout of the scores between them, and copies
        to and from rows of heads. Backward, each product gives two."""
        p = self.parallel
        queries, keys = _ceil(p.sequence, p.cp), p.sequence
        batch = p.microbatch_size * _ceil(core.heads, p.tp)
        if backward:
            shapes = [(queries, keys, core.v_dim), (keys, core.v_dim, queries)]
            shapes += [(queries, core.qk_dim, keys), (keys, core.qk_dim, queries)]
        else:
            shapes = [(queries, keys, core.qk_dim), (queries, core.v_dim, keys)]
        products = [self._batched(batch, *shape) for shape in shapes]
        scores = float(batch * queries * keys)
        softmax = EAGER_SOFTMAX if batch % self.stack.softmax_multiple else SOFTMAX
        between = [softmax, DROPOUT] if self.stack.dropout else [softmax]
        moving = [self.each(scores, traffic.backward if backward else traffic.forward) for traffic in between]
        copied = 4.0 * batch * queries * core.v_dim * (3 if backward else 1)
        return _together([*products, *moving, self.moved(copied)])

    def _batched(self, batch: int, m: int, n: int, k: int) -> _Work:
        """A product for each head of each sequence, in one kernel, by the curve of a single one."""
        flops, shapes = 2.0 * batch * m * n * k, ((m, n, k),) * batch
        alone, beside = (self.cluster.products_seconds("gemm", shapes, self.plain, sms) for sms in (None, self._left()))
        return _Work(alone, beside, flops, (Kernel("gemm", self.plain, shapes, flops, alone),))

    def _fused_core(self, core: Core, backward: bool) -> _Work:
        ratio, shape = self.stack.attention_ratio, self.attended(core)
        flops = core.flops(self.parallel.sequence / 2) * (1 + backward) * self.tokens * shape.heads / core.heads
        alone, beside = (
            ratio * self.cluster.attention_seconds(shape, self.plain, backward, sms) for sms in (None, self._left())
        )
        family = "attention_backward" if backward else "attention_forward"
        return _Work(alone, beside, flops, (Kernel(family, self.plain, (shape,), flops, alone),))

    # Steps.

    def step(self, name: str, phase: str, *works: _Work, stream: str = "compute") -> Step:
        seconds, beside, flops, kernels = _together(works)
        gaps = len(kernels) * self.cluster.gpu.kernel_gap
        return Step(name, phase, stream, seconds, beside, latency=gaps, flops=flops, kernels=kernels)

    def transfer(self, name: str, phase: str, exchange: Exchange, stream: str) -> Step:
        return Step(name, phase, stream, sms=self.parallel.communication_sms, **exchange._asdict())


# A Linear.


def _linear_forward(share: _Share, linear: Linear, phase: str) -> Iterator[Step]:
    shapes = share.shapes(linear)
    rows, fan_in, fan_out = _summed(shapes)
    works = []
    if share.casts(linear) and not share.stack.fused_casts:
        if linear.name not in FUSED_CAST and not share.arrives(linear, "experts.up"):
            works.append(share.moved(3.0 * rows * fan_in))
        if linear.copies > 1:
            works.append(share.moved(2.0 * len(shapes) * fan_in * fan_out))
    works.append(share.products(linear, [(m, n, k) for m, k, n in shapes]))
    if linear.name == "router":
        works.append(share.moved(*[2.0 * FP32 * rows * fan_out] * GATING_FORWARD))
    yield from _gather(share, linear, phase, "forward")
    yield share.step(linear.name, phase, *works)
    yield from _reduce(share, linear, phase, "forward")
    if share.drops(linear):
        yield share.step(f"{linear.name}.dropout", phase, share.each(share.own * fan_out, DROPOUT.forward))


def _linear_input(share: _Share, linear: Linear, phase: str) -> Iterator[Step]:
    shapes = share.shapes(linear)
    rows, fan_in, fan_out = _summed(shapes)
    grown, taken = 3.0 * rows * fan_out, 3.0 * rows * fan_in
    before, after = [], []
    if share.casts(linear) and share.stack.fused_casts:
        before.append(share.moved(4.0 * rows * fan_out))
    elif share.casts(linear):
        if not share.arrives(linear, "experts.down"):
            before.append(share.moved(grown))
            after.append(share.moved(grown))
        if not share.arrives(linear, "experts.up"):
            after.append(share.moved(taken))
        if linear.copies == 1:
            before.append(share.moved(2.0 * fan_in * fan_out))
    if linear.name == "router":
        before.append(share.moved(*[2.0 * FP32 * rows * fan_out] * GATING_BACKWARD))
    if linear.bias and linear.name != "router":
        before.append(share.moved(2.0 * rows * fan_out))
    if share.drops(linear):
        yield share.step(f"{linear.name}.dropout", phase, share.each(share.own * fan_out, DROPOUT.backward))
    yield from _gather(share, linear, phase, "input")
    yield share.step(linear.name, phase, *before, share.products(linear, shapes), *after)
    yield from _reduce(share, linear, phase, "input")


def _linear_weight(share: _Share, linear: Linear, phase: str) -> Iterator[Step]:
    """Added to the gradient. Experts alternate between two streams, as in the trace."""
    shapes = share.shapes(linear)
    rows, fan_in, fan_out = _summed(shapes)
    casts = []
    if share.casts(linear) and share.arrives(linear, "experts.up"):
        casts.append(share.moved(2.0 * rows * fan_in))
    if share.casts(linear) and share.arrives(linear, "experts.down"):
        casts.append(share.moved(2.0 * rows * fan_out))
    turned = [(k, n, m) for m, k, n in shapes]
    fused, each = share.stack.fused_accumulation, share.parallel.gradient_bytes
    written = 2.0 * each if fused else 2.0
    added = share.moved(0.0 if fused else (2.0 + 2.0 * each) * len(shapes) * fan_in * fan_out)
    yield from _gather(share, linear, phase, "weight")
    yield share.step(linear.name, phase, *casts, share.products(linear, turned[::2], written), added)
    if turned[1::2]:
        yield share.step(linear.name, phase, share.products(linear, turned[1::2], written), stream="weight-gradient")


def _summed(shapes: Sequence[Shape]) -> Shape:
    return sum(shape[0] for shape in shapes), *shapes[0][1:]


def _gather(share: _Share, linear: Linear, phase: str, of: str) -> Iterator[Step]:
    """Before a product that needs all tokens, where each GPU has some. Experts keep what they gathered."""
    expert = linear.copies > 1
    closing = linear.name in ROW_PARALLEL
    needed = ("input",) if closing else ("forward",) if expert else ("forward", "weight")
    if of in needed and (expert or share.parallel.sequence_parallel):
        yield from _tensor(share, linear, phase, "gather", linear.fan_out if closing else linear.fan_in)


def _reduce(share: _Share, linear: Linear, phase: str, of: str) -> Iterator[Step]:
    """Behind a product that makes partial sums."""
    closing = linear.name in ROW_PARALLEL
    if of == ("forward" if closing else "input"):
        kind = "scatter" if linear.copies > 1 or share.parallel.sequence_parallel else "reduce"
        yield from _tensor(share, linear, phase, kind, linear.fan_out if closing else linear.fan_in)


def _tensor(share: _Share, linear: Linear, phase: str, kind: str, width: int) -> Iterator[Step]:
    expert = linear.copies > 1
    size = share.parallel.etp if expert else share.parallel.tp
    if size > 1 and linear.name not in WHOLE:
        rows = sum(share.expert_rows()) if expert else share.tokens
        yield _collective(share, kind, linear.name, phase, 2.0 * rows * width, size)


def _collective(share: _Share, kind: str, name: str, phase: str, size: float, ranks: int, apart: int = 1) -> Step:
    """A collective of a group of ranks, `apart` from each other."""
    kinds = {"gather": collectives.all_gather, "scatter": collectives.reduce_scatter, "reduce": collectives.all_reduce}
    return share.transfer(f"{name}.{kind}", phase, kinds[kind](share.cluster, size, ranks, apart), "tensor-parallel")


# Attention between the projections.


def _rotary(share: _Share, core: Core, phase: str) -> Iterator[Step]:
    """Every query and key read and written once."""
    if not share.model.positions:
        width = (core.heads + core.kv_heads) * core.qk_dim / share.parallel.tp
        yield share.step("attention.rotary", phase, share.each(share.tokens * width, share.stack.rotary.forward))


def _context(share: _Share, core: Core, phase: str, *kinds: str) -> Iterator[Step]:
    """Keys and values, or their gradients, of the other context-parallel ranks."""
    p = share.parallel
    if p.cp > 1:
        size = 2.0 * p.tokens * _ceil(core.kv_heads, p.tp) * (core.qk_dim + core.v_dim)
        for kind in kinds:
            yield _collective(share, kind, core.name, phase, size, p.cp, p.tp)


def _core_forward(share: _Share, core: Core, phase: str) -> Iterator[Step]:
    yield from _rotary(share, core, phase)
    yield from _context(share, core, phase, "gather")
    yield share.step(core.name, phase, share.attention(core, backward=False))


def _core_input(share: _Share, core: Core, phase: str) -> Iterator[Step]:
    yield from _context(share, core, phase, "gather")
    yield share.step(core.name, phase, share.attention(core, backward=True))
    yield from _context(share, core, phase, "scatter")
    yield from _rotary(share, core, phase)


# What moves bytes.


def _norm_forward(share: _Share, norm: Norm, phase: str) -> Iterator[Step]:
    elements = share.normed(norm)
    add = 6.0 * elements if norm.name in RESIDUAL else 0.0
    yield share.step(norm.name, phase, share.moved(add), share.each(elements, share.norm.forward))


def _norm_input(share: _Share, norm: Norm, phase: str) -> Iterator[Step]:
    elements = share.normed(norm)
    add = 6.0 * elements if norm.name in RESIDUAL else 0.0
    yield share.step(norm.name, phase, share.each(elements, share.norm.backward), share.moved(add))


def _activation_forward(share: _Share, activation: Activation, phase: str) -> Iterator[Step]:
    elements, inputs = share.inner(activation), 1 + activation.gated
    keep = 3.0 * inputs * elements if share.keeps_fp8 else 0.0
    traffic = share.stack.gate.forward if activation.gated else (4.0,)
    if share.fp8:
        traffic = (2.0 * inputs + 1,)
    yield share.step(activation.name, phase, share.each(elements, traffic), share.moved(keep))


def _activation_input(share: _Share, activation: Activation, phase: str) -> Iterator[Step]:
    """An expert's also gives the gradient of the weight that its token came with."""
    elements, inputs = share.inner(activation), 1 + activation.gated
    kept = 3.0 * inputs * elements if share.keeps_fp8 else 0.0
    weight = 4.0 * elements if activation.name.startswith("experts.") else 0.0
    traffic = share.stack.gate.backward if activation.gated else (6.0,)
    works = share.moved(kept), share.each(elements, traffic), share.moved(weight)
    yield share.step(activation.name, phase, *works)


def _lookup_forward(share: _Share, lookup: Lookup, phase: str) -> Iterator[Step]:
    """The table of tokens is split by rows, so partial results are added up."""
    yield share.step(lookup.name, phase, share.moved(4.0 * share.own * lookup.width))
    kind = "scatter" if share.parallel.sequence_parallel else "reduce"
    yield from _split_table(share, lookup, phase, kind)


def _split_table(share: _Share, lookup: Lookup, phase: str, kind: str) -> Iterator[Step]:
    if share.parallel.tp > 1 and lookup.name == "embedding.tokens":
        size = 2.0 * share.tokens * lookup.width
        yield _collective(share, kind, lookup.name, phase, size, share.parallel.tp)


def _lookup_weight(share: _Share, lookup: Lookup, phase: str) -> Iterator[Step]:
    """Rows added to in fp32."""
    if share.parallel.sequence_parallel:
        yield from _split_table(share, lookup, phase, "gather")
    yield share.step(lookup.name, phase, share.moved((2.0 + 8.0) * share.own * lookup.width))


def _forward(share: _Share, operations: Iterable[Operation], phase: str) -> Iterator[Step]:
    for operation in operations:
        match operation:
            case Linear():
                yield from _linear_forward(share, operation, phase)
            case Core():
                yield from _core_forward(share, operation, phase)
            case Norm():
                yield from _norm_forward(share, operation, phase)
            case Activation():
                yield from _activation_forward(share, operation, phase)
            case Lookup():
                yield from _lookup_forward(share, operation, phase)


def _input(share: _Share, operations: Sequence[Operation], phase: str) -> Iterator[Step]:
    """In backward order. A table of embeddings has no input to differentiate by."""
    for operation in reversed(operations):
        match operation:
            case Linear():
                yield from _linear_input(share, operation, phase)
            case Core():
                yield from _core_input(share, operation, phase)
            case Norm():
                yield from _norm_input(share, operation, phase)
            case Activation():
                yield from _activation_input(share, operation, phase)


def _weight(share: _Share, operations: Sequence[Operation], phase: str) -> Iterator[Step]:
    for operation in reversed(operations):
        match operation:
            case Linear():
                yield from _linear_weight(share, operation, phase)
            case Lookup():
                yield from _lookup_weight(share, operation, phase)


# Experts.


def _exchange(share: _Share, name: str, back: bool) -> Iterator[Step]:
    """Tokens to their experts, or the results `back`; on the busiest GPU."""
    p, experts, model = share.parallel, share.model.experts, share.model
    assert experts
    if p.ep == 1:
        return
    if share.stack.expert_copies:
        yield from _exchange_copies(share, name, back)
        return
    way, format = (collectives.combine, p.combine_format) if back else (collectives.dispatch, p.dispatch_format)
    exchange = way(
        share.cluster,
        share.routed * p.expert_imbalance,
        experts.topk,
        model.hidden,
        BYTES_PER_ELEMENT[format],
        p.ep,
        experts.groups_per_token,
        experts.routed,
        KernelSetting(p.communication_sms, p.communication_warps, p.communication_chunk),
        p.etp,
        experts.groups,
    )
    yield share.transfer(name, name, exchange, "expert-parallel")


def _exchange_copies(share: _Share, name: str, back: bool) -> Iterator[Step]:
    """A plain all-to-all of a copy for each of a token's experts. The copies are put in the order of their GPUs before
    it, on the way back added up behind it; the host waits for their numbers, by which it sizes buffers."""
    p, experts = share.parallel, share.model.experts
    assert experts
    elements = share.routed * p.expert_imbalance * experts.topk * share.model.hidden
    size = elements * BYTES_PER_ELEMENT[p.combine_format if back else p.dispatch_format]
    exchange = collectives.all_to_all(share.cluster, size, p.ep, p.etp)
    copies = share.step(f"{name}.copies", name, share.moved(4.0 * elements))
    sent = share.transfer(name, name, exchange, "expert-parallel")
    yield from (sent, copies) if back else (copies, sent._replace(latency=sent.latency + share.stack.host.sync))


def _quantise(share: _Share, name: str, phase: str, stream: str) -> Iterator[Step]:
    """The cast to fp8 of what is dispatched: with the forward's attention, on the exchange's stream in backward."""
    if share.sent_fp8:
        cast = share.moved(3.0 * share.routed * share.model.hidden)
        yield share.step(name, phase, cast, stream=stream)


def _permute(share: _Share, name: str, arrived: bool) -> Step:
    """Tokens that `arrived` copied to the experts' rows, or added up from them."""
    read = 1.0 if arrived and share.sent_fp8 else 2.0
    written = 1.0 if arrived and share.sent_fp8 and share.fp8 else 2.0
    return share.step(name, "mlp", share.moved((read + written) * sum(share.expert_rows()) * share.model.hidden))


class _Moe(NamedTuple):
    """The operations of a mixture's half: before the dispatch, for every token, for routed ones."""

    before: tuple[Operation, ...]
    shared: tuple[Operation, ...]
    experts: tuple[Operation, ...]

    @classmethod
    def of(cls, operations: Sequence[Operation]) -> _Moe:
        parts: tuple[list[Operation], list[Operation], list[Operation]] = ([], [], [])
        for operation in operations:
            part = operation.name.partition(".")[0]
            parts[1 if part == "shared" else 2 if part == "experts" else 0].append(operation)
        return cls(*map(tuple, parts))


def _moe_forward(share: _Share, moe: _Moe) -> Iterator[Step]:
    """Norm and router count as attention: the dispatch waits for them."""
    yield from _forward(share, moe.before, "attention")
    yield from _quantise(share, "dispatch.cast", "attention", "compute")
    yield from _exchange(share, "dispatch", back=False)
    yield from _forward(share, moe.shared, "mlp")
    yield _permute(share, "experts.permute", arrived=True)
    yield from _forward(share, moe.experts, "mlp")
    yield _permute(share, "experts.unpermute", arrived=False)
    yield from _exchange(share, "combine", back=True)


def _moe_input(share: _Share, moe: _Moe) -> Iterator[Step]:
    """Combine's backward dispatches gradients, and dispatch's combines them."""
    yield from _quantise(share, "combine.cast", "combine", "expert-parallel")
    yield from _exchange(share, "combine", back=False)
    yield _permute(share, "experts.unpermute", arrived=True)
    yield from _input(share, moe.experts, "mlp")
    yield _permute(share, "experts.permute", arrived=False)
    yield from _input(share, moe.shared, "mlp")
    yield from _exchange(share, "dispatch", back=True)
    yield from _input(share, moe.before, "attention")


def _moe_weight(share: _Share, moe: _Moe) -> Iterator[Step]:
    for operations, phase in ((moe.experts, "mlp"), (moe.shared, "mlp"), (moe.before, "attention")):
        yield from _weight(share, operations, phase)


# Recomputation.


def _again(share: _Share, operations: Iterable[Operation], phase: str) -> Iterator[Step]:
    """What recomputation by name runs again; `mla_up` as far as the core's inputs."""
    again = share.parallel.recomputes
    for operation in operations:
        match operation:
            case Norm() if again("norms"):
                yield share.step(operation.name, phase, share.each(share.normed(operation), share.norm.forward))
            case Linear(name="attention.q_up" | "attention.kv_up") if again("mla_up"):
                yield from _linear_forward(share, operation, phase)
            case Activation() if again("swiglu"):  # by its backward, which reads the inputs anyway
                yield share.step(operation.name, phase, share.moved(2.0 * share.inner(operation)))
            case Core():
                if again("mla_up") and isinstance(share.model.attention, LatentAttention):
                    yield from _rotary(share, operation, phase)
                if again("core"):
                    yield share.step(operation.name, phase, share.attention(operation, backward=False))
            case _:
                pass


def _recomputed(steps: Iterable[Step], phase: str) -> tuple[Step, ...]:
    return tuple(step._replace(name=f"recompute.{step.name}", phase=phase) for step in steps)


def _with_recomputation(share: _Share, layer: Layer, forward: _Halves, inputs: _Halves) -> tuple[Step, ...]:
    """The input pass, with what is recomputed in front of the half that needs it, behind combine's backward."""
    again = share.parallel.recomputes
    early = forward.mlp if again("mlp") else tuple(_again(share, layer.mlp, "mlp"))
    late = tuple(_again(share, layer.attention, "attention"))
    if "full" in share.parallel.recompute:
        early, late = forward.attention + forward.mlp, ()
    first = next(i for i, step in enumerate(inputs.mlp) if step.phase != "combine")
    return (
        *inputs.mlp[:first],
        *_recomputed(early, "mlp"),
        *inputs.mlp[first:],
        *_recomputed(late, "attention"),
        *inputs.attention,
    )


# Passes.


class _Halves(NamedTuple):
    """A pass of a layer, by half."""

    attention: tuple[Step, ...]
    mlp: tuple[Step, ...]


def passes(model: Model, cluster: Cluster, parallel: Parallel, stack: Stack, layer: Layer) -> Passes:
    """A layer's. The forward chain is attention, dispatch, mlp, combine; the backward's combine, mlp, dispatch,
    attention."""
    share = _Share(model, parallel, cluster, stack)
    if layer.kind == "moe":
        moe = _Moe.of(layer.mlp)
        mlp = (_moe_forward(share, moe), _moe_input(share, moe), _moe_weight(share, moe))
    else:
        mlp = (_forward(share, layer.mlp, "mlp"), _input(share, layer.mlp, "mlp"), _weight(share, layer.mlp, "mlp"))
    ways = (_forward, _input, _weight)
    attention = [tuple(way(share, layer.attention, "attention")) for way in ways]
    forward, inputs, weights = (_Halves(own, tuple(half)) for own, half in zip(attention, mlp, strict=True))
    backward = _with_recomputation(share, layer, forward, inputs)
    return Passes(forward.attention + forward.mlp, backward, weights.mlp + weights.attention)


def embedding_passes(model: Model, cluster: Cluster, parallel: Parallel, stack: Stack) -> Passes:
    """The embedding's: rows looked up, and their gradients added. There is no input to differentiate by."""
    return _outside(_Share(model, parallel, cluster, stack), model.embedding, "embedding")


def head_passes(model: Model, cluster: Cluster, parallel: Parallel, stack: Stack) -> Passes:
    """Final norm, vocabulary head and cross entropy."""
    return _outside(_Share(model, parallel, cluster, stack), model.head, "head")


def mtp_passes(model: Model, cluster: Cluster, parallel: Parallel, stack: Stack) -> tuple[Passes, ...]:
    """Of each MTP module, one after another: what joins the next token's embedding, a layer, a head with its loss."""
    share, layer = _Share(model, parallel, cluster, stack), model.layer(model.layers - 1)
    module, ends = model.mtp_module, len(model.head)
    join = _outside(share, module[: -ends - len(layer.operations)], "mtp")
    inner = passes(model, cluster, parallel, stack, layer)
    return (join, inner, _outside(share, module[-ends:], "mtp")) * model.mtp_modules


def _outside(share: _Share, operations: Sequence[Operation], phase: str) -> Passes:
    """What is no layer's; a head comes with its loss."""
    loss: tuple[Step, ...] = ()
    grown: tuple[Step, ...] = ()
    for head in (operation for operation in operations if operation.name == "head"):
        assert isinstance(head, Linear)
        ((rows, _, columns),) = share.shapes(head)
        loss = (share.step("loss", phase, share.each(rows * columns, share.stack.loss.forward)),)
        grown = (share.step("loss", phase, share.each(rows * columns, share.stack.loss.backward)),)
    return Passes(
        (*_forward(share, operations, phase), *loss),
        (*grown, *_input(share, operations, phase)),
        tuple(_weight(share, operations, phase)),
    )
