"""Recipes as one LoRA adapter: edits of a base, or sums of adapters without one."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from taskvec.config import read_documents
from taskvec.edits.inputs import describe_copy, errors_at, find_copies
from taskvec.edits.merge import Merge
from taskvec.edits.named import Known, none_known
from taskvec.edits.opening import open_recipe
from taskvec.edits.parameters import is_constant
from taskvec.edits.recipe import Recipe, check_fields, combine_by
from taskvec.errors import InputError
from taskvec.later import torch
from taskvec.reading import exists, local_path
from taskvec.urls import is_url, without_secrets
from taskvec.vectors import EditedWeights, TaskVector
from taskvec.vectors.lora.adapter import Adapter
from taskvec.weights import Weights, open_weights


@dataclass(frozen=True)
class Edit:
    """A task vector that a recipe describes, to be written as an adapter.

    Attributes:
        vector: the edit, with its scale.
        inputs: what is read, by the names of the recipe.
        record: provenance for the manifest.
        notes: for the user.
        dtype: element type of the factors, if the recipe has one.
    """

    vector: TaskVector
    inputs: Mapping[str, Weights]
    record: Mapping[str, Any]
    notes: tuple[str, ...] = ()
    dtype: "torch.dtype | None" = None


def open_edit(path: Path, *, known: Known = none_known, **instead: object) -> Edit:
    """The edit that a recipe file describes; adapters alone need no base.

    Args:
        known: the path or hub id that a short name stands for.
        **instead: fields in place of the recipe's; ``None`` for its own.

    Raises: InputError for whatever does not fit, or makes a model that is no edit of its base.
    """
    content = read_documents(path)[0]
    if not isinstance(content, dict) or not content.get("vectors") or content.get("base") is not None:
        return edit_of(open_recipe(path, known=known, **instead))
    given = {name: value for name, value in instead.items() if value is not None}
    with errors_at(str(path)):
        return _without_base(Recipe.parse(str(path), {**content, **given}), path.parent, known)


def edit_of(merge: Merge) -> Edit:
    """The edit that a merge makes of its base.

    Raises: InputError where it makes another model: of layers of several, or with another vocabulary.
    """
    made = merge.weights
    if not isinstance(made, EditedWeights) or not any(
        _alike(made.base, held) for held in merge.inputs.values()
    ):
        raise InputError(
            f"{merge.like.ref}: more than its weights are changed (layers, vocabulary, parts of others), "
            "expected an edit that an adapter can hold; leave --as-adapter out"
        )
    return Edit(TaskVector.of(made.vector), merge.inputs, merge.record, merge.notes, made.dtype)


def _without_base(recipe: Recipe, folder: Path, known: Known) -> Edit:
    """The edit that adapters alone make.

    Raises: InputError for other vectors, and for what is known only relative to a base.
    """
    if recipe.models or recipe.statistics or not is_constant(recipe.scale):
        given = (
            "models" if recipe.models else "statistics" if recipe.statistics else "a scale for each tensor"
        )
        raise InputError(f"base: missing, but the recipe has {given}, expected adapters alone")
    check_fields(recipe.model_copy(update={"scale": 1.0}))
    inputs = {name: _open(ref, folder, known) for name, ref in recipe.vectors.items()}
    vectors = {name: TaskVector.opened(weights) for name, weights in inputs.items()}
    for name, vector in vectors.items():
        _check_free(name, vector)
    names = list(dict.fromkeys(name for vector in vectors.values() for name in vector))
    edit = float(str(recipe.scale)) * combine_by(recipe, vectors, names, names)[0]
    dtype = None if recipe.dtype is None else getattr(torch, recipe.dtype)
    record = {"recipe": without_secrets(recipe.model_dump(mode="json", exclude_defaults=True))}
    notes = tuple(f"{name}: {describe_copy(first)}" for first, name in find_copies(inputs))
    return Edit(edit, inputs, record, notes, dtype)


def _check_free(name: str, vector: TaskVector) -> None:
    """Refuse a vector that means something only with its base at hand."""
    for held in vector.terms:
        if not isinstance(held, Adapter):
            raise InputError(f"base: missing, but {name!r} is no adapter; name the base of all vectors")
        if held.contents.relative:
            raise InputError(
                f"base: missing, but {name!r} holds changes that are known only relative to it (DoRA, or "
                "saved whole); name the base"
            )


def _open(ref: str, folder: Path, known: Known) -> Weights:
    if is_url(ref):
        return open_weights(ref)
    path = folder / local_path(ref)
    return open_weights(path if exists(path) else known(ref) or ref)


def _alike(base: Weights, other: Weights) -> bool:
    """Whether weights hold tensors of the same names and shapes."""
    return base.keys() == other.keys() and all(base.spec(n).shape == other.spec(n).shape for n in base)
