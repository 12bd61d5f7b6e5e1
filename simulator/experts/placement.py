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

import numba
import numpy as np

from simpipe.simulator import kernels
from simpipe.simulator.costs.parallel import Load
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


class Traffic(NamedTuple):
    """What the tokens of a group's ranks come to in one layer; an expert's rows are tokens it computes.

    loads: (experts,) rows. rows: (ranks, places of one) the same of each place. to_rank: (ranks, ranks) tokens of one
    rank that have experts on another. to_node: (ranks, nodes) those that have some on a node, counted once each.
    """

    loads: Ints
    rows: Floats
    to_rank: Floats
    to_node: Floats

    @property
    def network(self) -> Floats:
        """(2, ranks) tokens that a rank's NIC sends, and receives: one for each other node, to and from the ranks with
        its place there."""
        ranks, nodes = self.to_node.shape
        own, place = np.divmod(np.arange(ranks), ranks // nodes)
        across = np.where(own[:, None] == np.arange(nodes), 0.0, self.to_node)
        return np.stack([across.sum(1), _sums(across, place).T.reshape(-1)])

    @property
    def nvlink(self) -> Floats:
        """(2, ranks) tokens that a rank's NVLink sends, and receives: the rank with the sender's place on a node
        forwards them to each of the others there that has experts of them."""
        ranks, nodes = self.to_node.shape
        place = np.arange(ranks) % (ranks // nodes)
        by_place = np.where(np.arange(ranks // nodes)[:, None] == place, 0.0, _sums(self.to_rank, place))
        sent = by_place.reshape(-1, nodes, ranks // nodes).sum(2).T.reshape(-1)
        return np.stack([sent, by_place.sum(0)])

    @property
    def imbalance(self) -> Load:
        """NIC, NVLink and the fullest rank's experts over their means."""
        each = self.rows.sum(1)
        experts = tuple((self.rows[each.argmax()] / each.mean()).tolist())
        return Load(_over_mean(self.network), _over_mean(self.nvlink), experts)


def _sums(rows: Floats, group: Ints) -> Floats:
    """(groups, ...) sums of the rows of each group."""
    found = np.zeros((group.max() + 1, *rows.shape[1:]))
    np.add.at(found, group, rows)
    return found


def _over_mean(values: Floats) -> float:
    """The largest over the mean; 1 where there is nothing."""
    return float(values.max() / values.mean()) if values.any() else 1.0


def traffic(picked: Ints, placed: Placed, on_node: int) -> Traffic:
    """Of (sequences, topk, tokens) experts of each token; the ranks have equal parts of the tokens, in their order, and
    `on_node` of them share a node. Copies of an expert take turns."""
    order = np.argsort(placed.expert, kind="stable")
    start = np.concatenate([[0], np.cumsum(np.bincount(placed.expert))])
    rows = np.zeros(len(placed.expert), np.int64)
    to_rank = np.zeros((placed.ranks, placed.ranks), np.int64)
    to_node = np.zeros((placed.ranks, placed.ranks // on_node), np.int64)
    kernels.announce(_visit)
    _visit(picked, start, order, on_node, rows, to_rank, to_node)
    loads = np.bincount(placed.expert, rows, len(start) - 1).astype(np.int64)
    return Traffic(loads, rows.reshape(placed.ranks, -1).astype(float), to_rank.astype(float), to_node.astype(float))


def estimated(tokens: Ints, placed: Placed, on_node: int) -> Traffic:
    """The same where only (experts,) tokens are known, not which experts share one: as if none did."""
    rows, ranks = placed.loads(tokens), placed.ranks
    to_rank = np.tile(rows.sum(1) / ranks, (ranks, 1))
    return Traffic(tokens, rows, to_rank, to_rank.reshape(ranks, -1, on_node).sum(2))


@numba.njit(cache=True, nogil=True)
def _visit(picked: Ints, start: Ints, order: Ints, on_node: int, rows: Ints, to_rank: Ints, to_node: Ints) -> None:
    """order[start[e] : start[e + 1]] are the places of expert e."""
    sequences, topk, tokens = picked.shape
    ranks, nodes = to_node.shape
    last_rank, last_node = np.full(ranks, -1), np.full(nodes, -1)
    for sequence in range(sequences):
        for token in range(tokens):
            number = sequence * tokens + token
            source = number * ranks // (sequences * tokens)
            for k in range(topk):
                expert = picked[sequence, k, token]
                place = order[start[expert] + number % (start[expert + 1] - start[expert])]
                rank = place * ranks // len(rows)
                rows[place] += 1
                to_rank[source, rank] += last_rank[rank] != number
                to_node[source, rank // on_node] += last_node[rank // on_node] != number
                last_rank[rank] = last_node[rank // on_node] = number


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
