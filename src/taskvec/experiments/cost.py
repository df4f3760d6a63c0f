"""What a training step costs."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from statistics import median
from time import perf_counter
from typing import Any

from torch.profiler import ProfilerActivity, profile

from taskvec.models.backbone import Backbone
from taskvec.training.finetune import finetune
from taskvec.training.parts import Part
from taskvec.training.settings import TrainSettings

TIMED = 3
QUIET = "99"
"""Above every level of the profiler's own log, which it would write to stderr."""


class Memory:
    """Bytes allocated on the CPU between ``start`` and ``stop``: the most at once, above what was there."""

    def __init__(self) -> None:
        self._profiler = profile(activities=[ProfilerActivity.CPU], profile_memory=True)

    def start(self) -> None:
        """From here."""
        with _quiet():
            self._profiler.start()

    def stop(self) -> int:
        """To here."""
        self._profiler.stop()
        found: Any = self._profiler.profiler
        events = [event for event in found.kineto_results.events() if event.name() == "[memory]"]
        now = top = 0
        for event in sorted(events, key=lambda event: int(event.start_ns())):
            now += event.nbytes()
            top = max(top, now)
        return top


def training_cost(backbone: Backbone, part: Part, regime: str, settings: TrainSettings) -> dict[str, float]:
    """Seconds and peak memory of one training step of a regime, all on the same batch of ``part``.

    Returns: ``seconds``, the median of a few steps after the first; ``peak_bytes``, allocated at once within
        one further step, above weights, optimizer state and data.
    """
    batch = replace(part, split=part.split.first(settings.batch_size))
    steps = TIMED + 2
    recipe = settings.model_copy(update={"steps": steps, "validations": 0})
    memory, ends, peak = Memory(), list[float](), list[int]()

    def watch(label: str, done: int, total: int, **facts: float) -> None:
        ends.append(perf_counter())
        if done == steps - 1:
            memory.start()
        if done == steps:
            peak.append(memory.stop())

    finetune(backbone, batch, regime=regime, settings=recipe, watch=watch)
    seconds = [after - before for before, after in pairwise(ends[: TIMED + 1])]
    return {"seconds": median(seconds), "peak_bytes": peak[0]}


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
