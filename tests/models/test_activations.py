"""Activations computed twice: the same gradients from fewer saved tensors."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

import image_families
import taskvec as tv
from language_models import save_language_model
from taskvec.errors import InputError
from taskvec.models.activations import recomputed, stacked
from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.models.loading import load_backbone
from taskvec.studies.trial import recipe
from taskvec.tangent.linearization import Linearization

MODELS: dict[str, Callable[[Path], Backbone]] = {
    "builtin": lambda folder: tv.load_backbone("builtin"),
    "vit": lambda folder: tv.load_backbone(image_families.save("vit", folder)),
    "swin": lambda folder: tv.load_backbone(image_families.save("swin", folder)),
    **{
        kind: lambda folder, kind=kind: load_backbone(save_language_model(folder, kind), outputs="tokens")  # type: ignore[misc]
        for kind in ("gpt2", "tied", "t5", "bart")
    },
}


def gradient(backbone: Backbone, route: str) -> tuple[Tensor, list[Tensor], int]:
    """Outputs, gradients and bytes saved, at other weights than the backbone's own."""
    theta0 = {name: value.detach() for name, value in backbone.encoder_parameters().items()}
    function: Callable[..., Tensor] = partial(encode, backbone)
    leaves = {name: (1.1 * value).requires_grad_() for name, value in theta0.items()}
    if route != "ordinary":
        function = Linearization(function, theta0, route=route)  # type: ignore[arg-type]
        leaves = {name: (0.1 * value).requires_grad_() for name, value in theta0.items()}
    kept = 0

    def count(tensor: Tensor) -> Tensor:
        nonlocal kept
        kept += tensor.nbytes
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        out = function(leaves, backbone.example())
    return out.detach(), list(torch.autograd.grad(out.square().sum(), list(leaves.values()))), kept


@pytest.mark.parametrize("route", ["ordinary", "rules", "lean"])
@pytest.mark.parametrize("name", MODELS)
def test_gradients_are_the_same(name: str, route: str, tmp_path: Path) -> None:
    backbone = MODELS[name](tmp_path / "model")
    out, slopes, kept = gradient(backbone, route)
    with recomputed(backbone.network, backbone.ref):
        again, others, fewer = gradient(backbone, route)
    assert torch.equal(out, again) and all(map(torch.equal, slopes, others))
    assert fewer < 0.8 * kept
    assert not any("forward" in vars(module) for module in backbone.network.modules())


def test_other_routes_keep_everything(tmp_path: Path) -> None:
    backbone = MODELS["vit"](tmp_path / "model")
    _, slopes, _ = gradient(backbone, "func")
    with recomputed(backbone.network, backbone.ref):
        assert all(map(torch.equal, slopes, gradient(backbone, "func")[1]))


def test_layers_are_the_outermost_stacks() -> None:
    def block() -> nn.Module:
        return nn.Sequential(nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2)))

    network = nn.Module()
    network.blocks = nn.ModuleList([block(), block()])
    network.head = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert stacked(network) == list(network.blocks)


def test_a_network_without_layers_is_refused() -> None:
    with pytest.raises(InputError, match="checkpoint_activations: mine has no stack of layers to run again"):
        recomputed(nn.Linear(2, 2), "mine").__enter__()


@pytest.mark.parametrize("regime", ["full", "tangent", "lora"])
def test_a_training_gives_the_same_vector(evaluator: tv.Evaluator, regime: str) -> None:
    settings = tv.TrainSettings(lr=1e-3, steps=3, batch_size=8)
    twice = settings.model_copy(update={"checkpoint_activations": True})
    part = evaluator.part("pets")
    first, second = (
        tv.finetune(evaluator.backbone, part, regime=regime, settings=given) for given in (settings, twice)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert recipe(settings) == recipe(twice)
