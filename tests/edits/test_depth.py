"""Depth goes by config.json: blocks for further tokens lie behind the last layer, in every dialect."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    DeepseekV3Config,
    Glm4MoeConfig,
    LlamaConfig,
    PreTrainedConfig,
)

from taskvec import open_recipe
from taskvec.errors import InputError
from taskvec.weights import Weights

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MIXTURE: dict[str, Any] = {"moe_intermediate_size": 8, "n_routed_experts": 4, "num_experts_per_tok": 2}
HEADS: dict[str, Any] = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "n_group": 2,
    "topk_group": 1,
}

# Config, and the tensors behind the layers with their shapes.
MODELS: dict[str, tuple[PreTrainedConfig, Mapping[str, tuple[int, ...]]]] = {
    "llama": (
        LlamaConfig(num_hidden_layers=3, **SIZES),
        {"model.layers.3.eh_proj.weight": (16, 32), "model.layers.4.eh_proj.weight": (16, 32)},
    ),
    "deepseek": (
        DeepseekV3Config(num_hidden_layers=4, first_k_dense_replace=1, **SIZES, **MIXTURE, **HEADS),
        {"model.layers.4.enorm.weight": (16,), "model.layers.4.mlp.gate.weight": (4, 16)},
    ),
    "glm": (
        Glm4MoeConfig(num_hidden_layers=2, first_k_dense_replace=1, **SIZES, **MIXTURE),
        {"model.layers.2.shared_head.norm.weight": (16,), "model.layers.2.input_layernorm.weight": (16,)},
    ),
    "own stack": (
        LlamaConfig(num_hidden_layers=2, **SIZES),
        {"mtp.layers.0.input_layernorm.weight": (16,), "mtp.fc.weight": (16, 32)},
    ),
}
GRADIENT = [1.0, 0.5, 0.0]


@pytest.fixture(params=MODELS)
def models(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Two models, a and b, in the working directory; their number of layers."""
    config, behind = MODELS[request.param]
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate("ab"):
        torch.manual_seed(seed)
        AutoModelForCausalLM.from_config(config).save_pretrained(name)  # type: ignore[no-untyped-call]
        file = Path(name, "model.safetensors")
        more = {tensor: torch.randn(shape) for tensor, shape in behind.items()}
        save_file({**load_file(file), **more}, file, metadata={"format": "pt"})
    return int(config.num_hidden_layers)


def merged(recipe: Mapping[str, object]) -> Weights:
    Path("recipe.yaml").write_text(yaml.safe_dump(recipe))
    return open_recipe("recipe.yaml").weights


def share(made: Weights, name: str) -> float:
    """How much of the way from a to b a tensor has gone."""
    a, b = (load_file(Path(model, "model.safetensors"))[name].double() for model in "ab")
    step = (b - a).flatten()
    return float((made[name].double() - a).flatten() @ step / (step @ step))


def projection(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.o_proj.weight"


def is_behind(name: str, layers: int) -> bool:
    parts = name.split(".")
    return "mtp" in parts or (name.startswith("model.layers.") and int(parts[2]) >= layers)


def behind(made: Weights, layers: int) -> list[str]:
    return [name for name in made if is_behind(name, layers)]


def test_the_last_anchor_of_mergekit_reaches_the_last_layer(models: int) -> None:
    made = merged(
        {
            "merge_method": "linear",
            "models": [
                {"model": "a", "parameters": {"weight": GRADIENT}},
                {"model": "b", "parameters": {"weight": GRADIENT[::-1]}},
            ],
        }
    )
    shares = [share(made, projection(layer)) for layer in range(models)]
    assert shares == pytest.approx([layer / (models - 1) for layer in range(models)], abs=1e-5)
    assert all(abs(share(made, name)) < 1e-5 for name in behind(made, models))


def test_the_last_anchor_of_a_recipe_reaches_the_last_layer(models: int) -> None:
    scale = {"gradient": GRADIENT[::-1], "default": 0.25}
    made = merged({"base": "a", "models": {"b": "b"}, "scale": scale})
    shares = [share(made, projection(layer)) for layer in range(models)]
    assert shares == pytest.approx([layer / (models - 1) for layer in range(models)], abs=1e-5)
    assert share(made, behind(made, models)[-1]) == pytest.approx(0.25, abs=1e-5)


def test_the_parameters_of_a_rule_go_by_the_same_depth(models: int) -> None:
    weights = {"b": {"gradient": GRADIENT[::-1], "default": 0.25}}
    made = merged({"base": "a", "models": {"b": "b"}, "rule": "sum", "parameters": {"weights": weights}})
    assert share(made, projection(models - 1)) == pytest.approx(1.0, abs=1e-5)
    assert share(made, behind(made, models)[-1]) == pytest.approx(0.25, abs=1e-5)


def test_lines_grows_up_to_the_last_layer(models: int) -> None:
    made = merged(
        {"base": "a", "models": {"b": "b"}, "rule": "lines", "parameters": {"alpha": 0.25, "beta": 0.75}}
    )
    assert share(made, projection(models - 1)) == pytest.approx(1.0, abs=1e-5)
    assert share(made, behind(made, models)[-1]) == pytest.approx(0.25, abs=1e-5)


def test_slices_end_with_the_last_layer(models: int) -> None:
    sources = [{"model": "a", "layer_range": [0, models + 1]}]
    with pytest.raises(InputError, match=f"expected layers up to {models}, as a has"):
        merged({"merge_method": "passthrough", "slices": [{"sources": sources}]})


def test_what_is_behind_the_layers_stays_behind_them(models: int) -> None:
    whole = [{"sources": [{"model": "a", "layer_range": [0, models]}]}]
    tail = [{"sources": [{"model": "b", "layer_range": [models - 1, models]}]}]
    made = merged({"merge_method": "passthrough", "slices": [*whole, *tail]})
    b = load_file("b/model.safetensors")
    further = [name for name in b if is_behind(name, models)]
    assert further
    for name in further:
        number = name.split(".")[2]
        moved = name if "mtp." in name else name.replace(f"layers.{number}.", f"layers.{int(number) + 1}.")
        assert torch.equal(made[moved], b[name])
