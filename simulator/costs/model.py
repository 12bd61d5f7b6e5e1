"""Model: an LLM's shape, and nothing of machines, ranks or schedules.

A layer is one list of operations in execution order; parameters and FLOPs are sums over that list, and time
and memory derive from the same list. `model_files` reads them.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple, TypeVar

from simpipe.simulator.errors import SimpipeError, show

MAX_SIZE = 10_000_000
"""Largest size accepted, far above any published one."""


class ModelError(SimpipeError):
    """A model is unknown, cannot be read, or its sizes do not fit together."""


# Operations: what a token passes through.


@dataclass(frozen=True)
class Operation:
    """A step of the forward pass; `name` is "part.piece", as "attention.qkv". Counts are 0 unless overridden."""

    name: str

    @property
    def component(self) -> str:
        """The name it is counted under: attention by projection, everything else by part."""
        part = self.name.partition(".")[0]
        return self.name if part == "attention" else part

    @property
    def parameters(self) -> int:
        return 0

    @property
    def activated(self) -> int:
        """Parameters that one token uses."""
        return 0

    def flops(self, keys: float) -> float:
        """Forward FLOPs of matrix products for one token that attends to `keys` tokens."""
        return 0.0


@dataclass(frozen=True)
class Linear(Operation):
    """A matrix product, (tokens, fan_in) x (fan_in, fan_out), and a bias of fan_out.

    copies, used: matrices there are, and how many each token goes through (routed experts: 256 and 8).
    borrowed: the weights belong to another operation (a tied head), so they are no parameters of this one.
    """

    fan_in: int
    fan_out: int
    bias: bool = False
    copies: int = 1
    used: int = 1
    borrowed: bool = False

    @property
    def parameters(self) -> int:
        return 0 if self.borrowed else self.copies * (self.fan_in + self.bias) * self.fan_out

    @property
    def activated(self) -> int:
        return self.used * (self.fan_in + self.bias) * self.fan_out

    def flops(self, keys: float) -> float:
        return 2.0 * self.used * self.fan_in * self.fan_out


@dataclass(frozen=True)
class Core(Operation):
    """Attention between the projections: scores over the keys, softmax, weighted sum of the values.

    qk_dim, v_dim: of one head. Latent attention is counted as training runs it, projected up to full heads.
    """

    heads: int
    kv_heads: int
    qk_dim: int
    v_dim: int

    def flops(self, keys: float) -> float:
        return 2.0 * self.heads * (self.qk_dim + self.v_dim) * keys


@dataclass(frozen=True)
class Norm(Operation):
    """RMSNorm, or LayerNorm where it has a bias, over rows of `width`: a token has `rows` of them."""

    width: int
    bias: bool = False
    rows: int = 1

    @property
    def parameters(self) -> int:
        return self.width * (1 + self.bias)

    @property
    def activated(self) -> int:
        return self.parameters


@dataclass(frozen=True)
class Activation(Operation):
    """The MLP's function: `width` out for each of the `used` experts, twice the width in where it is gated."""

    width: int
    gated: bool
    used: int = 1


@dataclass(frozen=True)
class Lookup(Operation):
    """An embedding table: a token activates one row."""

    rows: int
    width: int
    borrowed: bool = False

    @property
    def parameters(self) -> int:
        return 0 if self.borrowed else self.rows * self.width

    @property
    def activated(self) -> int:
        return self.width


class Layer(NamedTuple):
    """One transformer layer; kind is "dense" or "moe". Each half begins with its norm and ends before the residual."""

    kind: str
    attention: tuple[Operation, ...]
    mlp: tuple[Operation, ...]

    @property
    def operations(self) -> tuple[Operation, ...]:
        return self.attention + self.mlp


# Shapes: the tables of a profile. Their fields are its keys; a field with a default may be left out.


class _Shape:
    """Checks every field's type and range when made. A whole number may be 0 only where 0 is its default.

    A sentence begins with the field, and writes other fields as "field = value": a reader puts its names there.
    """

    def __post_init__(self) -> None:
        for f in fields(self):  # type: ignore[arg-type]
            value, least = getattr(self, f.name), int(f.default != 0)
            if f.type in _WORDS and type(value).__name__ != f.type:
                raise ModelError(f"{f.name} must be {_WORDS[f.type]}, not {show(value)}")
            if f.type == "int" and not least <= value <= MAX_SIZE:
                raise ModelError(f"{f.name} must be {least} to {MAX_SIZE}, not {show(value)}")


