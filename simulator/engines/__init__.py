"""Two engines with one meaning: SimPy, to be read, and a compiled one, for large runs."""

from __future__ import annotations

from typing import get_args

from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.graph import Engine, Graph, Loads
from simpipe.simulator.kernels import COMPILE_FROM, Floats

CONTENDED_FROM = 600
"""Tasks from which the reference is too slow where links are shared: it finds all speeds anew at every change."""


def times(graph: Graph, loads: Loads, engine: Engine = "auto") -> tuple[Floats, Floats]:
    """Start and end of every task: two (rows, tasks) arrays in seconds.

    `auto` takes SimPy for small runs, which need not wait for the compiled engine to load. Raises ProgramError
    where tasks wait for each other in a cycle.
    """
    if engine not in get_args(Engine):
        raise SimpipeError(f"engine is {engine!r}; it is {', '.join(get_args(Engine))}")
    _ = graph.order  # a deadlock is told here, once for both engines
    most = CONTENDED_FROM if loads.contended(graph) else COMPILE_FROM
    if engine == "simpy" or (engine == "auto" and graph.tasks * loads.rows < most):
        from simpipe.simulator.engines import simpy_engine

        return simpy_engine.times(graph, loads)
    from simpipe.simulator.engines import compiled_engine

    return compiled_engine.times(graph, loads)
