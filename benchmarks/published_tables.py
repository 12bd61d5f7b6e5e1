"""The validation tables that are made from the published files in ../shared/measured, so that they can be made again.

    python benchmarks/published_tables.py

Writes, in simulator/validation/published: gemm.csv and collectives.csv, timings that the shipped curves were not fitted
to; production_operations.csv and production_known.csv, what the first halves of two production runs' steps took, and
production_later.csv, the spans of their second halves.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parent))

import shipped_fits

from simpipe.simulator.calibration import curves
from simpipe.simulator.calibration.timings import SHAPES, Timings, parse
from simpipe.simulator.costs import measured
from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.validation.cases import FOLDER

MACHINES = ("a100", "h100")
RUNS = {"ST": "pipeline_trace_ST.parquet", "AR": "pipeline_trace_AR_first_half.parquet"}

LEAST_FLOP, LEAST_ROWS, OF_A_MACHINE = 1e10, 512, 150
"""Products that training does not go below, and how many of each machine's are carried."""

LEAST_BYTES = 2**20
"""The same of collectives."""


def left_out(of: Callable[[str], Timings], machine: str, format: str) -> pd.DataFrame:
    """The timings of a machine that its curve was not fitted to."""
    table = of(machine).table
    table = table[table["format"] == format].reset_index(drop=True)
    (curve,) = curves.fit(Timings(table), load_cluster(machine))
    return table.assign(hardware=machine, unit="s", work=curve.problem.work)[curve.tested]


def gemm() -> pd.DataFrame:
    """Evenly chosen of those left out, in the order of m, n and k."""
    parts = []
    for machine in MACHINES:
        table = left_out(shipped_fits.gemm, machine, "bf16")
        sizes = np.array([parse(shape, SHAPES["gemm"], {"output_bytes": 2})[:3] for shape in table["shape"]])
        table = table.assign(m=sizes[:, 0], n=sizes[:, 1], k=sizes[:, 2])
        table = table[(table["work"] >= LEAST_FLOP) & (table["m"] >= LEAST_ROWS)].sort_values(["m", "n", "k"])
        table = table.iloc[np.linspace(0, len(table) - 1, OF_A_MACHINE).round().astype(int)]
        products = zip(table["m"], table["k"], table["n"], strict=True)
        parts.append(table.assign(case=[f"{m} x {k} by {k} x {n}, {machine}" for m, k, n in products]))
    together = pd.concat(parts).rename(columns={"seconds": "measured"})
    return together[["case", "hardware", "m", "n", "k", "format", "measured", "unit"]]


def collectives() -> pd.DataFrame:
    """All of those left out from 1 MiB on, the median where several releases of NCCL were timed."""
    parts = []
    for machine in MACHINES:
        table = left_out(shipped_fits.collectives, machine, "")
        table = table[table["bytes"] >= LEAST_BYTES]
        by = ["hardware", "operator", "ranks", "bytes", "unit"]
        parts.append(table.groupby(by, as_index=False)["seconds"].median())
    together = pd.concat(parts).rename(columns={"seconds": "measured", "operator": "collective", "ranks": "group"})
    together = together.astype({"bytes": int, "group": int})
    together["case"] = [
        f"{row.collective} of {row.bytes >> 20} MiB, {row.group} GPUs, {row.hardware}" for row in together.itertuples()
    ]
    return together[["case", "hardware", "collective", "group", "bytes", "measured", "unit"]]


def production() -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """What operations of the known steps took, the known spans, and the later ones."""
    operations, spans = [], []
    for run, file in RUNS.items():
        found = measured.read(shipped_fits.MEASURED / file)
        half = len(found.steps) // 2
        for i, j, kind, stage in np.ndindex(half, *found.seconds.shape[1:4]):
            took = " ".join(f"{1e3 * seconds:.1f}" for seconds in found.seconds[i, j, kind, stage])
            operations.append((run, found.workers[j], found.steps[i], stage, "FB"[kind], took))
        for i, j in np.ndindex(found.spans.shape):
            step, worker, span = found.steps[i], found.workers[j], f"{found.spans[i, j]:.4f}"
            case = f"{run}, step {step}, pipeline {worker}"
            spans.append((case, run, worker, step, span, "s", i >= half))
    names = ["case", "run", "dp_rank", "step", "measured", "unit", "later"]
    table = pd.DataFrame(spans, columns=names)
    known, later = (part.drop(columns="later") for part in (table[~table["later"]], table[table["later"]]))
    return pd.DataFrame(operations, columns=["run", "dp_rank", "step", "stage", "kind", "milliseconds"]), known, later


def tables() -> dict[str, pd.DataFrame]:
    """Every table by its file."""
    operations, known, later = production()
    return {
        "gemm.csv": gemm(),
        "collectives.csv": collectives(),
        "production_operations.csv": operations,
        "production_known.csv": known,
        "production_later.csv": later,
    }


def text(table: pd.DataFrame) -> str:
    """A table as its file holds it."""
    return str(table.to_csv(index=False, float_format="%.4g", lineterminator="\n"))


def main() -> None:
    for name, table in tables().items():
        (FOLDER / name).write_text(text(table), encoding="utf-8")
        print(f"{name}: {len(table)} rows")


if __name__ == "__main__":
    main()
