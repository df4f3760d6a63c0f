"""Checkpoint folders in the transformers layout, local or on the hub."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from taskvec.errors import CorruptFile, InputError, MissingExtra
from taskvec.reading import is_folder, read_mapping


def transformers() -> Any:
    """The package, or the command that installs it."""
    try:
        import transformers as package
    except ImportError:
        raise MissingExtra(
            "transformers is not installed, needed to load models; pip install 'taskvec[hf]'"
        ) from None
    return package


def config_file(ref: str) -> Path:
    """The config.json of a folder or hub id.

    Raises: InputError if there is none, or the hub cannot be reached.
    """
    if is_folder(ref):
        path = Path(ref) / "config.json"
        if not path.is_file():
            raise InputError(f"{ref}: no config.json in the folder; expected a transformers checkpoint")
        return path
    transformers()
    from transformers.utils.hub import cached_file

    try:
        found = cached_file(**located(ref), filename="config.json")
    except OSError as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{ref}: not a folder, and the hub did not give it ({reason})") from None
    return Path(str(found))


def located(ref: str) -> dict[str, str]:
    """``org/name@revision`` as the arguments that transformers takes; a folder stays whole."""
    name, at, revision = ref.partition("@")
    if is_folder(ref) or not at:
        return {"path_or_repo_id": ref}
    return {"path_or_repo_id": name, "revision": revision}


def load_pretrained(kind: Any, ref: str, **options: Any) -> Any:
    """``kind.from_pretrained`` of a folder or hub id, silent, without remote code.

    Raises: InputError, one line, when the files do not make the model.
    """
    place = located(ref)
    where = place.pop("path_or_repo_id")
    try:
        with quiet():
            return kind.from_pretrained(where, **place, **options, trust_remote_code=False)
    except Exception as error:  # a damaged or foreign file surfaces as any of a dozen types
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(f"{ref}: cannot be loaded as {kind.__name__} ({reason})") from None


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no load reports from transformers; what they say is checked by ``Backbone.names``."""
    logging: Any = transformers().utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def tensor_names(folder: Path) -> list[str]:
    """Names of the tensors that a checkpoint folder holds, from headers where they have one."""
    for index in ("model.safetensors.index.json", "pytorch_model.bin.index.json"):
        if (folder / index).is_file():
            where = read_mapping(folder / index).get("weight_map")
            if not isinstance(where, dict):
                raise CorruptFile(
                    f"{folder / index}: 'weight_map' is missing, expected names and their shards"
                )
            return list(where)
    if (folder / "model.safetensors").is_file():
        with safe_open(folder / "model.safetensors", framework="pt") as file:
            return list(file.keys())
    if (folder / "pytorch_model.bin").is_file():
        state = torch.load(folder / "pytorch_model.bin", weights_only=True, mmap=True, map_location="cpu")
        return list(state)
    raise InputError(f"{folder}: no model.safetensors or pytorch_model.bin in the folder")
