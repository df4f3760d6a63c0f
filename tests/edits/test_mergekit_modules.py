"""mergekit's YAML: models of several parts, each merged by itself."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
    WhisperConfig,
    WhisperForConditionalGeneration,
)

from edits.mergekit_models import merge, run
from taskvec.errors import InputError

SMALL: dict[str, Any] = {
    "vocab_size": 32,
    "d_model": 16,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STACKS: dict[str, Any] = {
    **{f"{stack}_layers": 2 for stack in ("encoder", "decoder")},
    **{f"{stack}_attention_heads": 2 for stack in ("encoder", "decoder")},
    **{f"{stack}_ffn_dim": 24 for stack in ("encoder", "decoder")},
    "decoder_start_token_id": 1,
}
TEXT: dict[str, Any] = {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}


def t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(T5Config(**SMALL, d_kv=8, d_ff=24, num_layers=2, num_heads=2))


def bart() -> PreTrainedModel:
    return BartForConditionalGeneration(BartConfig(**SMALL, **STACKS, max_position_embeddings=16))


def whisper() -> PreTrainedModel:
    sizes: dict[str, Any] = {"num_mel_bins": 8, "max_source_positions": 16, "max_target_positions": 16}
    return WhisperForConditionalGeneration(WhisperConfig(**SMALL, **STACKS, **sizes))


def gemma() -> PreTrainedModel:
    shape: dict[str, Any] = {"image_token_index": 39, "mm_tokens_per_image": 4}
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=TEXT, vision_config=VISION, **shape))


KINDS = {"t5": t5, "bart": bart, "whisper": whisper, "gemma": gemma}
PARTS: Mapping[str, Mapping[str, str]] = {
    "t5": {"encoder": "encoder.", "decoder": "decoder.", "shared": ""},
    "bart": {"encoder": ".encoder.", "decoder": ".decoder.", "shared": ""},
    "whisper": {"encoder": ".encoder.", "decoder": ""},
    "gemma": {
        "vision_tower": "vision_tower.",
        "multi_modal_projector": "multi_modal_projector.",
        "text_decoder": "",
    },
}
"""Kind -> module -> what the names of its tensors hold, the first that fits."""


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = KINDS[request.param]()
    for name in ("base", "a", "b", "c"):
        model.save_pretrained(name)
        with torch.no_grad():
            for tensor in model.parameters():
                tensor.add_(torch.randn_like(tensor), alpha=0.01)
    return str(request.param)


def states() -> dict[str, dict[str, Tensor]]:
    return {name: load_file(f"{name}/model.safetensors") for name in ("base", "a", "b", "c")}


def module_of(kind: str, tensor: str) -> str:
    return next(module for module, part in PARTS[kind].items() if part in tensor)


def test_each_module_has_models_of_its_own(kind: str) -> None:
    owners = dict(zip(PARTS[kind], "abc", strict=False))
    modules = {module: {"models": [owner]} for module, owner in owners.items()}
    made, held = merge(f"merge_method: passthrough\nmodules: {modules}"), states()
    assert set(made.weights) == set(held["base"])
    for tensor in made.weights:
        assert torch.equal(made.weights[tensor], held[owners[module_of(kind, tensor)]][tensor]), tensor
    assert set(made.inputs) == set(owners.values())


def test_each_module_has_parameters_of_its_own(kind: str) -> None:
    factors = dict(zip(PARTS[kind], (0.5, 1.0, -0.25), strict=False))
    modules = {
        module: {"models": [{"model": "a"}], "parameters": {"weight": factor}}
        for module, factor in factors.items()
    }
    text = f"merge_method: task_arithmetic\nbase_model: base\nmodules: {modules}"
    Path("m.yml").write_text(text)
    run("merge", "m.yml", "-o", "out", "--quiet")
    held, found = states(), load_file("out/model.safetensors")
    for tensor, value in found.items():
        base, own = (held[name][tensor].double() for name in ("base", "a"))
        expected = base + factors[module_of(kind, tensor)] * (own - base)
        torch.testing.assert_close(value.double(), expected, rtol=1e-6, atol=1e-7)
    loaded: Any = type(KINDS[kind]()).from_pretrained("out", output_loading_info=True)
    assert not any(loaded[1].values())


def test_a_part_without_a_module_is_refused(kind: str) -> None:
    for left in PARTS[kind]:
        modules = {module: {"models": ["a"]} for module in PARTS[kind] if module != left}
        with pytest.raises(
            InputError, match=r"^merge.yaml: modules: '\S+' belongs to none of .*; add the module"
        ):
            merge(f"merge_method: passthrough\nmodules: {modules}")


def test_slices_of_a_part_are_refused(kind: str) -> None:
    slices = [{"sources": [{"model": "a", "layer_range": [0, 1]}]}]
    modules = {module: {"slices": slices} for module in PARTS[kind]}
    with pytest.raises(InputError, match="slices, expected models"):
        merge(f"merge_method: passthrough\nmodules: {modules}")
