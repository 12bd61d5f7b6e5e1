"""YAML files of users, read so that nothing in them surprises: version 1.2, so `no` is text and `1e-6` a number; no
aliases, no key twice, not large, not deep."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

from simpipe.simulator.errors import SimpipeError, show

MAX_FILE_BYTES = 100_000
MAX_DEPTH = 8
"""Levels of nesting at which a file is given up; a scenario has two, a profile five."""


def read_yaml(path: Path, wrong: type[SimpipeError]) -> dict[str, Any]:
    """The mapping that a YAML file holds: version 1.2, no aliases, not large or deep. Raises `wrong`."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    text = _text(path, wrong)
    try:
        _check_events(path, text, wrong)
        table = YAML(typ="safe", pure=True).load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = f"line {mark.line + 1}: " if mark else ""
        problem = re.sub(r"^found ", "", _line(error.problem or error.context or "it cannot be read"))
        raise wrong(f"{path} is no YAML: {line}{problem}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise wrong(f"{path} is no YAML: {_line(str(error))}") from None
    if not isinstance(table, dict):
        raise wrong(f"{path} must hold keys and values, as `tp: 8`, not {show(table)}")
    for key in table:
        if not isinstance(key, str):
            raise wrong(f"{path}: unknown key {show(key)}; a key is text")
    return table


def yaml_text(table: dict[str, Any]) -> str:
    """A mapping as YAML that `read_yaml` reads back equal."""
    from ruamel.yaml import YAML

    yaml, file = YAML(), io.StringIO()
    yaml.width = 1_000_000
    yaml.dump(table, file)
    return file.getvalue()


def _text(path: Path, wrong: type[SimpipeError]) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except (OSError, ValueError) as error:
        raise wrong(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if len(data) > MAX_FILE_BYTES:
        raise wrong(f"{path} is no YAML to read: it is larger than {MAX_FILE_BYTES} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise wrong(f"{path} is no YAML: byte {error.start} is not UTF-8") from None


def _check_events(path: Path, text: str, wrong: type[SimpipeError]) -> None:
    """Refuse what could make a small file large or deep, before anything is built from it."""
    from ruamel.yaml import YAML
    from ruamel.yaml.events import AliasEvent, CollectionEndEvent, CollectionStartEvent

    depth = 0
    for event in YAML(typ="safe", pure=True).parse(text):
        depth += isinstance(event, CollectionStartEvent) - isinstance(event, CollectionEndEvent)
        if isinstance(event, AliasEvent):
            raise wrong(f"{path} line {event.start_mark.line + 1}: no alias is taken, *{event.anchor}")
        if depth > MAX_DEPTH:
            raise wrong(f"{path} line {event.start_mark.line + 1}: is nested deeper than {MAX_DEPTH} levels")


def _line(text: str) -> str:
    """The first line of a library's message, as one short sentence."""
    line = "".join(c if c.isprintable() else "?" for c in text.strip().partition("\n")[0])
    return line if len(line) <= 160 else f"{line[:157]}..."
