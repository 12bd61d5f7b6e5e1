"""Profiles: a dataclass read from one TOML file, every number with its unit in the key and its source beside it.

`base = "other"` inherits the numbers of another profile of the kind; `assumed` at the top then marks all of them. This
module converts once, to SI (seconds, bytes, FLOP/s, bytes/s), and keeps the sources; what is profiled it does not know.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

from simpipe.simulator.errors import SimpipeError
from simpipe.simulator.yaml_file import read_yaml


class Dimension(NamedTuple):
    """The values in SI that make sense, and the units, each in SI; GB/s ends a key as `_gb_per_s`."""

    least: float
    most: float
    units: Mapping[str, float] = MappingProxyType({"": 1.0})
    whole: bool = False

    def accepts(self, value: float, unit: str) -> bool:
        """Whether a number written in a unit makes sense."""
        least, most = self._range(unit)
        return least <= value <= most and (not self.whole or value == int(value))

    def words(self, unit: str) -> str:
        """What makes sense, in a unit."""
        least, most = self._range(unit)
        return f"{'a whole number ' * self.whole}from {least:g} to {most:g} {unit}".rstrip()

    def _range(self, unit: str) -> tuple[float, float]:
        return self.least / self.units[unit], self.most / self.units[unit]


Count = Annotated[int, Dimension(1, 1e6, whole=True)]
Ratio = Annotated[float, Dimension(0.001, 1)]
Share = Annotated[float, Dimension(0, 1)]
Factor = Annotated[float, Dimension(1, 100)]
Amount = Annotated[float, Dimension(0, 1e5)]
Seconds = Annotated[float, Dimension(0, 0.1, {"us": 1e-6, "ns": 1e-9, "ms": 1e-3})]
FLAG = Dimension(0, 1)
Flag = Annotated[bool, FLAG]


class Fitted(NamedTuple):
    """What a fit says of its number, beside the source: a standard deviation in the unit that the value is written in,
    how many timings it saw, the amounts of work that they cover, and how far timings that it did not see lie from its
    curve (standard deviation of the log)."""

    uncertainty: float | None = None
    points: int = 0
    range: str = ""
    residual: float = 0.0


YAML_ENDINGS = (".yaml", ".yml")
"""A user's own profile may be YAML, with the same tables and keys."""


class Figure(NamedTuple):
    """One number of a profile: as written with its unit, in SI, where it is from, whether it is a guess."""

    written: str
    value: float
    source: str
    assumed: bool
    fitted: Fitted = Fitted()


class Row(NamedTuple):
    """A figure as it is shown."""

    key: str
    value: str
    source: str
    assumed: bool
    uncertainty: float | None
    points: int
    range: str


class ProfileKind(NamedTuple):
    """A kind of profile: the dataclass that a file fills, the folder of those that come with simpipe, the error to
    raise, what one is called, and the keys that a mapping of it may have."""

    of: type
    folder: Path
    error: type[SimpipeError]
    noun: str
    keys: tuple[str, ...] = ()


def names(kind: ProfileKind) -> list[str]:
    """The profiles that come with simpipe."""
    return sorted(path.stem for path in kind.folder.glob("*.toml"))


def read(kind: ProfileKind, name_or_path: str | os.PathLike[str]) -> tuple[Path, str, dict[str, Figure]]:
    """File, description and numbers by key path of a profile, by name or from the user's own file (`./mine.toml`)."""
    path = _locate(kind, os.fspath(name_or_path), Path())
    return path, *_read(kind, path, ())


def build(kind: ProfileKind, path: Path, description: str, read: Mapping[str, Figure]) -> Any:
    """The dataclass from its numbers; it also gets `name`, `description` and `figures`, its numbers with sources."""
    figures = {key: read[key] for key, _ in _numbers(kind.of, kind.keys) if key in read}
    given = {"name": path.stem, "description": description, "figures": figures}
    return _build(kind, kind.of, "", figures, path, given)


def rows(figures: Mapping[str, Figure]) -> list[Row]:
    """The numbers of a profile, to be shown."""
    return [Row(key, f.written, f.source, f.assumed, *f.fitted[:3]) for key, f in figures.items()]


