"""What PEFT saves beside plain LoRA is the vector that PEFT merges."""

import json
import pickle
import shutil
import warnings
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LNTuningConfig, LoraConfig, PeftModel, TrainableTokensConfig
from safetensors.torch import load_file, save_file
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from adapters import bert, convnext, gpt2, llama, merged, save_adapter_of, save_base, save_trained
from checkpoints import SHAPE
from taskvec.errors import InputError, KeyMismatch
from taskvec.vectors import TaskVector, apply, combine
from taskvec.weights import open_weights
from taskvec.weights.blocks import rows_of

Network = Any


def tied_llama() -> Network:
    return llama(tie_word_embeddings=True)


def gemma2() -> Network:
    return Gemma2ForCausalLM(Gemma2Config(vocab_size=20, head_dim=8, num_key_value_heads=1, **SHAPE))


def t5() -> Network:
    return T5ForConditionalGeneration(
        T5Config(vocab_size=20, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    )


def mixtral() -> Network:
    return MixtralForCausalLM(
        MixtralConfig(vocab_size=20, num_key_value_heads=1, num_local_experts=3, **SHAPE)
    )


def gpt_oss() -> Network:
    return GptOssForCausalLM(
        GptOssConfig(
            vocab_size=20,
            head_dim=8,
            num_key_value_heads=1,
            num_local_experts=3,
            num_experts_per_tok=2,
            **SHAPE,
        )
    )


def save_noisy(make: Callable[[], Network], folder: Path) -> Path:
    """A base none of whose parameters is zero or one."""

    def moved() -> Network:
        network = make()
        for parameter in network.parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
        return network

    return save_base(moved, folder)


def assert_merges_alike(make: Callable[[], Network], base: Path, folder: Path) -> int:
    """Compare with what PEFT merges; how many tensors changed."""
    expected = merged(base, make, folder)
    start, edited = open_weights(base), apply(base, TaskVector.load(folder))
    for name in edited:
        torch.testing.assert_close(edited[name], expected[name], rtol=1e-13, atol=1e-13)
        assert torch.equal(edited.read(name, slice(1, 3)), rows_of(edited[name], slice(1, 3)))
    return sum(not torch.equal(edited[name], start[name]) for name in start)


LORA: dict[str, Any] = {"r": 2, "lora_alpha": 6}
KINDS: dict[str, tuple[Callable[[], Network], int, Callable[[], Any]]] = {
    "(IA)³": (
        llama,
        6,
        lambda: IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]
        ),
    ),
    "(IA)³ by a pattern": (
        t5,
        8,
        lambda: IA3Config(target_modules=["k", "v", "wo"], feedforward_modules=r".*\.wo"),
    ),
    "(IA)³ of biases": (bert, 8, lambda: IA3Config(target_modules=["key", "value"], feedforward_modules=[])),
    "(IA)³ of Conv1D": (
        gpt2,
        10,
        lambda: IA3Config(target_modules=["c_attn", "c_proj"], feedforward_modules=r".*mlp\.c_proj"),
    ),
    "(IA)³ of convolutions": (
        convnext,
        3,
        lambda: IA3Config(
            target_modules=r".*(patch_embeddings|downsampling_layer\.1)",
            feedforward_modules=r".*downsampling_layer\.1",
        ),
    ),
    "(IA)³ of convolutions in groups": (
        convnext,
        2,
        lambda: IA3Config(target_modules=["dwconv"], feedforward_modules=["dwconv"]),
    ),
    "norms": (
        llama,
        4,
        lambda: LNTuningConfig(target_modules=["input_layernorm", "post_attention_layernorm"]),
    ),
    "rows": (
        llama,
        1,
        lambda: TrainableTokensConfig(token_indices=[3, 0, 7], target_modules=["embed_tokens"]),
    ),
    "rows of tied embeddings": (
        tied_llama,
        1,
        lambda: TrainableTokensConfig(token_indices=[19, 2], target_modules=["embed_tokens"]),
    ),
    "rows beside factors": (
        gemma2,
        3,
        lambda: LoraConfig(target_modules=["q_proj"], trainable_token_indices=[1, 5], **LORA),
    ),
    "rows of two tables": (
        llama,
        4,
        lambda: LoraConfig(
            target_modules=["q_proj"],
            trainable_token_indices={"embed_tokens": [1, 5], "lm_head": [2, 6, 0]},
            **LORA,
        ),
    ),
    "experts": (
        gpt_oss,
        4,
        lambda: LoraConfig(
            target_modules=[], target_parameters=["experts.gate_up_proj", "experts.down_proj"], **LORA
        ),
    ),
    "experts with ranks of their own": (
        gpt_oss,
        6,
        lambda: LoraConfig(
            target_modules=["q_proj"],
            target_parameters=["mlp.experts.down_proj", "mlp.experts.gate_up_proj"],
            rank_pattern={"experts.down_proj": 3},
            alpha_pattern={"experts.gate_up_proj": 5},
            **LORA,
        ),
    ),
    "one parameter of the experts": (
        gpt_oss,
        2,
        lambda: LoraConfig(target_modules=[], target_parameters=["gate_up_proj"], **LORA),
    ),
    "tied embeddings saved whole": (
        gemma2,
        3,
        lambda: LoraConfig(
            target_modules=["v_proj"], modules_to_save=["embed_tokens"], ensure_weight_tying=True, **LORA
        ),
    ),
    "tied heads saved whole": (
        gpt2,
        3,
        lambda: LoraConfig(
            target_modules=["c_attn"], modules_to_save=["lm_head"], ensure_weight_tying=True, **LORA
        ),
    ),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_adapter_is_what_peft_merges(kind: str, tmp_path: Path) -> None:
    make, changed, config = KINDS[kind]
    base = save_noisy(make, tmp_path / "base")
    folder = save_trained(make, base, tmp_path / "adapter", config())
    assert assert_merges_alike(make, base, folder) == changed


