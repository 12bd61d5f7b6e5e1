"""Curves: what timings say of the parameters of a profile.

Half of the timings of each operator and format are fitted, the other half says how far off the fit is. The formulas are
the profile's own (`costs/cluster.py`): nothing is computed here that a simulation does not compute.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simpipe.simulator import kernels
from simpipe.simulator.calibration import fitting
from simpipe.simulator.calibration.classes import COLLECTIVES
from simpipe.simulator.calibration.fitting import Fit, Parameter
from simpipe.simulator.calibration.timings import OPTIONAL, SHAPES, Timings, TimingsError, parse
from simpipe.simulator.costs import cluster as machines
from simpipe.simulator.costs import collectives as communication
from simpipe.simulator.costs.cluster import BYTES_PER_ELEMENT, Cluster, CollectiveCurve
from simpipe.simulator.costs.exchange_kernels import KernelSetting
from simpipe.simulator.costs.parallel import Parallel
from simpipe.simulator.errors import SimpipeError, show
from simpipe.simulator.kernels import Floats

if TYPE_CHECKING:
    import pandas as pd

Flags = NDArray[np.bool_]

MOST_POINTS = 2000
"""Timings that a fit takes, evenly chosen by their work: more make it no surer than the curve is right."""

MOST_COLLECTIVES = 400
"""The same of collectives, which are costed one by one."""

FEWEST = 8
"""Different operations below which all timings are fitted and none is left to test with."""

WHAT = ("operator", "format", "shape", "bytes", "ranks", "sms")
"""Columns in which timings of the same operation agree."""

MICROSECOND = 1e-6

_GEMM = (
    ("efficiency", 0.001, 1.0, 0.5, 0.0),
    ("tile_half", 0.0, 200.0, 1.5, 1.0),
    ("k_ramp", 0.0, 2000.0, 1.0, 50.0),
    ("wave_quantisation", 0.0, 1.0, 0.3, None),
    ("memory_efficiency", 0.05, 1.0, 0.8, 0.0),
    ("sharpness", 1.0, 10.0, 0.5, 0.0),
    ("floor", 0.0, 1e-2, 0.7, 1e-6),
)
_ATTENTION = (
    ("efficiency", 0.001, 1.0, 0.5, 0.0),
    ("head_half", 0.0, 400.0, 1.0, 20.0),
    ("k_ramp", 0.0, 2000.0, 1.0, 50.0),
    ("tail", 0.0, 5.0, 0.5, 0.2),
    ("memory_efficiency", 0.05, 1.0, 0.4, 0.0),
    ("sharpness", 1.0, 10.0, 0.5, 0.0),
    ("floor", 0.0, 1e-2, 0.7, 1e-6),
)
_COLLECTIVES = (
    ("floor", 0.0, 1e-2, 1.0, 1e-6),
    ("hop", 0.0, 1e-2, 1.0, 1e-7),
    ("fill", 0.0, 1e9, 1.0, 1e4),
    ("memory_efficiency", 0.001, 1.0, 0.5, 0.0),
)
NVLINK = "node.nvlink.efficiency"
"""Fitted with the collectives: a name with dots is the whole key of a profile."""
_EXCHANGE = (
    ("warp_bandwidth", 1e7, 1e12, 0.5, 0.0),
    ("network_efficiency", 0.05, 1.0, 0.3, 0.0),
    ("nvlink_efficiency", 0.05, 1.0, 0.3, 0.0),
    ("dispatch_floor", 0.0, 1e-3, 0.7, 1e-6),
    ("combine_floor", 0.0, 1e-3, 0.7, 1e-6),
    ("first_dispatch", 1.0, 5.0, 0.3, 0.0),
)
_MEMORY = (("efficiency", 0.001, 1.0, 0.5, 0.0), ("floor", 0.0, 1e-2, 0.7, 1e-6))
"""Of each parameter: name, bounds, how unsure it is before any timing is seen, and in which scale (see Parameter)."""


class Problem(NamedTuple):
    """What some timings are to be explained by. key: the profile's, as `gpu.gemm.bf16`. seconds: of (parameters,) and
    the rows asked for. work: (rows,) FLOP or bytes, as `unit` says."""

    key: str
    parameters: list[Parameter]
    seconds: Callable[[Floats, Any], Floats]
    work: Floats
    unit: str


class Curve(NamedTuple):
    """A fitted curve with the timings it was fitted to and tested with.

    measured, predicted: (rows,) seconds. tested: (rows,) which were not fitted. sources: the files.
    """

    operator: str
    format: str
    problem: Problem
    fit: Fit
    measured: Floats
    predicted: Floats
    tested: Flags
    sources: tuple[str, ...]

    @property
    def names(self) -> list[str]:
        return [parameter.name for parameter in self.problem.parameters]

    @property
    def points(self) -> int:
        """Timings that the fit saw."""
        return len(self.fit.residuals)

    @property
    def judged(self) -> Flags:
        """The timings that say how far off the curve is: those it did not see, or all where it saw all."""
        return self.tested if self.tested.any() else ~self.tested

    @property
    def residual(self) -> float:
        """Standard deviation of the log of predicted over measured time, outliers aside."""
        chosen = self.judged
        return fitting.spread(np.log(self.predicted[chosen] / self.measured[chosen]))

    def error(self, chosen: Flags) -> tuple[float, float]:
        """Mean and mean absolute relative error of some timings, at least one."""
        apart = self.predicted[chosen] / self.measured[chosen] - 1
        return float(apart.mean()), float(np.abs(apart).mean())


def fit(timings: Timings, cluster: Cluster) -> list[Curve]:
    """A curve for each operator and format that the profile has one of. Raises TimingsError where there is none.

    Where enough timings of an operator ran alone, they are its curve's, and those beside communication tell how much
    longer they took than their SMs explain.
    """
    found, slower = [], []
    together = timings.table["operator"].replace(_TOGETHER)
    format_ = timings.table["format"].where(together.isin(_BY_FORMAT), "")
    for (operator, format), table in timings.table.groupby([together, format_], sort=True):
        if str(operator) not in _PROBLEMS:
            continue
        make = _PROBLEMS[str(operator)]
        crowded = table["beside"] >= 0.5
        if crowded.any() and (~crowded).sum() >= FEWEST:
            table, beside = table[~crowded], table[crowded]
        else:
            beside = table[:0]
        found.append(_fitted(str(operator), str(format), make(cluster, str(operator), str(format), table), table))
        if make is _collectives:  # before exchanges, which go over the same link
            cluster = _linked(cluster, found[-1].fit.values)
        if len(beside):
            alone = make(cluster, str(operator), str(format), beside)
            explained = alone.seconds(found[-1].fit.values, np.arange(len(beside)))
            slower.append(beside.assign(seconds=beside["seconds"] / explained))
    if slower:
        found.append(_interference(cluster, slower))
    if not found:
        there = ", ".join(sorted(set(timings.table["operator"]))) or "no operator"
        raise TimingsError(
            f"nothing to fit: the timings are of {there}, but a profile has curves of {', '.join(_PROBLEMS)}"
        )
    return found


def _interference(cluster: Cluster, slower: Sequence[pd.DataFrame]) -> Curve:
    """How many times as long computations take beside communication; `seconds` are such ratios."""
    import pandas as pd

    table = pd.concat(slower, ignore_index=True)

    def seconds(values: Floats, chosen: Any) -> Floats:
        return np.full(len(chosen), values[0])

    parameter = Parameter("interference", max(cluster.gpu.interference, 1.01), 1.0, 100.0, 0.5)
    return _fitted("interference", "", Problem("gpu", [parameter], seconds, np.ones(len(table)), ""), table)


def _fitted(operator: str, format: str, problem: Problem, table: pd.DataFrame) -> Curve:
    measured = table["seconds"].to_numpy(float)
    tested = _tested(table, problem.work)
    most = MOST_COLLECTIVES if operator in _TOGETHER.values() else MOST_POINTS
    seen = _evenly(np.flatnonzero(~tested), problem.work, most)
    result = fitting.fit(lambda values: problem.seconds(values, seen), measured[seen], problem.parameters)
    predicted = problem.seconds(result.values, np.arange(len(table)))
    return Curve(operator, format, problem, result, measured, predicted, tested, tuple(sorted(set(table["source"]))))


def _tested(table: pd.DataFrame, work: Floats) -> Flags:
    """Which half is left to test with: what the reader says, or every second of what was timed, by its work and, where
    that is the same, by lot. Timings of the same stay together: none is tested that others of it were fitted to."""
    said = table["tested"].to_numpy(int)
    tested = said == 1
    undecided = np.flatnonzero(said < 0)
    same = table.iloc[undecided].groupby(list(WHAT), sort=False).ngroup().to_numpy()
    _, first, which = np.unique(same, return_index=True, return_inverse=True)
    if len(first) >= FEWEST:
        lot = np.random.default_rng(fitting.SEED).permutation(len(first))
        chosen = np.lexsort((lot, work[undecided[first]]))[1::2]
        tested[undecided[np.isin(which, chosen)]] = True
    return np.zeros(len(table), bool) if tested.all() else np.asarray(tested, bool)


def _evenly(rows: NDArray[np.int64], work: Floats, most: int) -> NDArray[np.int64]:
    """At most so many of some rows, evenly by their work."""
    ordered = rows[np.argsort(work[rows], kind="stable")]
    chosen = np.linspace(0, len(ordered) - 1, min(len(ordered), most)).round().astype(int)
    return np.asarray(ordered[chosen])


# What explains each operator.


def _parameters(table: Sequence[tuple[Any, ...]], base: Any) -> list[Parameter]:
    return [Parameter(name, getattr(base, name), low, high, width, shift) for name, low, high, width, shift in table]


def _shapes(table: pd.DataFrame, operator: str) -> NDArray[np.int64]:
    """(rows, numbers) what the shapes say."""
    names, extra = SHAPES[operator], OPTIONAL.get(operator, {})
    known = {text: parse(text, names, extra) for text in table["shape"].unique()}
    return np.array([known[text] for text in table["shape"]], np.int64).reshape(len(table), len(names) + len(extra))


def _on(cluster: Cluster, operator: str, format: str, table: pd.DataFrame) -> tuple[float, Any, float, float]:
    """FLOP/s of an SM, (rows,) SMs, bytes/s of memory, bytes of an element."""
    if format not in BYTES_PER_ELEMENT or format.removesuffix("_block") not in cluster.gpu.peak:
        there = [name for name in BYTES_PER_ELEMENT if name.removesuffix("_block") in cluster.gpu.peak]
        place = table["source"].iloc[0]
        raise TimingsError(
            f"{place}: format of {operator} is one of {', '.join(there)} on {cluster.name}, not {show(format)}"
        )
    given = table["sms"].to_numpy(float)
    if (given > cluster.gpu.sms).any():
        raise TimingsError(
            f"{table['source'].iloc[0]}: sms is at most {cluster.gpu.sms} on {cluster.name}, not {given.max():g}"
        )
    sms = np.where(given > 0, given, cluster.gpu.sms).astype(np.int64)
    return cluster.peak(format) / cluster.gpu.sms, sms, cluster.gpu.memory_bandwidth, BYTES_PER_ELEMENT[format]


def _products(cluster: Cluster, operator: str, format: str, table: pd.DataFrame) -> Problem:
    rate, sms, bandwidth, element = _on(cluster, operator, format, table)
    shapes = _shapes(table, operator)
    m, n, k = shapes[:, :3].T
    groups = shapes[:, 3] if operator == "grouped_gemm" else np.ones_like(m)
    output = shapes[:, -1].astype(float)
    groups = np.maximum(groups, 1)
    # two products a row: groups that have one row more than others, and those others
    rows = np.stack([-(-m // groups), m // groups], axis=1)
    count = np.stack([m % groups, groups - m % groups], axis=1)

    def seconds(values: Floats, chosen: Any) -> Floats:
        found = np.zeros(len(chosen))
        twice = [np.repeat(side[chosen], 2) for side in (n, k)]
        start = np.arange(0, 2 * len(chosen) + 1, 2)
        arguments = (start, rows[chosen].ravel(), *twice, count[chosen].ravel(), sms[chosen], output[chosen])
        kernels.compiled(machines.gemm_times)(found, *arguments, rate, bandwidth, element, tuple(values.tolist()))
        return found

    parameters = _parameters(_GEMM, getattr(cluster.gpu, operator)[format])
    return Problem(f"gpu.{operator}.{format}", parameters, seconds, 2.0 * m * n * k, "FLOP")


def _attention(cluster: Cluster, operator: str, format: str, table: pd.DataFrame) -> Problem:
    rate, sms, bandwidth, element = _on(cluster, operator, format, table)
    shapes = _shapes(table, operator)
    batch, heads, _, queries, keys, head, value, causal = shapes.T
    beyond = (causal > 0) & (queries > keys)
    if beyond.any():
        row = int(np.flatnonzero(beyond)[0])
        text = f"causal attention has as many keys as queries or more, not {keys[row]} and {queries[row]}"
        raise TimingsError(f"{table['source'].iloc[row]}: {text}")
    backward = operator == "attention_backward"
    pairs = np.where(causal > 0, queries * (2 * keys - queries) / 2, queries * keys)

    def seconds(values: Floats, chosen: Any) -> Floats:
        found = np.zeros(len(chosen))
        kernels.compiled(machines.attention_times)(
            found, shapes[chosen], sms[chosen], backward, rate, bandwidth, element, tuple(values.tolist())
        )
        return found

    parameters = _parameters(_ATTENTION, getattr(cluster.gpu, operator)[format])
    work = 2.0 * batch * heads * pairs * (head + value) * (2.5 if backward else 1.0)
    return Problem(f"gpu.{operator}.{format}", parameters, seconds, work, "FLOP")


def _memory(cluster: Cluster, operator: str, format: str, table: pd.DataFrame) -> Problem:
    moved, bandwidth = table["bytes"].to_numpy(float), cluster.gpu.memory_bandwidth

    def seconds(values: Floats, chosen: Any) -> Floats:
        efficiency, floor = values
        return np.asarray(floor + moved[chosen] / (efficiency * bandwidth))

    return Problem("gpu.memory_bound", _parameters(_MEMORY, cluster.gpu.memory_bound), seconds, moved, "bytes")


def _collectives(cluster: Cluster, operator: str, format: str, table: pd.DataFrame) -> Problem:
    """By the functions that a simulation calls, of a machine with other parameters."""
    rows = list(zip(table["operator"], table["bytes"].tolist(), table["ranks"].astype(int), strict=True))
    bad = next((row for row in rows if row[1] <= 0 or row[2] < 2), None)
    if bad:
        place = table["source"].iloc[0]
        raise TimingsError(f"{place}: a collective has bytes and at least 2 ranks, not {bad[1]:g} and {bad[2]}")

    def seconds(values: Floats, chosen: Any) -> Floats:
        machine = _linked(cluster, values)
        return np.array([_alone(machine, *rows[row]) for row in chosen])

    link = Parameter(NVLINK, cluster.node.nvlink.efficiency, 0.001, 1.0, 0.3)
    parameters = [*_parameters(_COLLECTIVES, cluster.collectives), link]
    return Problem("collectives", parameters, seconds, table["bytes"].to_numpy(float), "bytes")


def _linked(cluster: Cluster, values: Floats) -> Cluster:
    """The machine with other parameters of its collectives and of the link that they share with all else."""
    *curve, efficiency = values.tolist()
    nvlink = replace(cluster.node.nvlink, efficiency=efficiency)
    return replace(cluster, collectives=CollectiveCurve(*curve), node=replace(cluster.node, nvlink=nvlink))


def _alone(cluster: Cluster, operator: str, size: float, ranks: int) -> float:
    if operator == "send_recv":
        exchange = communication.point_to_point(cluster, size, 0, 1)
    else:
        exchange = getattr(communication, operator)(cluster, size, ranks)
    return communication.seconds(cluster, exchange)


def _exchange(cluster: Cluster, operator: str, format: str, table: pd.DataFrame) -> Problem:
    """Dispatch and combine, the kernels' settings as a scenario has them by default."""
    shapes: dict[Any, list[int]] = {}
    for way in ("dispatch", "combine"):
        part = table[table["operator"] == way]
        shapes |= dict(zip(part.index, _shapes(part, way).tolist(), strict=True))
    usual = Parallel(ranks=1, gpus=1, global_batch=1, sequence=1)
    rows = []
    for index, row in table.iterrows():
        tokens, hidden, topk, experts, limit, *repeated = shapes[index]
        sms, ep, element = int(row["sms"]), int(row["ranks"]), BYTES_PER_ELEMENT.get(row["format"])
        if element is None or ep < 2 or not 1 <= sms <= cluster.gpu.sms:
            wanted = f"a format of {', '.join(BYTES_PER_ELEMENT)}, 2 or more ranks and 1 to {cluster.gpu.sms} SMs"
            raise TimingsError(
                f"{row['source']}: {row['operator']} has {wanted}, not {show(row['format'])}, {ep} and {sms}"
            )
        setting = KernelSetting(sms, usual.communication_warps, usual.communication_chunk)
        known = (("repeated", bool(repeated[0])),) if repeated else ()
        rows.append((row["operator"], (tokens, topk, hidden, element, ep, limit or None, experts, setting), known))
    for (way, shape, known), source in dict(zip(rows, table["source"], strict=True)).items():
        try:
            getattr(communication, way)(cluster, *shape, **dict(known))
        except SimpipeError as error:
            raise TimingsError(f"{source}: {error}") from None

    def seconds(values: Floats, chosen: Any) -> Floats:
        fitted = dict(zip((name for name, *_ in _EXCHANGE), values.tolist(), strict=True))
        machine = replace(cluster, exchange=replace(cluster.exchange, wait=0.0, **fitted))
        times = {}
        for row in {rows[index] for index in chosen}:
            way, shape, known = row
            times[row] = communication.seconds(machine, getattr(communication, way)(machine, *shape, **dict(known)))
        return np.array([times[rows[index]] for index in chosen])

    work = np.array([row[1][0] for row in rows], float)
    return Problem("exchange", _parameters(_EXCHANGE, cluster.exchange), seconds, work, "tokens")


