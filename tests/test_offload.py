"""Offload and savings: what the host does is tasks of the step; it hides, or the step grows by what sticks out."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simpipe.simulator import case, savings
from simpipe.simulator.costs import offload
from simpipe.simulator.costs.cluster import Cluster, ClusterError, load_cluster
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.scenario import Scenario
from simpipe.simulator.trace import Trace, simulate
from simpipe.simulator.views import savings as views

SMALL = {
    "model": "llama3-8b", "hardware": "h100", "schedule": "1f1b", "ranks": 2, "gpus": 16, "global_batch": 64,
    "sequence": 2048,
}  # fmt: skip


def run(cluster: Cluster | None = None, engine: Any = "auto", **keys: Any) -> tuple[ModelledCosts, Trace]:
    made = case.modelled(Scenario.of(SMALL | keys))
    assert isinstance(made.costs, ModelledCosts)
    costs = replace(made.costs, cluster=cluster, _known={}) if cluster else made.costs
    return costs, simulate(made.program, costs, engine)


def host(bandwidth: float, pcie: float = 64e9) -> Cluster:
    h100 = load_cluster("h100")
    node = replace(h100.node, host_memory_bandwidth=bandwidth, pcie_bandwidth_per_direction=pcie)
    return replace(h100, node=node)


def spans(trace: Trace, rank: int = 0) -> dict[str, tuple[float, float]]:
    frame = trace.to_frame()
    own = frame[(frame["stream"] == "offload") & (frame["rank"] == rank)]
    return {name: (a, b) for name, a, b in zip(own["operation"], own["start"], own["end"], strict=True)}


def test_averages_on_the_cpu_hide_beside_the_step() -> None:
    """They start with it; a copy of 4 bytes a parameter at 64 GB/s, then 12 bytes each at an eighth of 614 GB/s."""
    _, none = run()
    costs, cpu = run(averages="cpu")
    assert cpu.makespan == pytest.approx(none.makespan, rel=1e-3)
    shard = costs.updated(cpu.program, 0).parameters
    copied, updated = spans(cpu)["averages.copy"], spans(cpu)["averages.update"]
    assert copied == (0.0, pytest.approx(4 * shard / 64e9))
    assert updated == (copied[1], pytest.approx(copied[1] + 12 * shard * 8 / 614e9))


def test_where_they_do_not_hide_the_step_grows_by_what_sticks_out() -> None:
    """The barrier waits for them, so a step is their chain and the optimizer behind it."""
    slow = host(bandwidth=2e9)
    costs, trace = run(slow, averages="cpu")
    _, quick = run(averages="cpu")
    ends = [spans(trace, rank)["averages.update"][1] for rank in range(2)]
    optimizer = trace.end[-2:] - trace.start[-2:]
    assert trace.makespan == pytest.approx(max(ends) + optimizer.max())
    assert trace.makespan > quick.makespan
    shard = max(costs.updated(trace.program, rank).parameters for rank in range(2))
    assert max(ends) == pytest.approx(4 * shard / 64e9 + 12 * shard * 8 / 2e9)


def test_an_optimizer_on_the_cpu_waits_for_the_gradients_and_the_barrier() -> None:
    costs, trace = run(optimizer_device="cpu", averages="cpu")
    frame = trace.to_frame()
    reduced = frame[(frame["operation"] == "reduce-scatter") & (frame["rank"] == 0)]["end"].max()
    barrier = frame[frame["kind"] == "barrier"]["end"].max()
    own = spans(trace)
    assert own["gradients.out"][0] >= reduced
    assert barrier >= max(spans(trace, rank)["gradients.out"][1] for rank in range(2))
    assert own["optimizer.host"][0] >= barrier
    assert own["parameters.in"][0] == own["optimizer.host"][1]
    step = frame[(frame["kind"] == "optimizer") & (frame["rank"] == 0)]
    assert step["start"].item() >= own["parameters.in"][1]
    shard = costs.updated(trace.program, 0).parameters
    assert own["gradients.out"][1] - own["gradients.out"][0] == pytest.approx(4 * shard / 64e9)
    assert trace.makespan > run()[1].makespan


def test_averages_of_weights_that_the_cpu_updates_are_not_copied() -> None:
    """The master weights are in the host's memory; the optimizer's own 4 + 2 bytes a parameter are all that moves."""
    costs, trace = run(optimizer_device="cpu", averages="cpu")
    shard = costs.updated(trace.program, 0).parameters
    own = spans(trace)
    assert "averages.copy" not in own
    assert own["averages.update"] == (0.0, pytest.approx(12 * shard * 8 / 614e9))


def test_both_engines_agree_on_what_the_host_does() -> None:
    for keys in ({"averages": "cpu"}, {"averages": "cpu", "optimizer_device": "cpu"}):
        small = keys | {"global_batch": 16}
        one, two = (run(engine=engine, **small)[1] for engine in ("simpy", "compiled"))
        assert np.allclose(one.start, two.start, rtol=1e-9, atol=1e-12)
        assert np.allclose(one.end, two.end, rtol=1e-9, atol=1e-12)


def test_what_leaves_the_gpu_is_in_the_host() -> None:
    held = {
        "gpu": run(averages="gpu")[0],
        "averages": run(averages="cpu")[0],
        "both": run(averages="cpu", optimizer_device="cpu")[0],
    }
    program = run()[1].program
    gpu, averages, both = (held[name].static_bytes(program, 0) for name in ("gpu", "averages", "both"))
    shard = held["gpu"].updated(program, 0)
    assert gpu["averages"] == 4 * shard.parameters == offload.host_bytes(held["averages"].parallel, shard)
    assert gpu["optimizer"] == averages["optimizer"] == 12 * shard.parameters
    assert (both["optimizer"], "averages" in both) == (0, False)
    assert offload.host_bytes(held["both"].parallel, shard) == (4 + 12 + 4 + 2) * shard.parameters


def test_a_host_of_unknown_memory_is_refused() -> None:
    unknown = replace(load_cluster("h100"), node=replace(load_cluster("h100").node, host_memory_bandwidth=None))
    with pytest.raises(ClusterError, match=r"no node\.host_memory_bandwidth"):
        run(unknown, averages="cpu")


def test_savings_add_up_from_all_kept_to_the_scenario() -> None:
    """Rank by rank; the last row is the scenario's own step."""
    keys = {"recompute": ["norms", "swiglu"], "moment_bytes": 2, "averages": "cpu", "optimizer_device": "cpu"}
    scenario = Scenario.of(SMALL | keys)
    rows = savings.table(scenario)
    assert [row.saving for row in rows] == [
        "all kept", "norms recomputed", "SwiGLU outputs recomputed", "moments of 2 bytes", "moving averages on the CPU",
        "optimizer on the CPU",
    ]  # fmt: skip
    _, figures = case.simulated(case.modelled(scenario))
    assert figures.efficiency
    own = [rank.peak_bytes for rank in figures.efficiency.memory_per_rank]
    assert list(rows[-1].peak_bytes) == own
    table = savings.to_dict(rows)
    for rank in range(2):
        saved = sum(row["saved_bytes_per_rank"][rank] for row in table)
        assert rows[0].peak_bytes[rank] - saved == pytest.approx(own[rank])
    assert sum(row["costs_s"] for row in table) == pytest.approx(figures.summary.makespan - rows[0].step_time_s)
    assert all(row["saved_bytes"] > 0 for row in table[1:])
    assert table[-1]["host_bytes"] > table[-2]["host_bytes"] > 0 == table[0]["host_bytes"]


