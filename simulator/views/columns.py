"""Typed columns, as a page carries them: whole numbers as bytes of equal weight, deflated together, in base64.

A column of n whole numbers is stored as its lowest bytes, then its second bytes, and so on, as many as its largest
number needs; small differences between neighbours become runs of equal bytes, which deflate well. Numbers that may be
negative are stored as 2n for n >= 0 and -2n - 1 below. `delta` columns hold differences. `float` columns hold the eight
bytes of IEEE doubles in the same way and come back bit for bit.
"""

from __future__ import annotations

import base64
import zlib
from typing import Any, NamedTuple

import numpy as np

from simpipe.simulator.kernels import Floats, Ints

LEVEL = 5
"""Of zlib: level 9 takes five times as long for 1 % less of the largest pages (benchmarks/pages.py)."""


class Column(NamedTuple):
    """How to read a column: its coding (`int` or `float`), its length, and bytes a number."""

    coding: str
    length: int
    width: int
    signed: bool
    delta: bool


class Columns:
    """Columns by name, in the order in which they were added."""

    def __init__(self) -> None:
        self.layout: dict[str, Column] = {}
        self._parts: list[bytes] = []

    def add(self, name: str, values: Any, delta: bool = False) -> None:
        """Add whole numbers, or yes and no as 1 and 0."""
        numbers: Ints = np.ascontiguousarray(values, np.int64)
        if delta:
            numbers = np.diff(numbers, prepend=0)
        signed = bool(len(numbers)) and int(numbers.min()) < 0
        if signed:
            numbers = np.where(numbers < 0, -2 * numbers - 1, 2 * numbers)
        width = max(1, -(-int(numbers.max(initial=0)).bit_length() // 8))
        self._put(name, Column("int", len(numbers), width, signed, delta), numbers)

    def add_floats(self, name: str, values: Floats) -> None:
        """Add doubles, which come back bit for bit."""
        numbers = np.ascontiguousarray(values, np.float64)
        self._put(name, Column("float", len(numbers), 8, False, False), numbers)

    def _put(self, name: str, column: Column, numbers: Any) -> None:
        assert name not in self.layout, name
        self.layout[name] = column
        planes = numbers.astype(numbers.dtype.newbyteorder("<")).view(np.uint8).reshape(-1, 8)
        self._parts.append(planes[:, : column.width].T.tobytes())

    def packed(self) -> str:
        """All columns, deflated, in base64."""
        return base64.b64encode(zlib.compress(b"".join(self._parts), LEVEL)).decode("ascii")


class Clock(NamedTuple):
    """Seconds as whole ticks. `per_second` is a power of ten where that is exact, else a power of two."""

    per_second: float

    @staticmethod
    def of(times: Floats, span: float) -> Clock:
        """The coarsest of 1 s to 1 ns in which all times are whole; where none is, span / 2^40 or finer."""
        for power in range(10):
            if all(_are_whole(some * 10.0**power, ROUNDING * 10.0**power * span) for some in (times[:SAMPLE], times)):
                return Clock(10.0**power)
        return Clock(2.0 ** (40 - int(np.ceil(np.log2(span)))))

    def ticks(self, seconds: Any) -> Ints:
        return np.asarray(np.rint(np.asarray(seconds, float) * self.per_second), np.int64)


ROUNDING = 1e-13
"""Share of a run that adding up its times may be off by."""

SAMPLE = 1000
"""Times that are tried before all of them."""


def _are_whole(numbers: Floats, tolerance: float) -> bool:
    return bool(np.abs(numbers - np.rint(numbers)).max(initial=0.0) <= tolerance)
