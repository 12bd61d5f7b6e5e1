"""Program: text in and out, and what check() proves and how it says what is wrong."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from simpipe import Action, Program, program
from simpipe.simulator.errors import ProgramError
from simpipe.simulator.program import Kind


def check(text: str) -> Program:
    return Program.from_csv(text, source="order.csv").check()


def test_text_is_pytorchs() -> None:
    text = "0F0,0F1,0B0,0B1\n1F0,1I0,(1F1;0B9)OVERLAP_F_B\n"
    order = Program.from_csv(text)
    assert order.to_csv() == text
    assert order.order[1][0] == (Action(1, Kind.F, 0),)
    assert str(order.order[1][2][1]) == "0B9"


def test_empty_cells_spaces_and_a_byte_order_mark_are_ignored() -> None:
    assert Program.from_csv("\ufeff0F0,, ,0B0,\n,, 1F0 ,1B0\n\n") == Program.from_csv("0F0,0B0\n1F0,1B0")


def test_lowered_text_gives_the_same_slots_and_where_messages_are_posted() -> None:
    lowered = "0UNSHARD,0F0,0SEND_F0,0RECV_B0,0B0,0REDUCE_GRAD\n1UNSHARD,1RECV_F0,1F0,1B0,1SEND_B0,1RESHARD"
    order = Program.from_csv(lowered)
    assert order == Program.from_csv("0F0,0B0\n1F0,1B0")
    assert order.posts == {
        ("SEND_F", 0, 0): (0, 1), ("RECV_B", 0, 0): (0, 1), ("RECV_F", 1, 0): (1, 0), ("SEND_B", 1, 0): (1, 2)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "order.csv is empty"),
        ("0F0,0B0\n1F0,1Q0", "order.csv, row 2 (rank 1), cell 2: '1Q0' is no action"),
        ("0F0,(0F1;0B0)OVERLAP", "row 1 (rank 0), cell 2"),
        ("0F0,0F9999999999", "row 1 (rank 0), cell 2"),
        ("0F0,0B0,\u0660F0", "cell 3"),
        ("0F0,0B0,0F0", "0F0 happens twice: rank 0, slot 0 and rank 0, slot 2"),
        ("0F0,0B0,0B1", "0F1 is missing: 1 stages x 2 micro-batches need 2 forwards, the order has 1"),
        ("5F0,5B0", "0F0 is missing: 6 stages x 1 micro-batches need 6 forwards, the order has 1"),
        ("0F0,0F1,0B0", "stage 0, micro-batch 1 has no backward"),
        ("0F0,0I0", "stage 0, micro-batch 0 has I without W"),
        ("0F0,0W0,0I0", "deadlock: 0W0 (rank 0, slot 1) needs 0I0"),
        ("0F0,0W0", "stage 0, micro-batch 0 has W without I"),
        ("0F0,0B0,0W0", "has both B and W"),
        ("0F0,0B0,0I0,0W0", "has both B and I"),
        ("0F0\n0B0", "0F0 is on rank 0 and 0B0 is on rank 1"),
        ("0B0,0F0", "deadlock: 0B0 (rank 0, slot 0) needs 0F0 (rank 0, slot 1)"),
        ("0F0,1F0,(1B0;0B0)OVERLAP_F_B", "a slot is one action, or an F with a B"),
        ("0F0,(1F0;1B0)OVERLAP_F_B,0B0", "deadlock: 1B0 (rank 0, slot 1) needs 1F0 (rank 0, slot 1)"),
        ("0UNSHARD\n0F0,0B0", "rank 0 has no action"),
        ("0RESHARD", "the order has no action"),
        ('0F0,"0B0\n', "order.csv"),
    ],
)
def test_what_is_wrong_is_said(text: str, sentence: str) -> None:
    with pytest.raises(ProgramError) as caught:
        check(text)
    assert sentence in str(caught.value)


def test_a_deadlock_is_its_shortest_cycle_and_the_grid_around_it() -> None:
    """Rank 0 wants the gradient of micro-batch 1 first, rank 1 runs micro-batch 0 first and waits for nobody else."""
    with pytest.raises(ProgramError) as caught:
        check("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0")
    first, *grid = str(caught.value).splitlines()
    assert first == (
        "deadlock: rank 0 stands at 0B0 and waits for 1B0 of rank 1, which comes after 1F1; "
        "rank 1 stands at 1F1 and waits for 0F1 of rank 0, which comes after 0B0"
    )
    assert grid == [
        "  rank 0, from slot 0: 0F0 >0B0< >0F1< 0B1",
        "  rank 1, from slot 0: >1F1< 1B1 1F0 >1B0<",
    ]


def test_a_short_cycle_is_found_behind_a_long_one() -> None:
    """Slots that only hang behind the cycle are not part of the explanation."""
    rows = program("1f1b", ranks=4, microbatches=16).to_csv().splitlines()
    cells = [row.split(",") for row in rows]
    a, b = cells[1].index("1F3"), cells[1].index("1B2")
    cells[1][a], cells[1][b] = cells[1][b], cells[1][a]
    with pytest.raises(ProgramError) as caught:
        check("\n".join(map(",".join, cells)))
    assert str(caught.value).splitlines()[0].count("waits for") == 2


def test_a_long_cycle_is_cut_and_quickly_told() -> None:
    """A ring of 300 ranks, each of which wants the micro-batch first that the one before makes last."""
    rows = program("1f1b", ranks=300, microbatches=400).to_csv().splitlines()
    cells = rows[299].split(",")
    rows[299] = ",".join([*cells[2:], *cells[:2]])
    with pytest.raises(ProgramError) as caught:
        check("\n".join(rows))
    assert len(str(caught.value)) < 4000


def test_posts_are_written_as_lowered_cells_and_read_back() -> None:
    order = program("dualpipe", ranks=4, microbatches=8)
    again = Program.from_csv(order.to_csv(posts=True))
    assert again == order
    assert again.posts == order.posts


def test_placement_is_what_the_rows_say() -> None:
    order = program("dualpipe", ranks=4, microbatches=8)
    assert order.placement == ((0, 3), (1, 2), (1, 2), (0, 3))
    assert (order.stages, order.chunks, order.parameter_copies) == (4, 2, 2.0)
    odd = check("2F0,2B0\n0F0,1F0,1B0,0B0")
    assert odd.placement == ((2,), (0, 1))


cells = st.sampled_from(
    ["0F0", "0B0", "0I0", "0W0", "1F0", "1B0", "0F1", "0B1", "", "(0F1;0B0)OVERLAP_F_B", "0SEND_F0"]
)


@settings(max_examples=500, deadline=None)
@given(st.lists(st.lists(cells, max_size=8), min_size=1, max_size=3))
def test_any_text_is_a_program_or_one_sentence(rows: list[list[str]]) -> None:
    try:
        order = check("\n".join(map(",".join, rows)))
    except ProgramError as error:
        assert str(error)  # noqa: PT017 - either outcome is legal
    else:
        assert Program.from_csv(order.to_csv()) == order


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet="0123FIWB,();\n\"' _SENDOVERLAP", max_size=60))
def test_noise_never_breaks_the_reader(text: str) -> None:
    try:
        check(text)
    except ProgramError as error:
        assert str(error)  # noqa: PT017
