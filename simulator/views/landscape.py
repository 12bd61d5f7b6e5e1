"""A tuning's landscape: on the terminal in short; the slot by SMs and chunk, a map for each way of sharing warps, as a
picture or a page.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from simpipe.simulator.files import atomic
from simpipe.simulator.kernels import Floats
from simpipe.simulator.tuning import CHUNKS, LAYERS, SLOWING, WARPS, Landscape
from simpipe.simulator.views import console, document, ending, picture

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

ENDINGS_OF_MAPS = (*picture.ENDINGS, ".html")

MOST = 15.0
"""Per cent over the shortest slot where the colours end."""

MARKS = (("shortest slot", "*", "star"), ("fastest exchange", "^", "triangle-up"), ("as given", "o", "circle-open"))


def text(found: Landscape) -> list[str]:
    """The terminal's table."""
    return [headline(found), "", *console.table(HEADER, rows(found)), "", *caveat(found)]


def headline(found: Landscape) -> str:
    """What was tuned for, in words."""
    scenario, parallel = found.scenario, found.scenario.parallel
    what = f"{scenario.model} on {scenario.hardware}, ep {parallel.ep}, {found.tokens:,} tokens"
    return f"{what}: {found.timed} of {LAYERS} layers under {len(found.tried)} settings"


def caveat(found: Landscape) -> list[str]:
    """What the shortest slot owes to an assumption, in a sentence; none where it owes nothing."""
    if found.unslowed is None:
        return []
    (sms, warps, chunk), exponent = found.unslowed.setting, found.scenario.load().cluster.exchange.l2_exponent
    return [
        f"How much chunks that fill the L2 cache slow computation is assumed ({SLOWING} = {exponent:g}); if they did "
        f"not, the shortest slot, {found.unslowed.slot * 1e3:.2f} ms, would have {sms} SMs, {warps} warps and chunks "
        f"of {chunk}."
    ]


HEADER = ("", "SMs", "warps", "chunk", "slot", "over shortest", "dispatch + combine alone")


def rows(found: Landscape) -> list[tuple[str, ...]]:
    """The settings with a name, as text under HEADER."""
    named = {"shortest slot": found.best, "of static warps": found.static}
    named |= {"fastest exchange": found.fastest, "as given": found.given}
    return [
        (
            *(label, *map(str, tried.setting), f"{tried.slot * 1e3:.2f} ms"),
            *(f"{tried.slot / found.best.slot - 1:+.1%}", f"{tried.communication * 1e3:.2f} ms"),
        )
        for label, tried in named.items()
    ]


def write_landscape(found: Landscape, path: Path) -> None:
    """Write the maps in the format of the ending. Raises OutputError."""
    if ending(path, ENDINGS_OF_MAPS) == ".html":
        document.write("Communication kernels", parts(found), path)
    else:
        with atomic(path) as draft, picture.style():
            picture.save(_draw(found), draft)


def parts(found: Landscape) -> list[document.Part]:
    """The maps and what they come to, as parts of a page."""
    about = "Per cent over the shortest slot, by SMs of a kernel and tokens of a channel's chunk."
    return [
        document.Text(headline(found)),
        document.Table(HEADER, rows(found)),
        *map(document.Text, caveat(found)),
        document.Text(about),
        document.Chart(_figure(found)),
    ]


def _map(found: Landscape, warps: str) -> tuple[list[int], Floats]:
    """SMs of the rows, ascending, and per cent over the shortest slot by SMs and CHUNKS."""
    slots = {tried.setting: tried.slot for tried in found.tried}
    levels = sorted({setting.sms for setting in slots if setting._replace(chunk_tokens=CHUNKS[0]) in slots})
    here = found.tried[-1].setting._replace(warps=warps)
    over = [[slots[here._replace(sms=sms, chunk_tokens=chunk)] for chunk in CHUNKS] for sms in levels]
    return levels, 100 * (np.array(over) / found.best.slot - 1)


