"""Interactive timeline as one self-contained page: Plotly drawing, memory under it, one slot, figures per rank.

Nothing in the page reaches the network: Plotly is inside, its share button is off, and the page's own policy
forbids loading. Text that a user wrote appears only in HTML, escaped, never in the figure.
"""

from __future__ import annotations

import html
import itertools
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simpipe.simulator import bubbles
from simpipe.simulator.graph import OVERLAPPED
from simpipe.simulator.summary import RankSummary, Summary, summarize
from simpipe.simulator.trace import Trace
from simpipe.simulator.views import detail, lanes, palette

if TYPE_CHECKING:
    import pandas as pd
    import plotly.graph_objects as go

ENDINGS = (".html",)

NUMBERED, SINGLE, MERGED = 8_000, 100_000, 40_000
"""Blocks up to which they carry numbers, up to which each is drawn, and about how many are drawn of more."""

CONFIG = {
    "displaylogo": False,
    "displayModeBar": True,
    "showSendToCloud": False,
    "plotlyServerURL": "",
    "scrollZoom": True,
    "responsive": True,
    "modeBarButtonsToRemove": ["select2d", "lasso2d", "autoScale2d"],
}

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:"


def write(trace: Trace, path: Path) -> None:
    """Write the page of a run."""
    from plotly.offline import get_plotlyjs

    summary = summarize(trace)
    figure, notes = draw(trace)
    page = PAGE.format(
        policy=POLICY,
        title=html.escape(lanes.title(trace)),
        headline=_headline(summary),
        notes="".join(f'<p class="note">{note}</p>' for note in notes),
        height=figure.layout.height,
        table=_table(summary),
        plotly=get_plotlyjs(),
        figure=_embedded(figure),
        config=json.dumps(CONFIG),
        **_slot_in_detail(trace),
    )
    path.write_text(page, encoding="utf-8", newline="\n")


def _embedded(figure: go.Figure) -> str:
    return str(figure.to_json(engine="json")).replace("<", "\\u003c")


def _slot_in_detail(trace: Trace) -> dict[str, str]:
    """What the page has below the timeline, and the call that draws it; empty where slots have no operations."""
    slot = detail.choose(trace)
    if slot is None:
        return {"detail": "", "plot_detail": ""}
    figure = draw_slot(trace, slot)
    text = html.escape(detail.sentence(trace, slot))
    return {
        "detail": f'<h2>One slot in detail</h2>\n<p class="slot">{text}</p>\n'
        f'<div id="slot" style="height:{figure.layout.height}px"></div>\n',
        "plot_detail": f"const slot = {_embedded(figure)};\n"
        f'Plotly.newPlot("slot", slot.data, slot.layout, {json.dumps(CONFIG)});\n',
    }


