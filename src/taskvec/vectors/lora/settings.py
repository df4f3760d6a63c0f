"""``adapter_config.json``: which adapters are a change of weights that is known exactly."""

import math
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BeforeValidator, ConfigDict, Field, PrivateAttr

from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.patterns import Pattern, Stopwatch
from taskvec.reading import read_mapping, shown

_PLAIN_STARTS = frozenset({"gaussian", "eva", "orthogonal", "mica"})
"""Initialisations by name that leave the base as it is; the others subtract from it what they start with."""

# fmt: off
_CHANGES_NOTHING = frozenset({
    "auto_mapping", "base_model_class", "corda_config", "eva_config",
    "exclude_modules", "inference_mode", "init_ia3_weights", "init_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_dropout", "lora_ga_config", "megatron_config",
    "megatron_core", "parent_library", "peft_version", "qalora_group_size", "revision", "runtime_config",
    "target_modules", "task_type",
})
# fmt: on
"""Settings of the training, or of where the layers are, which the tensors themselves tell."""

_NOT_RECORDED = {
    "base_model_name_or_path",
    "modules_to_save",
    "ensure_weight_tying",
    "token_indices",
    "trainable_token_indices",
}
"""Settings that are no part of a vector's provenance: they tell which tensors are there, or are long."""

PATTERNS = 200_000
"""Characters of all patterns of an adapter: each takes some time to compile."""


def _number(value: object) -> object:
    """A number as it is: the truth of something is none."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected a number")
    return value


Number = TypeVar("Number", int, float)
Rank = Annotated[int, BeforeValidator(_number), Field(lt=1 << 31)]
Alpha = Annotated[float, BeforeValidator(_number)]


_KINDS = ("LORA", "IA3", "TRAINABLE_TOKENS", "LN_TUNING")
_PROMPTS = frozenset(
    {"PROMPT_TUNING", "MULTITASK_PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING", "ADAPTION_PROMPT", "CPT"}
    | {"CARTRIDGE", "XLORA", "POLY"}
)
"""Kinds that add inputs, or choose between adapters for each of them."""
Indices = Annotated[list[Annotated[int, Field(ge=0, lt=1 << 31)]], Field(min_length=1, max_length=1 << 20)]


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
    ensure_weight_tying: bool = False
    target_parameters: Annotated[list[str], Field(max_length=4096)] | None = None
    trainable_token_indices: Indices | dict[str, Indices] | None = None
    token_indices: Indices | None = None
    feedforward_modules: Annotated[list[str], Field(max_length=4096)] | str | None = None
    base_model_name_or_path: str | None = None
    _where: str = PrivateAttr("adapter_config.json")

    def record(self) -> dict[str, Any]:
        """What decides what the factors stand for, where it is not the default."""
        kept = set(Settings.model_fields) - _NOT_RECORDED
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

    def tokens(self, module: str) -> tuple[int, ...]:
        """The rows that were trained of a table of tokens; none if it was not trained by rows."""
        given = self.trainable_token_indices or self.token_indices or []
        if isinstance(given, dict):
            fitting = (rows for name, rows in given.items() if f".{module}".endswith(f".{name}"))
            return tuple(next(fitting, []))
        return tuple(given)

    def parameters(self, module: str) -> list[str]:
        """The parameters of a module, by their own names, that factors may be of; gates come first."""
        split = (target.rpartition(".") for target in self.target_parameters or ())
        found = {name for place, _, name in split if not place or f".{module}".endswith(f".{place}")}
        return sorted(found, key=lambda name: (not name.startswith("gate"), name))

    def is_feedforward(self, module: str) -> bool:
        """Whether (IA)³ multiplies the inputs of a layer, not its outputs."""
        named = self.feedforward_modules or []
        if isinstance(named, str):
            return self._feedforward is not None and self._feedforward.fullmatch(module) is not None
        return any(module.endswith(name) for name in named)

    @cached_property
    def _feedforward(self) -> Pattern | None:
        text = self.feedforward_modules
        return (
            Pattern(text, f"{self._where}: feedforward_modules") if isinstance(text, str) and text else None
        )

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


def check_present(path: Path) -> None:
    """Refuse factors whose settings are not there.

    Raises: InputError.
    """
    if not os.path.lexists(path):
        raise InputError(
            f"{path}: no such file, expected the settings of the LoRA adapter beside its weights; copy it "
            "from where the adapter comes from, as it holds the scale of the factors"
        )


def read_settings(path: Path) -> Settings:
    """The settings of an adapter that is a change of weights which is known exactly.

    Raises: InputError, naming the kind or the setting, for any other; CorruptFile.
    """
    check_present(path)
    settings = Settings.parse(str(path), read_mapping(path))
    settings._where = str(path)
    _check_kind(path, settings)
    return settings


def _check_kind(path: Path, settings: Settings) -> None:
    """Refuse what is no sum of base and factors, or not one whose terms are known."""
    if settings.peft_type in _PROMPTS:
        raise InputError(
            f"{path}: an adapter of the kind {settings.peft_type}, expected LORA, IA3, TRAINABLE_TOKENS or "
            "LN_TUNING; it changes no weights, so it is no task vector and cannot be merged; use PEFT"
        )
    if settings.peft_type not in _KINDS:
        raise InputError(
            f"{path}: an adapter of the kind {settings.peft_type[:40]}, expected LORA, IA3, "
            "TRAINABLE_TOKENS or LN_TUNING; merge it with PEFT "
            "(PeftModel.from_pretrained(…).merge_and_unload()) and use the merged model"
        )
    start = settings.init_lora_weights
    if isinstance(start, str) and start.lower() not in _PLAIN_STARTS:
        raise InputError(
            f"{path}: init_lora_weights is {shown(start)}, which changes the base before training, "
            "convert it: save_pretrained with path_initial_model_for_weight_conversion"
        )
    check_numbers(str(path), settings)
    if settings.use_dora and settings.lora_bias:
        raise InputError(f"{path}: use_dora and lora_bias are both set, expected one of them at most")
    _ = settings._ranks, settings._alphas, settings._feedforward  # refused if they are no regular expressions
    _check_extra(path, settings)


def check_numbers(where: str, settings: Settings) -> None:
    """Refuse ranks and alphas that scale nothing.

    Raises: InputError.
    """
    if not all(map(math.isfinite, (settings.lora_alpha, *(settings.alpha_pattern or {}).values()))):
        raise InputError(f"{where}: an alpha is not finite, expected a number")
    if min((settings.r, *(settings.rank_pattern or {}).values())) < 1:
        raise InputError(f"{where}: a rank is smaller than 1, expected a positive number")


def _check_extra(path: Path, settings: Settings) -> None:
    extra = settings.model_extra or {}
    if extra.get("layer_replication"):
        raise InputError(
            f"{path}: 'layer_replication' is set, so the adapter is of a deeper model, whose layers repeat "
            "those of the base; merge it with PEFT, or first make that model: repeat the layers by slices "
            "(docs/mergekit.md) and remove the setting"
        )
    for name, value in extra.items():
        if value and name not in _CHANGES_NOTHING:
            state = "set" if isinstance(value, bool | dict | list) else shown(value)
            raise InputError(
                f"{path}: {shown(name)} is {state}, expected plain LoRA, rsLoRA or DoRA; "
                "merge this adapter with PEFT, or remove the setting if it did nothing in training"
            )
