"""How fast programs are built and simulated, as ratios in one run.

    python benchmarks/engines.py            the table of the README
    python benchmarks/engines.py --plot F   time against actions, 10^3 to 10^7, drawn to F

Baselines in the same run: SimPy, and a bare Numba longest path over the same arrays (no engine around it).
Tasks are slots and messages. Each figure is the best of several calls, after one that compiles.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numba
import numpy as np

from simpipe import Costs, Program, program, summarize
from simpipe.simulator import engines
from simpipe.simulator.lower import lower
from simpipe.simulator.trace import Trace
from simpipe.simulator.views import console, picture

CONTENDED = Costs(message_bytes=0.5, bandwidth=1.0)


def best(call: Callable[[], Any], repeat: int = 5) -> float:
    """Seconds of the fastest of some calls."""
    taken = []
    for _ in range(repeat):
        gc.collect()
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return min(taken)


@numba.njit(cache=True)
def bare_longest_path(order: Any, input_start: Any, inputs: Any, duration: Any, end: Any) -> None:
    for task in order:
        begin = 0.0
        for k in range(input_start[task], input_start[task + 1]):
            begin = max(begin, end[inputs[k]])
        end[task] = begin + duration[task]


def checked_again(order: Program) -> Program:
    """A fresh program of the same arrays, so that nothing of the proof is cached."""
    return Program(order.stage, order.kind, order.microbatch, order.slot_start, order.rank_start).check()


def measure(name: str, ranks: int, microbatches: int) -> list[str]:
    """One row: seconds of each step before the engine, million tasks a second of each engine, ratios."""
    order = program(name, ranks=ranks, microbatches=microbatches)
    graph, loads = lower(order, Costs())
    _, shared = lower(order, CONTENDED)
    duration, end = loads.durations(graph)[0].copy(), np.empty(graph.tasks)
    seconds = [
        best(lambda: program(name, ranks=ranks, microbatches=microbatches), 2),
        best(lambda: checked_again(order), 2),
        best(lambda: lower(order, Costs())[0].order, 2),
    ]
    calls: list[tuple[Callable[[], Any], int]] = [
        (lambda: bare_longest_path(graph.order, *graph.inputs, duration, end), 7),
        (lambda: engines.times(graph, loads, "compiled"), 7),
        (lambda: engines.times(graph, shared, "compiled"), 3),
        (lambda: engines.times(graph, loads, "simpy"), 1 if ranks > 8 else 3),
    ]
    for call, _ in calls[:3]:
        call()  # compile
    bare, fast, contended, simpy = (graph.tasks / best(*call) / 1e6 for call in calls)
    row = [f"{name} {ranks} x {microbatches}", f"{graph.tasks:,}", *(f"{s:.3f}" for s in seconds)]
    row += [f"{rate:.2f}" for rate in (bare, fast, contended, simpy)]
    return [*row, f"{fast / bare:.2f}", f"{fast / simpy:.0f}", f"{contended / fast:.2f}"]


def table() -> None:
    header = ["", "tasks", "build s", "of it check", "lower s", "bare", "compiled", "contended", "SimPy"]
    header += ["compiled / bare", "compiled / SimPy", "contended / compiled"]
    sizes = [("1f1b", 8, 20), ("1f1b", 8, 1000), ("1f1b", 64, 512), ("1f1b", 64, 4096), ("zb-h1", 64, 4096)]
    print("million tasks (slots and messages) a second, and ratios:")
    print("\n".join(console.table(header, [measure(*size) for size in sizes])))


def plot(path: Path) -> None:
    from matplotlib.figure import Figure

    sizes = [(8, 40), (8, 400), (16, 2000), (32, 8192), (128, 8192), (512, 8192)]
    actions, whole, engine = [], [], []
    for ranks, microbatches in [sizes[0], *sizes]:  # the first one only warms up
        start = time.perf_counter()
        order = program("zb-h1", ranks=ranks, microbatches=microbatches)
        graph, loads = lower(order, Costs())
        _ = graph.order
        begun = time.perf_counter()
        start_times, end_times = engines.times(graph, loads, "compiled")
        ended = time.perf_counter()
        summarize(Trace(graph, loads, 0, start_times[0], end_times[0]))
        actions.append(len(order.kind))
        whole.append(time.perf_counter() - start)
        engine.append(ended - begun)
        print(f"{ranks} x {microbatches}: {actions[-1]:,} actions, {whole[-1]:.3f} s in all, {engine[-1]:.4f} s engine")
    with picture.style():
        figure = Figure(figsize=(6, 3.5), layout="constrained")
        axes = figure.subplots()
        axes.loglog(actions[1:], whole[1:], "o-", label="build, check, lower, simulate, summarize")
        axes.loglog(actions[1:], engine[1:], "s-", label="of it the compiled engine")
        axes.loglog(actions[1:], [whole[-1] * a / actions[-1] for a in actions[1:]], ":", color="grey", label="linear")
        axes.set(xlabel="actions (ZB-H1)", ylabel="seconds")
        axes.legend()
        axes.grid(alpha=0.3)
        picture.save(figure, path)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    plot(arguments.plot) if arguments.plot else table()
