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

import numpy as np

from simpipe.simulator.costs.model_files import SHAPE_KEYS
from simpipe.simulator.files import atomic
from simpipe.simulator.planning.evaluation import trace_of
from simpipe.simulator.planning.tables import Row, told
from simpipe.simulator.views import document, palette, picture
from simpipe.simulator.views.html import page

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TIMELINES = 20
"""Rows of the front, and of the fastest that fit, whose timelines a page keeps."""

FIGURES = (
    "step_time_s", "tokens_per_s", "mfu", "bubble_rate", "exposed_communication_s", "peak_memory_gb",
    "gpu_hours_per_trillion_tokens", "cost_per_trillion_tokens_usd", "status",
)  # fmt: skip
"""Columns of results that the table shows, behind the input columns in which rows differ."""


def front(rows: Sequence[Row]) -> list[int]:
    """Which rows fit and have none of their model and batch that is at least as good in step time, memory and GPUs,
    the fastest first."""

    def merits(number: int) -> tuple[float, float, float]:
        row = rows[number]
        return row["step_time_s"], row.get("peak_memory_gb") or 0.0, row.get("gpus") or 0

    fitting = [number for number, row in enumerate(rows) if row.get("status") == "ok" and row.get("step_time_s")]
    found: list[int] = []
    for number in sorted(fitting, key=lambda n: (merits(n), n)):
        alike = [other for other in found if _basis(rows[other]) == _basis(rows[number])]
        if not any(all(a <= b for a, b in zip(merits(other), merits(number), strict=True)) for other in alike):
            found.append(number)
    return found


def _batch(row: Row) -> tuple[Any, Any]:
    return row.get("global_batch"), row.get("sequence")


def _basis(row: Row) -> tuple[Any, ...]:
    """What rows share that can be told apart by their step times: batch, and the model by name, sizes or costs."""
    sizes = None if row.get("model") else str([row.get(key) for key in (*SHAPE_KEYS, "costs", "microbatches")])
    return *_batch(row), row.get("model"), sizes


class Group(NamedTuple):
    """Rows of equal model, GPUs and batch, drawn in one colour: (GB, seconds, row number) of each and of the front."""

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

    models = {_basis(rows[number])[2:] for number in fits}
    members: dict[tuple[Any, ...], list[int]] = {}
    for number in fits:
        members.setdefault((rows[number].get("gpus") or 0, _basis(rows[number])), []).append(number)
    found = []
    for (gpus, (batch, _, model, _)), some in sorted(members.items(), key=str):
        words = [str(model or "no model's name")] if len(models) > 1 else []
        words += [f"{gpus} GPUs" if gpus else "rows", *([f"{batch} sequences a step"] if len(batches) > 1 else [])]
        found.append(Group(", ".join(words), [point(n) for n in some], sorted(point(n) for n in set(best) & set(some))))
    return "s a million tokens" if per_token else "step time, s", found


def write(rows: Sequence[Row], columns: Sequence[str], title: str, path: Path) -> None:
    """Write a page or the picture of some rows with their figures; `columns` are those of the input.

    Raises OutputError.
    """
    if path.suffix.lower() == ".html":
        _write_page(rows, columns, title, path)
    else:
        with atomic(path) as draft, picture.style():
            picture.save(_draw(rows, title), draft)


def _write_page(rows: Sequence[Row], columns: Sequence[str], title: str, path: Path) -> None:
    from plotly.offline import get_plotlyjs

    shown = [name for name in columns if len({str(row.get(name)) for row in rows}) > 1]
    shown += [name for name in FIGURES if any(row.get(name) is not None for row in rows)]
    constant = {name: rows[0].get(name) for name in columns if name not in shown and rows[0].get(name) is not None}
    best = front(rows)
    timelines = {number: page(trace_of(rows[number])) for number in _drawn(rows, best)}
    data = {
        "columns": shown,
        "rows": [[told(row.get(name)) for name in shown] for row in rows],
        "front": best,
        "fits": [row.get("status") == "ok" for row in rows],
        "timelines": {str(number): page for number, page in timelines.items()},
    }
    template = (files(__package__) / "page" / "results.html").read_text("utf-8")
    text = Template(template).substitute(
        policy=document.POLICY + "; frame-src 'self' about: data:",
        title=html.escape(title),
        constant=html.escape(_alike(constant)),
        counts=html.escape(f"{len(rows)} rows, {len(best)} of them on the Pareto front of step time, memory and GPUs"),
        data=_script(data),
        figure=document.embedded(figure(rows, best)),
        config=json.dumps(document.CONFIG),
        plotly=get_plotlyjs(),
    )
    with atomic(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="\n")


