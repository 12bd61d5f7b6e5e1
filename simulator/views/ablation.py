"""The table of techniques switched off."""

from __future__ import annotations

from typing import Any

from simpipe.simulator.views import console

HEADER = ["switched off", "instead", "in the scenario", "step", "costs", "", "fullest GPU"]

LEFT = (0, 1, 2)
"""Columns of words."""


def text(rows: list[dict[str, Any]]) -> list[str]:
    """The terminal's table, of ablation.to_dict."""
    return [*console.table(HEADER, cells(rows), LEFT), *notes(rows)]


def notes(rows: list[dict[str, Any]]) -> list[str]:
    """What stands below the table."""
    found = ["! does not fit into memory"] if any(not row["fits"] for row in rows) else []
    return found + [f"{row['off']}: {row['note']}" for row in rows if row["note"]]


def cells(rows: list[dict[str, Any]]) -> list[list[str]]:
    """Rows of text under HEADER."""
    return [
        [
            row["off"] or "nothing",
            row["instead"],
            row["changed"],
            f"{row['step_time_s']:.3f} s",
            f"{row['costs_s']:+.3f} s" if row["off"] else "",
            f"{row['costs']:+.1%}" if row["off"] else "",
            f"{row['peak_bytes'] / 1e9:.1f} GB" + ("" if row["fits"] else " !"),
        ]
        for row in rows
    ]
