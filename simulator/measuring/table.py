"""Table: timings of this machine as a .csv that `simpipe calibrate` reads, kept row by row so that nothing is lost."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simpipe.simulator.errors import OutputError
from simpipe.simulator.files import atomic, check_place

COLUMNS = (
    "component", "pass", "operator", "shape", "format", "bytes", "ranks", "seconds", "repeats", "device",
)  # fmt: skip
"""component, pass: of the model, empty for collectives. operator to seconds: as a table of timings has them. repeats:
of which seconds is the median. device: the processor and PyTorch's version."""

KEY = ("component", "pass", "operator", "shape", "format", "bytes", "ranks")
"""What a row is a timing of."""

MOST_BYTES = 50_000_000


@dataclass
class Table:
    """Rows by what they are of, and the file that is written anew with each. Rows that it held are kept."""

    path: Path
    device: str
    rows: dict[tuple[str, ...], dict[str, str]] = field(default_factory=dict)

    @staticmethod
    def open(path: Path, device: str) -> Table:
        """A new table, or one of the same device to go on with. Raises OutputError for any other file."""
        table = Table(path, device)
        if not path.exists():
            check_place(path)
            return table
        for number, row in enumerate(_rows(path), 2):
            if None in row or None in row.values():
                raise OutputError(f"{path} line {number}: has not one value for each column; name another file")
            if row["device"] != device:
                other = f"{path} line {number}: holds timings of {row['device'][:80]!r}"
                raise OutputError(f"{other}, not of {device!r}; name another file")
            table.rows[tuple(row[name] for name in KEY)] = row
        return table

    def has(self, **of: Any) -> bool:
        """Whether there is a timing of this."""
        return _key(of) in self.rows

    def add(self, seconds: float, repeats: int, **of: Any) -> None:
        """Add a timing, and write the file."""
        row = {name: _text(of.get(name, "")) for name in KEY}
        self.rows[_key(of)] = row | {"seconds": f"{seconds:.6g}", "repeats": str(repeats), "device": self.device}
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows.values())
        with atomic(self.path) as draft:
            draft.write_text(text.getvalue(), encoding="utf-8", newline="")

    def by_component(self) -> dict[str, dict[str, float]]:
        """Seconds by component and pass, in the order in which they were timed."""
        found: dict[str, dict[str, float]] = {}
        for row in self.rows.values():
            if row["component"]:
                each = found.setdefault(row["component"], {})
                each[row["pass"]] = each.get(row["pass"], 0.0) + float(row["seconds"])
        return found


def _key(of: dict[str, Any]) -> tuple[str, ...]:
    return tuple(_text(of.get(name, "")) for name in KEY)


def _text(value: Any) -> str:
    return f"{value:.0f}" if isinstance(value, float) else str(value)


def _rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file of ours."""
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        text = data.decode("utf-8")
        reader = csv.DictReader(io.StringIO(text), strict=True)
        if len(data) > MOST_BYTES or tuple(reader.fieldnames or ()) != COLUMNS:
            raise OutputError(f"{path} is there and holds no timings of `simpipe measure`; name another file")
        rows = list(reader)
        for number, row in enumerate(rows, 2):
            if not _is_time(row.get("seconds")):
                raise OutputError(
                    f"{path} line {number}: seconds is a time, not {str(row.get('seconds'))[:40]!r}; name another file"
                )
        return rows
    except OSError as error:
        raise OutputError(f"{path} cannot be read: {error.strerror or error}") from None
    except (UnicodeDecodeError, csv.Error):
        raise OutputError(f"{path} is there and holds no timings of `simpipe measure`; name another file") from None


def _is_time(text: str | None) -> bool:
    try:
        return text is not None and 0 < float(text) < 1e6
    except ValueError:
        return False
