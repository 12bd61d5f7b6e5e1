"""The accuracy table: cases and families are sound, errors are summed right, and no family's error grows."""

import ast
import importlib.util
import json
import math
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner

from simpipe.cli import app
from simpipe.simulator.costs.parallel import parallel_keys
from simpipe.simulator.costs.stack import stack_names
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.uncertainty import LEVEL
from simpipe.simulator.validation import report
from simpipe.simulator.validation.cases import FOLDER, Case, Family, cases, families, variants
from simpipe.simulator.validation.predict import PREDICT, measured_seconds

ROOT = Path(__file__).parents[1]
KEYS = list(families())
OWN = {
    "model", "hardware", "stack", "schedule", "model_layers", "hidden", "heads", "vocabulary", "padded_alone", "flops",
    "part", "phase", "slot_layers", "collective", "bytes", "group", "m", "n", "k", "format",
    "run", "dp_rank", "step", "operations", "known",
}  # fmt: skip
"""Settings that are no keys of a parallel layout."""

COSTS = ("cluster", "collectives", "memory", "modelled", "operators", "overlap", "stack")
"""What times and sizes come from."""

BOUNDS: dict[str, tuple[int, float, float | None]] = {
    "simumax-b200": (3, 0.037, 0.014),
    "vtrain-one-node": (29, 0.077, None),
    "vtrain-nodes": (4, 0.093, None),
    "recomputation-steps": (3, 0.015, None),
    "recomputation-layers": (3, 0.035, None),
    "recomputation-memory": (2, math.inf, 0.006),
    "megatron-sc21": (10, 0.075, None),
    "zero-bubble": (5, 0.027, 0.017),
    "llama3-405b": (3, 0.012, None),
    "torchtitan": (1, 0.09, 0.045),
    "torchtitan-selective": (3, 0.02, 0.175),
    "torchtitan-405b": (6, 0.17, 0.3),
    "dgxc": (2, 0.06, None),
    "deepseek-v3-slot": (1, 0.085, None),
    "production-runs": (1, 0.015, None),
    "production-replays": (1, 0.004, None),
    "nccl-one-node": (1, 0.07, None),
    "gemm-a100-h100": (1, 0.058, None),
}
"""Each how many-th case is predicted here, and the mean absolute errors of times and of memory that it must keep to."""


# What the tables hold.


@pytest.mark.parametrize("key", KEYS)
def test_a_family_says_where_it_is_from_and_what_it_assumes(key: str) -> None:
    family = families()[key]
    assert all(len(text) > 10 for text in (family.title, family.source, family.mfu))
    found = cases(family)
    assert len({case.name for case in found}) == len(found) == found[-1].row + 1
    for case in found:
        assert case.measured or case.memory, case.name
        assert case.settings.keys() <= OWN | parallel_keys().keys(), case.name
        assert not family.choices.keys() & case.settings.keys(), case.name


@pytest.mark.parametrize("key", KEYS)
def test_what_is_read_is_what_was_published(key: str) -> None:
    for case in cases(families()[key], 7):
        if case.measured is not None and families()[key].kind == "step":
            seconds = measured_seconds(case.settings, case.measured, case.unit)
            assert 1e-2 < seconds < 300, case.name


def test_throughputs_become_seconds_by_what_they_count() -> None:
    given: dict[str, Any] = {"hidden": 1024, "heads": 16, "model_layers": 4, "vocabulary": 51200, "ranks": 1, "gpus": 2}
    given |= {"global_batch": 8, "sequence": 512}
    assert measured_seconds(given, 2.0, "s") == 2.0
    assert measured_seconds(given, 2.0, "samples/s/GPU") == 8 / 2 / 2
    assert measured_seconds(given, 100.0, "tokens/s/GPU") == 8 * 512 / 2 / 100
    layers, head = 96 * 8 * 512 * 4 * 1024**2 * (1 + 512 / (6 * 1024)), 6 * 8 * 512 * 1024 * 51200
    seconds = measured_seconds(given | {"flops": "recomputed"}, 100.0, "TFLOP/s/GPU")
    assert seconds == pytest.approx((layers + head) / 2 / 100e12)
    trained = measured_seconds(given | {"flops": "all-pairs"}, 100.0, "TFLOP/s/GPU")
    assert trained == pytest.approx((layers * 3 / 4 + head) / 2 / 100e12, rel=0.01)  # a forward of the layers less


