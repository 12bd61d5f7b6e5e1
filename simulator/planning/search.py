"""Search: which schedule, stages, parallel sizes, micro-batch and recomputation train a model fastest on some GPUs.

Every combination of powers of two, schedules and recomputations that fits together is a candidate, its layers laid out
by what they take alone. A candidate has ZeRO 1, or, because 2 and 3 only add traffic, the least stage with which it
fits. Candidates are simulated with a task for each slot, in the order of a lower bound of their step time, and no
further where that exceeds what was found; what cannot fit into memory by its parameters alone is not simulated either.
Those that may still be among the KEEP best by a closer bound are then run in full, and so is the Pareto front: all that
is compared at the end was. What one change makes of the best one is run too: it says why others lose.
"""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import product
from typing import Any, NamedTuple, TypeVar

import numpy as np

from simpipe import schedules
from simpipe.simulator import balance, slots
from simpipe.simulator.costs import memory
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.model import LatentAttention
from simpipe.simulator.costs.model_files import load_model
from simpipe.simulator.costs.modelled import ModelledCosts
from simpipe.simulator.costs.parallel import Stage, is_whole
from simpipe.simulator.costs.stack import load_stack
from simpipe.simulator.efficiency import GB
from simpipe.simulator.errors import SimpipeError, nearest, show
from simpipe.simulator.planning.evaluation import OK, evaluated, price_of, scenario_of, untimed
from simpipe.simulator.planning.sweep import impossible, without_numbers
from simpipe.simulator.planning.tables import Row
from simpipe.simulator.scenario import KEYS, Loaded

KEEP = 6
"""Best candidates that are found for certain, each of another kind; others may stay unsimulated."""

WAVE = 32
"""Candidates simulated between two looks at what was found."""

CHUNK = 4
"""Of them, those that go to a worker at once."""

LONG = 16_384
"""Tokens of a sequence from which context parallelism is among the choices."""

MARGIN = 1.04
"""How much longer a step may take in full than with a task for each slot."""

FINER = 6
"""Best candidates whose layers are laid out by the work of whole slots at last."""

TOO_LARGE = "does not fit into memory"

T = TypeVar("T")

ALIKE = {"layers": "balanced", "overlap": "within-slot"}
"""What all candidates are given where nothing else is asked, so that none is a straw man."""

OF_A_LAYOUT = ("stragglers", "lengths")
"""Keys that name ranks or micro-batches."""

SIZES = ("schedule", "chunks", "gpus", "ranks", "tp", "cp", "ep", "zero", "microbatch_size", "recompute")
"""The keys that are chosen, unless they are given."""


class SearchError(SimpipeError):
    """Nothing is left to choose from."""


@dataclass(frozen=True)
class Limits:
    """What a choice has to keep: GB on a GPU, days and USD for its token_budget, seconds a step; None for no limit."""

    memory_gb: float | None = None
    days: float | None = None
    cost_usd: float | None = None

    def broken(self, result: Row) -> str:
        """Why a simulated candidate is none, empty where it is one."""
        if result["status"] != OK:
            return TOO_LARGE if "peak_memory_gb" in result else str(result["status"])
        for key, most in (("peak_memory_gb", self.memory_gb), ("days", self.days), ("cost_usd", self.cost_usd)):
            if most is not None and key in result and result[key] > most:
                return f"exceeds {key} = {most:g}"
        return ""


class Candidate(NamedTuple):
    """A row that can be simulated, and what bounds it from below: seconds a step, GB on the fullest GPU."""

    row: Row
    seconds: float
    memory_gb: float


class Found(NamedTuple):
    """A simulated candidate: its row, the columns of its results, why it is out, if it is; seconds that a step run in
    full takes at least; whether its results are of one."""

    row: Row
    result: Row
    broken: str
    least: float = 0.0
    in_full: bool = False

    @property
    def too_large(self) -> bool:
        """Whether it is out because of its memory."""
        return self.broken.startswith((TOO_LARGE, "exceeds peak_memory_gb"))


