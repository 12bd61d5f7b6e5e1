"""Memory against Megatron's formulas, published and measured figures; sums, and which way each knob moves it."""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpipe.simulator.costs.memory import (
    FRAMEWORK_BYTES,
    FUSED,
    MEGATRON,
    Kernels,
    activation,
    layer_activation,
    released_by_input,
    static,
    total,
    transient,
    weights,
)
from simpipe.simulator.costs.memory import (
    _weights as weights_of,
)
from simpipe.simulator.costs.model import GroupedAttention, Linear, Model
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.parallel import RECOMPUTE, Parallel, Stage, stages
from simpipe.simulator.costs.share import Share

GIB = 2.0**30
GPT_22B = load_model("megatron-22b")
GPT_175B = load_model("gpt3-175b")
V3 = load_model("deepseek-v3")
DEEPSEEK_V3 = Parallel(
    ranks=16,
    gpus=2048,
    global_batch=15360,
    sequence=4096,
    ep=64,
    recompute=frozenset({"norms", "mla_up", "swiglu"}),
    compute_format="fp8_block",
    dispatch_format="fp8",
    moment_bytes=2,
)
"""As arXiv 2412.19437 trains: sections 3.2 and 3.3."""


def megatron(tp: int = 1, sp: bool = False, recompute: str = "", b: int = 1, ranks: int = 1) -> Parallel:
    """A run without data parallelism, as arXiv 2205.05198 measures."""
    names = frozenset(filter(None, [recompute]))
    gpt = Parallel(ranks=ranks, gpus=ranks * tp, tp=tp, global_batch=64 * b, microbatch_size=b, sequence=2048, zero=0)
    return replace(gpt, sequence_parallel=sp, recompute=names)


def middle(*layers: int) -> Stage:
    return Stage(1, layers, embedding=False, head=False, mtp=False)


# The formulas and figures of "Reducing Activation Recomputation" (arXiv 2205.05198).

Formula = Callable[[float, int], float]
FORMULAS: list[tuple[str, Parallel, Formula]] = [
    ("equation 1", megatron(), lambda scores, t: 34 + scores),
    ("equation 2", megatron(8), lambda scores, t: 10 + 24 / t + scores / t),
    ("equation 4", megatron(8, True), lambda scores, t: (34 + scores) / t),
    ("table 2, tensor and selective", megatron(8, False, "selective"), lambda scores, t: 10 + 24 / t),
    ("table 2, both and selective", megatron(8, True, "selective"), lambda scores, t: 34 / t),
    ("table 2, full", megatron(8, False, "full"), lambda scores, t: 2),
]


@pytest.mark.parametrize("model", [GPT_22B, GPT_175B], ids=lambda model: str(model.name))
@pytest.mark.parametrize(("parallel", "formula"), [row[1:] for row in FORMULAS], ids=[row[0] for row in FORMULAS])
def test_a_layer_keeps_what_the_formulas_say(model: Model, parallel: Parallel, formula: Formula) -> None:
    sbh = parallel.tokens * model.hidden
    scores = 5 * model.attention.heads * parallel.sequence / model.hidden
    kept = total(layer_activation(model, parallel, 0, MEGATRON))
    assert kept == pytest.approx(sbh * formula(scores, parallel.tp), rel=1e-12)


FIGURE_7 = [
    (GPT_22B, 4, 1, 48, {"": 59.25, "+sp": 66.84, "selective": 49.42, "selective+sp": 9.5625, "full": 7.64}),
    (GPT_175B, 1, 3, 96, {"": 66.84375, "+sp": 62.04, "selective": 56.53, "selective+sp": 12.3515625, "full": 8.71}),
]


