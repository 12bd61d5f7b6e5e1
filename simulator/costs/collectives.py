"""Communication: what a collective or an expert exchange puts on one GPU's links; knows no schedule and no model.

Bytes are those that one GPU sends, in one direction; it receives as many. Everything is a pure function of the
machine. NVLink joins the ranks of a node, here the ranks of a group in one NVLink domain; a NIC each joins the nodes.
The ranks of a group are GPUs `apart` from each other, so on each node those of the same places: a rail joins them, and
a leaf switch the rails of so many nodes. What goes further crosses the spine, and beyond its reach a core; both may be
oversubscribed, which the GPUs below share.

* A collective is a ring through all ranks, node by node, so that of a leaf's nodes only the last sends to another leaf.
  An all-reduce takes a tree over the nodes where that is faster; within one node the switches add up where they can
  (NVLS), but not for a part of its GPUs: 4 of 8 H100 are measured as fast as a ring. Latency is a floor, a hop for
  every step, what it costs to fill the pipeline (t chunks of the best size make bytes/bandwidth = T last
  T + 2 sqrt(fill T)), and what a rank's own share takes through its memory: of two ranks it is half of all, which
  A100 and H100 are measured to gather at 150 and 258 GB/s, of eight ranks at 205 and 335 GB/s. `size` is the whole
  buffer, as nccl-tests counts it: the output of all-gather, the input of reduce-scatter, all that a rank sends and
  keeps in an all-to-all.
* An expert exchange sends a token once to each node that has experts of it, over the NIC to the rank with the
  sender's place there, which forwards it over NVLink to each rank that has some (DeepEP,
  github.com/deepseek-ai/DeepEP). Combine is the way back. A token's experts are its best under scores that are
  independent and alike; with a limit, its groups are those of its best experts, whichever nodes they are on.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

from simpipe.simulator.costs import exchange_kernels
from simpipe.simulator.costs.cluster import Cluster, ClusterError
from simpipe.simulator.costs.exchange_kernels import KernelSetting, Spread, Way

SCALE_BYTES = 4 / 128
"""fp8 carries an fp32 scale for every 128 elements (DeepSeek-V3, arXiv 2412.19437, section 3.3)."""


class Exchange(NamedTuple):
    """What one GPU's links have to do: seconds of `latency`, then bytes sent over each link, side by side, the two
    together no faster than the `rate_limit` bytes/s that the kernel reaches with nothing beside it. leaf_bytes,
    spine_bytes: of the network's, how many leave their leaf upwards, and how many the reach of a spine. cache_share: of
    the L2 cache, what its chunks fill on their way."""

    latency: float
    network_bytes: float
    nvlink_bytes: float
    rate_limit: float = math.inf
    leaf_bytes: float = 0.0
    spine_bytes: float = 0.0
    cache_share: float = 0.0


NOTHING = Exchange(0.0, 0.0, 0.0)


def network_bandwidth(cluster: Cluster) -> float:
    """Bytes/s per direction that a GPU's NICs reach."""
    network = cluster.network
    return network.nics_per_gpu * network.bandwidth_per_direction * network.efficiency


def nvlink_bandwidth(cluster: Cluster, peers: int | None = None) -> float:
    """Bytes/s per direction that a GPU's NVLink reaches; towards so many `peers`, where each has a link of its own."""
    nvlink = cluster.node.nvlink
    pair, whole = nvlink.pair_bandwidth_per_direction, nvlink.bandwidth_per_direction
    return (whole if pair is None or peers is None else min(whole, max(1, peers) * pair)) * nvlink.efficiency


def capacities(cluster: Cluster) -> dict[str, float]:
    """Bytes/s per direction that a GPU has of each kind of link: layers of switches only where they are oversubscribed,
    since else they never hold up what NICs let through."""
    network, own = cluster.network, network_bandwidth(cluster)
    found = {"nic": own, "nvlink": nvlink_bandwidth(cluster)}
    if network.leaf_oversubscription > 1:
        found["leaf"] = own / network.leaf_oversubscription
    if network.spine_oversubscription > 1:
        found["spine"] = own / (network.leaf_oversubscription * network.spine_oversubscription)
    return found


def link_bytes(exchange: Exchange) -> dict[str, float]:
    """Bytes by kind of link, as `capacities` names them."""
    _, network, nvlink, _, leaf, spine, _ = exchange
    return {"nic": network, "nvlink": nvlink, "leaf": leaf, "spine": spine}


