"""A measured run is read, replayed over one graph, and the slow worker and micro-batch are named."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simpipe.schedules import program
from simpipe.simulator import bubbles
from simpipe.simulator.costs.given import Costs
from simpipe.simulator.costs.measured import Operations, read
from simpipe.simulator.errors import CostsError
from simpipe.simulator.kernels import Floats
from simpipe.simulator.replay import describe, replay
from simpipe.simulator.trace import simulate

MEASURED = Path(__file__).resolve().parents[1].parent / "shared" / "measured"
COLUMNS = ["dp_rank", "stage", "step", "optype", "start_ts", "duration", "mb_id"]
NAMES = {"F": "forward-compute", "B": "backward-compute"}


def durations(steps: int = 2, workers: int = 3, stages: int = 4, microbatches: int = 6) -> Floats:
    """(steps, workers, 2, stages, micro-batches): F near 1 s, B near 2 s."""
    rng = np.random.default_rng(0)
    kind = np.array([1.0, 2.0])[None, None, :, None, None]
    return np.asarray(kind * rng.uniform(0.99, 1.01, (steps, workers, 2, stages, microbatches)), float)


def table(seconds: Floats, steps: list[int], schedule: str = "1f1b") -> pd.DataFrame:
    """The table of a run that was exactly as simulated, with a message and a collective in between."""
    size = program(schedule, ranks=seconds.shape[3], microbatches=seconds.shape[4])
    parts = []
    for i, step in enumerate(steps):
        for worker in range(seconds.shape[1]):
            forward, backward = seconds[i, worker].tolist()
            frame = simulate(size, Costs(F=forward, B=backward)).to_frame()
            frame = frame[frame["kind"].isin(["F", "B"])]
            ops = pd.DataFrame({"dp_rank": worker, "stage": frame["stage"], "step": step, "mb_id": frame["microbatch"]})
            ops["optype"] = frame["kind"].astype(str).map(NAMES)
            ops["start_ts"] = 10 + frame["start"]
            ops["duration"] = frame["end"] - frame["start"]
            parts.append(ops)
    other = {"dp_rank": 0, "stage": 0, "step": steps[0], "start_ts": 0.0, "duration": 99.0, "mb_id": -1}
    parts.append(pd.DataFrame([{**other, "optype": "forward-send"}, {**other, "optype": "optimizer"}]))
    return pd.concat(parts, ignore_index=True)[COLUMNS]


def small(schedule: str = "gpipe", stages: int = 2, microbatches: int = 2) -> Operations:
    """One step of one worker with F = 1, B = 2."""
    seconds = np.ones((1, 1, 2, stages, microbatches)) * np.array([1.0, 2.0])[:, None, None]
    return Operations.from_frame(table(seconds, [0], schedule))


@pytest.fixture
def good() -> pd.DataFrame:
    return table(durations(), [7, 40])


def test_reads_each_step_and_worker(good: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "run.csv"
    good.sample(frac=1, random_state=1).to_csv(path, index=False)  # any order of rows
    ops = read(path)
    assert (ops.steps.tolist(), ops.workers.tolist(), ops.stages, ops.microbatches) == ([7, 40], [0, 1, 2], 4, 6)
    expected = durations()[1, 2]
    costs = ops.costs(step=40, worker=2)
    np.testing.assert_allclose(np.asarray(costs.F), expected[0])
    np.testing.assert_allclose(np.asarray(costs.B), expected[1])
    assert ops.span(40, 2) == pytest.approx(simulate(program("1f1b", 4, 6), costs).makespan)


def test_parquet_reads_as_csv_does(good: pd.DataFrame, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    good = good.astype({"optype": "category", "dp_rank": "int8", "mb_id": "int8", "duration": "float32"})
    good.to_parquet(tmp_path / "run.parquet")
    good.to_csv(tmp_path / "run.csv", index=False)
    ours, theirs = read(tmp_path / "run.parquet"), read(tmp_path / "run.csv")
    np.testing.assert_allclose(ours.seconds, theirs.seconds, rtol=1e-6)
    np.testing.assert_array_equal(ours.start, theirs.start)


def test_names_the_slow_worker_and_the_slow_microbatch() -> None:
    seconds = durations()
    seconds[:, 1, :, 2] *= 1.5  # a slow worker: stage 2 of dp_rank 1, in every step
    seconds[1, 0, :, :, 4] *= 1.4  # a long micro-batch of another worker, in one step
    found = replay(program("1f1b", 4, 6), Operations.from_frame(table(seconds, [7, 40])))
    assert found.mean_absolute_error < 1e-12
    slow = found.slow_worker
    assert slow is not None
    assert (slow.worker, slow.stage) == (1, 2)
    assert (slow.forward, slow.backward) == pytest.approx((1.5, 1.5), rel=0.02)
    assert slow.share == pytest.approx(slow.saved / found.step_span.mean())
    step, worker, microbatch = np.unravel_index(int(found.saved_by_microbatch.argmax()), (2, 3, 6))
    assert (step, worker, microbatch) == (1, 0, 4)
    made = found.made.sum(axis=(0, 3))
    assert np.unravel_index(int(made.argmax()), made.shape) == (1, 2)
    text = "\n".join(describe(found))
    assert "slow worker: dp_rank 1, stage 2 (F 1.5" in text
    assert "beside others of their worker: step 40 dp_rank 0 micro-batch 4" in text
    assert "predict" not in text


def test_a_stage_that_is_slow_everywhere_is_no_slow_worker() -> None:
    seconds = durations()
    seconds[:, :, :, 3] *= 1.6
    found = replay(program("1f1b", 4, 6), Operations.from_frame(table(seconds, [7, 40])))
    assert found.slow_worker is None
    assert found.slow_stage is not None
    assert (found.slow_stage.worker, found.slow_stage.stage) == (None, 3)
    assert any(line.startswith("slow stage: 3 on all 3 workers") for line in describe(found))
    even = replay(program("1f1b", 4, 6), Operations.from_frame(table(durations(), [7, 40])))
    assert even.slow_worker is None
    assert even.slow_stage is None
    assert "no slow worker or stage: none costs a step 1%" in describe(even)


def test_waits_by_who_sent_and_by_who_ran() -> None:
    found = replay(program("gpipe", 2, 2), small())
    # rank 0: F0 F1 ... B0 B1 waits from 2 to 5 for B0 of stage 1, which first runs F1 for another second
    assert found.waited.tolist() == [[[[0, 0], [3, 0]]]]
    assert found.made.tolist() == [[[[0, 0], [2, 1]]]]
    assert (found.head.tolist(), found.tail.tolist()) == ([[[0, 1]]], [[[0, 2]]])


def test_waits_are_followed_to_their_origin() -> None:
    found = replay(program("gpipe", 3, 1), small("gpipe", 3, 1))
    # rank 0 waits from 1 to 7 for stage 1, which itself waits from 2 to 5 for stage 2
    assert found.waited[0, 0, :, 0].tolist() == [0, 6, 3]
    assert found.made[0, 0, :, 0].tolist() == [0, 3, 6]


@pytest.mark.parametrize("schedule", ["1f1b", "gpipe", "eager-1f1b"])
def test_bubbles_add_up(schedule: str) -> None:
    seconds = durations() * np.random.default_rng(1).uniform(0.2, 3, durations().shape)
    ops = Operations.from_frame(table(seconds, [7, 40], schedule))
    order = program(schedule, 4, 6)
    found = replay(order, ops)
    for i, step in enumerate(ops.steps):
        for j, worker in enumerate(ops.workers):
            each = bubbles.find(simulate(order, ops.costs(step, worker)))
            whole = float((each.end - each.start).sum())
            for inner in (found.waited, found.made):
                total = inner[i, j].sum() + found.head[i, j].sum() + found.tail[i, j].sum()
                assert total == pytest.approx(whole, rel=1e-6)


@pytest.mark.parametrize("engine", ["simpy", "compiled"])
def test_counterfactuals_are_simulations_of_changed_costs(engine: Any) -> None:
    seconds = durations() * np.random.default_rng(2).uniform(0.5, 2, durations().shape)
    order = program("1f1b", 4, 6)
    found = replay(order, Operations.from_frame(table(seconds, [7, 40])), engine=engine)

    def span(changed: Floats) -> float:
        return simulate(order, Costs(F=changed[0].tolist(), B=changed[1].tolist())).makespan

    stage = seconds[1, 2].copy()
    stage[:, 3] = np.median(seconds[1], axis=(0, 2, 3))[:, None]
    assert found.without_stage[1, 2, 3] == pytest.approx(span(stage))
    microbatch = seconds[0, 1].copy()
    microbatch[:, :, 5] = np.median(seconds[0, 1], axis=2)
    assert found.without_microbatch[0, 1, 5] == pytest.approx(span(microbatch))
    means = np.broadcast_to(seconds[1].mean(axis=(0, 3))[:, :, None], (2, 4, 6))
    assert found.stage_means[1] == pytest.approx(span(np.asarray(means)))
    others = found.simulated[1, :2].max()
    gained = found.step_span[1] - max(others, found.without_stage[1, 2, 3])
    assert found.saved_by_worker[1, 2, 3] == pytest.approx(gained)


def test_counterfactuals_in_several_batches_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    ops = Operations.from_frame(table(durations(), [7, 40]))
    whole = replay(program("1f1b", 4, 6), ops)
    monkeypatch.setattr("simpipe.simulator.replay.TASKS_AT_ONCE", 1000)
    parts = replay(program("1f1b", 4, 6), ops)
    np.testing.assert_allclose(parts.without_stage, whole.without_stage, rtol=1e-12)
    np.testing.assert_allclose(parts.without_microbatch, whole.without_microbatch, rtol=1e-12)


def test_some_steps_and_workers(good: pd.DataFrame) -> None:
    order, ops = program("1f1b", 4, 6), Operations.from_frame(good)
    whole, part = replay(order, ops), replay(order, ops, steps=[40], workers=[2, 0])
    np.testing.assert_allclose(part.simulated, whole.simulated[[1]][:, [2, 0]])
    np.testing.assert_allclose(part.without_stage, whole.without_stage[[1]][:, [2, 0]])
    assert part.to_frame()[["step", "dp_rank"]].to_numpy().tolist() == [[40, 2], [40, 0]]
    with pytest.raises(CostsError, match=r"has no step 8; it has 7, 40"):
        replay(order, ops, steps=[8])
    with pytest.raises(CostsError, match=r"has no dp_rank 3; it has 0, 1, 2"):
        replay(order, ops, workers=[3])
    with pytest.raises(CostsError, match="at least one step"):
        replay(order, ops, steps=[])


def test_dictionary_is_plain_json(good: pd.DataFrame) -> None:
    found = replay(program("1f1b", 4, 6), Operations.from_frame(good))
    read_back = json.loads(json.dumps(found.to_dict(), allow_nan=False))
    assert read_back["steps"] == [7, 40]
    assert read_back["slow_worker"] is None
    assert len(read_back["by_worker"]) == 3 * 4
    assert len(read_back["by_microbatch"]) == 3 * 6
    assert [row["error"] for row in read_back["rows"]] == pytest.approx([0.0] * 6, abs=1e-12)


@pytest.mark.parametrize(
    ("schedule", "ranks", "microbatches", "message"),
    [
        ("1f1b", 8, 6, "1f1b has 8 stages x 6 micro-batches; the table measured 4 x 6"),
        ("1f1b", 4, 8, "1f1b has 4 stages x 8 micro-batches; the table measured 4 x 6"),
        ("zb-h1", 4, 6, "zb-h1 runs I on its own, but the table measured the whole backward"),
    ],
)
def test_refuses_a_program_that_does_not_fit(
    good: pd.DataFrame, schedule: str, ranks: int, microbatches: int, message: str
) -> None:
    with pytest.raises(CostsError, match=message):
        replay(program(schedule, ranks, microbatches), Operations.from_frame(good))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("duration", -0.5, r"the table, row 3: duration is -0.5; it takes 0 or more seconds"),
        ("duration", np.nan, r"row 3: duration is nan; it takes a finite number"),
        ("duration", np.inf, r"row 3: duration is inf; it takes a finite number"),
        ("duration", 10**400, r"row 3: duration is 10{39}; it takes a finite number"),
        ("duration", "fast", r"row 3: duration is fast; it takes a finite number"),
        ("duration", np.array([1, 2]), r"row 3: duration is \[1 2\]; it takes a finite number"),
        ("optype", [1], r"has no \S+ of micro-batch"),
        ("duration", [1], r"row 3: duration is \[1\]; it takes a finite number"),
        ("start_ts", np.nan, r"row 3: start_ts is nan; it takes a finite number"),
        ("mb_id", -1, r"row 3: mb_id is -1; it takes a whole number, 0 or more"),
        ("mb_id", 10**9, r"has no mb_id 6; it has 0, 1, 2, 3, 4, 5, 1000000000, and they count from 0"),
        ("stage", 0.5, r"row 3: stage is 0.5; it takes a whole number, 0 or more"),
        ("stage", 5, r"has no stage 4; it has 0, 1, 2, 3, 5, and they count from 0"),
        ("step", 2**60, r"row 3: step is \S+; it takes a whole number, 0 or more"),
    ],
)
def test_refuses_a_wrong_value(good: pd.DataFrame, column: str, value: Any, message: str) -> None:
    good[column] = good[column].astype(object)
    good.at[2, column] = value
    with pytest.raises(CostsError, match=message):
        Operations.from_frame(good)


def test_refuses_missing_and_doubled_operations(good: pd.DataFrame) -> None:
    once = "it takes one row for each of 4 stages x 6 micro-batches of every step and dp_rank"
    lost = good[(good["step"] == 7) & (good["dp_rank"] == 1) & (good["stage"] == 2) & (good["mb_id"] == 3)].index[0]
    kind = good.at[lost, "optype"]
    with pytest.raises(CostsError, match=f"step 7, dp_rank 1, stage 2 has no {kind} of micro-batch 3; {once}"):
        Operations.from_frame(good.drop(index=lost))
    last = good[(good["step"] == 40) & (good["optype"] == NAMES["B"])].sort_values(["dp_rank", "stage", "mb_id"])
    with pytest.raises(CostsError, match="step 40, dp_rank 2, stage 3 has no backward-compute of micro-batch 5"):
        Operations.from_frame(good.drop(index=last.index[-1]))
    with pytest.raises(CostsError, match="step 40, dp_rank 2, stage 0 has no forward-compute of micro-batch 0"):
        Operations.from_frame(good[(good["step"] == 7) | (good["dp_rank"] < 2)])
    twice = pd.concat([good, good.loc[[lost]]], ignore_index=True)
    rows = rf"\(rows {lost + 1} and {len(good) + 1}\)"
    with pytest.raises(CostsError, match=f"stage 2 has a second {kind} of micro-batch 3 {rows}; {once}"):
        Operations.from_frame(twice)


def test_refuses_a_table_without_what_it_takes(good: pd.DataFrame) -> None:
    with pytest.raises(CostsError, match="the table has no column 'dp_rank'; it takes the columns step, dp_rank"):
        Operations.from_frame(good.drop(columns="dp_rank"))
    with pytest.raises(CostsError, match="has no computation; it takes rows whose optype is forward-compute or"):
        Operations.from_frame(good[good["optype"] == "optimizer"])
    with pytest.raises(CostsError, match="stage 0 has no backward-compute of micro-batch 0"):
        Operations.from_frame(good[good["optype"] == "forward-compute"])
    with pytest.raises(CostsError, match=r"column 'start_ts' holds datetime64\S+; it takes numbers"):
        Operations.from_frame(good.assign(start_ts=pd.to_datetime(good["start_ts"], unit="s")))
    moving = (good["step"] == 7) | (good["dp_rank"] != 1)
    with pytest.raises(CostsError, match="all durations of step 40, dp_rank 1 are 0 s"):
        Operations.from_frame(good.assign(duration=good["duration"].where(moving, 0.0)))


def test_refuses_clock_times_that_float32_cannot_hold(good: pd.DataFrame) -> None:
    clock = good["start_ts"] + 1.7e9
    span = Operations.from_frame(good).span(7, 0)
    assert Operations.from_frame(good.assign(start_ts=clock)).span(7, 0) == pytest.approx(span, rel=1e-6)
    with pytest.raises(CostsError, match=r"start_ts is float32, which counts in multiples of 128 s at 1.7e\+09 s"):
        Operations.from_frame(good.assign(start_ts=clock.astype(np.float32)))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.txt", b"step\n", r"is no table of operations; its name ends in .parquet or .csv"),
        ("run.csv", b"", r"is empty; it takes the columns step, dp_rank, stage, mb_id, optype, start_ts, duration"),
        ("run.csv", b"\xff\xfe\x00\x81", r"run.csv cannot be read as csv: "),
        ("run.csv", b'a,b\n1,2,3\n"', r"run.csv cannot be read as csv: "),
        ("run.csv", b"hello\n", r"run.csv has no column 'step'"),
        ("run.csv", (",".join(COLUMNS) + "\n").encode(), r"run.csv has no computation"),
        ("run.parquet", b"no parquet", r"run.parquet cannot be read as parquet: "),
        ("run.parquet", b"", r"run.parquet cannot be read as parquet: "),
    ],
)
def test_refuses_a_file_that_is_no_table(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CostsError, match=message) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_refuses_a_missing_file(tmp_path: Path) -> None:
    for name in ("run.csv", "run.parquet"):
        with pytest.raises(CostsError, match=f"{name} is no file"):
            read(tmp_path / name)


def test_says_what_parquet_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run.parquet").write_bytes(b"PAR1")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(CostsError, match=r"reading parquet needs pyarrow; install simpipe\[parquet\], or write .csv"):
        read(tmp_path / "run.parquet")


def real(name: str) -> Operations:
    pytest.importorskip("pyarrow", reason="the measured runs are parquet files: needs simpipe[parquet]")
    path = MEASURED / f"pipeline_trace_{name}.parquet"
    if not path.is_file():
        pytest.skip(f"the measured production runs are not here: {path}")
    return read(path)


def test_production_run_st_is_replayed_within_half_a_percent() -> None:
    found = replay(program("1f1b", ranks=4, microbatches=4), real("ST"))
    assert found.simulated.shape == (32, 2)
    assert found.mean_absolute_error < 0.005
    assert found.error.mean() == pytest.approx(-0.0025, abs=1e-4)
    assert found.slow_worker is None
    assert found.slow_stage is not None
    assert found.slow_stage.stage == 3  # it has the vocabulary head


def test_production_run_ar_is_replayed_within_half_a_percent_and_has_one_slow_worker() -> None:
    found = replay(program("1f1b", ranks=4, microbatches=32), real("AR_first_half"))
    assert found.simulated.shape == (22, 4)
    assert found.mean_absolute_error < 0.005
    assert found.error.mean() == pytest.approx(-0.0023, abs=1e-4)
    assert found.stage_means_error == pytest.approx(0.279, abs=0.001)
    slow = found.slow_worker
    assert slow is not None
    assert (slow.worker, slow.stage) == (0, 0)
    assert (slow.forward, slow.backward) == pytest.approx((2.5, 2.25), rel=0.02)
    assert slow.share > 0.5
    made = found.made.sum(axis=(0, 3))
    assert made[0, 0] > 0.5 * made.sum()
    assert any(line.startswith("slow worker: dp_rank 0, stage 0 ") for line in describe(found))
