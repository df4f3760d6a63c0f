"""Does a coefficient of 1 do? What penalties are trained for: sums whose coefficient needs no search."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

import numpy as np

from taskvec.errors import InputError
from taskvec.reports.charts.lines import Curve, Dot, Lines, Plot
from taskvec.reports.charts.scales import Axis
from taskvec.reports.numbers import NOTHING, Mean
from taskvec.reports.tables import Table
from taskvec.studies.addition import Sum, entries_of_sums, sum_of_all, whole_sums, wholes_by_seed
from taskvec.studies.charting import of_seeds
from taskvec.studies.cost import Cost, Measurement
from taskvec.studies.entry import Entry
from taskvec.studies.experiment import Experiment
from taskvec.studies.hits import has_hits, unpack_hits, values_and_hits
from taskvec.studies.measured import (
    both,
    coefficients,
    mean_in_unit,
    reciprocal_note,
    search_inputs,
    search_note,
)
from taskvec.studies.numerics.paired import Difference, holm, paired_difference
from taskvec.studies.record import Plain, Record
from taskvec.studies.single import OwnModels
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.suite import Suite
from taskvec.training.penalties.settings import PenaltySettings, files_of, foreign


class Hits(Record):
    """Which test examples the sum of all tasks gets right, by task: at its best coefficient, and at 1."""

    cell = "regularised"
    best: dict[str, str]
    one: dict[str, str]


class Regularised(Study[bool]):
    """Sums at their best coefficient against sums at 1, with what the regimes' penalties cost."""

    title = "Regularised training"
    settings = bool
    default = False

    def check(self, experiment: Experiment, suite: Suite) -> None:
        if not getattr(experiment, "addition", None):
            raise InputError(
                "regularised: compares sums, and 'addition' is off; add it, such as addition: "
                "{subsets: whole}"
            )

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        yield trial.cell(Hits, _compare, trial.tasks, **search_inputs(trial.experiment.search))

    def entries(self, results: Results) -> Iterator[Entry]:
        """Sums that are on record from before they had hits, with those of this study."""
        hits = {regime: found for regime, [found] in results.by_seed(Hits)}
        for regime, sums in wholes_by_seed(results):
            known = {seed: sums[seed] for seed in hits.get(regime, {}) if seed in sums}
            best = {
                seed: of.model_copy(update={"hits": hits[regime][seed].best}) for seed, of in known.items()
            }
            ones = {
                seed: of.fixed["1"].model_copy(update={"hits": hits[regime][seed].one})
                for seed, of in known.items()
            }
            if known:
                yield from entries_of_sums(results.plan.experiment, regime, best, ones)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        hits = results.of(Hits, regime, seed)
        found = gain(hits) if hits else None
        if found is None:
            return {}
        facts = {"best_minus_1": found.mean, "interval": list(found.interval), "p": found.p}
        return {"regularised": facts}

    def tables(self, results: Results) -> Iterator[Table]:
        hits = {regime: of for regime, [of] in results.by_regime(Hits).items()}
        if hits:
            gains = {regime: gain(seeds) for regime, seeds in hits.items()}
            tested = {regime: found.p for regime, found in gains.items() if found}
            corrected = dict(zip(tested, holm(list(tested.values())), strict=True))
            rows = [_row(results, regime, found, corrected.get(regime)) for regime, found in gains.items()]
            yield Table("Does α = 1 do?", _COLUMNS, rows, _note(results))

    def charts(self, results: Results) -> Iterator[Lines]:
        if results.by_regime(Hits):
            yield _chart(whole_sums(results), results.plan.experiment)


_COLUMNS = (
    *("", "penalty", "of others", "single tasks", "best α", "at best α"),
    *("α = 1", "best − 1", "a step, × plain"),
)


def _row(results: Results, regime: str, found: Difference | None, p: float | None) -> Sequence[object]:
    experiment, metrics = results.plan.experiment, results.plan.metrics
    sums, [own] = whole_sums(results)[regime], results.by_regime(OwnModels)[regime]
    penalties = _penalties(experiment, regime)
    costs = next((found.regimes for found in results.of(Measurement)), {})
    single = [fmean(models.test[task] for task in results.plan.tasks) for models in own]
    return (
        regime,
        ", ".join(map(named, penalties)) or "none",
        _consumed(penalties),
        mean_in_unit(metrics.values(), single),
        coefficients(sums),
        both(sums, metrics),
        both([whole.fixed["1"] for whole in sums], metrics),
        _shown(found, p),
        _relative(costs, regime, experiment),
    )


