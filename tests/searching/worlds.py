"""Tiny models with two tuned ones each, and suites that they are measured on."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import image_families
from checkpoints import save_bert
from classifiers import save_text
from language_models import TEXT, save_language_model
from taskvec.edits.merge import Merge
from taskvec.edits.recipe import Recipe, build

SMALL = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
CLASSES = ["neither", "one", "both"]
KINDS = ("encoder", "zero-shot", "classifier", "language", "tied", "answers", "written", "images")


@dataclass(frozen=True)
class World:
    """A model, models tuned from it, and a suite."""

    base: Path
    tuned: Mapping[str, Path]
    suite: Path

    def merge(self, expression: str = "0.5*a + 0.5*b", **more: Any) -> Merge:
        """A candidate."""
        used = {name: str(path) for name, path in self.tuned.items() if name in expression}
        return build(Recipe(base=str(self.base), models=used, expression=expression, **more))


def make(kind: str, folder: Path) -> World:
    """The world of a kind of model and task."""
    base, task = MODELS[kind](folder)
    tuned = {name: tune(base, folder / name, seed) for seed, name in enumerate("ab")}
    suite = folder / "suite.yaml"
    suite.write_text(
        json.dumps({"suite": "small", "tasks": {"one": task, "two": {**task, **SECOND.get(kind, {})}}})
    )
    return World(base, tuned, suite)


def tune(base: Path, folder: Path, seed: int, size: float = 0.3) -> Path:
    """A copy whose every number is moved a little, those of heads and running statistics too."""
    shutil.copytree(base, folder)
    draw = torch.Generator().manual_seed(seed)
    tensors = load_file(folder / "model.safetensors")
    for name, value in tensors.items():
        if value.is_floating_point():
            step = size * torch.randn(value.shape, generator=draw) * (value.std(correction=0) + 0.1)
            moved = value + step
            tensors[name] = moved.abs() if "running_var" in name else moved
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return folder


def _pairs(folder: Path, words: list[str], labels: list[Any] | None = None) -> dict[str, Any]:
    draw, marks = Random(0), words[:2]
    with (folder / "rows.jsonl").open("w") as file:
        for split, count in {"train": 60, "validation": 31, "test": 20}.items():
            for place in range(count):
                text = [*marks[: place % 3], *draw.sample(words[2:], 3)]
                draw.shuffle(text)
                label = place % 3 if labels is None else labels[place % 3]
                file.write(json.dumps({"split": split, "label": label, "text": " ".join(text)}) + "\n")
    return {"source": "jsonl", "path": "rows.jsonl"}


def _encoder(folder: Path) -> tuple[Path, dict[str, Any]]:
    data = _pairs(folder, ["one", "two", "three", "four", "film", "good", "bad", "cat", "dog"])
    return save_bert(folder / "base"), {"classes": CLASSES, "head": "linear-probe", "data": data}


def _zero_shot(folder: Path) -> tuple[Path, dict[str, Any]]:
    base, task = _encoder(folder)
    return base, {**task, "head": "zero-shot"}


def _classifier(folder: Path) -> tuple[Path, dict[str, Any]]:
    save_text(folder / "base", "roberta")
    data = _pairs(folder, ["one", "two", "three", "four", "film", "good", "bad", "cat", "dog"])
    return folder / "base", {"classes": CLASSES, "head": "own", "data": data}


def _language(folder: Path, kind: str = "gpt2") -> tuple[Path, dict[str, Any]]:
    (folder / "text.txt").write_text(TEXT * 3)
    data = {"source": "text", "path": "text.txt", "splits": {"train": 0.3, "validation": 0.5, "test": 0.2}}
    return save_language_model(folder / "base", kind), {"kind": "language", "context": 16, "data": data}


def _tied(folder: Path) -> tuple[Path, dict[str, Any]]:
    return _language(folder, "tied")


def _answers(folder: Path) -> tuple[Path, dict[str, Any]]:
    data = _pairs(folder, TEXT.split()[:12])
    return save_language_model(folder / "base", "llama"), {
        "kind": "generation",
        "answers": CLASSES,
        "data": data,
    }


def _written(folder: Path) -> tuple[Path, dict[str, Any]]:
    data = _pairs(folder, TEXT.split()[:12], ["the cat", "the", "mat"])
    task = {"kind": "generation", "sampling": {"max_new_tokens": 3}, "data": data}
    return save_language_model(folder / "base", "gpt2"), task


def _images(folder: Path) -> tuple[Path, dict[str, Any]]:
    draw = np.random.default_rng(0)
    for split, count in {"train": 130, "test": 4}.items():
        for place in range(count):
            home = folder / "pets" / split / ("cat", "dog")[place % 2]
            home.mkdir(parents=True, exist_ok=True)
            pixels = draw.integers(0, 255, (16, 16, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(home / f"{place}.png")
    base = image_families.save("resnet", folder / "base", SMALL)
    task = {"modality": "image", "classes": ["cat", "dog"], "head": "linear-probe"}
    return base, {**task, "data": {"source": "images", "path": "pets"}}


MODELS = {
    "encoder": _encoder,
    "zero-shot": _zero_shot,
    "classifier": _classifier,
    "language": _language,
    "tied": _tied,
    "answers": _answers,
    "written": _written,
    "images": _images,
}
SECOND: dict[str, dict[str, Any]] = {
    "encoder": {"metric": "macro_f1"},
    "language": {"metric": "bits_per_byte"},
    "tied": {"stride": 8},
}
