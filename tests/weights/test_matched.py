"""Checkpoints of one network are one model, whatever names and layout they were saved in."""

import json
import sys
from collections.abc import Callable, Mapping
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3TextConfig,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen2MoeConfig,
    Qwen2MoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    SiglipVisionConfig,
    ViTConfig,
    ViTForImageClassification,
)

from taskvec.errors import BaseMismatch, KeyMismatch
from taskvec.vectors import TaskVector, apply
from taskvec.weights import Weights, open_weights
from taskvec.weights.matched import see_as
from taskvec.weights.selecting import parse_renames

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
TEXT: dict[str, Any] = {**SHAPE, "vocab_size": 20, "num_key_value_heads": 2}
VISION: dict[str, Any] = {**SHAPE, "image_size": 8, "patch_size": 4}
EXPERTS: dict[str, Any] = {"num_experts": 3, "moe_intermediate_size": 8, "num_experts_per_tok": 2}


def llava() -> Any:
    vision = CLIPVisionConfig(**VISION, projection_dim=8)
    config = LlavaConfig(text_config=LlamaConfig(**TEXT), vision_config=vision, image_token_index=3)
    return LlavaForConditionalGeneration(config)


def gemma3() -> Any:
    text = Gemma3TextConfig(**TEXT, head_dim=8).to_dict()
    vision = SiglipVisionConfig(**VISION).to_dict()
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))


NETWORKS: dict[str, Callable[[], Any]] = {
    "mixtral": lambda: MixtralForCausalLM(MixtralConfig(**TEXT, num_local_experts=3)),
    "qwen2_moe": lambda: Qwen2MoeForCausalLM(
        Qwen2MoeConfig(**TEXT, **EXPERTS, shared_expert_intermediate_size=8)
    ),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(Qwen3MoeConfig(**TEXT, **EXPERTS)),
    "vit": lambda: ViTForImageClassification(ViTConfig(**VISION)),
    "llava": llava,
    "gemma3": gemma3,
    "gpt_neox": lambda: GPTNeoXForCausalLM(GPTNeoXConfig(**SHAPE, vocab_size=20)),
}


def save_network(model: nn.Module, folder: Path, config: Path, prefix: str = "") -> Path:
    """The state dict as it is in memory, as training scripts save it, with the config of another folder."""
    folder.mkdir()
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    state = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    tensors = {f"{prefix}{name}": tensor.clone().contiguous() for name, tensor in state.items()}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    (folder / "config.json").write_text((config / "config.json").read_text())
    return folder


