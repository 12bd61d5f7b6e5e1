"""Uncertainty of a step: intervals from fits' residuals, the same for the same seed, and what is used beyond fits."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from simpipe import program
from simpipe.simulator import uncertainty
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.trace import Trace, simulate


def profile(tmp_path: Path, residual: float, reach: str = "1e5 to 1e16 FLOP") -> Path:
    """The A100 with GEMMs fitted to 1,000 timings."""
    path = tmp_path / f"r{residual}.toml"
    path.write_text(
        f'base = "a100"\n[gpu.gemm.bf16]\nsource = "made"\npoints = 1000\nresidual = {residual}\nrange = "{reach}"\n'
        "efficiency = 0.8\n"
    )
    return path


def run(path: Path | str) -> tuple[Trace, ModelledCosts]:
    parallel = Parallel(ranks=2, gpus=2, global_batch=4, sequence=1024)
    costs = ModelledCosts(load_model("llama3-8b"), load_cluster(path), parallel)
    return simulate(program("1f1b", ranks=2, microbatches=4), costs), costs


def width(path: Path) -> float:
    trace, costs = run(path)
    found = uncertainty.interval(trace, costs, 100)
    assert found is not None
    assert found.low < trace.makespan < found.high
    return (found.high - found.low) / trace.makespan


def test_the_interval_is_as_wide_as_the_fit_is_off(tmp_path: Path) -> None:
    narrow, wide = width(profile(tmp_path, 0.05)), width(profile(tmp_path, 0.1))
    assert wide == pytest.approx(2 * narrow, rel=0.1)
    assert 0.02 < narrow < 2 * 1.645 * 0.05


def test_the_same_seed_gives_the_same_interval(tmp_path: Path) -> None:
    trace, costs = run(profile(tmp_path, 0.1))
    one, two, other = (uncertainty.interval(trace, costs, 50, seed) for seed in (1, 1, 2))
    assert one == two != other


def test_batches_of_draws_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trace, costs = run(profile(tmp_path, 0.1))
    once = uncertainty.interval(trace, costs, 50)
    monkeypatch.setattr(uncertainty, "AT_ONCE", 7 * trace.graph.tasks)
    assert uncertainty.interval(trace, costs, 50) == once


def test_without_a_residual_there_is_none(tmp_path: Path) -> None:
    assert uncertainty.interval(*run(profile(tmp_path, 0.0)), 50) is None


def test_what_is_used_beyond_a_fit_is_said(tmp_path: Path) -> None:
    (told,) = uncertainty.extrapolated(*run(profile(tmp_path, 0.1, "1e5 to 1e9 FLOP")))
    assert told.startswith("gpu.gemm.bf16 is extrapolated: fitted from 1e+05 to 1e+09 FLOP, used from ")
    assert uncertainty.extrapolated(*run(profile(tmp_path, 0.1))) == []


def test_run_prints_the_interval(tmp_path: Path) -> None:
    flags = (
        "run --model llama3-8b --schedule 1f1b --ranks 2 --gpus 2 --global-batch 4 --sequence 1024 --draws 40 --json"
    )
    command = [sys.executable, "-m", "simpipe", *flags.split(), "--hardware", str(profile(tmp_path, 0.1))]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    interval = told["step_time_interval_s"]
    assert (interval["level"], interval["draws"]) == (0.9, 40)
    assert interval["low"] < told["step_time_s"] < interval["high"]
    assert told["extrapolated"] == []


def test_given_costs_have_no_interval() -> None:
    command = [sys.executable, "-m", "simpipe", "run", "--draws", "10", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "--draws needs a model" in done.stderr


def test_a_curve_says_what_its_fit_said_whatever_was_assumed_beside() -> None:
    """The H100's exchange has an assumed figure first."""
    fit = load_cluster("h100").fitted("exchange")
    assert (fit.points, fit.residual) == (812, 0.082)
    assert load_cluster("h100").fitted("gpu.memory_bound").residual == 0
