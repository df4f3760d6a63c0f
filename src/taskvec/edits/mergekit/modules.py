"""``modules`` of models with several parts, such as encoder and decoder: each part merged by itself."""

import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from taskvec.edits.layers import Joined
from taskvec.edits.merge import Merge
from taskvec.edits.passes import most
from taskvec.errors import InputError, and_more

_BESIDE_TEXT = {
    "multi_modal_projector": "multi_modal_projector|mm_projector|merger|deepstack_merger_list",
    "vision_tower": "vision_tower|vision_model|visual",
    "vision_model": "vision_tower|vision_model|visual",
}
_PARTS = {
    **_BESIDE_TEXT,
    "encoder": "encoder",
    "decoder": "decoder|proj_out",
    "shared": "shared|lm_head|final_logits_bias",
}
"""Module of mergekit -> what a part of its tensors' names is; the first that fits has a tensor."""
_TEXT = "text_decoder"
"""The module with all that is beside no text."""

Read = Callable[[Mapping[str, Any], str], Merge]
"""A document with the one module ``default``, and what messages call it -> its merge."""


def has_parts(content: Mapping[str, Any]) -> bool:
    """Whether a document merges several known parts of a model."""
    modules = content.get("modules")
    return isinstance(modules, Mapping) and bool(modules) and modules.keys() <= {*_PARTS, _TEXT}


def read_parts(where: str, content: Mapping[str, Any], read: Read) -> Merge:
    """The merge of a document with several modules, of which each gives the tensors of its part.

    Raises: InputError for a tensor that belongs to no module, and for slices of layers.
    """
    modules = content["modules"]
    for name, module in modules.items():
        if isinstance(module, Mapping) and module.get("slices"):
            raise InputError(
                f"{where}: modules.{name}: slices, expected models; "
                "slices are of models with one stack of layers"
            )
    merges = {
        name: read({**content, "modules": {"default": module}}, f"modules.{name}")
        for name, module in modules.items()
    }
    return _join(where, content, merges)


def _join(where: str, content: Mapping[str, Any], merges: Mapping[str, Merge]) -> Merge:
    first = next(iter(merges.values()))
    held: dict[str, list[str]] = {name: [] for name in merges}
    lacking: list[str] = []
    for tensor in first.weights:
        part = _part_of(tensor, merges)
        held.get(part, lacking).append(tensor)
    if lacking:
        raise InputError(
            f"{where}: modules: {lacking[0]!r} belongs to none of {', '.join(merges)}{and_more(lacking)}; "
            "add the module that it is part of"
        )
    parts = [merge.weights for merge in merges.values()]
    return replace(
        first,
        weights=Joined(parts, list(held.values())),
        record={**first.record, "recipe": content},
        notes=tuple(dict.fromkeys(note for merge in merges.values() for note in merge.notes)),
        inputs={ref: model for merge in merges.values() for ref, model in merge.inputs.items()},
        passes=lambda: most([merge.passes() for merge in merges.values()]),
    )


def _part_of(tensor: str, given: Mapping[str, object]) -> str:
    """The module that has a tensor; an empty name for none."""
    pieces = tensor.split(".")
    fitting = [name for name, part in _PARTS.items() if any(re.fullmatch(part, piece) for piece in pieces)]
    text = _TEXT if _TEXT in given and not _BESIDE_TEXT.keys() & fitting else ""
    return next((name for name in fitting if name in given), text)
