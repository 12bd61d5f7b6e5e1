"""Comparison: several schedules on one basis, the same ranks, micro-batches and layers, ranked by makespan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simpipe.schedules import ClosedForm
from simpipe.simulator.summary import Summary


@dataclass(frozen=True)
class Entry:
    """One schedule's figures in a comparison; `label` is how it was asked for."""

    label: str
    summary: Summary
    closed_form: ClosedForm | None

    def row(self, place: int) -> dict[str, Any]:
        """Flat figures, units in the names: what the CSV and --json hold."""
        s = self.summary
        return {
            "place": place,
            "schedule": self.label,
            "ranks": s.ranks,
            "microbatches": s.microbatches,
            "stages": s.stages,
            "chunks": s.chunks,
            "parameter_copies": s.parameter_copies,
            "makespan_s": s.makespan,
            "ideal_s": s.ideal,
            "bubble_rate": s.bubble_rate,
            "span_bubble_rate": s.span_bubble_rate,
            "mean_bubble_s": s.bubble_time / s.ranks,
            "largest_bubble_s": max(rank.bubble_time for rank in s.per_rank),
            "waiting_s": s.waiting_time,
            "transfer_s": s.transfer_time,
            "peak_activations": s.peak_activations,
            "peak_activation_bytes": s.peak_activation_bytes,
            "formula_bubble_s": self.closed_form.seconds if self.closed_form else None,
            "formula_exact": not self.closed_form.outside if self.closed_form else None,
        }


def rank(entries: list[Entry]) -> list[dict[str, Any]]:
    """Rows from the shortest makespan to the longest; equal ones (to 1e-9) share a place."""
    ordered = sorted(entries, key=lambda entry: (entry.summary.makespan, entry.label))
    rows: list[dict[str, Any]] = []
    for number, entry in enumerate(ordered, 1):
        tied = bool(rows) and entry.summary.makespan <= rows[-1]["makespan_s"] * (1 + 1e-9)
        rows.append(entry.row(rows[-1]["place"] if tied else number))
    return rows
