"""Kernels: pieces as calls of PyTorch's own operators, and how long they take on a device."""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional
from torch.nn.attention.bias import causal_lower_right

from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.measuring.pieces import Piece

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "tf32": torch.float32, "fp32": torch.float32}

LEAST, MOST = 5, 50
"""Repeats of a timing, and how many there are as long as they fit into BUDGET seconds."""

BUDGET = 0.5

FLUSHED = 1 << 28
"""Bytes that are written between two timings on a GPU: twice the largest L2 cache (a B200's 126 MB)."""

ROOM = 3.0
"""A piece is left out where its tensors, this many times, exceed the free memory: backwards hold gradients too."""

Call = Callable[[], Any]


class Timing(NamedTuple):
    """Median seconds of some repeats."""

    seconds: float
    repeats: int


def device_of(name: str | None) -> torch.device:
    """The device that was asked for, or a GPU where there is one. Raises SimpipeError."""
    if name not in (None, "cpu", "cuda"):
        raise SimpipeError(f"--device is {name!r}; it is cpu or cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise SimpipeError("--device cuda: PyTorch finds no GPU here; leave it out to measure the CPU")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def describe(device: torch.device) -> str:
    """What the device is, and PyTorch's version: timings of another are not mixed with these."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()
    return f"{name}; torch {torch.__version__}".replace(",", " ")


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
    except OSError:
        models = []
    return f"{(models or [platform.processor() or platform.machine()])[0]}; {torch.get_num_threads()} threads"


def fits(piece: Piece, device: torch.device) -> bool:
    """Whether the device has memory left for a piece."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return bool(piece.bytes * ROOM < free)


def time_piece(piece: Piece, device: torch.device) -> Timing:
    """Build a piece's tensors and time it."""
    torch.set_float32_matmul_precision("high" if piece.format == "tf32" else "highest")
    return timed(CALLS[piece.function](piece.sizes, device, DTYPES[piece.format]), device)


def timed(call: Call, device: torch.device, repeats: int | None = None) -> Timing:
    """Median of repeats, as many as fit into BUDGET, after a warm-up; on a GPU between events of its stream."""
    clock = _on_gpu if device.type == "cuda" else _on_cpu
    call()
    first = clock(call, 1)[0]
    repeats = repeats or max(LEAST, min(MOST, math.ceil(BUDGET / max(first, 1e-9))))
    return Timing(float(np.median(clock(call, repeats))), repeats)


def _on_cpu(call: Call, repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times


def _on_gpu(call: Call, repeats: int) -> list[float]:
    """Every repeat finds the L2 cache full of other things, as a step's kernels do. Filling it takes a GPU about 0.1 ms
    and is done as often before the first repeat: so the host gets ahead, and events do not wait for its launches."""
    events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(repeats)]
    other = torch.empty(FLUSHED, dtype=torch.uint8, device="cuda")
    torch.cuda.synchronize()
    for _ in range(repeats):
        other.zero_()
    for before, after in events:
        other.zero_()
        before.record()
        call()
        after.record()
    torch.cuda.synchronize()
    return [before.elapsed_time(after) * 1e-3 for before, after in events]


# Calls: sizes, device and number format become tensors and what is done to them.


def _tensor(device: torch.device, dtype: torch.dtype, *shape: int, grows: bool = False) -> torch.Tensor:
    return torch.randn(*shape, device=device, dtype=dtype, requires_grad=grows)


def _gemm(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Call:
    m, n, k = sizes
    a, b, out = _tensor(device, dtype, m, k), _tensor(device, dtype, k, n), _tensor(device, dtype, m, n)
    return lambda: torch.mm(a, b, out=out)


def _grouped_gemm(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Call:
    m, n, k, groups = sizes
    a, b = _tensor(device, dtype, groups, m // groups, k), _tensor(device, dtype, groups, k, n)
    out = _tensor(device, dtype, groups, m // groups, n)
    return lambda: torch.bmm(a, b, out=out)


def _attended(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[list[torch.Tensor], Call]:
    batch, heads, kv_heads, queries, keys, head_dim, value_dim, _ = sizes
    shapes = [(heads, queries, head_dim), (kv_heads, keys, head_dim), (kv_heads, keys, value_dim)]
    inputs = [_tensor(device, dtype, batch, *shape, grows=True) for shape in shapes]
    mask: dict[str, Any] = {"is_causal": True} if queries == keys else {"attn_mask": causal_lower_right(queries, keys)}
    mask["enable_gqa"] = kv_heads < heads
    return inputs, lambda: functional.scaled_dot_product_attention(*inputs, **mask)


def _attention_forward(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Call:
    return _attended(sizes, device, dtype)[1]


def _attention_backward(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Call:
    inputs, call = _attended(sizes, device, dtype)
    return _gradient(call, inputs)


def _gradient(call: Call, inputs: list[torch.Tensor]) -> Call:
    """The backward of a call, again and again."""
    out = call()
    grown = torch.randn_like(out)
    return lambda: torch.autograd.grad(out, inputs, grown, retain_graph=True)


def _function(apply: Callable[..., torch.Tensor], widths: tuple[int, ...], gain: bool, float32: bool) -> Any:
    """Builders of a function of (rows, columns x width) inputs and its backward, with a gain of (columns,) or none."""

    def parts(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[list[torch.Tensor], Call]:
        rows, columns = sizes
        kind = torch.float32 if float32 else dtype
        inputs = [_tensor(device, kind, rows, columns * width, grows=True) for width in widths]
        inputs += [torch.ones(columns, device=device, dtype=kind, requires_grad=True)] if gain else []
        return inputs, lambda: apply(*inputs)

    def forward(*given: Any) -> Call:
        return parts(*given)[1]

    def backward(*given: Any) -> Call:
        inputs, call = parts(*given)
        return _gradient(call, inputs)

    return forward, backward


def _rms_norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return functional.rms_norm(x, (x.shape[-1],), gain)


def _layer_norm(x: torch.Tensor, gain: torch.Tensor) -> torch.Tensor:
    return functional.layer_norm(x, (x.shape[-1],), gain, gain)


def _swiglu(x: torch.Tensor) -> torch.Tensor:
    gate, up = x.chunk(2, dim=-1)
    return functional.silu(gate) * up


def _gating(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Call:
    """Scores of all experts, the best of them, normalised; in fp32."""
    rows, experts, topk = sizes
    x = _tensor(device, torch.float32, rows, experts)

    def choose() -> torch.Tensor:
        best = torch.topk(torch.sigmoid(x), topk).values
        return best / best.sum(dim=-1, keepdim=True)

    return choose


def _cross_entropy(x: torch.Tensor) -> torch.Tensor:
    targets = torch.zeros(len(x), dtype=torch.int64, device=x.device)
    return functional.cross_entropy(x, targets)


def _add(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Call:
    a, b = _tensor(device, dtype, *sizes), _tensor(device, dtype, *sizes)
    return lambda: a + b


def _cast(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Call:
    a, out = _tensor(device, dtype, *sizes), torch.empty(sizes, device=device)
    return lambda: out.copy_(a)


def _rotary(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Call:
    a, angle = _tensor(device, dtype, *sizes), _tensor(device, dtype, sizes[1] // 2)
    cos, sin = angle.cos(), angle.sin()

    def turn() -> torch.Tensor:
        first, second = a.chunk(2, dim=-1)
        return torch.cat((first * cos - second * sin, first * sin + second * cos), dim=-1)

    return turn


def _rows(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """A table of as many rows as are looked up, tokens in any order, and one gradient for each."""
    rows, columns = sizes
    tokens = torch.randperm(rows, device=device)
    return _tensor(device, dtype, rows, columns), tokens, _tensor(device, dtype, rows, columns)


def _embedding(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Call:
    table, tokens, _ = _rows(sizes, device, dtype)
    return lambda: functional.embedding(tokens, table)


def _embedding_backward(sizes: tuple[int, ...], device: torch.device, dtype: torch.dtype) -> Call:
    table, tokens, grown = _rows(sizes, device, dtype)
    return lambda: table.index_add_(0, tokens, grown)


CALLS: dict[str, Callable[[tuple[int, ...], torch.device, torch.dtype], Call]] = {
    "gemm": _gemm,
    "grouped_gemm": _grouped_gemm,
    "attention_forward": _attention_forward,
    "attention_backward": _attention_backward,
    "gating": _gating,
    "add": _add,
    "cast": _cast,
    "rotary": _rotary,
    "embedding": _embedding,
    "embedding_backward": _embedding_backward,
}
"""Each function of a Piece."""

for _name, _parts in {
    "rms_norm": _function(_rms_norm, (1,), gain=True, float32=False),
    "layer_norm": _function(_layer_norm, (1,), gain=True, float32=False),
    "swiglu": _function(_swiglu, (2,), gain=False, float32=False),
    "gelu": _function(functional.gelu, (1,), gain=False, float32=False),
    "cross_entropy": _function(_cross_entropy, (1,), gain=False, float32=True),
}.items():
    CALLS[_name], CALLS[f"{_name}_backward"] = _parts
