"""Cluster: a GPU, its node and its network, read from `hardware_profiles/NAME.toml`; knows no schedule and no model.

A profile has a unit in each key and a source for each number (see profile.py). A bandwidth is that of ONE direction
throughout.

A kernel's time is floor + (compute^p + memory^p)^(1/p): a roofline whose corner the `sharpness` p rounds. Compute
comes in tiles dealt out to the SMs, so it is never faster than the peak, nor than one tile on one SM.
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, cast

from simpipe.simulator.costs import profile
from simpipe.simulator.costs.profile import (
    Amount,
    Count,
    Dimension,
    Factor,
    Figure,
    Fitted,
    ProfileKind,
    Ratio,
    Seconds,
    Share,
)
from simpipe.simulator.errors import SimpipeError

FOLDER = Path(__file__).resolve().parents[2] / "hardware_profiles"

BYTES_PER_ELEMENT = {"bf16": 2.0, "fp16": 2.0, "tf32": 4.0, "fp32": 4.0, "fp8": 1.0, "fp8_block": 1.0, "fp4": 0.5}
"""The number formats. `fp8_block` is fp8 scaled by block, as DeepSeek-V3 trains: its own curves, fp8's peak."""

# What a GEMM library chooses from, the fastest for each shape: output tiles (rows, columns), the largest first,
# and parts along k that each tile's work is cut into.
TILES = ((256, 128), (128, 256), (128, 128), (128, 64), (64, 128), (64, 64), (64, 32), (32, 64))
SPLITS = (1, 2, 4, 8)


class ClusterError(SimpipeError):
    """A hardware profile is unknown or malformed, or is asked for what it does not hold."""


# Bounds are a wide margin around any machine there is; what lies outside is a slip of the pen, mostly in the unit.
_BYTES = {"GB": 1e9, "GiB": 2.0**30, "MB": 1e6, "MiB": 2.0**20, "bytes": 1.0}
Nics = Annotated[float, Dimension(0.01, 100)]
Flops = Annotated[float, Dimension(1e9, 1e18, {"TFLOP/s": 1e12, "PFLOP/s": 1e15})]
Memory = Annotated[float, Dimension(1e9, 1e14, _BYTES)]
Cache = Annotated[float, Dimension(1e5, 1e11, _BYTES)]
Overhead = Annotated[float, Dimension(0, 1e9, {"bytes": 1.0})]
Bandwidth = Annotated[float, Dimension(1e6, 1e14, {"GB/s": 1e9, "TB/s": 1e12, "Gbit/s": 1e9 / 8})]
HostBandwidth = Annotated[float | None, Dimension(1e9, 1e14, {"GB/s": 1e9, "TB/s": 1e12})]
PairBandwidth = Annotated[float | None, Dimension(1e6, 1e14, {"GB/s": 1e9, "TB/s": 1e12})]
Price = Annotated[float | None, Dimension(0, 1e5, {"USD/GPU-hour": 1.0})]


@dataclass(frozen=True)
class GemmCurve:
    """Time of a (grouped) GEMM kernel by shape.

    A tile of r x c outputs takes the time of k + `k_ramp` products at `efficiency` of its SM's peak; 1 + `tile_half`
    x (1/i - 1/i of the largest tile) as long if it is small, i = rc / (r + c). The last wave costs between its fill
    (wave_quantisation 0) and a whole wave (1).
    """

    efficiency: Ratio
    tile_half: Amount
    k_ramp: Amount
    wave_quantisation: Share
    memory_efficiency: Ratio
    sharpness: Factor
    floor: Seconds


@dataclass(frozen=True)
class AttentionCurve:
    """Time of a fused attention kernel: blocks of 128 queries, each as long as with `k_ramp` more keys.

    Head dimension d runs at efficiency x d / (d + head_half) of the peak; `tail` of a longest block sticks out.
    """

    efficiency: Ratio
    head_half: Amount
    k_ramp: Amount
    tail: Amount
    memory_efficiency: Ratio
    sharpness: Factor
    floor: Seconds


@dataclass(frozen=True)
class MemoryCurve:
    """Time of a memory-bound kernel: floor + bytes / (efficiency x memory bandwidth)."""

    efficiency: Ratio
    floor: Seconds


