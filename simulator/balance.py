"""Balance: how many layers each stage of a program gets so that its ranks are about equally busy.

It starts from what an embedding, a layer, and MTP with the head take alone, forward and backward, and then moves layers
from the busiest rank to idler ones as long as the program's own slots, each run alone, say that this helps: an F&B slot
of two different stages takes what no sum of layers tells. Memory is not looked at.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.program import Program
from simpipe.simulator.slots import alone, slot_costs

IDLEST = 4
"""Ranks to which a layer of the busiest one may move at once; their slots have to be run for each."""


def balanced(costs: ModelledCosts, program: Program) -> ModelledCosts:
    """Costs whose `balanced` layers are numbers of layers of each stage of the program; others as they are."""
    if costs.parallel.stage_layers != "balanced":
        return costs
    best = _laid_out(costs, spread(costs, program.stages))
    busy = _busy(best, program)
    while True:
        tried = [(moved, _busy(moved, program)) for moved in _moves(best, program, busy)]
        if not tried:
            return best
        moved, after = min(tried, key=lambda one: float(one[1].max()))
        if after.max() >= busy.max() * (1 - 1e-9):
            return best
        best, busy = moved, after


def spread(costs: ModelledCosts, stages: int) -> Ints:
    """(stages,) layers of each stage, in order, so that the longest stage is as short as can be by what layers,
    embedding, MTP and head take alone."""
    first, layers, last = _seconds(costs)
    ends = np.zeros(stages)
    ends[0], ends[-1] = first, ends[-1] + last
    return _least_maximum(layers, ends)


def _laid_out(costs: ModelledCosts, counts: Ints) -> ModelledCosts:
    return replace(costs, parallel=replace(costs.parallel, stage_layers=tuple(counts.tolist())), _known={})


def _busy(costs: ModelledCosts, program: Program) -> Floats:
    """(ranks,) seconds in slots."""
    return np.asarray(np.add.reduceat(slot_costs(program, costs).seconds, program.rank_start[:-1]), float)


def _moves(costs: ModelledCosts, program: Program, busy: Floats) -> Iterator[ModelledCosts]:
    """A layer moved from a stage of the busiest rank to one of the idlest."""
    counts = np.array([len(stage.layers) for stage in costs.stages(program)])
    order = np.argsort(busy, kind="stable")
    busiest = program.placement[order[-1]]
    for source in (stage for stage in busiest if counts[stage]):
        targets = {stage for rank in order[:IDLEST] for stage in program.placement[rank]} - {*busiest}
        for target in sorted(targets):
            moved = counts.copy()
            moved[source] -= 1
            moved[target] += 1
            yield _laid_out(costs, moved)


def _seconds(costs: ModelledCosts) -> tuple[float, Floats, float]:
    """Seconds of one micro-batch in the embedding, (layers,) in each layer, and in MTP and head."""
    if "layer seconds" not in costs.of_slots:
        costs.of_slots["layer seconds"] = _find_seconds(costs)
    return costs.of_slots["layer seconds"]  # type: ignore[no-any-return]


def _find_seconds(costs: ModelledCosts) -> tuple[float, Floats, float]:
    model = costs.model
    pieces = model.layers + 2
    layout = "E|" + "t|" * model.layers + "m" * model.mtp_modules + "L"
    rows = [f"{piece}F0,{piece}B0" for piece in range(pieces)]
    spread = replace(costs, parallel=replace(costs.parallel, stage_layers=layout), speeds=(), lengths=(), _known={})
    trace = alone(Program.from_csv("\n".join(rows)), spread)
    each = np.asarray(np.bincount(trace.program.slot_rank, trace.slot_end - trace.slot_start), float)
    return float(each[0]), each[1:-1], float(each[-1])


def _least_maximum(layers: Floats, ends: Floats) -> Ints:
    """(stages,) layers of each stage, in order, so that the longest stage is as short as can be."""
    before = np.concatenate([[0.0], np.cumsum(layers)])
    length = np.where(np.tri(len(before), k=0).T > 0, before[None, :] - before[:, None], np.inf)  # from, to
    worst, choices = length[0] + ends[0], []
    for end in ends[1:].tolist():
        options = np.maximum(worst[:, None], length + end)
        choices.append(options.argmin(axis=0))
        worst = options.min(axis=0)
    cuts = [len(layers)]
    for choice in reversed(choices):
        cuts.append(int(choice[cuts[-1]]))
    return np.diff([0, *reversed(cuts)])
