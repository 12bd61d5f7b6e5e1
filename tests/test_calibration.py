"""Calibration: known parameters come back, intervals hold what they claim, unsound files are refused in a sentence."""

import gzip
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from simpipe.cli import app
from simpipe.simulator.calibration import calibrate, classes, curves, fitting, readers, trace, writing
from simpipe.simulator.calibration.readers import csv_table
from simpipe.simulator.calibration.timings import Timings, TimingsError, checked, write_shape
from simpipe.simulator.costs.cluster import load_cluster

SHARED = Path(__file__).parents[2] / "shared" / "measured"
H100, RULES = load_cluster("h100"), classes.read()


def noisy(seconds: np.ndarray, random: np.random.Generator, noise: float = 0.05, outliers: float = 0.05) -> np.ndarray:
    """Times with log-normal noise, of which a share is off by a factor of 2 to 10 besides."""
    off = np.where(random.random(len(seconds)) < outliers, random.uniform(2, 10, len(seconds)), 1.0)
    return seconds * np.exp(noise * random.standard_normal(len(seconds))) * off


def table(operator: str, shapes: list[str], seconds: np.ndarray, format: str = "", moved: Any = 0) -> Timings:
    columns = {"operator": operator, "shape": shapes, "format": format, "sms": 0, "bytes": moved, "ranks": 0}
    return Timings(checked(pd.DataFrame({**columns, "seconds": seconds, "source": "made"}), "made"))


def gemms(count: int, random: np.random.Generator) -> np.ndarray:
    return np.exp(random.uniform(np.log(64), np.log(16384), (count, 3))).astype(int)


# Fits.


def test_known_gemm_parameters_come_back() -> None:
    """From another machine's curve, with 5 % noise and 5 % outliers, to within the stated uncertainty."""
    truth = {"efficiency": 0.6, "memory_efficiency": 0.7, "floor": 5e-6, "k_ramp": 250.0, "tile_half": 12.0}
    random = np.random.default_rng(1)
    sizes = gemms(2400, random)
    shapes = [write_shape(m=m, n=n, k=k) for m, n, k in sizes.tolist()]
    timings = table("gemm", shapes, np.ones(len(shapes)), "bf16")
    problem = curves._PROBLEMS["gemm"](H100, "gemm", "bf16", timings.table)
    values = np.array([truth.get(p.name, p.start) for p in problem.parameters])
    seconds = problem.seconds(values, np.arange(len(shapes)))
    (found,) = curves.fit(table("gemm", shapes, noisy(seconds, random), "bf16"), H100)
    for name, value, sigma, true in zip(found.names, found.fit.values, found.fit.sigma, values, strict=True):
        assert abs(value - true) < 4 * sigma + 1e-12, name
        assert name not in truth or sigma < 0.3 * true, name
    assert found.predicted == pytest.approx(seconds, rel=0.03)
    assert found.residual == pytest.approx(0.05, rel=0.25)


def test_intervals_hold_what_they_claim() -> None:
    """A curve of two parameters, fitted again and again: 90 % intervals hold the truth in 80 to 98 of 100."""
    truth, moved = np.array([0.7, 4e-6]), np.exp(np.linspace(np.log(1e5), np.log(1e9), 80))
    shapes = [""] * len(moved)
    seconds = truth[1] + moved / (truth[0] * H100.gpu.memory_bandwidth)
    held = np.zeros((100, 2))
    for trial in range(len(held)):
        made = noisy(seconds, np.random.default_rng(trial))
        timings = table("memory_bound", shapes, made, moved=moved)
        timings.table["tested"] = 0
        (found,) = curves.fit(timings, H100)
        low, high = np.quantile(found.fit.draws, [0.05, 0.95], axis=0)
        held[trial] = (low <= truth) & (truth <= high)
    assert ((held.mean(axis=0) >= 0.8) & (held.mean(axis=0) <= 0.98)).all(), held.mean(axis=0)


TRUTHS = {
    "efficiency": (0.4, 0.9), "tile_half": (2.0, 30.0), "k_ramp": (30.0, 300.0), "wave_quantisation": (0.2, 0.8),
    "memory_efficiency": (0.5, 0.95), "sharpness": (2.0, 6.0), "floor": (2e-6, 1e-5),
}  # fmt: skip


