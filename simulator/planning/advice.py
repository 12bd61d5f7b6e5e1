"""Advice: what a search found in words and tables: the best, why others lose, and what the answer hangs on."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

from simpipe.simulator import case as cases
from simpipe.simulator import slots, uncertainty
from simpipe.simulator.costs.cluster import Cluster
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.planning import tables
from simpipe.simulator.planning.evaluation import program, scenario_of
from simpipe.simulator.planning.search import SIZES, Found, Outcome
from simpipe.simulator.planning.tables import Row
from simpipe.simulator.program import Program
from simpipe.simulator.trace import simulate
from simpipe.simulator.uncertainty import Interval

RUNNERS_UP = 4

Costed = tuple[Program, ModelledCosts]

CHANGE = 1.1
"""What a knob is turned by, up for rates and down for times."""


def parts(result: Row) -> dict[str, float]:
    """Seconds of a step that a rank spends on average in each way; they add up to the step."""
    bubble = result["bubble_rate"] * result["step_time_s"]
    exposed = result["exposed_communication_s"]
    return {"computing": result["step_time_s"] - bubble - exposed, "bubble": bubble, "exposed communication": exposed}


def why(found: Found, best: Found) -> str:
    """Why a candidate loses to the best."""
    if found.broken:
        return found.result["status"] if found.broken.startswith("does not fit") else found.broken
    own, least = parts(found.result), parts(best.result)
    behind = found.result["step_time_s"] - best.result["step_time_s"]
    longer = sorted(((own[name] - least[name], name) for name in own), reverse=True)
    told = [f"{name} {seconds:+.3g} s" for seconds, name in longer if abs(seconds) >= 0.1 * abs(behind) and seconds]
    return f"{behind:.3g} s slower: " + ", ".join(told)


def name_of(row: Row, without: Collection[str] = ()) -> str:
    """A candidate by what was chosen, some keys left out."""
    chosen = {key: row[key] for key in SIZES if key not in without and row.get(key) is not None}
    return " ".join(
        [str(row["schedule"]), *(f"{key}={tables.told(chosen[key])}" for key in chosen if key != "schedule")]
    )


def change(row: Row, best: Row) -> str:
    """How a row differs from the best."""
    unlike = {key: row.get(key) for key in SIZES if row.get(key) != best.get(key)}
    return ", ".join(f"{key} {tables.told(value)}" for key, value in unlike.items()) or "the best"


def table(outcome: Outcome) -> list[Row]:
    """The best, the runners-up, the rest of the Pareto front and the best one's neighbours, as plain rows."""
    ranked, best = outcome.ranked, outcome.ranked[0]
    front = [id(one) for one in outcome.front]
    order = ranked[: 1 + RUNNERS_UP] + [one for one in outcome.front if one not in ranked[: 1 + RUNNERS_UP]]
    order += [one for one in neighbours(outcome) if one not in order]
    rows = []
    for one in order:
        place = ranked.index(one) + 1 if one in ranked else None
        keys = dict.fromkeys([*(key for key in SIZES if key in one.row), *one.row])
        chosen = {key: tables.told(one.row[key]) for key in keys}
        note = {"why": "the best" if one is best else why(one, best)}
        rows.append({"place": place, "on_front": id(one) in front} | chosen | note | one.result)
    return rows


def neighbours(outcome: Outcome) -> list[Found]:
    """What one change makes of the best, as far as it was simulated."""
    best = outcome.ranked[0]
    keys = [key for key in SIZES if key != "schedule"]

    def is_near(one: Found) -> bool:
        unlike = [key for key in keys if one.row.get(key) != best.row.get(key)]
        names = {str(some.row["schedule"]).split(":")[0] for some in (one, best)}
        return len(unlike) + len(names) == 2

    near = [one for one in outcome.found if one is not best and is_near(one)]
    return sorted(near, key=lambda one: (one.result.get("step_time_s", float("inf")), str(one.row)))


KNOBS: dict[str, Callable[[Cluster], Cluster]] = {
    "peak FLOP/s": lambda c: replace(c, gpu=replace(c.gpu, peak={f: p * CHANGE for f, p in c.gpu.peak.items()})),
    "memory bandwidth": lambda c: replace(c, gpu=replace(c.gpu, memory_bandwidth=c.gpu.memory_bandwidth * CHANGE)),
    "gap between kernels": lambda c: replace(c, gpu=replace(c.gpu, kernel_gap=c.gpu.kernel_gap / CHANGE)),
    "NVLink bandwidth": lambda c: replace(
        c, node=replace(c.node, nvlink=replace(c.node.nvlink, bandwidth_per_direction=_more(c.node.nvlink)))
    ),
    "network bandwidth": lambda c: replace(c, network=replace(c.network, bandwidth_per_direction=_more(c.network))),
}
"""What a machine may be 10 % better in."""


def _more(links: Any) -> float:
    return float(links.bandwidth_per_direction * CHANGE)


def sensitivity(some: list[Found]) -> list[tuple[str, float, int]]:
    """For each of KNOBS, and for experts loaded 10 % unevenly: by what share the best step then changes, and which of
    `some`, the best of which is first, is then the fastest. The largest change first."""
    made = [cases.modelled(scenario_of(one.row), program, slots.sharing) for one in some]
    plain = [(case.program, case.costs) for case in made if isinstance(case.costs, ModelledCosts)]
    now, found = [_seconds(costs, order) for order, costs in plain], []
    for name, turned in _turned(plain):
        shares = [_seconds(costs, order) / before for (order, costs), before in zip(turned, now, strict=True)]
        steps = [share * one.result["step_time_s"] for share, one in zip(shares, some, strict=True)]
        found.append((name, shares[0] - 1, min(range(len(steps)), key=lambda number: (steps[number], number))))
    return sorted(found, key=lambda one: -abs(one[1]))


