"""Which layers of a task vector are needed: rank them, and keep the fewest that do."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import Point, Points, TangentPoint, beside_encoder, dense_deltas
from taskvec.models.backbone import evaluating
from taskvec.models.functional import differentiable_statistics, encode
from taskvec.names import Grouping, grouped
from taskvec.place import autocast
from taskvec.registry import nearest
from taskvec.tasks.loaders import in_batches
from taskvec.training.regimes import Space
from taskvec.vectors import TaskVector
from taskvec.vectors.combining import bind_all
from taskvec.vectors.directions import Scaled

Ranking = Literal["loss", "first-order"]
"""What makes a layer important: by how much the validation loss rises without its change, or the first-order
estimate of that."""

_AT_ONCE = 32
"""Counts of layers that are measured before those between two of them."""


@dataclass(frozen=True)
class Cut:
    """A task vector of its most important layers alone.

    Args:
        layers, bytes: how many they are, and what they take in float32.
        value: on validation, more is better.
    """

    layers: int
    bytes: int
    value: float


@dataclass(frozen=True)
class Pruned:
    """A task vector of few layers, and how it was found.

    Args:
        vector: with the provenance of the whole one; closed layers are not stored.
        importance: of every layer that the whole vector changes, the most important first.
        kept: the layers that stay, in the order of the model.
        curve: what was measured on validation, from no layer to all that the whole vector changes.
        layers, bytes: of the encoder, in the order of the model, which shares are taken of.
        examples: whose labels were read, of the validation split.
        test: of the pre-trained model, of the whole and of the pruned vector, as more is better.
    """

    vector: TaskVector
    importance: Mapping[str, float]
    kept: Sequence[str]
    curve: Sequence[Cut]
    layers: Sequence[str]
    bytes: int
    examples: int
    test: Mapping[str, float]

    @property
    def whole(self) -> Cut:
        """The vector as it was."""
        return self.curve[-1]

    @property
    def cut(self) -> Cut:
        """The vector as it is now."""
        return next(cut for cut in self.curve if cut.layers == len(self.kept))

    def shares(self, cut: Cut) -> tuple[float, float]:
        """Of the encoder's layers, and of its bytes."""
        return cut.layers / len(self.layers), cut.bytes / self.bytes


@checked
def prune_layers(
    evaluator: Evaluator,
    vector: TaskVector,
    task: str,
    *,
    tolerance: float = 0.01,
    by: Ranking = "loss",
    gates: Grouping = "layer",
    space: Space | None = None,
) -> Pruned:
    """The fewest layers of a task vector that keep its validation score.

    Layers are ranked, and the least important go first.

    Args:
        evaluator: the model and the task.
        tolerance: the share of the whole vector's validation score that may be lost.
        by: ``loss`` measures the validation loss without each layer's change, a pass a layer; ``first-order``
            takes ``|<gradient of the validation loss, change>|``, one pass.
        gates: what goes together: a ``layer`` (a weight with its bias), each ``tensor`` or a ``block``.
        space: where the vector is evaluated; by default the space that it was trained in.

    Raises: InputError for a task whose figures are of texts that the model writes, with ``by="loss"``;
        BaseMismatch.
    Cost: beside the ranking, at most 32 validation passes for 32 layers, some more for many.
    """
    _check(tolerance, by, gates, space)
    [vector] = bind_all([vector], evaluator.backbone.source)
    space = space or vector.info.space or "ordinary"
    sizes = _sizes(evaluator, vector)
    layers = _changed_layers(vector, sizes, gates)
    points = evaluator.points({of: _only(vector, names) for of, names in layers.items()}, space=space)
    if by == "loss":
        found = _rank_by_loss(evaluator, points, list(layers), task)
    else:
        found = _rank_by_slopes(evaluator, points, vector, layers, task)
    ranked = sorted(layers, key=lambda layer: -found[layer])

    def measure(count: int) -> Cut:
        chosen = ranked[:count]
        value = evaluator.values(_at(points, chosen), [task], "validation")[task]
        return Cut(count, sum(sizes[name] for layer in chosen for name in layers[layer]), value)

    curve, cut = _fewest(measure, len(layers), tolerance)
    needed = set(ranked[: cut.layers])
    kept = [layer for layer in layers if layer in needed]
    compared = {"pretrained": [], "whole": list(layers), "pruned": kept}
    how = {"by": by, "tolerance": tolerance, "gates": gates, "kept": len(kept), "of": len(layers)}
    return Pruned(
        vector=_only(vector, [name for layer in kept for name in layers[layer]], how),
        importance={layer: found[layer] for layer in ranked},
        kept=kept,
        curve=curve,
        layers=list(grouped(sizes, gates)),
        bytes=sum(sizes.values()),
        examples=len(evaluator.split(task, "validation")),
        test={
            label: evaluator.values(_at(points, chosen), [task], "test")[task]
            for label, chosen in compared.items()
        },
    )


def _check(tolerance: float, by: str, gates: str, space: str | None) -> None:
    if not 0 <= tolerance <= 1:
        raise InputError(f"tolerance: {tolerance:g}, expected a share of the score, 0 to 1")
    if by not in get_args(Ranking):
        raise InputError(f"by: {by!r}, expected loss or first-order; {nearest(by, get_args(Ranking))}")
    if gates not in get_args(Grouping):
        raise InputError(f"gates: {gates!r}, expected one of {', '.join(get_args(Grouping))}")
    if space not in (None, *get_args(Space)):
        raise InputError(f"space: {space!r}, expected {' or '.join(get_args(Space))}")


