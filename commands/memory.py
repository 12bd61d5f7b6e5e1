"""kv: what attention caches, and what bounds decoding; savings: what training keeps less of, and what that costs."""

from __future__ import annotations

from typing import Annotated

import typer

from simpipe.commands.options import File, Hardware, Json, ModelName, Sets, number, print_json, scenario_of, told, words
from simpipe.simulator.errors import SimpipeError


def kv(
    model: ModelName = None,
    hardware: Hardware = None,
    batch: Annotated[int, number("Requests on each GPU, as two micro-batches of half as many. Default: 64.")] = 64,
    context: Annotated[
        int | None, number("Tokens of each request. Default: 4096, or as many as the model has positions for.")
    ] = None,
    ep: Annotated[
        int | None, number("GPUs that experts are spread over. Default: one expert a GPU, or one rack of NVLink.")
    ] = None,
    tp: Annotated[int, number("Tensor parallel size. Default: 1.")] = 1,
    weights: Annotated[
        str | None, words("Format of weights: bf16, fp8 or fp8_block. Default: fp8 where the machine has it.", "NAME")
    ] = None,
    cache: Annotated[str, typer.Option(metavar="NAME", help="Format of the cache.")] = "bf16",
    json: Json = False,
) -> None:
    """Show the KV cache of a model's attention beside MHA, GQA and MQA, and what bounds the time of a decoded token."""
    from simpipe.simulator import inference
    from simpipe.simulator.costs.cluster import load_cluster
    from simpipe.simulator.costs.model_files import load_model
    from simpipe.simulator.views import inference as views

    if model is None:
        raise SimpipeError("kv needs a model: give --model, as --model deepseek-v3")
    shape, machine = load_model(model), load_cluster("h800" if hardware is None else hardware)
    spread = inference.spread(shape, machine) if ep is None else ep
    kept = inference.weights_of(machine) if weights is None else weights
    tokens = inference.context_of(shape) if context is None else context
    serving = inference.Serving(shape, machine, batch, tokens, spread, tp, kept, cache)
    found = inference.caches(serving)
    print_json([each.to_dict() for each in found]) if json else print("\n".join(views.text(serving, found)))


def savings(scenario: File = None, model: ModelName = None, set: Sets = None, json: Json = False) -> None:
    """Show what each memory saving of a scenario frees and costs, from a layout that keeps everything to its own.

    A model whose training is published (deepseek-v3) needs no scenario.
    """
    from simpipe.simulator import savings
    from simpipe.simulator.scenario import published
    from simpipe.simulator.views import savings as views

    path = scenario or (published(model) if model else None)
    if path is None:
        raise SimpipeError("savings needs a scenario file, or --model deepseek-v3, whose training is published")
    chosen = scenario_of(path, None, None, None, {"model": model}, set or [])
    rows = savings.to_dict(savings.table(chosen, told))
    print_json(rows) if json else print("\n".join(views.text(rows)))
