"""Options that verbs share, and what their values stand for."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpipe.simulator.errors import SimpipeError, show

if TYPE_CHECKING:
    from simpipe.simulator.scenario import Scenario


def whole(text: str) -> int:
    """A whole number of the command line."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{show(text)} is not a whole number") from None


def number(help: str, name: str | None = None) -> Any:
    """An option that takes a whole number."""
    return typer.Option(*([name] if name else []), parser=whole, metavar="N", help=help, show_default=False)


def words(help: str, metavar: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, show_default=False)


File = Annotated[
    Path | None, typer.Argument(metavar="[SCENARIO]", help="A scenario file (.yaml); options override it.")
]
Schedule = Annotated[
    str | None,
    words(
        "A name (see `simpipe list schedules`), with options as name:group=8, a .py or a .csv file. Default: dualpipe.",
        "NAME",
    ),
]
Schedules = Annotated[
    list[str] | None, words("A schedule, as for `run`; repeatable. Default: all there are.", "NAME", "--schedule")
]
Ranks = Annotated[int | None, number("Pipeline ranks. Default: 8, or what schedule text or a measured table says.")]
Microbatches = Annotated[
    int | None, number("Micro-batches a step. Default: 20, or what schedule text or a measured table says.")
]
Chunks = Annotated[int | None, number("Stages per rank, where the schedule leaves a choice.")]
CostsText = Annotated[
    str | None,
    words(
        "Seconds for 1/ranks of the layers, as F=1,I=1,W=1,FB=3,p2p=0.5 (further: B, message_bytes, bandwidth, "
        "exchange, activation_bytes, released_by_input, parameter_bytes, optimizer, barrier), or a .toml file of them; "
        "`run` also replays a .parquet or .csv table of measured operations.",
        "TEXT|FILE",
        "--costs",
    ),
]
ModelName = Annotated[
    str | None, words("An LLM: a name, a .toml profile or a HuggingFace config.json.", "NAME", "--model")
]
Hardware = Annotated[str | None, words("A machine: a name or a profile (.toml, .yaml).", "NAME")]
Gpus = Annotated[int | None, number("GPUs in all.")]
Tp = Annotated[int | None, number("Tensor parallel size.")]
Cp = Annotated[int | None, number("Context parallel size.")]
Ep = Annotated[int | None, number("Expert parallel size.")]
GlobalBatch = Annotated[int | None, number("Sequences a step.")]
Sequence = Annotated[int | None, number("Tokens of a sequence.")]
MicrobatchSize = Annotated[int | None, number("Sequences of a micro-batch.")]
Zero = Annotated[int | None, number("ZeRO stage, 0 to 3.")]
Recompute = Annotated[str | None, words("What is computed again, as full or norms,mla_up,swiglu.", "LIST")]
Precision = Annotated[str | None, words("bf16, fp8 or fp8_block.", "NAME")]
Sets = Annotated[
    list[str] | None, words("Any other key of a scenario, as overlap=within-slot; repeatable.", "KEY=VALUE", "--set")
]
Step = Annotated[int | None, number("Which step of a measured table. Default: all.")]
Worker = Annotated[int | None, number("Which worker (dp_rank) of a measured table. Default: all.")]
Predict = Annotated[
    str | None,
    words(
        "Predict spans instead of replaying them, with intervals: `second-half` calibrates on the first half of a "
        "measured table's steps; a later table of the same run is predicted from all of them.",
        "WHAT",
    ),
]
Seed = Annotated[int, typer.Option(min=0, metavar="N", help="Seed of what is drawn at random.")]
Draws = Annotated[
    int | None,
    number(
        "Runs of a modelled step with costs as far off as the profile's fits, for an interval of the step time. "
        "Default: up to 200 where that takes about a second, else none."
    ),
]
Engine = Annotated[str, typer.Option(metavar="NAME", help="auto, simpy (the readable reference) or compiled.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
Outs = Annotated[
    list[str] | None,
    typer.Option(
        "--out",
        metavar="PATH",
        help="Where to write; repeatable. The ending chooses the format, a folder takes the default set.",
    ),
]


def inches(text: str) -> float:
    """A number of inches of the command line."""
    try:
        return float(text)
    except ValueError:
        raise typer.BadParameter(f"{show(text)} is not a number of inches") from None


Width = Annotated[
    float | None,
    typer.Option("--width", parser=inches, metavar="INCHES", help="How wide a picture is.", show_default=False),
]


def modelled_flags(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of a command's arguments that are keys of a scenario."""
    names = "ranks chunks model hardware gpus global_batch sequence microbatch_size tp cp ep zero recompute precision"
    return {name: arguments[name] for name in names.split() if name in arguments}


def scenario_of(
    path: Path | None, schedule: str | None, costs: str | None, microbatches: int | None, flags: dict[str, Any],
    settings: list[str], completed: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> Scenario:  # fmt: skip
    """The scenario of a file and options, which override it; `completed` adds what options alone leave open."""
    from simpipe.simulator.scenario import Scenario

    if costs is not None:
        raise SimpipeError("--costs gives costs by hand; it does not go with a model or a scenario")
    if microbatches is not None:
        raise SimpipeError("--microbatches follows from a model's --global-batch and GPUs; leave it out")
    settled = settings_of(settings)
    for key, value in settled.items():
        if flags.get(key) is not None:
            raise SimpipeError(f"{key} is given twice: --{key.replace('_', '-')} {flags[key]} and --set {key}={value}")
    given = flags | {"schedule": schedule} | settled
    given = {key: value for key, value in given.items() if value is not None}
    if path:
        return Scenario.read(path, **given)
    try:
        return Scenario.of(completed({"schedule": "dualpipe"} | given))
    except SimpipeError as error:
        key, missing, _ = str(error).partition(" is missing")
        raise type(error)(f"{error}: give --{key.replace('_', '-')}" if missing else str(error)) from None


def overlaps(settings: list[str]) -> list[tuple[str, list[str]]]:
    """The ways in which a comparison runs slots other than F&B: as chains and overlapped within, unless one is set."""
    if any(text.partition("=")[0] == "overlap" for text in settings):
        return [("", [])]
    return [("", ["overlap=none"]), (" within-slot", ["overlap=within-slot"])]


def settings_of(texts: list[str]) -> dict[str, Any]:
    """What --set says, by key."""
    found: dict[str, Any] = {}
    for key, value in map(setting, texts):
        if value is None:
            raise SimpipeError(f"--set {key} has no value; write one, as {key}=1, or leave it out")
        if key in found:
            raise SimpipeError(f"--set {key} is given twice: {show(found[key])} and {show(value)}")
        found[key] = value
    return found


def setting(text: str) -> tuple[str, Any]:
    """KEY=VALUE, the value read as a file would."""
    key, equals, value = text.partition("=")
    if not equals:
        raise SimpipeError(f"--set takes KEY=VALUE, as overlap=within-slot, not {text!r}")
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        return key, YAML(typ="safe", pure=True).load(value)
    except YAMLError:
        raise SimpipeError(f"--set {key}: {value!r} is no value; write a number, a name, true or [a, list]") from None


def refuse_flags(flags: dict[str, Any], settings: list[str]) -> None:
    """Options of a modelled step mean nothing without a model."""
    ours = ("ranks", "chunks")
    stray = [name for name, value in flags.items() if value is not None and name not in ours]
    if stray or settings:
        name = "--" + (stray[0].replace("_", "-") if stray else "set")
        raise SimpipeError(f"{name} needs a model: give --model and --hardware, or a scenario file")


MAX_DRAWS = 100_000


def check_draws(draws: int | None) -> None:
    """Raises SimpipeError for a number of draws that is out of bounds."""
    if draws is not None and not 0 <= draws <= MAX_DRAWS:
        raise SimpipeError(f"--draws is {show(draws)}; it takes 0 to {MAX_DRAWS:,}")


def engine_of(text: str) -> Any:
    """The engine, checked."""
    if text not in ("auto", "simpy", "compiled"):
        raise SimpipeError(f"--engine is {text!r}; it is auto, simpy or compiled")
    return text


def told(text: str, last: bool = False) -> None:
    """Say on a terminal's stderr how far long work has come, over what was said before."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="\n" if last else "", file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    import json

    print(json.dumps(value, indent=2, allow_nan=False))
