"""The overlapped slot: as the published DeepSeek-V3 trace shows it, in order and in time."""

import sys
from pathlib import Path

import pytest

from simpipe.simulator.costs.operators import Passes, Step
from simpipe.simulator.costs.overlap import Laid, lay_out

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
    assert needs(lay_out([LAYER], [], {"F": 0}, False)) == {
        "att": set(), "dispatch": {"att"}, "shared.up": {"dispatch"}, "experts.up": {"shared.up"},
        "combine": {"experts.up"},
    }  # fmt: skip
    names = [piece.step.name for piece in lay_out([], [LAYER], {"B": 0}, False).pieces]
    assert names == ["combine", "mlp.i", "mlp.w", "dispatch", "att.i", "att.w"]


def test_within_a_slot_shared_experts_and_weight_gradients_run_beside_communication() -> None:
    forward = needs(lay_out([LAYER], [], {"F": 0}, True))
    assert forward["shared.up"] == {"att"}
    assert forward["experts.up"] == {"dispatch", "shared.up"}
    backward = needs(lay_out([], [LAYER], {"B": 0}, True))
    assert backward["mlp.w"] == {"mlp.i"}
    assert backward["dispatch"] == {"mlp.i"}


def test_a_weight_gradient_waits_for_what_is_gathered_for_it() -> None:
    gather = Step("mlp.gather", "mlp", "tensor-parallel", nvlink_bytes=1.0)
    layer = LAYER._replace(weight=(gather, step("mlp.w")))
    backward = needs(lay_out([], [layer], {"B": 0}, True))
    assert backward["mlp.gather"] == {"mlp.i"}
    assert backward["mlp.w"] == {"mlp.gather"}
    assert backward["dispatch"] == {"mlp.i"}


def test_split_backwards_hold_their_own_steps() -> None:
    assert [p.step.name for p in lay_out([], [LAYER], {"I": 0}, False).pieces] == [
        "combine", "mlp.i", "dispatch", "att.i"
    ]  # fmt: skip
    assert [p.step.name for p in lay_out([], [LAYER], {"W": 0}, False).pieces] == ["mlp.w", "att.w"]


@pytest.mark.parametrize("layers", [(1, 1), (3, 1), (1, 3), (0, 2)])
def test_an_overlapped_slot_holds_every_step_of_both_once(layers: tuple[int, int]) -> None:
    laid = lay_out([LAYER] * layers[0], [LAYER] * layers[1], {"B": 0, "F": 1}, False)
    parts = [piece.part for piece in laid.pieces]
    assert parts.count(1) == layers[0] * len(LAYER.forward)
    assert parts.count(0) == layers[1] * (len(LAYER.input) + len(LAYER.weight))
    assert all(need < number for number, piece in enumerate(laid.pieces) for need in piece.needs)
    crossing = [p for p in laid.pieces if any(laid.pieces[need].part != p.part for need in p.needs)]
    assert crossing == []
