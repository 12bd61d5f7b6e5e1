"""The command line: each verb reads, calls and writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial
from io import TextIOWrapper
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpipe.simulator.errors import CostsError, OutputError, ParallelError, ScheduleError, SimpipeError

if TYPE_CHECKING:
    from simpipe.simulator.case import Case
    from simpipe.simulator.scenario import Scenario

app = typer.Typer(
    help="Simulate pipeline-parallel training: timelines, bubbles and why they are there, memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def whole(text: str) -> int:
    """A whole number of the command line."""
    try:
        return int(text)
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a whole number") from None


listing = typer.Typer(help="List what there is.", no_args_is_help=True)
showing = typer.Typer(help="Show what a profile holds.", no_args_is_help=True)
app.add_typer(listing, name="list")
app.add_typer(showing, name="show")


def _whole(help: str, name: str | None = None) -> Any:
    """An option that takes a whole number."""
    return typer.Option(*([name] if name else []), parser=whole, metavar="N", help=help, show_default=False)


def _text(help: str, metavar: str, *names: str) -> Any:
    return typer.Option(*names, metavar=metavar, help=help, show_default=False)


File = Annotated[
    Path | None, typer.Argument(metavar="[SCENARIO]", help="A scenario file (.yaml); options override it.")
]
Schedule = Annotated[
    str | None,
    _text(
        "A name (see `simpipe list schedules`), with options as name:group=8, a .py or a .csv file. Default: dualpipe.",
        "NAME",
    ),
]
Schedules = Annotated[
    list[str] | None, _text("A schedule, as for `run`; repeatable. Default: all there are.", "NAME", "--schedule")
]
Ranks = Annotated[int | None, _whole("Pipeline ranks. Default: 8, or what schedule text or a measured table says.")]
Microbatches = Annotated[
    int | None, _whole("Micro-batches a step. Default: 20, or what schedule text or a measured table says.")
]
Chunks = Annotated[int | None, _whole("Stages per rank, where the schedule leaves a choice.")]
CostsText = Annotated[
    str | None,
    _text(
        "Seconds for 1/ranks of the layers, as F=1,I=1,W=1,FB=3,p2p=0.5 (further: B, message_bytes, bandwidth, "
        "exchange, activation_bytes, released_by_input, parameter_bytes, optimizer, barrier), or a .toml file of them; "
        "`run` also replays a .parquet or .csv table of measured operations.",
        "TEXT|FILE",
        "--costs",
    ),
]
ModelName = Annotated[
    str | None, _text("An LLM: a name, a .toml profile or a HuggingFace config.json.", "NAME", "--model")
]
Hardware = Annotated[str | None, _text("A machine: a name or a .toml profile.", "NAME")]
Gpus = Annotated[int | None, _whole("GPUs in all.")]
Tp = Annotated[int | None, _whole("Tensor parallel size.")]
Cp = Annotated[int | None, _whole("Context parallel size.")]
Ep = Annotated[int | None, _whole("Expert parallel size.")]
GlobalBatch = Annotated[int | None, _whole("Sequences a step.")]
Sequence = Annotated[int | None, _whole("Tokens of a sequence.")]
MicrobatchSize = Annotated[int | None, _whole("Sequences of a micro-batch.")]
Zero = Annotated[int | None, _whole("ZeRO stage, 0 to 3.")]
Recompute = Annotated[str | None, _text("What is computed again, as full or norms,mla_up,swiglu.", "LIST")]
Precision = Annotated[str | None, _text("bf16, fp8 or fp8_block.", "NAME")]
Sets = Annotated[
    list[str] | None, _text("Any other key of a scenario, as overlap=within-slot; repeatable.", "KEY=VALUE", "--set")
]
Step = Annotated[int | None, _whole("Which step of a measured table. Default: all.")]
Worker = Annotated[int | None, _whole("Which worker (dp_rank) of a measured table. Default: all.")]
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


def print_version(asked: bool) -> None:
    """Print the version and stop."""
    if asked:
        from simpipe import __version__

        print(__version__)
        raise typer.Exit


@app.callback()
def version(
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=print_version, is_eager=True)
    ] = False,
) -> None:
    """Simulate pipeline-parallel training: timelines, bubbles and why they are there, memory."""


@app.command()
def run(
    scenario: File = None,
    schedule: Schedule = None,
    ranks: Ranks = None,
    microbatches: Microbatches = None,
    chunks: Chunks = None,
    costs: CostsText = None,
    model: ModelName = None,
    hardware: Hardware = None,
    gpus: Gpus = None,
    global_batch: GlobalBatch = None,
    sequence: Sequence = None,
    microbatch_size: MicrobatchSize = None,
    tp: Tp = None,
    cp: Cp = None,
    ep: Ep = None,
    zero: Zero = None,
    recompute: Recompute = None,
    precision: Precision = None,
    set: Sets = None,
    step: Step = None,
    worker: Worker = None,
    engine: Engine = "auto",
    json: Json = False,
    out: Outs = None,
) -> None:
    """Simulate one step: its timeline, its bubbles and their causes, its memory.

    Costs are given by hand (--costs), or follow from a model on a machine (--model and the options below it, or a
    scenario file).
    """
    flags = modelled_flags(locals())
    if Path(costs or "").suffix.lower() in (".parquet", ".csv"):
        replay(schedule or "dualpipe", ranks, microbatches, chunks, str(costs), step, worker, engine, json, out or [])
        return
    if step is not None or worker is not None:
        raise SimpipeError("--step and --worker choose from a table of measured operations; give one with --costs")
    from simpipe.simulator import case as cases
    from simpipe.simulator import views
    from simpipe.simulator.views import console

    views.check(out or [])
    if scenario or model:
        case = cases.modelled(scenario_of(scenario, schedule, costs, microbatches, flags, set or []))
    else:
        refuse_flags(flags, set or [])
        case = cases.given(schedule or "dualpipe", ranks, microbatches, chunks, costs or "")
    trace, figures = cases.simulated(case, engine_of(engine))
    program = case.program
    if not json and not out:
        out = [f"{program.name}-{program.ranks}x{program.microbatches}.html"]
    written = [path for target in out or [] for path in views.write(trace, target)]
    if json:
        print_json(figures.to_dict())
    else:
        print("\n".join([*console.run(figures), *(f"wrote {path}" for path in written)]))


def replay(
    schedule: str, ranks: int | None, microbatches: int | None, chunks: int | None,
    table: str, step: int | None, worker: int | None, engine: str, json: bool, out: list[str],
) -> None:  # fmt: skip
    """`run` over measured operations: every step and worker pipeline of the table, or the chosen ones."""
    from simpipe.simulator import case as cases
    from simpipe.simulator import replay as replays
    from simpipe.simulator import views
    from simpipe.simulator.costs import measured
    from simpipe.simulator.trace import simulate

    views.check(out)
    if out and (step is None or worker is None):
        raise SimpipeError("--out draws one run of a measured table; choose it with --step and --worker")
    operations = measured.read(table)
    program = cases.given(
        schedule, ranks or operations.stages, microbatches or operations.microbatches, chunks, ""
    ).program
    steps, workers = (None if chosen is None else [chosen] for chosen in (step, worker))
    result = replays.replay(program, operations, steps, workers, engine_of(engine))
    written = []
    if step is not None and worker is not None:
        trace = simulate(program, operations.costs(step, worker), engine_of(engine))
        written = [path for target in out for path in views.write(trace, target)]
    if json:
        print_json(result.to_dict())
    else:
        print("\n".join(replays.describe(result) + [f"wrote {path}" for path in written]))


@app.command()
def compare(
    scenario: File = None,
    schedule: Schedules = None,
    ranks: Ranks = None,
    microbatches: Microbatches = None,
    costs: CostsText = None,
    model: ModelName = None,
    hardware: Hardware = None,
    gpus: Gpus = None,
    global_batch: GlobalBatch = None,
    sequence: Sequence = None,
    microbatch_size: MicrobatchSize = None,
    tp: Tp = None,
    cp: Cp = None,
    ep: Ep = None,
    zero: Zero = None,
    recompute: Recompute = None,
    precision: Precision = None,
    set: Sets = None,
    engine: Engine = "auto",
    json: Json = False,
    out: Annotated[list[str] | None, _text("Where to write, as .csv, .png or .svg; repeatable.", "PATH")] = None,
) -> None:
    """Compare schedules on one basis: equal ranks, micro-batches and layers; or equal model, GPUs and global batch.

    Modelled steps are run twice, with slots other than F&B as chains and overlapped within, unless --set overlap=...
    says which.
    """
    flags = modelled_flags(locals())
    from simpipe import schedules
    from simpipe.simulator import case as cases
    from simpipe.simulator import comparison, views
    from simpipe.simulator.views import console

    views.check_comparison(out or [])
    wanted: dict[str, Callable[[], Case]] = {}
    for text in schedule or schedules.catalogue():
        if not (scenario or model):
            refuse_flags(flags, set or [])
            wanted[text] = partial(cases.given, text, ranks, microbatches, None, costs or "")
            continue
        for suffix, overlap in overlaps(set or []):
            build = partial(scenario_of, scenario, text, costs, microbatches, flags, [*(set or []), *overlap])
            wanted[text + suffix] = lambda build=build: cases.modelled(build())  # type: ignore[misc]
    traces, entries, refused = {}, [], []
    for label, build_case in wanted.items():
        try:
            trace, figures = cases.simulated(build_case(), engine_of(engine))
        except (ScheduleError, CostsError, ParallelError) as error:
            if schedule:
                raise type(error)(f"{label}: {error}") from None
            refused.append(f"{label}: {error}")
            continue
        entries.append(comparison.Entry(label, figures))
        if out:  # many large traces would not fit into memory together
            traces[label] = trace
    if not entries:
        raise SimpipeError(f"there is nothing to compare: {refused[0]}")
    ordered, rows = comparison.rank(entries)
    for path in out or []:
        views.write_comparison(rows, {entry.label: traces[entry.label] for entry in ordered}, path)
    if json:
        print_json({"schedules": rows, "refused": refused})
    else:
        print("\n".join([*console.comparison(rows, refused), *(f"wrote {path}" for path in out or [])]))


@app.command("schedule")
def show_schedule(
    name: Annotated[str, typer.Argument(help="A name, with options as name:group=8, a .py or a .csv file.")],
    ranks: Ranks = None,
    microbatches: Microbatches = None,
    chunks: Chunks = None,
    format: Annotated[
        str | None, _text("text (aligned), csv (PyTorch's schedule text) or lowered (with its SEND and RECV).", "NAME")
    ] = None,
    out: Annotated[str | None, _text("A file to write instead of printing; .csv for csv.", "PATH")] = None,
) -> None:
    """Print the order in which each rank runs its actions."""
    from simpipe.simulator import case as cases
    from simpipe.simulator.files import atomic
    from simpipe.simulator.views import console

    if format is None:
        format = "csv" if str(out).lower().endswith(".csv") else "text"
    if format not in ("text", "csv", "lowered"):
        raise SimpipeError(f"--format is {format!r}; it is text, csv or lowered")
    program = cases.given(name, ranks, microbatches, chunks, "").program
    text = "\n".join(console.grid(program)) + "\n" if format == "text" else program.to_csv(posts=format == "lowered")
    if out is None:
        print(text, end="")
        return
    if out.endswith("/"):
        raise OutputError(f"{out} cannot be written: it names a folder; an order is one file, as order.csv")
    with atomic(Path(out)) as temporary:
        temporary.write_text(text, encoding="utf-8")
    print(f"wrote {out}")


@listing.command("schedules")
def list_schedules(json: Json = False) -> None:
    """The schedules, what each is, its options and the closed formula of its bubble."""
    from simpipe import schedules
    from simpipe.simulator.views import console

    found = schedules.catalogue().values()
    if json:
        print_json([s.to_dict() for s in found])
    else:
        print("\n".join(console.catalogue([s.to_dict() for s in found])))


@listing.command("models")
def list_models(json: Json = False) -> None:
    """The models there are profiles of."""
    from simpipe.simulator.costs.model import load_model, model_names

    models = [load_model(name) for name in model_names()]
    rows = [(m.name, sum(m.parameters().values()), m.source) for m in models]
    if json:
        print_json([dict(zip(("name", "parameters", "source"), row, strict=True)) for row in rows])
    else:
        print("\n".join(f"{name:<18}{parameters / 1e9:>8.1f} B  {source}" for name, parameters, source in rows))


@listing.command("hardware")
def list_hardware(json: Json = False) -> None:
    """The machines there are profiles of."""
    from simpipe.simulator.costs.cluster import load_cluster, profile_names

    clusters = [load_cluster(name) for name in profile_names()]
    rows = [{"name": c.name, "description": c.description} for c in clusters]
    print_json(rows) if json else print("\n".join(f"{r['name']:<16}{r['description']}" for r in rows))


@showing.command("model")
def show_model(
    name: Annotated[str, typer.Argument(help="A name, a .toml profile or a HuggingFace config.json.")],
    sequence: Annotated[int, _whole("Tokens of a sequence, for FLOPs. Default: 4096.")] = 4096,
    json: Json = False,
) -> None:
    """A model's parameters, FLOPs and KV cache, by component."""
    from simpipe.simulator.costs.model import load_model
    from simpipe.simulator.views import console

    facts = load_model(name).facts(sequence)
    print_json(facts) if json else print("\n".join(console.model(facts)))


