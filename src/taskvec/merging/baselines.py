"""What every method is compared with: the model before any edit, and each task's own model."""

from dataclasses import dataclass
from typing import ClassVar

from taskvec.evaluation.points import Point
from taskvec.merging.method import Bench, Consumed, Method, Model, Plain
from taskvec.tasks.source import SplitName


class Own(Model):
    """Each task's own vector on its task, at coefficient 1."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._points = bench.evaluator.points(bench.vectors, space=bench.space)

    def point(self, task: str, alpha: float) -> Point:
        return self._points.at({task: alpha})


class Untouched(Model):
    """The pre-trained model."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench)
        self._points = bench.evaluator.points({}, space=bench.space)

    def point(self, task: str, alpha: float) -> Point:
        return self._points.at({})


@dataclass(frozen=True)
class ZeroShot(Method):
    """The model before any edit."""

    name: str = "zero-shot"
    coefficient: float | None = None
    family: ClassVar[str] = "baseline"

    def settings(self) -> Plain:
        return {"baseline": self.name}

    def make(self, bench: Bench) -> Model:
        return Untouched(bench)


@dataclass(frozen=True)
class Single(ZeroShot):
    """Each task's own model: the upper reference, which needs to know the task."""

    name: str = "single models"

    def consumes(self, split: SplitName) -> tuple[Consumed, ...]:
        return ("task id",)

    def make(self, bench: Bench) -> Model:
        return Own(bench)
