"""The Zero Bubble paper's simulated bubble rates, from its measured times of a 14.6B GPT on 16 A100 pipelines.

Qi et al., https://arxiv.org/abs/2401.10241, Tables 5 and 9 (there B is the backward for the input, our I; times
in ms). Its rate is by span: it ignores the stagger at the start.
"""

import simpipe

costs = simpipe.Costs(F=11.347, I=11.248, W=8.132, p2p=0.377)
published = {"1f1b": 0.2552, "zb-h1": 0.1397, "zb-h2": 0.0672}
for name, rate in published.items():
    summary = simpipe.summarize(simpipe.simulate(simpipe.program(name, ranks=16, microbatches=48), costs))
    by_span, by_makespan = summary.span_bubble_rate, summary.bubble_rate
    print(f"{name:<6} published {rate:.4f}, simulated {by_span:.4f} (by makespan {by_makespan:.4f})")
