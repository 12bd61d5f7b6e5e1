"""Routing: which experts tokens go to, drawn exactly and without computing an affinity for every expert.

An affinity is popularity + noise x Gumbel, and selection adds a bias: the k experts of the largest are the first k to
arrive of independent Poisson processes with rates exp((popularity + bias) / noise) (the largest of Gumbels is the
smallest of exponentials). So arrivals are drawn, the next one's expert from an alias table, and an expert that is there
already is passed over: a token takes some 20 draws where 256 affinities and a sort would be the alternative.

Node-limited routing is DeepSeek-V3's (arXiv 2412.19437, section 2.1.2): groups are ranked by the sum of the best
topk / limit affinities in each (2 of them here where that would be more), the best `limit` groups are kept, and the
token's experts are the best within them. A sum of affinities falls with the product of arrival times, so times suffice
there too.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from simpipe.simulator import kernels
from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.kernels import Floats, Ints

Words = NDArray[np.uint64]


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
    if not (np.isfinite(rates).all() and (rates > 0).all()):
        raise SimpipeError("affinities lie too far apart to be drawn from; take a smaller skew or a larger noise")
    layers = len(rates)
    counts = np.zeros(rates.shape, np.int64)
    kernels.announce(_route)

    def part(number: int) -> None:
        own = slice(number * layers // workers, (number + 1) * layers // workers)
        _route(*router[1:], router.judged, rates[own], tokens, seeds[own], *_ziggurat(), counts[own])

    if workers == 1:
        part(0)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(part, range(workers)))
    return counts


@cache
def _ziggurat() -> tuple[Floats, Floats]:
    """Edges and heights of 256 layers of equal area under exp(-x) (Marsaglia and Tsang, JSS 5-8, 2000)."""
    edge, area = 7.69711747013104972, 0.0039496598225815571993
    x = np.zeros(257)
    x[0], x[1] = area * np.exp(edge), edge
    for layer in range(2, 256):
        x[layer] = -np.log(area / x[layer - 1] + np.exp(-x[layer - 1]))
    return x, np.exp(-x)


GOLDEN, MIX_A, MIX_B = np.uint64(0x9E3779B97F4A7C15), np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB)
"""SplitMix64, a generator of 64-bit words (Steele, Lea, Flood 2014): a counter times GOLDEN, mixed."""

S8, S27, S28, S30, S31, S36 = (np.uint64(shift) for shift in (8, 27, 28, 30, 31, 36))
LOW8, LOW28 = np.uint64(255), np.uint64((1 << 28) - 1)
UNIT28, WHOLE28, LOW32 = 2.0**-28, 1 << 28, (1 << 32) - 1

BATCH = 256
"""Tokens whose first two arrivals in every group are drawn together."""

REPEATS = 12
"""Arrivals passed over in a row from which the next new expert is found by going through those that are left."""


@numba.njit(cache=True, nogil=True, inline="always")
def _mixed(state: np.uint64) -> np.uint64:
    z = (state ^ (state >> S30)) * MIX_A
    z = (z ^ (z >> S27)) * MIX_B
    return z ^ (z >> S31)


@numba.njit(cache=True, nogil=True)
def _tail(state: np.uint64, word: np.uint64, edges: Floats, heights: Floats) -> tuple[np.uint64, float]:
    """An exponential from `word`, where the ziggurat's quick test failed or may fail."""
    beyond = 0.0
    while True:
        layer = np.intp(word & LOW8)
        x = float(np.int64((word >> S8) & LOW28)) * UNIT28 * edges[layer]
        if x < edges[layer + 1]:
            return state, beyond + x
        state += GOLDEN
        word = _mixed(state)
        if layer == 0:
            beyond += edges[1]
        else:
            up = float(np.int64(word >> S36)) * UNIT28
            if heights[layer] + up * (heights[layer + 1] - heights[layer]) < np.exp(-x):
                return state, beyond + x
            state += GOLDEN
            word = _mixed(state)


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
def _has(found: Ints, start: int, end: int, expert: int) -> bool:
    known = False
    for i in range(start, end):
        known |= found[i] == expert
    return known


