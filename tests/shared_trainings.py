"""Trainings of every kind, to be done in one process and in several: a script, and its cases."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import taskvec as tv
from launching import leave
from taskvec.group import joined

RECIPE = tv.TrainSettings(lr=1e-3, steps=6, batch_size=16, weight_decay=0.01, validations=0)
JOINT = ("pets", "taste")

Made = Mapping[str, torch.Tensor]


def recipe(**changes: Any) -> tv.TrainSettings:
    """The usual one, changed."""
    return tv.TrainSettings.model_validate({**RECIPE.model_dump(), **changes})


def tuned(
    *tasks: str, settings: Mapping[str, Any] | None = None, references: Sequence[str] = (), **options: Any
) -> Callable[[tv.Evaluator], Made]:
    """A training on some tasks, by default one."""

    def make(evaluator: tv.Evaluator) -> Made:
        parts, others = (list(map(evaluator.part, names)) for names in (tasks or ("pets",), references))
        asked = recipe(**(settings or {}))
        return tv.finetune(evaluator.backbone, parts, settings=asked, references=others, **options)

    return make


def rounds(**options: Any) -> Callable[[tv.Evaluator], Made]:
    """Two rounds of ATM."""

    def make(evaluator: tv.Evaluator) -> Made:
        parts = [evaluator.part(name) for name in JOINT]
        return tv.atm(evaluator.backbone, parts, rounds=2, settings=recipe(validations=1), **options)

    return make


TRAININGS: dict[str, Callable[[tv.Evaluator], Made]] = {
    **{name: tuned(regime=name) for name in ("full", "attention", "tangent", "tangent-attention")},
    **{name: tuned(regime=name) for name in ("lora", "tangent-lora", "gated")},
    "sgd": tuned(settings={"optimizer": "sgd", "lr": 0.1}),
    "accumulated": tuned(settings={"accumulation": 3, "batch_size": 13}),
    "uneven": tuned(settings={"batch_size": 19}),  # 96 examples: the last batch has one
    "alone": tuned(settings={"batch_size": 1}),
    "ascent": tuned(ascend=True),
    "together": tuned(*JOINT),
    "pcgrad": tuned(*JOINT, combiner="pcgrad"),
    "graddrop": tuned(*JOINT, combiner="graddrop"),
    "meta": tuned(*JOINT, combiner={"combiner": "meta", "target": "pets"}),
    "little room": tuned(*JOINT, combiner="mgda", settings={"combiner_memory": 1e-5}),
    "penalties": tuned(
        settings={
            # not Adam, to which what little differs at biases without a gradient is as good as any
            **{"optimizer": "sgd", "lr": 0.1},
            "penalty": [
                *({"kind": "decay", "strength": 0.1}, {"kind": "orthoreg", "strength": 0.01}),
                {"kind": "tau_jp", "strength": 0.1, "batch_size": 5},
            ],
        },
        references=["taste"],
    ),
    "pcgrad, penalties": tuned(
        *JOINT,
        combiner="pcgrad",
        settings={"penalty": [{"kind": "tau_jp", "strength": 0.1, "batch_size": 5}]},
        references=["number"],
    ),
    "tak": tuned(settings={"penalty": [{"kind": "tak", "strength": 0.1}]}, references=["taste"]),
    "atm": rounds(),
    "atm, tangent": rounds(regime="tangent", state="kept", schedule="budget"),
}


def opened(suite: Path, model: Path) -> tv.Evaluator:
    """The model in float64, so that what differs is no rounding: Adam makes steps of it."""
    backbone = tv.load_backbone(str(model)).double()
    return tv.Evaluator(backbone, list(tv.load_suite(suite).tasks.values()))


def main(folder: Path, suite: Path, model: Path, *names: str) -> None:
    """Do trainings, and write what they learned."""
    with joined() as group:
        evaluator = opened(suite, model)
        for name in names:
            vector = TRAININGS[name](evaluator)
            if group.first:
                torch.save({key: vector[key] for key in vector}, folder / f"{name}.pt")
        scores = evaluator.scores(evaluator.pretrained, evaluator.tasks, "test")
        if group.first:
            (folder / "scores.json").write_text(json.dumps({n: s.record() for n, s in scores.items()}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    folder, suite, model, *names = sys.argv[1:]
    main(Path(folder), Path(suite), Path(model), *names)
    leave()
