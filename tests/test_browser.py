"""The page in a real browser: what is drawn is the trace, every feature works, and nothing is fetched from anywhere."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

import simpipe
from simpipe.simulator import bubbles, comparison, views
from simpipe.simulator.case import Case, simulated
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.planning import evaluation
from simpipe.simulator.trace import Trace
from simpipe.simulator.views import detail, html, palette, results

playwright = pytest.importorskip("playwright.sync_api", reason="playwright, of the extra `test`, is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="chromium is not installed")

HOSTILE = "<script>window.hacked=1</script><img src=x onerror=window.hacked=1>&quot;"
WORDS = ("F", "I", "W", "B", "F&B", "activation", "gradient", "sync", "barrier", "optimizer")


class Opened:
    """A page that was opened from disk: its console, its requests, and what its script says of itself."""

    def __init__(self, page: Any) -> None:
        self.page = page
        self.complaints: list[str] = []
        self.asked: list[str] = []
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self.asked.append(request.url))

    def open(self, path: Path, fragment: str = "") -> Opened:
        self.page.goto("about:blank")
        self.page.goto(path.as_uri() + fragment)
        self.page.wait_for_selector("html[data-ready]", state="attached")
        return self

    def ask(self, script: str, argument: Any = None) -> Any:
        return self.page.evaluate(script, argument)

    def drawn(self) -> None:
        """Wait for what was changed to be drawn."""
        self.ask("() => new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def press(self, *keys: str) -> None:
        self.page.focus("#stage")
        for key in keys:
            self.page.keyboard.press(key)
        self.drawn()

    def hover(self, what: str, index: int, run: int = 0) -> str:
        """The tooltip over a slot or bubble."""
        place = self.ask("t => timeline.place(t)", {"what": what, "run": run, "index": index})
        self.page.mouse.move(place["x"], place["y"])
        return str(self.page.inner_text("#tip"))

    def told(self) -> str:
        return str(self.page.inner_text("#told"))

    def view(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(
            self.ask("JSON.stringify({...timeline.view, open: [...timeline.view.open]})")
        )
        return found


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--disable-gpu"])
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def opened(browser: Any) -> Iterator[Opened]:
    """One page for all tests, which it is opened anew in; at the end it must have had nothing to complain of."""
    page = Opened(browser.new_page(viewport={"width": 1500, "height": 950}, color_scheme="light"))
    yield page
    assert page.complaints == []
    assert all(url.startswith(("file:", "about:", "blob:file:")) for url in page.asked)


def run(name: str, ranks: int, microbatches: int, rename: str = "", **costs: Any) -> Trace:
    program = simpipe.program(name, ranks=ranks, microbatches=microbatches)
    return simpipe.simulate(replace(program, name=rename or name), simpipe.Costs(**costs))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pages")


@pytest.fixture(scope="module")
def dualpipe() -> Trace:
    return run("dualpipe", 8, 20, FB=3, p2p=0.25)


@pytest.fixture(scope="module")
def page_of(folder: Path) -> Callable[[Trace], Path]:
    """Writes the page of a trace, once."""
    written: dict[int, Path] = {}

    def write(trace: Trace) -> Path:
        if id(trace) not in written:
            written[id(trace)] = folder / f"{len(written)}.html"
            views.write(trace, written[id(trace)])
        return written[id(trace)]

    return write


@pytest.fixture(scope="module")
def modelled() -> Trace:
    layout = {"ranks": 4, "gpus": 256, "ep": 32, "global_batch": 512, "sequence": 4096}
    costs = ModelledCosts(load_model("deepseek-v2"), load_cluster("h800"), Parallel.of(layout))
    program = simpipe.program("dualpipe", ranks=4, microbatches=costs.parallel.microbatches)
    return simpipe.simulate(program, costs, "compiled")


@pytest.fixture(scope="module")
def large() -> Trace:
    return run("zb-h1", 16, 300, p2p=0.3)


@pytest.fixture(scope="module")
def compared(folder: Path) -> tuple[Path, dict[str, Trace], list[dict[str, Any]]]:
    entries, traces = [], {}
    for name, costs in (("dualpipe", {"FB": 2.4}), ("1f1b", {}), ("zb-h1", {}), (HOSTILE, {"W": 1.5})):
        schedule = "1f1b" if name == HOSTILE else name
        program = simpipe.program(schedule, ranks=4, microbatches=12)
        case = Case(schedule, program, simpipe.Costs(**{"F": 1, "I": 1, "W": 1, **costs}))
        traces[name], figures = simulated(case)
        entries.append(comparison.Entry(name, figures))
    ordered, rows = comparison.rank(entries)
    traces = {entry.label: traces[entry.label] for entry in ordered}
    views.write_comparison(rows, traces, folder / "compare.html")
    return folder / "compare.html", traces, rows


SLOTS = """() => {
  const {count, rank, word, stage, microbatch, start, end, slack, critical, pair, pairStage, pairMicrobatch} =
    timeline.runs[0].slots;
  return Array.from({length: count}, (_, s) => [rank[s], word[s], stage[s], microbatch[s], start[s], end[s], slack[s],
    critical[s], pair[s] < 0 ? -1 : pairStage[pair[s]], pair[s] < 0 ? -1 : pairMicrobatch[pair[s]]]);
}"""


def expected_slots(trace: Trace) -> list[list[float]]:
    """The same from the trace, in the page's order: rank by rank, each rank's optimizer step last."""
    frame = trace.slots()
    rows = []
    for slot, actions in frame.groupby("slot"):
        first = actions.sort_values("kind", key=lambda kinds: kinds != "F").iloc[0]
        second = actions[actions["kind"] == "B"].iloc[0] if len(actions) == 2 else None
        word = WORDS.index("F&B" if second is not None else first["kind"])
        pair = [-1, -1] if second is None else [second["stage"], second["microbatch"]]
        row = [first[name] for name in ("rank", "stage", "microbatch", "start", "end", "slack", "critical")]
        rows.append((first["rank"], slot, [row[0], word, *row[1:], *pair]))
    return [row for _, _, row in sorted(rows, key=lambda row: row[:2])]


CASES: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "uneven costs": ("dualpipe", 4, 10, {"F": [1, 2, 1.5, 1 / 3], "I": 0.7, "W": 1e-3, "FB": 3, "p2p": 0.123}),
    "shared links": ("zb-v", 4, 8, {"p2p": 0.1, "message_bytes": 1.0, "bandwidth": 3.0}),
    "a step's end": ("1f1b", 4, 8, {"barrier": True, "optimizer": 1.5, "exchange": "blocking", "p2p": 0.2}),
    "nothing takes time": ("gpipe", 2, 2, {"F": 0, "I": 0, "W": 0}),
}


class TestBlocks:
    @pytest.mark.parametrize("case", CASES)
    def test_read_back_they_are_the_trace(self, opened: Opened, folder: Path, case: str) -> None:
        name, ranks, microbatches, costs = CASES[case]
        trace = run(name, ranks, microbatches, **costs)
        views.write(trace, folder / "case.html")
        opened.open(folder / "case.html")
        np.testing.assert_allclose(opened.ask(SLOTS), expected_slots(trace), rtol=0, atol=1e-11 * (trace.makespan or 1))

    def test_each_is_drawn_in_its_colour(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        script = """() => {
          const canvas = document.getElementById('lanes'), box = canvas.getBoundingClientRect();
          const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
          const {slots} = timeline.runs[0];
          const colour = (x, y) => {
            const at = 4 * (Math.round(y - box.top) * canvas.width + Math.round(x - box.left));
            return [...data.subarray(at, at + 3)];
          };
          const {gutter, lanes} = timeline.layout, {to} = timeline.view;
          return Array.from({length: slots.count}, (_, index) => {
            const {y} = timeline.place({what: 'slot', run: 0, index});
            const x = box.left + gutter + slots.start[index] / to * lanes + 3;
            return [colour(x, y - 10), colour(x, y + 10)];
          });
        }"""
        found = opened.ask(script)
        for (above, below), row in zip(found, expected_slots(dualpipe), strict=True):
            word = WORDS[int(row[1])]
            for colour, kind in zip((above, below), ("F", "B") if word == "F&B" else word * 2, strict=True):
                expected = [int(palette.KINDS[kind][at : at + 2], 16) for at in (1, 3, 5)]
                assert np.abs(np.subtract(colour, expected)).max() <= 16  # lines of the axis lie over it

    def test_the_exported_drawing_has_them(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        with opened.page.expect_download() as download:
            opened.page.click("#svg")
        root = ET.parse(download.value.path()).getroot()
        gutter, width = opened.ask("[timeline.layout.gutter, timeline.layout.lanes]")
        scale = dualpipe.makespan / width
        svg = "{http://www.w3.org/2000/svg}"
        *drawn, legend = root.findall(f"{svg}g")
        boxes = [rect.attrib for part in drawn for rect in part.iter(f"{svg}rect")]
        frame = dualpipe.slots()
        for kind in "FIWB":
            right = [
                box for box in boxes if box.get("fill") == palette.KINDS[kind] and float(box["x"]) < gutter + width - 1
            ]
            lanes = [box for box in right if float(box["height"]) > 10]  # and not those of the legend of memory
            starts = sorted((float(box["x"]) - gutter) * scale for box in lanes)
            assert starts == pytest.approx(sorted(frame[frame["kind"] == kind]["start"]), abs=2e-3 * scale)
        numbers = [text for text in root.iter(f"{svg}text") if text.text and text.text.isdigit()]
        assert len(numbers) >= len(frame)
        assert [*palette.LABELS.values()][:4] == [text.text for text in legend.iter(f"{svg}text")][:4]
        assert {palette.KINDS[kind] for kind in "FIWB"} <= {rect.get("fill") for rect in legend.iter(f"{svg}rect")}

    def test_a_picture_of_the_view_is_saved(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        with opened.page.expect_download() as download:
            opened.page.click("#png")
        assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


class TestManyBlocks:
    def test_columns_hold_the_exact_seconds_of_each_kind(self, opened: Opened, large: Trace, page_of: Any) -> None:
        opened.open(page_of(large))
        begin, end, columns = 17.3, 911.9, 40
        script = (
            "([from, to, n]) => { const s = timeline.shares(0, 5, from, to, n); return [[...s.bands], [...s.cause]]; }"
        )
        bands, causes = opened.ask(script, [begin, end, columns])
        shares = np.array(bands).reshape(columns, 5)
        edges = np.linspace(begin, end, columns + 1)
        frame = large.slots().query("rank == 5")
        for band, kind in ((1, "B"), (2, "W"), (3, "I"), (4, "F")):
            part = frame[frame["kind"] == kind][["start", "end"]].to_numpy()
            inside = np.minimum(part[:, 1:], edges[1:]) - np.maximum(part[:, :1], edges[:-1])
            np.testing.assert_allclose(shares[:, band], np.maximum(inside, 0).sum(axis=0) / np.diff(edges), atol=1e-6)
        assert [cause >= 0 for cause in causes] == (shares.sum(axis=1) < 1 - 1e-6).tolist()

    def test_the_lane_is_as_full_as_the_rank_is_busy(self, opened: Opened, large: Trace, page_of: Any) -> None:
        """Counted in pixels: what is narrower than one is summed, not dropped."""
        opened.open(page_of(large))
        script = """colours => {
          const {gutter, lanes, rows} = timeline.layout, {y, height} = rows[5];
          const context = document.getElementById('lanes').getContext('2d');
          const data = context.getImageData(gutter, y, lanes, height - 2).data;
          const count = new Map(colours.map(c => [c, 0]));
          for (let i = 0; i < data.length; i += 4) {
            const c = '#' + [...data.slice(i, i + 3)].map(v => v.toString(16).padStart(2, '0')).join('').toUpperCase();
            if (count.has(c)) count.set(c, count.get(c) + 1);
          }
          return [...count.values()].map(n => n / (data.length / 4));
        }"""
        found = opened.ask(script, [palette.KINDS[kind] for kind in "FIW"])
        frame = large.slots().query("rank == 5")
        for share, kind in zip(found, "FIW", strict=True):
            part = frame[frame["kind"] == kind]
            exact = (part["end"] - part["start"]).sum() / large.makespan
            assert share == pytest.approx(exact, abs=0.03)  # grid lines and whole pixels

    def test_zoomed_in_blocks_have_their_numbers(self, opened: Opened, large: Trace, page_of: Any) -> None:
        opened.open(page_of(large), "#t=100,130")
        texts = re.findall(r"<text[^>]*>(\d+)</text>", opened.ask("timeline.svg()"))
        shown = large.slots().query("start > 100 and end < 130")
        assert set(texts) >= set(shown["microbatch"].astype(str))


class TestSentences:
    def test_of_a_block(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        text = opened.hover("slot", 1)
        row = dualpipe.slots().iloc[1]
        assert "0F1" in text
        assert f"Rank 0, {row['start']:.6g} s to {row['end']:.6g} s, lasts 1 s" in text
        assert f"Slack {row['slack']:.6g} s" in text
        assert "Makes the activation of 0F1 from rank 0 to rank 1 (there at 2.25 s)" in text

    def test_of_each_bubble_with_causes_that_add_up(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        found = bubbles.find(dualpipe)
        critical = bubbles.critical_seconds(dualpipe, found)
        told = opened.ask(
            "n => Array.from({length: n}, (_, index) => timeline.told({what: 'bubble', run: 0, index}).lines)",
            len(found.rank),
        )
        script = "(({start, end, causes}) => [[...start], [...end], causes.map(c => [...c])])(timeline.runs[0].bubbles)"
        read = opened.ask(script)
        np.testing.assert_allclose(read[0], found.start, atol=1e-9)
        np.testing.assert_allclose(read[1], found.end, atol=1e-9)
        np.testing.assert_allclose(np.transpose(read[2]), found.causes, atol=1e-9)
        np.testing.assert_allclose(np.sum(read[2], axis=0), found.end - found.start, atol=1e-12)
        for index, lines in enumerate(told):
            assert f"Rank {found.rank[index]} idles from {seconds(found.start[index])}" in lines[0]
            for cause, value in zip(bubbles.CAUSES, found.causes[index], strict=True):
                assert (f"{seconds(value)} {palette.CAUSE_WORDS[cause]}" in lines[1]) == bool(value > 1e-9)
            if found.ended_by[index] >= 0:
                assert f"waits for {dualpipe.graph.describe(int(found.ended_by[index]))}, which ends" in lines[0]
                on_path = f"{seconds(critical[index])} of it is on the critical path"
                assert (
                    on_path in lines[2] if critical[index] > 1e-9 else "None of it is on the critical path" in lines[2]
                )
            assert lines[-1] == html.REMEDIES[bubbles.CAUSES[int(found.causes[index].argmax())]]

    def test_selecting_draws_arrows_from_what_a_slot_needs(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        graph, program = dualpipe.graph, dualpipe.program
        slot = int(program.rank_start[3]) + 20
        place = opened.ask("t => timeline.place(t)", {"what": "slot", "run": 0, "index": slot})
        opened.page.mouse.click(place["x"], place["y"])
        opened.drawn()
        message = np.flatnonzero(graph.message)
        needed = program.action_slot[graph.partner[message]] == slot
        made = program.action_slot[graph.action[message]] == slot
        links = program.dependencies
        inner = program.action_slot[np.stack([links.source, links.target])[:, ~links.crossing]]
        expected = int(needed.sum() + made.sum() + (inner == slot).any(axis=0).sum())
        assert opened.ask("timeline.svg()").count("<path d=") - 4 == expected > 2  # 4 of the patterns
        assert "Memory: " in opened.told()

    def test_the_critical_path_is_lit(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        opened.page.click("#path")
        opened.drawn()
        critical = dualpipe.slots().query("critical").drop_duplicates("slot")
        lit = re.findall(r'<rect [^>]*height="3" fill="#c4161c"', opened.ask("timeline.svg()"))
        assert len(lit) == len(critical)


def seconds(value: float) -> str:
    """As the page writes times."""
    size = abs(value)
    if size == 0 or size >= 0.1:
        return f"{value:.6g} s"
    return f"{value * 1e3:.6g} ms" if size >= 1e-4 else f"{value * 1e6:.6g} µs"


class TestPanels:
    def test_memory_is_the_trace_at_every_column(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        during, after = opened.ask(
            "() => { const l = timeline.runs[0].levels[0]; return [[...l.during], [...l.after]]; }"
        )
        np.testing.assert_allclose(during, dualpipe.activations.during, atol=1e-12)
        np.testing.assert_allclose(after, dualpipe.activations.after, atol=1e-12)

    def test_links_carry_the_bytes_of_the_messages(self, opened: Opened, folder: Path) -> None:
        trace = run("1f1b", 4, 8, message_bytes=3.0, bandwidth=10.0, p2p=0.1)
        views.write(trace, folder / "links.html")
        opened.open(folder / "links.html")
        header = opened.ask("timeline.runs[0].header.links")
        assert [(kind["name"], kind["unit"]) for kind in header["kinds"]] == [("out", "share"), ("in", "share")]
        graph = trace.graph
        ends = (graph.rank[graph.message], trace.program.action_rank[graph.partner[graph.message]])
        for number, ranks in enumerate(ends):
            use = opened.ask("k => [...timeline.runs[0].columns.get(`0.link.${k}`)]", number)
            share = np.reshape(use, (4, header["bins"])) / 1000 * header["kinds"][number]["most"]
            carried = share.sum(axis=1) * 10.0 * trace.makespan / header["bins"]
            np.testing.assert_allclose(carried, 3.0 * np.bincount(ranks, minlength=4), rtol=2e-3)
        assert opened.page.is_visible("#links")

    def test_bars_add_up_to_the_run(self, opened: Opened, modelled: Trace, dualpipe: Trace, page_of: Any) -> None:
        for trace in (dualpipe, modelled):
            opened.open(page_of(trace))
            for rank in opened.ask("timeline.runs[0].header.perRank"):
                parts = [*rank["kinds"].values(), rank["exposed"], rank["launches"], *rank["causes"].values()]
                assert sum(parts) == pytest.approx(trace.makespan, rel=1e-6)
        x = opened.ask("timeline.layout.width - 40 + document.getElementById('lanes').getBoundingClientRect().left")
        y = opened.ask("document.getElementById('lanes').getBoundingClientRect().top + 10")
        opened.page.mouse.move(x, y)
        assert "where the step goes" in opened.page.inner_text("#tip")
        assert "communication that nothing hides" in opened.page.inner_text("#tip")


class TestStreams:
    def test_operations_are_those_of_the_trace(self, opened: Opened, modelled: Trace, page_of: Any) -> None:
        opened.open(page_of(modelled))
        script = """() => {
          const {operations: o, slots, header} = timeline.runs[0], rows = [];
          for (let s = 0; s < slots.count; s++) (header.operations[o.kind[s]] || []).forEach((kind, k) => {
            const at = o.first[s] + k, start = slots.start[s] + o.start[at];
            rows.push([slots.rank[s], kind.name, kind.streams, start, start + o.length[at]]);
          });
          return rows;
        }"""
        found = opened.ask(script)
        frame = modelled.to_frame().query("slot >= 0 and kind != 'optimizer'")
        frame = frame[~frame["operation"].isin(detail.HIDDEN)].sort_values(["rank", "slot", "task"])
        assert [row[:2] for row in found] == frame[["rank", "operation"]].astype(object).to_numpy().tolist()
        assert all(stream in row[2] for stream, row in zip(frame["stream"], found, strict=True))
        np.testing.assert_allclose([row[3:] for row in found], frame[["start", "end"]], atol=3e-9)

    def test_a_rank_opens_into_its_streams(self, opened: Opened, modelled: Trace, page_of: Any) -> None:
        opened.open(page_of(modelled))
        opened.page.click("#median")
        opened.drawn()
        rows = opened.ask("timeline.layout.rows.filter(row => row.kind === 'stream').map(row => row.stream)")
        assert rows == ["compute", "weight-gradient", "expert-parallel", "pipeline", "data-parallel"]
        view = opened.view()
        part = (view["to"] - view["from"]) / 16
        look = "([from, to]) => (timeline.look(from, to), timeline.svg())"
        drawing = "".join(opened.ask(look, [view["from"] + k * part, view["from"] + (k + 1) * part]) for k in range(8))
        for word in ("attention F", "attention I", "dispatch F", "MLP W", "combine I"):
            assert f">{word}</text>" in drawing
        row = opened.ask("timeline.layout.rows.find(row => row.stream === 'expert-parallel')")
        box = opened.page.locator("#lanes").bounding_box()
        opened.page.mouse.move(box["x"] + 300, box["y"] + row["y"] + row["height"] / 2)
        tip = opened.page.inner_text("#tip")
        assert re.search(r"on the expert-parallel stream|nothing on the expert-parallel stream", tip)
        assert "slots of" not in tip

    def test_clicking_a_rank_opens_it(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        box = opened.page.locator("#lanes").bounding_box()
        opened.page.mouse.click(box["x"] + 40, box["y"] + 20)
        opened.drawn()
        assert opened.view()["open"] == ["0.0"]
        assert "activation to rank 1" in opened.ask("(timeline.look(0, 2), timeline.svg())")


class TestView:
    def test_a_link_restores_it(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        opened.press("n", "n", "ArrowUp", "ArrowRight", "c", "t", "e")
        before, address = opened.view(), opened.page.url
        assert before["selected"] == {"what": "bubble", "run": 0, "index": 1}
        assert before["path"]
        assert before["patterns"]
        opened.open(page_of(dualpipe), "#" + address.split("#")[1])
        after = opened.view()
        assert after.pop("from") == pytest.approx(before.pop("from"))
        assert after.pop("to") == pytest.approx(before.pop("to"))
        assert after == before

    def test_a_link_that_does_not_fit_is_passed_over(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe), "#slot=9.99999&rank=0.77&t=5,1&open=%3Cb%3E")
        assert opened.view()["selected"] is None
        assert opened.view()["to"] == dualpipe.makespan

    def test_keys_zoom_pan_and_walk(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        whole = opened.view()
        opened.press("ArrowUp")
        near = opened.view()
        assert near["to"] - near["from"] == pytest.approx(0.7 * whole["to"])
        opened.press("ArrowRight")
        assert opened.view()["from"] > near["from"]
        opened.press("0", "n")
        assert opened.told().startswith("Bubble on rank ")
        opened.press("m", "m")
        selected = opened.view()["selected"]["index"]
        microbatch = opened.ask("s => timeline.runs[0].slots.microbatch[s]", selected)
        opened.press("m")
        assert opened.view()["selected"]["index"] != selected
        other = opened.view()["selected"]["index"]
        words = opened.ask("s => [timeline.runs[0].slots.microbatch[s], timeline.runs[0].slots.word[s]]", other)
        assert words[0] == microbatch or words[1] == WORDS.index("F&B")
        opened.press("]", "j", "k", "Enter")
        assert opened.view()["to"] - opened.view()["from"] < 10
        opened.press("Escape")
        assert opened.view()["selected"] is None
        opened.press("?")
        assert opened.ask("document.getElementById('keys').open")

    def test_the_wheel_zooms_and_dragging_pans(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        box = opened.page.locator("#lanes").bounding_box()
        opened.page.mouse.move(box["x"] + 700, box["y"] + 100)
        opened.page.mouse.wheel(0, -300)
        opened.drawn()
        assert opened.view()["to"] - opened.view()["from"] == pytest.approx(dualpipe.makespan / 2)
        before = opened.view()["from"]
        opened.page.mouse.down()
        opened.page.mouse.move(box["x"] + 600, box["y"] + 100, steps=3)
        opened.page.mouse.up()
        assert opened.view()["from"] > before

    def test_search_finds_and_selects(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        opened.page.keyboard.press("/")
        opened.page.keyboard.type("2F7")
        opened.page.keyboard.press("Enter")
        assert opened.page.inner_text("#found").startswith("1 of 1")
        assert opened.told().startswith("2F7")
        opened.page.fill("#search", "rank 3 mb 4")
        opened.page.keyboard.press("Enter")
        first = opened.view()["selected"]
        opened.page.keyboard.press("Enter")
        assert opened.view()["selected"] != first
        opened.page.fill("#search", "what?")
        opened.page.keyboard.press("Enter")
        assert "Search for" in opened.page.inner_text("#found")

    def test_dark_is_dark(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        opened.page.click("#theme")
        opened.drawn()
        corner = (
            "() => [...document.getElementById('lanes').getContext('2d').getImageData(2, 2, 1, 1).data].slice(0, 3)"
        )
        assert max(opened.ask(corner)) < 64
        assert "theme=dark" in opened.page.url


SETTINGS: list[tuple[dict[str, float], dict[str, Any]]] = [
    ({}, {}),
    ({"F": 1.3, "I": 0.5}, {"F": 1.3, "I": 0.5}),
    ({"W": 0.2, "FB": 0.8, "latency": 0.4}, {"W": 0.2, "FB": 2.4, "p2p": 0.4}),
    ({"imbalance": 0.3, "F": 1.1}, {"ramp": 0.3, "F": 1.1}),
    ({"latency": 0.0, "FB": 0.0}, {"p2p": 0.0, "FB": 0.0}),
]
"""Settings of the sliders, and the costs that they stand for where F = I = W = 1 and F&B = 3."""

MORE: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "dualpipe": ("dualpipe", 8, 20, {"FB": 3.0, "p2p": 0.25}),
    "1f1b, B = I + W": ("1f1b", 4, 12, {"p2p": 0.25}),
    "a V, F&B = F + B": ("dualpipev", 4, 10, {"p2p": 0.25}),
    "blocking, to the step's end": (
        "1f1b",
        4,
        8,
        {"exchange": "blocking", "barrier": True, "optimizer": 1.5, "p2p": 0.25},
    ),
}


class TestWhatIf:
    @pytest.mark.parametrize("case", MORE)
    def test_its_numbers_are_the_engines(self, opened: Opened, folder: Path, case: str) -> None:
        name, ranks, microbatches, costs = MORE[case]
        base = {"F": 1.0, "I": 1.0, "W": 1.0, **costs}
        views.write(run(name, ranks, microbatches, **base), folder / "what.html")
        opened.open(folder / "what.html")
        for sliders, changes in SETTINGS:
            opened.page.click("#reset", force=True) if sliders else None
            shown = {key: value for key, value in sliders.items() if opened.page.locator(f"#slider-{key}").count()}
            for key, value in shown.items():
                opened.ask("([name, value]) => timeline.set(name, value)", [key, value])
            program = simpipe.program(name, ranks=ranks, microbatches=microbatches)
            trace = simpipe.simulate(program, engine_costs(base, changes, shown, program))
            start, makespan = opened.ask(
                "() => [[...timeline.shown[0].slots.start], timeline.shown[0].header.makespan]"
            )
            order = trace.graph.rank_slots.items
            assert makespan == pytest.approx(trace.makespan, rel=1e-12)
            np.testing.assert_allclose(start, trace.slot_start[order], rtol=0, atol=1e-11 * trace.makespan)
        assert opened.page.inner_text("#exact") == ""

    def test_sliders_move_by_keyboard(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe), "#whatif=F:1.2")
        opened.page.focus("#slider-W")
        opened.page.keyboard.press("ArrowRight")
        opened.drawn()
        settings = opened.view()["whatif"]
        assert settings["F"] == 1.2
        assert 1 < settings["W"] < 1.2

    def test_the_outcome_is_told_and_restored(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe), "#whatif=F:1.5")
        told = opened.page.inner_text("#outcome")
        costs = simpipe.Costs(F=1.5, I=1, W=1, FB=3, p2p=0.25)
        trace = simpipe.simulate(dualpipe.program, costs)
        assert f"{trace.makespan:.6g} s instead of {dualpipe.makespan:.6g} s" in told
        assert opened.page.inner_text("#value-F") == "\u00d7 1.5 = 1.5 s"
        assert "Causes are told for the simulated costs only" in opened.ask(
            "timeline.told({what: 'bubble', run: 0, index: 0}).lines[0]"
        )
        opened.page.click("#reset")
        assert "as simulated" in opened.page.inner_text("#outcome")

    def test_where_it_is_inexact_the_page_says_so(
        self, opened: Opened, modelled: Trace, page_of: Any, folder: Path
    ) -> None:
        opened.open(page_of(modelled))
        opened.ask("timeline.set('imbalance', 1e-9)")
        assert opened.ask("timeline.shown[0].header.makespan") == pytest.approx(modelled.makespan, rel=1e-6)
        assert "about " in opened.page.inner_text("#outcome")
        assert "not simulated again" in opened.page.inner_text("#exact")
        contended = run("1f1b", 4, 8, message_bytes=1.0, bandwidth=4.0)
        views.write(contended, folder / "contended.html")
        opened.open(folder / "contended.html")
        opened.ask("timeline.set('F', 1.01)")
        assert "how they share links is not simulated again" in opened.page.inner_text("#exact")


def engine_costs(base: dict[str, Any], changes: dict[str, Any], shown: dict[str, float], program: Any) -> simpipe.Costs:
    """The costs that the sliders which a page shows stand for."""
    names = {"FB": "FB", "p2p": "latency", "ramp": "imbalance"}
    changes = {key: value for key, value in changes.items() if names.get(key, key) in shown}
    if "FB" in changes and "FB" not in base:  # the slider then is a factor on F + B of the two stages
        pairs = {key: changes.pop("FB") / 3.0 for key in ("FB",)}["FB"]
        numbers = {**base, **changes}
        changes["FB"] = pairs * (numbers["F"] + numbers["I"] + numbers["W"])
    numbers = {**base, **changes}
    ramp = numbers.pop("ramp", 0.0)
    if ramp:
        stages = program.stages
        factors = 1 + ramp * (2 * np.arange(stages) / (stages - 1) - 1)
        for key in ("F", "I", "W", "FB"):
            if key in numbers:
                numbers[key] = (numbers[key] * program.ranks / stages * factors).tolist()
    return simpipe.Costs(**numbers)


class TestComparison:
    def test_runs_are_stacked_on_one_axis(self, opened: Opened, compared: Any) -> None:
        path, traces, _ = compared
        opened.open(path)
        assert opened.ask("timeline.runs.map(run => run.header.makespan)") == [t.makespan for t in traces.values()]
        assert opened.ask("timeline.view.to") == max(trace.makespan for trace in traces.values())
        rows_drawn = opened.ask("timeline.layout.rows.filter(row => row.kind === 'rank').length")
        assert rows_drawn == 4 * len(traces)
        best = min(trace.makespan for trace in traces.values())
        drawing = opened.ask("timeline.svg()")
        for trace in traces.values():
            if trace.makespan > best:
                assert f"+{seconds(trace.makespan - best)}" in drawing

    def test_figures_stand_side_by_side(self, opened: Opened, compared: Any) -> None:
        path, traces, rows = compared
        opened.open(path)
        table = opened.page.locator("table").first
        heads = table.locator("thead th").all_inner_texts()
        assert heads == [html.lanes.printable(name) for name in traces]
        cells = table.locator("tbody tr").first.locator("td").all_inner_texts()
        assert [float(cell.split()[0]) for cell in cells] == pytest.approx(
            [row["makespan_s"] for row in rows], rel=1e-5
        )
        assert table.locator("tbody tr").first.locator("td.best").all_inner_texts() == cells[:1]

    def test_differences_of_one_order_are_marked(self, opened: Opened, folder: Path) -> None:
        traces = {"plain": run("1f1b", 4, 8), "slower": run("1f1b", 4, 8, F=1, I=1, W=1.5)}
        rows = [{"schedule": name, "makespan_s": trace.makespan} for name, trace in traces.items()]
        views.write_comparison(rows, traces, folder / "same.html")
        opened.open(folder / "same.html")
        last = len(traces["plain"].slot_start) - 1
        later = traces["slower"].slot_start[last] - traces["plain"].slot_start[last]
        told = opened.ask("index => timeline.told({what: 'slot', run: 1, index}).lines.at(-1)", last)
        assert told == f"Starts {seconds(later)} later than in plain."
        opened.page.click("#differences")
        opened.drawn()
        assert 'fill="#d6604d"' in opened.ask("timeline.svg()")
        assert "starts later than in plain" in opened.page.inner_text("#legend")

    def test_hostile_names_are_text(self, opened: Opened, compared: Any) -> None:
        path, _, _ = compared
        opened.open(path)
        assert "<script>window.hacked=1</script>" in opened.page.inner_text("h1")
        assert opened.ask("window.hacked === undefined && document.images.length === 0")
        opened.ask("timeline.select({what: 'slot', run: timeline.runs.length - 1, index: 0})")
        assert "<script>" in opened.told()


class TestNarrow:
    @pytest.mark.parametrize("width", [40, 360, 800])
    def test_a_narrow_window_is_drawn_without_complaint(
        self, browser: Any, modelled: Trace, page_of: Any, width: int
    ) -> None:
        """Down to a frame that leaves the lanes no room, as an artefact store's viewer may open it at first."""
        other = Opened(browser.new_page(viewport={"width": width, "height": 600})).open(page_of(modelled))
        other.ask("timeline.drawNow()")
        assert other.complaints == []
        header = other.page.locator(".figures").bounding_box()
        spans = other.ask("[...document.querySelectorAll('.figures span')].map(s => s.getBoundingClientRect().right)")
        assert width < 360 or max(spans) <= header["x"] + header["width"] + 1
        other.page.close()

    def test_rows_out_of_sight_are_announced_by_a_scroll_bar(self, browser: Any, modelled: Trace, page_of: Any) -> None:
        other = Opened(browser.new_page(viewport={"width": 800, "height": 320})).open(page_of(modelled))
        for rank in range(modelled.program.ranks):
            other.ask("rank => timeline.open(0, rank)", rank)
        other.drawn()
        bar = "timeline.svg().split('<rect ').filter(part => part.includes('width=\"3\"')).length"
        assert other.ask("timeline.layout.height > timeline.layout.view")
        assert other.ask(bar) == 1
        other.page.close()


