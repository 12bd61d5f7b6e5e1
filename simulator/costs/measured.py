"""Operations: the per-operation table of a production pipeline run, as costs per step and worker.

A row is one operation: `dp_rank` (a worker pipeline, one of the data-parallel copies), `stage`, `step`, `optype`
(`forward-compute` or `backward-compute`; others are ignored, since the durations of sends, receives and
collectives include waiting), `start_ts` and `duration` in seconds, `mb_id`. Further columns are ignored. The
table comes as .parquet, which needs pyarrow, or as .csv with these columns. The format is that of ByteDance's
StragglerAnalysis artifact (OSDI 2025).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from simpipe.simulator.costs.given import Costs
from simpipe.simulator.errors import CostsError
from simpipe.simulator.kernels import Floats, Ints

if TYPE_CHECKING:
    import pandas as pd

OPTYPES = ("forward-compute", "backward-compute")
"""The operations that are read, in the order of the arrays: F, then the full backward B."""

Axis = Literal["step", "worker"]

KEYS = ("step", "dp_rank", "stage", "mb_id")
COLUMNS = (*KEYS, "optype", "start_ts", "duration")

RESOLUTION = 1e-3
"""Start times must be resolved to this share of a step's span; float32 is too coarse for a clock time in seconds."""


@dataclass(frozen=True, eq=False)
class Operations:
    """The computations of some steps of a run.

    source: the file. steps: (steps,) and workers: (workers,) as the table numbers them, ascending; a worker is a
    dp_rank, which runs all stages of its own pipeline. seconds, start: (steps, workers, 2, stages, micro-batches)
    duration and start time of each F (index 0) and B (index 1), in seconds.
    """

    source: str
    steps: Ints
    workers: Ints
    seconds: Floats
    start: Floats

    @staticmethod
    def from_frame(frame: pd.DataFrame, source: str = "the table") -> Operations:
        """Check a table and take its computations. Raises CostsError with the row or the missing operation."""
        frame = _computations(frame, source)
        rows = frame.index.to_numpy()
        start, seconds = (_numbers(frame, name, source) for name in ("start_ts", "duration"))
        _refuse(frame, "duration", seconds < 0, source, "0 or more seconds")
        step, worker, stage, microbatch = (_whole(frame, name, source) for name in KEYS)
        _check_precision(frame, float(seconds.max()), source)
        (steps, at_step), (workers, at_worker) = (np.unique(key, return_inverse=True) for key in (step, worker))
        stages, microbatches = _count(stage, "stage", source), _count(microbatch, "mb_id", source)
        shape = (len(steps), len(workers), len(OPTYPES), stages, microbatches)
        backward = frame["optype"].to_numpy() == OPTYPES[1]
        places = np.stack([at_step, at_worker, backward, stage, microbatch]).astype(np.int64)
        order = np.lexsort(places[::-1])
        _check_complete(source, places[:, order], shape, steps, workers, rows[order])
        found = Operations(source, steps, workers, seconds[order].reshape(shape), start[order].reshape(shape))
        idle = np.argwhere(found.seconds.max(axis=(2, 3, 4)) == 0)
        if len(idle):
            where = f"step {steps[idle[0, 0]]}, dp_rank {workers[idle[0, 1]]}"
            raise CostsError(f"{source}: all durations of {where} are 0 s; some must be more")
        return found

    @property
    def stages(self) -> int:
        return int(self.seconds.shape[3])

    @property
    def microbatches(self) -> int:
        return int(self.seconds.shape[4])

    @property
    def spans(self) -> Floats:
        """(steps, workers) seconds from the first computation's start to the last one's end, as measured."""
        inside = (2, 3, 4)
        return np.asarray((self.start + self.seconds).max(axis=inside) - self.start.min(axis=inside), float)

    def span(self, step: int, worker: int) -> float:
        """Seconds of a step of a worker pipeline from its first computation's start to its last one's end."""
        return float(self.spans[self.at("step", step), self.at("worker", worker)])

    def costs(self, step: int, worker: int) -> Costs:
        """F and B of a step of a worker pipeline, per stage and micro-batch. Raises CostsError for an unknown one."""
        forward, backward = self.seconds[self.at("step", step), self.at("worker", worker)].tolist()
        return Costs(F=forward, B=backward)

    def some_steps(self, which: slice) -> Operations:
        """The same run with only some of its steps, by their place."""
        return replace(self, steps=self.steps[which], seconds=self.seconds[which], start=self.start[which])

    def at(self, what: Axis, value: int) -> int:
        """The index of a `step` or a `worker` (dp_rank) by its number in the table. Raises CostsError."""
        name, known = ("step", self.steps) if what == "step" else ("dp_rank", self.workers)
        found = np.flatnonzero(known == value)
        if len(found) == 0:
            raise CostsError(f"{self.source} has no {name} {value}; it has {_listed(known.tolist())}")
        return int(found[0])


def read(path: str | Path) -> Operations:
    """Read a .parquet or .csv table of operations. Raises CostsError with file and row."""
    return Operations.from_frame(_frame(Path(path)), str(path))


