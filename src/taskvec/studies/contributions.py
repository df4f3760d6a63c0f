"""What a coefficient for every task gives, and what each vector adds; from the results of addition."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from statistics import fmean

from taskvec.reports.charts.chart import Chart
from taskvec.reports.charts.matrix import Map, Matrix, Tint
from taskvec.reports.numbers import Mean, Range
from taskvec.reports.tables import Table
from taskvec.studies.addition import Sum, whole_sums
from taskvec.studies.charting import mean_of
from taskvec.studies.measured import both, reciprocal_note
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Plan


class Coefficients(Study[None]):
    """What a coefficient for every task gives, and what each vector adds; from the results of addition."""

    title = "A coefficient for every task"

    def tables(self, results: Results) -> Iterator[Table]:
        tasks = results.plan.tasks
        wholes = {regime: of for regime, of in whole_sums(results).items() if of[0].each}
        if not wholes:
            return
        yield Table(
            "A coefficient for every task",
            ("α of", *tasks, "an α each", "one α"),
            [_coefficients_of_each(regime, of, results.plan) for regime, of in wholes.items()],
            "Addition of all tasks in tangent space. α of each task: coordinate ascent on the mean "
            "normalized validation metric from the shared α, to where no single α can be changed for the "
            "better; absolute / normalized on test, per cent."
            f"{reciprocal_note(results.plan.metrics.values())}",
        )
        yield Table(
            "What each vector contributes",
            ("", *(column for regime in wholes for column in (f"{regime}: own", f"{regime}: others"))),
            [(task, *_contributions(task, wholes.values(), tasks)) for task in tasks],
            "Points of the test metric that the task's vector adds to the sum at the shared α: to its own "
            f"task, and on average to the others.{reciprocal_note(results.plan.metrics.values())}",
        )

    def charts(self, results: Results) -> Iterator[Chart]:
        tasks = results.plan.tasks
        gains = {
            regime: [[100 * fmean(whole.gain(task, on=on) for whole in of) for on in tasks] for task in tasks]
            for regime, of in whole_sums(results).items()
            if of[0].each
        }
        if gains:
            grids = [Map(regime, tasks, tasks, values) for regime, values in gains.items()]
            tint = Tint.around_zero([value for rows in chain(*gains.values()) for value in rows], "points")
            caption = (
                "What each vector (row) adds to the sum at the shared α on each task (column), points of the "
                f"test metric. {mean_of(len(results.plan.experiment.seeds))}"
            )
            yield Matrix(
                "contributions", caption, grids, tint, ".1f", across="on task", down="vector of", filed=False
            )


def _coefficients_of_each(regime: str, wholes: Sequence[Sum], plan: Plan) -> list[object]:
    each = [whole.each for whole in wholes if whole.each]
    return [
        regime,
        *(Range([edit.coefficients[task] for edit in each]) for task in plan.tasks),
        both(each, plan.metrics),
        both(wholes, plan.metrics),
    ]


def _contributions(task: str, regimes: Iterable[Sequence[Sum]], tasks: Sequence[str]) -> Iterator[Mean]:
    """To its own task and to the others, in points, for each regime."""
    for wholes in regimes:
        gains = [{other: whole.gain(task, on=other) for other in tasks} for whole in wholes]
        yield Mean([100 * gain.pop(task) for gain in gains], "+.1f")
        yield Mean([100 * fmean(gain.values()) for gain in gains], "+.1f")
