"""Values of a recipe: one for the whole model, by the name of the tensor, or along its depth.

A number, a word or a list of them holds for every tensor. A mapping with the key ``gradient`` is a line
through anchor values over the blocks of the model, one with the key ``filters`` goes by names, and a mapping
from the names of the vectors gives each its own value.
"""

from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from difflib import get_close_matches
from functools import cached_property
from typing import Annotated, Any, cast, get_args, get_origin

from pydantic import BeforeValidator, ConfigDict, Field

from taskvec.config import Config
from taskvec.edits.inputs import errors_at
from taskvec.errors import InputError, and_more
from taskvec.names import block_depths
from taskvec.patterns import Pattern
from taskvec.registry import nearest
from taskvec.rules import Rule
from taskvec.weights.dtypes import LARGEST

FORMS = ("default", "filters", "gradient")
"""Keys of values, which no vector may be called."""


_Scalar = bool | int | float | str
Plain = _Scalar | list[_Scalar]


def _plain(value: object) -> object:
    """A number, a word or a list of them, as it is.

    Raises: ValueError for anything else, and for NaN and infinity.
    """
    for scalar in value if isinstance(value, list) else [value]:
        if not isinstance(scalar, _Scalar):
            kind = "nothing" if scalar is None else f"a {type(scalar).__name__}"
            raise ValueError(f"{kind}, expected a number, a word or a list of them")
        if isinstance(scalar, int | float) and not abs(scalar) <= LARGEST:
            raise ValueError(f"{scalar!s:.20}, expected a finite number that float32 can hold")
    return value


class Documented(Config):
    """Settings whose JSON schema says what each key is for."""

    model_config = ConfigDict(use_attribute_docstrings=True)


class Gradient(Documented):
    """A line through anchor values, equally spaced from the first block of the model to the last."""

    gradient: tuple[Annotated[float, Field(ge=-LARGEST, le=LARGEST)], ...] = Field(min_length=2)
    default: Annotated[Plain, BeforeValidator(_plain)] | None = None
    """For tensors that are in no block."""


class Filter(Documented):
    """The value of the tensors whose name matches."""

    match: str = Field(min_length=1)
    """A part of the name, or ``re:PATTERN``, a regular expression that whole names match."""
    value: "Value"

    def matches(self, name: str) -> bool:
        """Whether the value is that of a tensor."""
        return self.match in name if self._pattern is None else self._pattern.fullmatch(name) is not None

    @cached_property
    def _pattern(self) -> Pattern | None:
        kind, colon, expression = self.match.partition("re:")
        return Pattern(expression, "match") if colon and not kind else None


class Filters(Documented):
    """The first filter that matches a tensor's name gives its value."""

    filters: tuple[Filter, ...] = Field(min_length=1)
    default: "Value | None" = None
    """For tensors that none matches."""


def _value(raw: object) -> object:
    """Parse a value by the key that tells its form."""
    if isinstance(raw, Gradient | Filters):
        return raw
    if isinstance(raw, Mapping):
        form = Gradient if "gradient" in raw else Filters if "filters" in raw else None
        if form is None and not {"search", "choices"}.isdisjoint(raw):
            raise ValueError("a range to be searched, expected a number; find it with taskvec search")
        if form is None:
            known = nearest(str(next(iter(raw), "")), ("gradient", "filters"))
            raise ValueError(f"a mapping with the keys {sorted(map(str, raw))}; {known}")
        try:
            return form.parse("", raw)
        except InputError as error:
            raise ValueError(str(error)) from None
    return _plain(raw)


def _each(raw: object) -> object:
    """A value, a mapping from names to values, or nothing."""
    if raw is None:
        return None
    if isinstance(raw, Mapping) and not {"gradient", "filters"} & raw.keys():
        return {str(name): _named(str(name), value) for name, value in raw.items()}
    return _value(raw)


def _named(name: str, raw: object) -> object:
    try:
        return None if raw is None else _value(raw)
    except ValueError as error:
        form = get_close_matches(name, FORMS, n=1)
        hint = f"; did you mean {form[0]!r}?" if form else ""
        raise ValueError(f"{name}: {error}{hint}") from None