def _consumed(penalties: Sequence[PenaltySettings]) -> str:
    """What penalties read of other tasks."""
    files = "statistics" if files_of(penalties) else ""
    read = "unlabelled train inputs" if foreign(penalties) else ""
    return ", ".join(filter(None, (read, files))) or "nothing"


def gain(seeds: Sequence[Hits]) -> Difference | None:
    """How much better the best coefficient is than 1 on the same examples; none if they have no right or
    wrong."""
    tasks = list(seeds[0].best)
    if not tasks:
        return None
    return paired_difference(
        [np.stack([unpack_hits(of.best[task]) - unpack_hits(of.one[task]) for of in seeds]) for task in tasks]
    )


def named(penalty: PenaltySettings) -> str:
    """A penalty in few words: its kind, its strength, and what else is not as usual."""
    usual = type(penalty)()
    told = {name: value for name, value in penalty if name not in ("kind", "strength")}
    more = [f"{name} {value}" for name, value in told.items() if value != getattr(usual, name)]
    return ", ".join([f"{penalty.kind} {penalty.strength:g}", *more])


def _compare(trial: Trial) -> Plain:
    found = sum_of_all(trial)
    best = found.hits or _hits(trial, found.coefficient)
    return {"best": best, "one": found.fixed["1"].hits or _hits(trial, 1.0)}


def _hits(trial: Trial, alpha: float) -> dict[str, str]:
    """Of sums on record from before they had any; of the tasks that are scored by accuracy."""
    scored = [task for task in trial.tasks if has_hits(trial.evaluator.objective(task))]
    return values_and_hits(trial.evaluator, trial.points.shared(trial.tasks, alpha), scored)[1]


def _penalties(experiment: Experiment, regime: str) -> tuple[PenaltySettings, ...]:
    return experiment.settings(regime, experiment.seeds[0]).penalty


def _shown(difference: Difference | None, p: float | None) -> str:
    if difference is None or p is None:
        return NOTHING
    mean, low, high = (
        f"{round(100 * value, 1) + 0.0:+.1f}" for value in (difference.mean, *difference.interval)
    )
    return f"{mean} [{low}, {high}]{'*' if p < 0.05 else ''}".replace("-", "−")


def _relative(costs: Mapping[str, Cost], regime: str, experiment: Experiment) -> object:
    """The seconds of a step in units of those of the same regime without penalties."""
    kind = experiment.regime(regime)
    plain = next(
        (
            name
            for name in costs
            if not _penalties(experiment, name)
            and (of := experiment.regime(name)).selection == kind.selection
            and (of.space, of.lora) == (kind.space, kind.lora)
        ),
        None,
    )
    if regime not in costs or plain is None:
        return NOTHING
    return Mean([costs[regime].seconds / costs[plain].seconds], ".2f")


def _note(results: Results) -> str:
    seeds = len(results.plan.experiment.seeds)
    again = "not on how it would come out with other seeds" if seeds == 1 else f"given these {seeds} seeds"
    return (
        "Absolute / normalized on test, per cent; of others: what a penalty consumed of the other tasks; "
        "single tasks: mean of each task's own model. best − 1: points of accuracy by which the coefficient "
        "chosen on validation labels is better than 1 on the same test examples, with its 95 % interval; "
        "* p < 0.05, corrected after Holm for the tests of this table; it says how sure the difference is on "
        f"other examples of these tasks, {again}.{reciprocal_note(results.plan.metrics.values())} "
        f"α: {search_note(whole_sums(results))}."
    )


def _chart(sums: Mapping[str, Sequence[Sum]], experiment: Experiment) -> Lines:
    spaces: dict[str, list[str]] = {}
    for regime in sums:
        kind = experiment.regime(regime)
        where = kind.selection if kind.space == "ordinary" else f"{kind.space}, {kind.selection}"
        spaces.setdefault(where, []).append(regime)
    plots = [
        Plot(
            where,
            Axis("α"),
            Axis("normalized on validation, %"),
            [
                Curve(regime, _curve(sums[regime]), dashed=bool(_penalties(experiment, regime)))
                for regime in regimes
            ],
            marks=[1.0],
        )
        for where, regimes in spaces.items()
    ]
    caption = (
        "The sum of all tasks over its coefficient, on the validation points that were measured; the "
        f"vertical line is at 1. Solid: no penalty. {of_seeds(len(experiment.seeds))}"
    )
    return Lines("regularised", caption, plots)


def _curve(seeds: Sequence[Sum]) -> list[Dot]:
    """At coefficients that every seed measured."""
    traces = [{alpha: height for alpha, height in of.trace if height is not None} for of in seeds]
    shared = sorted(set.intersection(*map(set, traces)))
    return [Dot(alpha, [100 * trace[alpha] for trace in traces], f"α = {alpha:g}") for alpha in shared]
