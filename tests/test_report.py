"""Report and ablation: made of what the other commands compute, beside what is published."""

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from simpipe.cli import app
from simpipe.simulator import ablation, case, report
from simpipe.simulator.costs import collectives
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.experts import study
from simpipe.simulator.experts.balance import Affinities, Sample
from simpipe.simulator.phases import Phases, overlapped_slot, phases
from simpipe.simulator.planning import capacity, search
from simpipe.simulator.planning.execution import Inline
from simpipe.simulator.scenario import Scenario
from simpipe.simulator.trace import Trace, simulate
from simpipe.simulator.views import document
from simpipe.simulator.views import report as views

V3 = Path(__file__).parents[1] / "examples" / "deepseek_v3.yaml"
SHORT = {"global_batch": 4096, "sequence": 1024}
"""32 micro-batches of fewer tokens: as few as DualPipe takes on 16 ranks."""


DENSE = {"model": "llama3-8b", "hardware": "h100", "schedule": "1f1b", "ranks": 2, "gpus": 16, "sequence": 2048}
DENSE |= {"global_batch": 64, "recompute": ["norms"]}


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
        if row["off"] == ablation.BALANCE:  # what GPUs out of balance hold
            assert row["peak_bytes"] > whole["peak_bytes"]
    for row in switched:
        assert row["costs_s"] == row["step_time_s"] - whole["step_time_s"]


def test_without_a_node_limit_tokens_go_to_more_nodes() -> None:
    scenario = Scenario.read(V3, **SHORT)
    cases = {switched.off: switched.case for switched in ablation._switched(scenario)}
    costs = cases["node-limited routing"].costs
    assert isinstance(costs, ModelledCosts)
    assert costs.model.experts
    assert costs.model.experts.groups_per_token == 8
    nodes = [collectives.expert_spread(256, 8, 64, 8, limit).other_nodes for limit in (4, None)]
    assert nodes[1] > 1.3 * nodes[0]


