"""Parallel sizes: what follows from them, which layers each stage gets, and one sentence for what does not fit."""

import math
import pickle
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpipe.simulator.costs.cluster import BYTES_PER_ELEMENT, ClusterError, load_cluster
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.parallel import RECOMPUTE, Load, Parallel, Stage, stages
from simpipe.simulator.errors import ParallelError, SimpipeError

V3 = load_model("deepseek-v3")
LLAMA = load_model("llama3-70b")
GPT = load_model("gpt3-175b")
MIXTRAL = load_model("mixtral-8x7b")
H800 = load_cluster("h800")
A100 = load_cluster("a100")
PUBLISHED = Parallel(ranks=16, gpus=2048, ep=64, global_batch=15360, sequence=4096)


def one_gpu(**sizes: Any) -> Parallel:
    """A size of 1 wherever none is given."""
    return Parallel(**{"ranks": 1, "gpus": 1, "global_batch": 1, "sequence": 1, **sizes})


def small(layers: int, mtp_modules: int = 0) -> Model:
    return replace(LLAMA, name="small", layers=layers, mtp_modules=mtp_modules)


def placed(model: Model, layout: Any, count: int) -> list[tuple[tuple[int, ...], str]]:
    """(layers, what else) of each stage."""
    found = stages(model, one_gpu(stage_layers=layout), count)
    assert [stage.index for stage in found] == list(range(count))
    return [(s.layers, "E" * s.embedding + "m" * s.mtp + "L" * s.head) for s in found]


def counts(model: Model, layout: Any, count: int) -> list[int]:
    return [len(layers) for layers, _ in placed(model, layout, count)]


# What follows.


def test_deepseek_v3_as_published() -> None:
    """128 pipelines of 16 H800, each GPU with 1/64 of the experts, 120 micro-batches (arXiv 2412.19437, 3.2, 4.2)."""
    p = PUBLISHED
    assert (p.dp, p.edp, p.microbatches, p.tokens) == (128, 2, 120, 4096)
    assert p.check(V3, H800) is p


def test_megatron_530b_as_published() -> None:
    """35 x 8 GPUs a pipeline, 9 pipelines of 280 micro-batches (arXiv 2104.04473, table 1)."""
    p = Parallel(ranks=35, tp=8, gpus=2520, global_batch=2520, sequence=2048)
    assert (p.dp, p.microbatches) == (9, 280)
    assert p.check(load_model("megatron-530b"), A100) is p


def test_attention_and_experts_share_a_stages_gpus() -> None:
    p = one_gpu(ranks=2, gpus=64, tp=2, cp=4, ep=8, etp=2, global_batch=24, microbatch_size=3, sequence=16)
    assert (p.dp, p.edp, p.microbatches, p.tokens) == (4, 2, 2, 48)
    assert p.dp * p.tp * p.cp == p.edp * p.ep * p.etp == p.gpus // p.ranks


@given(*[st.integers(1, 6)] * 8)
def test_sizes_multiply_up(ranks: int, tp: int, cp: int, dp: int, ep: int, edp: int, batch: int, each: int) -> None:
    gpus = ranks * math.lcm(tp * cp * dp, ep * edp)
    wide = gpus // (ranks * tp * cp)
    p = Parallel(
        ranks=ranks, gpus=gpus, tp=tp, cp=cp, ep=ep, microbatch_size=each,
        global_batch=wide * batch * each, sequence=4 * tp * cp,
    )  # fmt: skip
    assert p.dp == wide
    assert p.ranks * p.tp * p.cp * p.dp == p.ranks * p.ep * p.etp * p.edp == p.gpus
    assert p.microbatches * p.dp * p.microbatch_size == p.global_batch
    assert p.microbatches == batch


@pytest.mark.parametrize(
    ("names", "parts"),
    [
        ((), ()),
        (("full",), RECOMPUTE),
        (("selective",), ("selective", "core")),
        (("core",), ("selective", "core")),
        (("norms", "mla_up"), ("norms", "mla_up")),
    ],
)
def test_recomputes(names: tuple[str, ...], parts: tuple[str, ...]) -> None:
    p = one_gpu(recompute=frozenset(names))
    assert {part for part in RECOMPUTE if p.recomputes(part)} - {"full"} == {*parts} - {"full"}


def test_it_can_be_a_key_and_sent_to_another_process() -> None:
    p = one_gpu(stage_layers=(3, 4), recompute=frozenset({"norms"}))
    assert pickle.loads(pickle.dumps(p)) == p
    assert len({p, replace(p), replace(p, sequence=2)}) == 2


