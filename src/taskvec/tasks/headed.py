"""Tasks whose answer a frozen head gives, which may be the one that a checkpoint was trained with."""

from abc import ABC
from typing import TYPE_CHECKING, Self

from pydantic import model_validator

from taskvec.reading import exists
from taskvec.tasks.source import expanded
from taskvec.tasks.task import Task

if TYPE_CHECKING:
    from taskvec.models.backbone import Outputs


class HeadedTask(Task, ABC):
    """A task with a field ``head``, one of whose values is ``own``."""

    outputs = "features"

    checkpoint: str | None = None
    """With ``head: own``, the model that lends its trained head; none for the model that is measured."""

    @model_validator(mode="after")
    def _head_to_lend(self) -> Self:
        if self.checkpoint is not None and self.head != "own":
            raise ValueError(
                f"checkpoint: {self.checkpoint!r} lends its head, and this task has head: {self.head}; "
                "take head: own"
            )
        return self

    @property
    def needs(self) -> "Outputs":
        """The model with its trained head, where the task takes it."""
        return "classifier" if self.head == "own" else self.outputs

    @property
    def lender(self) -> str | None:
        """The folder or id of the checkpoint that lends its head; paths are relative to the suite file."""
        if self.checkpoint is None:
            return None
        place = self.data.folder / expanded(self.checkpoint)
        return str(place) if exists(place) else self.checkpoint

    def digest(self) -> str:
        """Of the weights of that checkpoint."""
        if self.lender is None:
            return ""
        from taskvec.models.lending import fingerprint_of

        return fingerprint_of(self.lender)

    def borrowing(self, lender: str) -> Self:
        """The same task with the head of another model, if it has its own and names none."""
        if self.head != "own" or self.checkpoint is not None:
            return self
        return self.model_copy(update={"checkpoint": lender})
