"""A recorded run becomes a trace with the figures of a simulated one; a profile that is none gets one sentence."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from simpipe.cli import app
from simpipe.schedules import program
from simpipe.simulator import bubbles, views
from simpipe.simulator.costs import measured
from simpipe.simulator.costs.given import Costs
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.recorded import of_operations, per_stage, read
from simpipe.simulator.summary import summarize
from simpipe.simulator.trace import Trace, simulate

FOLDER = Path(__file__).parent / "recorded"


def profiles(
    trace: Trace, folder: Path, prefix: str = "", shift: tuple[float, ...] = (), repeats: int = 1
) -> list[str]:
    """A run as profiles of its ranks, as Kineto writes them; each rank's clock shifted by some seconds."""
    graph = trace.graph
    events: dict[int, list[dict[str, Any]]] = {rank: [] for rank in range(graph.ranks)}
    for step in range(repeats):
        for row in trace.slots().itertuples():
            rank = int(row.rank)
            start = row.start + step * 2 * trace.makespan + (shift[rank] if shift else 0.0)
            name = f"{prefix}{row.stage}{row.kind}{row.microbatch}"
            event = {
                "ph": "X",
                "cat": "user_annotation",
                "name": name,
                "ts": start * 1e6,
                "dur": (row.end - row.start) * 1e6,
            }
            events[rank].append(event)
    paths = []
    for rank, found in events.items():
        paths.append(str(folder / f"rank{rank}.json"))
        other = {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "ts": 0, "dur": 1}
        text = json.dumps({"baseTimeNanoseconds": 10**18, "traceEvents": [other, *found]})
        Path(paths[-1]).write_text(text)
    return paths


@pytest.mark.parametrize(
    ("schedule", "ranks", "microbatches"), [("1f1b", 4, 6), ("zb-h1", 4, 6), ("zb-v", 2, 4), ("interleaved-1f1b", 2, 4)]
)
def test_a_simulated_run_that_is_recorded_comes_back(
    schedule: str, ranks: int, microbatches: int, tmp_path: Path
) -> None:
    ours = simulate(program(schedule, ranks, microbatches), Costs(F=1, I=1.25, W=0.75, p2p=0.25))
    found = read(profiles(ours, tmp_path, prefix="PP:"))
    assert found.trace.program == ours.program
    assert not found.moved.any()
    np.testing.assert_allclose(found.trace.slot_start, ours.slot_start, atol=1e-8)
    np.testing.assert_allclose(found.trace.slot_end, ours.slot_end, atol=1e-8)
    theirs, expected = summarize(found.trace), summarize(ours)
    for name in ("makespan", "ideal", "bubble_time", "peak_activations"):
        assert getattr(theirs, name) == pytest.approx(getattr(expected, name), abs=1e-6)
    for one, other in zip(theirs.per_rank, expected.per_rank, strict=True):
        assert sum(one.bubble_causes.values()) == pytest.approx(other.bubble_time, abs=1e-6)
        assert one.bubble_causes["warm_up"] == pytest.approx(other.bubble_causes["warm_up"], abs=1e-6)
    free = simulate(ours.program, Costs(F=1, I=1.25, W=0.75))
    assert found.replayed().makespan == pytest.approx(free.makespan)


def test_clocks_that_contradict_cause_and_effect_are_moved_by_the_least(tmp_path: Path) -> None:
    ours = simulate(program("1f1b", 3, 6), Costs(F=1, B=2))
    found = read(profiles(ours, tmp_path, shift=(0.0, -0.5, 0.0)))
    np.testing.assert_allclose(found.moved, [0, 0.5, 0], atol=1e-6)
    assert found.trace.makespan == pytest.approx(ours.makespan)
    stretched = simulate(program("1f1b", 2, 2), Costs(F=1, B=2))
    one, other = profiles(stretched, tmp_path)
    late = json.loads(Path(one).read_text())
    for event in late["traceEvents"]:
        if event["name"] == "0B0":
            event["ts"] = 2.5e6  # before 1B0 has ended, whatever the clocks
    Path(one).write_text(json.dumps(late))
    with pytest.raises(
        SimpipeError, match=r"0B0 starts \S+ s before 1B0 has ended, which it needs, and no shift of clocks"
    ):
        read([one, other])


def test_a_late_start_has_its_own_cause(tmp_path: Path) -> None:
    ours = simulate(program("gpipe", 1, 2), Costs(F=1, B=2))
    (path,) = profiles(ours, tmp_path)
    late = json.loads(Path(path).read_text())
    for event in late["traceEvents"]:
        if event["name"] == "0B1":
            event["ts"] += 0.5e6
    Path(path).write_text(json.dumps(late))
    assert summarize(read([path]).trace).bubble_causes["late_start"] == pytest.approx(0.5)
    assert not bubbles.find(ours).causes[:, bubbles.LATE].any()


