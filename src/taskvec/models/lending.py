"""Trained heads for the features of a classifier: its own, or lent by another checkpoint or by an adapter."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from torch import Tensor, nn

from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.classifier import ClassifierBackbone, load
from taskvec.models.loading import locate_model
from taskvec.models.own_head import TrainedHead
from taskvec.reading import local_path
from taskvec.weights import open_weights

_WRAPPED = ("base_model.model.", "modules_to_save.default.", "modules_to_save.", "original_module.")
"""What PEFT puts into the names of modules that it saves whole."""


def trained_head(backbone: Backbone, lender: str | None = None) -> TrainedHead:
    """The trained head of a classifier, or of another checkpoint of the same architecture, for its features.

    Args:
        lender: what ``load_backbone`` takes, or the folder of an adapter that was trained with a head.

    Raises: InputError if the model was not loaded as a classifier, or the lender's head does not fit it.
    """
    if not isinstance(backbone, ClassifierBackbone):
        raise InputError(
            f"{backbone.ref}: head: own needs a classifier of transformers; load it with "
            "load_backbone(ref, 'classifier')"
        )
    if lender is None:
        return backbone.trained
    place = locate_lender(lender)
    if is_adapter(place):
        return _of_adapter(Path(place), backbone)
    other = load(place, backbone.trained.fresh)
    other.trained.check()
    if type(other.network) is not type(backbone.network) or not other.shares_cut(backbone):
        raise InputError(
            f"{other.ref}: a {type(other.network).__name__} with features of {other.dim}, and its head "
            f"cannot read those of {backbone.ref}, a {type(backbone.network).__name__} with {backbone.dim}; "
            "take the head of a model that was tuned from it"
        )
    return replace(other.trained, names={})  # no edit of the backbone reaches it


def fingerprint_of(lender: str) -> str:
    """Digest of the weights of a checkpoint that lends its head."""
    place = locate_lender(lender)
    return open_weights(_adapter_file(Path(place)) if is_adapter(place) else place).fingerprint()


def locate_lender(ref: str) -> str:
    """The folder or hub id of a checkpoint, or the folder of an adapter. Raises: InputError."""
    return ref if is_adapter(ref) else locate_model(ref)


def is_adapter(ref: str) -> bool:
    """Whether a folder holds an adapter and no model."""
    folder = local_path(ref)
    return (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()


def _of_adapter(folder: Path, backbone: ClassifierBackbone) -> TrainedHead:
    """The head that PEFT saved beside an adapter (``modules_to_save``); its classes have no names there.

    Raises: InputError if there is none that reads the backbone's features.
    """
    with open_weights(_adapter_file(folder)) as weights:
        held = {_unwrapped(name): name for name in weights}
        lacking = [place for place in backbone.head_places if place not in held]
        if lacking:
            raise InputError(
                f"{folder}: the adapter has no trained head ({lacking[0]!r} is not among what it saves "
                "whole); train it with task_type SEQ_CLS, or name a checkpoint that has one"
            )
        values = {place: weights.read(held[place]).float() for place in backbone.head_places}
    layers = _filled(backbone, values)
    if layers is None:
        raise InputError(
            f"{folder}: its head has other shapes than features of {backbone.ref} need; take an adapter that "
            "was trained on it"
        )
    last = list(values)[-1]  # weight or bias of the last layer, an entry for each class
    labels = tuple(f"LABEL_{place}" for place in range(len(values[last])))
    return replace(backbone.trained, ref=str(folder), layers=layers, names={}, labels=labels, missing=())


def _filled(backbone: ClassifierBackbone, values: dict[str, Tensor]) -> nn.Sequential | None:
    """The layers of a backbone's head with other values; the last may have other classes."""
    layers = deepcopy(backbone.trained.layers)
    inside = dict(zip(backbone.head_places, backbone.trained.names.values(), strict=True))
    for place, value in values.items():
        module, _, name = inside[place].rpartition(".")
        own: Tensor = getattr(layers.get_submodule(module), name)
        free = 1 if module == str(len(layers) - 1) else 0  # the number of classes
        if own.shape[free:] != value.shape[free:]:
            return None
        setattr(layers.get_submodule(module), name, nn.Parameter(value.to(own.device), requires_grad=False))
    return layers


def _unwrapped(name: str) -> str:
    for part in _WRAPPED:
        name = name.replace(part, "")
    return name


def _adapter_file(folder: Path) -> Path:
    safe = folder / "adapter_model.safetensors"
    return safe if safe.is_file() else folder / "adapter_model.bin"
