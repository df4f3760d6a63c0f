"""Adapters extracted from models of many architectures: PEFT adapts every matrix that was written."""

import json
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from architectures.checks import tune
from architectures.families import families
from taskvec.errors import InputError
from taskvec.vectors import Extraction, TaskVector, save_adapter
from tiny_networks import ARCHITECTURES, Network, build

WRITTEN = {
    **{"bert": 14, "t5": 32, "gpt2": 8, "llama": 15, "phi3": 9, "falcon": 8, "vit": 13, "dinov2": 12},
    **{"mixtral": 15, "qwen2_moe": 23, "qwen3_moe": 15, "gpt_oss": 15, "deepseek_v3": 20, "granitemoe": 15},
    **{"swin": 14, "clip": 26, "siglip": 27, "whisper": 32, "wav2vec2": 14, "llava": 29, "gemma3": 29},
    **{"qwen2_vl": 25, "blip2": 37, "mamba": 6},
}
"""Matrices that are no embeddings and not tied to one: layers, routers, and stacks of experts."""

TEXT = (
    "llama",
    "gpt2",
    "phi3",
    "falcon",
    "mixtral",
    "qwen2_moe",
    "qwen3_moe",
    "gpt_oss",
    "granitemoe",
    "mamba",
)


def save_pair(kind: str, folder: Path, dtype: torch.dtype = torch.float64) -> TaskVector:
    """A network and the same with every parameter moved, saved as transformers saves them."""
    torch.manual_seed(0)
    network = build(kind).to(dtype)
    network.save_pretrained(folder / "base")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    network.save_pretrained(folder / "tuned")
    return TaskVector.between(folder / "base", folder / "tuned")


def load(kind: str, folder: Path) -> Network:
    return type(build(kind)).from_pretrained(folder, dtype="auto")