class TestClosed:
    def test_hostile_text_is_text(self, opened: Opened, folder: Path) -> None:
        views.write(run("dualpipe", 4, 8, HOSTILE, FB=3), folder / "hostile.html")
        opened.open(folder / "hostile.html")
        assert "<script>window.hacked=1</script>" in opened.page.inner_text("h1")
        assert opened.ask("window.hacked === undefined && document.images.length === 0")
        assert opened.ask("performance.getEntriesByType('resource').length") == 0

    def test_the_policy_forbids_any_other_script_style_and_request(
        self, browser: Any, dualpipe: Trace, page_of: Any
    ) -> None:
        other = Opened(browser.new_page()).open(page_of(dualpipe))
        attempt = """async () => {
          const script = document.createElement('script');
          script.textContent = 'window.hacked = 1';
          document.body.append(script);
          const style = document.createElement('style');
          style.textContent = 'body { color: red !important }';
          document.body.append(style);
          const fetched = await fetch('data:text/plain,x').then(() => 'fetched', () => 'refused');
          return [window.hacked === undefined, getComputedStyle(document.body).color !== 'rgb(255, 0, 0)', fetched];
        }"""
        assert other.ask(attempt) == [True, True, "refused"]
        assert all(url.startswith(("file:", "about:")) for url in other.asked)
        other.page.close()


