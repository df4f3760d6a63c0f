"""An output is called as the base is, so that the loader that found the base finds it."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights, save_weights
from taskvec.weights.filenames import Naming

STATE = {"a.weight": torch.ones(4, 4), "b.weight": torch.ones(4, 4)}
DIFFUSERS = {"_class_name": "UNet2DConditionModel"}
BERT = {"model_type": "bert"}


def folder_of(place: Path, file: str, config: dict[str, str] | None) -> Path:
    place.mkdir()
    state = {name: tensor * (1 + (place.name == "tuned")) for name, tensor in STATE.items()}
    if file.endswith(".bin"):
        torch.save(state, place / file)
    else:
        save_file(state, place / file)
    if config is not None:
        (place / "config.json").write_text(json.dumps(config))
    return place


KEPT = {
    "model.safetensors": "model.safetensors",
    "pytorch_model.bin": "model.safetensors",
    "diffusion_pytorch_model.safetensors": "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.bin": "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.fp16.safetensors": "diffusion_pytorch_model.fp16.safetensors",
    "model.fp16.safetensors": "model.fp16.safetensors",
    "model.non_ema.safetensors": "model.non_ema.safetensors",
    "open_clip_model.safetensors": "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin": "open_clip_model.safetensors",
    "consolidated.safetensors": "consolidated.safetensors",
}


@pytest.mark.parametrize("config", [None, DIFFUSERS, BERT], ids=["none", "diffusers", "transformers"])
@pytest.mark.parametrize("file", KEPT)
def test_names_that_loaders_look_for_are_kept(
    file: str, config: dict[str, str] | None, tmp_path: Path
) -> None:
    base = folder_of(tmp_path / "base", file, config)
    tuned = folder_of(tmp_path / "tuned", file, config)
    weights = open_weights(base / file)
    out = save_weights(apply(weights, TaskVector.between(weights, tuned / file)), tmp_path / "out")
    assert [path.name for path in out.glob("*.safetensors")] == [KEPT[file]]
    assert torch.equal(open_weights(out / KEPT[file])["a.weight"], 2 * STATE["a.weight"])


@pytest.mark.parametrize(
    ("config", "named", "expected"),
    [
        (None, False, "flux.1-dev.safetensors"),
        (None, True, "model.safetensors"),
        (BERT, False, "model.safetensors"),
        (DIFFUSERS, False, "diffusion_pytorch_model.safetensors"),
        (DIFFUSERS, True, "diffusion_pytorch_model.safetensors"),
    ],
)
def test_another_name_is_kept_if_no_loader_needs_one_and_the_folder_was_named(
    config: dict[str, str] | None, named: bool, expected: str, tmp_path: Path
) -> None:
    base = folder_of(tmp_path / "base", "flux.1-dev.safetensors", config)
    out = save_weights(open_weights(base / "flux.1-dev.safetensors" if named else base), tmp_path / "out")
    assert [path.name for path in out.glob("*.safetensors")] == [expected]


@pytest.mark.parametrize(
    ("file", "first", "index"),
    [
        ("model.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
        (
            "diffusion_pytorch_model.safetensors",
            "diffusion_pytorch_model-00001-of-00002.safetensors",
            "diffusion_pytorch_model.safetensors.index.json",
        ),
        (
            "diffusion_pytorch_model.fp16.safetensors",
            "diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
            "diffusion_pytorch_model.safetensors.index.fp16.json",
        ),
        (
            "model.fp16.safetensors",
            "model.fp16-00001-of-00002.safetensors",
            "model.safetensors.index.fp16.json",
        ),
        ("odd.safetensors", "model-00001-of-00002.safetensors", "model.safetensors.index.json"),
    ],
)
def test_shards_and_their_index_too(file: str, first: str, index: str, tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", file, None)
    out = save_weights(open_weights(base), tmp_path / "out", max_shard_size=64)
    second = first.replace("00001", "00002")
    assert json.loads((out / index).read_text())["weight_map"] == {"a.weight": first, "b.weight": second}
    assert sorted(path.name for path in out.glob("*.safetensors")) == [first, second]


@pytest.mark.parametrize("file", ["open_clip_model.safetensors", "consolidated.safetensors"])
def test_what_loaders_take_whole_is_never_split(file: str, tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", file, None)
    out = save_weights(open_weights(base), tmp_path / "out", max_shard_size=64)
    assert [path.name for path in out.glob("*.safetensors*")] == [file]


@pytest.mark.parametrize(
    "file", ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"]
)
def test_shards_of_a_component_come_back_as_shards_or_as_one_file(file: str, tmp_path: Path) -> None:
    base = folder_of(tmp_path / "base", file, DIFFUSERS)
    split = save_weights(open_weights(base), tmp_path / "split", max_shard_size=64)
    [index] = split.glob("*.index*.json")
    for opened in (split, index):
        whole = save_weights(open_weights(opened), tmp_path / "whole", force=True)
        assert [path.name for path in whole.glob("*.safetensors")] == [file]
    assert open_weights(whole).fingerprint() == open_weights(base).fingerprint()


def test_weights_in_memory_have_the_usual_name(tmp_path: Path) -> None:
    assert Naming().file(1, 1) == "model.safetensors"
    assert [path.name for path in save_weights(STATE, tmp_path / "out").glob("*.safetensors")] == [
        "model.safetensors"
    ]
