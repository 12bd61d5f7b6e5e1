"""The report of a training run: on the terminal in short, as one page in full."""

from __future__ import annotations

import base64
from pathlib import Path

from simpipe.simulator import ablation as ablations
from simpipe.simulator.inference import Serving
from simpipe.simulator.planning import advice
from simpipe.simulator.planning import capacity as planning
from simpipe.simulator.planning.search import Found
from simpipe.simulator.planning.tables import Row, plain
from simpipe.simulator.report import TRAINING_TOKENS, Compared, Report
from simpipe.simulator.views import ablation, console, detail, document, experts, inference, landscape, picture, savings

ENDINGS_OF_REPORT = (".html",)

PICTURE_INCHES = 16.0

WORDS = {
    "parameters": ("parameters", 1e9, "B"),
    "activated_parameters": ("parameters that a token uses", 1e9, "B"),
    "training_flops_per_token": ("training FLOPs a token", 1e9, "GFLOP"),
    "overlapped_slot_s": ("an F&B slot", 1e-3, "ms"),
    "overlapped_slots_s": ("all F&B slots of a rank", 1.0, "s"),
    "forwards_alone_s": ("forwards alone", 1.0, "s"),
    "backwards_alone_s": ("backwards alone", 1.0, "s"),
    "step_time_s": ("a step", 1.0, "s"),
    "mfu": ("MFU", 0.01, "%"),
    "bubbles_s": ("bubbles", 1.0, "s"),
    "between_steps_s": ("last backward to next forward", 1.0, "s"),
    "gpu_hours_per_trillion_tokens": ("GPU-hours for a trillion tokens", 1e3, "k"),
    "peak_activations": ("peak activations", 1.0, "micro-batches"),
    "parameter_copies": ("copies of parameters", 1.0, ""),
    "nvlink_over_network": ("NVLink over NIC: experts a node at equal time", 1.0, ""),
    "dispatch_gb_per_s": ("dispatch by itself", 1.0, "GB/s"),
    "combine_gb_per_s": ("combine by itself", 1.0, "GB/s"),
    "kv_bytes_per_token": ("KV cache of a token", 1e3, "kB"),
    "decode_exchange_s": ("a decoded token's exchange", 1e-3, "ms"),
    "decode_exchange_nvl72_s": ("the same in one NVLink domain", 1e-3, "ms"),
}
"""What each figure is called, and in what unit it is shown."""

FILE = "scenario.yaml"
"""What the page's commands call its scenario."""

SEARCHED = ["place", "step", "MFU", "bubbles", "fullest GPU", "days", "layout"]

COMPARED = ["figure", "simpipe", "published", "difference", "published in"]


def text(report: Report) -> list[str]:
    """The terminal's report: comparison with what is published, and what each technique is worth."""
    means = report.figures.efficiency
    assert means
    return [
        headline(report),
        "",
        *console.table(*_compared(report.compared)),
        "",
        *remarks(report),
        "",
        *ablation.text(report.ablation),
        "",
        capacity(report),
        *(console.table(SEARCHED, rows, (0, 6)) if (rows := _searched(report)) else []),
        *_around(report),
    ]


def headline(report: Report) -> str:
    """Model, layout and figures of the step."""
    p, means, summary = report.scenario.parallel, report.figures.efficiency, report.figures.summary
    assert means
    fits = "fits" if means.fits else "does not fit"
    return (
        f"{Path(report.scenario.model).stem} on {p.gpus:,} {report.scenario.hardware}: {summary.schedule}, {p.ranks} "
        f"ranks x {summary.microbatches} micro-batches; a step takes {means.step_time_s:.2f} s, MFU {means.mfu:.1%}, "
        f"bubbles {summary.bubble_rate:.1%}, {means.memory.peak_bytes / 1e9:.1f} GB on the fullest GPU: {fits}"
    )


def capacity(report: Report) -> str:
    """What the whole training takes."""
    found = report.capacity.own
    tokens = f"{TRAINING_TOKENS / 1e12:g} T tokens, as in DeepSeek-V3's training,"
    return f"{tokens} at {found['tokens_per_s'] / 1e6:.3g} M a second take {_takes(found)}"


def _takes(found: Row) -> str:
    cost = f" and {found['cost_usd'] / 1e6:.2f} M USD" if "cost_usd" in found else ""
    return f"{found['days']:.1f} days, {found['gpu_hours'] / 1e6:.2f} M GPU-hours{cost}"


def remarks(report: Report) -> list[str]:
    """On what basis the comparison is, and what of it stays unexplained."""
    return [f"Seconds of a step are means of ranks, and add up to it{_balanced(report)}.", _between(report)]


def _balanced(report: Report) -> str:
    rows = [row for row in report.ablation if row["off"] == ablations.BALANCE]
    if not rows or not report.scenario.parallel.balanced:
        return ""
    left = rows[-1]
    return f"; experts are in balance. With that {left['instead']}, a step takes {left['step_time_s']:.2f} s"


def _between(report: Report) -> str:
    own, bare = report.phases, report.bare
    text = (
        f"From the last backward to the next forward: {own.reduced:.3f} s of gradients reduced that no backward hides, "
        f"{own.updated:.3f} s of norm, barrier and update, {own.gathered:.3f} s until the first parameters are "
        f"gathered. With none of it beside slots (gradient_overlap and gather_overlap false) {bare.between:.3f} s."
    )
    published = next(row for row in report.compared if row.figure == "between_steps_s").published
    if published is None or published <= bare.between:
        return text
    return f"{text} What the other {published - bare.between:.3f} s or more of those published are, simpipe cannot say."


