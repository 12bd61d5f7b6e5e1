"""Communication: what a collective or an expert exchange puts on one GPU's links; knows no schedule and no model.

Bytes are those that one GPU sends, in one direction; it receives as many. Everything is a pure function of the
machine. NVLink joins the ranks of a node, here the ranks of a group in one NVLink domain; a NIC each joins the nodes.

* A collective is a ring through all ranks, node by node; an all-reduce takes a tree over the nodes where that is
  faster. Latency is a floor, a hop for every step, and what it costs to fill the pipeline: t chunks of the best size
  make bytes/bandwidth = T last T + 2 sqrt(fill T). `size` is the whole buffer, as nccl-tests counts it: the output of
  all-gather, the input of reduce-scatter, all that a rank sends and keeps in an all-to-all.
* An expert exchange sends a token once to each node that has experts of it, over the NIC to the rank with the
  sender's place there, which forwards it over NVLink to each rank that has some (DeepEP,
  github.com/deepseek-ai/DeepEP). Combine is the way back. A token's experts are its best under scores that are
  independent and alike; with a node limit, its nodes are those of its best experts.

The constants are of whole published tables, none of a row; error is the mean absolute error of the time.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from simpipe.simulator.costs.cluster import Cluster, ClusterError

SCALE_BYTES = 4 / 128
"""fp8 carries an fp32 scale for every 128 elements (DeepSeek-V3, arXiv 2412.19437, section 3.3)."""

FLOOR = 6.3e-6
NVLINK_HOP = 0.2
FILL_BYTES = 2.0e6
"""Collectives, rounded from fits of nccl_intra_node.csv: seconds before the first byte, a ring's step as a share of
NVLink's latency (which is end to end, software included; a step over the network takes all of the network's), and the
bytes that fill the pipeline, at NVLink's bandwidth. Error from 64 MiB on, from 1 MiB, and below: 7, 12, 17 % on H100;
6, 12, 23 % on A100, where it is mostly too short. Across nodes nothing was fitted."""

IN_SWITCH_SHARE = 0.743
"""All-reduce summed in the NVLink switch (NVLS): 274 of the 369 GB/s of NVLink (nccl_allreduce_8xH100.csv)."""

EXCHANGE_FLOOR = 22e-6
NIC_SHARE, NVLINK_SHARE = 0.93, 0.82
"""Expert exchange, set by hand where deepep_performance.csv (H800) and both H100 files stop gaining from SMs: seconds
of a kernel without tokens beside two NVLink and three network latencies, and what share its kernels reach of what large
transfers do. On H800, 4,096 tokens, EP 8 to 64, DeepEP's current release: error 3.5 % (its first release: 10.9 %)."""

SM_RATE, SM_HALF, COPY_BYTES = 20.1e9, 112, 1800
SM_RATE_ACROSS = {"dispatch": 17.9e9, "combine": 12.7e9}
"""n SMs move n rate / (1 + n / half) bytes/s, NIC and NVLink together, of tokens that each take as long as so many
bytes more. Across nodes they also forward and, in combine, add up. Fitted on both H100 files, 1, 2 and 4 nodes, 4 to
24 SMs, from 512 tokens on: error 11 % (dispatch) and 17 % (combine) on one node, 6 % on 2 and 4; left out are 8
nodes, whose dispatch takes twice as long there as here. An SM of another GPU is taken to move as much."""


class Exchange(NamedTuple):
    """What one GPU's links have to do: seconds of `latency`, then bytes sent over each link, side by side, the two
    together no faster than the `rate_limit` bytes/s that the kernel reaches with nothing beside it."""

    latency: float
    network_bytes: float
    nvlink_bytes: float
    rate_limit: float = math.inf


NOTHING = Exchange(0.0, 0.0, 0.0)


class Spread(NamedTuple):
    """Where a token's experts are, on average: distinct nodes and ranks, and those of them that are not its own.

    A rank on another node counts as own if it has the sender's place there: the token comes to it over the NIC.
    """

    nodes: float
    ranks: float
    other_nodes: float
    other_ranks: float


def network_bandwidth(cluster: Cluster) -> float:
    """Bytes/s per direction that a GPU's NICs reach."""
    network = cluster.network
    return network.nics_per_gpu * network.bandwidth_per_direction * network.efficiency


def nvlink_bandwidth(cluster: Cluster) -> float:
    """Bytes/s per direction that a GPU's NVLink reaches."""
    return cluster.node.nvlink.bandwidth_per_direction * cluster.node.nvlink.efficiency


def seconds(cluster: Cluster, exchange: Exchange) -> float:
    """Time alone: NIC and NVLink parts are pipelined."""
    both = exchange.network_bytes + exchange.nvlink_bytes
    return exchange.latency + max(_moving(cluster, *exchange[1:3]), both / exchange.rate_limit)


