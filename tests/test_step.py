"""Outside slots: what is gathered and reduced, how much of it, by whom, and that it shares links with all else."""

import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simpipe import Trace, program, simulate
from simpipe.simulator.costs import collectives, memory
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import Parallel, stages
from simpipe.simulator.costs.step import BUCKET_BYTES
from simpipe.simulator.graph import BARRIER, OPTIMIZER, SYNC, WORDS
from simpipe.simulator.plan import Sync
from simpipe.simulator.program import Program

V3 = {"ranks": 4, "gpus": 256, "ep": 64, "global_batch": 512, "sequence": 4096, "precision": "fp8_block", "zero": 1}
DENSE = {"ranks": 4, "gpus": 64, "tp": 4, "global_batch": 32, "sequence": 2048, "zero": 1}


def costs(model: str, machine: str = "h800", **changes: Any) -> ModelledCosts:
    base = V3 if load_model(model).experts else DENSE
    return ModelledCosts(load_model(model), load_cluster(machine), Parallel.of({**base, **changes}))


def order(given: ModelledCosts, schedule: str = "1f1b") -> Program:
    return program(schedule, ranks=given.parallel.ranks, microbatches=given.parallel.microbatches)


def named(given: ModelledCosts, name: str, schedule: str = "1f1b") -> list[tuple[Sync, collectives.Exchange]]:
    return [(sync, exchange) for sync, exchange in given.syncs(order(given, schedule)) if sync.name == name]


# Where weights are.


@pytest.mark.parametrize("model", ["deepseek-v3", "gpt3-175b", "llama3-70b", "qwen3-235b-a22b", "mixtral-8x7b"])
@pytest.mark.parametrize("tp", [1, 4])
@pytest.mark.parametrize("held", [(0, 3), (3, 0), (1, 2), (0, 1, 2, 3), (3,)])
def test_the_parts_of_a_ranks_stages_are_its_weights_with_each_table_once(
    model: str, tp: int, held: tuple[int, ...]
) -> None:
    shape = load_model(model)
    parallel = Parallel(ranks=4, gpus=256, tp=tp, global_batch=512, sequence=4096)
    every = stages(shape, parallel, 4)
    found, seen = memory.Weights(), set[str]()
    for stage in (every[index] for index in held):
        own = memory.tables(shape, parallel, stage) - seen
        found = sum(memory.parts(shape, parallel, stage, own).values(), found)
        seen |= own
    assert found == pytest.approx(memory.weights(shape, parallel, [every[index] for index in held]))
    if len(held) == 4:
        assert (found.dense - found.replicated) * tp + found.replicated + found.experts == pytest.approx(
            sum(shape.parameters(mtp=True).values())
        )


def test_a_pass_has_a_part_for_each_leg() -> None:
    shape, parallel = load_model("deepseek-v3"), Parallel.of(V3)
    last = stages(shape, parallel, 16)[-1]
    parts = memory.parts(shape, parallel, last, memory.tables(shape, parallel, last))
    assert len(last.layers) == 3
    layers = [(n, leg) for n in range(3) for leg in ("attention", "mlp")]
    assert [*parts] == [*layers, (3, "attention"), (4, "attention"), (4, "mlp"), (5, "attention"), (6, "attention")]
    assert parts[4, "mlp"] == parts[0, "mlp"]  # MTP's layer is like the last
    table = shape.vocabulary * shape.hidden
    assert parts[3, "attention"].dense == table + 2 * shape.hidden**2 + 2 * shape.hidden  # embedding, join, two norms
    assert parts[5, "attention"].dense == shape.hidden
    assert parts[6, "attention"].dense == table + shape.hidden


# Buckets and gathers.


def test_buckets_hold_what_their_layers_do() -> None:
    """DeepSeek-V3's first of 16 ranks: embedding, three dense layers and a mixture."""
    given = costs("deepseek-v3", ranks=16, gpus=2048, global_batch=8192, layers=[4] * 15 + [1])
    p, rank = given.parallel, [pair for pair in named(given, "reduce-scatter") if pair[0].ranks == (0,)]
    held = memory.weights(given.model, p, [given.stages(order(given))[0]])
    nic = sum(exchange.network_bytes for _, exchange in rank)
    dense = held.dense * p.gradient_bytes * (p.dp - 1) / p.dp / 8  # rings over nodes of 8, then 2 GPUs 64 apart
    assert nic == pytest.approx(dense + held.experts * p.gradient_bytes / 2)
    mixture, *others, embedding = [exchange.network_bytes for _, exchange in rank]
    assert mixture > 1.5 * max(others)  # 4 of 256 experts, halved, against an eighth of dense weights
    assert embedding == pytest.approx(given.model.vocabulary * given.model.hidden * 4 / 8 * 127 / 128)
    assert all(len(sync.after) == 1 for sync, _ in rank)
    places = [sync.after[0] for sync, _ in rank]
    assert places == sorted(places)