def test_the_table_by_rank_adds_up() -> None:
    """From all kept to what is left, as it is shown; ranks that are alike share a column."""
    peaks = [(9e9, 9e9, 7e9, 9e9), (6.5e9, 6.5e9, 6.96e9, 6.5e9), (6e9, 6e9, 7e9, 6e9)]
    rows = [{"saving": name, "peak_bytes_per_rank": peak} for name, peak in zip("abc", peaks, strict=True)]
    header, table = views.per_rank(rows)
    assert header == ["GB of a GPU, rank", "0 to 1, 3", "2"]
    assert table == [
        ["a", "9.0", "7.0"], ["- b", "2.5", "0.0"], ["- c", "0.5", "0.0"], ["= what is left", "6.0", "7.0"]
    ]  # fmt: skip


def test_what_moves_over_pcie_in_a_step() -> None:
    """Averages: 4 bytes of a master weight. An optimizer on the CPU: a gradient and a weight, and none for averages."""
    keys = {"averages": "cpu", "optimizer_device": "cpu", "global_batch": 16}
    none, averages, both = savings.table(Scenario.of(SMALL | keys))
    costs, trace = run(**keys)
    shard = max(costs.updated(trace.program, rank).parameters for rank in range(2))
    assert [row.pcie_bytes / shard for row in (none, averages, both)] == [0, pytest.approx(4), pytest.approx(4 + 2)]


def test_the_host_is_busy_with_all_that_it_does() -> None:
    """The optimizer's part too, which nothing hides: the step grows by most of it."""
    keys = {"averages": "cpu", "optimizer_device": "cpu", "global_batch": 16}
    none, averages, both = savings.table(Scenario.of(SMALL | keys))
    busy = {name: run(**(keys | {"optimizer_device": name}))[1] for name in ("gpu", "cpu")}
    each = {
        n: max(sum(b - a for a, b in spans(trace, rank).values()) for rank in range(2)) for n, trace in busy.items()
    }
    assert (none.host_s, averages.host_s, both.host_s) == (0, pytest.approx(each["gpu"]), pytest.approx(each["cpu"]))
    assert averages.host_s < both.step_time_s - averages.step_time_s < both.host_s


def test_tables_shared_with_mtp_are_held_once() -> None:
    """DeepSeek-V3's rank 0 holds the first and the last stage: 2 tables of 129,280 x 7,168."""
    short = {"global_batch": 4096, "averages": "none"}
    path = Path(__file__).parents[1] / "examples" / "deepseek_v3.yaml"
    shared, own = (case.modelled(Scenario.read(path, **short, shared_tables=value)) for value in (True, False))
    counts = [made.costs.static_bytes(made.program, 0)["gradients"] / 4 for made in (shared, own)]  # type: ignore[union-attr]
    assert counts[1] - counts[0] == 2 * 129280 * 7168


def test_the_command(tmp_path: Path) -> None:
    path = tmp_path / "small.yaml"
    Scenario.of(SMALL | {"recompute": ["norms"], "averages": "cpu"}).write(path)
    command = [sys.executable, "-m", "simpipe", "savings"]
    done = subprocess.run([*command, str(path)], capture_output=True, text=True, check=True)
    assert "norms recomputed" in done.stdout
    assert "= what is left" in done.stdout
    rows = json.loads(subprocess.run([*command, str(path), "--json"], capture_output=True, text=True).stdout)
    assert [row["saving"] for row in rows][-1] == "moving averages on the CPU"
    for arguments, sentence in (([], "savings needs a scenario file"), (["none.yaml"], "none.yaml cannot be read")):
        bad = subprocess.run([*command, *arguments], capture_output=True, text=True)
        assert (bad.returncode, len(bad.stderr.splitlines())) == (2, 1)
        assert sentence in bad.stderr
