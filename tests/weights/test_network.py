"""The network's own names for what lies in a checkpoint, by what transformers loads."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from taskvec.weights import open_weights
from taskvec.weights.network import network_in, network_of

transformers = pytest.importorskip("transformers")

TEXT = {
    **{"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2},
}
SIGHT = {
    **{"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"image_size": 16, "patch_size": 8},
}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", TEXT),
    "gpt2": ("GPT2LMHeadModel", {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4}),
    "gemma2": ("Gemma2ForCausalLM", {**TEXT, "head_dim": 8}),
    "vit": ("ViTForImageClassification", SIGHT),
    "dinov2": ("Dinov2Model", SIGHT),
    "mixtral": ("MixtralForCausalLM", {**TEXT, "num_local_experts": 12}),
    "qwen3_moe": ("Qwen3MoeForCausalLM", {**TEXT, **EXPERTS, "head_dim": 8}),
    "clip": ("CLIPModel", {"text_config": TEXT, "vision_config": SIGHT}),
    "llava": ("LlavaForConditionalGeneration", {"text_config": TEXT, "vision_config": SIGHT}),
}


def save(kind: str, folder: Path) -> Any:
    """A tiny model of an architecture, saved as transformers saves it; its state dict."""
    architecture, settings = MODELS[kind]
    torch.manual_seed(0)
    model_class = getattr(transformers, architecture)
    if kind == "llava":
        config = transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**TEXT), vision_config=transformers.CLIPVisionConfig(**SIGHT)
        )
    else:
        config = model_class.config_class(**settings)
    model_class(config).save_pretrained(folder)
    return model_class.from_pretrained(folder).state_dict()


@pytest.mark.parametrize("kind", MODELS)
def test_names_and_conversions_are_those_of_loading(kind: str, tmp_path: Path) -> None:
    state = save(kind, tmp_path)
    weights = open_weights(tmp_path)
    network = network_of(weights)
    assert network is not None
    layout = network.layout({name: weights.spec(name) for name in weights})
    assert not layout.unknown and not layout.missing
    for name, place in layout.renamed.items():
        assert torch.equal(weights[name], state[place])
    for conversion in layout.converted:
        held = {name: weights[name] for name in conversion.sources}
        made = conversion.convert(held)
        assert made.keys() == conversion.targets.keys()
        assert all(torch.equal(tensor, state[name]) for name, tensor in made.items())
        back = conversion.revert(made)
        assert back.keys() == held.keys()
        assert all(torch.equal(tensor, held[name]) for name, tensor in back.items())


def test_experts_are_stacked_in_their_order(tmp_path: Path) -> None:
    save("mixtral", tmp_path)
    weights = open_weights(tmp_path)
    network = network_of(weights)
    assert network is not None
    layout = network.layout({name: weights.spec(name) for name in weights})
    down = next(c for c in layout.converted if "model.layers.1.mlp.experts.down_proj" in c.targets)
    names = [f"model.layers.1.block_sparse_moe.experts.{number}.w2.weight" for number in range(12)]
    assert list(down.sources) == names
    [made] = down.convert({name: weights[name] for name in names}).values()
    assert torch.equal(made, torch.stack([weights[name] for name in names]))


def test_what_the_network_lacks_and_computes_is_told_apart(tmp_path: Path) -> None:
    save("gpt2", tmp_path)
    weights = open_weights(tmp_path)
    network = network_of(weights)
    assert network is not None
    specs = {name: weights.spec(name) for name in weights}
    some = specs.pop("transformer.h.1.mlp.c_fc.weight")
    specs |= {"transformer.h.0.attn.bias": some, "transformer.surplus": some}
    layout = network.layout(specs)
    assert layout.missing == ["transformer.h.1.mlp.c_fc.weight"]
    assert layout.unknown == ["transformer.surplus"]
    assert layout.computed == ["transformer.h.0.attn.bias"]
    assert network.tied == {"lm_head.weight": "transformer.wte.weight"}


def test_a_file_of_the_encoder_alone_is_found_under_the_names_of_the_whole(tmp_path: Path) -> None:
    save("gpt2", tmp_path)
    weights = open_weights(tmp_path)
    network = network_of(weights)
    assert network is not None
    bare = {name.removeprefix("transformer."): weights.spec(name) for name in weights}
    layout = network.layout(bare)
    assert not layout.unknown
    assert layout.renamed["h.0.ln_1.weight"] == "transformer.h.0.ln_1.weight"


@pytest.mark.parametrize(
    "change",
    [
        {"model_type": "none_such"},
        {"architectures": ["NoneSuch"]},
        {"architectures": ["Path"]},
        {"n_layer": 10**9},
        {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Config"}},
        {"n_head": 3},
    ],
)
def test_there_is_none_for_a_config_that_nothing_is_built_of(change: dict[str, Any], tmp_path: Path) -> None:
    save("gpt2", tmp_path)
    file = tmp_path / "config.json"
    (tmp_path / "mine.py").write_text("raise SystemExit('code of a stranger was run')")
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert network_in(tmp_path, 20) is None


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bert", "num_labels": 10**8},
        {"model_type": "gpt_neo", "num_layers": 1, "attention_types": [[["global"], 10**9]]},
        {"model_type": "zamba2", "num_hidden_layers": 4, "num_mem_blocks": 1e9},
        {"model_type": "resnet", "depths": [4000] * 100, "hidden_sizes": [8] * 100},
        {"model_type": "funnel", "block_sizes": [4000] * 3, "block_repeats": [4000, 1, 1]},
    ],
)
def test_a_config_never_makes_more_modules_than_a_network_has(config: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert network_in(tmp_path, 20) is None
    torch.nn.Linear(2, 2)  # no limit is left behind


def test_there_is_none_without_a_config(tmp_path: Path) -> None:
    assert network_in(tmp_path, 20) is None
    assert network_of(open_weights({"w": torch.zeros(2)})) is None
