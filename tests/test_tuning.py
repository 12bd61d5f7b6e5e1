"""Tuning communication kernels: the landscape, what is written of it, and what cannot be tuned."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simpipe.cli import app
from simpipe.simulator import tuning
from simpipe.simulator.costs import exchange_kernels
from simpipe.simulator.costs.exchange_kernels import KernelSetting
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.phases import overlapped_slot
from simpipe.simulator.scenario import Scenario
from simpipe.simulator.trace import simulate
from simpipe.simulator.tuning import CHUNKS, SMS, WARPS, Landscape, Tried, completed, tune
from simpipe.simulator.views import landscape

ASKED = {"schedule": "dualpipe", "model": "deepseek-v3", "hardware": "h800", "ep": 64}


@pytest.fixture(scope="module")
def found() -> Landscape:
    return tune(Scenario.of(completed(ASKED)))


def by_setting(found: Landscape) -> dict[KernelSetting, Tried]:
    return {tried.setting: tried for tried in found.tried}


def test_all_settings_are_tried_once_and_the_best_is_the_shortest_slot(found: Landscape) -> None:
    assert len(found.tried) == len(by_setting(found)) == len(SMS) * len(WARPS) * len(CHUNKS)
    assert found.best.slot == min(tried.slot for tried in found.tried)
    assert found.given.setting == KernelSetting(20, "dynamic", 8)


def test_the_shortest_slot_is_not_the_fastest_communication(found: Landscape) -> None:
    """Few SMs hide what they do; more are taken from the computation that hides it."""
    assert found.best.communication > found.fastest.communication
    assert found.best.slot < 0.97 * found.fastest.slot
    assert found.best.setting.sms < found.fastest.setting.sms


def test_what_limits_turns_from_communication_to_computation(found: Landscape) -> None:
    of = by_setting(found)
    slots = [of[KernelSetting(sms, "dynamic", 8)].slot for sms in SMS]
    turn = slots.index(min(slots))
    assert 0 < turn < len(slots) - 1
    assert slots[: turn + 1] == sorted(slots[: turn + 1], reverse=True)
    assert slots[turn:] == sorted(slots[turn:])


def test_dynamic_warps_gain_where_warps_limit(found: Landscape) -> None:
    of = by_setting(found)
    gains = [
        of[KernelSetting(sms, "static", 8)].slot / of[KernelSetting(sms, "dynamic", 8)].slot - 1 for sms in (4, 8, 20)
    ]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 0.3
    assert gains[-1] < 0.01
    assert found.best.setting.warps == "dynamic"


def test_large_chunks_take_the_cache_from_computation(found: Landscape) -> None:
    of = by_setting(found)
    slots = [of[KernelSetting(20, "dynamic", chunk)].slot for chunk in CHUNKS[1:]]
    assert slots == sorted(slots)


def test_what_an_assumption_decides_is_told(found: Landscape) -> None:
    """Chunks fill the L2 cache; how much that slows computation is assumed, and decides how small they should be."""
    assert found.unslowed is not None
    assert found.unslowed.slot < found.best.slot
    assert found.unslowed.setting.chunk_tokens > found.best.setting.chunk_tokens
    (told,) = landscape.caveat(found)
    assert "exchange.l2_exponent = 0.1" in told
    assert f"{found.unslowed.slot * 1e3:.2f} ms" in told
    assert tuning.to_dict(found)["best_if_l2_slows_nothing"]["slot_seconds"] == found.unslowed.slot
    assert landscape.caveat(found._replace(unslowed=None)) == []


def test_the_slot_takes_what_it_does_in_a_pipeline(found: Landscape) -> None:
    """A run of the pipeline that the slot is taken from, messages and all, has it as long."""
    model, cluster, parallel = found.scenario.load()[:3]
    stage, layout = tuning._stage(model, replace(parallel, **tuning.keys(found.best.setting)))
    trace = simulate(tuning._program(found.timed)[0], tuning.ModelledCosts(stage, cluster, layout))
    assert overlapped_slot(trace) == pytest.approx(found.best.slot)


def test_the_slot_is_that_of_a_run_with_its_setting(found: Landscape) -> None:
    """Tuning a tuned scenario changes nothing, and its own setting is then the best."""
    assert found.tuned.parallel == replace(found.scenario.parallel, **tuning.keys(found.best.setting))
    model, cluster = found.tuned.load()[:2]
    stage, layout = tuning._stage(model, found.tuned.parallel)
    again = tuning._tried(tuning.ModelledCosts(stage, cluster, layout), found.timed, found.best.setting)
    assert again[1:] == pytest.approx(found.best[1:])


@pytest.mark.parametrize(("schedule", "timed"), [("1f1b", "F and B slots"), ("zb-h1", "F, I and W slots")])
def test_a_schedule_without_overlapped_slots_is_tuned_for_those_it_has(
    found: Landscape, schedule: str, timed: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing hides an exchange of theirs, so few SMs cost what they do not where an F&B slot hides it."""
    monkeypatch.setattr(tuning, "SMS", (4, 20))
    monkeypatch.setattr(tuning, "CHUNKS", (8,))
    chained = tune(Scenario.of(completed(ASKED | {"schedule": schedule, "gpus": 128})))
    assert chained.timed == timed
    assert f": {timed} of 4 layers under 4 settings" in landscape.headline(chained)
    few, more = (by_setting(chained)[KernelSetting(sms, "dynamic", 8)] for sms in (4, 20))
    assert chained.best == more
    exposed = 4 * (few.communication - more.communication)
    assert few.slot - more.slot > exposed
    hidden = by_setting(found)
    assert hidden[few.setting].slot - hidden[more.setting].slot < exposed


