"""The checkpoints that the pages for newcomers speak of, tiny, under the names that the pages give them."""

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import save_file
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
)

from tiny_networks import SIGHT, TEXT

WORDS = ["<unk>", "<s>", "</s>", *(f"word{number}" for number in range(37))]
MARKS = ["<|im_start|>", "<|im_end|>"]
TEMPLATE = "{% for m in messages %}<|im_start|> {{ m.content }} <|im_end|>{% endfor %}"


def save_all() -> None:
    """Write the checkpoints into the working directory."""
    torch.manual_seed(0)
    base = LlamaForCausalLM(LlamaConfig(**TEXT))
    tuned, other = trained(base, 1), trained(base, 2)
    for name, model in {"base": base, "tuned": tuned, "other": other, "continued": trained(base, 7)}.items():
        save(model, name)
    save(copy.deepcopy(base).bfloat16(), "base-bf16")
    save(trained(base, 3, tokens=len(WORDS + MARKS)), "chat", MARKS, TEMPLATE)
    save(trained(base, 4, tokens=len(WORDS) + 4), "grown", ["où", "ça", "né", "ê"])
    save(LlamaForCausalLM(LlamaConfig(**TEXT)), "unrelated")
    save(LlamaForCausalLM(LlamaConfig(**{**TEXT, "num_hidden_layers": 3})), "deeper")
    save_in_a_trainers_files(tuned, other)
    save_encoders()
    save_beside_sight(base)
    adapted = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "v_proj"])
    get_peft_model(copy.deepcopy(base), adapted).save_pretrained("adapter")
    save_quantized(tuned)


def trained(model: Any, seed: int, tokens: int | None = None) -> Any:
    """A copy that differs a little in every weight, with embeddings of so many tokens."""
    other = copy.deepcopy(model)
    if tokens is not None:
        other.resize_token_embeddings(tokens, mean_resizing=False)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in other.parameters():
            weight += 0.002 * torch.randn(weight.shape, generator=generator)
    return other


def save(model: Any, folder: str, more: Sequence[str] = (), template: str | None = None) -> None:
    model.save_pretrained(folder)
    words = Tokenizer(WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="<unk>"))
    made: Any = PreTrainedTokenizerFast
    tokenizer = made(tokenizer_object=words, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(list(more), special_tokens=True)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(folder)


def save_in_a_trainers_files(tuned: Any, other: Any) -> None:
    state, smooth = tuned.state_dict(), other.state_dict()
    wrapped = {f"module._orig_mod.{name}": weight for name, weight in state.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, "last.ckpt")
    torch.save({"model": state, "ema": smooth, "step": 900}, "ema.pt")
    for step, model in {"500": tuned, "1000": other}.items():
        save(model, f"run/checkpoint-{step}")
        torch.save({"state": {}}, f"run/checkpoint-{step}/optimizer.pt")
    parts = Path("ds/global_step900")
    parts.mkdir(parents=True)
    torch.save({"module": {}}, parts / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    torch.save({}, parts / "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt")
    Path("ds/latest").write_text("global_step900")
    save_file({name: w for name, w in state.items() if "self_attn" in name}, "attention.safetensors")


def save_encoders() -> None:
    encoder = BertModel(BertConfig(**TEXT))
    classifier = BertForSequenceClassification(BertConfig(**TEXT))
    classifier.bert.load_state_dict(encoder.state_dict())
    encoder.save_pretrained("encoder")
    trained(classifier, 5).save_pretrained("classifier")


def save_beside_sight(base: Any) -> None:
    """A model of images and text that was trained from the base, with a token for images."""
    text = trained(base, 6, tokens=len(WORDS) + 1)
    sight = {"model_type": "clip_vision_model", **SIGHT}
    config = LlavaConfig(text_config=text.config.to_dict(), vision_config=sight, image_token_index=len(WORDS))
    both = LlavaForConditionalGeneration(config)
    both.model.language_model.load_state_dict(text.model.state_dict())
    both.lm_head.load_state_dict(text.lm_head.state_dict())
    save(both, "vision", ["<image>"])


def save_quantized(tuned: Any) -> None:
    whole, eight, four = tuned.state_dict(), dict[str, Tensor](), dict[str, Tensor]()
    for name, weight in whole.items():
        if not name.endswith("proj.weight"):
            eight[name] = four[name] = weight
            continue
        scale = weight.abs().max() / 448
        eight |= {name: (weight / scale).to(torch.float8_e4m3fn), f"{name}_scale_inv": scale.reshape(1, 1)}
        four[name.removesuffix("weight") + "qweight"] = torch.zeros(4, weight.shape[0], dtype=torch.int32)
    blocks = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    save_weights("fp8", eight, {**tuned.config.to_dict(), "quantization_config": blocks})
    save_weights("gptq", four, {**tuned.config.to_dict(), "quantization_config": {"quant_method": "gptq"}})


def save_weights(folder: str, weights: Mapping[str, Tensor], config: Mapping[str, Any]) -> None:
    Path(folder).mkdir()
    save_file(dict(weights), f"{folder}/model.safetensors", metadata={"format": "pt"})
    Path(folder, "config.json").write_text(json.dumps(config))