@dataclass
class Outcome:
    """What a search came to. found: what is too large, and of the rest what was run in full. pruned: combinations that
    cannot be, by reason. candidates: those that can. simulated: how many with a task for each slot. bounded: how many
    not because of their bound, or, too_large, of their parameters. sharded: how many of what is too large were run with
    ZeRO 2 or 3 too."""

    found: list[Found]
    pruned: Counter[str]
    candidates: int
    simulated: int = 0
    bounded: int = 0
    too_large: int = 0
    sharded: int = 0

    @property
    def slowest(self) -> float:
        """Seconds of the last of the KEEP best, infinite before there are as many."""
        ranked = self.ranked
        return float(ranked[KEEP - 1].result["step_time_s"]) if len(ranked) >= KEEP else math.inf

    @property
    def ranked(self) -> list[Found]:
        """What keeps the limits, the fastest first."""
        good = [one for one in self.found if not one.broken]
        return sorted(good, key=lambda one: (one.result["step_time_s"], one.result["peak_memory_gb"], str(one.row)))

    @property
    def front(self) -> list[Found]:
        """The Pareto front of what was found and keeps the limits: none has another that is at least as good in step
        time, memory and GPUs."""
        front: list[Found] = []
        for one in self.ranked:
            if not any(_covers(other, one) for other in front):
                front.append(one)
        return front


def _covers(one: Found, other: Found) -> bool:
    """Whether one is at least as good in all that the front is over."""
    return all(_merits(one)[i] <= _merits(other)[i] for i in range(3))


def _merits(one: Found) -> tuple[float, float, float]:
    return one.result["step_time_s"], one.result["peak_memory_gb"], one.row["gpus"]


# Candidates.


def candidates(given: Row) -> tuple[list[Candidate], Counter[str]]:
    """All combinations of what is not given that can be, the least bound first, and how many cannot by reason."""
    found, pruned = [], Counter[str]()
    for sizes in _sizes(given):
        options = _schedules_of(sizes["ranks"], _microbatches(given | sizes))
        wanted = [given["schedule"]] if given.get("schedule") else options
        for kept in _some(given, "recompute", _recomputations(given)):
            row = given | sizes | {"recompute": kept, "schedule": wanted[0]}
            reason = impossible(row)
            if reason:
                pruned[reason] += len(wanted)
                continue
            loaded = scenario_of(row).load()
            bounds = bound(loaded)
            for schedule in wanted:
                reason = _misfit(schedule, row["ranks"], _microbatches(row))
                if reason:
                    pruned[reason] += 1
                    continue
                form = form_of(schedule)
                seconds = bounds.paired if form.paired else bounds.unpaired
                layers = _layers(loaded, form) if row.get("layers") == "balanced" else row.get("layers")
                found.append(Candidate(row | {"schedule": schedule, "layers": layers}, seconds, bounds.memory_gb))
    return sorted(found, key=lambda one: (one.seconds, str(one.row))), pruned


def _sizes(given: Row) -> Iterator[Row]:
    """Powers of two that GPUs and batch can be cut by."""
    model, cluster = load_model(given["model"]), load_cluster(given["hardware"])
    choices = {
        "tp": _powers(min(cluster.node.nvlink.domain_gpus, cluster.node.gpus, given["gpus"])),
        "cp": _powers(8) if given["sequence"] >= LONG else [1],
        "ep": _powers(model.experts.routed) if model.experts else [1],
        "microbatch_size": _powers(2),
        "zero": [1],  # others where it does not fit
        "ranks": _powers(min(given["gpus"], model.layers)),  # last: layouts that differ in it share what slots cost
    }
    for values in product(*(_some(given, key, some) for key, some in choices.items())):
        sizes = dict(zip(choices, values, strict=True))
        stage, rest = divmod(given["gpus"], sizes["ranks"])
        dp, more = divmod(stage, sizes["tp"] * sizes["cp"])
        cut = not rest and not more and dp > 0 and stage % sizes["ep"] == 0
        if cut and given["global_batch"] % (dp * sizes["microbatch_size"]) == 0:
            yield sizes


