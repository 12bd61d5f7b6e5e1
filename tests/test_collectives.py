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
from simpipe.simulator.costs.collectives import NOTHING, Exchange, Spread, expert_spread, seconds

H100, H800, A100 = load_cluster("h100"), load_cluster("h800"), load_cluster("a100")
Collective = Callable[[Cluster, float, int, int | None], Exchange]
ExpertExchange = Callable[..., Exchange]
COLLECTIVES: list[Collective] = [
    collectives.all_reduce,
    collectives.all_gather,
    collectives.reduce_scatter,
    collectives.all_to_all,
    collectives.broadcast,
]
WAYS: list[ExpertExchange] = [collectives.dispatch, collectives.combine]
MB = 1e6


def infinitely_wide(cluster: Cluster) -> Cluster:
    nvlink = replace(cluster.node.nvlink, bandwidth_per_direction=math.inf)
    network = replace(cluster.network, bandwidth_per_direction=math.inf)
    return replace(cluster, node=replace(cluster.node, nvlink=nvlink), network=network)


def deepseek(way: ExpertExchange, ep: int = 64, limit: int | None = 4, sms: int = 20, tokens: int = 4096) -> Exchange:
    return way(H800, tokens, 8, 7168, 1.0 if way is collectives.dispatch else 2.0, ep, limit, 256, sms)


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
    exchange = collectives.dispatch(H800, 1000, 1, 1280, 1.0, 2, None, 2, 20, ranks_per_node=1)
    assert exchange[1:3] == pytest.approx((500 * 1280 * (1 + 4 / 128), 0))
    exchange = collectives.dispatch(H800, 1000, 1, 1280, 2.0, 2, None, 2, 20)
    assert exchange[1:3] == pytest.approx((0, 500 * 1280 * 2))
    exchange = collectives.combine(H800, 1000, 4, 1280, 2.0, 4, None, 4, 20, ranks_per_node=2)  # everywhere
    assert exchange[1:3] == pytest.approx((1000 * 2560, 2000 * 2560))


def test_fp8_halves_a_dispatch_but_for_its_scales() -> None:
    fp8, bf16 = (collectives.dispatch(H800, 4096, 8, 7168, b, 64, 4, 256, 20) for b in (1.0, 2.0))
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


# measured/h100_sxm_wideep_deepep_normal_perf_0.5.12.csv: 4096 tokens of 7168, top 8 of 256; us of dispatch and combine
BY_SMS = [(4, 2068, 3897), (8, 1082, 2031), (12, 754, 1417), (16, 579, 1086), (20, 492, 983), (24, 498, 961)]


def test_exchange_by_sms_on_h100() -> None:
    errors = []
    for sms, *measured in BY_SMS:
        for way, element, us in zip(WAYS, (1.0, 2.0), measured, strict=True):
            modelled = seconds(H100, way(H100, 4096, 8, 7168, element, 8, None, 256, sms))
            errors.append(abs(modelled / (us * 1e-6) - 1))
    assert max(errors) < 0.2
    assert sum(errors) / len(errors) < 0.1


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ep", [8, 16, 64])
def test_more_sms_are_never_slower_and_then_the_links_limit(way: ExpertExchange, ep: int) -> None:
    rates = [deepseek(way, ep, sms=sms).rate_limit for sms in range(1, 133)]
    assert rates == sorted(rates)
    assert rates[0] < rates[3] < rates[-1] == rates[-30]


@pytest.mark.parametrize("way", WAYS)
def test_an_exchange_grows_with_its_tokens_and_vanishes_on_one_rank(way: ExpertExchange) -> None:
    times = [seconds(H800, deepseek(way, tokens=tokens)) for tokens in (1, 128, 4096, 8192)]
    assert times == sorted(times)
    assert deepseek(way, ep=1) == deepseek(way, tokens=0) == NOTHING
    assert seconds(H800, NOTHING) == 0


@pytest.mark.parametrize("collective", COLLECTIVES)
def test_a_group_of_one_and_no_bytes_cost_nothing(collective: Collective) -> None:
    assert collective(H100, 8 * MB, 1, None) == NOTHING
    assert collective(H100, 0.0, 16, None) == NOTHING


@pytest.mark.parametrize("collective", COLLECTIVES)
@pytest.mark.parametrize("group", [2, 8, 64])
def test_infinite_bandwidth_leaves_latency(collective: Collective, group: int) -> None:
    wide = infinitely_wide(H100)
    exchange = collective(wide, 800 * MB, group, None)
    assert seconds(wide, exchange) == exchange.latency == collective(wide, 8.0, group, None).latency > 0


@pytest.mark.parametrize("way", WAYS)
def test_an_exchange_over_infinite_bandwidth_is_limited_by_its_sms(way: ExpertExchange) -> None:
    wide = infinitely_wide(H800)
    exchange = way(wide, 4096, 8, 7168, 2.0, 64, 4, 256, 20)
    both = exchange.network_bytes + exchange.nvlink_bytes
    assert seconds(wide, exchange) == exchange.latency + both / exchange.rate_limit
    assert math.isfinite(exchange.rate_limit)