def seconds(cluster: Cluster, exchange: Exchange) -> float:
    """Time alone: NIC and NVLink parts are pipelined."""
    both = exchange.network_bytes + exchange.nvlink_bytes
    return exchange.latency + max(_moving(cluster, exchange), both / exchange.rate_limit)


def slowed(cluster: Cluster, exchange: Exchange) -> float:
    """How many times as long as its slowest link it takes by its rate limit, at least once."""
    moving, both = _moving(cluster, exchange), exchange.network_bytes + exchange.nvlink_bytes
    return max(1.0, both / exchange.rate_limit / moving) if moving else 1.0


def behind(first: Exchange, second: Exchange) -> Exchange:
    """One after the other, as one: latencies and bytes add up, and the slower kernel's rate holds."""
    latency, network, nvlink, _, leaf, spine, _ = (a + b for a, b in zip(first, second, strict=True))
    return Exchange(latency, network, nvlink, min(first.rate_limit, second.rate_limit), leaf, spine)


def dispatch(
    cluster: Cluster,
    tokens: float,
    topk: int,
    hidden: int,
    element_bytes: float,
    ep: int,
    limit: int | None,
    experts: int,
    kernel: KernelSetting,
    apart: int = 1,
    groups: int | None = None,
    load: tuple[float, float] = (1.0, 1.0),
    repeated: bool = True,
) -> Exchange:
    """A GPU's `tokens` to their experts, elements of 1 byte with their scales, by a kernel set so.

    `experts` are spread over `ep` ranks; a token's are in at most `limit` of the `groups` that they form, one a node
    unless told otherwise. load: what the NIC and the NVLink that carry most have to, over the mean. repeated: whether
    another has found out where tokens go.
    """
    group, payload = _place(cluster, ep, apart), token_bytes(hidden, element_bytes)
    spread = expert_spread(experts, topk, ep, group.on_node, limit, groups).loaded(*load)
    found = _expert_exchange(cluster, "dispatch", tokens, payload, spread, group, kernel)
    return found if repeated else found._replace(rate_limit=found.rate_limit / cluster.exchange.first_dispatch)


def combine(
    cluster: Cluster,
    tokens: float,
    topk: int,
    hidden: int,
    element_bytes: float,
    ep: int,
    limit: int | None,
    experts: int,
    kernel: KernelSetting,
    apart: int = 1,
    groups: int | None = None,
    load: tuple[float, float] = (1.0, 1.0),
) -> Exchange:
    """The experts' results back to a GPU's `tokens`, added up on each node; arguments as of `dispatch`."""
    group, payload = _place(cluster, ep, apart), token_bytes(hidden, element_bytes)
    spread = expert_spread(experts, topk, ep, group.on_node, limit, groups).loaded(*load)
    return _expert_exchange(cluster, "combine", tokens, payload, spread, group, kernel)


def token_bytes(hidden: int, element_bytes: float) -> float:
    """Bytes of a token on its way, scales included."""
    return hidden * (element_bytes + (SCALE_BYTES if element_bytes <= 1 else 0.0))


