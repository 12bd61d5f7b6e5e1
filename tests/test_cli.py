"""The command line: what scripts rely on, and one sentence with exit status 2 for every mistake."""

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simpipe import cli

EXAMPLES = Path(__file__).parents[1] / "examples"


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
    one = ["--step", "100", "--worker", "1", "--out", "r.csv", "--out", "r.html"]
    run = simpipe("run", "--schedule", "1f1b", "--costs", table, *one, cwd=tmp_path)
    assert run.returncode == 0, run.stderr
    assert (tmp_path / "r.csv").exists()
    assert "2 runs compared: measured (step 100, dp_rank 1), simulated" in (tmp_path / "r.html").read_text()


BAD_FILES = {
    "broken.csv": "0F0,0B0\n1F0,1Q0\n",
    "deadlock.csv": "0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0\n",
    "broken.py": "def order(rank, ranks, microbatches):\n    yield nonsense\n",
    "syntax.py": "def order(:\n",
    "empty.py": "",
    "costs.toml": "F = [1, 2, 3]\n",
    "negative.toml": "F = -1\n",
    "endless.py": "from simpipe import F\ndef order(rank, ranks, microbatches):\n    while True: yield F(rank, 0)\n",
    "half.py": "from simpipe import F\ndef order(rank, ranks, microbatches):\n    yield F(rank, 0.5)\n",
    "text.py": "def order(rank, ranks, microbatches):\n    yield '0F0'\n",
    "exit.py": "import sys\nsys.exit(3)\n",
    "needs.py": "def order(rank, ranks, microbatches, depth):\n    yield\n",
    "b.toml": "B = [2, 2, 2, 2]\n",
    "huge.toml": "F = 1" + "0" * 400 + "\n",
    "small.csv": "0F0,0B0\n",
    "bad.yaml": "model: deepseek-v3\nhardwear: h800\n",
    "<b>.csv": "<script>alert(1)</script>\n",
}

