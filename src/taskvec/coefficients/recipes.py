"""Learned coefficients as a recipe, which ``taskvec merge`` makes the same model of."""

import re
from collections.abc import Mapping
from pathlib import Path

from taskvec.errors import InputError

Recipe = dict[str, object]


def recipe_of(
    coefficients: Mapping[str, Mapping[str, float]],
    members: Mapping[str, list[str]],
    base: str,
    paths: Mapping[str, str | Path],
) -> Recipe:
    """The recipe of a sum of vectors with a coefficient for each group.

    Args:
        coefficients: vector -> group -> coefficient.
        members: group -> its tensors.
        base: what the recipe starts from.
        paths: of the vectors, by the same names.

    Raises: InputError for a vector without a path.
    """
    lacking = [label for label in coefficients if label not in paths]
    if lacking:
        raise InputError(f"recipe: no path for {lacking[0]!r}, expected one for each vector")
    return {
        "base": base,
        "vectors": {label: str(paths[label]) for label in coefficients},
        "rule": "sum",
        "parameters": {"weights": {label: _weight(of, members) for label, of in coefficients.items()}},
    }


def _weight(values: Mapping[str, float], members: Mapping[str, list[str]]) -> object:
    """One number, or filters on the names of tensors."""
    if len(values) == 1:
        return next(iter(values.values()))
    return {
        "filters": [
            {"match": f"re:{'|'.join(map(re.escape, members[group]))}", "value": value}
            for group, value in values.items()
        ]
    }
