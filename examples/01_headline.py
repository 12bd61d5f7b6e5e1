"""The headline: DualPipe on 8 ranks and 20 micro-batches, F = I = W = 1 s and an overlapped F&B of 3 s."""

import simpipe

program = simpipe.program("dualpipe", ranks=8, microbatches=20)
trace = simpipe.simulate(program, simpipe.Costs(F=1, I=1, W=1, FB=3))
summary = simpipe.summarize(trace)

print(f"makespan {summary.makespan:g} s, ideal {summary.ideal:g} s, bubble rate {summary.bubble_rate:.1%}")
for rank in summary.per_rank:
    causes = {cause: seconds for cause, seconds in rank.bubble_causes.items() if seconds}
    print(f"rank {rank.rank}: bubble {rank.bubble_time:g} s {causes}, peak {rank.peak_activations:g} micro-batches")
