"""Times: closed forms in their domain, recorded and published figures, and what must hold of every schedule."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpipe import Costs, Program, Summary, program, schedules, simulate, summarize
from simpipe.simulator import bubbles
from simpipe.simulator.graph import WORDS

ORACLE = Path(__file__).parents[1].parent / "shared" / "oracle"
PUBLISHED = Path(__file__).parent / "published"
HEADLINE = Costs(F=1, I=1, W=1, FB=3)


def figures(name: str, costs: Costs, ranks: int = 8, microbatches: int = 20, **options: Any) -> Summary:
    return summarize(simulate(program(name, ranks=ranks, microbatches=microbatches, **options), costs))


# --- the headline: 8 ranks x 20 micro-batches, F = I = W = 1


def test_the_headline_case() -> None:
    summary = figures("dualpipe", HEADLINE)
    assert summary.makespan == 66
    assert [rank.bubble_time for rank in summary.per_rank] == [6] * 8
    assert [rank.peak_activations for rank in summary.per_rank] == [9] * 8
    assert summary.parameter_copies == 2


@pytest.mark.parametrize(
    ("name", "makespan", "peak", "copies"),
    [
        ("dualpipe", 66, 9, 2), ("1f1b", 81, 8, 1), ("gpipe", 81, 20, 1), ("zb-h1", 67, 8, 1), ("zb-v", 63.5, 8, 1),
        ("interleaved-1f1b", 70.5, None, 1), ("dualpipev", 67, 8.5, 1), ("interleaved-1f1b-overlap", 70.5, None, 1),
        ("eager-1f1b", 81, 16, 1), ("zb-h2", 67, 15, 1),
    ],
)  # fmt: skip
def test_headline_figures(name: str, makespan: float, peak: float | None, copies: float) -> None:
    summary = figures(name, HEADLINE)
    assert summary.makespan == pytest.approx(makespan, abs=1e-9)
    assert peak is None or summary.peak_activations == peak
    assert summary.parameter_copies == copies


@pytest.mark.parametrize(
    ("name", "options", "makespan"),
    [
        ("dualpipe", {}, 57.6),
        ("dualpipev", {}, 58),
        ("interleaved-1f1b-overlap", {"group": 12}, 62.4),
        ("eager-1f1b", {}, 69.6),
    ],
)
def test_headline_with_hidden_all_to_all(name: str, options: dict[str, int], makespan: float) -> None:
    assert figures(name, Costs(FB=2.4), **options).makespan == pytest.approx(makespan)


@pytest.mark.parametrize(("name", "makespan"), [("zb-h2", 70.5), ("dualpipe", 79.5), ("1f1b", 104)])
def test_headline_with_latency(name: str, makespan: float) -> None:
    assert figures(name, Costs(FB=3, p2p=0.5)).makespan == pytest.approx(makespan)


def test_headline_with_blocking_exchange() -> None:
    assert figures("dualpipe", Costs(FB=3, p2p=0.5, exchange="blocking")).makespan == pytest.approx(82)


# --- recorded and published


def records() -> Iterator[Any]:
    files = sorted(ORACLE.glob("*.jsonl"))
    if not files:
        yield pytest.param({}, marks=pytest.mark.skip(reason=f"the recorded orders are not at {ORACLE}"), id="absent")
    for file in files:
        cases = [json.loads(line) for line in file.read_text().splitlines()]
        if file.stem != "seq1f1b":  # its actions carry sequence slices, which a Program does not
            yield pytest.param({"cases": cases}, id=file.stem)


@pytest.mark.parametrize("recorded", list(records()))
def test_recorded_times(recorded: dict[str, Any]) -> None:
    """Every recorded order, searched ones included: makespan, bubble of each rank and peak, for all stated costs.

    Recorded costs are per chunk and unscaled: ours are per 1/P of the layers, so they are multiplied by chunks.
    """
    for case in recorded["cases"]:
        order = Program.from_csv("\n".join(case["orders"]))
        scale = order.stages / order.ranks
        for timing in case["timing"].values():
            given = timing["costs"]
            names = ("F", "I", "W", "B", "FB")
            costs = Costs(**{name: given[name] * scale for name in names}, p2p=given["comm"])
            summary = summarize(simulate(order, costs, "compiled"))
            assert summary.makespan == pytest.approx(timing["makespan"]), case["case"]
            assert [r.bubble_time for r in summary.per_rank] == pytest.approx(timing["bubble_per_rank"]), case["case"]
        peaks = [rank.peak_activations * scale for rank in summary.per_rank]
        assert peaks == pytest.approx(case["peak_activations_in_chunks"]), case["case"]


@pytest.mark.parametrize("name", ["dualpipe", "dualpipev"])
def test_recorded_blocking_times(name: str) -> None:
    if not ORACLE.is_dir():
        pytest.skip(f"the recorded orders are not at {ORACLE}")
    for line in (ORACLE / f"{name}.jsonl").read_text().splitlines():
        case = json.loads(line)
        for label, makespan in (case["blocking_p2p_makespan"] or {}).items():
            order = program(name, ranks=case["ranks"], microbatches=case["microbatches"])
            scale = order.stages / order.ranks
            latency = float(label.rpartition("lat")[2])
            costs = Costs(F=scale, I=scale, W=scale, FB=3 * scale, p2p=latency, exchange="blocking")
            assert simulate(order, costs).makespan == pytest.approx(makespan), case["case"]


def published(name: str) -> list[dict[str, str]]:
    return list(csv.DictReader((PUBLISHED / name).read_text().splitlines()))


@pytest.mark.parametrize("row", published("zero_bubble.csv"), ids=lambda r: f"{r['model']}-{r['microbatches']}")
@pytest.mark.parametrize("name", ["1f1b", "zb-h1", "zb-h2"])
def test_zero_bubble_papers_rates(name: str, row: dict[str, str]) -> None:
    """The paper's simulated bubble rates to 4 decimals; its rate is by span."""
    costs = Costs(F=float(row["F_ms"]), I=float(row["I_ms"]), W=float(row["W_ms"]), p2p=float(row["p2p_ms"]))
    summary = figures(name, costs, int(row["ranks"]), int(row["microbatches"]))
    assert round(summary.span_bubble_rate, 4) == float(row[f"rate_{name.replace('-', '_')}"])


