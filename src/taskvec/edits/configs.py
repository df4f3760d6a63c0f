"""config.json: read for a model, and rewritten for another model that is made of it."""

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from taskvec.errors import InputError
from taskvec.reading import read_mapping
from taskvec.weights.dtypes import short
from taskvec.weights.quantized import plain_config

_NUMBER_OF_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")


def read_if_there(file: Path) -> dict[str, Any]:
    """The content of a JSON file; empty if there is none.

    Raises: CorruptFile.
    """
    return read_mapping(file) if os.path.lexists(file) else {}


def read_config(folder: Path | None) -> dict[str, Any]:
    """The config.json of a model folder; empty if it has none.

    Raises: CorruptFile.
    """
    return {} if folder is None else read_if_there(folder / "config.json")


def read_vocabulary_size(folder: Path | None) -> int | None:
    """The number of tokens by ``config.json``, its own or that of its text part."""
    config = read_config(folder)
    parts = (config, config.get("text_config"))
    sizes = (part.get("vocab_size") for part in parts if isinstance(part, Mapping))
    return next((size for size in sizes if type(size) is int), None)


def derive_config(
    folder: Path | None,
    *,
    dtype: torch.dtype | None,
    layers: Sequence[tuple[Path | None, int]] | None = None,
    tokens: int | None = None,
) -> str | None:
    """The text of the config.json in ``folder`` for another model made of it; ``None`` if there is none.

    Args:
        dtype: of the result's tensors; ``None`` for that of the model.
        layers: folder and number of the layer that each layer of the result is described by; ``None`` for
            those of the model itself.
        tokens: rows of the result's embedding; ``None`` for those of the model.

    Raises: InputError for a config that does not tell its number of layers; CorruptFile.
    """
    config = plain_config(read_config(folder))
    if not config:
        return None
    if layers is not None:
        config = _with_layers(config, folder, layers)
    if tokens is not None:
        config = resize(config, tokens)
    if dtype is not None:
        key = next((key for key in ("torch_dtype", "dtype") if key in config), "dtype")
        config = {**_with_dtype(config, short(dtype)), key: short(dtype)}
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _with_layers(
    config: dict[str, Any], folder: Path | None, layers: Sequence[tuple[Path | None, int]]
) -> dict[str, Any]:
    """The config with another number of layers; lists with an entry for each layer are put together anew."""
    key = next((key for key in _NUMBER_OF_LAYERS if type(config.get(key)) is int), None)
    if key is None:
        inner = config.get("text_config")
        if isinstance(inner, dict):
            return {**config, "text_config": _with_layers(inner, folder, layers)}
        raise InputError(f"{folder}/config.json: no number of layers, expected one of {_NUMBER_OF_LAYERS}")
    before, made = config[key], {**config, key: len(layers)}
    described = {place: read_config(place) for place in {place for place, _ in layers}}
    for name, value in config.items():
        if isinstance(value, list) and value and len(value) == before and "layer" in name:
            made[name] = [_entry(described[place], name, number, value) for place, number in layers]
    return made


def _entry(config: Mapping[str, Any], name: str, number: int, otherwise: Sequence[Any]) -> Any:
    inner = config.get("text_config")
    given = config.get(name, inner.get(name) if isinstance(inner, dict) else None)
    listed = given if isinstance(given, list) and number < len(given) else otherwise
    return listed[min(number, len(listed) - 1)]


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """``dtype`` wherever one is named, in inner configs too."""
    return {
        key: dtype
        if key in ("dtype", "torch_dtype") and isinstance(value, str)
        else _with_dtype(value, dtype)
        if isinstance(value, dict)
        else value
        for key, value in config.items()
    }


def resize(config: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The config for an embedding of so many rows."""
    inner = config.get("text_config")
    made = {**config, "text_config": resize(inner, rows)} if isinstance(inner, Mapping) else dict(config)
    return {**made, "vocab_size": rows} if "vocab_size" in made else made
