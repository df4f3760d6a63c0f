"""Few-shot adaptation: the coefficients of a pool of task vectors as the embedding of a new task."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from taskvec.arguments import checked
from taskvec.coefficients.learned import Learned
from taskvec.coefficients.learning import learn_coefficients
from taskvec.coefficients.presets import few_shot
from taskvec.coefficients.settings import CoefficientSettings
from taskvec.coefficients.shots import has_classes, labels_of_head, shots_of
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.models.backbone import Backbone
from taskvec.progress import Watch, unwatched
from taskvec.tasks.task import Task
from taskvec.training.logs import Log
from taskvec.training.regimes import Space
from taskvec.vectors import TaskVector
from taskvec.vectors.library import Library


@dataclass(frozen=True)
class Adapted(Learned):
    """A merge of a pool that serves a new task, learned from a few of its labelled examples.

    Attributes:
        shots: examples of each class; of a task without classes, examples.
        examples: their places in the split that they were drawn from.
        by_class: whether shots are of each class.
        scarce: whether a class had fewer.
        of_head: labels that the task's frozen head was fitted on.
    """

    shots: int = 0
    examples: tuple[int, ...] = ()
    by_class: bool = True
    scarce: bool = False
    of_head: int = 0

    @property
    def consumed(self) -> tuple[str, ...]:
        """The labels that were read, those of the task's head among them."""
        head = (f"{self.of_head} train labels (by the task's head)",) if self.of_head else ()
        if not self.settings.steps:
            return head
        most = "at most " if self.scarce else ""
        of_class = f" ({most}{self.shots} a class)" if self.by_class else ""
        return (f"{len(self.examples)} {self.settings.split} labels{of_class}", *head)

    def record(self) -> dict[str, Any]:
        """The same as plain data, without the vector."""
        return {**super().record(), "shots": self.shots, "examples": list(self.examples)}


@checked
def adapt(
    model: Evaluator | Backbone,
    pool: Mapping[str, TaskVector] | Library,
    task: str | Task,
    shots: int = 4,
    *,
    settings: CoefficientSettings | None = None,
    space: Space | None = None,
    seed: int = 0,
    checkpoint: Path | None = None,
    watch: Watch = unwatched,
    log: Log | None = None,
) -> Adapted:
    """Serve a new task with the vectors of others: learn their coefficients from a few labelled examples.

        theta(a) = theta_0 + sum_t a[t] tau_t,    a = argmin of the loss on the shots; theta_0, tau_t frozen

    Coefficients start at 0, at the model as it is. No more labels are read than the shots: nothing is stopped
    early or chosen by others.

    Args:
        model: an evaluator that has the task; or the backbone, for a ``Task`` that is given.
        pool: vectors of other tasks under any labels, expressions such as ``a - b`` among them; or a library.
        shots: labelled examples of each class; of a task without classes, in all. A class with fewer gives
            what it has. None leaves the model as it is.
        settings: by default those of :func:`taskvec.coefficients.presets.few_shot`; their signal is labels.
        space: where vectors are added; by default that in which they were trained.
        seed: of the draw, and of the batches.
        checkpoint, watch, log: see :func:`learn_coefficients`.

    Raises: InputError for settings, tasks or vectors that do not fit.
    Source: Zhang et al. 2024 (arXiv:2407.02880); the task embedding of arXiv:2012.09543 in weight space.
    """
    chosen = few_shot() if settings is None else settings
    _check(chosen, shots)
    evaluator, name = _asked(model, task)
    held, places = shots_of(evaluator, name, max(shots, 1), seed, chosen.split)
    learned = learn_coefficients(
        evaluator.on_examples(chosen.split, {name: held}),
        pool.vectors if isinstance(pool, Library) else pool,
        [name],
        chosen if shots else chosen.model_copy(update={"steps": 0}),
        space=space,
        seed=seed,
        checkpoint=checkpoint,
        watch=watch,
        log=log,
    )
    drawn = tuple(places.tolist()) if learned.settings.steps else ()
    by_class = has_classes(evaluator, name)
    return Adapted(
        **vars(learned),
        shots=shots,
        examples=drawn,
        by_class=by_class,
        scarce=by_class and int(torch.bincount(held.labels)[held.labels].min()) < shots,
        of_head=labels_of_head(evaluator, name),
    )


def _check(settings: CoefficientSettings, shots: int) -> None:
    if shots < 0:
        raise InputError(f"shots: {shots}, expected 0 or more")
    if settings.signal != "labels":
        raise InputError(
            f"signal: {settings.signal}, expected labels, which shots are; take tv.learn_coefficients for "
            "others"
        )


def _asked(model: Evaluator | Backbone, task: str | Task) -> tuple[Evaluator, str]:
    """An evaluator, and the name of its task. Raises: InputError."""
    if isinstance(model, Evaluator):
        name = task if isinstance(task, str) else task.name
        model.task(name)
        return model, name
    if isinstance(task, str):
        raise InputError(
            f"task: the name {task!r} beside a backbone, expected a Task; take "
            "tv.load_suite(SUITE).task(NAME)"
        )
    return Evaluator(model, [task]), task.name
