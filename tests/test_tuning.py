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
from simpipe.simulator.scenario import Scenario
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


def test_the_slot_is_that_of_a_run_with_its_setting(found: Landscape) -> None:
    """Tuning a tuned scenario changes nothing, and its own setting is then the best."""
    assert found.tuned.parallel == replace(found.scenario.parallel, **tuning.keys(found.best.setting))
    model, cluster = found.tuned.load()[:2]
    stage, layout = tuning._stage(model, found.tuned.parallel)
    (again,) = tuning._tried(tuning.ModelledCosts(stage, cluster, layout), [found.best.setting])
    assert again[1:] == pytest.approx(found.best[1:])


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
