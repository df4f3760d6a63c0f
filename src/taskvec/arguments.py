"""Arguments of public functions: one of the wrong type is named before anything is done with it."""

import inspect
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import wraps
from itertools import islice
from numbers import Integral, Real
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ForwardRef, TypeVar, Union, cast, get_args, get_origin

from taskvec.errors import WrongType

T = TypeVar("T", bound=Callable[..., Any])

FEW = 50
"""Items of a container that are looked at."""


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
                raise WrongType(f"{where}: {name} is {shown(value)}, expected {_words(hints[name])}")
        return target(*args, **kwargs)

    return cast(T, call)


def shown(value: object) -> str:
    """What a message calls a value: a short text or number as it is, anything else by its type."""
    if value is None or isinstance(value, str | int | float):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    held = sorted({type(one).__name__ for one in _items(value)})
    return f"{type(value).__name__} of {', '.join(held)}" if held else type(value).__name__


def label(ref: object) -> str:
    """What a message calls a model: its path or name, or the type of an object that has neither."""
    if isinstance(ref, str | Path):
        return str(ref)
    own = getattr(ref, "ref", None)
    return own if isinstance(own, str) else type(ref).__name__


def _items(value: object) -> Iterable[object]:
    """The first values in a container of plain Python; others may read files to tell."""
    if isinstance(value, dict):
        return islice(value.values(), FEW)
    return islice(value, FEW) if isinstance(value, list | tuple) else ()


def _fits(value: object, hint: Any) -> bool:
    if type(hint) is type and hint not in (int, float):  # most are: the quick way
        return isinstance(value, hint)
    if isinstance(hint, str | ForwardRef):
        name = _quoted(hint)
        return not name.isidentifier() or any(kind.__name__ == name for kind in type(value).__mro__)
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return _fits(value, args[0])
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in args)
    if hint is None:
        return value is None
    if hint in (int, float):
        return isinstance(value, Integral if hint is int else Real)
    if isinstance(origin, type):
        return _holds(value, origin, args)
    checkable = isinstance(hint, type) and hint is not Any and not getattr(hint, "_is_protocol", False)
    return isinstance(value, hint) if checkable else True


def _holds(value: object, kind: type, args: tuple[Any, ...]) -> bool:
    """Whether a value is of a kind with items, or a function; sets and generators will do for sequences."""
    if issubclass(kind, Mapping):
        return isinstance(value, Mapping) and all(_fits(one, args[-1]) for one in _items(value))
    if not issubclass(kind, Iterable):
        return isinstance(value, kind)
    if not isinstance(value, Collection | Iterator) or isinstance(value, str | bytes):
        return False
    items = list(value) if isinstance(value, dict) else value
    return all(_fits(one, args[0]) for one in _items(items))


def _quoted(hint: str | ForwardRef) -> str:
    return hint if isinstance(hint, str) else hint.__forward_arg__


def _words(hint: Any) -> str:
    if isinstance(hint, str | ForwardRef):
        return _quoted(hint)
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(dict.fromkeys(map(_words, args)))
    if origin is Annotated:
        return _words(args[0])
    if not isinstance(origin, type):
        return "None" if hint is type(None) else getattr(hint, "__name__", str(hint))
    if not issubclass(origin, Iterable):
        return "a function"
    return f"{origin.__name__.lower()} of {_words(args[-1] if issubclass(origin, Mapping) else args[0])}"
