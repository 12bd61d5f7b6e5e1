"""Timings: one tidy table of measured times, whatever they were read from, and the files that they come in."""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simpipe.simulator.errors import SimpipeError

if TYPE_CHECKING:
    import pandas as pd

    from simpipe.simulator.calibration.trace import Trace

SHAPES = {
    "gemm": ("m", "n", "k"),
    "grouped_gemm": ("m", "n", "k", "groups"),
    "attention_forward": ("batch", "heads", "kv_heads", "queries", "keys", "head_dim", "value_dim", "causal"),
    "attention_backward": ("batch", "heads", "kv_heads", "queries", "keys", "head_dim", "value_dim", "causal"),
    "memory_bound": (),
    "kernel_gap": (),
    "launch_latency": (),
    "all_reduce": (),
    "all_gather": (),
    "reduce_scatter": (),
    "all_to_all": (),
    "broadcast": (),
    "send_recv": (),
    "exchange_wait": (),
    "dispatch": ("tokens", "hidden", "topk", "experts"),
    "combine": ("tokens", "hidden", "topk", "experts"),
    "F": ("stage",),
    "I": ("stage",),
    "W": ("stage",),
    "B": ("stage",),
    "p2p": (),
}
"""The operators that a timing can be of, and what their shapes say. A grouped GEMM's rows, m, are of all its groups."""

MAY_BE_ZERO = ("causal", "stage", "output_bytes", "nodes_per_token", "repeated")
"""What a shape may say 0 of: switches, numbers that count from 0, less than a byte, limits of which 0 is none."""

OPTIONAL = {
    "gemm": {"output_bytes": 2},
    "grouped_gemm": {"output_bytes": 2},
    "dispatch": {"nodes_per_token": 0, "repeated": 1},
    "combine": {"nodes_per_token": 0},
}
"""What a shape may say besides, and what holds where it does not: bytes moved an output element; how many nodes a token
may go to, 0 for all; whether a dispatch repeats another's way, as a backward's, or has to find it, 0."""

COLUMNS = ("operator", "shape", "format", "sms", "bytes", "ranks", "seconds", "beside", "source", "tested")
"""shape: text as `m=4096 n=7168 k=2048`. format: of numbers, as a profile names it. sms: those that the kernel runs on
or holds; 0 for all. bytes: those that a memory-bound kernel moves, or a collective's buffer. ranks: of a collective or
an exchange. beside: the share of a computation's time in which communication ran, 0 where nobody says. source: the
file. tested: 1 to be left out of a fit and predicted, 0 to be fitted, -1 for either."""

MOST_BYTES = 4_000_000_000
"""A file that is longer, or unpacks to more, is no timings that fit into memory."""

MOST_UNPACKED = 300
"""A packed file that grows by more than so many times hides something: traces grow by 10 to 40 times."""


class TimingsError(SimpipeError):
    """Timings cannot be read, or make no sense: one sentence with file, place and value."""


class Kernels(NamedTuple):
    """What kernels of a trace are: seconds and number by class; names that only the last, general rule caught."""

    seconds: dict[str, float]
    number: dict[str, int]
    guessed: dict[str, float]


@dataclass(frozen=True, eq=False)
class Timings:
    """A table of COLUMNS, and what its reader has to say: remarks, the trace that it was, its kernels' classes."""

    table: pd.DataFrame
    remarks: tuple[str, ...] = ()
    traces: tuple[Trace, ...] = ()
    kernels: tuple[Kernels, ...] = field(default=())

    @staticmethod
    def of(rows: Sequence[dict[str, Any]], source: str, **told: Any) -> Timings:
        """From rows that may leave columns out; raises TimingsError for what makes no sense."""
        import pandas as pd

        empty: dict[str, Any] = {
            "operator": "",
            "shape": "",
            "format": "",
            "sms": 0,
            "bytes": 0.0,
            "ranks": 0,
            "seconds": 0.0,
        }
        empty |= {"beside": 0.0, "tested": -1}
        columns = {name: [row.get(name, value) for row in rows] for name, value in empty.items()}
        return Timings(checked(pd.DataFrame({**columns, "source": source}), source), **told)

    @staticmethod
    def together(parts: Sequence[Timings]) -> Timings:
        """Of several files."""
        import pandas as pd

        filled = [part.table for part in parts if len(part.table)]
        return Timings(
            pd.concat(filled, ignore_index=True) if filled else parts[0].table,
            tuple(remark for part in parts for remark in part.remarks),
            tuple(trace for part in parts for trace in part.traces),
            tuple(kernels for part in parts for kernels in part.kernels),
        )


