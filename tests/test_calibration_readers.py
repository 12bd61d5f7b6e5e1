"""Readers of timings: Nsight Systems, DeepEP, step logs. What they refuse, they refuse in a sentence."""

import json
import random
import sqlite3
from pathlib import Path

import pytest

from simpipe.simulator.calibration import calibrate, classes, readers
from simpipe.simulator.calibration.readers import csv_table
from simpipe.simulator.calibration.timings import TimingsError
from simpipe.simulator.costs.given import Costs
from simpipe.simulator.errors import SimpipeError

RULES = classes.read()


def export(path: Path, *, kernels: list[tuple[int, int, int]] | None = None, drop: str = "nothing") -> Path:
    """An export of two kernels, (start, end, name), launched in a range."""
    tables = sqlite3.connect(path)
    columns = "start, end, streamId, correlationId, gridX, gridY, gridZ, demangledName".replace(drop, "other")
    tables.executescript(
        f"""
        create table StringIds (id, value);
        insert into StringIds values (1, 'sm90_xmma_gemm'), (2, 'ncclDevKernel_AllReduce'), (3, 'attn(F)');
        create table CUPTI_ACTIVITY_KIND_KERNEL ({columns});
        create table CUPTI_ACTIVITY_KIND_RUNTIME (start, end, correlationId, globalTid);
        insert into CUPTI_ACTIVITY_KIND_RUNTIME values (900, 950, 1, 0), (5000, 5100, 2, 0);
        create table NVTX_EVENTS (start, end, text, textId);
        insert into NVTX_EVENTS values (800, 1000, null, 3);
        create table TARGET_INFO_GPU (id, name, smCount);
        insert into TARGET_INFO_GPU values (0, 'H100', 132);
        """
    )
    for number, (start, end, name) in enumerate(kernels or [(1000, 3000, 1), (2000, 4000, 2)], 1):
        row = (start, end, 7, number, 10 * number, 1, 1, name)
        tables.execute("insert into CUPTI_ACTIVITY_KIND_KERNEL values (?, ?, ?, ?, ?, ?, ?, ?)", row)
    tables.commit()
    tables.close()
    return path


def test_an_nsight_export_is_read(tmp_path: Path) -> None:
    (recorded,) = readers.read(str(export(tmp_path / "t.sqlite")), RULES).traces
    table = recorded.kernels
    assert (recorded.sms, recorded.gpu) == (132, "H100")
    assert table["kind"].tolist() == ["gemm", "all_reduce"]
    assert table["range"].tolist() == ["attn(F)", ""]
    assert table["seconds"].tolist() == pytest.approx([2e-6, 2e-6])
    assert table["held"].tolist() == pytest.approx([10.0, 0.0])


