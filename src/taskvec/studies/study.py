"""What a study is: the settings, cells, tables and figures of one protocol.

A protocol is one file here and one line in the registry (``studies/__init__.py``). The file holds

- the settings: a model of what an experiment file says under the study's key;
- a :class:`Record` for each kind of result: the fields that tables, figures and other cells read;
- functions that compute a result from a :class:`Context`, and return plain data;
- the :class:`Study`: it names the cells of an experiment, and turns their records into tables and figures.

The registry's order is the order of work, of tables and of figures.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict

from taskvec.progress import Watch
from taskvec.reports.drawing import Drawing
from taskvec.reports.tables import Table
from taskvec.tasks.suite import Suite
from taskvec.training.settings import TrainSettings

if TYPE_CHECKING:  # analyses share this file, and their help does not wait for torch
    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.evaluation.points import Points
    from taskvec.studies.experiment import Experiment
    from taskvec.vectors import TaskVector

Plain = Mapping[str, object]
"""What a cell computes: data that JSON can hold."""


class Record(BaseModel):
    """The result of a cell as it is read: the fields that somebody needs, out of all that are stored."""

    model_config = ConfigDict(frozen=True)

    cell: ClassVar[str]
    """The kind of cell, as ``records.jsonl`` names it. It opens the cell's key: never change it."""


B = TypeVar("B")
R = TypeVar("R", bound=Record)
R_co = TypeVar("R_co", bound=Record, covariant=True)


@dataclass(frozen=True)
class Cell(Generic[R_co]):
    """A job whose result is stored and never computed twice.

    Args:
        kind: of its result.
        label: names it in progress messages.
        inputs: plain data, everything that decides the result; ``kind.cell`` and these are the key.
        compute: the job; may be pickled, so a ``partial`` of a function of a module.
        regime, seed: which part of the experiment it belongs to; none for a cell about the model alone.
    """

    kind: type[R_co]
    label: str
    inputs: Plain
    compute: Callable[["Context"], Plain]
    regime: str | None = None
    seed: int | None = None


@dataclass(frozen=True)
class Plan:
    """What the cells of an experiment have in common.

    Args:
        model: the base model's fingerprint.
        digests: fingerprint of every task that is trained or measured.
        compared: tasks whose zero-shot figures a reader wants.
    """

    experiment: "Experiment"
    suite: Suite
    model: str
    digests: Mapping[str, str]
    compared: Sequence[str]

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks whose vectors are studied."""
        return self.experiment.task_names(self.suite)

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """The inputs of every cell."""
        return {
            "model": self.model,
            "limits": {str(split): limit for split, limit in self.experiment.limits.items()},
            "precision": TrainSettings.parse("training", self.experiment.training).precision,
        }

    def fingerprints(self, tasks: Iterable[str]) -> dict[str, str]:
        """By task."""
        return {task: self.digests[task] for task in tasks}

    def cell(
        self,
        kind: type[R],
        compute: Callable[["Context"], Plain],
        regime: str,
        seed: int,
        tasks: Sequence[str],
        **inputs: object,
    ) -> Cell[R]:
        """A cell about vectors of a regime, with what decides its result beside ``inputs``."""
        decisive = {
            **self.evaluation,
            "regime": regime,
            "training": recipe(self.experiment.settings(regime, seed)),
            "tasks": self.fingerprints(tasks),
            **inputs,
        }
        return Cell(kind, f"{regime} {'+'.join(tasks)}", decisive, compute, regime, seed)


class Context(Protocol):
    """What a cell may use: the model with its tasks, stored vectors, and results of other cells."""

    plan: Plan
    watch: Watch

    @property
    def evaluator(self) -> "Evaluator":
        """The experiment's model and tasks, loaded on first use."""

    def result(self, cell: Cell[R]) -> R:
        """The cell's result, computed if it is not on record."""

    def vector(self, regime: str, seed: int, tasks: Sequence[str], *, ascend: bool = False) -> "TaskVector":
        """The vector trained on ``tasks`` together; of a post-hoc regime, the one that it evaluates."""

    def train(
        self,
        regime: str,
        seed: int,
        tasks: Sequence[str],
        name: str,
        compute: "Callable[[Path], TaskVector]",
        **inputs: object,
    ) -> "TaskVector":
        """The stored vector of these inputs, else what ``compute`` returns, given a path for checkpoints."""

    def vectors(self, regime: str, seed: int) -> "Mapping[str, TaskVector]":
        """The vector of each task that is studied."""

    def points(self, regime: str, seed: int) -> "Points":
        """Edits by these vectors, in the regime's space."""

    def points_of(self, regime: str, vectors: "Mapping[str, TaskVector]") -> "Points":
        """Edits by other vectors, in the regime's space."""