def test_steps_are_told_apart(tmp_path: Path) -> None:
    ours = simulate(program("1f1b", 2, 3))
    paths = profiles(ours, tmp_path, repeats=3)
    assert read(paths).recording.label == "step 1"  # all are as long, so the middle one
    assert read(paths, step=2).trace.makespan == pytest.approx(ours.makespan)
    assert read([str(tmp_path)], step=0).trace.program == ours.program
    with pytest.raises(SimpipeError, match="has no step 3; it has 3, counted from 0"):
        read(paths, step=3)


def test_profiles_that_pytorch_recorded(tmp_path: Path) -> None:
    v = read(
        [str(FOLDER / f"ZBVZeroBubble-rank{rank}.json.gz") for rank in (1, 0)]
    )  # in any order: they say their rank
    assert v.trace.program == program("zb-v", ranks=2, microbatches=4)
    gpipe = [FOLDER / f"GPipe-rank{rank}.json.gz" for rank in (0, 1)]
    assert read([str(path) for path in gpipe]).trace.program == program("gpipe", ranks=2, microbatches=4)
    for found in (v, read([str(path) for path in gpipe])):
        summary = summarize(found.trace)
        for rank in summary.per_rank:
            assert rank.busy + rank.bubble_time == pytest.approx(summary.makespan)
            assert sum(rank.bubble_causes.values()) == pytest.approx(rank.bubble_time)
    for path in gpipe:  # with PyTorch's own names alone
        document = json.loads(gzip.decompress(path.read_bytes()))
        document["traceEvents"] = [e for e in document["traceEvents"] if e["name"].startswith(("Forward", "Backward"))]
        (tmp_path / path.name).write_bytes(gzip.compress(json.dumps(document).encode(), mtime=0))
    assert read([str(tmp_path)]).trace.program == program("gpipe", ranks=2, microbatches=4)
    written = [
        path for name in ("a.html", "a.png", "a.csv", "a.json") for path in views.write(v.trace, tmp_path / name)
    ]
    assert all(path.stat().st_size > 0 for path in written)


def test_ranges_count_as_they_ran_on_the_gpu(tmp_path: Path) -> None:
    """The launching thread runs ahead; another stream has shorter ranges of the same names."""
    path = tmp_path / "rank0.json"
    launched = [{"name": f"PP:{name}", "ts": at, "dur": 1, "tid": 1} for at, name in enumerate(("0F0", "0B0"))]
    gpu = [
        {**event, "cat": "gpu_user_annotation", "ts": 100 * at + shift, "dur": seconds, "tid": stream}
        for at, event in enumerate(launched)
        for stream, shift, seconds in ((7, 0, 80), (20, 80, 10))
    ]
    path.write_bytes(profile(*launched, *gpu))
    found = read([str(path)]).trace
    np.testing.assert_allclose(found.slot_start, [0, 100e-6])
    np.testing.assert_allclose(found.slot_end, [80e-6, 180e-6])


def test_costs_by_stage_are_read_back(tmp_path: Path) -> None:
    ours = simulate(program("zb-v", 2, 4), Costs(F=1, I=1.25, W=0.75, p2p=0.25))
    (tmp_path / "costs.toml").write_text(per_stage(read(profiles(ours, tmp_path))))
    costs = Costs.read(tmp_path / "costs.toml")
    assert np.asarray(costs.F).tolist() == pytest.approx([0.5] * 4)
    assert np.asarray(costs.W).tolist() == pytest.approx([0.375] * 4)
    assert costs.p2p == pytest.approx(0.25)


def table(tmp_path: Path) -> Path:
    """Two steps of two workers: step 5 of worker 1 is the slowest."""
    rows = []
    for step, worker, factor in ((3, 0, 1.0), (3, 1, 1.0), (5, 0, 1.0), (5, 1, 1.5)):
        ours = simulate(program("1f1b", 2, 3), Costs(F=factor, B=2 * factor)).slots()
        kind = ours["kind"].astype(str).map({"F": "forward-compute", "B": "backward-compute"})
        columns = {"step": step, "dp_rank": worker, "stage": ours["stage"], "mb_id": ours["microbatch"], "optype": kind}
        rows.append(pd.DataFrame(columns).assign(start_ts=100 + ours["start"], duration=ours["end"] - ours["start"]))
    path = tmp_path / "run.csv"
    pd.concat(rows).to_csv(path, index=False)
    return path


def test_a_production_table_becomes_a_trace(tmp_path: Path) -> None:
    path = str(table(tmp_path))
    assert read([path]).recording.label == "step 3 dp_rank 0"
    slowest = read([path], step=5)
    assert slowest.recording.label == "step 5 dp_rank 1"
    expected = simulate(program("1f1b", 2, 3), Costs(F=1.5, B=3))
    assert slowest.trace.program == expected.program
    assert slowest.trace.makespan == pytest.approx(expected.makespan)
    assert read([path], step=5, worker=0).trace.makespan == pytest.approx(expected.makespan / 1.5)