PLAN = "plan --model llama3-8b --hardware h800 --gpus 8 --global-batch 16 --sequence 2048"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ("run --schedule dualpip", "unknown schedule 'dualpip'; did you mean dualpipe?"),
        ("run --schedule dualpipe --ranks 7", "DualPipe takes an even number of ranks"),
        ("run --schedule dualpipe --ranks 8 --microbatches 10", "at least 2 x ranks = 16, not 10"),
        ("run --schedule 1f1b --ranks 1000000", "1f1b was asked for 1,000,000 ranks; simpipe takes at most 65,536"),
        ("run --schedule 1f1b --ranks 0", "takes at least 1 of ranks, a whole number, not 0"),
        ("run --schedule 1f1b --ranks -3", "takes at least 1 of ranks, a whole number, not -3"),
        ("run --schedule zb-v --chunks 3", "zb-v has 2 chunks per rank, not 3"),
        ("run --schedule 1f1b:group=2", "1f1b has no option 'group'"),
        ("run --schedule interleaved-1f1b:group=x", "schedule option 'group=x'"),
        ("run --schedule broken.csv", "broken.csv, row 2 (rank 1), cell 2: '1Q0' is no action"),
        ("run --schedule deadlock.csv", "deadlock: "),
        ("run --schedule broken.py", "broken.py, line 2: NameError"),
        ("run --schedule syntax.py", "syntax.py, line 1"),
        ("run --schedule empty.py", "empty.py defines no function order"),
        ("run --schedule absent.csv", "absent.csv cannot be read"),
        ("run --schedule absent.py", "absent.py cannot be read"),
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
        ("run --schedule half.py", "half.py: rank 0, item 0 is Action(stage=0, kind=<Kind.F: 0>, microbatch=0.5)"),
        ("run --schedule text.py", "text.py: rank 0, item 0 is '0F0'; yield F(stage, micro-batch)"),
        ("run --schedule exit.py", "exit.py, line 2: SystemExit: 3"),
        ("run --schedule needs.py", "needs.py: option depth has no default; give it, as depth=1"),
        ("run --schedule 1f1b:ranks=2", "ranks is no option of a schedule; give --ranks"),
        ("run --schedule interleaved-1f1b:chunks=3 --chunks 2", "asks for chunks=3, but --chunks for 2"),
        ("run --schedule eager-1f1b:overlap=7", "option overlap is 7; it takes true or false"),
        ("run --schedule 1f1b --ranks 4 --costs b.toml", "cost F is missing: the program runs 0F0"),
        ("run --costs huge.toml", "huge.toml: cost F is a whole number of more than 20 digits"),
        ("run --costs F=1e308,B=1", "cost F is 1e+308; it takes a finite number, 0 or more, up to 1e+15"),
        ("run --costs F=1", "cost I is missing: the program runs"),
        (
            "compare --schedule 1f1b --schedule small.csv",
            "small.csv has 1 ranks x 1 micro-batches, but",
        ),
        ("compare --costs table.csv", "costs 'table.csv' is no .toml file"),
        ("compare --ranks 0", "there is nothing to compare"),
        ("run --tp 2", "--tp needs a model: give --model and --hardware, or a scenario file"),
        ("run --set overlap=none", "--set needs a model"),
        ("run --model deepseek-v9 --hardware h800 --ranks 4 --gpus 8 --global-batch 64 --sequence 64", "deepseek-v9"),
        ("run --model llama3-8b", "hardware is missing: give --hardware"),
        ("run --model llama3-8b --hardware h800 --ranks 4 --gpus 9 --global-batch 64 --sequence 64", "gpus = 9"),
        ("run --model llama3-8b --hardware h800 --costs F=1", "--costs gives costs by hand"),
        ("run --model llama3-8b --microbatches 8", "--microbatches follows from"),
        ("run bad.yaml", "bad.yaml: unknown key 'hardwear'; did you mean hardware?"),
        ("run absent.yaml", "absent.yaml cannot be read"),
        ("show model nothing", "nothing"),
        ("show hardware h8000", "h8000"),
        ("schedule 1f1b --out folder/", "it names a folder"),
        ("run --costs absent.parquet", "absent.parquet"),
        ("run --engine fast", "--engine is 'fast'; it is auto, simpy or compiled"),
        ("run --out x.gif", "x.gif"),
        ("run --out x.png --width 0", "a picture is 2 to 200 inches wide, not 0"),
        ("run --out x.csv --width 7", "a width is for pictures (.png, .svg, .pdf), and none is written"),
        ("compare --out x.png --width wide", "'wide' is not a number of inches"),
        ("run --out absent/x.html", "absent/x.html"),
        ("run --out a.csv --out x.doc", "x.doc"),
        ("run --step 3", "--step and --worker choose"),
        ("run --draws 5", "--draws needs a model"),
        ("run --model llama3-8b --draws -1", "--draws is -1; it takes 0 to 100,000"),
        (
            "run --costs table.csv --tp 2",
            "--tp is for modelled steps; --costs table.csv is replayed as it was measured",
        ),
        ("run --costs table.csv --draws 2", "--draws is for modelled steps"),
        ("run bad.yaml --costs table.csv", "a scenario is for modelled steps"),
        ("run --costs table.csv --width 5", "a width is for pictures"),
        ("run --costs table.csv --predict second-half --width 5", "--predict takes a measured table"),
        (f"run --costs {EXAMPLES}/operations.csv --ranks 0", "takes at least 1 of ranks, a whole number, not 0"),
        ("run --ranks " + "9" * 5000, "9... is not a whole number"),
        ("run --out " + "x" * 300 + ".html", ".html cannot be written: File name too long"),
        ("savings --model deepseek-v3 --set tp=", "--set tp has no value; write one, as tp=1, or leave it out"),
        ("moe --model deepseek-v3 --set tp=1 --set tp=2", "--set tp is given twice: 1 and 2"),
        ("measure --model llama3-8b --set tp=1 --set tp=2", "--set tp is given twice: 1 and 2"),
        ("moe --model llama3-8b", "llama3-8b has no experts to balance; take a model that has some, as deepseek-v3"),
        ("kv --model deepseek-v9", "did you mean deepseek-v3? (or give a path"),
        (f"{PLAN} --tokens nan", "--tokens is nan; it takes a finite number above 0"),
        (f"{PLAN} --tokens 1e12 --deadline -1", "--deadline is -1; it takes a finite number above 0"),
        (f"{PLAN} --max-memory 0", "--max-memory is 0; it takes a finite number above 0"),
        ("validate --workers 0", "--workers is at least 1, not 0"),
        ("validate --every -1", "--every is at least 1, not -1"),
        ("moe --model deepseek-v3 --placement balenced", "--placement is 'balenced'; it is contiguous or balanced"),
        ("moe --model deepseek-v3 --strategy none --strategy bais", "'bais'"),
        ("moe --model deepseek-v3 --hardware h801", "'h801'; did you mean h800?"),
        ("moe --model deepseek-v3 --seen nan", "--seen is nan; it takes tokens, 0 or more, as 14.3e12"),
        ("kv --model deepseek-v3 --ep 0", "ep must be a whole number from 1 to 1000000000, not 0"),
        ("calibrate absent.csv --out p.toml --out no/r.html", "no/r.html cannot be written: there is no folder no"),
        ("calibrate absent.csv --out p.txt", "p.txt: its ending names no format; there are .html, .toml"),
        ("import-trace absent.json --out no/c.toml", "no/c.toml cannot be written: there is no folder no"),
        ("compare --out x.json", "x.json"),
        ("compare --schedule dualpipe --ranks 3", "DualPipe takes an even number"),
        ("schedule 1f1b --format xml", "--format is 'xml'; it is text, csv or lowered"),
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


