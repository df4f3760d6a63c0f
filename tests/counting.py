"""A study as somebody new would write one: all of it is in this file."""

from collections.abc import Iterator
from functools import partial
from typing import Literal

from taskvec.config import Config
from taskvec.reports.numbers import Mean
from taskvec.reports.tables import Table
from taskvec.studies.record import Plain, Record
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial


class CountingSettings(Config):
    """Count examples."""

    split: Literal["validation", "test"] = "test"


class Counted(Record):
    """How many there are, by task."""

    cell = "counting"
    examples: dict[str, int]


class Counting(Study[CountingSettings]):
    """Examples of a split, as a trial sees them."""

    settings = CountingSettings

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        job = partial(_count, split=self.block.split)
        yield trial.cell(Counted, job, trial.tasks, split=self.block.split)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        [counted] = results.stored(Counted, regime, seed)
        return {"counting": counted}

    def tables(self, results: Results) -> Iterator[Table]:
        for regime, [seeds] in results.by_regime(Counted).items():
            rows = [
                (task, Mean([seed.examples[task] for seed in seeds], ".0f")) for task in results.plan.tasks
            ]
            yield Table(f"Examples of {regime}", ("task", "examples"), rows)


def _count(trial: Trial, split: Literal["validation", "test"]) -> Plain:
    return {"examples": {task: len(trial.evaluator.split(task, split)) for task in trial.tasks}}
