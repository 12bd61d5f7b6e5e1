"""Views: every format writes what the trace says, twice the same bytes, and nothing half-written."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest

import simpipe
from simpipe.simulator import views
from simpipe.simulator.errors import OutputError
from simpipe.simulator.trace import Trace
from simpipe.simulator.views import html, lanes, palette, picture

ENDINGS = sorted(views.writers())
HOSTILE = "<script>alert(1)</script>$\\frac{</script><b>&amp;<br>%{x}\x00\ud800"


def run(name: str, ranks: int, microbatches: int, rename: str | None = None, **costs: object) -> Trace:
    program = simpipe.program(name, ranks=ranks, microbatches=microbatches)
    return simpipe.simulate(replace(program, name=rename or name), simpipe.Costs(**costs))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def dualpipe() -> Trace:
    return run("dualpipe", 4, 8, FB=3, p2p=0.25, activation_bytes=1e9, barrier=True, optimizer=1.5)


@pytest.fixture(scope="module")
def large() -> Trace:
    return run("1f1b", 16, 4000, p2p=0.5)


@pytest.fixture(scope="module")
def events(dualpipe: Trace, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    path = tmp_path_factory.mktemp("chrome") / "x.json.gz"
    views.write(dualpipe, path)
    return read_chrome(path)


def read_chrome(path: Path) -> list[dict]:
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.name.endswith(".gz") else raw)["traceEvents"]


def test_the_endings_are_those_promised() -> None:
    assert ENDINGS == [".csv", ".html", ".json", ".json.gz", ".png", ".svg"]


@pytest.mark.parametrize("ending", ENDINGS)
class TestEveryFormat:
    def test_same_input_same_bytes(self, dualpipe: Trace, tmp_path: Path, ending: str) -> None:
        first, second = tmp_path / f"a{ending}", tmp_path / f"other{ending}"
        assert views.write(dualpipe, first) == [first]
        views.write(dualpipe, str(second))
        assert first.stat().st_size > 500
        assert first.read_bytes() == second.read_bytes()

    def test_a_hostile_name_stays_text(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"x{ending}"
        views.write(run("1f1b", 2, 3, HOSTILE), path)
        text = (gzip.decompress(path.read_bytes()) if ending.endswith(".gz") else path.read_bytes()).decode("latin-1")
        assert "<script>alert(1)" not in text
        assert "<b>&amp;<br>" not in text
        assert "$\\frac{</script>" not in text

    def test_an_error_leaves_nothing_behind_and_what_was_there(
        self, dualpipe: Trace, tmp_path: Path, ending: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def break_off(trace: Trace, path: Path) -> None:
            path.write_text("half")
            raise OSError(28, "No space left on device")

        path = tmp_path / f"x{ending}"
        path.write_text("before")
        monkeypatch.setattr(views, "writers", lambda: dict.fromkeys(ENDINGS, break_off))
        with pytest.raises(OutputError, match="No space left on device"):
            views.write(dualpipe, path)
        assert [file.read_text() for file in tmp_path.iterdir()] == ["before"]

    def test_a_zero_long_run_is_drawn(self, tmp_path: Path, ending: str) -> None:
        views.write(run("gpipe", 2, 2, F=0, I=0, W=0), tmp_path / f"x{ending}")

    def test_a_folder_in_the_way(self, dualpipe: Trace, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"x{ending}"
        path.mkdir()
        with pytest.raises(OutputError, match="is a folder") as caught:
            views.write(dualpipe, path)
        assert "\n" not in str(caught.value)
        assert list(path.iterdir()) == []


class TestPaths:
    @pytest.mark.parametrize("name", ["run.pdf", "run", ".hidden", "run.gz"])
    def test_an_unknown_ending_names_those_there_are(self, dualpipe: Trace, tmp_path: Path, name: str) -> None:
        with pytest.raises(OutputError, match=r"names no format; there are \.csv, \.html, \.json, \.json\.gz, \.png"):
            views.write(dualpipe, tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["file.txt/x.csv", "nowhere/x.csv", "x" * 300 + ".csv", "file.txt/"])
    def test_where_nothing_can_be_written(self, dualpipe: Trace, tmp_path: Path, name: str) -> None:
        (tmp_path / "file.txt").touch()
        with pytest.raises(OutputError, match=r"cannot be (written|made): [A-Z]"):
            views.write(dualpipe, f"{tmp_path}/{name}")
        assert [file.name for file in tmp_path.iterdir()] == ["file.txt"]

    def test_a_device_is_not_replaced(self, dualpipe: Trace, tmp_path: Path) -> None:
        (tmp_path / "x.csv").symlink_to("/dev/null")
        with pytest.raises(OutputError, match="no regular file"):
            views.write(dualpipe, tmp_path / "x.csv")

    def test_a_link_is_written_through(self, dualpipe: Trace, tmp_path: Path) -> None:
        (tmp_path / "link.csv").symlink_to(tmp_path / "target.csv")
        views.write(dualpipe, tmp_path / "link.csv")
        assert (tmp_path / "link.csv").is_symlink()
        assert (tmp_path / "target.csv").stat().st_size > 0

    @pytest.mark.parametrize("new", [True, False])
    def test_a_folder_takes_the_default_set(self, dualpipe: Trace, tmp_path: Path, new: bool) -> None:
        written = views.write(dualpipe, f"{tmp_path}/a/b/" if new else tmp_path)
        assert [file.name for file in written] == ["timeline.html", "timeline.png", "tasks.csv", "trace.json.gz"]
        assert all(file.stat().st_size for file in written)

    def test_capitals_are_endings_too(self, dualpipe: Trace, tmp_path: Path) -> None:
        views.write(dualpipe, tmp_path / "X.JSON.GZ")
        assert gzip.decompress((tmp_path / "X.JSON.GZ").read_bytes()).startswith(b"{")


@pytest.mark.parametrize("costs", [{"FB": 3, "barrier": True}, {"F": 0.1, "I": 1 / 3, "W": 1e-7, "p2p": 1e-17 / 3}])
def test_the_table_is_the_frame_to_the_last_bit(tmp_path: Path, costs: dict[str, float]) -> None:
    trace = run("dualpipe", 4, 8, **costs)
    views.write(trace, tmp_path / "x.csv")
    read = pd.read_csv(tmp_path / "x.csv", dtype=str, keep_default_na=False)
    frame = trace.to_frame().rename(columns={"start": "start_s", "end": "end_s", "slack": "slack_s"})
    assert list(read.columns) == list(frame.columns)
    for column, values in frame.items():
        of = float if values.dtype == float else str
        assert read[column].map(of).tolist() == values.map(of).tolist()


class TestChrome:
    def test_a_slice_for_each_action(self, dualpipe: Trace, events: list[dict]) -> None:
        slices = [event for event in events if event["ph"] == "X"]
        frame = dualpipe.to_frame().query("slot >= 0")
        found = sorted((e["pid"], e["cat"], e["ts"], e["dur"], e["args"]["microbatch"]) for e in slices)
        columns = (frame["rank"], frame["kind"], frame["start"] * 1e6, (frame["end"] - frame["start"]) * 1e6)
        assert found == sorted(zip(*columns, frame["microbatch"], strict=True))

    def test_slices_of_a_thread_do_not_overlap(self, events: list[dict]) -> None:
        ends: dict[tuple[int, int], float] = {}
        for event in sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts"]):
            thread = event["pid"], event["tid"]
            assert event["ts"] >= ends.get(thread, 0.0)
            ends[thread] = event["ts"] + event["dur"]

    def test_a_flow_for_each_message(self, dualpipe: Trace, events: list[dict]) -> None:
        slices = [e for e in events if e["ph"] == "X"]
        starts = {e["id"]: e for e in events if e["ph"] == "s"}
        ends = {e["id"]: e for e in events if e["ph"] == "f"}
        graph, program = dualpipe.graph, dualpipe.program
        assert sorted(starts) == sorted(ends) == np.flatnonzero(graph.message).tolist()
        for task in starts:
            for event, action in ((starts[task], graph.action[task]), (ends[task], graph.partner[task])):
                (held,) = (
                    e
                    for e in slices
                    if (e["pid"], e["tid"]) == (event["pid"], event["tid"])
                    and e["ts"] <= event["ts"] < e["ts"] + e["dur"]
                )
                assert held["name"] == program.action_text(int(action))

    def test_counters_reach_the_peak_and_end_at_nothing(self, dualpipe: Trace, events: list[dict]) -> None:
        for rank, figures in enumerate(simpipe.summarize(dualpipe).per_rank):
            live = [e["args"]["live"] for e in events if e["ph"] == "C" and e["pid"] == rank]
            assert max(live) == figures.peak_activation_bytes > 0
            assert live[-1] == 0

    def test_ranks_are_named_in_order(self, events: list[dict]) -> None:
        names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
        assert names == [f"Rank {rank}" for rank in range(4)]


class TestLanes:
    def test_columns_keep_the_area(self, dualpipe: Trace) -> None:
        drawn = lanes.blocks(dualpipe)
        merged = lanes.columns(dualpipe, drawn, 37)
        for kind in palette.KINDS:
            part = drawn[drawn["kind"] == kind]
            area = ((part["end"] - part["start"]) * part["height"] / lanes.LANE).sum()
            assert merged[merged["kind"] == kind]["seconds"].sum() == pytest.approx(area)
        stacked = merged.groupby(["rank", "start"])["height"].sum()
        assert stacked.max() <= lanes.LANE + 1e-9

    def test_steps_are_the_levels(self) -> None:
        steps = lanes.steps(trace := run("1f1b", 2, 2), trace.activations)
        points = list(zip(steps.rank.tolist(), steps.time.tolist(), steps.value.tolist(), strict=True))
        assert points == [
            (0, 0, 1), (0, 1, 2), (0, 6, 1), (0, 9, 0),
            (1, 1, 1), (1, 7, 0),
        ]  # fmt: skip

    def test_thinned_memory_keeps_peaks(self, dualpipe: Trace) -> None:
        steps = lanes.steps(dualpipe, dualpipe.activations)
        thin = lanes.thinned(steps, 4, dualpipe.makespan, 5)
        for rank in range(4):
            assert thin.value[thin.rank == rank].max() == steps.value[steps.rank == rank].max()
        assert len(thin.time) <= 20


class TestLarge:
    def test_the_page_merges_and_says_so(self, large: Trace) -> None:
        figure, notes = html.draw(large)
        bars = sum(len(bar.base) for bar in figure.data if bar.type == "bar")
        assert bars < 2 * html.MERGED
        assert notes[0].startswith("128,000 blocks are too many to draw: each column stands for")
        assert any("Memory" in note for note in notes)

    def test_numbers_are_left_out_before_blocks_are(self) -> None:
        figure, notes = html.draw(run("1f1b", 8, 600))
        assert notes == ["9,600 blocks are drawn without their micro-batch numbers: hover to read them."]
        assert sum(len(bar.base) for bar in figure.data if bar.type == "bar" and "bubble" not in bar.name) == 9600

    @pytest.mark.parametrize(("ending", "limit"), [(".html", 9e6), (".svg", 1e6), (".png", 1e6)])
    def test_drawings_stay_small(self, large: Trace, tmp_path: Path, ending: str, limit: float) -> None:
        views.write(large, tmp_path / f"x{ending}")
        assert (tmp_path / f"x{ending}").stat().st_size < limit


class TestPicture:
    def test_blocks_lie_where_the_trace_says(self, dualpipe: Trace) -> None:
        axes = picture.draw(dualpipe)
        boxes = [path.get_extents() for c in axes.collections if c.get_label() != "F&B" for path in c.get_paths()]
        drawn = lanes.blocks(dualpipe)
        found = sorted((box.x0, box.x1, round(box.y0, 9)) for box in boxes)
        assert found == sorted(
            zip(drawn["start"], drawn["end"], (drawn["y"] - drawn["height"] / 2).round(9), strict=True)
        )
        assert len(axes.texts) == (drawn["microbatch"] >= 0).sum()

    def test_an_svg_is_xml(self, tmp_path: Path) -> None:
        views.write(run("zb-v", 2, 4, HOSTILE), tmp_path / "x.svg")
        assert ET.parse(tmp_path / "x.svg").getroot().tag.endswith("svg")

    def test_the_global_figure_state_is_left_alone(self, dualpipe: Trace, tmp_path: Path) -> None:
        import matplotlib as mpl
        from matplotlib import _pylab_helpers

        before = dict(mpl.rcParams)
        views.write(dualpipe, tmp_path / "x.png")
        assert dict(mpl.rcParams) == before
        assert not _pylab_helpers.Gcf.figs

    def test_a_comparison_shares_one_time_axis(self, dualpipe: Trace, tmp_path: Path) -> None:
        other = run("1f1b", 4, 8)
        for name in ("x.svg", "y.svg"):
            picture.write_comparison({"first": dualpipe, "<b>second": other}, tmp_path / name)
        assert (tmp_path / "x.svg").read_bytes() == (tmp_path / "y.svg").read_bytes()
        with pytest.raises(OutputError, match=r"there are \.png, \.svg"):
            picture.write_comparison({"first": dualpipe}, tmp_path / "x.html")


def test_the_page_holds_the_figures_and_no_address_to_load(dualpipe: Trace, tmp_path: Path) -> None:
    views.write(dualpipe, tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    assert f"makespan <b>{dualpipe.makespan:.6g} s</b>" in text
    assert text.count("<tr>") == 1 + 4
    assert not any(f"{tag} src=" in text or f"{tag} href=" in text for tag in ("<script", "<link", "<img"))
