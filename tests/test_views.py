"""Views: every format writes what the trace says, twice the same bytes, and nothing half-written."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pandas as pd
import pytest
from matplotlib.testing.compare import compare_images

import simpipe
from simpipe.simulator import bubbles, views
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.errors import OutputError
from simpipe.simulator.trace import Trace
from simpipe.simulator.views import chrome, detail, lanes, picture

ENDINGS = sorted(views.writers())
HOSTILE = "<script>alert(1)</script>$\\frac{</script><b>&amp;<br>%{x}\x00\ud800"


def run(name: str, ranks: int, microbatches: int, rename: str | None = None, **costs: object) -> Trace:
    program = simpipe.program(name, ranks=ranks, microbatches=microbatches)
    return simpipe.simulate(replace(program, name=rename or name), simpipe.Costs(**costs))  # type: ignore[arg-type]


def run_modelled(schedule: str, model: str = "deepseek-v2", **changes: object) -> Trace:
    layout: dict[str, object] = {"ranks": 4, "gpus": 256, "ep": 32, "global_batch": 512, "sequence": 4096}
    parallel = Parallel.of({**layout, **changes})
    program = simpipe.program(schedule, ranks=4, microbatches=parallel.microbatches)
    return simpipe.simulate(program, ModelledCosts(load_model(model), load_cluster("h800"), parallel), "compiled")


@pytest.fixture(scope="module")
def modelled() -> Trace:
    return run_modelled("dualpipe")


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


@pytest.fixture(scope="module")
def operation_events(modelled: Trace, tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    path = tmp_path_factory.mktemp("chrome") / "x.json.gz"
    views.write(modelled, path)
    return read_chrome(path)


def read_chrome(path: Path) -> list[dict]:
    raw = path.read_bytes()
    return json.loads(gzip.decompress(raw) if path.name.endswith(".gz") else raw)["traceEvents"]


def test_the_endings_are_those_promised() -> None:
    assert ENDINGS == [".csv", ".html", ".json", ".json.gz", ".pdf", ".png", ".svg"]


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
        (written,) = views.write(run("gpipe", 2, 2, F=0, I=0, W=0), tmp_path / f"x{ending}")
        assert written.stat().st_size > 0

    def test_a_folder_in_the_way(self, dualpipe: Trace, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"x{ending}"
        path.mkdir()
        with pytest.raises(OutputError, match="is a folder") as caught:
            views.write(dualpipe, path)
        assert "\n" not in str(caught.value)
        assert list(path.iterdir()) == []


class TestPaths:
    @pytest.mark.parametrize("name", ["run.gif", "run", ".hidden", "run.gz"])
    def test_an_unknown_ending_names_those_there_are(self, dualpipe: Trace, tmp_path: Path, name: str) -> None:
        with pytest.raises(OutputError, match=r"names no format; there are \.csv, \.html, \.json, \.json\.gz, \.pdf"):
            views.write(dualpipe, tmp_path / name)
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("name", ["file.txt/x.csv", "nowhere/x.csv", "x" * 300 + ".csv", "file.txt/"])
    def test_where_nothing_can_be_written(self, dualpipe: Trace, tmp_path: Path, name: str) -> None:
        (tmp_path / "file.txt").touch()
        with pytest.raises(OutputError, match=r"cannot be (written|made): ([A-Z]|there is no folder)"):
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


def most_overlap(events: list[dict]) -> float:
    """Microseconds by which a slice starts before the one ahead of it on its thread has ended, at most."""
    ends: dict[tuple[int, int], float] = {}
    overlap = -math.inf
    for event in sorted((e for e in events if e["ph"] == "X"), key=lambda e: e["ts"]):
        thread = event["pid"], event["tid"]
        overlap = max(overlap, ends.get(thread, 0.0) - event["ts"])
        ends[thread] = event["ts"] + event["dur"]
    return overlap


class TestChrome:
    def test_a_slice_for_each_action(self, dualpipe: Trace, events: list[dict]) -> None:
        slices = [event for event in events if event["ph"] == "X" and event["tid"] != chrome.BUBBLES]
        frame = dualpipe.to_frame().query("slot >= 0")
        found = sorted((e["pid"], e["cat"], e["ts"], e["dur"], e["args"]["microbatch"]) for e in slices)
        columns = (frame["rank"], frame["kind"], frame["start"] * 1e6, (frame["end"] - frame["start"]) * 1e6)
        assert found == sorted(zip(*columns, frame["microbatch"], strict=True))

    def test_slices_of_a_thread_do_not_overlap(self, events: list[dict]) -> None:
        assert most_overlap(events) <= 0

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
            live = [e["args"]["live"] for e in events if e["ph"] == "C" and e["pid"] == rank and "live" in e["args"]]
            assert max(live) == figures.peak_activation_bytes > 0
            assert live[-1] == 0

    def test_ranks_are_named_in_order(self, events: list[dict]) -> None:
        names = [e["args"]["name"] for e in events if e["name"] == "process_name"]
        assert names == [*(f"Rank {rank}" for rank in range(4)), "all ranks"]

    def test_a_slice_for_each_bubble_with_its_causes(self, dualpipe: Trace, events: list[dict]) -> None:
        slices = [e for e in events if e["ph"] == "X" and e["tid"] == chrome.BUBBLES]
        found = bubbles.find(dualpipe)
        assert [(e["pid"], e["ts"]) for e in slices] == list(zip(found.rank, found.start * 1e6, strict=True))
        for event, causes, task in zip(slices, found.causes, found.ended_by, strict=True):
            seconds = {name: part for name, part in event["args"].items() if name.endswith("(s)")}
            assert sum(seconds.values()) == pytest.approx(causes.sum()) == pytest.approx(event["dur"] / 1e6)
            assert event["args"].get("ended by") == (dualpipe.graph.describe(int(task)) if task >= 0 else None)

    def test_idle_ranks_add_up_to_the_bubbles(self, dualpipe: Trace, events: list[dict]) -> None:
        counted = [(e["ts"], e["args"]["ranks"]) for e in events if e["ph"] == "C" and e["name"] == "idle ranks"]
        times, ranks = (np.array(column) for column in zip(*counted, strict=True))
        idle = sum(row.bubble_time for row in simpipe.summarize(dualpipe).per_rank)
        assert (ranks[:-1] * np.diff(times)).sum() / 1e6 == pytest.approx(idle)
        assert ranks[-1] == 0

    def test_a_link_counter_holds_the_bytes_that_crossed_it(
        self, operation_events: list[dict], modelled: Trace
    ) -> None:
        graph, row = modelled.graph, modelled.row
        moved = modelled.loads.work[row, graph.route.keys] * modelled.loads.weight[row]
        moved[modelled.end[graph.route.keys] == modelled.start[graph.route.keys]] = 0.0
        wanted = np.bincount(graph.route.items, moved, graph.links)
        names = [f"{name} (GB/s)" for name in graph.link_names]
        series: dict[int, list[tuple[float, float]]] = {link: [] for link in range(graph.links)}
        for event in operation_events:
            if event["ph"] == "C" and event["name"] in names:
                link = event["pid"] * len(names) + names.index(event["name"])
                series[link].append((event["ts"], event["args"]["rate"]))
        assert any(series.values())
        for link, points in series.items():
            times, rates = (np.array(column) for column in zip(*(points or [(0.0, 0.0)]), strict=True))
            assert (rates[:-1] * np.diff(times)).sum() * 1e3 == pytest.approx(wanted[link], rel=1e-3, abs=1e3)


class TestChromeOfOperations:
    def test_a_slice_for_each_operation_on_its_stream(self, modelled: Trace, operation_events: list[dict]) -> None:
        names = {(e["pid"], e["tid"]): e["args"]["name"] for e in operation_events if e["name"] == "thread_name"}
        frame = modelled.to_frame()
        frame = frame[(frame["slot"] >= 0) | (frame["kind"] == "sync")]
        found = sorted(
            (e["pid"], names[e["pid"], e["tid"]], e["ts"], e["dur"], e["name"], e["args"]["slot"])
            for e in operation_events
            if e["ph"] == "X" and e["tid"] not in (chrome.SLOTS, chrome.BUBBLES)
        )
        start, end = (np.rint(frame[column].to_numpy() * 1e9) for column in ("start", "end"))
        named = frame["operation"].astype(str).where(frame["operation"] != "", frame["kind"].astype(str))
        columns = (frame["rank"], frame["stream"], start / 1e3, (end - start) / 1e3, named, frame["slot"])
        assert found == sorted(zip(*columns, strict=True))
        assert {"compute", "expert-parallel", "weight-gradient", "data-parallel"} < set(names.values())

    def test_a_slice_for_each_slot_around_its_operations(self, modelled: Trace, operation_events: list[dict]) -> None:
        slots = {e["args"]["slot"]: e for e in operation_events if e["ph"] == "X" and e["tid"] == chrome.SLOTS}
        assert sorted(slots) == list(range(len(modelled.graph.slot_rank)))
        for event in (e for e in operation_events if e["ph"] == "X" and e["args"].get("slot", -1) >= 0):
            slot = slots[event["args"]["slot"]]
            assert event["pid"] == slot["pid"]
            assert slot["ts"] <= event["ts"]
            assert event["ts"] + event["dur"] <= slot["ts"] + slot["dur"] + 1e-6
            assert event["args"].get("action", "") in slot["name"]

    def test_slices_of_a_thread_do_not_overlap(self, operation_events: list[dict]) -> None:
        assert most_overlap(operation_events) <= 1e-6

    def test_a_flow_for_each_message_from_slot_to_slot(self, modelled: Trace, operation_events: list[dict]) -> None:
        slots = {e["args"]["slot"]: e for e in operation_events if e["ph"] == "X" and e["tid"] == chrome.SLOTS}
        graph, program = modelled.graph, modelled.program
        flows = [e for e in operation_events if e["ph"] in "sf"]
        assert len(flows) == 2 * graph.message.sum() > 0
        for event in flows:
            action = (graph.action if event["ph"] == "s" else graph.partner)[event["id"]]
            slot = slots[int(program.action_slot[action])]
            assert (event["pid"], event["tid"]) == (slot["pid"], chrome.SLOTS)
            assert slot["ts"] <= event["ts"] < slot["ts"] + slot["dur"]


class TestOneSlot:
    def test_the_median_pair_of_the_middle_rank(self, modelled: Trace) -> None:
        slot = detail.choose(modelled)
        assert slot is not None
        frame = modelled.slots()
        pairs = frame[(frame["rank"] == 2) & frame["paired"] & (frame["kind"] == "F")]
        lasts = (pairs["end"] - pairs["start"]).set_axis(pairs["slot"])
        assert lasts[slot] == sorted(lasts)[len(lasts) // 2]
        assert f"the median of the {len(pairs)} F&B slots of rank 2" in detail.sentence(modelled, slot)

    def test_without_pairs_the_longest_kind(self) -> None:
        trace = run_modelled("1f1b", overlap="none")
        slot = detail.choose(trace)
        assert slot is not None
        assert "B slots of rank 2" in detail.sentence(trace, slot)
        assert detail.idle(trace, slot) > 0

    def test_hand_costs_have_none(self, dualpipe: Trace) -> None:
        assert detail.choose(dualpipe) is None

    def test_operations_are_those_of_the_trace(self, modelled: Trace) -> None:
        slot = detail.choose(modelled)
        assert slot is not None
        drawn = detail.operations(modelled, slot)
        frame = modelled.to_frame().query("slot == @slot and operation != 'launches'")
        once = drawn.drop_duplicates("task").sort_values("task")
        assert once["task"].tolist() == frame["task"].tolist()
        assert once["operation"].tolist() == frame["operation"].tolist()
        np.testing.assert_allclose(once["end"], frame["end"] - frame["start"].min())
        lanes_of = drawn.groupby("lane")["stream"].unique()
        assert [list(streams) for streams in lanes_of] == [["compute"], ["expert-parallel"], ["weight-gradient"]]
        for _, lane in drawn.groupby("lane"):
            assert (lane["start"].to_numpy()[1:] >= lane["end"].to_numpy()[:-1] - 1e-12).all()

    def test_idle_is_what_is_exposed(self, modelled: Trace) -> None:
        slots = range(*modelled.program.rank_start[1:3])
        exposed = sum(detail.idle(modelled, slot) for slot in slots)
        assert exposed == pytest.approx(modelled.exposed_communication[1], abs=1e-9)

    @pytest.mark.parametrize("changes", [{}, {"tp": 4}, {"model": "llama3-8b", "ep": 1}])
    def test_passes_of_a_backward_are_those_of_its_parts(self, changes: dict[str, object]) -> None:
        """What is taken for I and W in a B is what a schedule that splits it runs in I and in W."""
        whole, split = run_modelled("1f1b", **changes), run_modelled("zb-h1", **changes)

        def operations(trace: Trace, kind: str, stage: int) -> pd.DataFrame:
            program = trace.program
            action = np.flatnonzero((program.kind == "FIWB".index(kind)) & (program.stage == stage))[0]
            return detail.operations(trace, int(program.action_slot[action]))

        for stage in range(4):
            drawn = operations(whole, "B", stage)
            for way in "IW":
                part = drawn[(drawn["pass"] == way) & (drawn["stream"] == "compute")]
                other = operations(split, way, stage)
                other = other[other["stream"] == "compute"]
                assert sorted(part["operation"]) == sorted(other["operation"])

    def test_legs_are_those_of_the_published_figure(self, modelled: Trace) -> None:
        """DeepSeek-V3's Figure 4: the blocks of two layers, in the order in which each stream runs them."""
        slot = detail.choose(modelled)
        assert slot is not None
        drawn = detail.operations(modelled, slot)
        shown = {"compute": ["attention", "MLP"], "expert-parallel": ["dispatch", "combine"]}
        seen = {}
        for stream, families in shown.items():
            lane = drawn[(drawn["stream"] == stream) & drawn["family"].isin(families)].drop_duplicates("leg")
            seen[stream] = ", ".join(lane["family"] + " " + lane["pass"])
        layer = "attention F, MLP I, MLP W, MLP F, attention I, attention W"
        assert f"{layer}, {layer}" in seen["compute"]
        layer = "combine I, dispatch F, dispatch I, combine F"
        assert f"{layer}, {layer}" in seen["expert-parallel"]

    def test_every_operation_is_of_a_family(self, modelled: Trace) -> None:
        names = set(modelled.to_frame()["operation"].astype(str)) - {""}
        others = {name for name in names - {"launches"} if detail.family(name) == detail.OTHER}
        syncs = {"all-reduce", "reduce-scatter", "all-gather", "reduce copies"}
        assert others - syncs == {"router", "embedding.tokens", "head", "loss", "norms.mlp", "norms.final"}

    def test_the_picture_draws_it(self, modelled: Trace, tmp_path: Path) -> None:
        slot = detail.choose(modelled)
        assert slot is not None
        axes = picture.draw_slot(modelled, slot)
        boxes = [path.get_extents() for c in axes.collections for path in c.get_paths()]
        drawn = detail.operations(modelled, slot)
        assert len(boxes) == len(drawn) + len(detail.legs(drawn))
        found = {(round(box.x0, 6), round(box.x1, 6)) for box in boxes}
        assert found >= {
            (round(1e3 * a, 6), round(1e3 * b, 6)) for a, b in zip(drawn["start"], drawn["end"], strict=True)
        }
        legend = axes.get_legend()
        assert legend is not None
        assert [text.get_text() for text in legend.get_texts()][:3] == ["attention F", "attention I", "attention W"]
        for name in ("x.svg", "y.svg"):
            views.write(modelled, tmp_path / name)
        assert (tmp_path / "x.svg").read_bytes() == (tmp_path / "y.svg").read_bytes()


