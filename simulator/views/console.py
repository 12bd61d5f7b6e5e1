"""What the terminal shows: tables of plain text, in seconds unless they say otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from simpipe.schedules import ClosedForm
from simpipe.simulator.case import Figures
from simpipe.simulator.graph import INTERVAL
from simpipe.simulator.program import Program, slot_text
from simpipe.simulator.summary import RankSummary, Summary
from simpipe.simulator.views.palette import CAUSE_WORDS

if TYPE_CHECKING:
    from simpipe.simulator.costs.profile import Row
    from simpipe.simulator.efficiency import Efficiency

MOST_RANKS = 32
"""A longer table of ranks is cut; --json has them all."""


def number(value: float) -> str:
    """Up to six significant digits."""
    return f"{value:.6g}"


def size(count: float) -> str:
    """Bytes in decimal units, as the machines' data sheets count."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.4g} {unit}"
        count /= 1000
    return f"{count:.4g} TB"


def table(header: Sequence[str], rows: Sequence[Sequence[str]], left: Sequence[int] = (0,)) -> list[str]:
    """Right-aligned columns, but for those in `left`."""
    widths = [max(map(len, column)) for column in zip(header, *rows, strict=True)]
    lines = []
    for row in (header, *rows):
        cells = [
            cell.ljust(width) if number in left else cell.rjust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append("  ".join(cells).rstrip() if len(row) - 1 in left else "  ".join(cells))
    return lines


def run(figures: Figures) -> list[str]:
    """The report of one run."""
    summary, closed_form = figures.summary, figures.closed_form
    shown = summary.per_rank[:MOST_RANKS]
    header = ["rank", "stages", "busy", "bubble", "bubbles", "longest", "waiting", "transfer", "peak activations"]
    with_bytes = summary.peak_activation_bytes > 0
    lines = [headline(summary), ""]
    lines += table(header + ["their bytes"] * with_bytes, [_rank_row(rank, with_bytes) for rank in shown])
    if len(summary.per_rank) > len(shown):
        lines.append(f"... and {len(summary.per_rank) - len(shown)} more ranks; --json has them all")
    lines += ["", *_causes(summary), *_longest(figures)]
    if figures.efficiency:
        lines += ["", *_efficiency(figures.efficiency, summary)]
    if closed_form:
        lines.append(formula(closed_form, max(rank.bubble_time for rank in summary.per_rank)))
    return lines


def uncertainty(found: dict[str, Any]) -> list[str]:
    """The interval of a modelled step, where its profile's fits give one, and what is used beyond them."""
    if not found:
        return []
    interval, lines = found["step_time_interval_s"], list(found["extrapolated"])
    if interval:
        ends = f"{number(interval['low'])} to {number(interval['high'])} s"
        of = f"{interval['level']:.0%} of {interval['draws']} draws from how far off the profile's fits are"
        lines.insert(0, f"step time {ends} in {of}")
    elif found["fitted"]:
        lines.insert(0, "the profile's fits say how far off this may be: --draws 100 for an interval of the step time")
    return lines


def _efficiency(found: Efficiency, summary: Summary) -> list[str]:
    """Throughput, and each rank's memory at its peak by kind."""
    e = found
    lines = [
        f"step {number(e.step_time_s)} s: {number(e.tokens_per_s)} tokens/s, {number(e.tokens_per_s_per_gpu)} a GPU; "
        f"{number(e.tflops_per_gpu)} TFLOP/s a GPU",
        f"MFU {e.mfu:.1%} (causal, of the dense BF16 peak; with full attention {e.mfu_noncausal:.1%}, of the format's "
        f"peak {e.mfu_format_peak:.1%}), HFU {e.hfu:.1%}",
        f"communication inside slots that nothing hides: {number(e.exposed_communication_s)} s a rank on average",
        "",
    ]
    kinds = [kind for kind, size_ in e.memory.by_kind.items() if size_ > 0]
    rows = [
        [str(r.rank), f"{r.peak_bytes / 1e9:.1f}", *(f"{r.by_kind[kind] / 1e9:.1f}" for kind in kinds)]
        for r in e.memory_per_rank[:MOST_RANKS]
    ]
    lines += table(["GB at the peak of rank", "all", *(kind.replace("_", " ") for kind in kinds)], rows)
    peak, capacity = e.memory.peak_bytes / 1e9, e.capacity_bytes / 1e9
    fits = f"fits: at most {peak:.1f} of a GPU's {capacity:.1f} GB, on rank {e.memory.rank}"
    return [*lines, "", fits if e.fits else f"DOES NOT FIT: {e.excess}"]


def headline(summary: Summary) -> str:
    """Size and outcome in two sentences."""
    s = summary
    copies = "one copy" if s.parameter_copies == 1 else f"{number(s.parameter_copies)} copies"
    return (
        f"{s.schedule}: {s.ranks} ranks x {s.microbatches} micro-batches, {s.stages} stages, {copies} of parameters\n"
        f"makespan {number(s.makespan)} s, ideal {number(s.ideal)} s, bubble rate {s.bubble_rate:.2%}, "
        f"span bubble rate {s.span_bubble_rate:.2%}, peak activations {number(s.peak_activations)} micro-batches"
    )


def _rank_row(rank: RankSummary, with_bytes: bool) -> list[str]:
    stages = ",".join(map(str, rank.stages))
    times = (rank.busy, rank.bubble_time)
    waits = (rank.longest_bubble, rank.waiting_time, rank.transfer_time, rank.peak_activations)
    row = [str(rank.rank), stages, *map(number, times), str(rank.bubble_count), *map(number, waits)]
    return row + [size(rank.peak_activation_bytes)] * with_bytes


def _causes(summary: Summary) -> list[str]:
    total = summary.bubble_time
    if total <= INTERVAL * summary.makespan * summary.ranks:
        return ["no rank ever idles"]
    parts = [f"{CAUSE_WORDS[c]} {number(t)} s ({t / total:.0%})" for c, t in summary.bubble_causes.items() if t > 0]
    return [f"why ranks idle, {number(total)} s over all ranks: " + ", ".join(parts)]


def _longest(figures: Figures) -> list[str]:
    """The longest bubble and the critical path."""
    path = ", ".join(f"{kind} {number(seconds)} s" for kind, seconds in figures.critical_path.items() if seconds > 0)
    lines = [f"critical path: {path}"] if path else []
    for bubble in figures.longest_bubbles[:1]:
        cause = CAUSE_WORDS[max(bubble["causes"], key=bubble["causes"].get)]
        what = f"{cause}, ended by {bubble['ended_by']}" if bubble["ended_by"] else cause
        span = f"rank {bubble['rank']}, {number(bubble['start'])} to {number(bubble['end'])} s"
        lines.insert(0, f"longest bubble: {span} ({what})")
    return lines


def formula(closed_form: ClosedForm, simulated: float) -> str:
    """The closed formula beside the simulated bubble, marked where it is outside its domain."""
    verdict = f"OUTSIDE its domain: {closed_form.outside}" if closed_form.outside else f"exact {closed_form.domain}"
    return (
        f"formula for the rank that idles most: {closed_form.text} = {number(closed_form.seconds)} s, "
        f"simulated {number(simulated)} s ({verdict})"
    )


def comparison(rows: Sequence[dict[str, Any]], refused: Sequence[str]) -> list[str]:
    """The ranking of a comparison, and what could not take the size."""
    header = ["schedule", "place", "makespan", "bubble rate", "mean bubble", "peak activations", "copies", "stages"]
    names = ("makespan_s", "bubble_rate", "mean_bubble_s", "peak_activations", "parameter_copies", "stages")
    modelled = any("mfu" in row for row in rows)
    with_bytes = not modelled and any(row["peak_activation_bytes"] for row in rows)
    cells = []
    for row in rows:
        figures = [f"{row[name]:.2%}" if name == "bubble_rate" else number(row[name]) for name in names]
        cells.append([row["schedule"], str(row["place"]), *figures, *[size(row["peak_activation_bytes"])] * with_bytes])
        if modelled:
            cells[-1] += [f"{row['mfu']:.1%}", number(row["exposed_communication_s"])]
            cells[-1] += [size(row["peak_memory_bytes"]), "yes" if row["fits"] else "NO"]
    basis = "model, GPUs and global batch" if modelled else "ranks, micro-batches and layers"
    lines = [f"on equal {basis}; seconds, and micro-batches' activations of 1/ranks of the layers"]
    header += ["peak bytes"] * with_bytes + ["MFU", "exposed comm.", "peak memory", "fits"] * modelled
    if rows:
        lines += ["", *table(header, cells)]
    return lines + [f"left out: {sentence}" for sentence in refused]


def catalogue(schedules: Sequence[dict[str, Any]]) -> list[str]:
    """A line a schedule, and its options and formula under it."""
    lines = []
    for schedule in schedules:
        lines.append(f"{schedule['name']:<26}{schedule['summary']}")
        options = [
            f"{name}={default}" if default is not None else name for name, default in schedule["options"].items()
        ]
        formula = schedule["formula"]
        notes = [f"options {', '.join(options)}"] if options else []
        if formula:
            notes.append(f"bubble {formula['text']}, exact {formula['domain']}")
        lines += [" " * 26 + "; ".join(notes)] if notes else []
    return lines


def model(facts: dict[str, Any]) -> list[str]:
    """A model's counts by component."""
    counts = (
        "parameters",
        "activated_parameters",
        "training_flops_per_token",
        "training_flops_per_token_full_attention",
    )
    rows = [
        [name, *(f"{facts[count].get(name, 0) / 1e9:,.3f}" for count in counts)]
        for name in dict.fromkeys(name for count in counts for name in facts[count] if name != "all")
    ]
    rows.append(["all", *(f"{facts[count]['all'] / 1e9:,.3f}" for count in counts)])
    header = ["billions", "parameters", "activated a token", "training FLOP a token", "with full attention"]
    lines = [f"{facts['name']}: {facts['source']}", "", *table(header, rows), ""]
    lines.append(
        f"FLOPs at a sequence of {facts['sequence']} tokens, causal attention counting half of it, without MTP"
    )
    if facts["mtp_parameters"]:
        lines.append(f"MTP modules have {facts['mtp_parameters'] / 1e9:,.3f} billion parameters more")
    return [*lines, f"KV cache {facts['kv_cache_bytes_per_token'] / 1e3:g} kB a token in bf16"]


def hardware(rows: Sequence[Row]) -> list[str]:
    """A machine's figures with their sources; fitted ones with one standard deviation."""
    shown = [(row.value if row.uncertainty is None else f"{row.value} ± {row.uncertainty:.2g}", row) for row in rows]
    keys, values = max(len(row.key) for row in rows), max(len(value) for value, _ in shown)
    return [
        f"{row.key:<{keys}}  {value:<{values}}  {'ASSUMED: ' if row.assumed else ''}{row.source}"
        + (f" ({row.points} points{row.range and ', '}{row.range})" if row.points else "")
        for value, row in shown
    ]


def grid(program: Program) -> list[str]:
    """The order as aligned text, a line a rank, a column a slot."""
    rows = [[slot_text(slot).replace(")OVERLAP_F_B", ")") for slot in row] for row in program.order]
    columns = max(map(len, rows))
    widths = [max((len(row[c]) for row in rows if c < len(row)), default=0) for c in range(columns)]
    label = len(f"rank {program.ranks - 1}")
    return [
        f"{f'rank {rank}':<{label}}  "
        + " ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip()
        for rank, row in enumerate(rows)
    ]