def dispatch(
    cluster: Cluster,
    tokens: float,
    topk: int,
    hidden: int,
    element_bytes: float,
    ep: int,
    node_limit: int | None,
    experts: int,
    sms: int,
    ranks_per_node: int | None = None,
) -> Exchange:
    """A GPU's `tokens` to their experts, elements of 1 byte with their scales; `sms` run the kernel.

    `experts` are spread over `ep` ranks, at most `ranks_per_node` (by default all that fit) in an NVLink domain;
    a token's are on at most `node_limit` nodes.
    """
    spread = expert_spread(experts, topk, ep, ranks_per_node or cluster.node.nvlink.domain_gpus, node_limit)
    return _expert_exchange(cluster, "dispatch", tokens, token_bytes(hidden, element_bytes), spread, sms)


def combine(
    cluster: Cluster,
    tokens: float,
    topk: int,
    hidden: int,
    element_bytes: float,
    ep: int,
    node_limit: int | None,
    experts: int,
    sms: int,
    ranks_per_node: int | None = None,
) -> Exchange:
    """The experts' results back to a GPU's `tokens`, added up on each node; arguments as of `dispatch`."""
    spread = expert_spread(experts, topk, ep, ranks_per_node or cluster.node.nvlink.domain_gpus, node_limit)
    return _expert_exchange(cluster, "combine", tokens, token_bytes(hidden, element_bytes), spread, sms)


def token_bytes(hidden: int, element_bytes: float) -> float:
    """Bytes of a token on its way, scales included."""
    return hidden * (element_bytes + (SCALE_BYTES if element_bytes <= 1 else 0.0))


