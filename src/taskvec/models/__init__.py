"""Callable models: backbones, the parameters a regime trains, frozen heads."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from taskvec.models.backbone import Backbone
    from taskvec.models.functional import encode
    from taskvec.models.heads import Head, linear_probe, zero_shot_head
    from taskvec.models.known import MODELS, KnownModel, known_model
    from taskvec.models.loading import load_backbone
    from taskvec.models.selection import select

_HOME = {
    "Backbone": "backbone",
    "encode": "functional",
    "Head": "heads",
    "linear_probe": "heads",
    "zero_shot_head": "heads",
    "MODELS": "known",
    "KnownModel": "known",
    "known_model": "known",
    "load_backbone": "loading",
    "select": "selection",
}

__all__ = [
    "MODELS",
    "Backbone",
    "Head",
    "KnownModel",
    "encode",
    "known_model",
    "linear_probe",
    "load_backbone",
    "select",
    "zero_shot_head",
]


def __getattr__(name: str) -> Any:
    # Listing models must not cost an import of torch.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
