"""How the steps of a slot lie on its streams.

A plain slot runs its pass as a chain, so that what nothing hides is exposed; with overlap within the slot its own parts
run beside each other: shared experts beside the dispatch, weight gradients beside communication, tensor-parallel
collectives of a product's backward beside its other half. An overlapped F&B slot
interleaves two passes layer by layer, as DeepSeek-V3's published training trace shows
(https://github.com/deepseek-ai/profile-data): on the compute stream attention(F), MLP(B), MLP(W), MLP(F), attention(B),
attention(W); on the expert-parallel stream combine(B), dispatch(F), dispatch(B), combine(F). What that gains comes out
of the streams: there is no overlap factor.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby, zip_longest
from typing import NamedTuple

from simpipe.simulator.costs.operators import Passes
from simpipe.simulator.costs.share import Step

COMMUNICATION = ("dispatch", "combine")
TENSOR = "tensor-parallel"
"""The stream of collectives that belong to a product: `mlp.up.gather`, `mlp.up.scatter`, `mlp.up.reduce`."""


class Piece(NamedTuple):
    """A step in a slot: of which action (0 or 1), behind which earlier pieces."""

    step: Step
    part: int
    needs: tuple[int, ...]


class Start(NamedTuple):
    """The piece with which a pass that reads its weights begins: of which action, numbered as Gradients are."""

    piece: int
    number: int
    part: int


class Gradients(NamedTuple):
    """The piece that completes the weight gradients of a leg of a pass, numbered in the order of the forward."""

    piece: int
    number: int
    leg: str


class Laid(NamedTuple):
    """A slot laid out: its pieces in order, those with which forwards and input passes begin, and those that complete
    weight gradients."""

    pieces: tuple[Piece, ...]
    starts: tuple[Start, ...]
    gradients: tuple[Gradients, ...]


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
        self.starts: list[Start] = []
        self.gradients: list[Gradients] = []
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

    def inputs(self, steps: Sequence[Step], weights: Sequence[Step], part: int) -> tuple[Step, ...]:
        """A leg of an input pass; returns which steps of its weight gradients are still to be run.

        Within a slot, those of a product that tensor parallelism splits by columns run beside the reduction of its
        input's gradient, and what is gathered for them comes beside the product before, as Megatron-LM does.
        """
        if not self.within_slot:
            self.run(steps, part)
            return tuple(weights)
        pending = [(name, list(group)) for name, group in groupby(weights, lambda step: _product(step.name))]
        gathered: dict[str, int] = {}
        for step in steps:
            product = _product(step.name)
            group = next((steps for name, steps in pending if name == product), [])
            if group and step.name == product and group[0].stream == TENSOR:
                self.aside([group.pop(0)], part)
                gathered[product] = len(self.pieces) - 1
            before = self.at[part]
            self.run([step], part)
            if group and step.stream == TENSOR and step.name.endswith((".scatter", ".reduce")):
                arrived, self.at[part] = self.at[part], before
                while product in dict(pending):
                    name, group = pending.pop(0)
                    self.at[part] = (*before, *([gathered.pop(name)] if name in gathered else []))
                    self.run(group, part)
                self.at[part] = arrived
        assert not gathered, "what is gathered for a weight gradient is for a product with a reduction behind it"
        return tuple(step for _, group in pending for step in group)

    def weights(self, steps: Sequence[Step], part: int) -> None:
        """Weight gradients: beside what follows within a slot or beside a forward, else in the chain."""
        (self.aside if self.within_slot else self.run)(steps, part)

    def begun(self, number: int, part: int) -> None:
        """Note that the next piece begins a pass."""
        self.starts.append(Start(len(self.pieces), number, part))

    def completed(self, steps: Sequence[Step], since: int, number: int, leg: str) -> None:
        """Note which of the pieces since one completes the weight gradients that some steps make."""
        if steps:
            last = max(n for n in range(since, len(self.pieces)) if self.pieces[n].step in steps)
            self.gradients.append(Gradients(last, number, leg))

    def done(self) -> Laid:
        return Laid(tuple(self.pieces), tuple(self.starts), tuple(self.gradients))


_Numbered = tuple[int, Passes]
BACKWARD = ("combine", "mlp", "dispatch", "attention")


def lay_out(forward: Sequence[Passes], backward: Sequence[Passes], parts: dict[str, int], overlap: str) -> Laid:
    """The pieces of a slot. `parts`: which action (0 or 1) is of which kind; layers come in the order they run.
    overlap: as Parallel's; `serial` runs an F&B's forward as a chain and then its backward."""
    paired = len(parts) == 2
    layout = _Layout(overlap == "within-slot" or (paired and overlap != "serial"))
    numbered = list(zip(range(len(backward) - 1, -1, -1), backward, strict=True))
    if paired and overlap == "serial":
        for ahead in enumerate(forward):
            _forward(layout, *ahead, parts["F"])
        layout.at[parts["B"]] = layout.at[parts["F"]]
        for back in numbered:
            _backward(layout, *back, "B", parts["B"])
    elif paired:
        for pair in zip_longest(enumerate(forward), numbered):
            _interleave(layout, *pair, parts["F"], parts["B"])
    elif "F" in parts:
        for ahead in enumerate(forward):
            _forward(layout, *ahead, 0)
    else:
        (kind,) = parts
        for back in numbered:
            _backward(layout, *back, kind, 0)
    return layout.done()


def _forward(layout: _Layout, number: int, layer: Passes, part: int) -> None:
    layout.begun(number, part)
    cut = legs(layer.forward)
    for name in ("attention", "dispatch", "mlp", "combine"):
        layout.forward(cut, name, part)


def _backward(layout: _Layout, number: int, layer: Passes, kinds: str, part: int) -> None:
    inputs, weights = legs(layer.input), legs(layer.weight)
    if kinds in ("I", "B") and inputs:
        layout.begun(number, part)
    for name in BACKWARD:
        since, made = len(layout.pieces), _steps(weights, name) if kinds in ("W", "B") else ()
        rest = layout.inputs(_steps(inputs, name), made, part) if kinds in ("I", "B") else made
        layout.weights(rest, part)
        layout.completed(made, since, number, name)


def _interleave(layout: _Layout, ahead: _Numbered | None, behind: _Numbered | None, one: int, two: int) -> None:
    """A layer of a forward (part `one`) with one of a backward (part `two`), in the order of each stream."""
    if ahead is None or behind is None:
        if ahead is not None:
            _forward(layout, *ahead, one)
        if behind is not None:
            _backward(layout, *behind, "B", two)
        return
    number, back = behind
    f, i, w = legs(ahead[1].forward), legs(back.input), legs(back.weight)
    if "combine" in i:
        layout.begun(number, two)
    layout.run(_steps(i, "combine"), two)
    layout.begun(ahead[0], one)
    layout.run(_steps(f, "attention"), one)
    layout.run(_steps(f, "dispatch"), one)
    if i and "combine" not in i:
        layout.begun(number, two)
    since = len(layout.pieces)
    rest = layout.inputs(_steps(i, "mlp"), _steps(w, "mlp"), two)
    grown = layout.at[two]
    layout.run(_steps(i, "dispatch"), two)
    arrived, layout.at[two] = layout.at[two], grown
    layout.weights(rest, two)
    layout.completed(_steps(w, "mlp"), since, number, "mlp")
    layout.at[two] = arrived
    layout.run(_steps(f, "mlp"), one)
    layout.run(_steps(f, "combine"), one)
    since = len(layout.pieces)
    layout.weights(layout.inputs(_steps(i, "attention"), _steps(w, "attention"), two), two)
    layout.completed(_steps(w, "attention"), since, number, "attention")


def _steps(cut: dict[str, Leg], name: str) -> tuple[Step, ...]:
    return cut[name].steps if name in cut else ()


def _product(name: str) -> str:
    """The operation that a collective is for: `mlp.up` of `mlp.up.scatter`."""
    stem, _, last = name.rpartition(".")
    return stem if last in ("gather", "scatter", "reduce") else name
