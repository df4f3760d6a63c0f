"""What a search varies: numbers of a recipe, each in a range, or words of a list."""

import math
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Annotated, Any, cast

from pydantic import Field, model_validator

from taskvec.arguments import brief
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.searching.places import Keys, Places, Plain, at, label, put

Scalar = bool | int | float | str
DIGITS = 6
"""Significant digits of a candidate's numbers: a recipe that reads well says exactly what was measured."""
MOST = 1000
"""Numbers that are varied, at most."""


class Varied(Config):
    """In place of a number of a recipe: the range that it is searched in, or a list of choices."""

    search: tuple[float, float] | None = None
    """The lowest and the highest value."""
    choices: Annotated[tuple[Scalar, ...], Field(max_length=100)] | None = None
    """Values in an order: neighbours should do alike."""
    integer: bool = False
    """Whole numbers only."""
    start: Scalar | None = None
    """Where the search starts; by default the middle."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "Varied":
        if (self.search is None) == (self.choices is None):
            raise ValueError("expected search: [LOW, HIGH] or choices: [A, B, …]")
        if self.choices is not None and (len(set(map(repr, self.choices))) < max(2, len(self.choices))):
            raise ValueError("choices: expected two or more, each once")
        if self.search is not None:
            low, high = self.search
            if not low < high:
                raise ValueError(f"an empty range {low:g}..{high:g}, expected a lower end, then a higher one")
            if self.integer and not (low.is_integer() and high.is_integer()):
                raise ValueError(f"the range {low:g}..{high:g}, expected whole ends for whole numbers")
        return self

    def holds(self, value: object) -> bool:
        """Whether a value is one of those that are searched."""
        if self.search is None:
            return value in (self.choices or ())
        return isinstance(value, int | float) and self.search[0] <= value <= self.search[1]


@dataclass(frozen=True)
class Dimension:
    """A number of a recipe that is varied.

    Attributes:
        path: what the user calls it.
        keys: where it stands in the plain data.
        low, high: its range; of choices that of their places in the list.
        start: in the range.
    """

    path: str
    keys: Keys
    low: float
    high: float
    start: float
    integer: bool = False
    choices: tuple[Scalar, ...] = ()

    def number(self, share: float) -> float:
        """The number at a share of the range, from 0 to 1."""
        number = self.low + min(1.0, max(0.0, share)) * (self.high - self.low)
        if self.integer:
            return float(math.floor(number + 0.5))
        return min(self.high, max(self.low, float(f"{number:.{DIGITS}g}")))

    def share(self, number: float) -> float:
        """The share of the range at a number."""
        return (number - self.low) / (self.high - self.low)

    def value(self, number: float) -> Scalar:
        """What the recipe gets."""
        if self.choices:
            return self.choices[int(number)]
        return int(number) if self.integer else number

    def record(self) -> dict[str, object]:
        """As plain data."""
        kind = {"choices": list(self.choices)} if self.choices else {"low": self.low, "high": self.high}
        return {"path": self.path, **kind, **({"integer": True} if self.integer else {}), "start": self.start}


Numbers = tuple[float, ...]
"""A candidate: a number for each dimension."""


@dataclass(frozen=True)
class Space:
    """All candidates of a search."""

    content: Mapping[str, Any]
    """The recipe with every number at its start."""
    dimensions: tuple[Dimension, ...]

    @property
    def start(self) -> Numbers:
        """The recipe's own numbers."""
        return tuple(dimension.start for dimension in self.dimensions)

    def numbers(self, shares: Sequence[float]) -> Numbers:
        """The candidate at a point of the unit box."""
        return tuple(d.number(float(share)) for d, share in zip(self.dimensions, shares, strict=True))

    def values(self, numbers: Sequence[float]) -> dict[str, Scalar]:
        """By path, what a candidate's recipe has."""
        return {d.path: d.value(number) for d, number in zip(self.dimensions, numbers, strict=True)}

    def recipe(self, numbers: Sequence[float]) -> dict[str, Any]:
        """The plain data of a candidate's recipe."""
        content = deepcopy(dict(self.content))
        for dimension, number in zip(self.dimensions, numbers, strict=True):
            put(content, dimension.keys, dimension.value(number))
        return Places.written(content)

    def record(self) -> list[dict[str, object]]:
        """As plain data."""
        return [dimension.record() for dimension in self.dimensions]


