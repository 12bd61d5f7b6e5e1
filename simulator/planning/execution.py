"""Execution: many rows through any concurrent.futures.Executor, each finished one at once in a journal on disk.

The journal stands beside the output until that is written. Its first line says what it is of: a hash of the rows, of
the files they name and of simpipe itself. The same command goes on from it; rows of anything else are not used. A kill
loses the rows that were being computed.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

from simpipe.simulator.errors import OutputError, SimpipeError, show
from simpipe.simulator.planning.tables import Row

CHUNK = 8
"""Rows that go to a worker at once: about half a second of work."""

AHEAD = 3
"""Chunks under way for each worker."""

MAX_WORKERS = 1024
"""Local processes at most: each takes some 100 MB."""

CONNECT_SECONDS = 3
"""For which a Dask scheduler is waited for."""

ROOT = Path(__file__).resolve().parents[2]


class Inline(Executor):
    """Runs what it is given at once, in this process."""

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """A future that is done."""
        future: Future[Any] = Future()
        try:
            future.set_result(function(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


def local(workers: int) -> Executor:
    """A pool of processes on this machine; none but this one for one worker."""
    if workers == 1:
        return Inline()
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    return ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _enlist)


def _enlist() -> None:
    """A worker leaves Ctrl-C to the process that started it, and ends when that does."""
    import multiprocessing
    import signal
    from multiprocessing.connection import wait as wait_for

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait_for([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def executor_of(text: str, workers: int | None, rows: int) -> Iterator[tuple[Executor, int]]:
    """The executor that an option names, local or dask://host:port, and how many workers it has for some rows.

    What was not begun when it closes is not done. Raises SimpipeError.
    """
    scheme, found, rest = text.partition("://")
    if workers is not None and not 1 <= workers <= MAX_WORKERS:
        raise SimpipeError(f"--workers is {show(workers)}; it takes 1 to {MAX_WORKERS:,} processes")
    if text == "local":
        count = workers or min(os.cpu_count() or 1, max(1, rows // (2 * CHUNK)))
        pool = local(count)
        try:
            yield pool, count
        except BrokenExecutor:
            raise SimpipeError(
                "a worker process was killed, perhaps for lack of memory; fewer --workers need less of it"
            ) from None
        finally:
            pool.shutdown(cancel_futures=True)
    elif scheme == "dask" and found and rest:
        if workers is not None:
            raise SimpipeError("--workers is for local processes; a Dask cluster has its own")
        with _dask(f"tcp://{rest}") as client:
            versions = client.run(own_version, on_error="return")
            other = next((address for address, version in versions.items() if version != own_version()), None)
            if other:
                raise SimpipeError(f"--executor: the worker at {other} has another simpipe or none; install this one")
            yield client.get_executor(pure=False, retries=3), max(1, len(versions))
    else:
        raise SimpipeError(f"--executor is {text!r}; it is local or dask://host:port")


def _dask(address: str) -> Any:
    """A client of a Dask cluster, whose workers need simpipe installed. Raises SimpipeError."""
    try:
        from distributed import Client
    except ImportError:
        raise SimpipeError("--executor dask://... needs Dask: pip install 'simpipe[dask]'") from None
    try:
        return Client(address, timeout=CONNECT_SECONDS)  # type: ignore[no-untyped-call]
    except (OSError, ValueError) as error:
        raise SimpipeError(f"--executor: no Dask scheduler answers at {address}: {error}") from None


# The journal.


@cache
def own_version() -> str:
    """A hash of simpipe's own code and profiles."""
    digest = hashlib.sha256()
    for path in sorted(path for ending in ("py", "toml") for path in ROOT.rglob(f"*.{ending}")):
        name = path.relative_to(ROOT)
        if name.parts[0] in ("simulator", "schedules") or name.parts[0].endswith("_profiles"):
            digest.update(f"{name}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def fingerprint(rows: Iterable[Row], files: Iterable[str] = ()) -> str:
    """A hash of what results follow from: rows, the contents of files that they name, simpipe's own version."""
    digest = hashlib.sha256(own_version().encode())
    for row in rows:
        digest.update(json.dumps(row, default=str).encode())
    for name in sorted(set(files)):
        digest.update(f"\0{name}\0".encode() + Path(name).read_bytes())
    return digest.hexdigest()


class Journal:
    """Rows of results by their number, appended to a file as they are found, each whole or not at all.

    dropped: how many rows of another plan or version were there. Raises OutputError where it cannot be written, or
    another process is at it.
    """

    def __init__(self, path: Path, mark: str, rows: int) -> None:
        self.path, self.mark = path, mark
        self.at = array("q", [-1]) * rows  # where in the file each row is
        self.dropped = 0
        try:
            self.file: BinaryIO = open(path, "a+b")  # noqa: SIM115 - closed by __exit__
            _lock(self.file)
            self._read()
        except BlockingIOError:
            raise OutputError(f"{path} is being written by another simpipe") from None
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None

    def _read(self) -> None:
        """Find the rows that are there; cut off one that was not written to its end. Damaged ones are found anew."""
        self.file.seek(0)
        is_own = self.file.readline() == self._first
        end = self.file.tell()
        for line in self.file:
            if not line.endswith(b"\n"):
                break
            if not is_own:
                self.dropped += 1
            elif (number := self._number(line)) is not None:
                self.at[number] = end
            end += len(line)
        self.file.truncate(end if is_own else 0)
        if not is_own:
            self._write(self._first)

    def _number(self, line: bytes) -> int | None:
        """Which row a line holds, None where it holds none."""
        try:
            row = json.loads(line)
            number = row["row"] if isinstance(row["status"], str) else None
        except (ValueError, KeyError, TypeError):
            return None
        return number if isinstance(number, int) and 0 <= number < len(self.at) else None

    @property
    def _first(self) -> bytes:
        return json.dumps({"of": self.mark}).encode() + b"\n"

    def _write(self, data: bytes) -> int:
        """Append, and say where that begins."""
        start = self.file.seek(0, os.SEEK_END)
        self.file.write(data)
        self.file.flush()
        return start

    def add(self, number: int, row: Row) -> None:
        """Append a row. Raises OutputError where it cannot be written; those before it are kept."""
        assert self.at[number] < 0, f"row {number} was there"
        try:
            self.at[number] = self._write(json.dumps({"row": number} | row).encode() + b"\n")
        except OSError as error:
            raise OutputError(
                f"{self.path} cannot be written: {error.strerror}; once it can, the same command goes on from it"
            ) from None

    def __getitem__(self, number: int) -> Row:
        self.file.seek(self.at[number])
        row: Row = json.loads(self.file.readline())
        del row["row"]
        return row

    def __contains__(self, number: int) -> bool:
        return self.at[number] >= 0

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        with suppress(OSError):  # of what add() could not write
            self.file.close()

    def remove(self) -> None:
        """Delete the file: what it held is elsewhere."""
        self.path.unlink(missing_ok=True)


def _lock(file: BinaryIO) -> None:
    """Keep other processes out until the file is closed, where the system can."""
    try:
        import fcntl
    except ImportError:
        return
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def run(
    work: Callable[[list[Row]], list[Row]], tasks: Iterable[tuple[int, Row]], executor: Executor, workers: int,
    done: Callable[[int, Row], None],
) -> None:  # fmt: skip
    """Call `done(number, result)` for every task, in the order in which they end. Few tasks are held at a time."""
    chunks = _chunks(tasks)
    under_way: dict[Future[list[Row]], list[int]] = {}
    exhausted = False
    most = 1 if isinstance(executor, Inline) else AHEAD * workers
    try:
        while not exhausted or under_way:
            while not exhausted and len(under_way) < most:
                chunk = next(chunks, None)
                if chunk is None:
                    exhausted = True
                    break
                numbers, rows = zip(*chunk, strict=True)
                under_way[executor.submit(work, list(rows))] = list(numbers)
            if not under_way:
                break
            ended, _ = wait(under_way, return_when=FIRST_COMPLETED)
            for future in ended:
                for number, row in zip(under_way.pop(future), future.result(), strict=True):
                    done(number, row)
    finally:
        for future in under_way:
            future.cancel()


def _chunks(tasks: Iterable[tuple[int, Row]]) -> Iterator[list[tuple[int, Row]]]:
    chunk: list[tuple[int, Row]] = []
    for task in tasks:
        chunk.append(task)
        if len(chunk) == CHUNK:
            yield chunk
            chunk = []
    if chunk:
        yield chunk
