"""How long whole commands take, from the shell, against an interpreter that does nothing in the same run.

    python benchmarks/commands.py

Each figure is the best of three after one that fills caches, with the largest resident memory of the process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SCENARIO = Path(__file__).parents[1] / "examples" / "deepseek_v3.yaml"
COMMANDS = {
    "simpipe --help": ["--help"],
    "run --json (headline)": ["run", "--json"],
    "run --json, ZB-H1 64 x 4096": ["run", "--schedule", "zb-h1", "--ranks", "64", "--microbatches", "4096", "--json"],
    "run --json, DeepSeek-V3 modelled": ["run", str(SCENARIO), "--json"],
}


def measure(arguments: list[str]) -> tuple[float, float]:
    """Seconds and megabytes of one run of the interpreter."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        process = subprocess.Popen([sys.executable, *arguments], cwd=folder, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
    assert status == 0, arguments
    return seconds, usage.ru_maxrss / 1e3


def main() -> None:
    baseline = min(measure(["-c", "pass"])[0] for _ in range(5))
    print(f"{'python -c pass':<36}{baseline:7.3f} s")
    for label, arguments in COMMANDS.items():
        runs = [measure(["-m", "simpipe", *arguments]) for _ in range(4)][1:]
        seconds, memory = min(run[0] for run in runs), max(run[1] for run in runs)
        print(f"{label:<36}{seconds:7.3f} s {seconds / baseline:7.0f} x {memory:7.0f} MB")


if __name__ == "__main__":
    main()
