"""What a study of experts looks like: on the terminal, as a page, as a picture, as a table."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from simpipe.simulator.experts.study import LAST, Study
from simpipe.simulator.files import atomic
from simpipe.simulator.kernels import Floats
from simpipe.simulator.views import console, document, ending, palette, picture

if TYPE_CHECKING:
    import plotly.graph_objects as go
    from matplotlib.figure import Figure

ENDINGS_OF_STUDY = (".html", ".png", ".svg", ".csv")

COLOURS = ("#4477AA", "#EE6677", "#228833", "#AA7733", "#66CCEE")
"""Of strategies: Paul Tol's "bright" scheme, made for lines."""

HEAVIEST = 2.5
"""Load over the mean from which a heat map no longer gets darker."""

AROUND_MEAN: list[Any] = [[0.0, "#2166AC"], [1 / HEAVIEST, "#F7F7F7"], [1.0, "#B2182B"]]
"""Blue below the mean, white at it, red above: apart under the common kinds of colour blindness."""

REDS: list[Any] = [[0.0, "#F7F7F7"], [1.0, "#B2182B"]]


def text(study: Study) -> list[str]:
    """The terminal's table."""
    rows = study.rows()
    body = [_cells(row) for row in rows]
    header = [name for name in body[0] if any(cells[name] != "-" for cells in body)]
    table = console.table(header, [[cells[name] for name in header] for cells in body])
    return [headline(study), "", *table, "", *notes(study)]


def notes(study: Study) -> list[str]:
    """What the table's columns mean, a line each."""
    tokens = study.plan.sample.sequences * study.plan.sample.tokens
    several = study.plan.steps > 1
    over = f"layers and the last {min(LAST, study.plan.steps)} steps" if several else "layers"
    lines = [
        f"violation: tokens of the fullest expert over the mean, less 1, mean over {over}",
        "micro-batch: the same of the tokens of one micro-batch, mean over layers",
        "GPU load: tokens of the fullest GPU over the mean, for one micro-batch; it sets the experts' pace",
    ]
    if any(outcome.history.moved for outcome in study.outcomes):
        lines.append("popularity moved: how far losses have pushed affinities together, over the skew between experts")
    if several:
        lines[0] += f"; drawing {tokens:,} tokens a step alone gives about {study.sampling:.2f}"
    if study.balanced_s is not None:
        lines.append(
            "NIC load, NVLink load: the same of what the one that carries most sends or receives; they set the pace of "
            "dispatch and combine"
        )
        lines.append(f"a step with every GPU in balance takes {study.balanced_s:.3f} s")
        lines.append(
            "fullest GPU: the memory of the one that needs most, whose load is over all layers of its rank"
            + ("" if all(outcome.cost.fits for outcome in study.outcomes if outcome.cost) else "; ! does not fit")
        )
    if study.redundant_bytes:
        size = console.size(study.redundant_bytes)
        lines.append(
            f"the redundant experts take {size} more on a GPU, of weights, gradients and optimizer states, "
            "and time for the sums of their copies' gradients, which is in the step"
        )
    return lines


def headline(study: Study) -> str:
    """What was run, in a sentence."""
    router, placing = study.router, study.placing
    limit = f" in {router.limit} of {router.groups} groups" if router.limit < router.groups else ""
    more = f", {placing.redundant} redundant experts a layer" if placing.redundant else ""
    steps = f"{study.plan.steps} step" + ("s" if study.plan.steps > 1 else "")
    return (
        f"{study.model}: {study.layers} layers of {router.experts} experts, {router.topk} a token{limit}; "
        f"{placing.way} on {placing.ep} GPUs{more}; {steps}"
    )


def _cells(row: dict[str, Any]) -> dict[str, str]:
    seconds, cost = row["step_time_s"], row["costs"]
    return {
        "strategy": row["strategy"],
        "violation, first": f"{row['violation_first']:.2f}",
        "last": f"{row['violation_last']:.2f}",
        "worst layer": f"{row['violation_last_worst_layer']:.2f}",
        "micro-batch": f"{row['microbatch_violation']:.2f}",
        "GPU load": f"{row['gpu_imbalance']:.3f}",
        "worst": f"{row['gpu_imbalance_worst_layer']:.3f}",
        "NIC load": _link(row["network_imbalance"]),
        "NVLink load": _link(row["nvlink_imbalance"]) if seconds is not None else "-",
        "popularity moved": f"{row['popularity_moved']:.0%} of skew" if row["popularity_moved"] else "-",
        "step": "-" if seconds is None else f"{seconds:.3f} s",
        "over balanced": "-" if cost is None else f"{cost:+.1%}",
        "fullest GPU": "-" if seconds is None else f"{row['peak_bytes'] / 1e9:.1f} GB" + ("" if row["fits"] else " !"),
    }


def _link(load: float) -> str:
    """Nothing where no link carries more than another: none of a group on one node leaves it by a NIC."""
    return f"{load:.3f}" if load > 1 else "-"


def write(study: Study, path: str | Path) -> None:
    """Write a page, a picture or a table of every expert's tokens. Raises OutputError."""
    end = ending(Path(path), ENDINGS_OF_STUDY)
    if end == ".csv":
        _write_table(study, Path(path))
    elif end == ".html":
        document.write(f"Experts of {study.model}", parts(study), Path(path))
    else:
        with atomic(Path(path)) as draft, picture.style():
            picture.save(_draw(study), draft)


