"""Pieces: the kernels of a model's operations on one GPU that are timed by themselves; knows no PyTorch.

They follow from the model's own list of operations and from what a GPU has of each (`costs/operators.py`): one
embedding, one layer of each kind, the head with its loss. A product runs as forward, for the gradient of its input and
for that of its weights; what only moves bytes counts each tensor it reads or writes once.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from simpipe.simulator.calibration.timings import write_shape
from simpipe.simulator.costs.cluster import BYTES_PER_ELEMENT
from simpipe.simulator.costs.model import Activation, Core, Linear, Lookup, Model, Norm, Operation
from simpipe.simulator.costs.operators import RESIDUAL
from simpipe.simulator.costs.parallel import Parallel, expand_precision
from simpipe.simulator.costs.share import Share
from simpipe.simulator.errors import ParallelError

FORMATS = ("bf16", "fp16", "tf32", "fp32")
"""Those that PyTorch's own operators compute in."""

FP32 = BYTES_PER_ELEMENT["fp32"]


class Piece(NamedTuple):
    """One kernel, or one operator that moves bytes.

    component: the operation, as the model names it. of: the pass, forward, input or weight. operator: the kind of
    timing. function, sizes: what computes it, and the numbers of its shape, or its rows and columns. bytes: of all its
    tensors, each once; those that a memory-bound one moves.
    """

    component: str
    of: str
    operator: str
    function: str
    sizes: tuple[int, ...]
    format: str
    bytes: float

    @property
    def shape(self) -> str:
        """As a table of timings says it."""
        match self.operator:
            case "gemm" | "grouped_gemm":
                return write_shape(**dict(zip(("m", "n", "k", "groups"), self.sizes, strict=False)))
            case "attention_forward" | "attention_backward":
                names = ("batch", "heads", "kv_heads", "queries", "keys", "head_dim", "value_dim", "causal")
                return write_shape(**dict(zip(names, self.sizes, strict=True)))
        return ""


DEFAULTS: dict[str, dict[str, Any]] = {"cuda": {"sequence": 4096}, "cpu": {"sequence": 128, "compute_format": "fp32"}}
"""What is timed on a device where nothing else is said: on a CPU, so little that a layer of any model takes seconds."""


def layout(given: Mapping[str, Any], device: str) -> Parallel:
    """How a model is spread, from a scenario's keys: only what one GPU computes, so GPUs and batch follow.

    Raises ParallelError.
    """
    sizes = {"tp": 1, "cp": 1, "ep": 1, "etp": 1, "microbatch_size": 1} | dict(given)
    for key in ("tp", "cp", "ep", "etp", "microbatch_size"):
        if not isinstance(sizes[key], int) or not 1 <= sizes[key] <= 1_000_000:
            raise ParallelError(f"{key} must be a whole number from 1 to 1000000, not {sizes[key]!r:.80}")
    gpus = math.lcm(sizes["tp"] * sizes["cp"], sizes["ep"] * sizes["etp"])
    copies = gpus // (sizes["tp"] * sizes["cp"])
    fixed = {"ranks": 1, "gpus": gpus, "global_batch": copies * sizes["microbatch_size"]}
    return Parallel.of(DEFAULTS[device] | expand_precision(sizes) | fixed)


def pieces(model: Model, parallel: Parallel) -> list[Piece]:
    """Every piece once, in the order of the model. Raises ParallelError where it cannot be split or timed so."""
    parallel.check_model(model)
    if parallel.compute_format not in FORMATS:
        raise ParallelError(
            f"compute_format = {parallel.compute_format} is computed by kernels of other libraries, which differ; "
            f"measure {', '.join(FORMATS)}, or calibrate on a trace of your own step"
        )
    share = Share(model, parallel)
    layers = {model.layer(index) for index in (0, model.layers - 1)}
    lists = [model.embedding, *(layer.operations for layer in sorted(layers)), model.head]
    found = [piece for operations in lists for operation in operations for piece in _pieces(share, operation)]
    return list(dict.fromkeys(found))


