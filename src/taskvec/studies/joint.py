"""Joint training: one model trained on all tasks at once, the upper reference of addition."""

from collections.abc import Iterator
from typing import Annotated

from pydantic import BeforeValidator

from taskvec.config import Config
from taskvec.studies.experiment import Experiment
from taskvec.studies.measured import Measured, measured
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import own_models
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.suite import Suite


class JointSettings(Config):
    """Train one model on all tasks at once: the upper reference of addition."""

    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment, each in its own space."""


def _switch(value: object) -> object:
    if isinstance(value, bool):
        return JointSettings() if value else None
    return value


class Joined(Measured):
    """The model trained on all tasks, on test data."""

    cell = "joint"


class Joint(Study[JointSettings]):
    """Shown as a column of addition's table, and a line in ATM's figure."""

    settings = Annotated[JointSettings | None, BeforeValidator(_switch)]

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("joint", self.block.regimes)

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        if trial.regime in (self.block.regimes or trial.experiment.regimes):
            yield trial.cell(Joined, _train_jointly, trial.tasks)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        models = results.stored(Joined, regime, seed)
        return {"joint": models[0]} if models else {}


def _train_jointly(trial: Trial) -> Plain:
    point = trial.points_of({"joint": trial.vector(*trial.tasks)}).at({"joint": 1.0})
    return measured(trial.evaluator.values(point, trial.tasks, "test"), own_models(trial).test)