def _alike(constant: Row) -> str:
    """What all rows have, as a sentence."""
    words = ", ".join(f"{name} {told(value)}" for name, value in constant.items())
    return f"All rows: {words}." if words else ""


def _drawn(rows: Sequence[Row], best: Sequence[int]) -> list[int]:
    """The rows whose timelines are kept: the first of the front, and the fastest, those that fit before others."""
    timed = [(row["status"] != "ok", row["step_time_s"], n) for n, row in enumerate(rows) if row.get("step_time_s")]
    fastest = [number for *_, number in sorted(timed)]
    return list(dict.fromkeys([*best[:TIMELINES], *fastest[:TIMELINES]]))


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


def _draw(rows: Sequence[Row], title: str) -> Figure:
    """The Pareto plot: points of the fronts are numbered, and a key beside the axes says what they are."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    best = front(rows)
    label, found = groups(rows, best)
    unlike = [key for key in NAMING if len({str(rows[number].get(key)) for number in best}) > 1]
    most = max(2, KEY_LINES // max(1, len(found)))
    keys = [_named(rows, group, unlike, most) for group in found]
    lines = sum(len(key) + 1 for key in keys)
    drawing = Figure(figsize=(9.5, max(4.6, 0.6 + 0.17 * lines)), dpi=picture.DPI, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.subplots()
    handles, texts = [], []
    for place, (group, key) in enumerate(zip(found, keys, strict=True)):
        colour = COLOURS[place % len(COLOURS)]
        memory, seconds, _ = zip(*group.points, strict=True)
        points = axes.scatter(memory, seconds, s=16, color=colour, alpha=0.4, linewidths=0)
        axes.step([x for x, _, _ in group.line], [y for _, y, _ in group.line], where="post", color=colour, lw=1.5)
        handles += [points] + [Line2D([], [], linestyle="none")] * len(key)
        texts += [group.name, *(f"{number}  {name}" for number, (_, name) in enumerate(key, 1))]
    axes.margins(0.08)  # for numbers beside the outermost points
    axes.set_title(title, loc="left")
    axes.set_xlabel("peak memory of the fullest GPU, GB")
    axes.set_ylabel(label)
    axes.spines["left"].set_visible(True)
    if found:
        drawing.legend(handles, texts, loc="outside right upper", fontsize=7, labelcolor=palette.INK)
    drawing.draw_without_rendering()  # which settles where points lie
    for place, key in enumerate(keys):
        _number(axes, [at for at, _ in key], COLOURS[place % len(COLOURS)])
    return drawing


def _named(rows: Sequence[Row], group: Group, keys: Sequence[str], most: int) -> list[tuple[tuple[float, float], str]]:
    """(GB, seconds) of points of a front, both ends and evenly between them, and some keys of their rows."""
    chosen = np.unique(np.linspace(0, len(group.line) - 1, min(most, len(group.line))).round().astype(int))
    found = []
    for memory, seconds, number in (group.line[at] for at in chosen):
        cells = [(key, told(rows[number].get(key))) for key in keys if rows[number].get(key) is not None]
        words = [str(cell) if key in NAMED else f"{key.replace('_', ' ')} {cell}" for key, cell in cells]
        found.append(((memory, seconds), ", ".join(words) or f"row {number + 1}"))
    return found


def _number(axes: Axes, points: Sequence[tuple[float, float]], colour: str) -> None:
    """Number the points of a front on its side where no others of its group lie, those near to each other together."""
    runs: list[list[int]] = []
    places = axes.transData.transform(points) * 72 / axes.figure.dpi
    for at, place in enumerate(places):
        near = runs and np.all(np.abs(place - places[runs[-1][-1]]) < (10, 8))
        runs = [*runs[:-1], [*runs[-1], at]] if near else [*runs, [at]]
    for run in runs:
        text = f"{run[0] + 1}\N{EN DASH}{run[-1] + 1}" if run[1:] else f"{run[0] + 1}"
        axes.annotate(
            text, points[run[0]], xytext=(-2, -2), textcoords="offset points", ha="right", va="top", fontsize=7,
            color=colour,
        )  # fmt: skip


KEY_LINES = 36
"""Points of all fronts together that the key of a picture names, but two of each."""

NAMED = ("model", "hardware", "schedule")
NAMING = (*NAMED, "chunks", "ranks", "tp", "cp", "ep", "zero", "microbatch_size", "recompute", "precision", "overlap")
"""Keys that the key of a picture gives, and those that it gives without their name."""
