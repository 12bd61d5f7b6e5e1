"""The report of a training run: on the terminal in short, as one page in full."""

from __future__ import annotations

import base64
from pathlib import Path

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
    "optimizer_s": ("optimizer", 1.0, "s"),
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

COMPARED = ["figure", "simpipe", "published", "difference", "published in"]


def text(report: Report) -> list[str]:
    """The terminal's report: comparison with what is published, and what each technique is worth."""
    means = report.figures.efficiency
    assert means
    return [
        headline(report),
        "",
        *_left(COMPARED, _compared(report.compared)),
        "",
        *ablation.text(report.ablation),
        "",
        capacity(report),
    ]


def _left(header: list[str], rows: list[list[str]]) -> list[str]:
    """A table whose last column, of sources, is left-aligned."""
    short = console.table(header[:-1], [row[:-1] for row in rows])
    return [
        f"{line}  {last}".rstrip() for line, last in zip(short, [header[-1], *(row[-1] for row in rows)], strict=True)
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
    found = report.capacity
    cost = f" and {found['cost_usd'] / 1e6:.2f} M USD" if "cost_usd" in found else ""
    return (
        f"{TRAINING_TOKENS / 1e12:g} T tokens at {found['tokens_per_s'] / 1e6:.2f} M a second take {found['days']:.1f} "
        f"days, {found['gpu_hours'] / 1e6:.2f} M GPU-hours{cost}"
    )


def _compared(rows: list[Compared]) -> list[list[str]]:
    found = []
    for row in rows:
        words, unit, name = WORDS[row.figure]
        own = f"{row.simpipe / unit:,.4g} {name}".strip()
        if row.published is None:
            found.append([words, own, "-", "-", ""])
        else:
            other, off = f"{row.published / unit:,.4g} {name}".strip(), row.simpipe / row.published - 1
            found.append([words, own, other, f"{off:+.1%}", row.source])
    return found


def write(report: Report, path: str | Path) -> None:
    """Write the page. Raises OutputError."""
    name = Path(report.scenario.model).stem
    document.write(f"{name}: a training run in simulation", parts(report), Path(path))


def parts(report: Report) -> list[document.Part]:
    """The page, section by section."""
    return [
        document.Text(headline(report)),
        document.Text(capacity(report)),
        document.Heading("Beside what is published"),
        document.Table(COMPARED, _compared(report.compared), (0, 4)),
        document.Heading("The schedule, and one slot of it"),
        *_schedule(report),
        document.Heading("Techniques switched off, one at a time"),
        document.Table(ablation.HEADER, ablation.cells(report.ablation), (0, 1)),
        document.Heading("Memory, from all kept to this run's setting"),
        document.Table(savings.HEADER, savings.cells(report.savings)),
        *_kernels(report),
        *_balance(report),
        document.Heading("Attention's cache and bounds of decoding"),
        document.Table(inference.HEADER, inference.cells(report.caches)),
        document.Heading("The scenario"),
        document.Table(
            ["key", "value"], [[key, str(value)] for key, value in report.scenario.to_dict().items()], (0, 1)
        ),
    ]


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
    return [document.Heading("Dispatch and combine kernels"), *landscape.parts(report.kernels)]


def _balance(report: Report) -> list[document.Part]:
    return [document.Heading("Experts and their balance"), *experts.parts(report.balance)] if report.balance else []
