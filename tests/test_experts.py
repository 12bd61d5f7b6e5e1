"""Experts: routing is drawn exactly, biases settle as theory says, tokens are conserved, runs repeat."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpipe.simulator import case
from simpipe.simulator.costs.collectives import expert_spread
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.efficiency import Efficiency
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.experts import placement, recorded, study
from simpipe.simulator.experts.balance import STRATEGIES, Affinities, Gate, Sample, Strategy
from simpipe.simulator.experts.routing import Router, picks, route
from simpipe.simulator.scenario import Scenario
from simpipe.simulator.views import experts as views

DEEPSEEK = Router(256, 8, 8, 4)
EXAMPLE = Path(__file__).parents[1] / "examples" / "deepseek_v3.yaml"


def drawn(router: Router, rates: np.ndarray, tokens: int, seed: int = 1) -> np.ndarray:
    return route(router, rates[None, None], tokens, np.array([seed], np.uint64))[0, 0]


def by_affinity(router: Router, rates: np.ndarray, tokens: int, random: np.random.Generator) -> np.ndarray:
    """What routing means, computed: an affinity for each expert, groups by the sum of their best, the best in those."""
    affinity = np.log(rates) + random.gumbel(size=(tokens, router.experts))
    if router.limit < router.groups:
        groups = np.sort(affinity.reshape(tokens, router.groups, -1), -1)[:, :, -router.judged :].sum(-1)
        left_out = np.argsort(-groups, 1)[:, router.limit :]
        inside = np.ones((tokens, router.groups), bool)
        np.put_along_axis(inside, left_out, False, 1)
        affinity = np.where(np.repeat(inside, router.experts // router.groups, 1), affinity, -np.inf)
    best = np.argpartition(-affinity, router.topk - 1, 1)[:, : router.topk]
    return np.bincount(best.ravel(), minlength=router.experts)


@pytest.mark.parametrize("spread", [0.0, 1.2, 10.0])
@pytest.mark.parametrize(
    "router",
    [
        DEEPSEEK,
        Router(16, 4, 4, 2),
        Router(12, 2, 4, 2),
        Router(12, 4, 4, 2),
        Router(8, 3, 8, 4),
        Router(8, 2),
        Router(6, 6),
    ],
)
def test_routing_has_the_distribution_of_affinities_computed(router: Router, spread: float) -> None:
    """Expert by expert, the difference of two samples is within what their binomial deviations allow. Where affinities
    lie far apart, one expert has nearly all of its group's rate."""
    random = np.random.default_rng(7)
    rates, tokens = np.exp(random.normal(0, spread, router.experts)), 60_000
    ours, theirs = drawn(router, rates, tokens), by_affinity(router, rates, tokens, random)
    share = (ours + theirs) / (2 * tokens)
    deviation = np.sqrt(2 * tokens * np.maximum(share * (1 - share), 1e-12))
    assert np.abs(ours - theirs).max() <= 4.5 * deviation.max()
    assert (np.abs(ours - theirs) <= 4.5 * deviation + 1e-6).all()


def test_without_a_limit_two_experts_follow_the_closed_form() -> None:
    """Top 1 of two is the share of its rate."""
    counts = drawn(Router(2, 1), np.array([3.0, 1.0]), 400_000)
    assert counts[0] / 400_000 == pytest.approx(0.75, abs=0.003)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 300), st.floats(0.0, 6.0))
def test_tokens_are_conserved_and_no_expert_takes_one_twice(seed: int, tokens: int, spread: float) -> None:
    rates = np.exp(np.random.default_rng(seed).normal(0, spread, (3, 2, 256)))
    counts = route(DEEPSEEK, rates, tokens, np.array([seed, seed + 1, 5], np.uint64))
    assert (counts.sum(2) == 8 * tokens).all()
    assert counts.max() <= tokens
    assert counts.min() >= 0
    groups = counts.reshape(3, 2, 8, 32).sum(3)
    assert (groups <= 8 * tokens).all()


