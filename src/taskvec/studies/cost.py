"""What a training step costs."""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from statistics import median
from time import perf_counter, time_ns
from typing import Any, Self

from torch.profiler import ProfilerActivity, profile

from taskvec.models.backbone import Backbone
from taskvec.training.finetune import finetune
from taskvec.training.parts import Part
from taskvec.training.settings import TrainSettings

TURNS = 3


def training_costs(
    backbone: Backbone, part: Part, regimes: Mapping[str, TrainSettings]
) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of one training step of every regime, all on the same batch of ``part``.

    Returns: by regime ``seconds``, the median of a few steps, the regimes taking turns so that drift of the
        machine hits all alike; and ``peak_bytes``, the most allocated at once within a step, above weights,
        optimizer state and data.
    """

    def ends(regime: str, clock: Callable[[], float]) -> list[float]:
        """When each of two steps was over; the first makes the optimizer's state."""
        settings, times = regimes[regime], list[float]()
        finetune(
            backbone,
            replace(part, split=part.split.first(settings.batch_size)),
            regime=regime,
            settings=settings.model_copy(update={"steps": 2, "validations": 0}),
            watch=lambda *_, **__: times.append(clock()),
        )
        return times

    seconds: dict[str, list[float]] = {regime: [] for regime in regimes}
    for _ in range(TURNS):
        for regime, found in seconds.items():
            first, second = ends(regime, perf_counter)
            found.append(second - first)
    costs = {}
    for regime, found in seconds.items():
        with Memory() as memory:
            begin, end = ends(regime, time_ns)
        costs[regime] = {"seconds": median(found), "peak_bytes": memory.peak(int(begin), int(end))}
    return costs


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
