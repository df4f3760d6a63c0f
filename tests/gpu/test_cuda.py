"""On a CUDA device: results as on the CPU but for rounding, and the same twice. Skipped without one."""

import pytest
import torch

import taskvec as tv
from taskvec.models.backbone import Backbone

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
DEVICE = "cuda"
REGIMES = ("full", "attention", "tangent", "tangent-attention", "lora")
SETTINGS = tv.TrainSettings(lr=1e-4, steps=4, batch_size=16, optimizer="sgd")
TASK = "greek"


def evaluator(device: str, **options: object) -> tv.Evaluator:
    backbone = tv.load_backbone("builtin", device=device)
    tasks = [tv.load_suite("builtin8").task(TASK)]
    return tv.Evaluator(backbone, tasks, limits={"train": 64, "test": 64}, **options)  # type: ignore[arg-type]


def trained(device: str, regime: str = "full", **changes: object) -> tv.TaskVector:
    there = evaluator(device)
    settings = SETTINGS.model_copy(update=changes)
    return tv.finetune(there.backbone, there.part(TASK), regime=regime, settings=settings)


@pytest.mark.parametrize("regime", REGIMES)
def test_vectors_are_those_of_the_cpu(regime: str) -> None:
    there, here = trained(DEVICE, regime), trained("cpu", regime)
    assert there.cosine(here) > 0.9999
    assert there.norm() == pytest.approx(here.norm(), rel=1e-3)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_training_is_the_same_twice(regime: str) -> None:
    first, second = trained(DEVICE, regime), trained(DEVICE, regime)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize(("precision", "least"), [("bf16", 0.95), ("fp16", 0.98)])
def test_narrow_products_lead_the_same_way(precision: str, least: float) -> None:
    assert trained(DEVICE, precision=precision).cosine(trained("cpu")) > least


@pytest.mark.parametrize("space", ["ordinary", "tangent"])
def test_features_are_those_of_the_cpu(space: str) -> None:
    vector = trained("cpu")
    found = []
    for device in (DEVICE, "cpu"):
        there = evaluator(device)
        point = there.points({"tau": vector}, space=space).at({"tau": 1.0})  # type: ignore[call-overload]
        found.append(there.features(point, TASK, "test")[0])
    torch.testing.assert_close(*found, rtol=1e-3, atol=1e-3)


def test_layers_run_twice_in_less_memory() -> None:
    peaks = []
    for twice in (False, True):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        trained(DEVICE, checkpoint_activations=twice, batch_size=64)
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < peaks[0]


def test_a_training_goes_on_on_another_device(
    tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    from taskvec.training.checkpoint import Checkpoint

    monkeypatch.setattr(Checkpoint, "every", 0.0)
    path = tmp_path_factory.mktemp("state") / "state.pt"

    def stop(label: str, done: int, total: int, **facts: float) -> None:
        if done == 2:
            raise KeyboardInterrupt

    there, here = evaluator(DEVICE), evaluator("cpu")
    with pytest.raises(KeyboardInterrupt):
        tv.finetune(there.backbone, there.part(TASK), settings=SETTINGS, checkpoint=path, watch=stop)
    resumed = tv.finetune(here.backbone, here.part(TASK), settings=SETTINGS, checkpoint=path)
    assert resumed.cosine(trained("cpu")) > 0.9999


def test_a_model_that_is_moved_computes_there() -> None:
    backbone = tv.load_backbone("builtin").to(DEVICE)
    assert isinstance(backbone, Backbone) and backbone.device.type == "cuda"