def _turned(plain: list[Costed]) -> Iterator[tuple[str, list[Costed]]]:
    for name, turn in KNOBS.items():
        yield name, [(order, _fresh(costs, cluster=turn(costs.cluster))) for order, costs in plain]
    if plain[0][1].model.experts:
        yield (
            "load of the fullest experts",
            [
                (order, _fresh(costs, parallel=costs.parallel.with_load(costs.parallel.load.gpu * CHANGE)))
                for order, costs in plain
            ],
        )


def _fresh(costs: ModelledCosts, **change: Any) -> ModelledCosts:
    return replace(costs, **change, of_slots={}, _known={})


def _seconds(costs: ModelledCosts, order: Program) -> float:
    return slots.simulate(order, costs).trace.makespan


def interval(best: Found) -> Interval | None:
    """Of the step of the best, by how far off the fits of its machine's profile are; None where those do not say."""
    case = cases.modelled(scenario_of(best.row), program, slots.sharing)
    assert isinstance(case.costs, ModelledCosts)
    if not uncertainty.is_known(case.costs):
        return None
    trace = simulate(case.program, case.costs)
    return uncertainty.interval(trace, case.costs, max(uncertainty.FEWEST, uncertainty.default_draws(trace)))


def counts(outcome: Outcome) -> dict[str, Any]:
    """How many candidates there were, and what became of them."""
    return {
        "candidates": outcome.candidates,
        "simulated": outcome.simulated,
        "slower_by_bound": outcome.bounded,
        "too_large": outcome.too_large,
        "sharded": outcome.sharded,
        "pruned": dict(outcome.pruned),
    }


def facts(outcome: Outcome, turned: list[tuple[str, float, int]], about: Interval | None) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "step_time_interval_s": about and about._asdict(),
        **counts(outcome),
        "recommended": table(outcome),
        "sensitivity": [
            {"what": name, "change": CHANGE - 1, "step_time": share, "then_best": name_of(outcome.ranked[first].row)}
            for name, share, first in turned
        ],
    }


def describe(outcome: Outcome, turned: list[tuple[str, float, int]], about: Interval | None) -> list[str]:
    """The recommendation in lines: the best and the runners-up, the front, what one change makes, the sensitivity."""
    ranked, best, front = outcome.ranked, outcome.ranked[0], outcome.front
    first, *others = [one.row for one in (*ranked[: 1 + RUNNERS_UP], *front)]
    alike = [key for key in SIZES if key != "schedule" and all(row.get(key) == first.get(key) for row in others)]
    given = [f"{key}={tables.told(first[key])}" for key in alike if first.get(key) is not None]
    lines = [counted(outcome), *([f"the best, the runners-up and the front have {' '.join(given)}"] if given else [])]
    lines += ["", _HEAD]
    lines += [
        _line(number, one, best, name_of(one.row, alike)) for number, one in enumerate(ranked[: 1 + RUNNERS_UP], 1)
    ]
    lines += _amounts(best)
    lines += ["", "Pareto front of step time, memory and GPUs, of what was simulated:"]
    lines += [_line(None, one, best, name_of(one.row, alike)) for one in front]
    lines += ["", "what one change makes of the best:"]
    lines += [_line(None, one, best, change(one.row, best.row)) for one in neighbours(outcome)]
    lines += ["", f"what {CHANGE - 1:.0%} change of the best step, a task for each slot:"]
    for name, share, place in turned:
        other = f"; then number {place + 1} is the best" if place else ""
        lines.append(f"  {name:<30}{share:+7.2%}{other}")
    if about:
        within = [number for number, one in enumerate(ranked[1:], 2) if one.result["step_time_s"] <= about.high]
        ends = f"{about.low:.4g} to {about.high:.4g} s"
        lines += ["", f"by the profile's fits, {about.level:.0%} of {about.draws} draws of the best end within {ends}"]
        few = f"numbers 2 to {within[-1]} are" if within[1:] else "number 2 is"
        lines += [f"  of the others that were run in full, {few} within that"] if within else []
    return lines


def _amounts(best: Found) -> list[str]:
    """What the best takes for the tokens to train on, if those are given, as a line."""
    result, tokens = best.result, best.row.get("token_budget")
    if tokens is None or "days" not in result:
        return []
    cost = f", {result['cost_usd']:,.0f} USD" if "cost_usd" in result else ""
    return [
        f"    {tokens:.4g} tokens take the best {result['days']:.4g} days, {result['gpu_hours']:,.0f} GPU-hours{cost}"
    ]


def counted(outcome: Outcome) -> str:
    """The counts as a sentence."""
    return (
        f"{outcome.candidates} candidates: {outcome.simulated} simulated, {outcome.bounded} slower by their bound, "
        f"{outcome.too_large} too large by their parameters; {outcome.sharded} too large ones run with ZeRO 2 or 3; "
        f"{sum(outcome.pruned.values())} combinations cannot be"
    )


_HEAD = f"{'':>4}{'step':>9}{'MFU':>8}{'bubble':>8}{'exposed':>10}{'memory':>9}"


def _line(number: int | None, one: Found, best: Found, text: str) -> str:
    result = one.result
    place = f"{number:>3} " if number else "    "
    because = "" if one is best else f"  [{why(one, best)}]"
    if "step_time_s" not in result:
        return f"{place}{'':>44}  {text}{because}"
    figures = (
        f"{result['step_time_s']:>8.2f}s{result['mfu']:>8.1%}{result['bubble_rate']:>8.1%}"
        f"{result['exposed_communication_s']:>9.2f}s{result['peak_memory_gb']:>6.1f} GB"
    )
    return f"{place}{figures}  {text}{because}"
