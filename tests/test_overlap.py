"""The overlapped slot: as the published DeepSeek-V3 trace shows it, in order and in time."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simpipe import program, simulate
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.operators import Passes, mtp_passes
from simpipe.simulator.costs.overlap import Laid, lay_out
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.costs.share import Step

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import overlapped_slot as bench


def test_the_published_slot_is_replayed_in_order_and_within_three_percent() -> None:
    """129.0 ms; busy times alone give 121.8; the two constants are fitted on layers 0 and 1."""
    phases = bench.read()
    assert bench.span(bench.slot(bench.Replay(bench.passes(phases, 0, 0)))) == pytest.approx(121.8e-3, rel=1e-3)
    gap, share = bench.fit(phases)
    trace = bench.slot(bench.Replay(bench.passes(phases, gap, share)))
    assert bench.span(trace) == pytest.approx(bench.SPAN, rel=0.03)
    assert bench.simulated_order(trace, "compute") == bench.recorded_order(phases, 7)
    assert bench.simulated_order(trace, "expert-parallel") == bench.recorded_order(phases, 27)


def test_layers_that_the_fit_has_not_seen() -> None:
    phases = bench.read()
    gap, share = bench.fit(phases)
    unseen = bench.span(bench.slot(bench.Replay(bench.passes(phases, gap, share, (2, 3)))))
    last = phases[3, "attn(W)", 7]
    measured = last.start + last.wall - phases[2, "combine(B)", 27].start
    assert unseen == pytest.approx(measured, rel=0.03)


def test_the_published_slot_from_shapes_alone() -> None:
    assert bench.from_shapes() == pytest.approx(bench.SPAN, rel=0.1)


def step(name: str, seconds: float = 1.0, sends: float = 0.0) -> Step:
    phase = name.partition(".")[0]
    phase = phase if phase in ("dispatch", "combine") else "attention" if name.startswith("att") else "mlp"
    stream = "expert-parallel" if sends else "compute"
    return Step(name, phase, stream, seconds, seconds, network_bytes=sends)


LAYER = Passes(
    (step("att"), step("dispatch", 0, 1), step("shared.up"), step("experts.up"), step("combine", 0, 1)),
    (step("combine", 0, 1), step("mlp.i"), step("dispatch", 0, 1), step("att.i")),
    (step("mlp.w"), step("att.w")),
)


def needs(laid: Laid) -> dict[str, set[str]]:
    return {piece.step.name: {laid.pieces[n].step.name for n in piece.needs} for piece in laid.pieces}


def test_a_plain_slot_is_a_chain() -> None:
    assert needs(lay_out([LAYER], [], {"F": 0}, "none")) == {
        "att": set(), "dispatch": {"att"}, "shared.up": {"dispatch"}, "experts.up": {"shared.up"},
        "combine": {"experts.up"},
    }  # fmt: skip
    names = [piece.step.name for piece in lay_out([], [LAYER], {"B": 0}, "none").pieces]
    assert names == ["combine", "mlp.i", "mlp.w", "dispatch", "att.i", "att.w"]


def test_within_a_slot_shared_experts_and_weight_gradients_run_beside_communication() -> None:
    forward = needs(lay_out([LAYER], [], {"F": 0}, "within-slot"))
    assert forward["shared.up"] == {"att"}
    assert forward["experts.up"] == {"dispatch", "shared.up"}
    backward = needs(lay_out([], [LAYER], {"B": 0}, "within-slot"))
    assert backward["mlp.w"] == {"mlp.i"}
    assert backward["dispatch"] == {"mlp.i"}


def test_a_weight_gradient_waits_for_what_is_gathered_for_it() -> None:
    gather = Step("mlp.gather", "mlp", "tensor-parallel", nvlink_bytes=1.0)
    layer = LAYER._replace(weight=(gather, step("mlp.w")))
    backward = needs(lay_out([], [layer], {"B": 0}, "within-slot"))
    assert backward["mlp.gather"] == {"mlp.i"}
    assert backward["mlp.w"] == {"mlp.gather"}
    assert backward["dispatch"] == {"mlp.i"}


def test_split_backwards_hold_their_own_steps() -> None:
    assert [p.step.name for p in lay_out([], [LAYER], {"I": 0}, "none").pieces] == [
        "combine", "mlp.i", "dispatch", "att.i"
    ]  # fmt: skip
    assert [p.step.name for p in lay_out([], [LAYER], {"W": 0}, "none").pieces] == ["mlp.w", "att.w"]


@pytest.mark.parametrize("layers", [(1, 1), (3, 1), (1, 3), (0, 2)])
def test_an_overlapped_slot_holds_every_step_of_both_once(layers: tuple[int, int]) -> None:
    laid = lay_out([LAYER] * layers[0], [LAYER] * layers[1], {"B": 0, "F": 1}, "none")
    parts = [piece.part for piece in laid.pieces]
    assert parts.count(1) == layers[0] * len(LAYER.forward)
    assert parts.count(0) == layers[1] * (len(LAYER.input) + len(LAYER.weight))
    assert all(need < number for number, piece in enumerate(laid.pieces) for need in piece.needs)
    crossing = [p for p in laid.pieces if any(laid.pieces[need].part != p.part for need in p.needs)]
    assert crossing == []


def tensor(name: str) -> Step:
    return Step(name, "mlp", "tensor-parallel", nvlink_bytes=1.0)


SPLIT = Passes(
    (step("mlp.up"),),
    (step("mlp.down"), step("mlp.up"), tensor("mlp.up.scatter"), step("norms.mlp")),
    (step("mlp.down"), tensor("mlp.up.gather"), step("mlp.up")),
)
"""A sequence-parallel MLP."""


def numbered(laid: Laid) -> list[tuple[str, tuple[int, ...]]]:
    return [(piece.step.name, piece.needs) for piece in laid.pieces]


def test_weight_gradients_run_beside_the_reduction_of_the_input_gradient() -> None:
    """As Megatron-LM: gather beside the input's product, weights' products beside the reduce-scatter."""
    assert numbered(lay_out([], [SPLIT], {"B": 0}, "within-slot")) == [
        ("mlp.down", ()),
        ("mlp.up.gather", (0,)),
        ("mlp.up", (0,)),
        ("mlp.up.scatter", (2,)),
        ("mlp.down", (2,)),
        ("mlp.up", (2, 1)),
        ("norms.mlp", (3,)),
    ]
    chain = [piece.needs for piece in lay_out([], [SPLIT], {"B": 0}, "none").pieces]
    assert chain == [(), *((n,) for n in range(6))]


@pytest.mark.parametrize("kind", ["I", "W", "B"])
@pytest.mark.parametrize("overlap", ["within-slot", "none"])
def test_every_step_is_there_once_and_gradients_are_complete_with_its_last(kind: str, overlap: str) -> None:
    laid = lay_out([], [SPLIT, LAYER], {kind: 0}, overlap)
    chains = [*(SPLIT.input + LAYER.input) * (kind != "W"), *(SPLIT.weight + LAYER.weight) * (kind != "I")]
    assert sorted(piece.step.name for piece in laid.pieces) == sorted(chain.name for chain in chains)
    made = [(laid.pieces[g.piece].step.name, g.number, g.leg) for g in laid.gradients]
    expected = [("mlp.up", 1, "mlp"), ("mlp.w", 0, "mlp"), ("att.w", 0, "attention")]  # number 0 runs last
    assert made == (expected if kind != "I" else [])


def test_overlap_hides_tensor_parallel_collectives_in_the_backward() -> None:
    """A node of 8 H100, sequence parallel or not; what is exposed in the forward stays."""
    for sequence_parallel in (True, False):
        exposed = []
        for overlap in ("none", "within-slot"):
            parallel = Parallel.of(
                {"ranks": 1, "gpus": 8, "tp": 8, "global_batch": 2, "sequence": 8192, "overlap": overlap, "zero": 0}
                | {"sequence_parallel": sequence_parallel}
            )
            given = ModelledCosts(replace(load_model("llama3-70b"), layers=4), load_cluster("h100"), parallel)
            trace = simulate(program("1f1b", ranks=1, microbatches=2), given)
            exposed.append(float(trace.exposed_communication.sum()))
        assert 0.4 * exposed[0] < exposed[1] < 0.85 * exposed[0]


def test_mtps_layer_is_laid_out_as_any_other() -> None:
    """Its dispatch and combine run beside the other pass of the slot."""
    parallel = Parallel.of({"ranks": 4, "gpus": 256, "ep": 64, "global_batch": 512, "sequence": 4096})
    given = ModelledCosts(load_model("deepseek-v3"), load_cluster("h800"), parallel)
    join, layer, head = mtp_passes(given.model, given.cluster, parallel, given.stack)
    laid = lay_out([join, layer, head], [head, layer, join], {"F": 0, "B": 1}, "none")
    dispatched = next(n for n, p in enumerate(laid.pieces) if p.step.name == "dispatch" and p.part == 0)
    grown = next(p for p in laid.pieces[dispatched:] if p.part == 1 and p.step.name == "experts.up")
    assert dispatched not in grown.needs
    assert [(g.number, g.leg) for g in laid.gradients] == [
        (2, "attention"), (1, "mlp"), (1, "attention"), (0, "attention")
    ]  # fmt: skip


def test_a_serial_pair_is_a_chain_of_the_forward_and_then_the_backward() -> None:
    laid = lay_out([LAYER], [LAYER], {"F": 0, "B": 1}, "serial")
    alone = [
        piece.step
        for kind in ("F", "B")
        for piece in lay_out([LAYER] * (kind == "F"), [LAYER] * (kind == "B"), {kind: 0}, "none").pieces
    ]
    assert [piece.step for piece in laid.pieces] == alone
    assert [piece.needs for piece in laid.pieces] == [(), *((index,) for index in range(len(alone) - 1))]
