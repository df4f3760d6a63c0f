"""What a training step costs."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from statistics import median
from time import perf_counter, time_ns
from typing import Any, Self

from torch.profiler import ProfilerActivity, profile

from taskvec.models.backbone import Backbone
from taskvec.training.finetune import finetune
from taskvec.training.parts import Part
from taskvec.training.settings import TrainSettings

TIMED = 3
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


def training_cost(backbone: Backbone, part: Part, regime: str, settings: TrainSettings) -> dict[str, float]:
    """Seconds and peak memory of one training step of a regime, all on the same batch of ``part``.

    Returns: ``seconds``, the median of a few steps after the first; ``peak_bytes``, allocated at once within
        the second step of a further run, above weights, optimizer state and data.
    """
    batch = replace(part, split=part.split.first(settings.batch_size))

    def ends(steps: int, clock: Callable[[], float]) -> list[float]:
        """When each step of a training was over."""
        times: list[float] = []
        finetune(
            backbone,
            batch,
            regime=regime,
            settings=settings.model_copy(update={"steps": steps, "validations": 0}),
            watch=lambda *_, **__: times.append(clock()),
        )
        return times

    seconds = [after - before for before, after in pairwise(ends(TIMED + 1, perf_counter))]
    with Memory() as memory:
        first, second = ends(2, time_ns)
    return {"seconds": median(seconds), "peak_bytes": memory.peak(int(first), int(second))}


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
