"""The page in a real browser: what is drawn is the trace, and nothing is fetched from anywhere."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import simpipe
from simpipe.simulator import bubbles, views
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.trace import Trace
from simpipe.simulator.views import detail, lanes, palette

pytest.importorskip("selenium", reason="selenium, of the extra `test`, is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(not (CHROMIUM and DRIVER), reason="chromium or chromedriver is not installed")

FLAGS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--no-first-run", "--no-proxy-server", "--window-size=1700,1000",
)  # fmt: skip

READY = "const t = document.getElementById('timeline'); return !!(t && t.calcdata && t.querySelector('.point path'))"
"""Whether the drawing is there."""

BLOCKS = """
const drawn = [];
for (const bars of document.getElementById(arguments[0]).calcdata) {
  const trace = bars[0].trace;
  if (trace.type !== 'bar') continue;
  for (const bar of bars) {
    drawn.push([trace.name, bar.b, bar.b + bar.s, bar.p, trace.width[bar.i]]);
  }
}
return drawn;
"""
"""Every bar of the drawing: name, start, end, y, height."""

RECTANGLES = """
return [...document.querySelectorAll('#timeline .trace.bars')].map(trace => [
  trace.__data__[0].trace.name, trace.querySelectorAll('.point path').length,
  [...trace.querySelectorAll('.point text')].map(text => text.textContent),
]);
"""
"""The shapes that the browser holds for each trace, and the text in them."""

HOVER = """
const t = document.getElementById(arguments[0]);
const curve = t.data.findIndex(trace => trace.name === arguments[1]);
Plotly.Fx.hover(t, [{curveNumber: curve, pointNumber: arguments[2]}]);
return [...t.querySelectorAll('.hoverlayer text')].map(text => text.textContent).join(' ');
"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM or ""
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


def run(name: str, ranks: int, microbatches: int, rename: str = "", **costs: float) -> Trace:
    program = simpipe.program(name, ranks=ranks, microbatches=microbatches)
    return simpipe.simulate(replace(program, name=rename or name), simpipe.Costs(**costs))


def show(browser: Any, trace: Trace, folder: Path) -> None:
    """Open the page of a run from disk and wait for its drawing."""
    from selenium.webdriver.support.ui import WebDriverWait

    views.write(trace, folder / "page.html")
    browser.get_log("browser")
    browser.get_log("performance")
    browser.get((folder / "page.html").as_uri())
    WebDriverWait(browser, 120).until(lambda driver: driver.execute_script(READY))


def hover(browser: Any, name: str, point: int, awaited: str, where: str = "timeline") -> str:
    """The hover text of a bar, once it has what is awaited: Plotly shows it after a short delay."""
    from selenium.webdriver.support.ui import WebDriverWait

    def told(driver: Any) -> str:
        text: str = driver.execute_script(HOVER, where, name, point)
        return text if awaited in text else ""

    return WebDriverWait(browser, 20).until(told)


