"""Tuning: how communication kernels should run so that an overlapped slot is shortest, not communication by itself.

The slot is an F&B of a stage of some layers with experts, in the middle of a pipeline, on the step's own engine: SMs
that communication holds are missing where matrix products run beside it, chunks fill the L2 cache, and what is not
hidden sticks out. All settings are rows of the Loads of one Graph.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

from simpipe.simulator import engines
from simpipe.simulator.costs import collectives, operators
from simpipe.simulator.costs.exchange_kernels import KernelSetting
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.overlap import COMMUNICATION
from simpipe.simulator.costs.parallel import Parallel, is_whole
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.lower import lower
from simpipe.simulator.program import Program
from simpipe.simulator.scenario import Scenario

LAYERS = 4
"""Layers of the slot's stages, as in DeepSeek-V3's published trace (github.com/deepseek-ai/profile-data)."""

SMS = (2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40)
WARPS = ("dynamic", "static")
CHUNKS = (1, 2, 4, 8, 16, 32, 64)

ORDER = "0F0,0F1,0B0,0B1\n1F0,(1F1;1B0)OVERLAP_F_B,1B1\n2F0,2B0,2F1,2B1"
"""A pipeline whose middle rank has the slot: the second of its own."""

DEFAULTS = {"ranks": 2, "sequence": 4096, "precision": "fp8_block"}
"""What a run takes, as DeepSeek-V3's training, where nothing else is said; GPUs and batch are then the least that
fit."""


class TuningError(SimpipeError):
    """There is nothing to tune: no experts, or none of them elsewhere."""


class Tried(NamedTuple):
    """A setting; seconds of the slot, and of a forward's dispatch and combine with nothing beside them."""

    setting: KernelSetting
    slot: float
    communication: float


class Landscape(NamedTuple):
    """All settings tried. given: the scenario's own."""

    scenario: Scenario
    tokens: int
    tried: tuple[Tried, ...]
    given: Tried

    @property
    def best(self) -> Tried:
        """The one with the shortest slot."""
        return min(self.tried, key=lambda tried: tried.slot)

    @property
    def static(self) -> Tried:
        """The best of those whose warps have fixed tasks."""
        return min((t for t in self.tried if t.setting.warps == "static"), key=lambda tried: tried.slot)

    @property
    def fastest(self) -> Tried:
        """The one with the fastest communication."""
        return min(self.tried, key=lambda tried: tried.communication)

    @property
    def tuned(self) -> Scenario:
        """The scenario with the best setting."""
        return self.scenario.with_(**keys(self.best.setting))


def keys(setting: KernelSetting) -> dict[str, Any]:
    """A setting as keys of a scenario."""
    sms, warps, chunk = setting
    return {"communication_sms": sms, "communication_warps": warps, "communication_chunk": chunk}


def completed(given: Mapping[str, Any]) -> dict[str, Any]:
    """A scenario's values with DEFAULTS, and the fewest GPUs and sequences that DualPipe runs on."""
    values = DEFAULTS | dict(given)
    sizes: list[Any] = [values.get(key, 1) for key in ("ranks", "tp", "cp", "ep", "etp", "microbatch_size")]
    if not all(is_whole(size) and size >= 1 for size in sizes):
        return {"gpus": 1, "global_batch": 1} | values  # the scenario says what is wrong
    ranks, tp, cp, ep, etp, microbatch = sizes
    gpus: Any = values.setdefault("gpus", ranks * math.lcm(tp * cp, ep * etp))
    dp = gpus // (ranks * tp * cp) if is_whole(gpus) else 0
    values.setdefault("global_batch", max(1, dp) * microbatch * 2 * ranks)
    return values


