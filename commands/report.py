"""report and ablate: a training run in all its parts, and each of its techniques switched off."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from simpipe.commands.experts import workers
from simpipe.commands.options import Json, Seed, Sets, number, print_json, scenario_of, told, words
from simpipe.simulator.errors import SimpipeError

if TYPE_CHECKING:
    from simpipe.simulator.scenario import Scenario

Subject = Annotated[
    str,
    typer.Argument(metavar="MODEL|SCENARIO", help="A model whose training is published, or a scenario file (.yaml)."),
]
Steps = Annotated[int, number("Steps over which experts are balanced. Default: 200.")]


def report(
    subject: Subject,
    set: Sets = None,
    steps: Steps = 200,
    seed: Seed = 0,
    json: Json = False,
    out: Annotated[list[str] | None, words("Where to write the page (.html); repeatable.", "PATH", "--out")] = None,
) -> None:
    """Report a training run: step, balance, memory, capacity, what each technique is worth, and what was published.

    It simulates some thirty steps and searches for better layouts, which takes a minute or two.
    """
    from simpipe.simulator import report as reports
    from simpipe.simulator.planning import execution, search
    from simpipe.simulator.views import check_endings
    from simpipe.simulator.views import report as views

    check_endings(out or [], views.ENDINGS_OF_REPORT)
    with execution.executor_of("local", None, search.WAVE) as (pool, _):
        found = reports.make(_scenario(subject, set or []), pool, steps, seed, workers(), told)
    told("", last=True)
    for path in out or []:
        views.write(found, path)
    if json:
        print_json(found.to_dict())
    else:
        print("\n".join([*views.text(found), *(f"wrote {path}" for path in out or [])]))


def ablate(subject: Subject, set: Sets = None, steps: Steps = 200, seed: Seed = 0, json: Json = False) -> None:
    """Switch a run's techniques off, one at a time, and show what each costs a step.

    What imbalance of experts costs takes most of the time: --steps 0 leaves it out.
    """
    from simpipe.simulator import ablation
    from simpipe.simulator.views import ablation as views

    scenario = _scenario(subject, set or [])
    balance = ablation.balance_of(scenario, steps, seed, workers(), told) if steps else None
    rows = ablation.to_dict(ablation.table(scenario, balance, told))
    told("", last=True)
    print_json(rows) if json else print("\n".join(views.text(rows)))


def _scenario(subject: str, settings: list[str]) -> Scenario:
    from simpipe.simulator.scenario import published

    path = Path(subject) if subject.lower().endswith((".yaml", ".yml")) else published(subject)
    if path is None:
        raise SimpipeError(f"the training of {subject!r} is not known; give deepseek-v3 or a scenario file (.yaml)")
    return scenario_of(path, None, None, None, {}, settings)
