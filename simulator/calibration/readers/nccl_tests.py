"""nccl-tests: its table of text, or its JSON (`-J`).

Which collective a table of text is of, it does not say: its own header does where the program's name is there, else the
ratio of bus to algorithm bandwidth and the columns do (all-reduce and reduce-scatter have a reduction operator).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simpipe.simulator.calibration.classes import Classes
from simpipe.simulator.calibration.timings import Timings, TimingsError, lines_of

FORMAT = "the output of nccl-tests (text or JSON)"

PROGRAMS = {
    "all_reduce": "all_reduce", "allreduce": "all_reduce", "all_gather": "all_gather", "allgather": "all_gather",
    "reduce_scatter": "reduce_scatter", "reducescatter": "reduce_scatter", "alltoall": "all_to_all",
    "all_to_all": "all_to_all", "broadcast": "broadcast", "sendrecv": "send_recv", "send_recv": "send_recv",
}  # fmt: skip
"""nccl-tests' programs and the operators they time."""


def recognises(head: bytes) -> bool:
    text = head.decode("utf-8", "replace")
    return bool(re.search(r"#\s+size\s+count", text) or re.search(r'"(nccl_version|busbw|bus_bw)"', text))


def read(path: Path, data: bytearray, classes: Classes) -> Timings:
    if bytes(data.lstrip()[:1]) in (b"{", b"["):
        return Timings.of(_of_json(path, data), path.name)
    lines = list(lines_of(data, path))
    ranks = sum(bool(re.match(r"#\s+Rank\s+\d+", line)) for line in lines)
    named = next((found for line in lines if (found := _program(line))), None)
    reduces = any(re.search(r"\bredop\b", line) for line in lines)
    rows = [row for line in lines if (row := _row(line)) is not None]
    if not rows:
        raise TimingsError(f"{path}: is a table of nccl-tests without a row of results")
    if not ranks:
        raise TimingsError(f"{path}: does not list its ranks (`#  Rank  0 ...`); leave nccl-tests' header in")
    operator = named or _told_by_ratio(path, rows, ranks, reduces)
    return Timings.of(
        [{"operator": operator, "bytes": size, "ranks": ranks, "seconds": time * 1e-6} for size, time, _, _ in rows],
        path.name,
    )


def _program(line: str) -> str | None:
    found = re.search(r"(\w+?)_perf\b", line)
    return PROGRAMS.get(found[1].lower().removesuffix("_")) if found else None


def _row(line: str) -> tuple[float, float, float, float] | None:
    """Bytes, microseconds out of place, algorithm and bus bandwidth."""
    words = line.split()
    if len(words) < 8 or not words[0].isdigit() or not words[1].isdigit():
        return None
    numbers = [word for word in words[2:] if re.fullmatch(r"-?\d+(\.\d+)?([eE][-+]?\d+)?|nan", word)]
    root = float(numbers[0]) if len(numbers) > 3 else 1.0
    after = numbers[1:] if root <= 0 and root.is_integer() else numbers
    if len(after) < 3:
        return None
    time, algorithm, bus = (float(number) for number in after[:3])
    size = int(words[0])
    return (size, time, algorithm, bus) if size and time else None


def _told_by_ratio(path: Path, rows: list[tuple[float, float, float, float]], ranks: int, reduces: bool) -> str:
    """Bus over algorithm bandwidth is 2(n-1)/n for all-reduce, (n-1)/n for gather, scatter and all-to-all, else 1."""
    ratio = max((bus / algorithm for _, _, algorithm, bus in rows[-3:] if algorithm), default=0.0)
    part = (ranks - 1) / ranks
    if reduces and abs(ratio - 2 * part) < 0.03:
        return "all_reduce"
    if reduces and abs(ratio - part) < 0.03:
        return "reduce_scatter"
    if not reduces and abs(ratio - part) < 0.03:
        raise TimingsError(f"{path}: may be of all-gather or all-to-all; keep the line that names the program")
    return "broadcast" if abs(ratio - 1) < 0.03 else _unknown(path)


def _unknown(path: Path) -> str:
    raise TimingsError(
        f"{path}: its bandwidths are of no collective that is known; keep the line that names the program"
    )


def _of_json(path: Path, data: bytearray) -> list[dict[str, Any]]:
    try:
        tree = json.loads(bytes(data))
    except (ValueError, RecursionError) as error:
        raise TimingsError(f"{path}: is truncated or no JSON: {str(error)[:100]}") from None
    text = json.dumps(tree)[:100_000]
    named = next((PROGRAMS[word] for word in re.findall(r"(\w+?)_perf\b", text.lower()) if word in PROGRAMS), None)
    if named is None:
        named = next((PROGRAMS[word] for word in re.findall(r"[a-z_]+", text.lower()) if word in PROGRAMS), None)
    ranks = _first(tree, ("nranks", "n_ranks", "ranks", "total_ranks", "world_size"))
    rows = []
    for entry in _entries(tree):
        place = next(
            (entry[key] for key in ("out_of_place", "oop", "in_place") if isinstance(entry.get(key), dict)), entry
        )
        size, time = entry.get("size", entry.get("bytes")), place.get("time", place.get("time_us"))
        if isinstance(size, int | float) and isinstance(time, int | float) and size > 0:
            rows.append({"operator": named, "bytes": size, "ranks": ranks, "seconds": time * 1e-6})
    if named is None or not isinstance(ranks, int) or not rows:
        raise TimingsError(f"{path}: nccl-tests' JSON names its program, its number of ranks, and sizes with times")
    return rows


def _entries(tree: Any) -> Iterator[dict[str, Any]]:
    if isinstance(tree, dict):
        if "size" in tree or "bytes" in tree:
            yield tree
        for value in tree.values():
            yield from _entries(value)
    elif isinstance(tree, list):
        for value in tree:
            yield from _entries(value)


def _first(tree: Any, names: tuple[str, ...]) -> Any:
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key.lower() in names and not isinstance(value, bool):
                return len(value) if isinstance(value, list) else value
            if (found := _first(value, names)) is not None:
                return found
    elif isinstance(tree, list):
        return next((found for value in tree if (found := _first(value, names)) is not None), None)
    return None
