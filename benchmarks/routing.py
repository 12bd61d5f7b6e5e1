"""How fast a step of DeepSeek-V3's routing is: 4,096 tokens to 8 of 256 experts in 4 of 8 groups, in 58 layers.

    python benchmarks/routing.py

Drawn as arrivals (simulator/experts/routing.py), against affinities computed and sorted by numpy for a part of the
layers in the same run. Best of ten; CPU seconds beside, since a busy machine slows the clock and not those.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np

from simpipe.simulator.experts.balance import STRATEGIES, Affinities, Gate, Sample
from simpipe.simulator.experts.routing import Router, route

LAYERS, SEQUENCES, TOKENS = 58, 16, 256
ROUTER = Router(256, 8, 8, 4)
COMPUTED = 2
"""Layers of which affinities are computed."""


def computed(rates: Any, random: np.random.Generator) -> Any:
    """Tokens of each expert, from an affinity for each expert of each token."""
    layers, sequences, experts = rates.shape
    affinity = np.log(rates)[:, :, None] + random.gumbel(size=(layers, sequences, TOKENS, experts))
    groups = np.sort(affinity.reshape(-1, ROUTER.groups, experts // ROUTER.groups), -1)[:, :, -2:].sum(-1)
    kept = np.zeros(groups.shape, bool)
    np.put_along_axis(kept, np.argpartition(-groups, ROUTER.limit - 1)[:, : ROUTER.limit], True, 1)
    inside = np.where(np.repeat(kept, experts // ROUTER.groups, 1), affinity.reshape(-1, experts), -np.inf)
    return np.bincount(np.argpartition(-inside, ROUTER.topk - 1)[:, : ROUTER.topk].ravel(), minlength=experts)


def best(call: Callable[[], object], times: int = 10) -> tuple[float, float]:
    """Least wall and CPU seconds of some calls."""
    runs = []
    for _ in range(times):
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        runs.append((time.perf_counter() - wall, time.process_time() - cpu))
    return min(run[0] for run in runs), min(run[1] for run in runs)


def main() -> None:
    random = np.random.default_rng(0)
    rates = np.exp(random.normal(0, 0.5, (LAYERS, SEQUENCES, ROUTER.experts)))
    seeds = random.integers(0, 2**63, LAYERS, dtype=np.uint64)
    slow, slow_cpu = (seconds * LAYERS / COMPUTED for seconds in best(lambda: computed(rates[:COMPUTED], random), 3))
    print(f"affinities computed       {1 / slow:6.2f} steps/s, {slow_cpu:.3f} s of CPU")
    for threads in (1, 2):
        route(ROUTER, rates, 1, seeds, threads)
        wall, cpu = best(lambda threads=threads: route(ROUTER, rates, TOKENS, seeds, threads))  # type: ignore[misc]
        print(
            f"drawn, {threads} threads        {1 / wall:8.2f} steps/s, {cpu:.3f} s of CPU, {slow_cpu / cpu:.0f} x less"
        )
    gate = Gate(ROUTER, LAYERS, Affinities(), workers=2)
    steps = gate.run(STRATEGIES["bias+sequence"], 100, Sample(SEQUENCES, TOKENS), 0.0, 1.0)
    wall, cpu = best(lambda: next(steps), 20)
    print(f"a whole step, bias+sequence {1 / wall:6.2f} steps/s, {cpu:.3f} s of CPU")


if __name__ == "__main__":
    main()
