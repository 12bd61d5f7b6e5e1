"""Evaluation: what a table's row says, simulated; its figures as the columns that results add.

A row holds a scenario's keys (simulator/scenario.py), a model's sizes instead of its name (SHAPE_KEYS; `layers` is then
how many there are), or costs by hand; and what a table adds to them, EXTRA_KEYS. Programs, profiles and scenarios that
are equal are made once in each process.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np

from simpipe import schedules
from simpipe.simulator import case as cases
from simpipe.simulator import slots
from simpipe.simulator.case import Case
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model_files import SHAPE_KEYS
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.efficiency import GB, Efficiency, RankMemory, efficiency, excess, memory_of
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.planning.tables import Row
from simpipe.simulator.program import Program
from simpipe.simulator.scenario import KEYS, Scenario
from simpipe.simulator.trace import Trace, simulate

EXTRA_KEYS = {
    "costs": "costs by hand instead of a model, as F=1,I=1,W=1,FB=2.4,p2p=0.05, or a .toml file of them",
    "microbatches": "micro-batches of a step, where costs are given by hand",
    "token_budget": "tokens to train on, for gpu_hours, days and cost_usd",
    "price_usd_per_gpu_hour": "price of a GPU, instead of the one in the hardware profile",
}
"""Columns that a row may have beside those of a scenario and of a model's sizes."""

SECONDS, LARGE, WHOLE, SHARE, PLAIN = "0.000", "#,##0", "0", "0.0%", "General"


class Column(NamedTuple):
    """A column of results: what it holds, its number format in a spreadsheet, and which end is better, if one is."""

    meaning: str
    format: str = PLAIN
    better: Literal["", "least", "most"] = ""


KINDS = (
    "parameters", "gradients", "optimizer", "averages", "framework", "activations", "weight_gradient_inputs", "logits",
    "expert_buffers", "boundary", "recompute", "working", "gathered", "buckets",
)  # fmt: skip
"""What memory is needed for, as simulator/costs/memory.py names it."""

COLUMNS = {
    "status": Column("ok; or what does not fit into memory; or why the row cannot be simulated"),
    "step_time_s": Column("seconds of a training step, optimizer included", SECONDS, "least"),
    "tokens_per_s": Column("tokens a second, all GPUs", LARGE, "most"),
    "tflops_per_gpu": Column(
        "model FLOPs (causal attention, no recomputation) a second on each GPU, in TFLOP/s", "0.0", "most"
    ),
    "mfu": Column("the same over the GPU's dense BF16 peak", SHARE, "most"),
    "bubble_rate": Column("share of all ranks' time outside slots", SHARE, "least"),
    "exposed_communication_s": Column(
        "seconds a rank inside slots in which it computes nothing, mean of ranks", SECONDS, "least"
    ),
    "fits": Column("whether every GPU's peak memory is within its capacity"),
    "peak_memory_gb": Column("peak of the GPU that needs most, in GB of 1e9 bytes", "0.0", "least"),
    "peak_memory_rank": Column("its pipeline rank", WHOLE),
    **{f"{kind}_gb": Column(f"of that peak, {kind.replace('_', ' ')}", "0.00") for kind in KINDS},
    "peak_memory_per_rank_gb": Column("the peak of each rank"),
    "gpu_hours_per_trillion_tokens": Column("GPUs x hours for 1e12 tokens at this rate", LARGE, "least"),
    "cost_per_trillion_tokens_usd": Column("the same times the GPU's price; empty without one", LARGE, "least"),
    "days": Column("days for token_budget", "0.0", "least"),
    "gpu_hours": Column("GPUs x hours for token_budget", LARGE, "least"),
    "cost_usd": Column("the same times the GPU's price; empty without one", LARGE, "least"),
}
"""The columns that results add, in order."""

OK = "ok"


def evaluated(row: Row, in_full: bool = False) -> Row:
    """The figures of a row, or in `status` the sentence that says why it has none."""
    try:
        return figures(row, in_full)
    except SimpipeError as error:
        return {"status": str(error)}


def figures(row: Row, in_full: bool = False) -> Row:
    """The figures of a row by column; in_full: with all operations of its slots, instead of a task for each slot.

    Raises SimpipeError for a row that cannot be simulated.
    """
    given = {key: value for key, value in row.items() if value is not None}
    found = _by_hand(given) if "costs" in given else _of_scenario(scenario_of(given), in_full)
    return found | money(given, found)


def scenario_of(row: Mapping[str, Any]) -> Scenario:
    """The scenario that a row's columns state. Raises SimpipeError."""
    keys = {key: row[key] for key in KEYS if row.get(key) is not None}
    if "model" not in keys:
        sizes = {key: row[key] for key in SHAPE_KEYS if row.get(key) is not None}
        if sizes:
            keys["model"] = ",".join(f"{key}={_word(value)}" for key, value in sizes.items())
            keys.pop("layers", None)
    return Scenario.of(keys)