def test_whatever_the_machine_intervals_hold_what_they_claim() -> None:
    """GEMMs of 24 machines drawn at random, with 5 % noise and 5 % outliers: of 168 parameters 90 % intervals hold 84
    to 96 %, four standard deviations all."""
    held, apart = [], []
    for trial in range(24):
        random = np.random.default_rng(trial)
        shapes = [write_shape(m=m, n=n, k=k) for m, n, k in gemms(400, random).tolist()]
        timings = table("gemm", shapes, np.ones(len(shapes)), "bf16")
        timings.table["tested"] = 0
        problem = curves._PROBLEMS["gemm"](H100, "gemm", "bf16", timings.table)
        truth = np.array([random.uniform(*TRUTHS[p.name]) for p in problem.parameters])
        timings.table["seconds"] = noisy(problem.seconds(truth, np.arange(len(shapes))), random)
        (found,) = curves.fit(timings, H100)
        low, high = np.quantile(found.fit.draws, [0.05, 0.95], axis=0)
        held.append((low <= truth) & (truth <= high))
        apart.append(abs(found.fit.values - truth) / found.fit.sigma)
    assert 0.84 <= np.mean(held) <= 0.96
    assert np.max(apart) < 4


def test_what_timings_do_not_say_stays_unsure() -> None:
    """One shape tells how fast it is, not why: parameters keep to the base, as unsure as before."""
    shape = write_shape(m=8192, n=8192, k=8192)
    base = H100.gemm_seconds(8192, 8192, 8192, "bf16")
    (found,) = curves.fit(table("gemm", [shape] * 5, np.full(5, 1.25 * base), "bf16"), H100)
    values = dict(zip(found.names, found.fit.values, strict=True))
    sigma = dict(zip(found.names, found.fit.sigma, strict=True))
    assert found.predicted == pytest.approx(1.25 * base, rel=0.01)
    assert values["tile_half"] == pytest.approx(H100.gpu.gemm["bf16"].tile_half, rel=0.25)
    assert sigma["tile_half"] > 0.5


def test_half_is_left_out_and_predicted() -> None:
    moved = np.exp(np.linspace(np.log(1e5), np.log(1e9), 200))
    (found,) = curves.fit(table("memory_bound", [""] * 200, 5e-6 + moved / 2e12, moved=moved), H100)
    assert found.tested.sum() == 100
    assert found.points == 100
    assert found.error(found.judged)[1] < 1e-3


def test_a_profile_round_trips_with_what_is_known_of_it(tmp_path: Path) -> None:
    moved = np.exp(np.linspace(np.log(1e5), np.log(1e9), 200))
    made = noisy(5e-6 + moved / 2e12, np.random.default_rng(3))
    fitted = curves.fit(table("memory_bound", [""] * 200, made, moved=moved), H100)
    path = tmp_path / "mine.toml"
    path.write_text(writing.profile(fitted, "h100", ["a remark"]))
    mine = load_cluster(path)
    assert mine.gpu.memory_bound.efficiency == pytest.approx(2e12 / H100.gpu.memory_bandwidth, rel=0.05)
    row = next(row for row in mine.rows() if row.key == "gpu.memory_bound.floor")
    assert row.uncertainty is not None
    assert 0 < row.uncertainty < 0.5
    assert (row.points, row.assumed) == (100, False)
    assert row.range.endswith("bytes")
    assert mine.fitted("gpu.memory_bound").residual == pytest.approx(0.05, rel=0.4)
    assert mine.gpu.gemm == H100.gpu.gemm


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("uncertainty = -1", "uncertainty is a number, 0 or more, not -1"),
        ("points = 2.5", "points is a whole number, 0 or more, not 2.5"),
        ('range = "some"', "range is a text as '1e9 to 1e13 FLOP', not 'some'"),
        ("residual = nan", "residual is a number from 0 to 10, not nan"),
    ],
)
def test_what_a_profile_says_of_a_fit_is_checked(tmp_path: Path, said: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f'base = "h100"\n[gpu.memory_bound]\nsource = "x"\nefficiency = 0.5\n{said}\n')
    with pytest.raises(Exception, match=message):
        load_cluster(path)


