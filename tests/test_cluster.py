"""Machines: every profile loads and says where its numbers are from; kernels' times follow physics; bad files are
refused in one sentence."""

import math
import re
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpipe.simulator.costs.cluster import Attention, Cluster, ClusterError, load_cluster, profile_names

MACHINES = ["a100", "b200", "gb200-nvl72", "h100", "h20", "h200", "h800", "mi300x"]
H100 = load_cluster("h100")
H800 = load_cluster("h800")
SIZES = st.integers(1, 20_000)
FORMATS = st.sampled_from(["bf16", "fp8", "fp8_block", "fp32"])


def test_the_profiles_are_the_known_machines() -> None:
    assert profile_names() == MACHINES


@pytest.fixture(params=MACHINES)
def machine(request: pytest.FixtureRequest) -> Cluster:
    return load_cluster(str(request.param))


def test_every_number_has_its_source(machine: Cluster) -> None:
    assert len(machine.figures) > 90
    assert machine.sources.keys() == machine.figures.keys()
    assert machine.assumed.keys() < machine.sources.keys()
    assert all(len(source) > 10 and "no source is given" not in source for source in machine.sources.values())


def test_sizes_are_in_si(machine: Cluster) -> None:
    assert 70e9 < machine.gpu.memory < 250e9
    assert 1e12 < machine.gpu.memory_bandwidth < 10e12
    assert 100e12 < machine.peak("bf16") < 3000e12
    assert machine.peak("fp32") < machine.peak("tf32") < machine.peak("bf16")
    assert 1e-6 <= machine.gpu.kernel_gap <= machine.gpu.launch_latency < 1e-5
    assert machine.network.latency_same_leaf < machine.network.latency_cross_leaf < 1e-5


TOTALS = [("a100", 600), ("h100", 900), ("h200", 900), ("h800", 400), ("h20", 900), ("b200", 1800), ("mi300x", 896)]


@pytest.mark.parametrize(("name", "both_directions"), [*TOTALS, ("gb200-nvl72", 1800)])
def test_a_bandwidth_is_half_of_the_advertised_total(name: str, both_directions: int) -> None:
    assert load_cluster(name).node.nvlink.bandwidth_per_direction == both_directions * 1e9 / 2


def test_published_figures() -> None:
    assert H800.node.nvlink.bandwidth_per_direction * H800.node.nvlink.efficiency == pytest.approx(160e9)
    assert H800.network.bandwidth_per_direction == 50e9  # 400 Gbit/s
    assert H800.gpu.memory == 84943110144
    assert (H800.network.planes, H100.network.planes) == (8, 1)
    assert (H800.price, H100.price) == (2.0, None)
    assert load_cluster("gb200-nvl72").node.nvlink.domain_gpus == 72
    # DeepSeek's profile-data: 8 experts of 3,888 tokens beside communication on 20 of 132 SMs, mean 1,862.5 us
    grouped = H800.grouped_gemm_seconds([(3888, 4096, 7168)] * 8, "fp8_block", sms=112)
    assert grouped == pytest.approx(1862.5e-6, rel=0.15)


def test_measured_gemms() -> None:
    """measured/gemm_h100_sxm.csv.gz, gemm_a100_sxm.csv.gz."""
    assert H100.gemm_seconds(2048, 4096, 4096, "bf16") == pytest.approx(87.96e-6, rel=0.1)
    assert H100.gemm_seconds(64, 4096, 4096, "bf16") == pytest.approx(15.68e-6, rel=0.1)
    assert load_cluster("a100").gemm_seconds(4096, 4096, 4096, "bf16") == pytest.approx(514.08e-6, rel=0.1)


def test_rows_show_value_unit_and_source() -> None:
    rows = {row.key: (row.value, row.source, row.assumed) for row in H800.rows()}
    assert rows["node.nvlink.bandwidth_per_direction"][0] == "200 GB/s"
    assert rows["gpu.memory_bandwidth"][0] == "3.35 TB/s"
    assert rows["gpu.sms"] == ("132", "DeepSeek profile-data, deviceProperties", False)
    assert rows["gpu.peak.fp8"][2]
    assert rows["gpu.peak.fp8"][1].startswith("taken from the H100")
    assert rows["price"][0] == "2 USD/GPU-hour"
    assert "the bf16 curve" in rows["gpu.gemm.tf32.efficiency"][1]