Value = Annotated[Plain | Gradient | Filters, BeforeValidator(_value)]
Each = Annotated[Plain | Gradient | Filters | dict[str, Value | None] | None, BeforeValidator(_each)]
Filter.model_rebuild()
Filters.model_rebuild()


def is_constant(value: "Plain | Gradient | Filters | Mapping[str, Any] | None") -> bool:
    """Whether a value is the same for all tensors."""
    if isinstance(value, Mapping):
        return all(map(is_constant, value.values()))
    return not isinstance(value, Gradient | Filters)


def value_at(value: Plain | Gradient | Filters, name: str, depth: float | None) -> Plain | None:
    """The value for one tensor; ``None`` where it gives none.

    Args:
        depth: 0 for the first block to 1 for the last, ``None`` outside the blocks.
    """
    if isinstance(value, Gradient):
        return value.default if depth is None else interpolate(value.gradient, depth)
    if not isinstance(value, Filters):
        return value
    for entry in value.filters:
        given = value_at(entry.value, name, depth) if entry.matches(name) else None
        if given is not None:
            return given
    return None if value.default is None else value_at(value.default, name, depth)


def interpolate(anchors: Sequence[float], depth: float) -> float:
    """The piecewise linear function through equally spaced anchors, at a depth from 0 to 1.

    A truth value holds up to the next anchor.

    >>> interpolate([0, 1, 4], 0.75)
    2.5
    """
    place = depth * (len(anchors) - 1)
    left = int(place)
    right, share = min(left + 1, len(anchors) - 1), place - left
    if isinstance(anchors[left], bool):
        return anchors[left]
    return (1 - share) * anchors[left] + share * anchors[right]


def inner_values(value: Plain | Gradient | Filters) -> Iterator[Plain | Gradient | Filters]:
    """A value and, if it has filters, all values inside it."""
    yield value
    if isinstance(value, Filters):
        chosen = [entry.value for entry in value.filters]
        for inner in chosen if value.default is None else [*chosen, value.default]:
            yield from inner_values(inner)


def settle(
    where: str,
    value: Plain | Gradient | Filters,
    names: Sequence[str],
    edited: Iterable[str],
    behind: Container[str] = (),
) -> dict[str, Plain]:
    """The value of every edited tensor.

    Args:
        where: the field, to open messages.
        names: every tensor that could be edited.
        edited: those that are; each must get a value.
        behind: those in blocks behind the last layer, which count as outside the blocks.

    Raises: InputError for a filter or a gradient that matches nothing, and for a tensor left without value.
    """
    # Depth is that of the whole model, however few tensors a filter is about.
    along = any(isinstance(inner, Gradient) for inner in inner_values(value))
    depths = block_depths(names, behind=behind) if along else {}
    _check_used(where, value, names, depths)
    settled = {name: value_at(value, name, depths.get(name)) for name in edited}
    bare = [name for name, given in settled.items() if given is None]
    if bare:
        what = "filter" if isinstance(value, Filters) else "block"
        raise InputError(f"{where}: no {what} gives {bare[0]!r} a value{and_more(bare)}; add a default")
    return cast("dict[str, Plain]", settled)


def zero_at(
    value: Plain | Gradient | Filters, names: Sequence[str], behind: Container[str] = ()
) -> frozenset[str]:
    """The tensors at which a value that is not the same for all is zero."""
    if is_constant(value):
        return frozenset()
    depths = block_depths(names, behind=behind)
    return frozenset(name for name in names if value_at(value, name, depths.get(name)) == 0)