def test_factors_of_tied_embeddings_count_once(tmp_path: Path) -> None:
    """As in the network before it is merged: PEFT 0.21 adds them to the one tensor for each of its uses."""
    base = save_noisy(tied_llama, tmp_path / "base")
    config = LoraConfig(target_modules=["embed_tokens", "o_proj"], ensure_weight_tying=True, **LORA)
    folder = save_trained(tied_llama, base, tmp_path / "adapter", config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = type(llama()).from_pretrained(base)
        network = PeftModel.from_pretrained(type(llama()).from_pretrained(base), folder)
    edited = apply(base, TaskVector.load(folder))
    plain.load_state_dict({name: edited[name] for name in edited}, strict=False)
    tokens = torch.tensor([[1, 5, 3, 7]])
    torch.testing.assert_close(plain(tokens).logits, network(tokens).logits, rtol=1e-10, atol=1e-10)


def rename_keys(folder: Path, change: Callable[[str], str]) -> None:
    path = folder / "adapter_model.safetensors"
    save_file({change(key): value for key, value in load_file(path).items()}, path)


NAMES: dict[str, Callable[[str], str]] = {
    "adapter": lambda key: key.replace(".weight", ".default.weight"),
    "another adapter": lambda key: key.replace(".weight", ".chat.weight"),
    "twice": lambda key: f"base_model.model.{key}",
    "none": lambda key: key.removeprefix("base_model.model."),
    "parallel": lambda key: f"module.{key}",
    "compiled": lambda key: key.replace("base_model.model.", "_orig_mod.base_model.model._orig_mod."),
    "sharded": lambda key: key.replace("self_attn", "_fsdp_wrapped_module.self_attn"),
    "all": lambda key: f"module._orig_mod.{key}".replace(".weight", ".default.weight"),
}


@pytest.mark.parametrize("names", NAMES)
@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"modules_to_save": ["lm_head"]}])
def test_wrappers_in_the_names_of_an_adapter_mean_nothing(
    names: str, config: dict[str, Any], tmp_path: Path
) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "adapter", target_modules=["q_proj", "v_proj"], **config)
    expected = merged(base, llama, folder)
    rename_keys(folder, NAMES[names])
    edited = apply(base, TaskVector.load(folder))
    assert all(torch.allclose(edited[name], expected[name], rtol=0, atol=1e-13) for name in edited)


