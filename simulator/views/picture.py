"""Still picture in the look of the papers' figures (DeepSeek-V3 Figure 5, Zero Bubble): lanes of numbered blocks.

Bubbles are left white. An overlapped F&B is one bordered block, its forward above and its backward below. Where slots
consist of operations, one slot is drawn below the lanes, in the manner of the report's Figure 4.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simpipe.simulator.errors import OutputError
from simpipe.simulator.files import atomic
from simpipe.simulator.graph import WORDS
from simpipe.simulator.kernels import Floats
from simpipe.simulator.program import KINDS
from simpipe.simulator.summary import summarize
from simpipe.simulator.trace import Trace
from simpipe.simulator.views import detail, ending, lanes, palette

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ENDINGS = (".png", ".svg", ".pdf")

MANY = 20_000
"""Blocks beyond which they are drawn without numbers and borders, and as pixels within an SVG."""

MOST_NUMBERS = 6_000

SIZE, SIZE_OF_MANY = (48.0, 40.0), (24.0, 18.0)
"""Inches, width and height, that a picture does not exceed, with numbers in the blocks and without."""

DPI = 150

WIDTHS = (2.0, 200.0)
"""Inches that a picture may be asked to be wide."""

LEAST_POINTS = 3.0
"""The smallest number worth printing in a block."""

LEGEND_LEFT, LEGEND_COLUMN, LEGEND_ROW = 0.1, 1.6, 0.16
"""Inches left of the legend, and that an entry of it takes."""

AROUND = (0.75, 0.2, 0.6, 0.33)
"""Inches left, right and below of the lanes, and above each run's."""

BLOCK_WIDTH, LANE_HEIGHT = 0.235, 0.34
"""Inches of a block of median length and of a lane, as long as the picture stays within its bounds."""

FONT_POINTS = 6.5

PAIR = "F&B"

SLOT_LANE, SLOT_WIDTH, SLOT_LEFT = 0.62, 24.0, 1.15
"""Inches of a stream's lane in the drawing of one slot, of that drawing at most, and left of it."""

SLOT_AROUND = (0.5, 0.65)
"""Inches above it, and below for the time axis and the legend."""

LEG_POINTS = 7.0

HATCH = "/////"


def check_width(width: float | None) -> None:
    """Refuse a width, in inches, that no picture can have. Raises OutputError."""
    if width is not None and not WIDTHS[0] <= width <= WIDTHS[1]:
        raise OutputError(f"a picture is {WIDTHS[0]:g} to {WIDTHS[1]:g} inches wide, not {width:g}")


def write(trace: Trace, path: Path, width: float | None = None) -> None:
    """Write one run as .png, .svg or .pdf, `width` inches wide or as wide as its blocks ask for. Raises OutputError."""
    check_width(width)
    with style():
        slot = detail.choose(trace)
        below = 0.0 if slot is None else _slot_inches(detail.operations(trace, slot))
        made = _figure([trace], below, width)
        draw(trace, made.axes[0])
        _finish(made, [trace], below)
        if slot is not None:
            draw_slot(trace, slot, _slot_axes(made, below))
        save(made, path)


def write_comparison(traces: dict[str, Trace], path: str | Path, width: float | None = None) -> None:
    """Write several runs, by name, one above the other on one time axis. Raises OutputError."""
    ending(Path(path), ENDINGS)
    check_width(width)
    with atomic(Path(path)) as draft, style():
        save(figure(traces, width), draft)


def figure(traces: dict[str, Trace], width: float | None = None) -> Figure:
    """Several runs, by name, one above the other on one time axis."""
    with style():
        made = _figure(list(traces.values()), width=width)
        for axes, (name, trace) in zip(made.axes, traces.items(), strict=True):
            draw(trace, axes, name)
            axes.set_xlim(0, max(map(lanes.horizon, traces.values())))
        _finish(made, list(traces.values()))
    return made


def image(trace: Trace, width: float | None = None) -> bytes:
    """A run as a PNG."""
    file = io.BytesIO()
    with style():
        figure({trace.program.name: trace}, width).savefig(file, dpi=DPI, metadata={"Software": None}, format="png")
    return file.getvalue()