@lru_cache(maxsize=1024)
def expert_spread(experts: int, topk: int, ep: int, ranks_per_node: int, node_limit: int | None = None) -> Spread:
    """Where the `topk` experts of a token are, of `experts` over `ep` ranks; exact."""
    nodes, on_node = _nodes(ep, ranks_per_node)
    limit = min(node_limit or nodes, nodes)
    each = experts // nodes
    if experts % ep:
        raise ClusterError(f"experts = {experts} cannot be spread evenly over ep = {ep} ranks")
    if not 1 <= topk <= limit * each:
        raise ClusterError(f"a token takes 1 to {limit * each} experts on {limit} of {nodes} nodes, not {topk}")
    hit, ranks = 0.0, 0.0
    for count, chance in _on_one_node(nodes, each, topk, limit).items():
        missed = math.comb(each - experts // ep, count) / math.comb(each, count)  # by all of one rank's experts
        hit += chance * (count > 0)
        ranks += chance * on_node * (1 - missed)
    return Spread(nodes * hit, nodes * ranks, (nodes - 1) * hit, nodes * ranks * (on_node - 1) / on_node)


def _on_one_node(nodes: int, each: int, topk: int, limit: int) -> dict[int, float]:
    """Chances that a given node has so many of a token's experts; `each` are on every node.

    Experts are drawn best first. Until `limit` nodes are seen, any expert will do; from then on, only theirs.
    """
    states = {(0, 0): 1.0}  # (nodes seen, experts drawn from the given one): chance
    for drawn in range(topk):
        after: dict[tuple[int, int], float] = {}
        for (seen, own), chance in states.items():
            is_open = seen < limit
            left = (nodes if is_open else seen) * each - drawn
            ways = {
                (seen + (own == 0), own + 1): each - own if own or is_open else 0,
                (seen, own): (seen - (own > 0)) * each - (drawn - own),
                (seen + 1, own): (nodes - seen - (own == 0)) * each if is_open else 0,
            }
            for state in filter(ways.__getitem__, ways):
                after[state] = after.get(state, 0.0) + chance * ways[state] / left
        states = after
    counts: dict[int, float] = {}
    for (_, own), chance in states.items():
        counts[own] = counts.get(own, 0.0) + chance
    return counts


def _expert_exchange(cluster: Cluster, way: str, tokens: float, payload: float, spread: Spread, sms: int) -> Exchange:
    """`tokens` of `payload` bytes to, or from, everywhere that they have experts."""
    if not 1 <= sms <= cluster.gpu.sms:
        raise ClusterError(f"an exchange on {cluster.name} takes 1 to {cluster.gpu.sms} SMs, not {sms}")
    network, nvlink = tokens * payload * spread.other_nodes, tokens * payload * spread.other_ranks
    if network + nvlink == 0:
        return NOTHING
    latency = EXCHANGE_FLOOR + 2 * cluster.node.nvlink.latency
    rate = SM_RATE
    if network:
        latency += 3 * cluster.network.latency_cross_leaf
        rate = SM_RATE_ACROSS[way]
    by_sms = sms * rate / (1 + sms / SM_HALF) * payload / (payload + COPY_BYTES)
    alone = _moving(cluster, network / NIC_SHARE, nvlink / NVLINK_SHARE)
    return Exchange(latency, network, nvlink, min(by_sms, (network + nvlink) / alone if alone else math.inf))


def all_reduce(
    cluster: Cluster, size: float, group: int, ranks_per_node: int | None = None, in_switch: bool = False
) -> Exchange:
    """Every rank gets the sum of all ranks' `size` bytes; `in_switch` if the NVLink switches can add (NVLS)."""
    nodes, on_node = _nodes(group, ranks_per_node or cluster.node.nvlink.domain_gpus)
    ways = [_ring(cluster, size, nodes, on_node, passes=2)]
    if nodes > 1:
        hops = (2 * (on_node - 1), 2 * math.ceil(math.log2(nodes)))
        nvlink = 2 * size * (on_node - 1) / on_node
        ways.append(_filled(cluster, hops, nodes, 2 * size / on_node, nvlink))
    elif in_switch and group > 2:
        rate = IN_SWITCH_SHARE * nvlink_bandwidth(cluster)
        ways.append(_filled(cluster, (2 * (group - 1), 0), 1, 0.0, size)._replace(rate_limit=rate))
    return min(ways, key=lambda way: seconds(cluster, way))


def all_gather(cluster: Cluster, size: float, group: int, ranks_per_node: int | None = None) -> Exchange:
    """Every rank gets all of the `size` bytes, of which it has 1/group."""
    return _ring(cluster, size, *_nodes(group, ranks_per_node or cluster.node.nvlink.domain_gpus), passes=1)


def reduce_scatter(cluster: Cluster, size: float, group: int, ranks_per_node: int | None = None) -> Exchange:
    """Every rank gets its 1/group of the sum of all ranks' `size` bytes."""
    return _ring(cluster, size, *_nodes(group, ranks_per_node or cluster.node.nvlink.domain_gpus), passes=1)


def all_to_all(cluster: Cluster, size: float, group: int, ranks_per_node: int | None = None) -> Exchange:
    """Every rank sends each rank, itself included, its 1/group of `size` bytes."""
    nodes, on_node = _nodes(group, ranks_per_node or cluster.node.nvlink.domain_gpus)
    each = size / group
    return _filled(cluster, (on_node > 1, nodes > 1), nodes, each * (group - on_node), each * (on_node - 1))


def broadcast(cluster: Cluster, size: float, group: int, ranks_per_node: int | None = None) -> Exchange:
    """Every rank gets one rank's `size` bytes; they are those of a rank in the ring's middle, which passes all on."""
    nodes, on_node = _nodes(group, ranks_per_node or cluster.node.nvlink.domain_gpus)
    across = size / on_node if nodes > 1 else 0.0
    nvlink = size * (on_node - 1) / on_node if nodes > 1 else size
    return _filled(cluster, (group - nodes, nodes - 1), nodes, across, nvlink) if group > 1 else NOTHING


def point_to_point(cluster: Cluster, size: float, across_nodes: bool = True) -> Exchange:
    """`size` bytes from a rank to another; across nodes through a spine switch."""
    if across_nodes:
        return _filled(cluster, (0, 1), cluster.network.nodes_per_leaf + 1, size, 0.0)
    return _filled(cluster, (1, 0), 1, 0.0, size)


def _ring(cluster: Cluster, size: float, nodes: int, on_node: int, passes: int) -> Exchange:
    """`passes` times round the ranks less one step; a ring enters and leaves each node by another NIC."""
    group = nodes * on_node
    sent = passes * size * (group - 1) / group
    steps = (passes * (group - nodes), passes * (nodes - 1))
    across = sent / on_node if nodes > 1 else 0.0
    return _filled(cluster, steps, nodes, across, sent - across if on_node > 1 else 0.0)


def _filled(cluster: Cluster, steps: tuple[int, int], nodes: int, network: float, nvlink: float) -> Exchange:
    """Bytes with the latency of NVLink and network `steps` and of filling the pipeline."""
    if network + nvlink == 0:
        return NOTHING
    net = cluster.network
    across = net.latency_same_leaf if nodes <= net.nodes_per_leaf else net.latency_cross_leaf
    fill = math.sqrt(FILL_BYTES / nvlink_bandwidth(cluster) * _moving(cluster, network, nvlink))
    hops = steps[0] * NVLINK_HOP * cluster.node.nvlink.latency + steps[1] * across
    return Exchange(FLOOR + hops + 2 * fill, network, nvlink)


def _moving(cluster: Cluster, network: float, nvlink: float) -> float:
    """Seconds of the slower of the two links."""
    return max(network / network_bandwidth(cluster), nvlink / nvlink_bandwidth(cluster))


def _nodes(group: int, ranks_per_node: int) -> tuple[int, int]:
    """How many nodes a group is on, and how many of its ranks are on each: evenly, at most so many."""
    if group < 1 or ranks_per_node < 1:
        raise ClusterError(f"a group has at least 1 rank and 1 a node, not {group} and {ranks_per_node}")
    on_node = next(ranks for ranks in range(min(group, ranks_per_node), 0, -1) if group % ranks == 0)
    return group // on_node, on_node
