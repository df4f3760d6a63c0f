"""What the rules that use statistics of the tasks' inputs share."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from taskvec.errors import InputError, NonFinite
from taskvec.later import torch
from taskvec.rules.rule import Consumes, Place

if TYPE_CHECKING:
    from torch import Tensor

CONSUMES: Consumes = "deltas, unlabelled inputs"
NEEDED = "statistics, one file for each vector (--stats, stats=); make them with: taskvec stats"

Statistics = Sequence["Tensor | None"]
"""One a task; none where a task's file lacks the tensor."""


def given(
    rule: str, stats: Statistics | None, deltas: "Tensor", shape: Sequence[int], place: Place
) -> "Tensor | None":
    """The statistics (task, *shape) of one tensor, new, in the dtype of its deltas; none if no task has any.

    Raises: InputError if there are none for the whole model, only some tasks have them here, or for other
        shapes; NonFinite.
    """
    where = f"rule {rule!r}: {place.name!r}" if place.name else f"rule {rule!r}"
    if stats is None:
        raise InputError(f"rule {rule!r} needs {NEEDED}")
    if len(stats) != len(deltas):
        raise InputError(f"{where}: statistics of {len(stats)} tasks, expected {len(deltas)}")
    known = [of_task for of_task in stats if of_task is not None]
    if not known:
        return None
    if len(known) < len(stats):
        raise InputError(
            f"{where} has statistics in {len(known)} of {len(stats)} tasks, expected all or none"
        )
    for of_task in known:
        if of_task.shape != torch.Size(shape):
            raise InputError(
                f"{where} has statistics of shape {tuple(of_task.shape)}, expected {tuple(shape)}"
            )
    stacked = torch.stack([of_task.to(deltas.dtype) for of_task in known])
    if not bool(stacked.isfinite().all()):
        raise NonFinite(f"{where} has statistics that are NaN or infinite; make them again: taskvec stats")
    return stacked