def test_the_same_seed_gives_the_same_bytes_on_any_number_of_threads() -> None:
    rates = np.exp(np.random.default_rng(0).normal(0, 0.5, (5, 2, 256)))
    seeds = np.arange(5, dtype=np.uint64)
    assert route(DEEPSEEK, rates, 200, seeds, 1).tobytes() == route(DEEPSEEK, rates, 200, seeds, 3).tobytes()
    runs = []
    for workers in (1, 2):
        gate = Gate(DEEPSEEK, 3, Affinities(), seed=4, workers=workers)
        loads = [step.loads for step in gate.run(STRATEGIES["bias+sequence"], 5, Sample(4, 64), 0.0, 1e6)]
        placed = [placement.place(np.ones(256), 8, 8)] * 3
        ends = [layer.to_rank.tobytes() for layer in gate.microbatch(Sample(8, 64), placed, 4)]
        runs.append((np.stack(loads).tobytes(), gate.bias.tobytes(), gate.popularity.tobytes(), *ends))
    assert runs[0] == runs[1]


def gate_of_halves(gap: float, noise: float = 0.1) -> Gate:
    """Half of the experts more popular than the others by `gap`."""
    gate = Gate(Router(32, 4), 2, Affinities(skew=0.0, topic=0.0, noise=noise, drift=0.0), seed=3)
    gate.preferred += np.where(np.arange(32) < 16, gap / 2, -gap / 2)
    gate.popularity = gate.preferred.copy()
    return gate


def test_biases_close_a_gap_at_twice_the_update_speed() -> None:
    """Popular experts sink by the speed each step and the others rise by it, until the gap is gone: gap / (2 speed)."""
    gap, speed = 0.2, 0.002
    gate = gate_of_halves(gap)
    steps = [gate.bias.copy() for _ in gate.run(Strategy(speed), 70, Sample(1, 8192), 0.0, 1.0)]
    half = int(gap / (2 * speed)) // 2
    assert np.allclose(steps[half - 1], np.where(np.arange(32) < 16, -speed * half, speed * half))
    settled = gate.bias[:, 16:].mean() - gate.bias[:, :16].mean()
    assert settled == pytest.approx(gap, abs=6 * speed)


def test_settled_biases_keep_loads_even_to_what_speed_and_sampling_leave() -> None:
    """A bias that flutters by 2 speed moves a load by a factor of exp(2 speed / noise); drawing adds its deviation."""
    gate, speed, tokens = gate_of_halves(0.1), 0.001, 16_384
    violation = [step.violation for step in gate.run(Strategy(speed), 120, Sample(1, tokens), 0.0, 1.0)]
    assert np.mean(violation[0]) > 0.4
    bound = np.exp(4 * speed / 0.1) - 1 + 1.3 * study.sampling(Router(32, 4), tokens)
    assert np.mean(violation[-20:]) < bound


@pytest.mark.parametrize(
    ("router", "tokens"),
    [(DEEPSEEK, 4096), (Router(256, 8), 1024), (Router(64, 6), 512), (Router(8, 2), 4096), (Router(4, 4), 10)],
)
def test_what_sampling_alone_leaves(router: Router, tokens: int) -> None:
    layers = 300
    loads = route(router, np.ones((layers, 1, router.experts)), tokens, np.arange(layers, dtype=np.uint64) * 7919)[:, 0]
    violation = (loads.max(1) / loads.mean(1) - 1).mean()
    assert study.sampling(router, tokens) == pytest.approx(violation, rel=0.04)


def test_biases_stay_at_update_speed_zero() -> None:
    gate = Gate(DEEPSEEK, 2, Affinities(), seed=1)
    for _ in gate.run(STRATEGIES["none"], 3, Sample(2, 64), 0.0, 1.0):
        pass
    assert not gate.bias.any()
    assert np.array_equal(gate.popularity, gate.preferred)


