"""A schedule of one's own, as a Python file and as schedule text, beside a known one."""

from pathlib import Path

import simpipe

here = Path(__file__).parent
costs = simpipe.Costs(p2p=0.25)

for name, options in (("1f1b", {}), (here / "my_schedule.py", {"extra": 1}), (here / "my_schedule.py", {"extra": 2})):
    program = simpipe.program(name, ranks=4, microbatches=8, **options)
    summary = simpipe.summarize(simpipe.simulate(program, costs))
    print(f"{program.name} {options}: makespan {summary.makespan:g} s, peak {summary.peak_activations:g}")

program = simpipe.program(here / "my_order.csv")
summary = simpipe.summarize(simpipe.simulate(program, costs))
print(f"{program.name}: stages by rank {program.placement}, makespan {summary.makespan:g} s")

try:
    simpipe.Program.from_csv("0F0,0B0,0F1,0B1\n1F1,1B1,1F0,1B0").check()
except simpipe.SimpipeError as error:
    print(error)