@numba.njit(cache=True, nogil=True)
def _other(
    state: np.uint64, first: int, size: int, rates: Floats, table: Ints, found: Ints, start: int, end: int
) -> tuple[np.uint64, int]:
    """An expert of a group that is not among found[start:end], by the rates of those left.

    Those that are there are passed over; after REPEATS of them the rest is gone through.
    """
    expert = -1
    for _ in range(REPEATS):
        state += GOLDEN
        expert = first + _drawn((_mixed(state) >> S36) * np.uint64(size), table, first)
        if not _has(found, start, end, expert):
            return state, expert
    left = 0.0
    for i in range(first, first + size):
        left += 0.0 if _has(found, start, end, i) else rates[i]
    state += GOLDEN
    aim = float(np.int64(_mixed(state) >> S36)) * UNIT28 * left
    for i in range(first, first + size):
        if not _has(found, start, end, i):
            expert = i
            aim -= rates[i]
            if aim < 0.0:
                break
    return state, expert


@numba.njit(cache=True, nogil=True)
def _first(
    state: np.uint64, rates: Floats, total: float, table: Ints, edges: Floats, heights: Floats,
    times: Floats, found: Ints,
) -> np.uint64:  # fmt: skip
    """The first arrival of a group for each of many tokens, `times` and `found`; loops without branches."""
    count, inverse = np.uint64(len(rates)), 1.0 / total
    begun = state
    for i in range(len(times)):
        state += GOLDEN
        word = _mixed(state)
        layer = np.intp(word & LOW8)
        x = float(np.int64((word >> S8) & LOW28)) * UNIT28 * edges[layer]
        found[i] = _drawn((word >> S36) * count, table, 0)
        times[i] = x * inverse if x < edges[layer + 1] else -1.0
    for i in range(len(times)):
        if times[i] < 0.0:
            word = _mixed(begun + GOLDEN * np.uint64(i + 1))
            state, x = _tail(state, word, edges, heights)
            times[i] = x * inverse
    return state


@numba.njit(cache=True, nogil=True)
def _second(
    state: np.uint64, rates: Floats, total: float, table: Ints, edges: Floats, heights: Floats,
    times: Floats, found: Ints, later: Floats, next_found: Ints, left: Floats,
) -> np.uint64:  # fmt: skip
    """The second arrivals, `later` and `next_found`; `left` is room for one over the rate of all but each expert."""
    count = np.uint64(len(rates))
    for i in range(len(rates)):
        left[i] = 1.0 / max(total - rates[i], 1e-300)
    begun = state
    for i in range(len(times)):
        state += GOLDEN
        word = _mixed(state)
        layer = np.intp(word & LOW8)
        x = float(np.int64((word >> S8) & LOW28)) * UNIT28 * edges[layer]
        drawn = _drawn((word >> S36) * count, table, 0)
        next_found[i] = drawn
        later[i] = times[i] + x * left[found[i]] if (x < edges[layer + 1]) & (drawn != found[i]) else -1.0
    for i in range(len(times)):
        if later[i] < 0.0:
            word = _mixed(begun + GOLDEN * np.uint64(i + 1))
            layer = np.intp(word & LOW8)
            x = float(np.int64((word >> S8) & LOW28)) * UNIT28 * edges[layer]
            if x >= edges[layer + 1]:
                state, x = _tail(state, word, edges, heights)
            later[i] = times[i] + x * left[found[i]]
            if next_found[i] == found[i]:
                state, next_found[i] = _other(state, 0, len(rates), rates, table, found, i, i + 1)
    return state


@numba.njit(cache=True, nogil=True)
def _judge(judged: int, times: Floats, score: Floats, place: Ints, n: int) -> None:
    """How many groups come before each, for each of n tokens: of those with the smaller product of times."""
    groups = len(score)
    for g in range(groups):
        for i in range(n):
            score[g, i] = times[0, g, i] * times[1, g, i] if judged == 2 else times[0, g, i]
            place[g, i] = 0
    for g in range(1, groups):
        for before in range(g):
            for i in range(n):
                later = np.int64(score[before, i] <= score[g, i])
                place[g, i] += later
                place[before, i] += 1 - later


