"""From a reference to a callable backbone."""

from pathlib import Path

import torch

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.group import current
from taskvec.models import own
from taskvec.models.backbone import Backbone, Outputs
from taskvec.models.checkpoint import (
    EDITING,
    config_file,
    encodes_text,
    model_type,
    purpose_of,
    reads_text,
    writes_text,
)
from taskvec.models.gguf import gguf_file
from taskvec.models.image import reads_images
from taskvec.models.known import LOADERS, MODELS, check_installed, path_or_id
from taskvec.models.sharding import REPLICATED, Sharding
from taskvec.place import Precision, enough_memory, find_device
from taskvec.reading import exists, is_folder, local_path
from taskvec.registry import nearest
from taskvec.urls import is_url, local_place, said
from taskvec.weights.hub import is_reference


@checked
def load_backbone(
    ref: str | Path,
    outputs: Outputs = "features",
    *,
    device: str | torch.device = "cpu",
    fsdp: Precision | None = None,
) -> Backbone:
    """The model behind a checkpoint folder, a GGUF file, a known name, a hub id ``org/name[@revision]``, or a
    function of the user's own, ``module:function`` or ``file.py:function``, that gives a backbone.

    What is on the disk wins over a known name and over a hub id of the same spelling. Weights are float32, in
    eval mode. Code inside a checkpoint is never run.

    Args:
        outputs: ``features`` of an encoder; the logits of ``tokens`` of a language model; or, of a
            ``classifier``, the features that its trained head reads, with that head.
        device: where it computes: ``cpu``, ``cuda``, ``cuda:N``, ``mps``, or ``auto`` for a CUDA device if
            there is one.
        fsdp: shard the parameters over the processes of the current group, :mod:`taskvec.group`, so that
            none holds the whole model, and gather them in this precision to compute. Training then moves
            them in place.

    Raises: InputError, one line, for a reference that is none of these, with the nearest known model, for
        files that do not make a model which can be trained and evaluated, and for a device that is not there;
        MissingExtra without transformers; OutOfMemory for a model that the device has no memory for.
    """
    place = find_device(device)
    if fsdp is not None:
        with enough_memory(place, "loading a share of the model", "take more processes"):
            return _load_sharded(ref, outputs, Sharding(place, fsdp))
    backbone = _load(ref, outputs)
    with enough_memory(place, "moving the model there", "take a smaller model, or device cpu"):
        backbone.to(place)
    return backbone


def _load(ref: str | Path, outputs: Outputs) -> Backbone:
    if own.is_own(str(ref)):
        return own.load(str(ref))
    name = locate_model(ref)
    backbone: Backbone = LOADERS[_kind(name, outputs)](name)
    return backbone.eval()


def _load_sharded(ref: str | Path, outputs: Outputs, sharding: Sharding) -> Backbone:
    """A backbone of whose network every process has its share. Raises: InputError."""
    if current().alone:
        raise InputError(
            "fsdp: there is one process, and a model is sharded over several; start them with torchrun "
            "--nproc-per-node N -m taskvec …, or leave it out"
        )
    name = str(ref) if own.is_own(str(ref)) else locate_model(ref)
    kind = "your own" if own.is_own(name) else _kind(name, outputs)
    if kind not in _SHARDED:
        raise InputError(
            f"{ref}: a model of kind {kind!r} cannot be sharded, expected one of kind "
            f"{', '.join(_SHARDED)}; {REPLICATED}"
        )
    if kind == "text" and encodes_text(model_type(config_file(name))):
        raise InputError(
            f"{ref}: its encoder runs by itself, and FSDP2 gathers parameters for whole models; {REPLICATED}"
        )
    backbone: Backbone = LOADERS[kind](name, sharding.build)
    return backbone.to(sharding.device).eval()


def locate_model(ref: str | Path) -> str:
    """The folder, GGUF file or hub id that a reference stands for. Raises: as :func:`load_backbone`."""
    check_installed(str(ref))
    name = _on_the_disk(path_or_id(str(ref)))
    place = local_path(name)
    if place.suffix == ".py" or ".py:" in name:
        raise InputError(
            f"{ref}: names no function of a Python file, expected FILE.py:FUNCTION, which gives the model"
        )
    if is_folder(place) or gguf_file(place) is not None:
        name = str(place)
    elif exists(place):
        raise InputError(f"{ref}: a file, expected the folder of a checkpoint, with its config.json")
    # A path into a folder that exists is a slip of the pen, not a wish to download; and a revision becomes a
    # path in the cache of the hub, so it has no steps upward.
    elif not is_reference(name) or exists(place.parts[0]) or ".." in name.replace("@", "/").split("/"):
        raise InputError(f"{ref}: no folder, hub id or known model of this name; {nearest(name, MODELS)}")
    return name


def _on_the_disk(ref: str) -> str:
    """A path or hub id in place of a URL that stands for one.

    Raises: InputError for other URLs: what reads in place does not run models.
    """
    if not is_url(ref):
        return ref
    if (path := local_place(ref)) is not None:
        return path
    name = ref.removeprefix("hf://")
    if name != ref and is_reference(name):
        return name
    raise InputError(
        f"{said(ref)}: a model that runs has to lie on the disk; download its folder, and name that"
    )


_GENERAL = ("text", "language", "image", "classifier")
"""Loaders of many types of models."""


_SHARDED = ("language", "text", "image")
"""Kinds of model that can be sharded over several processes."""


def _kind(ref: str, outputs: Outputs) -> str:
    """The loader for a checkpoint that is to give these outputs."""
    return {"features": _encoder, "tokens": _language}[outputs](ref) if outputs != "classifier" else outputs


def _encoder(ref: str) -> str:
    """The loader for an encoder, by the model type that its config.json states."""
    path = config_file(ref)
    stated = model_type(path)
    if stated in LOADERS and stated not in _GENERAL:
        return stated
    if reads_text(stated) or encodes_text(stated):
        return "text"
    if reads_images(stated):
        return "image"
    others = " and ".join(kind for kind in LOADERS if kind not in _GENERAL)
    raise InputError(
        f"{path}: model_type {stated!r}, {purpose_of(stated)}, is none that can be trained or evaluated; "
        "those are text models of transformers (bert, roberta, mpnet, modernbert, gpt2 and their kin), image "
        f"encoders (vit, dinov2, convnext, swin, resnet, mobilenet_v2 and their kin), {others} ({EDITING})"
    )


def _language(ref: str) -> str:
    """The loader for a language model. Raises: InputError for a model of another kind."""
    path = config_file(ref)
    if writes_text(path):
        return "language"
    stated = model_type(path)
    raise InputError(
        f"{path}: model_type {stated!r} is no language model, which predicts a token from those before it "
        "(gpt2, llama, qwen2, t5, bart and their kin); other models serve tasks of kind 'classification'"
    )
