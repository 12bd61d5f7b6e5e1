"""Scenario: a run in one YAML file: model, machine, schedule and all of `Parallel`, under flat keys named as the flags.

A file holds only what differs from the defaults; KEYS says what each key means. YAML is read as version 1.2 without
anchors, so `no` is text and `1e-6` a number. Paths in a file start at the file's folder.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from simpipe import schedules
from simpipe.simulator.costs.cluster import Cluster, load_cluster
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.parallel import (
    Allowed,
    Parallel,
    check_keys,
    check_values,
    expand_precision,
    is_number,
    is_whole,
    parallel_keys,
    read_numbers,
)
from simpipe.simulator.costs.stack import DEFAULT as DEFAULT_STACK
from simpipe.simulator.costs.stack import Stack, load_stack
from simpipe.simulator.errors import ParallelError, SimpipeError, show
from simpipe.simulator.yaml_file import read_yaml

KEYS = {
    "model": "a name of `simpipe list models`, a profile (.toml) or a HuggingFace config.json",
    "hardware": "a name of `simpipe list hardware`, or a profile (.toml, .yaml)",
    "stack": "the training software: a name of `simpipe list stacks`, or a profile (.toml, .yaml)",
    "schedule": "a name of `simpipe list schedules`, with options as name:group=8, a .py or a .csv file",
    "chunks": "stages per rank, where the schedule leaves a choice",
    "ranks": "pipeline ranks",
    "gpus": "GPUs in all; data parallel size = gpus / (ranks x tp x cp)",
    "global_batch": "sequences a step",
    "sequence": "tokens of a sequence",
    "microbatch_size": "sequences of a micro-batch",
    "tp": "tensor parallel size",
    "sequence_parallel": "true or false: norms split the sequence over the tensor parallel GPUs",
    "cp": "context parallel size",
    "ep": "GPUs that the experts of a layer are spread over; ep x etp divides gpus / ranks",
    "etp": "GPUs that one expert is split over",
    "zero": "ZeRO stage, 0 to 3",
    "layers": "layers of each stage: even, balanced (by work), a list, or a layout string as Et*3|(tt|)*29,m|L",
    "recompute": "list of what is not kept for the backward: full, selective or core, norms, mla_up, swiglu, mlp",
    "precision": "instead of the three formats below: bf16, fp8, or fp8_block",
    "compute_format": "number format of matrix products",
    "dispatch_format": "number format in which tokens travel to their experts",
    "combine_format": "number format in which they travel back",
    "master_bytes": "bytes of a parameter's master copy in the optimizer: 0, 2 or 4",
    "moment_bytes": "bytes of each of the optimizer's two moments: 1, 2 or 4",
    "gradient_bytes": "bytes of an accumulated gradient: 2 or 4",
    "averages": "where moving averages of the weights are kept and updated: none, gpu or cpu",
    "optimizer_device": "where the optimizer's state is kept and updated: gpu or cpu",
    "kept_format": "format of what is kept for the backward: compute (that of the products) or bf16",
    "shared_tables": "true or false: MTP modules share the embedding and head of their rank",
    "communication_sms": "SMs that a dispatch or combine kernel holds",
    "communication_warps": "how its tasks share warps: dynamic, by load, or static, in equal parts",
    "communication_chunk": "tokens that one of its channels, two SMs, moves at once",
    "overlap": "what overlaps: nothing (serial), F and B of an F&B slot (none), other slots too (within-slot)",
    "gradient_overlap": "true or false: gradient reductions run beside backwards",
    "gather_overlap": "true or false: parameter gathers run beside forwards",
    "keep_parameters": "true or false: ZeRO 3 keeps parameters from their first use in a step to its end",
    "redundant_experts": "experts of each layer that lie on one more GPU",
    "expert_imbalance": "tokens of the fullest expert parallel GPU over the mean, at least 1; or a list: bytes of the "
    "fullest NIC and NVLink over the mean, then tokens of each expert of the fullest GPU over the mean of GPUs",
    "layer_imbalance": "the same for each layer with experts, as a list, instead of one figure for all",
    "stragglers": "{rank: how many times as long its computation takes}",
    "lengths": "tokens per sequence of each micro-batch, if not all are `sequence`",
}
"""What each key of a scenario means, in the order in which a file is written."""

PATHS = ("model", "hardware", "stack", "schedule")
"""Keys whose value may be a path."""

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


class ScenarioError(SimpipeError):
    """A scenario cannot be read, or its values are wrong or do not fit together: one sentence with file and key."""


class ScheduleSpec(NamedTuple):
    """A schedule as `simpipe.program` takes it: name or path, stages per rank (None: its own), options."""

    name: str
    chunks: int | None
    options: dict[str, Any]


class Loaded(NamedTuple):
    """What a scenario names, read and checked against each other."""

    model: Model
    cluster: Cluster
    parallel: Parallel
    schedule: ScheduleSpec
    stack: Stack


Text = Annotated[
    str,
    Allowed("printable text", lambda value: isinstance(value, str) and 0 < len(value) < 4096 and value.isprintable()),
]
Chunks = Annotated[
    int | None, Allowed("a whole number, at least 1", lambda value: value is None or (is_whole(value) and value >= 1))
]
Stragglers = Annotated[
    Mapping[int, float],
    Allowed(
        "{rank: times as long}, as {3: 1.2}",
        lambda value: isinstance(value, dict) and all(is_whole(r) and is_number(f) and f > 0 for r, f in value.items()),
    ),
]
Lengths = Annotated[
    tuple[int, ...],
    Allowed(
        "a list of whole numbers, at least 1",
        lambda value: isinstance(value, tuple) and all(is_whole(tokens) and tokens >= 1 for tokens in value),
    ),
]


@dataclass(frozen=True)
class Scenario:
    """A run. model, hardware, stack and schedule are names or paths; relative paths become absolute.

    chunks: stages per rank, None for the schedule's own. stragglers: {rank: times as long its computation takes}.
    lengths: tokens per sequence of each micro-batch, empty where all are `parallel.sequence`. source: the file it was
    read from, for messages.

    Raises ScenarioError.
    """

    model: Text
    hardware: Text
    schedule: Text
    parallel: Parallel
    stack: Text = DEFAULT_STACK
    chunks: Chunks = None
    stragglers: Stragglers = field(default_factory=dict, hash=False)
    lengths: Lengths = ()
    source: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        check_values(self, ScenarioError)
        for key in PATHS:
            object.__setattr__(self, key, anchored(getattr(self, key), os.getcwd()))
        ranks, microbatches = self.parallel.ranks, self.parallel.microbatches
        for rank in self.stragglers:
            if not 0 <= rank < ranks:
                raise ScenarioError(f"stragglers names rank {show(rank)}, but ranks = {ranks} are 0 to {ranks - 1}")
        if self.lengths and len(self.lengths) != microbatches:
            made = f"global_batch / (dp x microbatch_size) = {microbatches}"
            raise ScenarioError(f"lengths holds {len(self.lengths)} micro-batches, but {made}")
        for tokens in sorted(set(self.lengths)):
            self.parallel.check_sequence(f"lengths[{self.lengths.index(tokens)}]", tokens)

    @staticmethod
    def of(given: Mapping[str, Any], source: str = "") -> Scenario:
        """From plain values by key, as a file, flags or a table hold them; KEYS says which.

        Lists and stragglers may be text too (`3, 4, 4, 3`; `3: 1.2, 5: 1.1`). Raises ScenarioError.
        """
        with _blamed_on(source):
            values = expand_precision(given)
            check_keys(values, _keys(), ScenarioError)
            own = {key: values.pop(key) for key in _own_keys() & values.keys()}
            if "stragglers" in own:
                own["stragglers"] = _read_stragglers(own["stragglers"])
            if "lengths" in own:
                own["lengths"] = read_numbers(own["lengths"])
            return Scenario(parallel=Parallel.of(values), **own, source=source)

    @staticmethod
    def read(path: str | Path, **overrides: Any) -> Scenario:
        """The scenario of a YAML file, with some values replaced or added; an override of None is none.

        Raises ScenarioError, one sentence with file and key.
        """
        given = read_yaml(Path(path), ScenarioError)
        folder = os.path.abspath(Path(path).parent)
        for key in PATHS:
            if isinstance(given.get(key), str):
                given[key] = anchored(given[key], folder)
        return _replaced(given, overrides, str(path))

    def with_(self, **overrides: Any) -> Scenario:
        """This scenario with some keys' values replaced; an override of None is none. Raises ScenarioError."""
        return _replaced(self.to_dict(), overrides, self.source)

    def to_dict(self) -> dict[str, Any]:
        """The plain values by key that `of` reads back, defaults included."""
        values = {key: getattr(self, key) for key in _own_keys()} | self.parallel.to_dict()
        values |= {"stragglers": dict(sorted(self.stragglers.items())), "lengths": list(self.lengths)}
        if self.chunks is None:
            del values["chunks"]
        return {key: values[key] for key in KEYS if key in values}

    def write(self, path: str | Path) -> None:
        """Write a YAML file with every key explained, which reads back equal. Raises OutputError."""
        from simpipe.simulator.files import atomic

        with atomic(Path(path)) as draft:
            draft.write_text(self.to_yaml(os.path.abspath(Path(path).parent)), encoding="utf-8", newline="\n")

    def to_yaml(self, folder: str | None = None) -> str:
        """What such a file holds; paths in it are relative to its folder, absolute without one."""
        from io import StringIO

        from ruamel.yaml import YAML
        from ruamel.yaml.comments import CommentedMap, CommentedSeq

        table = CommentedMap()
        for key, value in self.to_dict().items():
            flow = isinstance(value, list | dict)
            table[key] = (CommentedSeq if isinstance(value, list) else CommentedMap)(value) if flow else value
            if flow:
                table[key].fa.set_flow_style()
            if key in PATHS and folder is not None:
                table[key] = _relative(value, folder)
            table.yaml_set_comment_before_after_key(key, before=KEYS[key])
        yaml = YAML()
        yaml.width = 1_000_000
        text = StringIO()
        yaml.dump(table, text)
        return text.getvalue()

    def load(self) -> Loaded:
        """Model, machine, parallelism and schedule, read and checked. Raises a SimpipeError with file and key."""
        with _blamed_on(self.source):
            name, options = schedules.parse(self.schedule)
            chunks = options.pop("chunks", self.chunks)
            if self.chunks not in (None, chunks):
                raise ScenarioError(f"chunks = {self.chunks}, but schedule = {self.schedule} says {chunks}")
            model, cluster = load_model(self.model), load_cluster(self.hardware)
            spec, stack = ScheduleSpec(name, chunks, options), load_stack(self.stack)
            return Loaded(model, cluster, self.parallel.check(model, cluster), spec, stack)


