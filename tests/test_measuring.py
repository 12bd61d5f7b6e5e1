"""A real PyTorch pipeline runs the actions of our programs, in their order; its times are no test's business."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simpipe.cli import app
from simpipe.schedules import program
from simpipe.simulator.costs.model import GroupedAttention, Mlp, Model, ModelError
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.trace import simulate

pytest.importorskip("torch", reason="PyTorch runs the pipelines: needs simpipe[measure]")

import torch

from simpipe.simulator.measuring import chunks, collectives, kernels, pipeline

TINY = Model(
    name="tiny",
    source="this test",
    layers=4,
    hidden=16,
    vocabulary=16,
    attention=GroupedAttention(heads=2, kv_heads=1, head_dim=8),
    mlp=Mlp(intermediate=16),
)

OURS = {
    "GPipe": "gpipe",
    "1F1B": "1f1b",
    "Interleaved1F1B": "interleaved-1f1b",
    "InterleavedZeroBubble": "interleaved-zb",
    "ZBVZeroBubble": "zb-v",
}


@pytest.fixture(scope="module")
def ran() -> dict[str, pipeline.Run]:
    """One step of each schedule in two processes."""
    size = pipeline.Size(ranks=2, microbatches=4, microbatch_size=1, sequence=4, steps=1, repeats=1)
    return {each.name: each for each in pipeline.run(TINY, list(pipeline.SCHEDULES), size)}


def test_every_schedule_has_one_of_ours() -> None:
    assert set(OURS) == set(pipeline.SCHEDULES)


@pytest.mark.parametrize("name", OURS)
def test_a_real_pipeline_runs_our_programs_actions_in_order(ran: dict[str, pipeline.Run], name: str) -> None:
    ours = program(OURS[name], ranks=2, microbatches=4)
    for step in ran[name].steps:
        assert [[each.action for each in row] for row in step] == [
            [a for slot in row for a in slot] for row in ours.order
        ]


@pytest.mark.parametrize("name", OURS)
def test_chunks_timed_alone_predict_a_span(ran: dict[str, pipeline.Run], name: str) -> None:
    one = ran[name]
    assert one.seconds.shape == (len(one.program.placement[0]) * 2, 4)
    assert one.seconds[0, 1] == 0  # the first stage has no input to differentiate for
    assert (one.seconds[:, [0, 2, 3]] > 0).all()
    predicted = simulate(one.program, one.costs).makespan
    assert predicted > one.seconds[:, 0].sum()
    assert one.spans[0] > 0


def test_a_model_that_cannot_be_run_is_refused() -> None:
    with pytest.raises(ModelError, match="deepseek-v3 cannot be run as a small pipeline"):
        chunks.check(load_model("deepseek-v3"))


def test_measure_times_a_layer_and_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    profile = tmp_path / "tiny.toml"
    profile.write_text(
        'source = "this test"\nlayers = 2\nhidden = 32\nvocabulary = 64\n[attention]\nkind = "grouped"\nheads = 2\n'
        "kv_heads = 1\nhead_dim = 16\n[mlp]\nintermediate = 48\n[experts]\nrouted = 4\ntopk = 2\nintermediate = 16\n"
        "first_dense = 1\n"
    )
    monkeypatch.setattr(kernels, "BUDGET", 0.0)
    table = tmp_path / "timings.csv"
    command = ["measure", "--model", str(profile), "--sequence", "8", "--device", "cpu", "--out", str(table)]

    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped:
        stopped.setitem(kernels.CALLS, "swiglu_backward", stop)
        CliRunner().invoke(app, command)
    begun = table.read_text().splitlines()
    assert len(begun) > 5
    done = CliRunner().invoke(app, [*command, "--json"])
    assert done.exit_code == 0, done.output
    rows = table.read_text().splitlines()
    assert rows[: len(begun)] == begun  # not timed again
    times = json.loads(done.stdout)
    assert set(times["attention.qkv"]) == set(times["experts.up"]) == {"forward", "input", "weight"}
    assert {"router", "loss", "norms.mlp", "norms.mlp.add", "attention.rotary", "embedding.tokens"} <= set(times)
    assert all(seconds > 0 for each in times.values() for seconds in each.values())
    assert "nothing to measure" in str(CliRunner().invoke(app, ["measure"]).exception)
    assert "ends in .csv" in str(CliRunner().invoke(app, ["measure", "--model", "x", "--out", "a.txt"]).exception)
    assert "it is cpu or cuda" in str(CliRunner().invoke(app, [*command, "--device", "tpu"]).exception)
    assert "it is 1 (no collectives) to 16" in str(CliRunner().invoke(app, [*command, "--processes", "99"]).exception)


def test_measure_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("simpipe.simulator.measuring")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    failed = CliRunner().invoke(app, ["measure", "--model", "llama3-8b"])
    assert str(failed.exception) == "measuring needs PyTorch: pip install 'simpipe[measure]'"


def test_collectives_are_timed_by_size() -> None:
    found = collectives.measure("all_reduce", ranks=2, device="cpu")
    assert [size for size, _ in found] == collectives.sizes("cpu")
    assert all(timing.seconds > 0 for _, timing in found)


def test_a_process_that_fails_is_one_sentence() -> None:
    if torch.cuda.is_available():
        pytest.skip("here are GPUs, which processes can use")
    with pytest.raises(SimpipeError, match=r"^all_reduce among 2 processes failed: [^\n]+$"):
        collectives.measure("all_reduce", ranks=2, device="cuda")


def test_a_gpus_times_lie_between_its_events(monkeypatch: pytest.MonkeyPatch) -> None:
    """A queue as a CUDA stream is one: what is launched runs later, in order, and events take the time when it does."""
    queue: list[tuple[Any, float]] = []
    began = {"now": 0.0}

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing
            self.at: float | None = None

        def record(self) -> None:
            queue.append((self, 0.0))

        def elapsed_time(self, other: Event) -> float:
            assert self.at is not None
            assert other.at is not None
            return 1e3 * (other.at - self.at)

    class Cache:
        def zero_(self) -> None:
            queue.append(("other", 1e-4))

    def synchronize() -> None:
        for what, seconds in queue:
            began["now"] += seconds
            if isinstance(what, Event):
                what.at = began["now"]
        ran.extend(queue)
        queue.clear()

    ran: list[tuple[Any, float]] = []
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", synchronize)
    monkeypatch.setattr(torch, "empty", lambda *_, **__: Cache())
    times = iter([1.0, 0.02, 0.01, 0.03, 0.02])  # the first is the warm-up
    found = kernels.timed(lambda: queue.append(("call", next(times))), torch.device("cuda"), repeats=3)
    assert found == (pytest.approx(0.02), 3)
    names = ["event" if isinstance(what, Event) else what for what, _ in ran]
    assert names[-15:] == ["other"] * 3 + ["other", "event", "call", "event"] * 3


def test_a_piece_too_large_for_a_gpu_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError

    monkeypatch.setattr(kernels, "time_piece", full)
    table = tmp_path / "t.csv"
    command = ["measure", "--model", "llama3-8b", "--sequence", "8", "--device", "cpu", "--out", str(table)]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "left out, too large for the memory here: attention.qkv weight m=4096 n=6144 k=8" in done.stderr
