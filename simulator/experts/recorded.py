"""Recorded loads: a CSV file of how many tokens each expert of each layer got, and the same written."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np

from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.kernels import Ints

COLUMNS = ("layer", "expert", "tokens")
"""Layers with experts counted from 0, experts from 0, whole tokens."""

MOST = 10**15


def read(path: str | Path, layers: int, experts: int, topk: int) -> Ints:
    """(layers, experts) tokens of a .csv file with COLUMNS, a row for each expert; further columns are read over.

    topk: different experts that each token goes to, so that one of them gets at most 1/topk of a layer's.

    Raises SimpipeError, one sentence with file and row.
    """
    loads = np.full((layers, experts), -1, np.int64)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (table.fieldnames or ())]
            if missing:
                raise SimpipeError(f"{path} lacks the column {missing[0]}; it needs {', '.join(COLUMNS)}")
            for row in table:
                place = f"{path} line {table.line_num}"
                layer, expert = (_whole(place, row, key, size) for key, size in zip(COLUMNS, loads.shape, strict=False))
                if loads[layer, expert] >= 0:
                    twice = f"{place}: expert {expert} of layer {layer} is given twice"
                    raise SimpipeError(f"{twice}; a file holds the loads of one strategy")
                loads[layer, expert] = _whole(place, row, "tokens", MOST)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SimpipeError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if (loads < 0).any():
        layer, expert = np.argwhere(loads < 0)[0].tolist()
        raise SimpipeError(f"{path} lacks expert {expert} of layer {layer}; the model has {layers} x {experts}")
    if (loads.sum(1) == 0).any():
        raise SimpipeError(f"{path}: layer {int(np.argmin(loads.sum(1)))} has no tokens")
    if (loads.max(1) * topk > loads.sum(1)).any():
        layer = int(np.argmax(loads.max(1) * topk > loads.sum(1)))
        most, total = int(loads[layer].max()), int(loads[layer].sum())
        what = f"expert {int(loads[layer].argmax())} of layer {layer} has {most} of {total} tokens"
        raise SimpipeError(f"{path}: {what}; at most one in {topk} can be, as a token goes to {topk} different experts")
    return loads


def _whole(place: str, row: dict[str, str], key: str, size: int) -> int:
    text = (row[key] or "").strip()
    if not text.isascii() or not text.isdigit() or len(text) > 18 or int(text) >= size:
        raise SimpipeError(f"{place}: {key} must be a whole number below {size}, not {text!r}")
    return int(text)
