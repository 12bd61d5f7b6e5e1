"""Two engines with one meaning: SimPy, to be read, and a compiled one, for large runs."""

from __future__ import annotations

from simpipe.simulator.graph import Engine, Graph, Loads
from simpipe.simulator.kernels import COMPILE_FROM, Floats


def times(graph: Graph, loads: Loads, engine: Engine = "auto") -> tuple[Floats, Floats]:
    """Start and end of every task: two (rows, tasks) arrays in seconds.

    `auto` takes SimPy for small runs, which need not wait for the compiled engine to load. Raises ProgramError
    where tasks wait for each other in a cycle.
    """
    _ = graph.order  # a deadlock is told here, once for both engines
    if engine == "simpy" or (engine == "auto" and graph.tasks * loads.rows < COMPILE_FROM):
        from simpipe.simulator.engines import simpy_engine

        return simpy_engine.times(graph, loads)
    from simpipe.simulator.engines import compiled_engine

    return compiled_engine.times(graph, loads)
