"""The converted MobileNetV2 against a plain forward pass over the arrays that it was made from."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

import mobilenet_v2
from taskvec.models.loading import load_backbone

DATA = os.environ.get("TASKVEC_DATA", "")
SOURCE = Path(DATA, "models", "mobilenet_v2")

needs_the_model = pytest.mark.skipif(not DATA or not SOURCE.is_dir(), reason="needs TASKVEC_DATA")


def same(x: Tensor, kernel: int, stride: int) -> Tensor:
    """Padded as TensorFlow's SAME does it."""
    sides = []
    for side in (x.shape[3], x.shape[2]):
        total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
        sides += [total // 2, total - total // 2]
    return F.pad(x, sides)


def plain(config: dict[str, Any], w: dict[str, Tensor], x: Tensor) -> Tensor:
    """Features (N, 1280) by config.json alone."""

    def layer(name: str, x: Tensor, stride: int = 1, groups: int = 1) -> Tensor:
        weight = w[f"{name}.weight"].to(x.dtype)
        padded = same(x, weight.shape[2], stride)
        return F.conv2d(padded, weight, w[f"{name}.bias"].to(x.dtype), stride, groups=groups)

    x = layer(config["stem"]["name"], x, config["stem"]["stride"]).clamp(0, 6)
    for block in config["blocks"]:
        name, before = block["name"], x
        if block["expansion"] != 1:
            x = layer(f"{name}.expand", x).clamp(0, 6)
        x = layer(f"{name}.depthwise", x, block["stride"], block["hidden_channels"]).clamp(0, 6)
        x = layer(f"{name}.project", x)
        x = x + before if block["residual"] else x
    return layer(config["head"]["name"], x).clamp(0, 6).mean((2, 3))


@needs_the_model
@pytest.mark.parametrize("size", [96, 127, 224])
def test_features_are_those_of_a_plain_forward_pass(size: int, tmp_path: Path) -> None:
    mobilenet_v2.convert(SOURCE, tmp_path, size)
    backbone = load_backbone(tmp_path)
    draw = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (2, size, size, 3), generator=draw, dtype=torch.uint8)
    config = json.loads((SOURCE / "config.json").read_text())
    pixels = image.permute(0, 3, 1, 2) / 127.5 - 1
    expected = plain(config, load_file(SOURCE / "model.safetensors"), pixels)
    batch = backbone.collate(list(image))
    assert_close(backbone(**batch), expected, rtol=1e-4, atol=1e-4)
    exact = plain(config, load_file(SOURCE / "model.safetensors"), pixels.double())
    # Up to the one rounding of the scaling that the two write differently.
    assert_close(backbone.double()(**batch), exact, rtol=1e-5, atol=1e-5)


@needs_the_model
def test_batch_norms_shift_by_the_bias_exactly(tmp_path: Path) -> None:
    mobilenet_v2.convert(SOURCE, tmp_path, 64)
    network: Any = load_backbone(tmp_path).network
    norm = network.layer[3].expand_1x1.normalization
    x = torch.randn(2, norm.num_features, 5, 5)
    assert torch.equal(norm(x), x + norm.bias.view(1, -1, 1, 1))
