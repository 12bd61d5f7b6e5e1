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

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import NamedTuple

from simpipe.simulator.costs import collectives
from simpipe.simulator.costs.cluster import BYTES_PER_ELEMENT, Cluster
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
from simpipe.simulator.costs.share import ROW_PARALLEL, WHOLE, Shape, Step, TimedShare, ceil_div
from simpipe.simulator.costs.stack import DROPOUT, Stack

RESIDUAL = {"norms.attention", "norms.mlp", "norms.final"}
FUSED_CAST = {"mlp.down", "shared.down", "experts.down"}
"""Linears whose input the activation function writes in fp8 already."""

GATING_FORWARD, GATING_BACKWARD = 40, 24
"""Kernels of an unfused router beside its product, each over all scores in fp32, as the trace counts them: sigmoid,
bias, group and expert top-k, normalisation, balance loss and statistics."""

FP32 = 4


class Passes(NamedTuple):
    """A layer's steps, each pass in the order it runs: forward, backward for the input, backward for the weights."""

    forward: tuple[Step, ...]
    input: tuple[Step, ...]
    weight: tuple[Step, ...]


# A Linear.


def _linear_forward(share: TimedShare, linear: Linear, phase: str) -> Iterator[Step]:
    shapes = share.shapes(linear)
    rows, fan_in, fan_out = _summed(shapes)
    works = []
    if share.casts(linear) and not share.stack.fused_casts:
        if linear.name not in FUSED_CAST and not share.arrives(linear, "experts.up"):
            own = share.own if share.gathers_fp8(linear, "forward") else rows
            works.append(share.moved(3.0 * own * fan_in))
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


def _linear_input(share: TimedShare, linear: Linear, phase: str) -> Iterator[Step]:
    shapes = share.shapes(linear)
    rows, fan_in, fan_out = _summed(shapes)
    made = share.own if share.gathers_fp8(linear, "input") else rows
    grown, taken = 3.0 * rows * fan_out, 3.0 * rows * fan_in
    before, after = [], []
    if share.casts(linear) and share.stack.fused_casts:
        before.append(share.moved(4.0 * rows * fan_out))
    elif share.casts(linear):
        if not share.arrives(linear, "experts.down"):
            before.append(share.moved(3.0 * made * fan_out))
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


def _linear_weight(share: TimedShare, linear: Linear, phase: str) -> Iterator[Step]:
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


def _gather(share: TimedShare, linear: Linear, phase: str, of: str) -> Iterator[Step]:
    """Before a product that needs all tokens."""
    if share.gathers(linear, of):
        element = BYTES_PER_ELEMENT["fp8"] if share.gathers_fp8(linear, of) else 2.0
        width = linear.fan_out if linear.name in ROW_PARALLEL else linear.fan_in
        yield from _tensor(share, linear, phase, "gather", element * width)


def _reduce(share: TimedShare, linear: Linear, phase: str, of: str) -> Iterator[Step]:
    """Behind a product that makes partial sums."""
    closing = linear.name in ROW_PARALLEL
    if of == ("forward" if closing else "input"):
        kind = "scatter" if linear.copies > 1 or share.parallel.sequence_parallel else "reduce"
        yield from _tensor(share, linear, phase, kind, 2.0 * (linear.fan_out if closing else linear.fan_in))


def _tensor(share: TimedShare, linear: Linear, phase: str, kind: str, token_bytes: float) -> Iterator[Step]:
    size = share.split(linear)
    if size > 1 and linear.name not in WHOLE:
        rows = sum(share.expert_rows()) if linear.copies > 1 else share.tokens
        yield _collective(share, kind, linear.name, phase, rows * token_bytes, size)


def _collective(share: TimedShare, kind: str, name: str, phase: str, size: float, ranks: int, apart: int = 1) -> Step:
    """A collective of a group of ranks, `apart` from each other."""
    kinds = {"gather": collectives.all_gather, "scatter": collectives.reduce_scatter, "reduce": collectives.all_reduce}
    return share.transfer(f"{name}.{kind}", phase, kinds[kind](share.cluster, size, ranks, apart), "tensor-parallel")


# Attention between the projections.


def _rotary(share: TimedShare, core: Core, phase: str) -> Iterator[Step]:
    """Every query and key read and written once."""
    if not share.model.positions:
        width = (core.heads + core.kv_heads) * core.qk_dim / share.parallel.tp
        yield share.step("attention.rotary", phase, share.each(share.tokens * width, share.stack.rotary.forward))


