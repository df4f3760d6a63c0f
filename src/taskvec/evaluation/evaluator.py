"""A backbone, its frozen heads and prepared data: what scores a set of parameters."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from taskvec.errors import InputError, TaskvecError
from taskvec.evaluation.metrics import Score, score
from taskvec.evaluation.points import Points
from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.models.heads import Head
from taskvec.registry import nearest
from taskvec.tasks.loaders import Batch, batches, head_for
from taskvec.tasks.source import SplitName
from taskvec.tasks.task import Split, Task
from taskvec.training.loop import Params, autocast
from taskvec.training.parts import Part, make_part
from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights


class Evaluator:
    """Scores parameters on tasks. Data is prepared once, heads are made once from the pre-trained model.

    Args:
        backbone: not modified.
        tasks: distinct names.
        limits: at most so many first examples of a split, by split name.
        batch_size: examples a forward pass.
        precision: "float32" or "bf16" (autocast).

    Raises: InputError for a task of another modality than the backbone's.
    """

    def __init__(
        self,
        backbone: Backbone,
        tasks: Sequence[Task],
        *,
        limits: Mapping[str, int] | None = None,
        batch_size: int = 64,
        precision: str = "float32",
    ) -> None:
        for task in tasks:
            if task.modality != backbone.modality:
                raise InputError(
                    f"{task.name}: a task on {task.modality}s, and {backbone.ref} reads {backbone.modality}s"
                )
        self.backbone = backbone
        self.tasks = {task.name: task for task in tasks}
        self.limits = dict(limits or {})
        self.precision = precision
        self._batch_size = batch_size
        self._heads: dict[str, Head] = {}
        self._batches: dict[tuple[str, SplitName], Sequence[Batch]] = {}

    @cached_property
    def pretrained(self) -> dict[str, Tensor]:
        """The parameters that fine-tuning may move, as they were before it."""
        return {name: value.detach() for name, value in self.backbone.encoder_parameters().items()}

    def points(self, vectors: Mapping[str, TaskVector], start: Params | None = None) -> Points:
        """Edits of the pre-trained parameters, or of ``start``, by vectors under labels of the caller's.

        Tensors that no feature depends on are left out. Raises: BaseMismatch if a vector is of another model.
        """
        base = open_weights(self.backbone.ref)
        deltas = {}
        for label, vector in vectors.items():
            apply(base, vector)  # lazy: only refuses a vector of another base
            moved = [name for name in vector if name in self.pretrained and vector.terms_at(name)]
            deltas[label] = {name: vector[name] for name in moved}
        return Points(start or self.pretrained, deltas)

    def task(self, name: str) -> Task:
        """The task of that name."""
        if name not in self.tasks:
            raise InputError(f"no task called {name!r} here; {nearest(name, self.tasks)}")
        return self.tasks[name]

    def split(self, name: str, split: SplitName) -> Split:
        """A split of a task, cut to this evaluator's limit."""
        return self.task(name).split(split, limit=self.limits.get(split))

    def head(self, name: str) -> Head:
        """The task's frozen head: class prompts in the text tower, or a probe on pre-trained features."""
        if name not in self._heads:
            self._heads[name] = head_for(self.backbone, self.task(name))
        return self._heads[name]

    def part(self, name: str) -> Part:
        """What the task brings to training."""
        return make_part(self.backbone, self.task(name), self.limits, self.head(name))

    def logits(self, params: Params, name: str, split: SplitName) -> tuple[Tensor, Tensor]:
        """Logits (N, C) float32 and labels (N,) of a split, in an order of this evaluator's own."""
        prepared = self._prepared(name, split)
        with torch.no_grad():
            logits: Tensor = self.head(name)(self._features(params, prepared))
        return logits, _labels(prepared)

    def score(self, params: Params, name: str, split: SplitName) -> Score:
        """All figures of ``params`` on one split of one task.

        Raises: TaskvecError when the model's outputs are no longer finite.
        """
        logits, labels = self.logits(params, name, split)
        if not bool(logits.isfinite().all()):
            raise TaskvecError(
                f"{name}: the model's {split} outputs are not finite; the coefficient is too large"
            )
        return score(logits, labels, self.task(name).metric)

    def values(self, params: Params, names: Iterable[str], split: SplitName) -> dict[str, float]:
        """The tasks' own metrics, by task."""
        return {name: self.score(params, name, split).value for name in names}

    def scores(self, params: Params, names: Iterable[str], split: SplitName) -> dict[str, Score]:
        """All figures, by task."""
        return {name: self.score(params, name, split) for name in names}

    def _prepared(self, name: str, split: SplitName) -> Sequence[Batch]:
        if (name, split) not in self._batches:
            rows, longest = self.split(name, split), self.task(name).max_length
            self._batches[name, split] = batches(self.backbone, rows, self._batch_size, max_length=longest)
        return self._batches[name, split]

    def _features(self, params: Params, prepared: Sequence[Batch]) -> Tensor:
        with torch.no_grad(), autocast(self.precision):
            return torch.cat([encode(self.backbone, params, batch.inputs).float() for batch in prepared])


def _labels(prepared: Sequence[Batch]) -> Tensor:
    return torch.cat([batch.labels for batch in prepared])
