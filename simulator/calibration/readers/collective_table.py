"""Tables of collectives by size: .csv with an operator, ranks, bytes and a time, under whatever names people use."""

from __future__ import annotations

import io
from pathlib import Path

from simpipe.simulator.calibration.classes import Classes
from simpipe.simulator.calibration.readers.nccl_tests import PROGRAMS
from simpipe.simulator.calibration.timings import Timings, TimingsError, checked

FORMAT = "a .csv of collectives: op, num_gpus, bytes, latency_ms (or time_us, seconds)"

NAMES = {
    "operator": ("op", "operation", "collective", "op_name"),
    "ranks": ("num_gpus", "ranks", "n_ranks", "gpus", "world_size"),
    "bytes": ("bytes", "size", "size_bytes", "message_bytes"),
}
TIMES = {"seconds": 1.0, "latency_ms": 1e-3, "time_ms": 1e-3, "latency_us": 1e-6, "time_us": 1e-6}


def recognises(head: bytes) -> bool:
    names = {name.strip().lower() for name in head.decode("utf-8-sig", "replace").partition("\n")[0].split(",")}
    return all(names & set(known) for known in NAMES.values()) and bool(names & set(TIMES))


def read(path: Path, data: bytearray, classes: Classes) -> Timings:
    import pandas as pd

    try:
        table = pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, pd.errors.ParserError) as error:
        raise TimingsError(f"{path}: is no sound table: {' '.join(str(error).split())[:120]}") from None
    table.columns = [str(name).strip().lower() for name in table.columns]
    known = {ours: next(name for name in names if name in table) for ours, names in NAMES.items()}
    time = next(name for name in TIMES if name in table)
    if "system" in table and table["system"].nunique() > 1:
        there = ", ".join(sorted(table["system"].unique()))
        raise TimingsError(f"{path}: holds several systems, {there}; a profile is of one: keep its rows alone")
    operators = table[known["operator"]].str.lower().map(PROGRAMS)
    if operators.isna().any():
        row = int(operators.isna().to_numpy().argmax())
        wrong = table[known["operator"]].iloc[row]
        raise TimingsError(f"{path} line {row + 2}: collective is one of {', '.join(PROGRAMS)}, not {wrong[:60]!r}")
    seconds = pd.to_numeric(table[time], errors="coerce") * TIMES[time]
    found = pd.DataFrame(
        {"operator": operators, "shape": "", "format": "", "sms": 0, "bytes": table[known["bytes"]],
         "ranks": table[known["ranks"]], "seconds": seconds, "source": path.name}
    )  # fmt: skip
    return Timings(checked(found, str(path), first_line=2))
