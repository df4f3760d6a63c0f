"""One door to every kind of weights."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Union

from taskvec.errors import CorruptFile, InputError, WrongType
from taskvec.later import torch
from taskvec.reading import exists, local_path, read_mapping, with_places
from taskvec.urls import is_url, local_place, said
from taskvec.weights import hub
from taskvec.weights.adapters import find_settings
from taskvec.weights.folders import Found, find_weights, is_index
from taskvec.weights.formats import PICKLES, check_unfinished, kind_of_file, unknown_kind
from taskvec.weights.in_memory import MemoryWeights
from taskvec.weights.lazy import Direction, Site, Weights
from taskvec.weights.modules import Modular, holds_weights, module_folders
from taskvec.weights.quantized import dequantized
from taskvec.weights.remote.mirror import Mirror, mirror_of
from taskvec.weights.sharded import ShardedWeights
from taskvec.weights.stored import StoredWeights

if TYPE_CHECKING:
    from torch import Tensor, nn

# Not with |, which takes no quoted class: opening a file needs no torch.
WeightsLike = Union[str, Path, Mapping[str, "Tensor"], "nn.Module", Weights]


def open_weights(ref: WeightsLike) -> Weights:
    """Open weights of any kind for reading; only headers are read.

    Args:
        ref: a folder (also that of an adapter), a ``.safetensors`` file, a ``*.index.json``, a
            ``.bin``/``.pt``/``.pth``/``.ckpt`` state dict (``FILE#KEY`` for one of several inside it), a hub
            id ``org/name[@revision]`` (a path that exists wins), a module, a mapping of tensors, or weights
            that are open already (given back as they are). Or a URL of a folder, a ``.safetensors`` file or
            an index, read in place by ranges: ``hf://org/name[@revision][/sub]``, ``https://…``, and what
            fsspec knows, such as ``s3://bucket/model``.

    Raises: InputError if there is nothing of that name; CorruptFile, UnsafeFile for files that lie.

    >>> open_weights({"w": torch.zeros(2, 3)}).spec("w").shape
    (2, 3)
    """
    if isinstance(ref, Weights):
        return ref
    if isinstance(ref, Direction):
        raise WrongType("a task vector is a direction, not weights; add it to a base first")
    if isinstance(ref, str | Path):
        return _open_path(str(ref))
    if isinstance(ref, torch.nn.Module):
        return MemoryWeights(type(ref).__name__, ref.state_dict())
    if isinstance(ref, Mapping):
        return MemoryWeights("weights in memory", dict(ref))
    raise WrongType(f"weights are a path, a hub id, a module or a mapping, not {type(ref).__name__}")


def with_part(ref: str | Path) -> tuple[Path, str | None]:
    """The path and the key in ``PATH#KEY``, a state dict inside a file; a path that exists wins."""
    path = local_path(ref)
    place, mark, part = str(ref).rpartition("#")
    if not mark or not place or not part or exists(path) or not exists(local_path(place)):
        return path, None
    return local_path(place), part


def _open_path(ref: str) -> Weights:
    if is_url(ref):
        local = local_place(ref)
        return _open_place(ref) if local is None else _open_path(local)
    path, part = with_part(ref)
    if not exists(path):
        check_unfinished(path)
        # A path into a folder that exists is a slip of the pen, not a wish to download.
        if not hub.is_reference(ref) or exists(path.parts[0]):
            raise InputError(f"{ref}: no such file or folder")
        path = hub.resolve(ref)
    return dequantized(_open_folder(path, ref, part) if path.is_dir() else _open_named(path, ref, part))


def _open_place(url: str) -> Weights:
    """What a URL names, read in place."""
    from taskvec.weights.remote.finding import find_place

    _, mark, part = url.partition("#")
    if mark:
        raise InputError(f"{said(url)}: holds one set of tensors, no parts to choose; leave '#{part}' out")
    try:
        mirror = Mirror(find_place(url))
        path, ref = mirror.named, with_places(str(mirror.named))
        if not path.is_dir():
            return dequantized(_open_named(path, ref, None))
        weights = _open_folder(path, ref, None)
        weights.stated = partial(_stated_beside, path)
        return dequantized(weights)
    except InputError as error:
        raise type(error)(with_places(str(error))) from None


def _stated_beside(folder: Path) -> str | None:
    """The fingerprint in the manifest of a folder."""
    manifest = folder / "taskvec.json"
    stated = read_mapping(manifest).get("fingerprint") if manifest.is_file() else None
    return stated if isinstance(stated, str) else None


def _open_folder(folder: Path, ref: str, part: str | None) -> Weights:
    """The weights in a folder, with those of its modules."""
    modules = [module for module in module_folders(folder) if holds_weights(module)]
    if not modules:
        found = find_weights(folder)
        return _open_found(found, ref, part, found[0].parent)
    homes = [folder, *modules] if holds_weights(folder) else modules
    places = {"" if home == folder else home.relative_to(folder).as_posix(): home for home in homes}
    names = {place: f"{ref.rstrip('/')}/{place}" if place else ref for place in places}
    return Modular(
        ref,
        folder,
        {place: _open_found(find_weights(home), names[place], part, home) for place, home in places.items()},
    )


def _open_named(path: Path, ref: str, part: str | None) -> Weights:
    """The weights in a file, or under an index, that the user named."""
    folder = path.parent if (path.parent / "config.json").is_file() else None
    weights = _open_found((path,), ref, part, folder)
    weights.sites = (Site(file=path.name, chosen=True),)
    return weights


def _open_found(found: Found, ref: str, part: str | None, folder: Path | None) -> Weights:
    first = found[0]
    if part is not None and (len(found) > 1 or first.name.endswith(".json")):
        raise InputError(f"{ref}: a model in shards has no parts to choose; leave '#{part}' out")
    if len(found) > 1:
        weights: Weights = ShardedWeights.of_files(found, _open_file, ref=ref)
    elif is_index(first):
        weights = ShardedWeights.of_index(first, _open_file, ref=ref)
    elif first.name.endswith(".json"):
        raise unknown_kind(first, ref)
    else:
        weights = _open_file(first, ref=ref, folder=folder, part=part)
        weights.adapter = find_settings(first, weights)
    weights.sites = (Site(file=first.name),)
    return weights


def _open_file(
    path: Path, *, ref: str | None = None, folder: Path | None = None, part: str | None = None
) -> Weights:
    """One file of tensors, of the kind that its content shows, or else its name."""
    if (mirror := mirror_of(path)) is not None and path.suffix == ".safetensors":
        from taskvec.weights.remote.weights import RemoteWeights

        return RemoteWeights(mirror, path, ref=ref, folder=folder)
    kind = kind_of_file(path)
    if kind is None and path.suffix not in (".safetensors", *PICKLES):
        raise unknown_kind(path, ref or str(path))
    if kind == "pickle" and path.suffix == ".safetensors":
        raise CorruptFile(f"{path}: a file of torch.save, no safetensors file; rename it to {path.stem}.bin")
    if kind == "pickle" or (kind is None and path.suffix in PICKLES):
        from taskvec.weights.archived import open_pickled  # which, as torch.load, needs torch

        return open_pickled(path, ref=ref, folder=folder, part=part)
    if part is not None:
        raise InputError(f"{ref}: holds one set of tensors, no parts to choose; leave '#{part}' out")
    if kind == "gguf":
        # What it needs beside torch is imported only here.
        from taskvec.weights.gguf import GgufWeights

        return GgufWeights(path, ref=ref, folder=folder)
    return StoredWeights(path, ref=ref, folder=folder)
