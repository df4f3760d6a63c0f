"""Values of a recipe: one for the whole model, by the name of the tensor, or along its depth.

A number, a word or a list of them holds for every tensor. A mapping with the key ``gradient`` is a line
through anchor values over the blocks of the model, one with the key ``filters`` goes by names, and a mapping
from the names of the vectors gives each its own value.
"""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any

from pydantic import BeforeValidator, Field

from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.registry import nearest
from taskvec.rules.lines import block_depths
from taskvec.selection import SELECTIONS

Scalar = bool | int | float | str
Plain = Scalar | list[Scalar]


def _plain(value: object) -> object:
    """A number, a word or a list of them, as it is.

    Raises: ValueError for anything else, and for NaN and infinity.
    """
    for one in value if isinstance(value, list) else [value]:
        if not isinstance(one, Scalar):
            found = "nothing" if one is None else f"a {type(one).__name__}"
            raise ValueError(f"{found}, expected a number, a word or a list of them")
        if isinstance(one, float) and not math.isfinite(one):
            raise ValueError(f"{one}, expected a finite number")
    return value


class Gradient(Config):
    """A line through anchor values, equally spaced from the first block of the model to the last."""

    gradient: tuple[float, ...] = Field(min_length=2)
    default: Annotated[Plain, BeforeValidator(_plain)] | None = None
    """For tensors that are in no block."""


class Filter(Config):
    """The value of the tensors whose name matches."""

    match: str = Field(min_length=1)
    """A selection (``attention``, ``mlp``, ...), ``re:PATTERN`` for whole names, or a part of the name."""
    value: "Value"


class Filters(Config):
    """The first filter that matches a tensor's name gives its value."""

    filters: tuple[Filter, ...] = Field(min_length=1)
    default: "Value | None" = None
    """For tensors that none matches."""


def _value(raw: object) -> object:
    """The form of a value, by the key that tells it."""
    if isinstance(raw, Gradient | Filters):
        return raw
    if isinstance(raw, Mapping):
        form = Gradient if "gradient" in raw else Filters if "filters" in raw else None
        if form is None:
            known = nearest(str(next(iter(raw), "")), ("gradient", "filters"))
            raise ValueError(f"a mapping with the keys {sorted(map(str, raw))}; {known}")
        return form.parse(form.__name__.lower(), raw)
    return _plain(raw)


def _each(raw: object) -> object:
    """A value, or a mapping from the names of vectors to values."""
    if isinstance(raw, Mapping) and not {"gradient", "filters"} & raw.keys():
        if not raw:
            raise ValueError("an empty mapping, expected a value")
        return {str(name): _named(str(name), value) for name, value in raw.items()}
    return _value(raw)


def _named(name: str, raw: object) -> object:
    try:
        return _value(raw)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


Value = Annotated[Plain | Gradient | Filters, BeforeValidator(_value)]
Each = Annotated[Plain | Gradient | Filters | dict[str, Value], BeforeValidator(_each)]
FORMS = ("default", "filters", "gradient")
"""Keys of values, which no vector may be called."""

Filter.model_rebuild()
Filters.model_rebuild()

Settled = Mapping[str, Plain]
"""Tensor name -> value."""


def constant(value: "Plain | Gradient | Filters | Mapping[str, Any]") -> bool:
    """Whether a value is the same for all tensors."""
    if isinstance(value, Mapping):
        return all(map(constant, value.values()))
    return not isinstance(value, Gradient | Filters)


def settle(
    where: str, value: Plain | Gradient | Filters, names: Sequence[str], edited: Iterable[str]
) -> Settled:
    """The value of every tensor.

    Args:
        where: the field, to open messages.
        names: every tensor that could be edited.
        edited: those that are; each must get a value.

    Raises: InputError for a filter or a gradient that matches nothing, and for a tensor left without value.
    """
    found = _settled(where, value, names)
    bare = [name for name in edited if name not in found]
    if bare:
        more = f" ({len(bare) - 1} more)" if len(bare) > 1 else ""
        what = "filter" if isinstance(value, Filters) else "block"
        raise InputError(f"{where}: no {what} gives {bare[0]!r} a value{more}; add a default")
    return found


def _settled(where: str, value: Plain | Gradient | Filters, names: Sequence[str]) -> dict[str, Plain]:
    if isinstance(value, Gradient):
        return _along_depth(where, value, names)
    if isinstance(value, Filters):
        return _by_name(where, value, names)
    return dict.fromkeys(names, value)


def _along_depth(where: str, value: Gradient, names: Sequence[str]) -> dict[str, Plain]:
    depths = block_depths(names)
    if not depths:
        raise InputError(
            f"{where}: a gradient, but no tensor is in a numbered block, the first is "
            f"{next(iter(names), 'none')!r}; give one value, or filters"
        )
    rest = {} if value.default is None else dict.fromkeys(names, value.default)
    return {**rest, **{name: interpolated(value.gradient, depth) for name, depth in depths.items()}}


def interpolated(anchors: Sequence[float], depth: float) -> float:
    """The piecewise linear function through equally spaced anchors, at a depth from 0 to 1.

    >>> interpolated([0, 1, 4], 0.75)
    2.5
    """
    place = depth * (len(anchors) - 1)
    left = min(int(place), len(anchors) - 2)
    return anchors[left] + (place - left) * (anchors[left + 1] - anchors[left])


def _by_name(where: str, value: Filters, names: Sequence[str]) -> dict[str, Plain]:
    found: dict[str, Plain] = {}
    for place, entry in enumerate(value.filters):
        here = f"{where}: filter {place + 1} ({entry.match!r})"
        matched = _matching(here, entry.match, names)
        if not matched:
            raise InputError(
                f"{here}: no tensor's name matches, the last is {names[-1]!r}; correct it or leave it out"
            )
        left = [name for name in matched if name not in found]
        if not left:
            raise InputError(f"{here}: all it matches is taken by earlier filters; put it before them")
        # Depth is that of the whole model, however few tensors the filter is about.
        settled = _settled(here, entry.value, names)
        found |= {name: settled[name] for name in left if name in settled}
    if value.default is not None:
        rest = _settled(f"{where}: default", value.default, names)
        found = {**rest, **found}
    return found


def _matching(where: str, match: str, names: Sequence[str]) -> list[str]:
    kind, colon, expression = match.partition(":")
    pattern = expression if colon and kind == "re" else SELECTIONS.get(match)
    if pattern is None:
        return [name for name in names if match in name]
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise InputError(f"{where}: not a regular expression ({error})") from None
    return [name for name in names if compiled.fullmatch(name)]
