"""Constraints: conditions on a row as a user writes them, `tp <= 8 and ep divides experts`.

They hold names, numbers, texts in quotes, + - * / // %, comparisons, `in [...]`, `divides`, and, or, not; nothing else.
"""

from __future__ import annotations

import ast
import operator
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from simpipe.simulator.errors import SimpipeError, nearest, show

MAX_LETTERS = 1_000

_BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.LShift: lambda a, b: b % a == 0,  # what `divides` is read as: it binds between + and <
}
_UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.Not: operator.not_, ast.USub: operator.neg}
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], bool]] = {
    ast.Eq: operator.eq,
    ast.NotEq: operator.ne,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.In: lambda a, b: a in b,
    ast.NotIn: lambda a, b: a not in b,
}


class ConstraintError(SimpipeError):
    """A constraint cannot be read or does not fit the values it is asked of."""


@dataclass(frozen=True)
class Constraint:
    """A condition. text: as it was written. names: those it holds."""

    text: str
    tree: ast.expr
    names: frozenset[str]

    @staticmethod
    def parse(text: Any) -> Constraint:
        """Raises ConstraintError for what is no condition."""
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_LETTERS:
            raise ConstraintError(f"a constraint is text, as `tp <= 8`, not {show(text)}")
        if "<<" in text:
            raise ConstraintError(f"constraint {show(text)}: << is not known here; write `divides`")
        try:
            tree = ast.parse(re.sub(r"\bdivides\b", "<<", text.strip()), mode="eval").body
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            raise ConstraintError(
                f"constraint {show(text)} cannot be read; write it as `tp <= 8 and ep divides experts`"
            ) from None
        _check(tree, text)
        names = frozenset(node.id for node in ast.walk(tree) if isinstance(node, ast.Name))
        return Constraint(text.strip(), tree, names)

    def holds(self, values: Mapping[str, Any]) -> bool:
        """Whether it is true of some values. Raises ConstraintError where one is missing or of the wrong kind."""
        try:
            return bool(_value(self.tree, values))
        except KeyError as error:
            name = str(error.args[0])
            raise ConstraintError(
                f"constraint {show(self.text)}: there is no {name!r}; {nearest(name, values)}"
            ) from None
        except (ArithmeticError, RecursionError, TypeError) as error:
            raise ConstraintError(f"constraint {show(self.text)} has no answer: {error}") from None


def _check(node: ast.AST, text: str) -> None:
    known = (ast.BoolOp, ast.And, ast.Or, ast.BinOp, ast.UnaryOp, ast.Compare, ast.Name, ast.Load, ast.Constant)
    for part in ast.walk(node):
        if not isinstance(part, (*known, ast.List, ast.Tuple, *_BINARY, *_UNARY, *_COMPARISONS)):
            raise ConstraintError(
                f"constraint {show(text)} holds {type(part).__name__}; it takes comparisons and arithmetic"
            )
        if isinstance(part, ast.Constant) and not isinstance(part.value, bool | int | float | str):
            raise ConstraintError(f"constraint {show(text)} holds {part.value!r}; it takes numbers and texts")


def _value(node: ast.expr, values: Mapping[str, Any]) -> Any:
    if isinstance(node, ast.Constant):
        return node.value
    if isinstance(node, ast.Name):
        return values[node.id]
    if isinstance(node, ast.BoolOp):
        every = isinstance(node.op, ast.And)
        return (all if every else any)(_value(part, values) for part in node.values)
    if isinstance(node, ast.UnaryOp):
        return _UNARY[type(node.op)](_value(node.operand, values))
    if isinstance(node, ast.BinOp):
        left, right = _value(node.left, values), _value(node.right, values)
        if not (isinstance(left, int | float) and isinstance(right, int | float)):  # text times a number may be huge
            raise TypeError(f"arithmetic takes numbers, not {show(right if isinstance(left, int | float) else left)}")
        return _BINARY[type(node.op)](left, right)
    if isinstance(node, ast.Compare):
        sides = [_value(part, values) for part in (node.left, *node.comparators)]
        pairs = zip(node.ops, sides, sides[1:], strict=False)
        return all(_COMPARISONS[type(op)](a, b) for op, a, b in pairs)
    assert isinstance(node, ast.List | ast.Tuple)
    return [_value(part, values) for part in node.elts]
