"""The page's part on coefficients: sliders where outputs are affine in them, measured points elsewhere."""

from collections.abc import Iterator, Mapping, Sequence
from statistics import fmean

from taskvec.errors import TaskvecError
from taskvec.reports.block import Block
from taskvec.reports.charts.lines import Curve, Dot, Lines, Plot
from taskvec.reports.charts.scales import Axis
from taskvec.reports.numbers import percent
from taskvec.reports.sliders import Missing, Sliders
from taskvec.reports.tables import Table
from taskvec.studies.addition import Sum
from taskvec.studies.explored import Explored
from taskvec.studies.numerics.affine import AffineScores, packed
from taskvec.studies.study import Results

_GRID = [round(-1 + 0.05 * place, 2) for place in range(61)]
"""Shared coefficients of the curves."""

Marks = Mapping[str, Sequence[float]]
Scores = Mapping[str, AffineScores]


def slider_blocks(results: Results) -> Iterator[Block]:
    """Sliders, a chart and a table for every regime that was explored, or why they are not there."""
    seed = results.plan.experiment.seeds[0]
    for regime in results.plan.experiment.regimes:
        for explored in results.of(Explored, regime, seed):
            yield from _of_regime(regime, explored, results, seed)


def _of_regime(regime: str, explored: Explored, results: Results, seed: int) -> Iterator[Block]:
    title = f"Coefficients of {regime}"
    if results.folder is None or not explored.tasks:
        yield Missing(title, f"No sliders. {_left_out(explored) or 'The run folder is not at hand.'}")
        return
    try:
        scores = explored.scores(results.folder)
    except TaskvecError as error:
        remedy = "Remove its record of kind 'explore' from records.jsonl and run the experiment again."
        yield Missing(title, f"No sliders: {error}. {remedy}")
        return
    marks = _marks(explored.vectors, _whole(results, regime, seed))
    yield _sliders(title, explored, scores, marks)
    yield _curves(regime, len(explored.vectors), scores)
    yield _table(regime, explored, scores, marks)


def _sliders(title: str, explored: Explored, scores: Scores, marks: Marks) -> Sliders:
    vectors = explored.vectors
    note = (
        "Outputs in tangent space are affine in the coefficients, so these accuracies are computed, not "
        f"interpolated: those of an evaluation at the same point, on {_examples(explored)}."
    )
    tasks = [_task(task, vectors.index(task), len(vectors), of) for task, of in scores.items()]
    start = marks.get("best shared α", [1 / len(vectors)] * len(vectors))
    words = " ".join(filter(None, (note, _differing(explored), _left_out(explored))))
    return Sliders(title, words, vectors, tasks, list(marks.items()), start)


def _task(name: str, own: int, count: int, scores: AffineScores) -> dict[str, object]:
    """A task's numbers, and its accuracy before any step and with its own vector."""
    zero, alone = (scores.accuracy(at) for at in ([0.0] * count, _alone(own, count)))
    told = {"zero": round(100 * zero, 1), "alone": round(100 * alone, 1)}
    return {"name": name, "own": own, **told, **packed(scores)}


def _alone(own: int, count: int) -> list[float]:
    return [float(place == own) for place in range(count)]


def _curves(regime: str, count: int, scores: Scores) -> Lines:
    """Every task along one coefficient for all vectors."""
    curves = [
        Curve(task, [Dot(a, [100 * of.accuracy([a] * count)]) for a in _GRID]) for task, of in scores.items()
    ]
    caption = f"Accuracy of each task in {regime} with one coefficient for every vector, computed as above."
    plot = Plot("", Axis("α of every vector"), Axis("accuracy, %", low=0, high=100), curves)
    return Lines(f"explore-{regime}", caption, [plot])


def _table(regime: str, explored: Explored, scores: Scores, marks: Marks) -> Table:
    vectors = explored.vectors
    columns = {label: [of.accuracy(at) for of in scores.values()] for label, at in marks.items()}
    columns["own vector alone"] = [
        of.accuracy(_alone(vectors.index(task), len(vectors))) for task, of in scores.items()
    ]
    rows = [(task, *(percent([of[place]]) for of in columns.values())) for place, task in enumerate(scores)]
    means = ("mean", *(percent([fmean(of)]) for of in columns.values()))
    note = (
        f"Accuracy, per cent, on {_examples(explored)}. The best coefficients are those of validation data."
    )
    return Table(f"Accuracy at some coefficients, {regime}", ("", *columns), [*rows, means], note)


def _marks(vectors: Sequence[str], whole: Sum | None) -> Marks:
    """Coefficients that readers want to see, by what they are called."""
    count = len(vectors)
    marks = {"α = 0": [0.0] * count}
    if count > 1:
        marks["α = 1/T"] = [1 / count] * count
    if whole:
        marks["best shared α"] = [whole.coefficient] * count
        if whole.each:
            marks["best α of each"] = [whole.each.coefficients[vector] for vector in vectors]
    return {**marks, "α = 1": [1.0] * count}


def _whole(results: Results, regime: str, seed: int) -> Sum | None:
    """The sum of all tasks, if addition was on."""
    sums = [of for of in results.of(Sum, regime, seed) if len(of.tasks) == len(results.plan.tasks)]
    return sums[-1] if sums else None


def _examples(explored: Explored) -> str:
    """How many, of how many."""
    kept = [sample.examples for sample in explored.tasks.values()]
    whole = [sample.of for sample in explored.tasks.values()]
    if kept == whole:
        return f"all {_range(whole)} test examples of each task, first seed"
    return f"{_range(kept)} of {_range(whole)} test examples of each task, drawn at random, first seed"


def _range(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def _differing(explored: Explored) -> str:
    """How often the evaluation, in float32, predicted another class; nothing where never."""
    differing = sum(sample.differing for sample in explored.tasks.values())
    compared = sum(3 * sample.examples for sample in explored.tasks.values())
    few = f"Of {compared:,} predictions that were compared with its own, {differing} differ, by rounding."
    return few if differing else ""


def _left_out(explored: Explored) -> str:
    """Tasks that are not shown, and why."""
    reasons = "; ".join(f"{task} {reason}" for task, reason in explored.left_out.items())
    return f"Left out: {reasons}." if reasons else ""


def measured_blocks(results: Results) -> Iterator[Block]:
    """The points of the search for one coefficient, of regimes in ordinary space."""
    curves = list(_traces(results))
    if curves:
        caption = (
            "Mean normalized validation metric of the sum of all tasks' vectors at the coefficients that the "
            "search measured, first seed. Outputs in ordinary space are not affine in α: dashed lines are "
            "between measured points, where nothing was measured."
        )
        plot = Plot("", Axis("α of every vector"), Axis("normalized, %"), curves)
        yield Lines("explore-measured", caption, [plot])


def _traces(results: Results) -> Iterator[Curve]:
    experiment = results.plan.experiment
    for regime in experiment.regimes:
        whole = _whole(results, regime, experiment.seeds[0])
        if whole and experiment.space(regime) == "ordinary":
            points = [Dot(a, [100 * height], "measured") for a, height in whole.trace if height is not None]
            if points:
                yield Curve(regime, points, dashed=True)
