"""A candidate's worth by tasks of lm-evaluation-harness, in memory."""

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

from taskvec.edits.merge import Merge
from taskvec.errors import InputError
from taskvec.evaluation.harness import HarnessScore, HarnessSettings, HarnessTasks, find_tasks, harness
from taskvec.place import Precision
from taskvec.searching.figures import mean_of
from taskvec.searching.objective import Figures, Portion
from taskvec.searching.resident import Residents


class LmEvalScore:
    """Tasks of the harness: every second question is for the search, the others are held out.

    Figures: ``lm_eval``, the mean over tasks of their first metrics; the first metric of each task and group
    under its name; every metric as ``TASK.METRIC``.

    Args:
        settings: tasks and how they are asked; with a ``limit``, half of so many questions are searched on.
        residents: hold the model.
    """

    parts = True
    label = headline = "lm_eval"

    def __init__(
        self, settings: HarnessSettings, residents: Residents, *, precision: Precision = "float32"
    ) -> None:
        self._settings, self._residents, self._precision = settings, residents, precision

    @property
    def key(self) -> Mapping[str, object]:
        """What the harness is asked for."""
        asked = self._settings.model_dump(mode="json", exclude_defaults=True)
        return {self.label: asked, "precision": self._precision, **self._residents.key}

    @cached_property
    def _tasks(self) -> HarnessTasks:
        return find_tasks(self._settings)

    @cached_property
    def _lower(self) -> frozenset[str]:
        """Metrics, and tasks by their first one, of which less is better."""
        higher = self._tasks.higher
        metrics = {metric for of in higher.values() for metric, more in of.items() if not more}
        return frozenset(
            {*metrics, *(task for task, of in higher.items() if not next(iter(of.values()), True))}
        )

    def lower_is_better(self, figure: str) -> bool:
        """Whether less of a figure is better."""
        if figure == self.label:
            return self._lower.issuperset(self._tasks.counts)
        task, dot, metric = figure.rpartition(".")
        return (metric.partition(",")[0] if dot and task else figure) in self._lower

    def evaluate(self, merge: Merge, part: Portion, scratch: Path) -> Figures:
        """The figures of a candidate on one half of the questions.

        Raises: InputError for a task of fewer than two; TaskvecError if the harness fails.
        """
        samples = {name: self._half(name, count, part) for name, count in self._tasks.counts.items()}
        backbone = self._residents.backbone("tokens").candidate(merge, scratch).model
        manager, precision = self._tasks.manager, self._precision
        scores = harness(backbone, self._settings, precision=precision, manager=manager, samples=samples)
        return self._figures(scores)

    def _half(self, name: str, count: int, part: Portion) -> list[int]:
        most = min(count, self._settings.limit or count)
        if most < 2:
            raise InputError(
                f"{name}: {most} question, expected two or more: one part is searched on, the other held out"
            )
        return list(range(0 if part == "search" else 1, most, 2))

    def _figures(self, scores: Mapping[str, HarnessScore]) -> Figures:
        every = {
            f"{task}.{metric}": figure.value
            for task, score in scores.items()
            for metric, figure in score.metrics.items()
        }
        first = {task: score.metrics[self._first(task, score)].value for task, score in scores.items()}
        tasks = {task: value for task, value in first.items() if task in self._tasks.counts}
        return {self.label: mean_of(tasks, self._lower), **first, **every}

    def _first(self, task: str, score: HarnessScore) -> str:
        """The metric that a task lists first, of those that it has."""
        listed = self._tasks.higher.get(task, {})
        found = (name for metric in listed for name in score.metrics if name.partition(",")[0] == metric)
        return next(found, next(iter(score.metrics)))
