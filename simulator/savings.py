"""Savings: from a layout that keeps everything to the one that a scenario states, one saving at a time.

Each row is a whole simulated step with one more saving than the row before: what it frees on every rank, and what it
costs in time. So rows add up, whatever their order; a saving's own share depends on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from simpipe.simulator import case
from simpipe.simulator.costs import offload
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import RECOMPUTE
from simpipe.simulator.efficiency import efficiency
from simpipe.simulator.scenario import Scenario
from simpipe.simulator.trace import simulate

ALL_KEPT = "all kept"

WORDS = {
    "norms": "norms recomputed",
    "mla_up": "MLA up-projections recomputed",
    "swiglu": "SwiGLU outputs recomputed",
    "mlp": "MLPs recomputed",
    "core": "attention core recomputed",
    "selective": "attention core recomputed",
    "full": "whole layers recomputed",
}
"""What recomputations are called."""


@dataclass(frozen=True)
class Row:
    """A saving. peak_bytes: of a GPU of each rank. host_bytes: of host memory that a GPU of the rank that needs most
    does. pcie_bytes: what it moves over PCIe a step, both ways. host_s: seconds that the host's link and CPU work
    for it in a step, hidden or not, on the rank where it is longest."""

    saving: str
    step_time_s: float
    peak_bytes: tuple[float, ...]
    host_bytes: float
    pcie_bytes: float
    host_s: float
    fits: bool

    @property
    def worst_bytes(self) -> float:
        """The peak of the fullest rank."""
        return max(self.peak_bytes)


def table(scenario: Scenario, progress: Callable[[str], None] = lambda saving: None) -> list[Row]:
    """The rows, from all kept to the scenario. Raises SimpipeError."""
    rows = []
    for saving, changed in _changes(scenario):
        progress(saving)
        rows.append(_row(saving, changed))
    return rows


def _changes(scenario: Scenario) -> Iterator[tuple[str, Scenario]]:
    """What each saving is called, and the scenario with all savings up to it."""
    wanted, mtp = scenario.parallel, scenario.load().model.mtp_modules
    averages = "gpu" if wanted.averages == "cpu" else wanted.averages
    keys: dict[str, Any] = {
        "recompute": [], "kept_format": "bf16", "moment_bytes": 4, "averages": averages, "optimizer_device": "gpu",
        "shared_tables": not mtp,
    }  # fmt: skip
    yield ALL_KEPT, scenario.with_(**keys)
    for name in sorted(wanted.recompute, key=RECOMPUTE.index):
        keys["recompute"] = [*keys["recompute"], name]
        yield WORDS[name], scenario.with_(**keys)
    for saving, key, value in (
        (f"{wanted.compute_format} activations kept", "kept_format", wanted.kept_format),
        (f"moments of {wanted.moment_bytes} bytes", "moment_bytes", wanted.moment_bytes),
        ("moving averages on the CPU", "averages", wanted.averages),
        ("optimizer on the CPU", "optimizer_device", wanted.optimizer_device),
        ("MTP shares embedding and head", "shared_tables", wanted.shared_tables or not mtp),
    ):
        if keys[key] != value:
            keys[key] = value
            if key != "kept_format" or wanted.compute_format.startswith("fp8"):
                yield saving, scenario.with_(**keys)


def _row(saving: str, scenario: Scenario) -> Row:
    made = case.modelled(scenario)
    assert isinstance(made.costs, ModelledCosts)
    trace = simulate(made.program, made.costs)
    found = efficiency(trace, made.costs)
    program, parallel = made.program, made.costs.parallel
    cluster, shards = made.costs.cluster, [made.costs.updated(program, rank) for rank in range(program.ranks)]
    hosted = [offload.syncs(cluster, parallel, rank, shard) for rank, shard in enumerate(shards)]
    rate = cluster.node.pcie_bandwidth_per_direction
    return Row(
        saving,
        trace.makespan,
        tuple(rank.peak_bytes for rank in found.memory_per_rank),
        max(offload.host_bytes(parallel, shard) for shard in shards),
        max(sum(task.bytes for _, task in tasks) for tasks in hosted),
        max(sum(task.seconds + task.bytes / rate for _, task in tasks) for tasks in hosted),
        found.fits,
    )


def to_dict(rows: list[Row]) -> list[dict[str, Any]]:
    """Plain figures, each row with what it frees and costs beside the row before."""
    found = []
    for before, row in zip([rows[0], *rows], rows, strict=False):
        found.append(
            {
                "saving": row.saving,
                "peak_bytes": row.worst_bytes,
                "saved_bytes": before.worst_bytes - row.worst_bytes,
                "step_time_s": row.step_time_s,
                "costs_s": row.step_time_s - before.step_time_s,
                "host_bytes": row.host_bytes,
                "pcie_bytes": row.pcie_bytes,
                "host_busy_s": row.host_s,
                "fits": row.fits,
                "peak_bytes_per_rank": list(row.peak_bytes),
                "saved_bytes_per_rank": [a - b for a, b in zip(before.peak_bytes, row.peak_bytes, strict=True)],
            }
        )
    return found
