"""Parallel: how a model is spread over GPUs, and which layers each pipeline stage holds; knows no schedule.

Sizes are checked against each other when made, and against a model and a machine by `check`. Each pipeline stage has
gpus / ranks GPUs: data x context x tensor parallel for attention, and again expert-data x expert x expert-tensor
parallel for the experts.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from functools import cache
from typing import Annotated, Any, NamedTuple, get_type_hints

from simpipe.simulator.costs.cluster import BYTES_PER_ELEMENT, Cluster
from simpipe.simulator.costs.model import Experts, LatentAttention, Model
from simpipe.simulator.errors import ParallelError, SimpipeError, nearest, show

MAX_SIZE = 1_000_000_000
"""Largest size accepted, far above any real one."""

MAX_GPUS = 10_000_000
"""GPUs at most: a second goes by while where each lies is looked at."""

MAX_LAYOUT = 100_000
"""Most symbols a layout string may stand for."""

RECOMPUTE = ("full", "selective", "core", "norms", "mla_up", "swiglu", "mlp")
"""What can be recomputed: whole layers, or parts. `selective` is Megatron's word for the attention core."""

PRECISIONS = {
    "bf16": {"compute_format": "bf16", "dispatch_format": "bf16", "combine_format": "bf16"},
    "fp8": {"compute_format": "fp8", "dispatch_format": "fp8", "combine_format": "bf16"},
    "fp8_block": {"compute_format": "fp8_block", "dispatch_format": "fp8", "combine_format": "bf16"},
}
"""What the shortcut `precision` stands for; `fp8_block` is how DeepSeek-V3 trains."""


class Allowed(NamedTuple):
    """Which values a field takes, in words and as a test."""

    words: str
    accepts: Callable[[Any], bool]


def whole(least: int, most: int = MAX_SIZE) -> Allowed:
    """A whole number of a range."""
    return Allowed(f"a whole number from {least} to {most}", lambda value: is_whole(value) and least <= value <= most)


def one_of(*values: Any) -> Allowed:
    """One of some values, of the same type."""
    words = ", ".join(map(str, values[:-1])) + f" or {values[-1]}"
    return Allowed(words, lambda value: any(type(value) is type(v) and value == v for v in values))


