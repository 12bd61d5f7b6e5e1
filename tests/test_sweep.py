"""Plans: which combinations they make, which are pruned and why, and what is shared between them."""

import gc
import json
import weakref
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
from test_batch import DENSE, EXAMPLES, V3, simpipe

from simpipe.simulator import case as cases
from simpipe.simulator import lower, slots
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import OUTSIDE_SLOTS, Parallel
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.graph import Graph
from simpipe.simulator.planning import evaluation, jobs, sweep, tables
from simpipe.simulator.planning.constraints import Constraint, ConstraintError
from simpipe.simulator.planning.execution import Inline
from simpipe.simulator.scenario import Scenario
from simpipe.simulator.views import results

PLAN = """
base: {model: gpt3-175b, hardware: a100, global_batch: 64, sequence: 2048}
alternatives:
  - {gpus: 64, price_usd_per_gpu_hour: 2}
  - {gpus: 128, hardware: h100}
grid:
  schedule: [1f1b, interleaved-1f1b]
  ranks: [4, 8]
  tp: [8, 16, 5]
constraints:
  - tp <= gpus_per_node
  - microbatches >= ranks
objective: mfu
"""


def plan(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "plan.yaml"
    path.write_text(text)
    return path


# Constraints.


@pytest.mark.parametrize(
    ("text", "holds"),
    [
        ("tp <= 8", True),
        ("ep divides experts and not tp == 4", True),
        ("ep * 2 divides experts / 4 + 64", True),
        ("ep divides 100", False),
        ("1 < tp < 8 or schedule in ['1f1b', 'gpipe']", True),
        ("schedule != '1f1b'", False),
        ("gpus // ranks % 7 == -ranks + 18", True),
        ("recompute == [] or 'full' in recompute", True),
    ],
)
def test_conditions(text: str, holds: bool) -> None:
    values = {"tp": 8, "ep": 64, "experts": 256, "schedule": "1f1b", "gpus": 256, "ranks": 16, "recompute": []}
    assert Constraint.parse(text).holds(values) is holds


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tp <", "cannot be read; write it as `tp <= 8 and ep divides experts`"),
        ("__import__('os')", "holds Call; it takes comparisons and arithmetic"),
        ("tp.real", "holds Attribute; it takes comparisons and arithmetic"),
        ("2 ** tp", "holds Pow; it takes comparisons and arithmetic"),
        ("tp << 2", "<< is not known here; write `divides`"),
        ("tq <= 8", "there is no 'tq'; there are tp, schedule"),
        ("tp <= schedule", "has no answer: '<=' not supported between instances of 'int' and 'str'"),
        ("0 divides tp", "has no answer: integer modulo by zero"),
        (8, "a constraint is text, as `tp <= 8`, not 8"),
        ("'a' * 1000000000 == tp", "has no answer: arithmetic takes numbers, not 'a'"),
        ("tp * 1" + "0" * 400 + " / 3 > 1", "has no answer: integer division result too large for a float"),
        ("-" * 600 + "tp < (", "... cannot be read; write it as `tp <= 8 and ep divides experts`"),
    ],
)
def test_a_wrong_condition_is_one_sentence(text: str, sentence: str) -> None:
    with pytest.raises(ConstraintError) as caught:
        Constraint.parse(text).holds({"tp": 8, "schedule": "1f1b"})
    assert str(caught.value).endswith(sentence)


# Plans.


def test_a_plan_is_all_combinations_that_can_be(tmp_path: Path) -> None:
    read = sweep.read(plan(tmp_path, PLAN))
    assert read.grid.count == 24
    rows = [read.grid.row(number) for number in range(24)]
    assert len({str(row) for row in rows}) == 24
    assert [row["tp"] for row in rows[:4]] == [8, 16, 5, 8]
    assert (rows[0]["gpus"], rows[0]["hardware"], rows[23]["gpus"], rows[23]["hardware"]) == (64, "a100", 128, "h100")
    job, pruned = sweep.job_of(read)
    assert pruned == Counter(
        {"gpus = N is not a multiple of ranks x tp x cp = N x N x N = N": 10, "`tp <= gpus_per_node`": 6}
    )
    assert job.count == 8
    for number in range(job.count):
        assert sweep.why_not(job.row(number), read.constraints) == ""


