"""How the steps of a slot lie on its streams.

A plain slot runs its pass as a chain, so that what nothing hides is exposed; with overlap within the slot its own parts
run beside each other: shared experts beside the dispatch, weight gradients beside communication. An overlapped F&B slot
interleaves two passes layer by layer, as DeepSeek-V3's published training trace shows
(https://github.com/deepseek-ai/profile-data): on the compute stream attention(F), MLP(B), MLP(W), MLP(F), attention(B),
attention(W); on the expert-parallel stream combine(B), dispatch(F), dispatch(B), combine(F). What that gains comes out
of the streams: there is no overlap factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import zip_longest
from typing import NamedTuple

from simpipe.simulator.costs.operators import Passes, Step

COMMUNICATION = ("dispatch", "combine")


class Piece(NamedTuple):
    """A step in a slot: of which action (0 or 1), behind which earlier pieces."""

    step: Step
    part: int
    needs: tuple[int, ...]


class Laid(NamedTuple):
    """A slot laid out: its pieces in order, those with which each layer's forward begins, and those that complete the
    weight gradients of a part of a layer."""

    pieces: tuple[Piece, ...]
    starts: tuple[int, ...]
    gradients: tuple[int, ...]


class Leg(NamedTuple):
    """Consecutive steps of a layer's pass: attention, mlp, dispatch or combine."""

    name: str
    steps: tuple[Step, ...]


def legs(steps: Sequence[Step]) -> dict[str, Leg]:
    """A layer's pass cut into legs, in order. What has a phase of its own (tensor parallel) stays in its leg."""
    found: dict[str, list[Step]] = {}
    name = "attention" if not any(step.phase in ("attention", "mlp") for step in steps) else ""
    pending: list[Step] = []
    for step in steps:
        if step.phase in ("attention", "mlp", *COMMUNICATION):
            name = step.phase
        if not name:
            pending.append(step)
            continue
        found.setdefault(name, []).extend([*pending, step])
        pending = []
    return {name: Leg(name, tuple(part)) for name, part in found.items()}


class _Layout:
    """Pieces being laid out: each leg behind what its pass had got to."""

    def __init__(self, within_slot: bool) -> None:
        self.within_slot = within_slot
        self.pieces: list[Piece] = []
        self.starts: list[int] = []
        self.gradients: list[int] = []
        self.at: list[tuple[int, ...]] = [(), ()]  # where each part's pass has got to

    def run(self, steps: Sequence[Step], part: int) -> None:
        """A chain behind the part's pass so far."""
        for step in steps:
            self.pieces.append(Piece(step, part, self.at[part]))
            self.at[part] = (len(self.pieces) - 1,)

    def aside(self, steps: Sequence[Step], part: int) -> None:
        """A chain behind the part's pass so far that nothing later in it needs."""
        at = self.at[part]
        self.run(steps, part)
        self.at[part] = at

    def forward(self, leg: dict[str, Leg], name: str, part: int) -> None:
        """A leg of a forward. Within a slot, shared experts need the attention only and run beside the dispatch."""
        steps = leg[name].steps if name in leg else ()
        if name == "dispatch" and self.within_slot and "mlp" in leg:
            shared = [step for step in leg["mlp"].steps if step.name.startswith("shared.")]
            before = self.at[part]
            self.run(steps, part)
            arrived, self.at[part] = self.at[part], before
            self.run(shared, part)
            self.at[part] = tuple(dict.fromkeys((*arrived, *self.at[part])))
        elif name == "mlp" and self.within_slot and "dispatch" in leg:
            self.run([step for step in steps if not step.name.startswith("shared.")], part)
        else:
            self.run(steps, part)

    def weights(self, leg: dict[str, Leg], name: str, part: int) -> None:
        """The weight gradients of a leg: beside what follows within a slot or beside a forward, else in the chain."""
        steps = leg[name].steps if name in leg else ()
        (self.aside if self.within_slot else self.run)(steps, part)
        if steps:
            self.gradients.append(len(self.pieces) - 1)

    def done(self) -> Laid:
        return Laid(tuple(self.pieces), tuple(self.starts), tuple(self.gradients))


BACKWARD = ("combine", "mlp", "dispatch", "attention")


def lay_out(forward: Sequence[Passes], backward: Sequence[Passes], parts: dict[str, int], within_slot: bool) -> Laid:
    """The pieces of a slot. `parts`: which action (0 or 1) is of which kind; layers come in the order they run."""
    paired = len(parts) == 2
    layout = _Layout(within_slot or paired)
    if paired:
        for ahead, back in zip_longest(forward, backward):
            _interleave(layout, ahead, back, parts["F"], parts["B"])
    elif "F" in parts:
        for layer in forward:
            _forward(layout, layer, 0)
    else:
        (kind,) = parts
        for layer in backward:
            _backward(layout, layer, kind, 0)
    return layout.done()


def _forward(layout: _Layout, layer: Passes, part: int) -> None:
    layout.starts.append(len(layout.pieces))
    cut = legs(layer.forward)
    for name in ("attention", "dispatch", "mlp", "combine"):
        layout.forward(cut, name, part)


def _backward(layout: _Layout, layer: Passes, kinds: str, part: int) -> None:
    inputs, weights = legs(layer.input), legs(layer.weight)
    for name in BACKWARD:
        if kinds in ("I", "B") and name in inputs:
            layout.run(inputs[name].steps, part)
        if kinds in ("W", "B"):
            layout.weights(weights, name, part)


def _interleave(layout: _Layout, ahead: Passes | None, back: Passes | None, one: int, two: int) -> None:
    """A layer of a forward (part `one`) with one of a backward (part `two`), in the order of each stream."""
    if ahead is None or back is None:
        if ahead is not None:
            _forward(layout, ahead, one)
        if back is not None:
            _backward(layout, back, "B", two)
        return
    f, i, w = legs(ahead.forward), legs(back.input), legs(back.weight)
    layout.run(_steps(i, "combine"), two)
    layout.starts.append(len(layout.pieces))
    layout.run(_steps(f, "attention"), one)
    layout.run(_steps(f, "dispatch"), one)
    layout.run(_steps(i, "mlp"), two)
    grown = layout.at[two]
    layout.run(_steps(i, "dispatch"), two)
    arrived, layout.at[two] = layout.at[two], grown
    layout.weights(w, "mlp", two)
    layout.at[two] = arrived
    layout.run(_steps(f, "mlp"), one)
    layout.run(_steps(f, "combine"), one)
    layout.run(_steps(i, "attention"), two)
    layout.weights(w, "attention", two)


def _steps(cut: dict[str, Leg], name: str) -> tuple[Step, ...]:
    return cut[name].steps if name in cut else ()