@pytest.mark.parametrize("model", ["deepseek-v2", "llama3-70b"])
def test_a_bucket_is_reduced_once_it_is_full(model: str) -> None:
    given = costs(model, ep=32) if model == "deepseek-v2" else costs(model)
    p = given.parallel
    for _, exchange in [pair for pair in named(given, "reduce-scatter") if pair[0].ranks == (1,)][:-1]:
        least = BUCKET_BYTES / 8 * (1 - 8 / p.dp) if p.tp == 1 else BUCKET_BYTES * (1 - 2 / p.dp) / 2
        assert exchange.network_bytes >= least * 0.99


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("model", ["deepseek-v3", "llama3-8b"])
def test_gathers_and_reductions_move_all_weights_once(model: str, overlap: bool) -> None:
    given = costs(model, gather_overlap=overlap, gradient_overlap=overlap)
    p, every = given.parallel, given.stages(order(given))
    for rank, stage in enumerate(every):
        held = memory.weights(given.model, p, [stage])
        moved = {
            name: sum(sum(e[1:3]) for sync, e in named(given, name) if sync.ranks == (rank,))
            for name in ("all-gather", "reduce-scatter")
        }
        share = [(dp - 1) / dp for dp in (p.dp, p.edp)]
        assert moved["all-gather"] == pytest.approx(held.dense_bytes * share[0] + held.expert_bytes * share[1])
        gradients = held.dense * share[0] + held.experts * share[1]
        assert moved["reduce-scatter"] == pytest.approx(gradients * p.gradient_bytes)


def test_zero_3_gathers_each_visit_unless_it_keeps_parameters() -> None:
    """Kept, they are gathered once a step, as ZeRO 1 does, and are all there; not kept, once for each pass of each F
    and B: embedding, 32 layers and head forward, all but the embedding backward."""
    kept, not_kept, one = (
        costs("llama3-8b", zero=z, keep_parameters=k) for z, k in ((3, True), (3, False), (1, False))
    )
    counts = [len(named(given, "all-gather")) for given in (kept, not_kept, one)]
    assert counts[0] == counts[2]
    assert counts[1] == (34 + 33) * one.parallel.microbatches
    held = [given.static_bytes(order(given), 1)["parameters"] for given in (kept, not_kept, one)]
    assert held[0] == held[2] > held[1] * one.parallel.dp * 0.99


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "dualpipe"])
@pytest.mark.parametrize("model", ["deepseek-v3", "llama3-8b"])
def test_zero_3_holds_the_weights_of_two_passes(model: str, schedule: str, overlap: bool) -> None:
    """Those at work and those on their way: a gather starts once the pass before its own can, so all before that are
    done; without overlap only once its own can."""
    given = costs(model, zero=3, gather_overlap=overlap)
    trace = simulate(order(given, schedule), given)
    graph, first = trace.graph, trace.graph.slot_tasks.items[trace.graph.slot_tasks.start[:-1]]
    gathers: dict[int, list[tuple[int, int]]] = {}
    for task, (sync, _) in zip(np.flatnonzero(graph.word == SYNC).tolist(), given.syncs(graph.program), strict=True):
        if sync.name == "all-gather":
            ((slot, piece),) = sync.before
            gathers.setdefault(sync.ranks[0], []).append((int(first[slot]) + piece, task))
    assert sorted(gathers) == [0, 1, 2, 3]
    for each in gathers.values():
        assert each == sorted(each), "gathers come in the order of their passes"
        for (one, _), (two, task) in itertools.pairwise(each):
            waited = one if overlap else two
            needs = graph.needs.items[graph.needs.start[waited] : graph.needs.start[waited + 1]]
            inside = needs[graph.slot[needs] == graph.slot[waited]]
            slot = int(graph.slot[waited]) - 1
            before = trace.slot_end[slot] if slot >= graph.program.rank_start[graph.rank[waited]] else 0.0
            ready = trace.end[inside].max() if len(inside) else before
            assert trace.start[two] >= trace.end[task]
            assert trace.start[task] >= ready


