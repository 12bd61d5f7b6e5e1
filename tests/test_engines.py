"""Two engines, one meaning: they agree on every graph that hypothesis can draw, and tiny worlds have known times."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpipe import Costs, program
from simpipe.simulator import engines
from simpipe.simulator.errors import ProgramError
from simpipe.simulator.graph import ACTIVATION, Graph, Loads, Ragged
from simpipe.simulator.lower import lower


def graph_of(
    streams: list[list[int]], needs: list[list[int]], routes: list[list[int]], stream_rank: list[int]
) -> Graph:
    """A graph of nothing but structure: what the engines look at."""
    tasks = len(streams)
    ranks = [stream_rank[own[0]] if own else 0 for own in streams]
    none = np.full(tasks, -1)
    return Graph(
        program=program("1f1b", ranks=max(stream_rank, default=0) + 1, microbatches=1),
        rank=np.array(ranks, np.int64),
        streams=Ragged.of(streams),
        needs=Ragged.of(needs),
        route=Ragged.of(routes),
        stream_rank=np.array(stream_rank, np.int64),
        stream_name=np.zeros(len(stream_rank), np.int64),
        link_names=(),
        operation=np.zeros(tasks, np.int64),
        operations=("",),
        word=np.full(tasks, ACTIVATION),
        action=np.zeros(tasks, np.int64),
        partner=np.zeros(tasks, np.int64),
        slot=none,
        slot_rank=np.empty(0, np.int64),
    )


def loads_of(
    work: Any, latency: Any = 0.0, capacity: Any = (), held: Any = 0.0, slowed: Any = 0.0, weight: Any = ()
) -> Loads:
    """Loads of one row; single numbers stand for all tasks."""
    size = len(work)
    full = [np.broadcast_to(np.asarray(part, float), (1, size)).copy() for part in (latency, work, held, slowed)]
    empty = np.zeros((1, 0))
    return Loads(
        full[0],
        full[1],
        np.array([weight], float),
        np.array([capacity], float),
        full[2],
        full[3],
        empty,
        np.zeros(1),
        empty,
    )


def ends(graph: Graph, loads: Loads, engine: engines.Engine) -> list[float]:
    return engines.times(graph, loads, engine)[1][0].tolist()


both = pytest.mark.parametrize("engine", ["simpy", "compiled"])


# --- tiny worlds


@both
def test_a_stream_runs_its_tasks_in_turn(engine: engines.Engine) -> None:
    assert ends(graph_of([[0], [0]], [[], []], [[], []], [0]), loads_of([2, 3]), engine) == [2, 5]


@both
def test_a_task_on_two_streams_waits_to_head_both_and_holds_both(engine: engines.Engine) -> None:
    graph = graph_of([[0], [1], [0, 1], [1]], [[]] * 4, [[]] * 4, [0, 1])
    assert ends(graph, loads_of([2, 5, 1, 1]), engine) == [2, 5, 6, 7]


@both
def test_two_equal_transfers_share_a_link(engine: engines.Engine) -> None:
    graph = graph_of([[], []], [[], []], [[0], [0]], [0])
    assert ends(graph, loads_of([6, 6], capacity=[2], weight=[1, 1]), engine) == [6, 6]


@both
def test_a_transfer_speeds_up_when_its_neighbour_has_ended(engine: engines.Engine) -> None:
    graph = graph_of([[], []], [[], []], [[0], [0]], [0])
    assert ends(graph, loads_of([2, 6], capacity=[2], weight=[1, 1]), engine) == [2, 4]


@both
def test_shares_are_max_min_fair(engine: engines.Engine) -> None:
    """Links of 1 and 10 bytes/s: the flow on both gets 1/2, and the one on the second link alone the other 9.5."""
    graph = graph_of([[], [], []], [[]] * 3, [[0], [0, 1], [1]], [0])
    assert ends(graph, loads_of([1, 1, 19], capacity=[1, 10], weight=[1] * 4), engine) == [2, 2, 2]


@both
def test_latency_is_pure_delay_before_the_bytes(engine: engines.Engine) -> None:
    graph = graph_of([[], []], [[], []], [[0], [0]], [0])
    assert ends(graph, loads_of([4, 4], latency=[0, 2], capacity=[2], weight=[1, 1]), engine) == [2, 4]


@both
def test_infinite_links_take_no_time(engine: engines.Engine) -> None:
    graph = graph_of([[], []], [[], []], [[0], [1]], [0])
    assert ends(graph, loads_of([4, 4], capacity=[2, math.inf], weight=[1, 1]), engine) == [2, 0]


@both
def test_a_transfer_may_weigh_differently_on_its_links(engine: engines.Engine) -> None:
    """Half of its bytes cross the second link, so that the first one limits it: 12 bytes at 3 bytes/s."""
    graph = graph_of([[]], [[]], [[0, 1]], [0])
    assert ends(graph, loads_of([12], capacity=[3, 2], weight=[1, 0.5]), engine) == [4]
    assert ends(graph, loads_of([12], capacity=[3, 2], weight=[0, 1]), engine) == [6]


@both
def test_computation_beside_communication_is_slowed_by_the_held_share(engine: engines.Engine) -> None:
    """A kernel holds a quarter for 4 s, in which 3 s of work are done; the last one runs at full speed."""
    graph = graph_of([[0], [1]], [[], []], [[], []], [0, 0])
    assert ends(graph, loads_of([4, 4], held=[0, 0.25], slowed=[1, 0]), engine) == [5, 4]


@both
def test_communication_on_another_rank_does_not_slow(engine: engines.Engine) -> None:
    graph = graph_of([[0], [1]], [[], []], [[], []], [0, 1])
    assert ends(graph, loads_of([4, 4], held=[0, 0.25], slowed=[1, 0]), engine) == [4, 4]


@both
def test_a_collective_holds_on_every_rank_it_runs_on(engine: engines.Engine) -> None:
    graph = graph_of([[0], [1], [2, 3]], [[]] * 3, [[]] * 3, [0, 1, 0, 1])
    assert ends(graph, loads_of([3, 6, 8], held=[0, 0, 0.5], slowed=[1, 1, 0]), engine) == [6, 10, 8]


@both
def test_a_cycle_is_told(engine: engines.Engine) -> None:
    graph = graph_of([[0], [0]], [[1], []], [[], []], [0])
    with pytest.raises(ProgramError, match="deadlock"):
        engines.times(graph, loads_of([1, 1]), engine)


def test_many_rows_are_many_runs() -> None:
    order = program("dualpipe", ranks=4, microbatches=8)
    costs = [Costs(F=f, I=1, W=1, p2p=0.1 * f) for f in (1, 2, 3)]
    graph, loads = lower(order, *costs)
    together = engines.times(graph, loads, "compiled")[1]
    alone = [engines.times(*lower(order, cost), "simpy")[1][0] for cost in costs]
    np.testing.assert_allclose(together, alone, rtol=1e-12)


# --- random worlds

numbers = st.one_of(st.sampled_from([0.0, 0.0, 1.0, 2.0, 0.5]), st.floats(0.01, 10))


@st.composite
def worlds(draw: st.DrawFn) -> tuple[Graph, Loads]:
    """Any acyclic graph: tasks on no, one or several streams, with routes, held SMs, zero work and ties."""
    stream_rank = draw(st.lists(st.integers(0, 3), min_size=1, max_size=6))
    links = draw(st.integers(0, 4))
    size = draw(st.integers(1, 24))
    streams, needs, routes = [], [], []
    for task in range(size):
        streams.append(draw(st.lists(st.integers(0, len(stream_rank) - 1), max_size=3, unique=True)))
        needs.append(draw(st.lists(st.integers(0, task - 1), max_size=3, unique=True)) if task else [])
        routed = links and draw(st.booleans())
        routes.append(draw(st.lists(st.integers(0, links - 1), max_size=3, unique=True)) if routed else [])
    # tasks without a stream may have any index: move them behind the others, as lowering does with messages
    order = sorted(range(size), key=lambda task: not streams[task])
    place = {task: index for index, task in enumerate(order)}
    needs = [[place[need] for need in needs[task]] for task in order]
    graph = graph_of([streams[t] for t in order], needs, [routes[t] for t in order], stream_rank)
    each = [draw(st.lists(numbers, min_size=size, max_size=size)) for _ in range(2)]
    held = draw(st.lists(st.sampled_from([0, 0, 0.15, 0.5]), min_size=size, max_size=size))
    slowed = draw(st.lists(st.sampled_from([0, 1, 1.3]), min_size=size, max_size=size))
    capacity = draw(st.lists(st.sampled_from([0.5, 1.0, 2.0, 3.7, math.inf]), min_size=links, max_size=links))
    items = len(graph.route.items)
    weight = draw(st.lists(st.sampled_from([1.0, 1.0, 0.0, 0.4, 3.0]), min_size=items, max_size=items))
    return graph, loads_of(each[0], each[1], capacity, held, slowed, weight)


@settings(max_examples=400, deadline=None)
@given(worlds())
def test_engines_agree_on_any_graph(world: tuple[Graph, Loads]) -> None:
    graph, loads = world
    simpy, compiled = (engines.times(graph, loads, engine) for engine in ("simpy", "compiled"))
    np.testing.assert_allclose(compiled[0], simpy[0], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(compiled[1], simpy[1], rtol=1e-9, atol=1e-9)


@st.composite
def runs(draw: st.DrawFn) -> tuple[str, int, int, Costs]:
    """A schedule at a size, with costs per stage, messages that share links, or blocking exchange."""
    name, minimum = draw(
        st.sampled_from([("1f1b", 1), ("dualpipe", 2), ("zb-v", 2), ("interleaved-1f1b", 1), ("zb-h2", 2)])
    )
    ranks = draw(st.integers(1, 3)) * 2
    microbatches = minimum * ranks + 2 * draw(st.integers(0, 3))
    microbatches = ranks * draw(st.integers(1, 3)) if name == "interleaved-1f1b" else microbatches
    stages = ranks * (1 if name in ("1f1b", "dualpipe", "zb-h2") else 2)
    per_stage = st.lists(numbers, min_size=stages, max_size=stages)
    costs = Costs(
        F=draw(per_stage), I=draw(per_stage), W=draw(numbers), FB=draw(st.one_of(st.none(), numbers)),
        p2p=draw(numbers), message_bytes=draw(numbers), bandwidth=draw(st.sampled_from([0.7, 2.0, math.inf])),
        exchange=draw(st.sampled_from(["async", "blocking"])), optimizer=draw(numbers), barrier=draw(st.booleans()),
    )  # fmt: skip
    return name, ranks, microbatches, costs


@settings(max_examples=150, deadline=None)
@given(runs())
def test_engines_agree_on_any_program(run: tuple[str, int, int, Costs]) -> None:
    name, ranks, microbatches, costs = run
    graph, loads = lower(program(name, ranks=ranks, microbatches=microbatches), costs)
    simpy, compiled = (engines.times(graph, loads, engine) for engine in ("simpy", "compiled"))
    np.testing.assert_allclose(compiled[1], simpy[1], rtol=1e-9, atol=1e-9)


@both
def test_the_same_input_gives_the_same_bytes(engine: engines.Engine) -> None:
    costs = Costs(F=[1, 1.1, 0.9, 1.3], B=2, message_bytes=1, bandwidth=3, p2p=0.1)
    first, second = (
        engines.times(*lower(program("1f1b", ranks=4, microbatches=16), costs), engine)[1].tobytes() for _ in range(2)
    )
    assert first == second