def test_two_meanings_of_bubble_rate() -> None:
    """14.6B, 16 x 48, ZB-H2: 0.0672 by span and 0.1065 by makespan."""
    row = published("zero_bubble.csv")[3]
    costs = Costs(F=float(row["F_ms"]), I=float(row["I_ms"]), W=float(row["W_ms"]), p2p=float(row["p2p_ms"]))
    summary = figures("zb-h2", costs, 16, 48)
    assert round(summary.span_bubble_rate, 4) == 0.0672
    assert round(summary.bubble_rate, 4) == 0.1065


def test_bubble_rate_is_not_the_ratio_to_the_ideal_time() -> None:
    """1F1B at 8 x 20: 25.9 % of all time is bubble, which is 35 % of the ideal time."""
    summary = figures("1f1b", HEADLINE)
    assert summary.bubble_rate == pytest.approx(21 / 81)
    assert summary.per_rank[0].bubble_time / summary.ideal == pytest.approx(0.35)


# --- closed forms

sized = st.tuples(st.integers(1, 5), st.integers(0, 6))
seconds = st.sampled_from([0.5, 1.0, 2.0, 3.5])


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from([s.name for s in schedules.catalogue().values() if s.bubble]),
    sized,
    seconds,
    seconds,
    seconds,
    seconds,
)
def test_closed_formulas_hold_in_their_domain(
    name: str, size: tuple[int, int], f: float, i: float, w: float, hidden: float
) -> None:
    """Where a formula does not say OUTSIDE, it is the simulated bubble of the rank that idles most."""
    ranks, more = 2 * size[0], 2 * size[1]
    costs = Costs(F=f, I=i, W=w, FB=max(f + i + w - hidden, 0.5))
    order = program(name, ranks=ranks, microbatches=2 * ranks + (0 if name.startswith("interleaved") else more))
    form = schedules.closed_form(name, order, costs)
    assert form is not None
    if not form.outside:
        most = max(rank.bubble_time for rank in summarize(simulate(order, costs)).per_rank)
        assert form.seconds == pytest.approx(most, abs=1e-9)


