"""What a method is: a way to make one model of several task vectors, or one for each task.

Every method is made once, from vectors and what it consumes, and scaled as often as a search asks. A new kind
is a file beside this one and a line in the registry (``merging/__init__.py``); a rule is a method by itself.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from inspect import getdoc
from pathlib import Path
from typing import ClassVar, Literal, get_args

from xxhash import xxh3_128_hexdigest

from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import Point
from taskvec.progress import Watch, unwatched
from taskvec.tasks.objective import Tally
from taskvec.tasks.score import utility
from taskvec.tasks.source import SplitName
from taskvec.training.regimes import Space
from taskvec.vectors import TaskVector

Consumed = Literal[
    "unlabelled train inputs",
    "unlabelled validation inputs",
    "unlabelled test inputs",
    "validation labels",
    "train labels",
    "training",
    "task id",
]
"""What a method needs beside the vectors. Tables are grouped by it, in this order: methods that consume more
are not ranked with those that consume less."""

Plain = Mapping[str, object]


@dataclass(frozen=True)
class Bench:
    """What methods work with.

    Args:
        evaluator: the pre-trained model and the tasks.
        vectors: by task, of one regime.
        space: where the regime's vectors are evaluated.
        split: where methods that read inputs or labels take them from.
        seed: of everything that is drawn.
        scratch: a folder for checkpoints of what takes long; none keeps none.
    """

    evaluator: Evaluator
    vectors: Mapping[str, TaskVector]
    space: Space = "ordinary"
    split: SplitName = "validation"
    seed: int = 0
    scratch: Path | None = None
    watch: Watch = field(default=unwatched, compare=False)

    @property
    def tasks(self) -> list[str]:
        """In the order of the vectors."""
        return list(self.vectors)

    def checkpoint(self, method: "Method") -> Path | None:
        """Where a method keeps its state while it is being made, so that a killed run goes on with it."""
        if self.scratch is None:
            return None
        decisive = json.dumps([method.settings(), self.tasks, self.space, self.split, self.seed], default=str)
        self.scratch.mkdir(parents=True, exist_ok=True)
        return self.scratch / f"method-{xxh3_128_hexdigest(decisive.encode())[:16]}.pt"


class Model(ABC):
    """What a method made: a model, or one for each task."""

    coefficients: int = 0
    """How many numbers were learned on data."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench

    @abstractmethod
    def point(self, task: str, alpha: float) -> Point:
        """The model that serves a task, at a scaling coefficient; valid until the next call."""

    def tally(self, task: str, split: SplitName, alpha: float) -> Tally:
        """What the figures of a split are made of, an entry an example."""
        return self.bench.evaluator.tally(self.point(task, alpha), task, split)

    def value(self, task: str, split: SplitName, alpha: float) -> float:
        """The task's own metric, as protocols compare it: more is better."""
        evaluator = self.bench.evaluator
        if evaluator.objective(task).writes:
            return evaluator.score(self.point(task, alpha), task, split).utility
        return self.worth(task, self.tally(task, split, alpha))

    def worth(self, task: str, tally: Tally) -> float:
        """The same, of a tally."""
        evaluator = self.bench.evaluator
        return utility(evaluator.task(task).metric, evaluator.objective(task).value(tally))

    def facts(self) -> Plain:
        """What else a reader may want to know, such as learned coefficients; plain data."""
        return {}


class VectorModel(Model):
    """One task vector, for all tasks."""

    def __init__(
        self, bench: Bench, vector: TaskVector, coefficients: int = 0, facts: Plain | None = None
    ) -> None:
        super().__init__(bench)
        self.vector, self.coefficients, self._facts = vector, coefficients, dict(facts or {})
        self._points = bench.evaluator.points({"merged": vector}, space=bench.space)
        self._at: tuple[float, Point] | None = None

    def point(self, task: str, alpha: float) -> Point:
        if self._at is None or self._at[0] != alpha:
            self._at = alpha, self._points.at({"merged": alpha})
        return self._at[1]

    def facts(self) -> Plain:
        return self._facts


class Method(ABC):
    """A way to make a model; frozen data, so that equal methods give equal results.

    Attributes:
        name: its row in tables.
        coefficient: the scaling coefficient that its source takes without search; none for a model that is
            not scaled.
    """

    name: str
    coefficient: float | None = 1.0
    family: ClassVar[str]
    """The word that opens its key; of another kind of method another word."""

    @property
    def about(self) -> str:
        """What it does, in a line."""
        return (getdoc(type(self)) or "").partition("\n")[0].partition(", see :")[0].rstrip(".")

    def consumes(self, split: SplitName) -> tuple[Consumed, ...]:
        """What making it needs beside the vectors, if what it reads comes from this split."""
        return ()

    def unfit(self, bench: Bench) -> str | None:
        """Why it cannot be made of these vectors; none if it can."""
        return None

    @abstractmethod
    def settings(self) -> Plain:
        """Everything that decides it, as plain data."""

    @abstractmethod
    def make(self, bench: Bench) -> Model:
        """The model. Raises: InputError for vectors that do not fit."""


def in_order(consumed: Iterable[Consumed]) -> list[Consumed]:
    """Each once, as tables are grouped."""
    given = set(consumed)
    return [each for each in get_args(Consumed) if each in given]


def unlabelled(split: SplitName) -> Consumed:
    """The inputs of a split, without labels."""
    found: Consumed = {
        "train": "unlabelled train inputs",
        "validation": "unlabelled validation inputs",
        "test": "unlabelled test inputs",
    }[str(split)]  # type: ignore[assignment]  # one of the literals
    return found


def named(method: str, settings: Mapping[str, object]) -> str:
    """The name of a method's row: with the settings that are not the usual ones, but for a permission."""
    said = [f"{name} {value}" for name, value in settings.items() if name != "allow_test_inputs"]
    return f"{method} ({', '.join(said)})" if said else method
