"""A base and three models fine-tuned from it, in the layout of Llama, and the YAML that merges them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import Tensor

from taskvec.cli import main
from taskvec.edits.merge import Merge
from taskvec.edits.mergekit import read
from taskvec.weights import save_weights

LAYERS = 4
PARTS = {
    "input_layernorm.weight": (6,),
    "self_attn.q_proj.weight": (6, 6),
    "self_attn.o_proj.weight": (6, 6),
    "mlp.up_proj.weight": (8, 6),
}
SHAPES = {
    "model.embed_tokens.weight": (12, 6),
    **{f"model.layers.{layer}.{part}": shape for layer in range(LAYERS) for part, shape in PARTS.items()},
    "model.norm.weight": (6,),
    "lm_head.weight": (12, 6),
}
State = dict[str, Tensor]
Rule = Callable[[Tensor, Tensor], Tensor]
"""Base (*shape) and deltas (task, *shape), float64 -> the merged tensor."""


def state(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def tuned(seed: int) -> State:
    """The base moved; all by a common part, and each by its own."""
    common, own = state(100), state(seed)
    return {name: value + 0.1 * common[name] + 0.1 * own[name] for name, value in state(0).items()}


STATES = {"base": state(0), "a": tuned(1), "b": tuned(2), "c": tuned(3)}


def save_models(folder: Path) -> None:
    """The models, one of them also in bfloat16 and one without its head."""
    config = {
        "num_hidden_layers": LAYERS,
        "layer_types": list("wxyz"),
        "dtype": "float32",
        "eos_token_id": [1, 2],
    }
    for name, tensors in STATES.items():
        save_weights(tensors, folder / name, max_shard_size=1500)
        (folder / name / "config.json").write_text(json.dumps(config))
    halves = {name: value.to(torch.bfloat16) for name, value in STATES["b"].items()}
    save_weights(halves, folder / "half")
    save_weights(
        {name: value for name, value in STATES["c"].items() if name != "lm_head.weight"}, folder / "headless"
    )


def merge(text: str) -> Merge:
    return read(Path("merge.yaml"), yaml.safe_load(text))


def run(*arguments: object) -> None:
    """A command that ends well."""
    with pytest.raises(SystemExit) as ended:
        main([str(argument) for argument in arguments])
    assert ended.value.code == 0


def document(method: str, names: str = "ab", base: str | None = "base", **parameters: object) -> Merge:
    """A merge of whole models, weighted 0.7, 0.4, 0.5 in turn where the method has weights."""
    weights = (0.7, 0.4, 0.5)
    weighted = "weight" in parameters
    content = {
        "merge_method": method,
        "models": [
            {"model": name, **({"parameters": {"weight": weights[place]}} if weighted else {})}
            for place, name in enumerate(names)
        ],
        "parameters": {
            name.removesuffix("_"): value for name, value in parameters.items() if name != "weight"
        },
        **({} if base is None else {"base_model": base}),
    }
    return read(Path("merge.yaml"), content)


def check(made: Merge, rule: Rule, names: str = "ab", tolerance: float = 2e-6) -> None:
    """Every tensor is what the rule makes of the base and the deltas of the models."""
    for name in SHAPES:
        base = STATES["base"][name].double()
        deltas = torch.stack([STATES[model][name].double() - base for model in names])
        torch.testing.assert_close(
            made.weights[name].double(),
            rule(base, deltas),
            rtol=tolerance,
            atol=tolerance,
            msg=name,
        )
