"""A page of many configurations: a table to sort and filter, their Pareto plot, and the timelines of some on a click.

It is one file that reaches no network. Text of users is set as text; timelines are the pages of `html.py`, kept whole.
"""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, NamedTuple

from simpipe.simulator.files import atomic
from simpipe.simulator.planning.evaluation import trace_of
from simpipe.simulator.planning.tables import Row, plain
from simpipe.simulator.views import document, palette, picture
from simpipe.simulator.views.html import page

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

TIMELINES = 20
"""Rows of the front, and of the fastest that fit, whose timelines a page keeps."""

FIGURES = (
    "step_time_s", "tokens_per_s", "mfu", "bubble_rate", "exposed_communication_s", "peak_memory_gb",
    "gpu_hours_per_trillion_tokens", "cost_per_trillion_tokens_usd", "status",
)  # fmt: skip
"""Columns of results that the table shows, behind the input columns in which rows differ."""


def front(rows: Sequence[Row]) -> list[int]:
    """Which rows fit and have none of their batch that is at least as good in step time, memory and GPUs, the fastest
    first."""

    def merits(number: int) -> tuple[float, float, float]:
        row = rows[number]
        return row["step_time_s"], row.get("peak_memory_gb") or 0.0, row.get("gpus") or 0

    fitting = [number for number, row in enumerate(rows) if row.get("status") == "ok" and row.get("step_time_s")]
    found: list[int] = []
    for number in sorted(fitting, key=lambda n: (merits(n), n)):
        alike = [other for other in found if _batch(rows[other]) == _batch(rows[number])]
        if not any(all(a <= b for a, b in zip(merits(other), merits(number), strict=True)) for other in alike):
            found.append(number)
    return found


def _batch(row: Row) -> tuple[Any, Any]:
    return row.get("global_batch"), row.get("sequence")


class Group(NamedTuple):
    """Rows of equal GPUs and batch that are drawn in one colour: (GB, seconds, row number) of each and of the front."""

    name: str
    points: list[tuple[float, float, int]]
    line: list[tuple[float, float, int]]


def groups(rows: Sequence[Row], best: Sequence[int]) -> tuple[str, list[Group]]:
    """What fits, and what the seconds are of: a step, or a million tokens where batches differ."""
    fits = [number for number, row in enumerate(rows) if row.get("status") == "ok" and row.get("peak_memory_gb")]
    batches = {_batch(rows[number]) for number in fits}
    per_token = len(batches) > 1 and all(rows[number].get("tokens_per_s") for number in fits)

    def point(number: int) -> tuple[float, float, int]:
        row = rows[number]
        return row["peak_memory_gb"], 1e6 / row["tokens_per_s"] if per_token else row["step_time_s"], number

    found = []
    for gpus, batch in sorted({(rows[n].get("gpus") or 0, _batch(rows[n])) for n in fits}, key=str):
        some = [n for n in fits if ((rows[n].get("gpus") or 0), _batch(rows[n])) == (gpus, batch)]
        name = (f"{gpus} GPUs" if gpus else "rows") + (f", {batch[0]} sequences a step" if len(batches) > 1 else "")
        found.append(Group(name, [point(n) for n in some], sorted(point(n) for n in best if n in set(some))))
    return "s a million tokens" if per_token else "step time, s", found


def write(rows: Sequence[Row], columns: Sequence[str], title: str, path: Path) -> None:
    """Write a page or the picture of some rows with their figures; `columns` are those of the input.

    Raises OutputError.
    """
    (_write_page if path.suffix.lower() == ".html" else _write_picture)(rows, columns, title, path)


