"""Models read: from a profile in model_profiles/ (TOML; its keys are the fields of `model`'s classes, its file name is
the model's name), a path to such a file, a HuggingFace `config.json`, or text of sizes.
"""

from __future__ import annotations

import functools
import json
import re
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from simpipe.simulator.costs.model import (
    Attention,
    Experts,
    GroupedAttention,
    LatentAttention,
    Mlp,
    Model,
    ModelError,
)
from simpipe.simulator.errors import nearest, show

PROFILES = Path(__file__).resolve().parents[2] / "model_profiles"
MAX_FILE_BYTES = 1_000_000


def model_names() -> tuple[str, ...]:
    """Names of the profiles in model_profiles/."""
    return tuple(sorted(path.stem for path in PROFILES.glob("*.toml")))


def load_model(name: str | Path) -> Model:
    """The model of a profile's name, a path to a profile or to a HuggingFace config.json or its folder, or of text
    such as `layers=32,hidden=4096,heads=32,kv_heads=8,ffn=14336,vocab=128256` (SHAPE_KEYS).

    Raises ModelError with file and key.
    """
    text = str(name)
    if re.match(r"\w+=", text):
        return _from_text(text)
    return _profile(text) if text in model_names() else _load(text)


@functools.cache
def _profile(name: str) -> Model:
    """A model that comes with simpipe, read once."""
    return _load(name)


SHAPE_KEYS = {
    "layers": "layers",
    "hidden": "hidden",
    "heads": "attention.heads",
    "kv_heads": "attention.kv_heads",
    "head_dim": "attention.head_dim",
    "ffn": "mlp.intermediate",
    "gated": "mlp.gated",
    "vocab": "vocabulary",
    "experts": "experts.routed",
    "topk": "experts.topk",
    "expert_ffn": "experts.intermediate",
    "shared_experts": "experts.shared",
    "dense_layers": "experts.first_dense",
    "tied_head": "tied_head",
    "positions": "positions",
}
"""The keys of a model given as text, and what they are in a profile. kv_heads is heads, head_dim hidden / heads where
they are left out; `ffn` is of dense layers, `expert_ffn` of one expert."""


def _from_text(text: str) -> Model:
    table: dict[str, Any] = {"source": "given by its sizes"}
    sizes: dict[str, Any] = {}
    for part in text.split(","):
        key, _, value = (piece.strip() for piece in part.partition("="))
        if key not in SHAPE_KEYS:
            raise ModelError(f"{show(key)} is no size of a model; {nearest(key, SHAPE_KEYS)}")
        words = {"true": True, "false": False}
        if value not in words and not re.fullmatch("[0-9]{1,18}", value):
            raise ModelError(f"{key} = {show(value)} is not a whole number, true or false")
        sizes[key] = words[value] if value in words else int(value)
    sizes.setdefault("kv_heads", sizes.get("heads"))
    if "head_dim" not in sizes and isinstance(sizes.get("hidden"), int) and sizes.get("heads"):
        sizes["head_dim"] = sizes["hidden"] // sizes["heads"]
    table["attention"] = {"kind": "grouped"}
    for key, value in sizes.items():
        *parts, field_name = SHAPE_KEYS[key].split(".")
        if value is not None:
            (table.setdefault(parts[0], {}) if parts else table)[field_name] = value
    short = {long: key for key, long in SHAPE_KEYS.items()} | {"mlp": "ffn"}
    try:
        return _model(text, table)
    except ModelError as error:
        raise ModelError(re.sub(r"[\w.]+", lambda word: short.get(word[0], word[0]), str(error))) from None


def _load(name: str) -> Model:
    path = _find(name)
    table = _read(path)
    names: dict[str, str] = {}
    try:
        if path.suffix == ".toml":
            return _model(path.stem, table)
        table, names = _from_huggingface(table)
        stem = path.resolve().parent.name if path.stem == "config" else path.stem
        return _model(stem, {"source": f"HuggingFace {path}"} | table)
    except ModelError as error:
        sentence = re.sub(r"^[\w.]+|[\w.]+(?= = )", lambda key: names.get(key[0], key[0]), str(error))
        raise ModelError(f"{path}: {sentence}") from None


