"""Steps that a run has yet to do are predicted from those it has done, and the interval holds what it claims."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from simpipe.schedules import program
from simpipe.simulator.costs.measured import Operations, read
from simpipe.simulator.errors import CostsError, SimpipeError
from simpipe.simulator.kernels import Floats
from simpipe.simulator.prediction import LEVELS, describe, predict
from simpipe.simulator.program import Program
from simpipe.simulator.trace import simulate_all

MEASURED = Path(__file__).resolve().parents[1].parent / "shared" / "measured"


def run_of(seconds: Floats, order: Program, lacking: float = 1.0) -> Operations:
    """A run of these (steps, workers, 2, stages, micro-batches) seconds; its spans are the simulated ones x lacking."""
    steps, workers = np.arange(len(seconds)), np.arange(seconds.shape[1])
    quiet = Operations("a run", steps, workers, seconds, np.zeros_like(seconds))
    traces = simulate_all(order, [quiet.costs(s, w) for s in steps for w in workers])
    span = np.array([trace.makespan for trace in traces]).reshape(seconds.shape[:2]) * lacking
    start = np.zeros_like(seconds)
    start[:, :, 1, 0, -1] = span - seconds[:, :, 1, 0, -1]  # the last backward ends it
    return Operations("a run", steps, workers, seconds, start)


def varied(steps: int, workers: int, stages: int, microbatches: int, seed: int) -> Floats:
    """Seconds whose steps, and in them micro-batches of any length, vary together over the stages."""
    rng = np.random.default_rng(seed)
    base = np.array([1.0, 2.0])[:, None, None] * rng.uniform(0.9, 1.1, (workers, 1, stages, 1))
    step = np.exp(0.03 * rng.standard_normal((steps, 1, 1, 1, 1)))
    length = np.exp(0.3 * rng.standard_normal((steps, workers, 1, 1, microbatches)))
    return np.asarray(base * step * length, float)


def test_the_interval_holds_the_spans_as_often_as_it_claims() -> None:
    order = program("1f1b", 3, 6)
    found = [predict(order, run_of(varied(48, 3, 3, 6, seed), order, lacking=1.02), seed=seed) for seed in range(8)]
    for level in LEVELS:
        held = np.mean([one.coverage(level) for one in found])
        of_steps = np.mean([one.step_coverage(level) for one in found])
        assert held == pytest.approx(level, abs=0.06)
        assert of_steps == pytest.approx(level, abs=0.12)


def test_means_of_workers_know_what_means_of_stages_do_not() -> None:
    order = program("1f1b", 4, 8)
    seconds = varied(8, 3, 4, 8, seed=0)
    seconds[:, 1, :, 2] *= 2  # one slow worker
    errors = predict(order, run_of(seconds, order)).errors()
    assert errors["stage_means"] > 0.15
    # means have no bubbles made by variation
    assert errors["distributions"] < errors["worker_means"] < errors["stage_means"]


def test_what_the_replay_lacks_is_learned() -> None:
    order = program("1f1b", 4, 8)
    same = np.broadcast_to(varied(1, 2, 4, 8, seed=0), (6, 2, 2, 4, 8)).copy()
    same[..., :] = same.mean(axis=4, keepdims=True)
    found = predict(order, run_of(same, order, lacking=1.1))
    np.testing.assert_allclose(found.median, found.measured[0])
    np.testing.assert_allclose(found.worker_means * 1.1, found.measured[0])
    assert [found.coverage(level) for level in LEVELS] == [1, 1, 1, 1] or found.errors()["distributions"] < 1e-12


def test_another_table_of_the_run_is_predicted_from_all_of_the_first() -> None:
    order = program("1f1b", 3, 4)
    run = run_of(varied(9, 2, 3, 4, seed=1), order)
    first, rest = run.some_steps(slice(4)), run.some_steps(slice(4, None))
    apart, halves = predict(order, first, rest, seed=3), predict(order, run, seed=3)
    assert halves.known.tolist() == [0, 1, 2, 3]
    assert halves.steps.tolist() == [4, 5, 6, 7, 8]
    assert apart.to_dict() == halves.to_dict()
    assert predict(order, run, seed=4).to_dict() != halves.to_dict()


def test_too_few_steps_and_tables_that_do_not_fit_are_refused() -> None:
    order = program("1f1b", 3, 4)
    run = run_of(varied(4, 2, 3, 4, seed=1), order)
    with pytest.raises(CostsError, match="a run has 3 steps; to predict half of them takes at least 4"):
        predict(order, run.some_steps(slice(3)))
    with pytest.raises(CostsError, match="a run has 1 step to calibrate on; it takes at least 2"):
        predict(order, run.some_steps(slice(1)), run)
    with pytest.raises(CostsError, match="1f1b has 3 stages x 4 micro-batches; a run measured 3 x 5"):
        predict(order, run, run_of(varied(4, 2, 3, 5, seed=1), program("1f1b", 3, 5)))
    with pytest.raises(CostsError, match="a run has no dp_rank 2; it has 0, 1"):
        predict(order, run, run_of(varied(4, 3, 3, 4, seed=1), order))


def test_the_result_is_told_and_is_plain_json() -> None:
    order = program("1f1b", 3, 4)
    found = predict(order, run_of(varied(6, 10, 3, 4, seed=1), order))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["calibrated_on_steps"] == [0, 1, 2]
    text = describe(found)
    assert text[0] == "prediction of 3 steps (3 to 5) of a run as 1f1b"
    assert "and 2 faster workers" in text


@pytest.mark.parametrize(("name", "microbatches"), [("ST", 4), ("AR_first_half", 32)])
def test_production_runs_second_halves_are_held_as_claimed(name: str, microbatches: int) -> None:
    pytest.importorskip("pyarrow", reason="the measured runs are parquet files: needs simpipe[parquet]")
    path = MEASURED / f"pipeline_trace_{name}.parquet"
    if not path.is_file():
        pytest.skip(f"the measured production runs are not here: {path}")
    found = predict(program("1f1b", 4, microbatches), read(path))
    assert found.coverage(0.9) >= 0.9
    assert found.errors()["distributions"] < 0.02
    assert found.errors()["worker_means"] < 0.02
    low, high = found.interval(0.9)
    assert ((high - low) / found.median).max() < 0.08


def test_command_line_predicts_and_refuses(tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from simpipe.cli import app

    order = program("1f1b", 3, 4)
    run = run_of(varied(5, 2, 3, 4, seed=1), order)
    index = np.indices(run.seconds.shape).reshape(5, -1)
    kind = np.array(["forward-compute", "backward-compute"])[index[2]]
    columns = {"step": index[0], "dp_rank": index[1], "optype": kind, "stage": index[3], "mb_id": index[4]}
    table = tmp_path / "run.csv"
    frame = pd.DataFrame(columns).assign(start_ts=run.start.ravel(), duration=run.seconds.ravel())
    frame.to_csv(table, index=False)
    command = ["run", "--schedule", "1f1b", "--costs", str(table), "--predict"]
    done = CliRunner().invoke(app, [*command, "second-half", "--json"])
    assert json.loads(done.stdout)["predicted_steps"] == [2, 3, 4]
    assert "calibrated on 5 steps" in CliRunner().invoke(app, [*command, str(table)]).stdout
    for wrong in ([*command, "half"], [*command, "second-half", "--step", "1"], ["run", "--predict", "second-half"]):
        assert isinstance(CliRunner().invoke(app, wrong).exception, SimpipeError)