def test_unsound_exports_are_refused(tmp_path: Path) -> None:
    good = export(tmp_path / "t.sqlite").read_bytes()
    cut = tmp_path / "cut.sqlite"
    cut.write_bytes(good[: len(good) // 2])
    empty = tmp_path / "empty.sqlite"
    tables = sqlite3.connect(empty)
    tables.execute("create table other_things (x)")
    tables.commit()
    tables.close()
    negative = export(tmp_path / "negative.sqlite", kernels=[(3000, 1000, 1)])
    text = export(tmp_path / "text.sqlite", kernels=[("soon", 1000, 1)])  # type: ignore[list-item]
    lacking = export(tmp_path / "lacking.sqlite", drop="streamId")
    for path, message in (
        (cut, "is no sound SQLite file|has no table"),
        (empty, "has no table CUPTI_ACTIVITY_KIND_KERNEL, but other_things"),
        (negative, "a kernel lasts 0 or more"),
        (text, "start of a kernel is a whole number of nanoseconds, not 'soon'"),
        (lacking, "has no column streamId"),
    ):
        with pytest.raises(TimingsError, match=message) as error:
            readers.read(str(path), RULES)
        assert "\n" not in str(error.value)


INTRANODE = """[config] num_tokens=4096, hidden=7168, num_topk=8
[layout] Kernel performance: 0.041 ms
num_ranks=8
[tuning] SMs 24, NVL chunk 4: 149.38 GB/s (NVL), 600.00 us
[tuning] Best dispatch (FP8): SMs 24, NVL chunk 6, 153.00 GB/s (NVL), t: 492.00 us
[tuning] Best dispatch (BF16): SMs 24, NVL chunk 6, 154.00 GB/s (NVL), t: 960.00 us
[tuning] Best combine: SMs 24, NVL chunk 2, 158.00 GB/s (NVL), t: 961.00 us
"""
INTERNODE = """[config] num_tokens=4096, hidden=7168, num_topk_groups=4, num_topk=8
[rank 0] [testing] passed
[rank 63] [testing] passed
[tuning] Best dispatch (FP8): SMs 20, NVL chunk 8, RDMA chunk 16: 51.00 GB/s (RDMA), 103.00 GB/s (NVL)
[tuning] Best combine: SMs 20, NVL chunk 4, RDMA chunk 12, 50.00 GB/s (RDMA), 102.00 GB/s (NVL), transmit: 2300.00 us
"""


def test_deepep_within_a_node_is_read(tmp_path: Path) -> None:
    path = tmp_path / "intranode.txt"
    path.write_text(INTRANODE)
    rows = readers.read(str(path), RULES).table
    assert rows["operator"].tolist() == ["dispatch", "dispatch", "combine"]
    assert rows["format"].tolist() == ["fp8", "bf16", "bf16"]
    assert rows["seconds"].tolist() == pytest.approx([492e-6, 960e-6, 961e-6])
    assert (set(rows["sms"]), set(rows["ranks"])) == ({24}, {8})


def test_deepep_across_nodes_is_read(tmp_path: Path) -> None:
    """Without a time it is what a rank sends to distinct nodes, its own too, over the bandwidth: 4 of 8 at most."""
    path = tmp_path / "internode.txt"
    path.write_text(INTERNODE)
    rows = readers.read(str(path), RULES).table
    at_most = 4096 * 4 * 7168 * (1 + 4 / 128) / 51e9
    assert 0.8 * at_most < rows["seconds"][0] <= at_most
    assert rows["seconds"][1] == pytest.approx(2300e-6)
    assert set(rows["ranks"]) == {64}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (INTRANODE.replace("num_ranks=8", ""), "how many ranks ran"),
        (INTRANODE.replace("[config]", "config"), "calibrated|ranks|DeepEP|holds"),
        ("[config] num_tokens=1\n[rank 0] Dispatch + combine bandwidth: 40 GB/s, avg_t=1 us", "low-latency kernels"),
        (INTRANODE.replace("153.00 GB/s (NVL), t: 492.00 us", ""), "has neither a time nor a bandwidth"),
        (INTRANODE.replace("153.00 GB/s (NVL), t: 492.00 us", "1.53.0 GB/s (NVL), t: .4.9 us"), "neither a time nor"),
    ],
)
def test_unsound_deepep_output_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "out.txt"
    path.write_text(text)
    if "config] num_tokens" not in text:
        assert len(readers.read(str(path), RULES).table) == 3  # the numbers are what counts
        return
    with pytest.raises(TimingsError, match=message):
        readers.read(str(path), RULES)


def test_a_step_log_becomes_costs(tmp_path: Path) -> None:
    """B beside a W is the backward for the input; medians by stage."""
    path = tmp_path / "log.csv"
    path.write_text("stage,F_ms,B_ms,W_ms,P2P_ms\n0,10,11,5,0.4\n0,12,11,5,0.4\n0,11,11,5,0.6\n1,20,21,9,0.4\n")
    found = calibrate.calibrate([str(path)], "h100")
    out = tmp_path / "costs.toml"
    out.write_text(found.profile)
    costs = Costs.read(str(out))
    assert (costs.F, costs.I, costs.W, costs.B) == ([0.011, 0.02], [0.011, 0.021], [0.005, 0.009], None)
    assert costs.p2p == pytest.approx(4e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model,F_ms,B_ms,W_ms\na,1,1,1\nb,2,2,2\n", "holds several models, a, b"),
        ("stage,F_ms,B_ms,W_ms\n0,1,nan,1\n", "line 2: seconds is a time of more than 0"),
        ("stage,F_ms,B_ms,W_ms\nfirst,1,1,1\n", "line 2: shape is of the form"),
    ],
)
def test_unsound_step_logs_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "log.csv"
    path.write_text(text)
    with pytest.raises(TimingsError, match=message):
        readers.read(str(path), RULES)


