"""Files: written whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from simpipe.simulator.errors import OutputError


def check_place(path: Path) -> None:
    """Refuse, before any work, a file whose folder is not there or takes none, or a folder in its place.

    Raises OutputError.
    """
    try:
        if not path.resolve().parent.is_dir():
            raise OutputError(f"{path} cannot be written: there is no folder {path.parent}")
        if path.is_dir():
            raise OutputError(f"{path} cannot be written: it is a folder; end it with / to fill it")
        if path.exists() and not path.is_file():
            raise OutputError(f"{path} cannot be written: it is no regular file")
        if not os.access(path.resolve().parent, os.W_OK):
            raise OutputError(f"{path} cannot be written: its folder takes no new files")
    except OSError as error:  # a name that is too long
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None


def check_apart(outs: Iterable[str | Path], read: Iterable[str | Path]) -> None:
    """Refuse, before any work, to write over one of the files that are read. Raises OutputError."""
    there = [Path(path) for path in read if os.path.exists(path)]
    for out in outs:
        if os.path.exists(out) and any(path.samefile(out) for path in there):
            raise OutputError(f"{out} cannot be written: it is read; name another")


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """A new file beside `path`, of the same ending, that takes its place at the end, or goes on an error.

    Raises OutputError, one sentence, where the system refuses.
    """
    check_place(path)
    target = Path(os.path.realpath(path))
    draft = target.with_name(f".{os.getpid()}.{target.name}")
    try:
        yield draft
        os.replace(draft, target)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            draft.unlink()
