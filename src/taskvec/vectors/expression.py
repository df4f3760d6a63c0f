"""Expressions over named task vectors: ``0.4*a + 0.4*b - 0.3*c``. Parsed, never evaluated as Python."""

import ast
import math
import operator
import warnings
from collections import Counter
from collections.abc import Callable, Mapping

from taskvec.errors import InputError, UnknownName
from taskvec.registry import nearest
from taskvec.vectors.vector import TaskVector

LENGTH = 100_000
"""Characters of the longest expression."""


def parse_expression(text: str, vectors: Mapping[str, TaskVector]) -> TaskVector:
    """The vector that an expression of numbers, names, ``+ - * /`` and parentheses stands for.

    Each name may stand once: a second one is more likely a slip than a sum.

    Raises: UnknownName with the nearest name; InputError for anything that is no linear expression.

    >>> parse_expression("a + 0.5 * (b - c)", {"a": a, "b": b, "c": c}) == a + 0.5 * b - 0.5 * c
    True
    """
    value = _value(_parsed(text), text, vectors)
    if not isinstance(value, TaskVector):
        raise InputError(f"expression {_brief(text)}: comes to the number {value:g}, expected a task vector")
    return value


def names_in(text: str) -> list[str]:
    """The names in an expression, in order.

    Raises: InputError if it does not parse, or a name stands twice.
    """
    nodes = [node for node in ast.walk(_parsed(text)) if isinstance(node, ast.Name)]
    names = [node.id for node in sorted(nodes, key=lambda node: (node.lineno, node.col_offset))]
    for name, times in Counter(names).items():
        if times > 1:
            raise InputError(f"expression {_brief(text)}: {name!r} stands {times} times, expected once")
    return names


def _parsed(text: str) -> ast.expr:
    if len(text) > LENGTH:
        raise InputError(f"expression {_brief(text)}: {len(text):,} characters, expected {LENGTH:,} at most")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what is refused anyway
            return ast.parse(text.strip(), mode="eval").body
    except SyntaxError as error:
        what, place = error.msg.partition(":")[0], f" at column {error.offset}" if error.offset else ""
        raise InputError(f"expression {_brief(text)}: {what}{place}") from None
    except (ValueError, RecursionError, MemoryError):
        raise InputError(f"expression {_brief(text)}: cannot be parsed; is it nested too deeply?") from None


def _value(node: ast.expr, text: str, vectors: Mapping[str, TaskVector]) -> TaskVector | float:
    names = names_in(text)
    for name in names:
        if name not in vectors:
            raise UnknownName(
                f"expression {_brief(text)}: no vector called {name!r}; {nearest(name, vectors)}"
            )
    try:
        return _evaluated(node, vectors)
    except _NotLinear as problem:
        raise InputError(f"expression {_brief(text)}: {problem}") from None
    except RecursionError:
        raise InputError(f"expression {_brief(text)}: nested too deeply") from None


_OPERATORS: Mapping[type[ast.operator], Callable[..., TaskVector | float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


class _NotLinear(Exception):
    """The part of an expression that has no meaning here."""


def _evaluated(node: ast.expr, vectors: Mapping[str, TaskVector]) -> TaskVector | float:
    match node:
        case ast.Name(id=name):
            return vectors[name]
        case ast.Constant(value=bool()):
            pass
        case ast.Constant(value=int() | float() as number):
            return _finite(number)
        case ast.UnaryOp(op=ast.USub(), operand=inner):
            return -_evaluated(inner, vectors)
        case ast.UnaryOp(op=ast.UAdd(), operand=inner):
            return _evaluated(inner, vectors)
        case ast.BinOp(left=left, op=ast.Add() | ast.Sub() | ast.Mult() | ast.Div() as op, right=right):
            return _joined(op, _evaluated(left, vectors), _evaluated(right, vectors))
    raise _NotLinear(f"{_words(node)} found, expected numbers, names, + - * / and parentheses")


def _joined(op: ast.operator, left: TaskVector | float, right: TaskVector | float) -> TaskVector | float:
    vectors = [side for side in (left, right) if isinstance(side, TaskVector)]
    if isinstance(op, ast.Mult) and len(vectors) == 2:
        raise _NotLinear("a vector times a vector, expected a number on one side")
    if isinstance(op, ast.Div) and isinstance(right, TaskVector):
        raise _NotLinear("division by a vector, expected a number")
    if isinstance(op, ast.Div) and right == 0:
        raise _NotLinear("division by zero")
    if isinstance(op, ast.Add | ast.Sub) and len(vectors) == 1:
        raise _NotLinear("a number plus or minus a vector, expected two vectors")
    result = _OPERATORS[type(op)](left, right)
    if not isinstance(result, TaskVector):
        return _finite(result)
    scaled = len(vectors) == 1 and len(result.terms) < len(vectors[0].terms)
    number = left if right is vectors[0] else right
    if scaled and number:
        raise _NotLinear(f"a coefficient rounded to 0 (by {number:g}), expected 0 itself or a larger one")
    return result


def _words(node: ast.expr) -> str:
    """The part of an expression, in few words."""
    try:
        return _brief(ast.unparse(node))
    except (ValueError, RecursionError):  # a number too long to be written, or too many brackets
        return f"a {type(node).__name__.lower()}"


def _brief(text: str) -> str:
    return repr(text if len(text) <= 60 else text[:57] + "...")


def _finite(number: float) -> float:
    try:
        value = float(number)
    except OverflowError:
        value = math.inf
    if not math.isfinite(value):
        raise _NotLinear("a number too large, expected a finite coefficient")
    return value