def _locate(kind: ProfileKind, name: str, folder: Path) -> Path:
    if name.endswith((".toml", *YAML_ENDINGS)) or "/" in name or os.sep in name:
        return folder / name
    if name not in names(kind):
        raise kind.error(f"no {kind.noun} profile is called {name!r}{_nearest(name, names(kind))}")
    return kind.folder / f"{name}.toml"


def _nearest(name: str, names: Sequence[str]) -> str:
    close = difflib.get_close_matches(name, names, 1, 0.4)
    return f"; did you mean {close[0]}?" if close else f"; there are {', '.join(names)}" if len(names) < 20 else ""


def _read(kind: ProfileKind, path: Path, above: tuple[Path, ...]) -> tuple[str, dict[str, Figure]]:
    """Description and numbers of a file, over those of its `base`; the files `above` derive from it."""
    error = kind.error
    try:
        is_yaml = path.suffix.lower() in YAML_ENDINGS
        tree = read_yaml(path, error) if is_yaml else tomllib.loads(path.read_bytes().decode())
    except OSError as problem:
        raise error(f"{path}: cannot be read: {problem.strerror}") from None
    except (ValueError, RecursionError) as problem:
        raise error(f"{path}: is not TOML: {problem}") from None
    base, description, guess = (tree.pop(key, "") for key in ("base", "description", "assumed"))
    if not all(isinstance(text, str) for text in (base, description, guess)):
        raise error(f"{path}: base, description and assumed are texts")
    figures: dict[str, Figure] = {}
    if base:
        below = _locate(kind, base, path.parent)
        if below.resolve() in (*above, path.resolve()):
            raise error(f"{path}: its base {base} derives from it")
        inherited, figures = _read(kind, below, (*above, path.resolve()))
        description = description or inherited
        if guess:
            figures = {k: f._replace(source=f"{guess}; {f.source}", assumed=True) for k, f in figures.items()}
    own: dict[str, str] = {}
    unsaid = _Said(f"no source is given in {path.name}", True, Fitted())
    for written, value, said in _leaves(kind, tree, "", unsaid, path):
        if written not in _spellings(kind):
            raise error(f"{path}: {_unknown(kind, written)}")
        key, dimension, unit = _spellings(kind)[written]
        if isinstance(value, bool) != (dimension is FLAG) or not isinstance(value, int | float):
            raise error(f"{path}: {written} is {'true or false' if dimension is FLAG else 'a number'}, not {value!r}")
        if not dimension.accepts(value, unit):
            raise error(f"{path}: {written} is {dimension.words(unit)}, not {_shown(value)}")
        if key in own:
            raise error(f"{path}: {key} is given twice, as {own[key]} and as {written}")
        own[key] = written
        shown = ("yes" if value else "no") if dimension is FLAG else f"{value:.15g} {unit}".rstrip()
        figures[key] = Figure(shown, value * dimension.units[unit], *said)
    return description, figures


def _shown(value: float) -> str:
    text = str(value)
    return text if len(text) <= 30 else f"{text[:20]}... of {len(text)} digits"


class _Said(NamedTuple):
    """What stands beside a number, or above it for all of its table."""

    source: str
    assumed: bool
    fitted: Fitted


def covered(text: str) -> tuple[float, float, str] | None:
    """The least and the largest amount of work that a fit's `range` names, and its unit: `1e9 to 1e13 FLOP`."""
    low, _, rest = text.partition(" to ")
    high, _, unit = rest.partition(" ")
    try:
        return float(low), float(high), unit
    except ValueError:
        return None


def _from(least: float, most: float, whole: bool = False) -> Callable[[Any], bool]:
    def accepts(value: Any) -> bool:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        return is_number and least <= value <= most and not (whole and value != int(value))

    return accepts


_FITTED: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "uncertainty": ("a number, 0 or more", _from(0, 1e15)),
    "points": ("a whole number, 0 or more", _from(0, 1e15, whole=True)),
    "range": ("a text as '1e9 to 1e13 FLOP'", lambda value: isinstance(value, str) and covered(value) is not None),
    "residual": ("a number from 0 to 10", _from(0, 10)),
}