# physics


@settings(max_examples=60, deadline=None)
@given(SIZES, SIZES, SIZES, FORMATS, st.integers(1, 132))
def test_gemm(m: int, n: int, k: int, format: str, sms: int) -> None:
    seconds = H100.gemm_seconds(m, n, k, format, sms)
    assert 2 * m * n * k / seconds <= H100.peak(format) * sms / 132
    assert seconds > H100.gpu.gemm[format].floor
    assert H100.gemm_seconds(m, n, k, format) <= seconds * (1 + 1e-9)
    for larger in ((m + 97, n, k), (m, n + 97, k), (m, n, k + 97)):
        assert H100.gemm_seconds(*larger, format, sms) >= seconds * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SIZES, SIZES, SIZES), min_size=1, max_size=5), st.tuples(SIZES, SIZES, SIZES))
def test_grouped_gemm(shapes: list[tuple[int, int, int]], more: tuple[int, int, int]) -> None:
    seconds = H100.grouped_gemm_seconds(shapes, "bf16")
    assert sum(2 * m * n * k for m, n, k in shapes) / seconds <= H100.peak("bf16")
    assert H100.grouped_gemm_seconds(shapes[::-1], "bf16") == seconds
    assert H100.grouped_gemm_seconds([*shapes, (0, 64, 64)], "bf16") == pytest.approx(seconds)
    assert H100.grouped_gemm_seconds([*shapes, more], "bf16") >= seconds * (1 - 1e-9)
    assert H100.grouped_gemm_seconds(shapes, "bf16", sms=100) >= seconds * (1 - 1e-9)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 4), st.integers(1, 64), st.integers(1, 9000), st.integers(0, 9000), st.booleans(), st.booleans())
