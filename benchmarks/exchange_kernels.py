"""Dispatch and combine kernels against DeepEP's published times: fits the `[exchange]` part of a profile, and predicts.

    python benchmarks/exchange_kernels.py [--fit]

Reads ../shared/measured and prints the errors of the profiles as they are, of times that the fit saw and of those that
it did not; with --fit, first fits the numbers anew. One set for H100, of one node (every fifth row), 2 and 4, from
every second number of tokens; two links' efficiencies for H800, of EP 8 and 64. DeepEP's warps have fixed tasks, so
`static`. A time is transmission and notification together: waiting for the others shows in either.
"""

from __future__ import annotations

import csv
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import numpy as np

from simpipe.simulator.costs import exchange_kernels
from simpipe.simulator.costs.cluster import Cluster, ExchangeKernel, load_cluster
from simpipe.simulator.costs.collectives import expert_spread, network_bandwidth, nvlink_bandwidth, token_bytes
from simpipe.simulator.costs.exchange_kernels import KernelSetting, Way

MEASURED = Path(__file__).parents[1].parent / "shared" / "measured"
H100_FILES = "h100_sxm_wideep_deepep_normal_perf_0.5.12.csv", "h100_sxm_wideep_deepep_normal_perf_0.5.6.post2.csv"

WAYS: tuple[Way, ...] = ("dispatch", "combine")
ELEMENT_BYTES = {"dispatch": 1.0, "combine": 2.0}
CHUNK = 8
"""Tokens of a chunk that the fit takes DeepEP to move: of 4, 8 and 16 it came closest."""

START = {
    "warp_bandwidth": 1.8e9, "copy_overhead": 600.0, "token_overhead": 5000.0, "sum_read": 0.6, "sum_write": 2.0,
    "chunk_overhead": 0.5e-6, "dispatch_floor": 25e-6, "combine_floor": 35e-6, "round_floor": 30e-6,
    "network_efficiency": 0.95, "nvlink_efficiency": 0.85,
}  # fmt: skip
"""What is fitted on H100, and where from."""


class Row(NamedTuple):
    """A measured time: `seconds` of a way of exchange, of `tokens` of a GPU over `nodes` of 8."""

    way: Way
    nodes: int
    hidden: int
    tokens: int
    topk: int
    experts: int
    node_limit: int | None
    sms: int
    seconds: float


def h100_rows() -> list[Row]:
    """What aiconfigurator timed with SGLang's DeepEP. Routing was not limited to nodes."""
    found = []
    for name in H100_FILES:
        with (MEASURED / name).open() as file:
            for line in csv.DictReader(file):
                nodes, *sizes = (int(line[k]) for k in ("node_num", "hidden_size", "num_token", "num_topk"))
                for way in WAYS:
                    us = float(line[f"{way}_transmit_us"]) + float(line[f"{way}_notify_us"])
                    sms, experts = int(line[f"{way}_sms"]), int(line["num_experts"])
                    found.append(Row(way, nodes, *sizes, experts, None, sms, us * 1e-6))
    return found


