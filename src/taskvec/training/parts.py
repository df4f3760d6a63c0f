"""What a task brings to training: examples, and what is asked of the model on them."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.heads import Head
from taskvec.tasks.kinds import KINDS
from taskvec.tasks.kinds.classification import Classifying
from taskvec.tasks.objective import Objective
from taskvec.tasks.source import SplitName
from taskvec.tasks.split import Split
from taskvec.tasks.task import Task


@checked
@dataclass(frozen=True)
class Part:
    """One task's share of a training.

    Args:
        head: the frozen head of a classification; or the objective of any kind of task.
        max_length: tokens that a text is cut to; of a classification.
    """

    name: str
    split: Split
    head: Head | Objective
    max_length: int | None = None
    fingerprint: str | None = None
    """Of the task, data included, where it is known."""
    validation: Split | Callable[[], Split] | None = None
    """Examples that ``lr: auto`` is found on, or what reads them when they are asked for."""

    @cached_property
    def objective(self) -> Objective:
        """What is asked of the model."""
        if isinstance(self.head, Objective):
            return self.head.training()
        return Classifying(self.head, max_length=self.max_length)


@checked
def make_part(
    backbone: Backbone,
    task: Task,
    limits: Mapping[str, int] | None = None,
    head: Head | Objective | None = None,
) -> Part:
    """The training split of a task, cut to ``limits["train"]``; head or objective are made unless given."""
    check_outputs(backbone, task.name, task)
    asked = head or task.objective(backbone)
    read = partial(_read, backbone, task, asked, dict(limits or {}))
    frozen = asked.head if isinstance(asked, Classifying) else asked
    longest = getattr(task, "max_length", None)
    return Part(task.name, read("train"), frozen, longest, task.fingerprint, partial(read, "validation"))


def _read(
    backbone: Backbone, task: Task, asked: Head | Objective, limits: Mapping[str, int], name: SplitName
) -> Split:
    """A split as examples of the objective."""
    split = task.split(name, limits.get(name))
    return asked.examples(backbone, split) if isinstance(asked, Objective) else split


def check_parts(backbone: Backbone, parts: Sequence[Part]) -> None:
    """Refuse what would fail, or train nonsense, in the middle of the loop.

    Raises: InputError for a model of other outputs, an empty split, or one that its kind of task refuses,
        such as a label outside the head's classes.
    """
    for part in parts:
        check_outputs(backbone, part.name, part.objective)
        if len(part.split) == 0:
            raise InputError(f"{part.name}: the training split is empty")
        part.objective.check(part.name, part.split)


def others_of(parts: Sequence[Part], references: Sequence[Part]) -> list[Part]:
    """The references that are not among the parts."""
    own = {part.name for part in parts}
    return [part for part in references if part.name not in own]


def check_outputs(backbone: Backbone, name: str, asked: Objective | Task) -> None:
    """Refuse a model whose outputs a task cannot use. Raises: InputError."""
    needed = asked.needs if isinstance(asked, Task) else asked.outputs
    if needed != backbone.outputs and (needed, backbone.outputs) != ("features", "classifier"):
        raise InputError(
            f"{name}: needs {_OUTPUTS[needed]}, and {backbone.ref} gives "
            f"{_OUTPUTS[backbone.outputs]}, which serve tasks of kind {_kinds_for(backbone.outputs)}"
        )


_OUTPUTS = {
    "features": "a feature of every input",
    "tokens": "the logits of tokens (a language model)",
    "classifier": "the features of a trained head (load_backbone(ref, 'classifier'))",
}


def _kinds_for(outputs: str) -> str:
    return " and ".join(name for name, kind in KINDS.items() if kind.outputs == outputs) or "none"