def draw(trace: Trace) -> tuple[go.Figure, list[str]]:
    """The Plotly figure of a run, and what it leaves out, in sentences."""
    import plotly.graph_objects as go

    figure = go.Figure()
    drawn = lanes.blocks(trace)
    column = lanes.horizon(trace) / max(20, MERGED // (trace.program.ranks * drawn["kind"].nunique()))
    single = len(drawn) <= SINGLE
    bubble_notes = _add_bubbles(figure, trace, 0.0 if single else column)  # first, so that they lie below
    block_notes = _add_blocks(figure, drawn) if single else _add_columns(figure, trace, drawn, column)
    steps, unit = lanes.memory(trace)
    memory_notes = _add_memory(figure, trace, steps, unit)
    figure.update_layout(_layout(trace, unit))
    return figure, block_notes + bubble_notes + memory_notes


def _add_blocks(figure: go.Figure, drawn: pd.DataFrame) -> list[str]:
    """A bar a block, by kind; returns what is left out."""
    numbered = len(drawn) <= NUMBERED
    for kind in palette.KINDS:
        part = drawn[drawn["kind"] == kind]
        if len(part):
            text = _texts(part) if numbered else None
            told = part.assign(lasts=part["end"] - part["start"])
            data = told[["rank", "stage", "microbatch", "end", "lasts", "slack", "slot"]].to_numpy(float)
            _add_bars(figure, part, kind, data, _hover(kind), text, 0.6 if numbered else 0.0)
    pairs = lanes.pairs(drawn)
    if len(pairs) and numbered:
        figure.add_bar(
            **_boxes(pairs),
            name=palette.LABELS["F&B"],
            marker={"color": "rgba(0,0,0,0)", "line": {"color": palette.INK, "width": 1.1}},
            hoverinfo="skip",
            legendrank=1050,
        )
    note = f"{len(drawn):,} blocks are drawn without their micro-batch numbers: hover to read them."
    return [] if numbered else [note]


def _hover(kind: str) -> str:
    action = "optimizer step" if kind == "optimizer" else f"%{{customdata[1]}}{kind}%{{customdata[2]}}"
    where = "" if kind == "optimizer" else "stage %{customdata[1]}, micro-batch %{customdata[2]}<br>"
    return (
        f"<b>{action}</b> on rank %{{customdata[0]}}<br>{where}"
        "%{base:.6~g} s to %{customdata[3]:.6~g} s, lasts %{customdata[4]:.6~g} s<br>"
        "slack %{customdata[5]:.6~g} s, slot %{customdata[6]}<extra></extra>"
    )


def _add_columns(figure: go.Figure, trace: Trace, drawn: pd.DataFrame, column: float) -> list[str]:
    """Blocks merged into columns of time; returns the sentence that says so."""
    merged = lanes.columns(trace, drawn, round(lanes.horizon(trace) / column))
    hover = (
        "rank %{customdata[0]}, %{base:.6~g} s to %{customdata[1]:.6~g} s:<br>"
        "%{customdata[2]:.6~g} s of <b>KIND</b><extra></extra>"
    )
    for kind in palette.KINDS:
        part = merged[merged["kind"] == kind]
        if len(part):
            data = part[["rank", "end", "seconds"]].to_numpy(float)
            _add_bars(figure, part, kind, data, hover.replace("KIND", palette.LABELS[kind]), None, 0.0)
    return [
        f"{len(drawn):,} blocks are too many to draw: each column stands for {column:.3g} s of a rank, "
        "and the height of a colour is that kind's share of it. Block numbers are left out."
    ]


def _add_bars(
    figure: go.Figure, part: pd.DataFrame, kind: str, data: Any, hover: str, text: Any, border: float
) -> None:
    figure.add_bar(
        **_boxes(part),
        name=palette.LABELS[kind],
        marker={"color": palette.KINDS[kind], "line": {"color": palette.EDGE, "width": border}},
        customdata=data,
        hovertemplate=hover,
        text=text,
        textposition="inside" if text is not None else "none",
    )


def _boxes(part: pd.DataFrame) -> dict[str, Any]:
    """Bars from start to end: where they lie, in Plotly's words."""
    return {
        "orientation": "h",
        "base": part["start"].to_numpy(),
        "x": (part["end"] - part["start"]).to_numpy(),
        "y": part["y"].to_numpy(float),
        "width": part["height"].to_numpy(),
        "insidetextanchor": "middle",
        "textangle": 0,
        "constraintext": "inside",
        "textfont": {"size": 10, "color": palette.INK},
    }


def _texts(part: pd.DataFrame) -> list[str]:
    return [str(number) if number >= 0 else "" for number in part["microbatch"]]


def _add_bubbles(figure: go.Figure, trace: Trace, shortest: float) -> list[str]:
    """Thin light bars, coloured by main cause; returns what is left out."""
    import pandas as pd

    found = bubbles.find(trace)
    length = found.end - found.start
    longest = np.argsort(-length, kind="stable")[:MERGED]
    kept = np.sort(longest[length[longest] >= shortest])
    main = found.causes.argmax(axis=1)
    part = pd.DataFrame({"start": found.start, "end": found.end, "y": found.rank, "height": lanes.LANE / 3})
    for cause, name in enumerate(bubbles.CAUSES):
        here = kept[main[kept] == cause]
        if len(here):
            figure.add_bar(
                **_boxes(part.iloc[here]),
                name="bubble: " + name.replace("_", " "),
                marker={"color": palette.CAUSES[name]},
                hovertext=_reasons(trace, found, here),
                hoverinfo="text",
                legendrank=1100 + cause,
            )
    left_out = len(kept) < len(length)
    return [f"Of {len(length):,} bubbles the {len(kept):,} longest are marked."] if left_out else []


def _reasons(trace: Trace, found: bubbles.Bubbles, some: Any) -> list[str]:
    """Hover text of some bubbles."""
    texts = []
    for index in some.tolist():
        parts = [
            f"{lanes.number(seconds)} s {name.replace('_', ' ')}"
            for name, seconds in zip(bubbles.CAUSES, found.causes[index].tolist(), strict=True)
            if seconds > 0
        ]
        start, end = float(found.start[index]), float(found.end[index])
        lines = [
            f"<b>bubble</b> on rank {found.rank[index]}",
            f"{lanes.number(start)} s to {lanes.number(end)} s, lasts {lanes.number(end - start)} s",
            ", ".join(parts),
        ]
        if found.ended_by[index] >= 0:
            lines.append(f"ended by {trace.graph.describe(int(found.ended_by[index]))}")
        texts.append("<br>".join(lines))
    return texts


def _add_memory(figure: go.Figure, trace: Trace, steps: lanes.Steps, unit: str) -> list[str]:
    """Live activations of each rank as a step line; returns what is left out."""
    from plotly.colors import sample_colorscale

    ranks = trace.program.ranks
    value = "%{y:.4~s}B" if unit == "bytes" else f"%{{y:.6~g}} {unit}"
    notes = []
    if len(steps.time) > MERGED:
        count = max(20, MERGED // ranks)
        steps = lanes.thinned(steps, ranks, lanes.horizon(trace), count)
        notes = [f"Memory is drawn as the highest value in each {lanes.horizon(trace) / count:.3g} s."]
    colours = sample_colorscale("viridis", [0.9 * rank / max(1, ranks - 1) for rank in range(ranks)])
    cuts = np.searchsorted(steps.rank, np.arange(ranks + 1))
    for rank, colour in enumerate(colours):
        part = slice(cuts[rank], cuts[rank + 1])
        figure.add_scatter(
            x=steps.time[part],
            y=steps.value[part],
            yaxis="y2",
            mode="lines",
            line={"shape": "hv", "color": colour, "width": 1.3},
            name=f"rank {rank}",
            hovertemplate=f"rank {rank}: {value} from %{{x:.6~g}} s<extra></extra>",
            showlegend=False,
        )
    return notes


def _layout(trace: Trace, unit: str) -> dict[str, Any]:
    ranks = trace.program.ranks
    above, between, memory, below = 50, 44, 170, 46
    paired = bool((trace.graph.word == OVERLAPPED).any())  # each half needs room for its number
    lane = min(1_600, (46 if paired else max(18, 38 - ranks // 3)) * ranks)
    inner = lane + between + memory
    every = -(-ranks * 13 // lane)
    names = list(range(0, ranks, every))
    axis = {"zeroline": False, "showline": False, "gridcolor": "#EEEEEE"}
    return {
        "template": "none",
        "height": above + inner + below,
        "margin": {"l": 80, "r": 20, "t": above, "b": below},
        "barmode": "overlay",
        "bargap": 0,
        "dragmode": "pan",
        "hovermode": "closest",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": palette.INK},
        "uniformtext": {"mode": "hide", "minsize": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        "xaxis": axis
        | {"range": [0, lanes.horizon(trace) * 1.002], "title": {"text": "time (s)", "standoff": 6}, "anchor": "y2"},
        "yaxis": axis
        | {"range": [ranks - 0.5, -0.5], "domain": [1 - lane / inner, 1], "fixedrange": ranks <= 32}
        | {"tickvals": names, "ticktext": [f"Rank {rank}" for rank in names], "showgrid": False},
        "yaxis2": axis
        | {"domain": [0, memory / inner], "fixedrange": True, "rangemode": "tozero", "tickformat": "~s"}
        | {"title": {"text": f"live activations<br>({unit})", "font": {"size": 11}}},
    }


def draw_slot(trace: Trace, slot: int) -> go.Figure:
    """The Plotly figure of the operations of a slot, a lane a stream."""
    import plotly.graph_objects as go

    figure = go.Figure()
    drawn = detail.operations(trace, slot)
    found = detail.legs(drawn)
    for family, way in itertools.product(palette.FAMILIES, palette.PASSES):
        part, whole = (f[(f["family"] == family) & (f["pass"] == way)] for f in (drawn, found))
        if len(part):
            colour = palette.FAMILIES[family][way != "F"]
            look = {
                "name": f"{family} {way}",
                "legendgroup": f"{family} {way}",
                "marker": {
                    "color": colour,
                    "line": {"color": palette.EDGE, "width": 0.4},
                    "pattern": {"shape": "/" if way == "W" else "", "fgcolor": HATCH, "bgcolor": colour, "size": 6},
                },
                "textposition": "inside",
            }
            told = part.assign(lasts=part["end"] - part["start"])
            times = (told[["start", "end", "lasts"]] * 1e3).to_numpy(float)
            names = told[["operation", "action", "stream"]].to_numpy(str)
            figure.add_bar(
                **_boxes(_in_milliseconds(part)) | look,
                customdata=np.hstack([names.astype(object), times]),
                hovertemplate=SLOT_HOVER.replace("PASS", palette.PASSES[way]),
                text=part["text"].str.replace("\n", "<br>"),
            )
            if len(whole):
                figure.add_bar(
                    **_boxes(_in_milliseconds(whole)) | look, text=whole["text"], hoverinfo="skip", showlegend=False
                )
    figure.update_layout(_slot_layout(drawn))
    return figure


SLOT_HOVER = (
    "<b>%{customdata[0]}</b> of %{customdata[1]}, PASS<br>on the %{customdata[2]} stream<br>"
    "%{customdata[3]:.6~g} ms to %{customdata[4]:.6~g} ms, lasts %{customdata[5]:.4~g} ms<extra></extra>"
)

HATCH = "rgba(255,255,255,0.7)"


def _in_milliseconds(part: pd.DataFrame) -> pd.DataFrame:
    return part.assign(start=part["start"] * 1e3, end=part["end"] * 1e3)


def _slot_layout(drawn: pd.DataFrame) -> dict[str, Any]:
    names = drawn.groupby("lane")["stream"].first().to_dict()
    axis = {"zeroline": False, "showline": False, "gridcolor": "#EEEEEE"}
    return {
        "template": "none",
        "height": 110 + 78 * len(names),
        "margin": {"l": 120, "r": 20, "t": 64, "b": 46},
        "barmode": "overlay",
        "bargap": 0,
        "dragmode": "pan",
        "hovermode": "closest",
        "font": {"family": "system-ui, sans-serif", "size": 12, "color": palette.INK},
        "uniformtext": {"mode": "hide", "minsize": 8},
        "legend": {"orientation": "h", "x": 0, "y": 1, "yanchor": "bottom", "traceorder": "normal"},
        "xaxis": axis
        | {"range": [0, 1e3 * float(drawn["end"].max()) or 1.0]}
        | {"title": {"text": "time since the slot started (ms)", "standoff": 6}},
        "yaxis": axis
        | {"range": [len(names) - 0.5, -0.5], "fixedrange": True, "showgrid": False}
        | {"tickvals": list(names), "ticktext": list(names.values())},
    }


def _headline(summary: Summary) -> str:
    figures = {
        "makespan": f"{lanes.number(summary.makespan)} s",
        "bubble rate": f"{summary.bubble_rate:.2%}",
        "ideal": f"{lanes.number(summary.ideal)} s",
        "peak": f"{lanes.number(summary.peak_activations)} micro-batches",
        "stages": str(summary.stages),
        "parameter copies": lanes.number(summary.parameter_copies),
    }
    return "".join(f"<span>{name} <b>{value}</b></span>" for name, value in figures.items())


def _table(summary: Summary) -> str:
    """Figures per rank as plain HTML; columns that are zero on all ranks are left out."""
    causes = [cause for cause, seconds in summary.bubble_causes.items() if seconds > 0]
    rows = [_cells(rank, causes) for rank in summary.per_rank]
    names = [name for name in rows[0] if name in ALWAYS or any(row[name] != "0" for row in rows)]
    head = "".join(f"<th>{name}</th>" for name in names)
    body = "".join("<tr>" + "".join(f"<td>{row[name]}</td>" for name in names) + "</tr>\n" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n</table>"


ALWAYS = ("rank", "bubbles", "bubble (s)")


def _cells(rank: RankSummary, causes: list[str]) -> dict[str, str]:
    cells: dict[str, float] = {
        "busy (s)": rank.busy,
        "bubble (s)": rank.bubble_time,
        "span bubble (s)": rank.span_bubble_time,
        "bubbles": rank.bubble_count,
        "longest (s)": rank.longest_bubble,
    }
    cells |= {f"{cause.replace('_', ' ')} (s)": rank.bubble_causes[cause] for cause in causes}
    cells |= {
        "peak (micro-batches)": rank.peak_activations,
        "peak (GB)": rank.peak_activation_bytes / 1e9,
        "parameters (GB)": rank.parameter_bytes / 1e9,
    }
    named = {"rank": str(rank.rank), "stages": ", ".join(map(str, rank.stages))}
    return named | {name: lanes.number(value) for name, value in cells.items()}


PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
body {{ font: 14px/1.45 system-ui, sans-serif; color: #1b1b1b; margin: 18px 24px; }}
h1 {{ font-size: 18px; margin: 0 0 4px; overflow-wrap: anywhere; }}
h2 {{ font-size: 15px; margin: 18px 0 0; }}
.slot {{ margin: 2px 0 0; color: #555; }}
.figures span {{ margin-right: 1.6em; color: #555; white-space: nowrap; }}
.figures b {{ color: #1b1b1b; }}
.note {{ color: #7a4b00; margin: 4px 0 0; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13px; margin-top: 8px; }}
th, td {{ text-align: right; padding: 3px 10px; border-bottom: 1px solid #e6e6e6; }}
th {{ font-weight: 600; color: #555; }}
</style>
</head>
<body>
<h1>{title}</h1>
<div class="figures">{headline}</div>
{notes}
<div id="timeline" style="height:{height}px"></div>
{detail}{table}
<script>{plotly}</script>
<script>
const figure = {figure};
Plotly.newPlot("timeline", figure.data, figure.layout, {config});
{plot_detail}</script>
</body>
</html>
"""