def published(model: str) -> Path | None:
    """The scenario of how a model was trained, as its makers published it; None where there is none."""
    path = EXAMPLES / f"{model.replace('-', '_')}.yaml"
    return path if re.fullmatch(r"[\w.-]+", model) and path.is_file() else None


def _replaced(given: Mapping[str, Any], overrides: Mapping[str, Any], source: str) -> Scenario:
    with _blamed_on(source):
        new = expand_precision({key: value for key, value in overrides.items() if value is not None})
        merged = expand_precision(given) | new
    return Scenario.of(merged, source)


@contextmanager
def _blamed_on(source: str) -> Iterator[None]:
    """Put the file before the sentence; wrong sizes are then the scenario's error."""
    try:
        yield
    except SimpipeError as error:
        kind = ScenarioError if isinstance(error, ParallelError) else type(error)
        raise kind(f"{source}: {error}" if source else str(error)) from None


@cache
def _own_keys() -> frozenset[str]:
    """The keys that are no size or format of `Parallel`."""
    return frozenset(f.name for f in fields(Scenario)) - {"parallel", "source"}


@cache
def _keys() -> dict[str, bool]:
    """Every key, and whether it must be given."""
    required = {f.name for f in fields(Scenario) if f.default is MISSING and f.default_factory is MISSING}
    known = parallel_keys() | {key: key in required for key in _own_keys()}
    return {key: known[key] for key in KEYS}


