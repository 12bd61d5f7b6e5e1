"""How fast many configurations are: DeepSeek-V3's step, 16 ranks x 120 micro-batches, costs from the model.

    python benchmarks/sweep.py [ROWS]

Sweeps a grid of 10,000 rows (or a part of at least ROWS) by the command line with one and with two workers, and prints
rows a second, CPU time a row, and the largest process. Both must give the same bytes.
"""

from __future__ import annotations

import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PLAN = """
base: {model: deepseek-v3, hardware: h800, gpus: 2048, ranks: 16, global_batch: 15360, sequence: 4096,
  microbatch_size: 1, precision: fp8_block}
grid:
  ep: [8, 16, 32, 64, 128]
  recompute: [[], [norms], [norms, swiglu], [norms, mla_up, swiglu], [full]]
  communication_sms: [12, 16, 20, 24, 28]
  overlap: [none, within-slot]
  layers: [even, [4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 4, 1]]
  schedule: [dualpipe, 1f1b, zb-h1, eager-1f1b, gpipe]
  zero: [0, 1]
  moment_bytes: [2, 4]
"""

ROWS = 10_000


def shortened(rows: int) -> str:
    """The plan with fewer values of its first keys, of at least so many rows."""
    plan, left = PLAN, ROWS
    for key, values, fewer in (
        ("ep", "[8, 16, 32, 64, 128]", "[64]"),
        ("communication_sms", "[12, 16, 20, 24, 28]", "[20]"),
        ("recompute", "[[], [norms], [norms, swiglu], [norms, mla_up, swiglu], [full]]", "[[norms, mla_up, swiglu]]"),
    ):
        if left // 5 >= rows:
            plan, left = plan.replace(f"  {key}: {values}", f"  {key}: {fewer}"), left // 5
    return plan


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plan.yaml").write_text(shortened(rows))
        outputs = []
        for workers in (1, 2):
            out = f"{workers}.csv"
            command = [sys.executable, "-m", "simpipe", "sweep", "plan.yaml", "--out", out, "--workers", str(workers)]
            before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            seconds = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            outputs.append((Path(folder) / out).read_bytes())
            count = len(outputs[-1].splitlines()) - 1
            print(
                f"{count} rows, {workers} workers: {seconds:.1f} s, {count / seconds:.1f} rows/s, "
                f"{1e3 * cpu / count:.1f} ms of CPU a row, largest process {after.ru_maxrss / 1e6:.2f} GB"
            )
        assert outputs[0] == outputs[1]


if __name__ == "__main__":
    main()