class TestLanes:
    def test_steps_are_the_levels(self) -> None:
        steps = lanes.steps(trace := run("1f1b", 2, 2), trace.activations)
        points = list(zip(steps.rank.tolist(), steps.time.tolist(), steps.value.tolist(), strict=True))
        assert points == [
            (0, 0, 1), (0, 1, 2), (0, 6, 1), (0, 9, 0),
            (1, 1, 1), (1, 7, 0),
        ]  # fmt: skip


class TestLarge:
    @pytest.mark.parametrize(("ending", "limit"), [(".html", 3e5), (".svg", 1e6), (".png", 1e6)])
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
        with pytest.raises(OutputError, match=r"there are \.pdf, \.png, \.svg|there are \.png, \.svg"):
            picture.write_comparison({"first": dualpipe}, tmp_path / "x.csv")


def test_the_page_holds_the_figures_and_no_address_to_load(dualpipe: Trace, tmp_path: Path) -> None:
    views.write(dualpipe, tmp_path / "x.html")
    text = (tmp_path / "x.html").read_text()
    assert f"makespan <b>{dualpipe.makespan:.6g} s</b>" in text
    assert text.count("<tr>") == 1 + 4
    assert not any(f"{tag} src=" in text or f"{tag} href=" in text for tag in ("<script", "<link", "<img"))