def test_the_landscape_is_written_and_the_scenario_reads_back(
    found: Landscape, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuning, "tune", lambda scenario, heard: found)
    outs = [str(tmp_path / name) for name in ("map.html", "map.png", "map.svg", "tuned.yaml")]
    flags = ["--model", "deepseek-v3", "--hardware", "h800", "--ep", "64"]
    ran = CliRunner().invoke(app, ["tune", "comm", *flags, *(part for out in outs for part in ("--out", out))])
    assert ran.exit_code == 0, ran.output
    assert "shortest slot" in ran.output
    assert Scenario.read(outs[-1]) == found.tuned
    assert landscape.caveat(found)[0] in ran.output
    page = Path(outs[0]).read_text()
    assert "dynamic warps" in page
    assert f"{found.best.slot * 1e3:.2f} ms" in page
    assert Path(outs[1]).read_bytes().startswith(b"\x89PNG")
    first = Path(outs[2]).read_bytes()
    landscape.write_landscape(found, Path(outs[2]))
    assert Path(outs[2]).read_bytes() == first
    ran = CliRunner().invoke(app, ["tune", "comm", *flags, "--json"])
    told = json.loads(ran.output)
    assert told["best"] == {
        **tuning.keys(found.best.setting),
        "slot_seconds": found.best.slot,
        "communication_seconds": found.best.communication,
    }
    assert len(told["tried"]) == len(found.tried)


def test_a_published_training_is_tuned_as_published(monkeypatch: pytest.MonkeyPatch, found: Landscape) -> None:
    """What is written is then DeepSeek-V3's training with another setting."""
    asked: list[Scenario] = []
    monkeypatch.setattr(tuning, "tune", lambda scenario, heard: asked.append(scenario) or found)
    for flags in (["deepseek-v3", "--ep", "64"], ["deepseek-v3", "--ep", "32"], ["mixtral-8x7b", "--ep", "8"]):
        ran = CliRunner().invoke(app, ["tune", "comm", "--hardware", "h800", "--model", *flags])
        assert ran.exit_code == 0, ran.output
    published = Scenario.read(Path(__file__).parents[1] / "examples" / "deepseek_v3.yaml")
    assert asked[0] == published
    assert asked[1] == published.with_(ep=32)
    assert asked[2].parallel.gpus == 16


def test_a_scenario_is_completed_by_the_least_that_fits() -> None:
    scenario = Scenario.of(completed(ASKED))
    assert (scenario.parallel.gpus, scenario.parallel.microbatches) == (128, 4)
    assert completed({"ranks": 4, "tp": 2, "ep": 6})["gpus"] == 24
    assert completed({**ASKED, "gpus": 4096, "global_batch": 8192})["global_batch"] == 8192


BAD: list[tuple[dict[str, Any], str]] = [
    ({"model": "llama3-70b", "ep": 1}, "llama3-70b has no experts"),
    ({"ep": 1}, r"keeps all experts on each GPU \(ep = 1\)"),
    ({"ranks": 0}, "ranks must be a whole number"),
    ({"ep": "many"}, "ep must be a whole number"),
    ({"hardware": "a100"}, "a100 has no"),
]


@pytest.mark.parametrize(("changes", "sentence"), BAD)
def test_what_cannot_be_tuned_is_said_in_one_sentence(changes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(SimpipeError, match=sentence):
        tune(Scenario.of(completed(ASKED | changes)))


def test_a_setting_that_makes_no_sense_is_refused() -> None:
    for key, value in (("communication_warps", "some"), ("communication_chunk", 0)):
        with pytest.raises(SimpipeError, match=f"^{key} must be"):
            Scenario.of(completed(ASKED) | {key: value})
    assert exchange_kernels.CHANNEL_SMS == 2
