"""The command line: what scripts rely on, and one sentence with exit status 2 for every mistake."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest


def simpipe(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simpipe", *arguments], capture_output=True, text=True, cwd=cwd, check=False
    )


def answer(*arguments: str, cwd: Path | None = None) -> Any:
    run = simpipe(*arguments, cwd=cwd)
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout)


def test_the_headline_as_json(tmp_path: Path) -> None:
    found = answer("run", "--schedule", "dualpipe", "--ranks", "8", "--microbatches", "20", "--json", cwd=tmp_path)
    assert {k: found[k] for k in ("schedule", "ranks", "microbatches", "chunks", "makespan", "ideal")} == {
        "schedule": "dualpipe", "ranks": 8, "microbatches": 20, "chunks": 2, "makespan": 66, "ideal": 60
    }  # fmt: skip
    assert found["bubble_rate"] == pytest.approx(6 / 66)
    for rank, figures in enumerate(found["per_rank"]):
        assert (figures["rank"], figures["busy"], figures["bubble_time"]) == (rank, 60, 6)
        assert (figures["peak_activations"], figures["span_bubble_time"]) == (9, 6 - min(rank, 7 - rank))
        assert sum(figures["bubble_causes"].values()) == pytest.approx(6)
    assert found["formula"]["seconds"] == 6
    assert found["formula"]["outside"] == ""
    assert sum(found["critical_path"].values()) == 66
    assert list(tmp_path.iterdir()) == []


def test_run_without_outputs_prints_the_table_and_writes_the_page(tmp_path: Path) -> None:
    run = simpipe("run", cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert "makespan 66 s" in run.stdout
    assert run.stdout.splitlines()[-1] == "wrote dualpipe-8x20.html"
    assert [path.name for path in tmp_path.iterdir()] == ["dualpipe-8x20.html"]
    assert run.stderr == ""


def test_outputs_by_ending_and_the_default_set(tmp_path: Path) -> None:
    outs = ["a.html", "a.png", "a.svg", "a.csv", "a.json", "a.json.gz", "folder/"]
    run = simpipe("run", *(part for out in outs for part in ("--out", out)), cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert all((tmp_path / out).exists() for out in outs)
    assert len(list((tmp_path / "folder").iterdir())) == 4
    assert not list(tmp_path.glob(".*"))


def test_compare_ranks_on_one_basis(tmp_path: Path) -> None:
    names = ("dualpipe", "1f1b", "zb-v", "interleaved-1f1b-overlap:group=12")
    chosen = [part for name in names for part in ("--schedule", name)]
    out = ["--out", "c.csv", "--out", "c.png"]
    found = answer("compare", *chosen, "--costs", "F=1,I=1,W=1,FB=2.4", "--json", *out, cwd=tmp_path)
    rows = {row["schedule"]: row for row in found["schedules"]}
    assert [row["schedule"] for row in found["schedules"]] == ["dualpipe", names[3], "zb-v", "1f1b"]
    assert [round(row["makespan_s"], 6) for row in found["schedules"]] == [57.6, 62.4, 63.5, 81]
    assert rows["dualpipe"]["parameter_copies"] == 2
    table = list(csv.DictReader((tmp_path / "c.csv").read_text().splitlines()))
    assert [row["schedule"] for row in table] == [row["schedule"] for row in found["schedules"]]
    assert float(table[0]["makespan_s"]) == pytest.approx(57.6)
    assert (tmp_path / "c.png").stat().st_size > 1000


def test_compare_of_all_leaves_out_what_does_not_fit(tmp_path: Path) -> None:
    found = answer("compare", "--ranks", "3", "--microbatches", "9", "--json", cwd=tmp_path)
    assert any("DualPipe takes an even number of ranks" in sentence for sentence in found["refused"])
    assert "1f1b" in {row["schedule"] for row in found["schedules"]}


def test_schedule_prints_text_that_run_reads_back(tmp_path: Path) -> None:
    text = simpipe("schedule", "zb-v", "--ranks", "4", "--microbatches", "8", "--format", "csv").stdout
    (tmp_path / "order.csv").write_text(text)
    own = answer("run", "--schedule", "order.csv", "--json", cwd=tmp_path)
    known = answer("run", "--schedule", "zb-v", "--ranks", "4", "--microbatches", "8", "--json")
    assert own["per_rank"] == known["per_rank"]
    assert simpipe("schedule", "zb-v", "--ranks", "4", "--microbatches", "8").stdout.startswith("rank 0  0F0 0F1")


def test_list_schedules() -> None:
    names = [schedule["name"] for schedule in answer("list", "schedules", "--json")]
    assert len(names) == 12
    printed = simpipe("list", "schedules").stdout
    assert all(name in printed for name in names)


def test_a_schedule_file_of_ones_own_with_options(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "from simpipe import F, B\n"
        "def order(rank, ranks, microbatches, twice=False):\n"
        "    yield from (F(rank, m) for m in range(microbatches))\n"
        "    yield from (B(rank, m) for m in range(microbatches))\n"
    )
    found = answer(
        "run", "--schedule", "./mine.py:twice=true", "--ranks", "2", "--microbatches", "3", "--json", cwd=tmp_path
    )
    assert found["makespan"] == 12
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.py"]


def test_replay_of_a_table(tmp_path: Path) -> None:
    table = str(Path(__file__).parents[1] / "examples" / "operations.csv")
    found = answer("run", "--schedule", "1f1b", "--costs", table, "--json", cwd=tmp_path)
    assert found["mean_absolute_error"] < 0.005
    one = ["--step", "100", "--worker", "1", "--out", "r.csv"]
    run = simpipe("run", "--schedule", "1f1b", "--costs", table, *one, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "r.csv").exists()


BAD_FILES = {
    "broken.csv": "0F0,0B0\n1F0,1Q0\n",
    "deadlock.csv": "0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0\n",
    "broken.py": "def order(rank, ranks, microbatches):\n    yield nonsense\n",
    "syntax.py": "def order(:\n",
    "empty.py": "",
    "costs.toml": "F = [1, 2, 3]\n",
    "negative.toml": "F = -1\n",
    "<b>.csv": "<script>alert(1)</script>\n",
}


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("run --schedule dualpip", "unknown schedule 'dualpip'; did you mean dualpipe?"),
        ("run --schedule dualpipe --ranks 7", "DualPipe takes an even number of ranks"),
        ("run --schedule dualpipe --ranks 8 --microbatches 10", "at least 2 x ranks = 16, not 10"),
        ("run --schedule 1f1b --ranks 1000000", "1,000,000 ranks x 20 micro-batches"),
        ("run --schedule 1f1b --ranks 0", "takes at least 1 of ranks, not 0"),
        ("run --schedule 1f1b --ranks -3", "takes at least 1 of ranks, not -3"),
        ("run --schedule zb-v --chunks 3", "zb-v has 2 chunks per rank, not 3"),
        ("run --schedule 1f1b:group=2", "1f1b has no option 'group'"),
        ("run --schedule interleaved-1f1b:group=x", "schedule option 'group=x'"),
        ("run --schedule broken.csv", "broken.csv, row 2 (rank 1), cell 2: '1Q0' is no action"),
        ("run --schedule deadlock.csv", "deadlock: "),
        ("run --schedule broken.py", "broken.py, line 2: NameError"),
        ("run --schedule syntax.py", "syntax.py, line 1"),
        ("run --schedule empty.py", "empty.py defines no function order"),
        ("run --schedule absent.csv", "absent.csv cannot be read"),
        ("run --schedule absent.py", "absent.py is no file"),
        ("run --schedule <b>.csv", "<b>.csv, row 1"),
        ("run --schedule deadlock.csv --ranks 3", "deadlock"),
        ("run --costs F=-1", "cost F is -1.0"),
        ("run --costs F=nan", "cost F is nan"),
        ("run --costs F=inf", "cost F is inf"),
        ("run --costs F=", "cost F is ''"),
        ("run --costs G=1", "unknown cost 'G'"),
        ("run --costs costs.toml", "cost F is for 3 stages; the program has 8"),
        ("run --costs negative.toml", "negative.toml: cost F is -1"),
        ("run --costs absent.toml", "absent.toml cannot be read"),
        ("run --costs absent.parquet", "absent.parquet"),
        ("run --engine fast", "--engine is 'fast'; it is auto, simpy or compiled"),
        ("run --out x.pdf", "x.pdf"),
        ("run --out absent/x.html", "absent/x.html"),
        ("run --out a.csv --out x.doc", "x.doc"),
        ("run --step 3", "--step and --worker choose"),
        ("compare --out x.json", "x.json"),
        ("compare --schedule dualpipe --ranks 3", "DualPipe takes an even number"),
        ("schedule 1f1b --format xml", "--format is 'xml'; it is text or csv"),
        ("run --ranks eight", "'eight'"),
    ],
)
def test_every_mistake_is_one_sentence(arguments: str, sentence: str, tmp_path: Path) -> None:
    for name, content in BAD_FILES.items():
        (tmp_path / name).write_text(content)
    run = simpipe(*arguments.split(), cwd=tmp_path)
    assert run.returncode == 2, run.stdout + run.stderr
    assert sentence in run.stderr
    assert "Traceback" not in run.stderr
    assert run.stdout == ""
    assert {path.name for path in tmp_path.iterdir()} == set(BAD_FILES)


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m simpipe schedule 1f1b --ranks 64 --microbatches 512 | head -1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert run.stdout.startswith("rank 0")
    assert "Traceback" not in run.stderr
