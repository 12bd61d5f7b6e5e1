"""Views: a trace becomes a file. One module a format, each with its ENDINGS and `write(trace, path)`."""

from __future__ import annotations

import csv
import os
import pkgutil
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from simpipe.simulator.errors import OutputError
from simpipe.simulator.files import atomic, check_place
from simpipe.simulator.trace import Trace

DEFAULT_SET = ("timeline.html", "timeline.png", "tasks.csv", "trace.json.gz")
"""What a folder is filled with."""

COMPARISONS = (".csv", ".html", ".png", ".svg", ".pdf")

Writer = Callable[..., None]


def write(trace: Trace, path: str | Path, width: float | None = None) -> list[Path]:
    """Write a trace in the format that the ending of `path` names; returns the files written.

    An existing folder, or a path that ends in "/", takes the default set. width: inches of a picture; other formats
    have none. Raises OutputError.
    """
    if _is_folder(path):
        return [_write_file(trace, _folder(path) / name, width) for name in DEFAULT_SET]
    return [_write_file(trace, Path(path), width)]


def check(targets: Sequence[str], width: float | None = None) -> None:
    """Refuse, before any work, what `write` would refuse for its ending, folder or width. Raises OutputError."""
    _check_width(targets, width)
    for target in targets:
        if not _is_folder(target):
            ending(Path(target), writers())
            check_place(Path(target))


def check_comparison(targets: Sequence[str], width: float | None = None) -> None:
    """The same for `write_comparison`."""
    _check_width(targets, width)
    check_endings(targets, COMPARISONS)


def check_endings(targets: Sequence[str], known: tuple[str, ...]) -> None:
    """The same for what is written as single files with one of some endings."""
    for target in targets:
        ending(Path(target), known)
        check_place(Path(target))


def write_comparison(
    rows: Sequence[dict[str, Any]], traces: dict[str, Trace], path: str | Path, width: float | None = None
) -> None:
    """Write a comparison: its rows as .csv, its runs on one time axis as a page or picture. Raises OutputError."""
    end = ending(Path(path), COMPARISONS)
    if end == ".csv":
        with atomic(Path(path)) as draft, draft.open("w", encoding="utf-8", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]) if rows else [], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
    elif end == ".html":
        with atomic(Path(path)) as draft:
            import_module(f"{__name__}.html").write_comparison(rows, traces, draft)
    else:
        import_module(f"{__name__}.picture").write_comparison(traces, path, width)


def _check_width(targets: Sequence[str], width: float | None) -> None:
    picture = import_module(f"{__name__}.picture")
    picture.check_width(width)
    drawn = [t for t in targets if _is_folder(t) or t.lower().endswith(picture.ENDINGS)]
    if width is not None and not drawn:
        raise OutputError(f"a width is for pictures ({', '.join(picture.ENDINGS)}), and none is written")


def writers() -> dict[str, Writer]:
    """The writer of each ending: every module here that has ENDINGS."""
    found: dict[str, Writer] = {}
    for info in pkgutil.iter_modules(__path__):
        module = import_module(f"{__name__}.{info.name}")
        found |= dict.fromkeys(getattr(module, "ENDINGS", ()), getattr(module, "write", None))
    return found


def ending(path: Path, known: dict[str, Writer] | tuple[str, ...]) -> str:
    """The known ending that a file name has. Raises OutputError."""
    for end in sorted(known, key=len, reverse=True):
        if path.name.lower().endswith(end):
            return end
    raise OutputError(f"{path}: its ending names no format; there are {', '.join(sorted(known))}")


def _write_file(trace: Trace, path: Path, width: float | None) -> Path:
    known = writers()
    end = ending(path, known)
    sized = () if width is None or end not in import_module(f"{__name__}.picture").ENDINGS else (width,)
    with atomic(path) as draft:
        known[end](trace, draft, *sized)
    return path


def _is_folder(path: str | Path) -> bool:
    named = str(path).endswith(("/", os.sep))
    return named or (os.path.isdir(path) and not Path(path).name.lower().endswith(tuple(writers())))


def _folder(path: str | Path) -> Path:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(f"folder {path} cannot be made: {error.strerror}") from None
    return Path(path)
