"""Outputs of tangent space, computed once: affine in every coefficient."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from taskvec.coefficients.rows import Rows
from taskvec.coefficients.scopes import Groups
from taskvec.coefficients.streaming import Stream
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.linear import LinearFeatures, linear_features
from taskvec.tasks.loaders import Batches
from taskvec.vectors import TaskVector

KEPT = 1 << 31
"""Bytes of outputs and their slopes that are held."""

_AT_ONCE = 8
"""Directions that go through the network together; each holds activations of its own."""


@dataclass(frozen=True)
class Affine:
    """Outputs (R, d) of one task's examples, affine in coefficients.

        outputs(a) = base + sum_k a[vector k, group k] slope_k

    Args:
        base: (R, d). slopes: (K, R, d), both by example.
        vectors, groups: (K,), int64.
    """

    base: Tensor
    slopes: Tensor
    vectors: Tensor
    groups: Tensor
    rows: Rows

    def at(self, coefficients: Tensor, index: Tensor | None = None) -> Tensor:
        """Outputs at coefficients (vector, group): all, or the rows of a batch of examples ``index``."""
        base, slopes = self.base, self.slopes
        if index is not None:
            places = self.rows.places(index)
            base, slopes = base[places], slopes[:, places]
        chosen = coefficients[self.vectors, self.groups].to(slopes)
        moved: Tensor = torch.tensordot(chosen, slopes, dims=1)
        return base + moved

    def double(self) -> "Affine":
        """The same in float64."""
        return Affine(self.base.double(), self.slopes.double(), self.vectors, self.groups, self.rows)


@torch.no_grad()
def affine_outputs(
    evaluator: Evaluator, task: str, batches: Batches, vectors: Mapping[str, TaskVector], groups: Groups
) -> Affine:
    """Outputs and their slopes in each coefficient, a vector after the other, in the order of their labels.

    Cost: 1 + 2 G forward passes a vector over the batches, with G groups that it changes.

    Raises: InputError if they take more memory than ``KEPT``.
    """
    lin, rows = evaluator.linearized, Rows.of(batches.targets()[1])
    streams = [Stream({label: vectors[label]}, lin.theta0) for label in sorted(vectors)]
    moved = [_groups_moved(stream, groups) for stream in streams]
    _check_room(evaluator, task, batches.rows, sum(map(len, moved)))
    found: list[LinearFeatures] = []
    for stream, of in zip(streams, moved, strict=True):
        for first in range(0, len(of), _AT_ONCE):
            taus = {group: _tau(stream, groups, group) for group in of[first : first + _AT_ONCE]}
            found.append(linear_features(lin, taus, batches, precision=evaluator.precision))
    return Affine(
        found[0].base[rows.order],
        torch.stack([slope[rows.order] for part in found for slope in part.slopes.values()]),
        torch.tensor([place for place, of in enumerate(moved) for _ in of]),
        torch.tensor([group for of in moved for group in of]),
        rows,
    )


def _groups_moved(stream: Stream, groups: Groups) -> list[int]:
    """The groups with tensors that the stream's one vector changes."""
    places = (range(*groups.of(name).indices(len(groups.names))) for name in stream.changed)
    return list(dict.fromkeys(place for of in places for place in of))


def _tau(stream: Stream, groups: Groups, group: int) -> dict[str, Tensor]:
    """What a vector changes in a group."""
    tau: dict[str, Tensor] = {}
    for name in stream.changed:
        of = groups.of(name)
        if of.start <= group < of.stop:
            [(_, delta)] = stream.deltas(name, None)
            parts = groups.partition(delta.shape)
            tau[name] = delta if parts is None else delta * (parts.to(delta.device) == group - of.start)
    return tau


def _check_room(evaluator: Evaluator, task: str, rows: int, directions: int) -> None:
    needed = 4 * rows * evaluator.backbone.dim * (1 + directions)
    if needed > KEPT:
        raise InputError(
            f"{task}: in tangent space {rows} rows of outputs with {directions} slopes each take "
            f"{needed / 2**30:.1f} GiB, expected {KEPT / 2**30:g} or less; limit the examples of the split, "
            "take scope: task, or evaluate in ordinary space"
        )
