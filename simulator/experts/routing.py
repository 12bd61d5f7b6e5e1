"""Routing: which experts tokens go to, drawn exactly and without computing an affinity for every expert.

An affinity is popularity + noise x Gumbel, and selection adds a bias: the k experts of the largest are the first k to
arrive of independent Poisson processes with rates exp((popularity + bias) / noise) (the largest of Gumbels is the
smallest of exponentials). So arrivals are drawn, the next one's expert from an alias table, and an expert that is there
already is passed over: a token takes some 20 draws where 256 affinities and a sort would be the alternative. Many
tokens are drawn side by side, in loops that processors run for several at once.

Node-limited routing is DeepSeek-V3's (arXiv 2412.19437, section 2.1.2): groups are ranked by the sum of the best
topk / limit affinities in each (2 of them here where that would be more), the best `limit` groups are kept, and the
token's experts are the best within them. A sum of affinities falls with the product of arrival times, so times suffice
there too.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from simpipe.simulator import kernels
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.kernels import Floats, Ints

Words = NDArray[np.uint64]
T = TypeVar("T")


class Router(NamedTuple):
    """experts of a layer, topk of which each token takes, in at most `limit` of `groups` groups of equal size."""

    experts: int
    topk: int
    groups: int = 1
    limit: int = 1

    @property
    def judged(self) -> int:
        """Best affinities of a group whose sum ranks it among the groups: 2 or 1; 0 where all groups may be taken."""
        return min(2, max(1, self.topk // self.limit), self.experts // self.groups) if self.limit < self.groups else 0


def route(router: Router, rates: Floats, tokens: int, seeds: Words, workers: int = 1) -> Ints:
    """(layers, sequences, experts) tokens that each expert gets of `tokens` in each sequence of each layer.

    rates: (layers, sequences, experts) exp((popularity + bias) / noise), positive. seeds: (layers,), one a layer, so
    that the result does not depend on `workers` threads. Raises SimpipeError where a rate is none.
    """
    counts = np.zeros(rates.shape, np.int64)
    each_layer(
        len(rates), workers, lambda layer: _count(picks(router, rates[layer], tokens, seeds[layer]), counts[layer])
    )
    return counts


def picks(router: Router, rates: Floats, tokens: int, seed: np.uint64) -> Ints:
    """(sequences, topk, tokens) experts of each token of a layer, best first, by its rates as `route` has them."""
    if not (np.isfinite(rates).all() and (rates > 0).all()):
        raise SimpipeError("affinities lie too far apart to be drawn from; take a smaller skew or a larger noise")
    kernels.announce(_pick)
    picked = np.empty((len(rates), router.topk, tokens), np.int64)
    _pick(router.groups if router.judged else 1, router.limit, router.judged, rates, seed, picked)
    return picked


def each_layer(layers: int, workers: int, call: Callable[[int], T]) -> list[T]:
    """What `call` returns for each layer, which threads share; it should be compiled for the most part."""
    if workers == 1:
        return [call(layer) for layer in range(layers)]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(call, range(layers)))


GOLDEN, MIX_A, MIX_B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
"""SplitMix64, a generator of 64-bit words (Steele, Lea, Flood 2014): a counter times GOLDEN, mixed."""

S27, S28, S30, S31, S36 = (np.uint64(shift) for shift in (27, 28, 30, 31, 36))
LOW28, LOW36 = np.uint64((1 << 28) - 1), np.uint64((1 << 36) - 1)
WHOLE28, LOW32 = 1 << 28, (1 << 32) - 1
"""A word's upper 28 bits say which expert arrives, its lower 36 when."""

MANTISSA, ONE = (1 << 52) - 1, 1023 << 52
"""Of a float64: the bits of its fraction, and those of 1.0."""
ROOT2, LN2 = math.sqrt(2.0), math.log(2.0)

BATCH = 256
"""Tokens whose arrivals are drawn together."""

REPEATS = 12
"""Arrivals passed over in a row from which the next new expert is found by going through those that are left."""


@numba.njit(cache=True, nogil=True, inline="always")
def _mixed(state: np.uint64) -> np.uint64:
    z = (state ^ (state >> S30)) * MIX_A
    z = (z ^ (z >> S27)) * MIX_B
    return z ^ (z >> S31)