@dataclass(frozen=True)
class Gpu:
    """One GPU; `peak` is dense, by number format. The curves leave out `launch_latency` (from the launch call to the
    start on an idle stream) and `kernel_gap` (between two kernels of a stream). `sustained`: share of
    the curves' rate of computation that a training step keeps up, where clocks fall under its load; the curves are of
    short runs. `interference`: how many times as long
    a computation takes beside communication, beyond what the SMs held by it explain."""

    sms: Count
    memory: Memory
    memory_bandwidth: Bandwidth
    l2: Cache
    launch_latency: Seconds
    kernel_gap: Seconds
    peak: Mapping[str, Flops]
    gemm: Mapping[str, GemmCurve]
    grouped_gemm: Mapping[str, GemmCurve]
    attention_forward: Mapping[str, AttentionCurve]
    attention_backward: Mapping[str, AttentionCurve]
    memory_bound: MemoryCurve
    interference: Factor = 1.0
    sustained: Ratio = 1.0


@dataclass(frozen=True)
class Nvlink:
    """A GPU's fast links together (NVLink, Infinity Fabric), and how many GPUs they join: without `domain_gpus`, a
    node's. `efficiency` is the share of the bandwidth that large transfers reach, `in_switch_efficiency` bytes/s of an
    all-reduce that the switches add up (NVLS) over the bandwidth; 0 where they cannot. `pair_bandwidth_per_direction`:
    of a pair of GPUs that links of their own join; None where switches give any pair all."""

    bandwidth_per_direction: Bandwidth
    latency: Seconds
    efficiency: Ratio
    domain_gpus: Count
    in_switch_efficiency: Share = 0.0
    pair_bandwidth_per_direction: PairBandwidth = None


@dataclass(frozen=True)
class Node:
    """The GPUs under one operating system, their fast links, each one's PCIe link to the host, and the bandwidth of the
    host's memory, which they share; None where it is not known."""

    gpus: Count
    nvlink: Nvlink
    pcie_bandwidth_per_direction: Bandwidth
    host_memory_bandwidth: HostBandwidth = None


@dataclass(frozen=True)
class Network:
    """The scale-out fabric; bandwidth is a NIC's. A node's NICs are spread over `rails`; rails of different `planes`
    meet in no switch. `nodes_per_leaf` nodes share a rail's leaf switch. Oversubscription is a layer's capacity
    from below over that to above."""

    nics_per_gpu: Nics
    bandwidth_per_direction: Bandwidth
    efficiency: Ratio
    latency_same_leaf: Seconds
    latency_cross_leaf: Seconds
    rails: Count
    planes: Count
    nodes_per_leaf: Count
    leaf_oversubscription: Factor
    spine_oversubscription: Factor


@dataclass(frozen=True)
class ExchangeKernel:
    """How expert dispatch and combine kernels move tokens: see costs/exchange_kernels.py.

    A warp copies `warp_bandwidth` bytes/s, an SM runs `warps_per_sm` of them. What their instructions cost counts as
    bytes: `copy_overhead` for each copy of a token, `token_overhead` for a dispatch's look at a token. Adding up takes
    `sum_read` of a copy for each term and `sum_write` copies' bytes for the sum. A chunk costs each task
    `chunk_overhead`, a kernel its floor, and `round_floor` more for each doubling of the nodes. The efficiencies are
    shares of what large transfers reach on NIC and NVLink. Computation beside it is slowed as its share s of the L2
    cache grows, by (1 - s)^-`l2_exponent`. `wait`: how long a kernel holds its SMs before the other ranks are there.
    """

    warps_per_sm: Count
    warp_bandwidth: Bandwidth
    copy_overhead: Overhead
    token_overhead: Overhead
    sum_read: Amount
    sum_write: Amount
    chunk_overhead: Seconds
    dispatch_floor: Seconds
    combine_floor: Seconds
    round_floor: Seconds
    network_efficiency: Ratio
    nvlink_efficiency: Ratio
    l2_exponent: Amount
    wait: Seconds = 0.0
    first_dispatch: Factor = 1.0


