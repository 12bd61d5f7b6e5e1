"""Assumptions: what figures of a table rest on, for the sheet beside them."""

from __future__ import annotations

from collections.abc import Iterable

from simpipe.simulator.costs.cluster import Cluster, load_cluster
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.planning.evaluation import COLUMNS
from simpipe.simulator.planning.tables import Row

GENERAL = (
    ("a slot", "takes as long as its operations when it runs alone, longer where collectives outside hold SMs; "
     "they and messages share links among themselves only; with ZeRO 2 and 3, and in what plan compares, steps run in "
     "full"),
    ("kernels, links", "take the times of the hardware profile's curves; hosts and frameworks add what the stack says"),
    ("replicas", "behave alike: data-parallel pipelines are simulated once"),
    ("mfu", "counts the model's FLOPs with causal attention, without recomputation, over the dense BF16 peak"),
    ("GB, bandwidth", "GB is 1e9 bytes; bandwidths are per direction"),
    ("cost", "GPU-hours times price_usd_per_gpu_hour of the row or of the hardware profile: no discounts, no failures"),
)  # fmt: skip


def of(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """What was assumed in general, what each column is, and what was assumed of the machines that rows name."""
    names = {str(row["hardware"]): None for row in rows if row.get("hardware")}
    found = [*GENERAL, *((name, column.meaning) for name, column in COLUMNS.items())]
    for name in names:
        try:
            found += [(f"{name}: {key}", text) for key, text in _assumed(load_cluster(name))]
        except SimpipeError:
            continue  # the rows that name it say so
    return found


def _assumed(cluster: Cluster) -> Iterable[tuple[str, str]]:
    price = () if cluster.price is None else (("price_usd_per_gpu_hour", f"{cluster.price:g} USD a GPU-hour"),)
    return [*price, *cluster.assumed.items()]
