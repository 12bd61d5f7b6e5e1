"""The table of memory savings."""

from __future__ import annotations

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
        f"in all {console.size(saved)} ({saved / first['peak_bytes']:.0%}) less on the fullest GPU, {cost:+.3f} s",
        "! does not fit; a GPU's share of what the host keeps, gets and returns in a step, and does beside it",
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
