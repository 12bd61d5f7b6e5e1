"""Ablation: a scenario with one of its techniques switched off at a time, and what that costs a step.

Balance is as a study of experts leaves it: the scenario itself is taken with every GPU in balance, and a row each says
what the loads of its strategies cost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any, NamedTuple

from simpipe.simulator import case, tuning
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import SPREADS
from simpipe.simulator.efficiency import efficiency
from simpipe.simulator.experts import study
from simpipe.simulator.experts.balance import Affinities
from simpipe.simulator.scenario import Scenario
from simpipe.simulator.trace import simulate

PLAIN = "1f1b"
"""What a schedule is switched off for; it has a stage a rank."""

CHUNK = 64
"""Tokens that a channel moves at once where nobody tuned it: the largest that tuning tries."""

BALANCE = "balance"

Told = Callable[[str], None]


@dataclass(frozen=True)
class Row:
    """off: what is switched off, empty for the scenario itself. instead: what then holds. changed: the scenario's keys,
    or the model's, that say so. peak_bytes: of the fullest GPU. note: what the cost owes to an assumption."""

    off: str
    instead: str
    changed: str
    step_time_s: float
    peak_bytes: float
    fits: bool
    note: str = ""


class Switched(NamedTuple):
    """A technique off: see Row."""

    off: str
    instead: str
    changed: str
    case: case.Case
    note: str = ""


def balance_of(scenario: Scenario, steps: int, seed: int, workers: int, told: Told) -> study.Study | None:
    """What so many steps of balancing the scenario's experts come to, with `simpipe moe`'s affinities; None where there
    are no experts. workers: threads that route."""
    p, model = scenario.parallel, scenario.load().model
    if not model.experts:
        return None
    placing = study.Placing(p.ep, redundant=p.redundant_experts)
    return study.run(
        model, Affinities(), study.COMPARED, study.planned(p, p.ep, steps), placing, seed, workers, scenario,
        lambda name, step: told(f"balance, {name}: step {step} of {steps}"),
    )  # fmt: skip


def table(scenario: Scenario, balance: study.Study | None, told: Told = lambda row: None) -> list[Row]:
    """The scenario, and each technique off. Raises SimpipeError."""
    whole = study.loaded(scenario)
    together = "all on, GPUs in balance" if whole.load().model.experts else "all on"
    rows = [_row(Switched("", together, "", case.modelled(whole)))]
    for switched in _switched(whole):
        told(f"without {switched.off}")
        rows.append(_row(switched))
    return rows + (_unbalanced(balance) if balance else [])


def _unbalanced(balance: study.Study) -> list[Row]:
    """A row for each strategy's loads; a note on the first."""
    rows: list[Row] = []
    for outcome in balance.outcomes:
        name, cost = outcome.history.strategy, outcome.cost
        if cost:
            left = "nothing balances" if name == "none" else f"as {name} leaves it"
            note = "" if rows else f"affinities are assumed: {_listed(Affinities()._asdict())} (simpipe moe)"
            rows.append(Row(BALANCE, left, "layer_imbalance: of the study", *cost, note))
    return rows


def _switched(scenario: Scenario) -> Iterator[Switched]:
    """Each technique; what the scenario does without anyway is left out."""
    parallel, model = scenario.parallel, scenario.load().model

    def without(off: str, instead: str, **keys: Any) -> Switched:
        return Switched(off, instead, _listed(keys), case.modelled(scenario.with_(**keys)))

    program = case.modelled(scenario).program
    if parallel.overlap == "within-slot" or (len(program.kind) > program.slots and parallel.overlap != "serial"):
        yield without("overlap", "F and B of a slot one after the other, as chains", overlap="serial")
    if program.name != PLAIN and scenario.chunks is None:
        plain: dict[str, Any] = {"schedule": PLAIN}
        if program.stages != program.ranks and scenario.to_dict()["layers"] not in SPREADS:
            plain["layers"] = "balanced"  # a list is of as many stages as the scenario's schedule has
        yield without(program.name, f"{PLAIN}, overlapped within its slots", **plain, overlap="within-slot")
        yield without(program.name, f"{PLAIN}, its slots as chains", **plain, overlap="none")
    experts = model.experts
    if experts and experts.groups_per_token < experts.groups:
        free = replace(model, experts=replace(experts, groups_per_token=experts.groups))
        instead, changed = f"experts on all {experts.groups} nodes", f"experts.groups_per_token: {experts.groups}"
        yield Switched("node-limited routing", instead, changed, _of(case.modelled(scenario), model=free))
    if experts and parallel.ep > 1:
        if parallel.communication_warps == "dynamic":
            yield without("dynamic warps", "an equal part for each task", communication_warps="static")
        if parallel.communication_chunk != CHUNK:
            instead = f"chunks of {CHUNK} tokens, not {parallel.communication_chunk}"
            yield without("tuned chunk size", instead, communication_chunk=CHUNK)._replace(note=_owed(scenario))
    if parallel.recompute:
        yield without("recomputation", "all kept for the backward", recompute=[])
    if parallel.averages == "cpu":
        yield without("averages on the CPU", "on the GPU", averages="gpu")


def _owed(scenario: Scenario) -> str:
    """What of the chunk size's worth an assumption makes; empty where nothing is assumed of it."""
    cluster = scenario.load().cluster
    if tuning.SLOWING not in cluster.assumed:
        return ""
    free = replace(cluster, exchange=replace(cluster.exchange, l2_exponent=0.0))
    own, other = (
        _of(case.modelled(scenario.with_(communication_chunk=chunk)), cluster=free)
        for chunk in (scenario.parallel.communication_chunk, CHUNK)
    )
    costs = simulate(other.program, other.costs).makespan / simulate(own.program, own.costs).makespan - 1
    assumed = f"{tuning.SLOWING} = {cluster.exchange.l2_exponent:g}, how much a filled L2 cache slows computation"
    return f"{costs:+.1%} if it were not for what is assumed, {assumed}"


def _listed(keys: dict[str, Any]) -> str:
    return ", ".join(f"{key}: {'none' if value == [] else value}" for key, value in keys.items())


def _of(made: case.Case, **profiles: Any) -> case.Case:
    """A case with another model or machine."""
    assert isinstance(made.costs, ModelledCosts)
    return replace(made, costs=replace(made.costs, **profiles, of_slots={}, _known={}))


def _row(switched: Switched) -> Row:
    made = switched.case
    assert isinstance(made.costs, ModelledCosts)
    trace = simulate(made.program, made.costs)
    found = efficiency(trace, made.costs)
    return Row(*switched[:3], trace.makespan, found.memory.peak_bytes, found.fits, switched.note)


def to_dict(rows: list[Row]) -> list[dict[str, Any]]:
    """Plain figures, with what each row costs over the first."""
    whole = rows[0].step_time_s
    return [
        asdict(row) | {"costs_s": row.step_time_s - whole, "costs": row.step_time_s / whole - 1} for row in rows
    ]  # fmt: skip
