"""Balance: how the popularity of experts, their biases and balance losses move from step to step.

Popularity has a preferred value for each expert of each layer, which the language loss pulls to; it is normal of
deviation `skew` and may drift. Every sequence has a topic, which shifts popularity within it by a normal of deviation
`topic`. Selection adds a bias. Each step routes a sample of its tokens, and then

* biases move by the update speed, down where an expert got more than the mean, up where it got less: balancing without
  auxiliary loss (arXiv 2408.15664, DeepSeek-V3's arXiv 2412.19437, section 2.1.2);
* a balance loss, alpha x sum of f P over the experts, moves popularity down its gradient: f an expert's load over the
  mean, P the mean of its normalised affinity; over the batch (`auxiliary`), or within each sequence (`sequence`, which
  weakens topics too). The language loss pulls back, with STIFFNESS. Both are gradients of one sum, followed at RATE.

STIFFNESS and RATE are assumed: nobody publishes them. So what is left of imbalance under a loss is a sketch; what
biases reach, and how fast, depends on neither.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.experts.placement import Placed, Traffic, traffic
from simpipe.simulator.experts.routing import Router, Words, each_layer, picks, route
from simpipe.simulator.kernels import Floats, Ints

STIFFNESS = 3e-4
"""Assumed: of the language loss in each layer, nats per squared affinity: forcing experts of skew 0.05 to be equally
popular would cost about 1e-4 nats a layer, some 0.005 over 58."""

RATE = 10.0
"""Assumed: popularity moved in a step per unit of gradient, so that a loss works over hundreds of steps."""

UNTIL, SPEED = 14.3e12, 0.001
"""DeepSeek-V3's update speed of biases, 0 after so many of its 14.8e12 tokens (arXiv 2412.19437, section 4.2)."""


class Affinities(NamedTuple):
    """How affinities are distributed, in units of an affinity between 0 and 1; all assumed.

    skew: deviation of popularity between experts. topic: of what a sequence adds to it. noise: scale of what a token
    adds (Gumbel). drift: share of the preferred popularity that each step renews.
    """

    skew: float = 0.05
    topic: float = 0.05
    noise: float = 0.1
    drift: float = 1e-4

    def check(self) -> Affinities:
        """Itself. Raises SimpipeError for a value that makes no sense."""
        for name, value in self._asdict().items():
            least, most = (1e-6 if name == "noise" else 0.0), 1.0
            if not (isinstance(value, int | float) and least <= value <= most):
                raise SimpipeError(f"{name} must be a number from {least:g} to {most:g}, not {value!r}")
        if max(self.skew, self.topic) > 10 * self.noise:
            worst = max(self.skew, self.topic)
            raise SimpipeError(f"skew and topic may be 10 x noise = {10 * self.noise:g} at most, not {worst:g}")
        return self


class Strategy(NamedTuple):
    """What balances: update speed of biases until so many tokens are trained, and the weights of the two losses."""

    speed: float = 0.0
    until: float = math.inf
    auxiliary: float = 0.0
    sequence: float = 0.0

    def speed_at(self, tokens: float) -> float:
        """The update speed when so many tokens have been trained on."""
        return self.speed if tokens < self.until else 0.0


STRATEGIES = {
    "none": Strategy(),
    "auxiliary": Strategy(auxiliary=0.003),  # DeepSeek-V2's expert-level loss, arXiv 2405.04434, section 3.1.2
    "sequence": Strategy(sequence=0.0001),
    "bias": Strategy(SPEED, UNTIL),
    "bias+sequence": Strategy(SPEED, UNTIL, sequence=0.0001),  # DeepSeek-V3, arXiv 2412.19437, section 4.2
}
"""The ways to balance; the last is DeepSeek-V3's."""


class Sample(NamedTuple):
    """Tokens of a step that are routed: of so many sequences, so many each."""

    sequences: int
    tokens: int


class Step(NamedTuple):
    """One step: (layers, experts) tokens that each expert got, and the update speed that followed."""

    loads: Ints
    speed: float

    @property
    def violation(self) -> Floats:
        """(layers,) MaxVio: tokens of the fullest expert over the mean, less 1 (arXiv 2408.15664)."""
        return np.asarray(self.loads.max(1) / self.loads.mean(1) - 1)


