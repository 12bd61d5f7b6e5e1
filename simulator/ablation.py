"""Ablation: a scenario with one of its techniques switched off at a time, and what that costs a step.

Balance is as a study of experts leaves it: the scenario itself is taken with every GPU in balance, and a row each says
what the loads of its strategies cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from simpipe.simulator import case
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.experts import study
from simpipe.simulator.scenario import Scenario

PLAIN = "1f1b"
"""What a schedule is switched off for; it has a stage a rank."""

CHUNK = 64
"""Tokens that a channel moves at once where nobody tuned it: the largest that tuning tries."""


@dataclass(frozen=True)
class Row:
    """off: what is switched off, empty for the scenario itself. instead: what then holds. peak_bytes: of the fullest
    GPU; None where the row is not of memory."""

    off: str
    instead: str
    step_time_s: float
    peak_bytes: float | None
    fits: bool


def table(
    scenario: Scenario, balance: study.Study | None, progress: Callable[[str], None] = lambda row: None
) -> list[Row]:
    """The scenario, and each technique off. Raises SimpipeError."""
    whole = study.loaded(scenario)
    rows = [_row("", "all on, GPUs in balance", case.modelled(whole))]
    for off, instead, changed in _switched(whole):
        progress(off)
        rows.append(_row(off, instead, changed))
    for outcome in balance.outcomes if balance else ():
        name, step = outcome.history.strategy, outcome.step_time_s
        if step is not None:
            left = "nothing balances" if name == "none" else f"as {name} leaves it"
            rows.append(Row("balance", left, step, None, True))
    return rows


def _switched(scenario: Scenario) -> Iterator[tuple[str, str, case.Case]]:
    """What is off, what then holds, and the case; what the scenario does without anyway is left out."""
    parallel, model = scenario.parallel, scenario.load().model

    def with_(**keys: Any) -> case.Case:
        return case.modelled(scenario.with_(**keys))

    program = case.modelled(scenario).program
    if len(program.kind) > program.slots or parallel.overlap == "within-slot":
        yield "overlap", "F and B of a slot one after the other, as chains", with_(overlap="serial")
    if program.name != PLAIN and scenario.chunks is None:
        layers = scenario.to_dict()["layers"] if program.stages == program.ranks else "even"
        plain = {"schedule": PLAIN, "layers": layers}
        yield program.name, f"{PLAIN}, overlapped within its slots", with_(**plain, overlap="within-slot")
        yield program.name, f"{PLAIN}, its slots as chains", with_(**plain, overlap="none")
    experts = model.experts
    if experts and experts.groups_per_token < experts.groups:
        free = replace(model, experts=replace(experts, groups_per_token=experts.groups))
        yield "node-limited routing", f"experts on all {experts.groups} nodes", _of_model(scenario, free)
    if experts and parallel.ep > 1:
        if parallel.communication_warps == "dynamic":
            yield "dynamic warps", "an equal part for each task", with_(communication_warps="static")
        if parallel.communication_chunk != CHUNK:
            was = f"chunks of {parallel.communication_chunk}"
            yield "tuned chunk size", f"{CHUNK} tokens, not {was}", with_(communication_chunk=CHUNK)
    if parallel.recompute:
        yield "recomputation", "all kept for the backward", with_(recompute=[])
    if parallel.averages == "cpu":
        yield "averages on the CPU", "on the GPU", with_(averages="gpu")


def _of_model(scenario: Scenario, model: Model) -> case.Case:
    """The scenario's case with another model."""
    made = case.modelled(scenario)
    assert isinstance(made.costs, ModelledCosts)
    costs = made.costs
    other = ModelledCosts(model, costs.cluster, costs.parallel, costs.speeds, costs.lengths, costs.stack)
    return replace(made, costs=other)


def _row(off: str, instead: str, made: case.Case) -> Row:
    trace, figures = case.simulated(made)
    assert figures.efficiency
    return Row(off, instead, trace.makespan, figures.efficiency.memory.peak_bytes, figures.efficiency.fits)


def to_dict(rows: list[Row]) -> list[dict[str, Any]]:
    """Plain figures, with what each row costs over the first."""
    whole = rows[0].step_time_s
    return [
        {
            "off": row.off,
            "instead": row.instead,
            "step_time_s": row.step_time_s,
            "costs_s": row.step_time_s - whole,
            "costs": row.step_time_s / whole - 1,
            "peak_bytes": row.peak_bytes,
            "fits": row.fits,
        }
        for row in rows
    ]