def checked(table: pd.DataFrame, source: str, first_line: int = 0) -> pd.DataFrame:
    """The table with every value of its kind and in its range. Raises TimingsError with the first row that is not.

    first_line: the line of the file that row 0 stands in, if rows are lines.
    """
    import numpy as np
    import pandas as pd

    def refuse(bad: Any, column: str, what: str) -> None:
        if bad.any():
            row = int(np.flatnonzero(bad)[0])
            place = f"line {row + first_line}" if first_line else f"row {row + 1}"
            raise TimingsError(f"{source} {place}: {column} is {what}, not {str(table[column].iloc[row])[:60]!r}")

    numbers = {}
    for column, most in (("sms", 1e6), ("bytes", 1e15), ("ranks", 1e6)):
        given = pd.to_numeric(table[column].replace("", 0), errors="coerce").to_numpy(float)
        refuse(~((given >= 0) & (given < most)), column, f"a number, 0 or more and less than {most:g}")
        if column != "bytes":
            refuse(given != np.floor(given), column, "a whole number")
        numbers[column] = given
    seconds = pd.to_numeric(table["seconds"], errors="coerce").to_numpy(float)
    refuse(~((seconds > 0) & (seconds < 1e6)), "seconds", "a time of more than 0 and less than 1e6 s")
    known = table["operator"].isin(list(SHAPES)).to_numpy()
    refuse(~known, "operator", f"one of {', '.join(SHAPES)}")
    if "beside" in table:
        beside = pd.to_numeric(table["beside"].replace("", 0), errors="coerce").to_numpy(float)
        refuse(~((beside >= 0) & (beside <= 1)), "beside", "a share from 0 to 1")
        numbers["beside"] = beside
    numbers.setdefault("beside", np.zeros(len(table)))
    numbers["tested"] = np.full(len(table), -1.0)
    if "tested" in table:
        numbers["tested"] = pd.to_numeric(table["tested"].replace("", -1), errors="coerce").to_numpy(float)
        refuse(~np.isin(numbers["tested"], (-1, 0, 1)), "tested", "-1, 0 or 1")
    moves = (table["operator"] == "memory_bound").to_numpy()
    refuse(moves & (numbers["bytes"] == 0), "bytes", "what a memory_bound kernel reads and writes")
    found = table.assign(**numbers, seconds=seconds)[list(COLUMNS)]
    for operator, part in found.groupby("operator", sort=False):
        for text in part["shape"].unique():
            if parse(text, SHAPES[str(operator)], OPTIONAL.get(str(operator), {})) is None:
                wanted = " ".join(f"{name}=..." for name in SHAPES[str(operator)]) or "empty"
                zero = [name for name in SHAPES[str(operator)] if name in MAY_BE_ZERO]
                numbers_are = "whole numbers" + (f", 0 only as {', '.join(zero)}" if zero else " above 0")
                wrong = (table["operator"] == operator) & (table["shape"] == text)
                refuse(wrong, "shape", f"of the form {wanted!r} of {numbers_are}")
    return found


def parse(text: Any, names: Sequence[str], optional: Mapping[str, int]) -> tuple[int, ...] | None:
    """The numbers of a shape, in the order of `names` and of what is `optional`; None where the text is no shape."""
    parts = str(text).split()
    pairs = dict(part.partition("=")[::2] for part in parts)
    if len(pairs) != len(parts) or not set(names) <= set(pairs) <= {*names, *optional}:
        return None
    if not all(value.isascii() and value.isdigit() and len(value) < 12 for value in pairs.values()):
        return None
    numbers = {name: int(pairs.get(name, optional.get(name, 0))) for name in (*names, *optional)}
    sound = all(number > 0 or name in MAY_BE_ZERO for name, number in numbers.items())
    return tuple(numbers.values()) if sound else None


def write_shape(**numbers: int) -> str:
    """A shape as text."""
    return " ".join(f"{name}={value}" for name, value in numbers.items())


def library(name: str) -> Any:
    """A library of the extra `simpipe[calibrate]`. Raises TimingsError where it is not installed."""
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise TimingsError(f"calibration needs {name}; install it with: pip install 'simpipe[calibrate]'") from None


def read_bytes(path: Path) -> bytearray:
    """A file, unpacked if it is gzip, with a progress bar on a terminal. Raises TimingsError, one sentence."""
    try:
        size = path.stat().st_size
        with path.open("rb") as raw:
            packed = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            most = min(MOST_BYTES, max(size * MOST_UNPACKED, 10_000_000)) if packed else MOST_BYTES
            unpacked = gzip.GzipFile(fileobj=raw) if packed else raw
            data = bytearray()
            while part := unpacked.read(1 << 22):
                data += part
                progress(f"reading {path.name}", raw.tell(), size)
                if len(data) > most:
                    why = f"unpacks to more than {MOST_UNPACKED} times its size" if packed else "is too long"
                    raise TimingsError(f"{path}: {why}, over {most / 1e9:.2g} GB; it is no file of timings")
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TimingsError(f"{path}: is truncated or no sound gzip file: {error}") from None
    except OSError as error:
        raise TimingsError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not data:
        raise TimingsError(f"{path}: is empty")
    return data


def progress(what: str, done: float, total: float) -> None:
    """A bar on stderr, where that is a terminal and there is enough to wait for."""
    if total > 20e6 and sys.stderr.isatty():
        share = min(done / total, 1.0)
        end = "\r\x1b[K" if share >= 1 else ""
        print(f"\r{what} [{'#' * int(30 * share):<30}] {share:4.0%}{end}", end="", file=sys.stderr, flush=True)


def lines_of(data: bytearray, path: Path) -> Iterator[str]:
    """The lines of a text file. Raises TimingsError where it is no text."""
    try:
        yield from data.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise TimingsError(f"{path}: is no text: byte {error.start} is not UTF-8") from None