# Nothing is tuned to a case.


def test_the_code_reads_no_name_of_a_case_or_family() -> None:
    """No text in the package equals the name of a family, of a case, of its machine or its table."""
    names = set(KEYS) | {case.name for family in families().values() for case in cases(family)}
    names |= {path.name for path in FOLDER.rglob("*.*")} - {"families.toml"}
    for path in (*ROOT.glob("simulator/**/*.py"), *ROOT.glob("commands/*.py"), *ROOT.glob("schedules/*.py")):
        constants = {node.value for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Constant)}
        assert not names & {value for value in constants if isinstance(value, str)}, path


def test_the_cost_model_compares_with_no_size_of_a_case() -> None:
    """No number above 4 that a case has as a width or a count of layers or GPUs is compared with in the cost model."""
    sizes = ("hidden", "heads", "model_layers", "gpus", "global_batch")
    taken = {c.settings[s] for f in families().values() for c in cases(f, 5) for s in sizes if s in c.settings}
    costs = [ROOT / "simulator" / "costs" / f"{name}.py" for name in COSTS]
    for path in (*costs, *ROOT.glob("simulator/validation/*.py")):
        compared = {
            constant.value
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Compare | ast.MatchValue)
            for constant in ast.walk(node)
            if isinstance(constant, ast.Constant) and isinstance(constant.value, int) and constant.value > 4
        }
        assert not taken & compared, path


def test_another_name_and_place_change_nothing() -> None:
    family = families()[KEYS[0]]
    case = cases(family)[2]
    renamed = Case("anything", 99, case.settings, case.measured, case.unit, case.memory)
    one, other = report.predict(family, case), report.predict(family, renamed)
    assert one[1:5] == other[1:5]


