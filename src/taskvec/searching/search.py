"""A search from a recipe to the best one, in a folder of its own."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from taskvec.arguments import checked
from taskvec.config import read_documents
from taskvec.edits.named import Known, none_known
from taskvec.edits.variants import is_mergekit, variants
from taskvec.errors import InputError
from taskvec.progress import Watch, unwatched
from taskvec.reading import exists, local_path
from taskvec.searching.evolve import is_evolution, translate
from taskvec.searching.loop import Found, Searching
from taskvec.searching.measuring import Here, Measurer
from taskvec.searching.objective import Keep, Objective, Score
from taskvec.searching.optimisers import axes, check_method
from taskvec.searching.scores import FunctionScore, Judge, open_scores, parse_keep
from taskvec.searching.settings import Method, SearchSettings
from taskvec.searching.space import Varied, open_space, parse_vary
from taskvec.searching.trace import Trace
from taskvec.searching.workers import Making, working
from taskvec.urls import is_url, said, without_secrets
from taskvec.weights.opening import with_part
from taskvec.writing import replace_text

Vary = Mapping[str, tuple[float, float] | Varied] | Sequence[str]


@checked
def search(
    recipe: str | Path | Mapping[str, Any],
    vary: Vary = (),
    score: Score | Judge | str | None = None,
    *,
    weigh: Mapping[str, float] | None = None,
    keep: Sequence[Keep | str] = (),
    method: Method = "cmaes",
    evaluations: int | None = None,
    time: float | str | None = None,
    points: int | None = None,
    seed: int = 0,
    folder: str | Path | None = None,
    force: bool = False,
    workers: int = 1,
    known: Known = none_known,
    watch: Watch = unwatched,
) -> Found:
    """The numbers of a recipe that score best.

    The recipe's own numbers are measured first, and what is found is never worse than they are on the part of
    the data that the search sees.

    Args:
        recipe: a file, ours or mergekit's, with ``{search: [LOW, HIGH]}`` in place of numbers if it likes; or
            its plain data, with paths from the working directory.
        vary: path of a number -> its range, ``{"scale": (0.2, 1.2)}``; or texts, ``"scale=0.2..1.2"``.
        score: measures candidates: a suite by name or file, ``lm_eval:TASK``; or a function, which is given
            the edited ``weights``, a lazy mapping, or the loaded ``model``, by the names of its parameters,
            and returns a number or named ones, of which more is better.
        weigh: figure -> its weight in the sum that is maximized; by default the first figure alone.
        keep: floors, such as ``"perplexity<1.05x"``; a candidate that breaks one ranks below all that do not.
        method, evaluations, time, points, seed: see ``SearchSettings``.
        folder: keeps every evaluation as it is made; a search that was interrupted goes on there. By default
            nothing is kept.
        force: remove what an earlier search left in the folder.
        workers: processes that measure candidates at the same time, to the bit those of one; each makes the
            score for itself, and holds a model of its own.
        known: the path or hub id that a short name in the recipe stands for.

    Raises: InputError for what does not fit, before anything is measured; TaskvecError if the recipe's own
        numbers cannot be measured.
    """
    if score is None:
        raise InputError("search: score is missing, expected a score or a function of the edited weights")
    settings = SearchSettings.parse(
        "search", {"method": method, "evaluations": evaluations, "time": time, "points": points, "seed": seed}
    )
    floors = tuple(floor if isinstance(floor, Keep) else parse_keep(floor) for floor in keep)
    objective = Objective(dict(weigh or {}), floors)
    return search_with(
        recipe,
        vary,
        _scored(score),
        objective,
        settings,
        folder=folder,
        force=force,
        workers=workers,
        again=partial(_scored, score),
        known=known,
        watch=watch,
    )


def _scored(score: Score | Judge | str) -> Score:
    if isinstance(score, str):
        return open_scores([score])[0]
    if callable(score):
        return FunctionScore(score, getattr(score, "__qualname__", type(score).__name__))
    return score


def search_with(
    recipe: str | Path | Mapping[str, Any],
    vary: Vary,
    score: Score,
    objective: Objective,
    settings: SearchSettings,
    *,
    folder: str | Path | None = None,
    force: bool = False,
    workers: int = 1,
    again: Callable[[], Score] | None = None,
    known: Known = none_known,
    watch: Watch = unwatched,
) -> Found:
    """As ``search``, with what its arguments make.

    Args:
        again: makes the score in each worker; by default it is handed over as it is.
    """
    where, home, content = _read(recipe)
    space = open_space(where, content, _ranges(vary))
    check_method(settings, space)
    place = None if folder is None else Path(folder)
    trace = Trace(place)
    trace.check()
    if force and place is not None and not isinstance(recipe, Mapping):
        trace.check_not_removed(Path(recipe))
    making = Making(space.recipe(space.start), where, home, known, again or partial(_scored, score))
    if workers != 1:
        _check_workers(making, workers)
    variant = variants(making.recipe, where=where, folder=home, known=known)
    searching = Searching(space, variant, score, objective, settings, trace, watch)
    if not is_mergekit(space.content):  # each of those opens its inputs anew
        searching.check_ranges()
    with trace.locked(_key(searching), fresh=force):
        with _measuring(making, searching, workers) as measurer:
            found = searching.run(measurer)
        found = replace(found, recipe=located(found.recipe, home))
        if place is not None:
            replace_text(place / "best.yaml", _written(found))
    return found


def _check_workers(making: Making, count: int) -> None:
    """Refuse what no workers can do. Raises: InputError."""
    if count < 1:
        raise InputError(f"workers: {count}, expected 1 or more")
    making.check()


def _measuring(making: Making, searching: Searching, count: int) -> AbstractContextManager[Measurer]:
    place = searching.trace.folder
    if count > 1:
        return working(making, count, place)
    return nullcontext(Here(searching.variant, searching.score, place))


def _read(recipe: str | Path | Mapping[str, Any]) -> tuple[str, Path, dict[str, Any]]:
    """What messages call a recipe, the folder that its paths are relative to, and its plain data."""
    if isinstance(recipe, Mapping):
        return "recipe", Path(), _plain("recipe", recipe)
    path = Path(recipe)
    documents = read_documents(path)
    if len(documents) > 1:
        raise InputError(f"{path}: {len(documents)} documents, expected one recipe")
    [content] = documents
    if not isinstance(content, dict):
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise InputError(f"{path}: {kind}, expected a recipe: keys and values")
    return str(path), path.parent, _plain(str(path), content)


def _plain(where: str, content: Mapping[str, Any]) -> dict[str, Any]:
    return translate(where, content) if is_evolution(content) else dict(content)


def _ranges(vary: Vary) -> dict[str, Varied]:
    if not isinstance(vary, Mapping):
        return parse_vary(list(vary))
    return {
        path: given if isinstance(given, Varied) else Varied.parse(f"vary {path}", {"search": given})
        for path, given in vary.items()
    }


def _key(searching: Searching) -> dict[str, Any]:
    """Everything that decides the candidates and their figures; the budget does not."""
    space, settings = searching.space, searching.settings
    start = searching.variant(space.recipe(space.start))
    grid = [len(axis) for axis in axes(space, settings)] if settings.method == "grid" else []
    return {
        "recipe": without_secrets(space.recipe(space.start)),
        "inputs": {name: weights.fingerprint() for name, weights in start.inputs.items()},
        "vary": space.record(),
        "score": dict(searching.score.key),
        "objective": searching.objective.record(),
        "method": settings.method,
        **({"points": grid} if grid else {"seed": settings.seed}),
    }


def _written(found: Found) -> str:
    """The best recipe as a file."""
    start, best = found.start.worth.objective, found.best.worth.objective
    head = (
        f"# Found by taskvec search: {best:.6g}, from {start:.6g} with the recipe's own numbers.\n"
        f"# Evaluation {found.best.number} of {len(found.evaluations)}, see evaluations.jsonl.\n"
    )
    return head + yaml.safe_dump(found.recipe, sort_keys=False, allow_unicode=True, width=100)


def located(recipe: Mapping[str, Any], home: Path) -> dict[str, Any]:
    """A recipe with absolute paths in place of those relative to a folder; hub ids and names stay."""
    if is_mergekit(recipe):
        return {key: _foreign(key, value) for key, value in recipe.items()}
    content = dict(recipe)
    for field in ("vectors", "models", "statistics"):
        if field in content:
            content[field] = {name: _absolute(ref, home) for name, ref in content[field].items()}
    if content.get("base") is not None:
        content["base"] = _absolute(content["base"], home)
    return content


def _absolute(ref: str, home: Path) -> str:
    if is_url(ref):
        return said(ref)
    path = home / local_path(ref)
    return str(path.absolute()) if exists(with_part(path)[0]) else ref


def _foreign(key: str, value: Any) -> Any:
    """The same in a file of mergekit, whose paths are relative to the working directory."""
    if isinstance(value, Mapping):
        return {name: _foreign(name, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_foreign(key, inner) for inner in value]
    if key in ("model", "base_model", "models") and isinstance(value, str):
        return "+".join(str(Path(part).absolute()) if exists(part) else part for part in value.split("+"))
    return value
