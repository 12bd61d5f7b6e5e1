"""schedule, list and show: what there is, and what it holds."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from simpipe.commands.options import (
    Chunks,
    Json,
    Microbatches,
    Ranks,
    number,
    print_json,
    words,
)
from simpipe.simulator.errors import OutputError, SimpipeError


def show_schedule(
    name: Annotated[str, typer.Argument(help="A name, with options as name:group=8, a .py or a .csv file.")],
    ranks: Ranks = None,
    microbatches: Microbatches = None,
    chunks: Chunks = None,
    format: Annotated[
        str | None, words("text (aligned), csv (PyTorch's schedule text) or lowered (with its SEND and RECV).", "NAME")
    ] = None,
    out: Annotated[str | None, words("A file to write instead of printing; .csv for csv.", "PATH")] = None,
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


def list_schedules(json: Json = False) -> None:
    """The schedules, what each is, its options and the closed formula of its bubble."""
    from simpipe import schedules
    from simpipe.simulator.views import console

    found = schedules.catalogue().values()
    if json:
        print_json([s.to_dict() for s in found])
    else:
        print("\n".join(console.catalogue([s.to_dict() for s in found])))


def list_models(json: Json = False) -> None:
    """The models there are profiles of."""
    from simpipe.simulator.costs.model_files import load_model, model_names

    models = [load_model(name) for name in model_names()]
    rows = [(m.name, sum(m.parameters().values()), m.source) for m in models]
    if json:
        print_json([dict(zip(("name", "parameters", "source"), row, strict=True)) for row in rows])
    else:
        print("\n".join(f"{name:<18}{parameters / 1e9:>8.1f} B  {source}" for name, parameters, source in rows))


def list_hardware(json: Json = False) -> None:
    """The machines there are profiles of."""
    from simpipe.simulator.costs.cluster import load_cluster, profile_names

    clusters = [load_cluster(name) for name in profile_names()]
    rows = [{"name": c.name, "description": c.description} for c in clusters]
    print_json(rows) if json else print("\n".join(f"{r['name']:<16}{r['description']}" for r in rows))


def list_stacks(json: Json = False) -> None:
    """The stacks of training software there are profiles of."""
    from simpipe.simulator.costs.stack import load_stack, stack_names

    rows = [{"name": name, "description": load_stack(name).description} for name in stack_names()]
    print_json(rows) if json else print("\n".join(f"{r['name']:<26}{r['description']}" for r in rows))


def show_model(
    name: Annotated[str, typer.Argument(help="A name, a .toml profile or a HuggingFace config.json.")],
    sequence: Annotated[int, number("Tokens of a sequence, for FLOPs. Default: 4096.")] = 4096,
    json: Json = False,
) -> None:
    """A model's parameters, FLOPs and KV cache, by component."""
    from simpipe.simulator.costs.model_files import load_model
    from simpipe.simulator.views import console

    facts = load_model(name).facts(sequence)
    print_json(facts) if json else print("\n".join(console.model(facts)))


def show_hardware(name: Annotated[str, typer.Argument(help="A name or a profile's path.")], json: Json = False) -> None:
    """What a machine's profile holds, and where each figure comes from."""
    from simpipe.simulator.costs.cluster import load_cluster
    from simpipe.simulator.views import console

    rows = load_cluster(name).rows()
    print_json([row._asdict() for row in rows]) if json else print("\n".join(console.hardware(rows)))


def show_stack(name: Annotated[str, typer.Argument(help="A name or a profile's path.")], json: Json = False) -> None:
    """What a software stack's profile holds, and where each figure comes from."""
    from simpipe.simulator.costs.stack import load_stack
    from simpipe.simulator.views import console

    rows = load_stack(name).rows()
    print_json([row._asdict() for row in rows]) if json else print("\n".join(console.hardware(rows)))
