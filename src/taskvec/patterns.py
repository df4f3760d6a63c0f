"""Regular expressions that files and users give, bounded in time and size."""

import math
import re
from collections.abc import Callable
from time import perf_counter
from typing import Any, Protocol, cast

from taskvec.errors import InputError
from taskvec.reading import shortened

SECONDS = 2.0
"""How long one pattern may take for all the names it is tried on."""

LENGTH = 4096
_REPEATS = 10_000
"""The product of all counted repetitions of a pattern, such as ``{3}``: the matcher writes them out."""

_COUNTED = re.compile(r"\{(\d*)(?:,(\d*))?\}")


class Match(Protocol):
    """What a pattern found: the part of :class:`re.Match` that is used here."""

    def __getitem__(self, group: int, /) -> str | None:
        """What a group holds."""

    def start(self) -> int:
        """Where the match begins."""


class Stopwatch:
    """How many seconds are left, for all patterns that share it."""

    def __init__(self, seconds: float = SECONDS) -> None:
        self.left = seconds


class Pattern:
    """A compiled regular expression, in Python's syntax.

    A backtracking matcher takes exponential time for some patterns, and a linear one has no lookaround, which
    people use to leave tensors out. So time is bounded instead.

    Args:
        text: the expression.
        where: the file, field or option that holds it; opens messages.
        watch: of patterns that may take the time of one together.
        within: what is matched, with ``{}`` where the expression goes.

    Raises: InputError for what is no expression or too large; while matching, for one that takes too long.
    """

    def __init__(self, text: str, where: str, watch: Stopwatch | None = None, *, within: str = "{}") -> None:
        import regex  # takes 30 ms, and most commands match no pattern

        self.text, self.where = text, where
        self._watch = watch or Stopwatch()
        if len(text) > LENGTH or _written_out(text) > _REPEATS:
            raise InputError(
                f"{where}: {_quoted(text)} is too large a regular expression; write a simpler one"
            )
        try:
            self.groups = re.compile(text).groups
            self._compiled: Any = regex.compile(within.format(text))
        except (re.error, regex.error, RecursionError, OverflowError) as error:
            raise InputError(f"{where}: {_quoted(text)} is not a regular expression ({error})") from None

    def fullmatch(self, name: str) -> Match | None:
        """The match of the whole of ``name``."""
        return self._bounded(self._compiled.fullmatch, name)

    def match(self, name: str) -> Match | None:
        """The match at the beginning of ``name``."""
        return self._bounded(self._compiled.match, name)

    def search(self, name: str) -> Match | None:
        """The first match anywhere in ``name``."""
        return self._bounded(self._compiled.search, name)

    def _bounded(self, find: Callable[..., object], name: str) -> Match | None:
        begun = perf_counter()
        try:
            if self._watch.left <= 0:
                raise TimeoutError
            return cast("Match | None", find(name, timeout=self._watch.left))
        except TimeoutError:
            raise InputError(
                f"{self.where}: {_quoted(self.text)} takes more than {SECONDS:g} s on tensor names; "
                "repeat no group that holds a repetition itself"
            ) from None
        finally:
            self._watch.left -= perf_counter() - begun


def _written_out(text: str) -> int:
    counts = (int(number) for pair in _COUNTED.findall(text) for number in pair if number)
    return math.prod(max(1, count) for count in counts)


def _quoted(text: str) -> str:
    return repr(shortened(text, 60))