@dataclass(frozen=True)
class CollectiveCurve:
    """What a collective takes beside its bytes: seconds before the first, a `hop` for each step over NVLink (one over
    the network takes the network's latency), and bytes that `fill` the pipeline at NVLink's bandwidth: t chunks of the
    best size make bytes/bandwidth = T last T + 2 sqrt(fill T). A rank's own share is read and written by the same
    kernel, between its transfers, at `memory_efficiency` of the memory's bandwidth."""

    floor: Seconds
    hop: Seconds
    fill: Overhead
    memory_efficiency: Ratio


class Attention(NamedTuple):
    """Shape of an attention; causal queries are the last ones of the keys."""

    batch: int
    heads: int
    kv_heads: int
    queries: int
    keys: int
    head_dim: int
    value_dim: int
    causal: bool = True


_Share = tuple[float, int, float, float]  # FLOP/s of an SM, SMs to run on, bytes/s of memory, bytes of an element
T = TypeVar("T")


@dataclass(frozen=True)
class Cluster:
    """A machine; `figures` holds its numbers again, by key path without unit (`gpu.memory_bandwidth`), with sources.
    Times are a kernel's own seconds."""

    name: str
    description: str
    figures: Mapping[str, Figure]
    gpu: Gpu
    node: Node
    network: Network
    exchange: ExchangeKernel
    collectives: CollectiveCurve
    price: Price = None

    @property
    def sources(self) -> dict[str, str]:
        """Where each number is from."""
        return {key: figure.source for key, figure in self.figures.items()}

    @property
    def assumed(self) -> dict[str, str]:
        """The numbers that no seen source gives, and why each was taken."""
        return {key: figure.source for key, figure in self.figures.items() if figure.assumed}

    @property
    def nodes_per_spine(self) -> int:
        """Nodes that two layers of switches join without a core: a spine has as many ports as a leaf, each to a leaf of
        one of its plane's rails (arXiv 2505.09343, table 3)."""
        network = self.network
        below = network.nodes_per_leaf * self.node.gpus * network.nics_per_gpu / network.rails
        ports = below * (1 + 1 / network.leaf_oversubscription)
        return max(network.nodes_per_leaf, int(network.nodes_per_leaf * ports * network.planes / network.rails))

    def rows(self) -> list[profile.Row]:
        """What `simpipe show hardware` prints."""
        return profile.rows(self.figures)

    def fitted(self, curve: str) -> Fitted:
        """What a fit said of a curve, by its key path (`gpu.gemm.bf16`); nothing where nobody fitted it."""
        said = [f.fitted for key, f in self.figures.items() if key.startswith(f"{curve}.")]
        return next((fitted for fitted in said if fitted.points), Fitted())

    def peak(self, format: str) -> float:
        """Dense peak FLOP/s in a number format."""
        return self._of("peak", self.gpu.peak, format.removesuffix("_block"))

    def gemm_seconds(
        self, m: int, n: int, k: int, format: str, sms: int | None = None, output_bytes: float = 2.0
    ) -> float:
        """An m x k by k x n product; `output_bytes` moved an output element (8 to accumulate in fp32)."""
        return self.products_seconds("gemm", ((m, n, k),), format, sms, output_bytes)

    def grouped_gemm_seconds(
        self, shapes: Sequence[tuple[int, int, int]], format: str, sms: int | None = None, output_bytes: float = 2.0
    ) -> float:
        """One kernel with a product (m, n, k) for each group, whose tiles share the SMs."""
        return self.products_seconds("grouped_gemm", shapes, format, sms, output_bytes)

    def products_seconds(
        self, family: str, shapes: Sequence[tuple[int, int, int]], format: str, sms: int | None = None,
        output_bytes: float = 2.0,
    ) -> float:  # fmt: skip
        """The same for a `family` of products, gemm or grouped_gemm."""
        curve: GemmCurve = self._of(f"{family} curve", getattr(self.gpu, family), format)
        groups = tuple((m, n, k, count) for (m, n, k), count in sorted(Counter(shapes).items()))
        return _gemm(curve, groups, self._share(format, sms), output_bytes)

    def attention_seconds(self, shape: Attention, format: str, backward: bool = False, sms: int | None = None) -> float:
        """Fused attention, the softmax included."""
        family = "attention_backward" if backward else "attention_forward"
        curve: AttentionCurve = self._of(f"{family} curve", getattr(self.gpu, family), format)
        return _attention(curve, shape, backward, self._share(format, sms))

    def memory_seconds(self, moved_bytes: float) -> float:
        """A kernel bound by the `moved_bytes` that it reads and writes; does not depend on its SMs."""
        curve = self.gpu.memory_bound
        return curve.floor + moved_bytes / (curve.efficiency * self.gpu.memory_bandwidth) if moved_bytes else 0.0

    def _of(self, what: str, table: Mapping[str, T], format: str) -> T:
        if format not in table:
            raise ClusterError(f"{self.name} has no {what} for {format!r}; it has {', '.join(table)}")
        return table[format]

    def _share(self, format: str, sms: int | None) -> _Share:
        used = self.gpu.sms if sms is None else sms
        if not 1 <= used <= self.gpu.sms:
            raise ClusterError(f"a kernel on {self.name} takes 1 to {self.gpu.sms} SMs, not {used}")
        rate = self.peak(format) * self.gpu.sustained
        return rate / self.gpu.sms, used, self.gpu.memory_bandwidth, BYTES_PER_ELEMENT[format]


