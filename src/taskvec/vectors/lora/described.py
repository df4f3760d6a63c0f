"""``adapter_config.json`` of an adapter that is written."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from taskvec.vectors.delta import Delta
from taskvec.vectors.lora.selecting import Selection
from taskvec.vectors.lora.targets import Target


def describe(vector: Delta, selection: Selection, ranks: Sequence[int]) -> dict[str, Any]:
    """The settings of an adapter, by which PEFT finds its layers; every scaling is 1.

    Args:
        ranks: of the targets.

    Raises: InputError where PEFT would miss a layer.
    """
    targets = selection.targets
    others = [] if selection.network is None else selection.network.check_reached(targets)
    r, pattern = _patterns(targets, ranks)
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": vector.base.ref,
        "inference_mode": True,
        "r": r,
        "lora_alpha": r,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": _is_turned(selection),
        "init_lora_weights": True,
        "target_modules": [target.address for target in targets if target.form != "parameter"],
        **_given("target_parameters", [target.address for target in targets if target.form == "parameter"]),
        **_given("exclude_modules", others),
        **_given("rank_pattern", pattern),
        **_given("alpha_pattern", pattern),
    }


def _given(field: str, value: Sequence[str] | Mapping[str, int]) -> dict[str, Any]:
    return {field: value} if value else {}


def _is_turned(selection: Selection) -> bool:
    """Whether the linear layers are stored as (in, out); PEFT sets it right for each as it meets them."""
    linear = [target for target in selection.targets if target.form == "linear"]
    parts = [part for factors in selection.factors.values() for part in factors.parts]
    said = any(part.adapter.contents.settings.fan_in_fan_out for part in parts)
    return bool(linear) and (said or all(target.turned for target in linear))


def _patterns(targets: Sequence[Target], ranks: Sequence[int]) -> tuple[int, dict[str, int]]:
    """The commonest rank, and the others: of all layers whose names end alike, or else of single layers."""
    ((usual, _),) = Counter(sorted(ranks, reverse=True)).most_common(1)
    kinds: dict[str, dict[str, int]] = {}
    for target, rank in zip(targets, ranks, strict=True):
        kinds.setdefault(target.address.rpartition(".")[2], {})[target.address] = rank
    pattern: dict[str, int] = {}
    for ending, layers in kinds.items():
        if len(set(layers.values())) == 1:
            layers = {re.escape(ending): next(iter(layers.values()))}
        else:
            layers = {f"^{re.escape(name)}": rank for name, rank in layers.items()}
        pattern |= {name: rank for name, rank in layers.items() if rank != usual}
    return usual, pattern
