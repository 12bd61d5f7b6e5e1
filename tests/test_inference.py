"""Inference: published cache sizes and decode bounds, and what follows from the sizes alone."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.inference import Serving, caches, exchange_seconds, spread

DEEPSEEK, H800, NVL72 = load_model("deepseek-v3"), load_cluster("h800"), load_cluster("gb200-nvl72")


def serving(**changes: object) -> Serving:
    return replace(Serving(DEEPSEEK, H800, batch=64, context=4096, ep=256), **changes)  # type: ignore[arg-type]


def test_the_published_exchange_of_a_layer_and_the_bounds_that_follow() -> None:
    """arXiv 2505.09343, section 2.3.2: 32 tokens to 9 experts, 1 byte there and 2 back, hidden 7 K, 50 and 900 GB/s;
    two micro-batches, 61 layers: 14.76 ms and 0.82 ms a token."""
    infiniband, nvlink = (exchange_seconds(32, 9, 7000, 3, rate) for rate in (50e9, 900e9))
    assert infiniband == pytest.approx(120.96e-6)
    assert nvlink == pytest.approx(6.72e-6)
    assert 61 * 2 * infiniband == pytest.approx(14.76e-3, abs=0.005e-3)
    assert 61 * 2 * nvlink == pytest.approx(0.82e-3, abs=0.005e-3)


@pytest.mark.parametrize(("machine", "ep", "published"), [(H800, 256, 14.76e-3), (NVL72, 64, 0.82e-3)])
def test_the_model_s_own_sizes_meet_the_bounds_but_for_their_rounding(machine, ep: int, published: float) -> None:
    """The paper takes all 61 layers and 7,000 of 7,168 hidden units; 58 have experts."""
    own = caches(serving(cluster=machine, ep=ep))[0].decode.exchange
    assert own * 61 / 58 * 7000 / 7168 == pytest.approx(published, rel=2e-3)


KILOBYTES = [("deepseek-v3", 70.272), ("qwen2.5-72b", 327.68), ("llama3-405b", 516.096)]


@pytest.mark.parametrize(("name", "kilobytes"), KILOBYTES)
def test_cache_of_a_token(name: str, kilobytes: float) -> None:
    """arXiv 2505.09343, table 1."""
    model = load_model(name)
    own = caches(Serving(model, H800, 1, 1, ep=64 if model.experts else 1))[0]
    assert own.bytes_per_token == pytest.approx(kilobytes * 1e3)


def test_ways_to_share_keys_and_values_are_ordered() -> None:
    """Bytes a token: MHA of 128 heads 16 times GQA of 8, that 8 times MQA; MLA keeps 576 elements a layer."""
    mla, mha, gqa, mqa = caches(serving())
    assert mha.bytes_per_token == 16 * gqa.bytes_per_token == 128 * mqa.bytes_per_token
    assert mla.bytes_per_token == 61 * 576 * 2
    assert mha.decode.memory > gqa.decode.memory > mla.decode.memory > mqa.decode.memory
    assert mla.decode.compute > gqa.decode.compute  # attends in 512 + 64 dimensions, not in 128


def test_the_longest_context_fits_and_one_more_token_does_not() -> None:
    longest = caches(serving())[0].longest_context
    assert caches(serving(context=longest))[0].fits
    assert not caches(serving(context=longest + 1))[0].fits
    assert caches(serving(batch=128))[0].longest_context == pytest.approx(longest / 2, abs=1)


def test_decoding_reads_weights_and_cache_once() -> None:
    """With one request and few tokens the weights are all: a dense model takes their bytes over the bandwidth, and of
    128,256 rows of its embedding one."""
    model = load_model("llama3-8b")
    (own, *_) = caches(Serving(model, H800, 1, 1, weights="bf16"))
    assert own.weight_bytes == pytest.approx(2 * sum(model.parameters().values()))
    read = own.weight_bytes - 128255 * 4096 * 2 + own.cache_bytes
    assert own.decode.memory == pytest.approx(read / 3.35e12)
    assert own.decode.exchange == 0


def test_a_table_that_is_the_head_too_is_read_whole() -> None:
    model = load_model("llama3-8b")
    own, tied = (caches(Serving(m, H800, 1, 1))[0] for m in (model, replace(model, tied_head=True)))
    assert tied.weight_bytes < own.weight_bytes
    assert tied.decode.memory == pytest.approx(own.decode.memory, rel=1e-4)


def test_tensor_parallelism_splits_heads_but_not_a_latent_vector() -> None:
    one, four = (caches(serving(tp=tp)) for tp in (1, 4))
    assert four[0].cache_bytes == one[0].cache_bytes
    assert four[1].cache_bytes == one[1].cache_bytes / 4


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"batch": 0}, "batch must be"),
        ({"weights": "int4"}, "weights must be one of"),
        ({"ep": 3}, "not a multiple of ep"),
        ({"tp": 3}, "not a multiple of tp"),
        ({"model": load_model("llama3-8b")}, "has no experts"),
        ({"model": load_model("gpt3-175b"), "ep": 1, "context": 2049}, "2049 exceeds the 2048 positions of gpt3-175b"),
    ],
)
def test_what_does_not_fit_is_one_sentence(change: dict[str, object], sentence: str) -> None:
    with pytest.raises(SimpipeError, match=sentence):
        serving(**change)


def test_experts_stay_within_a_rack_of_nvlink() -> None:
    """So the bounds published for both machines are those of the command's defaults."""
    assert (spread(DEEPSEEK, H800), spread(DEEPSEEK, NVL72)) == (256, 64)
    assert spread(load_model("llama3-8b"), H800) == spread(load_model("llama3-8b"), NVL72) == 1


def test_the_command(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "simpipe", "kv"]
    done = subprocess.run([*run, "--model", "deepseek-v3", "--json"], capture_output=True, text=True, cwd=tmp_path)
    mla = json.loads(done.stdout)[0]
    assert mla["bytes_per_token"] == 70272
    assert mla["decode_s"] == max(mla["decode_memory_s"], mla["decode_compute_s"], mla["decode_exchange_s"])
    for arguments, sentence in ((["--model", "x"], "no model 'x'"), ([], "kv needs a model")):
        bad = subprocess.run([*run, *arguments], capture_output=True, text=True, cwd=tmp_path)
        assert (bad.returncode, len(bad.stderr.splitlines())) == (2, 1)
        assert sentence in bad.stderr