@lru_cache(maxsize=8192)
def _gemm(curve: GemmCurve, groups: tuple[tuple[int, int, int, int], ...], on: _Share, output: float) -> float:
    """Seconds of products (m, n, k, how many) with the fastest tile and split."""
    rate, sms, bandwidth, element = on
    there = sorted((group for group in groups if min(group) > 0), key=lambda group: -group[2])
    found = [0.0]
    if there:
        m, n, k, count = zip(*there, strict=True)
        gemm_times(
            found, (0, len(m)), m, n, k, count, (sms,), (output,), rate, bandwidth, element, tuple(vars(curve).values())
        )
    return found[0]


def gemm_times(
    found: Any, start: Any, m: Any, n: Any, k: Any, count: Any, sms: Any, output: Any,
    rate: float, bandwidth: float, element: float, curve: Any,
) -> None:  # fmt: skip
    """Fill `found` with the seconds of kernels, each with the fastest tile and split. A kernel of `kernels`.

    Kernel i has products start[i] to start[i + 1], `count` times m x n x k, longest k first, on `sms` SMs; `output`
    bytes are moved an output element. rate: FLOP/s of an SM; bandwidth: bytes/s of memory; element: bytes; curve: a
    GemmCurve's numbers.
    """
    efficiency, tile_half, k_ramp, wave_quantisation, memory_efficiency, sharpness, floor = curve
    for row in range(len(found)):
        products = range(start[row], start[row + 1])
        moved, partial = 0.0, 0.0
        for i in products:
            moved += count[i] * (element * (m[i] + n[i]) * k[i] + output[row] * m[i] * n[i])
            partial += count[i] * 8.0 * m[i] * n[i]  # an fp32 partial sum, written and read
        best = math.inf
        for split in SPLITS:
            fastest = math.inf
            for rows, columns in TILES:
                whole = 0
                for i in products:
                    whole += count[i] * -(-m[i] // rows) * -(-n[i] // columns)
                if split > 1 and whole >= sms[row]:
                    continue  # the SMs are full already
                half = tile_half * ((rows + columns) / (rows * columns) - (256 + 128) / (256 * 128))
                tile_rate = rate * efficiency / (1 + half)
                tiles, filled, waves, longest = 0, 0.0, 0.0, 0.0
                for i in products:  # longest tiles first: a wave lasts as long as its first tile
                    seconds = 2 * rows * columns * (k[i] / split + k_ramp) / tile_rate
                    before = tiles
                    tiles += count[i] * split * -(-m[i] // rows) * -(-n[i] // columns)
                    filled += seconds * (tiles - before) / sms[row]
                    waves += seconds * (-(-tiles // sms[row]) + -before // sms[row])
                    longest = max(longest, seconds)
                compute = max(longest, wave_quantisation * waves + (1 - wave_quantisation) * filled)
                fastest = min(fastest, compute)
            if fastest == math.inf:
                break
            traffic = moved + (split * partial if split > 1 else 0.0)
            best = min(best, corner(fastest, traffic / (bandwidth * memory_efficiency), sharpness))
        found[row] = floor + best


@lru_cache(maxsize=8192)
def _attention(curve: AttentionCurve, shape: Attention, backward: bool, on: _Share) -> float:
    rate, sms, bandwidth, element = on
    if shape.causal and shape.keys < shape.queries:
        raise ClusterError(f"causal attention takes no fewer keys than queries = {shape.queries}, not {shape.keys}")
    found = [0.0]
    attention_times(found, (shape,), (sms,), backward, rate, bandwidth, element, tuple(vars(curve).values()))
    return found[0]


def attention_times(
    found: Any, shapes: Any, sms: Any, backward: bool, rate: float, bandwidth: float, element: float, curve: Any
) -> None:
    """Fill `found` with the seconds of fused attentions. A kernel of `kernels`.

    shapes: rows as Attention. rate: FLOP/s of an SM; bandwidth: bytes/s; element: bytes; curve: an AttentionCurve's.
    """
    efficiency, head_half, k_ramp, tail, memory_efficiency, sharpness, floor = curve
    for row in range(len(found)):
        batch, heads, kv_heads, queries, keys, head, value, causal = shapes[row]
        found[row] = 0.0
        if min(batch, heads, kv_heads, queries, keys, head, value) < 1:
            continue
        blocks, key_blocks = -(-queries // 128), -(-keys // 128)
        pairs = 128 * 128 * (blocks * key_blocks - (blocks * (blocks - 1) // 2 if causal else 0))
        each_sm = batch * heads * (pairs + blocks * 128 * k_ramp) / sms[row]
        longest = 128 * (128 * key_blocks + k_ramp)
        # forward QK and PV; backward QK, dQ and dK along the head dimension, dP and dV along the value dimension
        flops = (3 * head + 2 * value) * 2 if backward else (head + value) * 2
        slower = 1 + 2 * head_half / (head + value)
        compute = flops * (each_sm + tail * longest) * slower / (rate * efficiency)
        moved = element * batch * (queries * heads + keys * kv_heads) * (head + value) * (2 if backward else 1)
        found[row] = floor + corner(compute, moved / (bandwidth * memory_efficiency), sharpness)


def corner(compute: float, memory: float, sharpness: float) -> float:
    """The p-norm of two times: a roofline whose corner is rounded."""
    longer = max(compute, memory, 1e-300)
    return float(longer * ((compute / longer) ** sharpness + (memory / longer) ** sharpness) ** (1 / sharpness))


PROFILES = ProfileKind(Cluster, FOLDER, ClusterError, "hardware", tuple(BYTES_PER_ELEMENT))


def profile_names() -> list[str]:
    """The machines that come with simpipe."""
    return profile.names(PROFILES)


def load_cluster(name_or_path: str | os.PathLike[str]) -> Cluster:
    """The machine of `hardware_profiles/NAME.toml`, or of the user's own file (`./mine.toml`).

    Raises ClusterError, one sentence with file and key, for anything that is not a sound profile.
    """
    name = os.fspath(name_or_path)
    return _profile(name) if name in profile_names() else _load(name)


@cache
def _profile(name: str) -> Cluster:
    """A machine that comes with simpipe, read once."""
    return _load(name)


def _load(name: str) -> Cluster:
    path, description, read = profile.read(PROFILES, name)
    families = ("gemm", "grouped_gemm", "attention_forward", "attention_backward")
    for family, format in product(families, BYTES_PER_ELEMENT):
        own, compute, like = f"gpu.{family}.{format}.", format.removesuffix("_block"), "bf16"
        if f"gpu.peak.{compute}" in read and not any(key.startswith(own) for key in read):
            like = compute if compute != format else "bf16"
            why = f"nobody timed {format} here: the {like} curve at the peak of {compute}"
            for key, figure in [item for item in read.items() if item[0].startswith(f"gpu.{family}.{like}.")]:
                read[own + key.rpartition(".")[2]] = figure._replace(source=why, assumed=True)
    if "node.gpus" in read and "node.nvlink.domain_gpus" not in read:
        gpus = read["node.gpus"]
        read["node.nvlink.domain_gpus"] = gpus._replace(source=f"the GPUs of a node: {gpus.source}")
    if not any(key.startswith("exchange.") for key in read):
        why = "nobody timed dispatch and combine kernels here: an SM is taken to move as much as an H100's"
        for key, figure in profile.read(PROFILES, "h100")[2].items():
            if key.startswith("exchange."):
                read[key] = figure._replace(source=why, assumed=True)
    return cast(Cluster, profile.build(PROFILES, path, description, read))
