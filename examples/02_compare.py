"""Schedules on one basis: equal ranks and layers. With latency the ranking changes, so simulate it."""

import simpipe
from simpipe.schedules import catalogue

cases = {
    "free links": simpipe.Costs(FB=3),
    "all-to-all hidden": simpipe.Costs(FB=2.4),
    "0.5 s a hop": simpipe.Costs(FB=3, p2p=0.5),
}
print(f"{'':<26}" + "".join(f"{case:>20}" for case in cases) + f"{'peak':>8}{'copies':>8}")
for name in catalogue():
    program = simpipe.program(name, ranks=8, microbatches=20)
    runs = [simpipe.summarize(simpipe.simulate(program, costs)) for costs in cases.values()]
    figures = "".join(f"{run.makespan:>20g}" for run in runs)
    print(f"{name:<26}{figures}{runs[0].peak_activations:>8g}{runs[0].parameter_copies:>8g}")