@numba.njit(cache=True, nogil=True, inline="always", error_model="numpy")
def _wait(word: np.uint64) -> float:
    """An exponential of mean 1: -log of the middle of one of 2^36 equal parts of (0, 1), to 2e-15.

    log x = exponent log 2 + log sqrt 2 + 2 atanh s, s = (m - sqrt 2) / (m + sqrt 2) at most 0.172 for a mantissa m from
    1 to 2. Written out, so that it is computed for many tokens at once.
    """
    bits = np.float64((float(np.int64(word & LOW36)) + 0.5) * 2.0**-36).view(np.int64)
    mantissa = np.int64((bits & MANTISSA) | ONE).view(np.float64)
    s = (mantissa - ROOT2) / (mantissa + ROOT2)
    q = s * s
    series = 1 + q * (
        1 / 3 + q * (1 / 5 + q * (1 / 7 + q * (1 / 9 + q * (1 / 11 + q * (1 / 13 + q * (1 / 15 + q / 17))))))
    )
    return (1022.5 - float(bits >> 52)) * LN2 - 2 * s * series


@numba.njit(cache=True, nogil=True)
def _alias(rates: Floats, table: Ints, share: Floats, stack: Ints) -> float:
    """Walker's alias table of some rates (Vose's way): in the low 32 bits below which of 2^28 an entry is kept, above
    how far from it the other one is. Returns their sum; share and stack are room for as many numbers."""
    size, total = len(rates), 0.0
    for i in range(size):
        total += rates[i]
    small, large = 0, size
    for i in range(size):
        share[i] = rates[i] * size / total
        table[i] = WHOLE28
        if share[i] < 1.0:
            stack[small] = i
            small += 1
        else:
            large -= 1
            stack[large] = i
    while small > 0 and large < size:
        small -= 1
        less, more = stack[small], stack[large]
        table[less] = ((more - less) << 32) | np.int64(share[less] * WHOLE28)
        share[more] -= 1.0 - share[less]
        if share[more] < 1.0:
            stack[small] = more
            small += 1
            large += 1
    return total


@numba.njit(cache=True, nogil=True, inline="always")
def _drawn(place: np.uint64, table: Ints, first: int) -> int:
    """The entry of the alias table from `first` on at `place`, 28 bits of which are a fraction; counted from there."""
    entry = np.int64(place >> S28)
    packed = table[first + entry]
    return int(entry + np.int64(np.int64(place & LOW28) >= (packed & LOW32)) * (packed >> 32))


@numba.njit(cache=True, nogil=True, inline="always")
def _among(gone: Ints, token: int, expert: int) -> bool:
    known = False
    for earlier in range(len(gone)):
        known |= gone[earlier, token] == expert
    return known


@numba.njit(cache=True, nogil=True)
def _other(
    state: np.uint64, first: int, size: int, rates: Floats, table: Ints, gone: Ints, token: int
) -> tuple[np.uint64, int]:
    """An expert of a group that is not among a token's `gone`, by the rates of those left.

    Those that are there are passed over; after REPEATS of them the rest is gone through.
    """
    expert = -1
    for _ in range(REPEATS):
        state += GOLDEN
        expert = first + _drawn((_mixed(state) >> S36) * np.uint64(size), table, first)
        if not _among(gone, token, expert):
            return state, expert
    left = 0.0
    for i in range(first, first + size):
        left += 0.0 if _among(gone, token, i) else rates[i]
    state += GOLDEN
    aim = float(np.int64(_mixed(state) >> S36)) / WHOLE28 * left
    for i in range(first, first + size):
        if not _among(gone, token, i):
            expert = i
            aim -= rates[i]
            if aim < 0.0:
                break
    return state, expert


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _arrive(
    state: np.uint64, size: int, rates: Floats, table: Ints, wanted: Ints, first: Ints, gone: Ints, left: Floats,
    times: Floats, found: Ints, again: Ints,
) -> np.uint64:  # fmt: skip
    """The next arrival for each of many tokens: `times` moves on to it, `found` is its expert.

    (tokens,) wanted: 1 where there is one; first: its group's first expert; left: rate of those of its group that have
    not arrived, without this one when done. gone: (arrivals, tokens) experts that have. `again` is room for as many.
    """
    count, wait = np.uint64(size), np.empty(len(times))
    for i in range(len(times)):
        state += GOLDEN
        word = _mixed(state)
        found[i] = np.int64((word >> S36) * count)
        wait[i] = _wait(word)
    for i in range(len(times)):  # apart, since look-ups would keep what stands above from being done for many at once
        found[i] = first[i] + _drawn(np.uint64(found[i]), table, first[i])
        again[i] = 0
    for earlier in range(len(gone)):
        for i in range(len(times)):
            again[i] |= gone[earlier, i] == found[i]
    for i in range(len(times)):
        if again[i] & wanted[i]:
            state, found[i] = _other(state, first[i], size, rates, table, gone, i)
    for i in range(len(times)):
        rate = rates[found[i]]
        times[i] += wait[i] / max(left[i], rate)  # what is left may be less than it by rounding
        left[i] -= rate
    return state