def test_the_same_timings_give_the_same_bytes() -> None:
    moved = np.exp(np.linspace(np.log(1e5), np.log(1e9), 50))
    made = noisy(5e-6 + moved / 2e12, np.random.default_rng(3))
    once, again = (
        writing.profile(curves.fit(table("memory_bound", [""] * 50, made, moved=moved), H100), "h100", [])
        for _ in range(2)
    )
    assert once == again


def test_an_outlier_hardly_counts() -> None:
    x = np.linspace(1, 10, 40)
    seconds = 2 * x
    seconds[7] *= 50
    parameter = fitting.Parameter("slope", 1.0, 0.01, 100.0, 1.0)
    found = fitting.fit(lambda values: values[0] * x, seconds, [parameter])
    assert found.values[0] == pytest.approx(2, rel=1e-3)


# Tables.


def test_the_template_is_read(tmp_path: Path) -> None:
    path = tmp_path / "timings.csv"
    path.write_text(csv_table.TEMPLATE)
    found = readers.read(str(path), RULES).table
    assert len(found) == len(csv_table.TEMPLATE.splitlines()) - 1
    path.with_suffix(".tsv").write_text(csv_table.TEMPLATE.replace(",", "\t"))
    assert readers.read(str(path.with_suffix(".tsv")), RULES).table["seconds"].tolist() == found["seconds"].tolist()


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("gemm,m=1 n=2 k=3,bf16,nan", "line 2: seconds is a time of more than 0 and less than 1e6 s, not 'nan'"),
        ("gemm,m=1 n=2 k=3,bf16,-1e-5", "line 2: seconds is .* not '-1e-5'"),
        ("gemm,m=1 n=2 k=3,bf16,fast", "line 2: seconds is .* not 'fast'"),
        ("gemm,m=1 n=2,bf16,1e-5", "form 'm=... n=... k=...' of whole numbers above 0, not 'm=1 n=2'"),
        ("gemm,m=-1 n=2 k=3,bf16,1e-5", "line 2: shape is of the form"),
        ("gemm,m=0 n=2 k=3,bf16,1e-5", "line 2: shape is .* not 'm=0 n=2 k=3'"),
        (
            "attention_forward,batch=1 heads=0 kv_heads=1 queries=1 keys=1 head_dim=8 value_dim=8 causal=0,bf16,1e-5",
            "of whole numbers, 0 only as causal, not 'batch=1 heads=0",
        ),
        (
            "attention_forward,batch=1 heads=1 kv_heads=1 queries=9 keys=4 head_dim=8 value_dim=8 causal=1,bf16,1e-5",
            "timings.csv: causal attention has as many keys as queries or more, not 4 and 9",
        ),
        ("memory_bound,,,1e-5", "line 2: bytes is what a memory_bound kernel reads and writes, not ''"),
        ("all_reduce,,,1e-5,1024,2.5", "line 2: ranks is a whole number, not '2.5'"),
        ("all_reduce,,,1e-5,1024,2,half", "line 2: tested is -1, 0 or 1, not 'half'"),
        ("dispatch,tokens=8 hidden=8 topk=9 experts=8,fp8,1e-5,0,2,,20", "timings.csv: a token takes 1 to 8 experts"),
        ("gemmm,m=1 n=2 k=3,bf16,1e-5", "line 2: operator is one of gemm, .* not 'gemmm'"),
        ("gemm,m=1 n=2 k=3,bf17,1e-5", "format of gemm is one of bf16, .* not 'bf17'"),
        ("", "holds no timing, only a header"),
        ('gemm,"m=1', "is no sound table"),
    ],
)
def test_unsound_tables_are_refused(tmp_path: Path, row: str, message: str) -> None:
    path = tmp_path / "timings.csv"
    path.write_text(f"operator,shape,format,seconds,bytes,ranks,tested,sms\n{row}\n")
    with pytest.raises(TimingsError, match=message) as error:
        calibrate.calibrate([str(path)], "h100")
    assert str(error.value).count("\n") == 0


