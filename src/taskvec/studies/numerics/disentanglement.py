"""Weight disentanglement: how far one task's vector disturbs the model on another task's data."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import fmean

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, normalize

from taskvec.errors import InputError
from taskvec.progress import Watch, unwatched

Visit = Callable[[float, float], tuple[Tensor, Tensor]]
"""Coefficients (a1, a2) to features (N1, d), (N2, d) of the edited model on the data of both tasks."""

Outputs = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Distance:
    """A distance between the outputs (N, k) of two models on the same examples, one number (N,) for each.

    In two steps, so that a model that is compared many times is prepared once.

    Args:
        view: from outputs to what is compared, (N, ...).
        between: from two views to distances.
    """

    view: Outputs
    between: Callable[[Tensor, Tensor], Tensor]

    def __call__(self, first: Tensor, other: Tensor) -> Tensor:
        """Distances (N,) of outputs that were not prepared."""
        return self.between(self.view(first), self.view(other))

    def behind(self, head: Outputs) -> "Distance":
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


def distances(heads: Sequence[Outputs]) -> dict[str, list[Distance]]:
    """The distances of features that a study takes: by name, one for each task's head."""
    return {
        "prediction": [disagreement.behind(head) for head in heads],
        "output_kl": [symmetric_kl.behind(head) for head in heads],
        "feature_kl": [symmetric_kl for _ in heads],
        "feature_cosine": [cosine_distance for _ in heads],
    }


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
    distances: Mapping[str, Sequence[Distance]],
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
    axes = [(0.0, 0.0), *((a, 0.0) for a in grid), *((0.0, a) for a in grid)]  # what the others compare with
    order = dict.fromkeys(axes + [(a1, a2) for a1 in grid for a2 in grid])
    single: dict[tuple[str, int, float], Tensor] = {}
    maps = {name: Maps(*torch.zeros(2, len(grid), len(grid), dtype=torch.float64)) for name in distances}
    for done, (a1, a2) in enumerate(order, start=1):
        outputs = visit(a1, a2)
        for name, of_tasks in distances.items():
            for task, (mine, other) in enumerate(((a1, a2), (a2, a1))):
                view, between = of_tasks[task].view(outputs[task]), of_tasks[task].between
                if other == 0:
                    single[name, task, mine] = view
                if a1 in place and a2 in place:
                    at = place[a1], place[a2]
                    maps[name].error[at] += between(single[name, task, mine], view).double().mean()
                    maps[name].movement[at] += between(single[name, task, 0.0], view).double().mean()
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


def mean_where(inside: Callable[[float, float], bool], grid: Sequence[float], values: Tensor) -> float | None:
    """Mean of a map (n, n) over the grid points inside a region; none where no point is."""
    picked = [values[i, j] for i, a1 in enumerate(grid) for j, a2 in enumerate(grid) if inside(a1, a2)]
    return fmean(map(float, picked)) if picked else None


def in_box(a1: float, a2: float) -> bool:
    """The square [-1, 1]^2, where the best coefficients mostly are."""
    return max(abs(a1), abs(a2)) <= 1


def in_quadrant(a1: float, a2: float) -> bool:
    """(0, 1]^2, where tasks are added."""
    return min(a1, a2) > 0 and max(a1, a2) <= 1
