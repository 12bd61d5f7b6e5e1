"""validate: how far predictions are off published measurements."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

from simpipe.commands.options import Json, check_draws, number, print_json, words


def validate(
    family: Annotated[
        list[str] | None, words("A family of cases; repeatable. Default: all.", "NAME", "--family")
    ] = None,
    every: Annotated[int, number("Only each N-th case of a family. Default: 1.")] = 1,
    draws: Annotated[
        int, number("Draws of each step's interval from what its curves may be off. Default: 0, no interval.")
    ] = 0,
    json: Json = False,
    html: Annotated[str | None, words("Where to draw predicted against measured, as .html.", "PATH", "--html")] = None,
    workers: Annotated[int | None, number("Processes to work in. Default: one a core.")] = None,
) -> None:
    """Predict published measurements and print the errors, family by family, beside other simulators'."""
    from simpipe.simulator.errors import SimpipeError, show
    from simpipe.simulator.validation import page, report
    from simpipe.simulator.views import check_endings

    for name, value in (("every", every), ("workers", workers)):
        if value is not None and value < 1:
            raise SimpipeError(f"--{name} is at least 1, not {show(value)}")
    check_draws(draws)
    check_endings([html] if html else [], page.ENDINGS)
    with _bar() as done:
        results = report.run(family or (), every, workers or os.cpu_count() or 1, done, draws)
    if html is not None:
        page.write(results, report.verdict(results), Path(html))
    if json:
        print_json({"verdict": report.verdict(results), "families": [result.to_dict() for result in results]})
        return
    print("\n".join(report.lines(results)))
    if html is not None:
        print(f"wrote {html}")


@contextmanager
def _bar() -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, where that is a terminal."""
    if not sys.stderr.isatty():
        yield lambda finished, total: None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("cases")
        yield lambda finished, total: bar.update(task, completed=finished, total=total)
