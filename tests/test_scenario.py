"""Scenario files: what they hold, that they read back equal, and one sentence for whatever is wrong with one."""

import os
import pickle
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from simpipe.schedules import program
from simpipe.simulator.costs.cluster import FOLDER, ClusterError
from simpipe.simulator.costs.model import ModelError
from simpipe.simulator.costs.model_files import PROFILES
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.errors import OutputError, SimpipeError
from simpipe.simulator.scenario import KEYS, Scenario, ScenarioError, ScheduleSpec
from simpipe.simulator.yaml_file import MAX_FILE_BYTES

EXAMPLE = Path(__file__).parents[1] / "examples" / "deepseek_v3.yaml"
PUBLISHED = Scenario.read(EXAMPLE)
SMALL = "model: llama3-8b\nhardware: h100\nschedule: 1f1b\nranks: 4\ngpus: 8\nglobal_batch: 16\nsequence: 8192\n"

File = Callable[[str | bytes], Path]


@pytest.fixture
def file(tmp_path: Path) -> File:
    def write(content: str | bytes) -> Path:
        path = tmp_path / "case.yaml"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path

    return write


# What a file holds.


def test_the_example_is_deepseek_v3_as_published() -> None:
    p = PUBLISHED.parallel
    assert (PUBLISHED.model, PUBLISHED.hardware, PUBLISHED.schedule) == ("deepseek-v3", "h800", "dualpipe")
    assert (p.ranks, p.ep, p.gpus, p.global_batch, p.sequence, p.zero) == (16, 64, 2048, 15360, 4096, 1)
    assert (p.dp, p.edp, p.microbatches) == (128, 2, 120)
    assert p.recompute == {"norms", "mla_up", "swiglu"}
    assert (p.compute_format, p.dispatch_format, p.combine_format) == ("fp8_block", "fp8", "bf16")
    assert (p.master_bytes, p.gradient_bytes, p.moment_bytes, p.communication_sms) == (4, 4, 2, 20)
    assert PUBLISHED.with_(precision="fp8_block") == PUBLISHED


def test_load_reads_what_it_names() -> None:
    loaded = PUBLISHED.load()
    assert (loaded.model.name, loaded.cluster.name) == ("deepseek-v3", "h800")
    assert loaded.parallel == PUBLISHED.parallel
    assert loaded.schedule == ScheduleSpec("dualpipe", None, {})
    spec, sizes = loaded.schedule, (loaded.parallel.ranks, loaded.parallel.microbatches)
    assert program(spec.name, *sizes, spec.chunks, **spec.options).ranks == 16


def test_schedule_options_and_chunks(file: File) -> None:
    read = Scenario.read(file(SMALL), schedule="interleaved-1f1b:chunks=2,group=8")
    assert read.load().schedule == ScheduleSpec("interleaved-1f1b", 2, {"group": 8})
    assert Scenario.read(file(SMALL), chunks=2).load().schedule == ScheduleSpec("1f1b", 2, {})
    with pytest.raises(ScenarioError, match=r"case.yaml: chunks = 4, but schedule = interleaved-1f1b:chunks=2 says 2$"):
        Scenario.read(file(SMALL), schedule="interleaved-1f1b:chunks=2", chunks=4).load()


def test_every_field_is_a_key_and_explained() -> None:
    own = {f.name for f in fields(Scenario)} - {"parallel", "source"}
    of_parallel = {f.name for f in fields(Parallel)} - {"stage_layers"} | {"layers", "precision"}
    assert {*KEYS} == own | of_parallel
    assert [*PUBLISHED.to_dict()] == [key for key in KEYS if key not in ("chunks", "precision")]


def test_defaults_are_left_out(file: File) -> None:
    assert Scenario.read(file(SMALL)).parallel == Parallel(ranks=4, gpus=8, global_batch=16, sequence=8192)


def test_overrides_replace_and_complete(file: File) -> None:
    path = file(SMALL.replace("gpus: 8\n", ""))
    with pytest.raises(ScenarioError, match=r"case.yaml: gpus is missing$"):
        Scenario.read(path)
    read = Scenario.read(path, gpus=16, tp=2, hardware=None)
    assert (read.parallel.gpus, read.parallel.dp, read.hardware) == (16, 2, "h100")
    assert read.with_(gpus=8, tp=1) == Scenario.read(file(SMALL))
    assert read.with_(precision="fp8", dispatch_format="bf16").with_(precision="bf16") == read


def test_yaml_1_2(file: File) -> None:
    text = SMALL.replace("sequence: 8192", "sequence: 0x2000") + "expert_imbalance: 1e0\noverlap: none\n"
    assert Scenario.read(file("\ufeff" + text)).parallel.sequence == 8192
    with pytest.raises(ScenarioError, match="gather_overlap must be true or false, not 'no'"):
        Scenario.read(file(SMALL + "gather_overlap: no\n"))


