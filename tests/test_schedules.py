"""The orders of the schedules: against recorded ones, the project's own golden texts, and what must hold of each."""

import inspect
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpipe import schedules
from simpipe.simulator.errors import ScheduleError
from simpipe.simulator.program import KINDS, Action, Kind, Program, Slot

ORACLE = Path(__file__).parents[1].parent / "shared" / "oracle"
GOLDEN = Path(__file__).parent / "golden"

CLOSED_RULES = [
    "1f1b",
    "dualpipe",
    "dualpipev",
    "gpipe",
    "interleaved-1f1b",
    "interleaved-1f1b-overlap",
    "interleaved-zb",
    "looped-bfs",
    "zb-h1",
    "zb-v",
]
INTERLEAVED = ["interleaved-1f1b", "interleaved-1f1b-overlap", "interleaved-zb"]


def peaks(program: Program) -> list[int]:
    """The most passes each rank holds: from the F until the end of its B or W."""
    most = []
    for row in program.order:
        held, peak = 0, 0
        for slot in row:
            held += sum(action.kind == Kind.F for action in slot)
            peak = max(peak, held)
            held -= sum(action.kind in (Kind.B, Kind.W) for action in slot)
        most.append(peak)
    return most


def warm_ups(program: Program) -> list[int]:
    """How many forwards each rank runs before its first slot with another action in it."""
    return [
        next(n for n, slot in enumerate(row) if any(action.kind != Kind.F for action in slot)) for row in program.order
    ]


def renumbered(row: tuple[Slot, ...], add: int, modulo: int) -> list[Slot]:
    return [tuple(Action(a.stage, a.kind, (a.microbatch + add) % modulo) for a in slot) for slot in row]


# --- recorded orders and golden texts


@pytest.mark.parametrize("name", CLOSED_RULES)
def test_equals_every_recorded_order(name: str) -> None:
    path = ORACLE / f"{name}.jsonl"
    if not path.is_file():
        pytest.skip(f"the recorded orders are not here: {path} is missing")
    schedule = schedules.load(name)
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        options = record["options"] | ({"chunks": record["chunks"]} if "chunks" in schedule.options else {})
        program = schedule.program(record["ranks"], record["microbatches"], **options)
        assert program.to_csv().splitlines() == record["orders"], record["case"]
        assert peaks(program) == record["peak_activations_in_chunks"], record["case"]


@pytest.mark.parametrize("path", sorted(GOLDEN.glob("*.csv")), ids=lambda path: path.stem)
def test_equals_golden_text(path: Path) -> None:
    name, _, size = path.stem.rpartition("-")
    ranks, microbatches = map(int, size.split("x"))
    assert schedules.program(name, ranks, microbatches).to_csv() == path.read_text(encoding="utf-8")


def test_every_schedule_here_has_a_golden_text() -> None:
    told = {path.stem.rpartition("-")[0] for path in GOLDEN.glob("*.csv")}
    assert told >= {*CLOSED_RULES, "eager-1f1b", "zb-h2"}


# --- identities


@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 2), (2, 5), (3, 6), (5, 11), (8, 20)])
def test_dualpipev_is_the_first_half_of_dualpipe(ranks: int, microbatches: int) -> None:
    """Both directions of DualPipe become one, so that they number the same micro-batches."""
    whole = schedules.program("dualpipe", 2 * ranks, 2 * microbatches)
    half = schedules.program("dualpipev", ranks, microbatches)
    assert [list(row) for row in half.order] == [renumbered(row, 0, microbatches) for row in whole.order[:ranks]]


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 10), (8, 20), (10, 24)])
def test_dualpipe_is_mirror_symmetric(ranks: int, microbatches: int) -> None:
    """Ranks r and P-1-r hold the same two stages and run the same order with the directions exchanged."""
    program = schedules.program("dualpipe", ranks, microbatches)
    for row, mirrored in zip(program.order, reversed(program.order), strict=True):
        assert renumbered(row, microbatches // 2, microbatches) == list(mirrored)


@pytest.mark.parametrize(("ranks", "microbatches"), [(2, 4), (4, 10), (8, 20), (10, 24)])
def test_dualpipe_holds_one_more_than_ranks_everywhere(ranks: int, microbatches: int) -> None:
    assert peaks(schedules.program("dualpipe", ranks, microbatches)) == [ranks + 1] * ranks


@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 1), (3, 5), (4, 20), (8, 15)])
def test_zb_h2_warms_up_and_holds_twice_zb_h1(ranks: int, microbatches: int) -> None:
    program = schedules.program("zb-h2", ranks, microbatches)
    assert warm_ups(program) == [2 * (ranks - rank) - 1 for rank in range(ranks)]
    assert peaks(program) == [2 * ranks - 1] * ranks


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 2), (3, 6), (4, 20), (8, 16)])
def test_eager_1f1b_warms_up_and_holds_twice_1f1b(ranks: int, microbatches: int, overlap: bool) -> None:
    program = schedules.program("eager-1f1b", ranks, microbatches, overlap=overlap)
    pairs = not overlap  # the first F of a pair that is no slot counts as one more
    assert warm_ups(program) == [2 * (ranks - 1 - rank) + 1 + pairs for rank in range(ranks)]
    assert peaks(program) == [2 * (ranks - rank) for rank in range(ranks)]


@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 1), (2, 3), (4, 7), (8, 20)])
def test_zb_v_holds_as_much_as_1f1b_on_every_rank(ranks: int, microbatches: int) -> None:
    assert peaks(schedules.program("zb-v", ranks, microbatches)) == [2 * ranks] * ranks


