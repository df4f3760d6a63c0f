"""Adapters of networks whose files have other names: what PEFT merges and saves, edits give."""

import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights
from taskvec.weights.blocks import rows_of

SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
VISION: dict[str, Any] = {**SMALL, "image_size": 8, "patch_size": 4}
TEXT: dict[str, Any] = {**SMALL, "vocab_size": 40, "num_key_value_heads": 1}
MOE: dict[str, Any] = {**TEXT, "num_experts_per_tok": 2}


def make(kind: str, **settings: Any) -> Any:
    """A network by the name of its class, and the settings of its config."""
    found: Any = getattr(transformers, kind)
    return found(found.config_class(**settings))


def llava() -> Any:
    config = transformers.LlavaConfig(
        vision_config=transformers.CLIPVisionConfig(**VISION), text_config=transformers.LlamaConfig(**TEXT)
    )
    return transformers.LlavaForConditionalGeneration(config)


def gemma3() -> Any:
    config = transformers.Gemma3Config(
        vision_config={**VISION, "model_type": "siglip_vision_model"},
        text_config={**TEXT, "head_dim": 8, "layer_types": ["full_attention"] * 2},
        mm_tokens_per_image=1,
    )
    return transformers.Gemma3ForConditionalGeneration(config)


def qwen2_vl() -> Any:
    config = transformers.Qwen2VLConfig(
        vision_config={"depth": 1, "embed_dim": 16, "hidden_size": 16, "num_heads": 2, "mlp_ratio": 2},
        text_config={**TEXT, "rope_parameters": {"rope_type": "default", "mrope_section": [1, 1, 2]}},
    )
    return transformers.Qwen2VLForConditionalGeneration(config)


def qwen2_moe() -> Any:
    return make(
        "Qwen2MoeForCausalLM",
        **MOE,
        num_experts=3,
        moe_intermediate_size=8,
        shared_expert_intermediate_size=12,
    )


def mixtral() -> Any:
    return make("MixtralForCausalLM", **MOE, num_local_experts=3)


def square_mixtral() -> Any:
    """Whose experts have square matrices."""
    return make("MixtralForCausalLM", **{**MOE, "intermediate_size": 16}, num_local_experts=3)


def whisper() -> Any:
    layers = {f"{side}_{what}": n for side in ("encoder", "decoder") for what, n in COUNTS.items()}
    return make(
        "WhisperForConditionalGeneration",
        **layers,
        d_model=16,
        vocab_size=40,
        num_mel_bins=4,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        decoder_start_token_id=1,
        max_source_positions=8,
        max_target_positions=8,
    )


COUNTS = {"layers": 1, "attention_heads": 2, "ffn_dim": 24}
LINEAR: dict[str, Any] = {"target_modules": "all-linear"}
EXPERTS: dict[str, Any] = {
    "target_modules": ["q_proj"],
    "target_parameters": ["experts.gate_up_proj", "experts.down_proj"],
}

NETWORKS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "ViT": (lambda: make("ViTForImageClassification", **VISION), LINEAR),
    "ViT, DoRA": (lambda: make("ViTForImageClassification", **VISION), {**LINEAR, "use_dora": True}),
    "ViT, a new head": (
        lambda: make("ViTForImageClassification", **VISION),
        {"target_modules": ["q_proj", "v_proj"], "modules_to_save": ["classifier"]},
    ),
    "DeiT": (lambda: make("DeiTForImageClassification", **VISION), LINEAR),
    "DINOv2": (lambda: make("Dinov2ForImageClassification", **VISION), LINEAR),
    "Swin": (
        lambda: make(
            "SwinForImageClassification",
            image_size=8,
            patch_size=2,
            embed_dim=8,
            depths=[1, 1],
            num_heads=[1, 2],
            window_size=2,
        ),
        LINEAR,
    ),
    "CLIP": (
        lambda: make(
            "CLIPModel", text_config={**SMALL, "vocab_size": 40}, vision_config=VISION, projection_dim=8
        ),
        LINEAR,
    ),
    "SigLIP": (
        lambda: make("SiglipModel", text_config={**SMALL, "vocab_size": 40}, vision_config=VISION),
        {"target_modules": ["q_proj", "k_proj", "fc1"]},
    ),
    "SigLIP, attention of torch": (
        lambda: make("SiglipVisionModel", **VISION),
        {"target_modules": ["attention", "fc1"], "alpha_pattern": {"fc1": 3}},
    ),
    "LLaVA": (llava, LINEAR),
    "LLaVA, the language model": (llava, {"target_modules": r".*language_model.*\.(q|v)_proj"}),
    "LLaVA, the tower": (llava, {"target_modules": r".*vision_tower.*\.q_proj"}),
    "Gemma 3": (gemma3, LINEAR),
    "Qwen2-VL": (qwen2_vl, LINEAR),
    "Qwen2-MoE": (qwen2_moe, EXPERTS),
    "Qwen2-MoE, without experts": (qwen2_moe, {"target_modules": ["q_proj", "shared_expert.up_proj"]}),
    "Mixtral": (mixtral, EXPERTS),
    "Mixtral, square": (square_mixtral, EXPERTS),
    "Mixtral, one parameter": (mixtral, {"target_modules": ["q_proj"], "target_parameters": ["down_proj"]}),
    "BERT": (lambda: make("BertForMaskedLM", **SMALL, vocab_size=40, max_position_embeddings=8), LINEAR),
    "Phi-3": (lambda: make("Phi3ForCausalLM", **TEXT, pad_token_id=0), LINEAR),
    "Falcon": (lambda: make("FalconForCausalLM", **SMALL, vocab_size=40), LINEAR),
    "Whisper": (whisper, LINEAR),
    "T5": (
        lambda: make(
            "T5ForConditionalGeneration",
            vocab_size=40,
            d_model=16,
            d_kv=8,
            d_ff=24,
            num_layers=1,
            num_heads=2,
        ),
        LINEAR,
    ),
    "Llama": (lambda: make("LlamaForCausalLM", **TEXT), {**LINEAR, "use_rslora": True}),
}