@pytest.mark.parametrize(("model", "b", "chunks", "held", "figures"), FIGURE_7, ids=["22B", "175B"])
def test_published_activation_memory(model: Model, b: int, chunks: int, held: int, figures: dict[str, float]) -> None:
    """Figures 1 and 7: GiB where absolute, else percent of no recomputation with tensor parallelism 8.

    The first stage holds all layers' worth, and (1 + (p - 1) / (p m)) of it when interleaved m times (section 4.2.3).
    """
    ranks = 8 if chunks > 1 else 1
    times = held * (1 + (ranks - 1) / (ranks * chunks) if chunks > 1 else 1)

    def gib(case: str) -> float:
        recompute, plus, _ = case.partition("+")
        return times * total(layer_activation(model, megatron(8, bool(plus), recompute, b), 0, MEGATRON)) / GIB

    for case, figure in figures.items():
        absolute = case in ("", "selective+sp")
        assert (gib(case) if absolute else 100 * gib(case) / gib("")) == pytest.approx(figure, rel=0.007), case


@pytest.mark.parametrize(("model", "ranks"), [(GPT_22B, 1), (GPT_175B, 8)], ids=["22B", "175B"])
def test_published_parameter_and_optimizer_memory(model: Model, ranks: int) -> None:
    """Figure 1, 45.5625 GiB: 18 bytes a parameter of the layers, biases and tables apart."""
    held = static(model, megatron(8, ranks=ranks), [middle(*range(model.layers // ranks))])
    assert (total(held) - held["framework"]) / GIB == pytest.approx(45.5625, rel=0.001)


def test_what_sequence_parallelism_gathers() -> None:
    """Inputs of products split by columns, two of a layer and the head's, are kept whole where a library keeps them; a
    slot holds one gathered input and its gradient in any."""
    split, whole = megatron(8, True), megatron(8, False)
    each = 2.0 * split.tokens * GPT_22B.hidden
    own, kept = (total(layer_activation(GPT_22B, split, 0, Kernels(gathered=gathered))) for gathered in (False, True))
    assert kept - own == pytest.approx(2 * each * 7 / 8)
    stage = middle(0)
    sharded, full = (transient(GPT_22B, parallel, stage)["working"] for parallel in (split, whole))
    assert sharded - full == pytest.approx(2 * each - 2 * each * 7 / 8)


def test_beyond_the_layers() -> None:
    """Section 4.3: the embedding's mask, the last norm's and the head's inputs; logits live within a slot."""
    parallel = megatron(8, True)
    sbh = parallel.tokens * GPT_22B.hidden
    first = Stage(0, (), embedding=True, head=False, mtp=False)
    last = Stage(1, (), embedding=False, head=True, mtp=False)
    numbers = 8 * parallel.tokens
    assert total(activation(GPT_22B, parallel, first, MEGATRON)) == pytest.approx(sbh / 8 + numbers)
    assert total(activation(GPT_22B, parallel, last, MEGATRON)) == pytest.approx(4 * sbh / 8)
    assert transient(GPT_22B, parallel, last)["logits"] == 6 * parallel.tokens * GPT_22B.vocabulary / 8


def test_weight_gradients_need_32_sbh() -> None:
    """Zero Bubble (arXiv 2401.10241, table 1): W keeps 32 sbh a layer, products' inputs and output gradients."""
    parallel = megatron()
    split = released_by_input(GPT_22B, parallel, middle(0), MEGATRON)
    sbh = parallel.tokens * GPT_22B.hidden
    assert total(split.kept) + total(split.added) == pytest.approx(32 * sbh, rel=1e-12)
    assert total(split.kept) == pytest.approx(14 * sbh, rel=1e-12)


# Measured peaks: static and one stage's activations in flight, as 1F1B holds them.


def peak(model: Model, parallel: Parallel, in_flight: Callable[[Stage], int], kernels: Kernels = FUSED) -> float:
    """GiB that the allocator sees on the fullest rank."""
    found = []
    for stage in stages(model, parallel, parallel.ranks):
        fixed = total(static(model, parallel, [stage])) - FRAMEWORK_BYTES
        kept = in_flight(stage) * total(activation(model, parallel, stage, kernels))
        found.append(fixed + kept + total(transient(model, parallel, stage, kernels)))
    return max(found) / GIB


B200 = [
    ("llama3-70b", 12, {"ranks": 2}, 66.55),
    ("llama3-70b", 12, {"tp": 2}, 60.68),
    ("llama3-70b", 12, {"tp": 4}, 39.07),
    ("llama3-70b", 12, {"tp": 8}, 28.29),
    ("deepseek-v2", 4, {"ep": 8}, 45.63),
    ("deepseek-v2", 4, {"ep": 4, "ranks": 2}, 44.70),
]


@pytest.mark.parametrize(("name", "layers", "sizes", "measured"), B200)
def test_measured_on_b200(name: str, layers: int, sizes: dict[str, int], measured: float) -> None:
    """SimuMax, docs/b200: GiB allocated on 8 B200, BF16, sequence 4096, ZeRO 1, layers cut to fit."""
    parallel = Parallel.of({"ranks": 1, "gpus": 8, "global_batch": 256, "sequence": 4096} | sizes)
    found = peak(replace(load_model(name), layers=layers), parallel, lambda stage: parallel.ranks - stage.index)
    assert found == pytest.approx(measured, rel=0.03)


def zero_bubble_gpt(layers: int, heads: int, hidden: int) -> Model:
    attention = GroupedAttention(heads, heads, hidden // heads, qkv_bias=True, out_bias=True)
    assert GPT_22B.mlp
    mlp = replace(GPT_22B.mlp, intermediate=4 * hidden)
    return replace(GPT_22B, layers=layers, hidden=hidden, positions=1024, attention=attention, mlp=mlp)


@pytest.mark.parametrize(
    ("shape", "ranks", "b", "measured"),
    [((22, 24, 2304), 8, 6, {"1F1B": 30, "ZB-1p": 32, "ZB-2p": 59}),
     ((46, 40, 5120), 16, 1, {"1F1B": 32, "ZB-1p": 33, "ZB-2p": 51})],
    ids=["1.5B", "14.6B"],
)  # fmt: skip
def test_measured_by_zero_bubble(shape: tuple[int, int, int], ranks: int, b: int, measured: dict[str, float]) -> None:
    """arXiv 2401.10241, table 4 (GiB): 1F1B holds p - stage, ZB-1p p and ZB-2p 2p micro-batches."""
    held: dict[str, Callable[[Stage], int]] = {
        "1F1B": lambda stage: ranks - stage.index,
        "ZB-1p": lambda stage: ranks,
        "ZB-2p": lambda stage: 2 * ranks,
    }
    model = zero_bubble_gpt(*shape)
    parallel = Parallel(ranks=ranks, gpus=ranks, global_batch=64 * b, sequence=1024, microbatch_size=b, zero=0)
    for name, figure in measured.items():
        assert peak(model, parallel, held[name], MEGATRON) == pytest.approx(figure, rel=0.065), name


# DeepSeek-V3.


def test_deepseek_v3_has_four_experts_of_a_layer_on_a_gpu() -> None:
    held = weights(V3, DEEPSEEK_V3, [middle(10, 11, 12, 13)])
    assert held.experts == 4 * 4 * 3 * 7168 * 2048
    assert held.expert_bytes == pytest.approx(held.experts, rel=1e-3)  # fp8


def test_deepseek_v3_parameters_are_all_somewhere() -> None:
    parts = [weights(V3, DEEPSEEK_V3, [stage]) for stage in stages(V3, DEEPSEEK_V3, 16)]
    table = V3.vocabulary * V3.hidden  # of the MTP module, on the last stage, which has no embedding
    found = math.fsum(part.dense + 64 * part.experts for part in parts)
    assert found == sum(V3.parameters(mtp=True).values()) + table


def test_dualpipe_ranks_hold_two_stages_and_share_the_optimizer() -> None:
    first, *_, last = stages(V3, DEEPSEEK_V3, 16)
    alone = [static(V3, DEEPSEEK_V3, [stage]) for stage in (first, last)]
    both, shared = static(V3, DEEPSEEK_V3, [first, last]), static(V3, DEEPSEEK_V3, [first, last], copies=2)
    table = V3.vocabulary * V3.hidden * 2.0  # embedding and MTP share one table, as the report does
    assert both["parameters"] == pytest.approx(alone[0]["parameters"] + alone[1]["parameters"] - table)
    assert shared["optimizer"] == both["optimizer"] / 2
    assert shared["gradients"] == both["gradients"]
    sharded = replace(DEEPSEEK_V3, zero=3)
    both, shared = static(V3, sharded, [first, last]), static(V3, sharded, [first, last], copies=2)
    assert shared["gradients"] == both["gradients"]  # each copy's own, added up at the end
    assert shared["parameters"] == both["parameters"] / 2


def test_deepseek_v3_fits_its_h800() -> None:
    """DualPipe's rank r holds 16 - r chunks of activations of its one stage and r + 1 of the other: P + 1."""
    parts = stages(V3, DEEPSEEK_V3, 16)
    for rank in range(8):
        pair, held = (parts[rank], parts[15 - rank]), (16 - rank, rank + 1)
        chunks = sum(total(activation(V3, DEEPSEEK_V3, stage)) * n for stage, n in zip(pair, held, strict=True))
        within = sum(total(transient(V3, DEEPSEEK_V3, stage)) for stage in pair)
        assert 40 * GIB < total(static(V3, DEEPSEEK_V3, pair, copies=2)) + chunks + within < 79 * GIB


def test_what_deepseek_v3_recomputes_is_not_kept() -> None:
    """A token of an MoE layer keeps norm inputs, the attention's output in E5M6, and its experts' inputs in fp8."""
    kept = layer_activation(V3, DEEPSEEK_V3, 10)
    fp8 = 1 + 4 / 128
    per_token = {name: size / DEEPSEEK_V3.tokens for name, size in kept.items()}
    assert per_token == pytest.approx(
        {
            "norms": 2 * (7168 + 1536 + 512 + 7168),
            "attention.core": 4 * 128,
            "attention.out": 1.5 * 128 * 128,
            "router": 4 * 256,
            "experts": 8 * (7168 * fp8 + 2 * 2048 * fp8 + 8),
            "shared": 2 * 2048 * fp8,
        }
    )
    everything = total(layer_activation(V3, replace(DEEPSEEK_V3, recompute=frozenset()), 10))
    assert everything > 2 * total(kept)


# Sums and directions.

MODELS = st.sampled_from(["deepseek-v3", "deepseek-v2", "llama3-70b", "mixtral-8x7b", "qwen3-235b-a22b", "gpt3-175b"])
FORMATS = st.sampled_from(["bf16", "fp8", "fp8_block"])
RECOMPUTED = st.frozensets(st.sampled_from(RECOMPUTE))
KERNELS = st.sampled_from([FUSED, MEGATRON, Kernels(flash=False), Kernels(dropout=True)])


def parallel_of(**sizes: object) -> Parallel:
    return Parallel.of({"ranks": 2, "gpus": 64, "global_batch": 512, "sequence": 2048} | sizes)


@settings(max_examples=50, deadline=None)
@given(MODELS, FORMATS, RECOMPUTED, KERNELS)
def test_a_stage_is_the_sum_of_its_parts(name: str, form: str, recompute: frozenset[str], kernels: Kernels) -> None:
    model, parallel = load_model(name), parallel_of(compute_format=form, recompute=recompute)
    stage = stages(model, parallel, 2)[0]
    bare = replace(stage, embedding=False)
    parts = [activation(model, parallel, replace(stage, layers=()), kernels)]
    parts += [layer_activation(model, parallel, index, kernels) for index in stage.layers]
    whole = activation(model, parallel, stage, kernels)
    assert total(whole) == pytest.approx(sum(map(total, parts)))
    assert total(activation(model, parallel, bare, kernels)) == pytest.approx(sum(map(total, parts[1:])))
    freed, kept, _ = released_by_input(model, parallel, stage, kernels)
    assert whole == pytest.approx({k: freed.get(k, 0) + kept.get(k, 0) for k in {*freed, *kept}})


@settings(max_examples=50, deadline=None)
@given(MODELS, FORMATS, RECOMPUTED, KERNELS)
def test_recomputation_moves_bytes_from_kept_to_recomputed(
    name: str, form: str, recompute: frozenset[str], kernels: Kernels
) -> None:
    model = load_model(name)
    without = parallel_of(compute_format=form, recompute=recompute - {"swiglu"})  # swiglu may change a format
    last = middle(model.layers - 1)
    kept = total(activation(model, without, last, kernels))
    everything = total(activation(model, replace(without, recompute=frozenset()), last, kernels))
    assert kept + transient(model, without, last, kernels)["recompute"] == pytest.approx(everything)
    more = replace(without, recompute=without.recompute | {"swiglu"})
    least = replace(without, recompute=frozenset({"full"}))
    assert total(activation(model, least, last, kernels)) <= total(activation(model, more, last, kernels)) <= kept


@settings(max_examples=50, deadline=None)
@given(MODELS, FORMATS, KERNELS, st.sampled_from(["tp", "cp"]))
def test_more_gpus_for_a_sequence_hold_less_each(name: str, form: str, kernels: Kernels, knob: str) -> None:
    model = load_model(name)
    found = []
    for size in (1, 2, 4):
        parallel = parallel_of(compute_format=form, **{knob: size})
        first, last = stages(model, parallel, 2)
        found.append(total(activation(model, parallel, first, kernels)))
        if knob == "tp":
            assert total(static(model, parallel, [last])) <= total(
                static(model, parallel_of(compute_format=form), [last])
            )
    assert found[0] > found[1] > found[2]
    if knob == "cp":
        assert found == pytest.approx([found[0], found[0] / 2, found[0] / 4])


def test_zero_shards_one_kind_after_the_other() -> None:
    model, kinds = load_model("llama3-8b"), ("optimizer", "gradients", "parameters")
    stage = stages(model, parallel_of(), 2)[0]
    whole = static(model, parallel_of(zero=0), [stage])
    for zero in (1, 2, 3):
        parallel = parallel_of(zero=zero)
        held = static(model, parallel, [stage])
        for number, kind in enumerate(kinds, 1):
            assert held[kind] == pytest.approx(whole[kind] / (parallel.dp if zero >= number else 1))
        assert (transient(model, parallel, stage)["gathered"] > 0) == (zero == 3)
        assert (transient(model, parallel, stage)["buckets"] > 0) == (zero >= 2)


def test_experts_shard_over_their_own_group() -> None:
    model = load_model("mixtral-8x7b")
    parallel = parallel_of(ep=8)
    held = weights(model, parallel, [middle(1)])
    optimizer = static(model, parallel, [middle(1)])["optimizer"]
    assert (parallel.dp, parallel.edp) == (32, 4)
    assert optimizer == pytest.approx(12 * (held.dense / 32 + held.experts / 4))


@pytest.mark.parametrize("sequence_parallel", [True, False])
def test_weights_and_experts_rows_are_those_of_the_kernels(sequence_parallel: bool) -> None:
    parallel = parallel_of(tp=2, ep=8, etp=2, sequence_parallel=sequence_parallel)
    share = Share(V3, parallel)
    for operation in (*V3.layer(0).operations, *V3.layer(60).operations, *V3.mtp_module):
        if isinstance(operation, Linear):
            held = weights_of(parallel, (replace(operation, bias=False, borrowed=False),))
            assert held.dense + held.experts == sum(k * n for _, k, n in share.shapes(operation))
    up, inner = V3.hidden, 2 * 2048 // parallel.etp
    routing = 8 * 8 * share.own
    kept = layer_activation(V3, parallel, 10)["experts"]
    assert kept == pytest.approx(2 * sum(share.expert_rows()) * (up + inner + inner / 2) + routing)


def test_formats_of_gradients_and_optimizer() -> None:
    held = static(GPT_22B, replace(megatron(), gradient_bytes=2, master_bytes=4, moment_bytes=2), [middle(0)])
    assert held["gradients"] == held["parameters"]
    assert held["optimizer"] == 4 * held["parameters"]


@pytest.mark.parametrize(("ranks", "copies"), [(1, 1), (2, 2)])
def test_a_tied_head_has_its_own_copy_of_the_table_only_on_another_rank(ranks: int, copies: int) -> None:
    parallel = megatron(ranks=ranks)
    found = sum(weights(GPT_22B, parallel, [stage]).dense for stage in stages(GPT_22B, parallel, ranks))
    table = GPT_22B.vocabulary * GPT_22B.hidden
    assert found == sum(GPT_22B.parameters().values()) + (copies - 1) * table


def test_buffers_of_an_exchange() -> None:
    """What comes and goes once per GPU of a token, and the experts' outputs, one per expert."""
    model = load_model("mixtral-8x7b")
    stage, row = middle(1), 2048 * 4096
    assert transient(model, parallel_of(ep=1), stage)["expert_buffers"] == 2 * 2 * row  # outputs of two experts
    found = transient(model, parallel_of(ep=8), stage)["expert_buffers"]
    assert found == pytest.approx(row * (2 * (2 + 2) + 2 * 2))  # two GPUs of a token, to and from, in bf16
    assert transient(model, parallel_of(ep=8, dispatch_format="fp8"), stage)["expert_buffers"] == found - 2 * row
    worse = parallel_of(ep=8, expert_imbalance=1.5)
    assert transient(model, worse, stage)["expert_buffers"] == pytest.approx(1.5 * found)
    assert layer_activation(model, worse, 1)["experts"] > 1.4 * layer_activation(model, parallel_of(ep=8), 1)["experts"]


def test_redundant_experts_have_weights_gradients_and_states() -> None:
    """One more of each expert's place: twice the experts, nothing else."""
    model, stage = load_model("mixtral-8x7b"), middle(1)
    plain, twice = (weights(model, parallel_of(ep=8, redundant_experts=n), [stage]) for n in (0, 8))
    assert twice == plain._replace(experts=2 * plain.experts, expert_bytes=2 * plain.expert_bytes)
    held, more = (static(model, parallel_of(ep=8, redundant_experts=n, zero=0), [stage]) for n in (0, 8))
    assert more["gradients"] - held["gradients"] == plain.experts * 4
    assert more["optimizer"] - held["optimizer"] == plain.experts * 12


def test_a_gpu_of_the_middle_has_buffers_for_two_neighbours() -> None:
    parallel = megatron(ranks=4)
    message = 2 * parallel.tokens * GPT_22B.hidden
    found = [transient(GPT_22B, parallel, stage)["boundary"] for stage in stages(GPT_22B, parallel, 4)]
    assert found == [2 * message, 4 * message, 4 * message, 2 * message]
    assert transient(GPT_22B, megatron(), stages(GPT_22B, megatron(), 1)[0])["boundary"] == 0


def test_an_action_has_only_what_it_needs_beside_activations() -> None:
    parallel = parallel_of(zero=3, gpus=64)
    stage = stages(GPT_22B, parallel, parallel.ranks)[-1]
    by_action = {action: transient(GPT_22B, parallel, stage, action=action) for action in "FIWB"}
    full = by_action["B"]
    for action, without in {"F": {"working", "buckets"}, "I": {"buckets"}, "B": set()}.items():
        assert by_action[action] == {kind: 0 if kind in without else size for kind, size in full.items()}
    assert {kind for kind, size in by_action["W"].items() if size} == {
        kind for kind in ("boundary", "buckets") if full[kind]
    }
