"""A tiny base with two vectors, and scores that are bowls around a sum of them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

import taskvec as tv

Judge = Callable[[Mapping[str, Tensor]], dict[str, float]]
NAMES = [f"layers.{block}.w" for block in range(2)]


def save_world(folder: Path) -> Path:
    """A base, vectors a and b of it; returns a recipe ``0.5*a + 0.5*b``."""
    draw = torch.Generator().manual_seed(0)
    base = {name: torch.randn(6, 6, generator=draw) for name in NAMES}
    tv.save_weights(base, folder / "base")
    for name in "ab":
        deltas = {key: 0.1 * torch.randn(6, 6, generator=draw) for key in NAMES}
        tv.TaskVector.from_tensors(deltas, tv.open_weights(folder / "base")).save(
            folder / f"{name}.safetensors"
        )
    recipe = folder / "recipe.yaml"
    recipe.write_text(
        "base: base\nvectors: {a: a.safetensors, b: b.safetensors}\nexpression: 0.5*a + 0.5*b\n"
    )
    return recipe


def bowl(folder: Path, a: float, b: float) -> Judge:
    """Minus the squared distance of edited weights from ``base + a * A + b * B``, in units of the vectors."""
    base = tv.open_weights(folder / "base")
    first, second = (tv.TaskVector.load(folder / f"{name}.safetensors") for name in "ab")
    target = {key: base[key] + a * first[key] + b * second[key] for key in NAMES}
    size = sum(float(first[key].square().sum()) for key in NAMES)

    def judge(weights: Mapping[str, Tensor]) -> dict[str, float]:
        apart = sum(float((weights[key] - target[key]).double().square().sum()) for key in NAMES)
        return {"fit": -apart / size}

    return judge