def save_pair(network: Callable[[], Any], folder: Path, config: dict[str, Any]) -> None:
    """A base, an adapter whose every parameter is random, and what PEFT merges, each as it is saved."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        made = network().to(torch.float64)
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
        made.save_pretrained(folder / "base")
        tuned = get_peft_model(load(network, folder), LoraConfig(**{"r": 2, "lora_alpha": 6, **config}))
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
        tuned.save_pretrained(str(folder / "adapter"))
        merge(network, folder).save_pretrained(folder / "merged")


def load(network: Callable[[], Any], folder: Path) -> Any:
    return type(network()).from_pretrained(folder / "base", dtype=torch.float64)


def merge(network: Callable[[], Any], folder: Path) -> Any:
    tuned = PeftModel.from_pretrained(load(network, folder), folder / "adapter", autocast_adapter_dtype=False)
    return tuned.merge_and_unload()


def assert_merged(folder: Path) -> None:
    base, expected = open_weights(folder / "base"), open_weights(folder / "merged")
    edited = apply(base, TaskVector.load(folder / "adapter"))
    changed = [name for name in edited if not torch.equal(expected[name], base[name])]
    assert changed
    for name in edited:
        torch.testing.assert_close(edited[name], expected[name], rtol=1e-13, atol=1e-13)
        if edited.spec(name).shape:
            assert torch.equal(edited.read(name, slice(1, 3)), rows_of(edited[name], slice(1, 3)))


@pytest.mark.parametrize("case", NETWORKS)
def test_an_adapter_of_any_network_is_what_peft_merges_and_saves(case: str, tmp_path: Path) -> None:
    network, config = NETWORKS[case]
    save_pair(network, tmp_path, config)
    assert_merged(tmp_path)


OLDER: dict[str, tuple[str, tuple[str, str]]] = {
    "ViT": ("ViT", ("vit.layers.", "vit.encoder.layer.")),
    "LLaVA": ("LLaVA, the language model", ("model.language_model.", "language_model.model.")),
    "Qwen2-VL": ("Qwen2-VL", ("model.language_model.layers", "model.layers")),
}


@pytest.mark.parametrize("case", OLDER)
def test_an_adapter_of_an_older_network_fits_a_file_of_today(case: str, tmp_path: Path) -> None:
    """Of the same layers under the names that transformers 4 gave them."""
    kind, (new, old) = OLDER[case]
    save_pair(
        NETWORKS[kind][0], tmp_path, {"target_modules": r".*language_model.*\.(q|v)_proj|.*vit.*\.(fc1|fc2)"}
    )
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    factors = load_file(path)
    assert any(new in key for key in factors)
    spelled = {
        key.replace(new, old)
        .replace("mlp.fc1", "intermediate.dense")
        .replace("mlp.fc2", "output.dense"): value
        for key, value in factors.items()
    }
    save_file(spelled, path)
    assert_merged(tmp_path)


def test_names_that_fit_are_matched_without_transformers(tmp_path: Path) -> None:
    save_pair(NETWORKS["Llama"][0], tmp_path, LINEAR)
    work = (
        "import sys; from taskvec.vectors import TaskVector, apply; "
        f"edited = apply({str(tmp_path / 'base')!r}, TaskVector.load({str(tmp_path / 'adapter')!r})); "
        "[edited[name] for name in edited]; assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", work], check=True)
