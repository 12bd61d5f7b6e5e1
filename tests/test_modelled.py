"""A modelled step: sizes, limits, and that every knob moves it the way physics says."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from simpipe import program, simulate, summarize
from simpipe.simulator.costs.cluster import Cluster, load_cluster
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.efficiency import efficiency
from simpipe.simulator.trace import Trace

MOE = {"ranks": 4, "gpus": 256, "ep": 32, "global_batch": 512, "sequence": 4096, "precision": "fp8_block"}
DENSE = {"ranks": 4, "gpus": 64, "tp": 4, "global_batch": 32, "sequence": 4096}


def costs(model: str = "deepseek-v2", cluster: Cluster | None = None, **changes: Any) -> ModelledCosts:
    base = MOE if load_model(model).experts else DENSE
    return ModelledCosts(load_model(model), cluster or load_cluster("h800"), Parallel.of({**base, **changes}))


def run(schedule: str = "1f1b", **changes: Any) -> Trace:
    given = changes.pop("costs", None) or costs(**changes)
    order = program(schedule, ranks=given.parallel.ranks, microbatches=given.parallel.microbatches)
    return simulate(order, given, "compiled")


def machine(base: str = "h800", **network: float) -> Cluster:
    """A machine whose network or NVLink is changed."""
    found = load_cluster(base)
    nvlink = {name.removeprefix("nvlink_"): value for name, value in network.items() if name.startswith("nvlink_")}
    others = {name: value for name, value in network.items() if not name.startswith("nvlink_")}
    node = replace(found.node, nvlink=replace(found.node.nvlink, **nvlink))
    return replace(found, node=node, network=replace(found.network, **others))


# --- structure


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "dualpipe", "zb-v", "dualpipev", "interleaved-1f1b"])
def test_every_operation_of_every_action_is_there_once(schedule: str) -> None:
    trace = run(schedule)
    frame = trace.to_frame()
    inside = frame[(frame["slot"] >= 0) & (frame["operation"] != "launches")]  # a slot's, not an action's
    counted = inside.groupby(["kind", "stage", "microbatch"], observed=True).size()
    for kind in ("F", "I", "W", "B"):
        if kind in counted.index.get_level_values(0):
            per_stage = counted[kind].groupby("stage").nunique()
            assert (per_stage == 1).all(), f"{kind}: micro-batches of a stage differ"
    assert {"attention.core", "dispatch", "combine", "experts.up", "head"} <= set(inside["operation"])


def test_engines_agree_on_a_modelled_step() -> None:
    given = costs(global_batch=256, layers=[1, 1, 1, 57])
    order = program("1f1b", ranks=4, microbatches=given.parallel.microbatches)
    ends = [simulate(order, given, engine).end for engine in ("simpy", "compiled")]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-9)


def test_what_dualpipe_hides_is_exposed_by_others() -> None:
    """Equal model, GPUs and batch, enough micro-batches that most slots overlap."""
    chain, within, pairs = (
        run(name, overlap=overlap, global_batch=2048).exposed_communication.mean()
        for name, overlap in (("1f1b", "none"), ("1f1b", "within-slot"), ("dualpipe", "none"))
    )
    assert within < 0.6 * chain
    assert pairs < 0.6 * within


def test_compute_alone_exposes_nothing() -> None:
    trace = run(model="llama3-8b", tp=1, gpus=64, global_batch=64, zero=0)
    assert trace.exposed_communication.max() == pytest.approx(0, abs=1e-9)


# --- limits


def test_infinite_links_without_latency_leave_the_compute_and_what_kernels_need() -> None:
    free = machine(bandwidth_per_direction=1e30, latency_same_leaf=0.0, latency_cross_leaf=0.0)
    free = replace(
        free, node=replace(free.node, nvlink=replace(free.node.nvlink, bandwidth_per_direction=1e30, latency=0))
    )
    assert run(cluster=free).makespan < run().makespan


def test_one_rank_has_no_bubble_but_the_barriers() -> None:
    trace = run(costs=costs("llama3-8b", ranks=1, gpus=4, tp=4, global_batch=4))
    (rank,) = summarize(trace).per_rank
    assert rank.bubble_causes["waits_for_forward"] == rank.bubble_causes["waits_for_gradient"] == 0


def test_no_experts_no_exchange() -> None:
    frame = run(model="llama3-8b").to_frame()
    assert not {"dispatch", "combine", "router"} & set(frame["operation"])


# --- one knob at a time: (name, values from what should be slower to what should be faster)

KNOBS: list[tuple[str, list[Any]]] = [
    ("sequence", [8192, 4096, 2048]),
    ("global_batch", [2048, 1024, 512]),
    ("expert_imbalance", [1.5, 1.2, 1.0]),
]


@pytest.mark.parametrize(("knob", "values"), KNOBS, ids=[name for name, _ in KNOBS])
@pytest.mark.parametrize("schedule", ["1f1b", "dualpipe"])
def test_a_knob_moves_the_step_the_way_physics_says(knob: str, values: list[Any], schedule: str) -> None:
    steps = [run(schedule, **{knob: value}).makespan for value in values]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > steps[-1]


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipe"])
def test_a_faster_network_is_no_slower(schedule: str) -> None:
    steps = [run(schedule, cluster=machine(bandwidth_per_direction=b)).makespan for b in (12.5e9, 25e9, 50e9, 100e9)]
    assert steps == sorted(steps, reverse=True)
    assert steps[0] > 1.02 * steps[2]


def test_oversubscribed_leaves_and_spines_are_no_faster() -> None:
    """Four nodes under a leaf: experts of 32 GPUs stay below it, messages and reductions leave it."""
    small, few = {"nodes_per_leaf": 4, "planes": 1}, {"global_batch": 128}
    for layer in ("leaf_oversubscription", "spine_oversubscription"):
        steps = [run(cluster=machine(**small, **{layer: by}), **few).makespan for by in (100, 8, 1)]
        assert steps == sorted(steps, reverse=True), layer
        assert steps[0] > 1.05 * steps[-1], layer
    wide = [run(cluster=machine(nodes_per_leaf=2, leaf_oversubscription=by), **few).makespan for by in (4, 1)]
    assert wide[0] > 1.2 * wide[1]  # the exchange leaves it too
    inside = {"gpus": 32, "global_batch": 32, "ep": 8}  # all nodes under one leaf
    assert run(cluster=machine(leaf_oversubscription=100), **inside).makespan == run(**inside).makespan


def test_messages_take_nvlink_within_a_domain_and_the_nic_between() -> None:
    """4 GPUs a rank: ranks 0 and 1 share a node, 1 and 2 do not, and change rails."""
    for base, kinds, between in (
        ("h100", ("nic", "nvlink"), {"nic": 1, "nvlink": 0}),
        ("h800", ("nic", "nvlink"), {"nic": 1, "nvlink": 1}),  # planes: to the other rail over NVLink
    ):
        given = costs("llama3-8b", gpus=16, cluster=load_cluster(base))
        trace = simulate(program("1f1b", ranks=4, microbatches=given.parallel.microbatches), given)
        graph, loads = trace.graph, trace.loads
        for source, target, expected in ((0, 1, {"nic": 0, "nvlink": 1}), (1, 2, between), (2, 1, between)):
            to = trace.program.action_rank[graph.partner]
            task = np.flatnonzero(graph.message & (graph.rank == source) & (to == target))[0]
            route = slice(graph.route.start[task], graph.route.start[task + 1])
            assert tuple(loads.weight[0, route]) == tuple(expected[kind] for _ in range(2) for kind in kinds)
            assert loads.work[0, task] == 2 * 4096 * 4096 / 4  # bf16, a quarter of the sequence


def test_a_message_takes_as_long_as_its_pairs_own_link_lets_it() -> None:
    """MI300X joins GPUs in pairs: of its 7 links one leads to the receiver."""
    given = costs("llama3-8b", gpus=8, tp=2, global_batch=16, cluster=load_cluster("mi300x"))
    trace = simulate(program("1f1b", ranks=4, microbatches=given.parallel.microbatches), given)
    message = np.flatnonzero(trace.graph.message)
    taken = (trace.end - trace.start - trace.loads.latency[0])[message]
    link = 64e9 * given.cluster.node.nvlink.efficiency
    assert taken.min() == pytest.approx(trace.loads.work[0, message[0]] / link)  # others share it with collectives


def test_engines_agree_where_switches_are_oversubscribed() -> None:
    given = costs(
        "llama3-8b",
        machine(nodes_per_leaf=1, leaf_oversubscription=3, spine_oversubscription=2),
        gpus=48,
        global_batch=24,
    )
    order = program("1f1b", ranks=4, microbatches=given.parallel.microbatches)
    ends = [simulate(order, given, engine).end for engine in ("simpy", "compiled")]
    np.testing.assert_allclose(ends[0], ends[1], rtol=1e-9)


def test_more_sms_for_communication_speed_it_up_and_slow_the_computation_beside_it() -> None:
    """Without overlap more SMs help until the links are full; beside computation they cost it."""
    chains = [run("1f1b", communication_sms=sms).makespan for sms in (4, 8, 12)]
    assert chains == sorted(chains, reverse=True)
    paired = [run("dualpipe", communication_sms=sms).makespan for sms in (4, 20, 64)]
    assert paired[1] < paired[0]
    assert paired[1] < paired[2]


def test_a_straggler_slows_its_own_pipeline() -> None:
    slow = costs()
    slow = ModelledCosts(slow.model, slow.cluster, slow.parallel, speeds=(1.0, 1.3, 1.0, 1.0))
    assert run(costs=slow).makespan > 1.05 * run().makespan


def test_an_unbalanced_layer_slows_its_own_stage() -> None:
    given = costs()
    layers = given.model.layers - given.model.dense_layers
    loads = (*[1.0] * (layers - 1), 2.0)
    skewed = ModelledCosts(given.model, given.cluster, replace(given.parallel, layer_imbalance=loads))
    traces = run(costs=given), run(costs=skewed)
    plain, slower = (summarize(trace).per_rank for trace in traces)
    assert slower[3].busy > 1.01 * plain[3].busy
    assert slower[0].busy == pytest.approx(plain[0].busy)
    light, heavy = (efficiency(trace, c).memory_per_rank for trace, c in zip(traces, (given, skewed), strict=True))
    assert heavy[3].by_kind["activations"] > 1.01 * light[3].by_kind["activations"]
    assert heavy[3].by_kind["expert_buffers"] == pytest.approx(2 * light[3].by_kind["expert_buffers"])
    assert heavy[0] == light[0]


def test_one_load_for_every_layer_is_the_same_as_a_list_of_it() -> None:
    given = costs()
    layers = given.model.layers - given.model.dense_layers
    one, each = (
        ModelledCosts(given.model, given.cluster, replace(given.parallel, **loads))
        for loads in ({"expert_imbalance": 1.25}, {"layer_imbalance": (1.25,) * layers, "expert_imbalance": 1.25})
    )
    assert efficiency(run(costs=one), one) == efficiency(run(costs=each), each)


def test_interference_slows_only_what_runs_beside_communication() -> None:
    busy = load_cluster("h800")
    busy = replace(busy, gpu=replace(busy.gpu, interference=1.3))
    assert run("dualpipe", cluster=busy).makespan > 1.02 * run("dualpipe").makespan
    plain, slowed = (
        run("1f1b", cluster=c, gradient_overlap=False, zero=0).makespan for c in (load_cluster("h800"), busy)
    )
    assert slowed == pytest.approx(plain)


def test_zero_bubbles_pending_weight_gradients_are_a_kind_of_memory() -> None:
    given = costs()
    found = efficiency(run("zb-h1", costs=given), given)
    assert found.memory_per_rank[3].by_kind["weight_gradient_inputs"] > 0
    assert efficiency(run("1f1b", costs=given), given).memory.by_kind["weight_gradient_inputs"] == 0


def test_long_microbatches_take_longer() -> None:
    given = costs()
    sequence = given.parallel.sequence
    lengths = (2 * sequence, *[sequence] * (given.parallel.microbatches - 1))
    longer = ModelledCosts(given.model, given.cluster, given.parallel, lengths=lengths)
    assert run(costs=longer).makespan > run(costs=given).makespan


@pytest.mark.parametrize("schedule", ["1f1b", "dualpipe", "zb-h1"])
def test_microbatches_of_another_length_cost_what_a_step_of_that_length_does(schedule: str) -> None:
    """Attention's quadratic part included: twice the length takes more than twice as long."""
    given = costs()
    sequence, count = given.parallel.sequence, given.parallel.microbatches
    longer = ModelledCosts(given.model, given.cluster, given.parallel, lengths=(2 * sequence,) * count)
    whole = ModelledCosts(given.model, given.cluster, replace(given.parallel, sequence=2 * sequence))
    traces = run(schedule, costs=longer), run(schedule, costs=whole)
    one, two = (efficiency(trace, c).to_dict() for trace, c in zip(traces, (longer, whole), strict=True))
    for key, value in one.items():
        if not key.startswith("memory"):
            assert value == pytest.approx(two[key]), key
    for mine, theirs in zip(one["memory_per_rank"], two["memory_per_rank"], strict=True):
        assert mine["by_kind"] == pytest.approx(theirs["by_kind"])