def _sizes(evaluator: Evaluator, vector: TaskVector) -> dict[str, int]:
    """Bytes in float32 of every tensor of the encoder, and of what else a vector changes."""
    counts = {name: value.numel() for name, value in evaluator.pretrained.items()}
    beside = {name: spec.numel for name, spec in vector.specs.items() if vector.terms_at(name)}
    return {name: 4 * count for name, count in {**counts, **beside}.items()}


def _changed_layers(vector: TaskVector, names: Iterable[str], gates: Grouping) -> dict[str, list[str]]:
    """By layer the tensors that a vector changes, in the model's order."""
    changed = {name for name, norm in vector.norms().items() if norm}
    return grouped([name for name in names if name in changed], gates)


def _only(vector: TaskVector, names: Iterable[str], how: Mapping[str, object] | None = None) -> TaskVector:
    """What a vector changes among some tensors, with its provenance but for the figures of the whole."""
    kept, info = set(names), vector.info
    training = {**(info.training or {}), **({"pruned": how} if how else {})}
    recorded = info.model_copy(update={"training": training or None, "metrics": None})
    return TaskVector.of(Scaled(vector, {name: 0.0 for name in vector if name not in kept}, recorded))


def _at(points: Points, layers: Iterable[str]) -> Point:
    return points.at(dict.fromkeys(layers, 1.0))


def _rank_by_loss(evaluator: Evaluator, points: Points, layers: Sequence[str], task: str) -> dict[str, float]:
    """By how much the loss rises without the change of each layer."""
    if evaluator.objective(task).writes:
        raise InputError(
            f"by: loss given, and {task!r} is measured on texts that the model writes, which have none; "
            "take first-order"
        )
    whole, watch = _loss(evaluator, _at(points, layers), task), evaluator.watch
    found = {}
    for done, layer in enumerate(layers, start=1):
        rest = _at(points, [other for other in layers if other != layer])
        found[layer] = _loss(evaluator, rest, task) - whole
        watch(f"ranking layers, {task}", done, len(layers))
    return found


@torch.no_grad()
def _loss(evaluator: Evaluator, point: Point, task: str) -> float:
    """The mean over the rows of the validation split."""
    asked = evaluator.objective(task).at({} if isinstance(point, TangentPoint) else point)
    total, rows = 0.0, 0
    for outputs, batch in evaluator.outputs(point, task, "validation"):
        total += asked.on(outputs.device).loss(outputs, batch).item() * len(batch.index)
        rows += len(batch.index)
    return total / rows


def _rank_by_slopes(
    evaluator: Evaluator,
    points: Points,
    vector: TaskVector,
    layers: Mapping[str, Sequence[str]],
    task: str,
) -> dict[str, float]:
    """``|<gradient of the validation loss, change>|`` of each layer."""
    backbone, point = evaluator.backbone, _at(points, layers)
    [deltas] = dense_deltas(backbone, [vector], beside_encoder(backbone))
    if isinstance(point, TangentPoint):
        theta0 = evaluator.linearized.theta0
        leaves = {name: deltas[name].detach().to(theta0[name]) for name in deltas if name in theta0}
    else:
        leaves = {name: point[name].detach() for name in deltas}
    for leaf in leaves.values():
        leaf.requires_grad_()
    moving: AbstractContextManager[None] = nullcontext()
    if not leaves.keys().isdisjoint(backbone.statistics()):
        moving = differentiable_statistics(backbone.network)
    with evaluating(backbone), moving:
        if leaves:
            _add_slopes(evaluator, point, leaves, task)
    slopes = {name: leaf.grad for name, leaf in leaves.items()}
    return {
        layer: abs(sum(_product(slopes.get(name), deltas.get(name)) for name in names))
        for layer, names in layers.items()
    }


def _add_slopes(evaluator: Evaluator, point: Point, leaves: Mapping[str, Tensor], task: str) -> None:
    """Add the gradient of the mean validation loss to the leaves, where a point is moved."""
    backbone, objective = evaluator.backbone, evaluator.objective(task)
    split = objective.examples(backbone, evaluator.split(task, "validation"))
    asked = objective.training().on(backbone.device)
    prepared = asked.prepare(backbone, split)
    rows = int(prepared.rows.sum())
    for batch in in_batches(prepared, evaluator.batch_size):
        there = batch.on(backbone.device)
        with autocast(evaluator.precision, backbone.device):
            if isinstance(point, TangentPoint):
                outputs = evaluator.linearized(leaves, there.inputs)
            else:
                outputs = encode(backbone, {**point, **leaves}, there.inputs)
        outputs = outputs.to(torch.promote_types(outputs.dtype, torch.float32))
        loss = asked.moving({} if isinstance(point, TangentPoint) else leaves).loss(outputs, there)
        torch.autograd.backward(loss * (len(there.index) / rows), inputs=list(leaves.values()))


def _product(slope: Tensor | None, delta: Tensor | None) -> float:
    if slope is None or delta is None:
        return 0.0
    return float(torch.sum(slope.double() * delta.to(slope.device).double()))


def _fewest(measure: Callable[[int], Cut], total: int, tolerance: float) -> tuple[list[Cut], Cut]:
    """What was measured, and the fewest layers whose value is within a tolerance of that of all.

    Counts are measured on a grid, and between the first of it that is good enough and the one before.
    """
    steps = max(1, min(total, _AT_ONCE))
    cuts = {count: measure(count) for count in sorted({round(i * total / steps) for i in range(steps + 1)})}
    whole = cuts[total].value
    floor = whole - tolerance * abs(whole)
    first = min(count for count, cut in cuts.items() if cut.value >= floor)
    before = max((count for count in cuts if count < first), default=first)
    cuts |= {count: measure(count) for count in range(before + 1, first)}
    fewest = min(count for count, cut in cuts.items() if cut.value >= floor)
    return [cuts[count] for count in sorted(cuts)], cuts[fewest]