@numba.njit(cache=True, nogil=True, inline="always")
def _take(
    state: np.uint64, token: int, topk: int, limit: int, size: int, ahead: int, stride: int, times: Floats, found: Ints,
    place: Ints, rate: Floats, total: Floats, table: Ints, edges: Floats, heights: Floats, own_times: Floats,
    own_found: Ints, rest: Floats, head: Floats, chosen: Ints, at: Ints, count: Ints,
) -> np.uint64:  # fmt: skip
    """A token's experts, added to `count`: the earliest arrivals of the groups it may take, drawn on where they end.

    own_times, own_found: (limit x stride,) arrivals of each of those groups. rest: rate of its experts that are not
    there. head: time of its next arrival, at: that one's number; chosen: its first expert.
    """
    taking = 0
    for g in range(len(total)):
        if place[g, token] < limit:
            chosen[taking] = g * size
            at[taking] = 0
            left = total[g]
            for number in range(ahead):
                expert = g * size + found[number, g, token]
                own_times[taking * stride + number] = times[number, g, token]
                own_found[taking * stride + number] = expert
                left -= rate[expert]
            rest[taking] = left
            head[taking] = times[0, g, token]
            taking += 1
    for number in range(topk):
        best = 0
        for one in range(1, limit):
            best = one if head[one] < head[best] else best
        start, now = best * stride, at[best]
        count[own_found[start + now]] += 1
        now += 1
        at[best] = now
        if now < ahead:
            head[best] = own_times[start + now]
        elif now == size:
            head[best] = np.inf
        elif number < topk - 1:
            first = chosen[best]
            state += GOLDEN
            word = _mixed(state)
            layer = np.intp(word & LOW8)
            x = float(np.int64((word >> S8) & LOW28)) * UNIT28 * edges[layer]
            expert = first + _drawn((word >> S36) * np.uint64(size), table, first)
            if x >= edges[layer + 1]:
                state, x = _tail(state, word, edges, heights)
            if _has(own_found, start, start + now, expert):
                state, expert = _other(state, first, size, rate, table, own_found, start, start + now)
            own_found[start + now] = expert
            head[best] += x / max(rest[best], rate[expert])
            rest[best] -= rate[expert]
    return state


@numba.njit(cache=True, nogil=True)
def _route(
    topk: int, groups: int, limit: int, judged: int, rates: Floats, tokens: int, seeds: Words, edges: Floats,
    heights: Floats, counts: Ints,
) -> None:  # fmt: skip
    """Layers one after the other, sequences in batches of tokens: arrivals, then which groups, then which experts."""
    layers, sequences, experts = rates.shape
    if judged == 0:
        groups = limit = 1
    size = experts // groups
    ahead, stride = min(2, size), max(topk, 2)
    table, stack = np.empty(experts, np.int64), np.empty(size, np.int64)
    left, total = np.empty(size), np.empty(groups)
    times, found = np.empty((2, groups, BATCH)), np.empty((2, groups, BATCH), np.int64)
    score, place = np.empty((groups, BATCH)), np.empty((groups, BATCH), np.int64)
    own_times, own_found = np.empty(limit * stride), np.empty(limit * stride, np.int64)
    rest, head = np.empty(limit), np.empty(limit)
    chosen, at = np.empty(limit, np.int64), np.empty(limit, np.int64)
    for layer in range(layers):
        state = seeds[layer]
        for sequence in range(sequences):
            rate, count = rates[layer, sequence], counts[layer, sequence]
            for g in range(groups):
                a, b = g * size, (g + 1) * size
                total[g] = _alias(rate[a:b], table[a:b], left, stack)
            for begin in range(0, tokens, BATCH):
                n = min(BATCH, tokens - begin)
                for g in range(groups):
                    a, b = g * size, (g + 1) * size
                    own, drawn = times[:, g, :n], found[:, g, :n]
                    state = _first(state, rate[a:b], total[g], table[a:b], edges, heights, own[0], drawn[0])
                    if ahead == 2:
                        state = _second(
                            state, rate[a:b], total[g], table[a:b], edges, heights, own[0], drawn[0], own[1], drawn[1],
                            left,
                        )  # fmt: skip
                _judge(judged, times, score, place, n)
                for token in range(n):
                    state = _take(
                        state, token, topk, limit, size, ahead, stride, times, found, place, rate, total, table, edges,
                        heights, own_times, own_found, rest, head, chosen, at, count,
                    )  # fmt: skip
