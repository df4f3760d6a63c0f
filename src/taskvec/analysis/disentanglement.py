"""Weight disentanglement: how far one task's vector disturbs the model on another task's data."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from statistics import fmean
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from taskvec.arguments import checked
from taskvec.errors import InputError, TaskvecError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import Points
from taskvec.models.heads import Head
from taskvec.progress import Watch, unwatched
from taskvec.tasks.source import SplitName
from taskvec.training.regimes import Space

Visit = Callable[[float, float], tuple[Tensor, Tensor]]
"""Coefficients (a1, a2) to features (N1, d), (N2, d) of the edited model on the data of both tasks."""


@dataclass(frozen=True)
class Distance:
    """A distance between the outputs (N, k) of two models on the same examples, one number (N,) for each.

    In two steps, so that a model that is compared many times is prepared once.

    Args:
        view: from outputs to what is compared, (N, ...).
        between: from two views to distances.
    """

    view: Callable[[Tensor], Tensor]
    between: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, first: Tensor, other: Tensor) -> Tensor:
        """Distances (N,) of outputs that were not prepared."""
        return self.between(self.view(first), self.view(other))

    def behind(self, head: Head) -> "Distance":
        """The same distance, of the logits that a head gives to features."""
        return Distance(lambda features: self.view(head(features)), self.between)


disagreement = Distance(lambda logits: logits.argmax(-1), torch.ne)
"""1 where two models predict different classes, 0 where not."""

symmetric_kl = Distance(
    partial(log_softmax, dim=-1), lambda p, q: ((p.exp() - q.exp()) * (p - q)).sum(-1) / 2
)
"""(KL(p || q) + KL(q || p)) / 2 with p, q the softmax of each row.

Source: the distance between representations of Jin et al. 2025 (arXiv:2407.07089).
"""

cosine_distance = Distance(partial(normalize, dim=-1), lambda u, v: (u - v).square().sum(-1) / 2)
"""1 - cos of the angle between rows, 0 to 2."""


@dataclass(frozen=True)
class Maps:
    """Sums over both tasks of mean distances, at coefficients (row a1, column a2) of a grid; float64."""

    error: Tensor
    """Between the model with the task's own vector and the model with both: xi."""
    movement: Tensor
    """Between the model without any vector and the model with both."""


def disentanglement_maps(
    visit: Visit,
    grid: Sequence[float],
    distances: Mapping[str, tuple[Distance, Distance]],
    watch: Watch = unwatched,
    label: str = "heat map",
) -> dict[str, Maps]:
    """The disentanglement error of two tasks over a square grid of coefficients.

        xi(a1, a2) = sum over t of E_{x in D_t} dist(f(x; theta_0 + a_t tau_t),
                                                     f(x; theta_0 + a1 tau_1 + a2 tau_2))

    Every mean is over the examples seen.

    Args:
        visit: called once a point.
        grid: values of a1 and of a2.
        distances: by name, one for the data of each task (they may hold its head).

    Cost: n^2 visits if the grid holds 0, where the axes hold the single-task models; else 2n + 1 more.
        Memory of 2n views a distance.
    Raises: InputError for an empty grid or a value twice.
    Source: Ortiz-Jimenez et al. 2023 (arXiv:2305.12827).
    """
    if not grid or len(set(grid)) < len(grid):
        raise InputError(f"grid: {list(grid)}, expected one or more coefficients, each once")
    place = {value: index for index, value in enumerate(grid)}
    order = dict.fromkeys(
        [(0.0, 0.0), *((a, 0.0) for a in grid), *((0.0, a) for a in grid)]
        + [(a1, a2) for a1 in grid for a2 in grid]
    )
    seen: dict[tuple[str, int, float], Tensor] = {}
    size = len(grid)
    maps = {name: Maps(*torch.zeros(2, size, size, dtype=torch.float64)) for name in distances}
    for done, (a1, a2) in enumerate(order, start=1):
        both = visit(a1, a2)
        for name, of_tasks in distances.items():
            for task, (own, other) in enumerate(((a1, a2), (a2, a1))):
                view = of_tasks[task].view(both[task])
                if other == 0:
                    seen[name, task, own] = view
                if a1 in place and a2 in place:
                    at, between = (place[a1], place[a2]), of_tasks[task].between
                    maps[name].error[at] += between(seen[name, task, own], view).double().mean()
                    maps[name].movement[at] += between(seen[name, task, 0.0], view).double().mean()
        watch(label, done, len(order))
    return maps


