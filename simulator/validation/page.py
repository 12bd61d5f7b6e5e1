"""Predicted against measured, family by family, as one page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from simpipe.simulator.validation.report import Errors, Result
from simpipe.simulator.views import document, palette

if TYPE_CHECKING:
    import plotly.graph_objects as go

ENDINGS = (".html",)

BANDS = ((0.05, "#CCDDAA"), (0.15, "#EEEEBB"))
"""Errors within which cases are shaded, the aim of the mean and that of any case."""

HEIGHT = 380


def write(results: Sequence[Result], said: str, path: Path) -> None:
    """Write the page: a table, and for each family what was predicted against what was measured."""
    parts: list[document.Part] = [document.Text(said), _table(results)]
    for result in results:
        parts += [document.Heading(result.family.title), document.Text(_sentence(result))]
        if result.time:
            parts.append(document.Chart(_scatter(result)))
    document.write("Predicted against measured", parts, path)


def _table(results: Sequence[Result]) -> document.Table:
    header = ("family", "cases", "bias", "mean error", "worst", "memory: mean", "worst", "counts for the aim", "others")
    rows = [
        (
            r.family.title,
            str(len(r.outcomes)),
            *_figures(r.time, bias=True),
            *_figures(r.memory),
            "yes" if r.aimed else "no: settings are left open" if r.family.choices else "no: a replay",
            r.family.others,
        )
        for r in results
    ]
    return document.Table(header, rows)


def _figures(errors: Errors | None, bias: bool = False) -> tuple[str, ...]:
    if errors is None:
        return ("",) * (2 + bias)
    return (*([f"{errors.bias:+.1%}"] if bias else []), f"{errors.mean:.1%}", f"{errors.worst:+.1%}")


def _sentence(result: Result) -> str:
    family = result.family
    assumed = "; ".join(family.assumed)
    parts = [family.source, f"Assumed: {assumed}" if assumed else "", f"MFU: {family.mfu}"]
    return ". ".join(part for part in (*parts, f"Fitted: {family.fitted}" if family.fitted else "") if part) + "."


def _scatter(result: Result) -> go.Figure:
    """Ratio of predicted to measured over measured time: a perfect prediction lies at 1."""
    import plotly.graph_objects as go

    figure = go.Figure()
    for band, colour in reversed(BANDS):
        figure.add_hrect(y0=1 - band, y1=1 + band, fillcolor=colour, opacity=0.5, line_width=0, layer="below")
    figure.add_hline(y=1, line={"color": palette.INK, "width": 1})
    shown = [(o, o.errors) for o in result.outcomes if o.errors]
    middle = [1 + sum(errors) / 2 for _, errors in shown]
    figure.add_scatter(
        x=[o.measured for o, _ in shown],
        y=middle,
        mode="markers",
        marker={"size": 6, "opacity": 0.7, "color": "#4477AA"},
        error_y={"type": "data", "array": [1 + high - at for (_, (_, high)), at in zip(shown, middle, strict=True)]}
        if result.family.choices
        else None,
        text=[o.case.name for o, _ in shown],
        hovertemplate="%{text}<br>measured %{x:.4g} s, predicted over measured %{y:.3f}<extra></extra>",
        showlegend=False,
    )
    axes: dict[str, Any] = {
        "xaxis": {"title": {"text": "measured, s"}, "type": "log"},
        "yaxis": {"title": {"text": "predicted / measured"}},
    }
    figure.update_layout(**(document.LAYOUT | axes), height=HEIGHT)
    return figure
