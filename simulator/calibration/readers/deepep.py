"""DeepEP's test output, in its three dialects: within a node, across nodes, low latency.

The best of each tuning is read, with its SMs. Where a line gives no time, it follows from the bandwidth, which counts
what a rank gets, its own share included: over NVLink within a node, over the NIC to distinct nodes across them.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from simpipe.simulator.calibration.classes import Classes
from simpipe.simulator.calibration.timings import Timings, TimingsError, lines_of, write_shape
from simpipe.simulator.costs import collectives

FORMAT = "the output of DeepEP's tests"

NODE = 8
"""GPUs of a node that DeepEP's tests take."""

EXPERTS = 256
"""What they take where the output does not say, rounded down to a multiple of the ranks."""

BEST = re.compile(r"Best (dispatch|combine)\s*(?:\((FP8|BF16)\))?\s*:?\s*SMs (\d{1,9})\b(.*)", re.IGNORECASE)
TIME = re.compile(r"(?:\bavg_t|\bt|transmit)\s*[:=]\s*(\d+(?:\.\d+)?)\s*us")
RATE = re.compile(r"(?<![\d.])(\d+(?:\.\d+)?) GB/s \((NVL|RDMA)\)")


def recognises(head: bytes) -> bool:
    text = head.decode("utf-8", "replace")
    return bool(re.search(r"\[config\] num_tokens|Best (dispatch|combine)|Dispatch \+ combine bandwidth", text))


def read(path: Path, data: bytearray, classes: Classes) -> Timings:
    text = "\n".join(lines_of(data, path))
    best = [found for line in text.splitlines() if (found := BEST.search(line))]
    if not best and re.search(r"Dispatch (\+ combine )?bandwidth", text):
        raise TimingsError(
            f"{path}: is of low-latency kernels, which no training step runs; calibrate to the normal ones"
        )
    setting = {
        key: _setting(text, key) for key in ("num_tokens", "hidden", "num_topk", "num_topk_groups", "num_experts")
    }
    ranks = _setting(text, "num_ranks") or _setting(text, "num_processes") or _setting(text, "ranks") or _listed(text)
    if not best or not ranks or None in (setting["num_tokens"], setting["hidden"], setting["num_topk"]):
        raise TimingsError(
            f"{path}: holds `[config] num_tokens=..., hidden=..., num_topk=...`, lines of `Best dispatch` or `Best "
            "combine`, and how many ranks ran (add a line num_ranks=...)"
        )
    tokens, hidden, topk = (int(setting[key] or 0) for key in ("num_tokens", "hidden", "num_topk"))
    experts = setting["num_experts"] or EXPERTS // ranks * ranks
    limit = setting["num_topk_groups"] or 0
    shape = write_shape(tokens=tokens, hidden=hidden, topk=topk, experts=experts, nodes_per_token=limit)
    rows: list[dict[str, Any]] = []
    for line in best:
        way, number, rest = line[1].lower(), line[2] or "BF16", line[4]
        format = "fp8" if number.upper() == "FP8" and way == "dispatch" else "bf16"
        payload = collectives.token_bytes(hidden, 1.0 if format == "fp8" else 2.0)
        spread = collectives.expert_spread(experts, topk, ranks, min(ranks, NODE), limit or None)
        moved = tokens * payload * (spread.nodes if ranks > NODE else spread.ranks)
        rates = {unit: float(rate) for rate, unit in RATE.findall(rest)}
        rate = rates.get("RDMA" if ranks > NODE else "NVL", 0.0)
        times = TIME.findall(rest)
        if not times and not rate:
            raise TimingsError(f"{path}: line {line[0][:60]!r} has neither a time nor a bandwidth")
        seconds = float(times[0]) * 1e-6 if times else moved / (rate * 1e9)
        rows.append(
            {"operator": way, "format": format, "shape": shape, "sms": int(line[3]), "ranks": ranks, "seconds": seconds}
        )
    remark = f"{path.name}: {EXPERTS} experts are assumed" if not setting["num_experts"] else ""
    return Timings.of(rows, path.name, remarks=(remark,) if remark else ())


def _setting(text: str, key: str) -> int | None:
    found = re.search(rf"\b{key}\s*[=:]\s*(\d{{1,9}})\b", text)
    return int(found[1]) if found else None


def _listed(text: str) -> int | None:
    ranks = {int(rank) for rank in re.findall(r"\[rank (\d{1,6})\]", text)}
    return max(ranks) + 1 if ranks else None
