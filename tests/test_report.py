"""Report and ablation: made of what the other commands compute, beside what is published."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simpipe.simulator import ablation, case, report
from simpipe.simulator.costs import collectives
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.experts import study
from simpipe.simulator.experts.balance import Affinities, Sample
from simpipe.simulator.scenario import Scenario

V3 = Path(__file__).parents[1] / "examples" / "deepseek_v3.yaml"
SHORT = {"global_batch": 4096, "sequence": 1024}
"""32 micro-batches of fewer tokens: as few as DualPipe takes on 16 ranks."""


def simpipe(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "simpipe", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def switched() -> list[dict[str, Any]]:
    scenario = Scenario.read(V3, **SHORT)
    plan = study.Plan(2, Sample(4, 64), Sample(64, 256), 0.0, 1e6)
    model = scenario.load().model
    balance = study.run(model, Affinities(), ["none", "bias"], plan, study.Placing(64), seed=0, scenario=scenario)
    return ablation.to_dict(ablation.table(scenario, balance))


def test_every_technique_is_switched_off_once(switched: list[dict[str, Any]]) -> None:
    assert [row["off"] for row in switched] == [
        "", "overlap", "dualpipe", "dualpipe", "node-limited routing", "dynamic warps", "tuned chunk size",
        "recomputation", "averages on the CPU", "balance", "balance",
    ]  # fmt: skip


def test_what_each_is_worth_has_the_sign_that_it_must(switched: list[dict[str, Any]]) -> None:
    """All cost time, but recomputation and averages, which save memory."""
    whole, by_name = switched[0], {(row["off"], row["instead"]): row for row in switched}
    slower = {name: row["costs_s"] for name, row in by_name.items() if name[0] not in ("", "recomputation")}
    assert min(slower.values()) > -1e-3 * whole["step_time_s"]
    recomputed = next(row for row in switched if row["off"] == "recomputation")
    assert recomputed["costs_s"] < 0
    averaged = next(row for row in switched if row["off"] == "averages on the CPU")
    assert min(recomputed["peak_bytes"], averaged["peak_bytes"]) > whole["peak_bytes"]
    chains, within = (by_name["dualpipe", text]["step_time_s"] for text in (
        "1f1b, its slots as chains", "1f1b, overlapped within its slots"
    ))  # fmt: skip
    assert chains > within > whole["step_time_s"]
    for row in switched:
        assert row["costs_s"] == row["step_time_s"] - whole["step_time_s"]


def test_without_a_node_limit_tokens_go_to_more_nodes() -> None:
    scenario = Scenario.read(V3, **SHORT)
    cases = {off: made for off, _, made in ablation._switched(scenario)}
    costs = cases["node-limited routing"].costs
    assert isinstance(costs, ModelledCosts)
    assert costs.model.experts
    assert costs.model.experts.groups_per_token == 8
    nodes = [collectives.expert_spread(256, 8, 64, 8, limit).other_nodes for limit in (4, None)]
    assert nodes[1] > 1.3 * nodes[0]


def test_a_serial_slot_hides_nothing() -> None:
    """More is exposed, though slots other than F&B, the most of a short step, are chains in both."""
    made = case.modelled(Scenario.read(V3, **SHORT, overlap="serial"))
    _, figures = case.simulated(made)
    _, overlapped = case.simulated(case.modelled(Scenario.read(V3, **SHORT)))
    assert figures.efficiency
    assert overlapped.efficiency
    assert figures.efficiency.exposed_communication_s > 1.5 * overlapped.efficiency.exposed_communication_s


def test_published_figures_have_a_name_that_is_computed_and_a_source() -> None:
    known = report.published("deepseek-v3")
    assert len(known) >= 15
    assert all(value > 0 and ("arXiv" in source or "github" in source) for value, source in known.values())
    scenario = Scenario.read(V3)
    compared = report.compare(dict.fromkeys(known, 1.0), scenario)
    assert [row.figure for row in compared] == list(known)
    assert report.published("llama3-8b") == {}


def test_published_figures_that_a_model_must_meet() -> None:
    """Sizes and bounds; times are compared, not promised."""
    scenario = Scenario.read(V3)
    made = case.modelled(scenario)
    assert isinstance(made.costs, ModelledCosts)
    own, known = report._exchanges(made.costs), report.published("deepseek-v3")
    assert own["dispatch_gb_per_s"] == pytest.approx(known["dispatch_gb_per_s"][0], rel=0.1)
    assert own["combine_gb_per_s"] == pytest.approx(known["combine_gb_per_s"][0], rel=0.1)
    for name in ("decode_exchange_s", "decode_exchange_nvl72_s"):
        assert own[name] == pytest.approx(known[name][0], rel=0.03)


def test_a_file_of_published_figures_that_is_none_is_one_sentence(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "mine_published.toml").write_text("[[figures]]\nfigure = 3\n")
    monkeypatch.setattr(report, "EXAMPLES", tmp_path)
    with pytest.raises(SimpipeError, match="is no file of published figures"):
        report.published("mine")


def test_the_report_of_a_dense_model_is_one_page(tmp_path: Path) -> None:
    """No experts, no kernels; nothing published. The page loads nothing."""
    path, page = tmp_path / "small.yaml", tmp_path / "report.html"
    keys = {"ranks": 2, "gpus": 16, "global_batch": 64, "sequence": 2048, "recompute": ["norms"]}
    Scenario.of({"model": "llama3-8b", "hardware": "h100", "schedule": "1f1b"} | keys).write(path)
    done = simpipe("report", str(path), "--out", str(page), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["balance"], found["kernels"]) == (None, None)
    assert [row["saving"] for row in found["savings"]] == ["all kept", "norms recomputed"]
    assert found["capacity"]["gpu_hours"] > 0
    html = page.read_text()
    assert html.count("<h2>") == 6
    assert html.count('src="data:image/png') == 2
    assert "http://" not in html.split("<script>")[0]
    assert "https://" not in html.split("<script>")[0]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("report", "gpt-9"), "the training of 'gpt-9' is not known"),
        (("report", "none.yaml"), "none.yaml cannot be read"),
        (("report", "deepseek-v3", "--out", "x.pdf"), "its ending names no format"),
        (("report", "deepseek-v3", "--set", "gpu=3"), "unknown key 'gpu'"),
        (("ablate", "gpt-9"), "the training of 'gpt-9' is not known"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    run = simpipe(*arguments)
    assert run.returncode == 2
    assert sentence in run.stderr
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.parametrize("schedule", ["zb-v", "interleaved-1f1b:chunks=2", "1f1b"])
def test_any_schedule_can_be_switched_off(schedule: str) -> None:
    """One with more stages than ranks gives its layers' layout up; 1F1B is what others are switched off for."""
    keys = {"ranks": 4, "gpus": 8, "global_batch": 16, "sequence": 1024, "recompute": ["norms"]}
    scenario = Scenario.of({"model": "llama3-8b", "hardware": "h100", "schedule": schedule} | keys)
    offs = [row.off for row in ablation.table(scenario, None)]
    assert offs == ["", *[schedule.partition(":")[0]] * (2 * (schedule != "1f1b")), "recomputation"]
