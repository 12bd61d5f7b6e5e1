"""Choosing: bounds are below every simulated step, the search finds what an exhaustive one does, advice adds up."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_batch import EXAMPLES, V3, simpipe

from simpipe.schedules import catalogue
from simpipe.simulator import slots
from simpipe.simulator.case import modelled
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.stack import stack_names
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.planning import advice, evaluation, jobs, search, tables
from simpipe.simulator.planning.execution import Inline
from simpipe.simulator.scenario import Scenario
from simpipe.simulator.trace import simulate
from simpipe.simulator.views import results

DENSE = "layers=12,hidden=1024,heads=16,ffn=4096,vocab=32000"
MOE = (
    "layers=8,hidden=1024,heads=16,vocab=32000,experts=16,topk=4,expert_ffn=512,"
    "shared_experts=1,ffn=4096,dense_layers=1"
)
GIVEN = {
    "model": DENSE, "hardware": "a100", "gpus": 8, "global_batch": 16, "sequence": 1024, "overlap": "within-slot",
    "layers": "balanced",
}  # fmt: skip


def rows() -> st.SearchStrategy[dict[str, Any]]:
    """Layouts of a small model, most of which can be simulated."""
    schedules = [*catalogue(), "interleaved-1f1b:chunks=3", "interleaved-zb:chunks=2,group=4", "looped-bfs:chunks=2"]
    return st.fixed_dictionaries(
        {
            "model": st.sampled_from([DENSE, MOE]),
            "hardware": st.sampled_from(["a100", "h800", "b200", "gb200-nvl72", "mi300x"]),
            "stack": st.sampled_from(stack_names()),
            "schedule": st.sampled_from(schedules),
            "ranks": st.sampled_from([1, 2, 4]),
            "tp": st.sampled_from([1, 2]),
            "sequence_parallel": st.booleans(),
            "cp": st.sampled_from([1, 2]),
            "ep": st.sampled_from([1, 2]),
            "zero": st.sampled_from([0, 1, 2, 3]),
            "keep_parameters": st.booleans(),
            "gradient_overlap": st.booleans(),
            "gather_overlap": st.booleans(),
            "optimizer_device": st.sampled_from(["gpu", "cpu"]),
            "averages": st.sampled_from(["none", "gpu", "cpu"]),
            "overlap": st.sampled_from(["serial", "none", "within-slot"]),
            "recompute": st.sampled_from([[], ["norms", "swiglu"], ["selective"], ["full"]]),
            "layers": st.sampled_from(["even", "balanced", "uneven"]),
            "gpus": st.sampled_from([4, 8, 16]),
            "global_batch": st.sampled_from([16, 32]),
            "sequence": st.just(512),
        }
    )


def uneven(layers: int, stages: int) -> list[int]:
    """One layer on each stage, and all others on the first."""
    return [layers - stages + 1] + [1] * (stages - 1)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(rows())
def test_no_step_is_shorter_than_its_bounds(row: dict[str, Any]) -> None:
    """Neither a full run nor one with slots as single tasks, whatever the order, the layout and the software."""
    try:
        if row["layers"] == "uneven":
            stages = round(search.form_of(row["schedule"]).stages_per_rank * row["ranks"])
            row |= {"layers": uneven(load_model(row["model"]).layers, stages)}
        case = modelled(Scenario.of(row))
        full = simulate(case.program, case.costs).makespan
    except SimpipeError:
        return
    assert isinstance(case.costs, ModelledCosts)
    bounds = search.bound(Scenario.of(row).load())
    paired = bool((case.program.slot_start[1:] - case.program.slot_start[:-1] == 2).any())
    least = bounds.paired if paired else bounds.unpaired
    assert paired <= search.form_of(row["schedule"]).paired
    assert full >= least * (1 - 1e-9)
    assert slots.simulate(case.program, case.costs).trace.makespan >= least * (1 - 1e-9)
    assert full >= slots.least_seconds(case.program, case.costs) * (1 - 1e-9)
    found = evaluation.evaluated(row)
    assert found["peak_memory_gb"] >= bounds.memory_gb * (1 - 1e-9)


def test_the_bound_of_the_published_setting_is_below_its_step() -> None:
    bounds = search.bound(Scenario.of(V3).load())
    found = evaluation.evaluated(V3)
    assert 0.7 * found["step_time_s"] < bounds.paired < found["step_time_s"]


def test_a_search_finds_what_an_exhaustive_one_does() -> None:
    given = GIVEN | {"tp": 1, "cp": 1, "ep": 1, "microbatch_size": 1, "zero": 1, "layers": "even", "global_batch": 64}
    some, _ = search.candidates(given)
    every = sorted(evaluation.evaluated(one.row, in_full=True).get("step_time_s", 1e9) for one in some)
    outcome = search.search(given, search.Limits(), Inline())
    assert outcome.candidates == len(some)
    assert outcome.bounded > 0
    found = sorted(one.result["step_time_s"] for one in outcome.ranked if one.row["gpus"] == GIVEN["gpus"])
    assert found[: search.KEEP] == pytest.approx(every[: search.KEEP], rel=1e-12)
    check_front(outcome)
    check_advice(outcome)


def test_what_does_not_fit_gets_the_least_zero_that_makes_it_fit() -> None:
    """The best are those of all layouts, each with the first of ZeRO 1, 2 and 3 that keeps the limit of memory."""
    given = GIVEN | {"tp": 1, "cp": 1, "ep": 1, "ranks": 1, "layers": "even"}
    limits = search.Limits(memory_gb=4.5)
    every = []
    for one in search.candidates(given)[0]:
        stages = [evaluation.evaluated(one.row | {"zero": zero}, in_full=True) for zero in (1, 2, 3)]
        kept = [(some["step_time_s"], zero) for zero, some in enumerate(stages, 1) if not limits.broken(some)]
        every += kept[:1]
    assert {zero for _, zero in every} == {1, 2, 3}
    outcome = search.search(given, limits, Inline())
    assert outcome.sharded
    found = [(one.result["step_time_s"], one.row["zero"]) for one in outcome.ranked if one.row["gpus"] == given["gpus"]]
    assert [step for step, _ in found[:2]] == pytest.approx([step for step, _ in sorted(every)[:2]], rel=1e-12)


def check_front(outcome: search.Outcome) -> None:
    """None of the front is as good as another of it in all, and all else is behind one of it."""
    merits = [search._merits(one) for one in outcome.front]
    for one, other in itertools.permutations(merits, 2):
        assert any(a < b for a, b in zip(one, other, strict=True))
    for one in outcome.ranked:
        assert any(search._covers(kept, one) for kept in outcome.front)


def check_advice(outcome: search.Outcome) -> None:
    best = outcome.ranked[0]
    for one in outcome.ranked:
        assert sum(advice.parts(one.result).values()) == pytest.approx(one.result["step_time_s"])
        assert advice.why(one, best).startswith(
            f"{one.result['step_time_s'] - best.result['step_time_s']:.3g} s slower: "
        )
    turned = advice.sensitivity(outcome.ranked[:2])
    assert [abs(share) for _, share, _ in turned] == sorted((abs(share) for _, share, _ in turned), reverse=True)
    shares = {name: share for name, share, _ in turned}
    assert -0.0910 < shares["peak FLOP/s"] < -0.01  # ten per cent more of one thing is at most 1 - 1 / 1.1 less time
    assert all(share <= 1e-9 for share in shares.values())
    text = "\n".join(advice.describe(outcome, turned, None))
    assert "Pareto front" in text
    assert "the best, the runners-up and the front have tp=1 cp=1 ep=1 " in text
    assert text.count("tp=1") == 1


@pytest.mark.parametrize(
    ("limits", "broken"),
    [
        (search.Limits(memory_gb=1), "exceeds peak_memory_gb = 1"),
        (search.Limits(days=0.001), "exceeds days = 0.001"),
        (search.Limits(cost_usd=1), "exceeds cost_usd = 1"),
        (search.Limits(), ""),
    ],
)
def test_limits(limits: search.Limits, broken: str) -> None:
    row = {"status": "ok", "step_time_s": 1.0, "peak_memory_gb": 50.0, "days": 2.0, "cost_usd": 100.0}
    assert limits.broken(row) == broken


def test_memory_without_times_is_that_of_the_run() -> None:
    row = V3 | {"schedule": "zb-h1", "layers": "even", "global_batch": 40 * 128}
    without, run = too_large(row), evaluation.evaluated(row)
    assert without == {key: run[key] for key in ("status", "peak_memory_gb", "peak_memory_rank")}
    assert too_large(V3) is None


def too_large(row: dict[str, Any]) -> dict[str, Any] | None:
    known = evaluation.untimed(row)
    assert known
    return known.too_large()


def test_the_published_setting_is_among_the_recommended_few() -> None:
    """As the committed result of the search says, whose figures are still those of its rows."""
    recommended = tables.read(EXAMPLES / "plan_deepseek_v3.csv").rows[: 1 + advice.RUNNERS_UP]
    published = {key: V3[key] for key in ("schedule", "ranks", "tp", "cp", "ep", "microbatch_size", "zero")}
    own = next(row for row in recommended if row.items() >= published.items())
    fresh = evaluation.evaluated(jobs.anchored_row(own, "."), in_full=True)
    assert fresh["step_time_s"] == pytest.approx(own["step_time_s"], rel=0.02)


# The verb and its page.


def test_plan_recommends_and_draws(tmp_path: Path) -> None:
    flags = ["--model", DENSE, "--hardware", "h100", "--gpus", 8, "--global-batch", 16, "--sequence", 1024]
    fixed = ["--set", "tp=1", "--set", "microbatch_size=1", "--set", "ranks=2", "--workers", 1]
    run = simpipe("plan", *flags, *fixed, "--json", "--out", "p.csv", "--out", "p.html", "--out", "p.png", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    low, high = (found["step_time_interval_s"][end] for end in ("low", "high"))
    assert low < found["recommended"][0]["step_time_s"] * 1.02
    assert found["recommended"][0]["step_time_s"] * 0.98 < high
    table = tables.read(tmp_path / "p.csv").rows
    assert [row["place"] for row in table[:3]] == [1, 2, 3]
    assert table[0]["why"] == "the best"
    assert (
        found["recommended"][0]["step_time_s"]
        == table[0]["step_time_s"]
        == min(row["step_time_s"] for row in table if row["status"] == "ok")
    )
    page = (tmp_path / "p.html").read_text()
    assert "http-equiv" in page
    assert 'src="http' not in page
    assert (tmp_path / "p.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "plan needs --model"),
        (["--deadline", 3], "--deadline and --budget are for training on --tokens; give them"),
        (["--budget", 3, "--tokens", 1e9], "the budget needs a price, and h100 has none; give price_usd_per_gpu_hour"),
        (["--max-memory", 1], "candidates is left"),
        (
            ["--set", "tp=7"],
            "no layout of 8 GPUs is possible: no cut into ranks, tp, cp and ep leaves replicas that share",
        ),
        (["--set", "lengths=[1024]"], "lengths goes with one layout, and many are searched"),
        (["--set", "costs=F=1"], "unknown key 'costs'"),
        (["--set", "tpp=7"], "unknown key 'tpp'; did you mean tp?"),
        (["--out", "x.pdf"], "x.pdf is no table by its ending '.pdf'"),
    ],
)
def test_wrong_plans_are_one_sentence(flags: list[Any], sentence: str, tmp_path: Path) -> None:
    asked = (
        ["--model", DENSE, "--hardware", "h100", "--gpus", 8, "--global-batch", 8, "--sequence", 1024] if flags else []
    )
    run = simpipe("plan", *asked, "--set", "microbatch_size=1", *flags, cwd=tmp_path)
    assert (run.returncode, run.stderr.count("\n")) == (2, 1), run.stderr
    assert sentence in run.stderr


def test_the_front_of_rows_leaves_out_what_does_not_fit() -> None:
    figures = [("ok", 3, 10), ("ok", 2, 20), ("ok", 4, 20), ("too large", 1, 90), ("ok", 2, 20), ("ok", 9, 1)]
    rows = [{"status": s, "step_time_s": float(t), "peak_memory_gb": float(m)} for s, t, m in figures]
    assert results.front(rows) == [1, 0, 5]


def test_models_and_batches_have_fronts_of_their_own(tmp_path: Path) -> None:
    sizes = [("a", 8, 2), ("a", 8, 3), ("b", 8, 9), (None, 8, 10), ("a", 16, 11)]
    rows = [
        {"model": model, "hidden": 64, "gpus": 8, "global_batch": batch, "status": "ok", "tokens_per_s": 1e6,
         "step_time_s": float(seconds), "peak_memory_gb": 1.0}
        for model, batch, seconds in sizes
    ]  # fmt: skip
    assert results.front(rows) == [0, 2, 3, 4]
    _, found = results.groups(rows, results.front(rows))
    named = {group.name: len(group.points) for group in found}
    assert named == {
        "a, 8 GPUs, 8 sequences a step": 2, "b, 8 GPUs, 8 sequences a step": 1, "a, 8 GPUs, 16 sequences a step": 1,
        "no model's name, 8 GPUs, 8 sequences a step": 1,
    }  # fmt: skip


def test_users_text_cannot_leave_its_script(tmp_path: Path) -> None:
    row = {"note": "</script><script>alert(1)</script>", "costs": "F=1,I=1,W=1", "schedule": "1f1b", "ranks": 2,
           "microbatches": 2}  # fmt: skip
    rows = [row | evaluation.evaluated(row), row | {"note": "x"} | evaluation.evaluated(row)]
    results.write(rows, list(row), "t", tmp_path / "r.html")
    assert "<script>alert" not in (tmp_path / "r.html").read_text()


def test_the_same_rows_give_the_same_picture(tmp_path: Path) -> None:
    same = {"status": "ok", "tokens_per_s": 5.0, "gpus": 8}
    rows = [same | {"step_time_s": 1.0 + n, "peak_memory_gb": 50 - n, "ranks": 2**n} for n in range(3)]
    for ending in (".svg", ".png"):
        paths = [tmp_path / f"{name}{ending}" for name in "ab"]
        for path in paths:
            results.write(rows, ["ranks"], "Three rows", path)
        assert paths[0].read_bytes() == paths[1].read_bytes()


def test_the_picture_of_a_front_names_its_points_without_overlap() -> None:
    sizes = [(memory, 90 / memory) for memory in (10, 10.01, 10.02, 20, 30, 31, 60)] + [(40 + n, 5) for n in range(60)]
    rows: list[dict[str, Any]] = [
        {
            "schedule": "1f1b",
            "tp": n,
            "gpus": 8,
            "status": "ok",
            "step_time_s": float(seconds),
            "peak_memory_gb": memory,
        }
        for n, (memory, seconds) in enumerate(sizes)
    ]
    drawing = results._draw(rows, "many")
    texts = drawing.axes[0].texts
    assert [text.get_text() for text in texts][:2] == ["1\N{EN DASH}3", "4"]
    boxes = [text.get_window_extent() for text in (*texts, *drawing.legends[0].get_texts())]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    assert all(drawing.bbox.contains(*corner) for box in boxes for corner in (box.min, box.max))
    key = [text.get_text() for text in drawing.legends[0].get_texts()]
    assert key[:3] == ["8 GPUs", "1  tp 0", "2  tp 1"]


def test_the_key_of_a_long_front_names_some_points_and_both_ends() -> None:
    rows = [
        {"tp": n, "gpus": gpus, "status": "ok", "step_time_s": 100.0 - n, "peak_memory_gb": 1.0 + n}
        for n in range(90)
        for gpus in (8, 16, 32)
    ]
    _, groups = results.groups(rows, range(len(rows)))
    named = results._named(rows, groups[0], ["tp"], 12)
    assert (len(named), named[0][1], named[-1][1]) == (12, "tp 0", "tp 89")