def tune(scenario: Scenario, heard: Callable[[int, int], None] = lambda done, total: None) -> Landscape:
    """Try every setting; `heard` is told how many are done, and of how many.

    Raises TuningError where there is nothing to tune, and what the scenario's own values raise.
    """
    loaded = scenario.load()
    model, cluster, parallel = loaded.model, loaded.cluster, loaded.parallel
    if model.experts is None or parallel.ep == 1:
        why = "has no experts" if model.experts is None else "keeps all experts on each GPU (ep = 1)"
        raise TuningError(f"{model.name} {why}, so it exchanges no tokens that a kernel could be tuned for")
    stage, layout = _stage(model, parallel)
    costs = ModelledCosts(stage, cluster, layout, stack=loaded.stack)
    own = KernelSetting(parallel.communication_sms, parallel.communication_warps, parallel.communication_chunk)
    grid = (KernelSetting(*each) for each in product(SMS, WARPS, CHUNKS) if each[0] < cluster.gpu.sms)
    settings = list(dict.fromkeys([own, *grid]))
    tried: list[Tried] = []
    for first in range(0, len(settings), len(CHUNKS)):
        heard(len(tried), len(settings))
        tried += _tried(costs, settings[first : first + len(CHUNKS)])
    heard(len(settings), len(settings))
    return Landscape(scenario, parallel.tokens, tuple(tried), tried[0])


def _stage(model: Model, parallel: Parallel) -> tuple[Model, Parallel]:
    """A model of the slot's layers between an embedding and a head, and two micro-batches of the layout's on it."""
    assert model.experts
    experts = replace(model.experts, first_dense=0)
    short = replace(model, layers=LAYERS, mlp=None, experts=experts, mtp_modules=0)
    gpus = parallel.gpus // parallel.ranks
    batch = 2 * parallel.dp * parallel.microbatch_size
    layers = f"E|{'t' * LAYERS}|L"
    settled = replace(parallel, ranks=3, gpus=3 * gpus, global_batch=batch, stage_layers=layers, layer_imbalance=())
    return short, settled


def _tried(costs: ModelledCosts, settings: Sequence[KernelSetting]) -> list[Tried]:
    """Settings as rows of one graph."""
    layouts = [replace(costs.parallel, **keys(setting)) for setting in settings]
    each = [ModelledCosts(costs.model, costs.cluster, layout, stack=costs.stack) for layout in layouts]
    graph, loads = lower(_program(), *each)
    start, end = engines.times(graph, loads)
    slot = graph.rank_slots.items[graph.rank_slots.start[1] + 1]
    tasks = graph.slot_tasks.items[graph.slot_tasks.start[slot] : graph.slot_tasks.start[slot + 1]]
    seconds = end[:, tasks].max(axis=1) - start[:, tasks].min(axis=1)
    return [Tried(*row) for row in zip(settings, seconds.tolist(), map(_communication, each), strict=True)]


def _communication(costs: ModelledCosts) -> float:
    """Seconds of the exchanges of a layer's forward, by themselves."""
    layer = costs.model.layer(costs.model.layers - 1)
    steps = operators.passes(costs.model, costs.cluster, costs.parallel, costs.stack, layer).forward
    return sum(collectives.seconds(costs.cluster, step.exchange) for step in steps if step.phase in COMMUNICATION)


@cache
def _program() -> Program:
    return Program.from_csv(ORDER, "overlapped slot")


def headline(found: Landscape) -> str:
    """What was tuned for, in words."""
    scenario, parallel = found.scenario, found.scenario.parallel
    what = f"{scenario.model} on {scenario.hardware}, ep {parallel.ep}, {found.tokens:,} tokens"
    return f"{what}: an overlapped F&B slot of {LAYERS} layers under {len(found.tried)} settings"


HEADER = ("", "SMs", "warps", "chunk", "slot", "over shortest", "dispatch + combine alone")


def rows(found: Landscape) -> list[tuple[str, ...]]:
    """The settings with a name, as text under HEADER."""
    named = {"shortest slot": found.best, "of static warps": found.static}
    named |= {"fastest exchange": found.fastest, "as given": found.given}
    return [
        (
            *(label, *map(str, tried.setting), f"{tried.slot * 1e3:.2f} ms"),
            *(f"{tried.slot / found.best.slot - 1:+.1%}", f"{tried.communication * 1e3:.2f} ms"),
        )
        for label, tried in named.items()
    ]


def to_dict(found: Landscape) -> dict[str, Any]:
    """The result as plain values, seconds."""

    def plain(tried: Tried) -> dict[str, Any]:
        return {**keys(tried.setting), "slot_seconds": tried.slot, "communication_seconds": tried.communication}

    named = {"best": found.best, "best_static": found.static, "fastest": found.fastest, "given": found.given}
    return {name: plain(tried) for name, tried in named.items()} | {"tried": [plain(tried) for tried in found.tried]}
