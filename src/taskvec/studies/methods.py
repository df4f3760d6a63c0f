"""Methods side by side: every way to merge the tasks' vectors, what it gives, and what it consumed."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, get_args

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import InputError, TaskvecError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.search import Grid
from taskvec.merging import every_method, method_of
from taskvec.merging.baselines import Single, ZeroShot
from taskvec.merging.method import Bench, Method
from taskvec.merging.rules import GivenMethod, RuleMethod
from taskvec.progress import Watch, unwatched
from taskvec.reports.charts.chart import Chart
from taskvec.reports.tables import Table
from taskvec.studies.addition import subsets
from taskvec.studies.compared.charts import charts_of
from taskvec.studies.compared.computing import Coefficient, Protocol, Values, compare, failed
from taskvec.studies.compared.records import Compared, rows_of
from taskvec.studies.compared.tables import tables_of
from taskvec.studies.entry import ADDITION, JOINT, SINGLE, Entry, How, consumed_with
from taskvec.studies.experiment import Experiment
from taskvec.studies.hits import without_hits
from taskvec.studies.measured import search_inputs
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import own_models
from taskvec.studies.store import key_of
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.source import SplitName
from taskvec.tasks.suite import Suite
from taskvec.training.regimes import Space
from taskvec.vectors import TaskVector

Entries = Literal["all"] | tuple[str | dict[str, Any], ...]


class MethodsSettings(Config):
    """Compare methods of merging: rules, learned coefficients, models that need the task's name."""

    rules: Entries = "all"
    """Names of rules (``taskvec rules``), chains and other methods, or ``{rule: NAME}`` with its settings;
    ``all`` of them. Zero-shot, single models, mean, sum and joint training always stand beside them."""
    coefficient: Coefficient = "both"
    """The scaling coefficient: the ``default`` of the method's source, ``searched`` on validation data, or
    a row for each."""
    subsets: Literal["all", "pairs", "whole"] = "whole"
    """Subsets of the tasks whose vectors are merged, as for ``addition``."""
    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment."""
    split: SplitName = "validation"
    """Where methods take the inputs and labels from that they read while they are made."""
    allow_test_inputs: bool = False
    """Let them read inputs of the test split; their rows say so. Labels of it are never read."""

    def methods(self) -> list[Method]:
        """Those that are listed, each once. Raises: InputError, UnknownName."""
        if self.rules == "all":
            return list(every_method())
        return [method for entry in self.rules for method in _methods_of(entry)]


def _methods_of(entry: object) -> Iterator[Method]:
    yield from every_method() if entry == "all" else [method_of(entry)]


class Methods(Study[MethodsSettings]):
    """A table of methods for each regime; see ``merging/method.py`` for what a method is."""

    title = "Methods side by side"
    settings = MethodsSettings

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("methods", self.block.regimes)
        if len(experiment.task_names(suite)) < 2:
            raise InputError("methods: needs two or more tasks")
        try:
            methods = self.block.methods()
        except InputError as error:
            raise type(error)(f"methods: {error}") from None
        check_split("methods", methods, self.block.split, self.block.allow_test_inputs)

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        if trial.regime not in (self.block.regimes or trial.experiment.regimes):
            return
        listed = distinct([*_baselines(), *self.block.methods()])
        for tasks in subsets(trial.tasks, self.block.subsets):
            for method in listed:
                yield self._cell(trial, tasks, method)
        job = partial(_compare_joint, tasks=trial.tasks)
        joint = trial.cell(Compared, job, trial.tasks, method={"joint": "as long as all"})
        label = f"{JOINT}, {joint.label}"
        yield replace(joint, label=label, instead=partial(failed, JOINT, trial.tasks))

    def _cell(self, trial: Trial, tasks: Sequence[str], method: Method) -> Cell[Compared]:
        block = self.block
        job = partial(_compare, tasks=tasks, method=method, coefficient=block.coefficient, split=block.split)
        decisive: dict[str, object] = {"method": {method.family: method.settings()}}
        if method.consumes("train") != method.consumes("validation"):
            decisive["split"] = block.split
        if method.coefficient is not None:
            decisive |= {"coefficient": block.coefficient, **search_inputs(trial.experiment.search)}
        cell = trial.cell(Compared, job, tasks, **decisive)
        label = f"{method.name}, {cell.label}"
        return replace(cell, label=label, instead=partial(failed, method.name, tasks))

    def entries(self, results: Results) -> Iterator[Entry]:
        for regime, cells in results.by_seed(Compared):
            for of in cells:
                if len(next(iter(of.values())).tasks) == len(results.plan.tasks):
                    yield from _entries(results, regime, of)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        compared = results.stored(Compared, regime, seed)
        return {"methods": list(map(without_hits, compared))} if compared else {}

    def tables(self, results: Results) -> Iterator[Table]:
        for regime, compared in results.by_regime(Compared).items():
            several = len(results.plan.experiment.regimes) > 1
            yield from tables_of(compared, results.plan.metrics, f", {regime}" if several else "")

    def charts(self, results: Results) -> Iterator[Chart]:
        metrics, several = results.plan.metrics, len(results.plan.experiment.regimes) > 1
        for number, (regime, compared) in enumerate(results.by_regime(Compared).items()):
            rows = rows_of([of for of in compared if of[0].tasks == results.plan.tasks])
            yield from charts_of(rows, metrics, f"methods-{number}" if several else "methods", regime)


@checked
def methods(
    evaluator: Evaluator,
    vectors: Mapping[str, TaskVector],
    rules: str | Sequence[str | Mapping[str, Any] | Method] = "all",
    *,
    single: Mapping[str, Values],
    space: Space = "ordinary",
    coefficient: Coefficient = "both",
    grid: Grid | None = None,
    split: SplitName = "validation",
    allow_test_inputs: bool = False,
    seed: int = 0,
    watch: Watch = unwatched,
) -> list[dict[str, object]]:
    """Make one model of the vectors by each method, and measure them side by side on test data.

    Args:
        vectors: by task, of one regime.
        rules: as in an experiment file, or methods themselves; or the name of one.
        single: from :func:`single_task`, same regime: what normalized figures are divided by.
        coefficient: the method's own, searched on validation data, or both.
        split: where methods take inputs and labels from that they read.
        allow_test_inputs: let them read test inputs, and say so; never labels.

    Returns: a record a method: ``name``, ``outcomes`` (``how`` the coefficient was found, ``consumed``,
        ``absolute``, ``normalized``, ``values`` by task), ``seconds``, ``peak_bytes``, ``coefficients``;
        baselines first. A method that cannot be made of these vectors says why in ``left_out``, one that
        goes wrong in ``failed``, a coefficient at which outputs are not finite is under ``diverged``.
    Raises: InputError.
    """
    _check_arguments(evaluator, vectors, single, space)
    MethodsSettings.parse("methods", {"coefficient": coefficient, "split": split})
    listed = [rules] if isinstance(rules, str) else rules
    chosen = [
        method
        for entry in listed
        for method in ([entry] if isinstance(entry, Method) else _methods_of(entry))
    ]
    check_split("methods", chosen, split, allow_test_inputs)
    bench = Bench(evaluator, vectors, space, split, seed, watch=watch)
    protocol = Protocol(single, coefficient, grid)
    return [dict(_tried(bench, method, protocol)) for method in distinct([*_baselines(), *chosen])]


def _check_arguments(
    evaluator: Evaluator, vectors: Mapping[str, TaskVector], single: Mapping[str, Values], space: Space
) -> None:
    if not vectors:
        raise InputError("vectors: none, expected one for each task")
    if space not in get_args(Space):
        raise InputError(f"space: {space!r}, expected {' or '.join(get_args(Space))}")
    for task in vectors:
        evaluator.task(task)
    for split in ("validation", "test"):
        missing = [task for task in vectors if task not in single.get(split, {})]
        if missing:
            raise InputError(
                f"single: no {split} value of {missing[0]!r}, expected one for each vector; take "
                "tv.single_task(evaluator, evaluator.points(vectors), list(vectors))"
            )


def check_split(where: str, methods: Sequence[Method], split: SplitName, allow_test_inputs: bool) -> None:
    """Refuse to learn from the test split, unless inputs alone are read and that is allowed.

    Raises: InputError.
    """
    if split != "test":
        return
    for method in methods:
        if _reads_labels(method):
            raise InputError(f"{where}: {method.name} reads labels, and never those of the test split")
        if "unlabelled test inputs" in method.consumes("test") and not allow_test_inputs:
            raise InputError(
                f"{where}: split: test, and {method.name} would read inputs that it is scored on; take "
                "validation, or allow_test_inputs: true, and its rows say so"
            )


def _reads_labels(method: Method) -> bool:
    """Whether it reads the labels of the split that methods read, whichever that is."""
    return "validation labels" in method.consumes("validation") and "train labels" in method.consumes("train")


def distinct(methods: Sequence[Method]) -> list[Method]:
    """Each once, the first of equal ones."""
    found: dict[str, Method] = {}
    for method in methods:
        found.setdefault(f"{method.family} {method.settings()}", method)
    return list(found.values())


def _baselines() -> list[Method]:
    return [ZeroShot(), Single(), RuleMethod("mean"), RuleMethod("sum")]


_NAMES = {Single.name: SINGLE, "sum": ADDITION}
"""What other studies call the same models."""


def _entries(results: Results, regime: str, compared: Mapping[int, Compared]) -> Iterator[Entry]:
    """Of a method, at each coefficient that was found."""
    name = next(iter(compared.values())).name
    seconds = {seed: of.seconds for seed, of in compared.items() if of.seconds is not None}
    for how in get_args(How):
        outcomes = {seed: found for seed, of in compared.items() if (found := of.outcome(how))}
        if name == ZeroShot.name or not outcomes:
            continue
        consumed = next(iter(outcomes.values())).consumed
        yield Entry(
            _NAMES.get(name, name),
            regime,
            outcomes,
            consumed if name == Single.name else consumed_with(results.plan.experiment, regime, *consumed),
            how,
            {seed: of.coefficient for seed, of in outcomes.items() if of.coefficient is not None},
            {} if name == Single.name else seconds,
        )


def _tried(bench: Bench, method: Method, protocol: Protocol) -> Plain:
    try:
        return compare(bench, method, protocol)
    except TaskvecError as error:
        return failed(method.name, bench.tasks, error)


def _compare(
    trial: Trial, tasks: Sequence[str], method: Method, coefficient: Coefficient, split: SplitName
) -> Plain:
    vectors = {task: trial.vectors[task] for task in tasks}
    scratch = trial.lab.store.folder / "partial" / key_of("vectors", trial.decisive(tasks))[:16]
    bench = Bench(
        trial.evaluator, vectors, trial.space, split, trial.seed, scratch=scratch, watch=trial.lab.watch
    )
    return compare(bench, method, Protocol(own_models(trial).values, coefficient, trial.experiment.search))


def _compare_joint(trial: Trial, tasks: Sequence[str]) -> Plain:
    if trial.experiment.vectors:
        return {"name": JOINT, "tasks": list(tasks), "left_out": "nothing is trained, the vectors are given"}
    joint = GivenMethod(JOINT, trial.joint_vector(), ("training",), "joint")
    return _compare(trial, tasks, joint, "default", "validation")