def test_stages_are_all_timed_or_refused(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("stage,F_ms,B_ms\n1,1,2\n2,3,4\n")
    assert "F = [0.001, 0.003]" in calibrate.calibrate([str(path)], "h800").profile
    path.write_text("stage,F_ms,B_ms\n0,1,2\n2,3,4\n")
    with pytest.raises(TimingsError, match=r"log.csv: no B of stage 1 is timed; each stage to the last, 2, needs one"):
        calibrate.calibrate([str(path)], "h800")
    path.write_text("operator,shape,seconds\nF,stage=0,1\nF,stage=1,1\nI,stage=0,1\n")
    with pytest.raises(TimingsError, match="no I of stage 1 is timed"):
        calibrate.calibrate([str(path)], "h800")


def test_nccl_tests_rows_of_no_number_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "all_reduce.txt"
    path.write_text(
        "# all_reduce_perf\n# size count type\n# Rank 0\n# Rank 1\n 1024 256 float sum nan 20.0 0.1 0.1 0\n"
    )
    with pytest.raises(TimingsError, match="seconds is a time of more than 0"):
        readers.read(str(path), RULES)


def test_what_one_profile_cannot_be_of_is_refused(tmp_path: Path) -> None:
    kernels, passes = tmp_path / "kernels.csv", tmp_path / "passes.csv"
    kernels.write_text(csv_table.TEMPLATE)
    passes.write_text("stage,F_ms,B_ms\n0,1,2\n")
    with pytest.raises(TimingsError, match=r"kernels.csv is of kernels, passes.csv of whole passes by stage"):
        calibrate.calibrate([str(kernels), str(passes)], "h800")
    first, second = export(tmp_path / "a.sqlite"), export(tmp_path / "b.sqlite")
    with pytest.raises(TimingsError, match=r"nothing to fit: a.sqlite records no shapes: give the model"):
        calibrate.calibrate([str(first)], "h100")
    with sqlite3.connect(second) as tables:
        tables.execute("update TARGET_INFO_GPU set name = 'A100'")
    with pytest.raises(TimingsError, match=r"the traces are of H100 \(a.sqlite\), A100 \(b.sqlite\)"):
        calibrate.calibrate([str(kernels), str(first), str(second)], "h100")


KERNEL = {"ph": "X", "cat": "kernel", "name": "gemm", "pid": 0, "tid": 7, "ts": 1.0, "dur": 2.0,
          "args": {"stream": 7, "grid": [1, 1, 1], "correlation": 3, "device": 0}}  # fmt: skip


def test_damaged_files_are_read_or_refused_in_a_sentence(tmp_path: Path) -> None:
    """Sound files of each format with bytes changed, cut off or put in: 400 of them, nothing else ever escapes."""
    sound = [
        csv_table.TEMPLATE.encode(), INTRANODE.encode(), INTERNODE.encode(), export(tmp_path / "t.sqlite").read_bytes(),
        json.dumps({"deviceProperties": [{"id": 0, "numSms": 132}], "traceEvents": [KERNEL, KERNEL]}).encode(),
        b"op,num_gpus,bytes,latency_ms\nall_gather,2,512,0.1\n", b"stage,F_ms,B_ms,W_ms\n0,1,2,3\n",
        b"# size count type\n# Rank 0\n# Rank 1\n 1048576 262144 float sum -1 20.00 52.43 52.43 0 21.0 49.9 49.9 0\n",
    ]  # fmt: skip
    put = [b"\r", b"nan", b"-1", b"1e999", b"9" * 400, b'"', b"[", b"{", b",", b"\n", b"\x00", b"null", b"\xff"]
    dice, path = random.Random(7), tmp_path / "damaged"
    for _ in range(400):
        data = bytearray(dice.choice(sound))
        for _ in range(dice.randint(1, 5)):
            at = dice.randrange(len(data) + 1)
            what = dice.randrange(3)
            if what == 0 and at < len(data):
                data[at] = dice.randrange(256)
            elif what == 1:
                data[at:at] = dice.choice(put)
            elif dice.random() < 0.3:
                del data[at:]
        path.write_bytes(data)
        told = ""
        try:
            readers.read(str(path), RULES)
        except SimpipeError as error:
            told = str(error)
        assert "\n" not in told
        assert len(told) < 900