# Stages.


def test_layers_left_over_go_to_the_middle() -> None:
    assert counts(V3, "even", 16) == [3, 3, *[4] * 13, 3]
    assert counts(small(9), "even", 4) == [2, 2, 3, 2]
    assert counts(small(10), "even", 4) == [2, 3, 3, 2]
    assert counts(small(11), "even", 4) == [3, 3, 3, 2]
    assert counts(small(12), "even", 4) == [3, 3, 3, 3]
    assert counts(small(5), "even", 2) == [3, 2]
    assert counts(small(5), "even", 1) == [5]


@given(st.integers(1, 200), st.integers(1, 200))
def test_even_is_even_and_complete(layers: int, count: int) -> None:
    model = small(max(layers, count))
    found = stages(model, one_gpu(), count)
    sizes = [len(stage.layers) for stage in found]
    assert [layer for stage in found for layer in stage.layers] == list(range(model.layers))
    assert max(sizes) - min(sizes) <= 1
    assert sizes[-1] == min(sizes)
    assert [stage.embedding for stage in found] == [True] + [False] * (count - 1)
    assert [stage.head for stage in found] == [False] * (count - 1) + [True]


def test_the_last_stage_has_head_and_mtp() -> None:
    assert stages(V3, one_gpu(), 61)[-1] == Stage(60, (60,), embedding=False, head=True, mtp=True)
    assert placed(small(3, 1), (1, 0, 2), 3) == [((0,), "E"), ((), ""), ((1, 2), "mL")]
    assert placed(small(3), (3,), 1) == [((0, 1, 2), "EL")]


def test_megatrons_layout_of_deepseek_v3() -> None:
    """Its `Et*3|(tt|)*29,m|L`: 3 layers with the embedding, 29 x 2, the MTP module alone, the loss alone."""
    found = placed(V3, "Et*3|(tt|)*29,m|L", 32)
    assert found[:2] == [((0, 1, 2), "E"), ((3, 4), "")]
    assert found[29:] == [((59, 60), ""), ((), "m"), ((), "L")]
    assert [len(layers) for layers, _ in found] == [3, *[2] * 29, 0, 0]


@pytest.mark.parametrize(
    ("layout", "stages_"),
    [
        ("EttttttL", ["EttttttL"]),
        ("E|t*6|L", ["E", "tttttt", "L"]),
        ("E, t | (t t|)*2 tL", ["Et", "tt", "tt", "tL"]),
        ("E|((t|)*2t)*2|L", ["E", "t", "t", "tt", "t", "t", "L"]),
        ("E||t*2*3|L", ["E", "", "tttttt", "L"]),
        ("Et*6|*3L", ["Etttttt", "", "", "L"]),
        ("E(tt)*03mL", ["EttttttmL"]),
    ],
)
def test_layouts(layout: str, stages_: list[str]) -> None:
    model = small(6, layout.count("m"))
    found = placed(model, layout, len(stages_))
    assert ["E" * ("E" in e) + "t" * len(layers) + e.replace("E", "") for layers, e in found] == stages_


def test_a_layout_without_m_leaves_mtp_out() -> None:
    assert not any(stage.mtp for stage in stages(V3, one_gpu(stage_layers="Et*61L"), 1))


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40).filter(any))
def test_a_layout_says_what_its_list_says(sizes: list[int]) -> None:
    layout = "E" + "|".join(f"t*{n}" if n else "" for n in sizes) + "L"
    assert placed(small(sum(sizes)), layout, len(sizes)) == placed(small(sum(sizes)), tuple(sizes), len(sizes))


@pytest.mark.parametrize(
    ("layout", "sentence"),
    [
        ((3, 3), "layers lists 2 stages, but the schedule has 3"),
        ((3, 3, 3), "layers lists 9 layers, but small has 6"),
        ("Et*6L", "layers = 'Et*6L' has 1 stages, but the schedule has 3"),
        ("Et*7||L", "layers = 'Et*7||L' has 7 layers t, but small has 6"),
        ("Et*6|mm|L", "layers = 'Et*6|mm|L' has 2 MTP modules m, but small has 1"),
    ],
)
def test_layers_that_do_not_fit_the_model(layout: Any, sentence: str) -> None:
    with pytest.raises(ParallelError) as error:
        stages(small(6, 1), one_gpu(stage_layers=layout), 3)
    assert str(error.value) == sentence


