"""A library as a method: each input is served by the vectors whose keys are nearest, without its task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import OrdinaryPoints, Point, TangentPoint, TangentPoints
from taskvec.merging.keys import HowKeyed, bound_to, check_features, make_library
from taskvec.merging.method import Bench, Consumed, Method, Model, Plain, unlabelled
from taskvec.tasks.loaders import Batches
from taskvec.tasks.objective import Tally
from taskvec.tasks.source import SplitName
from taskvec.training.regimes import Space
from taskvec.vectors.library import Library

TENTHS = 10
"""Weights of several vectors are rounded to this many parts in ordinary space, which needs a model for each
mixture; in tangent space they are exact."""


class LibrarySettings(Config, use_attribute_docstrings=True):
    """Route every input to the vectors whose keys its pre-trained feature is nearest to."""

    k: PositiveInt = 1
    """How many vectors serve an input."""
    temperature: PositiveFloat = 0.1
    """Of the softmax over the cosines of the nearest ``k``."""
    keys: HowKeyed = "mean"
    """A task's key: the ``mean`` feature of its inputs; or several, ``learned`` with usage balancing."""


@dataclass(frozen=True)
class RoutedPoint(TangentPoint):
    """In tangent space: each input at its own weighted sum, exactly, from slopes that are kept."""

    library: Library
    settings: LibrarySettings

    def features(self, prepared: Batches) -> Tensor:
        """Features (N, d); the input's weights come from its own feature without any vector."""
        known = self.points.linear_features(prepared, self.coefficients)
        weights = select(self.library, known.base, self.settings)
        features = known.base.clone()
        for place, name in enumerate(self.library.names):
            direction = frozenset({name})
            if direction in self.coefficients:
                factors = self.coefficients[direction] * weights[:, place, None]
                features.addcmul_(factors.to(features.dtype), known.slopes[direction])
        return features