def _context(share: TimedShare, core: Core, phase: str, *kinds: str) -> Iterator[Step]:
    """Keys and values, or their gradients, of the other context-parallel ranks."""
    p = share.parallel
    if p.cp > 1:
        size = 2.0 * p.tokens * ceil_div(core.kv_heads, p.tp) * (core.qk_dim + core.v_dim)
        for kind in kinds:
            yield _collective(share, kind, core.name, phase, size, p.cp, p.tp)


def _core_forward(share: TimedShare, core: Core, phase: str) -> Iterator[Step]:
    yield from _rotary(share, core, phase)
    yield from _context(share, core, phase, "gather")
    yield share.step(core.name, phase, share.attention(core, backward=False))


def _core_input(share: TimedShare, core: Core, phase: str) -> Iterator[Step]:
    yield from _context(share, core, phase, "gather")
    yield share.step(core.name, phase, share.attention(core, backward=True))
    yield from _context(share, core, phase, "scatter")
    yield from _rotary(share, core, phase)


# What moves bytes.


def _norm_forward(share: TimedShare, norm: Norm, phase: str) -> Iterator[Step]:
    elements = share.normed(norm)
    add = 6.0 * elements if norm.name in RESIDUAL else 0.0
    yield share.step(norm.name, phase, share.moved(add), share.each(elements, share.norm.forward))


def _norm_input(share: TimedShare, norm: Norm, phase: str) -> Iterator[Step]:
    elements = share.normed(norm)
    add = 6.0 * elements if norm.name in RESIDUAL else 0.0
    yield share.step(norm.name, phase, share.each(elements, share.norm.backward), share.moved(add))


def _activation_forward(share: TimedShare, activation: Activation, phase: str) -> Iterator[Step]:
    elements, inputs = share.inner(activation), 1 + activation.gated
    keep = 3.0 * inputs * elements if share.keeps_fp8 else 0.0
    traffic = share.stack.gate.forward if activation.gated else (4.0,)
    if share.fp8:
        traffic = (2.0 * inputs + 1,)
    yield share.step(activation.name, phase, share.each(elements, traffic), share.moved(keep))


def _activation_input(share: TimedShare, activation: Activation, phase: str) -> Iterator[Step]:
    """An expert's also gives the gradient of the weight that its token came with."""
    elements, inputs = share.inner(activation), 1 + activation.gated
    kept = 3.0 * inputs * elements if share.keeps_fp8 else 0.0
    weight = 4.0 * elements if activation.name.startswith("experts.") else 0.0
    traffic = share.stack.gate.backward if activation.gated else (6.0,)
    works = share.moved(kept), share.each(elements, traffic), share.moved(weight)
    yield share.step(activation.name, phase, *works)


def _lookup_forward(share: TimedShare, lookup: Lookup, phase: str) -> Iterator[Step]:
    """The table of tokens is split by rows, so partial results are added up."""
    yield share.step(lookup.name, phase, share.moved(4.0 * share.own * lookup.width))
    kind = "scatter" if share.parallel.sequence_parallel else "reduce"
    yield from _split_table(share, lookup, phase, kind)


def _split_table(share: TimedShare, lookup: Lookup, phase: str, kind: str) -> Iterator[Step]:
    if share.parallel.tp > 1 and lookup.name == "embedding.tokens":
        size = 2.0 * share.tokens * lookup.width
        yield _collective(share, kind, lookup.name, phase, size, share.parallel.tp)


def _lookup_weight(share: TimedShare, lookup: Lookup, phase: str) -> Iterator[Step]:
    """Rows added to in fp32."""
    if share.parallel.sequence_parallel:
        yield from _split_table(share, lookup, phase, "gather")
    yield share.step(lookup.name, phase, share.moved((2.0 + 8.0) * share.own * lookup.width))


def _forward(share: TimedShare, operations: Iterable[Operation], phase: str) -> Iterator[Step]:
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


def _input(share: TimedShare, operations: Sequence[Operation], phase: str) -> Iterator[Step]:
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


def _weight(share: TimedShare, operations: Sequence[Operation], phase: str) -> Iterator[Step]:
    for operation in reversed(operations):
        match operation:
            case Linear():
                yield from _linear_weight(share, operation, phase)
            case Lookup():
                yield from _lookup_weight(share, operation, phase)


# Experts.


def _exchange(share: TimedShare, name: str, back: bool) -> Iterator[Step]:
    """Tokens to their experts, or the results `back`; on the busiest GPU. A combine's backward sends gradients where
    the dispatch has sent tokens."""
    p, experts, model = share.parallel, share.model.experts, share.model
    assert experts
    if p.ep == 1:
        return
    if share.stack.expert_copies:
        yield from _exchange_copies(share, name, back)
        return
    first = partial(collectives.dispatch, repeated=name == "combine")
    way, format = (collectives.combine, p.combine_format) if back else (first, p.dispatch_format)
    exchange = way(
        share.cluster,
        share.routed,
        experts.topk,
        model.hidden,
        BYTES_PER_ELEMENT[format],
        p.ep,
        experts.groups_per_token,
        experts.routed,
        KernelSetting(p.communication_sms, p.communication_warps, p.communication_chunk),
        p.etp,
        experts.groups,
        (p.load.network, p.load.nvlink),
    )
    yield share.transfer(name, name, exchange, "expert-parallel")