def test_update_speed_follows_the_tokens_trained() -> None:
    """DeepSeek-V3: 0.001, and 0 for the last 500 B of 14.8 T tokens (arXiv 2412.19437, section 4.2)."""
    strategy = STRATEGIES["bias+sequence"]
    assert (strategy.speed_at(0), strategy.speed_at(14.29e12), strategy.speed_at(14.3e12)) == (0.001, 0.001, 0.0)
    gate = Gate(DEEPSEEK, 1, Affinities(), seed=1)
    biases = [(step.speed, gate.bias.copy()) for step in gate.run(strategy, 4, Sample(2, 64), 14.3e12 - 2e8, 1e8)]
    assert [speed for speed, _ in biases] == [0.001, 0.001, 0.0, 0.0]
    assert np.array_equal(biases[1][1], biases[3][1])


def test_a_balance_loss_moves_popularity_and_biases_do_not() -> None:
    for name in STRATEGIES:
        gate = Gate(Router(32, 4), 2, Affinities(skew=0.1), seed=2)
        steps = [s.violation.mean() for s in gate.run(STRATEGIES[name], 60, Sample(4, 512), 0.0, 1.0)]
        moves = STRATEGIES[name].auxiliary > 0 or STRATEGIES[name].sequence > 0
        assert (gate.moved.max() > 0) == moves
        assert (np.mean(steps[-10:]) < 0.8 * np.mean(steps[:5])) == (name != "none")


def test_the_sequence_loss_weakens_topics() -> None:
    gate = Gate(Router(32, 4), 2, Affinities(topic=0.1), seed=2)
    for _ in gate.run(Strategy(sequence=0.01), 40, Sample(8, 128), 0.0, 1.0):
        pass
    assert (gate.topics < 0.9).all()


def test_drift_keeps_the_deviation_of_popularity() -> None:
    gate = Gate(Router(256, 8), 20, Affinities(skew=0.05, drift=0.05), seed=5)
    first = gate.preferred.copy()
    for _ in gate.run(STRATEGIES["none"], 60, Sample(1, 1), 0.0, 1.0):
        pass
    assert gate.preferred.std() == pytest.approx(0.05, rel=0.05)
    correlation = np.corrcoef(first.ravel(), gate.preferred.ravel())[0, 1]
    assert correlation == pytest.approx(0.95**60, abs=0.05)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from(placement.WAYS), st.sampled_from([0, 8, 32]))
def test_every_expert_is_placed_and_copies_share_its_tokens(seed: int, way: str, redundant: int) -> None:
    loads = np.random.default_rng(seed).integers(0, 5000, 64)
    placed = placement.place(loads, 8, 4, redundant, way)
    assert len(placed.expert) == 64 + redundant
    assert np.bincount(placed.expert, placed.share, 64) == pytest.approx(np.ones(64))
    assert placed.loads(loads).sum() == pytest.approx(loads.sum())
    group, node = placed.expert // 16, np.arange(len(placed.expert)) // (len(placed.expert) // 4)
    assert (group == node).all()  # on its group's ranks


def test_balanced_placement_and_redundant_experts_even_out_ranks() -> None:
    loads = np.random.default_rng(0).lognormal(0, 0.8, 256)
    worst = {}
    for way, redundant in (("contiguous", 0), ("balanced", 0), ("balanced", 64)):
        by_rank = placement.place(loads, 64, 8, redundant, way).loads(loads).sum(1)
        worst[way, redundant] = by_rank.max() / by_rank.mean()
    assert worst["balanced", 64] < worst["balanced", 0] < worst["contiguous", 0]


@pytest.mark.parametrize("way", placement.WAYS)
def test_a_copy_lies_on_another_rank(way: str) -> None:
    """Else it would take no tokens off its rank. 8 experts and 4 copies on 4 ranks: of the busiest, one on each."""
    placed = placement.place(np.array([80, 1, 1, 5, 1, 1, 1, 1]), 4, 1, 4, way)
    hands = placed.expert.reshape(4, 3)
    assert [len(set(hand)) for hand in hands.tolist()] == [3, 3, 3, 3]
    assert (hands == 0).sum(1).tolist() == [1, 1, 1, 1]
    if way == "contiguous":
        assert all({2 * rank, 2 * rank + 1} <= set(hand) for rank, hand in enumerate(hands.tolist()))