CASES = {
    "dualpipe 8x20": ("dualpipe", 8, 20, {"FB": 3}),
    "with messages": ("dualpipe", 8, 20, {"FB": 3, "p2p": 0.5}),
    "zb-v 4x8": ("zb-v", 4, 8, {}),
    "many blocks": ("1f1b", 16, 300, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_the_drawn_blocks_are_the_trace(browser: Any, tmp_path: Path, case: str) -> None:
    name, ranks, microbatches, costs = CASES[case]
    trace = run(name, ranks, microbatches, **costs)
    show(browser, trace, tmp_path)
    drawn = browser.execute_script(BLOCKS, "timeline")
    expected = lanes.blocks(trace)
    for kind in palette.KINDS:
        rows = expected[expected["kind"] == kind][["start", "end", "y", "height"]].round(9).itertuples(index=False)
        bars = [[round(part, 9) for part in bar[1:5]] for bar in drawn if bar[0] == palette.LABELS[kind]]
        assert sorted(bars) == sorted(map(list, rows))
    found = bubbles.find(trace)
    idle = [(round(bar[1], 9), round(bar[2], 9), bar[3]) for bar in drawn if bar[0].startswith("bubble")]
    assert sorted(idle) == sorted(zip(found.start.round(9), found.end.round(9), found.rank, strict=True))


def test_shapes_and_numbers_are_on_the_screen(browser: Any, tmp_path: Path) -> None:
    trace = run("dualpipe", 8, 20, FB=3)
    show(browser, trace, tmp_path)
    shapes = {name: (count, texts) for name, count, texts in browser.execute_script(RECTANGLES)}
    frame = lanes.blocks(trace)
    for kind in "FIWB":
        part = frame[frame["kind"] == kind]
        count, texts = shapes[palette.LABELS[kind]]
        assert count == len(part)
        assert sorted(map(int, texts)) == sorted(part["microbatch"])
    assert shapes[palette.LABELS["F&B"]][0] == frame["paired"].sum() / 2


def test_hover_tells_what_a_block_is(browser: Any, tmp_path: Path) -> None:
    show(browser, run("dualpipe", 8, 20, FB=3), tmp_path)
    text = hover(browser, palette.LABELS["F"], 1, "0F1 on rank 0")
    assert "stage 0, micro-batch 1" in text
    assert "1 s to 2 s, lasts 1 s" in text
    assert "slack 1 s" in text
    text = hover(browser, "bubble: waits for forward", 0, "bubble on rank 0")
    assert "20 s to 23 s, lasts 3 s" in text
    assert "3 s waits for forward" in text


def test_no_error_no_request_no_upload(browser: Any, tmp_path: Path) -> None:
    show(browser, run("dualpipe", 8, 20, "<script>alert(1)</script><img src=x onerror=alert(2)>", FB=3), tmp_path)
    assert browser.get_log("browser") == []
    assert browser.execute_script("return performance.getEntriesByType('resource').map(entry => entry.name)") == []
    asked = [entry["message"] for entry in browser.get_log("performance") if "requestWillBeSent" in entry["message"]]
    assert all('"url":"file:' in message or '"url":"data:' in message for message in asked)
    buttons = browser.execute_script(
        "return [...document.querySelectorAll('.modebar-btn')].map(b => b.getAttribute('data-title'))"
    )
    assert buttons
    assert not any(word in title.lower() for title in buttons for word in ("share", "cloud", "edit in", "plotly"))
    assert "<script>alert(1)</script>" in browser.find_element("tag name", "h1").text
    assert browser.execute_script("return document.images.length") == 0


def test_zooming_shows_a_part(browser: Any, tmp_path: Path) -> None:
    show(browser, run("1f1b", 4, 8), tmp_path)
    browser.execute_script("Plotly.relayout('timeline', {'xaxis.range': [0, 5]})")
    assert browser.execute_script("return document.getElementById('timeline').layout.xaxis.range") == [0, 5]
    browser.execute_script("document.querySelector('.modebar-btn[data-title=\"Reset axes\"]').click()")
    assert browser.execute_script("return document.getElementById('timeline').layout.xaxis.range[1]") > 30


def test_one_slot_of_a_modelled_step_is_drawn_below(browser: Any, tmp_path: Path) -> None:
    layout = {"ranks": 4, "gpus": 256, "ep": 32, "global_batch": 512, "sequence": 4096}
    costs = ModelledCosts(load_model("deepseek-v2"), load_cluster("h800"), Parallel.of(layout))
    program = simpipe.program("dualpipe", ranks=4, microbatches=costs.parallel.microbatches)
    trace = simpipe.simulate(program, costs, "compiled")
    show(browser, trace, tmp_path)
    slot = detail.choose(trace)
    assert slot is not None
    drawn = detail.operations(trace, slot)
    bars = browser.execute_script(BLOCKS, "slot")
    found = sorted([round(part, 6) for part in bar[1:5]] for bar in bars)
    both = [frame[["start", "end", "y", "height"]].to_numpy(float) for frame in (drawn, detail.legs(drawn))]
    expected = [[round(part, 6) for part in (1e3 * a, 1e3 * b, y, h)] for rows in both for a, b, y, h in rows.tolist()]
    assert found == sorted(expected)
    part = drawn[(drawn["family"] == "attention") & (drawn["pass"] == "F")]
    text = hover(browser, "attention F", 0, str(part["operation"].iloc[0]), "slot")
    assert f"of {part['action'].iloc[0]}, forward" in text
    assert "on the compute stream" in text
    assert browser.get_log("browser") == []