def _wait(cluster: Cluster, operator: str, format: str, table: pd.DataFrame) -> Problem:
    """What exchanges wait for other ranks, whatever they move."""

    def seconds(values: Floats, chosen: Any) -> Floats:
        return np.full(len(chosen), values[0])

    start = cluster.exchange.wait or float(table["seconds"].median())
    return Problem("exchange", [Parameter("wait", start, 1e-9, 1.0, 1.0)], seconds, np.ones(len(table)), "")


def _constant(cluster: Cluster, operator: str, format: str, table: pd.DataFrame) -> Problem:
    """A time that depends on nothing."""

    def seconds(values: Floats, chosen: Any) -> Floats:
        return np.full(len(chosen), values[0])

    parameter = Parameter(operator, getattr(cluster.gpu, operator), 1e-8, 1e-2, 1.0)
    return Problem("gpu", [parameter], seconds, np.ones(len(table)), "")


_PROBLEMS: dict[str, Callable[[Cluster, str, str, pd.DataFrame], Problem]] = {
    "gemm": _products,
    "grouped_gemm": _products,
    "attention_forward": _attention,
    "attention_backward": _attention,
    "memory_bound": _memory,
    "collectives": _collectives,
    "exchange": _exchange,
    "exchange_wait": _wait,
    "kernel_gap": _constant,
    "launch_latency": _constant,
}
"""What a profile has curves of."""

_BY_FORMAT = ("gemm", "grouped_gemm", "attention_forward", "attention_backward")
"""Operators that have a curve for each number format."""

_TOGETHER = dict.fromkeys(COLLECTIVES, "collectives") | dict.fromkeys(("dispatch", "combine"), "exchange")
"""Operators that one curve explains, whatever their formats."""