@dataclass
class Gate:
    """The routers of a model's layers while they train: what moves.

    preferred, popularity, bias: (layers, experts). topics: (layers,) strength of topics over the preferred one.
    seed: the same seed gives the same run, however many threads draw it.
    """

    router: Router
    layers: int
    affinities: Affinities
    seed: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        self.affinities.check()
        self._random = np.random.default_rng(self.seed)
        shape = (self.layers, self.router.experts)
        self.preferred = self.affinities.skew * self._random.standard_normal(shape)
        self.popularity, self.bias = self.preferred.copy(), np.zeros(shape)
        self.topics = np.ones(self.layers)

    @property
    def moved(self) -> Floats:
        """(layers,) deviation of popularity from the preferred one: what a loss costs the router."""
        return np.asarray(np.sqrt(((self.popularity - self.preferred) ** 2).mean(1)))

    def run(self, strategy: Strategy, steps: int, sample: Sample, seen: float, each: float) -> Iterator[Step]:
        """So many steps of `each` tokens, from `seen` tokens on; loads are of a sample of each."""
        for number in range(steps):
            topics, rates, seeds = self._drawn(sample)
            loads = route(self.router, rates, sample.tokens, seeds, self.workers)
            speed = strategy.speed_at(seen + number * each)
            total = loads.sum(1)
            self.bias -= speed * np.sign(total - total.mean(1, keepdims=True))
            if strategy.auxiliary or strategy.sequence:
                self._learn(strategy, topics, loads)
            self._drift()
            yield Step(total, speed)

    def microbatch(self, sample: Sample, placed: Sequence[Placed], on_node: int) -> list[Traffic]:
        """Of one micro-batch, what the GPUs of an expert-parallel group route together, in each layer: its experts
        placed so, so many ranks on a node."""
        _, rates, seeds = self._drawn(sample)

        def layer(number: int) -> Traffic:
            return traffic(picks(self.router, rates[number], sample.tokens, seeds[number]), placed[number], on_node)

        return each_layer(self.layers, self.workers, layer)

    def _drawn(self, sample: Sample) -> tuple[Floats, Floats, Words]:
        """(layers, sequences, experts) topics and rates, and the seed that each layer's tokens are routed with."""
        shape = (self.layers, sample.sequences, self.router.experts)
        topics = self._random.standard_normal(shape)
        seeds = self._random.integers(0, 2**64, self.layers, dtype=np.uint64)
        exponent = self._selected(topics) + (self.bias / self.affinities.noise)[:, None]
        exponent -= exponent.max(2, keepdims=True)
        return topics, np.exp(exponent, out=exponent), seeds

    def _selected(self, topics: Floats) -> Floats:
        """Popularity of each expert in each sequence, over the noise."""
        strength = (self.topics * self.affinities.topic / self.affinities.noise)[:, None, None]
        return (self.popularity / self.affinities.noise)[:, None] + strength * topics

    def _learn(self, strategy: Strategy, topics: Floats, loads: Ints) -> None:
        """One move of popularity and topics down the gradient of the losses."""
        share = np.exp(self._selected(topics))
        share /= share.sum(2, keepdims=True)  # P of each sequence
        over = loads / loads.mean(2, keepdims=True)  # f of each sequence
        batch = np.broadcast_to(over.mean(1, keepdims=True), over.shape)
        force = strategy.auxiliary * _gradient(share, batch) + strategy.sequence * _gradient(share, over)
        force /= self.affinities.noise
        self.popularity -= RATE * (STIFFNESS * (self.popularity - self.preferred) + force.mean(1))
        if self.affinities.topic:
            weaker = (force * topics).mean((1, 2)) / self.affinities.topic
            self.topics -= RATE * (STIFFNESS * (self.topics - 1) + weaker)

    def _drift(self) -> None:
        """Preferred popularity forgets a share of itself and gains as much anew, so that its deviation stays."""
        share = self.affinities.drift
        if not share:
            return
        fresh = self.affinities.skew * self._random.standard_normal(self.preferred.shape)
        change = -share * self.preferred + math.sqrt(2 * share - share**2) * fresh
        self.preferred += change
        self.popularity += change


def _gradient(share: Floats, over: Floats) -> Floats:
    """Of sum f P by the logits of P, a softmax: P (f - sum f P)."""
    return np.asarray(share * (over - (share * over).sum(2, keepdims=True)))


@dataclass(frozen=True, eq=False)
class History:
    """A run of one strategy: (steps, layers) violation and (steps,) update speed; (layers, experts) expected loads, the
    sum over its second half; and how far losses have moved popularity, over the skew."""

    strategy: str
    violation: Floats
    speed: Floats
    expected: Ints
    moved: float


def follow(
    gate: Gate, name: str, strategy: Strategy, steps: int, sample: Sample, seen: float, each: float,
    progress: Callable[[int], None] = lambda step: None,
) -> History:  # fmt: skip
    """Run a strategy and keep what is shown of it. `progress` is told each step done."""
    violation, speed = np.empty((steps, gate.layers)), np.empty(steps)
    expected = np.zeros((gate.layers, gate.router.experts), np.int64)
    for number, step in enumerate(gate.run(strategy, steps, sample, seen, each)):
        violation[number], speed[number] = step.violation, step.speed
        expected += step.loads if 2 * number >= steps - 1 else 0
        progress(number + 1)
    moved = float(gate.moved.mean()) / gate.affinities.skew if gate.affinities.skew else 0.0
    return History(name, violation, speed, expected, moved)
