"""Image encoders in tangent space and their kernel, against torch.func in float64."""

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, jvp, vjp
from torch.nn.attention import SDPBackend, sdpa_kernel

from image_families import save
from taskvec.models.heads import Classifier, Head
from taskvec.models.image import ImageBackbone
from taskvec.models.loading import load_backbone
from taskvec.tangent.linearization import Linearization
from taskvec.tangent.ntk.kernel import ntk
from taskvec.tangent.ntk.samples import selected
from taskvec.training.space import linearized

PROCESSOR = {"size": {"height": 64, "width": 64}, "image_processor_type": "ViTImageProcessor"}
KINDS: dict[str, dict[str, Any] | None] = {
    "vit": PROCESSOR,
    "dinov2": PROCESSOR,
    "convnext": PROCESSOR,
    "resnet": PROCESSOR,
    "regnet": PROCESSOR,
    "mobilenet_v1": PROCESSOR,
    "mobilenet_v2": PROCESSOR,
    "efficientnet": PROCESSOR,
    "cvt": PROCESSOR,
    "levit": None,
    "swin": None,
    "swinv2": None,
}


def encoder(family: str, folder: Path) -> ImageBackbone:
    backbone = load_backbone(save(family, folder, KINDS[family])).double()
    assert isinstance(backbone, ImageBackbone)
    return backbone


def images(count: int) -> list[Tensor]:
    draw = torch.Generator().manual_seed(1)
    return list(torch.randint(0, 256, (count, 40, 40, 3), generator=draw, dtype=torch.uint8))


def noise(like: Tensor, scale: float, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return scale * torch.randn(like.shape, generator=draw, dtype=like.dtype)


@pytest.mark.parametrize("family", KINDS)
def test_value_and_gradient_are_those_of_torch_func(family: str, tmp_path: Path) -> None:
    backbone = encoder(family, tmp_path)
    batch = backbone.collate(images(2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lin = linearized(backbone)
    tau = {name: noise(value, 0.01, seed) for seed, (name, value) in enumerate(lin.theta0.items())}
    leaves = {name: step.clone().requires_grad_() for name, step in tau.items()}
    made = lin(leaves, batch)
    pull = noise(made.detach(), 1.0, 0)
    gradient = dict(zip(leaves, torch.autograd.grad(made, list(leaves.values()), pull), strict=True))

    place = {stored: inside for inside, stored in backbone.names.items()}
    pixels = backbone.normalized(batch["pixel_values"])

    def plain(params: dict[str, Tensor]) -> Tensor:
        out = functional_call(backbone.network, params, (), {"pixel_values": pixels} | sized(backbone))
        feature = backbone.feature(out)
        assert feature is not None
        return feature

    at = {place[name]: value for name, value in lin.theta0.items()}
    with sdpa_kernel(SDPBackend.MATH):
        value, slope = jvp(plain, (at,), ({place[name]: step for name, step in tau.items()},))  # type: ignore[misc]
        [expected] = vjp(plain, at)[1](pull)
    assert (made.detach() - value - slope).norm() <= 1e-10 * value.norm()
    largest = max(float(each.norm()) for each in expected.values())
    for name, each in gradient.items():
        assert (each - expected[place[name]]).norm() <= 1e-10 * largest, name


def sized(backbone: ImageBackbone) -> dict[str, bool]:
    vit = backbone.network.config.model_type == "vit"  # type: ignore[union-attr]
    return {"interpolate_pos_encoding": True} if vit else {}


@pytest.mark.parametrize("images_of_a_batch", [1, 2])
def test_a_small_convolution_before_a_batch_norm_keeps_its_gradient(images_of_a_batch: int) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.BatchNorm2d(8), nn.ReLU6()).double().eval()
    x = torch.randn(images_of_a_batch, 3, 4, 4, dtype=torch.float64)
    theta0 = {name: value.detach() for name, value in network.named_parameters()}

    def run(params: Any, x: Tensor) -> Tensor:
        return functional_call(network, dict(params), (x,))  # type: ignore[no-any-return]

    gradients = []
    for route in ("rules", "func"):
        tau = {name: torch.full_like(value, 0.1).requires_grad_() for name, value in theta0.items()}
        total = Linearization(run, theta0, route=route)(tau, x).square().sum()
        gradients.append(torch.autograd.grad(total, list(tau.values())))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("act", [nn.ReLU, nn.ReLU6, nn.Hardswish, nn.SiLU])
def test_activations_that_work_in_place_are_linearized(act: type[nn.Module]) -> None:
    torch.manual_seed(0)
    parts = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 3)]

    def network(inplace: bool) -> nn.Module:
        first, second = act(inplace=inplace), act(inplace=inplace)
        return nn.Sequential(parts[0], parts[1], first, parts[2], second).double().eval()

    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    found = []
    for module in (network(inplace=True), network(inplace=False)):
        theta0 = {name: value.detach() for name, value in module.named_parameters()}
        names = zip(theta0, theta0.values(), strict=True)
        tau = {name: noise(value, 0.1, 3).requires_grad_() for name, value in names}

        def run(params: Any, x: Tensor, module: nn.Module = module) -> Tensor:
            return functional_call(module, dict(params), (x,))  # type: ignore[no-any-return]

        out = Linearization(run, theta0)(tau, x)
        found.append([out, *torch.autograd.grad(out.square().sum(), list(tau.values()))])
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "selection"), [("resnet", "all"), ("vit", "attention"), ("swin", "attention")]
)
def test_the_kernel_is_that_of_the_jacobian(family: str, selection: str, tmp_path: Path) -> None:
    backbone = encoder(family, tmp_path)
    weight = noise(torch.zeros(3, backbone.dim, dtype=torch.float64), 1.0, 5)
    head = Head(weight, None, normalize=True, classes=("a", "b", "c"), kind="linear-probe")
    model = Classifier(backbone, head).double().eval()
    batch = backbone.collate(images(3))
    kernel = ntk(model, batch, params=selection)
    params = {name: dict(model.named_parameters())[name].detach() for name in selected(model, selection)}
    with sdpa_kernel(SDPBackend.MATH):
        rows = jacrev(lambda at: functional_call(model, at, (), batch))(params)
    flat = torch.cat([each.reshape(9, -1) for each in rows.values()], dim=1)
    expected = (flat @ flat.T).view(3, 3, 3, 3)
    assert (kernel - expected).norm() <= 1e-10 * expected.norm()
