"""How linear fine-tuning was: a model against its own linearization, along its task vector."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from torch import Tensor

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import Point, Points
from taskvec.models.heads import Head
from taskvec.progress import Watch, unwatched
from taskvec.tasks.source import SplitName
from taskvec.training.regimes import Space, linear_of

TENTHS = tuple(i / 10 for i in range(1, 11))


def kernel_gap(f: Tensor, f_lin: Tensor, f0: Tensor) -> float | None:
    """How far a model is from its linearization, in units of how far it moved.

        gap(a) = E_x || f_a - f_lin,a || / E_x || f_a - f_0 ||,   f_a = f(x; theta_0 + a tau)

    Args:
        f, f_lin, f0: features (N, d) of the same examples at the three points.

    Returns: 0 in the kernel regime, and of order a for small a in any smooth model; none where the model did
        not move.
    Source: the test of kernel behaviour in Jin et al. 2025 (arXiv:2407.07089).
    """
    moved = (f.double() - f0.double()).norm(dim=-1).mean()
    missed = (f.double() - f_lin.double()).norm(dim=-1).mean()
    return float(missed / moved) if moved > 0 else None


def nonlinear_advantage(nonlinear: float, linear: float, classes: int) -> float:
    """What a task gains from leaving the tangent space, as a share of the range above chance; -1 to 1.

        NLA = (Acc_nl - Acc_lin) / (1 - 1/C)

    Source: Ortiz-Jimenez et al. 2023 (arXiv:2305.12827).
    """
    if classes < 2:
        raise InputError(f"non-linear advantage: {classes} classes, expected 2 or more")
    return (nonlinear - linear) / (1 - 1 / classes)


@dataclass(frozen=True)
class Along:
    """A model and its linearization at coefficients of one task vector, on that vector's own task."""

    gap: list[float | None]
    accuracy: list[float]
    accuracy_linear: list[float]


def along(
    evaluator: Evaluator,
    ordinary: Points,
    tangent: Points,
    task: str,
    coefficients: Sequence[float],
    *,
    split: SplitName = "test",
    watch: Watch = unwatched,
    label: str = "linearity",
) -> Along:
    """Follow the vector called ``task`` in both spaces, on the data of ``task``.

    Cost: a forward pass a coefficient, and one linearized pass for all of them.
    """
    head = evaluator.head(task)

    def at(points: Points, coefficient: float) -> tuple[Tensor, float]:
        point: Point = points.at({task: coefficient})
        features, labels = evaluator.features(point, task, split)
        return features, _accuracy(head, features, labels)

    start, _ = at(ordinary, 0.0)
    found = Along([], [], [])
    for done, coefficient in enumerate(coefficients, start=1):
        f, accuracy = at(ordinary, coefficient)
        f_lin, accuracy_linear = at(tangent, coefficient)
        found.gap.append(kernel_gap(f, f_lin, start))
        found.accuracy.append(accuracy)
        found.accuracy_linear.append(accuracy_linear)
        watch(label, done, len(coefficients))
    return found


@dataclass(frozen=True)
class Regime:
    """Vectors of one regime under the names of their tasks, in both spaces.

    Args:
        space: the one they were trained in.
    """

    name: str
    space: Space
    ordinary: Points
    tangent: Points


@checked
def linearity_gap(
    evaluator: Evaluator,
    regimes: Iterable[Regime],
    tasks: Sequence[str],
    *,
    coefficients: Sequence[float] = TENTHS,
    split: SplitName = "test",
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Gap and accuracies along every vector, and what a task gains from non-linearity at coefficient 1.

    The advantage compares a vector trained in ordinary space with its own linearization (*post hoc*) and,
    where there is one, with the vector trained in tangent space on the same parameters.

    Args:
        regimes: taken one after another, so that a generator holds the vectors of one at a time.
        coefficients: 1 is added if it is not among them.

    Returns: a record of plain data.
    Raises: InputError for a coefficient that is not positive and finite, or no task.
    """
    if not tasks or not coefficients or not all(0 < value < math.inf for value in coefficients):
        raise InputError(
            f"linearity: tasks {list(tasks)}, coefficients {list(coefficients)}; expected one task or more, "
            "and finite, positive coefficients"
        )
    values = sorted({*map(float, coefficients), 1.0})
    found: dict[str, dict[str, Along]] = {}
    spaces: dict[str, str] = {}
    for regime in regimes:
        spaces[regime.name] = regime.space
        found[regime.name] = {
            task: along(
                evaluator,
                regime.ordinary,
                regime.tangent,
                task,
                values,
                split=split,
                watch=watch,
                label=f"{task}, {regime.name}",
            )
            for task in tasks
        }
    one = values.index(1.0)
    classes = {task: len(evaluator.head(task).classes) for task in tasks}
    return {
        "analysis": "linearity",
        "model": evaluator.backbone.ref,
        "split": split,
        "examples": {task: len(evaluator.split(task, split)) for task in tasks},
        "data": {task: evaluator.task(task).fingerprint for task in tasks},
        "precision": evaluator.precision,
        "tasks": list(tasks),
        "classes": classes,
        "coefficients": values,
        "pretrained": {task: _pretrained(evaluator, task, split) for task in tasks},
        "regimes": {
            name: {"space": spaces[name], "tasks": {task: vars(one) for task, one in by_task.items()}}
            for name, by_task in found.items()
        },
        "advantage": {
            label: _with_mean(
                {task: nonlinear_advantage(*pair, classes[task]) for task, pair in accuracies.items()}
            )
            for label, accuracies in _comparisons(found, spaces, one)
        },
    }


def _comparisons(
    found: Mapping[str, Mapping[str, Along]], spaces: Mapping[str, str], one: int
) -> Iterable[tuple[str, dict[str, tuple[float, float]]]]:
    """Non-linear and linear accuracy at coefficient 1 by task, for every comparison there is."""
    for name, by_task in found.items():
        if spaces[name] != "ordinary":
            continue
        yield (
            f"{name} over its linearization",
            {task: (of.accuracy[one], of.accuracy_linear[one]) for task, of in by_task.items()},
        )
        linear = linear_of(name)
        if linear in found:
            yield (
                f"{name} over {linear}",
                {
                    task: (of.accuracy[one], found[linear][task].accuracy_linear[one])
                    for task, of in by_task.items()
                },
            )


def _with_mean(values: Mapping[str, float]) -> dict[str, Any]:
    return {"tasks": dict(values), "mean": fmean(values.values())}


def _pretrained(evaluator: Evaluator, task: str, split: SplitName) -> float:
    return _accuracy(evaluator.head(task), *evaluator.features(evaluator.pretrained, task, split))


def _accuracy(head: Head, features: Tensor, labels: Tensor) -> float:
    return float((head(features).argmax(-1) == labels).double().mean())
