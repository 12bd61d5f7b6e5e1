"""Costs per stage from a file: an uneven cut makes the bubble, and the report says for whom the ranks wait."""

from pathlib import Path

import simpipe

costs = simpipe.Costs.read(Path(__file__).parent / "uneven_stages.toml")
program = simpipe.program("1f1b", ranks=4, microbatches=16)
trace = simpipe.simulate(program, costs)
summary = simpipe.summarize(trace)
print(f"step {summary.makespan:.3f} s, bubble rate {summary.bubble_rate:.1%}")
for rank in summary.per_rank:
    causes = ", ".join(f"{cause} {seconds:.2f}" for cause, seconds in rank.bubble_causes.items() if seconds > 0.005)
    print(f"rank {rank.rank}: busy {rank.busy:.2f} s, peak {rank.peak_activation_bytes / 1e9:.1f} GB, idle: {causes}")
print("the critical path by kind:", {kind: round(seconds, 2) for kind, seconds in trace.critical_seconds.items()})