def benchmark(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fits_see_at_most_half_of_a_familys_rows_and_say_which() -> None:
    fitting = benchmark("fit_stacks")
    for fit in fitting.FITS.values():
        assert fit.stack in stack_names()
        seen, others = fitting.rows(fit, seen=True), fitting.rows(fit, seen=False)
        assert not {case.name for _, case in seen} & {case.name for _, case in others}
        for key in fit.families:
            rows = sorted(case.row for family, case in seen if family.key == key)
            assert 2 * len(rows) <= len(cases(families()[key]))
            said, _, listed = families()[key].fitted.partition(f"{len(rows)} rows, ")
            assert said
            assert [int(number) for number in re.findall(r"\d+", listed)] in (rows, []), key


def test_tables_made_of_published_files_are_those_that_the_curves_did_not_see() -> None:
    pytest.importorskip("pyarrow", reason="the measured runs are parquet files: needs simpipe[parquet]")
    made = benchmark("published_tables")
    if not made.shipped_fits.MEASURED.is_dir():
        pytest.skip(f"the measured tables are not here: {made.shipped_fits.MEASURED}")
    for name, table in made.tables().items():
        assert made.text(table) == (FOLDER / name).read_text(), name


# Errors.


def outcome(measured: float, low: float, high: float, memory: tuple[float, float] | None = None) -> report.Outcome:
    kept, made = memory or (None, None)
    return report.Outcome(Case("a case", 0, {}, measured, "s", kept), measured, low, high, made)


PLAIN = Family("plain", "a title", "step", "", "a source", "none")
OPEN = Family("open", "a title", "step", "", "a source", "none", choices={"microbatch_size": [1, 2]})


def test_errors_are_predicted_over_measured_less_one() -> None:
    result = report.summed(PLAIN, [outcome(2.0, 2.2, 2.2, (4.0, 3.0)), outcome(1.0, 0.8, 0.8)])
    assert result.time
    assert result.memory
    assert result.time[:4] == pytest.approx((2, -0.05, 0.15, -0.2))
    assert result.memory[:4] == pytest.approx((1, -0.25, 0.25, -0.25))
    assert "Mean absolute error of times over 1 families 15.0%" in report.verdict([result])
    assert "1 cases beyond 15%" in report.verdict([result])


def test_what_is_left_open_is_a_range_and_does_not_count() -> None:
    result = report.summed(OPEN, [outcome(1.0, 0.9, 1.2), outcome(1.0, 1.1, 1.2)])
    assert (result.inside, result.aimed) == (1, False)
    assert report.verdict([result]) == "No family here counts for the aim: each leaves settings open or replays."
    assert variants(OPEN) == [{"microbatch_size": 1}, {"microbatch_size": 2}]
    assert variants(PLAIN) == [{}]


def test_a_case_that_cannot_be_expressed_says_why() -> None:
    family = families()[KEYS[0]]
    case = cases(family)[0]
    odd = Case(case.name, 0, {**case.settings, "tp": 3}, case.measured, case.unit, None)
    refused = report.predict(family, odd)
    assert "3" in refused.refused
    assert refused.error is None
    assert refused.held is None
    assert any(refused.refused in line for line in report.lines([report.summed(family, [refused])]))


@pytest.mark.parametrize("key", KEYS)
def test_a_familys_error_does_not_grow(key: str) -> None:
    every, time, memory = BOUNDS[key]
    (result,) = report.run([key], every)
    assert not [outcome.refused for outcome in result.outcomes if outcome.refused]
    assert (result.time is None) == math.isinf(time)
    if result.time:
        assert result.time.mean <= time
    assert (result.memory is None) == (memory is None)
    if result.memory and memory is not None:
        assert result.memory.mean <= memory


def test_steps_have_an_interval_where_draws_are_asked_for() -> None:
    """It is wide as curves are unsure, and that many measured steps lie outside says that more than curves is."""
    (without,), (drawn,) = (report.run(["recomputation-steps"], draws=draws) for draws in (0, 40))
    assert without.coverage is None
    assert drawn.coverage is not None
    assert drawn.coverage >= 0.5
    for outcome in drawn.outcomes:
        assert outcome.interval
        assert outcome.low
        low, high = outcome.interval
        assert 0.9 < low / outcome.low < 1 < high / outcome.low < 1.1


@pytest.mark.parametrize("key", ["production-runs", "nccl-one-node", "gemm-a100-h100"])
def test_intervals_hold_measured_times_about_as_often_as_they_claim(key: str) -> None:
    """Of steps and kernels that nothing was fitted to; of one run or machine fewer cases say it less surely."""
    (result,) = report.run([key])
    assert result.coverage == pytest.approx(LEVEL, abs=0.07)
    assert len(result.parts) == 2
    for part in result.parts.values():
        assert part.coverage == pytest.approx(LEVEL, abs=0.11)


def test_kinds_are_those_there_are_functions_for() -> None:
    assert {family.kind for family in families().values()} == set(PREDICT)


# The command.


def test_the_command_prints_a_table_and_writes_a_page(tmp_path: Path) -> None:
    page = tmp_path / "accuracy.html"
    asked = ["validate", "--family", KEYS[-1], "--every", "30", "--workers", "1", "--html", str(page)]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert families()[KEYS[-1]].title in result.output
    assert "(aim 5%)" in result.output
    text = page.read_text()
    assert '"showSendToCloud": false' in text
    assert "connect-src" not in text
    assert "default-src 'none'" in text


def test_the_command_as_json() -> None:
    result = CliRunner().invoke(app, ["validate", "--family", KEYS[-1], "--every", "50", "--workers", "1", "--json"])
    (family,) = json.loads(result.output)["families"]
    assert family["key"] == KEYS[-1]
    assert len(family["cases"]) == family["time"]["cases"]


def test_an_unknown_family_is_one_sentence() -> None:
    with pytest.raises(SimpipeError, match=r"there is no family 'no', did you mean|there is no family 'no'; there are"):
        report.run(["no"])