def test_a_whole_state_dict_of_peft_is_an_adapter(tmp_path: Path) -> None:
    """As FSDP and DeepSpeed save it: with the weights of the base, and the adapter's name in every key."""
    base = save_base(bert, tmp_path / "base")
    config = LoraConfig(target_modules=["query"], modules_to_save=["classifier"], **LORA)
    folder = save_trained(bert, base, tmp_path / "adapter", config)
    expected = merged(base, bert, folder)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = PeftModel.from_pretrained(type(bert()).from_pretrained(base), folder)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    save_file(state, folder / "adapter_model.safetensors")
    edited = apply(base, TaskVector.load(folder))
    assert all(torch.allclose(edited[name], expected[name], rtol=0, atol=1e-13) for name in edited)


def test_two_adapters_in_one_file_are_refused(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "adapter", target_modules=["q_proj", "v_proj"])
    rename_keys(folder, lambda key: key.replace(".weight", ".a.weight" if "q_proj" in key else ".b.weight"))
    with pytest.raises(KeyMismatch, match=r"several adapters, 'a' and 'b'.*selected_adapters"):
        TaskVector.load(folder)


def test_a_head_that_is_trained_alone_is_refused_where_it_is_the_embedding(tmp_path: Path) -> None:
    base = save_base(tied_llama, tmp_path / "base")
    folder = save_adapter_of(
        base, tied_llama, tmp_path / "adapter", target_modules=["q_proj"], modules_to_save=["embed_tokens"]
    )
    with pytest.raises(KeyMismatch, match="save the base untied first"):
        apply(base, TaskVector.load(folder))


def test_a_layer_may_be_found_in_one_place_only(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "adapter", target_modules=["q_proj"])
    weights = {f"{tower}.{name}": value for tower in ("a", "b") for name, value in open_weights(base).items()}
    with pytest.raises(KeyMismatch, match=r"could be 'a\.model.*' or 'b\.model.*'.*expected one place"):
        apply(weights, TaskVector.load(folder))


@pytest.mark.parametrize("kind", ["LOHA", "LOKR", "OFT", "VERA"])
def test_kinds_that_are_no_sum_say_how_to_merge_them(kind: str, tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "adapter", target_modules=["q_proj"])
    said = folder / "adapter_config.json"
    said.write_text(said.read_text().replace('"LORA"', f'"{kind}"'))
    with pytest.raises(InputError, match=rf"an adapter of the kind {kind}, expected LORA.*merge_and_unload"):
        TaskVector.load(folder)


PROMPTS = ["PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING"]


