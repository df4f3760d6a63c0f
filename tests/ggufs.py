"""Small GGUF files, written as llama.cpp's converter writes them."""

from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import modeling_gguf_pytorch_utils

reading: Any = modeling_gguf_pytorch_utils
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 40,
}
LLAMA: dict[str, Any] = {
    **SHAPE,
    "intermediate_size": 96,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}

MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "llama": ("LlamaForCausalLM", "llama", LLAMA),
    "llama, tied": ("LlamaForCausalLM", "llama", {**LLAMA, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", "qwen2", LLAMA),
    "qwen3": ("Qwen3ForCausalLM", "qwen3", {**LLAMA, "head_dim": 128}),
    "gemma2": ("Gemma2ForCausalLM", "gemma2", {**LLAMA, "head_dim": 16}),
    "phi3": ("Phi3ForCausalLM", "phi3", {**LLAMA, "pad_token_id": 0, "vocab_size": 32100}),
    "gpt2": (
        "GPT2LMHeadModel",
        "gpt2",
        {"n_embd": 64, "n_layer": 2, "n_head": 4, "vocab_size": 40, "n_positions": 1024},
    ),
}  # fmt: skip
"""Name -> class in transformers, architecture in GGUF, settings."""


def model_of(kind: str) -> Any:
    maker: Any = getattr(transformers, MODELS[kind][0])
    torch.manual_seed(0)
    model = maker(maker.config_class(**MODELS[kind][2]))
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.randn(tensor.shape))
    return model.tie_weights() or model


def write(
    path: Path,
    kind: str,
    codes: str = "F32",
    more: Mapping[str, Any] | None = None,
    *,
    vocabulary: bool = False,
) -> Path:
    """A model as GGUF, matrices in some kind of codes, with a tokenizer of single letters if asked for.

    The maps of transformers are taken backwards: what its reader undoes is done here.
    """
    gguf: Any = import_module("gguf")
    _, architecture, settings = MODELS[kind]
    model = model_of(kind)
    config = model.config
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_head_count(config.num_attention_heads)
    words = [*"abcdefghijklmnopqrstuvwxyz", "ab"] if vocabulary else []
    writer.add_token_list([*words, *(f"<{number}>" for number in range(len(words), config.vocab_size))])
    if vocabulary:
        writer.add_tokenizer_model("gpt2")
        writer.add_token_merges([f"{words[0]} {words[1]}"])
        writer.add_bos_token_id(config.vocab_size - 1)
        writer.add_eos_token_id(config.vocab_size - 1)
    if architecture != "gpt2":
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_key_length(settings.get("head_dim", 16))
        writer.add_rope_dimension_count(16)
    else:
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    for key, value in (more or {}).items():
        writer.add_uint32(key, value)
    processor = reading.TENSOR_PROCESSORS.get(architecture, reading.TensorProcessor)(config=settings)
    state, seen = model.state_dict(), set()
    for there, name in reading.get_gguf_hf_weights_map(model, processor).items():
        if name not in state or (place := state[name].data_ptr()) in seen:
            continue
        seen.add(place)
        values = forward(architecture, there, state[name].numpy(), settings)
        quantize(gguf, writer, there, values, codes)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def forward(architecture: str, there: str, values: Any, settings: Mapping[str, Any]) -> Any:
    """What the converter of llama.cpp does to a tensor."""
    if architecture == "llama" and (".attn_q." in there or ".attn_k." in there):
        heads = settings["num_attention_heads" if ".attn_q." in there else "num_key_value_heads"]
        return values.reshape(heads, 2, -1, *values.shape[1:]).swapaxes(1, 2).reshape(values.shape)
    if architecture == "gemma2" and "norm.weight" in there:
        return values + 1
    turned = ("attn_qkv.weight", "ffn_down.weight", "ffn_up.weight", "attn_output.weight")
    return values.T if architecture == "gpt2" and there.endswith(turned) else values


def quantize(gguf: Any, writer: Any, there: str, values: Any, codes: str) -> None:
    values = np.ascontiguousarray(values, dtype=np.float32)
    kind = gguf.GGMLQuantizationType[codes if values.ndim > 1 else "F32"]
    if kind.name in ("F32", "F16"):
        writer.add_tensor(there, values.astype(np.float16 if kind.name == "F16" else np.float32))
    else:
        writer.add_tensor(there, gguf.quantize(values, kind), raw_dtype=kind)
