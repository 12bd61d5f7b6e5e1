"""moe: experts, their balance, and what it costs."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpipe.commands.options import (
    Ep,
    File,
    Hardware,
    Json,
    ModelName,
    Seed,
    Sets,
    number,
    print_json,
    scenario_of,
    told,
    words,
)
from simpipe.simulator.errors import SimpipeError

if TYPE_CHECKING:
    from simpipe.simulator.scenario import Scenario

Strategies = Annotated[
    list[str] | None,
    words(
        "How to balance: none, auxiliary, sequence, bias or bias+sequence (DeepSeek-V3's); repeatable. "
        "Default: none, auxiliary and bias+sequence.",
        "NAME",
        "--strategy",
    ),
]
Share = Annotated[float, typer.Option(metavar="X", help="In units of an affinity, which lies between 0 and 1.")]


OF_ROUTING = ("strategy", "steps", "tokens", "sequences", "seen", "skew", "topic", "noise", "drift", "seed")
"""Arguments that say how loads come about."""


def moe(
    context: typer.Context,
    scenario: File = None,
    model: ModelName = None,
    hardware: Hardware = None,
    ep: Ep = None,
    set: Sets = None,
    strategy: Strategies = None,
    steps: Annotated[int, number("Steps to run. Default: 200.")] = 200,
    tokens: Annotated[int, number("Tokens routed a step, a sample of all. Default: 4096.")] = 4096,
    sequences: Annotated[int, number("Sequences that these are of, each with a topic of its own. Default: 16.")] = 16,
    seen: Annotated[float, typer.Option(metavar="N", help="Tokens trained on before the first step.")] = 0.0,
    skew: Annotated[float, typer.Option(metavar="X", help="Deviation of popularity between experts.")] = 0.05,
    topic: Annotated[float, typer.Option(metavar="X", help="Deviation of what a sequence's topic adds to it.")] = 0.05,
    noise: Annotated[float, typer.Option(metavar="X", help="Scale of what each token adds.")] = 0.1,
    drift: Annotated[float, typer.Option(metavar="X", help="Share of popularity that each step renews.")] = 1e-4,
    loads: Annotated[Path | None, words("Recorded loads instead: a .csv of layer, expert, tokens.", "FILE")] = None,
    placement: Annotated[str, typer.Option(metavar="NAME", help="contiguous, or balanced by load.")] = "contiguous",
    redundant: Annotated[
        int | None, number("Experts of a layer that lie on one more GPU. Default: the scenario's, or 0.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
    out: Annotated[list[str] | None, words("Where to write: .html, .png, .svg or .csv; repeatable.", "PATH")] = None,
) -> None:
    """Route tokens to experts, balance their loads, and see what imbalance costs a step.

    Affinities are popularity (--skew, which may --drift), a topic for each sequence, and noise for each token, in units
    of an affinity between 0 and 1. A model whose training is published (deepseek-v3) is run in that layout; else a
    scenario says what a step is, or only loads are shown.
    """
    from simpipe.simulator.costs.model_files import load_model
    from simpipe.simulator.experts import recorded, study
    from simpipe.simulator.experts.balance import Affinities
    from simpipe.simulator.views import check_endings
    from simpipe.simulator.views import experts as views

    check_endings(out or [], views.ENDINGS_OF_STUDY)
    chosen = _scenario(scenario, {"model": model, "hardware": hardware, "ep": ep}, set or [])
    layout = chosen.parallel if chosen else None
    if layout is None and model is None:
        raise SimpipeError("moe needs a model or a scenario: give --model, or a file")
    shape = chosen.load().model if chosen else load_model(str(model))
    router = study.router_of(shape)
    ranks = layout.ep if layout else math.gcd(router.experts, 64) if ep is None else ep
    copies = redundant if redundant is not None else layout.redundant_experts if layout else 0
    placing = study.Placing(ranks, placement, copies)
    sample = study.sample(tokens, sequences)
    plan = study.planned(layout, ranks, steps, sample, seen)
    if loads is not None:
        for name in OF_ROUTING:
            source = context.get_parameter_source(name)
            if source and source.name == "COMMANDLINE":
                raise SimpipeError(f"--loads are what experts got; leave --{name} out")
        counts = recorded.read(loads, shape.layers - shape.dense_layers, router.experts, router.topk)
        found = study.recorded(shape, counts, plan._replace(steps=1), placing, chosen)
    else:
        affinities = Affinities(skew, topic, noise, drift).check()
        names = list(dict.fromkeys(strategy or study.COMPARED))
        found = study.run(shape, affinities, names, plan, placing, seed, workers(), chosen, _progress(steps))
    for path in out or []:
        views.write(found, path)
    if json:
        print_json(found.to_dict())
    else:
        print("\n".join([*views.text(found), *(f"wrote {path}" for path in out or [])]))


def _scenario(path: Path | None, flags: dict[str, Any], settings: list[str]) -> Scenario | None:
    """The scenario whose step loads slow down: a file's, or that of a model whose training is published; else none."""
    from simpipe.simulator.scenario import published

    if path is None and flags["model"] is not None:
        path = published(flags["model"])
        if path is None and (settings or flags["hardware"]):
            raise SimpipeError(f"the layout of {flags['model']}'s training is not known; give a scenario file")
    return scenario_of(path, None, None, None, flags, settings) if path else None


def workers() -> int:
    """Threads that draw routing."""
    import os

    return min(8, os.cpu_count() or 1)


def _progress(steps: int) -> Callable[[str, int], None]:
    return lambda name, step: told(f"{name}: step {step} of {steps}", step == steps)
