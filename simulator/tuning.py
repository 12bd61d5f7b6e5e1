"""Tuning: how communication kernels should run so that an overlapped slot is shortest, not communication by itself.

The slot is an F&B of a stage of some layers with experts, on the step's own engine: SMs that communication holds are
missing where matrix products run beside it, chunks fill the L2 cache, and what is not hidden sticks out. Of a schedule
without F&B slots it is a forward and its backward, each alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any, NamedTuple

import numpy as np

from simpipe.simulator import case, slots
from simpipe.simulator.costs import collectives, operators
from simpipe.simulator.costs.exchange_kernels import KernelSetting
from simpipe.simulator.costs.model import Model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.overlap import COMMUNICATION
from simpipe.simulator.costs.parallel import Parallel, is_whole
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.kernels import Ints
from simpipe.simulator.program import Kind, Program
from simpipe.simulator.scenario import Scenario

LAYERS = 4
"""Layers of the slot's stages, as in DeepSeek-V3's published trace (github.com/deepseek-ai/profile-data)."""

SMS = (2, 4, 6, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40)
WARPS = ("dynamic", "static")
CHUNKS = (1, 2, 4, 8, 16, 32, 64)

OVERLAPPED = "an overlapped F&B slot"

ORDERS = {
    OVERLAPPED: "0F0,0F1,0B0,0B1\n1F0,(1F1;1B0)OVERLAP_F_B,1B1\n2F0,2B0,2F1,2B1",
    "F and B slots": "0F0,0B0\n1F0,1B0\n2F0,2B0",
    "F, I and W slots": "0F0,0I0,0W0\n1F0,1I0,1W0\n2F0,2I0,2W0",
}
"""By what is timed: pipelines whose middle rank has it."""

SLOWING = "exchange.l2_exponent"
"""The figure of a machine's profile that says how much chunks in the L2 cache slow what computes beside them."""

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
    """All settings tried. timed: the slots that the scenario's schedule runs, one of ORDERS. given: the scenario's own.
    unslowed: the one with the shortest slot if what fills the L2 cache slowed nothing; None where the machine's profile
    does not merely assume how much it does."""

    scenario: Scenario
    timed: str
    tokens: int
    tried: tuple[Tried, ...]
    given: Tried
    unslowed: Tried | None = None

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
    timed = _timed(case.modelled(scenario).program)
    costs = ModelledCosts(stage, cluster, layout, stack=loaded.stack)
    own = KernelSetting(parallel.communication_sms, parallel.communication_warps, parallel.communication_chunk)
    grid = (KernelSetting(*each) for each in product(SMS, WARPS, CHUNKS) if each[0] < cluster.gpu.sms)
    settings = list(dict.fromkeys([own, *grid]))
    guessed = SLOWING in cluster.assumed
    count = len(settings) * (1 + guessed)
    tried = _all_tried(costs, timed, settings, lambda done: heard(done, count))
    unslowed = None
    if guessed:
        free = replace(cluster, exchange=replace(cluster.exchange, l2_exponent=0.0))
        done = len(tried)
        others = _all_tried(
            ModelledCosts(stage, free, layout, stack=loaded.stack), timed, settings,
            lambda more: heard(done + more, count),
        )  # fmt: skip
        unslowed = min(others, key=lambda one: one.slot)
    return Landscape(scenario, timed, parallel.tokens, tried, tried[0], unslowed)


def _timed(program: Program) -> str:
    """What of ORDERS stands for the slots of a schedule: for F&B slots where it has some, else for those it has."""
    if len(program.kind) > program.slots:
        return OVERLAPPED
    return "F, I and W slots" if (program.kind == Kind.I).any() else "F and B slots"


def _all_tried(
    costs: ModelledCosts, timed: str, settings: Sequence[KernelSetting], heard: Callable[[int], None]
) -> tuple[Tried, ...]:
    tried: list[Tried] = []
    for setting in settings:
        tried.append(_tried(costs, timed, setting))
        heard(len(tried))
    return tuple(tried)


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


def _tried(costs: ModelledCosts, timed: str, setting: KernelSetting) -> Tried:
    own = ModelledCosts(costs.model, costs.cluster, replace(costs.parallel, **keys(setting)), stack=costs.stack)
    program, own_slots = _program(timed)
    seconds = sum(slot.seconds for slot in slots.one_each(program, own, own_slots))
    return Tried(setting, seconds, _communication(own))


def _communication(costs: ModelledCosts) -> float:
    """Seconds of the exchanges of a layer's forward, by themselves."""
    layer = costs.model.layer(costs.model.layers - 1)
    steps = operators.passes(costs.model, costs.cluster, costs.parallel, costs.stack, layer).forward
    return sum(collectives.seconds(costs.cluster, step.exchange) for step in steps if step.phase in COMMUNICATION)


@cache
def _program(timed: str) -> tuple[Program, Ints]:
    """A pipeline of ORDERS, and which of its slots are timed."""
    program = Program.from_csv(ORDERS[timed], timed)
    own = np.arange(program.rank_start[1], program.rank_start[2])
    sizes = np.diff(program.slot_start)[own]
    return program, own[sizes == sizes.max()]


def to_dict(found: Landscape) -> dict[str, Any]:
    """The result as plain values, seconds."""

    def plain(tried: Tried) -> dict[str, Any]:
        return {**keys(tried.setting), "slot_seconds": tried.slot, "communication_seconds": tried.communication}

    named = {"best": found.best, "best_static": found.static, "fastest": found.fastest, "given": found.given}
    named |= {"best_if_l2_slows_nothing": found.unslowed} if found.unslowed else {}
    return {name: plain(tried) for name, tried in named.items()} | {"tried": [plain(tried) for tried in found.tried]}