def test_more_copies_than_ranks_are_refused() -> None:
    """Of 256 experts in 8 groups of 8 ranks, each has 7 other ranks."""
    loads = np.arange(256)
    assert (np.bincount(placement.place(loads, 64, 8, 256 * 7, "balanced").expert) == 8).all()
    with pytest.raises(SimpipeError, match="redundant experts are 0 to 1792"):
        placement.place(loads, 64, 8, 256 * 7 + 64, "balanced")


def test_the_fullest_rank_of_recorded_loads() -> None:
    """And what links carry where no token has two experts: NICs what nodes compute, NVLink what ranks do."""
    placed = placement.place(np.ones(4), 2)
    found = [placement.estimated(np.array(row), placed, 2).imbalance for row in ([4, 0, 1, 1], [1, 1, 1, 1])]
    assert [(load.gpu, load.network, load.experts) for load in found] == [
        (pytest.approx(4 / 3), 1.0, pytest.approx((4 / 3, 0))), (1.0, 1.0, (0.5, 0.5)),
    ]  # fmt: skip
    spread = placement.estimated(np.array([3, 1, 1, 1]), placement.place(np.ones(4), 4), 2)
    assert spread.to_node.tolist() == [[1.0, 0.5]] * 4
    assert spread.network.tolist() == [[0.5, 0.5, 1.0, 1.0], [1.0, 1.0, 0.5, 0.5]]


# What a micro-batch puts on links.


def test_four_tokens_by_hand() -> None:
    """Two nodes of two ranks with an expert each, a token a rank. 0 has both experts on the other node and crosses
    once, to the rank with its place, which forwards one row; 1 has both on its own; 2 one on each; 3 stays too."""
    picked = np.array([[[2, 0, 0, 3], [3, 1, 3, 2]]])
    found = placement.traffic(picked, placement.place(np.ones(4), 4), 2)
    assert found.rows.tolist() == [[2], [1], [2], [3]]
    assert found.to_node.tolist() == [[0, 1], [1, 0], [1, 1], [0, 1]]
    assert found.to_rank.tolist() == [[0, 0, 1, 1], [1, 1, 0, 0], [1, 0, 0, 1], [0, 0, 1, 1]]
    assert found.network.tolist() == [[1, 0, 1, 0], [1, 0, 1, 0]]
    assert found.nvlink.tolist() == [[0, 1, 2, 1], [1, 0, 1, 2]]
    assert found.imbalance == (2.0, 2.0, (1.5,))


def drawn_traffic(tokens: int = 256, ranks: int = 64, on_node: int = 8, redundant: int = 0) -> placement.Traffic:
    random = np.random.default_rng(2)
    picked = picks(DEEPSEEK, np.tile(np.exp(random.normal(0, 0.7, 256)), (ranks, 1)), tokens, np.uint64(5))
    return placement.traffic(picked, placement.place(np.arange(256), ranks, 8, redundant), on_node)


def test_a_token_crosses_once_to_each_of_its_nodes() -> None:
    """Groups are nodes, so it comes to 4 at most; it comes to no fewer ranks than nodes and no more than experts."""
    found = drawn_traffic()
    assert found.rows.sum() == found.loads.sum() == 64 * 256 * 8
    assert (found.to_node.sum(1) <= 4 * 256).all()
    assert found.to_node.max() <= 256
    on_nodes = found.to_rank.reshape(64, 8, 8)
    assert (on_nodes.max(2) <= found.to_node).all()
    assert (found.to_node <= on_nodes.sum(2)).all()
    assert found.to_rank.sum() <= found.rows.sum()
    assert drawn_traffic(on_node=1).to_node.tolist() == found.to_rank.tolist()


def test_what_is_sent_is_received() -> None:
    """Where every rank sends alike, NICs and NVLinks carry on average what the balanced spread says, nearly: routing
    ranks groups by their best two experts, the spread by their best one."""
    random = np.random.default_rng(3)
    rates = np.exp(random.normal(0, 0.01, (64, 256)))
    found = placement.traffic(picks(DEEPSEEK, rates, 512, np.uint64(1)), placement.place(np.ones(256), 64, 8), 8)
    spread = expert_spread(256, 8, 64, 8, 4, 8)
    for sent, received in (found.network, found.nvlink):
        assert sent.sum() == received.sum() > 0
    assert found.network.mean() / 512 == pytest.approx(spread.other_nodes, rel=0.15)
    assert found.nvlink.mean() / 512 == pytest.approx(spread.other_ranks, rel=0.15)
    assert 1 <= found.imbalance.network < 1.1
    assert 1 <= found.imbalance.gpu < 1.1


