"""How fast calibration is: 100,000 kernel timings to a profile, and a large Kineto trace to its kernels.

    python benchmarks/calibration.py [MB]

Each runs in a process of its own: its seconds by the clock and of the processor, which tell how busy the machine was,
and its peak memory; an empty Python stands beside them. The trace has MB megabytes (500): kernels with launches,
operators and flows, as PyTorch writes them.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from simpipe.simulator.costs.cluster import load_cluster

TIMINGS = 100_000


def write_timings(path: Path) -> None:
    """GEMMs, grouped ones and memory-bound kernels of an H100, with 5 % noise."""
    random, h100 = np.random.default_rng(0), load_cluster("h100")
    lines = ["operator,shape,format,bytes,seconds"]
    known: dict[tuple[int, int, int], float] = {}
    for number in range(TIMINGS):
        noise = float(np.exp(0.05 * random.standard_normal()))
        if number % 3:
            size = tuple(int(2 ** random.integers(6, 14)) for _ in range(3))
            known.setdefault(size, h100.gemm_seconds(*size, "bf16"))
            lines.append("gemm,m={} n={} k={},bf16,,{}".format(*size, known[size] * noise))
        else:
            moved = float(10 ** random.uniform(5, 9))
            lines.append(f"memory_bound,,,{moved:.0f},{h100.memory_seconds(moved) * noise}")
    path.write_text("\n".join(lines) + "\n")


def write_trace(path: Path, size: float) -> None:
    """A trace of `size` bytes."""
    with path.open("w") as file:
        file.write(
            '{"schemaVersion": 1, "deviceProperties": [{"id": 0, "name": "H100", "numSms": 132}], "traceEvents": ['
        )
        number, written = 0, 0
        while written < size:
            at = 50.0 * number
            host = {"ph": "X", "pid": 1, "tid": 1, "ts": at}
            args = {"External id": number, "correlation": number}
            place = {"device": 0, "context": 1, "stream": 7, "queued": 0, "blocks per SM": 1.0, "grid": [128, 1, 1]}
            name = "void at::native::vectorized_elementwise_kernel<4, at::native::CUDAFunctor_add<c10::BFloat16>>"
            events = [
                host | {"cat": "cpu_op", "name": "aten::add", "dur": 30, "args": args},
                host | {"cat": "cuda_runtime", "name": "cudaLaunchKernel", "dur": 5, "args": args},
                {"ph": "s", "cat": "ac2g", "name": "ac2g", "id": number, "pid": 1, "tid": 1, "ts": at},
                {"ph": "X", "cat": "kernel", "name": name, "pid": 0, "tid": 7, "ts": at + 9, "dur": 40,
                 "args": args | place},
            ]  # fmt: skip
            text = ("," if number else "") + ",".join(map(json.dumps, events))
            file.write(text)
            written += len(text)
            number += 1
        file.write("]}")


def timed(label: str, code: str) -> None:
    """Run Python in its own process; print seconds and peak memory."""
    told = "import resource as r; own = r.getrusage(r.RUSAGE_SELF); print(own.ru_utime + own.ru_stime, own.ru_maxrss)"
    started = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", f"{code}\n{told}"], capture_output=True, text=True, check=True)
    seconds = time.perf_counter() - started
    processor, peak = map(float, done.stdout.split()[-2:])
    print(f"{label:<44}{seconds:8.2f} s {processor:8.2f} s of processor {peak / 1e6:8.2f} GB")


def main() -> None:
    size = 1e6 * float(sys.argv[1] if len(sys.argv) > 1 else 500)
    with tempfile.TemporaryDirectory() as folder:
        table, trace = Path(folder) / "timings.csv", Path(folder) / "trace.json"
        write_timings(table)
        write_trace(trace, size)
        timed("empty Python", "")
        calibrate = "from simpipe.simulator.calibration.calibrate import calibrate"
        timed(f"{TIMINGS:,} timings to a profile", f"{calibrate}; calibrate([{str(table)!r}], 'h100')")
        read = "from simpipe.simulator.calibration import classes, readers"
        timed(f"a trace of {size / 1e6:.0f} MB read", f"{read}; readers.read({str(trace)!r}, classes.read())")


if __name__ == "__main__":
    main()
