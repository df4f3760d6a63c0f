"""Memory that a step may take to be fast: with less, it makes another pass over its input."""

import ctypes
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import torch

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


def device_memory(device: "torch.device") -> float:
    """Bytes of memory that a device has, in a container at most those that it may use; no bound where the
    system does not say."""
    if device.type == "cuda":
        import torch

        return torch.cuda.get_device_properties(device).total_memory
    sizes = [math.inf]
    with suppress(OSError, ValueError, AttributeError):  # elsewhere than on POSIX
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with suppress(OSError, ValueError):  # "max", or no such file
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text(encoding="ascii")))
    return min(sizes)


def give_back() -> None:
    """Return freed memory to the system, which the C library otherwise keeps for what comes next."""
    with suppress(AttributeError, OSError):  # only glibc has it
        ctypes.CDLL(None).malloc_trim(0)


class Peak:
    """The most memory that was held at once inside a ``with``, above what was held before it: of the process,
    or on a CUDA device by its allocator.

    Attributes:
        bytes: filled in at the end; none where the system does not say (elsewhere than on Linux).
    """

    bytes: int | None = None

    def __init__(self, device: "torch.device | None" = None) -> None:
        self._cuda = device if device is not None and device.type == "cuda" else None

    def __enter__(self) -> Self:
        give_back()
        if self._cuda is not None:
            import torch

            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before: int | None = torch.cuda.memory_allocated(self._cuda)
            return self
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak so far is forgotten
        self._before = _held("VmRSS")
        return self

    def __exit__(self, *_: object) -> None:
        peak = self._peak()
        if self._before is not None and peak is not None:
            self.bytes = max(0, peak - self._before)

    def _peak(self) -> int | None:
        if self._cuda is None:
            return _held("VmHWM")
        import torch

        return torch.cuda.max_memory_allocated(self._cuda)


def _held(field: str) -> int | None:
    """Bytes that a line of the process's status says."""
    with suppress(OSError):
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next((1024 * int(line.split()[1]) for line in lines if line.startswith(f"{field}:")), None)
    return None