def test_every_token_alike_is_balanced() -> None:
    """Token n to experts n, n + 1, ..., on ranks that each have 256 of them: nothing is over its mean."""
    first = np.arange(64 * 256)
    picked = ((first + np.arange(8)[:, None]) % 256)[None]
    load = placement.traffic(picked, placement.place(np.ones(256), 64), 8).imbalance
    assert load == (1.0, 1.0, (0.25,) * 4)


def test_nodes_are_less_uneven_than_gpus() -> None:
    load = drawn_traffic().imbalance
    assert 1 < load.network < load.gpu


def test_copies_take_turns_and_lighten_the_fullest_gpu() -> None:
    plain, copied = drawn_traffic(), drawn_traffic(redundant=64)
    assert copied.loads.tolist() == plain.loads.tolist()
    assert copied.rows.shape == (64, 5)
    placed = placement.place(np.arange(256), 64, 8, 64)
    by_place = copied.rows.reshape(-1)
    for expert in np.flatnonzero(np.bincount(placed.expert) > 1).tolist():
        mine = by_place[placed.expert == expert]
        assert mine.sum() == plain.loads[expert]
        assert mine.max() - mine.min() < 5 * np.sqrt(mine.sum())


def test_recorded_loads_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "loads.csv"
    path.write_text("layer,expert,tokens\n0,1,5\n0,0,3\n")
    assert recorded.read(path, 1, 2, 1).tolist() == [[3, 5]]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("layer,expert\n", "lacks the column tokens"),
        ("layer,expert,tokens\n0,0,3\n", "lacks expert 1 of layer 0"),
        ("layer,expert,tokens\n0,0,3\n0,0,4\n", "line 3: expert 0 of layer 0 is given twice"),
        ("layer,expert,tokens\n0,9,3\n", "line 2: expert must be a whole number below 2, not '9'"),
        ("layer,expert,tokens\n0,0,x\n", "tokens must be a whole number"),
        ("layer,expert,tokens\n0,0,0\n0,1,0\n", "layer 0 has no tokens"),
        ("layer,expert,tokens\n0,0,3\n0,1,4\n", "expert 1 of layer 0 has 4 of 7 tokens; at most one in 2"),
    ],
)
def test_bad_recorded_loads_are_one_sentence(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "loads.csv"
    path.write_text(text)
    with pytest.raises(SimpipeError, match=sentence):
        recorded.read(path, 1, 2, 2)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [({"skew": -1.0}, "skew must be"), ({"noise": 0.0}, "noise must be"), ({"skew": 1.0, "noise": 0.01}, "at most")],
)
def test_affinities_that_make_no_sense_are_refused(change: dict[str, float], sentence: str) -> None:
    with pytest.raises(SimpipeError, match=sentence):
        Affinities(**change).check()


def test_a_study_ranks_strategies_by_what_they_leave() -> None:
    model = load_model("deepseek-v3")
    plan = study.Plan(30, Sample(4, 256), Sample(8, 256), 0.0, 1e6)
    found = study.run(model, Affinities(skew=0.02), ["none", "bias"], plan, study.Placing(64), seed=0)
    none, bias = found.rows()
    assert bias["gpu_imbalance"] < none["gpu_imbalance"]
    assert bias["violation_last"] < none["violation_last"]
    assert none["step_time_s"] is None
    assert found.layers == 58
    with pytest.raises(SimpipeError, match="--strategy is 'luck'"):
        study.run(model, Affinities(), ["luck"], plan, study.Placing(64), seed=0)
    with pytest.raises(SimpipeError, match="has no experts"):
        study.router_of(load_model("llama3-8b"))