@pytest.mark.parametrize(
    "text", ["stragglers: {3: 1.2, 0: 2}", "stragglers: '3: 1.2,0:2'", "stragglers: {'3': 1.2, 0: 2}"]
)
def test_stragglers(text: str, file: File) -> None:
    assert Scenario.read(file(SMALL + text)).stragglers == {3: 1.2, 0: 2}


def test_lengths(file: File) -> None:
    listed = Scenario.read(file(SMALL + "lengths: [" + "8192, " * 7 + "128]"))
    assert listed.lengths == (8192,) * 7 + (128,)
    assert listed == listed.with_(lengths="8192," * 7 + "128")
    assert listed.with_(lengths=[]) == Scenario.read(file(SMALL))


def test_layers_as_a_list_or_a_layout(file: File) -> None:
    assert Scenario.read(file(SMALL + "layers: [7, 9, 9, 7]")).parallel.stage_layers == (7, 9, 9, 7)
    assert Scenario.read(file(SMALL + "layers: 7, 9, 9, 7")).parallel.stage_layers == (7, 9, 9, 7)
    assert Scenario.read(file(SMALL + "layers: Et*7|(t*9|)*2,t*7L")).parallel.stage_layers == "Et*7|(t*9|)*2,t*7L"


def test_it_can_be_a_key_and_sent_to_another_process() -> None:
    case = PUBLISHED.with_(stragglers={3: 1.2})
    assert pickle.loads(pickle.dumps(case)) == case
    assert len({case, PUBLISHED, PUBLISHED.with_(tp=1)}) == 2


# Reading back.


def test_a_written_file_reads_back_equal_and_explains_itself(tmp_path: Path) -> None:
    case = PUBLISHED.with_(
        stragglers={3: 1.25, 0: 1e-6}, lengths=[4096] * 120, chunks=1, layers="Et*3|(tt|)*29,m|L", recompute="none"
    )
    case.write(tmp_path / "out.yaml")
    assert Scenario.read(tmp_path / "out.yaml") == case
    lines = (tmp_path / "out.yaml").read_text().splitlines()
    assert lines[:2] == [f"# {KEYS['model']}", "model: deepseek-v3"]
    assert [line.partition(":")[0] for line in lines[1::2]] == [*case.to_dict()]
    assert all(line.startswith("# ") for line in lines[::2])


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.text(min_size=1, max_size=20).filter(str.isprintable),
    factors=st.dictionaries(st.integers(0, 15), st.floats(1e-9, 1e9)),
    imbalance=st.floats(1, 1e9),
)
def test_any_scenario_reads_back_equal(name: str, factors: dict[int, float], imbalance: float, tmp_path: Path) -> None:
    case = PUBLISHED.with_(model=name, schedule=name, stragglers=factors, expert_imbalance=imbalance)
    case.write(tmp_path / "out.yaml")
    assert Scenario.read(tmp_path / "out.yaml") == case
    assert Scenario.of(case.to_dict()) == case


def test_paths_in_a_file_start_at_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder, profile in (("models", PROFILES / "llama3-8b.toml"), ("machines", FOLDER / "h100.toml")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "mine.toml").write_bytes(profile.read_bytes())
    (tmp_path / "cases").mkdir()
    text = SMALL.replace("llama3-8b", "../models/mine.toml").replace("h100", "../machines/mine.toml")
    (tmp_path / "cases" / "case.yaml").write_text(text.replace("1f1b", "./mine.py:group=8"))
    read = Scenario.read(tmp_path / "cases" / "case.yaml")
    assert read.model == str(tmp_path / "models" / "mine.toml")
    assert read.schedule == f"{tmp_path}/cases/mine.py:group=8"
    assert read.load().schedule == ScheduleSpec(f"{tmp_path}/cases/mine.py", None, {"group": 8})
    read.write(tmp_path / "again.yaml")
    assert "model: models/mine.toml" in (tmp_path / "again.yaml").read_text()
    assert "schedule: cases/mine.py:group=8" in (tmp_path / "again.yaml").read_text()
    assert Scenario.read(tmp_path / "again.yaml") == read
    monkeypatch.chdir(tmp_path / "models")
    assert read.with_(model="mine.toml") == read
    read.write("here.yaml")
    assert "model: ./mine.toml" in Path("here.yaml").read_text()
    assert Scenario.read("here.yaml").load().model.layers == 32


def test_a_folder_of_a_huggingface_model(tmp_path: Path) -> None:
    case = PUBLISHED.with_(model=str(tmp_path / "mymodel"))
    case.write(tmp_path / "out.yaml")
    assert "model: ./mymodel\n" in (tmp_path / "out.yaml").read_text()
    assert Scenario.read(tmp_path / "out.yaml") == case


