"""Recipes that differ in their numbers only: their inputs are opened and matched once."""

from collections.abc import Callable, Mapping
from pathlib import Path

from taskvec.edits.inputs import errors_at
from taskvec.edits.merge import Merge
from taskvec.edits.named import Known, none_known
from taskvec.edits.recipe import Building, Recipe, check_fields
from taskvec.vectors.checks import Fit

Content = Mapping[str, object]
"""The plain data of a recipe, ours or mergekit's."""


def is_mergekit(content: Content) -> bool:
    """Whether a recipe is one of mergekit's."""
    return "merge_method" in content


def variants(
    content: Content, *, where: str = "", folder: Path = Path(), known: Known = none_known
) -> Callable[[Content], Merge]:
    """What makes models of recipes that differ from one in rule, parameters, expression or scale only.

    Args:
        where, folder, known: as for ``recipe.build``.

    Returns: a function of the plain data of such a recipe; the notes of its models are those of the first.
    Raises: InputError; so does the function.
    Cost: reads headers, and a few thousand entries of each matrix; a model costs no read. Recipes of mergekit
        are opened anew each time.
    """
    if is_mergekit(content):
        from taskvec.edits import mergekit

        return lambda changed: mergekit.read(Path(where), changed, fit=Fit("error", "error"))
    with errors_at(where):
        first = Recipe.parse("", content)
        check_fields(first)
        building = Building(first, where, folder, known)
        start = building.merge()

    def variant(changed: Content) -> Merge:
        with errors_at(where):
            recipe = Recipe.parse("", changed)
            check_fields(recipe)
            return start if recipe == first else building.with_numbers_of(recipe).merge()

    return variant
