"""How far steps from first principles are off published measurements, before any fitting.

    python benchmarks/first_principles.py

Reads ../shared/measured, simulates every case with the profiles as they are, and prints the errors by family:
simulated over measured less one. What the rows leave open is assumed once for a family and printed with it.
"""

from __future__ import annotations

import csv
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import numpy as np

from simpipe import Program, Trace, program, simulate
from simpipe.simulator.costs.cluster import Cluster, load_cluster
from simpipe.simulator.costs.model import GroupedAttention, Mlp, Model, load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.efficiency import efficiency
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.program import Kind

MEASURED = Path(__file__).parents[1].parent / "shared" / "measured"
GIB = 2.0**30

Row = dict[str, str]


@dataclass(frozen=True)
class Case:
    """A published measurement and the scenario it is of.

    of: what was timed: a step, or the F or the B of one layer. seconds, bytes: measured; bytes None where they were
    not. group: what the errors are listed by, within the family.
    """

    name: str
    group: str
    model: Model
    cluster: Cluster
    parallel: Parallel
    seconds: float
    bytes: float | None = None
    chunks: int = 1
    of: str = "step"


class Error(NamedTuple):
    """Simulated over measured, less one; memory None where it was not measured."""

    case: Case
    seconds: float
    time: float
    memory: float | None


@dataclass(frozen=True)
class Family:
    """Cases of one source. A row becomes a case or more, or a SimpipeError says why none.

    listed: whether to print a line for each case.
    """

    name: str
    file: str
    assumed: tuple[str, ...]
    cases: Callable[[Row], Iterator[Case]]
    listed: bool = False


# Simulation.


@lru_cache(maxsize=256)
def order(ranks: int, microbatches: int, chunks: int) -> Program:
    """1F1B, interleaved where a rank has several chunks."""
    if chunks > 1:
        return program("interleaved-1f1b", ranks=ranks, microbatches=microbatches, chunks=chunks)
    return program("1f1b", ranks=ranks, microbatches=microbatches)


def run(case: Case) -> tuple[Trace, ModelledCosts]:
    """The case with the engine."""
    parallel = case.parallel.check(case.model, case.cluster)
    costs = ModelledCosts(case.model, case.cluster, parallel)
    return simulate(order(parallel.ranks, parallel.microbatches, case.chunks), costs), costs


def step(case: Case) -> tuple[float, float]:
    """Seconds of a step, and bytes at the peak as PyTorch's allocator counts them: without context and libraries."""
    trace, costs = run(case)
    return trace.makespan, allocated(trace, costs)


def allocated(trace: Trace, costs: ModelledCosts) -> float:
    """Bytes on the GPU that has most, without the framework's."""
    ranks = efficiency(trace, costs).memory_per_rank
    return max(rank.peak_bytes - rank.by_kind["framework"] for rank in ranks)


def layer(case: Case) -> float:
    """Seconds that a second layer adds to the slots of a kind."""
    kind, found = Kind[case.of], []
    for layers in (1, 2):
        trace, _ = run(replace(case, model=replace(case.model, layers=layers)))
        slots = trace.program.action_slot[trace.program.kind == kind]
        found.append(float(np.sum(trace.slot_end[slots] - trace.slot_start[slots])))
    return found[1] - found[0]


def error(case: Case) -> Error:
    seconds, size = step(case) if case.of == "step" else (layer(case), 0.0)
    return Error(case, seconds, seconds / case.seconds - 1, case.bytes and size / case.bytes - 1)


# Megatron's GPT and how it was run.


