"""From splits to batches, features and heads."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import torch
from torch import Tensor

from taskvec.models.backbone import Backbone, evaluating
from taskvec.models.heads import Head, linear_probe, zero_shot_head
from taskvec.tasks.task import Split, Task


@dataclass(frozen=True)
class Batch:
    """A collated piece of a split.

    Args:
        inputs: keyword arguments of the backbone.
        labels: (n,), int64.
        index: (n,), int64, places in the split.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    index: Tensor

    def inputs_on(self, device: torch.device) -> dict[str, Tensor]:
        """The inputs, on a device."""
        return {key: value.to(device) for key, value in self.inputs.items()}


class Batches(Sequence[Batch]):
    """The batches of a split in a fixed order, stacked when asked for.

    Texts are held as token ids; images stay where they are, since a stacked data set of them would not fit.
    """

    def __init__(
        self, backbone: Backbone, split: Split, places: Sequence[Tensor], prepared: Sequence[object]
    ):
        self._backbone, self._split, self._places, self._prepared = backbone, split, places, prepared

    @property
    def labels(self) -> Tensor:
        """Labels (N,), int64, in the order of the batches."""
        return self._split.labels[torch.cat(list(self._places))] if self._places else self._split.labels[:0]

    def __len__(self) -> int:
        return len(self._places)

    @overload
    def __getitem__(self, at: int) -> Batch: ...

    @overload
    def __getitem__(self, at: slice) -> "Batches": ...

    def __getitem__(self, at: int | slice) -> "Batch | Batches":
        places = self._places[at]
        if isinstance(at, slice):
            return Batches(self._backbone, self._split, list(places), self._prepared)
        assert isinstance(places, Tensor)
        inputs = self._backbone.stack([self._prepared[place] for place in places.tolist()])
        return Batch(inputs, self._split.labels[places], places)


def batches(
    backbone: Backbone,
    split: Split,
    batch_size: int = 64,
    *,
    max_length: int | None = None,
    sort: bool = True,
) -> Batches:
    """A split, tokenised once and cut into batches.

    Args:
        sort: put texts of similar length together, so that little is padded; ``index`` tells where they were.
    """
    prepared = backbone.prepare(split.inputs, max_length)
    order = torch.arange(len(split))
    if sort:
        order = torch.tensor([backbone.size(row) for row in prepared], dtype=torch.int64).argsort(stable=True)
    return Batches(backbone, split, torch.split(order, batch_size) if len(split) else [], prepared)


@torch.no_grad()
def features(backbone: Backbone, of: Sequence[Batch]) -> Tensor:
    """Features (N, d) of all batches, in the order of the split, on the CPU."""
    with evaluating(backbone):
        parts = [backbone(**batch.inputs_on(backbone.device)).cpu() for batch in of]
    result = torch.empty(sum(map(len, parts)), backbone.dim)
    result[torch.cat([batch.index for batch in of])] = torch.cat(parts).float()
    return result


def head_for(backbone: Backbone, task: Task, *, batch_size: int = 64) -> Head:
    """The frozen head that a task declares, made with the pre-trained backbone.

    A linear probe is fitted on the whole training split, however little of it a fine-tuning sees: all vectors
    of a task share one head.
    """
    if task.head == "zero-shot":
        return zero_shot_head(backbone, task.classes, task.templates, task.wordings)
    train = task.split("train")
    found = features(backbone, batches(backbone, train, batch_size, max_length=task.max_length))
    return linear_probe(found, train.labels, task.classes)