_WORDS: dict[Any, str] = {"int": "a whole number", "bool": "true or false", "str": "text"}


@dataclass(frozen=True)
class GroupedAttention(_Shape):
    """`kind = "grouped"`: multi-head attention where kv_heads = heads, grouped-query where it is less.

    qkv_bias, out_bias: biases of the projections. qk_norm: an RMSNorm of head_dim on queries and on keys.
    """

    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    qk_norm: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.heads % self.kv_heads:
            raise ModelError(f"heads = {self.heads} is not a multiple of kv_heads = {self.kv_heads}")

    @property
    def kv_elements(self) -> int:
        """Elements that a layer caches per token: keys and values."""
        return 2 * self.kv_heads * self.head_dim

    def operations(self, hidden: int) -> Iterator[Operation]:
        width = self.heads * self.head_dim
        yield Linear("attention.qkv", hidden, width + self.kv_elements, self.qkv_bias)
        if self.qk_norm:
            yield Norm("norms.q", self.head_dim, rows=self.heads)
            yield Norm("norms.k", self.head_dim, rows=self.kv_heads)
        yield Core("attention.core", self.heads, self.kv_heads, self.head_dim, self.head_dim)
        yield Linear("attention.out", width, hidden, self.out_bias)


@dataclass(frozen=True)
class LatentAttention(_Shape):
    """`kind = "latent"`: DeepSeek's MLA (arXiv 2405.04434, section 2.1).

    kv_lora_rank, q_lora_rank: widths of the latent vectors (q_lora_rank 0: queries are projected directly).
    nope_dim, rope_dim: parts of a head's query and key without and with rotary positions; the rotary key is
    shared by all heads. v_dim: a head's value.
    """

    heads: int
    kv_lora_rank: int
    nope_dim: int
    rope_dim: int
    v_dim: int
    q_lora_rank: int = 0

    @property
    def kv_elements(self) -> int:
        """Elements that a layer caches per token: the latent vector and the shared rotary key."""
        return self.kv_lora_rank + self.rope_dim

    def operations(self, hidden: int) -> Iterator[Operation]:
        qk_dim = self.nope_dim + self.rope_dim
        if self.q_lora_rank:
            yield Linear("attention.q_down", hidden, self.q_lora_rank)
            yield Norm("norms.q", self.q_lora_rank)
        yield Linear("attention.q_up", self.q_lora_rank or hidden, self.heads * qk_dim)
        yield Linear("attention.kv_down", hidden, self.kv_elements)
        yield Norm("norms.kv", self.kv_lora_rank)
        yield Linear("attention.kv_up", self.kv_lora_rank, self.heads * (self.nope_dim + self.v_dim))
        yield Core("attention.core", self.heads, self.heads, qk_dim, self.v_dim)
        yield Linear("attention.out", self.heads * self.v_dim, hidden)


Attention = GroupedAttention | LatentAttention


@dataclass(frozen=True)
class Mlp(_Shape):
    """The MLP of dense layers. gated: SwiGLU, whose gate and up matrices are one product here."""

    intermediate: int
    gated: bool = True
    bias: bool = False

    def operations(self, hidden: int) -> Iterator[Operation]:
        yield Linear("mlp.up", hidden, self.intermediate * (1 + self.gated), self.bias)
        yield Activation("mlp.activation", self.intermediate, self.gated)
        yield Linear("mlp.down", self.intermediate, hidden, self.bias)


