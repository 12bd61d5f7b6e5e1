"""Predicted and measured steps of a real two-process PyTorch pipeline on this machine's CPU.

    python benchmarks/closed_loop.py

Chunks of a small transformer and single messages are timed by themselves, and from these times alone the spans of
PyTorch's schedules are predicted, which then run (torch.distributed.pipelining over gloo, one thread a process). Both
ranks time their chunks at once, since they share the machine. Needs simpipe[measure]; takes a minute.
"""

from __future__ import annotations

import os

import numpy as np

from simpipe.schedules import program
from simpipe.simulator.costs.model import GroupedAttention, Mlp, Model
from simpipe.simulator.measuring.pipeline import Size, run
from simpipe.simulator.trace import simulate

OURS = {
    "GPipe": "gpipe",
    "1F1B": "1f1b",
    "Interleaved1F1B": "interleaved-1f1b",
    "InterleavedZeroBubble": "interleaved-zb",
    "ZBVZeroBubble": "zb-v",
}
"""PyTorch's schedules, and ours of the same order."""

MODEL = Model(
    name="small",
    source="this benchmark",
    layers=4,
    hidden=256,
    vocabulary=1024,
    attention=GroupedAttention(heads=4, kv_heads=4, head_dim=64),
    mlp=Mlp(intermediate=704),
)


def main() -> None:
    """Measure, predict, run, compare."""
    size = Size()
    print(f"load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores; {size}")
    print(f"{'schedule':<24}{'F I W B of stage 1, ms':>28}{'predicted':>12}{'measured':>11}{'range':>16}{'error':>8}")
    errors = []
    for ran in run(MODEL, list(OURS), size):
        order = program(OURS[ran.name], ranks=size.ranks, microbatches=size.microbatches)
        assert order == ran.program, f"{ran.name} ran in another order than {OURS[ran.name]}"
        predicted, spans = simulate(order, ran.costs).makespan, ran.spans
        errors.append(predicted / float(np.median(spans)) - 1)
        alone = " ".join(f"{seconds * 1e3:.1f}" for seconds in ran.seconds[1])
        print(
            f"{ran.name:<24}{alone:>28}{predicted:>10.3f} s{np.median(spans):>9.3f} s"
            f"{min(spans):>8.3f}-{max(spans):.3f} s{errors[-1]:>+8.1%}"
        )
    print(f"mean absolute error {np.abs(errors).mean():.1%}")


if __name__ == "__main__":
    main()
