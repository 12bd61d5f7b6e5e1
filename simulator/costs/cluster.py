"""Cluster: a GPU, its node and its network, read from `hardware_profiles/NAME.toml`; knows no schedule and no model.

A profile has a unit in each key and a source for each number. This module converts once, to SI (seconds, bytes,
FLOP/s, bytes/s), and keeps the sources. A bandwidth is that of ONE direction throughout.

A kernel's time is floor + (compute^p + memory^p)^(1/p): a roofline whose corner the `sharpness` p rounds. Compute
comes in tiles dealt out to the SMs, so it is never faster than the peak, nor than one tile on one SM.
"""

from __future__ import annotations

import difflib
import math
import os
import tomllib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache, lru_cache
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, TypeVar, cast, get_args, get_origin, get_type_hints

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


class Dimension(NamedTuple):
    """Which values make sense, in words and as a test, and the units in SI; GB/s ends a key as `_gb_per_s`."""

    words: str
    accepts: Callable[[float], bool]
    units: Mapping[str, float] = MappingProxyType({"": 1.0})


Count = Annotated[int, Dimension("a whole number of at least 1", lambda x: x >= 1 and x == int(x))]
Ratio = Annotated[float, Dimension("more than 0 and at most 1", lambda x: 0 < x <= 1)]
Share = Annotated[float, Dimension("between 0 and 1", lambda x: 0 <= x <= 1)]
Factor = Annotated[float, Dimension("at least 1", lambda x: x >= 1)]
_AMOUNT, _POSITIVE = Dimension("0 or more", lambda x: x >= 0), Dimension("more than 0", lambda x: x > 0)
Amount = Annotated[float, _AMOUNT]
Positive = Annotated[float, _POSITIVE]
Flops = Annotated[float, _POSITIVE._replace(units={"TFLOP/s": 1e12, "PFLOP/s": 1e15})]
Size = Annotated[float, _POSITIVE._replace(units={"GB": 1e9, "GiB": 2.0**30, "MB": 1e6, "MiB": 2.0**20, "bytes": 1.0})]
Bandwidth = Annotated[float, _POSITIVE._replace(units={"GB/s": 1e9, "TB/s": 1e12, "Gbit/s": 1e9 / 8})]
Seconds = Annotated[float, _AMOUNT._replace(units={"us": 1e-6, "ns": 1e-9, "ms": 1e-3})]
Price = Annotated[float | None, _AMOUNT._replace(units={"USD/GPU-hour": 1.0})]


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
    start on an idle stream) and `kernel_gap` (between two kernels of a stream). `interference`: how many times as long
    a computation takes beside communication, beyond what the SMs held by it explain."""

    sms: Count
    memory: Size
    memory_bandwidth: Bandwidth
    l2: Size
    launch_latency: Seconds
    kernel_gap: Seconds
    peak: Mapping[str, Flops]
    gemm: Mapping[str, GemmCurve]
    grouped_gemm: Mapping[str, GemmCurve]
    attention_forward: Mapping[str, AttentionCurve]
    attention_backward: Mapping[str, AttentionCurve]
    memory_bound: MemoryCurve
    interference: Factor = 1.0


@dataclass(frozen=True)
class Nvlink:
    """A GPU's fast links together (NVLink, Infinity Fabric), and how many GPUs they join. `efficiency` is the share
    of the bandwidth that large transfers reach."""

    bandwidth_per_direction: Bandwidth
    latency: Seconds
    efficiency: Ratio
    domain_gpus: Count


@dataclass(frozen=True)
class Node:
    """The GPUs under one operating system, their fast links, and each one's PCIe link to the host."""

    gpus: Count
    nvlink: Nvlink
    pcie_bandwidth_per_direction: Bandwidth


@dataclass(frozen=True)
class Network:
    """The scale-out fabric; bandwidth is a NIC's. A node's NICs are spread over `rails`; rails of different `planes`
    meet in no switch. `nodes_per_leaf` nodes share a rail's leaf switch. Oversubscription is a layer's capacity
    from below over that to above."""

    nics_per_gpu: Positive
    bandwidth_per_direction: Bandwidth
    efficiency: Ratio
    latency_same_leaf: Seconds
    latency_cross_leaf: Seconds
    rails: Count
    planes: Count
    nodes_per_leaf: Count
    leaf_oversubscription: Factor
    spine_oversubscription: Factor


