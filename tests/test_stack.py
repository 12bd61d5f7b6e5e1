"""Software stacks: profiles load and say where figures are from; what each changes follows from kernels and streams."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simpipe import program, simulate
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.operators import head_passes, passes
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.costs.stack import Stack, load_stack, stack_names
from simpipe.simulator.trace import Trace

FUSED = load_stack()
GPT = {"ranks": 2, "gpus": 8, "tp": 4, "global_batch": 8, "sequence": 2048, "sequence_parallel": False}
MIXTURE = {"ranks": 2, "gpus": 16, "ep": 8, "global_batch": 32, "sequence": 4096}


def run(stack: Stack, model: str = "megatron-22b", machine: str = "a100", **given: Any) -> Trace:
    parallel = Parallel.of((MIXTURE if load_model(model).experts else GPT) | given)
    costs = ModelledCosts(load_model(model), load_cluster(machine), parallel, stack=stack)
    return simulate(program("1f1b", ranks=parallel.ranks, microbatches=parallel.microbatches), costs, "compiled")


def with_host(**seconds: float) -> Stack:
    return replace(FUSED, host=replace(FUSED.host, **seconds))


@pytest.mark.parametrize("name", stack_names())
def test_every_figure_has_its_source(name: str) -> None:
    stack = load_stack(name)
    assert stack.name == name
    assert stack.description
    assert {row.key for row in stack.rows()} >= {"fused_attention", "dropout", "host.launch"}
    assert all(len(row.source) > 10 and "no source is given" not in row.source for row in stack.rows())


@pytest.mark.parametrize("flag", ["fused_attention", "fused_loss", "fused_accumulation"])
def test_what_is_not_fused_takes_longer(flag: str) -> None:
    assert run(replace(FUSED, **{flag: False})).makespan > run(FUSED).makespan


def test_dropout_and_waiting_take_longer() -> None:
    assert run(replace(FUSED, dropout=True)).makespan > run(FUSED).makespan
    assert run(with_host(sync=1e-3)).makespan > run(FUSED).makespan + 8 * 1e-3


def test_tensor_operations_move_more_than_fused_kernels() -> None:
    assert run(replace(FUSED, fused_elementwise=False), "llama3-8b").makespan > run(FUSED, "llama3-8b").makespan


def test_copies_for_every_expert_take_longer_than_one_for_each_gpu() -> None:
    copied = run(replace(FUSED, expert_copies=True), "deepseek-v2", "h100")
    assert copied.makespan > run(FUSED, "deepseek-v2", "h100").makespan
    names = set(copied.to_frame()["operation"].astype(str))
    assert {"dispatch", "combine", "dispatch.copies", "combine.copies"} <= names


def test_a_slot_is_never_faster_than_its_kernels_are_launched() -> None:
    quick, slow, slower = (run(with_host(launch=each)) for each in (0.0, 1e-3, 2e-3))
    assert not quick.launch_bound.any()
    np.testing.assert_allclose((slower.slot_end - slower.slot_start)[:-2], 2 * (slow.slot_end - slow.slot_start)[:-2])
    frame = slow.to_frame().query("slot == 0")
    launches = frame[frame["operation"] == "launches"]
    assert (launches["end"] - launches["start"]).item() == pytest.approx(slow.slot_end[0] - slow.slot_start[0])


def test_launches_that_do_not_run_ahead_stretch_short_kernels_only() -> None:
    """Each kernel then lasts a launch at least: more than the longer of both sums, less than both together."""
    kernels, ahead, behind = run(FUSED), run(with_host(launch=1e-4)), run(with_host(launch=1e-4, queued=False))
    assert ahead.makespan < behind.makespan < ahead.makespan + kernels.makespan
    assert "launches" not in set(behind.to_frame()["operation"].astype(str))
    assert run(with_host(launch=1e-9, queued=False)).makespan == pytest.approx(kernels.makespan)


def test_rows_of_an_odd_length_slow_the_head_alone() -> None:
    """A row of 50,257 half-precision logits does not start at 16 bytes; one of 50,264 does."""
    model, parallel = (
        load_model("megatron-22b"),
        Parallel.of({"ranks": 1, "gpus": 8, "global_batch": 8, "sequence": 2048}),
    )
    odd, even = (
        {
            step.name: step.seconds
            for step in head_passes(replace(model, vocabulary=words), load_cluster("a100"), parallel, FUSED).forward
        }
        for words in (50257, 50264)
    )
    assert odd["head"] == pytest.approx(even["head"] / FUSED.unaligned_rate, rel=1e-3)
    assert odd["norms.final"] == even["norms.final"]


def gathered(stack: Stack, precision: str = "fp8") -> dict[str, list[float]]:
    """Bytes over NVLink of what each pass of a layer split over 8 GPUs gathers, by pass."""
    model, given = load_model("llama3-70b"), {"ranks": 1, "gpus": 8, "tp": 8, "global_batch": 1, "sequence": 8192}
    found = passes(model, load_cluster("h100"), Parallel.of(given | {"precision": precision}), stack, model.layer(0))
    return {
        name: [step.nvlink_bytes for step in getattr(found, name) if step.name.endswith(".gather")]
        for name in found._fields
    }


def test_casts_before_gathers_halve_what_fp8_products_gather() -> None:
    cast = replace(FUSED, fp8_gathers=True)
    for name, sizes in gathered(FUSED).items():
        assert gathered(cast)[name] == pytest.approx([size / 2 for size in sizes]), name
    assert gathered(cast, "bf16") == gathered(FUSED, "bf16")


def test_what_is_kept_is_not_gathered_again() -> None:
    kept = gathered(replace(FUSED, keeps_gathered=True))
    assert len(gathered(FUSED)["weight"]) == 2
    assert kept == gathered(FUSED) | {"weight": []}


def test_a_quick_host_changes_nothing() -> None:
    assert run(with_host(launch=1e-9)).makespan == pytest.approx(run(with_host(launch=0.0)).makespan)