# Traces.


def kernel(
    name: str, start: float, lasts: float, stream: int = 7, blocks: int = 100, launch: int = 0
) -> dict[str, Any]:
    args = {"stream": stream, "grid": [blocks, 1, 1], "correlation": launch, "device": 0, "External id": launch}
    return {
        "ph": "X",
        "cat": "kernel",
        "name": name,
        "pid": "0",
        "tid": "stream 7",
        "ts": start,
        "dur": lasts,
        "args": args,
    }


def launch(number: int, at: float) -> dict[str, Any]:
    args = {"correlation": number}
    return {"ph": "X", "cat": "cuda_runtime", "name": "launch", "pid": 1, "tid": 1, "ts": at, "dur": 1, "args": args}


def document(*events: dict[str, Any]) -> dict[str, Any]:
    return {
        "schemaVersion": 1, "baseTimeNanoseconds": 1_700_000_000_000_000_000,
        "deviceProperties": [{"id": 0, "name": "NVIDIA H100", "numSms": 132}], "traceEvents": list(events),
    }  # fmt: skip


SMALL = document(
    {"ph": "X", "cat": "user_annotation", "name": "attn(F)", "pid": 1, "tid": 1, "ts": 0.5, "dur": 30.0, "args": {}},
    launch(1, 1.0), launch(2, 3.0), launch(3, 50.0),
    {"ph": "X", "cat": "cpu_op", "name": "aten::mm", "pid": 1, "tid": 1, "ts": 1.0, "dur": 2.0,
     "args": {"External id": 1, "Input Dims": [[4096, 1024], [1024, 2048]],
              "Input type": ["c10::BFloat16", "c10::BFloat16"]}},
    kernel("sm90_xmma_gemm_bf16", 10.0, 100.0, launch=1),
    kernel("void at::native::vectorized_elementwise_kernel", 112.0, 8.0, launch=2),
    kernel("void deep_ep::internode::dispatch<8>", 60.0, 100.0, stream=27, blocks=20, launch=3),
    kernel("mystery", 130.0, 5.0, launch=3),
    {"ph": "M", "name": "process_name", "pid": "Spans", "tid": "x", "ts": 0, "args": {"name": "python"}},
)  # fmt: skip


@pytest.mark.parametrize("packed", [False, True])
def test_a_trace_is_read(tmp_path: Path, packed: bool) -> None:
    path = tmp_path / ("t.json.gz" if packed else "t.json")
    data = json.dumps(SMALL).encode()
    path.write_bytes(gzip.compress(data, mtime=0) if packed else data)
    found = readers.read(str(path), RULES)
    (recorded,) = found.traces
    by_name = recorded.kernels.set_index("name")
    assert recorded.sms == 132
    assert recorded.span == pytest.approx(150e-6)
    assert by_name["kind"].tolist() == ["gemm", "dispatch", "memory_bound", "memory_bound"]
    assert by_name["range"].tolist() == ["attn(F)", "", "attn(F)", ""]
    gemm = by_name.loc["sm90_xmma_gemm_bf16"]
    assert gemm["beside"] == pytest.approx(0.5)
    assert gemm["held"] == pytest.approx(10)
    assert found.kernels[0].guessed == {"mystery": pytest.approx(5e-6)}
    rows = found.table.set_index("operator")
    assert rows.loc["gemm", "shape"] == "m=4096 n=2048 k=1024"
    assert rows.loc["gemm", "sms"] == 122
    assert rows.loc["kernel_gap", "seconds"].tolist() == pytest.approx([2e-6, 10e-6])


def broken(**changes: Any) -> bytes:
    event = kernel("gemm", 1.0, 2.0) | changes
    return json.dumps(document(event)).encode()


