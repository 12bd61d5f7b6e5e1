"""The fits that come with simpipe: curves of A100, H100 and B200 from the published timings in ../shared/measured.

    python benchmarks/shipped_fits.py [PATTERN]

Prints the tables of hardware_profiles/a100.toml, h100.toml and b200.toml that hold fits, or those whose key has PATTERN
in it: each fitted to half of its timings, the error of the other half in its source. Files are read as they are
published: ai-dynamo/aiconfigurator @095f58a (GEMM, attention, NCCL), MooreThreads/SimuMax (operators of a B200).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd

from simpipe.simulator.calibration import curves, fitting, writing
from simpipe.simulator.calibration.curves import Curve, Problem
from simpipe.simulator.calibration.fitting import Parameter
from simpipe.simulator.calibration.readers.nccl_tests import PROGRAMS
from simpipe.simulator.calibration.timings import SHAPES, Timings, checked, write_shape
from simpipe.simulator.costs.cluster import Cluster, load_cluster

MEASURED = Path(__file__).parents[2] / "shared" / "measured"
FORMATS = {"bfloat16": "bf16", "fp8": "fp8", "fp8_block": "fp8_block"}


LEAST = 1e9
"""FLOP of an attention that training does not go below."""


def timings(table: pd.DataFrame, **columns: object) -> Timings:
    """Rows of a published table."""
    empty = {"shape": "", "format": "", "sms": 0, "bytes": 0, "ranks": 0}
    return Timings(checked(pd.DataFrame(empty | columns, index=table.index).reset_index(drop=True), "published"))


def gemm(machine: str) -> Timings:
    table = pd.read_csv(MEASURED / f"gemm_{machine}_sxm.csv.gz")
    table = table[table["dtype"].isin(FORMATS)]
    shapes = [f"m={m} n={n} k={k}" for m, n, k in zip(table["m"], table["n"], table["k"], strict=True)]
    return timings(
        table, operator="gemm", shape=shapes, format=table["dtype"].map(FORMATS), seconds=table["latency_ms"] / 1e3,
        source=f"aiconfigurator @095f58a {machine}_sxm",
    )  # fmt: skip


def collectives(machine: str) -> Timings:
    table = pd.read_csv(MEASURED / "nccl_intra_node.csv")
    table = table[(table["system"] == f"{machine}_sxm") & (table["nccl_dtype"] == "half")]
    return timings(
        table, operator=table["op"].map(PROGRAMS), bytes=table["bytes"], ranks=table["num_gpus"],
        seconds=table["latency_ms"] / 1e3, source=f"aiconfigurator @095f58a {machine}_sxm, NCCL in a node",
    )  # fmt: skip


def attention() -> Timings:
    table = pd.read_csv(MEASURED / "h100_sxm_context_attention.csv.gz")
    table = table[(table["window_size"] == 0) & (table["step"] == 0)]
    table = table[(table["attn_dtype"] == "bfloat16") & (table["kv_cache_dtype"] == "bfloat16")]
    heads = table["num_heads"]
    kv_heads = table["num_key_value_heads"].where(table["num_key_value_heads"] > 0, heads)
    values = (table["batch_size"], heads, kv_heads, table["isl"], table["isl"], table["head_dim"], table["head_dim"])
    shapes = [
        " ".join(f"{name}={value}" for name, value in zip(SHAPES["attention_forward"], (*row, 1), strict=True))
        for row in zip(*values, strict=True)
    ]
    return timings(
        table, operator="attention_forward", shape=shapes, format="bf16", seconds=table["latency"] / 1e3,
        bytes=table["batch_size"] * table["isl"] * heads, source="aiconfigurator @095f58a h100_sxm",
    )  # fmt: skip


def fit_attention(cluster: Cluster) -> Curve:
    """The table times the kernel together with what writes the KV cache, a time for each token and head: both are
    fitted, and only the kernel is kept, since training writes no cache. It cannot tell the memory-bound part from that:
    memory_efficiency and sharpness are chosen."""
    table = attention().table
    whole = curves._PROBLEMS["attention_forward"](cluster, "attention_forward", "bf16", table)
    table = table[whole.work >= LEAST].reset_index(drop=True)
    problem = curves._PROBLEMS["attention_forward"](cluster, "attention_forward", "bf16", table)
    rows = table["bytes"].to_numpy(float)
    both = problem._replace(
        parameters=[
            *chosen_parameters(problem, memory_efficiency=0.8, sharpness=2.0),
            Parameter("cache", 1e-12, 1e-15, 1e-8, 3.0),
        ],
        seconds=lambda values, chosen: problem.seconds(values[:-1], chosen) + values[-1] * rows[chosen],
    )
    found = curves._fitted("attention_forward", "bf16", both, table)
    kept = fitting.Fit(found.fit.values[:-1], found.fit.sigma[:-1], found.fit.draws[:, :-1], *found.fit[3:])
    return found._replace(problem=problem, fit=kept)


def chosen_parameters(problem: Problem, **chosen: float) -> list[Parameter]:
    """Those of a problem, some of them as good as fixed."""
    return [p._replace(start=chosen[p.name], width=1e-3) if p.name in chosen else p for p in problem.parameters]


B200_PRODUCTS = {"fwd": ("M", "N", "K"), "bwd_grad_act": ("M", "K", "N"), "bwd_grad_w": ("N", "K", "M")}
"""A grouped product's rows, columns and inner size, by its stage, from those of its forward."""