def test_a_file_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot be written"):
        PUBLISHED.write(tmp_path / "missing" / "out.yaml")


# What is wrong.


def refusal(path: Path, **overrides: Any) -> str:
    """The one sentence about a file."""
    with pytest.raises(ScenarioError) as error:
        Scenario.read(path, **overrides)
    sentence = str(error.value)
    assert sentence.startswith(str(path))
    assert sentence.isprintable()
    assert len(sentence) < len(str(path)) + 500
    return sentence.removeprefix(str(path))


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("tp: 2\ntp: 4", ' is no YAML: line 9: duplicate key "tp" with value "4" (original value: "2")'),
        ("tp: [", " is no YAML: line 8: expected the node content, but found '<stream end>'"),
        ("tp: 2\n ep: 2", " is no YAML: line 9: mapping values are not allowed here"),
        ("tp: !!python/object:os.system x", " is no YAML: line 8: could not determine a constructor for the tag"),
        ("tp: !<%1b[31m> x", " is no YAML: line 8: could not determine a constructor for the tag"),
        ("tp: !!int x", " is no YAML: invalid literal for int() with base 10: 'x'"),
        ("tp: 2024-99-99", " is no YAML: month must be in 1..12"),
        ("tp: " + "9" * 5000, " is no YAML: Exceeds the limit (4300 digits)"),
        ("---\ntp: 2", " is no YAML: line 8: but found another document"),
        ("tp: &a 1\nep: *a", " line 9: no alias is taken, *a"),
        ("tp: " + "[" * 9, " line 8: is nested deeper than 8 levels"),
        ("\x00", " is no YAML: unacceptable character #x0000"),
        ("3: 4", ": unknown key 3; a key is text"),
        ("[tp]: 4", ": unknown key a list of 1; a key is text"),
        ("model_name: x", ": unknown key 'model_name'; did you mean model?"),
        ("TP: 2", ": unknown key 'TP'; did you mean tp?"),
        ("tp:", ": tp must be a whole number from 1 to 1000000000, not null"),
        ("tp: '2'", ": tp must be a whole number from 1 to 1000000000, not '2'"),
        ("tp: 2.0", ": tp must be a whole number from 1 to 1000000000, not 2.0"),
        ("tp: true", ": tp must be a whole number from 1 to 1000000000, not true"),
        ("tp: {a: 1}", ": tp must be a whole number from 1 to 1000000000, not a table"),
        ("tp: 2024-01-01", ": tp must be a whole number from 1 to 1000000000, not datetime.date(2024, 1, 1)"),
        ("tp: 3", ": gpus = 8 is not a multiple of ranks x tp x cp = 4 x 3 x 1 = 12"),
        (
            "expert_imbalance: .nan",
            ": expert_imbalance must be a number, at least 1, or a list: of NIC, NVLink and experts, not nan",
        ),
        ("chunks: 0", ": chunks must be a whole number, at least 1, not 0"),
        ("stragglers: {4: 1.2}", ": stragglers names rank 4, but ranks = 4 are 0 to 3"),
        ("stragglers: {-1: 1.2}", ": stragglers names rank -1, but ranks = 4 are 0 to 3"),
        ("stragglers: {1: 0}", ": stragglers must be {rank: times as long}, as {3: 1.2}, not a table"),
        ("stragglers: {1: .inf}", ": stragglers must be {rank: times as long}, as {3: 1.2}, not a table"),
        ("stragglers: {x: 1}", ": stragglers must be {rank: times as long}, as {3: 1.2}, not a table"),
        ("stragglers: 3=1.2", ": stragglers must be {rank: times as long}, as {3: 1.2}, not '3=1.2'"),
        ("stragglers: '3: 1, 3: 2'", ": stragglers must be {rank: times as long}, as {3: 1.2}, not '3: 1, 3: 2'"),
        ("lengths: [8192]", ": lengths holds 1 micro-batches, but global_batch / (dp x microbatch_size) = 8"),
        ("lengths: [8192, x]", ": lengths must be a list of whole numbers, at least 1, not a list of 2"),
        ("lengths: 8192 x 8", ": lengths must be a list of whole numbers, at least 1, not '8192 x 8'"),
        ("tp: 2\nlengths: 2, 4, 6, 8, 8, 8, 8, 8\nmicrobatch_size: 2\ncp: 1\nep: 3", ": gpus / ranks = 2 is not a"),
        ("precision: int4", ": precision must be one of bf16, fp8, fp8_block, not 'int4'"),
        ("precision: [bf16]", ": precision must be one of bf16, fp8, fp8_block, not a list of 1"),
        ("recompute: norms, swigl", ": recompute holds 'swigl'; did you mean swiglu?"),
        ("layers: Et*32|||", ": layers = 'Et*32|||' must hold one E, then all t, then m, then one L"),
    ],
)
def test_a_wrong_line_gets_one_sentence(text: str, sentence: str, file: File) -> None:
    assert refusal(file(SMALL + text)).startswith(sentence)


