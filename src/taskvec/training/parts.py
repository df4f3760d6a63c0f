"""What a task brings to training: examples and a frozen head."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.heads import Head
from taskvec.tasks.loaders import head_for
from taskvec.tasks.task import Split, Task


@checked
@dataclass(frozen=True)
class Part:
    """One task's share of a training."""

    name: str
    split: Split
    head: Head
    max_length: int | None = None
    fingerprint: str | None = None
    """Of the task, data included, where it is known."""


@checked
def make_part(
    backbone: Backbone, task: Task, limits: Mapping[str, int] | None = None, head: Head | None = None
) -> Part:
    """The training split of a task, cut to ``limits["train"]``; its head is made unless given."""
    limit = (limits or {}).get("train")
    frozen = head or head_for(backbone, task)
    return Part(task.name, task.split("train", limit), frozen, task.max_length, task.fingerprint)


def check_parts(parts: Sequence[Part]) -> None:
    """Refuse what would fail, or train nonsense, in the middle of the loop.

    Raises: InputError for an empty split or a label outside the head's classes.
    """
    for part in parts:
        if len(part.split) == 0:
            raise InputError(f"{part.name}: the training split is empty")
        classes = len(part.head.classes)
        low, high = int(part.split.labels.min()), int(part.split.labels.max())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise InputError(f"{part.name}: label {wrong} is outside the head's {classes} classes")
