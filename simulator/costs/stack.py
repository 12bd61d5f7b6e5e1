"""Stack: the training software on a machine, read from `stack_profiles/NAME.toml`; knows no model and no schedule.

It says which kernels an operation is made of, how fast the host launches them, and what a step costs besides. What
follows from it follows through operations on streams: a host that launches too slowly is a task beside the others of
its slot, kernels that are not fused move their bytes.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import NamedTuple, cast

from simpipe.simulator.costs import profile
from simpipe.simulator.costs.profile import Amount, Count, Factor, Figure, Flag, ProfileKind, Ratio, Row, Seconds
from simpipe.simulator.errors import SimpipeError

FOLDER = Path(__file__).resolve().parents[2] / "stack_profiles"
DEFAULT = "fused"


class StackError(SimpipeError):
    """A profile of a software stack is unknown or malformed."""


class Traffic(NamedTuple):
    """Bytes an element that each kernel of an operation reads and writes, in its forward and in its backward."""

    forward: tuple[float, ...]
    backward: tuple[float, ...]


FUSED_NORM, EAGER_NORM = Traffic((4,), (6,)), Traffic((6, 8, 4, 8, 6, 6), (6, 6, 12, 12, 8, 12, 6))
"""A norm of bf16 elements in one kernel; or by tensor operations, upcast to fp32, squared, averaged, scaled, cast back
and multiplied by the gain."""

FUSED_ROTARY, EAGER_ROTARY = Traffic((4,), (4,)), Traffic((6, 16, 6), (6, 16, 6))
"""A rotation in one kernel; or by complex multiplication in fp32, cast before and after."""

FUSED_GATE, EAGER_GATE = Traffic((6,), (10,)), Traffic((4, 6), (6, 6, 6))
"""A gated activation function, of its output's elements; by itself activation and product are kernels of their own."""

FUSED_LOSS, EAGER_LOSS = Traffic((6, 8), (6,)), Traffic((6, 4, 8, 8, 4, 8), (8, 8, 6))
"""Cross entropy, of logits: cast to fp32 and softmax with loss, cast back; or as vocabulary-parallel tensor operations
in fp32: cast, maximum, difference, exponential, sum, quotient; then less the target, scaled, cast back."""

SOFTMAX, DROPOUT = Traffic((3,), (4,)), Traffic((5,), (5,))
"""Of scores, scale and causal mask fused into the softmax, which reads the half that is not masked and writes all
(Megatron-LM, scaled_upper_triang_masked_softmax.h); and of what a mask of 1 byte is drawn for."""

EAGER_SOFTMAX = Traffic((6, 8, 9, 8, 6), (6, 12, 9, 8, 6))
"""The same by tensor operations in fp32: cast, scaled, masked, softmax, cast back."""


@dataclass(frozen=True)
class Host:
    """What the host takes. launch: for a kernel, Python, autograd and driver together; 0 where graphs are replayed.
    queued: whether launches run ahead of the GPU, so that long kernels make up for short ones; else each kernel lasts a
    launch at least.
    sync: each time that it waits for the GPU, which then waits for its next kernel: after each slot of a pipeline, for
    messages, and for the numbers of tokens before a plain all-to-all. step: once a step, nothing beside it."""

    launch: Seconds
    queued: Flag
    sync: Seconds
    step: Seconds

    @property
    def aside(self) -> bool:
        """Whether launching is work beside the kernels, of which only the sum counts."""
        return self.queued and self.launch > 0

    @property
    def least(self) -> float:
        """Seconds between the starts of two kernels in a row, at least."""
        return 0.0 if self.queued else self.launch


@dataclass(frozen=True)
class Stack:
    """A training library as it is used; `figures` holds its numbers again, with sources.

    fused_attention: scores are never in memory; otherwise attention's core is two batched products around a softmax
    over all pairs, causal or not. softmax_multiple: sequences x heads that the softmax's kernel takes multiples of;
    tensor operations do others. attention_ratio: time of its fused attention over what the machine's curve says.
    unaligned_rate: share of a product's rate where a matrix has rows of no multiple of 16 bytes.
    dropout: after softmax, attention and MLP. fused_elementwise, fused_loss: norms, rotations and gates, and the cross
    entropy, as one kernel each. logit_bytes: held for a logit at the peak. fused_casts: what makes a tensor writes it
    in fp8 too, by row and by column, and weights are cast and turned once a step. fused_accumulation: products of
    weight gradients add to the gradient themselves. optimizer_bytes: moved for each parameter besides Adam's own reads
    and writes (casts, unscaling, norm, clipping, copies). scattered_messages: the tensor-parallel GPUs of a stage each
    send a part. fp8_gathers: what a product in fp8 needs of other GPUs is cast first.
    keeps_gathered: what sequence parallelism gathers for a product is kept for its weight gradient. expert_copies:
    tokens travel once for each expert by a plain all-to-all, permuted before and behind it, not once for each GPU and
    node.
    """

    name: str
    description: str
    figures: Mapping[str, Figure]
    fused_attention: Flag
    softmax_multiple: Count
    attention_ratio: Factor
    unaligned_rate: Ratio
    dropout: Flag
    fused_elementwise: Flag
    fused_loss: Flag
    logit_bytes: Amount
    fused_accumulation: Flag
    fused_casts: Flag
    optimizer_bytes: Amount
    scattered_messages: Flag
    fp8_gathers: Flag
    keeps_gathered: Flag
    expert_copies: Flag
    host: Host

    @property
    def norm(self) -> Traffic:
        return FUSED_NORM if self.fused_elementwise else EAGER_NORM

    @property
    def rotary(self) -> Traffic:
        return FUSED_ROTARY if self.fused_elementwise else EAGER_ROTARY

    @property
    def gate(self) -> Traffic:
        return FUSED_GATE if self.fused_elementwise else EAGER_GATE

    @property
    def loss(self) -> Traffic:
        return FUSED_LOSS if self.fused_loss else EAGER_LOSS

    def rows(self) -> list[Row]:
        """What `simpipe show stack` prints."""
        return profile.rows(self.figures)


PROFILES = ProfileKind(Stack, FOLDER, StackError, "stack")


def stack_names() -> list[str]:
    """The stacks that come with simpipe."""
    return profile.names(PROFILES)


def load_stack(name_or_path: str | os.PathLike[str] = DEFAULT) -> Stack:
    """The stack of `stack_profiles/NAME.toml`, or of the user's own file (`./mine.toml`).

    Raises StackError, one sentence with file and key, for anything that is not a sound profile.
    """
    name = os.fspath(name_or_path)
    return _profile(name) if name in profile.names(PROFILES) else _load(name)


@cache
def _profile(name: str) -> Stack:
    """A stack that comes with simpipe, read once."""
    return _load(name)


def _load(name: str) -> Stack:
    return cast(Stack, profile.build(PROFILES, *profile.read(PROFILES, name)))