def _exchange_copies(share: TimedShare, name: str, back: bool) -> Iterator[Step]:
    """A plain all-to-all of a copy for each of a token's experts. The copies are put in the order of their GPUs before
    it, on the way back added up behind it; the host waits for their numbers, by which it sizes buffers."""
    p, experts = share.parallel, share.model.experts
    assert experts
    elements = share.routed * p.load.gpu * experts.topk * share.model.hidden
    size = elements * BYTES_PER_ELEMENT[p.combine_format if back else p.dispatch_format]
    exchange = collectives.all_to_all(share.cluster, size, p.ep, p.etp)
    copies = share.step(f"{name}.copies", name, share.moved(4.0 * elements))
    sent = share.transfer(name, name, exchange, "expert-parallel")
    yield from (sent, copies) if back else (copies, sent._replace(latency=sent.latency + share.stack.host.sync))


def _quantise(share: TimedShare, name: str, phase: str, stream: str) -> Iterator[Step]:
    """The cast to fp8 of what is dispatched: with the forward's attention, on the exchange's stream in backward."""
    if share.sent_fp8:
        cast = share.moved(3.0 * share.routed * share.model.hidden)
        yield share.step(name, phase, cast, stream=stream)


def _permute(share: TimedShare, name: str, arrived: bool) -> Step:
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


def _moe_forward(share: TimedShare, moe: _Moe) -> Iterator[Step]:
    """Norm and router count as attention: the dispatch waits for them."""
    yield from _forward(share, moe.before, "attention")
    yield from _quantise(share, "dispatch.cast", "attention", "compute")
    yield from _exchange(share, "dispatch", back=False)
    yield from _forward(share, moe.shared, "mlp")
    yield _permute(share, "experts.permute", arrived=True)
    yield from _forward(share, moe.experts, "mlp")
    yield _permute(share, "experts.unpermute", arrived=False)
    yield from _exchange(share, "combine", back=True)


def _moe_input(share: TimedShare, moe: _Moe) -> Iterator[Step]:
    """Combine's backward dispatches gradients, and dispatch's combines them."""
    yield from _quantise(share, "combine.cast", "combine", "expert-parallel")
    yield from _exchange(share, "combine", back=False)
    yield _permute(share, "experts.unpermute", arrived=True)
    yield from _input(share, moe.experts, "mlp")
    yield _permute(share, "experts.permute", arrived=False)
    yield from _input(share, moe.shared, "mlp")
    yield from _exchange(share, "dispatch", back=True)
    yield from _input(share, moe.before, "attention")


def _moe_weight(share: TimedShare, moe: _Moe) -> Iterator[Step]:
    for operations, phase in ((moe.experts, "mlp"), (moe.shared, "mlp"), (moe.before, "attention")):
        yield from _weight(share, operations, phase)


# Recomputation.


def _again(share: TimedShare, operations: Iterable[Operation], phase: str) -> Iterator[Step]:
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


def _with_recomputation(share: TimedShare, layer: Layer, forward: _Halves, inputs: _Halves) -> tuple[Step, ...]:
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
    share = TimedShare(model, parallel, cluster, stack)
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
    return _outside(TimedShare(model, parallel, cluster, stack), model.embedding, "embedding")


def head_passes(model: Model, cluster: Cluster, parallel: Parallel, stack: Stack) -> Passes:
    """Final norm, vocabulary head and cross entropy."""
    return _outside(TimedShare(model, parallel, cluster, stack), model.head, "head")


def mtp_passes(model: Model, cluster: Cluster, parallel: Parallel, stack: Stack) -> tuple[Passes, ...]:
    """Of each MTP module, one after another: what joins the next token's embedding, a layer, a head with its loss."""
    share, layer = TimedShare(model, parallel, cluster, stack), model.layer(model.layers - 1)
    module, ends = model.mtp_module, len(model.head)
    join = _outside(share, module[: -ends - len(layer.operations)], "mtp")
    inner = passes(model, cluster, parallel, stack, layer)
    return (join, inner, _outside(share, module[-ends:], "mtp")) * model.mtp_modules


def _outside(share: TimedShare, operations: Sequence[Operation], phase: str) -> Passes:
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
