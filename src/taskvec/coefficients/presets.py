"""Published methods as points of the settings."""

from collections.abc import Mapping

from taskvec.coefficients.settings import CoefficientSettings
from taskvec.errors import UnknownName
from taskvec.registry import nearest

Values = Mapping[str, object]

_ENTROPY: Values = {"box": "clamp", "signal": "entropy", "batches": 2, "steps": 500, "lr": 1e-3}
_LABELS: Values = {"signal": "labels", "steps": 500, "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1}

PRESETS: Mapping[str, Values] = {
    "adamerging": {**_ENTROPY, "scope": "task"},
    "adamerging-layer": {**_ENTROPY, "scope": "tensor"},  # what the authors' code calls a layer
    "adamerging++": {**_ENTROPY, "scope": "task", "trim": 0.2},
    "adamerging-layer++": {**_ENTROPY, "scope": "tensor", "trim": 0.2},
    "atlas": {**_LABELS, "scope": "tensor", "start": 0.0, "clip": 1.0},
    "dv_basi": {"scope": "layer", "signal": "labels", "start": 1.0, "steps": 300},
    "adarank": {"scope": "rank", "signal": "entropy", "steps": 500, "lr": 1e-3},
    "supervised": {"scope": "task", "signal": "labels"},
}
"""Preset -> the settings it makes; ``dv_basi`` is our reading of a method without public code."""


def preset(name: str, changes: Values | None = None) -> CoefficientSettings:
    """The settings of a preset, some of them changed.

    Raises: UnknownName; InputError for a change that does not fit.
    """
    if name not in PRESETS:
        raise UnknownName(f"no preset called {name!r}; {nearest(name, PRESETS)}")
    return CoefficientSettings.parse(name, {**PRESETS[name], **(changes or {})})


_FEW_SHOT: Values = {
    "scope": "tensor",
    "signal": "labels",
    "split": "train",
    "start": 0.0,
    "steps": 40,
    "batch": 32,
    "lr": 0.03,
}


def few_shot(changes: Values | None = None) -> CoefficientSettings:
    """The settings of few-shot adaptation, some of them changed; see ``docs/few-shot.md`` for the choice.

    Raises: InputError for a change that does not fit.
    """
    return CoefficientSettings.parse("", {**_FEW_SHOT, **(changes or {})})
