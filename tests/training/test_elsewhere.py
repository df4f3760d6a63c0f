"""Whatever computes, computes on the device of the model, and gives back what the CPU gives."""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import taskvec as tv
from elsewhere import ELSEWHERE, Mixture, NoMixture, elsewhere
from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.models.heads import Classifier
from taskvec.tangent.linearization import Linearization, Route
from taskvec.training.penalties.settings import Decay, OrthoReg, TauJp
from taskvec.training.regimes import Space

REGIMES = ("full", "attention", "tangent", "tangent-attention")
SETTINGS = tv.TrainSettings(lr=1e-3, steps=3, batch_size=8)


@pytest.fixture(scope="module")
def near(evaluator: tv.Evaluator) -> tv.Evaluator:
    return tv.Evaluator(evaluator.backbone, list(evaluator.tasks.values()), batch_size=20)


@pytest.fixture
def watched() -> Iterator[NoMixture]:
    with elsewhere() as watched:
        yield watched


@pytest.fixture
def far(near: tv.Evaluator, watched: NoMixture) -> tv.Evaluator:
    backbone = deepcopy(near.backbone).to(ELSEWHERE)
    assert backbone.device == ELSEWHERE
    return tv.Evaluator(backbone, list(near.tasks.values()), batch_size=20)


def same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(
        found[name].device.type == "cpu" and torch.equal(found[name], expected[name]) for name in expected
    )


def trained(evaluator: tv.Evaluator, regime: str, **changes: object) -> tv.TaskVector:
    settings = SETTINGS.model_copy(update=changes)
    part, others = evaluator.part("pets"), [evaluator.part("taste")]
    return tv.finetune(evaluator.backbone, part, regime=regime, settings=settings, references=others)


@pytest.mark.parametrize("regime", REGIMES)
def test_a_training_there_gives_the_vector_of_the_cpu(
    near: tv.Evaluator, far: tv.Evaluator, regime: str
) -> None:
    assert same(trained(far, regime), trained(near, regime))


@pytest.mark.parametrize(
    ("regime", "changes"),
    [
        ("full", {"accumulation": 3, "optimizer": "sgd", "decay_towards": "pretrained"}),
        ("full", {"precision": "bf16"}),
        ("full", {"precision": "fp16"}),
        ("tangent", {"precision": "bf16", "clip": None}),
        ("tangent", {"penalty": (TauJp(), OrthoReg(form="cosine"))}),
        ("full", {"penalty": (TauJp(power=1), OrthoReg(), Decay())}),
        ("lora", {"penalty": (TauJp(sets="all"), OrthoReg(form="code"), Decay())}),
    ],
)
def test_so_it_does_with_other_settings(
    near: tv.Evaluator, far: tv.Evaluator, regime: str, changes: dict[str, object]
) -> None:
    assert same(trained(far, regime, **changes), trained(near, regime, **changes))


@pytest.mark.parametrize("space", ["ordinary", "tangent"])
def test_scores_there_are_those_of_the_cpu(near: tv.Evaluator, far: tv.Evaluator, space: Space) -> None:
    vectors = {"tau": trained(near, "full")}
    found = []
    for evaluator in (far, near):
        point = evaluator.points(vectors, space=space).at({"tau": 1.0})
        features, labels = evaluator.features(point, "pets", "test")
        logits, _ = evaluator.logits(point, "pets", "test")
        tally = {"features": features, "logits": logits, "labels": labels}
        found.append((tally, evaluator.scores(point, ["pets", "taste"], "test")))
    assert same(found[0][0], found[1][0]) and found[0][1] == found[1][1]


def test_heads_do_not_depend_on_the_device(near: tv.Evaluator, far: tv.Evaluator) -> None:
    for head in ("zero-shot", "linear-probe"):
        tasks = [evaluator.task("pets").model_copy(update={"head": head}) for evaluator in (far, near)]
        there, here = (
            task.objective(evaluator.backbone).fingerprint()
            for task, evaluator in zip(tasks, (far, near), strict=True)
        )
        assert there == here


def test_parts_may_lie_anywhere(near: tv.Evaluator, far: tv.Evaluator) -> None:
    head = deepcopy(near.head("pets")).to(ELSEWHERE)
    part = tv.Part("pets", near.split("pets", "train"), head)
    assert same(
        tv.finetune(far.backbone, part, settings=SETTINGS),
        tv.finetune(near.backbone, part, settings=SETTINGS),
    )


def test_iterative_and_joint_training(near: tv.Evaluator, far: tv.Evaluator) -> None:
    found = []
    for evaluator in (far, near):
        parts = [evaluator.part(task) for task in ("pets", "taste")]
        together = tv.finetune(evaluator.backbone, parts, settings=SETTINGS)
        found.append((together, tv.atm(evaluator.backbone, parts, rounds=2, settings=SETTINGS)))
    assert all(same(there, here) for there, here in zip(*found, strict=True))


