"""From a reference to a callable backbone."""

import re
from pathlib import Path

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.known import LOADERS, MODELS
from taskvec.reading import is_folder, read_mapping
from taskvec.registry import nearest

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?")


@checked
def load_backbone(ref: str | Path) -> Backbone:
    """The encoder behind a known name, a checkpoint folder, or a hub id ``org/name[@revision]``.

    A folder wins over a hub id of the same spelling. Weights are float32, in eval mode. Code inside a
    checkpoint is never run.

    Raises: InputError for a reference that is none of these; UnknownName with the nearest known model;
        MissingExtra without transformers.
    """
    name = str(ref)
    if name in MODELS:
        known = MODELS[name]
        return _load(known.kind or _kind(known.ref()), known.ref())
    if is_folder(name):
        return _load(_kind(name), name)
    if _HUB_ID.fullmatch(name):
        return _load(_kind(name), name)
    raise InputError(f"{name}: no folder, hub id or known model of this name; {nearest(name, MODELS)}")


def _load(kind: str, ref: str) -> Backbone:
    backbone: Backbone = LOADERS[kind](ref)
    return backbone.eval()


def _kind(ref: str) -> str:
    """The loader for a checkpoint, by the model type that its config.json states."""
    from taskvec.models.checkpoint import config_file

    path = config_file(ref)
    model_type = read_mapping(path).get("model_type")
    if not isinstance(model_type, str):
        raise InputError(f"{path}: no model configuration, expected a 'model_type'")
    return model_type if model_type in LOADERS else "text"
