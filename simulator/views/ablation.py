"""The table of techniques switched off."""

from __future__ import annotations

from typing import Any

from simpipe.simulator.views import console

HEADER = ["switched off", "instead", "step", "costs", "", "fullest GPU"]


def text(rows: list[dict[str, Any]]) -> list[str]:
    """The terminal's table, of ablation.to_dict."""
    return [*console.table(HEADER, cells(rows)), "", "! does not fit"]


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of text under HEADER."""
    return [
        [
            row["off"] or "nothing",
            row["instead"],
            f"{row['step_time_s']:.3f} s",
            f"{row['costs_s']:+.3f} s" if row["off"] else "",
            f"{row['costs']:+.1%}" if row["off"] else "",
            "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / 1e9:.1f} GB" + ("" if row["fits"] else " !"),
        ]
        for row in rows
    ]