def _marks(found: Landscape, warps: str, levels: list[int]) -> list[tuple[str, str, str, float, float]]:
    """Label, symbols, and where in the map: settings between its columns and rows lie between them."""
    marked = []
    for (label, symbol, other), tried in zip(MARKS, (found.best, found.fastest, found.given), strict=True):
        sms, own, chunk = tried.setting
        if own == warps:
            x = float(np.interp(np.log2(chunk), np.log2(CHUNKS), range(len(CHUNKS))))
            marked.append((label, symbol, other, x, float(np.interp(sms, levels, range(len(levels))))))
    return marked


def _title(found: Landscape) -> str:
    over = f"Time of {found.timed} over the shortest, {found.best.slot * 1e3:.2f} ms"
    return f"{over}: {headline(found).partition(':')[0]}"


def _draw(found: Landscape) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 5.2), dpi=picture.DPI, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, len(WARPS))
    for ax, warps in zip(axes, WARPS, strict=True):
        levels, over = _map(found, warps)
        image = ax.imshow(over, cmap="cividis_r", vmin=0, vmax=MOST, aspect="auto", origin="lower")
        for (row, column), value in np.ndenumerate(over):
            dark = value > 0.6 * MOST
            text = f"{value:.1f}" if value < 99.5 else f"{value:.0f}"
            ax.text(column, row, text, ha="center", va="center", size=7, color="white" if dark else "black")
        for label, symbol, _, x, y in _marks(found, warps, levels):
            style = {"markerfacecolor": "none", "markeredgecolor": "#CC3311", "markeredgewidth": 1.6}
            ax.plot([x], [y], symbol, markersize=17, linestyle="none", label=label, **style)
        ax.set_xticks(range(len(CHUNKS)), [str(chunk) for chunk in CHUNKS])
        ax.set_yticks(range(len(levels)), [str(sms) for sms in levels])
        ax.set_xlabel("tokens of a channel's chunk")
        ax.set_ylabel("SMs of a kernel")
        ax.set_title(f"{warps} warps", size=10)
    figure.legend(loc="outside lower center", ncols=len(MARKS), fontsize=9, frameon=False, borderpad=0.8)
    figure.colorbar(image, ax=axes, label="% longer", extend="max")
    figure.suptitle(_title(found), size=11)
    return figure


def _figure(found: Landscape) -> go.Figure:
    from plotly.subplots import make_subplots

    figure = make_subplots(rows=1, cols=len(WARPS), subplot_titles=[f"{warps} warps" for warps in WARPS])
    alone = {tried.setting: tried.communication for tried in found.tried}
    for column, warps in enumerate(WARPS, 1):
        levels, over = _map(found, warps)
        here = found.tried[-1].setting._replace(warps=warps)
        beside = [[1e3 * alone[here._replace(sms=s, chunk_tokens=c)] for c in CHUNKS] for s in levels]
        figure.add_heatmap(
            z=over, x=[*range(len(CHUNKS))], y=[*range(len(levels))], zmin=0, zmax=MOST, colorscale="Cividis",
            reversescale=True, customdata=beside, texttemplate="%{z:.1f}", textfont={"size": 10},
            hovertemplate="slot +%{z:.2f} %<br>dispatch + combine alone %{customdata:.2f} ms<extra></extra>",
            colorbar={"title": "% longer"}, showscale=column == 1, row=1, col=column,
        )  # fmt: skip
        for label, _, symbol, x, y in _marks(found, warps, levels):
            marker = {"symbol": symbol, "size": 16, "color": "#CC3311", "line": {"width": 2, "color": "#CC3311"}}
            figure.add_scatter(x=[x], y=[y], mode="markers", marker=marker, name=label, row=1, col=column)
        figure.update_xaxes(
            title="tokens of a channel's chunk", tickvals=[*range(len(CHUNKS))], ticktext=[*CHUNKS], row=1, col=column
        )
        figure.update_yaxes(title="SMs of a kernel", tickvals=[*range(len(levels))], ticktext=levels, row=1, col=column)
    figure.update_layout(**document.LAYOUT, height=560)
    figure.update_layout(margin={"t": 70}, legend={"y": 1.06})
    return figure