def _check_used(
    where: str, value: Plain | Gradient | Filters, names: Sequence[str], depths: Mapping[str, float]
) -> None:
    """Refuse filters and gradients that no tensor gets a value from."""
    if isinstance(value, Gradient) and not depths:
        raise InputError(
            f"{where}: a gradient, but no tensor is in a numbered block, the first is "
            f"{next(iter(names), 'none')!r}; give one value, or filters"
        )
    if not isinstance(value, Filters):
        return
    left = set(names)
    for place, entry in enumerate(value.filters, start=1):
        here = f"{where}: filter {place} ({entry.match!r})"
        with errors_at(here):
            matched = list(filter(entry.matches, names))
        if not matched:
            raise InputError(
                f"{here}: no tensor's name matches, the last is {names[-1]!r}; correct it or leave it out"
            )
        if left.isdisjoint(matched):
            raise InputError(f"{here}: all it matches is taken by earlier filters; put it before them")
        _check_used(here, entry.value, names, depths)
        left -= {name for name in matched if value_at(entry.value, name, depths.get(name)) is not None}
    if value.default is not None:
        _check_used(f"{where}: default", value.default, names, depths)


def split_parameters(
    rule: Rule,
    given: Mapping[str, Any],
    vectors: Sequence[str],
    names: Sequence[str],
    edited: Sequence[str],
    behind: Container[str] = (),
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """The parameters of a rule, and those of single tensors.

    Args:
        given: as in a recipe.
        vectors: their names, in order.
        names: every tensor that could be edited.
        edited: those that are.
        behind: those in blocks behind the last layer.

    Returns: parameters for the model, those that vary being those of its first tensor; tensor -> parameters.
    Raises: InputError.
    """
    params: dict[str, Any] = {}
    each: dict[str, dict[str, Any]] = {name: {} for name in edited}
    known = rule.parameters()
    for field, value in given.items():
        if field not in known:
            raise InputError(f"rule {rule.name!r}: unknown parameter {field!r}; {nearest(field, known)}")
        where = f"parameters.{field}"
        if isinstance(value, Mapping) and not _takes_mapping(rule, field):
            if not value:
                raise InputError(f"{where}: an empty mapping, expected a value")
            value = order_by_vector(where, value, vectors)
            value = list(value.values()) if is_constant(value) else value
        if is_constant(value):
            params[field] = _for_each(field, _numbered(field, value, vectors), len(vectors))
            continue
        for name, settled in _varying(where, value, names, edited, behind).items():
            each[name][field] = _for_each(field, settled, len(vectors))
    params |= next(iter(each.values()), {})
    return params, {name: values for name, values in each.items() if values}


def _takes_mapping(rule: Rule, field: str) -> bool:
    """Whether a parameter is a mapping itself, such as the options of a rule inside another."""
    return any(get_origin(kind) is Mapping for kind in get_args(rule.keywords[field].annotation))


def order_by_vector(where: str, value: Mapping[str, Any], vectors: Sequence[str]) -> dict[str, Any]:
    """A mapping from vectors to anything, in the order of the vectors.

    Raises: InputError for a name that is no vector's, and for a vector without value.
    """
    for name in value:
        if name not in vectors:
            hint = nearest(name, [*vectors, *FORMS])
            raise InputError(f"{where}: no vector or model called {name!r}; {hint}")
    lacking = [name for name in vectors if name not in value]
    if lacking and value:
        raise InputError(f"{where}: no value for {lacking[0]!r}, expected one for each vector and model")
    return {name: value[name] for name in vectors if name in value}


def _varying(
    where: str, value: Any, names: Sequence[str], edited: Sequence[str], behind: Container[str]
) -> Mapping[str, Any]:
    """Tensor name -> the value, or a list with the value of each vector."""
    if not isinstance(value, dict):
        return settle(where, value, names, edited, behind)
    columns = [settle(f"{where}.{vector}", given, names, edited, behind) for vector, given in value.items()]
    return {name: [column[name] for column in columns] for name in edited}


def _numbered(field: str, value: Any, vectors: Sequence[str]) -> Any:
    """The number of the vector that a ``target`` names."""
    if field != "target" or not isinstance(value, str):
        return value
    if value not in vectors:
        raise InputError(
            f"parameters.{field}: no vector or model called {value!r}; {nearest(value, vectors)}"
        )
    return list(vectors).index(value)


def _for_each(field: str, value: Any, vectors: int) -> Any:
    """One weight stands for that of every vector; nothing, for the rule's own choice."""
    return [value] * vectors if field == "weights" and not isinstance(value, list | None) else value