def test_the_verb_prunes_counts_and_finds_the_best(tmp_path: Path) -> None:
    plan(tmp_path, PLAN)
    run = simpipe("sweep", "plan.yaml", "--out", "r.csv", "--json", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    found = json.loads(run.stdout)
    assert (found["rows"], sum(found["pruned"].values())) == (8, 16)
    rows = tables.read(tmp_path / "r.csv").rows
    best = max((row for row in rows if row["status"] == "ok"), key=lambda row: row["mfu"])
    assert found["best"]["mfu"] == best["mfu"]
    assert found["best"]["row"]["schedule"] == best["schedule"]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("grid: {tp: 8}", "grid.tp must be a list of values, as [1, 2, 4], not 8"),
        ("gird: {tp: [8]}", "a plan has no part 'gird'; did you mean grid?"),
        ("grid: {tpp: [8]}", "grid has an unknown key 'tpp'; did you mean tp?"),
        ("{base: {tp: 8}, grid: {tp: [8]}}", "tp is both in base and in grid; it takes one of them"),
        ("{grid: {tp: [8]}, alternatives: [{tp: 8}]}", "tp is both in alternatives and in grid; it takes one of them"),
        ("grid: {}", "holds nothing to sweep; give base and grid"),
        ("{grid: {tp: [1]}, objective: speed}", "objective must be one of step_time_s"),
        ("{grid: {tp: [1]}, constraints: [tp <]}", "plan.yaml: constraint 'tp <' cannot be read"),
        ("{grid: {tp: [1]}, constraints: tp}", "constraints must be a list of conditions, as - tp <= 8"),
        (
            "grid: {tp: &a [1,2,3,4,5,6,7,8,9,10]}".replace("&a ", "")[:-1]
            + "".join(f", {key}: [1,2,3,4,5,6,7,8,9,10]" for key in ("cp", "ep", "etp", "ranks", "gpus", "zero"))
            + "}",
            "makes 10,000,000 combinations, and a sweep takes at most 1,000,000; narrow its grid",
        ),
    ],
)
def test_a_wrong_plan_is_one_sentence(text: str, sentence: str, tmp_path: Path) -> None:
    with pytest.raises(SimpipeError) as caught:
        sweep.read(plan(tmp_path, text))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "usual"),
    [
        ("{grid: {tp: [1, 2], global_batch: [64]}}", "step_time_s"),
        ("{grid: {tp: [1, 2], global_batch: [64, 128]}}", "tokens_per_s"),
        ("{alternatives: [{sequence: 64}, {sequence: 128}]}", "tokens_per_s"),
        ("{alternatives: [{sequence: 64, gpus: 8}, {sequence: 64, gpus: 9}]}", "step_time_s"),
        ("{grid: {global_batch: [64, 128]}, objective: step_time_s}", "step_time_s"),
    ],
)
def test_steps_of_different_batches_are_not_compared_unasked(text: str, usual: str, tmp_path: Path) -> None:
    (tmp_path / "plan.yaml").write_text(text)
    assert sweep.read(tmp_path / "plan.yaml").objective == usual


def test_a_condition_without_an_answer_names_the_plan(tmp_path: Path) -> None:
    text = PLAN.replace("tp <= gpus_per_node", "tp <= gpus_a_node")
    sentence = r"plan\.yaml: constraint 'tp <= gpus_a_node': there is no 'gpus_a_node'; did you mean gpus_per_node\?$"
    with pytest.raises(ConstraintError, match=sentence):
        sweep.job_of(sweep.read(plan(tmp_path, text)))


def test_reasons_keep_their_commas(tmp_path: Path) -> None:
    text = PLAN.replace("tp: [8, 16, 5]", "tp: [8, -1]")
    _, pruned = sweep.job_of(sweep.read(plan(tmp_path, text)))
    assert pruned["tp must be a whole number from N to N, not -N"] == 8


def test_contradictory_constraints_say_what_they_exclude(tmp_path: Path) -> None:
    text = PLAN.replace("tp <= gpus_per_node", "tp > 8").replace("microbatches >= ranks", "tp < 8")
    run = simpipe("sweep", plan(tmp_path, text).name, "--out", "r.csv", cwd=tmp_path)
    assert run.returncode == 2
    assert run.stderr == ("simpipe: plan.yaml leaves none of its 24 combinations: 16 by `tp > 8`; 8 by `tp < 8`\n")
    assert not (tmp_path / "r.csv").exists()


def test_costs_by_hand_are_swept_too(tmp_path: Path) -> None:
    text = "{base: {ranks: 4, microbatches: 8}, grid: {schedule: [1f1b, zb-h1], costs: ['F=1,I=1,W=1', 'F=2,I=1,W=1']}}"
    job, _ = sweep.job_of(sweep.read(plan(tmp_path, text)))
    jobs.run(job, [str(tmp_path / "r.csv")], Inline(), 1)
    assert [row["step_time_s"] for row in tables.read(tmp_path / "r.csv").rows] == [33, 44, 27, 38]


# What is shared.


def test_a_changed_plan_has_another_mark(tmp_path: Path) -> None:
    marks = set()
    for text in (PLAN, PLAN.replace("64, seq", "128, seq"), PLAN.replace("price_usd_per_gpu_hour: 2", "zero: 0")):
        marks.add(sweep.job_of(sweep.read(plan(tmp_path, text)))[0].mark)
    assert len(marks) == 3


OTHER: dict[str, Any] = {
    "ranks": 8, "gpus": 1024, "global_batch": 64 * 128, "zero": 0, "master_bytes": 2, "moment_bytes": 4,
    "gradient_overlap": False, "gather_overlap": False, "stage_layers": "even",
    "keep_parameters": True,
}  # fmt: skip


