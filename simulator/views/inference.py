"""The table of attention's caches and decode bounds."""

from __future__ import annotations

from simpipe.simulator.inference import Cache, Serving
from simpipe.simulator.views import console

HEADER = [
    "attention",
    "a token",
    "cache",
    "weights",
    "longest context",
    "memory",
    "compute",
    "exchange",
    "a token takes",
]


def text(serving: Serving, found: list[Cache]) -> list[str]:
    """The terminal's table."""
    model, cluster = serving.model.name, serving.cluster.name
    spread = f", experts over {serving.ep} GPUs" if serving.ep > 1 else ""
    each = f"each group of {serving.tp} GPUs" if serving.tp > 1 else "each GPU"
    requests = "1 request" if serving.batch == 1 else f"{serving.batch} requests"
    lines = [
        f"{model} on {cluster}{spread}: on {each} {requests} of {serving.context:,} tokens, cache in "
        f"{serving.cache}, weights in {serving.weights}",
        "",
        *console.table(HEADER, cells(found)),
        "",
        "A decoded token takes at least the longest of: weights and cache read from memory, products and attention",
        "computed, tokens sent to their experts and back, as if all were elsewhere; all at peak rates, each hidden",
        "behind the longest.",
    ]
    return lines + (["! does not fit beside the weights"] if not all(cache.fits for cache in found) else [])


def cells(found: list[Cache]) -> list[list[str]]:
    """Rows of text under HEADER."""
    return [
        [
            cache.attention,
            f"{cache.bytes_per_token / 1e3:.3f} kB",
            console.size(cache.cache_bytes) + ("" if cache.fits else " !"),
            console.size(cache.weight_bytes),
            f"{cache.longest_context:,}",
            *(_time(seconds) for seconds in cache.decode),
            _time(cache.decode.hidden),
        ]
        for cache in found
    ]


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:,.3g} s" if seconds < 1000 else f"{seconds:,.0f} s"
    return f"{1e3 * seconds:.3g} ms" if seconds else "-"
