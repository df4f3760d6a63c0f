"""What a task brings to training: examples, and what is asked of the model on them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.heads import Head
from taskvec.tasks.kinds import KINDS
from taskvec.tasks.kinds.classification import Classifying
from taskvec.tasks.objective import Objective
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
    limit = (limits or {}).get("train")
    check_outputs(backbone, task.name, task)
    asked, split = head or task.objective(backbone), task.split("train", limit)
    if isinstance(asked, Objective):
        split = asked.examples(backbone, split)
    frozen = asked.head if isinstance(asked, Classifying) else asked
    longest = getattr(task, "max_length", None)
    return Part(task.name, split, frozen, longest, task.fingerprint)


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
