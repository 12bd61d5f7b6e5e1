"""One GPU's part of a model's operations: sizes, the kernels they become and what those take, by the machine's curves.

A step's bytes are what its kernels read and write, each tensor once.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from simpipe.simulator.costs import collectives
from simpipe.simulator.costs.cluster import BYTES_PER_ELEMENT, Attention, Cluster
from simpipe.simulator.costs.collectives import Exchange
from simpipe.simulator.costs.model import Activation, Core, Linear, Model, Norm
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.costs.stack import DROPOUT, EAGER_SOFTMAX, FUSED_NORM, SOFTMAX, Stack, Traffic

ROW_PARALLEL = {"attention.out", "mlp.down", "shared.down", "experts.down"}
WHOLE = {"router", "attention.q_down", "attention.kv_down", "mtp.join"}
"""Linears whose rows are split by tensor parallelism, and those that are not split; the others' columns are."""

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
        """Kernels that the host launches, one for what moves bytes between GPUs."""
        return len(self.kernels) or 1

    @property
    def exchange(self) -> Exchange:
        """What its bytes put on links."""
        return Exchange(*(getattr(self, name) for name in Exchange._fields))

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams it holds. Weight gradients on their own stream take all SMs, so nothing computes beside them:
        in the trace kernels of the two streams alternate."""
        return (self.stream, "compute") if self.stream == "weight-gradient" else (self.stream,)


class Work(NamedTuple):
    """Kernels in a row: seconds on all SMs, seconds beside communication, FLOPs of products, the kernels."""

    seconds: float = 0.0
    beside: float = 0.0
    flops: float = 0.0
    kernels: tuple[Kernel, ...] = ()


def together(works: Sequence[Work]) -> Work:
    kernels = tuple(kernel for work in works for kernel in work.kernels)
    seconds, beside = sum(work.seconds for work in works), sum(work.beside for work in works)
    return Work(seconds, beside, sum(work.flops for work in works), kernels)


def ceil_div(whole: float, parts: int) -> int:
    return math.ceil(whole / parts)


TENSOR_CORE_BYTES = 16
"""Rows of a product's matrices start at multiples of it where tensor cores are fed at full rate (NVIDIA's Matrix
Multiplication Background: multiples of 8 elements of 2 bytes)."""

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
        return ceil_div(self.parallel.tokens, self.parallel.cp)

    @property
    def own(self) -> int:
        """Tokens where the layer is not split."""
        return ceil_div(self.tokens, self.parallel.tp) if self.parallel.sequence_parallel else self.tokens

    @property
    def routed(self) -> int:
        """Tokens that this GPU sends to experts."""
        return ceil_div(self.tokens, self.parallel.tp)

    def expert_rows(self) -> list[int]:
        """Rows of each local expert on the busiest GPU."""
        experts, p = self.model.experts, self.parallel
        assert experts
        mean, local = self.routed * experts.topk * p.etp, (experts.routed + p.redundant_experts) // p.ep
        if len(p.load.experts) == local:
            return [round(mean * load) for load in p.load.experts]
        rows = round(mean * p.load.gpu)
        return [rows // local + (i < rows % local) for i in range(local)]

    def shapes(self, linear: Linear) -> list[Shape]:
        """One product, or one for each local expert."""
        expert = linear.copies > 1
        parts = self.parallel.etp if expert else 1 if linear.name in WHOLE else self.parallel.tp
        closing = linear.name in ROW_PARALLEL
        fan_in = ceil_div(linear.fan_in, parts) if closing else linear.fan_in
        fan_out = linear.fan_out if closing else ceil_div(linear.fan_out, parts)
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
        queries = ceil_div(p.sequence, p.cp)
        heads, kv_heads = ceil_div(core.heads, p.tp), ceil_div(core.kv_heads, p.tp)
        keys = ceil_div(p.sequence + queries, 2)
        return Attention(p.microbatch_size, heads, kv_heads, queries, keys, core.qk_dim, core.v_dim)


@dataclass(frozen=True)
class TimedShare(Share):
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

    def gathers(self, linear: Linear, of: str) -> bool:
        """Whether a product's pass `of` needs all tokens, where each GPU has some. Experts keep what they gathered."""
        expert = linear.copies > 1
        if linear.name in ROW_PARALLEL:
            needed: tuple[str, ...] = ("input",)
        else:
            needed = ("forward",) if expert or self.stack.keeps_gathered else ("forward", "weight")
        split = expert or (self.parallel.sequence_parallel and linear.name not in WHOLE)
        return of in needed and split and self.split(linear) > 1

    def split(self, linear: Linear) -> int:
        """GPUs that a product's tokens are gathered from."""
        return self.parallel.etp if linear.copies > 1 else self.parallel.tp

    def gathers_fp8(self, linear: Linear, of: str) -> bool:
        """Whether each GPU casts its own tokens, and casts are gathered."""
        return self.stack.fp8_gathers and self.casts(linear) and linear.copies == 1 and self.gathers(linear, of)

    def drops(self, linear: Linear) -> bool:
        return self.stack.dropout and linear.name in DROPPED

    def arrives(self, linear: Linear, name: str) -> bool:
        """Whether the hidden-wide side of the experts, `name`'s, crossed the network in fp8."""
        return self.sent_fp8 and linear.name == name

    # Kernels.

    def _left(self) -> int:
        """SMs beside a communication kernel."""
        return max(1, self.cluster.gpu.sms - self.parallel.communication_sms)

    def moved(self, *bytes_each: float) -> Work:
        """A kernel for each amount of bytes read and written."""
        times = {amount: self.cluster.memory_seconds(amount) for amount in bytes_each if amount}
        kernels = tuple(Kernel("memory_bound", "", (), each, times[each]) for each in bytes_each if each)
        seconds = sum(kernel.seconds for kernel in kernels)
        return Work(seconds, seconds, 0.0, kernels)

    @property
    def norm(self) -> Traffic:
        """LayerNorm is one kernel everywhere."""
        return FUSED_NORM if self.model.layer_norm else self.stack.norm

    def products(self, linear: Linear, shapes: Sequence[Shape], output_bytes: float = 2.0) -> Work:
        """Products m x n x k, in one kernel: a grouped one where there are several (Megatron-LM's --moe-grouped-gemm).
        Rows of the matrices in memory are as long as fan-in or fan-out."""
        kind = self.parallel.compute_format if self.casts(linear) else self.plain
        flops = sum(2.0 * m * n * k for m, n, k in shapes)
        family = "grouped_gemm" if len(shapes) > 1 else "gemm"
        _, *rows = self.shapes(linear)[0]
        slower = 1.0
        if any(row * BYTES_PER_ELEMENT[kind] % TENSOR_CORE_BYTES for row in rows):
            slower = 1 / self.stack.unaligned_rate
        alone, beside = (
            slower * self.cluster.products_seconds(family, shapes, kind, sms, output_bytes)
            for sms in (None, self._left())
        )
        return Work(alone, beside, flops, (Kernel(family, kind, tuple(shapes), flops, alone, output_bytes),))

    def each(self, elements: float, traffic: Iterable[float]) -> Work:
        """A kernel for each number of bytes an element."""
        return self.moved(*(elements * size for size in traffic))

    def attention(self, core: Core, backward: bool) -> Work:
        """The core, fused or not."""
        return self._fused_core(core, backward) if self.stack.fused_attention else self._unfused_core(core, backward)

    def _unfused_core(self, core: Core, backward: bool) -> Work:
        """Products over all pairs, masked ones too, with a softmax and a dropout of the scores between them, and copies
        to and from rows of heads. Backward, each product gives two."""
        p = self.parallel
        queries, keys = ceil_div(p.sequence, p.cp), p.sequence
        batch = p.microbatch_size * ceil_div(core.heads, p.tp)
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
        return together([*products, *moving, self.moved(copied)])

    def _batched(self, batch: int, m: int, n: int, k: int) -> Work:
        """A product for each head of each sequence, in one kernel, by the curve of a single one."""
        flops, shapes = 2.0 * batch * m * n * k, ((m, n, k),) * batch
        alone, beside = (self.cluster.products_seconds("gemm", shapes, self.plain, sms) for sms in (None, self._left()))
        return Work(alone, beside, flops, (Kernel("gemm", self.plain, shapes, flops, alone),))

    def _fused_core(self, core: Core, backward: bool) -> Work:
        ratio, shape = self.stack.attention_ratio, self.attended(core)
        flops = core.flops(self.parallel.sequence / 2) * (1 + backward) * self.tokens * shape.heads / core.heads
        alone, beside = (
            ratio * self.cluster.attention_seconds(shape, self.plain, backward, sms) for sms in (None, self._left())
        )
        family = "attention_backward" if backward else "attention_forward"
        return Work(alone, beside, flops, (Kernel(family, self.plain, (shape,), flops, alone),))

    # Steps.

    def step(self, name: str, phase: str, *works: Work, stream: str = "compute") -> Step:
        seconds, beside, flops, kernels = together(works)
        gap = self.cluster.gpu.kernel_gap
        gaps = sum(max(gap, self.stack.host.least - kernel.seconds) for kernel in kernels)
        return Step(name, phase, stream, seconds, beside, latency=gaps, flops=flops, kernels=kernels)

    def transfer(self, name: str, phase: str, exchange: Exchange, stream: str) -> Step:
        short = max(0.0, self.stack.host.least - collectives.seconds(self.cluster, exchange))
        sent = exchange._replace(latency=exchange.latency + short)
        return Step(name, phase, stream, sms=self.parallel.communication_sms, **sent._asdict())
