"""YAML of mergekit's other tools, told by its keys."""

from collections.abc import Mapping
from difflib import get_close_matches

_KINDS = {
    "experts": (
        "mergekit-moe, which builds mixtures of experts; they are not made here: run mergekit-moe, "
        "its result can be an input"
    ),
    "genome": (
        "mergekit-evolve, which searches for a merge; search it with taskvec search, "
        "or take the merge that was found, a file with merge_method"
    ),
    "layer_slices": "bakllama; write it as slices, with merge_method: passthrough",
}


def describe_other(content: Mapping[object, object]) -> str | None:
    """What a file is if it is one of another tool of mergekit's, or lacks its method."""
    kind = next((words for key, words in _KINDS.items() if key in content), None)
    if kind is not None:
        return f"a file of {kind}"
    if isinstance(content.get("models"), list) or "slices" in content or "modules" in content:
        near = get_close_matches("merge_method", map(str, content), n=1, cutoff=0.75)
        misspelt = f"; is {near[0]!r} meant?" if near else ""
        return f"models as in mergekit's files, but merge_method is missing, expected one{misspelt}"
    return None
