"""Dispatch and combine kernels: closed forms, invariants, and what was published and timed of DeepEP."""

import importlib.util
import math
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpipe import simulate
from simpipe.simulator import engines
from simpipe.simulator.costs import collectives, exchange_kernels
from simpipe.simulator.costs.cluster import Cluster, load_cluster
from simpipe.simulator.costs.collectives import expert_spread, network_bandwidth, nvlink_bandwidth, token_bytes
from simpipe.simulator.costs.exchange_kernels import (
    BUFFERED,
    SIMULATED,
    ChannelCosts,
    KernelSetting,
    Run,
    Way,
    cache_share,
    channel_program,
    channel_tasks,
    floor,
    seconds,
    times,
)
from simpipe.simulator.lower import lower

H100, H800 = load_cluster("h100"), load_cluster("h800")
WAYS: list[Way] = ["dispatch", "combine"]
MEASURED = Path(__file__).parents[1].parent / "shared" / "measured"


def run(
    way: Way,
    ep: int = 64,
    sms: int = 20,
    warps: str = "dynamic",
    chunk: int = 8,
    tokens: float = 4096,
    cluster: Cluster = H800,
    limit: int | None = 4,
    kernel: float = 1.0,
) -> Run:
    """DeepSeek-V3's exchange; `kernel` times as fast a warp."""
    payload = token_bytes(7168, 1.0 if way == "dispatch" else 2.0)
    spread = expert_spread(256, 8, ep, 8, limit)
    faster = replace(cluster.exchange, warp_bandwidth=cluster.exchange.warp_bandwidth * kernel)
    links = network_bandwidth(cluster), nvlink_bandwidth(cluster)
    return exchange_kernels.run(faster, way, links, tokens, payload, spread, KernelSetting(sms, warps, chunk))


def free(run: Run) -> Run:
    """Without what a chunk costs and on links that do not limit."""
    kernel = replace(run.kernel, chunk_overhead=0.0)
    return run._replace(kernel=kernel, network=math.inf, nvlink=math.inf)


def warps_of(run: Run) -> float:
    """Bytes/s of a channel's warps."""
    return run.setting.sms * run.kernel.warps_per_sm * run.kernel.warp_bandwidth / run.channels


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ep", [8, 64])
def test_static_warps_by_hand(way: Way, ep: int) -> None:
    """The slowest task's chunks follow each other; before and behind them one chunk passes through the others."""
    own = free(run(way, ep, warps="static", tokens=10 * 8 * 12))
    each = np.array([task.warps * 8 for task in own.tasks]) / (warps_of(own) / len(own.tasks))
    slow = int(each.argmax())
    by_hand = each[:slow].sum() + 12 * each[slow] + each[slow + 1 :].sum()
    assert seconds(own) == pytest.approx(by_hand)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ep", [8, 64])
def test_dynamic_warps_lose_nothing(way: Way, ep: int) -> None:
    """Whatever is under way has all warps, so a channel takes all its bytes at the speed of all its warps."""
    own = free(run(way, ep, tokens=10 * 8 * 12))
    assert seconds(own) == pytest.approx(12 * 8 * sum(task.warps for task in own.tasks) / warps_of(own))


@pytest.mark.parametrize(("way", "link"), [("dispatch", 0), ("combine", 1)])
def test_with_many_warps_a_link_is_all_that_limits(way: Way, link: int) -> None:
    own = run(way, kernel=1000.0)
    bound = [4096 * sum(task[link + 1] for task in own.tasks) / own[link + 1] for link in (0, 1)]
    assert max(bound) <= seconds(own) == pytest.approx(max(bound), rel=0.03)


def test_a_chunks_cost_counts_for_each_chunk() -> None:
    """On free links and with fast warps: tasks wait out a chunk's overhead side by side."""
    own = free(run("dispatch", kernel=1e9, tokens=10 * 8 * 12))
    own = own._replace(kernel=replace(own.kernel, chunk_overhead=1e-6))
    assert seconds(own) == pytest.approx((12 + 2) * 1e-6, rel=1e-3)


@given(
    way=st.sampled_from(WAYS),
    ep=st.sampled_from([8, 16, 64]),
    sms=st.sampled_from([2, 6, 20, 48]),
    chunk=st.sampled_from([1, 8, 40]),
    tokens=st.floats(1, 3000),
)
@settings(max_examples=25, deadline=None)
def test_dynamic_is_never_slower_and_nothing_beats_the_links(
    way: Way, ep: int, sms: int, chunk: int, tokens: float
) -> None:
    static, dynamic = (run(way, ep, sms, warps, chunk, tokens) for warps in ("static", "dynamic"))
    slow, fast = times([static, dynamic])
    assert fast <= slow * (1 + 1e-9)
    links = [tokens * sum(task[link + 1] for task in static.tasks) / static[link + 1] for link in (0, 1)]
    assert fast >= max(links) * (1 - 1e-9)