def test_dualpipes_formula_is_marked_outside_its_domain() -> None:
    """F10 I5 W10: the formula says 30, the truth is 60."""
    order, costs = program("dualpipe", ranks=8, microbatches=20), Costs(F=10, I=5, W=10)
    form = schedules.closed_form("dualpipe", order, costs)
    assert form is not None
    assert form.seconds == 30
    assert form.outside
    assert max(rank.bubble_time for rank in summarize(simulate(order, costs)).per_rank) == 60


def test_dualpipes_other_ranks_idle_less() -> None:
    """bubble_r = formula - max(0, h_mid - 1 - h_r)(F + B - F&B)."""
    bubbles_by_rank = [rank.bubble_time for rank in figures("dualpipe", Costs(FB=2.4)).per_rank]
    middle = 3 * (2.4 + 2 - 3)
    expected = [middle - max(0, 3 - 1 - min(r, 7 - r)) * (3 - 2.4) for r in range(8)]
    assert bubbles_by_rank == pytest.approx(expected)


# --- what must hold of every run

numbers = st.one_of(st.sampled_from([0.0, 1.0, 2.0]), st.floats(0.01, 5))


@st.composite
def traces(draw: st.DrawFn) -> Any:
    name = draw(st.sampled_from(list(schedules.catalogue())))
    ranks = 2 * draw(st.integers(1, 3))
    microbatches = 2 * ranks * draw(st.integers(1, 2))
    costs = Costs(
        F=draw(numbers) + 0.1, I=draw(numbers), W=draw(numbers), p2p=draw(numbers), message_bytes=draw(numbers),
        bandwidth=draw(st.sampled_from([1.0, 3.0])), exchange=draw(st.sampled_from(["async", "blocking"])),
        optimizer=draw(numbers), barrier=draw(st.booleans()), activation_bytes=draw(numbers),
        released_by_input=draw(st.sampled_from([0, 0.5, 1])),
    )  # fmt: skip
    return simulate(program(name, ranks=ranks, microbatches=microbatches), costs)


@settings(max_examples=200, deadline=None)
@given(traces())
def test_invariants(trace: Any) -> None:
    summary = summarize(trace)
    frame = trace.to_frame()
    tolerance = 1e-9 * max(trace.makespan, 1)
    for rank in summary.per_rank:
        assert rank.busy + rank.bubble_time == pytest.approx(trace.makespan)
        assert sum(rank.bubble_causes.values()) == pytest.approx(rank.bubble_time, abs=1e-7 * trace.makespan)
        assert rank.waiting_time + rank.transfer_time == pytest.approx(rank.bubble_time)
        assert rank.span_bubble_time <= rank.bubble_time + tolerance
        slots = frame[(frame["rank"] == rank.rank) & (frame["stream"] == "compute") & (frame["slot"] >= 0)]
        slots = slots.drop_duplicates("slot").sort_values(["start", "end"])
        assert (slots["start"].to_numpy()[1:] >= slots["end"].to_numpy()[:-1] - tolerance).all()
    assert min(min(rank.bubble_causes.values()) for rank in summary.per_rank) >= -tolerance
    order = trace.program
    links = order.dependencies
    ends, starts = trace.slot_end[order.action_slot[links.source]], trace.slot_start[order.action_slot[links.target]]
    assert (starts >= ends - tolerance).all()
    assert trace.activations.after[order.rank_start[1:] - 1] == pytest.approx(np.zeros(order.ranks))


@settings(max_examples=100, deadline=None)
@given(traces())
def test_critical_path_and_slack(trace: Any) -> None:
    path = trace.critical_path
    assert trace.end[path[-1]] == trace.makespan
    assert trace.start[path[0]] == 0
    np.testing.assert_array_equal(trace.start[path[1:]], trace.end[path[:-1]])
    assert sum(trace.critical_seconds.values()) == pytest.approx(trace.makespan)
    assert trace.slack[path] == pytest.approx(np.zeros(len(path)), abs=1e-9 * max(trace.makespan, 1))


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(["1f1b", "dualpipe", "zb-v"]), st.integers(0, 10**6), st.data())
def test_slack_is_what_a_slot_can_grow(name: str, seed: int, data: st.DataObject) -> None:
    """Growing one task by its slack keeps the makespan; by more, it lengthens the run by as much."""
    order = program(name, ranks=4, microbatches=8)
    rng = np.random.default_rng(seed)
    tables = {kind: rng.integers(1, 5, (order.stages, 8)).astype(float) for kind in ("F", "I", "W")}
    trace = simulate(order, Costs(**tables, p2p=0.25))
    present = {WORDS[word] for word in trace.graph.word}
    word = data.draw(st.sampled_from(sorted(present & set(tables))))
    choices = np.flatnonzero(trace.graph.word == WORDS.index(word))
    task = int(choices[data.draw(st.integers(0, len(choices) - 1))])
    action = trace.graph.action[task]
    at = (order.stage[action], order.microbatch[action])
    for extra, longer in ((trace.slack[task], 0.0), (trace.slack[task] + 1.5, 1.5)):
        grown = {kind: table.copy() for kind, table in tables.items()}
        grown[word][at] += extra
        own = order.action_slot[action]  # elsewhere, an I or W of the same stage and micro-batch may be inside a B
        assert order.slot_start[own + 1] - order.slot_start[own] == 1
        assert simulate(order, Costs(**grown, p2p=0.25)).makespan == pytest.approx(trace.makespan + longer)