def test_more_stages_than_layers() -> None:
    with pytest.raises(ParallelError, match=r"^7 stages need a layer each, but small has 6; place them by layers$"):
        stages(small(6), one_gpu(), 7)


@pytest.mark.parametrize(
    ("layout", "reason"),
    [
        ("Et*3|x|L", "has 'x' at character 6"),
        ("Et)L", "has ')' at character 3"),
        ("E(t|(tL", "opens 2 more parentheses"),
        ("Et*0L", "has '*' at character 3"),
        ("Et*1000000L", "has '*' at character 3"),
        ("(E*3", "opens 1 more"),
        ("E(t)*900000L", "stands for more than 100000 symbols"),
        ("E((((t)*999)*999)*999)*999L", "stands for more than 100000 symbols"),
        ("EtLt", "must hold one E, then all t, then m, then one L, not 'EtLt'"),
        ("EEtL", "must hold one E"),
        ("Etm|mL", "places m on 2 stages, not on one"),
        ("E" + "(" * 5000, "opens 5000 more parentheses"),
    ],
)
def test_layouts_that_are_none(layout: str, reason: str) -> None:
    with pytest.raises(ParallelError, match=re.escape(reason)) as error:
        one_gpu(stage_layers=layout)
    assert str(error.value).startswith("layers = 'E" if layout[0] == "E" else "layers = '(")
    assert len(str(error.value)) < 300


# What does not fit.


@pytest.mark.parametrize(
    ("sizes", "sentence"),
    [
        ({"tp": 3}, "gpus = 2048 is not a multiple of ranks x tp x cp = 16 x 3 x 1 = 48"),
        ({"ep": 3}, "gpus / ranks = 128 is not a multiple of ep x etp = 3 x 1 = 3"),
        ({"etp": 4}, "gpus / ranks = 128 is not a multiple of ep x etp = 64 x 4 = 256"),
        ({"global_batch": 15361}, "global_batch = 15361 is not a multiple of dp x microbatch_size = 128 x 1 = 128"),
        ({"microbatch_size": 7}, "global_batch = 15360 is not a multiple of dp x microbatch_size = 128 x 7 = 896"),
        ({"cp": 8, "sequence": 4100}, "sequence = 4100 is not a multiple of cp = 8"),
        ({"cp": 2, "tp": 8, "sequence": 4100}, "sequence / cp = 2050 is not a multiple of tp = 8"),
        ({"gpus": 8}, "gpus = 8 is not a multiple of ranks x tp x cp = 16 x 1 x 1 = 16"),
    ],
)
def test_sizes_that_do_not_fit_each_other(sizes: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ParallelError) as error:
        replace(PUBLISHED, **sizes)
    assert str(error.value) == sentence


def test_without_sequence_parallelism_tp_need_not_divide_the_sequence() -> None:
    assert one_gpu(tp=8, gpus=8, sequence=4100, sequence_parallel=False).sequence == 4100


