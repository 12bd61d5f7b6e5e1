"""The command line: the verbs by name, and how their errors are told."""

from __future__ import annotations

import os
import sys
from io import TextIOWrapper
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from simpipe.commands import (
    calibration,
    experts,
    kernels,
    measuring,
    memory,
    planning,
    report,
    running,
    showing,
    validation,
)
from simpipe.simulator.errors import SimpipeError


class Verbs(TyperGroup):
    """Verbs listed with their whole first sentences, not the beginnings of them."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write the list, wrapped."""
        verbs = ((name, self.get_command(ctx, name)) for name in self.list_commands(ctx))
        with formatter.section("Commands"):
            formatter.write_dl([(name, verb.get_short_help_str(1000)) for name, verb in verbs if verb])


app = typer.Typer(
    cls=Verbs,
    help="Simulate pipeline-parallel training: timelines, bubbles and why they are there, memory.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
tuning = typer.Typer(cls=Verbs, help="Find the best setting.", no_args_is_help=True)
listing = typer.Typer(cls=Verbs, help="List what there is.", no_args_is_help=True)
inspecting = typer.Typer(cls=Verbs, help="Show what a profile holds.", no_args_is_help=True)

app.command("run")(running.run)
app.command("compare")(running.compare)
app.command("calibrate")(calibration.calibrate)
app.command("measure")(measuring.measure)
app.command("import-trace")(measuring.import_trace)
app.command("validate")(validation.validate)
app.command("batch")(planning.batch)
app.command("sweep")(planning.sweep)
app.command("plan")(planning.plan)
app.command("schedule")(showing.show_schedule)
app.command("moe")(experts.moe)
app.command("kv")(memory.kv)
app.command("savings")(memory.savings)
app.add_typer(tuning, name="tune")
tuning.command("comm")(kernels.tune_comm)
app.command("report")(report.report)
app.command("ablate")(report.ablate)
app.add_typer(listing, name="list")
listing.command("schedules")(showing.list_schedules)
listing.command("models")(showing.list_models)
listing.command("hardware")(showing.list_hardware)
listing.command("stacks")(showing.list_stacks)
app.add_typer(inspecting, name="show")
inspecting.command("model")(showing.show_model)
inspecting.command("hardware")(showing.show_hardware)
inspecting.command("stack")(showing.show_stack)


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


def _root(error: BaseException) -> BaseException:
    """What an error came of in the first place."""
    while error.__cause__:
        error = error.__cause__
    return error


def main() -> None:
    """Run the command line. A user's mistake is one sentence on stderr and exit status 2."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by who started us: what is said is for nobody
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
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
    except MemoryError:
        print("simpipe: there is not enough memory for this", file=sys.stderr)
    except FileNotFoundError:  # files are told elsewhere, each by its name
        print("simpipe: the current folder is not there any more", file=sys.stderr)
    except OSError as error:  # files are written elsewhere: this is standard output
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if not isinstance(error, BrokenPipeError):  # or the reader of a pipe has left
            print(f"simpipe: standard output cannot be written: {error.strerror}", file=sys.stderr)
    except Exception as error:
        if isinstance(_root(error), KeyboardInterrupt):  # Numba's compiled code turns it into a SystemError
            sys.exit(130)
        # typer's own errors of usage, which it has under different names in different versions
        if not hasattr(error, "format_message"):
            raise
        message = error.format_message()
        print(message if message.startswith("Usage:") else f"simpipe: {message}", file=sys.stderr)
    sys.exit(2)
