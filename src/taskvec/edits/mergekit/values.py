"""Parameters of mergekit's methods: read from the file as the values of a recipe."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from taskvec.edits.mergekit.known import PARAMETERS, nearest_parameter
from taskvec.edits.parameters import Filter, Filters, Gradient, Plain, inner_values
from taskvec.errors import InputError
from taskvec.registry import nearest

Value = Plain | Gradient | Filters
Scope = Mapping[str, Value]
"""Parameter -> value, by one place of the file."""


@dataclass(frozen=True)
class Parameter:
    """What a method takes.

    Attributes:
        kind: ``float``, ``int`` or ``bool``.
        default: what holds where nothing is given; ``None`` if a value must be.
        of: one value for a tensor (``tensor``), or one for each model (``model``).
        low, high: the range of numbers; ``low`` itself is outside it if ``above``.
        off: a number outside the range that some tensors, or one of the models, may have.
    """

    kind: type[float | int | bool]
    default: float | None = None
    of: Literal["tensor", "model"] = "tensor"
    low: float = -math.inf
    high: float = math.inf
    above: bool = False
    off: float | None = None

    def convert(self, where: str, value: object, *, inside: bool = False) -> float:
        """A scalar of the right kind and range; words that spell a number are numbers, as in ``1e-4``.

        Args:
            inside: whether it is the value of some tensors or of one model only.

        Raises: InputError.
        """
        if self.kind is bool:
            word = _TRUTHS.get(value.lower(), value) if isinstance(value, str) else value
            if word in (True, False):
                return bool(word)
            raise InputError(f"{where}: {value!r}, expected true or false")
        number = _number(value)
        if inside and number == self.off:
            return self.kind(number)
        whole = self.kind is float or number == number // 1
        if not whole or not self.low <= number <= self.high or (self.above and number == self.low):
            raise InputError(f"{where}: {value!r}, expected {self._range()}")
        return self.kind(number)

    def _range(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        low = "" if self.low == -math.inf else f"{'above' if self.above else 'at least'} {self.low:g}"
        high = "" if self.high == math.inf else f"up to {self.high:g}"
        return " ".join(filter(None, (noun, low, "and" if low and high else "", high)))


_TRUTHS = {
    word: truth
    for truth, words in ((True, "1 on t true y yes"), (False, "0 f false n no off"))
    for word in words.split()
}
"""Words that mergekit takes for true or false."""


def _number(value: object) -> float:
    """A finite number, or NaN, which is in no range."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        return math.nan
    return number if math.isfinite(number) else math.nan


def parse_scope(
    where: str, given: Mapping[str, Any], known: Mapping[str, Parameter], *, method: str, inside: bool = False
) -> Scope:
    """The parameters of one place of the file.

    Args:
        where: opens messages.
        known: what the method takes.
        inside: whether the place is about one of the models.

    Raises: InputError for parameters that are unknown or out of range.
    """
    check_names(where, given, known, method=method)
    return {name: _parse(f"{where}.{name}", raw, known[name], inside=inside) for name, raw in given.items()}


def check_names(where: str, names: Iterable[str], known: Iterable[str], *, method: str) -> None:
    """Refuse parameters that no method of mergekit has.

    Raises: InputError with the nearest name.
    """
    for name in names:
        if name not in PARAMETERS:
            hint = nearest_parameter(name, known)
            raise InputError(f"{where}: unknown parameter {name!r} of {method!r}; {hint}")


def _parse(where: str, raw: object, parameter: Parameter, *, inside: bool) -> Value:
    """One value, a list of them along depth, or an entry or a list of entries that go by name."""
    entries = [raw] if isinstance(raw, dict) else raw
    if isinstance(entries, list) and any(isinstance(entry, dict) for entry in entries):
        return _choice(_filters(where, entries, parameter))
    return _along_depth(where, raw, parameter, inside=inside)


def _filters(where: str, entries: Sequence[Any], parameter: Parameter) -> Iterator[Filter]:
    for number, entry in enumerate(entries):
        here = f"{where}[{number}]"
        if not isinstance(entry, dict) or "value" not in entry:
            raise InputError(f"{here}: {entry!r}, expected a mapping with value, and a filter or none")
        other = next((key for key in entry if key not in ("filter", "value")), None)
        if other is not None:
            raise InputError(f"{here}: unknown key {other!r}; {nearest(str(other), ('filter', 'value'))}")
        part = entry.get("filter")
        if part is not None and not isinstance(part, str):
            raise InputError(f"{here}.filter: {part!r}, expected a part of tensor names")
        value = _along_depth(f"{here}.value", entry["value"], parameter, inside=True)
        yield _filter("" if part in (None, "*") else part, value)


def _along_depth(where: str, raw: object, parameter: Parameter, *, inside: bool) -> Value:
    if not isinstance(raw, list):
        return parameter.convert(where, raw, inside=inside)
    if not raw:
        raise InputError(f"{where}: an empty list, expected values over the depth of the model")
    anchors = (parameter.convert(f"{where}[{n}]", anchor, inside=True) for n, anchor in enumerate(raw))
    return Gradient.model_construct(gradient=tuple(anchors))


def join(scopes: Iterable[Scope], name: str, default: float | None) -> Value:
    """The value of a parameter by the first scope that gives a tensor one, or the default."""
    return _choice((_filter("", scope[name]) for scope in scopes if name in scope), default)


# Made unchecked: here a filter may be part of every name, and one anchor be a gradient.


def _filter(match: str, value: Value) -> Filter:
    return Filter.model_construct(match=match, value=value)


def _choice(filters: Iterable[Filter], default: float | None = None) -> Filters:
    return Filters.model_construct(filters=tuple(filters), default=default)


def idle_filters(values: Iterable[Value], names: Sequence[str]) -> list[str]:
    """Filters that are part of no tensor's name, each once."""
    inner = (inner for value in values for inner in inner_values(value) if isinstance(inner, Filters))
    parts = {entry.match for value in inner for entry in value.filters}
    return sorted(part for part in parts if not any(part in name for name in names))