B200_CHOSEN = {
    "gemm": {"floor": 3e-6},
    "grouped_gemm": {"floor": 3e-6},
    "attention_forward": {"head_half": 38.4, "memory_efficiency": 0.5, "sharpness": 2.0},
    "attention_backward": {"head_half": 38.4, "memory_efficiency": 0.5, "sharpness": 2.0},
}
"""What 686 large kernels, attentions of few head dimensions among them, do not tell."""


def b200() -> Timings:
    """SimuMax's efficiencies as seconds: shares of the peak, attention's over all pairs though it is causal. A product
    that accumulates reads and writes fp32."""
    table = pd.read_csv(MEASURED / "simumax_op_efficiency_b200_bf16_ceperm.csv")
    rows = [_b200(op, dict(part.split("=") for part in text.split(", "))) for op, text in table[["op", "shape"]].values]
    operators, shapes, flops = zip(*rows, strict=True)
    seconds = np.array(flops) / (table["efficiency"] * table["peak_tflops"] * 1e12)
    source = "MooreThreads/SimuMax, b200_bf16_ceperm.json"
    return timings(table, operator=operators, shape=shapes, format="bf16", seconds=seconds.to_numpy(), source=source)


def _b200(op: str, said: dict[str, str]) -> tuple[str, str, float]:
    """Operator, shape and FLOP that are counted."""
    if op in ("matmul", "group_matmul"):
        groups, sizes = (int(said["ng"]), B200_PRODUCTS[said["stage"]]) if op == "group_matmul" else (1, "mnk")
        m, n, k = (int(said[size]) for size in sizes)
        more = {"groups": groups} if op == "group_matmul" else {}
        shape = write_shape(m=m * groups, n=n, k=k, **more, output_bytes=8 if said["accumulate"] == "True" else 2)
        return ("grouped_gemm" if more else "gemm"), shape, 2.0 * groups * m * n * k
    names = ("batch", "head_num", "kv_head_num", "seq_len", "seq_len", "qk_head_dim", "v_head_dim")
    batch, heads, _, queries, keys, head, value = values = [int(said[name]) for name in names]
    shape = write_shape(**dict(zip(SHAPES["attention_forward"], (*values, 1), strict=True)))
    flop = 2.0 * batch * heads * queries * keys * (head + value)
    return ("attention_forward", shape, flop) if op == "sdp_fwd" else ("attention_backward", shape, 2.5 * flop)


def fit_b200(cluster: Cluster) -> list[Curve]:
    table, found = b200().table, []
    for operator, chosen in B200_CHOSEN.items():
        part = table[table["operator"] == operator].reset_index(drop=True)
        problem = curves._PROBLEMS[operator](cluster, operator, "bf16", part)
        problem = problem._replace(parameters=chosen_parameters(problem, **chosen))
        found.append(curves._fitted(operator, "bf16", problem, part))
    return found


def main() -> None:
    pattern = sys.argv[1] if len(sys.argv) > 1 else ""
    for machine in ("a100", "h100", "b200"):
        cluster = load_cluster(machine)
        if machine == "b200":
            found = fit_b200(cluster)
        else:
            found = [*curves.fit(gemm(machine), cluster), *curves.fit(collectives(machine), cluster)]
        if machine == "h100":
            found.append(fit_attention(cluster))
        chosen = [curve for curve in found if pattern in curve.problem.key]
        print(f"# {machine}\n" + writing.profile(chosen, machine, []).partition("\n\n")[2])
        for curve in chosen:
            for low, high in ((0, 1e9), (1e9, 1e11), (1e11, np.inf)):
                some = curve.judged & (curve.problem.work >= low) & (curve.problem.work < high)
                if curve.problem.unit == "FLOP" and some.any():
                    print(f"# {curve.problem.key} {low:.0e} to {high:.0e} FLOP: {some.sum()} left out, mean error "
                          "{:+.1%}, mean absolute {:.1%}".format(*curve.error(some)))  # fmt: skip


if __name__ == "__main__":
    main()
