"""lm-evaluation-harness on the model, on every task's own model, and on the sum of their vectors."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, cast

import xxhash

from taskvec.code import check_allowed
from taskvec.evaluation.harness import HarnessSettings, harness
from taskvec.reading import local_path
from taskvec.reports.numbers import Mean
from taskvec.reports.tables import Table
from taskvec.studies.addition import sum_of_all
from taskvec.studies.experiment import Experiment
from taskvec.studies.measured import search_inputs
from taskvec.studies.record import Plain, Record
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.source import digest_of
from taskvec.tasks.suite import Suite
from taskvec.training.loop import Params

_READ = frozenset({".yaml", ".yml", ".py", ".json", ".jsonl", ".csv", ".tsv", ".txt", ".parquet", ".gz"})
"""Endings of task files, and of data beside them."""

Metrics = Mapping[str, Mapping[str, float | None]]


class Harnessed(Record):
    """What the harness says of one model."""

    cell = "lm_eval"
    model: str
    """Of which vectors: a task's, the ``sum``, or ``pre-trained``."""
    coefficient: float | None = None
    scores: dict[str, dict[str, Any]]

    def values(self) -> dict[tuple[str, str], float]:
        """By task of the harness and metric."""
        return {
            (task, metric): figure["value"]
            for task, score in self.scores.items()
            for metric, figure in score["metrics"].items()
        }


class LmEvalBase(Study[None]):
    """The pre-trained model, before anything is trained; for an experiment with a block ``lm_eval``."""

    of_model = True

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        settings = _settings(trial.experiment)
        if settings is not None:
            inputs = {
                "model": trial.plan.model,
                "precision": trial.plan.evaluation["precision"],
                **_key(settings, trial.lab.store.folder),
            }
            yield Cell(
                Harnessed, "pre-trained", inputs, partial(_measure, settings=settings, model="pre-trained")
            )


class LmEval(Study[HarnessSettings]):
    """The models of every regime of ordinary space; those of tangent space have no weights to run."""

    title = "lm-evaluation-harness"
    settings = HarnessSettings | None

    def check(self, experiment: Experiment, suite: Suite) -> None:
        if self.block.include is not None:
            check_allowed(self.block.include, "lm_eval.include")

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        if trial.space == "tangent":
            return
        key = _key(self.block, trial.lab.store.folder)
        for task in trial.tasks:
            job = partial(_measure, settings=self.block, model=task)
            yield trial.cell(Harnessed, job, [task], **key)
        if getattr(trial.experiment, "addition", None) and len(trial.tasks) > 1:
            job = partial(_measure, settings=self.block, model="sum")
            more = search_inputs(trial.experiment.search)
            yield trial.cell(Harnessed, job, trial.tasks, **more, **key)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        found = results.stored(Harnessed, regime, seed)
        return {"lm_eval": [*results.stored(Harnessed), *found]} if found else {}

    def tables(self, results: Results) -> Iterator[Table]:
        base = results.of(Harnessed)
        if not base:
            return
        columns = list(base[0].values())
        rows = [("pre-trained", *_by_column(columns, [base[0]]))]
        for regime, cells in results.by_regime(Harnessed).items():
            rows += [(f"{regime}: {_label(seeds)}", *_by_column(columns, seeds)) for seeds in cells]
        errors = [
            figure["stderr"] for score in base[0].scores.values() for figure in score["metrics"].values()
        ]
        largest = max((error for error in errors if error is not None), default=None)
        note = (
            ""
            if largest is None
            else f"Standard error of the pre-trained model's figures: up to {largest:.2g}."
        )
        yield Table(
            "lm-evaluation-harness", ("", *(f"{task} {metric}" for task, metric in columns)), rows, note
        )


def _settings(experiment: Experiment) -> HarnessSettings | None:
    return getattr(experiment, "lm_eval", None)


def _key(settings: HarnessSettings, run: Path) -> dict[str, object]:
    """What decides figures: of a folder of task files what it holds, but for the run in it, and not its
    place; and not the size of a batch."""
    asked = settings.model_dump(mode="json", exclude={"batch", "include"})
    return {"harness": {**asked, "include": settings.include and _digest(local_path(settings.include), run)}}


def _digest(folder: Path, run: Path) -> str:
    """Of the files from which lm-eval makes tasks: names and contents; none of a folder that is not there."""
    files = sorted(
        path
        for path in folder.rglob("*")
        if path.suffix in _READ and path.is_file() and not path.absolute().is_relative_to(run.absolute())
    )
    names = "\0".join(str(path.relative_to(folder)) for path in files)
    return xxhash.xxh3_128_hexdigest((names + digest_of(*files)).encode())


def _measure(trial: Trial, settings: HarnessSettings, model: str) -> Plain:
    evaluator = trial.evaluator
    point: Params = evaluator.pretrained
    coefficient = None
    if model == "sum":
        coefficient = sum_of_all(trial).coefficient
        point = cast("Params", trial.points.shared(trial.tasks, coefficient))
    elif model != "pre-trained":
        coefficient = 1.0
        point = cast("Params", trial.points.at({model: coefficient}))
    scores = harness(evaluator.backbone, settings, point, precision=trial.plan.evaluation["precision"])
    return {
        "model": model,
        "coefficient": coefficient,
        "scores": {task: score.record() for task, score in scores.items()},
    }


def _label(seeds: list[Harnessed]) -> str:
    first = seeds[0]
    if first.model != "sum":
        return first.model
    return f"sum, α {Mean([found.coefficient for found in seeds], '.2f')}"


def _by_column(columns: list[tuple[str, str]], seeds: list[Harnessed]) -> list[Mean]:
    return [Mean([found.values().get(column) for found in seeds], ".3f") for column in columns]