def h800_rows(version: str = "V1 current docs/legacy.md") -> list[Row]:
    """DeepEP's README: bandwidths of what goes to each rank of a node, or across nodes to each node, its own included;
    4,096 tokens, 24 SMs (its default)."""
    found = []
    with (MEASURED / "deepep_performance.csv").open() as file:
        for line in csv.DictReader(file):
            if line["version"] != version:
                continue
            ep = int(line["EP"])
            spread = expert_spread(256, 8, ep, 8, 4)
            for way in WAYS:
                moved = 4096 * token_bytes(7168, ELEMENT_BYTES[way]) * (spread.nodes if ep > 8 else spread.ranks)
                seconds = moved / (float(line[f"{way}_GBps"]) * 1e9)
                found.append(Row(way, ep // 8, 7168, 4096, 8, 256, 4, 24, seconds))
    return found


def predict(cluster: Cluster, rows: Sequence[Row], network_share: float = 1.0) -> np.ndarray:
    """(rows,) seconds by the machine's kernel; `network_share` of its network is there."""
    kernel, links = cluster.exchange, (network_bandwidth(cluster) * network_share, nvlink_bandwidth(cluster))
    runs, floors = [], []
    for row in rows:
        payload = token_bytes(row.hidden, ELEMENT_BYTES[row.way])
        spread = expert_spread(row.experts, row.topk, 8 * row.nodes, 8, row.node_limit)
        setting = KernelSetting(row.sms, "static", CHUNK)
        runs.append(exchange_kernels.run(kernel, row.way, links, row.tokens, payload, spread, setting))
        floors.append(exchange_kernels.floor(kernel, row.way, row.nodes))
    return exchange_kernels.times(runs, "compiled") + np.array(floors)


def errors(cluster: Cluster, rows: Sequence[Row], network_share: float = 1.0) -> np.ndarray:
    """(rows,) predicted over measured, less one."""
    return predict(cluster, rows, network_share) / np.array([row.seconds for row in rows]) - 1


def fit(cluster: Cluster, rows: Sequence[Row], start: dict[str, float]) -> ExchangeKernel:
    """The kernel whose numbers named in `start` are closest to the rows, in the log and robustly."""
    from scipy.optimize import least_squares

    names, scale = list(start), np.array(list(start.values()))

    def kernel(by: np.ndarray) -> ExchangeKernel:
        return replace(cluster.exchange, **dict(zip(names, (by * scale).tolist(), strict=True)))

    def residuals(by: np.ndarray) -> np.ndarray:
        return np.log1p(errors(replace(cluster, exchange=kernel(by)), rows))

    most = [1.0 / start[name] if name.endswith("_efficiency") else 10.0 for name in names]
    found = least_squares(
        residuals, np.ones(len(names)), bounds=(0.02, most), loss="soft_l1", f_scale=0.1, diff_step=1e-3, max_nfev=30
    )
    return kernel(found.x)


def seen_by_fit(rows: Iterable[Row]) -> tuple[list[Row], list[Row]]:
    """H100's rows that the fit sees, and the others: it sees every second number of tokens."""
    counts = sorted({row.tokens for row in rows})
    seen = {*counts[::2]}
    return [row for row in rows if row.tokens in seen], [row for row in rows if row.tokens not in seen]


def thinned(rows: Iterable[Row]) -> list[Row]:
    """Every fifth of one node's rows, which are many, and all of the others."""
    near = [row for row in rows if row.nodes == 1]
    return near[::5] + [row for row in rows if row.nodes > 1]


def fabric_share(cluster: Cluster, rows: Sequence[Row]) -> float:
    """The share of the network that explains rows best."""
    shares = np.linspace(0.3, 1.0, 29)
    return float(min(shares, key=lambda share: np.abs(errors(cluster, rows, share)).mean()))


def report(title: str, rows: Sequence[Row], error: Callable[[Sequence[Row]], np.ndarray]) -> None:
    """Mean absolute errors by way."""
    for way in WAYS:
        own = [row for row in rows if row.way == way]
        values = error(own)
        off = f"{mean(values):+7.1%} mean, {np.abs(values).mean():6.1%} mean absolute, {max(abs(values)):6.1%} worst"
        print(f"{title:<44}{way:<9}{len(own):>6} {off}")


def main() -> None:
    h100, h800 = load_cluster("h100"), load_cluster("h800")
    rows = h100_rows()
    seen, unseen = seen_by_fit([row for row in rows if row.nodes <= 4])
    current = h800_rows()
    if "--fit" in sys.argv:
        h100 = replace(h100, exchange=fit(h100, thinned(seen), START))
        h800 = replace(h800, exchange=replace(h100.exchange))
        links = {name: START[name] for name in ("network_efficiency", "nvlink_efficiency")}
        h800 = replace(h800, exchange=fit(h800, [row for row in current if row.nodes in (1, 8)], links))
        for name in START:
            print(f"{name:<20} h100 {getattr(h100.exchange, name):<12.4g} h800 {getattr(h800.exchange, name):.4g}")
        residual = float(np.std(np.log1p(errors(h100, unseen))))
        print(f"h100: of {len(thinned(seen))} times; standard deviation of the log of those not seen {residual:.3f}")
    for nodes in (1, 2, 4):
        for label, part in (("seen", seen), ("not seen", unseen)):
            own = [row for row in part if row.nodes == nodes]
            report(f"H100, {nodes} nodes, {label} by the fit", own, lambda part: errors(h100, part))
    eight = seen_by_fit([row for row in rows if row.nodes == 8])
    share = fabric_share(h100, thinned(eight[0]))
    report(f"H100, 8 nodes, {share:.0%} of the network, not seen", eight[1], lambda part: errors(h100, part, share))
    for label, part in (("seen", (1, 8)), ("not seen", (2, 4))):
        own = [row for row in current if row.nodes in part]
        report(f"H800, EP {8 * part[0]} and {8 * part[1]}, {label}", own, lambda part: errors(h800, part))


if __name__ == "__main__":
    main()