@pytest.mark.parametrize("kind", PROMPTS)
def test_prompts_are_not_to_be_merged(kind: str, tmp_path: Path) -> None:
    save_file({"prompt_embeddings": torch.ones(2, 4)}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": kind, "num_virtual_tokens": 2}))
    with pytest.raises(InputError, match="changes no weights, so it is no task vector and cannot be merged"):
        TaskVector.load(tmp_path)


def test_a_shift_needs_a_bias_to_be_added_to(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "a", target_modules=["q_proj"], lora_bias=True)
    with pytest.raises(KeyMismatch, match=r"expected a bias of that layer in .*, as lora_bias adds to it"):
        apply(base, TaskVector.load(folder))


def test_a_copy_of_an_adapter_is_the_adapter(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "a", target_modules=["q_proj"])
    copy = shutil.copytree(folder, tmp_path / "b")
    first, other = TaskVector.load(folder), TaskVector.load(copy / "adapter_model.safetensors")
    assert all(torch.equal(first[name], other[name]) for name in first)


def read_elsewhere(pickled: Path) -> None:
    """Read a pickled vector in a process of its own, and keep what it holds."""
    vector = pickle.loads(pickled.read_bytes())
    torch.save({name: vector[name] for name in vector}, pickled.with_suffix(".pt"))


PICKLED: dict[str, Callable[[Path], TaskVector]] = {
    "an adapter": lambda place: TaskVector.load(place / "a").with_base(place / "base"),
    "no base yet": lambda place: TaskVector.load(place / "a"),
    "a sum": lambda place: 2 * TaskVector.load(place / "a") - TaskVector.load(place / "b"),
    "a rule": lambda place: combine("ties", [TaskVector.load(place / name) for name in "ab"]),
    "experts": lambda place: TaskVector.load(place / "experts").with_base(place / "mixture"),
}


@pytest.mark.parametrize("case", PICKLED)
def test_adapters_are_read_in_other_processes(case: str, tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    for name, seed in (("a", 1), ("b", 2)):
        save_adapter_of(base, llama, tmp_path / name, seed, target_modules=["q_proj"])
    if case == "experts":
        mixture = save_base(mixtral, tmp_path / "mixture")
        config = LoraConfig(target_modules=[], target_parameters=["experts.down_proj"], **LORA)
        save_trained(mixtral, mixture, tmp_path / "experts", config)
    vector = PICKLED[case](tmp_path)
    file = tmp_path / "vector.pickle"
    file.write_bytes(pickle.dumps(vector))
    other = get_context("spawn").Process(target=read_elsewhere, args=(file,))
    other.start()
    other.join()
    found = torch.load(file.with_suffix(".pt"))
    assert found.keys() == vector.keys()
    assert all(torch.equal(found[name], vector[name]) for name in vector)


def test_a_pickle_of_a_file_that_was_written_to_is_refused(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "a", target_modules=["q_proj"])
    pickled = pickle.dumps(TaskVector.load(folder))
    rename_keys(folder, lambda key: key)
    with pytest.raises(InputError, match="was written to since it was pickled; open it again"):
        pickle.loads(pickled)


def in_eight_bits(folder: Path) -> None:
    """The base with its matrices as codes of eight bits, each with one scale."""
    weights = load_file(folder / "model.safetensors")
    for name in [name for name in weights if "proj" in name]:
        scale = weights[name].abs().amax().float() / 448
        weights[f"{name}_scale_inv"] = scale.reshape(1, 1)
        weights[name] = (weights[name].float() / scale).to(torch.float8_e4m3fn)
    save_file(weights, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "quantization_config": {"quant_method": "fp8", "weight_block_size": [64, 64]},
        "dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))


def test_a_base_in_eight_bits_is_multiplied_by_its_scales(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "a", target_modules=["q_proj", "down_proj"])
    in_eight_bits(base)
    edited, codes = apply(base, TaskVector.load(folder)), load_file(base / "model.safetensors")
    vector = TaskVector.load(folder)
    name = "model.layers.0.self_attn.q_proj.weight"
    plain = codes[name].double() * codes[f"{name}_scale_inv"].double()
    torch.testing.assert_close(edited[name].double(), plain + vector[name].double(), rtol=1e-6, atol=1e-6)
    assert not any("scale" in held for held in edited)


CODES: dict[str, tuple[Callable[[str, torch.Tensor], dict[str, torch.Tensor]], str]] = {
    "GPTQ": (
        lambda name, w: {
            name.replace("weight", "qweight"): torch.zeros(w.shape[1] // 8, w.shape[0], dtype=torch.int32),
            name.replace("weight", "scales"): torch.ones(1, w.shape[0], dtype=torch.float16),
        },
        "quantized by GPTQ or AWQ .*; start from the checkpoint",
    ),
    "bitsandbytes": (
        lambda name, w: {
            name: torch.zeros(w.numel() // 2, 1, dtype=torch.uint8),
            f"{name}.absmax": torch.ones(4),
        },
        r"quantized by bitsandbytes .*dequantize\(\)",
    ),
    "eight bits without scales": (
        lambda name, w: {name: w.to(torch.float8_e4m3fn)},
        r"has dtype float8_e4m3fn in .* of 16 bits or more; save the base in bfloat16 first",
    ),
}


@pytest.mark.parametrize("case", CODES)
def test_a_base_of_codes_is_refused_with_the_way_to_a_plain_one(case: str, tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "a", target_modules=["q_proj", "v_proj"])
    code, said = CODES[case]
    weights = load_file(base / "model.safetensors")
    for name in [name for name in weights if "proj" in name]:
        weights |= code(name, weights.pop(name))
    save_file(weights, base / "model.safetensors")
    with pytest.raises(InputError, match=said):
        apply(base, TaskVector.load(folder))
