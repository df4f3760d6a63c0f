"""Image encoders of every family: features, parameters, names; folders that make none."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from transformers import AutoModelForImageClassification, ViTForImageClassification

from image_families import FAMILIES, build, save
from taskvec.errors import InputError
from taskvec.models.checkpoint import fetch
from taskvec.models.functional import encode
from taskvec.models.heads import zero_shot_head
from taskvec.models.image import ImageBackbone
from taskvec.models.loading import load_backbone
from taskvec.names import select_names
from taskvec.weights import open_weights

SMALL = {"size": {"height": 64, "width": 64}, "image_processor_type": "ViTImageProcessor"}


def loaded(folder: Path) -> ImageBackbone:
    backbone = load_backbone(folder)
    assert isinstance(backbone, ImageBackbone)
    return backbone


def images(count: int, height: int = 20, width: int = 30) -> list[Tensor]:
    draw = torch.Generator().manual_seed(0)
    return list(torch.randint(0, 256, (count, height, width, 3), generator=draw, dtype=torch.uint8))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("images")
    return {family: save(family, root / family) for family in FAMILIES}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_a_feature_an_image_at_any_parameters(
    family: str, tmp_path: Path, folders: dict[str, Path]
) -> None:
    if family not in SIZED:
        (folders[family] / "preprocessor_config.json").write_text(json.dumps(SMALL))
    backbone = loaded(folders[family])
    batch = backbone.collate(images(3))
    features = backbone(**batch)
    assert features.shape == (3, backbone.dim) and features.isfinite().all()
    assert_close(backbone(**backbone.collate(images(3)[1:2])), features[1:2])

    stored = open_weights(folders[family])
    parameters = backbone.encoder_parameters()
    assert all(torch.equal(value, stored[name]) for name, value in parameters.items())
    draw = torch.Generator().manual_seed(1)
    moved = {
        name: value.detach() * (1 + 0.1 * torch.rand(value.shape, generator=draw))
        for name, value in parameters.items()
    }
    other = build(family)
    places = dict(other.named_parameters())
    with torch.no_grad():
        for inside, name in backbone.names.items():
            places[inside].copy_(moved[name])
    other.save_pretrained(tmp_path)
    settings = folders[family] / "preprocessor_config.json"
    if settings.exists():
        (tmp_path / settings.name).write_text(settings.read_text())
    expected = loaded(tmp_path)(**batch)
    assert not torch.allclose(expected, features)
    assert_close(encode(backbone, moved, batch), expected)


SIZED = ("levit", "hiera", "mobilevitv2", "focalnet", "swin", "swinv2", "pvt", "siglip", "aimv2_vision_model")
"""Families that take images of one size."""

HEADS = ["vit", "deit", "dinov2", "convnext", "resnet", "regnet", "mobilenet_v1", "mobilenet_v2", "swin"]
HEADS += ["swinv2", "beit", "ijepa", "vit_msn", "efficientnet", "focalnet", "pvt"]


@pytest.mark.parametrize("family", HEADS)
def test_a_classifier_s_checkpoint_gives_the_feature_that_its_own_head_reads(
    family: str, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    auto: Any = AutoModelForImageClassification
    config = build(family, num_labels=5).config
    config.architectures = ["DeiTForImageClassification"] if family == "deit" else None
    network = auto.from_config(config).eval()
    network.save_pretrained(tmp_path)
    backbone = loaded(tmp_path)
    batch = backbone.collate(images(2))
    read: list[Tensor] = []
    heads = [
        part for part in network.modules() if isinstance(part, torch.nn.Linear) and part.out_features == 5
    ]
    heads[0].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    network(pixel_values=backbone.normalized(batch["pixel_values"]))
    theirs = read[0].flatten(1)
    if family == "dinov2":
        theirs = theirs[:, : backbone.dim]  # the class token; the head reads the mean of the patches too
    assert_close(backbone(**batch), theirs)


def test_a_pooler_that_the_checkpoint_lacks_is_not_used(tmp_path: Path) -> None:
    config = build("vit").config
    torch.manual_seed(0)
    ViTForImageClassification(config).save_pretrained(tmp_path / "classifier")
    save("vit", tmp_path / "encoder")
    with_pooler, without = loaded(tmp_path / "encoder"), loaded(tmp_path / "classifier")
    assert any("pooler" in name for name in with_pooler.encoder_parameters())
    assert not any("pooler" in name for name in without.encoder_parameters())
    assert all(name.startswith("vit.") for name in without.encoder_parameters())
    again = loaded(tmp_path / "classifier")
    batch = without.collate(images(2))
    assert_close(without(**batch), again(**batch), rtol=0, atol=0)


@pytest.mark.parametrize(
    "family", ["vit", "deit", "clip_vision_model", "ijepa", "dinov2", "beit", "convnext"]
)
def test_images_of_another_size_than_the_model_was_made_for(family: str, tmp_path: Path) -> None:
    processor = {"size": {"height": 48, "width": 64}, "image_processor_type": "ViTImageProcessor"}
    backbone = loaded(save(family, tmp_path, processor))
    assert backbone.collate(images(2))["pixel_values"].shape == (2, 3, 48, 64)
    assert backbone(**backbone.collate(images(2))).shape == (2, backbone.dim)


@pytest.mark.parametrize("missing", [False, True])
def test_of_the_hub_the_processor_s_file_is_fetched_too(
    missing: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def answer(path_or_repo_id: str, filename: str, **options: object) -> str | None:
        asked.append(f"{path_or_repo_id}@{options.get('revision')}/{filename}")
        return None if missing else str(tmp_path / filename)

    monkeypatch.setattr("transformers.utils.hub.cached_file", answer)
    fetch("org/name@v1", "preprocessor_config.json")
    fetch(str(tmp_path), "preprocessor_config.json")
    assert asked == ["org/name@v1/preprocessor_config.json"]


def test_an_encoder_of_grey_images(tmp_path: Path) -> None:
    backbone = loaded(save("vit", tmp_path, num_channels=1))
    assert backbone.collate(images(2))["pixel_values"].shape == (2, 1, 32, 32)
    assert backbone(**backbone.collate(images(2))).shape == (2, backbone.dim)


def test_an_encoder_of_four_channels_is_refused(tmp_path: Path) -> None:
    save("vit", tmp_path, num_channels=4)
    with pytest.raises(
        InputError, match=r"config\.json: num_channels is 4, expected 3, or 1 for grey images"
    ):
        load_backbone(tmp_path)


def test_an_encoder_without_a_text_tower_says_what_to_do(tmp_path: Path) -> None:
    backbone = loaded(save("convnext", tmp_path))
    with pytest.raises(
        InputError, match=r"has no text tower.*; give its tasks 'head: linear-probe'"
    ) as refused:
        zero_shot_head(backbone, ["cat", "dog"], ["a {}"])
    assert "\n" not in str(refused.value) and str(refused.value).startswith(f"{tmp_path}: ")


def test_batch_norm_keeps_its_statistics_and_is_no_part_of_a_vector(tmp_path: Path) -> None:
    backbone = loaded(save("resnet", tmp_path, SMALL))
    before = {name: value.clone() for name, value in backbone.network.named_buffers()}
    backbone(**backbone.collate(images(4)))
    assert all(torch.equal(value, before[name]) for name, value in backbone.network.named_buffers())
    assert not any("running" in name for name in backbone.encoder_parameters())


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"model_type": "pixtral"}, "is none that can be trained or evaluated"),
        ({"model_type": "detr"}, "for .*object detection.*, is none that can be trained or evaluated"),
        ({"model_type": "videomae"}, "is none that can be trained or evaluated"),
        ({"image_size": 40}, "shape"),
    ],
)
def test_a_folder_that_makes_no_encoder_is_one_line(
    change: dict[str, Any], complaint: str, tmp_path: Path
) -> None:
    save("vit", tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match=complaint) as refused:
        load_backbone(tmp_path)
    assert "\n" not in str(refused.value) and str(tmp_path) in str(refused.value)


def test_a_processor_of_a_size_that_the_model_does_not_take_is_named(tmp_path: Path) -> None:
    save("levit", tmp_path, SMALL | {"size": {"height": 40, "width": 40}})
    with pytest.raises(InputError, match="gives no features of an image of 40 x 40 pixels"):
        load_backbone(tmp_path)


BLOCKS = {
    **dict.fromkeys(("vit", "deit", "dinov2", "dinov3_vit", "beit", "data2vec-vision", "ijepa"), (8, 8)),
    **dict.fromkeys(
        ("vit_mae", "vit_msn", "dpt", "clip_vision_model", "mlcd", "dinov2_with_registers"), (8, 8)
    ),
    **dict.fromkeys(("swin", "swinv2", "pvt"), (16, 16)),
    **dict.fromkeys(("pvt_v2", "segformer"), (16, 24)),  # with the depthwise convolution inside the MLP
    "aimv2_vision_model": (8, 6),  # its MLP has no biases
    "cvt": (24, 24),
    "hiera": (8, 16),  # query, key and value in one
    "mobilevit": (36, 36),
    "mobilevitv2": (0, 36),
    "siglip": (10, 12),  # with the attention that pools the patches
    "siglip_vision_model": (10, 12),
    "swiftformer": (16, 0),
    "vitdet": (4, 8),
}
"""Weights of attention projections, and parameters of MLPs; in other families none go by such names."""


@pytest.mark.parametrize("family", FAMILIES)
def test_selections_hold_all_projections_of_a_family_or_say_that_there_are_none(
    family: str, folders: dict[str, Path]
) -> None:
    inside = [name for name, _ in build(family).named_parameters() if not name.startswith("text_model")]
    stored = [name for name in open_weights(folders[family]) if not name.startswith("text_model")]
    attention, mlp = BLOCKS.get(family, (0, 16 if family == "focalnet" else 0))
    for names in (inside, stored):
        for selection, count in (("attention", attention), ("mlp", mlp)):
            if count:
                found = select_names(names, selection, family)
                assert len(found) == count
                assert not any(part in name for name in found for part in ("position_bias", "norm", "scale"))
            else:
                with pytest.raises(InputError, match=f"selection '{selection}' leaves nothing to train"):
                    select_names(names, selection, family)
