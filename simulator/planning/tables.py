"""Tables: CSV, Parquet and XLSX in and out, chosen by the file's ending; a row is a mapping from column to value."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

from simpipe.simulator.errors import OutputError, SimpipeError, show
from simpipe.simulator.files import atomic

Row = dict[str, Any]

MAX_ROWS, MAX_COLUMNS, MAX_CELL = 1_000_000, 1_000, 32_767
"""Largest table read: the rows of an XLSX sheet, and the letters of one of its cells."""

MAX_DIGITS = 18
"""Digits of a whole number, that a column of Parquet takes it; one of more is text."""

MAX_WIDTH, NOTE_WIDTH = 48, 100
"""Letters of a spreadsheet's widest column of results, and of the text of an assumption."""

ENDINGS = (".csv", ".parquet", ".xlsx")

_NEEDS = {".parquet": ("pyarrow", "parquet"), ".xlsx": ("openpyxl", "xlsx")}
_FORMULA = ("=", "+", "-", "@", "\t", "\n")
"""What a text cell begins with that a spreadsheet would run."""


class TableError(SimpipeError):
    """A table cannot be read: one sentence with the file and the place."""


class Table(NamedTuple):
    """Column names in order, and a value of each for each row; an empty cell is None."""

    columns: list[str]
    rows: list[Row]


def ending_of(path: str | Path, error: type[SimpipeError] = TableError) -> str:
    """The file's ending, if tables have such and its library is installed."""
    ending = Path(path).suffix.lower()
    if ending not in ENDINGS:
        raise error(f"{path} is no table by its ending {ending!r}; it is {', '.join(ENDINGS[:-1])} or {ENDINGS[-1]}")
    if ending in _NEEDS and find_spec(_NEEDS[ending][0]) is None:
        raise error(f"{path} needs {_NEEDS[ending][0]}: pip install 'simpipe[{_NEEDS[ending][1]}]'")
    return ending


# Reading.


def read(path: str | Path) -> Table:
    """The table of a file: text is read as a number, true or false where it is one. Raises TableError."""
    path = Path(path)
    lines = {".csv": _csv_lines, ".parquet": _parquet_lines, ".xlsx": _xlsx_lines}[ending_of(path)]
    try:
        return _table(path, lines(path))
    except OSError as error:
        raise TableError(f"{path} cannot be read: {error.strerror or error}") from None


def _table(path: Path, lines: Iterator[tuple[str, list[Any]]]) -> Table:
    """From (place, cells), the header first."""
    _, header = next((line for line in lines if any(cell not in (None, "") for cell in line[1])), ("", []))
    columns = _header(path, header)
    rows: list[Row] = []
    for place, cells in lines:
        while cells and len(cells) > len(columns) and cells[-1] in (None, ""):
            cells.pop()
        if all(cell in (None, "") for cell in cells):
            continue
        if len(cells) != len(columns):
            raise TableError(f"{path} {place} has {len(cells)} cells, but the header has {len(columns)}")
        longest = max((len(cell) for cell in cells if isinstance(cell, str)), default=0)
        if longest > MAX_CELL:
            raise TableError(f"{path} {place} has a cell of {longest:,} letters; one takes at most {MAX_CELL:,}")
        if len(rows) == MAX_ROWS:
            raise TableError(f"{path} has more than {MAX_ROWS:,} rows; split it")
        rows.append({name: _value(cell) for name, cell in zip(columns, cells, strict=True)})
    if not rows:
        raise TableError(f"{path} holds no rows below its header")
    return Table(columns, rows)


def _header(path: Path, cells: Sequence[Any]) -> list[str]:
    names = ["" if cell is None else str(cell).strip() for cell in cells]
    while names and not names[-1]:
        names.pop()
    if not names:
        raise TableError(f"{path} is empty; its first line names the columns, as model,hardware,schedule,ranks")
    if len(names) > MAX_COLUMNS:
        raise TableError(f"{path} has {len(names):,} columns; a table has at most {MAX_COLUMNS:,}")
    for number, name in enumerate(names, 1):
        if not name:
            raise TableError(f"{path} has no name for column {number}")
        if names.index(name) != number - 1:
            raise TableError(f"{path} names column {name!r} twice, as columns {names.index(name) + 1} and {number}")
    return names


