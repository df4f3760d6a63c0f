"""How much memory a step may take that could also do with less, at the price of another pass."""

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

_ROOM: ContextVar[float] = ContextVar("room", default=math.inf)


def room() -> float:
    """Bytes that such a step may take where it is called."""
    return _ROOM.get()


@contextmanager
def within(size: float) -> Iterator[None]:
    """Leave so many bytes to the steps inside; threads have room of their own."""
    token = _ROOM.set(size)
    try:
        yield
    finally:
        _ROOM.reset(token)


def give_back() -> None:
    """Return freed memory to the system, which the C library otherwise keeps for what comes next."""
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)