BOMB = b'{"traceEvents": [' + b" " * 60_000_000 + b"]}"


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (json.dumps(SMALL).encode()[:-40], "is truncated or no JSON"),
        (gzip.compress(json.dumps(SMALL).encode(), mtime=0)[:-20], "is truncated or no sound gzip file"),
        (gzip.compress(BOMB, mtime=0), "unpacks to more than 300 times its size"),
        (broken(dur=-5), "dur of event 'gemm' is 0 or more, not -5"),
        (broken(dur="long"), "dur of event 'gemm' is a number of microseconds, not 'long'"),
        (broken(ts=None), "ts of event 'gemm' is a number of microseconds, not None"),
        (broken(name=7), "is no sound trace"),
        (broken(ts=1).replace(b'"ts": 1', b'"ts": NaN'), "is truncated or no JSON"),
        (broken(args={"grid": [-1, 1, 1]}), "grid of kernel 'gemm' is three whole numbers"),
        (broken(cat="cpu_op"), "holds no kernel of a GPU"),
        (
            b'{"traceEvents": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
            "is (nested deeper than any trace|no sound trace)",
        ),
        (b'{"traceEvents": 5}', "is no sound trace"),
        (b"", "is empty"),
        (b"hello", "is none of the formats that are read"),
        (bytes(range(256)), "is none of the formats that are read"),
    ],
)
def test_unsound_traces_are_refused(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "t.json"
    path.write_bytes(data)
    with pytest.raises(TimingsError, match=message) as error:
        readers.read(str(path), RULES)
    assert str(error.value).count("\n") == 0
    assert len(str(error.value)) < 700


def test_a_kernel_belongs_to_the_innermost_range_that_launched_it() -> None:
    ranges = [trace.Range("step", 0, 10), trace.Range("attn(F)", 1, 3), trace.Range("attn(F)", 5, 8)]
    events = [trace.Event("gemm", 7, 20.0 + at, 1.0, 100, at) for at in (0.5, 2.0, 4.0, 6.0, 9.0)]
    found = trace.of(events, ranges, RULES, "made", 132, "").kernels
    assert found["range"].tolist() == ["step", "attn(F)", "step", "attn(F)", "step"]
    assert found["visit"].tolist() == [0, 0, 0, 1, 0]


def test_busy_time_counts_what_overlaps_once() -> None:
    frame = pd.DataFrame({"start": [0.0, 1.0, 5.0, 5.5], "seconds": [3.0, 1.0, 2.0, 0.5]})
    assert trace.busy(frame) == 5.0


def test_own_patterns_stand_before_the_others(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("[[kernel]]\nclass = 'grouped_gemm'\npattern = 'my_gemm'\n")
    own = classes.read(str(path)).of_kernels(["my_gemm", "other_gemm", "mystery"])
    assert own == {"my_gemm": ("grouped_gemm", False), "other_gemm": ("gemm", False), "mystery": ("memory_bound", True)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[kernel]]\nclass = 'x'\npattern = 'y'", "class 'x' of pattern 'y' is none of gemm"),
        ("[[kernel]]\nclass = 'gemm'\npattern = '('", "pattern '\\(' is no regular expression"),
        ("[[kernel]]\nclass = 'gemm'", "kernel rule 1 has `pattern` and `class`"),
        ("[[range]]\npart = ['up', 'mlp']\npattern = 'y'", "part of pattern 'y' is one of forward"),
        ("kernel = 3", "holds \\[\\[kernel\\]\\] and \\[\\[range\\]\\] rules"),
        ("[", "is not TOML"),
    ],
)
def test_unsound_patterns_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(TimingsError, match=message):
        classes.read(str(path))


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("ncclDevKernel_AllReduce_Sum_bf16_RING_LL", "all_reduce"),
        ("ncclKernel_AllGather_RING_LL_Sum_int8_t", "all_gather"),
        ("ncclDevKernel_ReduceScatter_Sum_bf16_RING_LL", "reduce_scatter"),
        ("ncclDevKernel_SendRecv", "send_recv"),
        ("void deep_ep::intranode::dispatch<8, 768>(int4*)", "dispatch"),
        ("void deep_ep::internode_ll::combine<true>(void*)", "combine"),
        ("void deep_ep::intranode::notify_dispatch<8>(int const*)", "wait"),
        ("void flash_bwd_dq_dk_dv_loop_seqk_parallel_kernel", "attention_backward"),
        ("void flash_fwd_kernel<Flash_fwd_kernel_traits>", "attention_forward"),
        ("nvjet_hsh_128x256_64x4_1x2_h_bz_coopA_TNT", "gemm"),
        ("triton_poi_fused_add_mul_0", "memory_bound"),
    ],
)
def test_kernels_are_known_by_name(name: str, kind: str) -> None:
    assert RULES.of_kernels([name])[name] == (kind, False)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the measured data are not here")