def open_space(where: str, content: Mapping[str, Any], vary: Mapping[str, Varied]) -> Space:
    """The candidates that a recipe and options describe.

    Args:
        where: the file of the recipe, for messages.
        content: its plain data, with ``{search: [LOW, HIGH]}`` in place of some numbers.
        vary: path of a number -> its range; ``*`` in a path stands for all vectors, anchors or entries.

    Raises: InputError for a path that leads to no number (with the nearest), a start outside the range, the
        same number twice, and for nothing to vary.
    """
    plain = _written_out(content)
    found = dict(_markers(where, plain, ()))
    for keys in found:
        put(plain, keys, None)
    places = Places(where, plain)
    given = [(keys, varied, f"{where}: {label(keys)}") for keys, varied in found.items()]
    for path, varied in vary.items():
        given += [(keys, varied, f"--vary {path}") for keys in places.find(path)]
    if not given:
        raise InputError(
            f"{where}: nothing to search; give --vary PATH=LOW..HIGH, or write {{search: [LOW, HIGH]}} in "
            f"place of a number; the paths of this recipe: {', '.join(places.known())}"
        )
    if len(given) > MOST:
        raise InputError(f"{where}: {len(given)} numbers to vary, expected {MOST} at most; leave some out")
    dimensions: dict[Keys, Dimension] = {}
    for keys, varied, option in given:
        if keys in dimensions:
            raise InputError(f"{option}: {label(keys)!r} is varied twice, expected one range for it")
        own = at(places.content, keys)
        if places.is_default(keys) and not isinstance(own, str) and not varied.holds(own):
            own = None
        dimensions[keys] = _dimension(option, keys, varied, own)
    for dimension in dimensions.values():
        put(places.content, dimension.keys, dimension.value(dimension.start))
    return Space(places.content, tuple(dimensions.values()))


def _written_out(node: Plain) -> Plain:
    """Plain data of which no part stands in two places, as aliases of YAML do."""
    if isinstance(node, Mapping):
        return {key: _written_out(value) for key, value in node.items()}
    return [_written_out(value) for value in node] if isinstance(node, list | tuple) else node


def _markers(where: str, node: Plain, keys: Keys) -> Sequence[tuple[Keys, Varied]]:
    """The places of ``{search: …}`` and ``{choices: …}`` in plain data."""
    if isinstance(node, Mapping):
        if "search" in node or "choices" in node:
            return [(keys, Varied.parse(f"{where}: {label(keys)}", node))]
        inner: list[tuple[Any, Any]] = list(node.items())
    else:
        inner = list(enumerate(node)) if isinstance(node, list) else []
    return [found for key, value in inner for found in _markers(where, value, (*keys, key))]


def _dimension(option: str, keys: Keys, varied: Varied, own: object) -> Dimension:
    """A range at a place, started where the recipe is."""
    start = own if varied.start is None else varied.start
    if varied.choices is not None:
        place = _place_of(option, start, varied.choices)
        last = len(varied.choices) - 1.0
        return Dimension(label(keys), keys, 0.0, last, place, integer=True, choices=varied.choices)
    low, high = cast("tuple[float, float]", varied.search)
    if start is None:
        start = (low + high) / 2 if not varied.integer else float((low + high) // 2)
    if isinstance(start, bool) or not isinstance(start, int | float):
        raise InputError(f"{option}: {brief(start)}, expected a number; vary one inside it")
    if not low <= start <= high:
        raise InputError(
            f"{option}: the recipe has {start:g}, outside of {low:g}..{high:g}, and the search starts there; "
            "widen the range, or change the recipe"
        )
    if varied.integer and not float(start).is_integer():
        raise InputError(f"{option}: the recipe has {start:g}, expected a whole number to start from")
    return Dimension(label(keys), keys, low, high, float(start), varied.integer)


def _place_of(option: str, start: object, choices: tuple[Scalar, ...]) -> float:
    if start is None:
        return 0.0
    if start not in choices:
        raise InputError(
            f"{option}: the recipe has {brief(start)}, none of the choices {', '.join(map(str, choices))}, "
            "and the search starts there; add it to them, or change the recipe"
        )
    return float(choices.index(start))


def parse_vary(texts: Sequence[str]) -> dict[str, Varied]:
    """``["scale=0.2..1.2", "parameters.k=1..8:integer", "rule=ties|sum"]`` by path.

    Raises: InputError.
    """
    varied: dict[str, Varied] = {}
    for text in texts:
        path, equals, range_ = text.partition("=")
        if not (equals and path.strip() and range_.strip()):
            raise InputError(f"--vary: {text!r}, expected PATH=LOW..HIGH, such as scale=0.2..1.2")
        name = path.strip()
        if name in varied:
            raise InputError(f"--vary: {name!r} is given twice, expected one range for it")
        varied[name] = _parse_range(f"--vary {name}", range_.strip())
    return varied


def _parse_range(where: str, text: str) -> Varied:
    from taskvec.config import parse_yaml

    if "|" in text:
        choices = [parse_yaml(part, where) for part in text.split("|")]
        if any(not isinstance(choice, bool | int | float | str) for choice in choices):
            raise InputError(f"{where}: {text!r}, expected numbers or words between the bars, A|B|C")
        return Varied.parse(where, {"choices": choices})
    ends, colon, kind = text.partition(":")
    low, dots, high = ends.partition("..")
    if not dots or (colon and kind.strip() != "integer"):
        raise InputError(
            f"{where}: {text!r}, expected a range LOW..HIGH, LOW..HIGH:integer, or choices A|B|C"
        )
    try:
        bounds = float(low), float(high)
    except ValueError:
        raise InputError(f"{where}: {ends!r}, expected two numbers, LOW..HIGH") from None
    return Varied.parse(where, {"search": bounds, "integer": bool(colon)})
