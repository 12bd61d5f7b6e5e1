"""Plain loops over flat arrays, run as Python when small and compiled by Numba when large.

A kernel is an ordinary function that Numba can compile, with the functions of its module that it calls. Compiling takes
seconds once and loading the compiled form a quarter of a second, so a small input runs the same source uncompiled: one
meaning, no wait.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path
from types import FunctionType
from typing import Any

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

COMPILE_FROM = 20_000
"""Items from which a kernel is worth compiling: about 20 ms of uncompiled work."""


_loaded: set[Callable[..., Any]] = set()
"""Kernels that were compiled, or loaded compiled, in this process."""


@functools.cache
def compiled(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel compiled by Numba, cached on disk beside its source or in the user's cache folder."""
    import numba

    around = kernel.__globals__
    called = [name for name in kernel.__code__.co_names if isinstance(around.get(name), FunctionType)]
    if called:
        helpers = {name: numba.njit(cache=True)(around[name]) for name in called}
        kernel = functools.update_wrapper(FunctionType(kernel.__code__, around | helpers), kernel)
    function = numba.njit(cache=True)(kernel)
    announce(function)
    _loaded.add(kernel)
    return function


@functools.cache
def announce(function: Any) -> None:
    """Say on stderr that a compiled function has no cache yet and its first call takes seconds."""
    name = function.py_func.__name__
    if not function.signatures and not any(Path(function.stats.cache_path).glob(f"*.{name}-*.nbi")):
        print(f"simpipe: compiling {name}, once; later runs load it from the cache", file=sys.stderr)


def run(kernel: Callable[..., Any], size: int, *arguments: Any) -> Any:
    """Call `kernel(*arguments)`, compiled when `size` items make it worth it, or when it is compiled anyway."""
    return (compiled(kernel) if size >= COMPILE_FROM or kernel in _loaded else kernel)(*arguments)


def csr(sources: Ints, targets: Ints, size: int) -> tuple[Ints, Ints]:
    """Group `targets` by `sources` (each below `size`): `grouped[start[s]:start[s + 1]]`, in the given order."""
    start = np.zeros(size + 1, np.int64)
    np.cumsum(np.bincount(sources, minlength=size), out=start[1:])
    return start, targets[np.argsort(sources, kind="stable")]


def topological(succ_start: Ints, succ: Ints, waits: Ints, weight: Ints) -> tuple[Ints, Ints, int]:
    """Kahn's algorithm, first in first out.

    Returns (order, level, done): `order[:done]` lists nodes after all they depend on, `level[n]` is the
    largest sum of weights before n along any path, and done < len(waits) means that a cycle remains.
    """
    n = len(waits)
    order = np.empty(n, np.int64)
    level = np.zeros(n, np.int64)
    left = waits.copy()
    tail = 0
    for node in range(n):
        if left[node] == 0:
            order[tail] = node
            tail += 1
    head = 0
    while head < tail:
        node = order[head]
        head += 1
        after = level[node] + weight[node]
        for k in range(succ_start[node], succ_start[node + 1]):
            other = succ[k]
            if level[other] < after:
                level[other] = after
            left[other] -= 1
            if left[other] == 0:
                order[tail] = other
                tail += 1
    return order, level, tail


def shortest_cycle(start: Ints, succ: Ints, stuck: NDArray[np.bool_], effort: int = 2_000_000) -> list[int]:
    """A shortest cycle through the stuck nodes, by breadth-first search from each that lies on one.

    It may be a longer one where a search of `effort` steps in all has not come to every node.
    """
    best: list[int] = []
    inside = _on_cycles(start, succ, stuck)
    for root in np.flatnonzero(inside).tolist():
        if best and effort < 0:
            break
        parent = {root: -1}
        queue = [root]
        for node in queue:
            effort -= 1
            for other in succ[start[node] : start[node + 1]].tolist():
                if other == root:
                    path = [node]
                    while parent[path[-1]] >= 0:
                        path.append(parent[path[-1]])
                    if not best or len(path) < len(best):
                        best = path[::-1]
                    queue.clear()
                    break
                if inside[other] and other not in parent:
                    parent[other] = node
                    queue.append(other)
            else:
                continue
            break
    return best


def _on_cycles(start: Ints, succ: Ints, stuck: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Of the stuck nodes, those that lead to a cycle and not only hang behind one: Kahn's algorithm backwards."""
    source = np.repeat(np.arange(len(stuck)), np.diff(start))
    keep = stuck[source] & stuck[succ]
    source, target = source[keep], succ[keep]
    back_start, back = csr(target, source, len(stuck))
    waits = np.bincount(source, minlength=len(stuck))
    order, _, done = run(topological, len(stuck), back_start, back, waits, np.zeros_like(waits))
    inside = stuck.copy()
    inside[order[:done]] = False
    return inside