def _value(cell: Any) -> Any:
    """A cell's value: numbers and true or false out of text, None where it is empty. Text that is no number to its
    writer stays text: with zeros before it, or more digits than a number keeps."""
    if not isinstance(cell, str):
        return None if isinstance(cell, float) and cell != cell else cell
    text = cell.strip()
    if not text:
        return None
    if re.fullmatch(r"[+-]?(?!0[0-9])[0-9]+", text):
        return int(text) if len(text) <= MAX_DIGITS else text
    if re.fullmatch(r"[+-]?(?!0[0-9])([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text):
        return float(text) if math.isfinite(float(text)) else text
    return {"true": True, "false": False}.get(text.lower(), text)


def _csv_lines(path: Path) -> Iterator[tuple[str, list[Any]]]:
    """UTF-8, with or without its mark; cells are separated by commas, or by semicolons or tabs where the header is."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if b"\0" in line:
                raise TableError(f"{path} line {number} holds a NUL, as UTF-16 has them; save it as UTF-8")
            try:
                line.decode("utf-8")
            except UnicodeDecodeError as error:
                raise TableError(
                    f"{path} line {number} is not UTF-8 at byte {error.start + 1}; save it as UTF-8"
                ) from None
    with path.open(encoding="utf-8-sig", newline="") as text:
        first = text.readline()
        text.seek(0)
        counts = {mark: first.count(mark) for mark in ",;\t"}
        reader = csv.reader(text, delimiter=max(counts, key=lambda mark: counts[mark]), strict=True)
        try:
            for cells in reader:
                yield f"line {reader.line_num}", cells
        except csv.Error as error:
            raise TableError(f"{path} line {reader.line_num} is no CSV: {error}") from None


def _parquet_lines(path: Path) -> Iterator[tuple[str, list[Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        yield "the header", list(file.schema_arrow.names)
        number = 0
        for batch in file.iter_batches():
            for cells in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                number += 1
                yield f"row {number}", list(cells)
    except pa.ArrowInvalid as error:
        raise TableError(f"{path} is no Parquet file: {str(error).splitlines()[0]}") from None


def _xlsx_lines(path: Path) -> Iterator[tuple[str, list[Any]]]:
    """The first sheet; a formula is its stored result, and refused where none was stored."""
    import zipfile

    import openpyxl

    try:
        books = [openpyxl.load_workbook(path, read_only=True, data_only=stored) for stored in (True, False)]
        sheets = (book.worksheets[0].iter_rows(values_only=True) for book in books)
        for number, (cells, written) in enumerate(zip(*sheets, strict=True), 1):
            for column, (cell, text) in enumerate(zip(cells, written, strict=True), 1):
                if cell is None and text is not None:
                    raise TableError(
                        f"{path} row {number} column {column} is a formula without a result, {show(text)}; "
                        "open and save it in a spreadsheet program, or write the value"
                    )
            yield f"row {number}", list(cells)
        for book in books:
            book.close()
    except (
        zipfile.BadZipFile,
        AttributeError,
        KeyError,
        IndexError,
        ValueError,
        TypeError,
        openpyxl.utils.exceptions.InvalidFileException,
    ):
        raise TableError(f"{path} is no XLSX file") from None


# Writing.


@dataclass(frozen=True)
class Sheet:
    """What an XLSX says beside its rows: number formats and widths by column, and a sheet of assumptions."""

    formats: Mapping[str, str]
    assumptions: Sequence[tuple[str, str]]


def write(path: str | Path, columns: Sequence[str], rows: Iterable[Row], sheet: Sheet) -> None:
    """Write a table whole or not at all; `rows` can be gone through twice. Equal rows give equal bytes.

    Text that a spreadsheet would run as a formula gets a ' before it in CSV, and is a text cell in XLSX.
    Raises OutputError.
    """
    ending = ending_of(path, OutputError)
    with atomic(Path(path)) as draft:
        if ending == ".csv":
            _write_csv(draft, columns, rows)
        elif ending == ".parquet":
            _write_parquet(draft, columns, rows)
        else:
            _write_xlsx(draft, columns, rows, sheet)


def plain(value: Any) -> Any:
    """A value as a cell holds it: a number that tables have, text, true or false, or None."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, int) and value.bit_length() > 63:
        return show(value)
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, list | tuple):
        return ", ".join(str(plain(part)) for part in value)
    if isinstance(value, Mapping):
        return ", ".join(f"{key}: {plain(part)}" for key, part in value.items())
    return str(value)


