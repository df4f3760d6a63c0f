"""Values of mergekit's parameters: a scalar, a gradient over depth, or filters by tensor name."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from taskvec.errors import InputError
from taskvec.registry import nearest

Scalar = float | bool
_ABSENT = object()


@dataclass(frozen=True)
class Parameter:
    """What a method takes.

    Attributes:
        kind: ``float``, ``int`` or ``bool``.
        default: what holds where nothing is given; without one it must be.
        of: one value for a tensor (``tensor``), or one for each model (``model``).
        low, high: the range of numbers; ``low`` itself is outside it if ``above``.
    """

    kind: type
    default: Any = _ABSENT
    of: Literal["tensor", "model"] = "tensor"
    low: float = -math.inf
    high: float = math.inf
    above: bool = False

    @property
    def required(self) -> bool:
        """Whether a value must be given."""
        return self.default is _ABSENT

    def checked(self, where: str, value: object) -> Scalar:
        """A scalar of the right kind and range; words that spell a number are numbers, as in ``1e-4``.

        Raises: InputError.
        """
        if self.kind is bool:
            if value in (True, False):
                return bool(value)
            raise InputError(f"{where}: {value!r}, expected true or false")
        number = _number(value)
        if number is None or (self.kind is int and number != int(number)):
            raise InputError(f"{where}: {value!r}, expected {self._range()}")
        if not self.low <= number <= self.high or (self.above and number == self.low):
            raise InputError(f"{where}: {value!r}, expected {self._range()}")
        return self.kind(number)  # type: ignore[no-any-return]  # float or int

    def _range(self) -> str:
        noun = "a whole number" if self.kind is int else "a number"
        low = "" if self.low == -math.inf else f"{'above' if self.above else 'at least'} {self.low:g}"
        high = "" if self.high == math.inf else f"up to {self.high:g}"
        return " ".join(filter(None, (noun, low, "and" if low and high else "", high)))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True)
class Setting:
    """The value of one parameter in one place of the file: filters, each with anchors over depth."""

    cases: tuple[tuple[str | None, tuple[Scalar, ...]], ...]

    def at(self, name: str, depth: float) -> Scalar | None:
        """The value for a tensor, if any filter is part of its name."""
        for part, anchors in self.cases:
            if part is None or part in name:
                return _between(anchors, depth)
        return None


def _between(anchors: Sequence[Scalar], depth: float) -> Scalar:
    """The line through equally spaced anchors; of truth values the one before the place."""
    place = depth * (len(anchors) - 1)
    left = int(place)
    if isinstance(anchors[0], bool):
        return anchors[left]
    right = min(left + 1, len(anchors) - 1)
    return (1 - (place - left)) * anchors[left] + (place - left) * anchors[right]


Scope = Mapping[str, Setting]


def parse_scope(
    where: str,
    given: Mapping[str, Any] | None,
    known: Mapping[str, Parameter],
    *,
    of_model: bool,
    method: str,
) -> Scope:
    """The parameters of one place of the file.

    Args:
        where: opens messages.
        known: what the method takes.
        of_model: whether the place belongs to one model, where values for all have no place.

    Raises: InputError for parameters that are unknown, do nothing here, or are out of range.
    """
    scope: dict[str, Setting] = {}
    for name, raw in (given or {}).items():
        if name not in known:
            raise InputError(f"{where}: unknown parameter {name!r} of {method!r}; {nearest(name, known)}")
        if of_model and known[name].of == "tensor":
            raise InputError(
                f"{where}: {name!r} is one for all models, mergekit ignores it here; "
                "move it to the parameters of the slice or of the file"
            )
        scope[name] = _parse(f"{where}.{name}", raw, known[name])
    return scope


def _parse(where: str, raw: object, parameter: Parameter) -> Setting:
    conditional = isinstance(raw, dict) or (
        isinstance(raw, list) and any(isinstance(one, dict) for one in raw)
    )
    if not conditional:
        return Setting(((None, _anchors(where, raw, parameter)),))
    return Setting(tuple(_cases(where, raw if isinstance(raw, list) else [raw], parameter)))


def _cases(
    where: str, entries: Sequence[Any], parameter: Parameter
) -> Iterator[tuple[str | None, tuple[Scalar, ...]]]:
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
        yield None if part == "*" else part, _anchors(f"{here}.value", entry["value"], parameter)


def _anchors(where: str, raw: object, parameter: Parameter) -> tuple[Scalar, ...]:
    if isinstance(raw, list):
        if not raw:
            raise InputError(f"{where}: an empty list, expected values over the depth of the model")
        return tuple(parameter.checked(f"{where}[{place}]", one) for place, one in enumerate(raw))
    return (parameter.checked(where, raw),)


def resolve(parameter: str, known: Parameter, scopes: Iterable[Scope], name: str, depth: float) -> Any:
    """The value of a parameter for one tensor: of the first scope that has one, or the default.

    Raises: LookupError where there is neither.
    """
    for scope in scopes:
        value = scope[parameter].at(name, depth) if parameter in scope else None
        if value is not None:
            return value
    if known.required:
        raise LookupError(name)
    return known.default


def idle_filters(scopes: Iterable[Scope], names: Sequence[str]) -> list[str]:
    """Filters that are part of no tensor's name, each once."""
    parts = {part for scope in scopes for setting in scope.values() for part, _ in setting.cases if part}
    return sorted(part for part in parts if not any(part in name for name in names))
