"""The errors a user can cause. Each is one sentence; the command line prints it and exits with status 2."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable


class SimpipeError(Exception):
    """Base of every error that bad input causes: its text is the whole message."""


class ProgramError(SimpipeError):
    """A schedule's order is malformed, incomplete or deadlocks."""


class ScheduleError(SimpipeError):
    """A schedule is unknown, cannot be loaded, or does not take the asked size."""


class CostsError(SimpipeError):
    """A cost is missing, misnamed, not finite or does not fit the program."""


class ParallelError(SimpipeError):
    """A parallel layout does not fit itself, the model or the machine."""


class OutputError(SimpipeError):
    """An output cannot be written or its ending names no format."""


def show(value: object) -> str:
    """The value as an error shows it: one short line."""
    if isinstance(value, int) and value.bit_length() > 64:
        return f"a number of {value.bit_length()} bits"
    if isinstance(value, dict | list | tuple | set | frozenset):
        return "a table" if isinstance(value, dict) else f"a list of {len(value)}"
    text = json.dumps(value) if value is None or isinstance(value, bool) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def nearest(key: object, known: Iterable[str]) -> str:
    """A hint at what was meant."""
    names = list(known)
    close = difflib.get_close_matches(str(key)[:80].lower(), names, 1)
    return f"did you mean {close[0]}?" if close else f"there are {', '.join(names)}"