def test_attention(batch: int, heads: int, queries: int, earlier: int, causal: bool, backward: bool) -> None:
    shape = Attention(batch, heads, heads, queries, queries + earlier, 128, 128, causal)
    seconds = H100.attention_seconds(shape, "bf16", backward)
    pairs = queries * (queries + earlier) - (queries * (queries - 1) // 2 if causal else 0)
    assert batch * heads * pairs * 512 * (2.5 if backward else 1) / seconds <= H100.peak("bf16")
    assert H100.attention_seconds(shape, "bf16", backward, sms=100) >= seconds
    wider, longer = shape._replace(head_dim=192), shape._replace(keys=shape.keys + 130)
    for larger in (shape._replace(heads=heads + 1), shape._replace(batch=batch + 1), longer, wider):
        assert H100.attention_seconds(larger, "bf16", backward) >= seconds
    if causal:
        assert H100.attention_seconds(shape._replace(causal=False), "bf16", backward) >= seconds


def test_small_expert_groups_waste_tiles() -> None:
    tokens = H800.grouped_gemm_seconds([(4096, 2048, 7168)], "fp8_block")
    assert H800.grouped_gemm_seconds([(16, 2048, 7168)] * 256, "fp8_block") > 2 * tokens


def test_memory_bound() -> None:
    floor = H100.gpu.memory_bound.floor
    assert H100.memory_seconds(8e9) - floor == pytest.approx(2 * (H100.memory_seconds(4e9) - floor))
    assert H100.memory_seconds(3.35e9) > 1e-3


def test_nothing_to_do_takes_no_time() -> None:
    assert H100.gemm_seconds(0, 64, 64, "bf16") == 0
    assert H100.grouped_gemm_seconds([], "bf16") == 0
    assert H100.attention_seconds(Attention(0, 8, 8, 64, 64, 128, 128), "bf16") == 0
    assert H100.memory_seconds(0) == 0


def test_limits() -> None:
    fast = replace(H100.gpu, peak={"bf16": 1e30}, memory_bandwidth=1e30)
    assert replace(H100, gpu=fast).gemm_seconds(4096, 4096, 4096, "bf16") == pytest.approx(H100.gpu.gemm["bf16"].floor)
    with pytest.raises(ClusterError, match=r"a kernel on h100 takes 1 to 132 SMs, not 133"):
        H100.gemm_seconds(8, 8, 8, "bf16", sms=133)
    with pytest.raises(ClusterError, match=r"h100 has no gemm curve for 'fp4'; it has bf16, "):
        H100.gemm_seconds(8, 8, 8, "fp4")
    with pytest.raises(ClusterError, match=r"no fewer keys than queries = 64, not 63"):
        H100.attention_seconds(Attention(1, 1, 1, 64, 63, 128, 128), "bf16")


# a user's own file


def test_a_base_gives_what_a_file_leaves_out(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(
        'base = "h800"\n[node.nvlink]\nbandwidth_per_direction_gb_per_s = 150\n'
        '[gpu]\nmemory_gib = { value = 64, source = "our own machine" }\n[gpu.gemm.fp4]\nassumed = "a guess"\n'
        "efficiency = 0.5\ntile_half = 0\nk_ramp = 0\nwave_quantisation = 0\nmemory_efficiency = 1\nsharpness = 1\n"
        "floor_us = 0\n[gpu.peak]\nfp4_pflop_per_s = 4\n"
    )
    cluster = load_cluster(mine)
    assert (cluster.name, cluster.description) == ("mine", H800.description)
    assert cluster.gpu.memory == 64 * 2**30
    assert cluster.network == H800.network
    assert cluster.sources["gpu.memory"] == "our own machine"
    assert cluster.assumed["node.nvlink.bandwidth_per_direction"] == "no source is given in mine.toml"
    assert cluster.assumed["gpu.gemm.fp4.floor"] == "a guess"
    assert cluster.sources["network.latency_same_leaf"] == H800.sources["network.latency_same_leaf"]
    below = tmp_path / "below.toml"
    below.write_text('base = "./mine.toml"\nassumed = "as mine"\n')
    assert load_cluster(str(below)).gpu == cluster.gpu
    assert load_cluster(below).assumed["gpu.memory"] == "as mine; our own machine"


@pytest.mark.parametrize(
    ("text", "domain"),
    [
        ('base = "h100"\nnode.gpus = 4', 4),
        ('base = "h100"\nnode.gpus = 4\nnode.nvlink.domain_gpus = 2', 2),
        ('base = "gb200-nvl72"\nnode.gpus = 2', 72),
        ('base = "b200"', 8),
    ],
)
def test_fast_links_join_a_nodes_gpus_unless_a_file_says_otherwise(text: str, domain: int, tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    mine.write_text(text)
    cluster = load_cluster(mine)
    assert cluster.node.nvlink.domain_gpus == domain
    assert cluster.sources["node.nvlink.domain_gpus"]


def test_a_whole_profile_without_base(tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "hardware_profiles" / "a100.toml").read_text()
    mine = tmp_path / "a100.toml"
    mine.write_text(text)
    assert load_cluster(mine) == load_cluster("a100")
    mine.write_text(re.sub(r"sms = 108\n", "", text))
    with pytest.raises(ClusterError, match=r"a100.toml: gpu.sms is missing"):
        load_cluster(mine)
    mine.write_text(re.sub(r"(?m)^latency_us = .*\n", "", text))
    with pytest.raises(ClusterError, match=r"a100.toml: node.nvlink.latency_us or node.nvlink.latency_ns or"):
        load_cluster(mine)


GPU = 'base = "h100"\n[gpu]\n'
BAD = {
    GPU + "smss = 3": r"unknown key gpu\.smss; did you mean gpu\.sms\?",
    GPU + "memory_gbb = 3": r"gpu\.memory_gbb has no unit that fits; write gpu\.memory_gb or gpu\.memory_gib or",
    GPU + "memory_us = 3": r"gpu\.memory_us has no unit that fits",
    GPU + "memory = 3": r"gpu\.memory has no unit that fits",
    GPU + "memory_bandwidth_gb = 3": r"gpu\.memory_bandwidth_gb has no unit that fits; write gpu\.memory_bandwidth_gb_",
    GPU + "sms = 0": r"gpu\.sms is a whole number from 1 to 1e\+06, not 0",
    GPU + "sms = 1.5": r"gpu\.sms is a whole number from 1 to 1e\+06, not 1\.5",
    GPU + "sms = 2000000": r"gpu\.sms is a whole number from 1 to 1e\+06, not 2000000",
    GPU + "memory_gb = -80": r"gpu\.memory_gb is from 1 to 100000 GB, not -80",
    GPU + "memory_gb = 0": r"gpu\.memory_gb is from 1 to 100000 GB, not 0",
    GPU + "memory_gb = 85e9": r"gpu\.memory_gb is from 1 to 100000 GB, not 85000000000\.0",
    GPU + "memory_bytes = 80": r"gpu\.memory_bytes is from 1e\+09 to 1e\+14 bytes, not 80",
    GPU + "memory_gb = nan": r"gpu\.memory_gb is from 1 to 100000 GB, not nan",
    GPU + "memory_gb = inf": r"gpu\.memory_gb is from 1 to 100000 GB, not inf",
    GPU + "memory_gb = 1" + "0" * 400: r"gpu\.memory_gb is from 1 to 100000 GB, not 10+\.\.\. of 401 digits",
    GPU + "memory_bandwidth_tb_per_s = 3350": r"memory_bandwidth_tb_per_s is from 1e-06 to 100 TB/s, not 3350",
    GPU + "l2_mib = 5e7": r"gpu\.l2_mib is from 0\.0953674 to 95367\.4 MiB, not 50000000",
    GPU + "peak.bf16_tflop_per_s = 989e12": r"peak\.bf16_tflop_per_s is from 0\.001 to 1e\+06 TFLOP/s, not 9890",
    GPU + "peak.bf16_tflop_per_s = 0": r"peak\.bf16_tflop_per_s is from 0\.001 to 1e\+06 TFLOP/s, not 0",
    'base = "h100"\nnode.nvlink.bandwidth_per_direction_gb_per_s = 1e15': r"is from 0\.001 to 100000 GB/s, not 10",
    'base = "h100"\nnetwork.bandwidth_per_direction_gbit_per_s = 4e11': r"is from 0\.008 to 800000 Gbit/s, not 40",
    'base = "h100"\nnetwork.efficiency = 3': r"network\.efficiency is from 0\.001 to 1, not 3",
    'base = "h100"\nnetwork.nics_per_gpu = 0': r"network\.nics_per_gpu is from 0\.01 to 100, not 0",
    'base = "h100"\nnetwork.leaf_oversubscription = 0.5': r"network\.leaf_oversubscription is from 1 to 100, not 0\.5",
    'base = "h100"\nnetwork.latency_same_leaf_us = 1e6': r"latency_same_leaf_us is from 0 to 100000 us, not 1000000",
    'base = "h100"\nprice_usd_per_gpu_hour = 1e9': r"price_usd_per_gpu_hour is from 0 to 100000 USD/GPU-hour, not",
    GPU + "sms = true": r"gpu\.sms is a number, not True",
    GPU + 'sms = "132"': r"gpu\.sms is a number, not '132'",
    GPU + "sms = [132]": r"gpu\.sms is a number, not \[132\]",
    GPU + "sms = {}": r"gpu\.sms is a number, not \{\}",
    GPU + "kernel_gap_us = -1": r"gpu\.kernel_gap_us is from 0 to 100000 us, not -1",
    GPU + "sms = { value = 132, soruce = 'a' }": r"unknown key gpu\.sms\.value",
    GPU
    + "sms = { value = 132, source = 'a', assumed = 'b' }": r"gpu\.sms\.source and gpu\.sms\.assumed are texts, one",
    GPU + "sms = { value = 132, source = 3 }": r"gpu\.sms\.source and gpu\.sms\.assumed are texts, one or the other",
    GPU + "memory_gb = 80\nmemory_gib = 80": r"gpu\.memory is given twice, as gpu\.memory_gb and as gpu\.memory_gib",
    GPU + "memory_bound.efficiency = 1.1": r"gpu\.memory_bound\.efficiency is from 0\.001 to 1, not 1\.1",
    GPU + "gemm.bf16.sharpness = 0.5": r"gpu\.gemm\.bf16\.sharpness is from 1 to 100, not 0\.5",
    GPU + "gemm.bf16.k_ramp = 1e9": r"gpu\.gemm\.bf16\.k_ramp is from 0 to 100000, not 1000000000",
    GPU + "gemm.bf16.wave_quantisation = 2": r"wave_quantisation is from 0 to 1, not 2",
    GPU + "gemm.bf17.floor_us = 1": r"unknown key gpu\.gemm\.bf17\.floor_us; did you mean gpu\.gemm\.bf16\.floor_us\?",
    GPU + "gemm.fp4.efficiency = 0.5": r"gpu\.gemm\.fp4\.tile_half is missing",
    'base = "h100"\n[gpuu]\nsms = 3': r"unknown key gpuu\.sms; did you mean gpu\.sms\?",
    'base = "h100"\nbandwidth_gb_per_s = 3': r"unknown key bandwidth_gb_per_s",
    'base = "h101"': r"no hardware profile is called 'h101'; did you mean h100\?",
    'base = "./mine.toml"': r"its base \./mine\.toml derives from it",
    'base = "./gone.toml"': r"gone\.toml: cannot be read: No such file",
    "base = 3": r"base, description and assumed are texts",
    "base = 'h100'\ndescription = 3": r"base, description and assumed are texts",
    "[gpu": r"is not TOML: ",
    "base = 'h100'\nbase = 'h800'": r"is not TOML: ",
    "x = " + "[" * 100_000: r"is not TOML: ",
    "": r"description is missing|gpu\.sms is missing",
}


@pytest.mark.parametrize("text", BAD)
def test_a_bad_file_is_refused_in_one_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(ClusterError, match=BAD[text]) as refused:
        load_cluster(path)
    assert "\n" not in str(refused.value)
    assert ".toml: " in str(refused.value) or "no hardware profile" in str(refused.value)


def test_bytes_that_are_no_text_and_folders(tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ClusterError, match=r"x\.toml: is not TOML: 'utf-8' codec"):
        load_cluster(tmp_path / "x.toml")
    with pytest.raises(ClusterError, match=r"cannot be read: Is a directory"):
        load_cluster(tmp_path)


def test_an_unknown_name_offers_the_nearest() -> None:
    with pytest.raises(ClusterError, match=r"no hardware profile is called 'h8000'; did you mean h800\?"):
        load_cluster("h8000")
    with pytest.raises(ClusterError, match=r"no hardware profile is called 'zzz'; there are a100, b200, "):
        load_cluster("zzz")


def test_times_are_finite_everywhere(machine: Cluster) -> None:
    for format in machine.gpu.gemm:
        assert math.isfinite(machine.gemm_seconds(4096, 4096, 4096, format))
        assert math.isfinite(machine.grouped_gemm_seconds([(512, 4096, 7168)] * 4, format))
        for backward in (False, True):
            assert machine.attention_seconds(Attention(1, 8, 1, 4096, 4096, 128, 128), format, backward) < 1


def test_a_profile_may_be_yaml(tmp_path: Path) -> None:
    """With the same tables and keys; and as strictly read."""
    from simpipe.simulator.yaml_file import yaml_text

    text = 'base = "h800"\n[network]\nbandwidth_per_direction_gb_per_s = { value = 100, assumed = "twice" }\n'
    (tmp_path / "a.toml").write_text(text)
    (tmp_path / "b.yaml").write_text(yaml_text(tomllib.loads(text)))
    toml, yaml = (load_cluster(tmp_path / name) for name in ("a.toml", "b.yaml"))
    assert replace(toml, name="b") == yaml
    (tmp_path / "c.yaml").write_text("base: h800\nbase: h100\n")
    with pytest.raises(ClusterError, match=r"c\.yaml is no YAML: line 2: duplicate key"):
        load_cluster(tmp_path / "c.yaml")