@pytest.mark.parametrize(
    ("model", "sizes", "sentence"),
    [
        (V3, {"tp": 256, "gpus": 256}, "attention.heads of deepseek-v3 = 128 is not a multiple of tp = 256"),
        (LLAMA, {"tp": 16, "gpus": 16}, "attention.kv_heads of llama3-70b = 8 is not a multiple of tp = 16"),
        (LLAMA, {"ep": 8, "gpus": 8}, "ep = 8, but llama3-70b has no experts: it takes 1"),
        (LLAMA, {"etp": 2, "gpus": 2}, "etp = 2, but llama3-70b has no experts: it takes 1"),
        (LLAMA, {"expert_imbalance": 1.5}, "expert_imbalance = 1.5, but llama3-70b has no experts: it takes 1"),
        (LLAMA, {"recompute": frozenset({"mla_up"})}, "recompute holds mla_up, but llama3-70b has no latent attention"),
        (V3, {"ep": 96, "gpus": 96}, "experts.routed of deepseek-v3 = 256 is not a multiple of ep = 96"),
        (V3, {"etp": 3, "gpus": 3}, "experts.intermediate of deepseek-v3 = 2048 is not a multiple of etp = 3"),
        (V3, {"expert_imbalance": 33}, "expert_imbalance = 33 exceeds 32: deepseek-v3 routes to 8 of 256 experts"),
        (MIXTRAL, {"expert_imbalance": 4.5}, "expert_imbalance = 4.5 exceeds 4"),
        (V3, {"expert_imbalance": (1, 1, 20, 20)}, "expert_imbalance = a list of 4 exceeds 32"),
        (
            V3,
            {"ep": 64, "gpus": 64, "expert_imbalance": (1, 1, 1, 1)},
            "expert_imbalance lists 2 experts of a GPU, but it has 4",
        ),
        (LLAMA, {"redundant_experts": 1}, "redundant_experts = 1, but llama3-70b has no experts: it takes 0"),
        (V3, {"ep": 64, "gpus": 64, "redundant_experts": 32}, "redundant_experts = 32 is not a multiple of ep = 64"),
        (V3, {"ep": 8, "gpus": 8, "redundant_experts": 8}, "redundant_experts = 8 exceeds 0, one on each other GPU"),
        (GPT, {"sequence": 4096}, "sequence = 4096 exceeds the 2048 positions of gpt3-175b"),
        (V3, {"communication_sms": 132}, "communication_sms = 132 leaves no SM to compute: h800 has 132"),
    ],
)
def test_what_the_model_or_the_machine_cannot_take(model: Model, sizes: dict[str, Any], sentence: str) -> None:
    tokens, replicas = 2048, sizes.get("gpus", 1) // sizes.get("tp", 1)
    p = one_gpu(**{"sequence": tokens, "global_batch": replicas, **sizes})
    with pytest.raises(ParallelError) as error:
        p.check(model, H800)
    assert str(error.value).startswith(sentence)


def test_a_format_that_the_machine_does_not_compute() -> None:
    with pytest.raises(ClusterError, match="a100 has no peak for 'fp8'"):
        one_gpu(compute_format="fp8_block").check(LLAMA, A100)


@pytest.mark.parametrize(
    "key", ["ranks", "gpus", "tp", "cp", "ep", "etp", "microbatch_size", "global_batch", "sequence"]
)
@pytest.mark.parametrize("value", [0, -1, 1.0, True, "8", None, math.nan, 10**30, [1]])
def test_sizes_are_whole_numbers(key: str, value: Any) -> None:
    most = 10_000_000 if key == "gpus" else 1_000_000_000
    with pytest.raises(ParallelError, match=f"^{key} must be a whole number from 1 to {most}, not "):
        one_gpu(**{key: value})


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("zero", 4, "zero must be a whole number from 0 to 3, not 4"),
        ("moment_bytes", 3, "moment_bytes must be 1, 2 or 4, not 3"),
        ("master_bytes", True, "master_bytes must be 0, 2 or 4, not true"),
        ("gradient_bytes", 4.0, "gradient_bytes must be 2 or 4, not 4.0"),
        ("overlap", "all", "overlap must be serial, none or within-slot, not 'all'"),
        ("overlap", False, "overlap must be serial, none or within-slot, not false"),
        ("compute_format", "int8", f"compute_format must be {', '.join([*BYTES_PER_ELEMENT][:-1])} or fp4, not 'int8'"),
        ("sequence_parallel", 1, "sequence_parallel must be true or false, not 1"),
        (
            "expert_imbalance",
            math.nan,
            "expert_imbalance must be a number, at least 1, or a list: of NIC, NVLink and experts, not nan",
        ),
        (
            "expert_imbalance",
            math.inf,
            "expert_imbalance must be a number, at least 1, or a list: of NIC, NVLink and experts, not inf",
        ),
        (
            "expert_imbalance",
            0.9,
            "expert_imbalance must be a number, at least 1, or a list: of NIC, NVLink and experts, not 0.9",
        ),
        ("communication_sms", -1, "communication_sms must be a whole number from 1 to 1000000000, not -1"),
        (
            "layers",
            "evn",
            "layers must be even, balanced, a list of counts as 3, 4, 4, 3, or a layout as Et*3|(tt|)*2,m|L, not 'evn'",
        ),
        ("layers", 61, "layers must be even, balanced, a list of counts"),
        ("layers", [3, -1], "layers must be even, balanced, a list of counts"),
        ("layers", [], "layers must be even, balanced, a list of counts"),
        ("layers", [[3]], "layers must be even, balanced, a list of counts"),
        ("recompute", "norm", "recompute holds 'norm'; did you mean norms?"),
        ("recompute", [3], "recompute holds 3; there are full, selective"),
        ("recompute", 3, "recompute must be none, or some of full, selective"),
        ("recompute", "all, norms", "recompute holds 'all'; there are full, selective"),
        ("precision", "fp7", "precision must be one of bf16, fp8, fp8_block, not 'fp7'"),
        ("tpp", 3, "unknown key 'tpp'; did you mean tp?"),
        ("stage_layers", "even", "unknown key 'stage_layers'; did you mean layers?"),
        ("precison", "fp8", "unknown key 'precison'; did you mean precision?"),
        (3, 3, "unknown key 3; there are ranks, gpus, "),
    ],
)
def test_other_values(key: Any, value: Any, sentence: str) -> None:
    with pytest.raises(ParallelError) as error:
        Parallel.of({"ranks": 1, "gpus": 1, "global_batch": 1, "sequence": 1, key: value})
    assert str(error.value).startswith(sentence)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", ["ranks", "gpus", "global_batch", "sequence"])
