"""DeepSeek-V3's step: DualPipe, 16 ranks x 120 micro-batches. What share of it is bubble?

Twice, from published figures. First the durations of the training trace (see deepseek_v3_trace.toml). Then the
component times of a step in "Insights into DeepSeek-V3", https://arxiv.org/abs/2505.09343, Table 4: seconds in
forwards alone (1F), backwards for the input alone (1B), backwards for the weights (1W), overlapped pairs (1F1B)
and the optimizer, divided by how many of each a rank runs on average. In both, links are free.
"""

from pathlib import Path

import numpy as np

import simpipe
from simpipe.simulator.graph import WORDS

program = simpipe.program("dualpipe", ranks=16, microbatches=120)
trace_costs = simpipe.Costs.read(Path(__file__).parent / "deepseek_v3_trace.toml")

published = {"F": 1.13, "I": 1.99, "W": 0.48, "F&B": 13.95}
words = simpipe.simulate(program).graph.word[: program.slots]
slots = {word: np.count_nonzero(words == number) / program.ranks for number, word in enumerate(WORDS)}
alone = {"F": slots["F"], "I": slots["I"] + slots["B"], "W": slots["W"] + slots["B"], "F&B": slots["F&B"]}
each = {word.replace("&", ""): published[word] / alone[word] for word in published}
component_costs = simpipe.Costs(**each, optimizer=0.29)
print("a rank runs alone, on average:", {word: round(float(count), 1) for word, count in alone.items()})

for label, costs in (("training trace", trace_costs), ("component times", component_costs)):
    summary = simpipe.summarize(simpipe.simulate(program, costs))
    total = summary.bubble_time
    causes = {cause: f"{seconds / total:.0%}" for cause, seconds in summary.bubble_causes.items() if seconds}
    print(label, {word: f"{seconds * 1e3:.1f} ms" for word, seconds in costs.numbers().items()})
    print(f"  step {summary.makespan:.2f} s, of all ranks' time {summary.bubble_rate:.1%} is bubble: {causes}")
    print(f"  peak {summary.peak_activations:g} micro-batches")
