"""calibrate: from timings to a machine's profile."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated

import typer

from simpipe.commands.options import Json, print_json, words
from simpipe.simulator.errors import SimpipeError


def calibrate(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="SOURCE...",
            help="Timings: a .csv or .tsv table, a PyTorch profiler trace (.json, .json.gz), an Nsight Systems export "
            "(.sqlite), the output of nccl-tests or of DeepEP's tests, a table of collectives, a log of F, I, W, P2P "
            "by stage; recognised by content.",
        ),
    ] = None,
    base: Annotated[
        str,
        words("The machine to start from: a name (`simpipe list hardware`) or a profile (.toml, .yaml).", "NAME"),
    ] = "h800",
    scenario: Annotated[
        str | None,
        words("The scenario (.yaml) of what a trace without shapes is of: its model gives the shapes.", "FILE"),
    ] = None,
    classes: Annotated[
        str | None, words("Patterns of kernels' and ranges' names (.toml), tried before simpipe's own.", "FILE")
    ] = None,
    template: Annotated[
        bool, typer.Option("--template", help="Print a template of the table of timings, or write it to --out as .csv.")
    ] = False,
    json: Json = False,
    out: Annotated[
        list[str] | None,
        words("Where to write: the profile as .toml or .yaml, a report as .html; repeatable.", "PATH", "--out"),
    ] = None,
) -> None:
    """Fit a machine's profile to timings, half of them; report how far off it is on the other half."""
    from simpipe.simulator.files import atomic, check_apart
    from simpipe.simulator.views import check_endings

    if template:
        from simpipe.simulator.calibration.readers.csv_table import TEMPLATE

        check_endings(out or [], (".csv",))
        for path in map(Path, out or []):
            with atomic(path) as draft:
                draft.write_text(TEMPLATE, encoding="utf-8", newline="\n")
        print("\n".join(f"wrote {path}" for path in out) if out else TEMPLATE.rstrip())
        return
    if not sources:
        raise SimpipeError("there is nothing to calibrate to: name files of timings (`simpipe calibrate --template`)")
    from simpipe.simulator.calibration import calibrate as calibrations
    from simpipe.simulator.calibration import report
    from simpipe.simulator.scenario import Scenario
    from simpipe.simulator.yaml_file import yaml_text

    check_endings(out or [], (".toml", ".yaml", ".yml", ".html"))
    check_apart(out or [], [*sources, base, *filter(None, (scenario, classes))])
    loaded = Scenario.read(scenario).load() if scenario else None
    found = calibrations.calibrate(sources, base, loaded, classes)
    if not found.curves:
        check_endings(out or [], (".toml", ".html"))  # no other file of costs is read
    for path in map(Path, out or []):
        if path.suffix.lower() == ".html":
            report.write(found, path)
            continue
        with atomic(path) as draft:
            text = found.profile if path.suffix.lower() == ".toml" else yaml_text(tomllib.loads(found.profile))
            draft.write_text(text, encoding="utf-8", newline="\n")
    if json:
        print_json(calibrations.to_dict(found))
    else:
        print("\n".join([*calibrations.describe(found), *(f"wrote {path}" for path in out or [])]))