def slot_image(trace: Trace, slot: int) -> bytes:
    """The operations of one slot as a PNG. For a run with modelled costs."""
    file = io.BytesIO()
    with style():
        axes = _slot_figure(_slot_inches(detail.operations(trace, slot)))
        draw_slot(trace, slot, axes)
        figure = axes.get_figure(root=True)
        assert figure
        figure.savefig(file, dpi=DPI, metadata={"Software": None}, format="png", bbox_inches="tight")
    return file.getvalue()


def draw(trace: Trace, ax: Axes | None = None, name: str | None = None) -> Axes:
    """Draw a run's lanes into `ax`, or into a figure made for it; returns the axes."""
    axes = ax if ax is not None else _figure([trace]).axes[0]
    ranks = trace.program.ranks
    drawn = lanes.blocks(trace)
    axes.set_xlim(0, lanes.horizon(trace))
    axes.set_ylim(ranks - 0.5, -0.5)
    _draw_blocks(axes, drawn)
    if len(drawn) <= MANY:
        _draw_numbers(axes, drawn)
    every = max(1, round(ranks / _inches(axes)[1] * 0.16))
    axes.set_yticks(range(0, ranks, every), [f"Rank {rank}" for rank in range(0, ranks, every)])
    title = _title(trace, name)
    size = min(9.0, 1.7 * _inches(axes)[0] * 72 / len(title))
    axes.set_title(title, loc="left", parse_math=False, fontsize=size)
    return axes


def draw_slot(trace: Trace, slot: int, ax: Axes | None = None) -> Axes:
    """Draw the operations of one slot into `ax`, or into a figure made for it; returns the axes.

    A lane a stream, time in ms since the slot's start. For a run with modelled costs.
    """
    drawn = detail.operations(trace, slot)
    axes = ax if ax is not None else _slot_figure(_slot_inches(drawn))
    drawn[["start", "end"]] *= 1e3
    names = drawn.groupby("lane")["stream"].first()
    axes.set_xlim(0, float(drawn["end"].max()) or 1.0)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(list(names.index), list(names))
    axes.set_xlabel("time since the slot started (ms)", loc="right")
    legs = detail.legs(drawn)
    patches = _draw_families(axes, drawn, legs)
    _draw_texts(axes, drawn[drawn["whole"]], LEG_POINTS)
    _draw_texts(axes, drawn[~drawn["whole"]], FONT_POINTS - 1)
    _draw_texts(axes, legs, LEG_POINTS)
    axes.legend(
        handles=patches, loc="upper left", bbox_to_anchor=(0, -0.28 / _inches(axes)[1]), borderaxespad=0,
        ncols=max(1, int(_inches(axes)[0] / 1.15)),
    )  # fmt: skip
    axes.set_title(detail.sentence(trace, slot), loc="left", parse_math=False)
    return axes


def _draw_families(axes: Axes, drawn: pd.DataFrame, legs: pd.DataFrame) -> list[Any]:
    """Operations and the legs above them, by family and pass; returns what the legend shows."""
    from matplotlib.patches import Patch

    patches = []
    for family, way in product(palette.FAMILIES, palette.PASSES):
        parts = [part[(part["family"] == family) & (part["pass"] == way)] for part in (drawn, legs)]
        look = {"facecolor": palette.FAMILIES[family][way != "F"], "edgecolor": palette.EDGE}
        look |= {"hatch": HATCH} if way == "W" else {}
        for part in parts:
            if len(part):
                _draw_boxes(axes, part, False, **look)
        if len(parts[0]):
            patches.append(Patch(label=f"{family} {way}", linewidth=0, **look))  # type: ignore[arg-type]
    return patches


def _draw_texts(axes: Axes, drawn: pd.DataFrame, size: float) -> None:
    """The text of each box that has room for it."""
    low, high = axes.get_xlim()
    points = (drawn["end"] - drawn["start"]) * (_inches(axes)[0] * 72 / (high - low))
    letters = drawn["text"].str.split("\n").map(lambda lines: max(map(len, lines)))
    roomy = drawn[points > letters * size * 0.55 + 1]
    for start, end, y, text in roomy[["start", "end", "y", "text"]].itertuples(index=False):
        axes.text(
            (start + end) / 2,
            y,
            text,
            size=size,
            color=palette.INK,
            ha="center",
            va="center",
            linespacing=1.1,
            clip_on=True,
        )


