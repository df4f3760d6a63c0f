"""What lies in the folder of a LoRA adapter: settings, factors, and what was saved whole beside them."""

import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr

from taskvec.config import Config
from taskvec.errors import InputError, KeyMismatch
from taskvec.names import CLASSIFIERS
from taskvec.patterns import Pattern, Stopwatch
from taskvec.reading import read_mapping, shown
from taskvec.weights import Weights
from taskvec.weights.dtypes import EDITABLE, raw_bytes, short

PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Initialisations by name that leave the base as it is; the others subtract from it what they start with."""

# fmt: off
_CHANGES_NOTHING = frozenset({
    "auto_mapping", "base_model_class", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "layers_pattern", "layers_to_transform", "loftq_config",
    "lora_dropout", "lora_ga_config", "megatron_config", "megatron_core",
    "parent_library", "peft_version", "qalora_group_size", "revision", "runtime_config", "target_modules",
    "task_type",
})
# fmt: on
"""Settings of the training, or of where the layers are, which the tensors themselves tell."""

PATTERNS = 200_000
"""Characters of all patterns of an adapter: each takes some time to compile."""

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(?:(?<=vector)\.weight)?"
)
_WRAPPER = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")


def _number(value: object) -> object:
    """A number as it is: the truth of something is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected a number")
    return value


Number = TypeVar("Number", int, float)
Rank = Annotated[int, BeforeValidator(_number), Field(lt=1 << 31)]
Alpha = Annotated[float, BeforeValidator(_number)]


class Settings(Config):
    """``adapter_config.json``, as far as it decides what the factors stand for."""

    model_config = ConfigDict(extra="allow", allow_inf_nan=True)

    peft_type: str
    r: Rank = 8
    lora_alpha: Alpha = 8
    use_rslora: bool = False
    use_dora: bool = False
    lora_bias: bool = False
    bias: str = "none"
    fan_in_fan_out: bool = False
    init_lora_weights: bool | str | None = True
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Alpha] | None = None
    modules_to_save: list[str] | None = None
    base_model_name_or_path: str | None = None
    _where: str = PrivateAttr("adapter_config.json")

    def record(self) -> dict[str, Any]:
        """What decides what the factors stand for, where it is not the default."""
        kept = set(Settings.model_fields) - {"base_model_name_or_path", "modules_to_save"}
        given = self.model_dump(mode="json", include=kept, exclude_defaults=True)
        set_fields = {name: value for name, value in given.items() if value}
        return {"r": self.r, "lora_alpha": self.lora_alpha, **set_fields}

    def rank(self, module: str) -> int:
        """The rank of a layer."""
        return next((rank for pattern, rank in self._ranks if pattern.match(module)), self.r)

    def scaling(self, module: str) -> float:
        """What the product of the factors of a layer is multiplied by."""
        matching = (alpha for pattern, alpha in self._alphas if pattern.match(module))
        rank, alpha = self.rank(module), next(matching, self.lora_alpha)
        return alpha / (math.sqrt(rank) if self.use_rslora else rank)

    @cached_property
    def _ranks(self) -> list[tuple[Pattern, int]]:
        return self._compiled("rank_pattern", self.rank_pattern)

    @cached_property
    def _alphas(self) -> list[tuple[Pattern, float]]:
        return self._compiled("alpha_pattern", self.alpha_pattern)

    def _compiled(self, field: str, patterns: Mapping[str, Number] | None) -> list[tuple[Pattern, Number]]:
        """Expressions that match the end of a layer's name. All together may take the time of one."""
        where, watch, given = f"{self._where}: {field}", Stopwatch(), patterns or {}
        if sum(map(len, given)) > PATTERNS:
            raise InputError(f"{where}: more than {PATTERNS:,} characters of patterns; write simpler ones")
        return [(Pattern(text, where, watch, within=r"(.*\.)?({})$"), value) for text, value in given.items()]