@dataclass
class Results:
    """The finished cells of an experiment."""

    plan: Plan
    cells: dict[tuple[str, str | None, int | None], list[Plain]] = field(default_factory=dict)
    """What is stored, by kind of cell, regime and seed."""
    untrained: "Results | None" = None
    """The same experiment on the model before pre-training, if it was made for comparison."""

    def add(self, cell: Cell[Record], result: Plain) -> None:
        """Put a cell's result behind those of its kind."""
        self.cells.setdefault((cell.kind.cell, cell.regime, cell.seed), []).append(result)

    def take(self, kind: type[Record], other: "Results") -> None:
        """Add what another experiment found of a kind."""
        self.cells |= {place: cells for place, cells in other.cells.items() if place[0] == kind.cell}

    def stored(self, kind: type[Record], regime: str | None = None, seed: int | None = None) -> list[Plain]:
        """The results of a kind in one part of the experiment, as stored; none where it was not asked for."""
        return self.cells.get((kind.cell, regime, seed), [])

    def listed(self, key: str, kind: type[Record], regime: str, seed: int) -> Plain:
        """The same under a key, or nothing."""
        results = self.stored(kind, regime, seed)
        return {key: results} if results else {}

    def of(self, kind: type[R], regime: str | None = None, seed: int | None = None) -> list[R]:
        """The results of a kind as records."""
        return [kind.model_validate(result) for result in self.stored(kind, regime, seed)]

    def by_regime(self, kind: type[R]) -> dict[str, list[list[R]]]:
        """Records of every seed, of each regime that has some."""
        experiment = self.plan.experiment
        known = {
            regime: [self.of(kind, regime, seed) for seed in experiment.seeds]
            for regime in experiment.regimes
        }
        return {regime: seeds for regime, seeds in known.items() if all(seeds)}


class Study(Generic[B]):
    """One protocol. A subclass implements the methods that it has something to say in.

    Args:
        block: what the experiment file says under the study's key.
    """

    settings: ClassVar[Any] = None
    """The type of the block, which is off when it is falsy; none for a study that takes no settings and is
    always on."""
    default: ClassVar[object] = None
    """The block of an experiment file that does not name it."""
    of_model: ClassVar[bool] = False
    """Its cells are about the model alone: they come from ``model_cells``, not from ``cells``."""

    def __init__(self, block: B) -> None:
        self.block = block

    def check(self, experiment: "Experiment", suite: Suite) -> None:
        """Refuse a block that does not fit the experiment. Raises: InputError that opens with the key."""

    def tasks(self, experiment: "Experiment", suite: Suite) -> Iterable[str]:
        """Tasks that are trained or measured, beside the experiment's."""
        return ()

    def compared(self, experiment: "Experiment", suite: Suite) -> Iterable[str]:
        """Those of :meth:`tasks` whose zero-shot figures a reader wants."""
        return self.tasks(experiment, suite)

    def cells(self, plan: Plan, regime: str, seed: int) -> Iterable[Cell[Record]]:
        """The cells of one regime and seed, in order of work; the tasks' vectors are there before them."""
        return ()

    def model_cells(self, plan: Plan) -> Iterable[Cell[Record]]:
        """The cells of a study of the model."""
        return ()

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        """What ``results.json`` says of one regime and seed."""
        return {}

    def model_facts(self, results: Results) -> Plain:
        """What ``results.json`` says beside the regimes."""
        return {}

    def tables(self, results: Results) -> Iterable[Table]:
        """The tables that the results fill; none for cells that are not there."""
        return ()

    def drawings(self, results: Results) -> Iterable[Drawing]:
        """The figures that the results fill."""
        return ()


def recipe(settings: TrainSettings) -> dict[str, Any]:
    """What decides a training, for the key of a cell.

    A setting younger than runs that are on record is left out at its default, so that they keep their keys.
    """
    young = {"decay_towards"} if settings.decay_towards == "zero" else set[str]()
    return settings.model_dump(exclude={"validations", *young})