def _slot_inches(drawn: pd.DataFrame) -> float:
    """Height of the drawing of a slot, all around it included."""
    return SLOT_LANE * drawn["stream"].nunique() + sum(SLOT_AROUND)


def _slot_figure(height: float) -> Axes:
    from matplotlib.figure import Figure

    return _slot_axes(Figure(figsize=(SLOT_WIDTH, height), dpi=DPI), height)


def _slot_axes(figure: Figure, inches: float) -> Axes:
    """Axes for a slot at the bottom of a figure, the lowest `inches` of it."""
    width, height = figure.get_size_inches()
    above, below = SLOT_AROUND
    wide = min(SLOT_WIDTH, width) - SLOT_LEFT - AROUND[1]
    return figure.add_axes((SLOT_LEFT / width, below / height, wide / width, (inches - above - below) / height))


def _title(trace: Trace, name: str | None) -> str:
    figures = summarize(trace)
    return (
        f"{lanes.title(trace, name)}   makespan {lanes.number(figures.makespan)} s, "
        f"bubble {figures.bubble_rate:.1%}, peak {lanes.number(figures.peak_activations)} micro-batches"
    )


def _draw_blocks(axes: Axes, drawn: pd.DataFrame) -> None:
    many = len(drawn) > MANY
    for kind, colour in palette.KINDS.items():
        if (drawn["kind"] == kind).any():
            part = drawn[drawn["kind"] == kind]
            _draw_boxes(axes, part, many, facecolor=colour, edgecolor=colour if many else palette.EDGE, label=kind)
    pairs = lanes.pairs(drawn)
    if len(pairs) and not many:
        _draw_boxes(axes, pairs, False, facecolor="none", edgecolor=palette.INK, label=PAIR, zorder=2.5)


def _draw_boxes(axes: Axes, part: pd.DataFrame, many: bool, **looks: object) -> None:
    from matplotlib.collections import PolyCollection

    start, end, y = (part[column].to_numpy() for column in ("start", "end", "y"))
    half = part["height"].to_numpy() / 2
    corners = [(start, y - half), (end, y - half), (end, y + half), (start, y + half)]
    shape: Floats = np.stack([np.stack(corner, axis=1) for corner in corners], axis=1)
    boxes = PolyCollection(shape, linewidth=0.0 if many else 0.6, rasterized=many, **looks)  # type: ignore[arg-type]
    axes.add_collection(boxes, autolim=False)


def _draw_numbers(axes: Axes, drawn: pd.DataFrame) -> None:
    """The micro-batch in each block that has room for it."""
    low, high = axes.get_xlim()
    points = (drawn["end"] - drawn["start"]) * (_inches(axes)[0] * 72 / (high - low))
    texts = drawn["microbatch"].astype(str)
    lane = _inches(axes)[1] * 72 / abs(np.subtract(*axes.get_ylim()))
    fits = float(((points - 1) / (texts.str.len() * 0.6)).median())  # so that half of them have room
    size = min(FONT_POINTS, lane * lanes.LANE / 2 * 0.85, max(fits, LEAST_POINTS))
    roomy = (points > texts.str.len() * size * 0.6 + 1) & (drawn["microbatch"] >= 0)
    if size < LEAST_POINTS or roomy.sum() > MOST_NUMBERS:
        return
    for start, end, y, text in drawn.assign(text=texts)[roomy][["start", "end", "y", "text"]].itertuples(index=False):
        axes.text(
            (start + end) / 2, y, text, size=size, color=palette.INK, ha="center", va="center_baseline", clip_on=True
        )


def _inches(axes: Axes) -> tuple[float, float]:
    box, size = axes.get_position(), axes.get_figure(root=True).get_size_inches()  # type: ignore[union-attr]
    return box.width * size[0], box.height * size[1]


