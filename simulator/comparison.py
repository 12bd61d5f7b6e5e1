"""Comparison: several schedules on one basis, the same ranks, micro-batches and layers, ranked by makespan."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from simpipe.simulator.case import Figures
from simpipe.simulator.errors import ScheduleError


@dataclass(frozen=True)
class Entry:
    """One schedule's figures in a comparison; `label` is how it was asked for."""

    label: str
    figures: Figures

    def row(self, place: int) -> dict[str, Any]:
        """Flat figures, units in the names: what the CSV and --json hold."""
        s, form = self.figures.summary, self.figures.closed_form
        row = {
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
            "formula_bubble_s": form.seconds if form else None,
            "formula_exact": not form.outside if form else None,
        }
        return row | self._efficiency()

    def _efficiency(self) -> dict[str, Any]:
        """The columns of a modelled step; none where costs are given by hand."""
        found = self.figures.efficiency
        if found is None:
            return {}
        names = ("tokens_per_s", "tokens_per_s_per_gpu", "tflops_per_gpu", "mfu", "exposed_communication_s")
        row = {name: getattr(found, name) for name in names}
        return row | {"peak_memory_bytes": found.memory.peak_bytes, "fits": found.fits}


def rank(entries: list[Entry]) -> tuple[list[Entry], list[dict[str, Any]]]:
    """Entries and rows from the shortest makespan to the longest; equal ones (to 1e-9) share a place.

    Raises ScheduleError where they are not on one basis: of different ranks or micro-batches.
    """
    for entry in entries[1:]:
        first, own = ((e.figures.summary.ranks, e.figures.summary.microbatches) for e in (entries[0], entry))
        if own != first:
            raise ScheduleError(
                f"{entry.label} has {own[0]} ranks x {own[1]} micro-batches, but {entries[0].label} has {first[0]} x "
                f"{first[1]}; compare on one basis (--ranks, --microbatches)"
            )
    ordered = sorted(entries, key=lambda entry: (entry.figures.summary.makespan, entry.label))
    rows: list[dict[str, Any]] = []
    for number, entry in enumerate(ordered, 1):
        tied = bool(rows) and entry.figures.summary.makespan <= rows[-1]["makespan_s"] * (1 + 1e-9)
        rows.append(entry.row(rows[-1]["place"] if tied else number))
    return ordered, rows
