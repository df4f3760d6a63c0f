"""Every family of models that transformers builds from a tiny configuration."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
import transformers
from transformers.models.auto import configuration_auto, modeling_auto

AUTO: Any = configuration_auto

LARGEST = 2_000_000
"""Parameters of a model that is still tiny."""

KINDS = {
    "IMAGE_TEXT_TO_TEXT": "multimodal",
    "SPEECH_SEQ_2_SEQ": "audio",
    "SEQ_TO_SEQ_CAUSAL_LM": "text",
    "CAUSAL_LM": "text",
    "MASKED_LM": "text",
    "ZERO_SHOT_IMAGE_CLASSIFICATION": "multimodal",
    "IMAGE_CLASSIFICATION": "vision",
    "CTC": "audio",
    "AUDIO_CLASSIFICATION": "audio",
    "SEQUENCE_CLASSIFICATION": "text",
    "OBJECT_DETECTION": "vision",
    "SEMANTIC_SEGMENTATION": "vision",
    "TEXT_TO_WAVEFORM": "audio",
    "DEPTH_ESTIMATION": "vision",
    "VIDEO_CLASSIFICATION": "vision",
}
"""transformers' tables of architectures, the first of which that has a family says what it is built as."""

_SIZES: dict[int, str] = {
    0: "pad_token_id num_kv_shared_layers",
    1: "bos_token_id decoder_start_token_id n_group topk_group n_groups mamba_n_groups n_shared_experts "
    "attn_layer_offset expert_layer_offset global_attn_every_n_layers",
    2: "num_hidden_layers num_key_value_heads n_layer num_layers num_decoder_layers encoder_layers "
    "decoder_layers n_layers num_experts_per_tok type_vocab_size mamba_expand "
    "num_conv_pos_embedding_groups eos_token_id expert_layer_period attn_layer_period depth "
    "linear_num_key_heads num_kv_heads",
    3: "num_labels num_channels vision_start_token_id",
    4: "num_attention_heads n_head num_heads encoder_attention_heads decoder_attention_heads n_heads "
    "num_experts num_local_experts n_routed_experts qk_rope_head_dim qk_nope_head_dim rotary_dim "
    "mamba_n_heads time_step_rank mamba_num_heads linear_num_value_heads vision_end_token_id",
    5: "image_token_id image_token_index",
    6: "video_token_id",
    7: "audio_token_id",
    8: "head_dim d_kv patch_size kv_lora_rank q_lora_rank v_head_dim d_state state_size mamba_d_state "
    "ssm_state_size num_conv_pos_embeddings num_codevectors_per_group hidden_size_per_layer_input "
    "mamba_head_dim linear_key_head_dim linear_value_head_dim vision_token_id",
    16: "moe_intermediate_size projection_dim embedding_size mamba_d_head num_mel_bins codevector_dim "
    "proj_codevector_dim classifier_proj_size attention_window embed_dim",
    32: "hidden_size n_embd d_model dim shared_expert_intermediate_size image_size word_embed_proj_dim "
    "decoder_hidden_size lru_width out_hidden_size mm_hidden_size attention_hidden_size "
    "max_source_positions max_target_positions",
    64: "vocab_size intermediate_size n_inner n_positions d_ff ffn_dim encoder_ffn_dim decoder_ffn_dim "
    "max_position_embeddings hidden_dim intermediate_size_mlp mlp_dim ffn_hidden_size "
    "vocab_size_per_layer_input",
}
SIZES = {name: size for size, names in _SIZES.items() for name in names.split()}
LISTS = {"conv_dim": 16, "conv_kernel": 3, "conv_stride": 2, "depths": 1, "num_heads": 2}
"""Settings that are lists, and what each of their entries becomes."""

OWN: dict[str, dict[str, Any]] = {
    "esm": {"vocab_size": 64, "mask_token_id": 3},
    "falcon_h1": {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "mamba2": {"num_heads": 8, "head_dim": 8},
    "ministral": {"head_dim": 8},
    "nemotron": {"num_key_value_heads": 2},
    "squeezebert": {"embedding_size": 32},
    "zamba": {"num_hidden_layers": 6, "attn_layer_period": 3, "attn_layer_offset": 2},
}
"""What a family cannot be built without."""


@dataclass(frozen=True)
class Family:
    """A kind of model: transformers' name of it, the class that is built, and for what."""

    name: str
    architecture: str
    kind: str

    @property
    def model_class(self) -> Any:
        """The class that is built."""
        return getattr(transformers, self.architecture)

    def config(self) -> Any:
        """A tiny configuration; whatever the family raises if it does not take it."""
        return shrink(AUTO.CONFIG_MAPPING[self.name], OWN.get(self.name, {}))

    def build(self) -> Any:
        """A model with weights drawn at random, in evaluation mode."""
        torch.manual_seed(0)
        return self.model_class(self.config()).eval()


@cache
def families() -> dict[str, Family]:
    """All families by name, with those that cannot be built."""
    return {family.name: family for family in _families()}


def _families() -> Iterator[Family]:
    tables = {name: getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES", {}) for name in KINDS}
    for family in AUTO.CONFIG_MAPPING_NAMES:
        table = next((name for name in KINDS if family in tables[name]), None)
        listed = tables[table][family] if table else modeling_auto.MODEL_MAPPING_NAMES.get(family)
        if listed is not None:
            architecture = listed if isinstance(listed, str) else listed[0]
            yield Family(family, architecture, KINDS[table] if table else "other")


def shrink(config_class: Any, more: dict[str, Any]) -> Any:
    """A configuration of a class with sizes as small as they go, in its parts too."""
    usual, sizes = config_class(), dict[str, Any]()
    for name, value in usual.to_dict().items():
        part = getattr(usual, name, None)
        if isinstance(part, transformers.PretrainedConfig):
            sizes[name] = shrink(type(part), {})
        elif name in LISTS and isinstance(value, list | tuple):
            sizes[name] = [LISTS[name]] * len(value)
        elif name in ("hidden_sizes", "embed_dims") and isinstance(value, list | tuple):
            sizes[name] = [16 * (place + 1) for place in range(len(value))]
        elif name in SIZES and isinstance(value, int) and not isinstance(value, bool):
            sizes[name] = SIZES[name]
    return config_class(**{**sizes, **more})


def count_parameters(family: Family) -> int:
    """How many parameters the tiny model has, which is built without memory for them."""
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in family.model_class(family.config()).parameters())
