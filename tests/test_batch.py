"""A spreadsheet of scenarios: what comes back, what is refused, and that interruptions lose and double nothing."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simpipe.simulator import case as cases
from simpipe.simulator import slots
from simpipe.simulator.costs.model import ModelError
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.errors import OutputError, SimpipeError
from simpipe.simulator.planning import evaluation, execution, jobs, tables, template
from simpipe.simulator.planning.execution import Inline, Journal
from simpipe.simulator.planning.tables import Sheet, TableError
from simpipe.simulator.scenario import Scenario
from simpipe.simulator.trace import simulate

EXAMPLES = Path(__file__).parents[1] / "examples"
V3 = Scenario.read(EXAMPLES / "deepseek_v3.yaml").to_dict()
DENSE = {
    "model": "layers=8,hidden=2048,heads=16,ffn=8192,vocab=32000", "hardware": "h100", "schedule": "1f1b", "ranks": 2,
    "gpus": 2, "global_batch": 8, "sequence": 2048,
}  # fmt: skip


def write(path: Path, *rows: dict[str, object]) -> Path:
    tables.write(path, list(dict.fromkeys(key for row in rows for key in row)), list(rows), Sheet({}, ()))
    return path


def simpipe(*arguments: object, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simpipe", *map(str, arguments)], cwd=cwd, capture_output=True, text=True, check=False
    )


# Slots as few tasks.


@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "gpipe"])
@pytest.mark.parametrize("tp", [1, 8])
def test_slots_alone_give_the_full_run_where_nothing_is_shared(schedule: str, tp: int) -> None:
    """Two ranks, no data parallelism: a message is never beside another, nor on a link of tensor parallel ones."""
    row = DENSE | {"schedule": schedule, "tp": tp, "gpus": 2 * tp, "hardware": "a100"}
    case = cases.modelled(Scenario.of(row))
    whole, _ = slots.simulate(case.program, case.costs)
    full = simulate(case.program, case.costs)
    assert whole.makespan == pytest.approx(full.makespan, rel=1e-12)
    assert whole.slot_end == pytest.approx(full.slot_end, rel=1e-12)


@pytest.mark.parametrize(
    "change",
    [
        {},
        {"schedule": "1f1b"},
        {"schedule": "1f1b", "overlap": "within-slot"},
        {"schedule": "zb-h1"},
        {"stragglers": {3: 1.3}},
        {"schedule": "1f1b", "zero": 0, "gradient_overlap": False},
        {"schedule": "1f1b", "zero": 3, "global_batch": 4 * 128},
    ],
    ids=str,
)
def test_slots_alone_are_near_the_full_run(change: dict[str, object]) -> None:
    """DeepSeek-V3's step, 32 micro-batches: at most 1 % too fast, 5 % where reductions share links that are exposed;
    exposed communication within 5 %."""
    case = cases.modelled(Scenario.of(V3 | {"global_batch": 32 * 128} | change))
    whole, exposed = slots.simulate(case.program, case.costs)
    full = simulate(case.program, case.costs)
    least = 0.95 if change == {"schedule": "1f1b"} else 0.99
    assert least * full.makespan <= whole.makespan <= 1.001 * full.makespan
    assert exposed.mean() == pytest.approx(full.exposed_communication.mean(), rel=0.05)
    assert whole.activation_bytes.during == pytest.approx(full.activation_bytes.during)


@pytest.mark.parametrize("zero", [0, 1])
@pytest.mark.parametrize("schedule", ["1f1b", "zb-h1", "gpipe", "interleaved-1f1b"])
@pytest.mark.parametrize("microbatches", [2, 8])
def test_reductions_hide_behind_the_last_backward(schedule: str, microbatches: int, zero: int) -> None:
    """Few micro-batches, many replicas: what starts inside a slot does so here too, and slows it by its SMs."""
    row = {"model": "llama3-8b", "hardware": "h100", "gpus": 128, "ranks": 2, "sequence": 4096, "zero": zero}
    case = cases.modelled(Scenario.of(row | {"schedule": schedule, "global_batch": 64 * microbatches}))
    whole, _ = slots.simulate(case.program, case.costs)
    assert whole.makespan == pytest.approx(simulate(case.program, case.costs).makespan, rel=5e-3)


def test_unlike_micro_batches_have_slots_of_their_own() -> None:
    lengths = [2048, 1024, 2048, 4096, 2048, 512, 2048, 2048]
    case = cases.modelled(Scenario.of(DENSE | {"lengths": lengths, "stragglers": {1: 1.5}}))
    whole, _ = slots.simulate(case.program, case.costs)
    assert whole.makespan == pytest.approx(simulate(case.program, case.costs).makespan, rel=1e-12)
    assert len(set(slots.slot_costs(case.program, case.costs).seconds)) > 8


# Models by their sizes.


def test_a_model_by_its_sizes_is_the_profile() -> None:
    sizes = "layers=32,hidden=4096,heads=32,kv_heads=8,ffn=14336,vocab=128256"
    assert load_model(sizes) == load_model("llama3-8b")
    by_columns = dict(part.split("=") for part in sizes.split(","))
    row = {key: int(value) for key, value in by_columns.items()} | {k: v for k, v in DENSE.items() if k != "model"}
    assert evaluation.evaluated(row) == evaluation.evaluated(DENSE | {"model": "llama3-8b"})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("layers=2,hidden=64,heads=4,vocab=100", "ffn is missing, but 2 of 2 layers are dense"),
        ("layers=2,hidden=64,heads=5,kv_heads=2,ffn=8,vocab=8", "heads = 5 is not a multiple of kv_heads = 2"),
        ("layers=2,hiden=64", "'hiden' is no size of a model; did you mean hidden?"),
        ("layers=two", "layers = 'two' is not a whole number, true or false"),
    ],
)
def test_wrong_sizes_of_a_model_are_told(text: str, sentence: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(text)
    assert str(caught.value) == sentence


# Figures.


def test_figures_of_a_row_are_those_of_the_run() -> None:
    found = evaluation.figures(V3 | {"token_budget": 14.8e12})
    full = cases.simulated(cases.modelled(Scenario.of(V3)))[1]
    assert full.efficiency is not None
    for name in ("step_time_s", "tokens_per_s", "tflops_per_gpu", "mfu"):
        assert found[name] == pytest.approx(getattr(full.efficiency, name), rel=0.01)
    assert found["peak_memory_gb"] * 1e9 == pytest.approx(full.efficiency.memory.peak_bytes)
    kinds = sum(found[f"{kind}_gb"] for kind in full.efficiency.memory.by_kind)
    assert kinds == pytest.approx(found["peak_memory_gb"])
    assert found["bubble_rate"] == pytest.approx(full.summary.bubble_rate, abs=0.005)
    # 2,048 GPUs for 14.8e12 tokens at this rate, at the profile's 2 USD
    hours = 2048 * 14.8e12 / found["tokens_per_s"] / 3600
    assert found["gpu_hours"] == pytest.approx(hours)
    assert found["cost_usd"] == pytest.approx(2 * hours)
    assert found["gpu_hours_per_trillion_tokens"] * 14.8 == pytest.approx(hours)
    assert found.keys() <= evaluation.COLUMNS.keys()


def test_costs_by_hand_need_no_model() -> None:
    row = {"costs": "F=1,I=1,W=1", "schedule": "1f1b", "ranks": 4, "microbatches": 8}
    assert evaluation.figures(row) == {"status": "ok", "step_time_s": 33.0, "bubble_rate": pytest.approx(3 / 11)}
    rate = evaluation.figures(row | {"global_batch": 16, "sequence": 33, "gpus": 4, "price_usd_per_gpu_hour": 9})
    assert rate["tokens_per_s"] == 16
    assert rate["cost_per_trillion_tokens_usd"] == pytest.approx(1e12 / 16 * 4 / 3600 * 9)


def test_every_kind_of_memory_has_its_column() -> None:
    row = DENSE | {"averages": "gpu", "zero": 3, "gpus": 8}
    found = evaluation.figures(row)
    kinds = sum(found.get(f"{kind}_gb", 0.0) for kind in evaluation.KINDS)
    assert found["averages_gb"] > 0
    assert kinds == pytest.approx(found["peak_memory_gb"])


def test_without_a_price_costs_are_empty() -> None:
    found = evaluation.figures(DENSE)
    assert "cost_per_trillion_tokens_usd" not in found
    assert found["gpu_hours_per_trillion_tokens"] > 0


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"tp": 3}, "gpus = 2 is not a multiple of ranks x tp x cp = 2 x 3 x 1 = 6"),
        ({"schedule": "1f2b"}, "unknown schedule '1f2b'; did you mean 1f1b?"),
        ({"hardware": None}, "hardware is missing"),
        ({"token_budget": "much"}, "token_budget must be a number from 0 to 1e+18, not 'much'"),
        ({"costs": "F=1", "microbatches": 0.5}, "microbatches must be a whole number, at least 1, not 0.5"),
    ],
)
def test_an_impossible_row_says_why(change: dict[str, object], sentence: str) -> None:
    found = evaluation.evaluated(DENSE | change)
    assert found["status"].startswith(sentence)
    assert len(found) == 1


# Tables.


@pytest.mark.parametrize("ending", tables.ENDINGS)
def test_a_table_comes_back_as_it_was_written(ending: str, tmp_path: Path) -> None:
    rows = [
        {"model": "gpt3-175b", "tp": 8, "x": 0.1, "on": True, "n": None},
        {"model": 'ü, "quoted"\nline', "tp": 4, "x": 1e-6, "on": False, "n": None},
    ]
    path = write(tmp_path / f"t{ending}", *rows)
    assert tables.read(path) == (["model", "tp", "x", "on", "n"], rows)
    again = write(tmp_path / f"again{ending}", *rows)
    assert path.read_bytes() == again.read_bytes()


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (b"", "is empty; its first line names the columns, as model,hardware,schedule,ranks"),
        (b"model,tp\n", "holds no rows below its header"),
        (b"model,tp,model\n1,2,3\n", "names column 'model' twice, as columns 1 and 3"),
        (b"model,,tp\n1,2,3\n", "has no name for column 2"),
        (b"model,tp\na,1\nb,2,3\n", "line 3 has 3 cells, but the header has 2"),
        (b"model,tp\na\n", "line 2 has 1 cells, but the header has 2"),
        ("model,tp\né,1\n".encode() + "é,1\n".encode("latin-1"), "line 3 is not UTF-8 at byte 1; save it as UTF-8"),
        (b'model,tp\n"a,1\n', "line 2 is no CSV: unexpected end of data"),
        ("model,tp\na,1\n".encode("utf-16-le"), "line 1 holds a NUL, as UTF-16 has them; save it as UTF-8"),
        (b"model,tp\n" + b"a" * 40_000 + b",1\n", "line 2 has a cell of 40,000 letters; one takes at most 32,767"),
    ],
)
def test_a_bad_csv_is_one_sentence(text: bytes, sentence: str, tmp_path: Path) -> None:
    path = tmp_path / "cases.csv"
    path.write_bytes(text)
    with pytest.raises(TableError) as caught:
        tables.read(path)
    assert str(caught.value) == f"{path} {sentence}"


def test_semicolons_marks_and_empty_lines_are_read(tmp_path: Path) -> None:
    path = tmp_path / "excel.csv"
    path.write_bytes("\ufeffmodel;tp;note\r\nllama3-8b;8;a, b\r\n;;\r\n".encode())
    assert tables.read(path).rows == [{"model": "llama3-8b", "tp": 8, "note": "a, b"}]


@pytest.mark.parametrize("name", ["x.xlsx", "x.parquet", "x.ods", "missing.csv"])
def test_files_that_are_no_tables_are_refused(name: str, tmp_path: Path) -> None:
    if not name.startswith("missing"):
        (tmp_path / name).write_bytes(b"PK no")
    with pytest.raises(TableError, match=name):
        tables.read(tmp_path / name)


def test_an_xlsx_may_begin_with_empty_rows_but_formulas_need_results(tmp_path: Path) -> None:
    import openpyxl

    path, book = tmp_path / "cases.xlsx", openpyxl.Workbook()
    for cells in ([], [None, None], ["model", "tp"], ["llama3-8b", 8], [], ["llama3-8b", 4]):
        book.active.append(cells)
    book.create_sheet("other").append(["x"])
    book.save(path)
    assert tables.read(path) == (["model", "tp"], [{"model": "llama3-8b", "tp": tp} for tp in (8, 4)])
    book.active["B6"] = "=2*4"
    book.save(path)
    with pytest.raises(TableError, match="row 6 column 2 is a formula without a result, '=2\\*4'; open and save it"):
        tables.read(path)


def test_a_header_of_something_else_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "other.csv", {"modle": "a", "gpu": 1})
    with pytest.raises(TableError, match="no column of a scenario; its first, 'modle': did you mean model"):
        jobs.of_table(tables.read(path), path)


def test_a_misspelt_column_is_remarked_on(tmp_path: Path) -> None:
    path = write(tmp_path / "cases.csv", DENSE | {"global_bacth": 3, "owner": "me"})
    _, remarks = jobs.of_table(tables.read(path), path)
    assert remarks == ["column global_bacth is carried through; did you mean global_batch?"]


EVIL = ["=1+1", "+cmd", "-2+3", "@sum(a1)", "\tx", "\rx"]


def test_formulas_are_text_in_csv_and_xlsx(tmp_path: Path) -> None:
    import openpyxl

    rows = [{"model": "m", "note": text, "x": -1.5} for text in EVIL] + [{"model": "m", "note": 0, "x": -2}]
    with write(tmp_path / "t.csv", *rows).open(newline="") as file:
        written = [row["note"] for row in csv.DictReader(file)]
    assert written == ["'" + text.replace("\r", "\n") for text in EVIL] + ["0"]
    assert [row["x"] for row in tables.read(tmp_path / "t.csv").rows] == [-1.5] * len(EVIL) + [-2]
    sheet = openpyxl.load_workbook(write(tmp_path / "t.xlsx", *rows)).worksheets[0]
    assert {row[1].data_type for row in sheet.iter_rows(min_row=2, max_row=1 + len(EVIL))} == {"s"}


def test_xlsx_has_a_frozen_header_formats_and_assumptions(tmp_path: Path) -> None:
    import openpyxl

    path = write(tmp_path / "cases.csv", {"model": "deepseek-v3", "hardware": "h800"})
    job, _ = jobs.of_table(tables.read(path), path)
    jobs.run(job, [str(tmp_path / "r.xlsx")], Inline(), 1)
    book = openpyxl.load_workbook(tmp_path / "r.xlsx")
    assert book.sheetnames == ["results", "assumptions"]
    assert book["results"].freeze_panes == "A2"
    notes = {row[0].value: row[1].value for row in book["assumptions"].iter_rows()}
    assert notes["h800: price_usd_per_gpu_hour"] == "2 USD a GPU-hour"
    assert notes["mfu"] == evaluation.COLUMNS["mfu"].meaning


def test_results_are_read_back_equal_from_every_format(tmp_path: Path) -> None:
    path = write(
        tmp_path / "cases.csv",
        DENSE | {"id": "007", "part": "12345678901234567890", "sequence_parallel": True},
        DENSE | {"id": "1e999", "part": "x", "gpus": 3},
    )
    job, _ = jobs.of_table(tables.read(path), path)
    outs = [str(tmp_path / f"r{ending}") for ending in tables.ENDINGS]
    jobs.run(job, outs, Inline(), 1)
    first, *others = (tables.read(out) for out in outs)
    assert [row["fits"] for row in first.rows] == [True, None]
    assert [row["id"] for row in first.rows] == ["007", "1e999"]
    assert first.rows[0]["part"] == "12345678901234567890"
    for other in others:
        assert other.columns == first.columns
        for row, same in zip(first.rows, other.rows, strict=True):
            for name, value in row.items():
                if isinstance(value, float):  # XLSX holds 16 digits
                    assert same[name] == pytest.approx(value, rel=1e-14)
                else:
                    assert same[name] is value or (type(same[name]), same[name]) == (type(value), value)


def test_columns_of_results_are_computed_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "cases.csv", DENSE | {"status": "planned", "mfu": 0.5, "owner": "me"})
    job, remarks = jobs.of_table(tables.read(path), path)
    assert remarks == ["columns status to mfu are of results and computed anew"]
    assert job.columns == [*DENSE, "owner"]


# The verb.


def test_the_template_is_simulated_row_by_row(tmp_path: Path) -> None:
    template.write(tmp_path / "cases.csv")
    run = simpipe("batch", "cases.csv", "--out", "r.csv", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith(f"{len(template.ROWS)} rows: {len(template.ROWS)} simulated and fit")
    job, _ = jobs.of_table(tables.read(tmp_path / "r.csv"), tmp_path / "r.csv")
    jobs.run(job, [str(tmp_path / "again.csv")], Inline(), 1)
    assert (tmp_path / "again.csv").read_bytes() == (tmp_path / "r.csv").read_bytes()
    assert not list(tmp_path.glob("*.journal"))


def test_bad_and_good_rows_go_on_together(tmp_path: Path) -> None:
    path = write(
        tmp_path / "cases.csv", DENSE | {"id": "=a"}, DENSE | {"tp": 3, "id": "b"}, DENSE | {"ranks": 1, "gpus": 1}
    )
    run = simpipe("batch", path.name, "--out", "r.csv", "--json", cwd=tmp_path)
    assert json.loads(run.stdout) == {
        "rows": 3, "ok": 2, "too_large": 0, "impossible": 1, "resumed": 0, "best": None, "wrote": ["r.csv"],
    }  # fmt: skip
    rows = tables.read(tmp_path / "r.csv").rows
    assert [row["status"][:8] for row in rows] == ["ok", "gpus = 2", "ok"]
    assert rows[0]["id"] == "'=a"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ([], "batch takes a table of scenarios, as cases.csv; --template writes one to start from"),
        (["missing.csv"], "missing.csv cannot be read: No such file or directory"),
        (["cases.txt"], "cases.txt is no table by its ending '.txt'; it is .csv, .parquet or .xlsx"),
        (["cases.csv", "--out", "r.pdf"], "r.pdf is no table by its ending '.pdf'; it is .csv, .parquet or .xlsx"),
        (["cases.csv", "--executor", "mpi"], "--executor is 'mpi'; it is local or dask://host:port"),
        (
            ["cases.csv", "--executor", "dask://localhost:1"],
            "--executor: no Dask scheduler answers at tcp://localhost:1: Timed out trying to connect to "
            "tcp://localhost:1 after 3 s",
        ),
        (["cases.csv", "--out", "no/r.csv"], "no/r.csv cannot be written: there is no folder no"),
        (["cases.csv", "--out", "r.csv", "--out", "no/r.csv"], "no/r.csv cannot be written: there is no folder no"),
        (["cases.csv", "--out", f"{'x' * 300}.csv"], f"{'x' * 300}.csv cannot be written: File name too long"),
        (
            ["cases.csv", "--out", "cases.csv"],
            "cases.csv cannot be written: it is read; name another",
        ),
        (["--template", "--out", "no/r.csv"], "no/r.csv cannot be written: there is no folder no"),
        (
            ["--template", "--out", "r.csv", "--out", "r.html"],
            "r.html is no table by its ending '.html'; it is .csv, .parquet or .xlsx",
        ),
        (["cases.csv", "--workers", "0"], "--workers is 0; it takes 1 to 1,024 processes"),
        (["cases.csv", "--workers", "-2"], "--workers is -2; it takes 1 to 1,024 processes"),
        (["cases.csv", "--workers", "99999"], "--workers is 99999; it takes 1 to 1,024 processes"),
    ],
)
def test_wrong_usage_is_one_sentence(arguments: list[str], sentence: str, tmp_path: Path) -> None:
    write(tmp_path / "cases.csv", DENSE)
    run = simpipe("batch", *arguments, cwd=tmp_path)
    assert (run.returncode, run.stderr) == (2, f"simpipe: {sentence}\n")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cases.csv"]


# Interruptions.


def forty(path: Path) -> Path:
    return write(path, *(DENSE | {"global_batch": 2 * n, "id": n} for n in range(1, 41)))


def test_a_journal_goes_on_after_a_torn_line(tmp_path: Path) -> None:
    path = tmp_path / "r.journal"
    with Journal(path, "mark", 3) as journal:
        journal.add(2, {"status": "ok", "step_time_s": 0.1})
        journal.add(0, {"status": "ok"})
    path.write_bytes(path.read_bytes()[:-5])
    with Journal(path, "mark", 3) as journal:
        assert [number in journal for number in range(3)] == [False, False, True]
        assert journal[2] == {"status": "ok", "step_time_s": 0.1}
        journal.add(0, {"status": "again"})
        assert journal[0] == {"status": "again"}
    path.write_bytes(path.read_bytes() + b'edited\n{"row": 9, "status": ""}\n{"row": 1}\n[]\n\xff\n')
    with Journal(path, "mark", 3) as journal:
        assert [number in journal for number in range(3)] == [True, False, True]
        journal.add(1, {"status": "ok"})
        assert [journal[number]["status"] for number in range(3)] == ["again", "ok", "ok"]
    with Journal(path, "another mark", 3) as journal:
        assert journal.dropped == 8
        assert not any(number in journal for number in range(3))


def test_a_full_disk_is_told_and_costs_the_row_in_hand_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "r.journal"
    with Journal(path, "mark", 2) as journal:
        journal.add(0, {"status": "ok"})
        with monkeypatch.context() as patched:

            def full(data: bytes) -> int:
                raise OSError(errno.ENOSPC, "No space left on device")

            patched.setattr(journal, "_write", full)
            with pytest.raises(OutputError, match="No space left on device; once it can, the same command goes on"):
                journal.add(1, {"status": "ok"})
    with Journal(path, "mark", 2) as journal:
        assert [number in journal for number in range(2)] == [True, False]


def test_a_worker_that_is_killed_is_one_sentence() -> None:
    with (
        pytest.raises(SimpipeError, match="a worker process was killed"),
        execution.executor_of("local", 2, 2) as (executor, _),
    ):
        executor.submit(os._exit, 1).result()


def test_two_processes_do_not_write_one_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "r.csv.journal", "mark", 1):
        run = simpipe("batch", write(tmp_path / "cases.csv", DENSE).name, "--out", "r.csv", cwd=tmp_path)
    assert (run.returncode, run.stderr) == (2, "simpipe: r.csv.journal is being written by another simpipe\n")


def test_killed_at_any_point_it_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    """SIGKILL three times, each some rows further; rows are computed once, and the bytes are the same."""
    path = forty(tmp_path / "cases.csv")
    job, _ = jobs.of_table(tables.read(path), path)
    jobs.run(job, [str(tmp_path / "whole.csv")], Inline(), 1)
    journal = tmp_path / "r.csv.journal"
    command = [sys.executable, "-m", "simpipe", "batch", path.name, "--out", "r.csv", "--workers", "2"]
    kills, seen = 0, b""
    while not (tmp_path / "r.csv").exists():
        process = subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        rows = len(seen.splitlines())
        while process.poll() is None:  # until some rows more are there
            if kills < 3 and journal.exists() and len(journal.read_bytes().splitlines()) > rows + 3 * kills:
                os.kill(process.pid, signal.SIGKILL)
                kills += 1
            time.sleep(0.002)
        process.communicate()
        if journal.exists():
            kept = journal.read_bytes()
            assert kept.startswith(seen[: seen.rfind(b"\n") + 1])  # nothing that was there was written again
            seen = kept
    assert kills == 3
    assert (tmp_path / "r.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()


def test_a_changed_table_or_version_uses_no_old_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = forty(tmp_path / "cases.csv")
    first, _ = jobs.of_table(tables.read(path), path)
    rows = tables.read(path).rows
    rows[7]["tp"] = 2
    changed, _ = jobs.of_table(tables.read(write(path, *rows)), path)
    assert first.mark != changed.mark
    monkeypatch.setattr(execution, "own_version", lambda: "another")
    assert jobs.of_table(tables.read(path), path)[0].mark != changed.mark


def test_a_changed_file_that_a_row_names_uses_no_old_rows(tmp_path: Path) -> None:
    profile = tmp_path / "own.toml"
    profile.write_text('base = "h100"\n')
    path = write(tmp_path / "cases.csv", DENSE | {"hardware": "./own.toml"})
    marks = {jobs.of_table(tables.read(path), path)[0].mark}
    profile.write_text('base = "h200"\n')
    marks.add(jobs.of_table(tables.read(path), path)[0].mark)
    assert len(marks) == 2


def test_a_dask_cluster_that_loses_a_worker_gives_the_same_bytes(tmp_path: Path) -> None:
    distributed = pytest.importorskip("distributed")
    path = write(tmp_path / "cases.csv", *(DENSE | {"global_batch": 2 * n} for n in range(1, 25)))
    job, _ = jobs.of_table(tables.read(path), path)
    jobs.run(job, [str(tmp_path / "local.csv")], Inline(), 1)
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        victims = [worker.process.pid for worker in cluster.workers.values()]

        def kill_one(tally: jobs.Tally) -> None:
            if victims and tally.ok:
                os.kill(victims.pop(), signal.SIGKILL)
                victims.clear()

        address = cluster.scheduler_address.replace("tcp", "dask")
        with execution.executor_of(address, None, job.count) as (executor, workers):
            assert workers == 2
            tally = jobs.run(job, [str(tmp_path / "dask.csv")], executor, workers, kill_one)
    assert tally.ok == job.count
    assert not victims
    assert (tmp_path / "dask.csv").read_bytes() == (tmp_path / "local.csv").read_bytes()
