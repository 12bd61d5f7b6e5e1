"""Experts out of balance: what DeepSeek-V3's biases do about it, and what stops when their update speed is 0.

256 experts of 4 layers, the popular ones twice as popular as most. Update speed 0.001 until 14.3 of the 14.8 T tokens,
then 0 (https://arxiv.org/abs/2412.19437, section 4.2). `simpipe moe --model deepseek-v3` adds what it costs a step.
"""

import numpy as np

from simpipe.simulator.experts.balance import STRATEGIES, Affinities, Gate, Sample
from simpipe.simulator.experts.placement import place
from simpipe.simulator.experts.routing import Router

router, batch = Router(experts=256, topk=8, groups=8, limit=4), 15360 * 4096
print("strategy       violation at step 1, 100, 200   fullest GPU of 64, NIC   popularity moved")
for name in ("none", "auxiliary", "bias", "bias+sequence"):
    gate = Gate(router, layers=4, affinities=Affinities(skew=0.05, topic=0.05, drift=0.0), seed=0)
    violation = [step.violation.mean() for step in gate.run(STRATEGIES[name], 200, Sample(16, 128), 0, batch)]
    placed = [place(np.ones(256), ranks=64, groups=8)] * 4
    loads = [layer.imbalance for layer in gate.microbatch(Sample(64, 1024), placed, on_node=8)]
    gpu, nic = np.mean([sum(load.experts) for load in loads]), np.mean([load.network for load in loads])
    at = "  ".join(f"{violation[step]:.2f}" for step in (0, 99, 199))
    print(f"{name:<14} {at:>28} {gpu:>13.2f}, {nic:.2f} x mean {gate.moved.mean():>18.3f}")

gate = Gate(router, layers=4, affinities=Affinities(drift=0.0), seed=0)
start, biases = 14.3e12 - 3 * batch, [gate.bias.copy()]
for step in gate.run(STRATEGIES["bias"], 6, Sample(16, 128), start, batch):
    biases.append(gate.bias.copy())
    print(f"update speed {step.speed:g}: biases moved by {np.abs(biases[-1] - biases[-2]).max():g}")