def test_what_must_be_given(key: str) -> None:
    values = {"ranks": 1, "gpus": 1, "global_batch": 1, "sequence": 1}
    del values[key]
    with pytest.raises(ParallelError, match=f"^{key} is missing$"):
        Parallel.of(values)


# Plain values.


def test_text_and_lists_are_read_alike() -> None:
    base = {"ranks": 1, "gpus": 1, "global_batch": 1, "sequence": 1}
    listed = Parallel.of(base | {"recompute": ["norms", "swiglu"], "layers": [3, 4]})
    assert listed == Parallel.of(base | {"recompute": "swiglu,  norms", "layers": " 3,4 "})
    assert listed == one_gpu(recompute=frozenset({"norms", "swiglu"}), stage_layers=(3, 4))
    assert Parallel.of(base | {"recompute": "none"}) == Parallel.of(base | {"recompute": []}) == one_gpu()


def test_a_load_is_a_number_or_one_of_each_link_and_expert() -> None:
    assert Load.of(1.5) == (1.5, 1.5, (1.5,))
    assert Load.of((1.1, 1.2, 0.5, 0.75)) == (1.1, 1.2, (0.5, 0.75))
    assert Load.of((1.1, 1.2, 0.5, 0.75)).gpu == 1.25
    even, uneven = one_gpu(layer_imbalance=(1.0, (1, 1, 0.5, 0.5))), one_gpu(layer_imbalance=(1.0, (1, 1.1, 0.5, 0.5)))
    assert (even.balanced, uneven.balanced) == (True, False)


def test_copies_of_an_expert_stay_where_its_group_does() -> None:
    """DeepSeek-V3's 8 groups on 64 ranks: 8 of them each; Mixtral has no groups, and 12 ranks hold no whole ones."""
    found = [one_gpu(ep=ep, gpus=ep, global_batch=ep).copies_over(experts) for ep, experts in (
        (64, V3.experts), (12, V3.experts), (4, MIXTRAL.experts),
    ) if experts]  # fmt: skip
    assert found == [8, 12, 4]


def test_precision_stands_for_three_formats_and_gives_way_to_each() -> None:
    base = {"ranks": 1, "gpus": 1, "global_batch": 1, "sequence": 1}
    v3 = Parallel.of(base | {"precision": "fp8_block"})
    assert (v3.compute_format, v3.dispatch_format, v3.combine_format) == ("fp8_block", "fp8", "bf16")
    mixed = Parallel.of(base | {"precision": "fp8_block", "dispatch_format": "bf16"})
    assert mixed == replace(v3, dispatch_format="bf16")


@settings(max_examples=50)
@given(st.data())
def test_plain_values_read_back(data: st.DataObject) -> None:
    p = one_gpu(
        recompute=data.draw(st.frozensets(st.sampled_from(RECOMPUTE))),
        stage_layers=data.draw(st.sampled_from(["even", "Et|(tt|)*3L", (3, 4, 0), (7,)])),
        expert_imbalance=data.draw(st.floats(1, 100) | st.integers(1, 100) | st.just((1.0, 1.2, 0.5, 0.75))),
        layer_imbalance=data.draw(st.just(()) | st.just((1.5, (1, 1, 1.0)))),
        zero=data.draw(st.integers(0, 3)),
        gather_overlap=data.draw(st.booleans()),
        moment_bytes=data.draw(st.sampled_from([1, 2, 4])),
    )
    assert Parallel.of(p.to_dict()) == p


def test_its_error_is_a_users_error() -> None:
    assert issubclass(ParallelError, SimpipeError)
