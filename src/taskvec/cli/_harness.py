"""What ``eval`` asks of lm-evaluation-harness, and how its figures are shown."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from taskvec.cli._common import print_table
from taskvec.errors import InputError

if TYPE_CHECKING:
    from taskvec.evaluation.harness import HarnessScore, HarnessSettings


def asked_of_harness(
    tasks: Sequence[str], include: str | None, fewshot: int | None, limit: int | None, batch: int | None
) -> "HarnessSettings | None":
    """The settings that options make; none without tasks. Raises: InputError; MissingExtra."""
    names = [name for part in tasks for name in part.split(",") if name]
    if not names and (include is not None or fewshot is not None):
        raise InputError("--lm-eval-include, --lm-eval-fewshot: for tasks of --lm-eval, and none is given")
    if not names:
        return None
    from taskvec.evaluation.harness import HarnessSettings, harness_package

    harness_package()  # before anything is computed
    given = {"tasks": names, "include": include, "fewshot": fewshot, "limit": limit, "batch": batch}
    return HarnessSettings.parse(
        "--lm-eval", {key: value for key, value in given.items() if value is not None}
    )


def print_harnessed(title: str, scores: "Mapping[str, HarnessScore]") -> None:
    """A row a metric: value, standard error, examples."""
    rows = [
        [task, metric, f"{figure.value:.4g}", _short(figure.stderr), score.examples or ""]
        for task, score in scores.items()
        for metric, figure in score.metrics.items()
    ]
    print_table(title, ["task", "metric", "value", "±", "examples"], rows)


def _short(error: float | None) -> str:
    return "" if error is None else f"{error:.2g}"
