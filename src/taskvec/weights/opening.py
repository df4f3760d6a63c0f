"""One door to every kind of weights."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor, nn

from taskvec.errors import InputError, WrongType
from taskvec.reading import exists, local_path
from taskvec.weights import hub
from taskvec.weights.in_memory import MemoryWeights
from taskvec.weights.lazy import Direction, Part, Weights
from taskvec.weights.modules import Modular, holds_weights, module_folders
from taskvec.weights.pickled import PICKLES, PickledWeights
from taskvec.weights.sharded import ShardedWeights
from taskvec.weights.stored import StoredWeights

WeightsLike = str | Path | Mapping[str, Tensor] | nn.Module | Weights

_IN_A_FOLDER = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_ADAPTER = "adapter_model"


def open_weights(ref: WeightsLike) -> Weights:
    """Open weights of any kind for reading; only headers are read.

    Args:
        ref: a folder (also that of an adapter), a ``.safetensors`` file, a ``*.index.json``, a
            ``.bin``/``.pt``/``.pth``/``.ckpt`` state dict, a hub id ``org/name[@revision]`` (a path that
            exists wins), a module, a mapping of tensors, or weights that are open already (given back as they
            are).

    Raises: InputError if there is nothing of that name; CorruptFile, UnsafeFile for files that lie.

    >>> open_weights({"w": torch.zeros(2, 3)}).spec("w").shape
    (2, 3)
    """
    if isinstance(ref, Weights):
        return ref
    if isinstance(ref, Direction):
        raise WrongType("a task vector is a direction, not weights; add it to a base first")
    if isinstance(ref, nn.Module):
        return MemoryWeights(type(ref).__name__, ref.state_dict())
    if isinstance(ref, Mapping):
        return MemoryWeights("weights in memory", dict(ref))
    if not isinstance(ref, str | Path):
        raise WrongType(f"weights are a path, a hub id, a module or a mapping, not {type(ref).__name__}")
    return _open_path(str(ref))


def _open_path(ref: str) -> Weights:
    path = local_path(ref)
    if not exists(path):
        # A path into a folder that exists is a slip of the pen, not a wish to download.
        if not hub.is_reference(ref) or exists(path.parts[0]):
            raise InputError(f"{ref}: no such file or folder")
        path = hub.resolve(ref)
    return _open_folder(path, ref) if path.is_dir() else _open_file(path, ref, None)


def _open_folder(folder: Path, ref: str) -> Weights:
    """The weights in a folder, with those of its modules."""
    modules = [module for module in module_folders(folder) if holds_weights(module)]
    if not modules:
        return _open_file(_find_in(folder), ref, folder)
    parts = [folder, *modules] if holds_weights(folder) else modules
    places = {"" if part == folder else part.relative_to(folder).as_posix(): part for part in parts}
    names = {place: str(Path(ref) / place) if place else ref for place in places}
    return Modular(
        ref,
        folder,
        {place: _open_file(_find_in(part), names[place], part) for place, part in places.items()},
    )


def _open_file(path: Path, ref: str, folder: Path | None) -> Weights:
    weights = _open_kind(path, ref, folder)
    weights.layout = (Part(file=path.name, chosen=folder is None),)
    return weights


def _open_kind(path: Path, ref: str, folder: Path | None) -> Weights:
    if folder is None and (path.parent / "config.json").is_file():
        folder = path.parent
    stem = path.name.removesuffix(".index.json")
    kind = StoredWeights if stem.endswith(".safetensors") else PickledWeights
    if kind is PickledWeights and not stem.endswith(PICKLES):
        if stem != path.name:
            raise InputError(f"{path}: expected a name such as model.safetensors.index.json")
        raise InputError(
            f"{ref}: unknown kind of file, expected .safetensors, *.index.json, {', '.join(PICKLES)}"
        )
    if stem != path.name:
        return ShardedWeights(path, kind, ref=ref)
    weights = kind(path, ref=ref, folder=folder)
    weights.adapter = path.parent / "adapter_config.json" if path.stem == _ADAPTER else None
    return weights


def _find_in(folder: Path) -> Path:
    for name in (*_IN_A_FOLDER, f"{_ADAPTER}.safetensors", f"{_ADAPTER}.bin"):
        if (folder / name).is_file():
            return folder / name
    others = sorted(folder.glob("*.safetensors"))
    if len(others) == 1:
        return others[0]
    if others:
        raise InputError(
            f"{folder}: {len(others)} safetensors files and no index, expected one; name the file"
        )
    raise InputError(f"{folder}: no weights in this folder, expected one of {', '.join(_IN_A_FOLDER)}")
