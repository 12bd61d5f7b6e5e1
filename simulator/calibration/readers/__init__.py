"""Readers of timings: one module a format, each with `recognises(head)` and `read(path, data, classes)`."""

from __future__ import annotations

import pkgutil
from importlib import import_module
from pathlib import Path

from simpipe.simulator.calibration.classes import Classes
from simpipe.simulator.calibration.timings import Timings, TimingsError, read_bytes

HEAD = 65_536
"""Bytes of a file by which its format is recognised."""


def read(source: str, classes: Classes) -> Timings:
    """The timings of a file of any known format. Raises TimingsError, one sentence."""
    path = Path(source)
    if path.is_dir():
        raise TimingsError(f"{path}: is a folder; name the files in it")
    data = read_bytes(path)
    head = bytes(data[:HEAD])
    modules = sorted(info.name for info in pkgutil.iter_modules(__path__))
    known = [import_module(f"{__name__}.{name}") for name in modules]
    for module in known:
        if module.recognises(head):
            try:
                return module.read(path, data, classes)  # type: ignore[no-any-return]
            except UnicodeDecodeError as error:
                raise TimingsError(f"{path}: is no text where it should be: {error.reason}") from None
            except OverflowError as error:
                raise TimingsError(f"{path}: a number in it is too large: {error}") from None
    formats = "; ".join(module.FORMAT for module in known)
    raise TimingsError(f"{path}: is none of the formats that are read: {formats}")
