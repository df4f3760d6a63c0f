"""Arguments of public functions: one of the wrong type is named before anything is done with it."""

import inspect
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import wraps
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Any, ForwardRef, TypeVar, Union, cast, get_args, get_origin

from taskvec.errors import InputError, WrongType
from taskvec.reading import shortened

T = TypeVar("T", bound=Callable[..., Any])

_FEW = 50
"""Items of a container that are looked at."""

_NUMBERS: dict[Any, Any] = {int: Integral, float: Real}
"""Numbers of numpy are numbers too."""


def checked(target: T) -> T:
    """A function, or a class, that refuses arguments which are not of their annotated types.

    Classes are checked: alone, in unions, and as items of plain lists, tuples and dictionaries. What takes
    reading to tell (items of a lazy mapping), and what ``isinstance`` cannot tell (protocols, literals), is
    left to the function. A quoted class is known by its name.

    Raises: WrongType, one line, naming the argument.
    """
    if isinstance(target, type):
        target.__init__ = checked(target.__init__)  # type: ignore[misc]
        return target
    signature = inspect.signature(target)
    where = target.__qualname__.removesuffix(".__init__")
    hints = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if parameter.annotation is not parameter.empty
        and parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }

    @wraps(target)
    def call(*args: Any, **kwargs: Any) -> Any:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            if name in hints and not _fits(value, hints[name]):
                raise WrongType(f"{where}: {name} is {brief(value)}, expected {_annotation(hints[name])}")
        return target(*args, **kwargs)

    return cast("T", call)


def brief(value: object) -> str:
    """What a message calls a value: a short text or number as it is, anything else by its type."""
    if value is None or isinstance(value, str | int | float):
        return shortened(repr(value), 60)
    held = sorted({type(item).__name__ for item in _items(value)})
    return f"{type(value).__name__} of {', '.join(held)}" if held else type(value).__name__


def distinct(names: Collection[str], option: str) -> list[str]:
    """The values of an option that needs one or more, each once.

    Raises: InputError.
    """
    if not names or len(set(names)) < len(names):
        raise InputError(f"{option}: {' '.join(names) or 'nothing'} given, expected one or more, each once")
    return list(names)


def label(ref: object) -> str:
    """What a message calls a model: its path or name, or the type of an object that has neither."""
    if isinstance(ref, str | Path):
        return str(ref)
    name = getattr(ref, "ref", None)
    return name if isinstance(name, str) else type(ref).__name__


def _items(value: object) -> Iterable[object]:
    """The first values in a container of plain Python; others may read files to tell."""
    if isinstance(value, dict):
        return islice(value.values(), _FEW)
    return islice(value, _FEW) if isinstance(value, list | tuple) else ()


def _fits(value: object, hint: Any) -> bool:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, part) for part in args)
    if isinstance(hint, str | ForwardRef):
        return any(_is_called(value, name) for name in _annotation(hint).split(" | "))
    kind = origin or hint
    if not isinstance(kind, type) or kind is Any or getattr(kind, "_is_protocol", False):
        return True
    if origin is None or not issubclass(origin, Iterable):
        return isinstance(value, _NUMBERS.get(kind, kind))
    if issubclass(origin, Mapping):
        return isinstance(value, Mapping) and all(_fits(item, args[-1]) for item in _items(value))
    # Sets and generators do for a sequence as well; a text does not, though its letters are texts.
    if not isinstance(value, Collection | Iterator) or isinstance(value, str | bytes):
        return False
    return all(_fits(item, args[0]) for item in _items(list(value) if isinstance(value, dict) else value))


def _is_called(value: object, name: str) -> bool:
    """Whether a value may be of the class of this name: of an expression nothing is known."""
    kinds = {kind.__name__ for kind in type(value).__mro__}
    return not name.isidentifier() or name in kinds or (name == "None" and value is None)


def _annotation(hint: Any) -> str:
    """A type as the signature has it, without the modules it comes from."""
    if get_origin(hint) is Union:
        return " | ".join(map(_annotation, get_args(hint))).replace("NoneType", "None")
    text = hint if isinstance(hint, str) else inspect.formatannotation(hint)
    return re.sub(r"(\w+\.)+(?=\w)|ForwardRef\(|'\)?", "", text)
