"""Charts of methods side by side."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from taskvec.reports.charts.chart import Chart
from taskvec.reports.charts.dots import Dots, Rows
from taskvec.reports.charts.dots import Row as Line
from taskvec.reports.charts.lines import Curve, Dot, Lines, Plot
from taskvec.reports.charts.matrix import Map, Matrix, Tint
from taskvec.reports.charts.scales import Axis
from taskvec.studies.charting import Unit, mean_of, measures, of_seeds, unit_of
from taskvec.studies.compared.records import Row, groups_of
from taskvec.studies.compared.tables import learned_coefficient, learned_of

Metrics = Mapping[str, str]


def charts_of(rows: Sequence[Row], metrics: Metrics, name: str, regime: str) -> Iterator[Chart]:
    """Of one regime.

    Args:
        name: what opens the names of the charts.
    """
    if not rows:
        return
    yield _side_by_side(rows, metrics, name, regime)
    if (unit := unit_of(metrics.values())) and any(_seconds(row) for row in rows):
        yield _against_seconds(rows, unit, f"{name}-seconds", regime)
    single = next((row for row in rows if row.name == "single models"), None)
    if single:
        yield _by_task(rows, single, metrics, f"{name}-tasks", regime)
    if learned := learned_of(rows):
        yield _coefficients(learned, metrics, f"{name}-coefficients", regime)
        if layered := [row for row in learned if _layers(row)]:
            yield _by_layer(layered, list(metrics), f"{name}-layers", regime)


def _label(row: Row) -> str:
    return row.name if row.how == "none" else f"{row.name}  α {row.alpha}"


def _side_by_side(rows: Sequence[Row], metrics: Metrics, name: str, regime: str) -> Dots:
    parts = []
    for measure, unit in measures(metrics.values()).items():
        values = {id(row): unit.of([getattr(outcome, measure) for outcome in row.outcomes]) for row in rows}
        groups = {
            f"consumed: {head}": [Line(_label(row), {"": values[id(row)]}) for row in of]
            for head, of in groups_of(rows).items()
        }
        levels = {row.name: fmean(values[id(row)]) for row in rows if row.name == "zero-shot"}
        parts.append(Rows(measure, unit.axis(measure), groups, levels))
    caption = (
        f"Methods side by side, {regime}: mean over tasks, by what each consumed; the line: zero-shot. "
        f"{of_seeds(len(rows[0].outcomes))}"
    )
    return Dots(name, caption, parts)


def _seconds(row: Row) -> list[float]:
    """Of making it, above 0, one a seed."""
    return [of.seconds for of in row.of if of.seconds]


def _against_seconds(rows: Sequence[Row], unit: Unit, name: str, regime: str) -> Lines:
    curves = []
    for head, of in groups_of(rows).items():
        points = [
            Dot(fmean(seconds), unit.of([outcome.absolute for outcome in row.outcomes]), _label(row))
            for row in of
            if (seconds := _seconds(row))
        ]
        curves += [Curve(f"consumed: {head}", points, joined=False)] if points else []
    caption = (
        f"What a method gives against the seconds of making it once, {regime}; vectors are there already. "
        f"{of_seeds(len(rows[0].outcomes))}"
    )
    plot = Plot("", Axis("seconds of making it", log=True), unit.axis("mean test metric"), curves)
    return Lines(name, caption, [plot], filed=False)


def _by_task(rows: Sequence[Row], single: Row, metrics: Metrics, name: str, regime: str) -> Matrix:
    tasks = list(metrics)
    grids = [
        Map(
            f"consumed: {head}",
            [_label(row) for row in of],
            tasks,
            [[fmean(_relative(row, single, task)) for task in tasks] for row in of],
        )
        for head, of in groups_of(rows).items()
    ]
    values = [value for grid in grids for row in grid.values for value in row]
    caption = (
        f"Each method on each task, {regime}: per cent of the task's own model, by what was consumed. "
        f"{mean_of(len(single.outcomes))}"
    )
    tint = Tint.between(values, "% of the single model", high=max([100.0, *filter(None, values)]))
    return Matrix(name, caption, grids, tint, ".0f", across="task", down="method", filed=False)


def _relative(row: Row, single: Row, task: str) -> list[float]:
    """What a row gives on a task, in per cent of the task's own model, one a seed."""
    pairs = zip(row.outcomes, single.outcomes, strict=True)
    return [
        100 * mine.values[task] / own.values[task] if own.values[task] > 0 else 0.0 for mine, own in pairs
    ]


def _coefficients(rows: Sequence[Row], metrics: Metrics, name: str, regime: str) -> Matrix:
    tasks = list(metrics)
    values = [[fmean(learned_coefficient(row, task)) for task in tasks] for row in rows]
    caption = (
        f"Learned coefficients of the tasks' vectors, {regime}; of several a task, their mean. "
        f"{mean_of(len(rows[0].outcomes))}"
    )
    tint = Tint.around_zero([value for of in values for value in of], "coefficient", least=0.5)
    grid = Map("", [_label(row) for row in rows], tasks, values)
    return Matrix(name, caption, [grid], tint, ".2f", across="vector of", down="method")


def _layers(row: Row) -> list[str]:
    """What a row has a coefficient for in each task's vector, such as layers; none where there is one."""
    first = next(iter(row.of[0].facts["coefficients"].values()), None)
    return list(first) if isinstance(first, Mapping) and len(first) > 1 else []


def _by_layer(rows: Sequence[Row], tasks: Sequence[str], name: str, regime: str) -> Matrix:
    grids = []
    for row in rows:
        learned = [of.facts["coefficients"] for of in row.of]
        layers = _layers(row)
        values = [[_mean([of[task].get(layer) for of in learned]) for layer in layers] for task in tasks]
        grids.append(Map(_label(row), tasks, layers, values))
    tint = Tint.around_zero(
        [value for grid in grids for of in grid.values for value in of], "coefficient", least=0.5
    )
    seeds = mean_of(len(rows[0].outcomes))
    caption = f"Learned coefficients by layer, {regime}, from the first to the last. {seeds}"
    return Matrix(name, caption, grids, tint, "", across="layers", down="vector of", filed=False)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None
