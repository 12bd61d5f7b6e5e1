"""The command line: each verb reads, calls and writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simpipe.simulator.errors import ScheduleError, SimpipeError

if TYPE_CHECKING:
    from simpipe.simulator.costs.given import Costs
    from simpipe.simulator.program import Program

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
app.add_typer(listing, name="list")

Schedule = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        help="A name (see `simpipe list schedules`), with options as name:group=8, a .py or a .csv file.",
    ),
]
Schedules = Annotated[
    list[str] | None,
    typer.Option("--schedule", metavar="NAME", help="A schedule, as for `run`; repeatable. Default: all there are."),
]
Ranks = Annotated[
    int | None,
    typer.Option(parser=whole, metavar="N", help="Pipeline ranks. Default: 8, or what the schedule or cost file says."),
]
Microbatches = Annotated[
    int | None,
    typer.Option(
        parser=whole, metavar="N", help="Micro-batches a step. Default: 20, or what the schedule or cost file says."
    ),
]
Chunks = Annotated[
    int | None, typer.Option(parser=whole, metavar="N", help="Stages per rank, where the schedule leaves a choice.")
]
CostsText = Annotated[
    str,
    typer.Option(
        "--costs",
        metavar="TEXT|FILE",
        help="Seconds for 1/ranks of the layers, as F=1,I=1,W=1,FB=3,p2p=0.5; a .toml file; or a .parquet or .csv "
        "table of measured operations to replay.",
    ),
]
Step = Annotated[
    int | None, typer.Option(parser=whole, metavar="N", help="Which step of a measured table. Default: all.")
]
Worker = Annotated[
    int | None,
    typer.Option(parser=whole, metavar="N", help="Which worker (dp_rank) of a measured table. Default: all."),
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


@app.command()
def run(
    schedule: Schedule = "dualpipe",
    ranks: Ranks = None,
    microbatches: Microbatches = None,
    chunks: Chunks = None,
    costs: CostsText = "",
    step: Step = None,
    worker: Worker = None,
    engine: Engine = "auto",
    json: Json = False,
    out: Outs = None,
) -> None:
    """Simulate one schedule: its timeline, its bubbles and their causes, its memory."""
    if Path(costs).suffix in (".parquet", ".csv"):
        replay(schedule, ranks, microbatches, chunks, costs, step, worker, engine, json, out or [])
        return
    if step is not None or worker is not None:
        raise SimpipeError("--step and --worker choose from a table of measured operations; give one with --costs")
    from simpipe.schedules import closed_form
    from simpipe.simulator import views
    from simpipe.simulator.summary import summarize
    from simpipe.simulator.trace import simulate
    from simpipe.simulator.views import console

    views.check(out or [])
    name, program = program_of(schedule, ranks, microbatches, chunks)
    cost = costs_of(costs)
    trace = simulate(program, cost, engine_of(engine))
    summary = summarize(trace)
    formula = closed_form(name, program, cost)
    if not json and not out:
        out = [f"{program.name}-{program.ranks}x{program.microbatches}.html"]
    written = [path for target in out or [] for path in views.write(trace, target)]
    if json:
        print_json(
            summary.to_dict() | {"critical_path": trace.critical_seconds, "formula": formula and formula._asdict()}
        )
    else:
        print("\n".join(console.run(summary, formula)))
        print("\n".join(f"wrote {path}" for path in written))


def replay(
    schedule: str, ranks: int | None, microbatches: int | None, chunks: int | None,
    table: str, step: int | None, worker: int | None, engine: str, json: bool, out: list[str],
) -> None:  # fmt: skip
    """`run` over measured operations: every step and worker pipeline of the table, or the chosen ones."""
    from simpipe.simulator import replay as replays
    from simpipe.simulator import views
    from simpipe.simulator.costs import measured
    from simpipe.simulator.trace import simulate

    views.check(out)
    if out and (step is None or worker is None):
        raise SimpipeError("--out draws one run of a measured table; choose it with --step and --worker")
    operations = measured.read(table)
    _, program = program_of(schedule, ranks or operations.stages, microbatches or operations.microbatches, chunks)
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
    schedule: Schedules = None,
    ranks: Ranks = None,
    microbatches: Microbatches = None,
    costs: CostsText = "",
    engine: Engine = "auto",
    json: Json = False,
    out: Outs = None,
) -> None:
    """Compare schedules on one basis: equal ranks, micro-batches and layers."""
    from simpipe import schedules
    from simpipe.simulator import comparison, views
    from simpipe.simulator.summary import summarize
    from simpipe.simulator.trace import simulate
    from simpipe.simulator.views import console

    views.check_comparison(out or [])
    cost = costs_of(costs)
    traces, entries, refused = {}, [], []
    for text in schedule or schedules.catalogue():
        try:
            name, program = program_of(text, ranks, microbatches, None)
        except ScheduleError as error:
            if schedule:
                raise
            refused.append(str(error))
            continue
        traces[text] = simulate(program, cost, engine_of(engine))
        entries.append(comparison.Entry(text, summarize(traces[text]), schedules.closed_form(name, program, cost)))
    rows = comparison.rank(entries)
    for path in out or []:
        views.write_comparison(rows, traces, path)
    if json:
        print_json({"basis": "equal ranks, micro-batches and layers", "schedules": rows, "refused": refused})
    else:
        print("\n".join(console.comparison(rows, refused)))
        print("\n".join(f"wrote {path}" for path in out or []))


@app.command("schedule")
def show_schedule(
    name: Annotated[str, typer.Argument(help="A name, with options as name:group=8, a .py or a .csv file.")],
    ranks: Ranks = None,
    microbatches: Microbatches = None,
    chunks: Chunks = None,
    format: Annotated[str, typer.Option(help="text (aligned) or csv (PyTorch's schedule text).")] = "text",
    out: Annotated[Path | None, typer.Option(help="A file to write instead of printing.")] = None,
) -> None:
    """Print the order in which each rank runs its actions."""
    from simpipe.simulator.views import atomic, console

    if format not in ("text", "csv"):
        raise SimpipeError(f"--format is {format!r}; it is text or csv")
    _, program = program_of(name, ranks, microbatches, chunks)
    text = program.to_csv() if format == "csv" else "\n".join(console.grid(program)) + "\n"
    if out is None:
        print(text, end="")
        return
    with atomic(out) as temporary:
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


def program_of(text: str, ranks: int | None, microbatches: int | None, chunks: int | None) -> tuple[str, Program]:
    """The name or path and the program of a `--schedule`; a named one defaults to 8 ranks and 20 micro-batches."""
    from simpipe import schedules

    name, options = schedules.parse(text)
    if not name.endswith(".csv"):
        ranks, microbatches = 8 if ranks is None else ranks, 20 if microbatches is None else microbatches
    chunks = options.pop("chunks", chunks)
    return name, schedules.program(name, ranks, microbatches, chunks, **options)


def costs_of(text: str) -> Costs:
    """The costs of a `--costs`: numbers on the command line or a file."""
    from simpipe.simulator.costs.given import Costs

    return Costs.read(text) if text.endswith(".toml") else Costs.parse(text)


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
    try:
        sys.exit(app(prog_name="simpipe", standalone_mode=False))
    except SimpipeError as error:
        print(f"simpipe: {error}", file=sys.stderr)
    except typer.Exit as done:
        sys.exit(done.exit_code)
    except (typer.Abort, KeyboardInterrupt):
        sys.exit(130)
    except BrokenPipeError:  # the reader of a pipe has left
        sys.stderr.close()
        sys.exit(1)
    except Exception as error:
        # typer's own errors of usage, which it has under different names in different versions
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        print(message if message.startswith("Usage:") else f"simpipe: {message}", file=sys.stderr)
    sys.exit(2)