def _word(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


class Untimed(NamedTuple):
    """A row's program and costs, and the memory of its fullest rank, which follows from the order alone."""

    program: Program
    costs: ModelledCosts
    fullest: RankMemory

    def too_large(self) -> Row | None:
        """What the row comes to but for its times if it does not fit into memory, None where it does."""
        over = excess(self.fullest, self.costs.cluster.gpu.memory)
        peak = {"peak_memory_gb": self.fullest.peak_bytes / GB, "peak_memory_rank": self.fullest.rank}
        return {"status": over} | peak if over else None


def untimed(row: Row) -> Untimed | None:
    """What is known of a row without timing it; None where it is impossible."""
    try:
        case = cases.modelled(scenario_of(row), program, slots.sharing)
        assert isinstance(case.costs, ModelledCosts)
        peaks = memory_of(slots.untimed(case.program, case.costs), case.costs)
    except SimpipeError:
        return None
    return Untimed(case.program, case.costs, max(peaks, key=lambda rank: rank.peak_bytes))


@lru_cache(maxsize=256)
def _of_scenario(scenario: Scenario, in_full: bool) -> Row:
    case = cases.modelled(scenario, program, slots.sharing)
    assert isinstance(case.costs, ModelledCosts)
    run = slots.in_full if in_full else slots.simulate
    trace, exposed = run(case.program, case.costs)
    return _columns(trace, efficiency(trace, case.costs, exposed))


def trace_of(row: Row) -> Trace:
    """The run that a row's figures are of. Raises SimpipeError."""
    given = {key: value for key, value in row.items() if value is not None}
    if "costs" in given:
        case = _given(given)
        return simulate(case.program, case.costs)
    case = cases.modelled(scenario_of(given), program, slots.sharing)
    assert isinstance(case.costs, ModelledCosts)
    return slots.simulate(case.program, case.costs).trace


def program(name: str, ranks: int, microbatches: int, chunks: int | None, **options: Any) -> Program:
    """As `simpipe.program`; those of schedules that come with simpipe are remembered."""
    if name not in schedules.catalogue():
        return schedules.program(name, ranks, microbatches, chunks, **options)
    return _program(name, ranks, microbatches, chunks, tuple(sorted(options.items())))


@lru_cache(maxsize=slots.KEPT)
def _program(name: str, ranks: int, microbatches: int, chunks: int | None, options: tuple[Any, ...]) -> Program:
    return schedules.program(name, ranks, microbatches, chunks, **dict(options))


def _columns(trace: Trace, means: Efficiency) -> Row:
    """The columns of a modelled step."""
    peak = means.memory
    found = {
        "status": OK if means.fits else means.excess,
        "step_time_s": means.step_time_s,
        "tokens_per_s": means.tokens_per_s,
        "tflops_per_gpu": means.tflops_per_gpu,
        "mfu": means.mfu,
        "bubble_rate": _bubble_rate(trace),
        "exposed_communication_s": means.exposed_communication_s,
        "fits": means.fits,
        "peak_memory_gb": peak.peak_bytes / GB,
        "peak_memory_rank": peak.rank,
        **{f"{kind}_gb": size / GB for kind, size in peak.by_kind.items()},
        "peak_memory_per_rank_gb": ", ".join(f"{rank.peak_bytes / GB:.2f}" for rank in means.memory_per_rank),
    }
    assert found.keys() <= COLUMNS.keys()
    return found


def _bubble_rate(trace: Trace) -> float:
    busy = float((trace.slot_end - trace.slot_start).sum())
    return 1 - busy / (trace.program.ranks * trace.makespan) if trace.makespan else 0.0


def _by_hand(row: Mapping[str, Any]) -> Row:
    """A row whose costs are given: tokens a second where it says batch and sequence."""
    case = _given(row)
    trace = simulate(case.program, case.costs)
    kept = np.maximum.reduceat(trace.activation_bytes.during, case.program.rank_start[:-1]) / GB
    held = np.array([trace.loads.parameters[0][list(stages)].sum() for stages in case.program.placement]) / GB
    worst = int(np.argmax(kept + held))
    found: Row = {"status": OK, "step_time_s": trace.makespan, "bubble_rate": _bubble_rate(trace)}
    if kept.any() or held.any():
        found |= {"peak_memory_gb": float(kept[worst] + held[worst]), "peak_memory_rank": worst}
        found |= {"activations_gb": float(kept[worst]), "parameters_gb": float(held[worst])}
    batch, sequence = _whole(row, "global_batch"), _whole(row, "sequence")
    if batch and sequence and trace.makespan:
        found["tokens_per_s"] = batch * sequence / trace.makespan
    return found


def _given(row: Mapping[str, Any]) -> Case:
    """The case of a row whose costs are given."""
    ranks, microbatches, chunks = (_whole(row, key) for key in ("ranks", "microbatches", "chunks"))
    return cases.given(str(row.get("schedule", "dualpipe")), ranks, microbatches, chunks, str(row["costs"]))


def _whole(row: Mapping[str, Any], key: str) -> int | None:
    value = row.get(key)
    if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
        raise SimpipeError(f"{key} must be a whole number, at least 1, not {value!r}")
    return value


def money(row: Mapping[str, Any], found: Row) -> Row:
    """GPU-hours and cost of a row whose figures are `found`; nothing where GPUs or tokens a second are not known."""
    gpus, rate = row.get("gpus"), found.get("tokens_per_s")
    for key, most in (("token_budget", 1e18), ("price_usd_per_gpu_hour", 1e6)):
        value = row.get(key, 0)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= most:
            raise SimpipeError(f"{key} must be a number from 0 to {most:g}, not {value!r}")
    if not gpus or not rate:
        return {}
    price = price_of(row)
    each = gpus / rate / 3600  # GPU-hours a token
    amounts: Row = {"gpu_hours_per_trillion_tokens": each * 1e12}
    if price is not None:
        amounts["cost_per_trillion_tokens_usd"] = each * 1e12 * price
    if "token_budget" in row:
        hours = each * row["token_budget"]
        amounts |= {"days": hours / gpus / 24, "gpu_hours": hours}
        if price is not None:
            amounts["cost_usd"] = hours * price
    return amounts


def price_of(row: Mapping[str, Any]) -> float | None:
    """USD of a GPU-hour: the row's, or that of its hardware's profile, if it has one."""
    own: float | None = row.get("price_usd_per_gpu_hour")
    return load_cluster(str(row["hardware"])).price if own is None and "hardware" in row else own