class Routed(Model):
    """The library at work. An input's task is not told; what it is scored by is its task's own head."""

    def __init__(self, bench: Bench, library: Library, settings: LibrarySettings) -> None:
        super().__init__(bench)
        self.library, self.settings = library, settings
        self.coefficients = sum(key.numel() for key in library.keys.values())
        bound = bound_to(bench.evaluator, library.vectors)
        self._points = bench.evaluator.points(bound, space=bench.space)
        self._weights: dict[tuple[str, SplitName], Tensor] = {}

    def weights(self, task: str, split: SplitName) -> Tensor:
        """How much of each vector serves each input, (N, T), in the order of the evaluator's features."""
        if (task, split) not in self._weights:
            evaluator = self.bench.evaluator
            features, _ = evaluator.features(evaluator.pretrained, task, split)
            self._weights[task, split] = select(self.library, features, self.settings)
        return self._weights[task, split]

    def point(self, task: str, alpha: float) -> Point:
        """In tangent space. Raises: InputError in ordinary space, where each input has a model of its own."""
        if not isinstance(self._points, TangentPoints):
            raise InputError("library: each input has a model of its own; measure it with tally")
        at = self._points.at(dict.fromkeys(self.library.names, alpha))
        return RoutedPoint(at.points, at.coefficients, self.library, self.settings)

    def tally(self, task: str, split: SplitName, alpha: float) -> Tally:
        if not isinstance(self._points, OrdinaryPoints):
            return super().tally(task, split, alpha)
        points = self._points
        rows, chosen = torch.unique(in_parts(self.weights(task, split), TENTHS), dim=0, return_inverse=True)
        mixtures = [
            {name: alpha * weight for name, weight in zip(self.library.names, row, strict=True) if weight}
            for row in rows.tolist()
        ]
        return self.bench.evaluator.tally_chosen(
            lambda number: points.at(mixtures[number]), chosen, task, split
        )

    def routing(self, split: SplitName, tasks: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
        """By task, the share of its inputs that each vector is nearest to; of all tasks by default."""
        return {task: self._shares(self.weights(task, split)) for task in tasks or self.bench.tasks}

    def _shares(self, weights: Tensor) -> dict[str, float]:
        counts = weights.argmax(-1).bincount(minlength=len(self.library.names))
        return dict(zip(self.library.names, (counts / len(weights)).tolist(), strict=True))

    def facts(self) -> Plain:
        """Where the inputs of the test split went, and the share that went to their own task's vector."""
        routing = self.routing("test")
        return {"routing": routing, "routed": own_shares(routing)}


@dataclass(frozen=True)
class LibraryMethod(Method):
    """A library of the tasks' vectors, routed input by input; our reading of L2M's pool and MASS's router."""

    options: LibrarySettings
    coefficient: float | None = None
    family: ClassVar[str] = "library"

    @property
    def name(self) -> str:  # type: ignore[override]  # it follows from the fields
        given = ", ".join(
            f"{key} {value}" for key, value in self.options.model_dump(exclude_defaults=True).items()
        )
        return f"library ({given})" if given else "library"

    def consumes(self, split: SplitName) -> tuple[Consumed, ...]:
        return (unlabelled(split),)

    def unfit(self, bench: Bench) -> str | None:
        if bench.evaluator.backbone.outputs == "tokens":
            return "its keys are features, and the model gives logits of tokens"
        if self.options.k > len(bench.vectors):
            return f"takes {self.options.k} vectors an input"
        return None

    def settings(self) -> Plain:
        return self.options.model_dump()

    def make(self, bench: Bench) -> Routed:
        library = make_library(
            bench.evaluator, bench.vectors, keys=self.options.keys, split=bench.split, seed=bench.seed
        )
        return Routed(bench, library, self.options)


def library_method(given: Mapping[str, object]) -> LibraryMethod:
    """Of an entry of a list of methods. Raises: InputError."""
    return LibraryMethod(LibrarySettings.parse("library", given))


@checked
def route(
    evaluator: Evaluator,
    library: Library,
    tasks: Sequence[str] | None = None,
    *,
    k: int = 1,
    temperature: float = 0.1,
    alpha: float = 1.0,
    split: SplitName = "test",
    space: Space = "ordinary",
) -> dict[str, dict[str, Any]]:
    """Serve every input of some tasks by the vectors whose keys are nearest to its pre-trained feature.

    The library is not told the task; what an input is scored by is still its task's own head.

    Args:
        library: of any vectors of the evaluator's model, whatever their names.
        tasks: of the evaluator; all by default.
        k, temperature: as for ``Library.select``. In ordinary space weights of several vectors are rounded to
            tenths, in tangent space they are exact.
        alpha: the scaling coefficient of the vectors.

    Returns: ``values``, the metric of each task (more is better); ``routing``, by task the share of its
        inputs that each vector is nearest to; ``routed``, the share that found the vector of the task's name.
    Raises: InputError for a model without features, or keys of another dimension than they have.
    """
    check_features(evaluator)
    names = list(evaluator.tasks) if tasks is None else list(tasks)
    settings = LibrarySettings.parse("library", {"k": k, "temperature": temperature})
    model = Routed(Bench(evaluator, library.vectors, space), library, settings)
    values = {task: model.value(task, split, alpha) for task in names}
    routing = model.routing(split, names)
    return {"values": values, "routing": routing, "routed": own_shares(routing)}


def own_shares(routing: Mapping[str, Mapping[str, float]]) -> dict[str, float]:
    """By task, the share of its inputs that found the vector of its name, where there is one."""
    return {task: shares[task] for task, shares in routing.items() if task in shares}


def select(library: Library, features: Tensor, settings: LibrarySettings) -> Tensor:
    """How much of each vector serves each input, (N, T)."""
    return library.select(features, settings.k, temperature=settings.temperature)


def in_parts(weights: Tensor, parts: int) -> Tensor:
    """Weights (N, T) that sum to one as multiples of ``1 / parts`` that do: the largest remainders go up."""
    scaled = weights.double() * parts
    whole = scaled.floor()
    missing = (parts - whole.sum(-1, keepdim=True)).round()
    rank = (scaled - whole).argsort(dim=-1, descending=True, stable=True).argsort(dim=-1)
    return (whole + (rank < missing).double()) / parts