def _find(name: str) -> Path:
    names = model_names()
    path = PROFILES / f"{name}.toml" if name in names else Path(name)
    try:
        path = path / "config.json" if path.is_dir() else path
        found = path.is_file()
    except OSError:
        found = False
    if found and path.suffix in (".toml", ".json"):
        return path
    raise ModelError(f"no model {show(name)}; {nearest(name, names)} (or give a path to a .toml or a config.json)")


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
        if len(data) > MAX_FILE_BYTES:
            raise ModelError(f"{path} is no model profile: it is larger than {MAX_FILE_BYTES} bytes")
        text = data.decode("utf-8-sig")
        table = tomllib.loads(text) if path.suffix == ".toml" else json.loads(text, object_pairs_hook=_unique)
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}") from None
    except RecursionError:
        raise ModelError(f"{path} is no model profile: it is nested too deeply") from None
    except ValueError as error:
        reason = str(error).partition("\n")[0]
        raise ModelError(f"{path} is not valid {path.suffix[1:].upper()}: {reason}") from None
    if not isinstance(table, dict):
        raise ModelError(f"{path} must hold a JSON object, not {show(table)}")
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"key {show(next(key for key in keys if keys.count(key) > 1))} is given twice")
    return table


def _model(name: str, table: Mapping[str, Any]) -> Model:
    makers: dict[str, Callable[[Mapping[str, Any]], Any]] = {
        "attention": _attention,
        "mlp": functools.partial(_make, Mlp),
        "experts": functools.partial(_make, Experts),
    }
    parts = dict(table)
    for key in makers.keys() & parts.keys():
        if not isinstance(parts[key], dict):
            raise ModelError(f"{key} must be a table of keys, not {show(parts[key])}")
        try:
            parts[key] = makers[key](parts[key])
        except ModelError as error:
            raise ModelError(f"{key}.{error}") from None
    return _make(Model, parts, name=name)


def _attention(table: Mapping[str, Any]) -> Attention:
    kinds = {"grouped": GroupedAttention, "latent": LatentAttention}
    rest = dict(table)
    kind = rest.pop("kind", None)
    if not isinstance(kind, str) or kind not in kinds:
        raise ModelError(f"kind must be {' or '.join(kinds)}, not {show(kind)}")
    return _make(kinds[kind], rest)


_T = TypeVar("_T")


def _make(shape: type[_T], table: Mapping[str, Any], **given: Any) -> _T:
    """`shape` with the table's keys as its fields, and `given`, which the table may not hold."""
    known = {f.name: f for f in fields(shape) if f.name not in given}  # type: ignore[arg-type]
    for key in table:
        if key not in known:
            raise ModelError(f"{key[:80]} is no key of a model profile; {nearest(key, known)}")
    for key, f in known.items():
        if key not in table and f.default is MISSING:
            raise ModelError(f"{key} is missing")
    return shape(**table, **given)


# HuggingFace: how each family's config.json maps to a profile.


class _Family(NamedTuple):
    """keys: {profile key: config key}. defaults: {profile key: value} where the config does not say.

    only: {config key: the one value that a Model can express}.
    """

    keys: dict[str, str]
    defaults: dict[str, Any]
    only: dict[str, Any]


