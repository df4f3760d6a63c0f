"""Edited checkpoints of every layout load in transformers and hold what float64 arithmetic says."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSeq2SeqLM,
    BertConfig,
    BertForMaskedLM,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
)

from checkpoints import SHAPE
from philox import stream
from taskvec.cli import main
from taskvec.vectors import TaskVector, apply, combine
from taskvec.weights import save_weights

Array = NDArray[np.float64]
WORDS: dict[str, Any] = {"vocab_size": 21, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}
SHARD = 8_000


class Layout(NamedTuple):
    """How a model is made, loaded and run."""

    make: Callable[[], Any]
    loader: Any
    inputs: Mapping[str, Tensor]


TEXT = {"input_ids": torch.arange(3, 9)[None]}
PIXELS = {"pixel_values": torch.linspace(-1, 1, 3 * 16 * 16).reshape(1, 3, 16, 16)}
IMAGES: dict[str, Any] = {**SHAPE, "image_size": 16, "patch_size": 8}
T5_SHAPE: dict[str, Any] = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
LAYOUTS = {
    "llama in bfloat16": Layout(
        lambda: LlamaForCausalLM(LlamaConfig(max_position_embeddings=8, **WORDS, **SHAPE)).bfloat16(),
        AutoModelForCausalLM,
        TEXT,
    ),
    "llama, tied": Layout(
        lambda: LlamaForCausalLM(
            LlamaConfig(max_position_embeddings=8, tie_word_embeddings=True, **WORDS, **SHAPE)
        ),
        AutoModelForCausalLM,
        TEXT,
    ),
    "gpt2, tied": Layout(
        lambda: GPT2LMHeadModel(GPT2Config(n_positions=8, n_embd=16, n_layer=2, n_head=2, **WORDS)),
        AutoModelForCausalLM,
        TEXT,
    ),
    "bert, tied": Layout(
        lambda: BertForMaskedLM(BertConfig(max_position_embeddings=8, **WORDS, **SHAPE)),
        AutoModelForMaskedLM,
        TEXT,
    ),
    "clip vision": Layout(lambda: CLIPVisionModel(CLIPVisionConfig(**IMAGES)), AutoModel, PIXELS),
    "vit": Layout(
        lambda: ViTForImageClassification(ViTConfig(**IMAGES)),
        AutoModelForImageClassification,
        PIXELS,
    ),
    "t5, tied": Layout(
        lambda: T5ForConditionalGeneration(T5Config(**T5_SHAPE, **{**WORDS, "decoder_start_token_id": 0})),
        AutoModelForSeq2SeqLM,
        {**TEXT, "decoder_input_ids": torch.arange(4)[None]},
    ),
}


# The edits, spelled out in float64 on what the files hold.


def linear(deltas: Sequence[Array], name: str) -> Array:
    return 0.7 * deltas[0] - 0.4 * deltas[1]


def ties(deltas: Sequence[Array], name: str) -> Array:
    trimmed = np.stack([largest(delta, max(1, round(0.3 * delta.size))) for delta in deltas])
    elected = np.where(trimmed.sum(0) < 0, -1.0, 1.0)
    agree = np.sign(trimmed) == elected
    merged: Array = (trimmed * agree).sum(0) / np.maximum(agree.sum(0), 1)
    return merged


def largest(delta: Array, count: int) -> Array:
    """The ``count`` entries of largest magnitude; the others are zero."""
    kept = np.zeros(delta.size)
    order = np.argsort(-np.abs(delta.astype(np.float32)).reshape(-1), kind="stable")[:count]
    kept[order] = delta.reshape(-1)[order]
    return kept.reshape(delta.shape)


def dare(deltas: Sequence[Array], name: str) -> Array:
    total = np.zeros_like(deltas[0])
    for task, delta in enumerate(deltas):
        upper, lower = (stream(f"{part}/5/{task}/{name}", delta.size) for part in ("upper", "lower"))
        kept = (upper * 2**16 + lower).reshape(delta.shape) < 0.4 * 2**32
        total += np.where(kept, delta / 0.4, 0.0)
    return total


def tsv(deltas: Sequence[Array], name: str) -> Array:
    if deltas[0].ndim != 2:
        mean: Array = np.stack(deltas).mean(0)
        return mean
    top = max(1, min(deltas[0].shape) // len(deltas))
    parts = [np.linalg.svd(delta, full_matrices=False) for delta in deltas]
    left = polar(np.concatenate([u[:, :top] for u, _, _ in parts], 1))
    right = polar(np.concatenate([v[:top] for _, _, v in parts], 0))
    merged: Array = left @ np.diag(np.concatenate([s[:top] for _, s, _ in parts])) @ right
    return merged


def polar(matrix: Array) -> Array:
    u, _, v = np.linalg.svd(matrix, full_matrices=False)
    product: Array = u @ v
    return product


class Edit(NamedTuple):
    """One edit: as options of the command, as a Python call, and in float64."""

    options: Sequence[str]
    call: Callable[[Sequence[TaskVector]], TaskVector]
    exact: Callable[[Sequence[Array], str], Array]
    rtol: float = 1e-6


EDITS = {
    "linear": Edit(("-e", "0.7*a - 0.4*b"), lambda vectors: 0.7 * vectors[0] - 0.4 * vectors[1], linear),
    "ties": Edit(("--rule", "ties", "-p", "keep=0.3"), partial(combine, "ties", keep=0.3), ties),
    "dare": Edit(
        ("--rule", "dare", "-p", "density=0.4", "-p", "seed=5"),
        partial(combine, "dare", density=0.4, seed=5),
        dare,
    ),
    "tsv": Edit(("--rule", "tsv"), partial(combine, "tsv"), tsv, rtol=1e-4),
}
SCALE = 0.9


@pytest.fixture(scope="module", params=LAYOUTS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, Path]:
    """A base and two fine-tuned models of one layout, in several shards, and their vectors."""
    place = tmp_path_factory.mktemp("layout")
    layout = LAYOUTS[request.param]
    torch.manual_seed(0)
    network = layout.make()
    start = {name: value.clone() for name, value in network.state_dict().items()}
    for folder in ("base", "a", "b"):
        with torch.no_grad():
            for name, value in network.named_parameters():
                value.copy_(start[name] + (folder != "base") * 0.02 * torch.randn(value.shape))
        network.save_pretrained(place / folder, max_shard_size=SHARD)
        assert len(list((place / folder).glob("model-*.safetensors"))) > 1
    for name in "ab":
        run("diff", place / "base", place / name, "-o", place / f"{name}.safetensors")
    return layout, place


def run(*arguments: object) -> None:
    with pytest.raises(SystemExit) as done:
        main((*map(str, arguments), "--quiet", "--json"))
    assert not done.value.code


def files_of(folder: Path) -> dict[str, Tensor]:
    return {name: value for file in folder.glob("*.safetensors") for name, value in load_file(file).items()}


@pytest.mark.parametrize("name", EDITS)
def test_an_edited_model_loads_runs_and_holds_what_float64_says(
    name: str, world: tuple[Layout, Path], tmp_path: Path
) -> None:
    layout, place = world
    edit, base, edited = EDITS[name], place / "base", tmp_path / "edited"
    vectors = [part for task in "ab" for part in ("-v", f"{task}={place / task}.safetensors")]
    size = ("--max-shard-gb", SHARD / 1e9)
    run("apply", base, *vectors, *edit.options, "--scale", SCALE, *size, "-o", edited)
    lazy = edit.call([TaskVector.between(base, place / task) for task in "ab"])
    called = save_weights(apply(base, lazy, SCALE), tmp_path / "called", max_shard_size=SHARD)

    expected = exact(place, edit)
    for folder in (edited, called):
        assert len(list(folder.glob("model-*.safetensors"))) > 1
        found = files_of(folder)
        assert found.keys() == expected.keys()
        for key, value in found.items():
            rounded = torch.from_numpy(expected[key]).to(value.dtype)
            rtol = 2**-7 if value.dtype == torch.bfloat16 else edit.rtol
            say = partial("{}: {}".format, key)
            torch.testing.assert_close(value, rounded, rtol=rtol, atol=edit.rtol, msg=say)

    # The same tensors, written by another hand, load and run alike.
    save_model(files_of(edited), base, tmp_path / "reference")
    network, info = layout.loader.from_pretrained(edited, output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    reference = layout.loader.from_pretrained(tmp_path / "reference")
    states = network.state_dict(), reference.state_dict()
    assert states[0].keys() == states[1].keys()
    assert all(torch.equal(value, states[1][key]) for key, value in states[0].items())
    with torch.no_grad():
        first, second = (model.eval()(**inputs_for(layout, model))[0] for model in (network, reference))
        start = layout.loader.from_pretrained(base).eval()
        before = start(**inputs_for(layout, start))[0]
    assert bool(first.isfinite().all())
    assert torch.equal(first, second)
    assert not torch.equal(first, before)


def inputs_for(layout: Layout, network: Any) -> dict[str, Tensor]:
    """The inputs, images in the precision of the network."""
    return {
        key: value.to(network.dtype) if value.is_floating_point() else value
        for key, value in layout.inputs.items()
    }


def exact(place: Path, edit: Edit) -> dict[str, Array]:
    base, *tuned = (files_of(place / folder) for folder in ("base", "a", "b"))
    wide = {key: value.double().numpy() for key, value in base.items()}
    return {
        key: start + SCALE * edit.exact([end[key].double().numpy() - start for end in tuned], key)
        for key, start in wide.items()
    }


def save_model(tensors: Mapping[str, Tensor], like: Path, folder: Path) -> None:
    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_bytes((like / "config.json").read_bytes())


@pytest.mark.parametrize("layout", ["gpt2, tied", "t5, tied", "bert, tied", "llama, tied"])
def test_tied_weights_are_stored_once_and_tied_again(layout: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = LAYOUTS[layout].make()
    network.save_pretrained(tmp_path / "base")
    with torch.no_grad():
        network.get_input_embeddings().weight.mul_(1.5)
    network.save_pretrained(tmp_path / "tuned")
    vector = TaskVector.between(tmp_path / "base", tmp_path / "tuned")
    assert sum(bool(vector.terms_at(name)) and bool(vector[name].any()) for name in vector) == 1
    edited = save_weights(apply(tmp_path / "base", vector), tmp_path / "edited")
    loaded = LAYOUTS[layout].loader.from_pretrained(edited)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert torch.equal(loaded.get_output_embeddings().weight, network.get_input_embeddings().weight)
