"""What the provenance of a vector says of a training by transformers' Trainer."""

import math
import sys
from collections.abc import Mapping
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import torch

from taskvec.training.penalties.settings import PenaltySettings
from taskvec.training.regimes import Regime

if TYPE_CHECKING:
    from transformers import TrainerState, TrainingArguments

_SETTINGS = {
    "lr": "learning_rate",
    "epochs": "num_train_epochs",
    "max_steps": "max_steps",
    "per_device_batch_size": "per_device_train_batch_size",
    "accumulation": "gradient_accumulation_steps",
    "processes": "world_size",
    "weight_decay": "weight_decay",
    "warmup_steps": "warmup_steps",
    "schedule": "lr_scheduler_type",
    "clip": "max_grad_norm",
    "optimizer": "optim",
    "adam_beta1": "adam_beta1",
    "adam_beta2": "adam_beta2",
    "adam_epsilon": "adam_epsilon",
    "label_smoothing": "label_smoothing_factor",
    "seed": "seed",
    "data_seed": "data_seed",
}
"""What decides a training -> what ``TrainingArguments`` calls it. Nothing else is told: other arguments hold
tokens, and paths of the machine."""

_OF_TRL = (
    *("loss_type", "beta", "max_length", "packing", "completion_only_loss", "assistant_only_loss"),
    *(
        "num_generations",
        "temperature",
        "desirable_weight",
        "undesirable_weight",
        "center_rewards_coefficient",
    ),
)
"""What decides a training by trl besides."""

_PACKAGES = ("transformers", "accelerate", "peft", "trl")

_MEASURED = ("eval_", "taskvec/")
_OF_SPEED = ("runtime", "per_second", "preparation_time")


def describe_training(
    args: "TrainingArguments",
    state: "TrainerState",
    regime: Regime | None,
    penalties: tuple[PenaltySettings, ...],
    **more: object,
) -> dict[str, object]:
    """Settings, steps and versions, as plain data."""
    given = {name: getattr(args, field, None) for name, field in _SETTINGS.items()}
    given |= {name: getattr(args, name, None) for name in _OF_TRL}
    told = {name: _plain(value) for name, value in given.items() if value is not None}
    return {
        **told,
        "steps": state.global_step,
        "precision": "bf16" if args.bf16 else "fp16" if args.fp16 else "float32",
        **({} if regime is None else regime.details()),
        **({"penalty": [each.model_dump(mode="json") for each in penalties]} if penalties else {}),
        "torch": torch.__version__,
        "device": args.device.type,
        "versions": {name: version(name) for name in _PACKAGES if name in sys.modules},
        **more,
    }


def describe_metrics(state: "TrainerState", best: bool) -> dict[str, float] | None:
    """The last figures on evaluation data, or those of the best checkpoint; ``None`` without any."""
    history = [entry for entry in state.log_history if any(key.startswith(_MEASURED) for key in entry)]
    steps = [entry["step"] for entry in history if any(key.startswith("eval_") for key in entry)]
    if not steps:
        return None
    step = state.best_global_step if best and state.best_global_step in steps else steps[-1]
    found: dict[str, float] = {}
    for entry in history:
        found |= _finite(entry) if entry["step"] == step else {}
    return {key: value for key, value in found.items() if not key.endswith(_OF_SPEED)}


def _finite(figures: Mapping[str, Any]) -> dict[str, float]:
    """Those that are finite numbers."""
    numbers = {key: value for key, value in figures.items() if isinstance(value, int | float)}
    return {key: value for key, value in numbers.items() if math.isfinite(value)}


def _plain(value: Any) -> object:
    """A setting as JSON has it; the name of an enumeration, a list of simple values."""
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    value = getattr(value, "value", value)
    return value if isinstance(value, bool | int | float | str) else str(value)