def _read_stragglers(value: Any) -> Any:
    """A table whose ranks may be digits in text, or text such as `3: 1.2, 5: 1.1`; anything else as it is."""
    if isinstance(value, str):
        pairs = re.findall(r"([0-9]{1,9})\s*:\s*([0-9]{1,9}(?:\.[0-9]{1,20})?)\s*(?:,|$)", value)
        if len(pairs) != len(value.split(",")) or len(dict(pairs)) != len(pairs):
            return value
        return {int(rank): float(factor) for rank, factor in pairs}
    if isinstance(value, dict):
        return {int(k) if isinstance(k, str) and re.fullmatch("[0-9]{1,9}", k) else k: v for k, v in value.items()}
    return value


# Paths: absolute inside, relative to its folder in a file.


def anchored(text: str, folder: str) -> str:
    """A model, machine or schedule: a relative path in it (with options behind it or not) made absolute."""
    path, options = _path_and_options(text)
    return os.path.normpath(os.path.join(folder, path)) + options if path else text


def _relative(text: str, folder: str) -> str:
    path, options = _path_and_options(text)
    if not path:
        return text
    near = os.path.relpath(path, folder)
    return (near if "/" in near else f"./{near}") + options


def _path_and_options(text: str) -> tuple[str, str]:
    """The path that a value is, empty where it is a name, and the options behind it."""
    path, colon, options = text.rpartition(":")
    if not colon or "=" not in options:
        path, colon, options = text, "", ""
    is_path = "/" in path or path.endswith((".toml", ".yaml", ".yml", ".json", ".py", ".csv"))
    return (path, colon + options) if is_path else ("", "")
