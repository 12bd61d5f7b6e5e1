"""Fit the constants of software stacks and machines that no source gives, each on half of a family's rows.

    python benchmarks/fit_stacks.py [NAME...]

Prints, for each fit, the figures to write into its profiles, how far off they are (one standard deviation, from the
residuals), the rows they saw, and the errors on these and on the others. Seen is every second of a machine's rows, in
the order of their names, which say model and layout before batch and size: so each layout is seen, if not each batch.
Residuals are logarithms of predicted over measured; a robust loss keeps outliers from pulling.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import least_squares

from simpipe.simulator.costs.cluster import load_cluster
from simpipe.simulator.costs.stack import load_stack
from simpipe.simulator.validation.cases import FOLDER, Case, Family, cases, families
from simpipe.simulator.validation.predict import PREDICT, measured_seconds

LIMIT = 83
"""Rows of a family that a fit sees at most: every n-th of the second ones."""

SCALE = 0.05
"""Residual from which on a row pulls less: soft-L1."""

STEP = 0.1
"""Relative step of the parameters for derivatives: times are not smooth in them, they change which task is last."""


class Fit(NamedTuple):
    """What is fitted on which families. parameters: key paths in the stack's or the machine's profile, with a start."""

    stack: str
    machine: str
    families: tuple[str, ...]
    parameters: dict[str, float]


FITS = {
    "vtrain": Fit(
        "vtrain",
        "machines/a100-half-nics.toml",
        ("vtrain-one-node",),
        {"host.launch": 60e-6, "unaligned_rate": 0.4},
    ),
    "megatron-2023": Fit("megatron-2023", "machines/a100-roce.toml", ("zero-bubble",), {"host.sync": 300e-6}),
    "megatron-core": Fit(
        "megatron-core",
        "b200",
        ("simumax-b200",),
        {"gpu.sustained": 0.9, "host.launch": 40e-6},
    ),
    "gb200": Fit("nemo", "gb200-nvl72", ("dgxc",), {"gpu.sustained": 0.8}),
    "h100-500w": Fit("torchtitan-compiled", "machines/h100-500w.toml", ("torchtitan",), {"gpu.sustained": 0.9}),
}


def rows(fit: Fit, seen: bool) -> list[tuple[Family, Case]]:
    """The rows of a fit's machine that it sees, or as many of the others."""
    found = []
    for key in fit.families:
        family = families()[key]
        own = [case for case in cases(family) if case.settings["hardware"] == fit.machine]
        half = sorted(own, key=lambda case: case.name)[seen::2]
        found += [(family, case) for case in half[:: -(-len(half) // LIMIT)]]
    return found


def changed(of: Any, values: dict[str, float]) -> Any:
    """A profile with the figures at some key paths replaced."""
    for path, value in values.items():
        part, _, name = path.partition(".")
        if hasattr(of, part):
            of = replace(of, **{part: replace(getattr(of, part), **{name: value}) if name else value})
    return of


def residuals(fit: Fit, seen: Sequence[tuple[Family, Case]], logs: Sequence[float]) -> NDArray[np.float64]:
    """Logarithms of predicted over measured with the parameters whose logarithms are given."""
    values = dict(zip(fit.parameters, np.exp(logs).tolist(), strict=True))
    machine = FOLDER / fit.machine if fit.machine.endswith(".toml") else fit.machine
    fitted = {"stack": changed(load_stack(fit.stack), values), "hardware": changed(load_cluster(machine), values)}
    found = []
    for family, case in seen:
        settings = {**case.settings, **fitted}
        assert case.measured is not None
        measured = measured_seconds(settings, case.measured, case.unit)
        found.append(float(np.log(PREDICT[family.kind](settings).seconds / measured)))
    return np.array(found)


def show(name: str, fit: Fit) -> None:
    seen = rows(fit, seen=True)
    start = np.log(list(fit.parameters.values()))
    upper = [0.0 if path == "gpu.sustained" else np.inf for path in fit.parameters]
    best = least_squares(
        partial(residuals, fit, seen), start, loss="soft_l1", f_scale=SCALE, diff_step=STEP, max_nfev=8,
        bounds=(-np.inf, np.array(upper) + 1e-9),
    )  # fmt: skip
    freedom = max(1, len(seen) - len(start))
    covariance = np.linalg.pinv(best.jac.T @ best.jac) * float(np.sum(best.fun**2)) / freedom
    numbers = ", ".join(str(row) for row in sorted(case.row for _, case in seen))
    print(f"{name}: {len(seen)} rows of {', '.join(fit.families)}: {numbers}")
    for path, log, deviation in zip(fit.parameters, best.x, np.sqrt(np.diag(covariance)), strict=True):
        print(f"  {path} = {np.exp(log):.4g} (x / {np.exp(deviation):.2f})")
    for label, errors in (("seen", best.fun), ("others", residuals(fit, rows(fit, seen=False), best.x))):
        print(f"  {label}: bias {np.expm1(errors).mean():+.1%}, mean {np.abs(np.expm1(errors)).mean():.1%}")


if __name__ == "__main__":
    for name in sys.argv[1:] or FITS:
        show(name, FITS[name])