def test_the_published_trace_becomes_a_profile() -> None:
    """Fitted on layers 0 and 1; what is left out is predicted, and both streams keep the recorded order."""
    from simpipe.simulator.scenario import Scenario

    scenario = Path(__file__).parents[1] / "examples" / "deepseek_v3.yaml"
    found = calibrate.calibrate([str(SHARED / "deepseek_v3_train_trace.json")], "h800", Scenario.read(scenario).load())
    told = calibrate.to_dict(found)
    assert told["kernels"][0]["classes"]["wait"]["share"] == pytest.approx(0.135, abs=0.01)
    assert sum(told["kernels"][0]["guessed"].values()) < 1.1e-3
    assert {curve["key"] for curve in told["curves"]} >= {"gpu.gemm.fp8_block", "gpu.attention_backward.bf16"}
    curves_of_kernels = [curve for curve in told["curves"] if "." in curve["key"]]
    assert all(abs(curve["mean_absolute_error"]) < 0.13 for curve in curves_of_kernels)
    (slots,) = told["slots"]
    assert slots["same_order"] == {"compute": True, "expert-parallel": True}
    assert slots["simulated_span_s"] == pytest.approx(slots["measured_span_s"], rel=0.03)
    near = {name: seconds["simulated_s"] / seconds["measured_s"] - 1 for name, seconds in slots["phases"].items()}
    assert len(near) == 10
    assert not {name for name, error in near.items() if abs(error) > 0.1}, near
    (both,) = found.slots
    unseen = {}  # of layers 2 and 3, to which nothing was fitted
    for name in near:
        measured, simulated = (sum(p.seconds for p in s if p.name == name and p.layer >= 2) for s in both[:2])
        unseen[name] = simulated / measured - 1
    assert not {name for name, error in unseen.items() if abs(error) > 0.12}, unseen


def test_known_exchange_parameters_come_back() -> None:
    """First and repeated dispatches and combines of 8 and 64 ranks by a kernel half as fast, with 3 % noise."""
    random, rows = np.random.default_rng(8), []
    truth = {"warp_bandwidth": 0.5 * H100.exchange.warp_bandwidth, "network_efficiency": 0.7, "first_dispatch": 1.25}
    ways = (("dispatch", "fp8", {"repeated": 0}), ("dispatch", "fp8", {}), ("combine", "bf16", {}))
    for way, format, known in ways:
        for ranks in (8, 64):
            for sms in (4, 24):
                shape = write_shape(tokens=4096, hidden=7168, topk=8, experts=256, **known)
                rows.append({"operator": way, "format": format, "shape": shape, "sms": sms, "ranks": ranks})
    ready = [{**row, "seconds": 1.0, "tested": 0} for row in rows]
    problem = curves._PROBLEMS["exchange"](H100, "exchange", "", Timings.of(ready, "made").table)
    values = np.array([truth.get(p.name, p.start) for p in problem.parameters])
    seconds = problem.seconds(values, np.arange(len(rows))) * np.exp(0.03 * random.standard_normal(len(rows)))
    timed = [{**row, "seconds": float(time)} for row, time in zip(ready, seconds, strict=True)]
    (found,) = curves.fit(Timings.of(timed, "made"), H100)
    fitted = dict(zip(found.names, found.fit.values, strict=True))
    assert fitted["warp_bandwidth"] == pytest.approx(truth["warp_bandwidth"], rel=0.1)
    assert fitted["network_efficiency"] == pytest.approx(0.7, rel=0.1)
    assert fitted["first_dispatch"] == pytest.approx(1.25, rel=0.05)


# Collectives.

