"""Report: a calibration as one self-contained page: measured against fitted, residuals, and the slot that was recorded
beside the one simulated on the fitted profile."""

from __future__ import annotations

import html
import json
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simpipe.simulator.calibration.calibrate import Calibration, describe
from simpipe.simulator.calibration.curves import Curve
from simpipe.simulator.calibration.slot import Slots
from simpipe.simulator.views import palette
from simpipe.simulator.views.document import CONFIG, POLICY

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_DRAWN = 600
"""Timings of a curve that are drawn."""


def write(found: Calibration, path: Path) -> None:
    """Write the page."""
    from plotly.offline import get_plotlyjs

    figures = [draw_slots(slots) for slots in found.slots] + [draw_curve(curve) for curve in found.curves]
    divisions, calls = [], []
    for number, figure in enumerate(figures):
        divisions.append(f'<div id="f{number}" style="height:{figure.layout.height}px"></div>')
        embedded = str(figure.to_json(engine="json")).replace("<", "\\u003c")
        calls.append(f'{{const f = {embedded}; Plotly.newPlot("f{number}", f.data, f.layout, {json.dumps(CONFIG)});}}')
    page = PAGE.format(
        policy=POLICY,
        title=html.escape(f"{found.base.name}, calibrated"),
        figures="\n".join(divisions),
        text=html.escape("\n".join(describe(found))),
        plotly=get_plotlyjs(),
        calls="\n".join(calls),
    )
    path.write_text(page, encoding="utf-8", newline="\n")


def draw_curve(curve: Curve) -> go.Figure:
    """Fitted against measured time, and the residuals by work."""
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=2, horizontal_spacing=0.09)
    for label, rows, colour in (("fitted", ~curve.tested, "#77AADD"), ("left out", curve.tested, "#EE8866")):
        chosen = np.flatnonzero(rows)
        chosen = chosen[np.linspace(0, len(chosen) - 1, min(len(chosen), MOST_DRAWN)).round().astype(int)]
        if not len(chosen):
            continue
        measured, predicted = curve.measured[chosen], curve.predicted[chosen]
        marker = {"color": colour, "size": 4, "opacity": 0.6}
        figure.add_scatter(
            x=measured, y=predicted, mode="markers", marker=marker, name=f"{label} ({rows.sum()})", row=1, col=1
        )
        figure.add_scatter(
            x=curve.problem.work[chosen], y=100 * (predicted / measured - 1), mode="markers", marker=marker,
            showlegend=False, row=1, col=2,
        )  # fmt: skip
    ends = [float(curve.measured.min()), float(curve.measured.max())]
    figure.add_scatter(x=ends, y=ends, mode="lines", line={"color": palette.INK, "width": 1}, showlegend=False)
    figure.update_xaxes(title="measured, s", type="log", exponentformat="power", row=1, col=1)
    figure.update_yaxes(title="fitted, s", type="log", exponentformat="power", row=1, col=1)
    scale = "log" if curve.problem.unit else "linear"
    figure.update_xaxes(title=curve.problem.unit, type=scale, exponentformat="power", row=1, col=2)
    figure.update_yaxes(title="error, %", zeroline=True, row=1, col=2)
    mean, absolute = curve.error(curve.judged)
    title = f"{curve.operator} {curve.format}".rstrip() + f": mean error {mean:+.1%}, mean absolute {absolute:.1%}"
    figure.update_layout(title=title, height=380, template="simple_white", margin={"l": 70, "r": 20, "t": 50, "b": 50})
    return figure


COLOURS = {"F": palette.KINDS["F"], "B": palette.KINDS["B"], "W": palette.KINDS["W"]}


def draw_slots(slots: Slots) -> go.Figure:
    """Recorded above simulated, a lane a stream."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for side, phases in (("recorded", slots.measured), ("simulated", slots.simulated)):
        for phase in phases:
            letter = next((kind for kind in COLOURS if f"({kind})" in phase.name), "F")
            figure.add_bar(
                base=[1e3 * phase.start], x=[1e3 * (phase.end - phase.start)], y=[f"{side} {phase.stream}"],
                orientation="h", text=[phase.name], textposition="inside", insidetextanchor="middle", textangle=0,
                constraintext="inside", marker={"color": COLOURS[letter], "line": {"color": "white", "width": 1}},
                hovertext=[f"{phase.name} {phase.layer}: {1e3 * phase.seconds:.3f} ms"], hoverinfo="text",
                showlegend=False, cliponaxis=True,
            )  # fmt: skip
    error = slots.simulated_span / slots.measured_span - 1
    spans = f"recorded {1e3 * slots.measured_span:.2f} ms, simulated {1e3 * slots.simulated_span:.2f} ms"
    title = f"Overlapped slot: {spans} ({error:+.1%})"
    lanes = [f"{side} {stream}" for side in ("recorded", "simulated") for stream in ("compute", "expert-parallel")]
    figure.update_layout(
        title=title, height=340, barmode="overlay", template="simple_white", bargap=0.25,
        uniformtext={"minsize": 9, "mode": "hide"},
        xaxis={"title": "ms"}, yaxis={"categoryorder": "array", "categoryarray": lanes[::-1]},
        margin={"l": 190, "r": 20, "t": 50, "b": 50},
    )  # fmt: skip
    return figure


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 14px/1.45 system-ui, sans-serif; color: #1b1b1b; margin: 18px 24px; }}
h1 {{ font-size: 18px; margin: 0 0 4px; }}
pre {{ font: 12.5px/1.4 ui-monospace, monospace; overflow-x: auto; }}
</style>
</head>
<body>
<h1>{title}</h1>
{figures}
<pre>{text}</pre>
<script>{plotly}</script>
<script>
{calls}
</script>
</body>
</html>
"""