def _write_page(rows: Sequence[Row], columns: Sequence[str], title: str, path: Path) -> None:
    from plotly.offline import get_plotlyjs

    shown = [name for name in columns if len({str(row.get(name)) for row in rows}) > 1]
    shown += [name for name in FIGURES if any(row.get(name) is not None for row in rows)]
    constant = {name: rows[0].get(name) for name in columns if name not in shown and rows[0].get(name) is not None}
    best = front(rows)
    timelines = {number: page(trace_of(rows[number])) for number in _drawn(rows, best)}
    data = {
        "columns": shown,
        "rows": [[_cell(row.get(name)) for name in shown] for row in rows],
        "front": best,
        "fits": [row.get("status") == "ok" for row in rows],
        "timelines": {str(number): page for number, page in timelines.items()},
    }
    template = (files(__package__) / "page" / "results.html").read_text("utf-8")
    text = Template(template).substitute(
        policy=document.POLICY + "; frame-src 'self' about: data:",
        title=html.escape(title),
        constant=html.escape(", ".join(f"{name} {_cell(value)}" for name, value in constant.items())),
        counts=html.escape(f"{len(rows)} rows, {len(best)} of them on the Pareto front of step time, memory and GPUs"),
        data=_script(data),
        figure=document.embedded(figure(rows, best)),
        config=json.dumps(document.CONFIG),
        plotly=get_plotlyjs(),
    )
    with atomic(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def _drawn(rows: Sequence[Row], best: Sequence[int]) -> list[int]:
    """The rows whose timelines are kept: the first of the front, and the fastest, those that fit before others."""
    timed = [(row["status"] != "ok", row["step_time_s"], n) for n, row in enumerate(rows) if row.get("step_time_s")]
    fastest = [number for *_, number in sorted(timed)]
    return list(dict.fromkeys([*best[:TIMELINES], *fastest[:TIMELINES]]))


def _cell(value: Any) -> Any:
    return "none" if value in ([], ()) else plain(value)


def _script(value: Any) -> str:
    """JSON that may stand in a script."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")


def figure(rows: Sequence[Row], best: Sequence[int]) -> go.Figure:
    """Step time over memory of what fits, the front as a line; a number of GPUs is a colour."""
    import plotly.graph_objects as go

    chart = go.Figure(layout=document.LAYOUT)
    title, found = groups(rows, best)
    for place, group in enumerate(found):
        colour = COLOURS[place % len(COLOURS)]
        memory, seconds, numbers = zip(*group.points, strict=True)
        chart.add_scatter(
            x=memory, y=seconds, customdata=numbers, text=[n + 1 for n in numbers], mode="markers", name=group.name,
            marker={"size": 7, "color": colour, "opacity": 0.55},
            hovertemplate="row %{text}: %{y:.4g} s, %{x:.1f} GB<extra></extra>",
        )  # fmt: skip
        chart.add_scatter(
            x=[x for x, _, _ in group.line], y=[y for _, y, _ in group.line], mode="lines", hoverinfo="skip",
            name="front", line={"shape": "hv", "color": colour, "width": 1.5},
        )  # fmt: skip
    chart.update_layout(
        height=380, xaxis_title="peak memory of the fullest GPU, GB", yaxis_title=title, hovermode="closest"
    )
    return chart


COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Okabe and Ito's, told apart by everyone."""


def _write_picture(rows: Sequence[Row], columns: Sequence[str], title: str, path: Path) -> None:
    """Write the Pareto plot as PNG or SVG."""
    with atomic(path) as draft, picture.style():
        picture.save(_pareto(rows, title), draft)


def _pareto(rows: Sequence[Row], title: str) -> Figure:
    from matplotlib.figure import Figure

    best = front(rows)
    drawing = Figure(figsize=(8, 5), layout="constrained")
    axes = drawing.subplots()
    label, found = groups(rows, best)
    for place, group in enumerate(found):
        colour = COLOURS[place % len(COLOURS)]
        memory, seconds, _ = zip(*group.points, strict=True)
        axes.scatter(memory, seconds, s=16, color=colour, alpha=0.4, linewidths=0, label=group.name)
        axes.step([x for x, _, _ in group.line], [y for _, y, _ in group.line], where="post", color=colour, lw=1.5)
        _label(axes, rows, group)
    axes.set_title(title, fontsize=10, loc="left")
    axes.set_xlabel("peak memory of the fullest GPU, GB")
    axes.set_ylabel(label)
    axes.spines["left"].set_visible(True)
    if found:
        axes.legend()
    return drawing


def _label(axes: Any, rows: Sequence[Row], group: Group, most: int = 8) -> None:
    """Name the rows of a front by what they differ in."""
    keys = [key for key in NAMING if len({str(rows[number].get(key)) for _, _, number in group.line}) > 1]
    for memory, seconds, number in group.line[:most]:
        row = rows[number]
        text = " ".join(str(_cell(row.get(key))) if key in NAMED else f"{key}={_cell(row.get(key))}" for key in keys)
        axes.annotate(
            text, (memory, seconds), xytext=(5, 4), textcoords="offset points", fontsize=6.5, color=palette.INK
        )


NAMED = ("schedule", "recompute")
NAMING = ("schedule", "ranks", "tp", "ep", "microbatch_size", "recompute", "chunks")
"""Keys that a label of the picture gives, and those that it gives without their name."""
