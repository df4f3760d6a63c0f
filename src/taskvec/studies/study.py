"""What a study is: the settings, cells, tables and figures of one protocol.

A protocol is one file here and one line in the registry (``studies/__init__.py``). The file holds

- the settings: a model of what an experiment file says under the study's key;
- a :class:`Record` for each kind of result: the fields that tables, figures and other cells read;
- functions that compute a result from a :class:`Trial`, and return plain data;
- the :class:`Study`: it names the cells of a trial, and turns their records into tables and figures.

The registry's order is the order of work, of tables and of figures.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from taskvec.reports.block import Block
from taskvec.reports.charts.chart import Chart
from taskvec.reports.charts.painting import paint
from taskvec.reports.drawing import Drawing
from taskvec.reports.tables import Table
from taskvec.studies.record import Plain, R, Record

if TYPE_CHECKING:  # analyses stand beside studies in some files, and their help does not wait for torch
    from taskvec.studies.entry import Entry
    from taskvec.studies.experiment import Experiment
    from taskvec.studies.trial import Cell, Plan, Trial
    from taskvec.tasks.suite import Suite

B = TypeVar("B")


@dataclass
class Results:
    """The finished cells of an experiment; those about the model alone are of no regime."""

    plan: "Plan"
    studies: "list[Study[Any]]"
    """Those that are on, and those whose results were taken over."""
    cells: dict[tuple[str, str, int], list[Plain]] = field(default_factory=dict)
    """What is stored, by kind of cell, regime and seed."""
    keys: dict[tuple[str, str, int], list[str | None]] = field(default_factory=dict)
    """The same cells' records, by key; none for what stands in for a cell that failed."""
    failed: list[str] = field(default_factory=list)
    """What went wrong with cells that others do not need; the next run tries them again."""
    untrained: "Results | None" = None
    """The same experiment on the model before pre-training, if it was made for comparison."""
    folder: Path | None = None
    """The run folder, for files that records name; none where there are records alone."""

    def add(
        self, kind: str, result: Plain, regime: str = "", seed: int = 0, *, key: str | None = None
    ) -> None:
        """Put a cell's result, and the key of its record, behind those of its kind."""
        self.cells.setdefault((kind, regime, seed), []).append(result)
        self.keys.setdefault((kind, regime, seed), []).append(key)

    def take(self, kind: type[Record], other: "Results") -> None:
        """Add another experiment's results of a kind, and the studies that show them."""
        known = {type(study) for study in self.studies}
        self.studies += [study for study in other.studies if type(study) not in known]
        self.cells |= {place: cells for place, cells in other.cells.items() if place[0] == kind.cell}
        self.keys |= {place: keys for place, keys in other.keys.items() if place[0] == kind.cell}

    def stored(self, kind: type[Record], regime: str = "", seed: int = 0) -> list[Plain]:
        """The results of a kind in one part of the experiment, as stored; none where it was not asked for."""
        return self.cells.get((kind.cell, regime, seed), [])

    def of(self, kind: type[R], regime: str = "", seed: int = 0) -> list[R]:
        """The same as records."""
        return [kind.model_validate(result) for result in self.stored(kind, regime, seed)]

    def by_seed(self, kind: type[R]) -> Iterator[tuple[str, list[dict[int, R]]]]:
        """Of each regime that has records of a kind, a list of cells, each a record of every seed that has
        it: runs that are at work have not all of them."""
        for regime in self.plan.experiment.regimes:
            cells: list[dict[int, R]] = []
            for seed in self.plan.experiment.seeds:
                for place, record in enumerate(self.of(kind, regime, seed)):
                    if place == len(cells):
                        cells.append({})
                    cells[place][seed] = record
            if cells:
                yield regime, cells

    def by_regime(self, kind: type[R]) -> dict[str, list[list[R]]]:
        """Of each regime that has records of a kind, a list of cells, each a record a seed."""
        experiment = self.plan.experiment
        cells = {
            regime: list(
                map(list, zip(*(self.of(kind, regime, seed) for seed in experiment.seeds), strict=True))
            )
            for regime in experiment.regimes
        }
        return {regime: of for regime, of in cells.items() if of}


class Study(Generic[B]):
    """One protocol. A subclass implements the methods that it has something to say in; none of them is called
    for an experiment in which it is off.

    Args:
        block: what the experiment file says under the study's key.
    """

    settings: ClassVar[Any] = None
    """The type of the block, which is off when it is falsy; none for a study that takes no settings and is
    always on."""
    default: ClassVar[object] = None
    """The block of an experiment file that does not name it."""
    title: ClassVar[str] = ""
    """What heads its part of a page; by default its name in the registry."""
    of_model: ClassVar[bool] = False
    """Its cells are about the model alone: they are asked for once, with the first trial."""

    shows: ClassVar[tuple[str, ...]] = ()
    """Studies after it whose results its tables show as well, where they are on."""

    def __init__(self, block: B) -> None:
        self.block = block

    def check(self, experiment: "Experiment", suite: "Suite") -> None:
        """Refuse a block that does not fit the experiment. Raises: InputError that opens with the key."""

    def tasks(self, experiment: "Experiment", suite: "Suite") -> Iterable[str]:
        """Tasks that are trained or measured, beside the experiment's."""
        return ()

    def compared(self, experiment: "Experiment", suite: "Suite") -> Iterable[str]:
        """Those of :meth:`tasks` whose zero-shot figures a reader wants."""
        return self.tasks(experiment, suite)

    def cells(self, trial: "Trial") -> "Iterable[Cell[Record]]":
        """The cells of one regime and seed, in order of work; the tasks' vectors are there before them."""
        return ()

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        """What ``results.json`` says of one regime and seed, or of the model."""
        return {}

    def entries(self, results: Results) -> "Iterable[Entry]":
        """The models for all tasks that it measured: rows of the main table; see ``entry.py``."""
        return ()

    def headline(self, results: Results) -> str:
        """What came of it, as part of a sentence; for runs without a model for all tasks."""
        return ""

    def tables(self, results: Results) -> Iterable[Table]:
        """The tables that the results fill; none for cells that are not there."""
        return ()

    def charts(self, results: Results) -> Iterable[Block]:
        """What the page shows of the results beside tables, such as a ``Chart``."""
        return ()

    def drawings(self, results: Results) -> Iterable[Drawing]:
        """Figures as files: the charts, unless a study draws others."""
        for chart in self.charts(results):
            if isinstance(chart, Chart) and chart.filed:
                yield Drawing(chart.name, chart.caption, partial(paint, chart))
