"""Inference: what attention's cache takes, and what bounds the time of a decoded token; bounds, so at peak rates.

A GPU decodes `batch` requests, each a token a step, and holds all layers: attention and dense layers split over tp
GPUs, experts over ep. Memory: every weight that a step uses and the whole cache are read once; of an embedding that
is not the head too, that is a row for each token. Compute: matrix
products in the weights' format, attention over the cache in bf16; MLA attends in its latent space, with the up-
projections absorbed into queries and outputs (arXiv 2405.04434, section 2.1.2). Exchange: each token goes to its
experts, the shared ones too, and comes back, each copy by itself, over NVLink where the group is within one domain
and the NIC else: the bound of arXiv 2505.09343, section 2.3.2, where two micro-batches hide each other's computation.
It takes no expert to be near, which few are of a group on many nodes; on two it counts twice what NICs carry.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from simpipe.simulator.costs import memory
from simpipe.simulator.costs.cluster import BYTES_PER_ELEMENT, Cluster
from simpipe.simulator.costs.model import Core, GroupedAttention, LatentAttention, Model
from simpipe.simulator.costs.parallel import Parallel, Stage, check_multiple, is_whole
from simpipe.simulator.errors import SimpipeError

GQA_HEADS = 8
"""Key and value heads of the grouped-query variant: LLaMA-3's and Qwen2.5's."""

FORMATS = ("bf16", "fp8", "fp8_block")

LONGEST = 10**9

CONTEXT = 4096


@dataclass(frozen=True)
class Serving:
    """How a model is served. batch: requests on each GPU, or on each tp GPUs together. context: tokens of each, prompt
    and answer. Formats: of weights and their products, the cache, and tokens on their way to experts and back.

    Raises SimpipeError, one sentence, for what does not fit.
    """

    model: Model
    cluster: Cluster
    batch: int
    context: int
    ep: int = 1
    tp: int = 1
    weights: str = "fp8"
    cache: str = "bf16"
    dispatch: str = "fp8"
    combine: str = "bf16"

    def __post_init__(self) -> None:
        for key in ("batch", "context", "ep", "tp"):
            value = getattr(self, key)
            if not (is_whole(value) and 1 <= value <= LONGEST):
                raise SimpipeError(f"{key} must be a whole number from 1 to {LONGEST}, not {value!r}")
        for key in ("weights", "cache", "dispatch", "combine"):
            if getattr(self, key) not in FORMATS:
                raise SimpipeError(f"{key} must be one of {', '.join(FORMATS)}, not {getattr(self, key)!r}")
        routed = self.model.experts.routed if self.model.experts else 1
        if self.ep > 1 and not self.model.experts:
            raise SimpipeError(f"ep = {self.ep}, but {self.model.name} has no experts: it takes 1")
        check_multiple(f"experts of {self.model.name}", routed, ep=self.ep)
        check_multiple("attention.heads", self.model.attention.heads, tp=self.tp)
        if self.model.positions and self.context > self.model.positions:
            positions = f"{self.model.positions} positions of {self.model.name}"
            raise SimpipeError(f"context = {self.context} exceeds the {positions}")
        self.cluster.peak(self.weights)

    @property
    def gpus(self) -> int:
        """GPUs that share the experts, or the model."""
        return math.lcm(self.ep, self.tp)


class Decode(NamedTuple):
    """Seconds a decoded token takes at least: for what memory is read, what is computed, what is exchanged."""

    memory: float
    compute: float
    exchange: float

    @property
    def hidden(self) -> float:
        """Where each hides the others."""
        return max(self)


@dataclass(frozen=True)
class Cache:
    """An attention's cache on one GPU, in bytes and tokens, and the bounds of decoding with it. longest_context: 0
    where the weights alone do not fit."""

    attention: str
    bytes_per_token: float
    cache_bytes: float
    weight_bytes: float
    longest_context: int
    fits: bool
    decode: Decode

    def to_dict(self) -> dict[str, Any]:
        """Plain figures, units in their names."""
        figures = asdict(self) | {f"decode_{part}_s": seconds for part, seconds in self.decode._asdict().items()}
        del figures["decode"]
        return figures | {"decode_s": self.decode.hidden, "tokens_per_s_per_request": 1 / self.decode.hidden}


def spread(model: Model, cluster: Cluster) -> int:
    """GPUs that experts are spread over where nothing says so: one expert a GPU; in a rack that NVLink joins, a power
    of two that it holds."""
    routed, domain = model.experts.routed if model.experts else 1, cluster.node.nvlink.domain_gpus
    return math.gcd(routed, 2 ** int(math.log2(domain))) if domain > cluster.node.gpus else routed


def context_of(model: Model) -> int:
    """Tokens of a request where nothing says so: CONTEXT, or as many as the model has positions for."""
    return min(CONTEXT, model.positions or CONTEXT)


def weights_of(cluster: Cluster) -> str:
    """The format of weights where nothing says so: fp8 where the machine computes in it, else bf16."""
    return "fp8" if "fp8" in cluster.gpu.peak else "bf16"


def caches(serving: Serving) -> list[Cache]:
    """The model's own attention first, then the same heads with other ways to share keys and values."""
    return [_cache(replace(serving, model=model), name) for name, model in _variants(serving.model)]


