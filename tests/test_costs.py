"""Costs given by hand: their units, their files, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest

from simpipe import Costs, Program, SimpipeError, program, simulate
from simpipe.simulator.errors import CostsError


def test_a_number_is_for_one_pth_of_the_layers() -> None:
    """All of it where there are as many stages as ranks, half of it for a V."""
    assert simulate(program("1f1b", ranks=1, microbatches=1), Costs(F=4, I=1, W=1)).makespan == 6
    order = Program.from_csv("0F0,3F0,3B0,0B0\n1F0,2F0,2B0,1B0")
    assert Costs(F=4, B=2).per_action(order).tolist() == [2, 2, 1, 1] * 2


def test_lists_are_per_stage_and_not_scaled() -> None:
    order = Program.from_csv("0F0,3F0,3B0,0B0\n1F0,2F0,2B0,1B0")
    assert Costs(F=[1, 2, 3, 4], I=[1, 1, 1, 1], W=1).per_action(order).tolist() == [1, 4, 1.5, 1.5, 2, 3, 1.5, 1.5]


def test_lists_of_lists_are_per_stage_and_microbatch() -> None:
    order = Program.from_csv("0F0,0F1,0B0,0B1")
    assert Costs(F=[[1, 2]], B=[[5, 6]]).per_action(order).tolist() == [1, 2, 5, 6]


def test_an_overlapped_slot_costs_fb_or_the_sum_of_its_two_stages() -> None:
    order = Program.from_csv("0F0,1F0,0F1,(1F1;0B9)OVERLAP_F_B")
    assert Costs(F=[1, 2], I=[3, 4], W=[5, 6]).per_slot(order).tolist() == [1, 2, 1, 2 + 3 + 5]
    assert Costs(F=[1, 2], I=1, W=1, FB=[7, 8]).per_slot(order).tolist() == [1, 2, 1, 8]
    assert Costs(FB=2.5).per_slot(order)[-1] == 2.5 / 2


def test_b_is_the_full_backward() -> None:
    order = Program.from_csv("0F0,0B0\n1F0,1I0,1W0")
    assert Costs(F=1, I=2, W=3).per_action(order).tolist() == [1, 5, 1, 2, 3]
    assert Costs(F=1, I=2, W=3, B=4).per_action(order).tolist() == [1, 4, 1, 2, 3]


def test_without_any_time_all_take_a_second_and_with_one_none_is_made_up() -> None:
    order = Program.from_csv("0F0,0B0\n1F0,1I0,1W0")
    assert Costs(p2p=1, FB=3).per_action(order).tolist() == [1, 2, 1, 1, 1]
    for given, missing in (({"F": 1}, "I"), ({"F": 1, "B": 2}, "I"), ({"I": 1, "W": 1}, "F"), ({"F": 1, "I": 1}, "W")):
        with pytest.raises(CostsError, match=f"cost {missing} is missing: the program runs"):
            Costs(**given).per_action(order)


def test_message_bytes_are_of_a_boundary_both_ways() -> None:
    """8 bytes between stages 0 and 1, none between 1 and 2, at 1 byte/s: 8 s for the activation, 8 for the gradient."""
    order = Program.from_csv("0F0,0B0\n1F0,1B0\n2F0,2B0")
    trace = simulate(order, Costs(message_bytes=[8, 0, 5], bandwidth=1))
    assert trace.makespan == 1 + 8 + 1 + 1 + 2 + 2 + 8 + 2


def test_text_and_file_say_the_same(tmp_path: Path) -> None:
    text = Costs.parse("F=1, I=2,W=3, FB=4,p2p=0.5,exchange=blocking,barrier=true")
    (tmp_path / "c.toml").write_text('F = 1\nI = 2\nW = 3\nFB = 4\np2p = 0.5\nexchange = "blocking"\nbarrier = true\n')
    assert vars(Costs.read(tmp_path / "c.toml")) == vars(text)
    assert Costs.parse("").F == 1


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"F": -1}, "cost F is -1; it takes a finite number, 0 or more"),
        ({"F": math.nan}, "cost F is nan"),
        ({"W": math.inf}, "cost W is inf"),
        ({"F": [1, -2]}, "cost F[1] is -2"),
        ({"F": [[1], [math.nan]]}, "cost F[1][0] is nan"),
        ({"F": [[[1]]]}, "cost F[0][0] is a list; it takes a number"),
        ({"F": [1, [2]]}, "cost F mixes numbers and lists"),
        ({"F": True}, "cost F is True; it takes a number"),
        ({"F": "1"}, "cost F is '1'"),
        ({"F": []}, "cost F is an empty list"),
        ({"F": [[1, 2], [1]]}, "cost F has rows of 2 and 1 micro-batches"),
        ({"p2p": [1, 2]}, "cost p2p is a list; it takes a number"),
        ({"bandwidth": 0}, "cost bandwidth is 0; it is at least 0.001 bytes/s"),
        ({"exchange": "sync"}, "cost exchange is 'sync'; it is 'async' or 'blocking'"),
        ({"barrier": 1}, "cost barrier is 1; it is true or false"),
        ({"released_by_input": 1.5}, "a share is at most 1"),
    ],
)
def test_bad_costs_are_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CostsError) as caught:
        Costs(**given)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("F", "cost 'F' is not of the form name=number"),
        ("F=x", "cost F is 'x'; it takes a number"),
        ("F=1,F=2", "cost F is given twice"),
        ("banwidth=3", "unknown cost 'banwidth'; did you mean bandwidth?"),
        ("F=-1", "--costs: cost F is -1.0"),
        ("F=nan", "--costs: cost F is nan"),
        ("barrier=maybe", "cost barrier is 'maybe'"),
    ],
)
def test_bad_text_is_refused(text: str, sentence: str) -> None:
    with pytest.raises(CostsError) as caught:
        Costs.parse(text)
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"F = ", "is no TOML file"),
        (b"\xff\xfe", "is no TOML file"),
        (b"F = 1\nF = 2", "is no TOML file"),
        (b"f = 1", "unknown cost 'f'; did you mean F?"),
        (b"F = [1, -1]", "cost F[1] is -1"),
        (b"x = " + b"[" * 5000, "is no TOML file"),
    ],
)
def test_bad_files_are_refused(tmp_path: Path, content: bytes, sentence: str) -> None:
    path = tmp_path / "costs.toml"
    path.write_bytes(content)
    with pytest.raises(CostsError) as caught:
        Costs.read(path)
    assert sentence in str(caught.value)
    assert str(path) in str(caught.value)
    with pytest.raises(CostsError, match="cannot be read"):
        Costs.read(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    "costs", [Costs(F=[1, 2, 3], B=1), Costs(F=[[1], [2]], B=1), Costs(parameter_bytes=[1]), Costs(message_bytes=[1])]
)
def test_costs_for_another_number_of_stages_are_refused(costs: Costs) -> None:
    with pytest.raises(SimpipeError, match=r"the program has 4"):
        simulate(program("1f1b", ranks=4, microbatches=8), costs)
