"""Tiny models whose layers are of several kinds, as transformers builds and saves them."""

from pathlib import Path
from typing import Any

import torch
import transformers

ANY: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
}
GROUPED: dict[str, Any] = {**ANY, "num_key_value_heads": 2}
HEAD: dict[str, Any] = {**GROUPED, "head_dim": 8}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED: dict[str, Any] = {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 8}
LATENT: dict[str, Any] = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_nope_head_dim": 4,
    "qk_rope_head_dim": 4,
    "v_head_dim": 4,
    "n_group": 2,
    "topk_group": 1,
}
MAMBA: dict[str, Any] = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 8}
OLD_MAMBA: dict[str, Any] = {"mamba_d_state": 4, "mamba_dt_rank": 4, "use_mamba_kernels": False}
MIXED = ["linear_attention", "linear_attention", "full_attention"]
SLIDING = {"sliding_window": 16}

MODELS: dict[str, tuple[str, int, dict[str, Any]]] = {
    # Class, number of layers, settings.
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", 6, {**HEAD, **EXPERTS, "mlp_only_layers": [0, 3]}),
    "Qwen2-MoE": (
        "Qwen2MoeForCausalLM",
        6,
        {**GROUPED, **EXPERTS, "shared_expert_intermediate_size": 16, "decoder_sparse_step": 2},
    ),
    "Llama 4": (
        "Llama4ForCausalLM",
        8,
        {**HEAD, "intermediate_size_mlp": 48, "num_local_experts": 2, "interleave_moe_layer_step": 2},
    ),
    "Llama 4, experts everywhere": (
        "Llama4ForCausalLM",
        4,
        {**HEAD, "intermediate_size_mlp": 48, "num_local_experts": 2, "interleave_moe_layer_step": 1},
    ),
    "Mllama": (
        "MllamaForCausalLM",
        6,
        {
            **GROUPED,
            "cross_attention_layers": [1, 4],
            "pad_token_id": 0,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
    ),
    "DeepSeek-V3": ("DeepseekV3ForCausalLM", 5, {**GROUPED, **LATENT, **ROUTED, "first_k_dense_replace": 2}),
    "DeepSeek-V2": ("DeepseekV2ForCausalLM", 5, {**GROUPED, **LATENT, **ROUTED, "first_k_dense_replace": 1}),
    "GLM-4-MoE": ("Glm4MoeForCausalLM", 5, {**GROUPED, **ROUTED, "first_k_dense_replace": 1}),
    "Jamba": (
        "JambaForCausalLM",
        8,
        {**GROUPED, **OLD_MAMBA, "num_experts": 2, "attn_layer_period": 4, "attn_layer_offset": 2},
    ),
    "Gemma 2": ("Gemma2ForCausalLM", 5, {**HEAD, **SLIDING}),
    "Gemma 3": ("Gemma3ForCausalLM", 7, {**HEAD, **SLIDING}),
    "Qwen3-Next": (
        "Qwen3NextForCausalLM",
        4,
        {
            **HEAD,
            **EXPERTS,
            "shared_expert_intermediate_size": 16,
            "linear_num_value_heads": 4,
            "linear_num_key_heads": 2,
            "linear_key_head_dim": 8,
            "linear_value_head_dim": 8,
        },
    ),
    "Mixtral": ("MixtralForCausalLM", 4, {**GROUPED, "num_local_experts": 2}),
    "Phi-3": ("Phi3ForCausalLM", 4, {**GROUPED, "pad_token_id": 0}),
    "Granite hybrid": (
        "GraniteMoeHybridForCausalLM",
        6,
        {
            **GROUPED,
            **MAMBA,
            "layer_types": 2 * MIXED,
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 16,
        },
    ),
    "Bamba": ("BambaForCausalLM", 6, {**GROUPED, **MAMBA, "attn_layer_indices": [2, 5]}),
    "Zamba": (
        "ZambaForCausalLM",
        6,
        {
            **GROUPED,
            **OLD_MAMBA,
            "attention_head_dim": 16,
            "n_mamba_heads": 2,
            "layers_block_type": ["mamba", "hybrid", "mamba"] * 2,
        },
    ),
    "Zamba 2": (
        "Zamba2ForCausalLM",
        6,
        {
            **GROUPED,
            "mamba_d_state": 8,
            "mamba_ngroups": 1,
            "n_mamba_heads": 4,
            "mamba_headdim": 16,
            "num_mem_blocks": 1,
            "use_mem_rope": False,
            "layers_block_type": ["mamba", "hybrid", "mamba"] * 2,
        },
    ),
    "OLMo 3": ("Olmo3ForCausalLM", 8, {**GROUPED, **SLIDING}),
    "Falcon-H1": ("FalconH1ForCausalLM", 4, {**HEAD, **MAMBA, "mamba_d_ssm": 64}),
    "LFM2": ("Lfm2ForCausalLM", 6, {**GROUPED, "full_attn_idxs": [2, 4]}),
    "SmolLM3": ("SmolLM3ForCausalLM", 8, {**GROUPED, "pad_token_id": 0}),
    "Qwen2": (
        "Qwen2ForCausalLM",
        6,
        {**GROUPED, **SLIDING, "use_sliding_window": True, "max_window_layers": 3},
    ),
    "ERNIE 4.5": (
        "Ernie4_5_MoeForCausalLM",
        6,
        {
            **GROUPED,
            "moe_num_experts": 4,
            "moe_k": 2,
            "moe_intermediate_size": 16,
            "moe_layer_start_index": 2,
            "moe_layer_interval": 1,
        },
    ),
    "RecurrentGemma": (
        "RecurrentGemmaForCausalLM",
        6,
        {**GROUPED, "lru_width": 32, "attention_window_size": 16},
    ),
    "ModernBERT": ("ModernBertForMaskedLM", 7, {**ANY, "pad_token_id": 0, "local_attention": 16}),
    "GPT-Neo": (
        "GPTNeoForCausalLM",
        4,
        {
            "vocab_size": 64,
            "hidden_size": 32,
            "num_layers": 4,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 2]],
        },
    ),
    "Nemotron-H": (
        "NemotronHForCausalLM",
        6,
        {
            **HEAD,
            "layers_block_type": ["mamba", "attention", "mlp"] * 2,
            "mamba_num_heads": 4,
            "mamba_head_dim": 16,
            "ssm_state_size": 8,
            "n_groups": 1,
        },
    ),
    "BERT": ("BertForMaskedLM", 4, ANY),
    "GPT-2": ("GPT2LMHeadModel", 4, {"vocab_size": 64, "n_embd": 32, "n_layer": 4, "n_head": 4}),
    "BART, decoder": (
        "BartForCausalLM",
        4,
        {"vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 4, "decoder_ffn_dim": 48},
    ),
    "T5, encoder": (
        "T5EncoderModel",
        4,
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 4, "num_heads": 4},
    ),
    "T5": (
        "T5ForConditionalGeneration",
        2,
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4},
    ),
    "ViT": (
        "ViTForImageClassification",
        4,
        {
            "hidden_size": 32,
            "num_attention_heads": 4,
            "intermediate_size": 48,
            "image_size": 16,
            "patch_size": 8,
        },
    ),
}


def class_of(name: str) -> Any:
    return getattr(transformers, MODELS[name][0])


def save(name: str, folder: Path, seed: int = 0) -> Path:
    """A model with random weights."""
    kind, layers, settings = MODELS[name]
    counted = (
        {} if {"num_layers", "n_layer", "decoder_layers"} & settings.keys() else {"num_hidden_layers": layers}
    )
    if "layers_block_type" in settings and name == "Nemotron-H":
        counted = {}
    torch.manual_seed(seed)
    model: Any = getattr(transformers, kind)
    model(model.config_class(**counted, **settings)).save_pretrained(folder)
    return folder
