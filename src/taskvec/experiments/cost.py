"""What a training step costs."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from statistics import median
from time import perf_counter, time_ns

from taskvec.experiments.memory import Memory
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