@pytest.mark.parametrize("combiner", ["pcgrad", "graddrop", {"combiner": "meta", "target": "taste"}])
@pytest.mark.parametrize("memory", [None, 1e-5])
def test_gradients_are_combined_anywhere(
    near: tv.Evaluator, far: tv.Evaluator, combiner: Any, memory: float | None
) -> None:
    settings = SETTINGS.model_copy(update={"combiner_memory": memory})
    there, here = (
        tv.finetune(
            evaluator.backbone,
            [evaluator.part(task) for task in ("pets", "taste")],
            settings=settings,
            combiner=combiner,
        )
        for evaluator in (far, near)
    )
    assert same(there, here)


def test_statistics_and_the_kernel(near: tv.Evaluator, far: tv.Evaluator) -> None:
    found = []
    for evaluator in (far, near):
        backbone, task, head = evaluator.backbone, evaluator.task("pets"), near.head("pets")
        fishers = [
            tv.fisher(backbone, task, examples=6, head=head, labels=labels) for labels in ("all", "sampled")
        ]
        batch = backbone.collate(list(near.split("pets", "test").inputs)[:4])
        batch = {name: value.to(backbone.device) for name, value in batch.items()}
        model = Classifier(backbone, deepcopy(head).to(backbone.device))
        kernels = {
            "kernel": tv.ntk(model, batch, params="attention").cpu(),
            "trace": tv.ntk(model, batch, mode="trace").cpu(),
            "product": tv.ntk_product(model, batch, None, torch.ones(4, 2, device=backbone.device)).cpu(),
        }
        found.append((*fishers, tv.gram(backbone, task, examples=6), kernels))
    assert all(same(there, here) for there, here in zip(*found, strict=True))


@pytest.mark.parametrize("route", ["rules", "lean", "func"])
def test_every_route_of_the_tangent_space(near: tv.Evaluator, far: tv.Evaluator, route: Route) -> None:
    found = []
    for backbone in (far.backbone, near.backbone):
        theta0 = {name: value.detach() for name, value in backbone.encoder_parameters().items()}
        lin = Linearization(partial(encode, backbone), theta0, route=route)
        tau = {name: (0.01 * value).requires_grad_() for name, value in theta0.items()}
        batch = near.backbone.collate(["one two", "a good film"])
        slopes = torch.autograd.grad(lin(tau, batch).square().sum(), list(tau.values()))
        f0, [slope] = lin.jvps([tau], batch)
        values = dict(zip(tau, slopes, strict=True)) | {"f0": f0, "J tau": slope}
        found.append({name: value.detach().cpu() for name, value in values.items()})
    assert same(*found)


@pytest.mark.parametrize("regime", ["full", "tangent"])
def test_tuning_and_pruning_there_gives_the_vector_of_the_cpu(
    near: tv.Evaluator, far: tv.Evaluator, regime: str
) -> None:
    inside = {name: torch.ones(len(value), dtype=torch.bool) for name, value in near.pretrained.items()}
    there = {name: of.to(ELSEWHERE) for name, of in inside.items()}

    def sparse(of: tv.Evaluator, mask: Mapping[str, Tensor]) -> tv.TaskVector:
        return tv.tune_sparse(of.backbone, of.part("pets"), 0.3, mask=mask, regime=regime, settings=SETTINGS)

    assert same(sparse(far, there), sparse(near, inside))


@pytest.mark.parametrize("regime", ["full", "tangent"])
def test_a_step_waits_for_the_device_once(watched: NoMixture, regime: str) -> None:
    backbone = tv.load_backbone("builtin").to(ELSEWHERE)
    assert isinstance(backbone, Backbone)
    part = tv.make_part(backbone, tv.load_suite("builtin8").task("greek"), {"train": 8})
    waits = []
    for steps in (2, 5):
        before = watched.waits
        settings = SETTINGS.model_copy(update={"steps": steps, "batch_size": 2})
        tv.finetune(backbone, part, regime=regime, settings=settings)
        waits.append(watched.waits - before)
    assert waits[1] - waits[0] == 3


def test_a_tensor_left_behind_is_found(far: tv.Evaluator) -> None:
    network: Any = far.backbone.network
    shift = torch.zeros(16)
    network.embeddings.LayerNorm.register_forward_hook(lambda module, given, out: out + shift)
    with pytest.raises(Mixture, match=r"aten::add of tensors elsewhere and of \[\(16,\)\] on the CPU"):
        far.score(far.pretrained, "pets", "test")


def test_shapes_on_a_device_without_memory() -> None:
    whole = tv.load_backbone("builtin")
    batch = whole.collate(list(tv.load_suite("builtin8").task("greek").split("test", 3).inputs))
    backbone = whole.to("meta")
    assert isinstance(backbone, Backbone)
    theta0 = {name: value.detach() for name, value in backbone.encoder_parameters().items()}
    features = encode(backbone, theta0, batch)
    f0, [slope] = Linearization(partial(encode, backbone), theta0, route="rules").jvps([theta0], batch)
    for value in (features, f0, slope):
        assert value.device.type == "meta" and value.shape == (3, backbone.dim)
