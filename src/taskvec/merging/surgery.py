"""Representation surgery after any method: its features, mended for each task."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor

from taskvec.coefficients.after import SurgerySettings
from taskvec.coefficients.surgery import FittedSurgery, fit_surgery
from taskvec.evaluation.points import Point
from taskvec.merging.baselines import Own
from taskvec.merging.library import LibraryMethod
from taskvec.merging.method import Bench, Consumed, Method, Model, Plain, in_order, named, unlabelled
from taskvec.tasks.objective import Tally
from taskvec.tasks.source import SplitName


@dataclass(frozen=True)
class SurgeryMethod(Method):
    """Merge by another method, then bring features nearer to each task's own model by a small map a task.

    See :func:`taskvec.coefficients.surgery.fit_surgery`.

    Args:
        of: the method.
        changes: settings that are not the usual ones.

    Raises: InputError for settings that do not fit.
    """

    of: Method
    changes: Mapping[str, object] = field(default_factory=dict)
    family: ClassVar[str] = "surgery"

    def __post_init__(self) -> None:
        self._chosen()

    @property
    def name(self) -> str:  # type: ignore[override]  # it follows from the fields
        return named(f"{self.of.name}+surgery", self.changes)

    @property
    def coefficient(self) -> float | None:  # type: ignore[override]
        return self.of.coefficient

    def consumes(self, split: SplitName) -> tuple[Consumed, ...]:
        return tuple(in_order([*self.of.consumes(split), unlabelled(split), "task id"]))

    def unfit(self, bench: Bench) -> str | None:
        if bench.evaluator.backbone.outputs == "tokens":
            return "mends features, and a language model gives logits"
        if isinstance(self.of, LibraryMethod):
            return "mends the features of one model, and here each input has a model of its own"
        if isinstance(self.of, SurgeryMethod):
            return "mends a model once, and its features are mended already"
        return self.of.unfit(bench)

    def settings(self) -> Plain:
        changed = self._chosen().model_dump(exclude_defaults=True)
        return {"of": {"family": self.of.family, **self.of.settings()}, **changed}

    def make(self, bench: Bench) -> "Mended":
        """The method's model, and each task's own features beside it."""
        return Mended(bench, self.of.make(bench), self._chosen())

    def _chosen(self) -> SurgerySettings:
        return SurgerySettings.parse(f"{self.of.name}+surgery", dict(self.changes))


class Mended(Model):
    """A model with a surgery for each task, fitted for each scaling coefficient on inputs of a split.

    Args:
        model: what is mended.
    """

    def __init__(self, bench: Bench, model: Model, settings: SurgerySettings) -> None:
        super().__init__(bench)
        self._model, self._settings = model, settings
        self._fitted: dict[tuple[str, float], FittedSurgery] = {}
        own = Own(bench)
        self._own = {task: self._features(own, task, 1.0) for task in bench.tasks}
        numbers = 2 * settings.rank * sum(features.shape[1] for features in self._own.values())
        self.coefficients = model.coefficients + numbers

    def point(self, task: str, alpha: float) -> Point:
        """The model before surgery."""
        return self._model.point(task, alpha)

    def tally(self, task: str, split: SplitName, alpha: float) -> Tally:
        """Of features after surgery."""
        after = self.fitted(task, alpha).surgery
        return self.bench.evaluator.tally(self.point(task, alpha), task, split, after)

    def facts(self) -> Plain:
        """Those of the model, and how far features were from those of the task's own model."""
        gaps = {task: [of.before, of.after] for (task, _), of in self._fitted.items()}
        return {**self._model.facts(), "surgery": gaps}

    def fitted(self, task: str, alpha: float) -> FittedSurgery:
        """The surgery of a task at a scaling coefficient, fitted when first asked for."""
        if (task, alpha) not in self._fitted:
            merged = self._features(self._model, task, alpha)
            self._fitted[task, alpha] = fit_surgery(
                merged, self._own[task], self._settings, seed=self.bench.seed
            )
        return self._fitted[task, alpha]

    def _features(self, model: Model, task: str, alpha: float) -> Tensor:
        """(N, d) on the split that methods read."""
        return self.bench.evaluator.features(model.point(task, alpha), task, self.bench.split)[0]
