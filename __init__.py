"""simpipe simulates pipeline-parallel training: schedules, their timelines, bubbles and memory.

>>> import simpipe
>>> program = simpipe.program("dualpipe", ranks=8, microbatches=20)
>>> trace = simpipe.simulate(program, simpipe.Costs(F=1, I=1, W=1, FB=3))
>>> trace.makespan, simpipe.summarize(trace).per_rank[0].bubble_time
(66.0, 6.0)
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simpipe.schedules import program
    from simpipe.simulator.costs.given import Costs
    from simpipe.simulator.errors import SimpipeError
    from simpipe.simulator.program import Action, B, F, I, Program, Slot, W
    from simpipe.simulator.summary import Summary, summarize
    from simpipe.simulator.trace import Trace, simulate

__version__ = "0.1.0"

_HOMES = {
    "program": "schedules",
    "Costs": "simulator.costs.given",
    "SimpipeError": "simulator.errors",
    **dict.fromkeys(("Action", "B", "F", "I", "Program", "Slot", "W"), "simulator.program"),
    **dict.fromkeys(("Summary", "summarize"), "simulator.summary"),
    **dict.fromkeys(("Trace", "simulate"), "simulator.trace"),
}

__all__ = [
    "Action",
    "B",
    "Costs",
    "F",
    "I",
    "Program",
    "SimpipeError",
    "Slot",
    "Summary",
    "Trace",
    "W",
    "program",
    "simulate",
    "summarize",
]


def __getattr__(name: str) -> Any:
    """Load public names on first use, so that `simpipe --help` imports nothing heavy."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value
