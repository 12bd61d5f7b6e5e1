"""A documented example of a table of scenarios."""

from __future__ import annotations

from pathlib import Path

from simpipe.simulator.costs.model_files import SHAPE_KEYS
from simpipe.simulator.planning import tables
from simpipe.simulator.planning.evaluation import EXTRA_KEYS
from simpipe.simulator.planning.tables import Row, Sheet
from simpipe.simulator.scenario import KEYS

_V3 = {
    "model": "deepseek-v3", "hardware": "h800", "schedule": "dualpipe", "gpus": 2048, "ranks": 16, "ep": 64,
    "global_batch": 15360, "sequence": 4096, "microbatch_size": 1, "recompute": "norms, mla_up, swiglu",
    "precision": "fp8_block", "moment_bytes": 2, "token_budget": 14_800_000_000_000, "layers": "Et*4|(tttt|)*14tmL",
}  # fmt: skip
_GPT = {
    "model": "gpt3-175b", "hardware": "a100", "schedule": "1f1b", "gpus": 1024, "ranks": 8, "tp": 8,
    "global_batch": 1536, "sequence": 2048, "microbatch_size": 1,
    "token_budget": 300_000_000_000, "price_usd_per_gpu_hour": 1.5,
}  # fmt: skip
ROWS: list[Row] = [
    {"note": "DeepSeek-V3 as published", **_V3},
    {"note": "the same with 1F1B, overlapped within slots", **_V3, "schedule": "1f1b", "overlap": "within-slot"},
    {"note": "GPT-3 175B on A100", **_GPT},
    {"note": "two stages a rank", **_GPT, "schedule": "interleaved-1f1b", "chunks": 2},
    {"note": "everything computed again", **_GPT, "recompute": "full"},
    {"note": "a model by its sizes", **_GPT, "model": None, "layers": 32, "hidden": 4096, "heads": 32, "kv_heads": 8,
     "ffn": 14336, "vocab": 128256, "hardware": "h100", "gpus": 64, "ranks": 4, "global_batch": 256},
    {"note": "costs by hand", "schedule": "zb-v", "ranks": 8, "microbatches": 32, "costs": "F=1,I=1.1,W=0.9,p2p=0.05"},
]  # fmt: skip


def write(path: str | Path) -> None:
    """Write the example; an XLSX explains each column on its second sheet, others need no more than these names.

    Raises OutputError.
    """
    used = list(dict.fromkeys(key for row in ROWS for key in row))
    columns = [name for name in ("note", *KEYS, *SHAPE_KEYS, *EXTRA_KEYS) if name in used]
    columns = list(dict.fromkeys(columns))
    tables.write(path, columns, ROWS, Sheet({}, meanings()))


def meanings() -> list[tuple[str, str]]:
    """Every column that a table can have, and what it means."""
    sizes = [(key, f"a model's {long}, where `model` is empty") for key, long in SHAPE_KEYS.items() if key not in KEYS]
    return [*KEYS.items(), *sizes, *EXTRA_KEYS.items(), ("note", "any other column is carried through")]