def test_an_endless_schedule_is_stopped(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text(BAD_FILES["endless.py"])
    run = simpipe("run", "--schedule", "endless.py", "--ranks", "1", "--json", cwd=tmp_path)
    assert run.returncode == 2
    assert "more than 20,000,000 slots" in run.stderr


def test_a_schedule_file_may_print(tmp_path: Path) -> None:
    (tmp_path / "loud.py").write_text("print('hello')\n" + (EXAMPLES / "my_schedule.py").read_text())
    run = simpipe("run", "--schedule", "loud.py", "--ranks", "2", "--microbatches", "4", "--json", cwd=tmp_path)
    assert json.loads(run.stdout)["schedule"] == "loud"
    assert run.stderr.count("hello") == 1


def test_order_text_with_posts_reads_back_blocking_times_too(tmp_path: Path) -> None:
    size = ("--ranks", "8", "--microbatches", "20")
    simpipe("schedule", "dualpipe", *size, "--format", "lowered", "--out", "order.csv", cwd=tmp_path)
    found = answer(
        "run", "--schedule", "order.csv", "--costs", "FB=3,p2p=0.5,exchange=blocking", "--json", cwd=tmp_path
    )
    assert found["makespan"] == 82


def test_a_modelled_step_from_flags_and_from_a_file() -> None:
    sizes = {"ranks": "4", "gpus": "64", "tp": "4", "global-batch": "32", "sequence": "4096", "zero": "1"}
    flags = [part for name, value in sizes.items() for part in (f"--{name}", value)]
    found = answer("run", "--model", "llama3-8b", "--hardware", "h100", "--schedule", "1f1b", *flags, "--json")
    assert found["step_time_s"] == found["makespan"]
    assert 0.1 < found["mfu"] < 0.8
    assert found["memory"]["peak_bytes"] == pytest.approx(sum(found["memory"]["by_kind"].values()))
    assert all(rank["memory"]["peak_bytes"] > 0 for rank in found["per_rank"])
    assert all(rank["exposed_communication_s"] >= 0 for rank in found["per_rank"])
    scenario = str(EXAMPLES / "deepseek_v3.yaml")
    small = answer("run", scenario, "--global-batch", "4096", "--schedule", "1f1b", "--json")
    assert small["microbatches"] == 32
    assert small["exposed_communication_s"] > 0


def test_profiles_are_listed_and_shown() -> None:
    assert "deepseek-v3" in {row["name"] for row in answer("list", "models", "--json")}
    assert "h800" in {row["name"] for row in answer("list", "hardware", "--json")}
    facts = answer("show", "model", "deepseek-v3", "--json")
    assert round(facts["parameters"]["all"] / 1e9) == 671
    assert round(facts["activated_parameters"]["all"] / 1e9) == 37
    assert facts["kv_cache_bytes_per_token"] == 70272
    assert any(
        row["key"] == "gpu.sms" and row["value"].startswith("132")
        for row in answer("show", "hardware", "h800", "--json")
    )


def test_verbs_are_listed_with_whole_sentences() -> None:
    for group in ((), ("list",), ("show",), ("tune",)):
        printed = simpipe(*group, "--help").stdout
        assert "..." not in printed.partition("Commands:")[2]
        assert all(line.isspace() or len(line) <= 80 for line in printed.splitlines())
    assert "its memory." in " ".join(simpipe("--help").stdout.split())


def test_a_folder_that_is_gone_and_too_little_memory_are_told(tmp_path: Path) -> None:
    (tmp_path / "here").mkdir()
    sizes = "--gpus 8 --global-batch 8 --sequence 64 --schedule 1f1b"
    asked = f"{sys.executable} -m simpipe run --model llama3-8b --hardware h800 --ranks 4 {sizes} --json"
    gone = simpipe_in_shell(f"rmdir ../here && {asked}", tmp_path / "here")
    assert (gone.returncode, gone.stderr) == (2, "simpipe: the current folder is not there any more\n")
    (tmp_path / "endless.toml").symlink_to("/dev/zero")
    asked = f"{sys.executable} -m simpipe run --costs endless.toml"
    small = simpipe_in_shell(f"ulimit -v 1500000 && {asked}", tmp_path)
    assert (small.returncode, small.stderr) == (2, "simpipe: there is not enough memory for this\n")


def test_closed_streams_are_no_error(tmp_path: Path) -> None:
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        run = simpipe_in_shell(f"{sys.executable} -m simpipe run --json --out order.csv {closed}", tmp_path)
        assert (run.returncode, run.stderr) == (0, "")
        assert (tmp_path / "order.csv").read_text().startswith("task,rank,")
        (tmp_path / "order.csv").unlink()


def simpipe_in_shell(command: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, shell=True, capture_output=True, text=True, cwd=folder, check=False)


def test_a_full_device_is_told() -> None:
    run = subprocess.run(
        f"{sys.executable} -m simpipe list schedules > /dev/full", shell=True, capture_output=True, text=True
    )
    assert run.returncode == 2
    assert run.stderr == "simpipe: standard output cannot be written: No space left on device\n"


def test_a_closed_pipe_is_no_error() -> None:
    command = f"{sys.executable} -m simpipe schedule 1f1b --ranks 64 --microbatches 512 | head -1"
    run = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert run.stdout.startswith("rank 0")
    assert "Traceback" not in run.stderr


def test_an_interrupt_inside_compiled_code_is_an_interrupt(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numba hands one on as the cause of a SystemError."""

    def interrupted(**_: object) -> None:
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt as error:
            raise SystemError("returned a result with an exception set") from error

    monkeypatch.setattr(cli, "app", interrupted)
    with pytest.raises(SystemExit) as left:
        cli.main()
    assert left.value.code == 130


def test_neither_costs_nor_profiles_are_written_over(tmp_path: Path) -> None:
    table = tmp_path / "operations.csv"
    table.write_bytes((EXAMPLES / "operations.csv").read_bytes())
    replay = ["run", "--schedule", "1f1b", "--costs", str(table), "--step", "100", "--worker", "0"]
    recorded = tmp_path / "profiles"
    recorded.mkdir()
    for path in (EXAMPLES.parent / "tests" / "recorded").glob("GPipe-*.json.gz"):
        (recorded / path.name).write_bytes(path.read_bytes())
    rank = recorded / "GPipe-rank0.json.gz"
    for command, out in (
        (replay, table),
        (["compare", "--trace", str(table), "--costs", "F=1,B=2"], table),
        (["import-trace", str(recorded)], rank),
    ):
        before = out.read_bytes()
        done = simpipe(*command, "--out", str(out))
        assert (done.returncode, done.stderr) == (2, f"simpipe: {out} cannot be written: it is read; name another\n")
        assert out.read_bytes() == before
