"""Figures of candidates, as programs and functions give them."""

import json
import math
import re
from collections.abc import Container, Mapping
from statistics import fmean
from typing import Any

from taskvec.errors import TaskvecError
from taskvec.tasks.score import LOWER_IS_BETTER

_NUMBER = re.compile(
    r"(?<![\w.])[-+]?(?:(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?|nan|inf(?:inity)?)(?!\.?\w)", re.IGNORECASE
)
_LESS = LOWER_IS_BETTER | {"ppl", "nll", "cross_entropy", "error", "error_rate", "wer", "cer", "mae", "rmse"}
"""What programs call figures of which less is better."""

_OBJECT = re.compile(r"^[ \t]*\{", re.MULTILINE)
_DECODER = json.JSONDecoder()

_WORDS = re.compile(r"[./:\s-]")
"""What may stand before the name of a metric, beside ``_``."""


def less_is_better(name: str) -> bool:
    """Whether less of a figure of this name is better: perplexity, loss and their like.

    >>> less_is_better("val_loss"), less_is_better("wiki.ppl"), less_is_better("accuracy")
    (True, True, False)
    """
    plain = "_" + _WORDS.sub("_", name.lower())
    return plain.endswith(tuple(f"_{metric}" for metric in _LESS))


def mean_of(values: Mapping[str, float], lower: Container[str]) -> float:
    """The mean of figures, of which those in ``lower`` count by their reciprocals, as protocols compare them.

    Where all are, in their own unit again.

    >>> mean_of({"a": 0.5, "b": 1.0}, ()), mean_of({"a": 2.0, "b": 4.0}, ("a", "b"))
    (0.75, 2.6666666666666665)
    """
    signed = [_reciprocal(value) if name in lower else value for name, value in values.items()]
    mean = fmean(signed)
    return _reciprocal(mean) if all(name in lower for name in values) else mean


def _reciprocal(value: float) -> float:
    return 1 / value if value else math.inf


def printed_figures(text: str, where: str) -> dict[str, float]:
    """What a program printed last: a JSON object of figures, or a number, which is called ``score``.

    >>> printed_figures("loaded\\nacc: 0.5 of 1", "x"), printed_figures('{"acc": 0.5, "by": {"a": 1}}', "x")
    ({'score': 1.0}, {'acc': 0.5, 'by.a': 1.0})

    Raises: TaskvecError, which opens with ``where``, if there is neither.
    """
    found, rest = _last_object(text)
    numbers = _NUMBER.findall(rest)
    if found and not numbers:
        return found
    if not numbers:
        lines = [line for line in text.splitlines() if line.strip()]
        last = f"and last {lines[-1].strip()[:80]!r}" if lines else "nothing at all"
        raise TaskvecError(
            f"{where}: printed no number, {last}; expected the score, or a JSON object of figures, on "
            "standard output"
        )
    return {"score": float(numbers[-1])}


def _last_object(text: str) -> tuple[dict[str, float], str]:
    """The figures of the last JSON object that begins a line, and what is printed after it."""
    figures: dict[str, float] = {}
    end = last = 0
    for found in _OBJECT.finditer(text):
        if found.end() <= end:
            continue  # inside the one before
        try:
            content, end = _DECODER.raw_decode(text, found.end() - 1)
        except (ValueError, RecursionError):
            continue
        named = dict(_flat(content))
        figures, last = (named, end) if named else (figures, last)
    return figures, text[last:]


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, float]]:
    """The numbers in nested objects, under their names with dots between."""
    found: list[tuple[str, float]] = []
    for name, value in content.items():
        if isinstance(value, dict):
            found += _flat(value, f"{prefix}{name}.")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((f"{prefix}{name}", float(value)))
    return found


def returned_figures(result: object, where: str) -> dict[str, float]:
    """What a function returned: named numbers, or one, which is called ``score``.

    Raises: TaskvecError, which opens with ``where``, for anything else.
    """
    named = result if isinstance(result, Mapping) else {"score": result}
    if not named:
        raise TaskvecError(f"{where}: returned no figures, expected a number or a mapping of them")
    return {str(name): _number(value, f"{where}: {name}") for name, value in named.items()}


def _number(value: Any, where: str) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError):
        raise TaskvecError(f"{where}: {type(value).__name__}, expected a number") from None
