"""Memory that a step may take to be fast: with less, it makes another pass over its input."""

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

_ROOM: ContextVar[float] = ContextVar("room", default=math.inf)


def room() -> float:
    """Bytes that a step may take where it is called; no bound unless ``within`` sets one."""
    return _ROOM.get()


@contextmanager
def within(size: float) -> Iterator[None]:
    """Bound the steps inside to ``size`` bytes. Threads do not inherit the bound."""
    token = _ROOM.set(size)
    try:
        yield
    finally:
        _ROOM.reset(token)


def give_back() -> None:
    """Return freed memory to the system, which the C library otherwise keeps for what comes next."""
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
