"""Interactive timeline as one self-contained page: it opens from a file, reaches no network and needs nothing else.

The drawing is the front end in `frontend/`, whose built files lie in `page/`. The page carries a run's columns
(`payload`), compressed, and the figures as plain tables. A content security policy with the hashes of its own script
and style forbids everything else; text that a user wrote is escaped here and set as text there.
"""

from __future__ import annotations

import hashlib
import html
import json
from base64 import b64encode
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, NamedTuple

from simpipe.simulator.graph import WORDS
from simpipe.simulator.summary import RankSummary, Summary, summarize
from simpipe.simulator.trace import Trace
from simpipe.simulator.views import lanes, palette, payload
from simpipe.simulator.views.columns import Columns
from simpipe.simulator.views.palette import CAUSE_WORDS

ENDINGS = (".html",)

LATE = "faster or better balanced stages remove it, or other work here, such as a weight gradient."

REMEDIES = {
    "warm_up": "The pipeline fills: more micro-batches make this a smaller share, more chunks a rank make it shorter.",
    "cool_down": "The pipeline drains: more micro-batches make this a smaller share, weight gradients put off until "
    "here (W apart from I) fill it.",
    "waits_for_forward": f"A stage before it is late: {LATE}",
    "waits_for_gradient": f"A stage behind it is late: {LATE}",
    "waits_for_transfer": "The message is on its way: a faster link or a smaller message removes it, or an order that "
    "asks for it later.",
    "blocked_by_order": "What it waits for could have run earlier, but stood behind other slots in its rank's order: "
    "another order removes it.",
    "barrier": "All ranks wait for the last one and for the gradients: a balanced load removes it, or an optimizer "
    "step without a barrier.",
    "late_start": "All that the slot needs was there: the host launches late, or the recording does not show what it "
    "waits for.",
}
"""What would remove a bubble, by its main cause."""

MOST_ROWS = 512
"""Ranks that the table holds at most."""


def write(trace: Trace, path: Path) -> None:
    """Write the page of a run."""
    path.write_text(page(trace), encoding="utf-8", newline="\n")


def page(trace: Trace) -> str:
    """The page of a run."""
    summary = summarize(trace)
    tables = _section(_table(summary), "Figures by rank")
    return _page([Shown("", trace, summary)], lanes.title(trace), _headline(summary), tables)


def write_comparison(rows: Sequence[dict[str, Any]], traces: dict[str, Trace], path: Path) -> None:
    """Write the page of several runs, by name, stacked on one time axis; `rows` are their figures side by side."""
    shown = [Shown(name, trace, summarize(trace)) for name, trace in traces.items()]
    title = f"{len(traces)} runs compared: {', '.join(map(lanes.printable, traces))}"
    tables = _section(_comparison(rows), "Figures side by side")
    for run in shown:
        tables += _section(_table(run.summary), f"Figures by rank: {lanes.printable(run.name)}")
    path.write_text(_page(shown, title, "", tables), encoding="utf-8", newline="\n")


class Shown(NamedTuple):
    """A run of a page; an empty name is its program's."""

    name: str
    trace: Trace
    summary: Summary


def _page(shown: Sequence[Shown], title: str, headline: str, tables: str) -> str:
    folder = files(__package__) / "page"
    template, style, script = (
        (folder / name).read_text("utf-8") for name in ("page.html", "timeline.css", "timeline.js")
    )
    columns = Columns()
    runs = [
        payload.add(columns, str(number), trace, summary, name) for number, (name, trace, summary) in enumerate(shown)
    ]
    header = {
        "runs": runs,
        "words": WORDS,
        "palette": {
            "kinds": palette.KINDS, "labels": palette.LABELS, "causes": palette.CAUSES, "causeLabels": CAUSE_WORDS,
            "remedies": REMEDIES, "families": palette.FAMILIES, "passes": palette.PASSES, "exposed": palette.EXPOSED,
            "ink": palette.INK, "edge": palette.EDGE,
        },
        "layout": {name: column._asdict() for name, column in columns.layout.items()},
    }  # fmt: skip
    policy = (
        f"default-src 'none'; script-src {_hash(script)}; style-src {_hash(style)}; base-uri 'none'; form-action 'none'"
    )
    return Template(template).substitute(
        policy=policy,
        title=html.escape(title),
        style=style,
        headline=headline,
        tables=tables,
        header=json.dumps(header, separators=(",", ":")).replace("<", "\\u003c"),
        columns=columns.packed(),
        script=script,
    )