@pytest.mark.parametrize("warps", ["static", "dynamic"])
@pytest.mark.parametrize("way", WAYS)
def test_engines_agree(way: Way, warps: str) -> None:
    runs = [run(way, ep, sms, warps) for ep in (8, 64) for sms in (4, 20)]
    assert times(runs, "simpy") == pytest.approx(times(runs, "compiled"), rel=1e-9)


@pytest.mark.parametrize("warps", ["static", "dynamic"])
@pytest.mark.parametrize(("ep", "sms", "chunk"), [(64, 20, 8), (64, 4, 8), (8, 8, 8), (16, 24, 32)])
def test_long_runs_are_continued_as_they_go(ep: int, sms: int, chunk: int, warps: str) -> None:
    own = run("combine", ep, sms, warps, chunk, tokens=chunk * (sms // 2) * 50)
    graph, loads = lower(channel_program(), ChannelCosts(own, 50))
    whole = engines.times(graph, loads)[1].max()
    assert SIMULATED < 50
    assert seconds(own) == pytest.approx(whole, rel=0.01)


def test_a_channels_pipeline_is_a_trace_like_any_other() -> None:
    """Chunks go through the tasks in order, and a task is never more than its buffer ahead of the next."""
    trace = simulate(channel_program(), ChannelCosts(run("dispatch"), 12))
    tasks = channel_tasks(trace.graph).reshape(12, 3)
    start, end = trace.start[tasks], trace.end[tasks]
    assert (start[1:] >= end[:-1]).all()
    assert (start[:, 1:] >= end[:, :-1]).all()
    assert (start[BUFFERED:, :-1] >= end[:-BUFFERED, 1:]).all()
    assert set(trace.to_frame()["stream"]) == {"send", "forward", "receive"}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ep", [8, 16, 64])
def test_few_sms_saturate_the_links(way: Way, ep: int) -> None:
    """DeepSeek-V3 (arXiv 2412.19437, section 3.2.2): 20 SMs suffice to use InfiniBand and NVLink fully."""
    all_times = times([run(way, ep, sms) for sms in range(2, 133, 2)])
    by_sms = dict(zip(range(2, 133, 2), all_times, strict=True))
    best = min(by_sms.values())
    least = next(sms for sms, time in by_sms.items() if time <= 1.05 * best)
    assert 4 <= least <= 20
    until = [by_sms[sms] for sms in range(2, least + 1, 2)]
    assert until == sorted(until, reverse=True)
    assert by_sms[132] < 1.25 * best  # more channels only take longer to fill and drain
    limited = run(way, ep)
    links = [4096 * sum(task[link + 1] for task in limited.tasks) / limited[link + 1] for link in (0, 1)]
    assert by_sms[20] == pytest.approx(max(links), rel=0.08)


def test_the_best_chunk_is_neither_small_nor_large() -> None:
    by_chunk = times([run("dispatch", chunk=chunk) for chunk in (1, 8, 256)])
    assert by_chunk[1] < min(by_chunk[0], by_chunk[2])
    shares = [cache_share(run("dispatch", chunk=chunk), H800.gpu.l2) for chunk in (1, 2, 8, 1000)]
    assert shares[1] == pytest.approx(2 * shares[0])
    assert shares == sorted(shares)
    assert shares[-1] < 1


def test_experts_that_nvlink_carries_while_infiniband_is_busy() -> None:
    """Section 3.2.2: 160 over 50 GB/s let a token go to 3.2 experts on each of its 4 nodes, 13 in all, at the time of
    the 8 that it has."""
    machine = replace(
        H800,
        network=replace(H800.network, efficiency=1.0),
        exchange=replace(H800.exchange, network_efficiency=1.0, nvlink_efficiency=1.0),
    )
    token = exchange_kernels.Spread(nodes=4, ranks=8, other_nodes=4, other_ranks=8)

    def time(experts: float) -> float:
        spread = token._replace(ranks=experts, other_ranks=experts)
        links, setting = (network_bandwidth(machine), nvlink_bandwidth(machine)), KernelSetting(20, "dynamic", 8)
        return seconds(exchange_kernels.run(machine.exchange, "dispatch", links, 4096, 7392, spread, setting))

    assert nvlink_bandwidth(machine) / network_bandwidth(machine) == pytest.approx(3.2)
    assert time(13) == pytest.approx(time(8), rel=0.03)
    assert time(20) > 1.3 * time(8)


def test_a_node_limit_cuts_infiniband_as_published() -> None:
    """Section 3.2.2: each token goes to 4 nodes at most, so its bytes cross at most 4 times, not 8."""
    by_limit = {limit: expert_spread(256, 8, 64, 8, limit).nodes for limit in (4, 8)}
    assert by_limit[4] <= 4
    free, limited = (run("dispatch", limit=limit) for limit in (None, 4))
    assert limited.tasks[0].network / free.tasks[0].network == pytest.approx(by_limit[4] / by_limit[8])
    assert seconds(limited) / seconds(free) == pytest.approx(by_limit[4] / by_limit[8], rel=0.02)


# DeepEP docs/legacy.md: H800, 4096 tokens of 7168, top 8 of 256, 4 nodes; GB/s of all bytes, those to itself included.
# The profile's two efficiencies were fitted on EP 8 and 64.
PUBLISHED = [(8, 153, 158), (16, 43, 43), (32, 58, 57), (64, 51, 50)]

# ISCA-2025 DeepSeek-V3 (arXiv 2505.09343), figure 7: the same
PUBLISHED_FURTHER = [(128, 45.34, 41.6)]


def off_published(published: list[tuple[int, float, float]]) -> list[float]:
    """Modelled over published bandwidths, less one."""
    errors = []
    for ep, *bandwidths in published:
        spread = expert_spread(256, 8, ep, 8, 4)
        for way, gb in zip(WAYS, bandwidths, strict=True):
            own = run(way, ep, 24, "static")
            payload = token_bytes(7168, 1.0 if way == "dispatch" else 2.0)
            moved = 4096 * payload * (spread.nodes if ep > 8 else spread.ranks)
            errors.append(moved / (seconds(own) + floor(own.kernel, way, ep // 8)) / (gb * 1e9) - 1)
    return errors


def test_published_exchanges_on_h800() -> None:
    errors = off_published(PUBLISHED)
    assert np.abs(errors[2:6]).mean() < 0.07  # not seen by the fit
    assert np.abs(errors).mean() < 0.05
    assert max(map(abs, errors)) < 0.1
    further = off_published(PUBLISHED_FURTHER)
    assert np.abs(further).mean() < 0.1
    assert max(map(abs, further)) < 0.16


# measured/h100_sxm_wideep_deepep_normal_perf_0.5.12.csv: 4096 tokens of 7168, top 8 of 256; us of dispatch and combine
BY_SMS = [(4, 2068, 3897), (8, 1082, 2031), (12, 754, 1417), (16, 579, 1086), (20, 492, 983), (24, 498, 961)]


def test_exchange_by_sms_on_h100() -> None:
    errors = []
    for sms, *measured in BY_SMS:
        for way, us in zip(WAYS, measured, strict=True):
            own = run(way, 8, sms, "static", cluster=H100, limit=None)
            errors.append((seconds(own) + floor(own.kernel, way, 1)) / (us * 1e-6) - 1)
    assert np.abs(errors).mean() < 0.08
    assert np.abs(errors).max() < 0.2


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    path = Path(__file__).parents[1] / "benchmarks" / "exchange_kernels.py"
    spec = importlib.util.spec_from_file_location("benchmark_of_exchange_kernels", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.skipif(not MEASURED.exists(), reason="measured data is not here (../shared/measured)")
@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_measured_exchanges_on_h100_that_the_fit_did_not_see(benchmark: ModuleType, nodes: int) -> None:
    _, unseen = benchmark.seen_by_fit([row for row in benchmark.h100_rows() if row.nodes <= 4])
    for way in WAYS:
        rows = [row for row in unseen if (row.nodes, row.way) == (nodes, way)]
        assert np.abs(benchmark.errors(H100, rows)).mean() < 0.1


@pytest.mark.skipif(not MEASURED.exists(), reason="measured data is not here (../shared/measured)")
def test_eight_nodes_of_h100_had_half_of_their_network(benchmark: ModuleType) -> None:
    """Their times do not depend on SMs: one number, the share of the network that was there, explains all of them."""
    seen, unseen = benchmark.seen_by_fit([row for row in benchmark.h100_rows() if row.nodes == 8])
    share = benchmark.fabric_share(H100, seen)
    assert 0.4 < share < 0.6
    for way in WAYS:
        rows = [row for row in unseen if row.way == way]
        assert np.abs(benchmark.errors(H100, rows, share)).mean() < 0.1


def test_a_step_answers_to_warps_and_chunks() -> None:
    """What collectives hand to a step is the kernel's rate: bytes over the links in its seconds."""
    for way, collective in zip(WAYS, (collectives.dispatch, collectives.combine), strict=True):
        element = 1.0 if way == "dispatch" else 2.0
        for warps, chunk in (("dynamic", 8), ("static", 8), ("static", 128)):
            exchange = collective(H800, 4096, 8, 7168, element, 64, 4, 256, KernelSetting(6, warps, chunk))
            own = run(way, sms=6, warps=warps, chunk=chunk)
            alone = floor(own.kernel, way, 8) + seconds(own)
            assert collectives.seconds(H800, exchange) == pytest.approx(alone)
            assert exchange.cache_share == cache_share(own, H800.gpu.l2)


def test_a_machine_that_nobody_timed_takes_the_h100s_kernels() -> None:
    a100 = load_cluster("a100")
    assert a100.exchange == H100.exchange
    assert a100.figures["exchange.warp_bandwidth"].assumed