@lru_cache(maxsize=1024)
def expert_spread(
    experts: int, topk: int, ep: int, ranks_per_node: int, limit: int | None = None, groups: int | None = None
) -> Spread:
    """Where the `topk` experts of a token are, of `experts` over `ep` ranks, in at most `limit` of their `groups`.

    Without `groups` each node's experts are one. Exact, but that no limit is taken where a node or rank has neither a
    part of one group nor whole ones.
    """
    nodes, on_node = _nodes(ep, ranks_per_node)
    groups = groups or nodes
    limit, each = min(limit or groups, groups), experts // groups
    if experts % ep:
        raise ClusterError(f"experts = {experts} cannot be spread evenly over ep = {ep} ranks")
    if not 1 <= topk <= limit * each:
        raise ClusterError(f"a token takes 1 to {limit * each} experts of {limit} of {groups} groups, not {topk}")
    node, rank = (_reached(groups, each, topk, limit, experts // parts) for parts in (nodes, ep))
    return Spread(nodes * node, ep * rank, (nodes - 1) * node, ep * rank * (on_node - 1) / on_node)


def _reached(groups: int, each: int, topk: int, limit: int, own: int) -> float:
    """The chance that a token has any of `own` given experts, which are a part of one group or whole ones."""
    experts = groups * each
    if limit == groups or (own % each and each % own):
        return 1 - math.comb(experts - own, topk) / math.comb(experts, topk)
    if own >= each:
        return 1 - _avoided(groups, each, topk, limit, own // each)
    counts = _in_one_group(groups, each, topk, limit)
    return sum(chance * (1 - math.comb(each - own, n) / math.comb(each, n)) for n, chance in counts.items())


def _avoided(groups: int, each: int, topk: int, limit: int, own: int) -> float:
    """The chance that none of a token's experts is in `own` given groups."""
    seen = {0: 1.0}  # other groups seen: chance
    for drawn in range(topk):
        after: dict[int, float] = {}
        for count, chance in seen.items():
            is_open = count < limit
            left = (groups if is_open else count) * each - drawn
            for more, ways in enumerate((count * each - drawn, (groups - own - count) * each * is_open)):
                after[count + more] = after.get(count + more, 0.0) + chance * ways / left
        seen = after
    return sum(seen.values())


def _in_one_group(groups: int, each: int, topk: int, limit: int) -> dict[int, float]:
    """Chances that a given group has so many of a token's experts; `each` are in every group.

    Experts are drawn best first. Until `limit` groups are seen, any expert will do; from then on, only theirs.
    """
    states = {(0, 0): 1.0}  # (groups seen, experts drawn from the given one): chance
    for drawn in range(topk):
        after: dict[tuple[int, int], float] = {}
        for (seen, own), chance in states.items():
            is_open = seen < limit
            left = (groups if is_open else seen) * each - drawn
            ways = {
                (seen + (own == 0), own + 1): each - own if own or is_open else 0,
                (seen, own): (seen - (own > 0)) * each - (drawn - own),
                (seen + 1, own): (groups - seen - (own == 0)) * each if is_open else 0,
            }
            for state in filter(ways.__getitem__, ways):
                after[state] = after.get(state, 0.0) + chance * ways[state] / left
        states = after
    counts: dict[int, float] = {}
    for (_, own), chance in states.items():
        counts[own] = counts.get(own, 0.0) + chance
    return counts


def _expert_exchange(
    cluster: Cluster, way: Way, tokens: float, payload: float, spread: Spread, group: _Group, setting: KernelSetting
) -> Exchange:
    """`tokens` of `payload` bytes to, or from, everywhere that they have experts: nodes of a group, each as likely.

    What lies above the NICs holds the kernel up as slower NICs would.
    """
    if not 1 <= setting.sms <= cluster.gpu.sms:
        raise ClusterError(f"an exchange on {cluster.name} takes 1 to {cluster.gpu.sms} SMs, not {setting.sms}")
    network, nvlink = tokens * payload * spread.other_nodes, tokens * payload * spread.other_ranks
    if network + nvlink == 0:
        return NOTHING
    leaf, spine = network * _scattered(group.nodes, group.leaf), network * _scattered(group.nodes, group.spine)
    crossing = _moving(cluster, Exchange(0.0, network, 0.0, math.inf, leaf, spine))
    links = network / crossing if crossing else math.inf, nvlink_bandwidth(cluster, group.on_node - 1)
    run = exchange_kernels.run(cluster.exchange, way, links, tokens, payload, spread, setting)
    latency = cluster.exchange.wait + exchange_kernels.floor(cluster.exchange, way, group.nodes)
    if group.nodes > group.leaf:  # the floor was timed within one
        latency += cluster.network.latency_cross_leaf - cluster.network.latency_same_leaf
    rate = (network + nvlink) / exchange_kernels.seconds(run)
    return Exchange(latency, network, nvlink, rate, leaf, spine, exchange_kernels.cache_share(run, cluster.gpu.l2))


def all_reduce(cluster: Cluster, size: float, group: int, apart: int = 1) -> Exchange:
    """Every rank gets the sum of all ranks' `size` bytes."""
    placed = _place(cluster, group, apart)
    ways = [_ring(cluster, size, placed, passes=2)]
    if placed.nodes > 1:
        ways.append(_tree(cluster, size, placed))
    elif cluster.node.nvlink.in_switch_efficiency and group >= max(3, cluster.node.gpus):
        rate = cluster.node.nvlink.in_switch_efficiency * cluster.node.nvlink.bandwidth_per_direction
        ways.append(_filled(cluster, 2 * (group - 1), 0.0, Exchange(0.0, 0.0, size, rate)))
    return min(ways, key=lambda way: seconds(cluster, way))


def all_gather(cluster: Cluster, size: float, group: int, apart: int = 1) -> Exchange:
    """Every rank gets all of the `size` bytes, of which it has 1/group."""
    return _ring(cluster, size, _place(cluster, group, apart), passes=1)


def reduce_scatter(cluster: Cluster, size: float, group: int, apart: int = 1) -> Exchange:
    """Every rank gets its 1/group of the sum of all ranks' `size` bytes."""
    return _ring(cluster, size, _place(cluster, group, apart), passes=1)


def all_to_all(cluster: Cluster, size: float, group: int, apart: int = 1) -> Exchange:
    """Every rank sends each rank, itself included, its 1/group of `size` bytes.

    What goes to another place on another node changes rails: through the spine, or where rails are of several planes,
    over NVLink first (PXN).
    """
    placed = _place(cluster, group, apart)
    nodes, on_node, under_leaf, under_spine = placed
    each, rails = size / group, min(on_node, cluster.network.rails)
    network, nvlink = each * (group - on_node), each * (on_node - 1)
    leaf, spine = network * _scattered(nodes, under_leaf), network * _scattered(nodes, under_spine)
    changing = network * (rails - 1) / rails
    if cluster.network.planes > 1:
        nvlink += changing
    else:
        leaf = changing + leaf / rails
    exchange = Exchange(0.0, network, nvlink, math.inf, leaf, spine)
    across = _across(cluster, float(leaf > 0)) if nodes > 1 else 0.0
    return _filled(cluster, int(on_node > 1), across, exchange, on_node - 1, own=each)


def broadcast(cluster: Cluster, size: float, group: int, apart: int = 1) -> Exchange:
    """Every rank gets one rank's `size` bytes; they are those of a rank in the ring's middle, which passes all on."""
    if group == 1:
        return NOTHING
    placed = _place(cluster, group, apart)
    across = size / placed.on_node if placed.nodes > 1 else 0.0
    nvlink = size * (placed.on_node - 1) / placed.on_node if placed.nodes > 1 else size
    return _round(cluster, placed, (group - placed.nodes, placed.nodes - 1), across, nvlink)


def point_to_point(cluster: Cluster, size: float, source: int, target: int, width: int = 1) -> Exchange:
    """`size` bytes from each of `width` GPUs, numbered from `source` on, to the GPU as far from `target` on.

    Over NVLink where all of them are in one domain. Between different rails they take the spine, or where those are of
    several planes, NVLink to the right rail first. The latency is of those that have it longest.
    """
    domain, network = cluster.node.nvlink.domain_gpus, cluster.network
    each = math.gcd(domain, source, target)
    pairs = [((gpu + source) // domain, (gpu + target) // domain) for gpu in range(0, width, each)]
    if all(own == other for own, other in pairs):
        return _filled(cluster, 1, 0.0, Exchange(0.0, 0.0, size), 1)
    leaf, spine = (
        size * sum(own // under != other // under for own, other in pairs) / len(pairs) for under in _reach(cluster)
    )
    nvlink = 0.0
    if _rail(cluster, source) != _rail(cluster, target):
        nvlink, leaf = (size, leaf) if network.planes > 1 else (0.0, size)
    exchange = Exchange(0.0, size, nvlink, math.inf, leaf, spine)
    return _filled(cluster, int(nvlink > 0), _across(cluster, float(leaf > 0)), exchange, 1)


def _ring(cluster: Cluster, size: float, group: _Group, passes: int) -> Exchange:
    """`passes` times round the ranks less one step; a ring enters and leaves each node by another NIC."""
    ranks = group.nodes * group.on_node
    sent = passes * size * (ranks - 1) / ranks
    steps = (passes * (ranks - group.nodes), passes * (group.nodes - 1))
    across = sent / group.on_node if group.nodes > 1 else 0.0
    return _round(cluster, group, steps, across, sent - across if group.on_node > 1 else 0.0, size / ranks)


def _round(
    cluster: Cluster, group: _Group, steps: tuple[int, int], network: float, nvlink: float, own: float = 0.0
) -> Exchange:
    """Bytes passed on from node to node, of which one a leaf passes them to the next leaf."""
    leaf, spine = _in_turn(group.nodes, group.leaf), _in_turn(group.nodes, group.spine)
    exchange = Exchange(0.0, network, nvlink, math.inf, network * leaf, network * spine)
    return _filled(cluster, steps[0], steps[1] * _across(cluster, leaf), exchange, group.on_node - 1, own)


def _tree(cluster: Cluster, size: float, group: _Group) -> Exchange:
    """An all-reduce within nodes and up and down a tree over them, whose upper levels join leaves."""
    levels, above = (math.ceil(math.log2(n)) for n in (group.nodes, math.ceil(group.nodes / group.leaf)))
    across = 2 * (levels - above) * _across(cluster, 0.0) + 2 * above * _across(cluster, 1.0)
    network, nvlink = 2 * size / group.on_node, 2 * size * (group.on_node - 1) / group.on_node
    leaf, spine = _in_turn(group.nodes, group.leaf), _in_turn(group.nodes, group.spine)
    exchange = Exchange(0.0, network, nvlink, math.inf, network * leaf, network * spine)
    return _filled(cluster, 2 * (group.on_node - 1), across, exchange, group.on_node - 1)


def _filled(
    cluster: Cluster, hops: int, across: float, exchange: Exchange, peers: int | None = None, own: float = 0.0
) -> Exchange:
    """With the latency of NVLink `hops`, that of the network (`across`), of filling the pipeline and of a rank's `own`
    bytes; no faster than NVLink to so many `peers`."""
    both = exchange.network_bytes + exchange.nvlink_bytes
    if both == 0:
        return NOTHING
    towards = nvlink_bandwidth(cluster, peers)
    if exchange.nvlink_bytes and towards < nvlink_bandwidth(cluster):
        exchange = exchange._replace(rate_limit=min(exchange.rate_limit, towards * both / exchange.nvlink_bytes))
    floor, hop, fill, memory_efficiency = vars(cluster.collectives).values()
    filling = math.sqrt(fill / nvlink_bandwidth(cluster) * _moving(cluster, exchange))
    copied = 2 * own / (memory_efficiency * cluster.gpu.memory_bandwidth)
    return exchange._replace(latency=floor + hops * hop + across + 2 * filling + copied)


def _across(cluster: Cluster, share: float) -> float:
    """Latency of a hop between nodes, a share of which leave their leaf."""
    network = cluster.network
    return network.latency_same_leaf + share * (network.latency_cross_leaf - network.latency_same_leaf)


def _moving(cluster: Cluster, exchange: Exchange) -> float:
    """Seconds of the slowest link."""
    moved = link_bytes(exchange)
    return max(moved[kind] / capacity for kind, capacity in capacities(cluster).items())


# Where the ranks of a group are.


def on_node(cluster: Cluster, ranks: int, apart: int = 1) -> int:
    """Of `ranks` GPUs, each so far from the next, how many share a node's NVLink."""
    return _place(cluster, ranks, apart).on_node


class _Group(NamedTuple):
    """Nodes of a group, its ranks on each, and how many of its nodes a leaf and the reach of a spine hold."""

    nodes: int
    on_node: int
    leaf: int
    spine: int


def _place(cluster: Cluster, ranks: int, apart: int) -> _Group:
    """`ranks` GPUs, each so far from the next, evenly over nodes."""
    domain = cluster.node.nvlink.domain_gpus
    nodes, on_node = _nodes(ranks, max(1, domain // apart))
    skipped = max(1, apart // domain)
    return _Group(nodes, on_node, *(max(1, under // skipped) for under in _reach(cluster)))


def _reach(cluster: Cluster) -> tuple[int, int]:
    """NVLink domains under one leaf of a rail, and under the spines that join leaves."""
    of_a_node = cluster.node.gpus / cluster.node.nvlink.domain_gpus
    leaf = max(1, int(cluster.network.nodes_per_leaf * of_a_node))
    return leaf, max(leaf, int(cluster.nodes_per_spine * of_a_node))


def _rail(cluster: Cluster, gpu: int) -> int:
    return gpu % cluster.node.gpus * cluster.network.rails // cluster.node.gpus


def _in_turn(nodes: int, under: int) -> float:
    """The share of the hops of a ring through nodes that leave a switch with so many of them under it."""
    return math.ceil(nodes / under) / nodes if nodes > under else 0.0


def _scattered(nodes: int, under: int) -> float:
    """The share of pairs of nodes that are not under the same switch."""
    return (nodes - under) / (nodes - 1) if nodes > under else 0.0


def _nodes(group: int, ranks_per_node: int) -> tuple[int, int]:
    """How many nodes a group is on, and how many of its ranks are on each: evenly, at most so many."""
    if group < 1 or ranks_per_node < 1:
        raise ClusterError(f"a group has at least 1 rank and 1 a node, not {group} and {ranks_per_node}")
    on_node = next(ranks for ranks in range(min(group, ranks_per_node), 0, -1) if group % ranks == 0)
    return group // on_node, on_node
