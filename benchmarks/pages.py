"""How large a timeline's page is, how long it takes to write, to open, and to look elsewhere; beside Plotly's bars.

    python benchmarks/pages.py [--all]

Needs the extra `test` and chromium. Each figure is the best of several: seconds of writing, milliseconds from opening
to the first drawing, and milliseconds of drawing another part of the run to the last pixel, zoomed in by 1, 4, 16, 64.
Plotly's bars are drawn in the same browser, with numbers in the blocks, up to a size; with --all also at 64 x 512,
which takes minutes. The last lines say why columns are compressed at the level that they are.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from playwright.sync_api import sync_playwright

import simpipe
from simpipe.simulator import views
from simpipe.simulator.trace import Trace
from simpipe.simulator.views import columns, lanes, palette, payload
from simpipe.simulator.views.document import CONFIG

SIZES = ((8, 20), (16, 128), (64, 512), (64, 4096))
PLOTLY = ((8, 20), (16, 128))
SLOWER = ((64, 512),)

LOOK = """() => {
  const {first, view} = timeline, span = timeline.runs[0].span, slowest = {};
  const context = document.getElementById('lanes').getContext('2d');
  for (const zoom of [1, 4, 16, 64]) {
    const times = [];
    for (let k = 0; k < 7; k++) {
      const from = (span - span / zoom) * (0.2 + 0.1 * k);
      const before = performance.now();
      timeline.look(from, from + span / zoom);
      timeline.drawNow();
      context.getImageData(0, 0, 1, 1); // until all is drawn, not only recorded
      times.push(performance.now() - before);
    }
    slowest[zoom] = Math.min(...times);
  }
  return slowest;
}"""

RELAYOUT = """() => {
  const plot = document.querySelector('.plotly-graph-div'), span = plot.layout.xaxis.range[1];
  const before = performance.now();
  return Plotly.relayout(plot, {'xaxis.range': [0.3 * span, 0.55 * span]}).then(() => performance.now() - before);
}"""


def measure(browser: Any, path: Path, ready: str) -> tuple[float, Any]:
    """Milliseconds until the page is drawn, best of three, and the page as opened last."""
    found, page = [], None
    for _ in range(3):
        if page:
            page.close()
        page = browser.new_page(viewport={"width": 1500, "height": 950})
        page.set_default_timeout(600_000)
        page.goto(path.as_uri())
        found.append(page.evaluate(ready))
    return min(found), page


READY = "() => new Promise(done => (function look() { const at = document.documentElement.dataset.ready; "
READY += "at ? done(Number(at)) : setTimeout(look, 5); })())"

PLOTTED = (
    "() => new Promise(done => (function look() { document.querySelector('.point path') ? done(performance.now()) "
)
PLOTTED += ": setTimeout(look, 5); })())"


def draw(trace: Trace) -> go.Figure:
    """A run as Plotly bars with numbers."""
    figure = go.Figure()
    frame = lanes.blocks(trace)
    for kind, colour in palette.KINDS.items():
        part = frame[frame["kind"] == kind]
        figure.add_bar(
            orientation="h", base=part["start"], x=part["end"] - part["start"], y=part["y"], width=part["height"],
            text=part["microbatch"].astype(str), textposition="inside", marker={"color": colour}, name=kind,
        )  # fmt: skip
    figure.update_layout(barmode="overlay", template="none", height=700, xaxis={"range": [0, trace.makespan]})
    return figure


def main() -> None:
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    plotly = PLOTLY + (SLOWER if "--all" in sys.argv else ())
    print(f"{'':<34}{'blocks':>8}{'size':>10}{'written':>9}{'opens':>9}   draws, zoomed in by 1, 4, 16, 64")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for ranks, microbatches in SIZES:
            program = simpipe.program("zb-h1", ranks=ranks, microbatches=microbatches)
            for costs, words in ((simpipe.Costs(p2p=0.1), "three kinds"), (uneven(program), "every duration its own")):
                seconds, path = [], Path(folder) / "page.html"
                for _ in range(3):
                    trace = simpipe.simulate(program, costs, "compiled")
                    before = time.perf_counter()
                    views.write(trace, path)
                    seconds.append(time.perf_counter() - before)
                opens, page = measure(browser, path, READY)
                looks = page.evaluate(LOOK)
                page.close()
                show(f"{ranks} x {microbatches}, {words}", program.slots, path, min(seconds), opens, looks.values())
            if (ranks, microbatches) in plotly:
                before = time.perf_counter()
                draw(trace).write_html(path, config=CONFIG)
                written = time.perf_counter() - before
                opens, page = measure(browser, path, PLOTTED)
                show("    as Plotly's bars", program.slots, path, written, opens, [page.evaluate(RELAYOUT)])
                page.close()
        browser.close()
    compress(trace)


def compress(trace: Trace) -> None:
    """The columns of the largest page at several levels of zlib."""
    for level in (1, 3, 5, 6, 9):
        columns.LEVEL, packed = level, columns.Columns()
        payload.add(packed, "", trace, simpipe.summarize(trace))
        before = time.perf_counter()
        size = len(packed.packed()) / 1e3
        print(f"zlib level {level}: {size:7,.0f} kB in {time.perf_counter() - before:.2f} s")


def uneven(program: simpipe.Program) -> simpipe.Costs:
    """Costs of which no two are the same: what a page of a measured run has to carry."""
    import numpy as np

    random = np.random.default_rng(0)
    shape = (program.stages, program.microbatches)
    return simpipe.Costs(**{kind: random.uniform(0.9, 1.1, shape) for kind in "FIW"}, p2p=0.1)


def show(label: str, blocks: int, path: Path, seconds: float, opens: float, draws: Any) -> None:
    """One line of the table."""
    size = path.stat().st_size / 1e3
    times = " ".join(f"{value:7.0f}" for value in draws)
    print(f"{label:<34}{blocks:>8,}{size:>7,.0f} kB{seconds:>7.2f} s{opens:>6.0f} ms   {times} ms", flush=True)


if __name__ == "__main__":
    main()