@dataclass(frozen=True)
class Experts(_Shape):
    """The MLP of mixture-of-experts layers, all experts gated.

    routed, topk, shared: experts there are, chosen by each token, and passed by every token. intermediate: of
    one expert. first_dense: leading layers that have the dense MLP instead. groups, groups_per_token: a token's
    experts lie in at most so many of the groups (node-limited routing). router_bias: a bias per routed expert.
    """

    routed: int
    topk: int
    intermediate: int
    shared: int = 0
    first_dense: int = 0
    groups: int = 1
    groups_per_token: int = 1
    router_bias: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.routed % self.groups:
            raise ModelError(f"routed = {self.routed} is not a multiple of groups = {self.groups}")
        if self.groups_per_token > self.groups:
            raise ModelError(f"groups_per_token = {self.groups_per_token} exceeds groups = {self.groups}")
        reach = self.routed // self.groups * self.groups_per_token
        if self.topk > reach:
            raise ModelError(f"topk = {self.topk} exceeds the {reach} experts that a token can reach")

    def operations(self, hidden: int) -> Iterator[Operation]:
        yield Linear("router", hidden, self.routed, self.router_bias)
        inner = self.intermediate
        yield Linear("experts.up", hidden, 2 * inner, copies=self.routed, used=self.topk)
        yield Activation("experts.activation", inner, gated=True, used=self.topk)
        yield Linear("experts.down", inner, hidden, copies=self.routed, used=self.topk)
        if self.shared:  # side by side they are one wider MLP
            inner *= self.shared
            yield Linear("shared.up", hidden, 2 * inner)
            yield Activation("shared.activation", inner, gated=True)
            yield Linear("shared.down", inner, hidden)


_Number = TypeVar("_Number", int, float)


