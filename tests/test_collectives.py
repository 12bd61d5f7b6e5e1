"""Collectives and expert exchange: bytes by hand and by counting, limits, and what was published."""

import itertools
import math
import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simpipe.simulator.costs import collectives
from simpipe.simulator.costs.cluster import Cluster, ClusterError, load_cluster
from simpipe.simulator.costs.collectives import NOTHING, Exchange, expert_spread, nvlink_bandwidth, seconds
from simpipe.simulator.costs.exchange_kernels import KernelSetting, Spread

H100, H800, A100 = load_cluster("h100"), load_cluster("h800"), load_cluster("a100")
Collective = Callable[..., Exchange]
COLLECTIVES: list[Collective] = [
    collectives.all_reduce,
    collectives.all_gather,
    collectives.reduce_scatter,
    collectives.all_to_all,
    collectives.broadcast,
]
WAYS: list[Collective] = [collectives.dispatch, collectives.combine]
SETTING = KernelSetting(20, "dynamic", 8)
MB = 1e6


def infinitely_wide(cluster: Cluster) -> Cluster:
    nvlink = replace(cluster.node.nvlink, bandwidth_per_direction=math.inf)
    network = replace(cluster.network, bandwidth_per_direction=math.inf)
    gpu = replace(cluster.gpu, memory_bandwidth=math.inf)
    return replace(cluster, gpu=gpu, node=replace(cluster.node, nvlink=nvlink), network=network)


def deepseek(way: Collective, ep: int = 64, limit: int | None = 4, sms: int = 20, tokens: int = 4096) -> Exchange:
    element = 1.0 if way is collectives.dispatch else 2.0
    return way(H800, tokens, 8, 7168, element, ep, limit, 256, KernelSetting(sms, "static", 8))