NCCL_TEXT = """# nThread 1 nGpus 8 minBytes 8 maxBytes 1024
# Using devices
#  Rank  0 Group  0 Pid   1 on host device  0 [0x1b] NVIDIA H100
#  Rank  1 Group  0 Pid   1 on host device  1 [0x43] NVIDIA H100
#                                                              out-of-place                       in-place
#       size         count      type   redop    root     time   algbw   busbw #wrong     time   algbw   busbw #wrong
#        (B)    (elements)                               (us)  (GB/s)  (GB/s)            (us)  (GB/s)  (GB/s)
     1048576        262144     float     sum      -1    20.00   52.43   52.43      0    21.00   49.93   49.93      0
   134217728      33554432     float     sum      -1   600.00  223.70  223.70      0   610.00  220.03  220.03      0
# Avg bus bandwidth    : 138.0
"""


def test_nccl_tests_text_is_read(tmp_path: Path) -> None:
    """All-reduce is known by its ratio of bandwidths, 2 (n - 1) / n = 1, and its reduction."""
    path = tmp_path / "all_reduce.txt"
    path.write_text(NCCL_TEXT)
    rows = readers.read(str(path), RULES).table
    assert rows["operator"].tolist() == ["all_reduce"] * 2
    assert rows["seconds"].tolist() == pytest.approx([20e-6, 600e-6])
    assert rows["ranks"].tolist() == [2, 2]
    path.write_text("# ./build/reduce_scatter_perf -b 8\n" + NCCL_TEXT)
    assert set(readers.read(str(path), RULES).table["operator"]) == {"reduce_scatter"}


def test_nccl_tests_json_is_read(tmp_path: Path) -> None:
    result = {"size": 1048576, "out_of_place": {"time": 20.0, "alg_bw": 52.4, "bus_bw": 91.7}}
    tree = {"args": ["/opt/all_gather_perf", "-b", "8"], "nccl_version": 22700, "nranks": 8, "results": [result]}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(tree))
    (row,) = readers.read(str(path), RULES).table.to_dict("records")
    assert (row["operator"], row["bytes"], row["ranks"], row["seconds"]) == (
        "all_gather",
        1048576,
        8,
        pytest.approx(20e-6),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (NCCL_TEXT.replace("#  Rank", "#  Rnk"), "does not list its ranks"),
        ("#       size         count      type\n", "without a row of results"),
        (
            NCCL_TEXT.replace("sum", "")
            .replace("redop", "")
            .replace("52.43   52.43", "60.00   30.00")
            .replace("223.70  223.70", "200 100"),
            "keep the line that names the program",
        ),
        ('{"nccl_version": 1, "size": ', "is truncated or no JSON"),
        ('{"nccl_version": 1}', "names its program"),
    ],
)
def test_unsound_nccl_tests_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.txt"
    path.write_text(text)
    with pytest.raises(TimingsError, match=message):
        readers.read(str(path), RULES)


def test_a_table_of_collectives_is_fitted(tmp_path: Path) -> None:
    """A ring of known floor, hop, fill, memory and link, written as people write such tables, with 3 % noise."""
    from dataclasses import replace

    from simpipe.simulator.costs import collectives
    from simpipe.simulator.costs.cluster import CollectiveCurve

    known = [12e-6, 1.1e-6, 4e6, 0.3, 0.6]
    node = replace(H100.node, nvlink=replace(H100.node.nvlink, efficiency=known[4]))
    truth = replace(H100, collectives=CollectiveCurve(*known[:4]), node=node)
    random = np.random.default_rng(5)
    lines = ["op,num_gpus,bytes,latency_ms"]
    for ranks in (2, 4, 8):
        for size in 2 ** np.arange(9, 30):
            seconds = collectives.seconds(truth, collectives.all_gather(truth, float(size), ranks))
            lines.append(f"all_gather,{ranks},{size},{1e3 * seconds * math.exp(0.03 * random.standard_normal())}")
    path = tmp_path / "nccl.csv"
    path.write_text("\n".join(lines))
    result = calibrate.calibrate([str(path)], "h100")
    (found,) = result.curves
    assert found.problem.key == "collectives"
    assert found.fit.values == pytest.approx(known, rel=0.25)
    assert (abs(found.fit.values - known) < 4 * found.fit.sigma).all()
    mine = tmp_path / "mine.toml"
    mine.write_text(result.profile)
    assert load_cluster(mine).node.nvlink.efficiency == pytest.approx(known[4], rel=0.15)
    row = next(row for row in load_cluster(mine).rows() if row.key == "node.nvlink.efficiency")
    assert (row.points, row.assumed) == (found.points, False)
    path.write_text("op,num_gpus,bytes,latency_ms\nall_gathr,2,512,1\n")
    with pytest.raises(TimingsError, match=r"line 2: collective is one of all_reduce, .* not 'all_gathr'"):
        readers.read(str(path), RULES)


