"""CLIP: preprocessing against Pillow, names, zero-shot heads."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import normalize
from torch.testing import assert_close

from taskvec.errors import InputError
from taskvec.models.clip import ClipBackbone
from taskvec.models.heads import zero_shot_head
from taskvec.models.loading import load_backbone
from taskvec.models.preprocessing import Preprocessing
from taskvec.models.selection import select


@pytest.fixture(scope="module")
def backbone(clip_folder: Path) -> ClipBackbone:
    loaded = load_backbone(clip_folder)
    assert isinstance(loaded, ClipBackbone)
    return loaded


def images(count: int, height: int, width: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(height * width)
    return torch.randint(0, 256, (count, height, width, 3), generator=draw, dtype=torch.uint8)


def gradients(height: int, width: int) -> torch.Tensor:
    """A smooth picture, as photographs are; on white noise clipping between two passes makes a difference."""
    y, x = torch.meshgrid(torch.linspace(0, 1, height), torch.linspace(0, 1, width), indexing="ij")
    channels = [y, (x + y) / 2, 0.5 + 0.4 * torch.sin(7 * x + 3 * y)]
    return (255 * torch.stack(channels, dim=-1)).round().to(torch.uint8)[None]


@settings(max_examples=25, deadline=None)
@given(st.integers(20, 90), st.integers(20, 90))
@example(27, 78)
def test_preprocessing_is_pillow_s_to_a_grey_level_or_two(height: int, width: int) -> None:
    image = gradients(height, width)
    ours = Preprocessing(edge=24, crop=20)(image)[0].permute(1, 2, 0)
    size = (24 * width // min(height, width), 24 * height // min(height, width))
    resized = np.asarray(Image.fromarray(image[0].numpy()).resize(size, Image.Resampling.BICUBIC))
    top, left = (resized.shape[0] - 20) // 2, (resized.shape[1] - 20) // 2
    theirs = torch.tensor(resized[top : top + 20, left : left + 20])
    apart = (ours.int() - theirs.int()).abs()
    assert apart.max() <= 2  # two where both passes round the other way, as at 27 x 78
    assert (apart > 1).float().mean() < 0.01


def test_an_image_smaller_than_the_crop_is_padded_with_black() -> None:
    image = torch.full((1, 4, 4, 3), 200, dtype=torch.uint8)
    padded = Preprocessing(edge=4, crop=8)(image)
    assert padded.shape == (1, 3, 8, 8)
    assert padded[..., 2:6, 2:6].eq(200).all() and padded.sum() == 200 * 16 * 3


def test_images_of_different_sizes_make_one_batch(backbone: ClipBackbone) -> None:
    small, large = images(1, 16, 16), images(1, 40, 24)
    batch = backbone.collate([small[0], large[0].numpy()])
    assert batch["pixel_values"].shape == (2, 3, 16, 16)
    assert_close(batch["pixel_values"][0], small[0].permute(2, 0, 1))


def test_the_feature_is_that_of_transformers(backbone: ClipBackbone) -> None:
    batch = images(3, 16, 16)
    pixels = (batch.permute(0, 3, 1, 2) / 255 - 0.5) / 0.25
    theirs = backbone.network.get_image_features(pixel_values=pixels)  # type: ignore[operator]
    theirs = getattr(theirs, "pooler_output", theirs)
    assert_close(backbone(**backbone.collate(list(batch))), theirs)


def test_only_the_image_side_is_trained_under_checkpoint_names(
    backbone: ClipBackbone, clip_folder: Path
) -> None:
    stored = load_file(clip_folder / "model.safetensors")
    parameters = backbone.encoder_parameters()
    assert {name.split(".")[0] for name in parameters} == {"vision_model", "visual_projection"}
    assert all(torch.equal(value, stored[name]) for name, value in parameters.items())
    assert len(select(backbone, "attention")) == 2 * 4


def test_the_head_is_the_mean_of_unit_prompt_embeddings_at_the_logit_scale(backbone: ClipBackbone) -> None:
    head = zero_shot_head(backbone, ["cat", "dog"], ["a {}", "the {}"])
    network = backbone.network
    for row, name in enumerate(["cat", "dog"]):
        tokens = backbone.tokenizer([f"a {name}", f"the {name}"], padding=True, return_tensors="pt")
        embedded = network.get_text_features(**tokens)  # type: ignore[operator]
        embedded = getattr(embedded, "pooler_output", embedded)
        unit = normalize(normalize(embedded, dim=-1).mean(0), dim=-1)
        assert_close(head.weight[row], network.logit_scale.exp() * unit)  # type: ignore[operator]
    features = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    assert_close(head(features), normalize(features, dim=-1) @ head.weight.T)
    assert_close(head(3 * features), head(features))


@pytest.mark.parametrize("size", [8, {"shortest_edge": 8}, {"height": 8, "width": 8}])
def test_sizes_are_read_in_every_spelling(tmp_path: Path, size: object) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": size, "crop_size": size}))
    assert Preprocessing.read(tmp_path, 224) == Preprocessing(8, 8)
    (tmp_path / "preprocessor_config.json").rename(tmp_path / "processor_config.json")
    nested = {"image_processor": {"size": size, "crop_size": size}}
    (tmp_path / "processor_config.json").write_text(json.dumps(nested))
    assert Preprocessing.read(tmp_path, 224) == Preprocessing(8, 8)


def test_preprocessing_that_is_not_understood_names_its_file(tmp_path: Path) -> None:
    (tmp_path / "preprocessor_config.json").write_text('{"size": "large"}')
    with pytest.raises(InputError, match="preprocessor_config"):
        Preprocessing.read(tmp_path, 224)
