"""Plan: what costs tell lowering of the structure of a step, apart from the order and apart from any number.

A slot is a *template* of operations, the same for all slots of the same stages. A *sync* is a task outside slots that
slots or the step's end wait for: a reduction of gradients, a gathering of parameters.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np

from simpipe.simulator.graph import Graph
from simpipe.simulator.kernels import Floats, Ints
from simpipe.simulator.program import Program

Exchange = Literal["async", "blocking"]


class Operation(NamedTuple):
    """One task of a slot.

    name: as views show it. streams: those it occupies on its rank, by name. needs: indices of earlier operations of the
    slot that must have ended. part: the slot's action it belongs to, 0 or 1, or -1 for the whole slot. links: kinds
    of its rank's links that its bytes cross, none for computation.
    """

    name: str
    streams: tuple[str, ...]
    needs: tuple[int, ...] = ()
    part: int = -1
    links: tuple[str, ...] = ()


Template = tuple[Operation, ...]
"""A slot's operations, in an order in which each stream runs its own. The last one ends the slot: where slots use more
than one stream, it occupies all that any slot uses."""


class Sync(NamedTuple):
    """A task outside slots, on one stream of each of `ranks`.

    after: (slot, index of the operation in it, -1 for its end) that must have ended. before: (slot, index of the
    operation in it, -1 for its start) that wait for it; without any, the step's end does. follows: names of earlier
    syncs on its ranks that must have ended. closing: it comes between the barrier and its ranks' optimizer steps.
    """

    name: str
    ranks: tuple[int, ...]
    stream: str
    after: tuple[tuple[int, int], ...] = ()
    before: tuple[tuple[int, int], ...] = ()
    links: tuple[str, ...] = ()
    follows: tuple[str, ...] = ()
    closing: bool = False


END = "end"
"""The name of an operation that only ends a slot: it takes no time and no view shows it."""

LAUNCHES = "launches"
"""The name of a slot's operation on the host alone: it launches the kernels of the others, and no view shows it."""

WHOLE: Template = (Operation("", ("compute",)),)
"""A slot as one task on the compute stream."""


@dataclass(frozen=True, eq=False)
class Plan:
    """templates: the kinds of slots. template_of: (slots,) the one of each slot. syncs: tasks outside slots.

    links: kinds of links that every rank has. message_links: those a message leaves by, and those it arrives by.
    exchange, barrier, optimizer: how messages and the step's end work.
    """

    templates: tuple[Template, ...]
    template_of: Ints
    syncs: tuple[Sync, ...] = ()
    links: tuple[str, ...] = ("out", "in")
    message_links: tuple[tuple[str, ...], tuple[str, ...]] = (("out",), ("in",))
    exchange: Exchange = "async"
    barrier: bool = False
    optimizer: bool = False

    @property
    def key(self) -> Hashable:
        """Equal for plans that give the same graph."""
        rest = self.links, self.message_links, self.exchange, self.barrier, self.optimizer
        return self.templates, np.asarray(self.template_of, np.int64).tobytes(), self.syncs, rest


class Numbers(NamedTuple):
    """One row of Loads to be filled in, all zero but weight (1) and capacity (infinite)."""

    latency: Floats
    work: Floats
    weight: Floats
    capacity: Floats
    held: Floats
    slowed: Floats


class StepCosts(Protocol):
    """Costs of a step, given by hand or modelled."""

    def plan(self, program: Program) -> Plan:
        """The structure. Raises CostsError where the costs do not fit the program."""

    def fill(self, graph: Graph, numbers: Numbers) -> None:
        """The numbers."""

    def activation(self, program: Program) -> Floats:
        """(actions,) bytes that each F keeps; 0 for other actions."""

    def release(self, program: Program) -> Floats:
        """(stages,) the share of an activation that I frees; negative where I leaves more for W than it frees."""

    def parameters(self, program: Program) -> Floats:
        """(stages,) bytes of parameters."""
