"""Figures of texts that a model wrote."""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain, pairwise
from typing import Any

from taskvec.arguments import brief
from taskvec.errors import InputError
from taskvec.reading import printable, shortened

Scoring = Callable[[list[str]], Sequence[float]]
"""From texts to a number each, such as the probability that a classifier gives to a trait."""


def distinct_2(texts: Sequence[str]) -> float | None:
    """Different pairs of neighbouring words as a share of all pairs, over all texts; none without a pair.

    Words are what white space parts. Near 0, a model repeats itself. Source: Li et al. 2016
    (arXiv:1510.03055), distinct-2.

    >>> distinct_2(["a b a b", "a b"])
    0.5
    """
    pairs = list(chain.from_iterable(pairwise(text.split()) for text in texts))
    return len(set(pairs)) / len(pairs) if pairs else None


def is_empty(text: str) -> bool:
    """Whether a text holds white space at most."""
    return not text.strip()


def plain(text: str) -> str:
    """A text as an exact match compares it: white space made one blank, none at the ends, case ignored.

    >>> plain("  New\\n York ") == plain("new york")
    True
    """
    return " ".join(text.split()).casefold()


def matches(text: str, answer: str) -> bool:
    """Whether a written text is the answer, as ``plain`` has them.

    Of a text that goes on behind the answer, as models do that were not trained to stop, as many lines are
    read as the answer has.

    >>> matches(" Paris\\nThe capital of", "paris")
    True
    """
    lines = text.strip().splitlines()[: len(answer.strip().splitlines())]
    return plain("\n".join(lines)) == plain(answer)


def scored(function: Scoring, texts: Sequence[str], where: str) -> list[float]:
    """A number for each text.

    Args:
        where: what a message calls the function.

    Raises: InputError, one line, if the function raises, or gives anything but a finite number a text.
    """
    try:
        given: object = function(list(texts))
    except Exception as error:
        reason = printable(shortened(" ".join(str(error).split()), 160))
        raise InputError(
            f"{where}: raised {type(error).__name__}: {reason}, given {len(texts)} texts; expected a list of "
            "as many numbers"
        ) from error
    numbers = _listed(given)
    if numbers is None or len(numbers) != len(texts):
        found = brief(given) if numbers is None else f"{len(numbers)} numbers"
        raise InputError(f"{where}: gave {found}, expected {len(texts)}, one for each text")
    return list(_numbers(numbers, where))


def _listed(given: Any) -> list[object] | None:
    """A list, an array or a tensor as a list; none for anything else."""
    if isinstance(given, str | bytes | dict):
        return None
    try:
        return list(given.tolist() if hasattr(given, "tolist") else given)
    except TypeError:
        return None


def _numbers(numbers: Sequence[Any], where: str) -> Iterator[float]:
    for place, number in enumerate(numbers, start=1):
        try:
            figure = float(number)
        except (TypeError, ValueError):
            raise InputError(f"{where}: gave {brief(number)} for text {place}, expected a number") from None
        if not math.isfinite(figure):
            raise InputError(f"{where}: gave {figure} for text {place}, expected a finite number")
        yield figure