def parts(study: Study) -> list[document.Part]:
    """The page: violation over steps, a table, a heat map of each strategy."""
    cells = [_cells(row) for row in study.rows()]
    names = [name for name in cells[0] if any(each[name] != "-" for each in cells)]
    found: list[document.Part] = [
        document.Text(headline(study)),
        document.Table(names, [[each[name] for name in names] for each in cells]),
        *map(document.Text, notes(study)),
    ]
    if study.plan.steps > 1:
        found.append(document.Text("Violation over steps: mean of the layers, and the worst layer (dotted)."))
        found.append(document.Chart(_lines(study)))
    worst = max(float(outcome.history.violation.max()) for outcome in study.outcomes)
    for outcome in study.outcomes:
        label, violation = outcome.history.strategy, outcome.history.violation
        if study.plan.steps > 1:
            found.append(document.Text(f"Violation of each layer over steps: {label}"))
            found.append(document.Chart(_heat(violation.T, "step", "violation", worst, REDS)))
        found.append(document.Text(f"Load of each expert over the mean, for one micro-batch at the end: {label}"))
        found.append(document.Chart(_heat(_relative(outcome.loads), "expert", "x mean", HEAVIEST, AROUND_MEAN)))
    return found


def _relative(loads: Any) -> Floats:
    """(layers, experts) over each layer's mean."""
    return np.asarray(loads / loads.mean(1, keepdims=True), float)


def _lines(study: Study) -> go.Figure:
    import plotly.graph_objects as go

    figure = go.Figure()
    for outcome, colour in zip(study.outcomes, COLOURS, strict=False):
        violation = np.round(outcome.history.violation, 3)
        for values, dash, name in (
            (violation.mean(1), "solid", outcome.history.strategy),
            (violation.max(1), "dot", f"{outcome.history.strategy}, worst layer"),
        ):
            line = {"color": colour, "dash": dash, "width": 1.6 if dash == "solid" else 1.0}
            figure.add_scatter(y=values.tolist(), mode="lines", line=line, name=name, showlegend=dash == "solid")
    label = {"annotation_text": "sampling alone", "annotation_position": "top left"}
    figure.add_hline(y=study.sampling, line={"color": "#999999", "width": 1}, **label)
    axes = {"xaxis": {"title": {"text": "step"}}, "yaxis": {"title": {"text": "violation"}, "rangemode": "tozero"}}
    figure.update_layout(**(document.LAYOUT | axes), height=320)
    return figure


def _heat(values: Floats, across: str, unit: str, most: float, colours: list[Any]) -> go.Figure:
    """(layers, columns) values as colours, from 0 to `most` or more."""
    import plotly.graph_objects as go

    figure = go.Figure(
        go.Heatmap(
            z=np.round(values, 2).tolist(), zmin=0, zmax=most, colorscale=colours,
            colorbar={"title": {"text": unit}},
            hovertemplate=f"layer %{{y}}, {across} %{{x}}: %{{z}} {unit}<extra></extra>",
        )
    )  # fmt: skip
    axes = {"xaxis": {"title": {"text": across}}, "yaxis": {"title": {"text": "layer"}, "autorange": "reversed"}}
    figure.update_layout(**(document.LAYOUT | axes), height=120 + 4 * len(values))
    return figure


def _draw(study: Study) -> Figure:
    """Violation over steps, where there are some, and a heat map of each strategy."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.figure import Figure

    rows, curves = len(study.outcomes), int(study.plan.steps > 1)
    figure = Figure(figsize=(11, 0.6 + 1.8 * curves + 2.0 * rows), dpi=130, layout="constrained")
    ratios = [1.3] * curves + [1.0] * rows
    axes: Any = figure.subplots(rows + curves, 1, height_ratios=ratios, squeeze=False)[:, 0]
    figure.suptitle(headline(study), x=0.01, ha="left", fontsize=9, color=palette.INK)
    if curves:
        _draw_lines(axes[0], study)
    colours = LinearSegmentedColormap.from_list("load", [(at, colour) for at, colour in AROUND_MEAN])
    for axis, outcome in zip(axes[curves:], study.outcomes, strict=True):
        relative = _relative(outcome.loads)
        image = axis.imshow(relative, aspect="auto", cmap=colours, vmin=0, vmax=HEAVIEST, interpolation="nearest")
        axis.set(ylabel="layer", title="")
        axis.set_title(outcome.history.strategy, loc="left", fontsize=9)
    axes[-1].set_xlabel("expert")
    figure.colorbar(image, ax=list(axes[curves:]), label="load over the mean", shrink=0.8)
    return figure


def _draw_lines(axis: Any, study: Study) -> None:
    for outcome, colour in zip(study.outcomes, COLOURS, strict=False):
        mean, worst = outcome.history.violation.mean(1), outcome.history.violation.max(1)
        axis.plot(mean, color=colour, label=outcome.history.strategy)
        axis.plot(worst, color=colour, linestyle=":", linewidth=0.8)
    axis.axhline(study.sampling, color="#999999", linewidth=0.8)
    axis.set(xlabel="step (dotted: the worst layer; grey: sampling alone)", ylabel="violation", ylim=(0, None))
    axis.margins(x=0)
    axis.legend(ncols=5, loc="lower right", bbox_to_anchor=(1, 1), fontsize=9)


def _write_table(study: Study, path: Path) -> None:
    """A row for each expert of each layer and strategy; `simpipe moe --loads` reads one strategy's."""
    with atomic(path) as draft, draft.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(["strategy", "layer", "expert", "tokens", "load_over_mean"])
        for outcome in study.outcomes:
            relative = _relative(outcome.loads)
            for (layer, expert), tokens in np.ndenumerate(outcome.loads):
                row = [outcome.history.strategy, layer, expert, int(tokens), f"{relative[layer, expert]:.4f}"]
                table.writerow(row)