def costs_of(**change: Any) -> tuple[Any, ModelledCosts]:
    case = cases.modelled(Scenario.of(V3 | {"global_batch": 32 * 128}))
    assert isinstance(case.costs, ModelledCosts)
    return case.program, replace(case.costs, parallel=replace(case.costs.parallel, **change), of_slots={}, _known={})


@pytest.mark.parametrize("name", sorted(OUTSIDE_SLOTS))
def test_slots_do_not_depend_on_what_is_outside_them(name: str) -> None:
    """The same layers run the same operations, keep the same bytes: what costs share in `of_slots` is right for all."""
    assert name in {field.name for field in fields(Parallel)}
    program, first = costs_of()
    _, other = costs_of(**({name: OTHER[name]} | ({"global_batch": 64 * 64} if name == "gpus" else {})))
    shapes = {key for key, _, _ in first.alike(program)}
    for key in shapes:
        assert first._laid(key) == other._laid(key)
        assert first._pieces(key, (4096,) * len(key)) == other._pieces(key, (4096,) * len(key))
    stage = first.stages(program)[3]
    assert first._stage_release(stage) == other._stage_release(stage)


def test_what_is_shared_changes_no_figure() -> None:
    """Rows in either order, and alone in fresh memory, have the same figures."""
    rows = [
        DENSE | {"schedule": schedule, "zero": zero, "gradient_bytes": size}
        for schedule in ("1f1b", "zb-h1") for zero in (0, 1) for size in (2, 4)
    ]  # fmt: skip

    def run(some: list[dict[str, Any]], forget: bool = False) -> list[Any]:
        found = []
        for row in some:
            if forget:
                for known in (slots._shared, slots._times, slots._graphs):
                    known.clear()
                evaluation._of_scenario.cache_clear()
            found.append(evaluation.evaluated(row))
        return found

    alone = run(rows, forget=True)
    slots._shared.clear()
    evaluation._of_scenario.cache_clear()
    assert run(rows) == alone
    evaluation._of_scenario.cache_clear()
    assert run(rows[::-1]) == alone[::-1]


def test_memory_stays_flat_where_every_row_has_a_graph_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[weakref.ref[Graph]] = []

    def structure(*args: Any) -> Graph:
        graph = lower.structure(*args)
        made.append(weakref.ref(graph))
        return graph

    monkeypatch.setattr(slots, "structure", structure)
    monkeypatch.setattr(slots, "KEPT", 2)
    for n in range(4):
        layers = [4 + n, 4 - n, *[4] * 13, 1]
        assert "step_time_s" in evaluation.evaluated(V3 | {"global_batch": 32 * 128, "layers": layers})
    gc.collect()
    assert len(made) >= 4
    assert sum(ref() is not None for ref in made) <= 2


def test_the_example_tells_what_the_megatron_papers_do(tmp_path: Path) -> None:
    """Interleaving helps small batches most, recomputation trades time for memory, TP stays within the node."""
    read = sweep.read(EXAMPLES / "sweep_gpt3.yaml")
    job, pruned = sweep.job_of(read)
    assert pruned == {"`tp <= gpus_per_node`": 24}
    jobs.run(job, [str(tmp_path / "r.csv")], Inline(), 1)
    found = tables.read(tmp_path / "r.csv")
    committed = tables.read(EXAMPLES / "sweep_gpt3.csv")
    assert committed.columns == found.columns
    for row, held in zip(found.rows, committed.rows, strict=True):
        for name in ("step_time_s", "peak_memory_gb"):
            assert row[name] == pytest.approx(held[name], rel=0.01)

    def best(batch: int, **chosen: Any) -> float:
        like = [row for row in found.rows if row["global_batch"] == batch and row["status"] == "ok"]
        return min(
            row["step_time_s"] for row in like if all(row[key] == value for key, value in chosen.items())
        )  # fmt: skip

    small, large = (best(batch, schedule="1f1b") / best(batch, schedule="interleaved-1f1b") for batch in (128, 1536))
    assert small > 1.15 > 1.05 > large > 1.01

    for batch, order in ((128, ["none", "selective", "full"]), (1536, ["selective", "full"])):
        front = [found.rows[n] for n in results.front(found.rows) if found.rows[n]["global_batch"] == batch]
        assert front[0]["schedule"] == "interleaved-1f1b"
        assert list(dict.fromkeys(row["recompute"] or "none" for row in front)) == order  # the less kept, the slower
        assert front[-1]["peak_memory_gb"] < 0.4 * front[0]["peak_memory_gb"]
        across = [
            evaluation.figures(read.grid.base | {"global_batch": batch, "tp": 16, "ranks": ranks, "schedule": name})
            for ranks in (8, 16) for name in ("1f1b", "interleaved-1f1b")
        ]  # fmt: skip
        assert min(row["step_time_s"] for row in across) > 1.2 * best(batch)  # tensor parallelism over two nodes
