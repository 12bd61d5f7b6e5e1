"""Offload: what a GPU keeps in its host's memory and updates there, and what that moves over PCIe each step.

Moving averages of the weights are copied out once a step and updated by the CPU, beside the step: the copy is of what
the optimizer wrote last, so both must be done before it writes again; weights that it wrote on the CPU are there
already. An optimizer on the CPU gets its shard of the
gradients once they are reduced; once all ranks' are, it updates, and the new weights come back. The CPU's part is bound
by its memory, of which each GPU has its share of the node's; every GPU works on the shard that it would update itself.
"""

from __future__ import annotations

from typing import NamedTuple

from simpipe.simulator.costs.cluster import Cluster, ClusterError
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.plan import Sync

STREAM = "offload"

OUT, IN = "pcie_out", "pcie_in"
"""A rank's links to its host's memory."""

REDUCTIONS = ("reduce-scatter", "all-reduce", "reduce copies")
"""Syncs behind which a rank's gradients are complete."""

AVERAGE_BYTES = 4
"""Of a weight's moving average, fp32."""


class Hosted(NamedTuple):
    """What a task on the host's side has to do: seconds of the CPU, or bytes over PCIe."""

    seconds: float = 0.0
    bytes: float = 0.0


class Shard(NamedTuple):
    """The parameters that a GPU updates: how many, and the bytes of one in the working copy."""

    parameters: float
    working_bytes: float


def links(parallel: Parallel) -> tuple[str, ...]:
    """The links beside those between GPUs that a layout needs."""
    return (OUT, IN) if "cpu" in (parallel.averages, parallel.optimizer_device) else ()


def capacities(cluster: Cluster, parallel: Parallel) -> list[float]:
    """Bytes/s of each of those."""
    return [cluster.node.pcie_bandwidth_per_direction] * len(links(parallel))


def host_bytes(parallel: Parallel, shard: Shard) -> float:
    """Bytes of host memory that a GPU needs: averages; the optimizer's state, with gradients and weights under way."""
    averages = AVERAGE_BYTES if parallel.averages == "cpu" else 0
    optimizer = _state(parallel) + parallel.gradient_bytes + shard.working_bytes
    return shard.parameters * (averages + (optimizer if parallel.optimizer_device == "cpu" else 0.0))


def syncs(cluster: Cluster, parallel: Parallel, rank: int, shard: Shard) -> list[tuple[Sync, Hosted]]:
    """A rank's tasks on its host's link and CPU, in order."""
    found = []
    if parallel.averages == "cpu":
        source = parallel.master_bytes or shard.working_bytes
        if parallel.optimizer_device == "gpu":
            found.append(_copy("averages.copy", rank, OUT, shard.parameters * source))
        touched = source + 2 * AVERAGE_BYTES
        found.append(_update(cluster, "averages.update", rank, shard.parameters * touched))
    if parallel.optimizer_device == "cpu":
        sync, task = _copy("gradients.out", rank, OUT, shard.parameters * parallel.gradient_bytes)
        found.append((sync._replace(follows=REDUCTIONS), task))
        touched = 2 * _state(parallel) + parallel.gradient_bytes + shard.working_bytes
        closing = [
            _update(cluster, "optimizer.host", rank, shard.parameters * touched),
            _copy("parameters.in", rank, IN, shard.parameters * shard.working_bytes),
        ]
        found += [(sync._replace(closing=True), task) for sync, task in closing]
    return found


def _state(parallel: Parallel) -> int:
    """Bytes of a parameter's master copy and moments."""
    return parallel.master_bytes + 2 * parallel.moment_bytes


def _copy(name: str, rank: int, link: str, size: float) -> tuple[Sync, Hosted]:
    return Sync(name, (rank,), STREAM, links=(link,)), Hosted(bytes=size)


def _update(cluster: Cluster, name: str, rank: int, touched: float) -> tuple[Sync, Hosted]:
    """Reads and writes `touched` bytes at the share that this GPU has of the host's memory bandwidth."""
    bandwidth = cluster.node.host_memory_bandwidth
    if bandwidth is None:
        raise ClusterError(f"{cluster.name} has no node.host_memory_bandwidth, which bounds what its CPUs update")
    return Sync(name, (rank,), STREAM), Hosted(seconds=touched * cluster.node.gpus / bandwidth)