def gpt(name: str, layers: int, hidden: int, heads: int, vocabulary: int, sequence: int) -> Model:
    """GPT as Megatron-LM builds it: biases, LayerNorm, learned positions, 4 x hidden, head tied to the embedding."""
    return Model(
        name,
        "its row",
        layers,
        hidden,
        vocabulary,
        GroupedAttention(heads, heads, hidden // heads, qkv_bias=True, out_bias=True),
        Mlp(4 * hidden, gated=False, bias=True),
        layer_norm=True,
        positions=sequence,
        tied_head=True,
    )


OLD = Parallel(
    ranks=1,
    gpus=1,
    global_batch=1,
    sequence=2048,
    zero=0,
    gradient_bytes=2,
    gradient_overlap=False,
    gather_overlap=False,
    sequence_parallel=False,
    recompute=frozenset({"full"}),
)
"""Megatron-LM of 2021 and 2022: one all-reduce of fp16 gradients at the end, every GPU with all of the optimizer."""

OLD_SAID = (
    "profile a100; bf16 kernels stand for fp16 ones; attention fused, though the runs had unfused kernels and dropout",
    "no ZeRO: fp16 gradients all-reduced after the last backward, those of the tied table then between the first "
    "and the last stage; a slot's collectives and products one after another (Megatron hides some in the backward)",
)


def b200(row: Row) -> Iterator[Case]:
    """SimuMax's cases: the layout is in `parallel`."""
    size = {key: int(number) for key, number in re.findall(r"(tp|pp|ep)(\d+)", row["parallel"])}
    tp, ranks, ep = size["tp"], size["pp"], size.get("ep", 1)
    name = "deepseek-v2" if row["model"] == "deepseekv2" else row["model"]
    model = replace(load_model(name), layers=int(row["layers"]))
    if model.experts:
        model = replace(model, experts=replace(model.experts, groups=ep, groups_per_token=3))
    parallel = Parallel(
        ranks=ranks,
        gpus=8,
        tp=tp,
        ep=ep,
        global_batch=int(row["mbc"]) * (8 // tp // ranks),
        sequence=4096,
        gradient_overlap=False,
        gather_overlap=False,
    )
    seconds, size_bytes = float(row["real_ms"]) * 1e-3, float(row["real_alloc_GiB"]) * GIB
    yield Case(row["case"], name, model, load_cluster("b200"), parallel, seconds, size_bytes)


def vtrain(row: Row) -> Iterator[Case]:
    sizes = {key: int(value) for key, value in row.items() if not key.startswith(("iteration", "Parameters"))}
    tp, ranks = sizes["tensor parallelism"], sizes["pipeline parallelism"]
    vocabulary = -(-50257 // (128 * tp)) * 128 * tp
    hidden, heads, sequence = sizes["hidden size"], sizes["attention heads"], sizes["sequence length"]
    model = gpt(f"gpt {hidden}", sizes["# layers"], hidden, heads, vocabulary, sequence)
    cluster = load_cluster("a100")
    cluster = replace(cluster, network=replace(cluster.network, nics_per_gpu=0.5))
    parallel = replace(
        OLD,
        ranks=ranks,
        gpus=sizes["# GPUs"],
        tp=tp,
        global_batch=sizes["global batch"],
        microbatch_size=sizes["micro batch"],
        sequence=sequence,
    )
    name = f"hidden {hidden} x {sizes['# layers']}, tp{tp} dp{parallel.dp} pp{ranks}, {parallel.microbatches} x "
    seconds = float(row["iteration time (ms)"]) * 1e-3
    yield Case(name + f"{parallel.microbatch_size} sequences", f"tp {tp}", model, cluster, parallel, seconds)


def sc21(row: Row) -> Iterator[Case]:
    layers, hidden, batch = int(row["layers"]), int(row["hidden"]), int(row["batch"])
    tp, ranks, gpus = int(row["tp"]), int(row["pp"]), int(row["gpus"])
    model = gpt(f"gpt {row['params_B']}B", layers, hidden, int(row["heads"]), 51200, 2048)
    parallel = replace(OLD, ranks=ranks, gpus=gpus, tp=tp, global_batch=batch)
    # the paper's equation 3: FLOPs of an iteration, recomputation included
    flops = 96 * batch * 2048 * layers * hidden**2 * (1 + 2048 / (6 * hidden) + 51200 / (16 * layers * hidden))
    seconds = flops / (gpus * float(row["TFLOPs_per_gpu"]) * 1e12)
    each = layers // ranks
    chunks = next(n for n in range(2, each + 1) if each % n == 0) if ranks > 1 else 1
    group = "interleaved" if chunks > 1 else "no pipeline"
    yield Case(model.name, group, model, load_cluster("a100"), parallel, seconds, chunks=chunks)


def iterations(row: Row) -> Iterator[Case]:
    """Table 5: two step times a row."""
    sizes = {key: int(row[key]) for key in ("layers", "hidden", "heads", "tp", "pp", "gpus", "batch", "microbatch")}
    model = gpt(f"gpt {row['model']}", sizes["layers"], sizes["hidden"], sizes["heads"], int(row["vocab"]), 2048)
    for how, column in (("full", "iter_full_recompute_s"), ("selective", "iter_seq_sel_s")):
        parallel = replace(
            OLD,
            ranks=sizes["pp"],
            gpus=sizes["gpus"],
            tp=sizes["tp"],
            global_batch=sizes["batch"],
            microbatch_size=sizes["microbatch"],
            sequence=int(row["seq"]),
            recompute=frozenset({how}),
            sequence_parallel=how == "selective",
        )
        chunks, cluster = int(row["interleave"]), load_cluster("a100")
        yield Case(f"{model.name}, {how}", how, model, cluster, parallel, float(row[column]), chunks=chunks)


def layers(row: Row) -> Iterator[Case]:
    """Table 4: forward and backward of a layer of the 22B model."""
    what = row["experiment_22B_layer"]
    recompute = "selective" if "selective" in what else "full" if "with recompute" in what else ""
    parallel = replace(
        OLD,
        ranks=1,
        gpus=8,
        tp=8,
        global_batch=4,
        microbatch_size=4,
        recompute=frozenset(filter(None, [recompute])),
        sequence_parallel="sequence" in what,
    )
    for kind, column in (("F", "fwd_ms"), ("B", "bwd_ms")):
        model, seconds = load_model("megatron-22b"), float(row[column]) * 1e-3
        yield Case(f"{what}, {kind}", kind, model, load_cluster("a100"), parallel, seconds, of=kind)


VTRAIN_SAID = (
    *OLD_SAID,
    "full recomputation and 1F1B as stated; no sequence parallelism; vocabulary 50,257 padded to a multiple of 128 tp",
    "800 Gbit/s a node, so half a 200 Gbit/s NIC a GPU",
)
FAMILIES = (
    Family(
        "B200, SimuMax",
        "simumax_b200_measured.csv",
        (
            "profile b200; Megatron's distributed optimizer (ZeRO 1), fp32 gradients, sequence parallel, 1F1B, no "
            "recomputation, nothing overlapped (SimuMax's launch scripts); sequence 4,096, micro-batch 1",
            "DeepSeek-V2: first layer dense, experts balanced, a token's in 3 of ep groups; dispatch by kernels of 20 "
            "SMs that send a token once to a GPU (the runs: NCCL all-to-all of a copy for each expert)",
            "memory against max_memory_allocated, simulated without the framework's",
        ),
        b200,
        listed=True,
    ),
    Family("vTrain, one node", "vtrain_ground_truth_single.csv", VTRAIN_SAID, vtrain),
    Family("vTrain, 64 to 512 GPUs", "vtrain_ground_truth_multi.csv", VTRAIN_SAID, vtrain),
    Family(
        "Megatron, SC21 table 1",
        "megatron_sc21_table1.csv",
        (
            *OLD_SAID,
            "iteration time from TFLOP/s by the paper's equation 3; full recomputation; sequence 2,048; no sequence "
            "parallelism; messages not scattered and gathered",
            "micro-batch 1 (not stated); interleaved with the fewest chunks above 1 that divide a rank's layers",
        ),
        sc21,
        listed=True,
    ),
    Family(
        "Megatron, recomputation paper, iterations",
        "actrecomp_table5_end2end.csv",
        (*OLD_SAID, "full: no sequence parallelism; selective: attention core again, with sequence parallelism"),
        iterations,
        listed=True,
    ),
    Family(
        "Megatron, recomputation paper, one layer",
        "actrecomp_table4_layer_times.csv",
        (*OLD_SAID, "22B, tp 8, micro-batch 4: what a second layer adds to a slot"),
        layers,
        listed=True,
    ),
)


# Errors.


def errors(family: Family, folder: Path, every: int = 1) -> tuple[list[Error], Counter[str]]:
    """Of each `every`-th row, and how many rows cannot be expressed, by reason (numbers as #)."""
    found, refused = [], Counter[str]()
    rows = list(csv.DictReader((folder / family.file).read_text(encoding="utf-8").splitlines()))
    for row in rows[::every]:
        try:
            found += [error(case) for case in family.cases(row)]
        except SimpipeError as reason:
            refused[re.sub(r"\d+(\.\d+)?", "#", str(reason))] += 1
    return found, refused


def line(label: str, found: Sequence[Error], memory: bool = False) -> str:
    """Number of cases, mean, mean absolute and worst error of time or memory."""
    pairs = [(e.memory if memory else e.time, e.case.name) for e in found]
    known: list[tuple[Any, str]] = [(value, name) for value, name in pairs if value is not None]
    if not known:
        return ""
    worst, where = max(known, key=lambda pair: abs(pair[0]))
    values = [value for value, _ in known]
    absolute = mean(map(abs, values))
    return f"  {label:<22}{len(known):5}{mean(values):+9.1%}{absolute:9.1%}{worst:+9.1%}  {where}"


def show(family: Family, found: Sequence[Error], refused: Counter[str]) -> None:
    print(f"\n{family.name} ({family.file})")
    for sentence in family.assumed:
        print(f"  assumed: {sentence}")
    for reason, count in refused.items():
        print(f"  not expressed, {count} rows: {reason}")
    print(f"  {'':<22}cases     mean mean abs    worst")
    groups = sorted({e.case.group for e in found})
    parts = [("time", found), *((g, [e for e in found if e.case.group == g]) for g in groups if len(groups) > 1)]
    print("\n".join(filter(None, [*(line(*part) for part in parts), line("peak memory", found, memory=True)])))
    if not family.listed:
        return
    for e in found:
        memory = "" if e.memory is None or e.case.bytes is None else f"{e.case.bytes / GIB:8.2f} GiB {e.memory:+7.1%}"
        print(f"    {e.case.name:<44}{e.case.seconds * 1e3:11.1f} ms {e.seconds * 1e3:11.1f} ms {e.time:+7.1%}{memory}")


def main() -> None:
    if not MEASURED.is_dir():
        print(f"no measured data: {MEASURED} is not there")
        return
    print("Simulated over measured, less one. Nothing was fitted to these steps.")
    for family in FAMILIES:
        if not (MEASURED / family.file).is_file():
            print(f"\n{family.name}: {MEASURED / family.file} is not there")
            continue
        start = time.perf_counter()
        show(family, *errors(family, MEASURED))
        print(f"  ({time.perf_counter() - start:.1f} s)")


if __name__ == "__main__":
    main()