# --- causes of bubbles in tiny worlds


def causes(text: str, costs: Costs, rank: int) -> dict[str, float]:
    found = summarize(simulate(Program.from_csv(text), costs)).per_rank[rank].bubble_causes
    return {cause: time for cause, time in found.items() if time}


def test_warm_up_and_cool_down() -> None:
    assert causes("0F0,0B0\n1F0,1B0", Costs(), 1) == {"warm_up": 1, "cool_down": 2}


def test_waiting_for_a_gradient() -> None:
    assert causes("0F0,0B0\n1F0,1B0", Costs(), 0) == {"waits_for_gradient": 3}


def test_waiting_for_a_transfer_is_split_off() -> None:
    assert causes("0F0,0B0\n1F0,1B0", Costs(p2p=0.5), 0) == {"waits_for_gradient": 3.5, "waits_for_transfer": 0.5}


def test_waiting_for_a_forward() -> None:
    """Rank 1 has done its first forward long before the second arrives."""
    assert causes("0F0,0F1,0B0,0B1\n1F0,1F1,1B0,1B1", Costs(F=[3, 1], B=2), 1)["waits_for_forward"] == 2


def test_blocked_by_the_order() -> None:
    """Rank 1 could run 1B0 at 2, but its order puts 1F1 before it: a second of rank 0's wait is the order's."""
    found = causes("0F0,0F1,0B0,0B1\n1F0,1F1,1B0,1B1", Costs(), 0)
    assert found == {"blocked_by_order": 1, "waits_for_gradient": 2}


def test_barrier() -> None:
    found = causes("0F0,0B0\n1F0,1B0", Costs(optimizer=1, barrier=True), 1)
    assert found == {"warm_up": 1, "barrier": 2}


def test_a_blocking_sender_waits_for_its_receiver() -> None:
    """Rank 0 has made its second activation at 2; rank 1 comes to the exchange at 5, after 4 s of its first forward."""
    text = "0F0,0SEND_F0,0F1,0SEND_F1,0F2,0SEND_F2,0B0,0B1,0B2\n1RECV_F0,1F0,1RECV_F1,1F1,1RECV_F2,1F2,1B0,1B1,1B2"
    found = bubbles.find(simulate(Program.from_csv(text), Costs(F=[1, 4], B=2, exchange="blocking")))
    assert (found.rank[0], found.start[0], found.end[0]) == (0, 2, 5)
    assert found.causes[0][bubbles.CAUSES.index("blocked_by_order")] == 3


# --- what an input-gradient frees


def test_activation_released_by_input() -> None:
    """One rank, F I W: 100 bytes until I ends, of which it frees 60."""
    order = Program.from_csv("0F0,0I0,0W0")
    levels = simulate(order, Costs(activation_bytes=100, released_by_input=0.6)).activation_bytes
    assert levels.during.tolist() == [100, 100, 40]
    assert levels.after.tolist() == pytest.approx([100, 40, 0])


def test_links_are_shared_by_what_is_under_way() -> None:
    """Rank 0 sends 8 bytes at 2 bytes/s: 4 s; with a latency of 1 the message takes 5."""
    trace = simulate(Program.from_csv("0F0,0B0\n1F0,1B0"), Costs(message_bytes=8, bandwidth=2, p2p=1))
    assert trace.makespan == 1 + 5 + 1 + 2 + 5 + 2