def test_fully_sharded_layers_hide_all_but_the_first_gather_and_the_last_reduction() -> None:
    """Where a layer computes longer than its weights take to come, as PyTorch's FSDP is meant to work."""
    given = costs("llama3-8b", ranks=1, tp=1, gpus=64, global_batch=64, sequence=8192, zero=3)
    trace = simulate(order(given), given)
    frame = trace.to_frame()
    compute = frame[(frame["stream"] == "compute") & frame["kind"].isin(["F", "B"])]
    gathers, reductions = (frame[frame["operation"] == name] for name in ("all-gather", "reduce-scatter"))
    assert len(gathers) == 34 + 33
    assert compute["start"].iloc[0] == pytest.approx(gathers["end"].min())
    gaps = compute["start"].to_numpy()[1:] - compute["end"].to_numpy()[:-1]
    assert gaps.max() < 1e-9 + gathers.iloc[1]["end"] - gathers.iloc[0]["end"], (
        "at most the first layer's is waited for"
    )
    last = reductions.iloc[-1]
    assert (
        reductions["start"].min() < compute["end"].max() - 0.9 * (compute["end"].max() - compute["start"].min()) / 1.5
    )
    assert reductions["end"].max() - compute["end"].max() < 3 * (last["end"] - last["start"])


# The step's end.


def test_a_tied_table_is_added_up_between_first_and_last_stage() -> None:
    """All of it in a GPU's part, as Megatron-LM's embedding group does; a shard where gradients are sharded."""
    gpt = replace(load_model("gpt3-175b"), tied_head=True)
    for zero, shard in ((0, 1), (1, 1), (2, 4)):
        given = replace(costs("gpt3-175b", zero=zero), model=gpt)
        ((sync, exchange),) = named(given, "reduce embedding")
        size = gpt.vocabulary * gpt.hidden / 4 * 4 / shard  # tp 4, fp32
        assert (sync.ranks, exchange.network_bytes) == ((0, 3), size)
        last = order(given).rank_start[[1, 4]] - 1
        assert sync.after == tuple((slot, -1) for slot in last.tolist())
        trace = simulate(order(given), given)
        frame = trace.to_frame()
        tied = frame[frame["operation"] == "reduce embedding"].iloc[0]
        assert tied["start"] >= frame[frame["operation"].isin(["all-reduce", "reduce-scatter"])]["end"].max() - 1e-9
    alone = replace(costs("gpt3-175b", ranks=1, gpus=16), model=gpt)
    assert not named(alone, "reduce embedding")
    assert not named(costs("llama3-8b"), "reduce embedding")


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipe"])
@pytest.mark.parametrize("zero", [0, 1])
def test_copies_of_experts_add_up_their_gradients(schedule: str, zero: int) -> None:
    """One more on each GPU beside four: of two experts' places each sends its gradient once, its shard with ZeRO, to
    GPUs of its group's node; after the sum over those that hold the same places."""
    given = costs("deepseek-v3", redundant_experts=64, zero=zero, gpus=512, global_batch=1024)
    found = named(given, "reduce experts", schedule)
    assert len(found) == given.parallel.ranks
    assert not named(costs("deepseek-v3"), "reduce experts", schedule)
    expert = 3 * 7168 * 2048 * given.parallel.gradient_bytes
    run = order(given, schedule)
    for sync, exchange in found:
        (rank,) = sync.ranks
        held = run.placement[rank]
        layers = sum(
            sum(index >= given.model.dense_layers for index in given.stages(run)[n].layers) + given.stages(run)[n].mtp
            for n in held
        )
        shards = given.parallel.edp * (2 if schedule == "dualpipe" else 1) if zero else 1
        assert exchange.nvlink_bytes == pytest.approx(2 * layers * expert / shards)
        assert exchange.network_bytes == 0
    frame = simulate(run, given).to_frame()
    summed = frame[frame["operation"] == "reduce experts"]
    for rank, start in zip(summed["rank"], summed["start"], strict=True):
        mine = frame[(frame["rank"] == rank) & frame["operation"].isin(["all-reduce", "reduce-scatter"])]
        assert start >= mine["end"].max() - 1e-9


def test_copies_of_experts_lengthen_the_step() -> None:
    plain, copied = (costs("deepseek-v3", redundant_experts=n, global_batch=64, zero=0) for n in (0, 64))
    assert simulate(order(copied), copied).makespan > simulate(order(plain), plain).makespan


def test_mtp_shares_tables_across_stages_unless_a_rank_holds_both() -> None:
    given = costs("deepseek-v3")
    table = given.model.vocabulary * given.model.hidden * given.parallel.gradient_bytes
    ((sync, exchange),) = named(given, "reduce embedding")
    assert (sync.ranks, exchange.network_bytes) == ((0, 3), table)
    assert not named(given, "reduce head")  # beside MTP
    for schedule in ("dualpipe", "dualpipev", "zb-v"):
        assert not named(given, "reduce embedding", schedule)
    apart = costs("deepseek-v3", layers="Et*15|t*15|t*15|t*16m|L", ranks=5, gpus=320, global_batch=640)
    ((head, _),) = named(apart, "reduce head")
    assert head.ranks == (3, 4)
    assert [sync.ranks for sync, _ in named(apart, "reduce embedding")] == [(0, 3)]