def _hash(text: str) -> str:
    """What a content security policy calls an inline script or style by."""
    return f"'sha256-{b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _headline(summary: Summary) -> str:
    figures = {
        "makespan": f"{lanes.number(summary.makespan)} s",
        "bubble rate": f"{summary.bubble_rate:.2%}",
        "ideal": f"{lanes.number(summary.ideal)} s",
        "peak": f"{lanes.number(summary.peak_activations)} micro-batches",
        "stages": str(summary.stages),
        "parameter copies": lanes.number(summary.parameter_copies),
    }
    spans = "".join(f"<span>{name} <b>{value}</b></span>" for name, value in figures.items())
    return f'<div class="figures">{spans}</div>'


def _section(table: str, summary: str) -> str:
    title = html.escape(summary)
    scroll = f'<div class="scroll" role="region" tabindex="0" aria-label="{title}">{table}</div>'
    return f"<details open>\n<summary>{title}</summary>\n{scroll}\n</details>\n"


def _table(summary: Summary) -> str:
    """Figures per rank; columns that are zero on all ranks are left out."""
    causes = [cause for cause, seconds in summary.bubble_causes.items() if seconds > 0]
    rows = [_cells(rank, causes) for rank in summary.per_rank]
    names = [name for name in rows[0] if name in ALWAYS or any(row[name] != "0" for row in rows)]
    left_out = (
        f"<p>The first {MOST_ROWS} of {len(rows)} ranks; --json has them all.</p>" if len(rows) > MOST_ROWS else ""
    )
    return _markup(names, [[row[name] for name in names] for row in rows[:MOST_ROWS]]) + left_out


def _markup(names: list[str], rows: list[list[str]]) -> str:
    """A table whose first column heads its rows; names and cells are plain text."""
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    body = "".join(
        f'<tr><th scope="row">{html.escape(first)}</th>'
        + "".join(f"<td>{html.escape(cell)}</td>" for cell in rest)
        + "</tr>\n"
        for first, *rest in rows
    )
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
    cells |= {f"{CAUSE_WORDS[cause]} (s)": rank.bubble_causes[cause] for cause in causes}
    cells |= {
        "peak (micro-batches)": rank.peak_activations,
        "peak (GB)": rank.peak_activation_bytes / 1e9,
        "parameters (GB)": rank.parameter_bytes / 1e9,
    }
    named = {"rank": str(rank.rank), "stages": ", ".join(map(str, rank.stages))}
    return named | {name: lanes.number(value) for name, value in cells.items()}


COMPARED = {
    "makespan (s)": ("makespan_s", 1.0),
    "bubble rate (%)": ("bubble_rate", 100.0),
    "span bubble rate (%)": ("span_bubble_rate", 100.0),
    "mean bubble (s)": ("mean_bubble_s", 1.0),
    "largest bubble (s)": ("largest_bubble_s", 1.0),
    "waiting (s)": ("waiting_s", 1.0),
    "transfer (s)": ("transfer_s", 1.0),
    "peak (micro-batches)": ("peak_activations", 1.0),
    "peak of activations (GB)": ("peak_activation_bytes", 1e-9),
    "parameter copies": ("parameter_copies", 1.0),
    "exposed communication (s)": ("exposed_communication_s", 1.0),
    "peak memory (GB)": ("peak_memory_bytes", 1e-9),
    "MFU (%)": ("mfu", 100.0),
    "tokens/s": ("tokens_per_s", 1.0),
}
"""Figures of a comparison: the column of its rows, and what it is multiplied by."""

MORE_IS_BETTER = ("MFU (%)", "tokens/s")


def _comparison(rows: Sequence[dict[str, Any]]) -> str:
    """A column a run: each figure, and how far it is from the first run's; the best of each in bold."""
    names = [lanes.printable(str(row["schedule"])) for row in rows]
    head = "".join(f'<th scope="col">{html.escape(name)}</th>' for name in names)
    body = []
    for label, (key, factor) in COMPARED.items():
        values = [row.get(key) for row in rows]
        numbers = [factor * value for value in values if value is not None]
        if len(numbers) < len(values) or not any(numbers):
            continue
        best = max(numbers) if label in MORE_IS_BETTER else min(numbers)
        cells = "".join(
            _compared(value, numbers[0], value == best != max(numbers, key=lambda n: abs(n - best)))
            for value in numbers
        )
        body.append(f'<tr><th scope="row">{label}</th>{cells}</tr>\n')
    return f"<table>\n<thead><tr><td></td>{head}</tr></thead>\n<tbody>\n{''.join(body)}</tbody>\n</table>"


def _compared(value: float, first: float, best: bool) -> str:
    change = f" <small>{(value - first) / first:+.1%}</small>" if first and value != first else ""
    cell = '<td class="best">' if best else "<td>"
    return f"{cell}{lanes.number(value)}{change}</td>"