def test_bytes_of_collectives_by_hand() -> None:
    """8 MB: within a node of 8, then over 2 nodes of 2 and 4 nodes of 1; NIC, NVLink."""
    by_hand: list[tuple[Collective, tuple[float, ...]]] = [
        (collectives.all_reduce, (0, 14, 6, 6, 12, 0)),
        (collectives.all_gather, (0, 7, 3, 3, 6, 0)),
        (collectives.reduce_scatter, (0, 7, 3, 3, 6, 0)),
        (collectives.all_to_all, (0, 7, 4, 2, 6, 0)),
        (collectives.broadcast, (0, 8, 4, 4, 8, 0)),
    ]
    for collective, megabytes in by_hand:
        places = ((8, 8), (4, 2), (4, 1))
        sent = [part for group, on_node in places for part in collective(H100, 8 * MB, group, on_node)[1:3]]
        assert sent == pytest.approx([part * MB for part in megabytes]), collective


def test_a_group_is_spread_evenly_over_its_nodes() -> None:
    """12 ranks on nodes of 8 are 6 and 6; 64 are one NVLink domain of 72."""
    assert collectives.all_to_all(H100, 12 * MB, 12)[1:3] == pytest.approx((6 * MB, 5 * MB))
    nvl72 = load_cluster("gb200-nvl72")
    assert collectives.all_gather(nvl72, 64 * MB, 64)[1:3] == pytest.approx((0, 63 * MB))


def test_latency_of_collectives_by_hand() -> None:
    wide = infinitely_wide(H100)
    hop, leaf, spine = 0.2 * 3.33e-6, 2.8e-6, 3.7e-6
    floor = collectives.FLOOR
    assert collectives.all_gather(wide, MB, 8).latency == pytest.approx(floor + 7 * hop)
    assert collectives.all_reduce(wide, MB, 16).latency == pytest.approx(floor + 14 * hop + 2 * leaf)  # tree
    assert collectives.reduce_scatter(wide, MB, 16).latency == pytest.approx(floor + 14 * hop + leaf)
    assert collectives.all_gather(wide, MB, 64, 1).latency == pytest.approx(floor + 63 * spine)
    assert collectives.point_to_point(wide, MB).latency == pytest.approx(floor + spine)
    assert collectives.point_to_point(wide, MB, across_nodes=False).latency == pytest.approx(floor + hop)


def test_an_all_reduce_takes_a_tree_when_small_and_a_ring_when_large() -> None:
    small, large = (collectives.all_reduce(H100, size, 64) for size in (1e3, 1e10))
    assert small.network_bytes == pytest.approx(2e3 / 8)
    assert large.network_bytes == pytest.approx(2e10 * 63 / 64 / 8)
    assert small.latency < collectives.all_gather(H100, 1e3, 64).latency * 2


def test_an_all_reduce_in_the_switch_moves_each_byte_once() -> None:
    ring, switch = (collectives.all_reduce(H100, 1e9, 8, in_switch=on) for on in (False, True))
    assert (ring.nvlink_bytes, switch.nvlink_bytes) == pytest.approx((1.75e9, 1e9))
    assert seconds(H100, switch) == pytest.approx(3750e-6, rel=0.05)  # nccl_allreduce_8xH100.csv: 4016 us for 1 GiB
    assert seconds(H100, switch) < seconds(H100, ring)


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
    time = seconds(cluster, collective(cluster, size, group, None))
    assert seconds(cluster, collective(cluster, size * factor, group, None)) >= time * (1 - 1e-12)
    assert seconds(slower, collective(slower, size, group, None)) >= time * (1 - 1e-12)


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
    (A100, collectives.all_gather, 8, 2**29, 2288, 0.1),
    (A100, collectives.all_reduce, 8, 2**29, 4191, 0.1),
    (A100, collectives.reduce_scatter, 8, 2**20, 23.4, 0.3),
]


@pytest.mark.parametrize(("cluster", "collective", "group", "size", "us", "tolerance"), NCCL)
def test_measured_collectives(
    cluster: Cluster, collective: Collective, group: int, size: int, us: float, tolerance: float
) -> None:
    assert seconds(cluster, collective(cluster, size, group, None)) == pytest.approx(us * 1e-6, rel=tolerance)


def test_what_does_not_fit_is_said_in_one_sentence() -> None:
    with pytest.raises(ClusterError, match=r"^experts = 256 cannot be spread evenly over ep = 24 ranks$"):
        expert_spread(256, 8, 24, 8)
    with pytest.raises(ClusterError, match=r"^a token takes 1 to 4 experts on 2 of 8 nodes, not 8$"):
        expert_spread(16, 8, 8, 1, 2)
    with pytest.raises(ClusterError, match="takes 1 to 132 SMs, not 133"):
        deepseek(collectives.dispatch, sms=133)
    with pytest.raises(ClusterError, match="at least 1 rank"):
        collectives.broadcast(H100, MB, 0)
