"""What candidates are measured next: generators that yield some and are sent their worths."""

from collections.abc import Callable, Generator, Mapping, Sequence
from itertools import islice, product
from typing import Any

import numpy as np

from taskvec.errors import InputError, optional
from taskvec.searching.objective import Worth
from taskvec.searching.settings import EVALUATIONS, Method, SearchSettings
from taskvec.searching.space import Dimension, Numbers, Space

Proposals = Generator[Sequence[Numbers], Sequence[Worth], str]
"""Yields candidates that do not depend on each other, is sent what each is worth, and returns why it ends."""

TOGETHER = 256
"""Candidates that are yielded at once where none depends on another."""

SIGMA = 0.2
"""The first step of CMA-ES, as a share of each range."""
CLOSE = 1e-3
"""The spread of a generation, as a share of each range, at which CMA-ES has arrived."""
FINE = 1000
"""Whole numbers in a range from which on they need no margin, as a step of CMA-ES reaches many of them."""
SEPARABLE = 40
"""Numbers above which CMA-ES learns a variance for each and no covariances."""


def check_method(settings: SearchSettings, space: Space) -> None:
    """Refuse a method that is not there, or that the budget does not allow. Raises: InputError."""
    if settings.method == "cmaes":
        _cmaes()
    if settings.points is not None and settings.method != "grid":
        raise InputError(f"--points: of --method grid, and the method is {settings.method}; leave it out")
    if settings.method == "grid":
        count = np.prod([float(len(axis)) for axis in axes(space, settings)])
        if count + 1 > settings.most:
            raise InputError(
                f"--evaluations {settings.most:g}: fewer than the {count:,.0f} points of the grid and the "
                "recipe's own numbers; give more, fewer --points, or --method cmaes"
            )


def grid(space: Space, settings: SearchSettings) -> Proposals:
    """Evenly spaced values of every number, both ends included; the last number changes fastest."""
    points = product(*axes(space, settings))
    while some := list(islice(points, TOGETHER)):
        yield some
    return "every point of the grid is measured"


def axes(space: Space, settings: SearchSettings) -> list[tuple[float, ...]]:
    """The values of every number on the grid."""
    points = settings.points or _fitting(space.dimensions, settings)
    return [_values(dimension, points) for dimension in space.dimensions]


def _values(dimension: Dimension, points: int) -> tuple[float, ...]:
    """Values of a number on the grid: of whole numbers, all of them if there are no more."""
    if dimension.integer:
        points = min(points, int(dimension.high - dimension.low) + 1)
    if dimension.choices:
        points = len(dimension.choices)
    return tuple(dict.fromkeys(dimension.number(place / (points - 1)) for place in range(points)))


def _fitting(dimensions: Sequence[Dimension], settings: SearchSettings) -> int:
    """The most values of each number with which the grid keeps to the budget; two at least."""
    most = min(settings.most, 1e6) if settings.evaluations is not None else EVALUATIONS
    points = 2
    while points < 1000 and np.prod([float(len(_values(d, points + 1))) for d in dimensions]) + 1 <= most:
        points += 1
    return points


def random(space: Space, settings: SearchSettings) -> Proposals:
    """Candidates drawn evenly from the box, without end."""
    draw = np.random.Generator(np.random.PCG64(settings.seed))
    while True:
        yield [_uniform(space, draw.random(len(space.dimensions))) for _ in range(TOGETHER)]


def _uniform(space: Space, shares: "np.ndarray[Any, Any]") -> Numbers:
    """A candidate at shares of the ranges; each whole number is as likely as another."""
    return tuple(
        min(d.high, d.low + float(np.floor(share * (d.high - d.low + 1)))) if d.integer else d.number(share)
        for d, share in zip(space.dimensions, shares.tolist(), strict=True)
    )


def cmaes(space: Space, settings: SearchSettings) -> Proposals:
    """CMA-ES from the recipe's own numbers; separable above 40 numbers, with margin for whole ones.

    It sees the ranks of a generation's candidates only, so the objective's scale is of no matter.
    Source: Hansen 2016, arXiv:1604.00772; Ros & Hansen 2008; Hamano et al. 2022, arXiv:2205.13482.
    """
    ask, tell, population = _evolution(space, settings.seed)
    real = [place for place, dimension in enumerate(space.dimensions) if not dimension.integer]
    while True:
        asked = [ask() for _ in range(population)]
        worths = yield [space.numbers(shares.tolist()) for shares, _ in asked]
        tell([(point, rank) for (_, point), rank in zip(asked, _ranks(worths), strict=True)])
        if real and np.std([shares[real] for shares, _ in asked], axis=0).max() < CLOSE:
            return f"candidates lie closer than {CLOSE:g} of each range"


def _ranks(worths: Sequence[Worth]) -> list[float]:
    """The place of each worth among all, the best first; equal ones share it."""
    order = sorted(set(worths), reverse=True)
    return [float(order.index(worth)) for worth in worths]


def _evolution(
    space: Space, seed: int
) -> "tuple[Callable[[], tuple[Any, Any]], Callable[[list[tuple[Any, float]]], None], int]":
    """How to ask for a point: where it is measured, what it is known by; how to tell; how many."""
    package = _cmaes()
    dimensions, count = space.dimensions, len(space.dimensions)
    given: dict[str, Any] = {
        "mean": np.array([dimension.share(dimension.start) for dimension in dimensions]),
        "sigma": SIGMA,
        "bounds": np.array([[0.0, 1.0]] * count),
        "seed": seed % 2**32,
        "population_size": 4 + int(3 * np.log(count)),
    }
    steps = [1 / (d.high - d.low) if d.integer and d.high - d.low < FINE else 0.0 for d in dimensions]
    if any(steps):
        mixed = package.CMAwM(**given, steps=np.array(steps))
        return mixed.ask, mixed.tell, mixed.population_size
    plain = (package.SepCMA if count > SEPARABLE else package.CMA)(**given)

    def ask() -> tuple[Any, Any]:
        point = plain.ask()
        return point, point

    return ask, plain.tell, plain.population_size


def _cmaes() -> Any:
    return optional(
        "cmaes",
        "--method cmaes: the package cmaes is not installed; install it: pip install 'taskvec[search]', or "
        "choose --method grid or random",
    )


METHODS: Mapping[Method, Callable[[Space, SearchSettings], Proposals]] = {
    "cmaes": cmaes,
    "grid": grid,
    "random": random,
}
