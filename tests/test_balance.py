"""Layers laid out by work: every layer is somewhere, and the busiest rank is no busier than with as many each."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpipe import program
from simpipe.simulator import balance, slots
from simpipe.simulator.case import modelled
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.scenario import Scenario

BASE: dict[str, Any] = {"model": "llama3-8b", "hardware": "h100", "gpus": 32, "sequence": 4096, "global_batch": 64}


def busiest(scenario: Scenario) -> float:
    case = modelled(scenario)
    assert isinstance(case.costs, ModelledCosts)
    seconds = slots.slot_costs(case.program, case.costs).seconds
    return float(np.add.reduceat(seconds, case.program.rank_start[:-1]).max())


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "dualpipe", "zb-v", "interleaved-1f1b"])
def test_the_busiest_rank_is_no_busier_than_evenly(schedule: str) -> None:
    even = Scenario.of({**BASE, "ranks": 4, "schedule": schedule})
    assert busiest(even.with_(layers="balanced")) <= busiest(even) * (1 + 1e-9)


def test_a_heavy_head_gets_fewer_layers() -> None:
    """Llama-3 8B's vocabulary costs as much as several of its layers."""
    case = modelled(Scenario.of({**BASE, "ranks": 8, "schedule": "1f1b", "layers": "balanced"}))
    assert isinstance(case.costs, ModelledCosts)
    counts = [len(stage.layers) for stage in case.costs.stages(case.program)]
    assert sum(counts) == 32
    assert counts[-1] < min(counts[:-1])


def test_deepseek_v3_is_laid_out_as_a_person_would() -> None:
    scenario = Scenario.read("examples/deepseek_v3.yaml")
    case = modelled(scenario.with_(layers="balanced"))
    assert isinstance(case.costs, ModelledCosts)
    assert [len(stage.layers) for stage in case.costs.stages(case.program)] == [*[4] * 15, 1]


def test_other_layouts_stay_as_they_are() -> None:
    parallel = Parallel(ranks=2, gpus=2, global_batch=4, sequence=128, stage_layers=(10, 22))
    costs = ModelledCosts(load_model("llama3-8b"), load_cluster("h100"), parallel)
    order = program("1f1b", ranks=2, microbatches=4)
    assert balance.balanced(costs, order) is costs
    some = replace(costs, parallel=replace(parallel, stage_layers="balanced"))
    assert sum(balance.balanced(some, order).parallel.stage_layers) == 32  # type: ignore[arg-type]


@given(st.lists(st.floats(0.1, 10), min_size=1, max_size=9), st.integers(1, 5), st.floats(0, 20), st.floats(0, 20))
@settings(deadline=None)
def test_cuts_are_the_best_there_are(layers: list[float], stages: int, first: float, last: float) -> None:
    """Against every way to cut the layers."""
    from itertools import combinations_with_replacement

    ends = np.zeros(stages)
    ends[0] += first
    ends[-1] += last

    def longest(cuts: tuple[int, ...]) -> float:
        edges = [0, *cuts, len(layers)]
        return max(sum(layers[a:b]) + end for a, b, end in zip(edges[:-1], edges[1:], ends, strict=True))

    found = balance._least_maximum(np.array(layers), ends)
    assert found.sum() == len(layers)
    best = min(longest(cuts) for cuts in combinations_with_replacement(range(len(layers) + 1), stages - 1))
    assert longest(tuple(np.cumsum(found)[:-1].tolist())) == pytest.approx(best)