def told(value: Any) -> Any:
    """The same for people to read: an empty list is a word."""
    return "none" if value in ([], ()) else plain(value)


def _write_csv(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([_text(name) for name in columns])
        for row in rows:
            writer.writerow([_text(row.get(name)) for name in columns])


def _text(value: Any) -> Any:
    value = plain(value)
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        value = value.replace("\r\n", "\n").replace("\r", "\n")
        return "'" + value if value.startswith(_FORMULA) else value
    return value


def _write_parquet(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = {(): pa.string(), (bool,): pa.bool_(), (int,): pa.int64(), (float,): pa.float64()}
    found: dict[str, set[type]] = {name: set() for name in columns}
    for row in rows:
        for name, kinds in found.items():
            kinds.add(type(plain(row.get(name))))
    schema = []
    for name, kinds in found.items():
        kinds -= {type(None)}
        kind = (float,) if kinds == {int, float} else tuple(kinds)
        schema.append(pa.field(name, types.get(kind, pa.string())))
    convert = {
        f.name: (lambda v: v if v is None else str(v)) if f.type == pa.string() else (lambda v: v) for f in schema
    }
    with pq.ParquetWriter(path, pa.schema(schema)) as writer:
        for batch in _batches(rows, 10_000):
            arrays = [pa.array([convert[f.name](plain(row.get(f.name))) for row in batch], f.type) for f in schema]
            writer.write_batch(pa.record_batch(arrays, schema=pa.schema(schema)))


def _batches(rows: Iterable[Row], size: int) -> Iterator[list[Row]]:
    batch: list[Row] = []
    for row in rows:
        batch.append(row)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def _write_xlsx(path: Path, columns: Sequence[str], rows: Iterable[Row], sheet: Sheet) -> None:
    import xlsxwriter

    book = xlsxwriter.Workbook(path, {"constant_memory": True, "strings_to_formulas": False, "strings_to_urls": False})
    book.set_properties({"created": datetime(2000, 1, 1)})  # or equal rows would not give equal bytes
    bold = book.add_format({"bold": True, "valign": "vcenter", "bottom": 1, "bg_color": "#E8EEF4"})
    boolean = book.add_format({"num_format": '"TRUE";"TRUE";"FALSE"', "align": "center"})  # LibreOffice would show 0, 1
    formats = {name: book.add_format({"num_format": text}) for name, text in sheet.formats.items()}
    page = book.add_worksheet("results")
    page.freeze_panes(1, 0)
    page.set_landscape()
    page.repeat_rows(0)
    page.set_row(0, 24)
    widths = [len(name) + 4 for name in columns]  # the header has a button to filter
    for column, name in enumerate(columns):
        page.write_string(0, column, name, bold)
    count = 0
    for count, row in enumerate(rows, 1):
        for column, name in enumerate(columns):
            value = plain(row.get(name))
            if isinstance(value, str):
                widths[column] = max(widths[column], len(value) + 1)
            _write_cell(page, count, column, value, boolean if isinstance(value, bool) else formats.get(name))
    for column, name in enumerate(columns):
        page.set_column(column, column, min(MAX_WIDTH, widths[column]), formats.get(name))
    page.autofilter(0, 0, count, len(columns) - 1)
    notes = book.add_worksheet("assumptions")
    notes.freeze_panes(1, 0)
    notes.set_column(0, 0, 34, book.add_format({"valign": "top"}))
    notes.set_column(1, 1, NOTE_WIDTH, book.add_format({"text_wrap": True, "valign": "top"}))
    for number, cells in enumerate([("what", "assumed"), *sheet.assumptions]):
        notes.set_row(number, 15.0 * max(1, -(-len(cells[1]) // NOTE_WIDTH)))  # LibreOffice would show one line of it
        for column, cell in enumerate(cells):
            notes.write_string(number, column, cell[:MAX_CELL], *([bold] if number == 0 else []))
    book.close()


def _write_cell(page: Any, row: int, column: int, value: Any, style: Any) -> None:
    if isinstance(value, bool):
        page.write_boolean(row, column, value, style)
    elif isinstance(value, float) or (isinstance(value, int) and abs(value) < 10**15):  # more digits would be cut
        page.write_number(row, column, value, style)
    elif value is not None:
        page.write_string(row, column, str(value)[:MAX_CELL])