def test_lengths_that_context_parallelism_cannot_split(file: File) -> None:
    text = SMALL.replace("gpus: 8", "gpus: 32") + "cp: 8\nlengths: [" + "8192, " * 15 + "8100]"
    assert refusal(file(text)) == ": lengths[15] = 8100 is not a multiple of cp = 8"


@pytest.mark.parametrize("value", ["3", "''", '"a\\0b"', '"a\\nb"', '"\\ud800"', "[a]", "null", "'" + "x" * 5000 + "'"])
def test_names_are_printable_text(value: str, file: File) -> None:
    assert refusal(file(SMALL.replace("llama3-8b", value))).startswith(": model must be printable text, not ")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (b"", " must hold keys and values, as `tp: 8`, not null"),
        (b"- tp", " must hold keys and values, as `tp: 8`, not a list of 1"),
        (b"tp", " must hold keys and values, as `tp: 8`, not 'tp'"),
        (b"tp: \xff", " is no YAML: byte 4 is not UTF-8"),
        (b"#" * (MAX_FILE_BYTES + 1), f" is no YAML to read: it is larger than {MAX_FILE_BYTES} bytes"),
        (b"[" * MAX_FILE_BYTES, " line 1: is nested deeper than 8 levels"),
        (b"- " * (MAX_FILE_BYTES // 2), " line 1: is nested deeper than 8 levels"),
        (b"a: &a {x: 1}\nb: {<<: [*a, *a]}", " line 2: no alias is taken, *a"),
        (SMALL.encode("utf-16"), " is no YAML: byte 0 is not UTF-8"),
    ],
)
def test_a_file_that_is_no_scenario(content: bytes, sentence: str, file: File) -> None:
    assert refusal(file(content)) == sentence


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    assert refusal(tmp_path / "none.yaml") == " cannot be read: No such file or directory"
    assert refusal(tmp_path) == " cannot be read: Is a directory"


def test_wrong_overrides() -> None:
    assert refusal(EXAMPLE, tp=3) == ": gpus = 2048 is not a multiple of ranks x tp x cp = 16 x 3 x 1 = 48"
    assert refusal(EXAMPLE, rank=3) == ": unknown key 'rank'; did you mean ranks?"
    with pytest.raises(ScenarioError, match=r"^model is missing$"):
        Scenario.of({"tp": 3})
    with pytest.raises(ScenarioError, match=r"^precision must be one of"):
        Scenario.of({"precision": 3})


@pytest.mark.parametrize(
    ("overrides", "error", "sentence"),
    [
        ({"model": "deepseek-v4"}, ModelError, "no model 'deepseek-v4'; did you mean deepseek-v3?"),
        ({"hardware": "h8000"}, ClusterError, "no hardware profile is called 'h8000'; did you mean h800?"),
        ({"hardware": "a100"}, ClusterError, "a100 has no peak for 'fp8'"),
        ({"model": "llama3-8b"}, ScenarioError, "recompute holds mla_up, but llama3-8b has no latent attention"),
        ({"schedule": "dualpipe:chunks=x"}, SimpipeError, "schedule option 'chunks=x' is not"),
    ],
)
def test_what_it_names_is_not_there(overrides: dict[str, Any], error: type[SimpipeError], sentence: str) -> None:
    with pytest.raises(error) as caught:
        PUBLISHED.with_(**overrides).load()
    assert str(caught.value).startswith(f"{EXAMPLE}: {sentence}")


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject, tmp_path: Path) -> None:
    text = SMALL + "stragglers: {3: 1.2}\nrecompute: [norms, core]\nlayers: Et*8|(t*8|)*2t*8L\n"
    where = data.draw(st.integers(0, len(text)))
    damage = data.draw(st.text("[]{}:,-?!&*#|>'\"%@` \n\t0e.~<=", max_size=6) | st.text(max_size=3))
    path = tmp_path / "case.yaml"
    path.write_bytes((text[:where] + damage + text[where + len(damage) :]).encode("utf-8", "surrogatepass"))
    sentence = ""
    try:
        read = Scenario.read(path)
    except ScenarioError as error:
        sentence = str(error)
    if sentence:
        assert sentence.startswith(os.fspath(path))
        assert sentence.isprintable()
    else:
        assert Scenario.of(read.to_dict()) == read