def drawn(experts: int, topk: int, nodes: int, limit: int, order: tuple[int, ...]) -> list[int]:
    """A token's experts when they rank in this order: its nodes are those that come first."""
    chosen = list(dict.fromkeys(expert // (experts // nodes) for expert in order))[:limit]
    return [expert for expert in order if expert // (experts // nodes) in chosen][:topk]


def counted(experts: int, topk: int, ep: int, on_node: int, draws: list[list[int]]) -> Spread:
    """The spread over these draws of a token of the first rank."""
    ranks = [{expert // (experts // ep) for expert in draw} for draw in draws]
    nodes = [{rank // on_node for rank in hit} for hit in ranks]
    sums = [
        sum(map(len, nodes)),
        sum(map(len, ranks)),
        sum(len(hit - {0}) for hit in nodes),
        sum(rank % on_node != 0 for hit in ranks for rank in hit),
    ]
    return Spread(*(total / len(draws) for total in sums))


# experts, topk, ranks, ranks a node, node limit
SMALL = [(6, 2, 6, 2, 3), (6, 2, 6, 2, 1), (6, 3, 3, 1, 2), (8, 3, 4, 2, 1), (8, 4, 8, 2, 3), (4, 2, 4, 4, 1)]


@pytest.mark.parametrize(("experts", "topk", "ep", "on_node", "limit"), SMALL)
def test_the_spread_is_that_of_all_orders_of_the_experts(
    experts: int, topk: int, ep: int, on_node: int, limit: int
) -> None:
    orders = itertools.permutations(range(experts))
    draws = [drawn(experts, topk, ep // on_node, limit, order) for order in orders]
    expected = counted(experts, topk, ep, on_node, draws)
    assert expert_spread(experts, topk, ep, on_node, limit) == pytest.approx(expected)


@pytest.mark.parametrize(("ep", "limit"), [(64, 4), (64, 8), (32, 2)])
def test_the_spread_is_that_of_random_scores(ep: int, limit: int) -> None:
    generator = random.Random(7)
    orders = [tuple(generator.sample(range(256), 256)) for _ in range(4000)]
    expected = counted(256, 8, ep, 8, [drawn(256, 8, ep // 8, limit, order) for order in orders])
    assert expert_spread(256, 8, ep, 8, limit) == pytest.approx(expected, rel=0.02)


# experts, topk, ranks, ranks a node, group limit, groups: groups on two nodes each, two on a node, two on a rank
GROUPED = [(6, 2, 6, 1, 1, 3), (8, 3, 4, 1, 1, 2), (8, 3, 4, 2, 2, 4), (8, 3, 2, 2, 2, 4), (6, 3, 6, 6, 1, 2)]


@pytest.mark.parametrize(("experts", "topk", "ep", "on_node", "limit", "groups"), GROUPED)
def test_a_limit_of_groups_holds_wherever_they_lie(
    experts: int, topk: int, ep: int, on_node: int, limit: int, groups: int
) -> None:
    draws = [drawn(experts, topk, groups, limit, order) for order in itertools.permutations(range(experts))]
    expected = counted(experts, topk, ep, on_node, draws)
    assert expert_spread(experts, topk, ep, on_node, limit, groups) == pytest.approx(expected)


def test_four_groups_of_deepseek_v3_are_on_eight_nodes_where_each_is_on_two() -> None:
    """At EP 64 a group is a node, so both limits are one; at EP 128 four groups reach more than four nodes."""
    assert expert_spread(256, 8, 64, 8, 4, 8) == pytest.approx(expert_spread(256, 8, 64, 8, 4))
    wide = expert_spread(256, 8, 128, 8, 4, 8).nodes
    assert 4 < expert_spread(256, 8, 64, 8, 4, 8).nodes + 1 < wide < expert_spread(256, 8, 128, 8).nodes
    assert expert_spread(256, 8, 32, 8, 4, 8).nodes < expert_spread(256, 8, 32, 8, 4).nodes


def test_the_spread_without_a_limit_has_a_closed_form() -> None:
    spread = expert_spread(256, 8, 64, 8)
    nodes = 8 * (1 - math.comb(224, 8) / math.comb(256, 8))
    ranks = 64 * (1 - math.comb(252, 8) / math.comb(256, 8))
    assert spread == pytest.approx(Spread(nodes, ranks, nodes * 7 / 8, ranks * 7 / 8))


def test_a_node_limit_cuts_the_network_bytes_and_every_token_still_has_its_experts() -> None:
    limited, free = expert_spread(256, 8, 64, 8, 4), expert_spread(256, 8, 64, 8, 8)
    assert free.nodes == pytest.approx(5.295, abs=0.001)
    assert 3.9 < limited.nodes < 4
    assert limited.ranks < free.ranks < 8
    assert expert_spread(256, 8, 64, 8, 1).nodes == pytest.approx(1)
    by_limit = [deepseek(collectives.dispatch, limit=limit).network_bytes for limit in range(1, 9)]
    assert by_limit == sorted(by_limit)
    assert by_limit[0] < by_limit[3] < by_limit[7]


def test_published_experts_a_node_that_nvlink_carries_for_free() -> None:
    """DeepSeek-V3 (arXiv 2412.19437, section 3.2.2): 160 / 50 GB/s = 3.2 experts a node, 13 in all."""
    network = H800.network.bandwidth_per_direction
    experts = collectives.nvlink_bandwidth(H800) / network
    assert experts == pytest.approx(3.2)
    assert round(4 * experts) == 13
    nvlink = Exchange(0.0, 0.0, experts * 1e6)
    assert seconds(H800, nvlink) == pytest.approx(1e6 / network)


def test_a_dispatch_by_hand() -> None:
    """Two nodes of one rank with an expert each, one expert a token: half the tokens cross."""
    exchange = collectives.dispatch(H800, 1000, 1, 1280, 1.0, 2, None, 2, SETTING, apart=8)
    assert exchange[1:3] == pytest.approx((500 * 1280 * (1 + 4 / 128), 0))
    exchange = collectives.dispatch(H800, 1000, 1, 1280, 2.0, 2, None, 2, SETTING)
    assert exchange[1:3] == pytest.approx((0, 500 * 1280 * 2))
    exchange = collectives.combine(H800, 1000, 4, 1280, 2.0, 4, None, 4, SETTING, apart=4)  # everywhere
    assert exchange[1:3] == pytest.approx((1000 * 2560, 2000 * 2560))


def test_fp8_halves_a_dispatch_but_for_its_scales() -> None:
    fp8, bf16 = (collectives.dispatch(H800, 4096, 8, 7168, b, 64, 4, 256, SETTING) for b in (1.0, 2.0))
    assert fp8.network_bytes / bf16.network_bytes == pytest.approx((1 + 1 / 32) / 2)
    assert fp8.nvlink_bytes / bf16.nvlink_bytes == pytest.approx((1 + 1 / 32) / 2)


# DeepEP docs/legacy.md: H800, 4096 tokens of 7168, top 8 of 256, 4 nodes; GB/s of all bytes, those to itself included
PUBLISHED = [(8, 153, 158), (16, 43, 43), (32, 58, 57), (64, 51, 50)]


@pytest.mark.parametrize(("ep", "dispatch", "combine"), PUBLISHED)
def test_published_exchanges_on_h800(ep: int, dispatch: int, combine: int) -> None:
    spread = expert_spread(256, 8, ep, 8, 4)
    logical = 4096 * 7168 * (spread.nodes if ep > 8 else spread.ranks)
    measured = (logical * (1 + 1 / 32) / (dispatch * 1e9), logical * 2 / (combine * 1e9))
    modelled = tuple(seconds(H800, deepseek(way, ep, sms=24)) for way in WAYS)
    assert modelled == pytest.approx(measured, rel=0.1)


@pytest.mark.parametrize("way", WAYS)
def test_an_exchange_grows_with_its_tokens_and_vanishes_on_one_rank(way: Collective) -> None:
    times = [seconds(H800, deepseek(way, tokens=tokens)) for tokens in (1, 128, 4096, 8192)]
    assert times == sorted(times)
    assert deepseek(way, ep=1) == deepseek(way, tokens=0) == NOTHING
    assert seconds(H800, NOTHING) == 0


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_a_group_of_one_and_no_bytes_cost_nothing(collective: Collective) -> None:
    assert collective(H100, 8 * MB, 1) == NOTHING
    assert collective(H100, 0.0, 16) == NOTHING


@pytest.mark.parametrize("collective", COLLECTIVES)
@pytest.mark.parametrize("group", [2, 8, 64])
def test_infinite_bandwidth_leaves_latency(collective: Collective, group: int) -> None:
    wide = infinitely_wide(H100)
    exchange = collective(wide, 800 * MB, group)
    assert seconds(wide, exchange) == exchange.latency == collective(wide, 8.0, group).latency > 0


@pytest.mark.parametrize("way", WAYS)
def test_an_exchange_over_infinite_bandwidth_is_limited_by_its_sms(way: Collective) -> None:
    wide = infinitely_wide(H800)
    exchange = way(wide, 4096, 8, 7168, 2.0, 64, 4, 256, SETTING)
    both = exchange.network_bytes + exchange.nvlink_bytes
    assert seconds(wide, exchange) == exchange.latency + both / exchange.rate_limit
    assert math.isfinite(exchange.rate_limit)


def test_bytes_of_collectives_by_hand() -> None:
    """8 MB: within a node of 8, then over 2 nodes of 2 (every fourth GPU) and 4 nodes of 1; NIC, NVLink."""
    by_hand: list[tuple[Collective, tuple[float, ...]]] = [
        (collectives.all_reduce, (0, 14, 6, 6, 12, 0)),
        (collectives.all_gather, (0, 7, 3, 3, 6, 0)),
        (collectives.reduce_scatter, (0, 7, 3, 3, 6, 0)),
        (collectives.all_to_all, (0, 7, 4, 2, 6, 0)),
        (collectives.broadcast, (0, 8, 4, 4, 8, 0)),
    ]
    for collective, megabytes in by_hand:
        places = ((8, 1), (4, 4), (4, 8))
        sent = [part for group, apart in places for part in collective(A100, 8 * MB, group, apart)[1:3]]
        assert sent == pytest.approx([part * MB for part in megabytes]), collective


def test_a_group_is_spread_evenly_over_its_nodes() -> None:
    """12 ranks on nodes of 8 are 6 and 6; 64 are one NVLink domain of 72."""
    assert collectives.all_to_all(H100, 12 * MB, 12)[1:3] == pytest.approx((6 * MB, 5 * MB))
    nvl72 = load_cluster("gb200-nvl72")
    assert collectives.all_gather(nvl72, 64 * MB, 64)[1:3] == pytest.approx((0, 63 * MB))


def test_pairs_that_links_of_their_own_join_have_no_more_than_those() -> None:
    """MI300X: 64 GB/s to each of 7 peers, so a pair has a seventh of what eight GPUs have."""
    mesh = load_cluster("mi300x")
    pair = 64e9 * mesh.node.nvlink.efficiency
    assert mesh.node.nvlink.bandwidth_per_direction == 7 * 64e9
    for ranks in (2, 4, 8):
        gathered = collectives.all_gather(mesh, 800 * MB, ranks)
        moving = 800 * MB * (ranks - 1) / ranks / ((ranks - 1) * pair)
        assert seconds(mesh, gathered) - gathered.latency == pytest.approx(moving)
    sent = collectives.point_to_point(mesh, MB, 0, 1)
    assert seconds(mesh, sent) - sent.latency == pytest.approx(MB / pair)
    assert collectives.slowed(mesh, sent) == pytest.approx(7)
    assert collectives.slowed(H100, collectives.point_to_point(H100, MB, 0, 1)) == 1
    few, free = (nvlink_bandwidth(machine, 3) for machine in (mesh, H100))
    assert (few, free) == (pytest.approx(3 * pair), nvlink_bandwidth(H100))


def test_latency_of_collectives_by_hand() -> None:
    wide = infinitely_wide(H100)
    floor, hop, leaf, spine = H100.collectives.floor, H100.collectives.hop, 2.8e-6, 3.7e-6
    assert collectives.all_gather(wide, MB, 8).latency == pytest.approx(floor + 7 * hop)
    assert collectives.all_reduce(wide, MB, 16).latency == pytest.approx(floor + 14 * hop + 2 * leaf)  # tree
    assert collectives.reduce_scatter(wide, MB, 16).latency == pytest.approx(floor + 14 * hop + leaf)
    assert collectives.all_gather(wide, MB, 64, 8).latency == pytest.approx(floor + 63 * (62 * leaf + 2 * spine) / 64)
    assert collectives.all_reduce(wide, MB, 64, 8).latency == pytest.approx(floor + 10 * leaf + 2 * spine)  # tree
    assert collectives.point_to_point(wide, MB, 0, 8).latency == pytest.approx(floor + leaf)
    assert collectives.point_to_point(wide, MB, 0, 8 * 32).latency == pytest.approx(floor + spine)
    assert collectives.point_to_point(wide, MB, 3, 4).latency == pytest.approx(floor + hop)


def test_an_all_reduce_takes_a_tree_when_small_and_a_ring_when_large() -> None:
    small, large = (collectives.all_reduce(H100, size, 64) for size in (1e3, 1e10))
    assert small.network_bytes == pytest.approx(2e3 / 8)
    assert large.network_bytes == pytest.approx(2e10 * 63 / 64 / 8)
    assert small.latency < collectives.all_gather(H100, 1e3, 64).latency * 2


def ring_only(cluster: Cluster) -> Cluster:
    nvlink = replace(cluster.node.nvlink, in_switch_efficiency=0.0)
    return replace(cluster, node=replace(cluster.node, nvlink=nvlink))


# GB/s of payload, all-reduce in one node: nccl_allreduce_8xH100.csv, mlengineering_allreduce.csv (H200, B200)
IN_SWITCH = [
    ("h100", 2**26, 206.7),
    ("h100", 2**29, 249.8),
    ("h100", 2**34, 274.2),
    ("h200", 2**29, 257.3),
    ("h200", 2**34, 275.6),
    ("b200", 2**33, 479.5),
    ("b200", 2**34, 483.2),
]


@pytest.mark.parametrize(("name", "size", "measured"), IN_SWITCH)
def test_measured_all_reduces_in_the_switch(name: str, size: int, measured: float) -> None:
    cluster = load_cluster(name)
    rate = size / seconds(cluster, collectives.all_reduce(cluster, size, 8))
    assert rate == pytest.approx(measured * 1e9, rel=0.05)
    assert rate > 1.1 * size / seconds(cluster, collectives.all_reduce(ring_only(cluster), size, 8))


def test_an_all_reduce_in_the_switch_moves_each_byte_once_and_takes_whole_nodes() -> None:
    ring, switch = (collectives.all_reduce(cluster, 1e9, 8) for cluster in (ring_only(H100), H100))
    assert (ring.nvlink_bytes, switch.nvlink_bytes) == pytest.approx((1.75e9, 1e9))
    for group, apart in ((4, 1), (8, 8), (16, 1)):
        whole, plain = (collectives.all_reduce(cluster, 1e9, group, apart) for cluster in (H100, ring_only(H100)))
        assert whole == plain
    assert collectives.all_reduce(H800, 1e9, 8) == collectives.all_reduce(ring_only(H800), 1e9, 8)
    nvl72 = load_cluster("gb200-nvl72")
    assert collectives.all_reduce(nvl72, 1e9, 72).nvlink_bytes == 1e9


@pytest.mark.parametrize(("size", "measured"), [(2**30, 362.0), (2**32, 377.3), (2**34, 381.8)])
def test_measured_all_reduces_of_four_nodes(size: int, measured: float) -> None:
    """mlengineering_allreduce.csv: bus bandwidth of 32 B200, 8 x 400 Gbit/s a node."""
    b200 = load_cluster("b200")
    time = seconds(b200, collectives.all_reduce(b200, size, 32))
    assert size * 2 * 31 / 32 / time == pytest.approx(measured * 1e9, rel=0.02)


# Leaves and spines


def fabric(cluster: Cluster = H100, **changes: float) -> Cluster:
    return replace(cluster, network=replace(cluster.network, **changes))


@pytest.mark.parametrize(
    ("changes", "gpus"),
    [
        ({"rails": 8, "planes": 8}, 16_384),  # MPFT
        ({"rails": 1, "planes": 1, "nodes_per_leaf": 4}, 2_048),  # FT2
        ({"rails": 8, "planes": 1}, 2_048),  # rails that meet in the spine
        ({"rails": 8, "planes": 8, "leaf_oversubscription": 2}, 8 * 32 * 48),  # 16 ports up for 32 down
    ],
)
def test_published_reach_of_two_layers_of_64_port_switches(changes: dict[str, float], gpus: int) -> None:
    """ISCA-2025 DeepSeek-V3 (arXiv 2505.09343), table 3: a fat tree of two layers, and eight planes of them."""
    assert fabric(H800, **changes).nodes_per_spine * 8 == gpus


def test_what_leaves_a_leaf_by_hand() -> None:
    """H100: 32 nodes under a leaf, 256 under the spines."""
    ring = collectives.all_gather(H100, MB, 64 * 8)
    assert ring.leaf_bytes == pytest.approx(ring.network_bytes * 2 / 64)  # two leaves, a hop out of each
    assert ring.spine_bytes == 0
    wide = collectives.all_gather(H100, MB, 512, 8)
    assert (wide.leaf_bytes, wide.spine_bytes) == pytest.approx((wide.network_bytes / 32, wide.network_bytes / 256))
    strided = collectives.all_gather(H100, MB, 16, 64)  # every eighth node: 4 under a leaf
    assert strided.leaf_bytes == pytest.approx(strided.network_bytes / 4)
    exchange = collectives.dispatch(H100, 4096, 8, 7168, 1.0, 512, None, 512, SETTING)
    assert exchange.leaf_bytes == pytest.approx(exchange.network_bytes * 32 / 63)
    assert deepseek(collectives.dispatch).leaf_bytes == 0
    assert collectives.point_to_point(H100, MB, 0, 8 * 32).leaf_bytes == MB
    assert collectives.point_to_point(H100, MB, 0, 8 * 8, width=64).leaf_bytes == 0
    assert collectives.point_to_point(H100, MB, 192, 256, width=64).leaf_bytes == MB
    halves = collectives.point_to_point(H100, MB, 0, 8 * 16, width=8 * 32)  # half of the nodes have theirs elsewhere
    assert halves.leaf_bytes == pytest.approx(MB / 2)


def test_another_place_on_another_node_is_on_another_rail() -> None:
    """Through the spine, or where rails are of several planes over NVLink first."""
    same, other = (collectives.point_to_point(H100, MB, 0, target) for target in (8, 12))
    assert (same.leaf_bytes, other.leaf_bytes) == (0, MB)
    assert other.latency - same.latency == pytest.approx(0.9e-6)
    planes = collectives.point_to_point(H800, MB, 0, 12)
    assert (planes.network_bytes, planes.nvlink_bytes, planes.leaf_bytes) == (MB, MB, 0)
    assert collectives.point_to_point(fabric(rails=1), MB, 0, 12).leaf_bytes == 0
    spread, forwarded = (collectives.all_to_all(cluster, 16 * MB, 16) for cluster in (H100, H800))
    assert spread[1:3] == pytest.approx((8 * MB, 7 * MB))
    assert spread.leaf_bytes == pytest.approx(7 * MB)  # to the other node's 7 other places
    assert (forwarded.nvlink_bytes, forwarded.leaf_bytes) == pytest.approx((14 * MB, 0))


FAR: list[tuple[Collective, int, int]] = [
    (collectives.all_gather, 4, 8 * 32),
    (collectives.all_reduce, 512, 1),
    (collectives.all_to_all, 512, 1),
    (collectives.broadcast, 8, 8 * 16),
]


@pytest.mark.parametrize(("collective", "group", "apart"), FAR)
def test_oversubscription_slows_only_what_leaves_the_leaf(collective: Collective, group: int, apart: int) -> None:
    times = []
    for times_more in (1, 2, 4, 32, 64):
        cluster = fabric(leaf_oversubscription=times_more)
        times.append(seconds(cluster, collective(cluster, 1e9, group, apart)))
        near = collectives.all_gather(cluster, 1e9, 32 * 8)
        assert seconds(cluster, near) == seconds(H100, collectives.all_gather(H100, 1e9, 32 * 8))
    assert times == sorted(times)
    assert times[0] < times[-1]
    core = [fabric(spine_oversubscription=times_more) for times_more in (1, 64, 100)]
    times = [seconds(cluster, collective(cluster, 1e9, group, 64 * apart)) for cluster in core]
    assert times == sorted(times)


def test_a_ring_feels_oversubscription_beyond_its_nodes_under_a_leaf() -> None:
    """One flow in 4 leaves the leaf where a group has 4 nodes under it, so up to a factor of 4 nothing changes."""
    for factor, slower in ((4, 1), (8, 2), (16, 4)):
        cluster = fabric(leaf_oversubscription=factor)
        exchange = collectives.all_gather(cluster, 1e10, 16, 64)
        plain = seconds(H100, collectives.all_gather(H100, 1e10, 16, 64))
        assert seconds(cluster, exchange) == pytest.approx(slower * plain, rel=0.02)


def test_a_core_is_felt_only_beyond_the_spines_reach() -> None:
    cluster = fabric(spine_oversubscription=100)
    assert collectives.capacities(cluster)["spine"] == pytest.approx(collectives.network_bandwidth(H100) / 100)
    near, far = (collectives.point_to_point(cluster, 1e9, 0, 8 * nodes) for nodes in (255, 256))
    assert seconds(cluster, far) == pytest.approx(100 * seconds(cluster, near), rel=0.05)
    assert set(collectives.capacities(H100)) == {"nic", "nvlink"}


@given(
    st.sampled_from(COLLECTIVES),
    st.sampled_from([H100, H800, A100]),
    st.sampled_from([2, 4, 8, 16, 64, 512]),
    st.floats(1, 1e10),
    st.floats(1, 4),
)
def test_more_bytes_or_slower_links_never_help(
    collective: Collective, cluster: Cluster, group: int, size: float, factor: float
) -> None:
    nvlink, network = cluster.node.nvlink, cluster.network
    slow_nvlink = replace(nvlink, bandwidth_per_direction=nvlink.bandwidth_per_direction / factor)
    slow_network = replace(network, bandwidth_per_direction=network.bandwidth_per_direction / factor)
    slower = replace(cluster, node=replace(cluster.node, nvlink=slow_nvlink), network=slow_network)
    time = seconds(cluster, collective(cluster, size, group))
    assert seconds(cluster, collective(cluster, size * factor, group)) >= time * (1 - 1e-12)
    assert seconds(slower, collective(slower, size, group)) >= time * (1 - 1e-12)


def test_halves_of_an_all_reduce_send_what_it_does() -> None:
    whole = collectives.all_reduce(H100, 1e10, 64)
    halves = collectives.reduce_scatter(H100, 1e10, 64), collectives.all_gather(H100, 1e10, 64)
    assert [sum(half[i] for half in halves) for i in (1, 2)] == pytest.approx([*whole[1:3]])


# us: measured/nccl_intra_node.csv (NCCL 2.27.3, half) and vtrain_allreduce_lut.csv, 512 MiB; 30 % at 1 MiB
NCCL: list[tuple[Cluster, Collective, int, int, float, float]] = [
    (H100, collectives.all_gather, 8, 2**29, 1398, 0.1),
    (H100, collectives.reduce_scatter, 8, 2**29, 1401, 0.1),
    (H100, collectives.all_to_all, 8, 2**29, 1481, 0.1),
    (H100, collectives.all_gather, 8, 2**20, 16.9, 0.3),
    (H100, collectives.all_reduce, 8, 2**20, 25.4, 0.3),
    (H100, collectives.all_reduce, 8, 2**29, 2112, 0.05),
    (H100, collectives.all_reduce, 4, 2**29, 2305, 0.1),
    (A100, collectives.all_gather, 8, 2**29, 2288, 0.1),
    (A100, collectives.all_reduce, 8, 2**29, 4191, 0.1),
    (A100, collectives.reduce_scatter, 8, 2**20, 23.4, 0.3),
]


@pytest.mark.parametrize(("cluster", "collective", "group", "size", "us", "tolerance"), NCCL)
def test_measured_collectives(
    cluster: Cluster, collective: Collective, group: int, size: int, us: float, tolerance: float
) -> None:
    assert seconds(cluster, collective(cluster, size, group)) == pytest.approx(us * 1e-6, rel=tolerance)


def test_what_does_not_fit_is_said_in_one_sentence() -> None:
    with pytest.raises(ClusterError, match=r"^experts = 256 cannot be spread evenly over ep = 24 ranks$"):
        expert_spread(256, 8, 24, 8)
    with pytest.raises(ClusterError, match=r"^a token takes 1 to 4 experts of 2 of 8 groups, not 8$"):
        expert_spread(16, 8, 8, 1, 2)
    with pytest.raises(ClusterError, match="takes 1 to 132 SMs, not 133"):
        deepseek(collectives.dispatch, sms=133)
    with pytest.raises(ClusterError, match="at least 1 rank"):
        collectives.broadcast(H100, MB, 0)
