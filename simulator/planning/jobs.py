"""Jobs: the rows that a table or a plan asks for, run to an output, resumed where it was left."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simpipe.simulator.costs.model_files import SHAPE_KEYS
from simpipe.simulator.errors import nearest
from simpipe.simulator.planning import assumptions, execution, tables
from simpipe.simulator.planning.evaluation import COLUMNS, EXTRA_KEYS, OK, evaluated
from simpipe.simulator.planning.execution import Journal
from simpipe.simulator.planning.tables import Row, Sheet, Table, TableError
from simpipe.simulator.scenario import KEYS, PATHS, anchored

KNOWN = {*KEYS, *SHAPE_KEYS, *EXTRA_KEYS}
"""Columns that mean something; others are carried through."""


@dataclass(frozen=True)
class Job:
    """Rows to evaluate. columns: of the input, in order. row: one by its number. mark: a hash of all results follow
    from. folder: where relative paths in rows start. objective: the column that tells which row is best, "" for none.
    """

    columns: Sequence[str]
    count: int
    row: Callable[[int], Row]
    mark: str
    folder: str
    objective: str = ""


@dataclass
class Tally:
    """What became of the rows so far. best: the objective of the best row that fits into memory, and its number."""

    objective: str = ""
    ok: int = 0
    too_large: int = 0
    impossible: int = 0
    resumed: int = 0
    best: tuple[float, int] | None = None

    def add(self, number: int, result: Row) -> None:
        """Count a row's results."""
        seconds = result.get("step_time_s")
        self.ok += result["status"] == OK
        self.too_large += seconds is not None and result["status"] != OK
        self.impossible += seconds is None
        value = result.get(self.objective)
        if (
            result["status"] == OK
            and value is not None
            and (self.best is None or self._key(value, number) < self._key(*self.best))
        ):
            self.best = (value, number)

    def _key(self, value: float, number: int) -> tuple[float, int]:
        return (-value if COLUMNS[self.objective].better == "most" else value, number)


def of_table(table: Table, path: str | Path) -> tuple[Job, list[str]]:
    """The job of a spreadsheet, and remarks on columns that look misspelt. Raises TableError."""
    known = [name for name in table.columns if name in KNOWN]
    if not known:
        first = table.columns[0]
        raise TableError(f"{path} has no column of a scenario; its first, {first[:40]!r}: {nearest(first, KEYS)}")
    columns = [name for name in table.columns if name not in COLUMNS]
    remarks = [
        f"column {name} is carried through; {hint}"
        for name in columns
        if name not in KNOWN and (hint := nearest(name, KNOWN)).startswith("did")
    ]
    replaced = [name for name in table.columns if name in COLUMNS]
    if replaced:
        others = f"s {replaced[0]} to {replaced[-1]} are" if replaced[1:] else f" {replaced[0]} is"
        remarks.append(f"column{others} of results and computed anew")
    folder = os.path.abspath(Path(path).parent)
    rows = [{name: row[name] for name in columns} for row in table.rows]
    mark = execution.fingerprint(rows, (name for row in rows for name in files(row, folder)))
    return Job(columns, len(rows), rows.__getitem__, mark, folder), remarks


def files(row: Row, folder: str) -> Iterator[str]:
    """The files that a row names."""
    for key in (*PATHS, "costs"):
        path = anchored(str(row.get(key) or ""), folder).split(":")[0]
        if os.path.isabs(path) and os.path.isfile(path):
            yield path


Writer = Callable[[str, Sequence[str], Iterable[Row], Sheet], None]


