"""Placement: on which ranks of the expert-parallel group experts lie, some of them more than once.

A rank has equally many places, as far as they go one for an expert. The busiest experts are copied, and each copy takes
an equal share of the tokens. `contiguous`: experts lie in the order of their numbers, as they are trained, and only the
copies are dealt: the heaviest first, to the rank that has least and a place left. `balanced`: all are dealt so. Where
groups of node-limited routing lie on whole nodes, an expert stays on its group's ranks, so that the limit keeps its
meaning.
"""

from __future__ import annotations

import heapq
from typing import NamedTuple

import numpy as np

from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.kernels import Floats, Ints

WAYS = ("contiguous", "balanced")


class Placed(NamedTuple):
    """(places,) the expert in each place and its share of that expert's tokens; rank r has the r-th equal part."""

    expert: Ints
    share: Floats
    ranks: int

    def loads(self, tokens: Ints | Floats) -> Floats:
        """(ranks, places of one) tokens in each place, from (experts,) tokens."""
        return np.asarray((tokens[self.expert] * self.share).reshape(self.ranks, -1))


def place(loads: Ints | Floats, ranks: int, groups: int = 1, redundant: int = 0, way: str = "contiguous") -> Placed:
    """Experts of (experts,) expected loads on ranks. Raises SimpipeError where they do not fit evenly."""
    experts = len(loads)
    if way not in WAYS:
        raise SimpipeError(f"--placement is {way!r}; it is {' or '.join(WAYS)}")
    parts = groups if ranks % groups == 0 and experts % groups == 0 and redundant % groups == 0 else 1
    most = experts * (ranks // parts - 1)
    if not 0 <= redundant <= most:
        raise SimpipeError(f"redundant experts are 0 to {most}, one on each rank of an expert's group, not {redundant}")
    if (experts + redundant) % ranks:
        raise SimpipeError(f"{experts} + {redundant} redundant experts are not a multiple of ep = {ranks} ranks")
    size = experts // parts
    found = []
    for part in range(parts):
        own = np.asarray(loads[part * size : (part + 1) * size], float)
        copies = _copies(own, redundant // parts, ranks // parts)
        order = _dealt(own / copies, copies, ranks // parts, way == "contiguous")
        found.append((part * size + order, 1.0 / copies[order]))
    return Placed(np.concatenate([e for e, _ in found]), np.concatenate([s for _, s in found]), ranks)


def _copies(loads: Floats, redundant: int, most: int) -> Ints:
    """(experts,) how many of each: one more, again and again, for the one with most tokens a copy."""
    copies = np.ones(len(loads), np.int64)
    heap = [(-load, expert) for expert, load in enumerate(loads.tolist())]
    heapq.heapify(heap)
    left = redundant
    while left:
        _, expert = heapq.heappop(heap)
        copies[expert] += 1
        left -= 1
        if copies[expert] < most:
            heapq.heappush(heap, (-loads[expert] / copies[expert], expert))
    return copies


def _dealt(each: Floats, copies: Ints, ranks: int, in_order: bool) -> Ints:
    """(places,) experts in the order of ranks, from the load of a copy of each and how many there are; in_order: one
    of each lies where its number says. No rank has two copies of an expert while another one has a place."""
    places = int(copies.sum()) // ranks
    hands: list[list[int]] = [[] for _ in range(ranks)]
    if in_order:
        for expert in range(len(each)):
            hands[expert * ranks // len(each)].append(expert)
    left = np.repeat(np.arange(len(each)), copies - in_order)
    heap = [(float(each[hand].sum()), rank) for rank, hand in enumerate(hands) if len(hand) < places]
    heapq.heapify(heap)
    for expert in left[np.argsort(-each[left], kind="stable")].tolist():
        passed = []
        while len(heap) > 1 and expert in hands[heap[0][1]]:
            passed.append(heapq.heappop(heap))
        held, rank = heapq.heappop(heap)
        hands[rank].append(expert)
        if len(hands[rank]) < places:
            passed.append((held + float(each[expert]), rank))
        for waiting in passed:
            heapq.heappush(heap, waiting)
    return np.array([expert for hand in hands for expert in sorted(hand)], np.int64)


def fullest(loads: Ints, placed: list[Placed]) -> Floats:
    """(layers,) tokens of the fullest rank over the mean, from (layers, experts) tokens and where experts lie."""
    by_rank = [each.loads(tokens).sum(1) for tokens, each in zip(loads, placed, strict=True)]
    return np.array([rank.max() / rank.mean() for rank in by_rank])
