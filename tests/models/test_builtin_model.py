"""The built-in model: its file, its interface, and that it knows the built-in world."""

import hashlib
import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from captioned_pictures import vocabulary
from taskvec.errors import CorruptFile, InputError
from taskvec.models.builtin.backbone import (
    FOLDER,
    BuiltinBackbone,
    configuration,
    load,
    random_initialised,
)
from taskvec.models.builtin.network import Attention, pixels, word_numbers
from taskvec.models.heads import zero_shot_head
from taskvec.models.loading import load_backbone
from taskvec.models.selection import select
from taskvec.tasks.suite import load_suite

WEIGHTS = "db078233bf535f35129b0fd2d824f5ec060e3b7b0a9be2b101974ac33453d5dc"


@pytest.fixture(scope="module")
def backbone() -> BuiltinBackbone:
    return load(FOLDER)


def test_the_weight_file_is_the_one_that_the_tables_were_made_with() -> None:
    data = (FOLDER / "model.safetensors").read_bytes()
    assert hashlib.sha256(data).hexdigest() == WEIGHTS
    assert len(data) <= 8_000_000


def test_the_configuration_is_the_one_that_the_code_would_write(backbone: BuiltinBackbone) -> None:
    assert backbone.vocabulary == vocabulary() == tuple(configuration(vocabulary())["vocabulary"])  # type: ignore[arg-type]


def test_the_known_name_and_the_folder_load_the_same_model(backbone: BuiltinBackbone) -> None:
    images = torch.randint(
        0, 256, (2, 32, 32, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    batch = backbone.collate(list(images))
    for other in (load_backbone("builtin"), load_backbone(FOLDER)):
        assert torch.equal(other(**batch), backbone(**batch))


def test_fine_tuning_may_move_the_image_tower_and_nothing_else(backbone: BuiltinBackbone) -> None:
    names = backbone.encoder_parameters()
    assert set(names) == {f"image.{name}" for name, _ in backbone.network.image.named_parameters()}
    assert 1_000_000 <= sum(p.numel() for p in names.values()) <= 3_000_000


def test_the_attention_selection_is_four_matrices_a_block(backbone: BuiltinBackbone) -> None:
    chosen = select(backbone, "attention")
    assert len(chosen) == 4 * len(backbone.network.image.blocks)
    assert "image.blocks.0.attention.query.weight" in chosen


@pytest.mark.parametrize("name", ["handwritten", "display", "pointing"])
def test_zero_shot_is_far_above_chance_and_far_below_perfect(backbone: BuiltinBackbone, name: str) -> None:
    task = load_suite("builtin8").task(name)
    split = task.split("validation", limit=300)
    with torch.no_grad():
        logits = zero_shot_head(backbone, task.classes, task.templates)(
            backbone(**backbone.collate(split.inputs))
        )
    accuracy = (logits.argmax(1) == split.labels).double().mean().item()
    assert 2 / len(task.classes) < accuracy < 0.9


def test_written_out_attention_is_scaled_dot_product_attention() -> None:
    draws = torch.Generator().manual_seed(0)
    layer = Attention(12, 3).double()
    x = torch.randn(2, 5, 12, generator=draws, dtype=torch.float64)
    there = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], dtype=torch.bool)[:, None, None, :]

    def heads(y: Tensor) -> Tensor:
        return y.view(2, 5, 3, 4).transpose(1, 2)

    fused = F.scaled_dot_product_attention(
        heads(layer.query(x)), heads(layer.key(x)), heads(layer.value(x)), attn_mask=there
    )
    assert_close(layer(x, there), layer.output(fused.transpose(1, 2).reshape(2, 5, 12)))


@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated")  # torch, in its own forward mode
def test_forward_mode_derivatives_go_through_the_image_tower() -> None:
    network = random_initialised(0).network.double()
    images = torch.rand(2, 3, 32, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    params = {name: p.detach() for name, p in network.image.named_parameters()}
    step = {name: torch.ones_like(p) * 1e-3 for name, p in params.items()}

    def features(p: dict[str, Tensor]) -> Tensor:
        return torch.func.functional_call(network.image, p, images)  # type: ignore[no-any-return]

    slope = torch.func.jvp(features, (params,), (step,))[1]
    ends = [features({name: params[name] + sign * 1e-4 * step[name] for name in params}) for sign in (1, -1)]
    assert_close(slope, (ends[0] - ends[1]) / 2e-4, rtol=1e-5, atol=1e-8)


def test_padding_does_not_change_a_text(backbone: BuiltinBackbone) -> None:
    alone = backbone.embed_text(["letter q"])
    beside = backbone.embed_text(["letter q", "picture of the red outlined capital Q on blue"])
    assert_close(alone[0], beside[0])


def test_random_weights_depend_on_the_seed_alone() -> None:
    first, again, other = (random_initialised(seed).encoder_parameters() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["image.projection.weight"], other["image.projection.weight"])


def test_the_logit_scale_is_that_of_training(backbone: BuiltinBackbone) -> None:
    assert 5.0 < backbone.logit_scale <= 50.0
    assert math.isclose(backbone.logit_scale, backbone.network.logit_scale.exp().item(), rel_tol=1e-6)


def test_an_unknown_word_is_refused_with_the_nearest_one(backbone: BuiltinBackbone) -> None:
    with pytest.raises(InputError, match=r"'lettre' in 'the lettre q'.*'letter'"):
        backbone.embed_text(["the lettre q"])


def test_an_empty_or_endless_text_is_refused() -> None:
    for text in ("", "the " * 20):
        with pytest.raises(InputError, match="expected 1 to 16"):
            word_numbers([text], ["the"], 16)


def test_images_of_another_size_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected torch.uint8 \(n, 32, 32, 3\)"):
        pixels(torch.zeros(1, 28, 28, 3, dtype=torch.uint8))


def test_a_folder_without_weights_is_refused(tmp_path: object) -> None:
    with pytest.raises(CorruptFile, match="not a built-in model"):
        load(str(tmp_path))
