"""A run in a notebook: its picture, and the figures of each rank as a table for readers who cannot see it."""

from __future__ import annotations

import base64
import html as markup
from dataclasses import asdict

from simpipe.simulator.summary import summarize
from simpipe.simulator.trace import Trace
from simpipe.simulator.views import lanes, picture

WIDTH = 12.0
"""Inches of the picture."""

MOST_RANKS = 64
"""Ranks that are drawn and listed; a run of more is told in its figures only."""

COLUMNS = {"stages": "stages", "busy": "busy (s)", "bubble_time": "bubble (s)", "peak_activations": "peak activations"}


def html(trace: Trace) -> str:
    """The run as HTML that loads nothing and runs nothing."""
    figures = summarize(trace)
    title = markup.escape(
        f"{lanes.title(trace)}: makespan {lanes.number(figures.makespan)} s, bubble rate {figures.bubble_rate:.2%}"
    )
    if trace.program.ranks > MOST_RANKS:
        return f"<p>{title}</p>"
    pixels = base64.b64encode(picture.image(trace, WIDTH)).decode()
    head = "".join(f"<th>{name}</th>" for name in ("rank", *COLUMNS.values()))
    rows = "".join(f"<tr>{_cells(rank, asdict(row))}</tr>" for rank, row in enumerate(figures.per_rank))
    return (
        f'<figure style="margin:0"><img alt="{title}" style="max-width:100%" src="data:image/png;base64,{pixels}">'
        f"<details><summary>{title}</summary><table><tr>{head}</tr>{rows}</table></details></figure>"
    )


def _cells(rank: int, row: dict[str, object]) -> str:
    values = [rank, *(row[name] for name in COLUMNS)]
    texts = (lanes.number(v) if isinstance(v, float) else markup.escape(str(v)) for v in values)
    return "".join(f"<td>{text}</td>" for text in texts)