class Figure(NamedTuple):
    """One number of a profile: as written with its unit, in SI, where it is from, whether it is a guess."""

    written: str
    value: float
    source: str
    assumed: bool


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
    price: Price = None

    @property
    def sources(self) -> dict[str, str]:
        """Where each number is from."""
        return {key: figure.source for key, figure in self.figures.items()}

    @property
    def assumed(self) -> dict[str, str]:
        """The numbers that no seen source gives, and why each was taken."""
        return {key: figure.source for key, figure in self.figures.items() if figure.assumed}

    def rows(self) -> list[tuple[str, str, str, bool]]:
        """Key, value with unit, source, whether assumed: what `simpipe show hardware` prints."""
        return [(key, f.written, f.source, f.assumed) for key, f in self.figures.items()]

    def peak(self, format: str) -> float:
        """Dense peak FLOP/s in a number format."""
        return self._of("peak", self.gpu.peak, format.removesuffix("_block"))

    def gemm_seconds(
        self, m: int, n: int, k: int, format: str, sms: int | None = None, output_bytes: float = 2.0
    ) -> float:
        """An m x k by k x n product; `output_bytes` moved an output element (8 to accumulate in fp32)."""
        curve = self._of("gemm curve", self.gpu.gemm, format)
        return _gemm(curve, ((m, n, k, 1),), self._share(format, sms), output_bytes)

    def grouped_gemm_seconds(
        self, shapes: Sequence[tuple[int, int, int]], format: str, sms: int | None = None, output_bytes: float = 2.0
    ) -> float:
        """One kernel with a product (m, n, k) for each group, whose tiles share the SMs."""
        curve = self._of("grouped_gemm curve", self.gpu.grouped_gemm, format)
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
        return self.peak(format) / self.gpu.sms, used, self.gpu.memory_bandwidth, BYTES_PER_ELEMENT[format]