@numba.njit(cache=True, nogil=True)
def _judge(judged: int, limit: int, times: Floats) -> None:
    """First arrivals of groups that a token may not take, those with the larger products of times, become never."""
    _, groups, tokens = times.shape
    score, place = times[0] * times[1] if judged == 2 else times[0].copy(), np.zeros((groups, tokens), np.int64)
    for g in range(1, groups):
        for before in range(g):
            for i in range(tokens):
                later = np.int64(score[before, i] <= score[g, i])
                place[g, i] += later
                place[before, i] += 1 - later
    for g in range(groups):
        for i in range(tokens):
            times[0, g, i] = times[0, g, i] if place[g, i] < limit else np.inf


@numba.njit(cache=True, nogil=True)
def _earliest(head: Floats, low: Floats, best: Ints) -> None:
    """The group of each token whose next arrival is first, and its time."""
    low[:], best[:] = head[0], 0
    for g in range(1, len(head)):
        for i in range(len(low)):
            sooner = head[g, i] < low[i]
            low[i] = head[g, i] if sooner else low[i]
            best[i] = g if sooner else best[i]


@numba.njit(cache=True, nogil=True)
def _batch(
    state: np.uint64, topk: int, limit: int, judged: int, rates: Floats, total: Floats, table: Ints,
    picked: Ints,
) -> np.uint64:  # fmt: skip
    """(topk, tokens) experts of each token, best first, `picked` by one sequence's rates.

    The first two arrivals of every group say which groups it may take; then topk times the earliest arrival of those
    is taken, and the next one of its group, where that was not the first, is drawn.
    """
    groups, tokens, size = len(total), picked.shape[1], len(rates) // len(total)
    times, found = np.zeros((2, groups, tokens)), np.empty((2, groups, tokens), np.int64)
    left, taken = np.empty((groups, tokens)), np.zeros((groups, tokens), np.int64)
    time, best, first, rest = np.empty(tokens), np.empty(tokens, np.int64), np.empty(tokens, np.int64), np.empty(tokens)
    drawn, again, wanted = np.empty(tokens, np.int64), np.empty(tokens, np.int64), np.ones(tokens, np.int64)
    for g in range(groups):
        first[:], left[g] = g * size, total[g]
        for number in range(min(2, size)):
            if number:
                times[1, g] = times[0, g]
            state = _arrive(
                state, size, rates, table, wanted, first, found[:number, g], left[g], times[number, g],
                found[number, g], again,
            )  # fmt: skip
    if judged:
        _judge(judged, limit, times)
    for number in range(topk):
        _earliest(times[0], time, best)
        for i in range(tokens):
            picked[number, i] = found[0, best[i], i]
        if number == topk - 1:
            break
        for i in range(tokens):
            g = best[i]
            taken[g, i] += 1
            first[i], rest[i] = g * size, left[g, i]
            wanted[i] = (taken[g, i] > 1) & (taken[g, i] < size)
        state = _arrive(state, size, rates, table, wanted, first, picked[: number + 1], rest, time, drawn, again)
        for i in range(tokens):
            g = best[i]
            known = taken[g, i] == 1
            next_time = times[1, g, i] if known else time[i]
            times[0, g, i] = np.inf if taken[g, i] == size else next_time
            found[0, g, i] = found[1, g, i] if known else drawn[i]
            left[g, i] = left[g, i] if known else rest[i]
    return state


@numba.njit(cache=True, nogil=True)
def _pick(groups: int, limit: int, judged: int, rates: Floats, state: np.uint64, picked: Ints) -> None:
    """Sequences one after the other, in batches of tokens."""
    sequences, experts = rates.shape
    topk, tokens, size = picked.shape[1], picked.shape[2], experts // groups
    table, total = np.empty(experts, np.int64), np.empty(groups)
    share, stack = np.empty(size), np.empty(size, np.int64)
    for sequence in range(sequences):
        for g in range(groups):
            a, b = g * size, (g + 1) * size
            total[g] = _alias(rates[sequence, a:b], table[a:b], share, stack)
        for begin in range(0, tokens, BATCH):
            own = picked[sequence, :, begin : begin + BATCH]
            state = _batch(state, topk, limit, judged, rates[sequence], total, table, own)


@numba.njit(cache=True, nogil=True)
def _count(picked: Ints, counts: Ints) -> None:
    for sequence in range(len(picked)):
        for expert in picked[sequence].flat:
            counts[sequence, expert] += 1