@contextmanager
def without_complaints() -> Iterator[None]:
    """No layer is said to be missing, unexpected or unmatched."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        yield
    texts = [str(one.message) for one in said]
    assert not [text for text in texts if any(word in text for word in ("missing", "unexpected", "match"))]


def adapted(kind: str, folder: Path, made: Extraction) -> Network:
    with without_complaints():
        return PeftModel.from_pretrained(
            load(kind, folder / "base"), str(made.path), autocast_adapter_dtype=False
        )


def differing(some: dict[str, Tensor], others: dict[str, Tensor]) -> set[str]:
    return {name for name in some if not torch.allclose(some[name], others[name], atol=1e-7, rtol=0)}


def matrices(network: Network) -> set[str]:
    """The weights of the linear layers that stand for themselves."""
    tied = network.all_tied_weights_keys
    shared = {*tied, *tied.values()}
    named = network.named_modules()
    return {f"{name}.weight" for name, one in named if isinstance(one, nn.Linear)} - shared


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_peft_adapts_every_matrix_and_merges_to_the_fine_tuned_one(kind: str, tmp_path: Path) -> None:
    rank = 8 if kind == "swin" else 32
    vector = save_pair(kind, tmp_path)
    made = save_adapter(vector, tmp_path / "lora", rank=rank)
    read = TaskVector.load(made.path).with_base(tmp_path / "base")
    for name in vector.keys() - made.left_out.keys():
        if min(vector[name].shape[-2:]) <= rank:
            torch.testing.assert_close(read[name], vector[name], rtol=0, atol=1e-7)
    network = adapted(kind, tmp_path, made)
    assert sum("lora_A" in name for name, _ in network.named_parameters()) == WRITTEN[kind]
    assert len(made.errors) == WRITTEN[kind] and not made.left_out.keys() & made.errors.keys()
    start, end = (load(kind, tmp_path / name) for name in ("base", "tuned"))
    merged, base, tuned = network.merge_and_unload().state_dict(), start.state_dict(), end.state_dict()
    small = {name for name, tensor in tuned.items() if tensor.dim() and min(tensor.shape[-2:]) <= rank}
    changed, wrong = differing(merged, base) & small, differing(merged, tuned)
    assert not changed & wrong
    assert matrices(start) & wrong & small == {name for name in matrices(start) if is_bypassed(kind, name)}


def is_bypassed(kind: str, name: str) -> bool:
    """Whether a layer is read by another without being called, so that PEFT cannot adapt it by itself."""
    return name.endswith("out_proj.weight") and (kind == "mamba" or ".head.attention." in name)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral", "qwen2_moe", "gpt_oss", "deepseek_v3"])
def test_the_factors_count_before_they_are_merged(kind: str, tmp_path: Path) -> None:
    made = save_adapter(save_pair(kind, tmp_path, torch.float32), tmp_path / "lora", rank=4)
    network = adapted(kind, tmp_path, made).eval()
    tokens = torch.tensor([[1, 5, 9, 3]])
    with torch.no_grad():
        plain = load(kind, tmp_path / "base").eval()(input_ids=tokens).logits
        apart = network(input_ids=tokens).logits
        merged = network.merge_and_unload()(input_ids=tokens).logits
    torch.testing.assert_close(apart, merged, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(apart, plain, atol=1e-2)


@pytest.mark.parametrize(
    ("kind", "inserted"), [("pi0", "embed_action_time."), ("mistral_large4_text", "mlp.")]
)
def test_names_that_peft_renames_once_more_are_stored_as_it_finds_them(
    kind: str, inserted: str, tmp_path: Path
) -> None:
    family = families().get(kind) or pytest.skip(f"this version of transformers has no {kind}")
    network = family.build()
    network.save_pretrained(tmp_path / "base")
    tune(network)
    network.save_pretrained(tmp_path / "tuned")
    made = save_adapter(TaskVector.between(tmp_path / "base", tmp_path / "tuned"), tmp_path / "lora", rank=2)
    stored = load_file(made.path / "adapter_model.safetensors")
    settings = json.loads((made.path / "adapter_config.json").read_text())
    names = [*settings["target_modules"], *settings.get("target_parameters", ())]
    lacking = [name for name in names if inserted in name and not any(name in key for key in stored)]
    assert lacking  # the names of the network are others than those that are stored
    with without_complaints():
        adapted = PeftModel.from_pretrained(type(network).from_pretrained(tmp_path / "base"), str(made.path))
    assert sum("lora_A" in name for name, _ in adapted.named_parameters()) == len(made.errors) == len(names)


def test_without_a_config_the_names_are_those_of_the_file_and_it_is_said(tmp_path: Path) -> None:
    vector = save_pair("llava", tmp_path)
    (tmp_path / "base" / "config.json").unlink()
    made = save_adapter(TaskVector.between(tmp_path / "base", tmp_path / "tuned"), tmp_path / "lora", rank=2)
    assert len(made.errors) == WRITTEN["llava"] and len(vector) > len(made.errors)
    [note] = made.notes
    assert note.startswith("layers are called as in the checkpoint") and "transformers" in note
    targets = json.loads((made.path / "adapter_config.json").read_text())["target_modules"]
    assert "language_model.model.layers.0.mlp.up_proj" in targets


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        ("mamba", "'backbone.layers.0.mixer.out_proj.weight' (1 more)"),
        ("siglip", "'vision_model.head.attention.out_proj.weight'"),
        ("clip", None),
    ],
)
def test_matrices_that_peft_cannot_adapt_are_named(kind: str, name: str | None, tmp_path: Path) -> None:
    made = save_adapter(save_pair(kind, tmp_path), tmp_path / "lora", rank=2)
    expected = [] if name is None else [f"{name} is left out: PEFT cannot adapt the layer by itself"]
    assert list(made.notes) == expected


def test_a_network_without_linear_layers_has_nothing_for_an_adapter(tmp_path: Path) -> None:
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    network = ResNetModel(config)
    network.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1)
    network.save_pretrained(tmp_path / "tuned")
    vector = TaskVector.between(tmp_path / "base", tmp_path / "tuned")
    with pytest.raises(InputError, match="has no matrix of a linear layer"):
        save_adapter(vector, tmp_path / "lora", rank=1)


def test_stacks_and_routers_are_named_and_can_be_left_out(tmp_path: Path) -> None:
    vector = save_pair("mixtral", tmp_path)
    [note] = save_adapter(vector, tmp_path / "all", rank=2).notes
    assert note.startswith("'model.layers.0.mlp.gate.weight' (5 more) is written for target_parameters")
    made = save_adapter(vector, tmp_path / "plain", rank=2, only="attention")
    settings = json.loads((made.path / "adapter_config.json").read_text())
    assert not made.notes and "target_parameters" not in settings and len(made.errors) == 8
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in made.left_out