def test_dualpipe_reduces_a_shared_table_once() -> None:
    given = costs("deepseek-v3")
    p, run = given.parallel, order(given, "dualpipe")
    for rank, held in enumerate(run.placement):
        whole = memory.weights(given.model, p, [given.stages(run)[stage] for stage in held])
        moved = sum(sum(e[1:3]) for sync, e in named(given, "reduce-scatter", "dualpipe") if sync.ranks == (rank,))
        expected = whole.dense * (p.dp - 1) / p.dp + whole.experts * (p.edp - 1) / p.edp
        assert moved == pytest.approx(expected * p.gradient_bytes)


def test_norms_are_added_up_over_the_tensor_parallel_group() -> None:
    given = costs("llama3-8b")
    found = named(given, "reduce norms")
    assert [sync.ranks for sync, _ in found] == [(0,), (1,), (2,), (3,)]
    hidden, layers = given.model.hidden, given.model.layers // 4
    for rank, (_, exchange) in enumerate(found):
        elements = hidden * (2 * layers + (rank == 3))  # two norms a layer, and the final one
        assert exchange == collectives.all_reduce(given.cluster, 4.0 * elements, 4)
    for changes in ({"sequence_parallel": False}, {"tp": 1}):
        assert not named(costs("llama3-8b", **changes), "reduce norms")
    latent = named(costs("deepseek-v3", tp=2, ep=64), "reduce norms")  # router and down-projections too
    assert latent[1][1].nvlink_bytes > 15 * 4 * given.model.hidden * (1536 + 576 + 256)


def test_the_barrier_waits_for_a_sum_over_all_gpus() -> None:
    latencies = []
    for gpus in (16, 64, 512):
        given = costs("llama3-8b", gpus=gpus, global_batch=gpus)
        trace = simulate(order(given), given)
        (barrier,) = np.flatnonzero(trace.graph.word == BARRIER)
        expected = collectives.seconds(given.cluster, collectives.all_reduce(given.cluster, 8.0, gpus))
        assert trace.end[barrier] - trace.start[barrier] == pytest.approx(expected)
        assert trace.start[barrier] >= trace.end[trace.graph.word == SYNC].max() - 1e-9
        assert (trace.start[trace.graph.word == OPTIMIZER] >= trace.end[barrier]).all()
        latencies.append(expected)
    assert latencies == sorted(latencies)
    assert 20e-6 < latencies[0] < latencies[-1] < 100e-6


# Links.


def slowed(trace: Trace) -> dict[str, int]:
    """How many transfers, by kind, take longer than they would alone."""
    graph, loads, found = trace.graph, trace.loads, dict[str, int]()
    for task in np.flatnonzero(np.diff(graph.route.start) > 0).tolist():
        route = slice(graph.route.start[task], graph.route.start[task + 1])
        rate = loads.capacity[0, graph.route.items[route]] / np.maximum(loads.weight[0, route], 1e-300)
        alone = loads.latency[0, task] + loads.work[0, task] / rate.min()
        is_slow = trace.end[task] - trace.start[task] > 1.01 * alone
        name = graph.operations[graph.operation[task]] or WORDS[graph.word[task]]
        found[name] = found.get(name, 0) + is_slow
    return found


def test_messages_exchanges_and_reductions_share_a_ranks_links() -> None:
    """On a slow NIC all three meet; alone or on different links none would be slowed."""
    given = costs("deepseek-v2", ep=32, overlap="within-slot")
    network = replace(given.cluster.network, bandwidth_per_direction=10e9)
    given = replace(given, cluster=replace(given.cluster, network=network))
    trace = simulate(order(given), given)
    found = slowed(trace)
    for name in ("activation", "gradient", "dispatch", "combine", "reduce-scatter"):
        assert found[name] > 0, name
    graph = trace.graph
    nic = graph.link_names.index("nic_out")
    carried = set()
    for task in np.flatnonzero(np.diff(graph.route.start) > 0).tolist():
        route = slice(graph.route.start[task], graph.route.start[task + 1])
        out = (graph.route.items[route] == nic) & (trace.loads.weight[0, route] > 0)  # of rank 0
        if out.any():
            carried.add(graph.operations[graph.operation[task]] or WORDS[graph.word[task]])
    assert {"activation", "dispatch", "combine", "reduce-scatter", "all-gather"} <= carried


def test_nothing_is_slowed_where_links_are_free() -> None:
    given = costs("llama3-8b", tp=1, gpus=4, zero=0, global_batch=8, machine="h100")
    assert not any(slowed(simulate(order(given), given)).values())
