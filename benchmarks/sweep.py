"""How fast many configurations are: DeepSeek-V3's step, 16 ranks x 120 micro-batches, costs from the model.

    python benchmarks/sweep.py [ROWS]

Sweeps a grid of 10,000 rows (or a part of at least ROWS) by the command line: with one worker a part of a fifth and all
of it, with two, and on a Dask cluster of two. Prints rows a second, CPU time a row, and the largest process, which does
not grow with the rows. All must give the same bytes.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

from distributed import LocalCluster

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


MEASURE = """
import json, resource, subprocess, sys, time
start = time.perf_counter()
subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(json.dumps([time.perf_counter() - start, used.ru_utime + used.ru_stime, used.ru_maxrss / 1e6]))
"""


def sweep(folder: Path, plan: str, name: str, *flags: str) -> bytes:
    """What a sweep writes; how fast it was is printed."""
    (folder / "plan.yaml").write_text(plan)
    out = folder / f"{name}.csv"
    command = [sys.executable, "-m", "simpipe", "sweep", "plan.yaml", "--out", out.name, *flags]
    run = subprocess.run([sys.executable, "-c", MEASURE, *command], cwd=folder, check=True, capture_output=True)
    seconds, cpu, gigabytes = json.loads(run.stdout)
    count = len(out.read_bytes().splitlines()) - 1
    print(
        f"{name}: {count} rows in {seconds:.1f} s, {count / seconds:.1f} rows/s, {1e3 * seconds / count:.1f} ms a row; "
        f"the command and its workers: {1e3 * cpu / count:.1f} ms of CPU a row, largest process {gigabytes:.2f} GB",
        flush=True,
    )
    return out.read_bytes()


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else ROWS
    with tempfile.TemporaryDirectory() as path:
        folder, plan = Path(path), shortened(rows)
        sweep(folder, shortened(rows // 5), "1 worker, fewer rows", "--workers", "1")
        outputs = [sweep(folder, plan, f"{workers} worker(s)", "--workers", str(workers)) for workers in (1, 2)]
        with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
            address = cluster.scheduler_address.replace("tcp", "dask")
            outputs.append(sweep(folder, plan, "Dask, 2 workers", "--executor", address))
    assert len(set(outputs)) == 1


if __name__ == "__main__":
    main()