def run(
    job: Job, outs: Sequence[str], executor: Executor, workers: int, heard: Callable[[Tally], None] = lambda _: None,
    write: Writer = tables.write,
) -> Tally:  # fmt: skip
    """Evaluate all rows that the journal beside the first output does not have, and write the outputs.

    heard: called after each row. write: called for each output with the columns and all rows. Raises OutputError.
    """
    path = Path(outs[0] + ".journal")
    tally = Tally(job.objective)
    columns = [*job.columns, *COLUMNS]
    with Journal(path, job.mark, job.count) as journal:
        for number in range(job.count):
            if number in journal:
                tally.add(number, journal[number])
                tally.resumed += 1
        if journal.dropped:
            print(f"simpipe: {path} was of other rows or another version: it starts anew", file=sys.stderr)
        heard(tally)

        def done(number: int, result: Row) -> None:
            journal.add(number, result)
            tally.add(number, result)
            heard(tally)

        tasks = (
            (number, anchored_row(job.row(number), job.folder)) for number in range(job.count) if number not in journal
        )
        execution.run(_evaluate, tasks, executor, workers, done)
        for out in outs:
            write(out, columns, _Results(job, journal), sheet(job.row(number) for number in range(job.count)))
    journal.remove()
    return tally


def sheet(rows: Iterable[Row]) -> Sheet:
    """How results look in a spreadsheet, and what they rest on."""
    return Sheet({name: column.format for name, column in COLUMNS.items()}, assumptions.of(rows))


def _evaluate(rows: list[Row]) -> list[Row]:
    """What a worker does."""
    return [evaluated(row) for row in rows]


def anchored_row(row: Row, folder: str) -> Row:
    """The columns of a row that mean something, its paths absolute."""
    row = {key: value for key, value in row.items() if key in KNOWN}
    for key in (*PATHS, "costs"):
        if isinstance(row.get(key), str):
            row[key] = anchored(row[key], folder)
    return row


class _Results:
    """Input and result of every row in order, read from the journal each time they are gone through."""

    def __init__(self, job: Job, journal: Journal) -> None:
        self.job, self.journal = job, journal

    def __iter__(self) -> Iterator[Row]:
        for number in range(self.job.count):
            yield self.job.row(number) | self.journal[number]


@contextmanager
def progress(job: Job) -> Iterator[Callable[[Tally], None]]:
    """A bar on stderr with the rate, the time left and the best so far; nothing where stderr is no terminal."""
    if not sys.stderr.isatty():
        yield lambda tally: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[rate]}"), TimeRemainingColumn(),
        TextColumn("{task.fields[best]}"),
    )  # fmt: skip
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("", total=job.count, rate="", best="")

        def show(tally: Tally) -> None:
            best = f"best {job.objective} {tally.best[0]:.4g}" if tally.best else ""
            speed = bar.tasks[0].speed
            done = tally.ok + tally.too_large + tally.impossible
            bar.update(task, completed=done, best=best, rate=f"{speed:.1f}/s" if speed else "")

        yield show


def facts(job: Job, tally: Tally) -> dict[str, Any]:
    """What a run came to, as plain values."""
    counts = {"rows": job.count, "ok": tally.ok, "too_large": tally.too_large, "impossible": tally.impossible}
    best = tally.best and {job.objective: tally.best[0], "row": job.row(tally.best[1])}
    return counts | {"resumed": tally.resumed, "best": best}


def summary(job: Job, tally: Tally) -> list[str]:
    """What a run came to, in lines."""
    rows = f"{job.count} row{'s' * (job.count != 1)}"
    lines = [f"{rows}: {tally.ok} simulated and fit, {tally.too_large} do not fit, {tally.impossible} cannot be"]
    if tally.resumed:
        lines.append(f"{tally.resumed} of them were there from a run before")
    if tally.best:
        value, number = tally.best
        unlike = _shown(job, number)
        row = f"row {number + 1}{': ' if unlike else ''}{unlike}"
        lines.append(f"{COLUMNS[job.objective].better} {job.objective}: {value:.5g}, {row}")
    return lines


def _shown(job: Job, number: int) -> str:
    """What a row has that others do not."""
    row, first = job.row(number), [job.row(n) for n in {0, job.count - 1, job.count // 2, job.count // 3}]
    unlike = [key for key in job.columns if any(other[key] != row[key] for other in first)]
    return ", ".join(f"{key} {tables.told(row[key])}" for key in unlike if row[key] is not None)
