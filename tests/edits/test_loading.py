"""A folder whose config.json describes other tensors than those beside it is not written."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml
from safetensors.torch import load_file, save_file

from taskvec import open_recipe, save_merge
from taskvec.edits.merge import Merge
from taskvec.errors import InputError

SIZES: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}


@pytest.fixture
def merge(tmp_path: Path) -> Merge:
    """The average of two Llamas."""
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        config = transformers.LlamaConfig(**SIZES)
        transformers.LlamaForCausalLM(config).save_pretrained(tmp_path / name)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"base": "a", "models": {"b": "b"}, "scale": 0.5}))
    return open_recipe(recipe)


def with_config(merge: Merge, **settings: object) -> Merge:
    folder = merge.like.folder
    assert folder is not None
    config = json.loads((folder / "config.json").read_text()) | settings
    return replace(merge, files={"config.json": json.dumps(config)})


LIES: dict[str, tuple[dict[str, object], str]] = {
    "more layers": (
        {"num_hidden_layers": 3},
        r"'model\.layers\.2\..*', which its config.json expects",
    ),
    "fewer layers": (
        {"num_hidden_layers": 1},
        r"'model\.layers\.1\..*', for which its config",
    ),
    "wider": ({"intermediate_size": 32}, r"has shape \(16, 24\), its config.json expects \(16, 32\)"),
    "more tokens": ({"vocab_size": 40}, r"has shape \(32, 16\), its config.json expects \(40, 16\)"),
    "biases": (
        {"attention_bias": True},
        r"'model\.layers\.0\.self_attn\..*bias', which its config",
    ),
    "another architecture": (
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        r"which its config.json expects, would be random",
    ),
    "a base without its head": (
        {"architectures": ["LlamaModel"]},
        r"'lm_head.weight', for which its config",
    ),
    "of no model": ({"model_type": "unheard-of"}, "transformers makes no model of its config.json"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_folder_whose_config_lies_is_not_completed(merge: Merge, tmp_path: Path, lie: str) -> None:
    settings, message = LIES[lie]
    made = with_config(merge, **settings)
    for _ in range(2):
        with pytest.raises(InputError, match=message):
            save_merge(made, tmp_path / "out")
        assert not list(tmp_path.glob("*out*"))
    save_merge(replace(made, allow_unloadable=True), tmp_path / "out")
    assert json.loads((tmp_path / "out/config.json").read_text()).items() >= settings.items()


HONEST: dict[str, dict[str, object]] = {
    "nothing else": {},
    "another dtype": {"dtype": "bfloat16"},
    "another context": {"max_position_embeddings": 64},
    "the dtype by its old name": {"torch_dtype": "float16"},
}


@pytest.mark.parametrize("settings", HONEST)
def test_settings_that_change_no_tensor_may_differ(merge: Merge, tmp_path: Path, settings: str) -> None:
    save_merge(with_config(merge, **HONEST[settings]), tmp_path / "out")


def test_what_is_wrong_with_the_base_already_is_no_reason_to_refuse(merge: Merge, tmp_path: Path) -> None:
    """Tensors that transformers ignores in the base are ignored in the result too."""
    for name in ("a", "b"):
        file = tmp_path / name / "model.safetensors"
        more = {"model.layers.0.extra.weight": torch.randn(3), "extra.weight": torch.randn(3)}
        save_file({**load_file(file), **more}, file, metadata={"format": "pt"})
    slices = [{"sources": [{"model": str(tmp_path / "a"), "layer_range": [0, 2]}]}] * 2
    (tmp_path / "slices.yaml").write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": slices}))
    save_merge(open_recipe(tmp_path / "slices.yaml"), tmp_path / "out")
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert "model.layers.2.extra.weight" in held
    kind: Any = transformers.LlamaForCausalLM
    _, info = kind.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not info["missing_keys"]


def test_a_file_of_weights_alone_is_not_checked(merge: Merge, tmp_path: Path) -> None:
    save_merge(with_config(merge, num_hidden_layers=3), tmp_path / "out.safetensors")


def test_embeddings_with_rows_beyond_the_vocabulary_may_be_meant(tmp_path: Path) -> None:
    """As of Moshi, which has one more, and of the text part of Mllama, which has eight."""
    kind: Any = transformers.MoshiForCausalLM
    config = {**SIZES, "head_dim": 8, "ffn_dim": 32, "hidden_act": "silu"}
    for seed, name in enumerate(("a", "b")):
        torch.manual_seed(seed)
        kind(kind.config_class(**config)).save_pretrained(tmp_path / name)
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({"base": "a", "models": {"b": "b"}}))
    made = open_recipe(tmp_path / "recipe.yaml")
    assert not [note for note in made.notes if "vocab_size" in note]
    save_merge(made, tmp_path / "out")
    file = "model.safetensors"
    assert load_file(tmp_path / "out" / file).keys() == load_file(tmp_path / "b" / file).keys()
