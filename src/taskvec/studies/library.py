"""A keyed library: every input finds the vectors that serve it, without being told its task."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import Annotated

from pydantic import BeforeValidator

from taskvec.errors import InputError
from taskvec.merging.library import LibraryMethod, LibrarySettings
from taskvec.merging.method import Bench
from taskvec.reports.charts.matrix import Map, Matrix, Tint
from taskvec.reports.numbers import percent
from taskvec.reports.tables import Table
from taskvec.studies.charting import mean_of
from taskvec.studies.compared.computing import measure_model
from taskvec.studies.entry import Entry, consumed_with
from taskvec.studies.experiment import Experiment
from taskvec.studies.hits import without_hits
from taskvec.studies.measured import Measured, in_unit, mean_in_unit, titled, unit_note
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import OwnModels, own_models
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.suite import Suite

Shares = Mapping[str, Mapping[str, float]]


class LibraryBlock(LibrarySettings):
    """Route every input to the vectors whose keys its pre-trained feature is nearest to."""

    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment."""

    @property
    def options(self) -> LibrarySettings:
        """Those of the library itself."""
        return LibrarySettings(**self.model_dump(exclude={"regimes"}))


def _switch(value: object) -> object:
    if isinstance(value, bool):
        return LibraryBlock() if value else None
    return value


class RoutedRecord(Measured):
    """A library on the test inputs of every task."""

    cell = "library"
    routing: dict[str, dict[str, float]]
    """By task, the share of its inputs that each vector is nearest to."""

    @property
    def routed(self) -> dict[str, float]:
        """By task, the share of its inputs that find its own vector."""
        return {task: shares[task] for task, shares in self.routing.items()}


class Libraries(Study[LibraryBlock]):
    """What serves an input is chosen by its own feature: what that gives by task, and where inputs went."""

    title = "A library of vectors"
    settings = Annotated[LibraryBlock | None, BeforeValidator(_switch)]

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("library", self.block.regimes)
        tasks = [suite.task(name) for name in experiment.task_names(suite)]
        if self.block.k > len(tasks):
            raise InputError(
                f"library: k is {self.block.k}, expected {len(tasks)} at most, the tasks' number"
            )
        tokens = [task.name for task in tasks if task.needs == "tokens"]
        if tokens:
            raise InputError(
                f"library: {tokens[0]} is a task for language models, expected tasks on features, which keys "
                "are; leave library out"
            )

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        if trial.regime in (self.block.regimes or trial.experiment.regimes):
            options = self.block.options
            yield trial.cell(
                RoutedRecord, partial(_route, options=options), trial.tasks, **options.model_dump()
            )

    def entries(self, results: Results) -> Iterator[Entry]:
        method = LibraryMethod(self.block.options)
        for regime, [routed] in results.by_seed(RoutedRecord):
            consumed = consumed_with(results.plan.experiment, regime, *method.consumes("validation"))
            yield Entry(method.name, regime, routed, consumed)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        found = results.stored(RoutedRecord, regime, seed)
        return {"library": without_hits(found[0])} if found else {}

    def tables(self, results: Results) -> Iterator[Table]:
        for regime, [of] in results.by_regime(RoutedRecord).items():
            [own] = results.by_regime(OwnModels)[regime]
            yield _table_by_task(results, regime, of, own)
            yield _table_of_routing(results, regime, _mean_of([one.routing for one in of]))

    def charts(self, results: Results) -> Iterator[Matrix]:
        routed = results.by_regime(RoutedRecord)
        if routed:
            shares = {regime: _mean_of([one.routing for one in of]) for regime, [of] in routed.items()}
            caption = (
                "Where a library sends the test inputs of each task, per cent. "
                f"{mean_of(len(results.plan.experiment.seeds))}"
            )
            tasks = results.plan.tasks
            grids = [
                Map(regime, tasks, tasks, [[100 * of[task][name] for name in tasks] for task in tasks])
                for regime, of in shares.items()
            ]
            tint = Tint(0.0, 100.0, "% of inputs")
            yield Matrix("library", caption, grids, tint, ".0f", across="vector", down="inputs of")


def _route(trial: Trial, options: LibrarySettings) -> Plain:
    bench = Bench(trial.evaluator, trial.vectors, trial.space, seed=trial.seed, watch=trial.lab.watch)
    model = LibraryMethod(options).make(bench)
    return {**measure_model(bench, model, 1.0, own_models(trial).test), "routing": model.routing("test")}


def _mean_of(seeds: Sequence[Shares]) -> dict[str, dict[str, float]]:
    tasks = list(seeds[0])
    return {task: {name: fmean(of[task][name] for of in seeds) for name in seeds[0][task]} for task in tasks}


def _table_by_task(
    results: Results, regime: str, of: Sequence[RoutedRecord], own: Sequence[OwnModels]
) -> Table:
    metrics = results.plan.metrics
    rows: list[Sequence[object]] = [
        (
            titled(task, metric),
            in_unit(metric, [one.test[task] for one in own]),
            in_unit(metric, [one.values[task] for one in of]),
            percent([one.routed[task] for one in of]),
        )
        for task, metric in metrics.items()
    ]
    alone = [fmean(one.test[task] for task in metrics) for one in own]
    together = [one.absolute for one in of]
    units = metrics.values()
    routed = percent([fmean(one.routed.values()) for one in of])
    rows.append(("mean", mean_in_unit(units, alone), mean_in_unit(units, together), routed))
    note = (
        f"{unit_note(units)} on test. Nearest: the share of inputs whose nearest key is that of their own "
        "task. The library is not told the task; an input is still scored by its own task's head."
    )
    return Table(f"A library of vectors, {regime}", ("task", "own model", "library", "nearest"), rows, note)


def _table_of_routing(results: Results, regime: str, shares: Shares) -> Table:
    tasks = results.plan.tasks
    rows = [(task, *(percent([shares[task][name]]) for name in tasks)) for task in tasks]
    note = "Per cent of the test inputs of a row's task whose nearest key is that of the column's vector."
    return Table(f"Where inputs went, {regime}", ("inputs of", *tasks), rows, note)