class TestForPapers:
    """Pictures of a stated width, their fonts embedded; and a notebook's view."""

    def test_a_picture_is_as_wide_as_asked(self, dualpipe: Trace, tmp_path: Path) -> None:
        views.write(dualpipe, tmp_path / "x.svg", width=3.4)
        assert ET.parse(tmp_path / "x.svg").getroot().get("width") == f"{3.4 * 72:g}pt"
        views.write(dualpipe, tmp_path / "x.png", width=3.4)
        assert int.from_bytes((tmp_path / "x.png").read_bytes()[16:20], "big") == round(3.4 * picture.DPI)

    @pytest.mark.parametrize("width", [3.4, 6.9, 14.0])
    @pytest.mark.parametrize("schedule", ["dualpipe", "zb-v"])
    def test_nothing_sticks_out(self, schedule: str, width: float) -> None:
        """The legend and the title lie within the page and below, or above, the lanes."""
        figure = picture.figure({schedule: run(schedule, 4, 8, optimizer=1)}, width)
        figure.draw_without_rendering()
        page = figure.bbox
        (legend,) = (artist.get_window_extent() for artist in figure.legends)
        title = figure.axes[0].title if figure.axes[0].get_title() else figure.axes[0]._left_title  # type: ignore[attr-defined]
        for box in (legend, title.get_window_extent()):
            assert page.x0 <= box.x0 < box.x1 <= page.x1
            assert page.y0 <= box.y0 < box.y1 <= page.y1
        axis = figure.axes[-1].get_tightbbox()
        assert axis is not None
        assert legend.y1 <= axis.y0 + 1 or legend.x1 < figure.axes[-1].xaxis.label.get_window_extent().x0

    def test_fonts_are_in_the_pdf(self, dualpipe: Trace, tmp_path: Path) -> None:
        for name in ("x.pdf", "y.pdf"):
            views.write(dualpipe, tmp_path / name, width=6.9)
        data = (tmp_path / "x.pdf").read_bytes()
        assert b"/FontFile2" in data
        assert b"/Type3" not in data
        assert data == (tmp_path / "y.pdf").read_bytes()

    @pytest.mark.parametrize("width", [0.0, -1.0, 1e9, math.nan])
    def test_a_width_that_no_picture_has(self, dualpipe: Trace, tmp_path: Path, width: float) -> None:
        with pytest.raises(OutputError, match="a picture is 2 to 200 inches wide, not"):
            views.write(dualpipe, tmp_path / "x.png", width=width)
        assert not list(tmp_path.iterdir())

    def test_a_width_without_a_picture(self) -> None:
        with pytest.raises(OutputError, match=r"a width is for pictures \(\.png, \.svg, \.pdf\), and none is written"):
            views.check(["x.csv"], 6.9)

    @pytest.mark.parametrize(("schedule", "width"), [("1f1b", 6.9), ("dualpipe", 14.0), ("zb-v", 3.4)])
    def test_pictures_look_as_they_did(self, schedule: str, width: float, tmp_path: Path) -> None:
        """Against pictures looked at by a person; other versions of Matplotlib may place text by a pixel."""
        views.write(run(schedule, 4, 8, optimizer=1), tmp_path / f"{schedule}.png", width=width)
        golden = Path(__file__).parent / "golden" / f"{schedule}.png"
        assert compare_images(str(golden), str(tmp_path / f"{schedule}.png"), tol=6) is None

    def test_a_notebook_shows_picture_and_figures(self, dualpipe: Trace) -> None:
        shown = dualpipe._repr_html_()
        assert shown.count("<tr>") == 1 + dualpipe.program.ranks
        assert "data:image/png;base64," in shown
        hostile = run("1f1b", 2, 4, HOSTILE)._repr_html_()
        assert "<script" not in hostile.replace("&lt;script", "")
        assert "src=" in hostile
        assert "http" not in shown

    def test_plot_draws_into_given_axes(self, dualpipe: Trace) -> None:
        from matplotlib.figure import Figure

        axes = Figure().add_subplot()
        assert dualpipe.plot(axes) is axes
        assert axes.collections
        assert dualpipe.plot().get_title(loc="left").startswith("dualpipe")
