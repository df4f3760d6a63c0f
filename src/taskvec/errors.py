"""What can go wrong, in one line each, with the exit code that the command line gives it."""

import re
from collections.abc import Sequence, Sized
from importlib import import_module
from typing import Any

_USER = re.compile(r"\b((?!hf:)[a-z][\w+.-]+:/{1,2})[^\s/'\"]*@", re.IGNORECASE)
_QUERY = re.compile(r"\b([a-z][\w+.-]+:/{1,2}[^\s?'\"]+)\?[\w%]([^\s'\"]*[\w%=/&+-])?", re.IGNORECASE)
"""Parts of URLs, also of those that became paths, in which two slashes are one."""


def and_more(names: Sized) -> str:
    """What a message says after the first of several names.

    >>> and_more("abc"), and_more("a")
    (' (2 more)', '')
    """
    return f" ({len(names) - 1} more)" if len(names) > 1 else ""


def first_few(names: Sequence[str], most: int = 6) -> str:
    """The first of some names, and how many more there are.

    >>> first_few(["a", "b", "c"], 2)
    'a, b and 1 more'
    """
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def without_credentials(text: str) -> str:
    """A text for people, in which URLs have no user, password or query.

    >>> without_credentials("no model called 's3://me:hush@bucket/x'; hf://org/name@v1 has no https://h/y?key=1")
    "no model called 's3://bucket/x'; hf://org/name@v1 has no https://h/y"
    """
    return _QUERY.sub(r"\1", _USER.sub(r"\1", text)) if ":/" in text else text


class TaskvecError(Exception):
    """Anything taskvec raises on purpose; struck while working unless a subclass says otherwise.

    What a user wrote where no URL was expected may be one, with a password; no message repeats that.
    """

    exit_code = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(without_credentials(part) if isinstance(part, str) else part for part in args))


class Diverged(TaskvecError):
    """The outputs of an edited model are NaN or infinite: a coefficient is too large."""


class TrainingDiverged(TaskvecError):
    """The loss or the gradient of a training is NaN or infinite: the learning rate is too large."""


class OutOfMemory(TaskvecError):
    """The memory of a device is full."""


class InputError(TaskvecError, ValueError):
    """The request itself is wrong: a path, a key, a shape, a parameter. Nothing was written."""

    exit_code = 2


class WrongType(InputError, TypeError):
    """An argument is of another type than the function takes."""


class UnknownName(InputError, LookupError):
    """A name that is not registered; the message holds the nearest one."""


class KeyMismatch(InputError):
    """Two sets of weights do not hold the same tensors, shapes or dtypes."""


class BaseMismatch(InputError):
    """A task vector meets weights, or another vector, of a different base."""


class CorruptFile(InputError):
    """A file is truncated, damaged, or not what its name says."""


class UnsafeFile(InputError):
    """Reading the file would execute code."""


class NonFinite(InputError):
    """NaN or infinity where a number was expected."""


class OutputExists(InputError):
    """The output is there already, or is one of the inputs."""


class DiskFull(InputError):
    """The result would not fit on the disk."""


class MissingExtra(InputError):
    """An optional dependency is not installed; the message holds the command that installs it."""


def optional(module: str, otherwise: str) -> Any:
    """A module of a package that may not be installed.

    Raises: MissingExtra, in the words of ``otherwise``.
    """
    try:
        return import_module(module)
    except ImportError:
        raise MissingExtra(otherwise) from None