def _some(given: Row, key: str, values: Sequence[Any]) -> Sequence[Any]:
    return [given[key]] if given.get(key) is not None else values


def _powers(most: int) -> list[int]:
    return [2**n for n in range(int(math.log2(most)) + 1)]


def _microbatches(row: Row) -> int:
    dp = row["gpus"] // (row["ranks"] * row["tp"] * row["cp"])
    return int(row["global_batch"] // (dp * row["microbatch_size"]))


def _recomputations(given: Row) -> list[list[str]]:
    """Nothing, what is cheap to compute again (norms, activation functions, MLA's up-projections), attention's core
    where its scores are kept, everything."""
    latent = isinstance(load_model(given["model"]).attention, LatentAttention)
    stack = load_stack(given["stack"]) if "stack" in given else load_stack()
    cheap = ["norms", "swiglu", *(["mla_up"] if latent else [])]
    return [[], cheap, *([] if stack.fused_attention else [["selective"]]), ["full"]]


@lru_cache(maxsize=1024)
def _schedules_of(ranks: int, microbatches: int) -> list[str]:
    """Every schedule, with two stages a rank where that is a choice, and with the least group of micro-batches that
    divides them where it takes one. On one rank all are the same."""
    found: list[str] = []
    group = next((n for n in range(ranks, microbatches + 1) if microbatches % n == 0), None)
    for name, schedule in schedules.catalogue().items():
        options = {"chunks": 2} if "chunks" in schedule.options else {}
        if "group" in schedule.options and group:
            options["group"] = group
        found.append(name + (":" + ",".join(f"{k}={v}" for k, v in options.items()) if options else ""))
    return found if ranks > 1 else found[:1]


@lru_cache(maxsize=4096)
def _misfit(schedule: str, ranks: int, microbatches: int) -> str:
    """Why a schedule does not take a size, numbers left out; empty where it does."""
    name, options = schedules.parse(schedule)
    try:
        schedules.load(name).size(ranks, microbatches, options.pop("chunks", None), **options)
    except SimpipeError as error:
        return without_numbers(str(error))
    return ""


# Bounds.


class Bounds(NamedTuple):
    """What no order and no layout of the layers goes below: seconds a step, with F&B slots and without any; GB on the
    fullest GPU."""

    paired: float
    unpaired: float
    memory_gb: float


def bound(loaded: Loaded) -> Bounds:
    """A rank's compute stream runs the kernels of its stages' passes one after the other; where no F is beside a B, a
    forward takes at least its chain, and a backward its chain of input gradients. The busiest rank is busy for at least
    the mean of all, and the fullest GPU holds at least the mean of parameters, gradients and optimizer.
    """
    model, parallel = loaded.model, loaded.parallel
    costs = _costs(loaded)
    forward, inputs, weights = costs.pass_seconds()
    each = parallel.microbatches / parallel.ranks
    paired = forward.compute + inputs.compute + weights.compute
    unpaired = forward.chain + max(inputs.chain, inputs.compute + weights.compute)
    every = Stage(0, tuple(range(model.layers)), True, True, model.mtp_modules > 0)
    held = memory.static(model, parallel, [every], 2)
    fixed = held.pop("framework")
    return Bounds(each * paired, each * unpaired, (memory.total(held) / parallel.ranks + fixed) / GB)


def _costs(loaded: Loaded) -> ModelledCosts:
    return slots.sharing(ModelledCosts(loaded.model, loaded.cluster, loaded.parallel, stack=loaded.stack))


def _layers(loaded: Loaded, form: Form) -> list[int]:
    """Layers of each stage, laid out by what they take alone."""
    counts = balance.spread(_costs(loaded), round(form.stages_per_rank * loaded.parallel.ranks))
    return [int(count) for count in counts]


class Form(NamedTuple):
    """Whether a schedule runs an F beside a B, and how many stages it has for each rank."""

    paired: bool
    stages_per_rank: float


@cache
def form_of(schedule: str) -> Form:
    """The form of a schedule, as its order at a small size tells."""
    name, options = schedules.parse(schedule)
    options = {key: value for key, value in options.items() if key != "group"}
    chunks = options.pop("chunks", None)
    for ranks, microbatches in ((2, 8), (4, 16), (4, 12)):
        try:
            order = schedules.program(name, ranks, microbatches, chunks, **options)
        except SimpipeError:
            continue
        return Form(bool((np.diff(order.slot_start) == 2).any()), order.stages / ranks)
    raise SearchError(f"{schedule} takes none of the sizes that it was tried at")


# The search.


def check(given: Row, limits: Limits) -> None:
    """Refuse what no scenario takes, before anything is searched. Raises SimpipeError."""
    known = [*KEYS, "token_budget", "price_usd_per_gpu_hour"]
    for key in given:
        if key in OF_A_LAYOUT and given[key]:
            raise SearchError(f"{key} goes with one layout, and many are searched; leave it out, or use `simpipe run`")
        if key not in known:
            raise SearchError(f"unknown key {show(key)}; {nearest(key, known)}")
    for key in ("gpus", "global_batch", "sequence"):
        if not is_whole(given[key]) or given[key] < 1:
            raise SearchError(f"{key} must be a whole number, at least 1, not {show(given[key])}")
    load_model(given["model"]), load_cluster(given["hardware"])
    if limits.cost_usd is not None and price_of(given) is None:
        raise SearchError(f"the budget needs a price, and {given['hardware']} has none; give price_usd_per_gpu_hour")


@contextmanager
def progress() -> Iterator[Callable[[int, Outcome], None]]:
    """A line on stderr that tells how far a search is; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda settled, outcome: None
        return

    def show_line(settled: int, outcome: Outcome) -> None:
        best = f", best {outcome.ranked[0].result['step_time_s']:.2f} s" if outcome.ranked else ""
        line = f"{settled} of {outcome.candidates} candidates settled, {outcome.simulated} simulated{best}"
        print(f"\r\x1b[K{line}", end="", file=sys.stderr, flush=True)

    try:
        yield show_line
    finally:
        print("\r\x1b[K", end="", file=sys.stderr, flush=True)


def search(
    given: Row, limits: Limits, executor: Executor, heard: Callable[[int, Outcome], None] = lambda *_: None
) -> Outcome:
    """Simulate candidates until no other can be among the KEEP best, then what is one change from the best.

    heard: called with how many candidates are settled. Raises SearchError where none is left.
    """
    check(given, limits)
    some, pruned = candidates(given)
    outcome = Outcome([], pruned, len(some))
    if not some:
        batch = (
            f"no cut into ranks, tp, cp and ep leaves replicas that share global_batch = {given['global_batch']} evenly"
        )
        raise SearchError(f"no layout of {given['gpus']} GPUs is possible: {_most(pruned) or batch}")
    capacity = load_cluster(given["hardware"]).gpu.memory / GB
    most = min(capacity, limits.memory_gb or capacity)
    waiting, large = iter(some), list[Candidate]()
    while wave := _next_wave(waiting, outcome, most, large):
        found = _tried([one.row for one in wave], limits, executor, _estimated)
        large += [one for one, tried in zip(wave, found, strict=True) if tried.too_large]
        outcome.found += found
        outcome.simulated += len(found)
        heard(outcome.simulated + outcome.too_large + outcome.bounded, outcome)
    if given.get("zero") is None:
        _shard(sorted(large, key=lambda one: one.seconds), outcome, limits, most, executor)
    if not outcome.ranked:
        reasons = Counter(one.broken for one in outcome.found)
        reasons[TOO_LARGE] += outcome.too_large
        raise SearchError(f"none of {len(some)} candidates is left: {_most(reasons)}")
    _run_in_full(outcome, limits, executor)
    if given.get("layers") == "balanced":
        finer = [one.row | {"layers": "balanced"} for one in outcome.ranked[:FINER]]
        outcome.found += _tried(finer, limits, executor, _in_full)
        outcome.found = _best_layouts(outcome)
    known = {_chosen(one.row) for one in outcome.found}
    near = [row for row in neighbours(outcome.ranked[0].row, given) if _chosen(row) not in known]
    outcome.found += _tried(near, limits, executor, _in_full)
    return outcome


def include(outcome: Outcome, row: Row, limits: Limits, executor: Executor) -> None:
    """Run a row in full, unless its choice is among what was found."""
    if _chosen(row) not in {_chosen(one.row) for one in outcome.found}:
        outcome.found += _tried([row], limits, executor, _in_full)


def _run_in_full(outcome: Outcome, limits: Limits, executor: Executor) -> None:
    """Run what may be among the KEEP best in full, and the front; others that fit are left out of what was found."""
    out = [one for one in outcome.found if one.broken]
    front, waiting = outcome.front, sorted(outcome.ranked, key=lambda one: one.least)
    outcome.found = []
    while waiting and waiting[0].least <= outcome.slowest:
        outcome.found += _again(waiting[:KEEP], limits, executor)
        waiting = waiting[KEEP:]
    known = {_chosen(one.row) for one in outcome.found}
    outcome.found += _again([one for one in front if _chosen(one.row) not in known], limits, executor) + out


def _again(some: list[Found], limits: Limits, executor: Executor) -> list[Found]:
    """The same, run in full."""
    return [one for one in some if one.in_full] + _tried(
        [one.row for one in some if not one.in_full], limits, executor, _in_full
    )


def _chosen(row: Row) -> str:
    """What was chosen of a row, its layout of layers apart."""
    return str({key: row.get(key) for key in SIZES})


def _best_layouts(outcome: Outcome) -> list[Found]:
    """Of candidates that differ in the layout of their layers only, the fastest that keeps the limits."""
    best: dict[str, Found] = {}
    for one in [*outcome.ranked, *outcome.found]:
        best.setdefault(_chosen(one.row), one)
    return list(best.values())


def _next_wave(
    waiting: Iterator[Candidate], outcome: Outcome, most_gb: float, large: list[Candidate]
) -> list[Candidate]:
    """The next candidates that may be among the best; those too large by their parameters become `large`."""
    slowest = outcome.slowest * MARGIN
    wave: list[Candidate] = []
    for one in waiting:
        if one.memory_gb > most_gb:
            outcome.too_large += 1
            large.append(one)
        elif one.seconds > slowest:
            outcome.bounded += 1
        else:
            wave.append(one)
        if len(wave) == WAVE:
            break
    return wave


def _shard(
    large: Sequence[Candidate], outcome: Outcome, limits: Limits, most_gb: float, executor: Executor
) -> None:  # fmt: skip
    """Run what is too large with more ZeRO, as far as that may be among the best."""
    for start in range(0, len(large), WAVE):
        slowest = outcome.slowest * MARGIN
        rows = [one.row for one in large[start : start + WAVE] if one.seconds <= slowest]
        work = partial(_sharded, most_gb=most_gb, slowest=slowest)
        found = [Found(*some, limits.broken(some[1]), 0.0, True) for some in _together(work, rows, executor) if some]
        outcome.found += found
        outcome.sharded += len(found)


def _sharded(rows: list[Row], most_gb: float, slowest: float) -> list[tuple[Row, Row] | None]:
    """What a worker does of what is too large: the least ZeRO stage above 1 with which each row fits, and its figures;
    None where there is none, or where it takes longer than `slowest`."""
    return [_least_sharded(row, most_gb, slowest) for row in rows]


def _least_sharded(row: Row, most_gb: float, slowest: float) -> tuple[Row, Row] | None:
    for zero in (2, 3):
        one = row | {"zero": zero}
        known = untimed(one)
        if known and known.fullest.peak_bytes <= most_gb * GB:
            slow = slots.least_seconds(known.program, known.costs) > slowest
            return None if slow else (one, evaluated(one, in_full=True))
    return None


Work = Callable[[list[Row]], list[tuple[Row, float]]]
"""What a worker makes of some rows: the results of each, and seconds that it takes at least."""


def _tried(rows: list[Row], limits: Limits, executor: Executor, work: Work) -> list[Found]:
    tried = zip(rows, _together(work, rows, executor), strict=True)
    return [Found(row, result, limits.broken(result), least, work is _in_full) for row, (result, least) in tried]


def _estimated(rows: list[Row]) -> list[tuple[Row, float]]:
    """With a task for each slot; times are found of what fits into memory only."""
    return [_estimate(row) for row in rows]


def _estimate(row: Row) -> tuple[Row, float]:
    known = untimed(row)
    over = known and known.too_large()
    if not known or over:
        return over or evaluated(row), 0.0
    return evaluated(row), slots.least_seconds(known.program, known.costs)


def _in_full(rows: list[Row]) -> list[tuple[Row, float]]:
    """With all operations of the slots."""
    return [(evaluated(row, in_full=True), 0.0) for row in rows]


def _together(work: Callable[[list[Row]], list[T]], rows: list[Row], executor: Executor) -> list[T]:
    """What some work makes of each row, CHUNK of them at once."""
    futures = [executor.submit(work, rows[start : start + CHUNK]) for start in range(0, len(rows), CHUNK)]
    return [result for future in futures for result in future.result()]


def neighbours(row: Row, given: Row) -> list[Row]:
    """What one change makes of a row: another schedule, half or twice a size, other recomputation, half the GPUs."""
    row, found = row | {"layers": given.get("layers")}, []
    if not given.get("schedule"):
        found += [row | {"schedule": name} for name in _schedules_of(row["ranks"], _microbatches(row))]
    for key in ("ranks", "tp", "cp", "ep", "microbatch_size", "gpus"):
        if given.get(key) is None or key == "gpus":
            changed = [row | {key: row[key] // 2}] + ([] if key == "gpus" else [row | {key: row[key] * 2}])
            found += [_regrouped(one) for one in changed if one[key] and _cut(one)]
    if given.get("zero") is None:
        found += [row | {"zero": stage} for stage in range(4)]
    found += [row | {"recompute": kept} for kept in _some(given, "recompute", _recomputations(given))]
    fitting = [one for one in found if one != row and not impossible(one)]
    return [one for one in fitting if not _misfit(one["schedule"], one["ranks"], _microbatches(one))]


def _cut(row: Row) -> bool:
    """Whether its GPUs and batch can be cut by its sizes."""
    dp, rest = divmod(row["gpus"], row["ranks"] * row["tp"] * row["cp"])
    return not rest and dp > 0 and row["global_batch"] % (dp * row["microbatch_size"]) == 0


def _regrouped(row: Row) -> Row:
    """With the group of micro-batches that its schedule takes at this size."""
    name = schedules.parse(row["schedule"])[0]
    options = _schedules_of(row["ranks"], _microbatches(row))
    return row | {"schedule": next((text for text in options if schedules.parse(text)[0] == name), row["schedule"])}


def _most(reasons: Mapping[str, int]) -> str:
    ordered = sorted(reasons.items(), key=lambda item: (-item[1], item[0]))
    return "; ".join(f"{count} by: {reason}" for reason, count in ordered[:3] if count)
