"""Report: a calibration as one self-contained page: measured against fitted, residuals, and the slot that was recorded
beside the one simulated on the fitted profile."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simpipe.simulator.calibration.calibrate import Calibration, about, orders_of
from simpipe.simulator.calibration.curves import Curve
from simpipe.simulator.calibration.slot import Slots
from simpipe.simulator.views import document, palette

if TYPE_CHECKING:
    import plotly.graph_objects as go

MOST_DRAWN = 600
"""Timings of a curve that are drawn."""


def write(found: Calibration, path: Path) -> None:
    """Write the page. Raises OutputError."""
    parts: list[document.Part] = [document.Text(line) for line in about(found)]
    if not found.curves:
        passes = [document.Text(line) for line in found.profile.splitlines()]
        document.write("Costs of a step", [*parts, *passes], path)
        return
    for slots in found.slots:
        phases = [(name, *slots.seconds(name)) for name in dict.fromkeys(phase.name for phase in slots.measured)]
        rows = [(name, f"{1e3 * m:.3f}", f"{1e3 * s:.3f}", f"{s / m - 1:+.1%}") for name, m, s in phases]
        table = document.Table(("phase, mean of its layers", "measured, ms", "simulated, ms", "error"), rows)
        orders = [document.Text(line) for line in orders_of(slots)]
        parts += [document.Chart(draw_slots(slots)), *orders, table]
    for curve in found.curves:
        fitted = zip(curve.names, curve.fit.values, curve.fit.sigma, curve.problem.parameters, strict=True)
        rows = [(n, f"{value:.4g}", f"{sigma:.2g}", f"{p.start:.4g}") for n, value, sigma, p in fitted]
        table = document.Table(("parameter", "fitted", "standard deviation", "base"), rows)
        parts += [document.Chart(draw_curve(curve)), table]
    document.write(f"{found.base.name}, calibrated to {len(found.timings.table)} timings", parts, path)


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
        marker = {"color": colour, "size": 6, "opacity": 0.7}
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