def test_a_table_in_another_order_than_a_program_is_refused(tmp_path: Path) -> None:
    operations = measured.read(table(tmp_path))
    assert of_operations(operations, 5, 1, program("1f1b", 2, 3)).recording.label == "step 5 dp_rank 1"
    with pytest.raises(
        SimpipeError, match="rank 0 ran 0B0 where gpipe has 0F2; recorded and simulated runs are compared"
    ):
        of_operations(operations, 5, 1, program("gpipe", 2, 3))
    with pytest.raises(SimpipeError, match="it has 12 actions on 2 ranks, but 1f1b 16 on 2"):
        of_operations(operations, 5, 1, program("1f1b", 2, 4))


def test_command_lines(tmp_path: Path) -> None:
    path, out = str(table(tmp_path)), tmp_path / "costs.toml"
    done = CliRunner().invoke(
        app, ["import-trace", path, "--step", "5", "--out", str(out), "--out", str(tmp_path / "a.html")]
    )
    assert done.exit_code == 0, done.output
    assert "recorded step 5 dp_rank 1: 2 ranks x 3 micro-batches" in done.stdout
    assert "replayed with its own durations and free links: " in done.stdout
    assert Costs.read(out).F == [0.75 * 2] * 2
    figures = json.loads(CliRunner().invoke(app, ["import-trace", path, "--json"]).stdout)
    assert figures["replayed_makespan"] == pytest.approx(figures["makespan"])
    compared = ["compare", "--trace", path, "--out", str(tmp_path / "b.html")]
    rows = json.loads(CliRunner().invoke(app, [*compared, "--json"]).stdout)["schedules"]
    assert [row["schedule"] for row in rows] == ["run.csv", "run.csv, replayed"]
    beside = CliRunner().invoke(app, [*compared, "--schedule", "gpipe", "--costs", str(out), "--json"])
    assert {row["schedule"] for row in json.loads(beside.stdout)["schedules"]} == {"run.csv", "gpipe"}


def profile(*events: dict[str, Any], **more: Any) -> bytes:
    return json.dumps(
        {"schemaVersion": 1, **more, "traceEvents": [{"cat": "user_annotation", **e} for e in events]}
    ).encode()


F0, B0 = {"name": "0F0", "ts": 0, "dur": 10}, {"name": "0B0", "ts": 20, "dur": 10}


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "is empty"),
        (b"hello", "is no PyTorch profile and no table"),
        (b'{"traceEvents": [', "is truncated or no JSON"),
        (b'{"traceEvents": ' + b"[" * 5000 + b"]" * 5000 + b"}", "is no sound trace|is nested deeper"),
        (b'{"traceEvents": [{"name": 3}]}', "is no sound trace"),
        (gzip.compress(profile(F0, B0), mtime=0)[:40], "is truncated or no sound gzip file"),
        (profile(), "has no range that names an action, as 0F3"),
        (profile({"name": "forward", "ts": 0, "dur": 10}), "has no range that names an action"),
        (profile(F0), "stage 0, micro-batch 0 has no backward"),
        (profile({**F0, "ts": "soon"}, B0), "ts of event '0F0' is a number of microseconds, not 'soon'"),
        (profile({**F0, "dur": -1}, B0), "dur of event '0F0' is 0 or more, not -1"),
        (profile({**F0, "dur": None}, B0), "dur of event '0F0' is a number of microseconds"),
        (profile(F0, {**B0, "ts": 5}), "rank 0 runs 0F0 and 0B0 at once"),
        (profile({**F0, "name": "999999F999999"}, B0), "0F0 is missing"),
    ],
)  # fmt: skip
def test_a_profile_that_is_none_gets_one_sentence(data: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rank0.json"
    path.write_bytes(data)
    with pytest.raises(SimpipeError, match=message) as caught:
        read([str(path)])
    assert "\n" not in str(caught.value)


def test_what_does_not_belong_together_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rank0.json"
    path.write_bytes(profile(F0, B0))
    with pytest.raises(SimpipeError, match="both run 0F0; give the profiles of one pipeline's ranks"):
        read([str(path), str(path)])
    path.write_bytes(profile({**F0, "ts": 50}, B0))
    with pytest.raises(SimpipeError, match="deadlock: "):
        read([str(path)])
    with pytest.raises(SimpipeError, match="--worker chooses from a table"):
        read([str(path)], worker=0)
    with pytest.raises(SimpipeError, match="give it alone"):
        read([str(table(tmp_path)), str(path)])
    (tmp_path / "empty").mkdir()
    with pytest.raises(SimpipeError, match="holds no profile: no file in it ends in "):
        read([str(tmp_path / "empty")])
    with pytest.raises(SimpipeError, match="cannot be read"):
        read([str(tmp_path / "none.json")])