def test_a_base_of_another_kind_is_left_behind() -> None:
    """Timings of a machine 200 times as slow: efficiencies follow, though nothing near the base explains them."""
    moved = np.exp(np.linspace(np.log(1e5), np.log(1e9), 60))
    made = noisy(1e-4 + moved / 1.5e10, np.random.default_rng(2))
    (found,) = curves.fit(table("memory_bound", [""] * 60, made, moved=moved), H100)
    assert found.fit.values == pytest.approx([1.5e10 / H100.gpu.memory_bandwidth, 1e-4], rel=0.1)


def test_a_refused_file_leaves_nothing_behind(tmp_path: Path) -> None:
    import subprocess
    import sys

    bad, out = tmp_path / "bad.json", tmp_path / "mine.toml"
    bad.write_bytes(broken(dur=-1))
    command = [sys.executable, "-m", "simpipe", "calibrate", str(bad), "--base", "h100", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.count("\n"), out.exists()) == (2, 1, False)
    done = subprocess.run([*command[:-1], str(tmp_path / "mine.txt")], capture_output=True, text=True, check=False)
    assert done.stderr.endswith("its ending names no format; there are .html, .toml, .yaml, .yml\n")


def test_interference_is_what_sms_do_not_explain() -> None:
    """Kernels beside communication on 112 SMs take 1.2 times what those SMs explain; 40 ran alone. One curve a key."""
    random, rows = np.random.default_rng(4), []
    for size in gemms(80, random).tolist():
        beside = len(rows) % 2
        seconds = H100.gemm_seconds(*size, "bf16", 112 if beside else None) * (1.2 if beside else 1.0)
        shape = dict(zip("mnk", size, strict=True))
        rows.append(
            {"operator": "gemm", "shape": write_shape(**shape), "format": "bf16", "sms": 112 if beside else 0,
             "seconds": seconds * math.exp(0.03 * random.standard_normal()), "beside": beside}
        )  # fmt: skip
    rows += [{"operator": "memory_bound", "format": f, "bytes": 1e8, "seconds": 4e-5} for f in ("bf16", "fp32")]
    found = {curve.operator: curve for curve in curves.fit(Timings.of(rows, "made"), H100)}
    assert list(found) == ["gemm", "memory_bound", "interference"]
    (value,), (sigma,) = found["interference"].fit.values, found["interference"].fit.sigma
    assert value == pytest.approx(1.2, rel=0.04)
    assert sigma < 0.03


def test_a_template_is_printed_or_written(tmp_path: Path) -> None:
    path = tmp_path / "template.csv"
    assert CliRunner().invoke(app, ["calibrate", "--template"]).stdout == csv_table.TEMPLATE
    assert CliRunner().invoke(app, ["calibrate", "--template", "--out", str(path)]).stdout == f"wrote {path}\n"
    assert path.read_text() == csv_table.TEMPLATE


def test_nothing_that_is_read_is_written_over(tmp_path: Path) -> None:
    """A base in whose place stands what derives from it would be lost, and of no use."""
    base, table = tmp_path / "mine.toml", tmp_path / "timings.csv"
    base.write_text('base = "h800"\n')
    table.write_text(csv_table.TEMPLATE)
    done = CliRunner().invoke(app, ["calibrate", str(table), "--base", str(base), "--out", str(base)])
    assert str(done.exception) == f"{base} cannot be written: it is read; name another"
    assert base.read_text() == 'base = "h800"\n'