def square_grid(start: float = -3.0, stop: float = 3.0, points: float = 21) -> list[float]:
    """Equally spaced coefficients, both ends included; an odd number around 0 holds 0 exactly.

    >>> square_grid(-1, 1, 5)
    [-1.0, -0.5, 0.0, 0.5, 1.0]

    Raises: InputError for fewer than two points, or no whole number of them; for a start that is not below
        the stop; for numbers that are not finite.
    """
    if not (-math.inf < start < stop < math.inf and points >= 2 and float(points).is_integer()):
        raise InputError(
            f"grid: {start:g} to {stop:g} in {points:g} points, expected START < STOP and a whole number of "
            "points, 2 or more"
        )
    return [round(start + (stop - start) * i / (points - 1), 10) + 0.0 for i in range(int(points))]


def over(grid: Sequence[float], values: Tensor, inside: Callable[[float, float], bool]) -> float | None:
    """Mean of a map (n, n) over the grid points inside a region; none where no point is."""
    picked = [values[i, j] for i, a1 in enumerate(grid) for j, a2 in enumerate(grid) if inside(a1, a2)]
    return fmean(map(float, picked)) if picked else None


def in_box(a1: float, a2: float) -> bool:
    """The square [-1, 1]^2, where the best coefficients mostly are."""
    return max(abs(a1), abs(a2)) <= 1


def in_quadrant(a1: float, a2: float) -> bool:
    """(0, 1]^2, where tasks are added."""
    return min(a1, a2) > 0 and max(a1, a2) <= 1


PREDICTION, OUTPUTS, FEATURES, ANGLE = "prediction", "output_kl", "feature_kl", "feature_cosine"
DISTANCES = {
    PREDICTION: "share of predictions that differ",
    OUTPUTS: "symmetric KL of softmaxed logits",
    FEATURES: "symmetric KL of softmaxed features",
    ANGLE: "1 - cosine of features",
}
"""The first two are behind the head, the last two before it."""


@dataclass(frozen=True)
class Panel:
    """One way to make and evaluate vectors: a map of its own for every pair of tasks.

    Args:
        label: such as ``full, post hoc``.
        points: edits by vectors under the names of their tasks, in one space.
    """

    label: str
    regime: str
    space: Space
    points: Points


def disentangle(
    evaluator: Evaluator,
    points: Points,
    pair: tuple[str, str],
    *,
    split: SplitName = "test",
    grid: Sequence[float] | None = None,
    watch: Watch = unwatched,
    label: str = "heat map",
) -> dict[str, Maps]:
    """:func:`disentanglement_maps` of two tasks for every distance of ``DISTANCES``; labels are never read.

    Args:
        points: of either space, with the vectors under the names of the tasks.
        pair: two tasks of the evaluator.

    Raises: InputError for a task that comes twice; TaskvecError where a model's outputs are not finite.
    """
    if pair[0] == pair[1]:
        raise InputError(f"pair: {pair[0]!r} twice, expected two different tasks")

    def visit(a1: float, a2: float) -> tuple[Tensor, Tensor]:
        point = points.at({pair[0]: a1, pair[1]: a2})
        one, other = (evaluator.features(point, task, split)[0] for task in pair)
        if not bool(one.isfinite().all() and other.isfinite().all()):
            raise TaskvecError(
                f"{' + '.join(pair)}: the model's features at ({a1:g}, {a2:g}) are not finite; "
                "choose a smaller grid"
            )
        return one, other

    heads = evaluator.head(pair[0]), evaluator.head(pair[1])
    return disentanglement_maps(visit, grid or square_grid(), _distances(heads), watch, label)