@pytest.mark.parametrize(("ranks", "microbatches"), [(1, 1), (4, 4), (4, 12), (8, 16)])
def test_interleaved_zb_of_one_chunk_is_zb_h1(ranks: int, microbatches: int) -> None:
    assert schedules.program("interleaved-zb", ranks, microbatches, chunks=1) == schedules.program(
        "zb-h1", ranks, microbatches
    )


@pytest.mark.parametrize("name", ["dualpipe", "dualpipev"])
def test_dualpipe_never_receives_late_or_sends_early(name: str) -> None:
    """A post that belongs to a message is on the rank of its action, a receive before it and a send after it."""
    program = schedules.program(name, 4, 10)
    place = {
        (action.stage, KINDS[action.kind].name, action.microbatch): (rank, n)
        for rank, row in enumerate(program.order)
        for n, slot in enumerate(row)
        for action in slot
    }
    assert program.posts
    for (word, stage, microbatch), (rank, before) in program.posts.items():
        on, slot = place[stage, "F", microbatch]
        assert rank == on
        assert before < slot if word == "RECV_F" else before > slot + 1


def test_dualpipe_posts_where_the_original_does() -> None:
    """Rank 0 of 4 receives F1 of step 3 before its W; middle rank 1 sends after step 4's F0 and B1."""
    posts = schedules.program("dualpipe", 4, 8).posts
    assert posts["RECV_F", 3, 5] == (0, 5)  # 0F0 0F1 0F2 3F4 3I4 | 3W4 3F5
    assert posts["SEND_F", 0, 2] == (0, 4)  # 0F0 0F1 0F2 3F4 | 3I4
    assert posts["RECV_F", 1, 1] == (1, 1)  # 1F0 | 2F4 1F1
    assert posts["SEND_F", 2, 5] == (1, 5)  # 1F0 2F4 1F1 2F5 1F2 | 2B4
    assert posts["SEND_F", 1, 2] == (1, 6)  # 1F0 2F4 1F1 2F5 1F2 2B4 | 2F6&1B0


# --- sizes that a schedule cannot take

ILLEGAL: list[tuple[str, int, int, dict[str, Any], list[str]]] = [
    ("zb-h1", 8, 7, {}, ["8", "7"]),
    ("zb-h2", 8, 14, {}, ["15", "14"]),
    ("dualpipe", 7, 20, {}, ["even", "7"]),
    ("dualpipe", 8, 10, {}, ["16", "10"]),
    ("dualpipe", 8, 21, {}, ["even", "21"]),
    ("dualpipev", 8, 15, {}, ["16", "15"]),
    ("interleaved-1f1b-overlap", 4, 8, {"chunks": 1}, ["2", "1"]),
    *((name, 4, 11, {}, ["11", "2"]) for name in INTERLEAVED),
    *((name, 4, 8, {"group": 3}, ["4", "3"]) for name in INTERLEAVED),
    *((name, 4, 8, {"group": 9}, ["8", "9"]) for name in INTERLEAVED),
    *((name, 4, 8, {"group": 0}, ["4", "0"]) for name in INTERLEAVED),
    *((name, 4, 9, {"group": 6}, ["4", "3"]) for name in INTERLEAVED),
]


@pytest.mark.parametrize(("name", "ranks", "microbatches", "options", "told"), ILLEGAL)
def test_says_in_one_sentence_which_size_it_takes(
    name: str, ranks: int, microbatches: int, options: dict[str, Any], told: list[str]
) -> None:
    with pytest.raises(ScheduleError) as raised:
        schedules.program(name, ranks, microbatches, **options)
    message = str(raised.value)
    assert "\n" not in message
    assert not message.endswith(".")
    assert set(told) <= set(re.findall(r"\w+", message))


# --- what holds of every schedule


@cache
def legal_sizes(name: str) -> list[tuple[int, int]]:
    """Every size up to 8 x 24 that the schedule's own check accepts."""
    return [size for size in _sizes() if _takes(schedules.load(name), *size)]


def _sizes() -> Iterator[tuple[int, int]]:
    return ((ranks, microbatches) for ranks in range(1, 9) for microbatches in range(1, 25))


def _takes(schedule: schedules.Schedule, ranks: int, microbatches: int) -> bool:
    if schedule.check is None:
        return True
    size = {"ranks": ranks, "microbatches": microbatches, **schedule.options}
    try:
        schedule.check(**{key: size[key] for key in inspect.signature(schedule.check).parameters})
    except ScheduleError:
        return False
    return True


def assert_sound(program: Program, ranks: int, microbatches: int) -> None:
    assert program.check() is program
    assert (program.ranks, program.microbatches) == (ranks, microbatches)
    text = program.to_csv()
    again = Program.from_csv(text, program.name)
    assert again == program
    assert again.to_csv() == text


@pytest.mark.parametrize("name", schedules.catalogue())
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_legal_size_runs_and_reads_back(name: str, data: st.DataObject) -> None:
    ranks, microbatches = data.draw(st.sampled_from(legal_sizes(name)))
    assert_sound(schedules.program(name, ranks, microbatches), ranks, microbatches)


@pytest.mark.parametrize("name", INTERLEAVED)
@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_every_legal_group_runs_and_reads_back(name: str, data: st.DataObject) -> None:
    ranks = data.draw(st.integers(1, 6), "ranks")
    group = data.draw(st.integers(ranks, 2 * ranks), "group")
    last = data.draw(st.sampled_from([0, *range(ranks, group)]), "last group")
    microbatches = data.draw(st.integers(1, 3), "full groups") * group + last
    chunks = data.draw(st.integers(2, 4), "chunks")
    program = schedules.program(name, ranks, microbatches, chunks, group=group)
    assert_sound(program, ranks, microbatches)
    assert program.chunks == chunks
