"""Classes: what a kernel is by its name, and a named range by its, as a file of patterns says."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from simpipe.simulator.calibration.timings import TimingsError

OWN = Path(__file__).with_name("kernel_classes.toml")

COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all", "broadcast", "send_recv")
COMMUNICATION = ("dispatch", "combine", "wait", *COLLECTIVES, "communication")
"""Classes of kernels that move bytes between GPUs, or wait for those that do."""

COMPUTATION = ("gemm", "grouped_gemm", "attention_forward", "attention_backward", "memory_bound")

GUESS = "memory_bound"
"""What a kernel is taken for that no pattern knows: most kernels of a model move bytes."""


class Classes(NamedTuple):
    """Rules in the order in which they are tried: (pattern, class), and (pattern, pass and part of the layer)."""

    kernels: tuple[tuple[re.Pattern[str], str], ...]
    ranges: tuple[tuple[re.Pattern[str], tuple[str, str]], ...]

    def of_kernels(self, names: Iterable[str]) -> dict[str, tuple[str, bool]]:
        """The class of each name, and whether it is a guess."""
        return {name: self._kernel(name) for name in set(names)}

    def _kernel(self, name: str) -> tuple[str, bool]:
        found = next((of for pattern, of in self.kernels if pattern.search(name)), None)
        return (GUESS, True) if found is None else (found, False)

    def part(self, name: str) -> tuple[str, str] | None:
        """The pass and the part of a layer that a named range is of."""
        return next((part for pattern, part in self.ranges if pattern.search(name)), None)


def read(path: str | None = None) -> Classes:
    """The rules that come with simpipe, behind those of the user's own file. Raises TimingsError."""
    own = _read(OWN)
    if path is None:
        return own
    first = _read(Path(path))
    return Classes(first.kernels + own.kernels, first.ranges + own.ranges)


def _read(path: Path) -> Classes:
    try:
        tree = tomllib.loads(path.read_bytes().decode())
    except OSError as error:
        raise TimingsError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise TimingsError(f"{path}: is not TOML: {error}") from None
    kernels = [(_pattern(path, rule), _class(path, rule)) for rule in _rules(path, tree, "kernel", "class")]
    ranges = [(_pattern(path, rule), _part(path, rule)) for rule in _rules(path, tree, "range", "part")]
    return Classes(tuple(kernels), tuple(ranges))


def _rules(path: Path, tree: dict[str, Any], kind: str, says: str) -> list[Mapping[str, Any]]:
    unknown = set(tree) - {"kernel", "range"}
    rules = tree.get(kind, [])
    if unknown or not isinstance(rules, list):
        raise TimingsError(f"{path}: holds [[kernel]] and [[range]] rules, not {', '.join(unknown) or kind}")
    for number, rule in enumerate(rules, 1):
        if not isinstance(rule, dict) or set(rule) != {"pattern", says}:
            raise TimingsError(f"{path}: {kind} rule {number} has `pattern` and `{says}`, no more and no less")
    return rules


def _pattern(path: Path, rule: Mapping[str, Any]) -> re.Pattern[str]:
    try:
        return re.compile(rule["pattern"], re.IGNORECASE)
    except (re.error, TypeError, RecursionError) as error:
        raise TimingsError(f"{path}: pattern {rule['pattern']!r} is no regular expression: {error}") from None


def _class(path: Path, rule: Mapping[str, Any]) -> str:
    if rule["class"] not in (*COMMUNICATION, *COMPUTATION, "ignore"):
        known = ", ".join((*COMPUTATION, *COMMUNICATION, "ignore"))
        raise TimingsError(f"{path}: class {rule['class']!r} of pattern {rule['pattern']!r} is none of {known}")
    return str(rule["class"])


def _part(path: Path, rule: Mapping[str, Any]) -> tuple[str, str]:
    part = rule["part"]
    passes, parts = ("forward", "input", "weight"), ("attention", "mlp", "dispatch", "combine")
    if not (isinstance(part, list) and len(part) == 2 and part[0] in passes and part[1] in parts):
        raise TimingsError(
            f"{path}: part of pattern {rule['pattern']!r} is one of {', '.join(passes)} and one of {', '.join(parts)}, "
            f"not {part!r}"
        )
    return part[0], part[1]