def _compared(rows: list[Compared]) -> tuple[list[str], list[list[str]], tuple[int, ...]]:
    """Columns, rows, and which of them are words; of a model without published figures only its own."""
    found = []
    for row in rows:
        words, unit, name = WORDS[row.figure]
        own = f"{row.simpipe / unit:,.4g} {name}".strip()
        if row.published is None:
            found.append([words, own, "-", "-", ""])
        else:
            other, off = f"{row.published / unit:,.4g} {name}".strip(), row.simpipe / row.published - 1
            found.append([words, own, other, f"{off:+.1%}", row.source])
    if all(row.published is None for row in rows):
        return COMPARED[:2], [cells[:2] for cells in found], (0,)
    return COMPARED, found, (0, 4)


def write(report: Report, path: str | Path) -> None:
    """Write the page. Raises OutputError."""
    name = Path(report.scenario.model).stem
    document.write(f"{name}: a training run in simulation", parts(report), Path(path))


def parts(report: Report) -> list[document.Part]:
    """The page, section by section, each with the command that makes it."""
    compared = _compared(report.compared)
    return [
        document.Text(headline(report)),
        document.Text(capacity(report)),
        document.Text(f"Commands are with the scenario at the end of this page as {FILE}."),
        document.Heading("Beside what is published" if len(compared[0]) > 2 else "Figures of the run"),
        document.Table(*compared),
        *(document.Text(text) for text in remarks(report)),
        document.Code(f"simpipe report {FILE}{_drawn(report)}"),
        document.Heading("The schedule, and one slot of it"),
        *_schedule(report),
        document.Code(f"simpipe run {FILE} --out step.html"),
        document.Heading("Techniques switched off, one at a time"),
        document.Table(ablation.HEADER, ablation.cells(report.ablation), ablation.LEFT),
        *map(document.Text, ablation.notes(report.ablation)),
        document.Code(f"simpipe ablate {FILE}{_drawn(report)}"),
        document.Heading("Memory, from all kept to this run's setting"),
        document.Table(savings.HEADER, savings.cells(report.savings)),
        document.Table(*savings.per_rank(report.savings)),
        document.Code(f"simpipe savings {FILE}"),
        *_kernels(report),
        *_balance(report),
        document.Heading("Capacity: what else would train it"),
        *_capacity(report),
        document.Heading("Attention's cache and bounds of decoding"),
        document.Table(inference.HEADER, inference.cells(report.caches)),
        document.Code(_kv(report.serving)),
        document.Heading("The scenario"),
        document.Code(report.scenario.to_yaml()),
    ]


def _capacity(report: Report) -> list[document.Part]:
    rows = _searched(report)
    table: list[document.Part] = [document.Table(SEARCHED, rows, (0, len(SEARCHED) - 1))] if rows else []
    return [*table, *map(document.Text, _around(report)), document.Code(planning.command(report.capacity.given))]


def _searched(report: Report) -> list[list[str]]:
    """The best, and this run where it is none of them."""
    own = report.capacity.place_of(report.scenario)
    ranked = report.capacity.ranked
    places = [*range(min(len(ranked), 1 + advice.RUNNERS_UP))]
    if own is not None and own not in places:
        places.append(own)
    return [_place(place, ranked[place], place == own) for place in places]


def _place(place: int, found: Found, own: bool) -> list[str]:
    result = found.result
    return [
        f"{place + 1}, as this run" if own else f"{place + 1}",
        f"{result['step_time_s']:.2f} s",
        f"{result['mfu']:.1%}",
        f"{result['bubble_rate']:.1%}",
        f"{result['peak_memory_gb']:.1f} GB",
        f"{result['days']:.1f}",
        " ".join(f"{key}={plain(found.row[key])}" for key in planning.FREE if found.row.get(key) is not None),
    ]


def _around(report: Report) -> list[str]:
    """What was searched, and what came of it."""
    found = report.capacity
    what = f"Searched: {', '.join(planning.FREE)}; all else is as in this run."
    if found.outcome is None:
        return [f"{what} Nothing was found: {found.missing}."]
    return [
        f"{what} {advice.counted(found.outcome)}. There, layers are laid out by work, and slots other than F&B overlap "
        "within themselves too: compare these steps with each other, not with the one above."
    ]


def _drawn(report: Report) -> str:
    """Options for what is drawn at random; nothing is without experts."""
    return f" --steps {report.balance.plan.steps} --seed {report.seed}" if report.balance else ""


def _kv(serving: Serving) -> str:
    sizes = f"--batch {serving.batch} --context {serving.context} --ep {serving.ep}"
    return f"simpipe kv --model {serving.model.name} --hardware {serving.cluster.name} {sizes}"


def _schedule(report: Report) -> list[document.Part]:
    trace = report.trace
    slot = detail.choose(trace)
    found: list[document.Part] = [document.Image("The step's timeline", _encoded(picture.image(trace, PICTURE_INCHES)))]
    if slot is not None:
        found.append(document.Image("One slot's operations", _encoded(picture.slot_image(trace, slot))))
    return found


def _encoded(png: bytes) -> str:
    return base64.b64encode(png).decode()


def _kernels(report: Report) -> list[document.Part]:
    if not report.kernels:
        return []
    command = document.Code(f"simpipe tune comm {FILE} --out tuned.yaml")
    return [document.Heading("Dispatch and combine kernels"), *landscape.parts(report.kernels), command]


def _balance(report: Report) -> list[document.Part]:
    if not report.balance:
        return []
    command = document.Code(f"simpipe moe {FILE}{_drawn(report)}")
    return [document.Heading("Experts and their balance"), *experts.parts(report.balance), command]