@pytest.fixture(params=NETWORKS)
def saved(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A base and a model fine-tuned from it, each as transformers saves it and as it is in memory."""
    for seed, name in enumerate(("base", "tuned")):
        torch.manual_seed(seed)
        model = NETWORKS[request.param]()
        model.save_pretrained(tmp_path / name)
        save_network(model, tmp_path / f"{name}-memory", tmp_path / name)
        save_network(model, tmp_path / f"{name}-wrapped", tmp_path / name, "module._orig_mod.")
    return tmp_path


def assert_same(edited: Weights, expected: Weights) -> None:
    assert set(edited) == set(expected)
    for name in expected:
        assert torch.equal(edited[name], expected[name]), name


def test_what_transformers_saves_and_has_in_memory_is_one_model(saved: Path) -> None:
    for form, other in permutations(("", "-memory", "-wrapped"), 2):
        base = open_weights(saved / f"base{form}")
        vector = TaskVector.between(base, saved / f"tuned{other}")
        assert_same(apply(base, vector), open_weights(saved / f"tuned{form}"))


def test_a_stored_vector_is_one_of_every_form(saved: Path) -> None:
    for form, other in permutations(("", "-memory", "-wrapped"), 2):
        path = TaskVector.between(saved / f"base{form}", saved / f"tuned{form}").save(
            saved / "v.safetensors", force=True
        )
        base, vector = open_weights(saved / f"base{other}"), TaskVector.load(path)
        edited = apply(base, vector)
        plain = TaskVector.between(saved / f"base{other}", saved / f"tuned{other}")
        expected = apply(base, TaskVector.load(plain.save(saved / "w.safetensors", force=True)))
        assert_same(edited, expected)
        with pytest.raises(BaseMismatch) as refused:
            apply(saved / f"tuned{other}", vector)
        assert ("stacked, split or turned" in str(refused.value)) == (len(vector) != len(plain))


State = dict[str, Tensor]


def state(seed: int = 0) -> State:
    generator = torch.Generator().manual_seed(seed)
    shapes = {
        "model.embed_tokens.weight": (8, 4),
        "model.layers.0.up.weight": (6, 4),
        "model.norm.weight": (4,),
    }
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


COMPUTED = {
    "model.layers.0.rotary_emb.inv_freq": torch.ones(2),
    "model.layers.0.attn.masked_bias": torch.tensor(-1e4),
    "model.layers.0.attn.bias": torch.ones(1, 1, 4, 4).tril(),
    "model.rotary_emb.cos_cached": torch.ones(1, 1, 4, 2),
}


@pytest.mark.parametrize("name", COMPUTED)
def test_buffers_that_the_model_computes_may_come_and_go(name: str, caplog: pytest.LogCaptureFixture) -> None:
    plain, holding = state(), {**state(1), name: COMPUTED[name]}
    assert set(TaskVector.between(plain, holding)) == set(plain)
    assert "left out, as the model computes it" in caplog.text and name in caplog.text
    edited = apply(holding, TaskVector.between(holding, plain))
    assert torch.equal(edited[name], COMPUTED[name]) and torch.equal(
        edited["model.norm.weight"], plain["model.norm.weight"]
    )


@pytest.mark.parametrize("name", ["model.layers.0.attn.bias", "model.layers.0.router.bias"])
def test_a_bias_that_is_trained_is_no_buffer(name: str) -> None:
    with pytest.raises(KeyMismatch, match=f"'{name}' found"):
        TaskVector.between(state(), {**state(1), name: torch.ones(4)})


def test_an_equal_copy_of_a_tied_tensor_is_the_tied_tensor() -> None:
    plain, embedding = state(), "model.embed_tokens.weight"
    copied = {**state(1), "lm_head.weight": state(1)[embedding].clone()}
    vector = TaskVector.between(plain, copied)
    assert set(vector) == set(plain)
    assert torch.equal(apply(plain, vector)[embedding], copied["lm_head.weight"])
    base = {**plain, "lm_head.weight": plain[embedding].clone()}
    edited = apply(base, TaskVector.between(base, state(1)))
    assert torch.equal(edited["lm_head.weight"], state(1)[embedding])
    assert torch.equal(edited[embedding], state(1)[embedding])


def test_a_head_that_differs_from_the_embedding_is_not_dropped() -> None:
    trained = {**state(1), "lm_head.weight": state(2)["model.embed_tokens.weight"]}
    with pytest.raises(
        KeyMismatch, match=r"'lm_head.weight' found.*'model.embed_tokens.weight', save it untied first"
    ):
        TaskVector.between(state(), trained)


HEAD = "lm_head.weight"
EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize(
    "config",
    [
        {"tie_word_embeddings": True},
        {"text_config": {"tie_word_embeddings": True}},
        {"model_type": "gpt2", "architectures": ["GPT2LMHeadModel"]},
        {"model_type": "gemma", "architectures": ["GemmaForCausalLM"]},
        {"tie_word_embeddings": False},
        {"model_type": "llama", "architectures": ["LlamaForCausalLM"]},
        None,
    ],
)
def test_the_head_of_a_tied_fine_tune_is_its_embedding(config: dict[str, Any] | None, tmp_path: Path) -> None:
    base = {**state(), HEAD: state(5)[EMBEDDING]}
    save_file(state(1), tmp_path / "model.safetensors")
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    if config is None or config.get("tie_word_embeddings") is False or config.get("model_type") == "llama":
        with pytest.raises(KeyMismatch, match=f"if it is tied to '{EMBEDDING}', say so .* in a config.json"):
            TaskVector.between(base, tmp_path)
    else:
        edited = apply(base, TaskVector.between(base, tmp_path))
        assert torch.equal(edited[HEAD], state(1)[EMBEDDING])


def test_two_models_in_one_file_are_not_told_apart_by_a_guess() -> None:
    both = {
        f"{who}.{name}": value
        for who, seed in (("student", 1), ("teacher", 2))
        for name, value in state(seed).items()
    }
    with pytest.raises(KeyMismatch, match=r"after 'student\.' -> '' and after 'teacher\.' -> ''"):
        TaskVector.between(state(), both)
    base = open_weights(state())
    vector = TaskVector.between(base, both, rename={"teacher.*": "*"}, exclude=["student"])
    assert_same(apply(base, vector), open_weights(state(2)))


def test_two_ways_that_fit_equally_well_are_refused_and_the_user_says_which() -> None:
    towers = {f"{side}.{name}": value for side in ("left", "right") for name, value in state().items()}
    with pytest.raises(KeyMismatch, match=r"'' -> 'left\.' and after '' -> 'right\.'.*--rename OLD"):
        see_as(open_weights(towers), open_weights(state(1)))
    seen = see_as(open_weights(towers), open_weights(state(1)), parse_renames(["*=right.*"]))
    assert set(seen.weights) == {f"right.{name}" for name in state()}
    vector = TaskVector.between(towers, state(1), rename={"*": "right.*"}, on_missing="zero")
    edited = apply(towers, vector)
    assert torch.equal(edited["right.model.norm.weight"], state(1)["model.norm.weight"])
    assert torch.equal(edited["left.model.norm.weight"], state()["model.norm.weight"])


def halves(tensors: Mapping[str, Tensor], dtype: torch.dtype, *names: str) -> State:
    return {name: value.to(dtype) if not names or name in names else value for name, value in tensors.items()}


@pytest.mark.parametrize(
    ("base", "tuned"),
    [
        (halves(state(), torch.bfloat16), state(1)),
        (halves(state(), torch.bfloat16), halves(state(1), torch.float16)),
        (
            halves(state(), torch.bfloat16),
            {**halves(state(1), torch.bfloat16), "model.norm.weight": torch.ones(4)},
        ),
        (state(), halves(state(1), torch.float16)),
        (state(), halves(state(1), torch.float64)),
    ],
)
def test_models_of_mixed_types_are_widened_and_come_out_in_that_of_the_base(
    base: State, tuned: State, tmp_path: Path
) -> None:
    vector = TaskVector.between(base, tuned)
    exact = {name: tuned[name].double() - base[name].double() for name in base}
    assert all(torch.allclose(vector[name].double(), exact[name], rtol=1e-6, atol=1e-6) for name in base)
    edited = apply(base, vector)
    assert all(torch.equal(edited[name], tuned[name].to(base[name].dtype)) for name in base)
    stored = TaskVector.load(vector.save(tmp_path / "v.safetensors"))
    half = apply(base, 0.5 * stored)
    for name, value in base.items():
        expected = (value.double() + 0.5 * exact[name]).to(value.dtype)
        torch.testing.assert_close(
            half[name], expected, rtol=1e-2 if value.dtype != torch.float32 else 1e-6, atol=1e-6
        )


def test_a_folder_without_transformers_in_reach_is_matched_by_names_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    for name, seed in (("base", 0), ("tuned", 1)):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        prefix = "module." if seed else ""
        save_file(
            {f"{prefix}{key}": value for key, value in state(seed).items()}, folder / "model.safetensors"
        )
    vector = TaskVector.between(tmp_path / "base", tmp_path / "tuned")
    assert torch.equal(
        vector["model.norm.weight"],
        load_file(tmp_path / "tuned/model.safetensors")["module.model.norm.weight"]
        - state()["model.norm.weight"],
    )
