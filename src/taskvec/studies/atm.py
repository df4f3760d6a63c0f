"""Alternating tuning and merging at equal budget: more rounds, each shorter."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from pydantic import Field, PositiveFloat, PositiveInt

from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.evaluation.metrics import normalized
from taskvec.evaluation.search import Grid, maximize
from taskvec.registry import nearest
from taskvec.reports.drawing import Drawing, axes_in_a_row
from taskvec.reports.tables import Table
from taskvec.rules import RULES
from taskvec.studies.experiment import Experiment
from taskvec.studies.joint import Joined
from taskvec.studies.measured import (
    Edit,
    Measured,
    both,
    coefficients,
    measured,
    reciprocal_note,
    search_inputs,
    search_note,
)
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import own_models
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.source import SplitName
from taskvec.tasks.suite import Suite
from taskvec.training.atm import atm
from taskvec.training.logs import Log
from taskvec.vectors import TaskVector, combine

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class AtmSettings(Config):
    """Alternate tuning and merging at equal budget: more rounds, each shorter."""

    rounds: tuple[PositiveInt, ...] = Field(min_length=1)
    rule: str = "mean"
    scale: PositiveFloat = 1.0
    regimes: tuple[str, ...] | None = None
    """Default: all of the experiment that train in ordinary space, where ATM's merged models are."""


class Alternated(Record):
    """ATM in some number of rounds: as it is, and with its whole displacement rescaled on validation data."""

    cell = "atm"
    rounds: int
    plain: Measured
    tuned: Edit


class Atm(Study[AtmSettings]):
    """ATM of some numbers of rounds."""

    settings = AtmSettings

    def check(self, experiment: Experiment, suite: Suite) -> None:
        experiment.check_regimes("atm", self.block.regimes)
        for regime in self.block.regimes or ():
            if experiment.space(regime) == "tangent":
                raise InputError(
                    f"atm.regimes: {regime!r} is of tangent space, and ATM merges ordinary models"
                )
        if not any(self._is_about(experiment, regime) for regime in experiment.regimes):
            raise InputError("atm: every regime is of tangent space, and ATM merges ordinary models")
        if self.block.rule not in RULES:
            raise InputError(
                f"atm.rule: no rule called {self.block.rule!r}; {nearest(self.block.rule, RULES)}"
            )

    def _is_about(self, experiment: Experiment, regime: str) -> bool:
        if self.block.regimes:
            return regime in self.block.regimes
        return experiment.space(regime) == "ordinary"

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        block = self.block
        if not self._is_about(trial.experiment, trial.regime):
            return
        for rounds in block.rounds:
            grid = _grid(trial, block, rounds)
            chosen = {"rounds": rounds, "rule": block.rule, "scale": block.scale}
            job = partial(_alternate, rounds=rounds, settings=block, grid=grid)
            yield trial.cell(Alternated, job, trial.tasks, **chosen, **search_inputs(grid))

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        runs = results.stored(Alternated, regime, seed)
        return {"atm": runs} if runs else {}

    def tables(self, results: Results) -> Iterator[Table]:
        rows, searches, metrics = [], {}, results.plan.metrics
        for regime, of_regime in results.by_regime(Alternated).items():
            for runs in of_regime:
                rounds = runs[0].rounds
                name = f"{regime}, {rounds} round{'s' if rounds > 1 else ''}"
                searches[name] = tuned = [run.tuned for run in runs]
                rows.append(
                    (
                        name,
                        both([run.plain for run in runs], metrics),
                        coefficients(tuned),
                        both(tuned, metrics),
                    )
                )
        if rows:
            note = (
                f"Absolute / normalized, per cent.{reciprocal_note(metrics.values())} All rows spend the "
                "same training steps; the last columns scale the whole displacement by a factor chosen on "
                "validation data: "
                f"{search_note(searches)}."
            )
            yield Table("ATM", ("", "as it is", "best factor", "at best factor"), rows, note)

    def drawings(self, results: Results) -> Iterator[Drawing]:
        if runs := results.by_regime(Alternated):
            caption = "ATM: the same training steps, merged once or more often."
            yield Drawing("atm", caption, partial(_draw, runs, results.by_regime(Joined)))


def _grid(trial: Trial, settings: AtmSettings, rounds: int) -> Grid:
    """Addition's grid in the unit of ATM: a factor of T on the mean of T vectors gives their sum.

    One round of means is that mean, so it is searched at the very points of addition. What more rounds
    give lies between a mean and a sum: searched as far, in the steps of addition.
    """
    unit = len(trial.tasks) / settings.scale
    if rounds == 1 and settings.rule == "mean":
        return trial.experiment.search.scaled(unit)
    return trial.experiment.search.widened(max(unit, 1.0))


def _alternate(trial: Trial, rounds: int, settings: AtmSettings, grid: Grid) -> Plain:
    single = own_models(trial)
    points = trial.points_of({"atm": _displacement(trial, rounds, settings)})

    def values(factor: float, split: SplitName) -> dict[str, float]:
        return trial.evaluator.values(points.at({"atm": factor}), trial.tasks, split)

    search = maximize(
        lambda measured: normalized(measured, single.validation),
        lambda factor: values(factor, "validation"),
        grid,
    )
    plain, tuned = (measured(values(factor, "test"), single.test) for factor in (1.0, search.coefficient))
    return {"rounds": rounds, "plain": plain, "tuned": {**tuned, **search.record()}}


def _displacement(trial: Trial, rounds: int, settings: AtmSettings) -> TaskVector:
    rule, scale = settings.rule, settings.scale
    if rounds == 1:  # tuning apart and merging once: the vectors are there already
        return scale * combine(rule, list(trial.vectors.values()))

    def compute(checkpoint: Path, log: Log | None) -> TaskVector:
        return atm(
            trial.evaluator.backbone,
            [trial.evaluator.part(task) for task in trial.tasks],
            rounds=rounds,
            regime=trial.trains,
            settings=trial.settings,
            rule=rule,
            scale=scale,
            checkpoint=checkpoint,
            watch=trial.lab.watch,
            log=log,
        )

    return trial.train(f"atm{rounds}", compute, trial.tasks, rounds=rounds, rule=rule, scale=scale)


def _draw(
    by_regime: Mapping[str, Sequence[Sequence[Alternated]]],
    joint: Mapping[str, Sequence[Sequence[Joined]]],
) -> "Figure":
    figure, [ax] = axes_in_a_row(1, 4.6, 3.2)
    rounds: list[int] = []
    for place, (regime, of_regime) in enumerate(by_regime.items()):
        rounds = [runs[0].rounds for runs in of_regime]
        plain = [100 * fmean(run.plain.absolute for run in runs) for runs in of_regime]
        tuned = [100 * fmean(run.tuned.absolute for run in runs) for runs in of_regime]
        ax.plot(rounds, plain, "-", marker="o", color=f"C{place}", label=f"{regime}, as it is")
        ax.plot(rounds, tuned, "--", marker="o", color=f"C{place}", label=f"{regime}, best factor")
        if regime in joint:
            ceiling = 100 * fmean(model.absolute for model in joint[regime][0])
            ax.axhline(ceiling, color=f"C{place}", lw=1, ls=":", label=f"{regime}, joint training")
    ax.set_xlabel("rounds, at equal training steps")
    ax.set_xticks(rounds)
    ax.set_ylabel("mean test metric, %")
    ax.legend(frameon=False, fontsize="small")
    return figure