@dataclass(frozen=True)
class Model(_Shape):
    """A decoder-only LLM. Two models are equal when their shapes are; name and source do not count.

    vocabulary: rows of the embedding and the head as trained, padding included. mlp, experts: one or both,
    as the layers need. layer_norm: LayerNorm with bias instead of RMSNorm. positions: rows of a learned
    position table, 0 without one. tied_head: the head uses the token embedding's weights. mtp_modules:
    multi-token prediction modules (DeepSeek-V3, arXiv 2412.19437, section 2.2), counted only on request.
    """

    name: str = field(compare=False)
    source: str = field(compare=False)
    layers: int
    hidden: int
    vocabulary: int
    attention: Attention
    mlp: Mlp | None = None
    experts: Experts | None = None
    layer_norm: bool = False
    positions: int = 0
    tied_head: bool = False
    mtp_modules: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.experts and self.dense_layers >= self.layers:
            raise ModelError(f"experts.first_dense = {self.dense_layers} leaves no layer of layers = {self.layers}")
        if self.dense_layers and not self.mlp:
            raise ModelError(f"mlp is missing, but {self.dense_layers} of {self.layers} layers are dense")
        if self.mlp and not self.dense_layers:
            raise ModelError(f"mlp is given, but none of {self.layers} layers is dense by experts.first_dense = 0")

    @property
    def dense_layers(self) -> int:
        """Layers with the dense MLP; they come first."""
        return self.experts.first_dense if self.experts else self.layers

    @property
    def embedding(self) -> tuple[Operation, ...]:
        """What turns a token into the first layer's input."""
        tokens = Lookup("embedding.tokens", self.vocabulary, self.hidden)
        return (tokens, Lookup("embedding.positions", self.positions, self.hidden)) if self.positions else (tokens,)

    def layer(self, index: int) -> Layer:
        """Layer `index`, counted from 0."""
        if not 0 <= index < self.layers:
            raise IndexError(f"{self.name} has layers 0 to {self.layers - 1}, not {index}")
        return self._layer_kinds["dense" if index < self.dense_layers else "moe"]

    @functools.cached_property
    def _layer_kinds(self) -> dict[str, Layer]:
        """One layer of each kind."""
        attention = (self._norm("attention"), *self.attention.operations(self.hidden))
        mlps = {"dense": self.mlp, "moe": self.experts}
        return {
            kind: Layer(kind, attention, (self._norm("mlp"), *mlp.operations(self.hidden)))
            for kind, mlp in mlps.items()
            if mlp
        }

    @property
    def head(self) -> tuple[Operation, ...]:
        """What turns the last layer's output into logits."""
        return self._norm("final"), Linear("head", self.hidden, self.vocabulary, borrowed=self.tied_head)

    @property
    def mtp_module(self) -> tuple[Operation, ...]:
        """One MTP module: the hidden state joins the next token's embedding, passes a layer like the last, and a head.

        Embedding and head are the main model's.
        """
        return (
            Lookup("embedding.tokens", self.vocabulary, self.hidden, borrowed=True),
            self._norm("embedding"),
            self._norm("hidden"),
            Linear("mtp.join", 2 * self.hidden, self.hidden),
            *self.layer(self.layers - 1).operations,
            self._norm("final"),
            Linear("head", self.hidden, self.vocabulary, borrowed=True),
        )

    def parameters(self, mtp: bool = False) -> dict[str, int]:
        """Parameters by component; with `mtp` those of the MTP modules too, under "mtp"."""
        return self._sum(lambda operation: operation.parameters, mtp)

    def activated(self, mtp: bool = False) -> dict[str, int]:
        """Parameters that one token uses, by component: top-k of the experts, one row of the embedding, the whole head.

        The convention that gives DeepSeek-V3's 37 B (36.63); with the whole embedding it would be 37.55 B.
        """
        return self._sum(lambda operation: operation.activated, mtp)

    def forward_flops(self, seq: int, causal: bool = True, mtp: bool = False) -> dict[str, float]:
        """Forward FLOPs per token, by component: matrix products only, a multiply-add being 2.

        causal: a token attends to seq / 2 keys on average, as a kernel that skips the masked half runs; else to seq.
        """
        if seq < 1:
            raise ModelError(f"a sequence holds at least 1 token, not {seq}")
        keys = seq / 2 if causal else float(seq)
        return self._sum(lambda operation: operation.flops(keys), mtp)

    def training_flops(self, seq: int, causal: bool = True, mtp: bool = False) -> dict[str, float]:
        """FLOPs per token of forward and backward, 3 x forward, without recomputation.

        At seq 4096, causal, head counted, embedding and MTP not, against arXiv 2505.09343's table 2 (GFLOP):
        DeepSeek-V3 250.45, printed 250; DeepSeek-V2 155.30, printed 155; LLaMA-405B 2473, printed 2448, which
        half the causal core gives (2447.85); Qwen2.5-72B 445, printed 394 for "Qwen-72B": no convention gives
        that, since its layers' matrices alone make 421. Full attention gives SC21's equation 3.
        """
        return {name: 3 * flops for name, flops in self.forward_flops(seq, causal, mtp).items()}

    def facts(self, seq: int) -> dict[str, Any]:
        """What is published of models: parameters, FLOPs a token and KV cache, by component."""
        parameters, activated = self.parameters(), self.activated()
        causal, full = self.training_flops(seq), self.training_flops(seq, causal=False)
        return {
            "name": self.name,
            "source": self.source,
            "sequence": seq,
            "parameters": parameters | {"all": sum(parameters.values())},
            "mtp_parameters": self.parameters(mtp=True).get("mtp", 0),
            "activated_parameters": activated | {"all": sum(activated.values())},
            "training_flops_per_token": causal | {"all": sum(causal.values())},
            "training_flops_per_token_full_attention": full | {"all": sum(full.values())},
            "kv_cache_bytes_per_token": self.kv_cache_bytes(),
        }

    def kv_cache_bytes(self, bytes_per_element: float = 2) -> float:
        """KV-cache bytes per token over all layers, in bf16 unless told otherwise."""
        return self.layers * self.attention.kv_elements * bytes_per_element

    def _norm(self, piece: str) -> Norm:
        return Norm(f"norms.{piece}", self.hidden, self.layer_norm)

    def _sum(self, measure: Callable[[Operation], _Number], mtp: bool) -> dict[str, _Number]:
        """{component: sum}, without those that are 0."""
        totals: dict[str, _Number] = {}

        def add(operations: Iterable[Operation], times: int, name: str = "") -> None:
            for operation in operations:
                if value := times * measure(operation):
                    key = name or operation.component
                    totals[key] = totals[key] + value if key in totals else value

        add(self.embedding, 1)
        add(self.layer(0).operations, self.dense_layers)
        add(self.layer(self.layers - 1).operations, self.layers - self.dense_layers)
        add(self.head, 1)
        add(self.mtp_module, self.mtp_modules if mtp else 0, "mtp")
        return totals