def is_whole(value: Any) -> bool:
    """Whether it is an int, and no bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any, least: float = 0.0) -> bool:
    """Whether it is a number from `least` to 1e9: not NaN, not infinite, no bool."""
    return isinstance(value, int | float) and not isinstance(value, bool) and least <= value <= MAX_SIZE


SPREADS = ("even", "balanced")


def _is_stage_layers(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(is_whole(count) and 0 <= count <= MAX_SIZE for count in value)
    return isinstance(value, str) and (value in SPREADS or value.lstrip(" ,(").startswith("E"))


Size = Annotated[int, whole(1)]
Switch = Annotated[bool, Allowed("true or false", lambda value: isinstance(value, bool))]


class Load(NamedTuple):
    """How unevenly a layer's experts are loaded, over what each would be in balance.

    network, nvlink: what an exchange puts on the NIC and the NVLink that carry most. experts: rows of each expert of
    the fullest GPU over the mean of all GPUs; one number stands for all of them together, in equal parts.
    """

    network: float
    nvlink: float
    experts: tuple[float, ...]

    @property
    def gpu(self) -> float:
        """Rows of the fullest GPU over the mean."""
        return math.fsum(self.experts)

    @staticmethod
    def of(imbalance: float | tuple[float, ...]) -> Load:
        """From a number, an upper bound that holds for GPUs and links alike, or from (network, nvlink, experts...)."""
        if not isinstance(imbalance, tuple):
            return Load(imbalance, imbalance, (imbalance,))
        return Load(imbalance[0], imbalance[1], imbalance[2:])


def _is_imbalance(value: Any) -> bool:
    if not isinstance(value, tuple):
        return is_number(value, 1)
    return len(value) >= 3 and all(map(is_number, value)) and min(*value[:2], math.fsum(value[2:]) * ROUNDED) >= 1


ROUNDED = 1 + 1e-9
"""Parts that add up to 1 may be rounded."""

Imbalance = Annotated[
    float | tuple[float, ...],
    Allowed("a number, at least 1, or a list: of NIC, NVLink and experts", _is_imbalance),
]
Imbalances = Annotated[
    tuple[float | tuple[float, ...], ...],
    Allowed(
        "a list of numbers, at least 1, or of such lists as expert_imbalance takes",
        lambda value: isinstance(value, tuple) and all(map(_is_imbalance, value)),
    ),
]
Format = Annotated[str, one_of(*BYTES_PER_ELEMENT)]
Recompute = Annotated[
    frozenset[str],
    Allowed(
        f"none, or some of {', '.join(RECOMPUTE)}", lambda value: isinstance(value, frozenset) and value <= {*RECOMPUTE}
    ),
]
StageLayers = Annotated[
    str | tuple[int, ...],
    Allowed("even, balanced, a list of counts as 3, 4, 4, 3, or a layout as Et*3|(tt|)*2,m|L", _is_stage_layers),
]


OUTSIDE_SLOTS = {
    "ranks", "gpus", "global_batch", "zero", "master_bytes", "moment_bytes", "gradient_overlap", "gather_overlap",
    "keep_parameters", "stage_layers",
}  # fmt: skip
"""Fields of Parallel that say what a slot's layers are, or matter outside slots only: layouts that differ in nothing
else run the same operations in a slot of the same layers."""


@dataclass(frozen=True, kw_only=True)
class Parallel:
    """How a training step is spread over GPUs.

    ranks: pipeline ranks. gpus: all of them. global_batch: sequences a step. sequence: tokens of one.
    tp, cp: tensor and context parallel sizes. ep, etp: GPUs that a layer's experts are spread over, and that one
    expert is split over. zero: ZeRO stage, 0 to 3. microbatch_size: sequences of a micro-batch.
    recompute: what is computed again for the backward instead of kept, names of RECOMPUTE.
    compute_format, dispatch_format, combine_format: number formats of matrix products and of the expert exchanges.
    master_bytes: of a parameter's master copy, 0 without one. moment_bytes: of each of the optimizer's two moments.
    gradient_bytes: of an accumulated gradient. communication_sms: SMs that an expert exchange holds.
    communication_warps: how the tasks of its kernels share warps. communication_chunk: tokens that one of its channels
    moves at once.
    overlap: what runs beside each other: nothing (serial); F and B of an F&B slot (none); other slots within themselves
    too (within-slot). gradient_overlap, gather_overlap: whether reductions of gradients run beside backwards, and
    gathers of parameters beside forwards. keep_parameters: whether ZeRO 3 keeps parameters once a step has gathered
    them, instead of gathering them for each visit of a stage.
    averages: where moving averages of the weights are: none, gpu or cpu. optimizer_device: where the optimizer's state
    is and is updated: gpu or cpu. kept_format: of what products and activation functions keep for the backward: that
    of the products (compute), or bf16. shared_tables: whether MTP modules share embedding and head of their rank.
    sequence_parallel: whether norms split the sequence over the tensor parallel GPUs.
    redundant_experts: of each layer, those that lie on one more GPU of the expert parallel group, with gradients and
    optimizer states of their own. expert_imbalance: tokens of the fullest expert parallel GPU over the mean, or what
    `Load.of` reads. layer_imbalance: the same of each layer with experts, instead of the one figure for all. Memory
    then takes one GPU to be the fullest in every layer: an upper bound.
    stage_layers: layers of each stage, as `stages` reads them; its key is `layers`.

    Raises ParallelError, one sentence with the numbers, for anything that does not fit.
    """

    ranks: Size
    gpus: Annotated[int, whole(1, MAX_GPUS)]
    global_batch: Size
    sequence: Size
    tp: Size = 1
    cp: Size = 1
    ep: Size = 1
    etp: Size = 1
    zero: Annotated[int, whole(0, 3)] = 1
    microbatch_size: Size = 1
    recompute: Recompute = frozenset()
    compute_format: Format = "bf16"
    dispatch_format: Format = "bf16"
    combine_format: Format = "bf16"
    master_bytes: Annotated[int, one_of(0, 2, 4)] = 4
    moment_bytes: Annotated[int, one_of(1, 2, 4)] = 4
    gradient_bytes: Annotated[int, one_of(2, 4)] = 4
    communication_sms: Annotated[int, whole(1)] = 20
    communication_warps: Annotated[str, one_of("dynamic", "static")] = "dynamic"
    communication_chunk: Annotated[int, whole(1)] = 8
    overlap: Annotated[str, one_of("serial", "none", "within-slot")] = "none"
    gradient_overlap: Switch = True
    gather_overlap: Switch = True
    keep_parameters: Switch = False
    sequence_parallel: Switch = True
    averages: Annotated[str, one_of("none", "gpu", "cpu")] = "none"
    optimizer_device: Annotated[str, one_of("gpu", "cpu")] = "gpu"
    kept_format: Annotated[str, one_of("compute", "bf16")] = "compute"
    shared_tables: Switch = True
    redundant_experts: Annotated[int, whole(0)] = 0
    expert_imbalance: Imbalance = 1.0
    layer_imbalance: Imbalances = ()
    stage_layers: StageLayers = "even"

    def __post_init__(self) -> None:
        check_values(self, ParallelError)
        if isinstance(self.stage_layers, str) and self.stage_layers not in SPREADS:
            _layout(self.stage_layers)
        check_multiple("gpus", self.gpus, ranks=self.ranks, tp=self.tp, cp=self.cp)
        check_multiple("gpus / ranks", self.gpus // self.ranks, ep=self.ep, etp=self.etp)
        check_multiple("global_batch", self.global_batch, dp=self.dp, microbatch_size=self.microbatch_size)
        self.check_sequence("sequence", self.sequence)

    @staticmethod
    def of(given: Mapping[str, Any]) -> Parallel:
        """From plain values by key, as a file, flags or a table hold them.

        recompute may be a list or text (`norms, swiglu`), layers too (`3, 4, 4, 3`). Raises ParallelError.
        """
        values = dict(expand_precision(given))
        check_keys(values, parallel_keys(), ParallelError)
        if "recompute" in values:
            values["recompute"] = _read_recompute(values["recompute"])
        if "layers" in values:
            values["stage_layers"] = read_numbers(values.pop("layers"))
        for key in ("expert_imbalance", "layer_imbalance"):
            if key in values:
                values[key] = read_numbers(values[key])
        return Parallel(**values)

    def to_dict(self) -> dict[str, Any]:
        """The plain values that `of` reads back, defaults included."""
        values = {key_of(f.name): getattr(self, f.name) for f in fields(self)}
        layers = self.stage_layers if isinstance(self.stage_layers, str) else list(self.stage_layers)
        found = values | {"recompute": sorted(self.recompute, key=RECOMPUTE.index), "layers": layers}
        return found | {key: _as_list(found[key]) for key in ("expert_imbalance", "layer_imbalance")}

    @property
    def dp(self) -> int:
        """Data parallel size: pipelines side by side."""
        return self.gpus // (self.ranks * self.tp * self.cp)

    @property
    def edp(self) -> int:
        """Expert-data parallel size: GPUs of a stage that hold the same part of the same experts."""
        return self.gpus // (self.ranks * self.ep * self.etp)

    @property
    def microbatches(self) -> int:
        """Micro-batches that a pipeline runs in a step."""
        return self.global_batch // (self.dp * self.microbatch_size)

    @property
    def tokens(self) -> int:
        """Tokens of a micro-batch, over all its context and tensor parallel GPUs together."""
        return self.microbatch_size * self.sequence

    @property
    def gathers_each_visit(self) -> bool:
        """Whether parameters are there only while their stage is at work."""
        return self.zero == 3 and not self.keep_parameters

    def recomputes(self, part: str) -> bool:
        """Whether a part of RECOMPUTE is recomputed: by its name, as `selective` for `core`, or because all is."""
        names = {part, "full"} | ({"core", "selective"} if part in ("core", "selective") else set())
        return not names.isdisjoint(self.recompute)

    @property
    def of_slots(self) -> tuple[Any, ...]:
        """What the operations of a slot of given layers depend on: all but OUTSIDE_SLOTS."""
        return tuple(getattr(self, f.name) for f in fields(self) if f.name not in OUTSIDE_SLOTS)

    def with_sequence(self, tokens: int) -> Parallel:
        """The same with sequences of so many tokens."""
        return self if tokens == self.sequence else replace(self, sequence=tokens)

    @property
    def load(self) -> Load:
        """How unevenly experts are loaded, where layers do not say so themselves."""
        return Load.of(self.expert_imbalance)

    @property
    def balanced(self) -> bool:
        """Whether no GPU and no link has more than another."""
        loads = map(Load.of, (self.expert_imbalance, *self.layer_imbalance))
        return all(max(load.network, load.nvlink, load.gpu) <= ROUNDED for load in loads)

    def layer_load(self, model: Model, index: int) -> float | tuple[float, ...]:
        """The imbalance of decoder layer `index`, counted from 0."""
        experts = index - model.dense_layers
        return self.layer_imbalance[experts] if 0 <= experts < len(self.layer_imbalance) else self.expert_imbalance

    def with_load(self, load: float | tuple[float, ...]) -> Parallel:
        """The same where every layer's experts are so unevenly loaded; as expert_imbalance."""
        return replace(self, expert_imbalance=load, layer_imbalance=())

    def copies_over(self, experts: Experts) -> int:
        """Ranks that copies of an expert may lie on: those of its group where routing is limited to groups that lie on
        whole ranks, so that the limit keeps its meaning; else all of the expert parallel group."""
        limited = experts.groups_per_token < experts.groups and self.ep % experts.groups == 0
        return self.ep // experts.groups if limited else self.ep

    def check_sequence(self, key: str, tokens: int) -> None:
        """Refuse a sequence length that context and sequence parallelism cannot split evenly. Raises ParallelError."""
        check_multiple(key, tokens, cp=self.cp)
        if self.sequence_parallel:
            check_multiple(f"{key} / cp", tokens // self.cp, tp=self.tp)

    def check(self, model: Model, cluster: Cluster) -> Parallel:
        """Itself, if the model can be split so and the machine computes so. Raises ParallelError or ClusterError."""
        self.check_model(model)
        cluster.peak(self.compute_format)
        if self.communication_sms >= cluster.gpu.sms:
            asked = f"communication_sms = {self.communication_sms}"
            raise ParallelError(f"{asked} leaves no SM to compute: {cluster.name} has {cluster.gpu.sms}")
        return self

    def check_model(self, model: Model) -> Parallel:
        """Itself, if the model can be split so. Raises ParallelError."""
        name = model.name
        for size, number in _splits(model):
            check_multiple(f"{size} of {name}", number, tp=self.tp)
        if model.positions and self.sequence > model.positions:
            raise ParallelError(f"sequence = {self.sequence} exceeds the {model.positions} positions of {name}")
        if "mla_up" in self.recompute and not isinstance(model.attention, LatentAttention):
            raise ParallelError(
                f"recompute holds mla_up, but {name} has no latent attention whose up-projections it names"
            )
        self._check_experts(model)
        return self

    def _check_experts(self, model: Model) -> None:
        if model.experts is None:
            for key, plain in {"ep": 1, "etp": 1, "expert_imbalance": 1, "redundant_experts": 0}.items():
                if getattr(self, key) != plain:
                    given = f"{key} = {getattr(self, key)}"
                    raise ParallelError(f"{given}, but {model.name} has no experts: it takes {plain}")
            if self.layer_imbalance:
                raise ParallelError(f"layer_imbalance is given, but {model.name} has no experts")
            return
        check_multiple(f"experts.routed of {model.name}", model.experts.routed, ep=self.ep)
        check_multiple("redundant_experts", self.redundant_experts, ep=self.ep)
        copies = model.experts.routed * (self.copies_over(model.experts) - 1)
        if self.redundant_experts > copies:
            raise ParallelError(f"redundant_experts = {self.redundant_experts} exceeds {copies}, one on each other GPU")
        check_multiple(f"experts.intermediate of {model.name}", model.experts.intermediate, etp=self.etp)
        layers, listed = model.layers - model.dense_layers, len(self.layer_imbalance)
        if listed not in (0, layers):
            raise ParallelError(f"layer_imbalance holds {listed} layers, but {model.name} has {layers} with experts")
        most, routed = model.experts.routed / model.experts.topk, model.experts.routed
        each = (routed + self.redundant_experts) // self.ep
        loads = {f"layer_imbalance[{index}]": load for index, load in enumerate(self.layer_imbalance)}
        for key, value in {"expert_imbalance": self.expert_imbalance, **loads}.items():
            load = Load.of(value)
            if load.gpu > most * ROUNDED:
                why = f"{model.name} routes to {model.experts.topk} of {routed} experts"
                raise ParallelError(f"{key} = {show(value)} exceeds {most:g}: {why}")
            if len(load.experts) not in (1, each):
                raise ParallelError(f"{key} lists {len(load.experts)} experts of a GPU, but it has {each}")


def _splits(model: Model) -> Iterator[tuple[str, int]]:
    """The sizes that tensor parallelism splits."""
    yield "attention.heads", model.attention.heads
    if not isinstance(model.attention, LatentAttention):
        yield "attention.kv_heads", model.attention.kv_heads
    if model.mlp:
        yield "mlp.intermediate", model.mlp.intermediate
    if model.experts and model.experts.shared:
        yield "experts.shared x intermediate", model.experts.shared * model.experts.intermediate


# Stages: which layers where.


@dataclass(frozen=True)
class Stage:
    """A pipeline stage: its number along the model, its decoder layers counted from 0, and what else it holds.

    mtp: all of the model's MTP modules. head: the final norm, the vocabulary head and the loss.
    """

    index: int
    layers: tuple[int, ...]
    embedding: bool
    head: bool
    mtp: bool


def stages(model: Model, parallel: Parallel, count: int) -> tuple[Stage, ...]:
    """The model's layers over `count` stages, as `stage_layers` says.

    `even`: as evenly as possible; where layers are left over, the last stage (head, loss and MTP) goes without first,
    then the first (embedding, and more micro-batches in flight), then the next. `balanced` needs to know what layers
    take, and is even until simulator/balance.py has replaced it. A tuple: layers of each stage. A
    layout string of Megatron: E embedding, t decoder layer, m MTP module, L loss with head; `|` ends a stage, `x*n`
    repeats, parentheses group, commas and blanks are read over. Without m, MTP is not trained.

    Raises ParallelError where stages, layers or modules are more or fewer than there are.
    """
    text = parallel.stage_layers
    if isinstance(text, str) and text not in SPREADS:
        return _placed(model, text, count)
    counts = _even(model, count) if isinstance(text, str) else text
    if len(counts) != count:
        raise ParallelError(f"layers lists {len(counts)} stages, but the schedule has {count}")
    if sum(counts) != model.layers:
        raise ParallelError(f"layers lists {sum(counts)} layers, but {model.name} has {model.layers}")
    starts = [sum(counts[:index]) for index in range(count)]
    last = count - 1
    return tuple(
        Stage(
            index,
            tuple(range(start, start + number)),
            index == 0,
            index == last,
            index == last and model.mtp_modules > 0,
        )
        for index, (start, number) in enumerate(zip(starts, counts, strict=True))
    )


def _even(model: Model, count: int) -> tuple[int, ...]:
    if not 1 <= count <= model.layers:
        raise ParallelError(
            f"{count} stages need a layer each, but {model.name} has {model.layers}; place them by layers"
        )
    share, left = divmod(model.layers, count)
    fullest_first = [*range(count - 2, 0, -1), 0, count - 1]
    return tuple(share + (fullest_first.index(index) < left) for index in range(count))


def _placed(model: Model, text: str, count: int) -> tuple[Stage, ...]:
    parts = _layout(text)
    if len(parts) != count:
        raise ParallelError(f"layers = {show(text)} has {len(parts)} stages, but the schedule has {count}")
    layers, modules = (sum(part.count(symbol) for part in parts) for symbol in "tm")
    if layers != model.layers:
        raise ParallelError(f"layers = {show(text)} has {layers} layers t, but {model.name} has {model.layers}")
    if modules not in (0, model.mtp_modules):
        raise ParallelError(
            f"layers = {show(text)} has {modules} MTP modules m, but {model.name} has {model.mtp_modules}"
        )
    found, start = [], 0
    for index, part in enumerate(parts):
        end = start + part.count("t")
        found.append(Stage(index, tuple(range(start, end)), "E" in part, "L" in part, "m" in part))
        start = end
    return tuple(found)


@cache
def _layout(text: str) -> tuple[str, ...]:
    """The symbols of each stage of a layout string."""
    flat = _unrolled(text)
    symbols = flat.replace("|", "")
    if not re.fullmatch("Et*m*L", symbols):
        raise ParallelError(
            f"layers = {show(text)} must hold one E, then all t, then m, then one L, not {show(symbols)}"
        )
    parts = tuple(flat.split("|"))
    if sum("m" in part for part in parts) > 1:
        raise ParallelError(
            f"layers = {show(text)} places m on {sum('m' in part for part in parts)} stages, not on one"
        )
    return parts


def _unrolled(text: str) -> str:
    """A layout without repetitions and parentheses."""
    groups: list[list[str]] = [[]]
    for found in re.finditer(r"[EtmL|()]|\*0*[1-9][0-9]{0,5}(?![0-9])|[\s,]+|.", text):
        token = found[0]
        if token == "(":
            groups.append([])
        elif token == ")" and len(groups) > 1:
            body = "".join(groups.pop())
            groups[-1].append(body)
        elif token[0] == "*" and len(token) > 1 and groups[-1]:
            groups[-1].append(_repeated(text, groups[-1].pop(), int(token[1:])))
        elif token in "EtmL|":
            groups[-1].append(token)
        elif token.strip(" \t\r\n,"):
            raise ParallelError(
                f"layers = {show(text)} has {show(token)} at character {found.start() + 1}, where it is no layout"
            )
    if len(groups) > 1:
        raise ParallelError(f"layers = {show(text)} opens {len(groups) - 1} more parentheses than it closes")
    return "".join(groups[0])


def _repeated(text: str, unit: str, times: int) -> str:
    if len(unit) * times > MAX_LAYOUT:
        raise ParallelError(f"layers = {show(text)} stands for more than {MAX_LAYOUT} symbols")
    return unit * times


# Plain values: what files, flags and tables hold.


def key_of(name: str) -> str:
    """The key of a field: its name, but `layers` for `stage_layers`."""
    return "layers" if name == "stage_layers" else name


@cache
def parallel_keys() -> dict[str, bool]:
    """The keys that `Parallel.of` reads, and whether each must be given."""
    return {key_of(f.name): f.default is MISSING for f in fields(Parallel)} | {"precision": False}


def expand_precision(given: Mapping[str, Any]) -> dict[str, Any]:
    """The values with `precision` replaced by the formats it stands for; a format given by itself stays."""
    rest = dict(given)
    if "precision" not in rest:
        return rest
    name = rest.pop("precision")
    if not isinstance(name, str) or name not in PRECISIONS:
        raise ParallelError(f"precision must be one of {', '.join(PRECISIONS)}, not {show(name)}")
    return PRECISIONS[name] | rest


def read_numbers(value: Any) -> Any:
    """A list, or text such as `3, 4, 4, 3`, as a tuple; anything else as it is."""
    if isinstance(value, str) and re.fullmatch(r"\s*[0-9]{1,9}(\s*,\s*[0-9]{1,9})*\s*", value):
        return tuple(int(part) for part in value.split(","))
    if not isinstance(value, list):
        return value
    return tuple(read_numbers(part) if isinstance(part, list) else part for part in value)


def _as_list(value: Any) -> Any:
    """Tuples, and those in them, as lists."""
    return [_as_list(part) for part in value] if isinstance(value, tuple) else value


def _read_recompute(value: Any) -> Any:
    if isinstance(value, str):
        value = [] if value.strip() in ("none", "") else [part.strip() for part in value.split(",")]
    if not isinstance(value, list | tuple | set | frozenset):
        return value
    for name in value:
        if not isinstance(name, str) or name not in RECOMPUTE:
            raise ParallelError(f"recompute holds {show(name)}; {nearest(name, RECOMPUTE)}")
    return frozenset(value)


def check_keys(given: Mapping[str, Any], known: Mapping[str, bool], error: type[SimpipeError]) -> None:
    """Refuse unknown keys, and missing ones that must be given."""
    for key in given:
        if key not in known:
            raise error(f"unknown key {show(key)}; {nearest(key, known)}")
    for key, required in known.items():
        if required and key not in given:
            raise error(f"{key} is missing")


def check_values(made: Any, error: type[SimpipeError]) -> None:
    """Refuse field values that their annotations do not allow."""
    for name, rule in _rules(made.__class__):
        value = getattr(made, name)
        if not rule.accepts(value):
            raise error(f"{key_of(name)} must be {rule.words}, not {show(value)}")


@cache
def _rules(of: Callable[..., Any]) -> tuple[tuple[str, Allowed], ...]:
    hints = get_type_hints(of, include_extras=True)
    return tuple((name, hint.__metadata__[0]) for name, hint in hints.items() if hasattr(hint, "__metadata__"))


def check_multiple(key: str, value: int, **parts: int) -> None:
    """Refuse a value that is no multiple of the product of the parts. Raises ParallelError with all the numbers."""
    product = math.prod(parts.values())
    if value % product:
        shown = " x ".join(map(str, parts.values())) + (f" = {product}" if len(parts) > 1 else "")
        raise ParallelError(f"{key} = {value} is not a multiple of {' x '.join(parts)} = {shown}")
