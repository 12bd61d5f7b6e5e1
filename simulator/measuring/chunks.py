"""Chunks: the stages of a small dense model as PyTorch modules, built from the model's own list of operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from simpipe.simulator.costs.model import Activation, Core, Linear, Lookup, Model, ModelError, Norm, Operation
from simpipe.simulator.costs.parallel import Stage


class Chunk(nn.Module):
    """One stage: token numbers (sequences, tokens) or hidden states (sequences, tokens, hidden) in; hidden states out,
    or from a stage with the head the loss (1,) against random targets."""

    def __init__(self, model: Model, stage: Stage) -> None:
        super().__init__()
        check(model)
        halves = [half for layer in stage.layers for half in model.layer(layer)[1:]]
        self.embedding = nn.ModuleList(_module(each) for each in (model.embedding if stage.embedding else ()))
        self.halves = nn.ModuleList(_Half(half) for half in halves)
        self.head = nn.ModuleList(_module(each) for each in (model.head if stage.head else ()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for table in self.embedding:
            x = table(x)
        for half in self.halves:
            x = x + half(x)
        if not len(self.head):
            return x
        for module in self.head:
            x = module(x)
        logits = x.flatten(0, 1)
        targets = torch.arange(len(logits)) % logits.shape[1]
        return functional.cross_entropy(logits, targets).reshape(1)


def check(model: Model) -> None:
    """Raises ModelError for a model that a Chunk cannot be."""
    names = {operation.name for layer in (0, model.layers - 1) for operation in model.layer(layer).operations}
    if "attention.qkv" not in names or "norms.q" in names or "router" in names or model.positions:
        raise ModelError(
            f"{model.name} cannot be run as a small pipeline: that takes dense layers, grouped attention without norms "
            "of queries and keys, and no table of positions"
        )


class _Half(nn.Module):
    """Attention or MLP of a layer, from its norm to before the residual."""

    def __init__(self, operations: Sequence[Operation]) -> None:
        super().__init__()
        self.steps = nn.ModuleList(map(_module, operations))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for step in self.steps:
            x = step(x)
        return x


class _Attention(nn.Module):
    """Queries, keys and values of all heads side by side in; the heads' values side by side out."""

    def __init__(self, core: Core) -> None:
        super().__init__()
        self.core = core

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        core = self.core
        widths = (core.heads * core.qk_dim, core.kv_heads * core.qk_dim, core.kv_heads * core.v_dim)
        heads = (core.heads, core.kv_heads, core.kv_heads)
        q, k, v = (
            part.unflatten(-1, (number, -1)).transpose(1, 2)
            for part, number in zip(x.split(widths, dim=-1), heads, strict=True)
        )
        grouped = core.kv_heads < core.heads
        out = functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
        return out.transpose(1, 2).flatten(2)


class _Function(nn.Module):
    """An MLP's function: SwiGLU where it is gated, else GELU."""

    def __init__(self, gated: bool) -> None:
        super().__init__()
        self.gated = gated

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.gated:
            return functional.gelu(x)
        gate, up = x.chunk(2, dim=-1)
        return functional.silu(gate) * up


def _module(operation: Operation) -> Any:
    match operation:
        case Linear():
            return nn.Linear(operation.fan_in, operation.fan_out, bias=operation.bias)
        case Core():
            return _Attention(operation)
        case Norm():
            return (nn.LayerNorm if operation.bias else nn.RMSNorm)(operation.width)
        case Activation():
            return _Function(operation.gated)
        case Lookup():
            return nn.Embedding(operation.rows, operation.width)
    raise TypeError(operation)
