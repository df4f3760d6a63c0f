"""Tiny language models, randomly initialised, with tokenizers of bytes and a few merges of them."""

from pathlib import Path
from typing import Any

import torch
import transformers as hf
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer

TEXT = "the cat sat on the mat and the dog ate the cake; où est la tête? two men and one ox went home. " * 3
SPECIAL = ["<pad>", "<s>", "</s>"]
VOCABULARY = 280
SIZES: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 64},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}
BOTH_WAYS: dict[str, Any] = {
    **{"vocab_size": VOCABULARY, "d_model": 16, "encoder_layers": 2, "decoder_layers": 2},
    **{"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 24},
    **{"decoder_ffn_dim": 24, "max_position_embeddings": 64, "pad_token_id": 0, "bos_token_id": 1},
    **{"eos_token_id": 2, "decoder_start_token_id": 2, "forced_eos_token_id": None},
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": (
        "GPT2LMHeadModel",
        {"vocab_size": VOCABULARY, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64},
    ),
    "llama": ("LlamaForCausalLM", SIZES),
    "tied": ("LlamaForCausalLM", {**SIZES, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2ForCausalLM", SIZES),
    "gemma2": ("Gemma2ForCausalLM", {**SIZES, "head_dim": 8, "query_pre_attn_scalar": 8}),
    "opt": (
        "OPTForCausalLM",
        {**SIZES, "ffn_dim": 24, "word_embed_proj_dim": 16},
    ),
    "bloom": ("BloomForCausalLM", {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2}),
    "mamba": (
        "MambaForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "num_hidden_layers": 2, "state_size": 4},
    ),
    "xlnet": (
        "XLNetLMHeadModel",
        {"vocab_size": VOCABULARY, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        {"vocab_size": VOCABULARY, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2}
        | {"decoder_start_token_id": 0},
    ),
    "bart": ("BartForConditionalGeneration", BOTH_WAYS),
}
CAUSAL = ("gpt2", "llama", "tied", "qwen2", "gemma2", "opt", "bloom", "mamba")
WITH_ENCODER = ("t5", "bart")


def build(kind: str) -> Any:
    """A network of an architecture."""
    torch.manual_seed(0)
    name, sizes = KINDS[kind]
    model_class = getattr(hf, name)
    return model_class(model_class.config_class(**sizes)).eval()


def save_language_model(folder: Path, kind: str = "gpt2") -> Path:
    """A network and a tokenizer: Llama's begins with ``<s>``, that of T5 and BART ends with ``</s>``."""
    network = build(kind)
    with torch.no_grad():
        for weight in network.parameters():
            weight.mul_(3)  # far from uniform
    network.save_pretrained(folder)
    save_byte_tokenizer(folder, begin=kind in ("llama", "tied"), end=kind in WITH_ENCODER)
    return folder


def save_byte_tokenizer(folder: Path, *, begin: bool = False, end: bool = False) -> None:
    """Bytes and what is frequent in ``TEXT``; without a token for padding."""
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    around = [*(["<s>"] if begin else []), "$A", *(["</s>"] if end else [])]
    special = [(token, place) for place, token in enumerate(SPECIAL)]
    tokenizer.post_processor = TemplateProcessing(single=around, special_tokens=special)
    made: Any = hf.PreTrainedTokenizerFast
    made(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
