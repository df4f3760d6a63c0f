"""What a training step costs."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter, time_ns
from typing import Any, Self

from torch.profiler import ProfilerActivity, profile

from taskvec.models.backbone import Backbone
from taskvec.reports.charts.dots import Dots, Row, Rows
from taskvec.reports.charts.scales import Axis
from taskvec.reports.numbers import Mean
from taskvec.reports.tables import Table
from taskvec.studies.record import Plain, Record
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial, recipe
from taskvec.training.finetune import finetune
from taskvec.training.parts import Part
from taskvec.training.penalties.settings import foreign
from taskvec.training.regimes import Regime
from taskvec.training.settings import TrainSettings

_TURNS = 3

QUIET = "99"
"""Above every level of the profiler's own log, which it would write to stderr."""


class Cost(Record):
    """Of one training step."""

    seconds: float
    peak_bytes: int


class Measurement(Record):
    """Of every regime that trains, on a batch of one task."""

    cell = "costs"
    task: str
    regimes: dict[str, Cost]


class Costs(Study[bool]):
    """The time and memory of a training step of each regime; a block of ``true`` measures them."""

    title = "Training cost"
    settings = bool
    default = False
    of_model = True

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        experiment, task = trial.experiment, trial.tasks[0]
        regimes = [regime for regime in experiment.regimes if experiment.trained(regime) == regime]
        settings = {regime: experiment.settings(regime, trial.seed) for regime in regimes}
        inputs = {
            **trial.plan.evaluation,
            "training": {
                name: recipe(of, experiment.regime(name), trial.lab.holding) for name, of in settings.items()
            },
            "tasks": trial.plan.fingerprints([task, *_read(trial, task, settings)]),
        }
        yield Cell(Measurement, "of training", inputs, partial(_measure, task=task, settings=settings))

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        measurements = results.stored(Measurement)
        return {"costs": measurements[0]} if measurements else {}

    def tables(self, results: Results) -> Iterator[Table]:
        for measurement in results.of(Measurement):
            name, unit = next(iter(measurement.regimes.items()))
            rows = [
                (
                    regime,
                    Mean([cost.seconds], ".2g"),
                    Mean([cost.seconds / unit.seconds], ".2f"),
                    Mean([cost.peak_bytes / 2**20], ".0f"),
                    Mean([cost.peak_bytes / unit.peak_bytes], ".2f"),
                )
                for regime, cost in measurement.regimes.items()
            ]
            note = (
                f"On one batch of {measurement.task}, the regimes taking turns. Memory: most bytes allocated "
                "at once within a step, above weights, optimizer state and data."
            )
            columns = ("a training step", "seconds", f"× {name}", "memory, MiB", f"× {name}")
            yield Table("Training cost", columns, rows, note)

    def charts(self, results: Results) -> Iterator[Dots]:
        for measurement in results.of(Measurement):
            figures = {
                "seconds": {name: cost.seconds for name, cost in measurement.regimes.items()},
                "memory, MiB": {name: cost.peak_bytes / 2**20 for name, cost in measurement.regimes.items()},
            }
            parts = [
                Rows("", Axis(unit, low=0), {"": [Row(name, {"": [value]}) for name, value in of.items()]})
                for unit, of in figures.items()
            ]
            yield Dots(
                "costs",
                f"What a training step costs, on one batch of {measurement.task}.",
                parts,
                filed=False,
            )


def _measure(trial: Trial, task: str, settings: Mapping[str, TrainSettings]) -> Plain:
    evaluator = trial.evaluator
    trained = {name: trial.experiment.regime(name) for name in settings}
    others = [evaluator.part(name) for name in _read(trial, task, settings)]
    costs = training_costs(evaluator.backbone, evaluator.part(task), settings, trained, others, trial.keep)
    return {"task": task, "regimes": costs}


def _read(trial: Trial, task: str, settings: Mapping[str, TrainSettings]) -> list[str]:
    """The tasks whose inputs the penalties of some regime use."""
    used = any(foreign(of.penalty) for of in settings.values())
    return [name for name in trial.tasks if name != task] if used else []


def training_costs(
    backbone: Backbone,
    part: Part,
    regimes: Mapping[str, TrainSettings],
    trained: Mapping[str, Regime] | None = None,
    references: Sequence[Part] = (),
    keep: Path | None = None,
) -> dict[str, dict[str, float]]:
    """Seconds and peak memory of one training step of every regime, all on the same batch of ``part``.

    Args:
        trained: what each regime trains, where its name does not tell.
        references, keep: see :func:`taskvec.finetune`.

    Returns: by regime ``seconds``, the median of a few steps, the regimes taking turns so that drift of the
        machine hits all alike; and ``peak_bytes``, the most allocated at once within a step, above weights,
        optimizer state and data.
    """

    def ends(regime: str, clock: Callable[[], float]) -> list[float]:
        """When each of two steps was over; the first makes the optimizer's state."""
        settings, times = regimes[regime], list[float]()
        lr = TrainSettings().lr if settings.lr == "auto" else settings.lr
        finetune(
            backbone,
            replace(part, split=part.split.first(settings.batch_size)),
            regime=(trained or {}).get(regime, regime),
            settings=settings.model_copy(update={"steps": 2, "validations": 0, "lr": lr}),
            references=references,
            keep=keep,
            watch=lambda *_, **__: times.append(clock()),
        )
        return times

    seconds: dict[str, list[float]] = {regime: [] for regime in regimes}
    for _ in range(_TURNS):
        for regime, times in seconds.items():
            first, second = ends(regime, perf_counter)
            times.append(second - first)
    costs = {}
    for regime, times in seconds.items():
        with Memory() as memory:
            begin, end = ends(regime, time_ns)
        costs[regime] = {"seconds": median(times), "peak_bytes": memory.peak(int(begin), int(end))}
    return costs


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
        profiler: Any = self._profiler.profiler
        events = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
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