_BASE = {"layers": "num_hidden_layers", "hidden": "hidden_size", "vocabulary": "vocab_size"}
_BASE |= {"tied_head": "tie_word_embeddings", "attention.heads": "num_attention_heads"}
_GROUPED = _BASE | {"attention.kv_heads": "num_key_value_heads", "attention.head_dim": "head_dim"}
_BIASES = {"attention.qkv_bias": "attention_bias", "attention.out_bias": "attention_bias"}
_DENSE = {"mlp.intermediate": "intermediate_size", "mlp.bias": "mlp_bias"}
_MOE = {"experts.topk": "num_experts_per_tok", "experts.intermediate": "moe_intermediate_size"}
_DEEPSEEK = {
    **(_BASE | _DENSE | _MOE),
    "attention.q_lora_rank": "q_lora_rank",
    "attention.kv_lora_rank": "kv_lora_rank",
    "attention.nope_dim": "qk_nope_head_dim",
    "attention.rope_dim": "qk_rope_head_dim",
    "attention.v_dim": "v_head_dim",
    "experts.routed": "n_routed_experts",
    "experts.shared": "n_shared_experts",
    "experts.first_dense": "first_k_dense_replace",
    "experts.groups": "n_group",
    "experts.groups_per_token": "topk_group",
    "mtp_modules": "num_nextn_predict_layers",
}
_FAMILIES = {
    "llama": _Family(_GROUPED | _BIASES | _DENSE, {"attention.kind": "grouped", "mlp.gated": True}, {}),
    "qwen2": _Family(
        _GROUPED | _DENSE,
        {"attention.kind": "grouped", "attention.qkv_bias": True, "mlp.gated": True},
        {"use_sliding_window": False},
    ),
    "qwen3_moe": _Family(
        _GROUPED | _BIASES | _MOE | {"experts.routed": "num_experts"},
        {"attention.kind": "grouped", "attention.qk_norm": True},
        {"use_sliding_window": False, "decoder_sparse_step": 1, "mlp_only_layers": []},
    ),
    "mixtral": _Family(
        _GROUPED | _MOE | {"experts.routed": "num_local_experts", "experts.intermediate": "intermediate_size"},
        {"attention.kind": "grouped"},
        {"sliding_window": None},
    ),
    "deepseek_v2": _Family(
        _DEEPSEEK,
        {"attention.kind": "latent", "mlp.gated": True},
        {"moe_layer_freq": 1, "attention_bias": False},
    ),
    "deepseek_v3": _Family(
        _DEEPSEEK,
        {"attention.kind": "latent", "mlp.gated": True, "experts.router_bias": True},
        {"moe_layer_freq": 1, "attention_bias": False},
    ),
}


def _from_huggingface(config: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """A profile's table from a config.json, where null is not said; and the config's name for each profile key."""
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in _FAMILIES:
        raise ModelError(f"model_type must be one of {', '.join(_FAMILIES)}, not {show(kind)}")
    keys, defaults, only = _FAMILIES[kind]
    for key, value in only.items():
        if config.get(key) not in (None, value):
            raise ModelError(f"{key} must be {json.dumps(value)} in a {kind} config, not {show(config[key])}")
    flat = defaults | {key: config[theirs] for key, theirs in keys.items() if config.get(theirs) is not None}
    if flat["attention.kind"] == "grouped":
        hidden, heads = flat.get("hidden"), flat.get("attention.heads")
        if type(hidden) is not int or type(heads) is not int or heads < 1:
            hidden = heads = 1  # their own error comes when the model is made
        if "attention.head_dim" not in flat and hidden % heads:
            raise ModelError(f"{keys['hidden']} = {hidden} is not a multiple of {keys['attention.heads']} = {heads}")
        flat = {"attention.kv_heads": heads, "attention.head_dim": hidden // heads} | flat
    if "experts.topk" in keys and not flat.get("experts.first_dense"):
        flat = {key: value for key, value in flat.items() if not key.startswith("mlp.")}
    table: dict[str, Any] = {}
    for key, value in flat.items():
        part, dot, name = key.rpartition(".")
        (table.setdefault(part, {}) if dot else table)[name] = value
    return table, {key.rpartition(".")[2]: theirs for key, theirs in keys.items()} | keys