def _figure(traces: list[Trace], below: float = 0.0, width: float | None = None) -> Figure:
    """Axes for each of some runs, above each other, sized to what they hold, with some inches left free below."""
    from matplotlib.figure import Figure

    ranks = [trace.program.ranks for trace in traces]
    many = any(trace.program.slots > MANY for trace in traces)
    widest, tallest = SIZE_OF_MANY if many else SIZE
    left, right, bottom, title = AROUND
    asked = max(8.0, left + right + BLOCK_WIDTH * max(map(lanes.horizon, traces)) / _median_block(traces))
    wide = min(widest, asked) if width is None else width
    bottom += LEGEND_ROW * (math.ceil(len(_legend(traces)) / _legend_columns(wide)) - 1)
    lane = min(LANE_HEIGHT, max(LANE_HEIGHT * wide / asked, 0.12)) if width else LANE_HEIGHT
    lane = min(lane, (tallest - bottom - title * len(ranks)) / sum(ranks))
    height = bottom + title * len(ranks) + lane * sum(ranks) + below
    figure = Figure(figsize=(wide, height), dpi=DPI)
    y = height
    for count in ranks:
        y -= title + lane * count
        figure.add_axes((left / wide, y / height, 1 - (left + right) / wide, lane * count / height))
    return figure


def _median_block(traces: list[Trace]) -> float:
    slots = np.concatenate([trace.slot_end - trace.slot_start for trace in traces])
    return float(np.median(slots[slots > 0])) if (slots > 0).any() else 1.0


def _finish(figure: Figure, traces: list[Trace], below: float = 0.0) -> None:
    """The time axis under the last lanes, and one legend, above what is left free below."""
    for axes in figure.axes[:-1]:
        axes.tick_params(labelbottom=False)
    figure.axes[-1].set_xlabel("time (s)", loc="right")
    _add_legend(figure, _legend(traces), below)


def save(figure: Figure, path: Path) -> None:
    """Write a figure in the format of the ending, without the date."""
    without: dict[str, dict[str, Any]] = {".png": {"Software": None}, ".svg": {"Date": None, "Creator": None}}
    metadata = without.get(path.suffix.lower(), {"CreationDate": None, "Creator": None, "Producer": None})
    figure.savefig(path, dpi=DPI, metadata=metadata)


def _legend(traces: list[Trace]) -> list[str]:
    """The kinds of blocks that some runs have, as a legend lists them."""
    words = {WORDS[word] for trace in traces for word in np.unique(trace.graph.word)}
    paired = any((np.diff(trace.program.slot_start) == 2).any() for trace in traces)
    kinds = {KINDS[kind].name for trace in traces for kind in np.unique(trace.program.kind)} | words
    return [kind for kind in palette.KINDS if kind in kinds] + [PAIR] * paired


def _legend_columns(width: float) -> int:
    return max(1, int((width - LEGEND_LEFT) / LEGEND_COLUMN))


def _add_legend(figure: Figure, kinds: list[str], below: float) -> None:
    from matplotlib.legend_handler import HandlerTuple
    from matplotlib.patches import Patch

    pair = tuple(Patch(facecolor=palette.KINDS[k], edgecolor=palette.INK, linewidth=0.7) for k in "FB")
    swatches: list[Any] = [pair if kind == PAIR else Patch(facecolor=palette.KINDS[kind]) for kind in kinds]
    look: dict[str, Any] = {"handler_map": {tuple: HandlerTuple(ndivide=None, pad=0)}, "borderaxespad": 0}
    width, height = figure.get_size_inches()
    figure.legend(
        swatches,
        [palette.LABELS[kind] for kind in kinds],
        loc="lower left",
        ncols=min(len(kinds), _legend_columns(width)),
        bbox_to_anchor=(LEGEND_LEFT / width, below / height),
        **look,
    )


@contextmanager
def style() -> Iterator[None]:
    """Matplotlib's settings for one picture: fixed fonts and identifiers, so that equal runs give equal bytes."""
    import matplotlib as mpl

    plain = {
        "font.family": "DejaVu Sans", "font.size": 8, "axes.titlesize": 9, "legend.fontsize": 8,
        "svg.fonttype": "path", "pdf.fonttype": 42, "svg.hashsalt": "simpipe", "path.simplify": False,
        "axes.spines.top": False, "axes.spines.right": False, "axes.spines.left": False,
        "ytick.major.size": 0, "legend.frameon": False, "legend.handlelength": 1.2, "legend.columnspacing": 1.4,
        "figure.facecolor": "white", "axes.facecolor": "white",
    }  # fmt: skip
    with mpl.rc_context(plain):  # type: ignore[arg-type]
        yield
