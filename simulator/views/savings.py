"""The table of memory savings."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from simpipe.simulator.views import console

HEADER = ["saving", "fullest GPU", "saved", "step", "costs", "host memory", "over PCIe", "host busy"]


def text(rows: list[dict[str, Any]]) -> list[str]:
    """The terminal's table, of savings.to_dict."""
    first, last = rows[0], rows[-1]
    saved, cost = first["peak_bytes"] - last["peak_bytes"], last["step_time_s"] - first["step_time_s"]
    return [
        *console.table(HEADER, cells(rows)),
        "",
        *console.table(*per_rank(rows)),
        "",
        f"in all {console.size(saved)} ({saved / first['peak_bytes']:.0%}) less on the fullest GPU, {cost:+.3f} s",
        "! does not fit; of the host, a GPU's share: what it keeps, gets and returns in a step, and how long it works;",
        "what of that nothing hides is in the step",
    ]


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of text under HEADER."""
    return [
        [
            row["saving"],
            f"{row['peak_bytes'] / 1e9:.1f} GB" + ("" if row["fits"] else " !"),
            "" if number == 0 else f"{row['saved_bytes'] / 1e9:.1f} GB",
            f"{row['step_time_s']:.3f} s",
            "" if number == 0 else f"{1e3 * row['costs_s']:+.0f} ms",
            console.size(row["host_bytes"]) if row["host_bytes"] else "-",
            console.size(row["pcie_bytes"]) if row["pcie_bytes"] else "-",
            f"{1e3 * row['host_busy_s']:.0f} ms" if row["host_busy_s"] else "-",
        ]
        for number, row in enumerate(rows)
    ]


def per_rank(rows: list[dict[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of what each saving frees on a GPU of each rank, from all kept to what is left; a column for
    ranks that are alike."""
    peaks = list(zip(*(row["peak_bytes_per_rank"] for row in rows), strict=True))
    alike: dict[tuple[str, ...], list[int]] = {}
    for rank, own in enumerate(peaks):
        alike.setdefault(tuple(_gb(size) for size in own), []).append(rank)
    columns = [
        [_gb(peaks[first][0]), *(_gb(before - size) for before, size in pairwise(peaks[first])), _gb(peaks[first][-1])]
        for first, *_ in alike.values()
    ]
    names = [rows[0]["saving"], *(f"- {row['saving']}" for row in rows[1:]), "= what is left"]
    header = ["GB of a GPU, rank", *map(_ranges, alike.values())][: 1 + console.MOST_RANKS]
    return header, [list(row)[: len(header)] for row in zip(names, *columns, strict=True)]


def _gb(size: float) -> str:
    return f"{round(size / 1e9, 1) + 0.0:.1f}"  # no -0.0


def _ranges(ranks: list[int]) -> str:
    """Ascending numbers in short: 0, 3 to 5."""
    runs: list[list[int]] = []
    for rank in ranks:
        if runs and runs[-1][1] == rank - 1:
            runs[-1][1] = rank
        else:
            runs.append([rank, rank])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)