def _leaves(kind: ProfileKind, table: Any, at: str, above: _Said, path: Path) -> Iterator[tuple[str, Any, _Said]]:
    """(key path, value, what is said of it) of each number; the nearest table that says something speaks for it."""
    texts = {key: table[key] for key in ("source", "assumed") if key in table}
    if len(texts) > 1 or not all(isinstance(text, str) for text in texts.values()):
        raise kind.error(f"{path}: {at}source and {at}assumed are texts, one or the other")
    for key, text in texts.items():
        above = _Said(text, key == "assumed", Fitted())
    fit = {key: table[key] for key in _FITTED if key in table}
    for key, value in fit.items():
        if not _FITTED[key][1](value):
            raise kind.error(f"{path}: {at}{key} is {_FITTED[key][0]}, not {value!r}")
    above = above._replace(fitted=above.fitted._replace(**fit))
    for key, value in table.items():
        if key == "value" and len(table) == 1 + len(texts) + len(fit):
            yield at[:-1], value, above
        elif isinstance(value, dict) and value:
            yield from _leaves(kind, value, f"{at}{key}.", above, path)
        elif key not in texts and key not in fit:
            yield at + key, value, above


@cache
def _spellings(kind: ProfileKind) -> dict[str, tuple[str, Dimension, str]]:
    """Each key as a profile can write it: the key path without unit, what it measures, the unit."""
    numbers = _numbers(kind.of, kind.keys)
    return {w: (key, d, unit) for key, d in numbers for w, unit in zip(_spelt(key, d), d.units, strict=True)}


def _unknown(kind: ProfileKind, written: str) -> str:
    spellings = _spellings(kind)
    stems = [key for key, _, unit in spellings.values() if unit and f"{written}_".startswith(f"{key}_")]
    if stems:
        fits = [spelling for spelling, (key, _, _) in spellings.items() if key == max(stems, key=len)]
        return f"{written} has no unit that fits; write {' or '.join(fits)}"
    return f"unknown key {written}{_nearest(written, [*spellings])}"


@cache
def _parts(of: Any, keys: tuple[str, ...]) -> tuple[tuple[str, Any, Dimension | None, bool], ...]:
    """(name, class, what it measures, whether required) of what a profile fills of a class, an entry per key."""
    found: list[tuple[str, Any, Dimension | None, bool]] = []
    for part in fields(of):
        hint = get_type_hints(of, include_extras=True)[part.name]
        by_key = get_origin(hint) is Mapping
        inner = get_args(hint)[1] if by_key else hint
        dimension = inner.__metadata__[0] if get_origin(inner) is Annotated else None
        if dimension or is_dataclass(inner):
            names = [f"{part.name}.{key}" for key in keys] if by_key else [part.name]
            found += [(name, inner, dimension, part.default is MISSING and name == names[0]) for name in names]
    return tuple(found)


def _numbers(of: Any, keys: tuple[str, ...], at: str = "") -> Iterator[tuple[str, Dimension]]:
    """(key path, what it measures) of every number a profile can hold."""
    for name, inner, dimension, _ in _parts(of, keys):
        yield from [(at + name, dimension)] if dimension else _numbers(inner, keys, f"{at}{name}.")


def _build(kind: ProfileKind, of: Any, at: str, figures: Mapping[str, Figure], path: Path, made: dict[str, Any]) -> Any:
    """The class from the numbers at the key path `at`, and what is `made` already."""
    for name, inner, dimension, required in _parts(of, kind.keys):
        key, (attribute, _, by) = at + name, name.partition(".")
        if not required and not any(other == key or other.startswith(f"{key}.") for other in figures):
            continue
        if dimension and key not in figures:
            raise kind.error(f"{path}: {' or '.join(_spelt(key, dimension))} is missing")
        value: Any = figures[key].value if dimension else _build(kind, inner, f"{key}.", figures, path, {})
        value = bool(value) if dimension is FLAG else int(value) if inner is Count else value
        made.update({attribute: {**made.get(attribute, {}), by: value} if by else value})
    return of(**made)


def _spelt(key: str, dimension: Dimension) -> list[str]:
    ends = [unit.lower().replace("/", "_per_").replace("-", "_") for unit in dimension.units]
    return [f"{key}_{end}" if end else key for end in ends]