def _distances(heads: tuple[Head, Head]) -> dict[str, tuple[Distance, Distance]]:
    one, other = heads
    return {
        PREDICTION: (disagreement.behind(one), disagreement.behind(other)),
        OUTPUTS: (symmetric_kl.behind(one), symmetric_kl.behind(other)),
        FEATURES: (symmetric_kl, symmetric_kl),
        ANGLE: (cosine_distance, cosine_distance),
    }


def summary(grid: Sequence[float], maps: Mapping[str, Maps]) -> dict[str, float | None]:
    """What a pair's maps come to, one number each.

        share = mean over (0, 1]^2 of error / mean over (0, 1]^2 of movement

    ``box`` and ``quadrant`` are means of xi. The share has no unit, so that shares before the head (of
    features) and behind it (of logits) compare, both with the KL divergence: ``head_effect`` is the second
    less the first, and positive where the head adds interference that the representation does not have.
    """
    xi = maps[PREDICTION].error
    shares = [
        _ratio(over(grid, maps[name].error, in_quadrant), over(grid, maps[name].movement, in_quadrant))
        for name in (FEATURES, OUTPUTS)
    ]
    before, behind = shares
    return {
        "box": over(grid, xi, in_box),
        "quadrant": over(grid, xi, in_quadrant),
        "features": over(grid, maps[FEATURES].error, in_quadrant),
        "outputs": over(grid, maps[OUTPUTS].error, in_quadrant),
        "share_before_head": before,
        "share_behind_head": behind,
        "head_effect": None if before is None or behind is None else behind - before,
    }


def _ratio(error: float | None, movement: float | None) -> float | None:
    return error / movement if error is not None and movement else None


@checked
def disentanglement(
    evaluator: Evaluator,
    panels: Iterable[Panel],
    tasks: Sequence[str],
    *,
    pairs: Sequence[tuple[str, str]] | None = None,
    split: SplitName = "test",
    grid: Sequence[float] | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """Maps and their summaries for pairs of tasks, in every panel; all pairs by default.

    Args:
        panels: taken one after another, so that a generator holds the vectors of one panel at a time.

    Returns: a record of plain data: what was measured how, and for each pair and panel the maps by distance
        (rows are values of the first task's coefficient) and their summary.
    Raises: InputError for fewer than two tasks, or a pair that comes twice, in either order.
    """
    values = list(grid or square_grid())
    chosen = list(pairs or combinations(tasks, 2))
    if not chosen:
        raise InputError(f"disentanglement: {' '.join(tasks) or 'no task'} given, expected two or more tasks")
    for number, pair in enumerate(chosen):
        if set(pair) in map(set, chosen[:number]):
            raise InputError(f"disentanglement: {' '.join(pair)} given twice, expected each pair once")
    seen: dict[str, dict[str, str]] = {}
    found: list[dict[str, Any]] = [{"tasks": list(pair), "panels": {}} for pair in chosen]
    for panel in panels:
        seen[panel.label] = {"regime": panel.regime, "space": panel.space}
        for pair, of_pair in zip(chosen, found, strict=True):
            name = f"{' + '.join(pair)}, {panel.label}"
            maps = disentangle(
                evaluator, panel.points, pair, split=split, grid=values, watch=watch, label=name
            )
            of_pair["panels"][panel.label] = {
                "summary": summary(values, maps),
                "maps": {distance: one.error.tolist() for distance, one in maps.items()},
            }
    return {
        "analysis": "disentanglement",
        "model": evaluator.backbone.ref,
        "split": split,
        "examples": {task: len(evaluator.split(task, split)) for task in tasks},
        "heads": {task: evaluator.head(task).kind for task in tasks},
        "data": {task: evaluator.task(task).fingerprint for task in tasks},
        "precision": evaluator.precision,
        "tasks": list(tasks),
        "grid": values,
        "distances": DISTANCES,
        "reduction": "sum over the two tasks of means over examples; 0 to 2 for predictions",
        "panels": seen,
        "pairs": found,
    }
