"""Nsight Systems: what `nsys export --type sqlite` writes.

Tables and their columns vary by version, so they are looked up: kernels (by correlation with the calls that launched
them), named NVTX ranges, the GPU's SMs. Times are nanoseconds.
"""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

from simpipe.simulator.calibration import trace
from simpipe.simulator.calibration.classes import Classes
from simpipe.simulator.calibration.timings import Timings, TimingsError

FORMAT = "an Nsight Systems export (.sqlite)"

KERNELS, RUNTIME, RANGES = "CUPTI_ACTIVITY_KIND_KERNEL", "CUPTI_ACTIVITY_KIND_RUNTIME", "NVTX_EVENTS"


def recognises(head: bytes) -> bool:
    return head.startswith(b"SQLite format 3\0")


def read(path: Path, data: bytearray, classes: Classes) -> Timings:
    try:
        with sqlite3.connect(":memory:") as tables:
            tables.deserialize(bytes(data))
            data.clear()
            return _read(path, tables, classes)
    except (sqlite3.Error, OverflowError) as error:
        raise TimingsError(f"{path}: is no sound SQLite file: {error}") from None


def _read(path: Path, tables: sqlite3.Connection, classes: Classes) -> Timings:
    if not _columns(tables, KERNELS):
        there = [name for (name,) in tables.execute("select name from sqlite_master where type = 'table'")]
        raise TimingsError(f"{path}: has no table {KERNELS}, but {', '.join(map(str, there[:8])) or 'none'}")
    wanted = ["start", "end", "streamId", "correlationId", "gridX", "gridY", "gridZ"]
    named = next((c for c in ("demangledName", "shortName", "mangledName") if c in _columns(tables, KERNELS)), None)
    missing = [column for column in wanted if column not in _columns(tables, KERNELS)]
    if missing or named is None:
        raise TimingsError(f"{path}: table {KERNELS} has no column {', '.join(missing) or 'demangledName'}")
    names = dict(tables.execute("select id, value from StringIds")) if _columns(tables, "StringIds") else {}
    launched: dict[Any, Any] = {}
    if {"correlationId", "start"} <= _columns(tables, RUNTIME):
        launched = dict(tables.execute(f"select correlationId, start from {RUNTIME}"))
    rows = list(tables.execute(f"select {', '.join(wanted)}, {named} from {KERNELS} order by start"))
    if not rows:
        raise TimingsError(f"{path}: holds no kernel of a GPU")
    origin = _time(path, "start", rows[0][0])
    events = []
    for start, end, stream, correlation, x, y, z, name in rows:
        began, ended = _time(path, "start", start), _time(path, "end", end)
        if ended < began or not all(isinstance(size, int) and 0 <= size < 2**31 for size in (x, y, z)):
            raise TimingsError(f"{path}: a kernel lasts 0 or more and has a grid, not {start!r} to {end!r}, {x!r}")
        call = _time(path, "start", launched.get(correlation, start))
        text = str(names.get(name, name))
        at = int(stream) if isinstance(stream, int) else 0
        times = (1e-9 * (began - origin), 1e-9 * (ended - began))
        events.append(trace.Event(text, at, *times, x * y * z, 1e-9 * (call - origin)))
    sms, gpu = _gpu(tables)
    ranges = _ranges(path, tables, names, origin)
    return trace.timings(trace.of(events, ranges, classes, path.name, sms, gpu), events)


def _columns(tables: sqlite3.Connection, table: str) -> set[str]:
    return {str(row[1]) for row in tables.execute(f"pragma table_info({table})")}


def _time(path: Path, column: str, value: Any) -> int:
    if not isinstance(value, int) or not 0 <= value < 2**62:
        raise TimingsError(f"{path}: {column} of a kernel is a whole number of nanoseconds, not {value!r:.60}")
    return value


def _ranges(path: Path, tables: sqlite3.Connection, names: dict[Any, Any], origin: int) -> list[trace.Range]:
    columns = _columns(tables, RANGES)
    if not {"start", "end"} <= columns:
        return []
    text = "text" if "text" in columns else "null"
    by_id = "textId" if "textId" in columns else "null"
    found = []
    for start, end, own, known in tables.execute(f"select start, end, {text}, {by_id} from {RANGES}"):
        name = own if own is not None else names.get(known)
        if name is not None and isinstance(start, int) and isinstance(end, int) and end >= start:
            found.append(trace.Range(str(name), 1e-9 * (start - origin), 1e-9 * (end - origin)))
    return found


def _gpu(tables: sqlite3.Connection) -> tuple[int, str]:
    columns = _columns(tables, "TARGET_INFO_GPU")
    if not {"smCount", "name"} <= columns:
        return 0, ""
    row = tables.execute("select smCount, name from TARGET_INFO_GPU").fetchone() or (0, "")
    return (row[0], str(row[1])) if isinstance(row[0], int) and 0 <= row[0] < 10_000 else (0, str(row[1]))
