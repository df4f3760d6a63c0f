"""From a reference to a callable backbone."""

from pathlib import Path

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.checkpoint import EDITING, config_file, model_type, purpose_of, reads_text
from taskvec.models.known import LOADERS, MODELS, path_or_id
from taskvec.reading import exists, is_folder, local_path
from taskvec.registry import nearest
from taskvec.weights.hub import is_reference


@checked
def load_backbone(ref: str | Path) -> Backbone:
    """The encoder behind a checkpoint folder, a known name, or a hub id ``org/name[@revision]``.

    What is on the disk wins over a known name and over a hub id of the same spelling. Weights are float32, in
    eval mode. Code inside a checkpoint is never run.

    Raises: InputError, one line, for a reference that is none of these, with the nearest known model, and for
        files that do not make a model which can be trained and evaluated; MissingExtra without transformers.
    """
    name = path_or_id(str(ref))
    place = local_path(name)
    if is_folder(place):
        name = str(place)
    elif exists(place):
        raise InputError(f"{ref}: a file, expected the folder of a checkpoint, with its config.json")
    # A path into a folder that exists is a slip of the pen, not a wish to download; and a revision becomes a
    # path in the cache of the hub, so it has no steps upward.
    elif not is_reference(name) or exists(place.parts[0]) or ".." in name.replace("@", "/").split("/"):
        raise InputError(f"{ref}: no folder, hub id or known model of this name; {nearest(name, MODELS)}")
    backbone: Backbone = LOADERS[_kind(name)](name)
    return backbone.eval()


def _kind(ref: str) -> str:
    """The loader for a checkpoint, by the model type that its config.json states."""
    path = config_file(ref)
    stated = model_type(path)
    if stated in LOADERS and stated != "text":
        return stated
    if reads_text(stated):
        return "text"
    others = " and ".join(kind for kind in LOADERS if kind != "text")
    raise InputError(
        f"{path}: model_type {stated!r}, {purpose_of(stated)}, is none that can be trained or evaluated; "
        "those are text models of transformers (bert, roberta, mpnet, modernbert, gpt2 and their kin), "
        f"{others} ({EDITING})"
    )
