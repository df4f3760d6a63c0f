"""Memory that a step may take to be fast: with less, it makes another pass over its input."""

import ctypes
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import Self

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


class Peak:
    """The most memory that the process held at once inside a ``with``, above what it held before.

    Attributes:
        bytes: filled in at the end; none where the system does not say (elsewhere than on Linux).
    """

    bytes: int | None = None

    def __enter__(self) -> Self:
        give_back()
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
        self._before = _held("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = _held("VmHWM")
        if self._before is not None and peak is not None:
            self.bytes = max(0, peak - self._before)


def _held(field: str) -> int | None:
    """Bytes that a line of the process's status says."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)
    return None