@dataclass(frozen=True)
class Layer:
    """The tensors of one adapted layer, by their names in the file.

    Attributes:
        module: the layer's name in the model.
        a: (rank, in, ...).
        b: (out, rank, ...).
        embedding: whether the layer looks up the columns of ``b a``.
        magnitude: (out,), the lengths that DoRA gives the rows, if it is one.
        bias: (out,), added to the layer's bias, if there is one.
    """

    module: str
    a: str
    b: str
    scaling: float
    embedding: bool
    magnitude: str | None
    bias: str | None


@dataclass(frozen=True)
class Product:
    """``scaling b a``; by rows of ``b``, or of ``a`` where the layer keeps its weights transposed.

    ``start`` are the weights that it was added to in training, where they were saved too.
    """

    layer: Layer
    transposed: bool
    start: str | None = None


@dataclass(frozen=True)
class Shift:
    """``scaling b`` for a bias."""

    key: str
    scaling: float


@dataclass(frozen=True)
class Saved:
    """A tensor that was trained and saved whole; the direction is what it differs from the base by."""

    key: str


Piece = Product | Shift | Saved


def read_settings(path: Path) -> Settings:
    """The settings of an adapter that is a change of weights which is known exactly.

    Raises: InputError, naming the kind or the setting, for any other; CorruptFile.
    """
    if not os.path.lexists(path):
        raise InputError(
            f"{path}: no such file, expected the settings of the LoRA adapter beside its weights"
        )
    settings = Settings.parse(str(path), read_mapping(path))
    settings._where = str(path)
    _check_kind(path, settings)
    return settings


def read_parts(weights: Weights, settings: Settings) -> tuple[list[Layer], dict[str, str]]:
    """The layers of an adapter, and the tensors saved whole: name in the model -> name in the file.

    Raises: KeyMismatch for a tensor without its partner, of another rank, or not explained by the settings;
        for a layer that is there twice, or is not there though the settings say that it was saved whole.
    """
    parts: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    for key in weights:
        name = key.removeprefix("base_model.model.")
        match = _PART.fullmatch(name)
        if match:
            _check_floating(weights, key)
            _keep_once(weights, parts.setdefault(match["module"], {}), match["part"], key)
        elif "lora_" in name:
            raise KeyMismatch(
                f"{weights.ref}: {key!r} found, expected lora_A.weight, lora_B.weight, lora_B.bias, "
                "lora_embedding_A, lora_embedding_B or lora_magnitude_vector"
            )
        elif ".original_module." not in name:  # what a layer was before it was trained whole
            _keep_once(weights, saved, _WRAPPER.sub("", name), key)
    _check_saved(weights, settings, saved)
    if not parts:
        raise KeyMismatch(f"{weights.ref}: no factors of a layer in it, expected lora_A and lora_B of some")
    return [_layer(weights, settings, module, keys) for module, keys in parts.items()], saved


def _keep_once(weights: Weights, keys: dict[str, str], name: str, key: str) -> None:
    """Note which tensor of the file something is; PEFT writes biases of heads twice, which are equal.

    Raises: KeyMismatch if another tensor, with other content, is the same thing.
    """
    first = keys.setdefault(name, key)
    if first != key and raw_bytes(weights.read(first)) != raw_bytes(weights.read(key)):
        raise KeyMismatch(
            f"{weights.ref}: {first!r} and {key!r} are the same part of the same layer, expected one; "
            "remove the one that is not meant"
        )


def _check_saved(weights: Weights, settings: Settings, saved: Mapping[str, str]) -> None:
    """Refuse an adapter that lacks what it says was trained whole.

    Raises: KeyMismatch.
    """
    present = [f".{name}" for name in saved]
    missing = [
        module for module in settings.modules_to_save or () if not any(f".{module}." in n for n in present)
    ]
    if any(module not in missing for module in CLASSIFIERS):  # PEFT lists every name that a head may have
        missing = [module for module in missing if module not in CLASSIFIERS]
    if missing:
        raise KeyMismatch(
            f"{weights.ref}: no tensor of {missing[0]!r}, expected it saved whole as modules_to_save in "
            "adapter_config.json says; save the adapter again, or remove the name there if it was not trained"
        )


