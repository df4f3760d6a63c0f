"""``taskvec search``."""

from functools import partial
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from cyclopts.validators import Number

from taskvec.cli._common import Json, Quiet, flattened, print_json, say, watching
from taskvec.cli._editing import known_ref
from taskvec.cli._running import Fresh, Output, print_tables
from taskvec.cli._scoring import Scoring
from taskvec.searching.settings import SearchSettings

_UNSCORED = Scoring()
_DEFAULTS = SearchSettings()


def search(
    recipe: Path,
    /,
    *,
    vary: Annotated[tuple[str, ...], Parameter(negative=())] = (),
    scoring: Annotated[Scoring, flattened()] = _UNSCORED,
    settings: Annotated[SearchSettings, flattened()] = _DEFAULTS,
    output: Output,
    workers: Annotated[int, Parameter(validator=Number(gte=1))] = 1,
    force: Fresh = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Search the numbers of a recipe that score best: coefficients, densities, values along the depth.

    The recipe's own numbers are measured first, and what is found is never worse than they are. Every
    candidate is a line of `evaluations.jsonl` in the run folder: interrupt the search and run it again, and
    it goes on where it was. It ends with `best.yaml`, a plain recipe for `taskvec merge`, a report, figures.

    Examples: `taskvec search recipe.yaml --vary "weights.*=0..1.5" --score my.py:accuracy -o runs/mine`, then
    `taskvec merge runs/mine/best.yaml -o OUT`; with more to vary, and half an hour for it,
    `--vary "scale=0.2..1.2" --vary "parameters.keep=0.05..0.5" --time 30m`.

    Args:
        recipe: A YAML file, ours or mergekit's, or a file of mergekit-evolve. In place of a number it may say
            `{search: [0, 1.5]}`, with `integer: true` for whole numbers, or `{choices: [A, B]}`.
        vary: `PATH=LOW..HIGH` of a number of the recipe, `PATH=LOW..HIGH:integer`, or `PATH=A|B|C`; any
            number. `weights.NAME` is the coefficient of a vector or model, `weights.*` that of each; further
            paths are `scale`, `scale.1` (of a gradient the anchor, of filters the value, from 0 on), and
            `parameters.NAME` of the rule.
        output: The run folder. One that holds the same search is gone on with, with a larger budget too.
        workers: Processes that measure candidates at the same time, to the bit as one process does. Each
            holds a model of its own in memory, or, for `--score-command`, writes one to disk.
        force: Remove what an earlier search left in the folder and start anew.
    """
    from taskvec.searching.report import tables_of, write_report
    from taskvec.searching.search import search_with

    score, objective = scoring.opened(recipe)
    with watching(quiet) as watch:
        try:
            found = search_with(
                recipe,
                vary,
                score,
                objective,
                settings,
                folder=output,
                force=force,
                workers=workers,
                again=partial(scoring.score_of, recipe),
                known=known_ref,
                watch=watch,
            )
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"interrupted; the same command goes on where it was, in {output}"
            ) from None
    write_report(found, output)
    if json:
        print_json(found.record())
        return
    say(found.remarks())
    print_tables(tables_of(found), f"{output / 'best.yaml'}, report.md, results.json, evaluations.jsonl")