@lru_cache(maxsize=8192)
def _gemm(curve: GemmCurve, groups: tuple[tuple[int, int, int, int], ...], on: _Share, output: float) -> float:
    """Seconds of products (m, n, k, how many) with the fastest tile and split."""
    rate, sms, bandwidth, element = on
    groups = tuple(sorted((group for group in groups if min(group) > 0), key=lambda group: -group[2]))
    moved = sum(count * (element * (m + n) * k + output * m * n) for m, n, k, count in groups)
    partial = sum(count * 8.0 * m * n for m, n, _, count in groups)  # an fp32 partial sum, written and read
    choices = []
    for rows, columns in TILES:
        half = curve.tile_half * ((rows + columns) / (rows * columns) - sum(TILES[0]) / math.prod(TILES[0]))
        tile_rate = rate * curve.efficiency / (1 + half)
        for split in SPLITS:
            if split > 1 and sum(c * math.ceil(m / rows) * math.ceil(n / columns) for m, n, _, c in groups) >= sms:
                break  # the SMs are full already
            tiles, filled, waves, longest = 0, 0.0, 0.0, 0.0
            for m, n, k, count in groups:  # longest tiles first: a wave lasts as long as its first tile
                seconds = 2 * rows * columns * (k / split + curve.k_ramp) / tile_rate
                before, tiles = tiles, tiles + count * split * math.ceil(m / rows) * math.ceil(n / columns)
                filled += seconds * (tiles - before) / sms
                waves += seconds * (-(-tiles // sms) + -before // sms)
                longest = max(longest, seconds)
            compute = max(longest, curve.wave_quantisation * waves + (1 - curve.wave_quantisation) * filled)
            traffic = moved + (split * partial if split > 1 else 0.0)
            choices.append(_corner(compute, traffic / (bandwidth * curve.memory_efficiency), curve.sharpness))
    return curve.floor + min(choices) if groups else 0.0


@lru_cache(maxsize=8192)
def _attention(curve: AttentionCurve, shape: Attention, backward: bool, on: _Share) -> float:
    rate, sms, bandwidth, element = on
    batch, heads, kv_heads, queries, keys, head, value, causal = shape
    if causal and keys < queries:
        raise ClusterError(f"causal attention takes no fewer keys than queries = {queries}, not {keys}")
    if min(shape[:7]) < 1:
        return 0.0
    blocks, key_blocks = math.ceil(queries / 128), math.ceil(keys / 128)
    pairs = 128 * 128 * (blocks * key_blocks - (blocks * (blocks - 1) // 2 if causal else 0))
    each_sm = batch * heads * (pairs + blocks * 128 * curve.k_ramp) / sms
    longest = 128 * (128 * key_blocks + curve.k_ramp)
    # forward QK and PV; backward QK, dQ and dK along the head dimension, dP and dV along the value dimension
    flops = (3 * head + 2 * value) * 2 if backward else (head + value) * 2
    slower = 1 + 2 * curve.head_half / (head + value)
    compute = flops * (each_sm + curve.tail * longest) * slower / (rate * curve.efficiency)
    moved = element * batch * (queries * heads + keys * kv_heads) * (head + value) * (2 if backward else 1)
    return curve.floor + _corner(compute, moved / (bandwidth * curve.memory_efficiency), curve.sharpness)


def _corner(compute: float, memory: float, sharpness: float) -> float:
    longer = max(compute, memory) or 1.0
    return float(longer * ((compute / longer) ** sharpness + (memory / longer) ** sharpness) ** (1 / sharpness))


def profile_names() -> list[str]:
    """The machines that come with simpipe."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def load_cluster(name_or_path: str | os.PathLike[str]) -> Cluster:
    """The machine of `hardware_profiles/NAME.toml`, or of the user's own file (`./mine.toml`).

    Raises ClusterError, one sentence with file and key, for anything that is not a sound profile.
    """
    path = _locate(os.fspath(name_or_path), Path())
    description, read = _read(path, ())
    families = ("gemm", "grouped_gemm", "attention_forward", "attention_backward")
    for family, format in product(families, BYTES_PER_ELEMENT):
        own, compute, like = f"gpu.{family}.{format}.", format.removesuffix("_block"), "bf16"
        if f"gpu.peak.{compute}" in read and not any(key.startswith(own) for key in read):
            like = compute if compute != format else "bf16"
            why = f"nobody timed {format} here: the {like} curve at the peak of {compute}"
            for key, figure in [item for item in read.items() if item[0].startswith(f"gpu.{family}.{like}.")]:
                read[own + key.rpartition(".")[2]] = figure._replace(source=why, assumed=True)
    figures = {key: read[key] for key, _ in _numbers(Cluster) if key in read}
    given = {"name": path.stem, "description": description, "figures": figures}
    return cast(Cluster, _build(Cluster, "", figures, path, given))


def _locate(name: str, folder: Path) -> Path:
    if name.endswith(".toml") or "/" in name or os.sep in name:
        return folder / name
    if name not in profile_names():
        raise ClusterError(f"no hardware profile is called {name!r}{_nearest(name, profile_names())}")
    return FOLDER / f"{name}.toml"


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, 0.4)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}" if len(names) < 20 else ""


def _read(path: Path, above: tuple[Path, ...]) -> tuple[str, dict[str, Figure]]:
    """Description and numbers of a file, over those of its `base`; the files `above` derive from it."""
    try:
        tree = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise ClusterError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise ClusterError(f"{path}: is not TOML: {error}") from None
    base, description, guess = (tree.pop(key, "") for key in ("base", "description", "assumed"))
    if not all(isinstance(text, str) for text in (base, description, guess)):
        raise ClusterError(f"{path}: base, description and assumed are texts")
    figures: dict[str, Figure] = {}
    if base:
        below = _locate(base, path.parent)
        if below.resolve() in (*above, path.resolve()):
            raise ClusterError(f"{path}: its base {base} derives from it")
        inherited, figures = _read(below, (*above, path.resolve()))
        description = description or inherited
        if guess:
            figures = {k: f._replace(source=f"{guess}; {f.source}", assumed=True) for k, f in figures.items()}
    own: dict[str, str] = {}
    for written, value, source, assumed in _leaves(tree, "", f"no source is given in {path.name}", True, path):
        if written not in _spellings():
            raise ClusterError(f"{path}: {_unknown(written)}")
        key, dimension, unit = _spellings()[written]
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ClusterError(f"{path}: {written} is a number, not {value!r}")
        if not (abs(value) < 1e15 and dimension.accepts(value)):
            raise ClusterError(f"{path}: {written} is {dimension.words}, not {value}")
        if key in own:
            raise ClusterError(f"{path}: {key} is given twice, as {own[key]} and as {written}")
        own[key] = written
        shown = f"{value:.15g} {unit}".rstrip()
        figures[key] = Figure(shown, value * dimension.units[unit], source, assumed)
    return description, figures


def _leaves(table: Any, at: str, source: str, assumed: bool, path: Path) -> Iterator[tuple[str, Any, str, bool]]:
    """(key path, value, source, whether assumed) of each number; the nearest `source` or `assumed` speaks for it."""
    said = {key: table[key] for key in ("source", "assumed") if key in table}
    if len(said) > 1 or not all(isinstance(text, str) for text in said.values()):
        raise ClusterError(f"{path}: {at}source and {at}assumed are texts, one or the other")
    for key, text in said.items():
        source, assumed = text, key == "assumed"
    for key, value in table.items():
        if key == "value" and len(table) == 1 + len(said):
            yield at[:-1], value, source, assumed
        elif isinstance(value, dict) and value:
            yield from _leaves(value, f"{at}{key}.", source, assumed, path)
        elif key not in said:
            yield at + key, value, source, assumed


@cache
def _spellings() -> dict[str, tuple[str, Dimension, str]]:
    """Each key as a profile can write it: the key path without unit, what it measures, the unit."""
    return {w: (key, d, unit) for key, d in _numbers(Cluster) for w, unit in zip(_spelt(key, d), d.units, strict=True)}


def _unknown(written: str) -> str:
    stems = [key for key, _, unit in _spellings().values() if unit and f"{written}_".startswith(f"{key}_")]
    if stems:
        fits = [spelling for spelling, (key, _, _) in _spellings().items() if key == max(stems, key=len)]
        return f"{written} has no unit that fits; write {' or '.join(fits)}"
    return f"unknown key {written}{_nearest(written, [*_spellings()])}"


@cache
def _parts(of: Any) -> tuple[tuple[str, Any, Dimension | None, bool], ...]:
    """(name, class, what it measures, whether required) of what a profile fills of a class, an entry per format."""
    found: list[tuple[str, Any, Dimension | None, bool]] = []
    for part in fields(of):
        hint = get_type_hints(of, include_extras=True)[part.name]
        by_format = get_origin(hint) is Mapping
        inner = get_args(hint)[1] if by_format else hint
        dimension = inner.__metadata__[0] if get_origin(inner) is Annotated else None
        if dimension or is_dataclass(inner):
            names = [f"{part.name}.{format}" for format in BYTES_PER_ELEMENT] if by_format else [part.name]
            found += [(name, inner, dimension, part.default is MISSING and name == names[0]) for name in names]
    return tuple(found)


def _numbers(of: Any, at: str = "") -> Iterator[tuple[str, Dimension]]:
    """(key path, what it measures) of every number a profile can hold."""
    for name, inner, dimension, _ in _parts(of):
        yield from [(at + name, dimension)] if dimension else _numbers(inner, f"{at}{name}.")


def _build(of: Any, at: str, figures: Mapping[str, Figure], path: Path, made: dict[str, Any]) -> Any:
    """The class from the numbers at the key path `at`, and what is `made` already."""
    for name, inner, dimension, required in _parts(of):
        key, (attribute, _, format) = at + name, name.partition(".")
        if not required and not any(other == key or other.startswith(f"{key}.") for other in figures):
            continue
        if dimension and key not in figures:
            raise ClusterError(f"{path}: {' or '.join(_spelt(key, dimension))} is missing")
        number = figures[key].value if dimension else 0.0
        value = int(number) if inner is Count else number if dimension else _build(inner, f"{key}.", figures, path, {})
        made.update({attribute: {**made.get(attribute, {}), format: value} if format else value})
    return of(**made)


def _spelt(key: str, dimension: Dimension) -> list[str]:
    ends = [unit.lower().replace("/", "_per_").replace("-", "_") for unit in dimension.units]
    return [f"{key}_{end}" if end else key for end in ends]