@showing.command("hardware")
def show_hardware(name: Annotated[str, typer.Argument(help="A name or a .toml profile.")], json: Json = False) -> None:
    """What a machine's profile holds, and where each figure comes from."""
    from simpipe.simulator.costs.cluster import load_cluster
    from simpipe.simulator.views import console

    rows = load_cluster(name).rows()
    names = ("key", "value", "source", "assumed")
    print_json([dict(zip(names, row, strict=True)) for row in rows]) if json else print(
        "\n".join(console.hardware(rows))
    )


def modelled_flags(arguments: dict[str, Any]) -> dict[str, Any]:
    """Those of a command's arguments that are keys of a scenario."""
    names = "ranks chunks model hardware gpus global_batch sequence microbatch_size tp cp ep zero recompute precision"
    return {name: arguments[name] for name in names.split() if name in arguments}


def scenario_of(
    path: Path | None, schedule: str | None, costs: str | None, microbatches: int | None, flags: dict[str, Any],
    settings: list[str],
) -> Scenario:  # fmt: skip
    """The scenario of a file and options, which override it."""
    from simpipe.simulator.scenario import Scenario

    if costs is not None:
        raise SimpipeError("--costs gives costs by hand; it does not go with a model or a scenario")
    if microbatches is not None:
        raise SimpipeError("--microbatches follows from a model's --global-batch and GPUs; leave it out")
    settled = dict(setting(text) for text in settings)
    for key, value in settled.items():
        if flags.get(key) is not None:
            raise SimpipeError(f"{key} is given twice: --{key.replace('_', '-')} {flags[key]} and --set {key}={value}")
    given = flags | {"schedule": schedule} | settled
    given = {key: value for key, value in given.items() if value is not None}
    return Scenario.read(path, **given) if path else Scenario.of({"schedule": "dualpipe"} | given)


