"""A self-contained page of text, tables and Plotly figures, one below the other; nothing in it reaches the network."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from simpipe.simulator.files import atomic
from simpipe.simulator.views import palette

if TYPE_CHECKING:
    import plotly.graph_objects as go

CONFIG = {
    "displaylogo": False,
    "displayModeBar": True,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "scrollZoom": True,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}
"""Plotly's settings: no button of it uploads anything."""

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"

LAYOUT: dict[str, Any] = {
    "template": "none",
    "margin": {"l": 70, "r": 20, "t": 30, "b": 46},
    "font": {"family": "system-ui, sans-serif", "size": 12, "color": palette.INK},
    "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom"},
}
"""What figures of a page have in common."""


class Text(NamedTuple):
    """A paragraph."""

    text: str


class Code(NamedTuple):
    """Lines to copy: a command, a file."""

    text: str


class Heading(NamedTuple):
    """What stands above a section."""

    text: str


class Table(NamedTuple):
    """Names of columns and rows of text; `left` are the columns that are left-aligned."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: tuple[int, ...] = (0,)


class Chart(NamedTuple):
    """A Plotly figure whose layout states its height."""

    figure: go.Figure


class Image(NamedTuple):
    """A PNG in base64, and what it shows in words."""

    text: str
    png: str


Part = Text | Code | Heading | Table | Chart | Image


def write(title: str, parts: Sequence[Part], path: Path) -> None:
    """Write the page. Raises OutputError."""
    from plotly.offline import get_plotlyjs

    figures = [part.figure for part in parts if isinstance(part, Chart)]
    calls = [
        f"const f{number} = {embedded(figure)};\n"
        f'Plotly.newPlot("chart{number}", f{number}.data, f{number}.layout, {json.dumps(CONFIG)});\n'
        for number, figure in enumerate(figures)
    ]
    number, body = 0, []
    for part in parts:
        body.append(_shown(part, number))
        number += isinstance(part, Chart)
    page = PAGE.format(
        policy=POLICY,
        title=html.escape(title),
        body="\n".join(body),
        plotly=get_plotlyjs() if figures else "",
        calls="".join(calls),
    )
    with atomic(path) as draft:
        draft.write_text(page, encoding="utf-8", newline="\n")


def embedded(figure: go.Figure) -> str:
    """A figure as JSON that may stand in a script."""
    return str(figure.to_json(engine="json")).replace("<", "\\u003c")


def _shown(part: Part, number: int) -> str:
    match part:
        case Text(text):
            return f"<p>{html.escape(text)}</p>"
        case Code(text):
            return f"<pre>{html.escape(text)}</pre>"
        case Heading(text):
            return f"<h2>{html.escape(text)}</h2>"
        case Table(header, rows, left):
            head = _cells("th", header, left)
            body = "\n".join(f"<tr>{_cells('td', row, left)}</tr>" for row in rows)
            return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>"
        case Image(text, png):
            return f'<img alt="{html.escape(text)}" src="data:image/png;base64,{png}">'
        case Chart(figure):
            return f'<div id="chart{number}" style="height:{figure.layout.height}px"></div>'


def _cells(tag: str, texts: Sequence[str], left: tuple[int, ...]) -> str:
    sides = [' class="left"' if number in left else "" for number in range(len(texts))]
    return "".join(f"<{tag}{side}>{html.escape(text)}</{tag}>" for side, text in zip(sides, texts, strict=True))


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 14px/1.5 system-ui, sans-serif; color: #1b1b1b; margin: 18px 24px; }}
h1 {{ font-size: 19px; margin: 0 0 4px; overflow-wrap: anywhere; }}
h2 {{ font-size: 16px; margin: 26px 0 2px; }}
p {{ margin: 4px 0 6px; max-width: 72em; }}
pre {{ margin: 4px 0 6px; padding: 4px 8px; background: #f5f5f5; font-size: 12px; white-space: pre-wrap; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; margin-top: 8px; }}
th, td {{ text-align: right; padding: 3px 12px; border-bottom: 1px solid #e6e6e6; }}
.left {{ text-align: left; }}
th {{ font-weight: 600; color: #555; }}
img {{ max-width: 100%; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
<script>{plotly}</script>
<script>
{calls}</script>
</body>
</html>
"""
