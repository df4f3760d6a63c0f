"""Task analogy: A is to B as C is to D, with D's own data never trained on."""

from collections.abc import Callable, Mapping, Sequence

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import Points
from taskvec.evaluation.search import Grid, Search, maximize

Validation = Callable[[Mapping[str, float]], dict[str, float]]


@checked
def analogy(
    evaluator: Evaluator,
    points: Points,
    *,
    a: str,
    b: str,
    c: str,
    target: str,
    coefficients: int = 1,
    reference: str | None = None,
    grid: Grid | None = None,
) -> dict[str, object]:
    """Predict the fourth vector, ``tau_d = tau_c + (tau_b - tau_a)``, and measure it on the target task.

    Args:
        points: vectors by label; ``a``, ``b``, ``c`` (and ``reference``) are labels.
        target: the task D. Its validation labels choose coefficients, nothing is trained on it.
        coefficients: 1 scales each expression as a whole; 2 scales ``c`` and ``b - a`` separately, and
            likewise the two terms of the plain sum it is compared with.
        reference: label of the vector trained on D itself, the upper reference, if there is one.

    Returns: the record: one row a model (pre-trained, each known neighbour ``b`` and ``c`` alone, their plain
        sum, the analogy, the reference), all but the first and last with coefficients searched alike.
    Raises: InputError unless ``a``, ``b`` and ``c`` are three vectors.
    Source: Ilharco et al. 2022 (arXiv:2212.04089), section 5.
    """
    if len({a, b, c}) < 3:
        raise InputError(f"an analogy needs three different vectors, not a={a!r}, b={b!r}, c={c!r}")
    grid = grid or Grid()

    def validation(weights: Mapping[str, float]) -> dict[str, float]:
        return evaluator.values(points.at(weights), [target], "validation")

    def row(weights: Mapping[str, float], searches: Sequence[Search] = ()) -> dict[str, object]:
        score = evaluator.score(points.at(weights), target, "test")
        searched = {"searches": [found.record() for found in searches]} if searches else {}
        return {"coefficients": dict(weights), "value": score.value, "score": score.record(), **searched}

    def best(*groups: Mapping[str, float]) -> tuple[dict[str, float], list[Search]]:
        return _search(groups, coefficients, validation, target, grid)

    rows: dict[str, dict[str, object]] = {"pretrained": row({})}
    for label in (c, b):
        rows[label] = row(*best({label: 1.0}))
    rows[f"{c} + {b}"] = row(*best({c: 1.0}, {b: 1.0}))
    rows[f"{c} + ({b} - {a})"] = row(*best({c: 1.0}, {b: 1.0, a: -1.0}))
    if reference is not None:
        rows[f"{reference} (trained)"] = row({reference: 1.0})
    return {"a": a, "b": b, "c": c, "target": target, "rows": rows}


def _search(
    groups: Sequence[Mapping[str, float]], coefficients: int, validation: Validation, target: str, grid: Grid
) -> tuple[dict[str, float], list[Search]]:
    """One coefficient for all groups; if each has its own, two sweeps over them with the others held.

    A sweep moves a coefficient only to a strictly better place, so two are never worse than one on validation
    data; the best pair of the plane may be another. Returns the coefficients, and every search on the way.
    """
    whole = {label: weight for group in groups for label, weight in group.items()}

    def along(moved: Mapping[str, float], held: Mapping[str, float]) -> tuple[dict[str, float], Search]:
        def at(alpha: float) -> dict[str, float]:
            return {**held, **{label: alpha * weight for label, weight in moved.items()}}

        found = maximize(lambda values: values[target], lambda alpha: validation(at(alpha)), grid)
        return at(found.coefficient), found

    weights, found = along(whole, {})
    best, searches = found.values[target], [found]
    if coefficients == 2 and len(groups) == 2:
        for group in (*groups, *groups):
            moved, found = along(group, weights)
            searches.append(found)
            if found.values[target] > best:
                weights, best = moved, found.values[target]
    return weights, searches
