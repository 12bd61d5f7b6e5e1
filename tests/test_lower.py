"""Lowering: slots of several operations on several streams, and syncs, in tiny worlds with literal times."""

import numpy as np
import pytest

from simpipe import Costs, Program, simulate, summarize
from simpipe.simulator.graph import SYNC, Graph
from simpipe.simulator.kernels import Floats
from simpipe.simulator.plan import END, Numbers, Operation, Plan, Sync, Template

TWO = ("compute", "expert-parallel")
SLOT: Template = (
    Operation("compute", ("compute",), (), 0),
    Operation("send", ("expert-parallel",), (), 0),
    Operation(END, TWO, (1,), 0),
)
"""Two seconds of computation beside five of communication."""


class Tiny:
    """Every slot is SLOT, and some syncs of 4 s."""

    def __init__(self, template: Template = SLOT, syncs: tuple[Sync, ...] = (), barrier: bool = False) -> None:
        self.template, self.syncs, self.barrier = template, syncs, barrier

    def plan(self, program: Program) -> Plan:
        where = np.zeros(program.slots, np.int64)
        return Plan((self.template,), where, self.syncs, barrier=self.barrier, optimizer=True)

    def fill(self, graph: Graph, numbers: Numbers) -> None:
        names = [graph.operations[operation] for operation in graph.operation]
        numbers.work[:] = [{"compute": 2.0, "send": 5.0}.get(name, 0.0) for name in names]
        numbers.work[graph.word == SYNC] = 4.0

    def activation(self, program: Program) -> Floats:
        return np.zeros(len(program.kind))

    def release(self, program: Program) -> Floats:
        return np.zeros(program.stages)

    def parameters(self, program: Program) -> Floats:
        return np.zeros(program.stages)


ORDER = Program.from_csv("0F0,0B0\n1F0,1B0", "tiny")


def test_a_slot_lasts_as_long_as_its_longest_stream_and_the_next_one_waits_for_all() -> None:
    trace = simulate(ORDER, Tiny())
    assert trace.slot_start.tolist()[:4] == [0, 15, 5, 10]
    assert trace.slot_end.tolist()[:4] == [5, 20, 10, 15]
    assert trace.makespan == 20
    assert trace.exposed_communication.tolist() == [6, 6]
    assert [rank.busy for rank in summarize(trace).per_rank] == [10, 10]
    assert END not in set(trace.to_frame()["operation"])
    assert set(trace.to_frame()["stream"]) == {"compute", "expert-parallel", "pipeline"}


def test_engines_agree_on_templates() -> None:
    ends = [simulate(ORDER, Tiny(), engine).end.tolist() for engine in ("simpy", "compiled")]
    assert ends[0] == ends[1]


def test_a_template_whose_end_misses_a_stream_is_our_own_mistake() -> None:
    loose = (*SLOT[:2], Operation(END, ("compute",), (0,), 0))
    with pytest.raises(AssertionError):
        simulate(ORDER, Tiny(loose))


def test_a_sync_after_an_operation_runs_beside_the_rest_and_the_optimizer_waits_for_it() -> None:
    """Rank 1's last slot starts at 10; its computation is done at 12, so the sync ends at 16, the slot at 15."""
    sync = Sync("reduce-scatter", (1,), "data-parallel", after=((3, 0),))
    trace = simulate(ORDER, Tiny(syncs=(sync,)))
    (task,) = np.flatnonzero(trace.graph.word == SYNC)
    assert (trace.start[task], trace.end[task]) == (12, 16)
    assert trace.slot_start.tolist()[4:] == [20, 16]


def test_a_slot_waits_for_a_sync_before_it_and_the_wait_is_a_transfer() -> None:
    sync = Sync("all-gather", (0,), "data-parallel", before=((0, -1),))
    trace = simulate(ORDER, Tiny(syncs=(sync,)))
    assert trace.slot_start[0] == 4
    gathered = Sync("all-gather", (1,), "data-parallel", after=((2, -1),), before=((3, -1),))
    causes = summarize(simulate(ORDER, Tiny(syncs=(gathered,)))).per_rank[1].bubble_causes
    assert causes["waits_for_transfer"] == 4


def test_an_operation_inside_a_slot_waits_for_a_sync() -> None:
    """The send of rank 0's first slot may start at 4, when what it needs is gathered; the computation starts at 0."""
    sync = Sync("all-gather", (0,), "data-parallel", before=((0, 1),))
    trace = simulate(ORDER, Tiny(syncs=(sync,)))
    assert (trace.slot_start[0], trace.slot_end[0]) == (0, 9)


def test_a_barrier_waits_for_syncs_of_every_rank() -> None:
    sync = Sync("reduce copies", (0, 1), "data-parallel", after=((1, -1), (3, -1)))
    trace = simulate(ORDER, Tiny(syncs=(sync,), barrier=True))
    assert trace.slot_start.tolist()[4:] == [24, 24]
    for rank in summarize(trace).per_rank:
        assert sum(rank.bubble_causes.values()) == pytest.approx(rank.bubble_time)


# --- uneven worlds


def test_uneven_placement_counts_each_ranks_own_stages() -> None:
    """Rank 0 holds stages 0 and 2, rank 1 stage 1: parameters, shares and copies are those of its own."""
    order = Program.from_csv("0F0,2F0,2B0,0B0\n1F0,1B0")
    summary = summarize(simulate(order, Costs(F=3, B=6, parameter_bytes=[1, 10, 100])))
    assert [rank.parameter_bytes for rank in summary.per_rank] == [101, 10]
    assert [rank.busy for rank in summary.per_rank] == [2 * (2 + 4), 2 + 4]  # 3 x 2 ranks / 3 stages a stage
    assert summary.parameter_copies == 1
    assert summary.ideal == 12
    both = Program.from_csv("0F0,0B0,0F1,0B1\n1F0,1B0,1F1,1B1")
    assert summarize(simulate(both)).parameter_copies == 1
    mirrored = Program.from_csv("0F0,1F1,1B1,0B0\n1F0,1B0,0F1,0B1")
    assert mirrored.parameter_copies == 2
    some = Program.from_csv("0F0,0B0,2F1,2B1\n1F0,1B0,1F1,1B1\n2F0,2B0,0F1,0B1")
    assert some.parameter_copies == pytest.approx(5 / 3)