def _layer(weights: Weights, settings: Settings, module: str, keys: Mapping[str, str]) -> Layer:
    embedding = "lora_embedding_A" in keys or "lora_embedding_B" in keys
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    wanted = {*names}
    wanted |= {"lora_magnitude_vector"} if settings.use_dora else set()
    wanted |= {"lora_B.bias"} if settings.lora_bias and not embedding else set()
    missing, extra = sorted(wanted - keys.keys()), sorted(keys.keys() - wanted)
    if missing:
        name, partner = f"{module}.{missing[0]}", next(iter(keys.values()))
        raise KeyMismatch(f"{weights.ref}: {name!r} is missing, expected it beside {partner!r}")
    if extra:
        raise KeyMismatch(
            f"{weights.ref}: {keys[extra[0]]!r} found, expected none by the adapter's settings "
            f"(use_dora {settings.use_dora}, lora_bias {settings.lora_bias})"
        )
    a, b = (keys[name] for name in names)
    rank, (inner, outer) = settings.rank(module), (weights.spec(a).shape, weights.spec(b).shape)
    if min(len(inner), len(outer)) < 2 or inner[0] != rank or math.prod(outer[1:]) != rank:
        raise KeyMismatch(
            f"{weights.ref}: {a!r} has shape {inner} and {b!r} {outer}, expected rank {rank} as in the "
            "settings: (rank, in) and (out, rank)"
        )
    magnitude, bias = keys.get("lora_magnitude_vector"), keys.get("lora_B.bias")
    for vector in (magnitude, bias):
        if vector and math.prod(weights.spec(vector).shape) != outer[0]:
            shape = weights.spec(vector).shape
            raise KeyMismatch(f"{weights.ref}: {vector!r} has shape {shape}, expected {outer[:1]}")
    return Layer(module, a, b, settings.scaling(module), embedding, magnitude, bias)


def _check_kind(path: Path, settings: Settings) -> None:
    """Refuse what is no sum of base and factors, or not one whose terms are known."""
    if settings.peft_type != "LORA":
        raise InputError(
            f"{path}: an adapter of the kind {settings.peft_type[:40]}, expected LORA; merge it with PEFT"
        )
    start = settings.init_lora_weights
    if isinstance(start, str) and start.lower() not in PLAIN_STARTS:
        raise InputError(
            f"{path}: init_lora_weights is {shown(start)}, which changes the base before training, "
            "convert it: save_pretrained with path_initial_model_for_weight_conversion"
        )
    if not all(map(math.isfinite, (settings.lora_alpha, *(settings.alpha_pattern or {}).values()))):
        raise InputError(f"{path}: an alpha is not finite, expected a number")
    if min((settings.r, *(settings.rank_pattern or {}).values())) < 1:
        raise InputError(f"{path}: a rank is smaller than 1, expected a positive number")
    if settings.use_dora and settings.lora_bias:
        raise InputError(f"{path}: use_dora and lora_bias are both set, expected one of them at most")
    _ = settings._ranks, settings._alphas  # refused here if they are no regular expressions
    for name, value in (settings.model_extra or {}).items():
        if value and name not in _CHANGES_NOTHING:
            state = "set" if isinstance(value, bool | dict | list) else shown(value)
            raise InputError(
                f"{path}: {shown(name)} is {state}, expected plain LoRA, rsLoRA or DoRA; "
                "merge this adapter with PEFT, or remove the setting if it did nothing in training"
            )


def _check_floating(weights: Weights, key: str) -> None:
    dtype = weights.spec(key).dtype
    if dtype not in EDITABLE:
        raise KeyMismatch(f"{weights.ref}: {key!r} has dtype {short(dtype)}, expected floating point")