def _pieces(share: Share, operation: Operation) -> Iterator[Piece]:
    match operation:
        case Linear():
            yield from _products(share, operation)
        case Core():
            yield from _attention(share, operation)
        case Norm():
            rows = round(share.normed(operation) / operation.width)
            kind = "layer_norm" if operation.bias else "rms_norm"
            yield from _moving(share, operation.name, kind, rows, operation.width, forward=2, backward=3)
            if operation.name in RESIDUAL:
                for of in ("forward", "input"):
                    yield _moved(share, f"{operation.name}.add", of, "add", rows, operation.width, 3)
        case Activation():
            parts = share.parallel.etp if operation.name.startswith("experts.") else share.parallel.tp
            columns = math.ceil(operation.width / parts)
            rows = round(share.inner(operation) / columns) or 1
            kind, inputs = ("swiglu", 2) if operation.gated else ("gelu", 1)
            yield from _moving(share, operation.name, kind, rows, columns, 1 + inputs, 1 + 2 * inputs)
        case Lookup():
            yield _moved(share, operation.name, "forward", "embedding", share.own, operation.width, 2)
            yield _moved(share, operation.name, "weight", "embedding_backward", share.own, operation.width, 3)


def _products(share: Share, linear: Linear) -> Iterator[Piece]:
    shapes = share.shapes(linear)
    groups = len(shapes)
    rows = max(shape[0] for shape in shapes)  # of a group, the same for all: a batch of products
    _, fan_in, fan_out = shapes[0]
    kind, last = ("grouped_gemm", (groups,)) if groups > 1 else ("gemm", ())
    element = BYTES_PER_ELEMENT[share.parallel.compute_format]
    size = element * groups * (rows * fan_in + fan_in * fan_out + rows * fan_out)
    for of, (m, n, k) in (
        ("forward", (rows, fan_out, fan_in)),
        ("input", (rows, fan_in, fan_out)),
        ("weight", (fan_in, fan_out, rows)),
    ):
        if m and n and k:
            yield Piece(linear.name, of, kind, kind, (m * groups, n, k, *last), share.parallel.compute_format, size)
    if linear.name == "router":
        experts = share.model.experts
        assert experts
        sizes, size = (rows, fan_out, experts.topk), FP32 * rows * (fan_out + experts.topk)
        yield Piece(linear.name, "forward", "memory_bound", "gating", sizes, share.parallel.compute_format, size)
    if linear.name == "head":
        yield _moved(share, "loss", "forward", "cast", rows, fan_out, element + FP32, 1)
        yield from _moving(share, "loss", "cross_entropy", rows, fan_out, forward=2, backward=2, element=FP32)


def _attention(share: Share, core: Core) -> Iterator[Piece]:
    shape = share.attended(core)
    format = share.parallel.compute_format
    width = shape.head_dim + shape.value_dim
    element = BYTES_PER_ELEMENT[format]
    size = element * shape.batch * width * (shape.heads * shape.queries + shape.kv_heads * shape.keys)
    sizes = tuple(map(int, shape))
    yield Piece(core.name, "forward", "attention_forward", "attention_forward", sizes, format, size)
    yield Piece(core.name, "input", "attention_backward", "attention_backward", sizes, format, 2 * size)
    if not share.model.positions:
        heads = (core.heads + core.kv_heads) // share.parallel.tp
        for of in ("forward", "input"):
            yield _moved(share, "attention.rotary", of, "rotary", share.tokens * heads, core.qk_dim, 2)


def _moving(
    share: Share, name: str, kind: str, rows: int, columns: int, forward: int, backward: int, element: float = 0
) -> Iterator[Piece]:
    """A function and its backward, with the number of (rows, columns) tensors that each reads and writes."""
    yield _moved(share, name, "forward", kind, rows, columns, forward, element)
    yield _moved(share, name, "input", f"{kind}_backward", rows, columns, backward, element)


def _moved(
    share: Share, name: str, of: str, kind: str, rows: int, columns: int, tensors: float, element: float = 0
) -> Piece:
    format = share.parallel.compute_format
    size = tensors * rows * columns * (element or BYTES_PER_ELEMENT[format])
    return Piece(name, of, "memory_bound", kind, (rows, columns), format, size)