class TestAccess:
    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_axe_finds_no_serious_fault(self, opened: Opened, dualpipe: Trace, page_of: Any, theme: str) -> None:
        axe = pytest.importorskip("axe_playwright_python.sync_playwright")
        opened.open(page_of(dualpipe), f"#theme={theme}&whatif=F:1.2")
        opened.press("n", "?")
        results = axe.Axe().run(opened.page).response
        faults = [fault for fault in results["violations"] if fault["impact"] in ("serious", "critical")]
        assert faults == []

    def test_the_figures_stand_beside_the_drawing(self, opened: Opened, dualpipe: Trace, page_of: Any) -> None:
        opened.open(page_of(dualpipe))
        rows = opened.page.locator("table tbody tr")
        assert rows.count() == 8
        summary = simpipe.summarize(dualpipe)
        for rank, row in zip(summary.per_rank, rows.all(), strict=True):
            assert f"{rank.busy:.6g}" in row.inner_text().split("\t")
        assert opened.page.get_attribute("#stage", "tabindex") == "0"
        assert opened.page.get_attribute("#told", "aria-live") == "polite"


# Pages of many results.


def test_results_are_sorted_filtered_and_drawn_on_a_click(opened: Opened, folder: Path) -> None:
    base = {
        "model": "layers=8,hidden=2048,heads=16,ffn=8192,vocab=32000", "hardware": "h100", "schedule": "1f1b",
        "gpus": 8, "global_batch": 64, "sequence": 2048,
    }  # fmt: skip
    rows = [base | {"ranks": ranks, "microbatch_size": size} for ranks in (2, 4) for size in (1, 2, 8)]
    rows += [base | {"ranks": 2, "microbatch_size": 16, "sequence": 65536, "note": HOSTILE}, base | {"ranks": 3}]
    rows = [row | evaluation.evaluated(row) for row in rows]
    assert [row["status"][:8] for row in rows[-2:]] == ["rank 1 d", "gpus = 8"]
    results.write(rows, [*base, "ranks", "microbatch_size", "note"], "results", folder / "results.html")
    page = opened.page
    page.goto((folder / "results.html").as_uri())
    lines = page.locator("tbody tr")

    def column(name: str) -> list[str]:
        heads = page.locator("th button").all_inner_texts()
        return [str(text) for text in page.locator(f"td:nth-child({heads.index(name) + 1})").all_inner_texts()]

    steps = [float(text) for text in column("step time s")[:-2]]
    assert steps == sorted(steps)
    assert column("status")[-2:] == [row["status"] for row in rows[-2:]]
    page.locator("th button", has_text="peak memory gb").click()
    memory = [float(text) for text in column("peak memory gb")[:-2]]
    assert memory == sorted(memory)
    page.get_by_label("filter ranks").fill("=4")
    assert lines.count() == 3
    page.get_by_label("filter ranks").fill("")
    page.get_by_label("filter status").fill("ok")
    assert lines.count() == 6
    lines.first.click()
    frame = page.frame_locator("#frame")
    frame.locator("html[data-ready]").wait_for(state="attached")
    frame.locator("#stage").press("n")  # the next bubble: what follows from it is drawn in the frame too
    assert "bubble" in frame.locator("body").inner_text()
    assert page.evaluate("window.hacked") is None
