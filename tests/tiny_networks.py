"""Tiny networks of many architectures, built by transformers from a config."""

from collections.abc import Callable
from typing import Any

import transformers as hf

Network = Any

TEXT: dict[str, Any] = {
    **{"vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2},
    **{"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 32},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
SIGHT: dict[str, Any] = {
    **{"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    **{"image_size": 16, "patch_size": 8},
}
SOUND: dict[str, Any] = {
    **{"vocab_size": 40, "d_model": 32, "encoder_layers": 2, "decoder_layers": 2, "pad_token_id": 0},
    **{"encoder_attention_heads": 4, "decoder_attention_heads": 4, "num_mel_bins": 8, "eos_token_id": 2},
    **{"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_source_positions": 16, "max_target_positions": 16},
    **{"bos_token_id": 1, "decoder_start_token_id": 1},
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
SWIN: dict[str, Any] = {
    **{"image_size": 16, "patch_size": 2, "embed_dim": 8, "depths": [1, 1], "num_heads": [2, 2]},
    **{"window_size": 2},
}
TURNING: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 1, 1]}
TOWER: dict[str, Any] = {
    **{"depth": 2, "embed_dim": 32, "hidden_size": 32, "num_heads": 4, "mlp_ratio": 2, "patch_size": 4},
    **{"spatial_merge_size": 2, "temporal_patch_size": 2, "in_channels": 3},
}
GEMMA: dict[str, Any] = {**TEXT, "head_dim": 8, "sliding_window": 8}

Settings = Callable[[], dict[str, Any]]

ARCHITECTURES: dict[str, tuple[str, Settings]] = {
    "bert": ("BertForSequenceClassification", lambda: TEXT),
    "t5": (
        "T5ForConditionalGeneration",
        lambda: {"vocab_size": 40, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        lambda: {"vocab_size": 40, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16},
    ),
    "llama": ("LlamaForCausalLM", lambda: TEXT),
    "phi3": ("Phi3ForCausalLM", lambda: TEXT),
    "falcon": ("FalconForCausalLM", lambda: TEXT),
    "mixtral": ("MixtralForCausalLM", lambda: {**TEXT, "num_local_experts": 4}),
    "qwen2_moe": (
        "Qwen2MoeForCausalLM",
        lambda: {**TEXT, **EXPERTS, "shared_expert_intermediate_size": 24},
    ),
    "qwen3_moe": ("Qwen3MoeForCausalLM", lambda: {**TEXT, **EXPERTS, "head_dim": 8, "mlp_only_layers": [0]}),
    "gpt_oss": (
        "GptOssForCausalLM",
        lambda: {**TEXT, "num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
    ),
    "deepseek_v3": (
        "DeepseekV3ForCausalLM",
        lambda: {
            **{**TEXT, "num_key_value_heads": 4, "moe_intermediate_size": 16, "first_k_dense_replace": 1},
            **{"n_routed_experts": 4, "num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
            **{"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4},
            "v_head_dim": 8,
        },
    ),
    "granitemoe": ("GraniteMoeForCausalLM", lambda: {**TEXT, "num_local_experts": 4}),
    "vit": ("ViTForImageClassification", lambda: SIGHT),
    "dinov2": ("Dinov2Model", lambda: SIGHT),
    "swin": ("SwinForImageClassification", lambda: SWIN),
    "clip": ("CLIPModel", lambda: {"text_config": TEXT, "vision_config": SIGHT, "projection_dim": 16}),
    "siglip": ("SiglipModel", lambda: {"text_config": TEXT, "vision_config": SIGHT}),
    "whisper": ("WhisperForConditionalGeneration", lambda: SOUND),
    "wav2vec2": (
        "Wav2Vec2ForCTC",
        lambda: {
            **TEXT,
            **{"conv_dim": [16, 16], "conv_stride": [2, 2], "conv_kernel": [3, 3]},
            **{"num_conv_pos_embeddings": 4, "num_conv_pos_embedding_groups": 2},
        },
    ),
    "llava": (
        "LlavaForConditionalGeneration",
        lambda: {"text_config": hf.LlamaConfig(**TEXT), "vision_config": hf.CLIPVisionConfig(**SIGHT)},
    ),
    "gemma3": (
        "Gemma3ForConditionalGeneration",
        lambda: {
            "text_config": hf.Gemma3TextConfig(**GEMMA),
            "vision_config": hf.SiglipVisionConfig(**SIGHT),
            "mm_tokens_per_image": 4,
        },
    ),
    "qwen2_vl": (
        "Qwen2VLForConditionalGeneration",
        lambda: {"text_config": {**TEXT, "rope_parameters": TURNING}, "vision_config": TOWER},
    ),
    "blip2": (
        "Blip2ForConditionalGeneration",
        lambda: {
            "text_config": hf.OPTConfig(
                **{**TEXT, "ffn_dim": 48, "word_embed_proj_dim": 32, "max_position_embeddings": 16}
            ).to_dict(),
            "vision_config": SIGHT,
            "qformer_config": {**TEXT, "encoder_hidden_size": 32},
            "num_query_tokens": 4,
        },
    ),
    "mamba": (
        "MambaForCausalLM",
        lambda: {"vocab_size": 40, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
}


def build(kind: str) -> Network:
    """A network of an architecture, with random weights."""
    architecture, settings = ARCHITECTURES[kind]
    model_class: Any = getattr(hf, architecture)
    return model_class(model_class.config_class(**settings()))
