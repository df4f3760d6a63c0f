"""What torch allocates on the CPU, over time."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

from torch.profiler import ProfilerActivity, profile

QUIET = "99"
"""Above every level of the profiler's own log, which it would write to stderr."""


class Memory:
    """Follows what is allocated and freed on the CPU while it is entered."""

    def __init__(self) -> None:
        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def __enter__(self) -> Self:
        with _quiet():
            self._profiler.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._profiler.stop()

    def peak(self, begin: int, end: int) -> int:
        """Most bytes there at once from ``begin`` to ``end`` (``time.time_ns``), above those at ``begin``."""
        found: Any = self._profiler.profiler
        events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
        now = top = 0
        for event in sorted(events, key=lambda event: int(event.start_ns())):
            if begin <= event.start_ns() <= end:
                now += event.nbytes()
                top = max(top, now)
        return top


@contextmanager
def _quiet() -> Iterator[None]:
    name = "KINETO_LOG_LEVEL"
    before = os.environ.get(name)
    os.environ[name] = QUIET
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