def _frame(path: Path) -> pd.DataFrame:
    import pandas as pd

    kind = path.suffix.lower()
    if kind not in (".parquet", ".csv"):
        raise CostsError(f"{path} is no table of operations; its name ends in .parquet or .csv")
    if not path.is_file():
        raise CostsError(f"{path} is no file")
    try:
        if kind == ".csv":
            return pd.read_csv(path, low_memory=False)
        return pd.read_parquet(path, engine="pyarrow")
    except ImportError:
        raise CostsError(f"{path}: reading parquet needs pyarrow; install simpipe[parquet], or write .csv") from None
    except pd.errors.EmptyDataError:
        raise CostsError(f"{path} is empty; it takes the columns {', '.join(COLUMNS)}") from None
    except (OSError, ValueError, NotImplementedError) as error:  # pyarrow's and pandas' own are ValueErrors
        detail = getattr(error, "strerror", None) or " ".join(str(error).split())[:120]
        raise CostsError(f"{path} cannot be read as {kind[1:]}: {detail}") from None


def _computations(frame: pd.DataFrame, source: str) -> pd.DataFrame:
    """The rows that are read, their index counting the rows of the table from 0."""
    missing = [name for name in COLUMNS if name not in frame.columns]
    if missing:
        raise CostsError(f"{source} has no column {missing[0]!r}; it takes the columns {', '.join(COLUMNS)}")
    frame = frame[list(COLUMNS)].reset_index(drop=True)
    frame["optype"] = frame["optype"].astype(str)
    found = frame[frame["optype"].isin(OPTYPES)]
    if len(found) == 0:
        raise CostsError(f"{source} has no computation; it takes rows whose optype is {' or '.join(OPTYPES)}")
    return found


def _numbers(frame: pd.DataFrame, name: str, source: str) -> Floats:
    """A column as finite float64."""
    import pandas as pd

    column = frame[name]
    if column.dtype.kind in "bcmM":
        raise CostsError(f"{source}: column {name!r} holds {column.dtype}; it takes numbers")
    if column.dtype == object:  # pandas fails at whole numbers that no float holds
        column = column.mask(column.map(lambda value: isinstance(value, int) and value.bit_length() > 1023))
    values = pd.to_numeric(column, errors="coerce").to_numpy(np.float64, na_value=np.nan)
    _refuse(frame, name, ~np.isfinite(values), source, "a finite number")
    return np.asarray(values, float)


def _whole(frame: pd.DataFrame, name: str, source: str) -> Ints:
    """A column as whole numbers, 0 or more; 2**53 and more would not be exact."""
    values = _numbers(frame, name, source)
    _refuse(frame, name, (values % 1 != 0) | (values < 0) | (values >= 2**53), source, "a whole number, 0 or more")
    return values.astype(np.int64)


def _refuse(frame: pd.DataFrame, name: str, wrong: Any, source: str, right: str) -> None:
    """Complain of the first wrong value of a column; rows count from 1, below the header."""
    if np.any(wrong):
        at = int(np.flatnonzero(wrong)[0])
        value = " ".join(str(frame[name].iloc[at]).split())[:40]
        raise CostsError(f"{source}, row {int(frame.index[at]) + 1}: {name} is {value}; it takes {right}")


def _check_precision(frame: pd.DataFrame, longest: float, source: str) -> None:
    """A float32 start of 1.7e9 s, seconds since 1970, is a multiple of 128 s: no span can be read from it.

    longest: seconds of the longest operation, which a span cannot be below.
    """
    starts = frame["start_ts"].to_numpy()
    if starts.dtype != np.float32:
        return
    by_step = frame.groupby("step", observed=True)["start_ts"]
    span = max(float((by_step.max() - by_step.min()).max()), longest)
    multiple = float(np.spacing(np.abs(starts).max()))
    if multiple > RESOLUTION * span:
        raise CostsError(
            f"{source}: start_ts is float32, which counts in multiples of {multiple:g} s at {float(starts.max()):g} s; "
            "count from the start of each step or write float64"
        )


def _count(values: Ints, name: str, source: str) -> int:
    """How many stages or micro-batches there are, each number from 0 on being there."""
    found = np.unique(values)
    if found[-1] != len(found) - 1:
        gap = int(np.flatnonzero(found != np.arange(len(found)))[0])
        raise CostsError(f"{source} has no {name} {gap}; it has {_listed(found.tolist())}, and they count from 0")
    return len(found)


def _check_complete(source: str, columns: Ints, shape: tuple[int, ...], steps: Ints, workers: Ints, rows: Ints) -> None:
    """Every operation is there once. columns: (5, operations) indices in `shape`, sorted; rows: of the file."""

    def place(step: int, worker: int, kind: int, stage: int, microbatch: int) -> str:
        return (f"{source}: step {steps[step]}, dp_rank {workers[worker]}, stage {stage} has "
                f"{{}} {OPTYPES[kind]} of micro-batch {microbatch}")  # fmt: skip

    once = f"it takes one row for each of {shape[3]} stages x {shape[4]} micro-batches of every step and dp_rank"
    doubled = np.flatnonzero((columns[:, 1:] == columns[:, :-1]).all(axis=0))
    if len(doubled):
        at = int(doubled[0])
        first, second = sorted((rows[at] + 1, rows[at + 1] + 1))
        raise CostsError(f"{place(*columns[:, at].tolist()).format('a second')} (rows {first} and {second}); {once}")
    index = np.arange(columns.shape[1] + 1)
    expected = []
    for size in shape[:0:-1]:
        expected.append(index % size)
        index = index // size
    wanted = np.stack([index, *expected[::-1]])
    wrong = np.flatnonzero((wanted[:, :-1] != columns).any(axis=0))
    at = int(wrong[0]) if len(wrong) else columns.shape[1]
    if wanted[0, at] < shape[0]:
        raise CostsError(f"{place(*wanted[:, at].tolist()).format('no')}; {once}")


def _listed(values: Sequence[int], most: int = 8) -> str:
    shown = ", ".join(map(str, values[:most]))
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"
