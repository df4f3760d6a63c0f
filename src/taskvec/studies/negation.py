"""Task negation: forget one task, keep the others."""

from collections.abc import Mapping, Sequence

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.metrics import Score, absolute
from taskvec.evaluation.points import Points
from taskvec.evaluation.search import Grid, search_negation


@checked
def negation(
    evaluator: Evaluator,
    points: Points,
    target: str,
    controls: Sequence[str],
    *,
    subtract: Sequence[str],
    measure: Sequence[str] = (),
    grid: Grid | None = None,
    keep: float = 0.95,
) -> dict[str, object]:
    """Subtract vectors from the pre-trained model until the target is forgotten or the controls suffer.

        theta = theta_0 - alpha * tau,   alpha = argmin of the target's validation value
                                         subject to controls >= keep * controls of theta_0

    Args:
        points: vectors by label.
        target: the task to forget.
        controls: tasks to keep; the constraint is on their mean.
        subtract: labels of vectors to subtract with a searched coefficient: the target's own task vector, and
            a random vector of the same norms as the baseline.
        measure: labels of vectors to add at coefficient 1 for comparison: the fine-tuned model, the one
            trained by gradient ascent.

    Returns: the record: one row a model (``pretrained``, then every label), each with the target's and the
        controls' test scores; rows of ``subtract`` hold their search, and say so when nothing satisfied it.
    Raises: InputError if the target is among the controls or there is no control.
    Source: Ilharco et al. 2022 (arXiv:2212.04089), section 3.
    """
    if target in controls or not controls:
        raise InputError(
            f"negation of {target!r} needs control tasks other than itself, not {list(controls)}"
        )
    tasks = [target, *controls]
    before = evaluator.values(points.at({}), tasks, "validation")
    rows = {"pretrained": _row(evaluator.scores(points.at({}), tasks, "test"), target)}
    for label in measure:
        rows[label] = _row(evaluator.scores(points.at({label: 1.0}), tasks, "test"), target)
    for label in subtract:
        found = search_negation(
            lambda alpha, label=label: evaluator.values(points.at({label: -alpha}), tasks, "validation"),  # type: ignore[misc]
            target,
            before,
            grid,
            keep,
        )
        scores = evaluator.scores(points.at({label: -found.coefficient}), tasks, "test")
        rows[f"negative {label}"] = {**found.record(), **_row(scores, target)}
    return {"target": target, "controls": list(controls), "keep": keep, "rows": rows}


def _row(scores: Mapping[str, Score], target: str) -> dict[str, object]:
    kept = {task: score.value for task, score in scores.items() if task != target}
    return {
        "target": scores[target].value,
        "control": absolute(kept),
        "controls": kept,
        "target_recall": scores[target].recall,
        "target_score": scores[target].record(),
    }
