"""Task addition: several skills in one model."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.metrics import absolute, normalized
from taskvec.evaluation.points import Point, Points
from taskvec.evaluation.search import Grid, search_addition, search_each
from taskvec.tasks.source import SplitName

Values = Mapping[str, float]


@checked
def single_task(evaluator: Evaluator, points: Points, tasks: Sequence[str]) -> dict[str, dict[str, float]]:
    """Value of each task's own vector at coefficient 1, on validation and test: ``{split: {task: value}}``.

    These are the denominators of normalized accuracy for every edit of the same regime. The points' vectors
    carry the names of the tasks.
    """
    found: dict[SplitName, dict[str, float]] = {"validation": {}, "test": {}}
    for task in tasks:
        params = points.at({task: 1.0})
        for split, values in found.items():
            values[task] = evaluator.score(params, task, split).value
    return {str(split): values for split, values in found.items()}


@checked
def addition(
    evaluator: Evaluator,
    points: Points,
    tasks: Sequence[str],
    single: Mapping[str, Values],
    grid: Grid | None = None,
    fixed: Mapping[str, float] | None = None,
    each: bool = False,
) -> dict[str, object]:
    """Add the vectors of ``tasks`` with one shared coefficient and measure the sum on each of them.

        theta = theta_0 + alpha * sum_t tau_t,   alpha = argmax of the mean normalized validation accuracy

    Args:
        points: vectors under the names of the tasks.
        single: from :func:`single_task`, same regime.
        fixed: further coefficients to report without search, by label (such as ``{"1": 1.0}``).
        each: also search a coefficient for every task, and leave out one task after another. Some hundred
            points, so for tangent space, where a point is nearly free.

    Returns: the record: coefficient and search, test scores by task, ``absolute`` and ``normalized``.
    Raises: InputError for fewer than two tasks, or a task twice.
    Source: Ilharco et al. 2022 (arXiv:2212.04089), section 4.
    """
    if len(set(tasks)) != len(tasks) or len(tasks) < 2:
        raise InputError(f"addition needs two or more distinct tasks, not {list(tasks)}")

    def shared(alpha: float) -> Point:
        # With a coefficient each to come, the vectors by themselves are needed, and their sum is not.
        return points.at(dict.fromkeys(tasks, alpha)) if each else points.shared(tasks, alpha)

    found = search_addition(
        lambda alpha: evaluator.values(shared(alpha), tasks, "validation"), single["validation"], grid
    )
    scores = evaluator.scores(shared(found.coefficient), tasks, "test")
    values = {task: score.value for task, score in scores.items()}
    best = dict.fromkeys(tasks, found.coefficient)
    return {
        "tasks": list(tasks),
        **found.record(),
        "test": {task: score.record() for task, score in scores.items()},
        **_both(values, single["test"]),
        "fixed": {
            label: {
                "coefficient": alpha,
                **_both(evaluator.values(shared(alpha), tasks, "test"), single["test"]),
            }
            for label, alpha in (fixed or {}).items()
        },
        **({"each": _each(evaluator, points, best, single, grid)} if each else {}),
        **({"without": _without(evaluator, points, best, single)} if each else {}),
    }


def _each(
    evaluator: Evaluator,
    points: Points,
    shared: Mapping[str, float],
    single: Mapping[str, Values],
    grid: Grid | None,
) -> dict[str, object]:
    """The best coefficient of every task, searched from the shared one, and what it gives on test."""
    found = search_each(
        lambda at: evaluator.values(points.at(at), shared, "validation"), single["validation"], shared, grid
    )
    values = evaluator.values(points.at(found.coefficients), shared, "test")
    return {**found.record(), **_both(values, single["test"])}


def _without(
    evaluator: Evaluator, points: Points, shared: Mapping[str, float], single: Mapping[str, Values]
) -> dict[str, object]:
    """Test figures of the sum with one task's vector left out, by that task."""
    left = {task: {other: a for other, a in shared.items() if other != task} for task in shared}
    return {
        task: _both(evaluator.values(points.at(others), shared, "test"), single["test"])
        for task, others in left.items()
    }


def subsets(tasks: Sequence[str], which: str) -> Iterator[tuple[str, ...]]:
    """The subsets an experiment adds: ``"all"`` of two or more, ``"pairs"`` and the whole, or ``"whole"``.

    Raises: InputError for another word.
    """
    sizes = {
        "all": range(2, len(tasks) + 1),
        "pairs": sorted({2, len(tasks)}),
        "whole": [len(tasks)],
    }
    if which not in sizes:
        raise InputError(f"subsets: {which!r} is not one of {', '.join(sizes)}")
    for size in sizes[which]:
        yield from combinations(tasks, size)


def _both(values: Values, single: Values) -> dict[str, object]:
    """Absolute and normalized, always side by side: normalized alone rewards weak single-task models."""
    return {"absolute": absolute(values), "normalized": normalized(values, single), "values": dict(values)}
