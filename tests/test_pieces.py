"""What is timed of a model follows from its own operations and one GPU's share; a table keeps it row by row."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.operators import passes
from simpipe.simulator.costs.stack import load_stack
from simpipe.simulator.errors import OutputError, ParallelError
from simpipe.simulator.measuring.pieces import layout, pieces
from simpipe.simulator.measuring.table import COLUMNS, Table


@pytest.mark.parametrize(("name", "given"), [
    ("llama3-70b", {"tp": 8, "sequence": 8192}), ("deepseek-v3", {"ep": 64, "sequence": 4096}),
    ("llama3-8b", {"cp": 4, "sequence": 8192}),
])  # fmt: skip
def test_products_are_those_that_a_modelled_layer_runs(name: str, given: dict[str, int]) -> None:
    model, parallel = load_model(name), layout(given, "cuda")
    found = {piece.component: set() for piece in pieces(model, parallel)}
    for piece in pieces(model, parallel):
        if piece.operator in ("gemm", "attention_forward", "attention_backward"):
            found[piece.component].add((piece.operator, tuple(map(int, piece.sizes))))
    for index in (0, model.layers - 1):
        chains = passes(model, load_cluster("h100"), parallel, load_stack(), model.layer(index))
        for step in (*chains.forward, *chains.input, *chains.weight):
            for kernel in step.kernels:
                if kernel.family in ("gemm", "attention_forward", "attention_backward"):
                    shape = tuple(map(int, kernel.shape[0]))
                    assert (kernel.family, shape) in found[step.name]


def test_a_pass_of_each_kind_by_component() -> None:
    found = pieces(load_model("deepseek-v3"), layout({"ep": 64, "tp": 1, "sequence": 4096}, "cuda"))
    by_component: dict[str, set[str]] = {}
    for piece in found:
        by_component.setdefault(piece.component, set()).add(piece.of)
    assert by_component["experts.up"] == by_component["mlp.up"] == {"forward", "input", "weight"}
    assert by_component["attention.core"] == {"forward", "input"}
    assert by_component["embedding.tokens"] == {"forward", "weight"}
    keys = [(p.component, p.of, p.operator, p.shape, p.format, p.bytes) for p in found]
    assert len(set(keys)) == len(keys)  # a table's rows are told apart
    (experts,) = [p for p in found if (p.component, p.of) == ("experts.up", "weight")]
    assert experts.shape == "m=28672 n=4096 k=8192 groups=4"  # 4 local experts, 4,096 x 8 tokens on them


@pytest.mark.parametrize(("given", "message"), [
    ({"tp": 64}, "attention.heads of llama3-8b = 32 is not a multiple of tp = 64"),
    ({"tp": 0}, "tp must be a whole number from 1 to 1000000, not 0"),
    ({"tp": "two"}, "tp must be a whole number from 1 to 1000000, not 'two'"),
    ({"ep": 2}, "ep = 2, but llama3-8b has no experts"),
    ({"precision": "fp8"}, "compute_format = fp8 is computed by kernels of other libraries"),
    ({"batch": 2}, "unknown key 'batch'"),
])  # fmt: skip
def test_what_cannot_be_timed_is_refused(given: dict[str, object], message: str) -> None:
    with pytest.raises(ParallelError, match=message):
        pieces(load_model("llama3-8b"), layout(given, "cuda"))


def test_a_table_is_kept_and_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "timings.csv"
    table = Table.open(path, "a GPU")
    table.add(0.25, 5, component="mlp.up", operator="gemm", shape="m=1 n=2 k=3", format="bf16", **{"pass": "forward"})
    table.add(1e-5, 7, operator="all_reduce", bytes=4096.0, ranks=2)
    again = Table.open(path, "a GPU")
    assert again.rows == table.rows
    assert again.has(operator="all_reduce", bytes=4096.0, ranks=2)
    assert not again.has(operator="all_reduce", bytes=8192.0, ranks=2)
    assert again.by_component() == {"mlp.up": {"forward": 0.25}}
    with path.open(newline="") as file:
        assert [row["seconds"] for row in csv.DictReader(file)] == ["0.25", "1e-05"]
    with pytest.raises(OutputError, match="line 2: holds timings of 'a GPU', not of 'another'; name another file"):
        Table.open(path, "another")


@pytest.mark.parametrize("text", [
    "", "hello", "a,b\n1,2\n", ",".join(COLUMNS) + "\n1,2\n", ",".join(COLUMNS) + "\n" + ",".join("abcdefghij") + "\n",
    ",".join(COLUMNS) + '\n"', "\xff\x00",
])  # fmt: skip
def test_another_file_is_not_overwritten(tmp_path: Path, text: str) -> None:
    path = tmp_path / "timings.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(OutputError, match="name another file"):
        Table.open(path, "a GPU")
    assert path.read_text(encoding="latin-1") == text


def test_calibrate_reads_the_table(tmp_path: Path) -> None:
    from simpipe.simulator.calibration import classes
    from simpipe.simulator.calibration.readers import csv_table

    path = tmp_path / "timings.csv"
    table = Table.open(path, "a GPU")
    for piece in pieces(load_model("mixtral-8x7b"), layout({"ep": 8, "sequence": 64}, "cuda")):
        size = piece.bytes if piece.operator == "memory_bound" else ""
        key = {"component": piece.component, "pass": piece.of, "operator": piece.operator, "shape": piece.shape}
        table.add(1e-3, 5, **key, format=piece.format, bytes=size)
    assert csv_table.recognises(path.read_bytes()[:1000])
    read = csv_table.read(path, bytearray(path.read_bytes()), classes.read())
    assert len(read.table) == len(table.rows)
