"""Step logs: a .csv with what F, I, W and messages take, a row a step or a stage, as the Zero Bubble paper's table.

Columns are F, I, W, B and P2P (or comm), with `_ms`, `_us` or `_s` behind and perhaps `T_` before; `stage` is optional.
Where there is a W, B means the backward for the input, as that paper has it.
"""

from __future__ import annotations

import io
import re
from pathlib import Path

from simpipe.simulator.calibration.classes import Classes
from simpipe.simulator.calibration.timings import Timings, TimingsError, checked

FORMAT = "a .csv of F, I, W and P2P times by stage, as F_ms"

COLUMN = re.compile(r"^(?:t_)?(f|i|w|b|p2p|comm)_(ms|us|s)$")
UNITS = {"ms": 1e-3, "us": 1e-6, "s": 1.0}
WORDS = {"f": "F", "i": "I", "w": "W", "b": "B", "p2p": "p2p", "comm": "p2p"}


def recognises(head: bytes) -> bool:
    names = head.decode("utf-8-sig", "replace").partition("\n")[0].lower().split(",")
    found = {match[1] for name in names if (match := COLUMN.match(name.strip()))}
    return {"f"} < found and bool(found & {"b", "i"})


def read(path: Path, data: bytearray, classes: Classes) -> Timings:
    import pandas as pd

    try:
        table = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError) as error:
        raise TimingsError(f"{path}: is no sound table: {' '.join(str(error).split())[:120]}") from None
    table.columns = [str(name).strip().lower() for name in table.columns]
    if "model" in table and table["model"].nunique() > 1:
        there = ", ".join(table["model"].unique()[:6])
        raise TimingsError(f"{path}: holds several models, {there}; costs are of one: keep its rows alone")
    columns = {name: match for name in table.columns if (match := COLUMN.match(name))}
    has_weight = any(match[1] == "w" for match in columns.values())
    stages = table["stage"] if "stage" in table else pd.Series("0", index=table.index)
    parts = []
    for name, match in columns.items():
        operator = "I" if match[1] == "b" and has_weight else WORDS[match[1]]
        shape = "" if operator == "p2p" else "stage=" + stages.str.strip()
        seconds = pd.to_numeric(table[name], errors="coerce") * UNITS[match[2]]
        empty = {"format": "", "sms": 0, "bytes": 0, "ranks": 0, "source": path.name, "tested": 0}
        part = pd.DataFrame({"operator": operator, "shape": shape, "seconds": seconds, **empty}, index=table.index)
        parts.append(checked(part, str(path), first_line=2))
    return Timings(pd.concat(parts, ignore_index=True))