def overlaps(settings: list[str]) -> list[tuple[str, list[str]]]:
    """The ways in which a comparison runs slots other than F&B: as chains and overlapped within, unless one is set."""
    if any(text.partition("=")[0] == "overlap" for text in settings):
        return [("", [])]
    return [("", ["overlap=none"]), (" within-slot", ["overlap=within-slot"])]


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


def engine_of(text: str) -> Any:
    """The engine, checked."""
    if text not in ("auto", "simpy", "compiled"):
        raise SimpipeError(f"--engine is {text!r}; it is auto, simpy or compiled")
    return text


def print_json(value: Any) -> None:
    """One JSON value on stdout."""
    import json

    print(json.dumps(value, indent=2, allow_nan=False))


def main() -> None:
    """Run the command line. A user's mistake is one sentence on stderr and exit status 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a file's name may not be of the terminal's letters
    try:
        try:
            status = app(prog_name="simpipe", standalone_mode=False)
        finally:
            sys.stdout.flush()
        sys.exit(status)
    except SimpipeError as error:
        print(f"simpipe: {error}", file=sys.stderr)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except OSError as error:  # files are written elsewhere: this is standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # or the reader of a pipe has left
            print(f"simpipe: standard output cannot be written: {error.strerror}", file=sys.stderr)
    except Exception as error:
        # typer's own errors of usage, which it has under different names in different versions
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        print(message if message.startswith("Usage:") else f"simpipe: {message}", file=sys.stderr)
    sys.exit(2)
