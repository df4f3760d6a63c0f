"""config.json: read for a model, and rewritten for another model that is made of it."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskvec.later import torch
from taskvec.reading import parse_json, read_mapping
from taskvec.weights import Weights
from taskvec.weights.dtypes import short
from taskvec.weights.quantized import plain_config


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


def read_config_of(weights: Weights, place: str = "") -> dict[str, Any]:
    """The config.json that describes weights as they are read, or those of them in a folder inside theirs.

    Raises: CorruptFile.
    """
    file = Path(place, "config.json")
    if (text := weights.texts.get(file.as_posix())) is not None:
        return dict(parse_json(text, f"{weights.ref}: {file}"))
    return {} if weights.folder is None else read_if_there(weights.folder / file)


def retype_modules(weights: Weights, dtype: "torch.dtype | str | None") -> dict[str, str]:
    """The config.json of each module in a folder of its own that names a type of model, for another dtype.

    Returns: texts by place in the folder of the weights.
    """
    places = [] if dtype is None else [site.folder for site in weights.sites if site.folder]
    configs = {f"{place}/config.json": read_config_of(weights, place) for place in places}
    networks = {place: config for place, config in configs.items() if "model_type" in config}
    return {place: derive_config(config, dtype=dtype) or "" for place, config in networks.items()}


def read_vocabulary_size(folder: Path | None) -> int | None:
    """The number of tokens by ``config.json``, its own or that of its text part."""
    config = read_config(folder)
    parts = (config, config.get("text_config"))
    sizes = (part.get("vocab_size") for part in parts if isinstance(part, Mapping))
    return next((size for size in sizes if type(size) is int), None)


def derive_config(
    config: Mapping[str, Any], *, dtype: "torch.dtype | str | None", tokens: int | None = None
) -> str | None:
    """The text of a config.json for another model made of the one it describes; ``None`` if it is empty.

    Args:
        dtype: of the result's tensors; ``None`` for that of the model.
        tokens: rows of the result's embedding; ``None`` for those of the model.
    """
    config = plain_config(config)
    if not config:
        return None
    if tokens is not None:
        config = resize(config, tokens)
    if dtype is not None:
        key = next((key for key in ("torch_dtype", "dtype") if key in config), "dtype")
        config = {**_with_dtype(config, short(dtype)), key: short(dtype)}
    return render(config)


def render(config: Mapping[str, Any]) -> str:
    """The text of a config.json."""
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"


def _with_dtype(config: Mapping[str, Any], dtype: str) -> dict[str, Any]:
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