def test_the_same_seed_writes_the_same_bytes(tmp_path: Path) -> None:
    """On any number of threads; another seed writes others."""
    model, plan = load_model("deepseek-v3"), study.Plan(3, Sample(2, 64), Sample(8, 32), 0.0, 1e6)
    written = []
    for seed, workers in ((0, 1), (0, 2), (1, 1)):
        found = study.run(model, Affinities(), ["bias"], plan, study.Placing(8), seed, workers)
        for name in ("a.csv", "a.html", "a.png", "a.svg"):
            views.write(found, tmp_path / name)
        written.append([(tmp_path / name).read_bytes() for name in ("a.csv", "a.html", "a.png", "a.svg")])
    assert written[0] == written[1]
    assert all(one != other for one, other in zip(written[0], written[2], strict=True))


def simpipe(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "simpipe", "moe", *arguments], capture_output=True, text=True, cwd=cwd)


def test_the_command_says_what_imbalance_costs_a_step(tmp_path: Path) -> None:
    """On a short step of DeepSeek-V3; then its own table of tokens read back as recorded loads gives nearly the same
    step: that does not say which experts share a token."""
    short = ("--model", "deepseek-v3", "--set", "global_batch=4096", "--set", "sequence=512", "--json")
    outs = ("--out", "loads.csv", "--out", "page.html")
    drawn = simpipe(*short, "--steps", "2", "--strategy", "none", *outs, cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    found = json.loads(drawn.stdout)
    (none,) = found["strategies"]
    assert none["step_time_s"] > found["balanced_step_time_s"]
    assert none["costs"] == pytest.approx(none["step_time_s"] / found["balanced_step_time_s"] - 1)
    assert len(none["gpu_imbalance_per_layer"]) == 58
    assert "Plotly.newPlot" in (tmp_path / "page.html").read_text()
    read = json.loads(simpipe(*short, "--loads", "loads.csv", cwd=tmp_path).stdout)["strategies"][0]
    assert read["gpu_imbalance_per_layer"] == none["gpu_imbalance_per_layer"]
    assert read["step_time_s"] == pytest.approx(none["step_time_s"], rel=0.01)
    assert none["network_imbalance"] < none["gpu_imbalance"]


def test_redundant_experts_take_memory() -> None:
    """64 more of 256 on 64 GPUs: one more on each in every layer, of 3 x 7,168 x 2,048 parameters; a rank of DualPipe
    has up to 8 layers with experts."""
    scenario = Scenario.read(EXAMPLE, global_batch=4096, averages="none")
    model = scenario.load().model
    loads = np.full((58, 256), 100)
    placing = study.Placing(64, "balanced", 64)
    plan = study.Plan(1, Sample(1, 1), Sample(1, 1), 0.0, 1.0)
    found = study.recorded(model, loads, plan, placing, scenario)
    parameters = 8 * 3 * 7168 * 2048
    each = 1 + 4 + (4 + 2 * 2) / 2 / 2  # fp8 weights, fp32 gradients, states over two data-parallel GPUs and two copies
    assert found.redundant_bytes == pytest.approx(parameters * each, rel=0.02)


def test_time_goes_by_the_fullest_gpu_of_each_layer_and_memory_by_one_gpu_over_its_layers() -> None:
    """In each layer one GPU has twice the mean: always the same one, or another in each. A rank of DualPipe has 4 to 8
    of the 58 layers, so then none holds twice the mean of them; all wait for each layer's fullest either way."""
    scenario = Scenario.read(EXAMPLE, global_batch=4096)
    nothing = np.zeros((64, 64)), np.zeros((64, 8))

    def layer(fullest: int) -> placement.Traffic:
        rows = np.full((64, 4), 100 * 62 / 63)
        rows[fullest] = 200
        return placement.Traffic(np.full(256, 100), rows, *nothing)

    made = case.modelled(scenario)
    assert isinstance(made.costs, ModelledCosts)
    stages = made.costs.stages(made.program)
    found = {}
    for name, traffic in {"same": [layer(5)] * 58, "others": [layer(number) for number in range(58)]}.items():
        held = study.held_over_mean(made.costs, made.program, traffic)
        for placed in made.program.placement:
            own = [index - 3 for stage in placed for index in stages[stage].layers if index >= 3]
            one = 2.0 if name == "same" else (2 + (len(own) - 1) * 62 / 63) / len(own)
            assert [held[index] for index in own] == pytest.approx([one] * len(own))
        found[name] = study._cost(study.loaded(scenario, traffic), traffic)
    same, others = found["same"], found["others"]
    assert same.step_time_s == others.step_time_s
    whole = efficiency_of(study.loaded(scenario, [layer(5)] * 58))
    assert same.peak_bytes == pytest.approx(whole.memory.peak_bytes)
    balanced = efficiency_of(study.loaded(scenario)).memory.peak_bytes
    assert balanced < others.peak_bytes < balanced + 0.3 * (same.peak_bytes - balanced)
    assert (same.fits, others.fits) == (False, True)


def efficiency_of(scenario: Scenario) -> Efficiency:
    _, figures = case.simulated(case.modelled(scenario))
    assert figures.efficiency
    return figures.efficiency


def test_a_layout_says_how_a_study_runs() -> None:
    """64 GPUs of a group without tensor parallelism have 64 sequences; with 4 GPUs a sequence, 16. Steps are the whole
    batch's. Without a layout a GPU has a sequence of the sample."""
    layout = Scenario.read(EXAMPLE).parallel
    plan = study.planned(layout, 64, 200)
    assert plan == (200, study.SAMPLED, Sample(64, 4096), 0.0, 15360 * 4096)
    assert study.planned(replace(layout, tp=4), 64, 200).microbatch == Sample(16, 4096)
    assert study.planned(replace(layout, microbatch_size=2), 64, 200).microbatch == Sample(128, 4096)
    assert study.planned(None, 8, 3, Sample(2, 64), 1e12) == (3, Sample(2, 64), Sample(8, 64), 1e12, 128)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ((), "moe needs a model or a scenario"),
        (("--model", "llama3-8b"), "has no experts"),
        (("--model", "mixtral-8x7b", "--strategy", "luck"), "--strategy is 'luck'"),
        (("--model", "mixtral-8x7b", "--tokens", "100"), "--tokens 100 is not a multiple of --sequences 16"),
        (("--model", "mixtral-8x7b", "--steps", "0"), "--steps must be from 1"),
        (("--model", "mixtral-8x7b", "--tokens", "0"), "--tokens must be from 1"),
        (("--model", "mixtral-8x7b", "--sequences", "0"), "--sequences must be from 1"),
        (("--model", "mixtral-8x7b", "--skew", "-0.1"), "skew must be a number from 0 to 1, not -0.1"),
        (("--model", "mixtral-8x7b", "--seen", "nan"), "--seen is nan"),
        (("--model", "mixtral-8x7b", "--ep", "3"), "8 + 0 redundant experts are not a multiple of ep = 3"),
        (("--model", "deepseek-v3", "--set", "redundant_experts=3"), "redundant_experts = 3 is not a multiple of ep"),
        (("--model", "mixtral-8x7b", "--hardware", "h100"), "give a scenario file"),
        (("--model", "mixtral-8x7b", "--loads", "none.csv"), "none.csv cannot be read"),
        (("--model", "mixtral-8x7b", "--loads", "none.csv", "--seed", "1"), "leave --seed out"),
        (("--model", "mixtral-8x7b", "--loads", "none.csv", "--strategy", "none"), "leave --strategy out"),
        (("--model", "mixtral-8x7b", "--out", "x.pdf"), "its ending names no format"),
        (("--model", "mixtral-8x7b", "--redundant", "3"), "not a multiple of ep"),
        (("--model", "mixtral-8x7b", "--placement", "odd"), "--placement is 'odd'"),
    ],
)
def test_bad_input_is_one_sentence(arguments: tuple[str, ...], sentence: str, tmp_path: Path) -> None:
    run = simpipe(*arguments, cwd=tmp_path)
    assert run.returncode == 2
    assert sentence in run.stderr
    assert len(run.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
