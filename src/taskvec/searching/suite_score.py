"""A candidate's worth by the tasks of a suite, in memory."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from taskvec.edits.merge import Merge
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.models.backbone import Backbone
from taskvec.place import Precision
from taskvec.searching.figures import mean_of
from taskvec.searching.objective import Figures, Portion
from taskvec.searching.resident import Residents
from taskvec.tasks.score import LOWER_IS_BETTER, utility
from taskvec.tasks.split import Split
from taskvec.tasks.task import Task, outputs_for


class Halves(NamedTuple):
    """Two parts of the same examples."""

    search: Split
    holdout: Split


Evaluators = Mapping[Portion, Evaluator]


class Prepared(NamedTuple):
    """A model with what measures it on either half."""

    backbone: Backbone
    evaluators: Evaluators


def halve(examples: Split, where: str) -> Halves:
    """Every second example of an order by label, drawn with seed 0: both parts have the classes alike.

    Raises: InputError, which opens with ``where``, for fewer than two examples.
    """
    if len(examples) < 2:
        raise InputError(
            f"{where}: {len(examples)} validation example, expected two or more: one part is searched "
            "on, the other held out; raise --limit, or give the task more"
        )
    order = torch.randperm(len(examples), generator=torch.Generator().manual_seed(0))
    order = order[examples.labels[order].argsort(stable=True)]
    return Halves(*(examples.at(order[first::2].sort().values) for first in (0, 1)))


class SuiteScore:
    """Each task's own metric on its validation split: one half for the search, the other held out.

    Figures: under ``label`` the mean over tasks, then that of every metric, then the tasks by name. Where
    less is better, means are of reciprocals, as protocols compare them, and in their own unit again where it
    is so for all.

    Args:
        tasks: of a suite; their frozen heads are made with the base.
        residents: hold the model.
        limit: at most so many validation examples of a task, both halves together.
    """

    parts = True

    def __init__(
        self,
        label: str,
        tasks: Sequence[Task],
        residents: Residents,
        *,
        limit: int | None = None,
        batch_size: int = 64,
        precision: Precision = "float32",
    ) -> None:
        self.label = self.headline = label
        self.outputs = outputs_for(tasks)
        self.tasks = {task.name: task for task in tasks}
        self._residents = residents
        self._limit, self._batch_size, self._precision = limit, batch_size, precision
        self._base: Prepared | None = None

    @property
    def metrics(self) -> dict[str, list[str]]:
        """The tasks that each metric is of, by its name."""
        found: dict[str, list[str]] = {}
        for name, task in self.tasks.items():
            found.setdefault(task.metric, []).append(name)
        return found

    @property
    def key(self) -> Mapping[str, object]:
        """Tasks and data by fingerprint, and how they are measured."""
        return {
            "suite": self.label,
            "tasks": {name: task.fingerprint for name, task in self.tasks.items()},
            "limit": self._limit,
            "batch_size": self._batch_size,
            "precision": self._precision,
            **self._residents.key,
        }

    def lower_is_better(self, figure: str) -> bool:
        """Whether less of a figure is better."""
        if figure == self.label:
            return LOWER_IS_BETTER.issuperset(self.metrics)
        return (self.tasks[figure].metric if figure in self.tasks else figure) in LOWER_IS_BETTER

    def evaluate(self, merge: Merge, part: Portion, scratch: Path) -> Figures:
        """The figures of a candidate on one half of the validation examples."""
        resident = self._residents.backbone(self.outputs)
        if self._base is None:
            base = resident.base(merge, scratch).model
            self._base = Prepared(base, self._prepare(base))
        backbone, point = resident.candidate(merge, scratch)
        evaluator = self._evaluators(self._base, backbone)[part]
        return self._figures(evaluator.values(point, self.tasks, "validation"))

    def _evaluators(self, base: Prepared, backbone: Backbone) -> Evaluators:
        """Those of the base, or of a candidate that had to be loaded itself."""
        if backbone is base.backbone:
            return base.evaluators
        if self.outputs == "tokens":  # its tokens may be others
            return self._prepare(backbone)
        return {part: held.on_model(backbone) for part, held in base.evaluators.items()}

    def _prepare(self, backbone: Backbone) -> Evaluators:
        """Data and heads, which the pre-trained model makes, for both halves."""
        limits = {} if self._limit is None else {"validation": self._limit}
        whole = Evaluator(
            backbone,
            list(self.tasks.values()),
            limits=limits,
            batch_size=self._batch_size,
            precision=self._precision,
        )
        halves = {name: halve(self._examples(whole, name), name) for name in self.tasks}
        return {
            "search": whole.on_examples("validation", {name: half.search for name, half in halves.items()}),
            "holdout": whole.on_examples("validation", {name: half.holdout for name, half in halves.items()}),
        }

    def _examples(self, whole: Evaluator, name: str) -> Split:
        return whole.objective(name).examples(whole.backbone, whole.split(name, "validation"))

    def _figures(self, utilities: Mapping[str, float]) -> Figures:
        tasks = {name: utility(self.tasks[name].metric, value) for name, value in utilities.items()}
        lower = {name for name in tasks if self.tasks[name].metric in LOWER_IS_BETTER}
        means = {
            metric: mean_of({name: tasks[name] for name in names}, lower)
            for metric, names in self.metrics.items()
        }
        first = {self.label: mean_of(tasks, lower)}
        return {**first, **means, **tasks, **first}
