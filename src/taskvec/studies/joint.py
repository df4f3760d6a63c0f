"""Joint training: one model trained on all tasks at once, the upper reference of addition."""

from collections.abc import Iterator
from functools import partial
from typing import Annotated

from pydantic import BeforeValidator

from taskvec.config import Config
from taskvec.studies.experiment import Experiment
from taskvec.studies.measured import Measured, measured
from taskvec.studies.single import single_cell
from taskvec.studies.study import Cell, Context, Plain, Plan, Record, Results, Study
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

    def cells(self, plan: Plan, regime: str, seed: int) -> Iterator[Cell[Record]]:
        if regime in (self.block.regimes or plan.experiment.regimes):
            yield plan.cell(
                Joined, partial(_train_jointly, regime=regime, seed=seed), regime, seed, plan.tasks
            )

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        models = results.stored(Joined, regime, seed)
        return {"joint": models[0]} if models else {}


def _train_jointly(context: Context, regime: str, seed: int) -> Plain:
    tasks = context.plan.tasks
    vector = context.vector(regime, seed, tasks)
    point = context.points_of(regime, {"joint": vector}).at({"joint": 1.0})
    single = context.result(single_cell(context.plan, regime, seed))
    return measured(context.evaluator.values(point, tasks, "test"), single.test)