def test_what_is_off_already_is_not_switched_off() -> None:
    chains = Scenario.read(V3, **SHORT, overlap="serial")
    assert "overlap" not in {switched.off for switched in ablation._switched(chains)}


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
    Scenario.of(DENSE).write(path)
    done = simpipe("report", str(path), "--out", str(page), "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["balance"], found["kernels"]) == (None, None)
    assert [row["saving"] for row in found["savings"]] == ["all kept", "norms recomputed"]
    assert found["capacity"]["gpu_hours"] > 0
    best = found["capacity"]["recommended"][0]
    assert best["step_time_s"] <= found["step"]["makespan"]
    assert sum(found["phases_s"].values()) == pytest.approx(found["step"]["makespan"])
    html = page.read_text()
    assert html.count("<h2>") == 7
    assert html.count("<pre>") == 7
    assert html.count('src="data:image/png') == 2
    assert "http://" not in html.split("<script>")[0]
    assert "https://" not in html.split("<script>")[0]


def traced(**keys: Any) -> Trace:
    made = case.modelled(Scenario.of(DENSE | keys))
    return simulate(made.program, made.costs)


def test_phases_add_up_and_nothing_is_reduced_where_there_is_one_copy() -> None:
    alone, many = phases(traced(gpus=2)), phases(traced())
    for trace, found in ((traced(gpus=2), alone), (traced(), many)):
        assert sum(found) == pytest.approx(trace.makespan)
        assert found.overlapped == 0
        assert overlapped_slot(trace) is None
    assert (alone.reduced, alone.gathered) == (0, 0)
    assert min(many.reduced, many.gathered) > 0


def test_between_steps_lies_what_no_slot_hides() -> None:
    """Hidden beside slots, less of the same reductions and gathers is left."""
    hidden, bare = phases(traced()), phases(traced(gradient_overlap=False, gather_overlap=False))
    assert hidden.updated == pytest.approx(bare.updated)
    assert hidden.reduced < bare.reduced
    assert hidden.gathered < bare.gathered
    assert hidden.between == hidden.reduced + hidden.updated + hidden.gathered
    assert (hidden.forwards, hidden.backwards) == pytest.approx((bare.forwards, bare.backwards), rel=0.02)


def test_the_published_phases_add_up_to_the_published_step() -> None:
    """As simpipe's do: arXiv 2505.09343, table 4, and 180 K GPU-hours for a trillion tokens on 2,048 GPUs."""
    known = {name: value for name, (value, _) in report.published("deepseek-v3").items()}
    parts = ("forwards_alone_s", "backwards_alone_s", "overlapped_slots_s", "bubbles_s", "between_steps_s")
    assert sum(known[name] for name in parts) == pytest.approx(known["step_time_s"], rel=0.002)
    hours = 2048 * known["step_time_s"] / 3600 / (15360 * 4096) * 1e12
    assert hours == pytest.approx(known["gpu_hours_per_trillion_tokens"], rel=0.002)
    assert len(Phases._fields) == len(parts) + 2  # `between` in its three parts


@pytest.mark.parametrize("name", ["dense", "deepseek"])
def test_the_command_shown_searches_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scenario = Scenario.of(DENSE | {"moment_bytes": 2}) if name == "dense" else Scenario.read(V3)
    asked: list[dict[str, Any]] = []

    def fake(given: dict[str, Any], *_: Any) -> None:
        asked.append(given)
        raise search.SearchError("nothing is left")

    monkeypatch.setattr(search, "search", fake)
    found = capacity.capacity(scenario, 1e12, 1e6, Inline())
    assert (found.outcome, found.missing) == (None, "nothing is left")
    shown = capacity.command(found.given)
    assert CliRunner().invoke(app, shlex.split(shown)[1:]).exit_code != 0
    own, plan = asked
    free = {key: scenario.to_dict()[key] for key in capacity.FREE if key in scenario.to_dict()}
    assert own.keys() & free.keys() == plan.keys() & free.keys() == set()
    assert own.pop("token_budget") == plan.pop("token_budget") == 1e12
    assert Scenario.of(own | free) == Scenario.of(plan | free)


def test_capacity_knows_its_own_place() -> None:
    scenario = Scenario.of(DENSE)
    found = capacity.capacity(scenario, 1e12, 1e6, Inline())
    place = found.place_of(scenario)
    assert place is not None
    assert found.ranked[place].row["ranks"] == 2
    assert found.place_of(scenario.with_(tp=2)) is None
    assert found.own["days"] == pytest.approx(1e12 / 1e6 / 86400)


def test_each_row_says_what_it_changes(switched: list[dict[str, Any]]) -> None:
    """Keys that a scenario takes; of the model where it is the model's."""
    base = Scenario.read(V3, **SHORT).to_dict()
    for row in switched[1:]:
        for part in row["changed"].split(", "):
            key, _, value = part.partition(": ")
            assert key in base or key == "experts.groups_per_token"
            assert (
                row["off"] == "balance" or str(base.get(key)) != value or (row["off"], key) == ("dualpipe", "overlap")
            )
    assert sum(row["off"] == "balance" for row in switched) == 2


def test_what_fits_nowhere_is_reported_all_the_same() -> None:
    """On a machine without fp8, which decoding then does without."""
    keys = {"model": "gpt3-175b", "hardware": "a100", "ranks": 8, "gpus": 8, "global_batch": 16}
    found = report.make(Scenario.of(DENSE | keys), Inline())
    assert found.figures.efficiency
    assert not found.figures.efficiency.fits
    assert found.capacity.outcome is None
    assert "does not fit into memory" in found.capacity.missing
    assert found.serving.weights == "bf16"
    shown = views.text(found)
    assert "Nothing was found" in shown[-1]
    assert not any("published" in line for line in shown)  # nothing is of this model
    assert not any(line.startswith("place") for line in shown)
    assert any(isinstance(part, document.Code) and part.text.startswith("simpipe plan") for part in views.parts(found))


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
    """A list of more stages than ranks is given up; 1F1B is what others are switched off for."""
    keys = {"ranks": 4, "gpus": 8, "global_batch": 16, "sequence": 1024, "recompute": ["norms"]}
    scenario = Scenario.of({"model": "llama3-8b", "hardware": "h100", "schedule": schedule} | keys)
    assert ablation.balance_of(scenario, 1, 0, 1, lambda part: None) is None
    rows = ablation.table(scenario, None)
    offs = [row.off for row in rows]
    assert offs == ["", *[schedule.partition(":")[0]] * (2 * (schedule != "1f1b")), "recomputation"]
    assert not any("layers" in row.changed for row in rows)
    if schedule == "zb-v":
        uneven = scenario.with_(layers=[3, 4, 4, 5, 4, 4, 4, 4])
        assert "layers: balanced" in ablation.table(uneven, None)[1].changed
