"""Alternating tuning and merging at equal budget: more rounds, each shorter."""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
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
from taskvec.studies.measured import Edit, Measured, both, coefficients, measured, search_inputs, search_note
from taskvec.studies.single import single_cell
from taskvec.studies.study import Cell, Context, Plain, Plan, Record, Results, Study
from taskvec.tasks.suite import Suite
from taskvec.training.atm import atm
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

    def cells(self, plan: Plan, regime: str, seed: int) -> Iterator[Cell[Record]]:
        if not self._is_about(plan.experiment, regime):
            return
        for rounds in self.block.rounds:
            grid = _grid(plan, self.block, rounds)
            job = partial(_alternate, regime=regime, seed=seed, rounds=rounds, settings=self.block, grid=grid)
            inputs = {
                "rounds": rounds,
                "rule": self.block.rule,
                "scale": self.block.scale,
                **search_inputs(grid),
            }
            yield plan.cell(Alternated, job, regime, seed, plan.tasks, **inputs)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        return results.listed("atm", Alternated, regime, seed)

    def tables(self, results: Results) -> Iterator[Table]:
        rows, searches = [], {}
        for regime, seeds in results.by_regime(Alternated).items():
            for runs in zip(*seeds, strict=True):
                rounds = runs[0].rounds
                name = f"{regime}, {rounds} round{'s' if rounds > 1 else ''}"
                searches[name] = tuned = [run.tuned for run in runs]
                rows.append((name, both([run.plain for run in runs]), coefficients(tuned), both(tuned)))
        if rows:
            note = (
                "Absolute / normalized, per cent. All rows spend the same training steps; the last columns "
                "scale the whole displacement by a factor chosen on validation data: "
                f"{search_note(searches)}."
            )
            yield Table("ATM", ("", "as it is", "best factor", "at best factor"), rows, note)

    def drawings(self, results: Results) -> Iterator[Drawing]:
        if runs := results.by_regime(Alternated):
            caption = "ATM: the same training steps, merged once or more often."
            yield Drawing("atm", caption, partial(_draw, runs, results.by_regime(Joined)))


def _grid(plan: Plan, settings: AtmSettings, rounds: int) -> Grid:
    """Addition's grid in the unit of ATM: a factor of T on the mean of T vectors gives their sum.

    One round of means is that mean, so it is searched at the very points of addition. What more rounds
    give lies between a mean and a sum: searched as far, in the steps of addition.
    """
    unit = len(plan.tasks) / settings.scale
    if rounds == 1 and settings.rule == "mean":
        return plan.experiment.search.scaled(unit)
    return plan.experiment.search.widened(max(unit, 1.0))


def _alternate(
    context: Context, regime: str, seed: int, rounds: int, settings: AtmSettings, grid: Grid
) -> Plain:
    evaluator, tasks = context.evaluator, context.plan.tasks
    single = context.result(single_cell(context.plan, regime, seed))
    points = context.points_of(regime, {"atm": _displacement(context, regime, seed, rounds, settings)})
    search = maximize(
        lambda values: normalized(values, single.validation),
        lambda alpha: evaluator.values(points.at({"atm": alpha}), tasks, "validation"),
        grid,
    )
    plain = evaluator.values(points.at({"atm": 1.0}), tasks, "test")
    tuned = evaluator.values(points.at({"atm": search.coefficient}), tasks, "test")
    return {
        "rounds": rounds,
        "plain": measured(plain, single.test),
        "tuned": {**measured(tuned, single.test), **search.record()},
    }


def _displacement(context: Context, regime: str, seed: int, rounds: int, settings: AtmSettings) -> TaskVector:
    tasks, chosen = context.plan.tasks, {"rule": settings.rule, "scale": settings.scale}
    if rounds == 1:  # tuning apart and merging once: the vectors are there already
        return settings.scale * combine(settings.rule, list(context.vectors(regime, seed).values()))
    return context.train(
        regime,
        seed,
        tasks,
        f"atm{rounds}",
        lambda checkpoint: atm(
            context.evaluator.backbone,
            [context.evaluator.part(task) for task in tasks],
            rounds=rounds,
            regime=regime,
            settings=context.plan.experiment.settings(regime, seed),
            rule=settings.rule,
            scale=settings.scale,
            checkpoint=checkpoint,
            watch=context.watch,
        ),
        rounds=rounds,
        **chosen,
    )


def _draw(
    by_regime: Mapping[str, Sequence[Sequence[Alternated]]],
    joint: Mapping[str, Sequence[Sequence[Joined]]],
) -> "Figure":
    figure, [ax] = axes_in_a_row(1, 4.6, 3.2)
    rounds: list[int] = []
    for place, (regime, seeds) in enumerate(by_regime.items()):
        rounds = [run.rounds for run in seeds[0]]
        together = list(zip(*seeds, strict=True))
        plain = [100 * fmean(run.plain.absolute for run in runs) for runs in together]
        tuned = [100 * fmean(run.tuned.absolute for run in runs) for runs in together]
        ax.plot(rounds, plain, "-", marker="o", color=f"C{place}", label=f"{regime}, as it is")
        ax.plot(rounds, tuned, "--", marker="o", color=f"C{place}", label=f"{regime}, best factor")
        if regime in joint:
            ceiling = 100 * fmean(model.absolute for [model] in joint[regime])
            ax.axhline(ceiling, color=f"C{place}", lw=1, ls=":", label=f"{regime}, joint training")
    ax.set_xlabel("rounds, at equal training steps")
    ax.set_xticks(rounds)
    ax.set_ylabel("mean test metric, %")
    ax.legend(frameon=False, fontsize="small")
    return figure