def _variants(model: Model) -> Iterator[tuple[str, Model]]:
    own = model.attention
    head = own.v_dim if isinstance(own, LatentAttention) else own.head_dim
    kinds = {"MHA": own.heads, f"GQA, {GQA_HEADS} heads": GQA_HEADS, "MQA": 1}
    if isinstance(own, LatentAttention):
        yield f"MLA ({model.name})", model
    else:
        names = {heads: name for name, heads in reversed(kinds.items())}
        name = names.get(own.kv_heads, f"GQA, {own.kv_heads} heads")
        yield f"{name} ({model.name})", model
    for name, kv_heads in kinds.items():
        if own.heads % kv_heads == 0 and not (isinstance(own, GroupedAttention) and own.kv_heads == kv_heads):
            yield name, replace(model, attention=GroupedAttention(own.heads, kv_heads, head))


def _cache(serving: Serving, name: str) -> Cache:
    """Keys and values of grouped attention are split over tp while there are heads to split; a latent vector is not."""
    model, attention = serving.model, serving.model.attention
    split = min(serving.tp, attention.kv_heads) if isinstance(attention, GroupedAttention) else 1
    each = model.kv_cache_bytes(BYTES_PER_ELEMENT[serving.cache])
    held = each * serving.batch / split
    weights = memory.weights(model, _layout(serving), [_whole(model)])
    room = serving.cluster.gpu.memory - weights.dense_bytes - weights.expert_bytes - memory.FRAMEWORK_BYTES
    longest = max(0, math.floor(room / held))
    return Cache(
        attention=name,
        bytes_per_token=each,
        cache_bytes=held * serving.context,
        weight_bytes=weights.dense_bytes + weights.expert_bytes,
        longest_context=longest,
        fits=serving.context <= longest,
        decode=_decode(serving, weights, held * serving.context),
    )


def _layout(serving: Serving) -> Parallel:
    gpus = serving.gpus
    return Parallel(
        ranks=1, gpus=gpus, global_batch=gpus, sequence=serving.tp, tp=serving.tp, ep=serving.ep,
        compute_format=serving.weights,
    )  # fmt: skip


def _whole(model: Model) -> Stage:
    """All layers, without the MTP modules, which decoding may leave out."""
    return Stage(0, tuple(range(model.layers)), embedding=True, head=True, mtp=False)


def _decode(serving: Serving, weights: memory.Weights, cache_bytes: float) -> Decode:
    model, cluster = serving.model, serving.cluster
    dense = weights.dense_bytes - _unread(serving)
    read = dense + weights.expert_bytes * _used(serving) + cache_bytes
    operations = [o for index in range(model.layers) for o in model.layer(index).operations] + list(model.head)
    products = sum(operation.flops(0.0) for operation in operations)
    core = sum(_attended(serving, operation) for operation in operations if isinstance(operation, Core))
    compute = products / cluster.peak(serving.weights) + core / cluster.peak("bf16")
    return Decode(
        memory=read / cluster.gpu.memory_bandwidth,
        compute=serving.batch / serving.tp * compute,
        exchange=_exchange(serving),
    )


def _unread(serving: Serving) -> float:
    """Bytes of the embedding's rows that no token of a step looks up, each token another one; its table is bf16."""
    model = serving.model
    if model.tied_head:
        return 0.0
    rows = max(0, model.vocabulary - serving.batch)
    return rows * model.hidden * BYTES_PER_ELEMENT["bf16"] / serving.tp


def _used(serving: Serving) -> float:
    """The share of experts that the tokens of a step go to, chosen uniformly."""
    experts = serving.model.experts
    if not experts:
        return 1.0
    tokens = serving.batch * serving.gpus / serving.tp
    return float(1 - (1 - experts.topk / experts.routed) ** tokens)


def _attended(serving: Serving, core: Core) -> float:
    """FLOPs of one query over the cache."""
    own = serving.model.attention
    if isinstance(own, LatentAttention):
        return 2.0 * own.heads * (2 * own.kv_lora_rank + own.rope_dim) * serving.context
    return core.flops(float(serving.context))


def _exchange(serving: Serving) -> float:
    model, experts = serving.model, serving.model.experts
    if not experts or serving.ep == 1:
        return 0.0
    node, network = serving.cluster.node.nvlink, serving.cluster.network
    near = serving.ep <= node.domain_gpus
    rate = node.bandwidth_per_direction if near else network.nics_per_gpu * network.bandwidth_per_direction
    size = BYTES_PER_ELEMENT[serving.dispatch] + BYTES_PER_ELEMENT[serving.combine]
    copies = experts.topk + experts.shared
    each = exchange_seconds(serving.batch / serving.tp, copies, model.hidden, size, rate)
    return (model.layers - model.dense_layers) * each


def exchange_seconds(tokens: float, copies: int, hidden: int, element_bytes: float, bandwidth: float) -> float:
    """A layer's exchange: every copy of a token crosses one link at its full rate, there and back."""
    return tokens * copies * hidden * element_bytes / bandwidth
