"""Which files hold the factors of an adapter, by the names in them."""

import re
from pathlib import Path

from taskvec.weights.lazy import Weights

_FACTOR = re.compile(
    r"[._]lora_(A|B|a|b|down|up|mid|embedding_[AB])(\.|$)|[._]lora(_linear_layer)?\.(down|up)\.weight$"
    r"|\.ia3_l(\.|$)|\.trainable_tokens_delta(\.|$)|\.(hada_w\d_[ab]|lokr_w\d(_[ab])?|oft_(blocks|diag))$"
)
_BESIDE = re.compile(r"\.(alpha|dora_scale|lora_magnitude_vector(\.weight)?|m)$")

SETTINGS = "adapter_config.json"
"""What factors stand for, in the file beside theirs."""

NAMES = ("adapter_model", "adapters", "pytorch_lora_weights")
"""What PEFT, mlx-lm and diffusers call the file of an adapter."""


def find_settings(file: Path, weights: Weights) -> Path | None:
    """Where the settings of the adapter in a file lie, if they do; ``None`` if it holds no adapter."""
    settings = file.parent / SETTINGS
    if file.stem == NAMES[0] or (file.stem in NAMES and settings.is_file()):
        return settings
    ours = "taskvec" in weights.metadata  # a vector, maybe of a model that has factors among its own weights
    return None if ours or not _are_factors(file, list(weights)) else settings


def find_adapter(folder: Path | None) -> Path | None:
    """The file of an adapter of PEFT in a folder, beside whatever else lies there."""
    files = () if folder is None else (folder / f"{NAMES[0]}{ending}" for ending in (".safetensors", ".bin"))
    return next((file for file in files if file.is_file()), None)


def _are_factors(file: Path, names: list[str]) -> bool:
    """Whether tensors are those of an adapter: some models have factors among their own weights."""
    if not any(map(_FACTOR.search, names)):
        return False
    alone = all(_FACTOR.search(name) or _BESIDE.search(name) for name in names)
    return alone or not (file.parent / "config.json").is_file()
