"""Scores of candidates, by what a user calls them."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from taskvec.arguments import distinct
from taskvec.code import named_callable, names_code
from taskvec.errors import InputError
from taskvec.evaluation.harness import HarnessSettings, harness_package
from taskvec.place import Precision
from taskvec.reading import exists, local_path
from taskvec.searching.command import CommandScore
from taskvec.searching.harness_score import LmEvalScore
from taskvec.searching.objective import Keep, Objective, Score
from taskvec.searching.own_score import FunctionScore, Judge
from taskvec.searching.resident import Residents
from taskvec.searching.several import Labelled, Several
from taskvec.searching.suite_score import SuiteScore
from taskvec.tasks.suite import load_suite, suite_names

__all__ = ["FunctionScore", "Judge", "Measuring", "open_scores", "parse_keep", "parse_weights"]

_HARNESS = ("lm_eval:", "lm-eval:")
_KEEP = re.compile(r"\s*(\S(?:.*\S)?)\s*([<>])=?\s*([-+]?[\d.]+(?:e[-+]?\d+)?)\s*(x?)\s*", re.IGNORECASE)


@dataclass(frozen=True)
class Measuring:
    """How candidates are measured, whatever by.

    Args:
        tasks: of the suite; all where none is named.
        limit: at most so many examples of a task, those that are held out among them.
        model: what is loaded, in place of the folder of the recipe's base.
        minimise: less of the number that a command prints, or a function returns, is better.
        timeout: seconds that a command may take.
        include, fewshot: for lm-eval, see ``HarnessSettings``.
    """

    tasks: tuple[str, ...] = ()
    limit: int | None = None
    batch_size: int | None = None
    precision: Precision = "float32"
    model: str | None = None
    device: str = "cpu"
    minimise: bool = False
    timeout: float | None = None
    include: str | None = None
    fewshot: int | None = None


def open_scores(
    scores: Sequence[str],
    command: str | None = None,
    measuring: Measuring = Measuring(),
    *,
    weigh: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> tuple[Score, Objective]:
    """What candidates are measured by, and what of that is maximized.

    Args:
        scores: each a suite by name or file, ``lm_eval:TASK,…``, or ``module:function``.
        command: a command with ``{model}`` in it.
        weigh: ``FIGURE=WEIGHT`` of what is summed; by default the main figure of each score.
        keep: floors, see ``parse_keep``.

    Raises: InputError; UnknownName; MissingExtra.
    """
    residents = Residents(measuring.model, measuring.device)
    found: list[Labelled] = [_open(text, measuring, residents) for text in scores]
    if command is not None:
        found.append(CommandScore(command, timeout=measuring.timeout, minimise=measuring.minimise))
    _check(found, measuring)
    weights, keeps = parse_weights(weigh), tuple(map(parse_keep, keep))
    if len(found) == 1:
        return found[0], Objective(weights, keeps)
    several = Several(tuple(found))
    return several, Objective(weights, keeps, several.labels)


def _open(text: str, how: Measuring, residents: Residents) -> Labelled:
    """The score that a user calls so."""
    if text.startswith(_HARNESS):
        return LmEvalScore(_asked(text, how), residents, precision=how.precision)
    if text not in suite_names() and names_code(text) and not exists(local_path(text)):
        judge, model, device = named_callable(text, "--score"), how.model, how.device
        return FunctionScore(judge, text, model=model, device=device, minimise=how.minimise)
    suite = load_suite(text)
    return SuiteScore(
        suite.name,
        [suite.task(name) for name in distinct(how.tasks or list(suite.tasks), "--task")],
        residents,
        limit=how.limit,
        batch_size=how.batch_size or 64,
        precision=how.precision,
    )


def _asked(text: str, how: Measuring) -> HarnessSettings:
    harness_package()  # before anything is computed
    names = [name for name in re.split(r"[,\s]+", text.partition(":")[2]) if name]
    given = {"include": how.include, "fewshot": how.fewshot, "limit": how.limit, "batch": how.batch_size}
    return HarnessSettings.parse(
        f"--score {text}",
        {"tasks": names, **{key: value for key, value in given.items() if value is not None}},
    )


def _check(scores: Sequence[Labelled], how: Measuring) -> None:
    """Refuse options that no score heeds. Raises: InputError."""
    if not scores:
        raise InputError(
            "--score: missing, expected what candidates are scored by: a suite, lm_eval:TASK, "
            "module:function; or --score-command"
        )
    kinds = {type(score) for score in scores}
    for option, given, heed in (
        ("--task", how.tasks, {SuiteScore}),
        ("--limit", how.limit, {SuiteScore, LmEvalScore}),
        ("--batch-size", how.batch_size, {SuiteScore, LmEvalScore}),
        ("--lm-eval-include", how.include, {LmEvalScore}),
        ("--lm-eval-fewshot", how.fewshot, {LmEvalScore}),
        ("--score-timeout", how.timeout, {CommandScore}),
        ("--minimise", how.minimise, {CommandScore, FunctionScore}),
        ("--model", how.model, {SuiteScore, LmEvalScore, FunctionScore}),
    ):
        if given and kinds.isdisjoint(heed):
            raise InputError(f"{option}: no score here heeds it; leave it out")


def parse_weights(pairs: Sequence[str]) -> dict[str, float]:
    """Weights by figure, of ``FIGURE=WEIGHT``. Raises: InputError.

    >>> parse_weights(["sst2=1", "wiki.perplexity=0.5"])
    {'sst2': 1.0, 'wiki.perplexity': 0.5}
    """
    weights: dict[str, float] = {}
    for pair in pairs:
        name, _, value = (part.strip() for part in pair.rpartition("="))
        weight = _number(value)
        if not name or weight is None:
            raise InputError(f"--weigh: {pair!r}, expected FIGURE=WEIGHT, such as accuracy=0.5")
        if name in weights:
            raise InputError(f"--weigh: {name!r} is given twice, expected each figure once")
        weights[name] = weight
    return weights


def parse_keep(text: str) -> Keep:
    """A floor: ``FIGURE>NUMBER`` or ``FIGURE<NUMBER``, or with ``x`` behind, in units of the start's.

    >>> parse_keep("perplexity < 1.05x")
    Keep(figure='perplexity', sign='<', bound=1.05, relative=True)

    Raises: InputError.
    """
    found = _KEEP.fullmatch(text)
    bound = None if found is None else _number(found[3])
    if found is None or bound is None:
        raise InputError(
            f"--keep: {text!r}, expected FIGURE>NUMBER or FIGURE<NUMBER, such as 'accuracy>0.8', or in units "
            "of the start's: 'perplexity<1.05x'"
        )
    return Keep(found[1], "<" if found[2] == "<" else ">", bound, relative=bool(found[4]))


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
