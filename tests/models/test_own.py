"""A network of one's own goes wherever those of the package go."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.testing import assert_close

import taskvec as tv
from models.own_networks import BLANK, OWN, WORDS, Reader, Vit, convnet, pixels
from taskvec.cli import main
from taskvec.errors import BaseMismatch, InputError
from taskvec.evaluation.points import add_vector
from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.models.loading import load_backbone
from taskvec.training.regimes import Space
from taskvec.training.space import linearized

RECIPE = tv.TrainSettings(lr=3e-3, steps=15, batch_size=16, weight_decay=0.01, validations=0)


def inputs_of(backbone: Backbone) -> list[Any]:
    if backbone.modality == "text":
        return ["cat of a film", "dog of a film", "good film", "bad film of a dog"]
    draw = np.random.default_rng(0)
    return list(draw.integers(0, 256, (4, 8, 8, 3), dtype=np.uint8))


def task_of(backbone: Backbone, folder: Path) -> tv.Task:
    """Dark or light pictures; texts with a cat or a dog."""
    draw = np.random.default_rng(0)
    if backbone.modality == "image":
        arrays: dict[str, Any] = {}
        for split in ("train", "val", "test"):
            labels = np.arange(48) % 2
            shades = draw.integers(0, 120, (48, 8, 8, 3)) + 80 * labels[:, None, None, None]
            arrays |= {f"x_{split}": shades.astype(np.uint8), f"y_{split}": labels}
        np.savez(folder / "data.npz", **arrays)
        data = "{source: npz, path: data.npz}"
    else:
        lines = []
        for split in ("train", "validation", "test"):
            for place in range(48):
                words = [*draw.choice(["a", "of", "film", "one"], 3), ("cat", "dog")[place % 2]]
                text = " ".join(draw.permutation(words))
                lines.append(f'{{"split": "{split}", "label": {place % 2}, "text": "{text}"}}')
        (folder / "data.jsonl").write_text("\n".join(lines))
        data = "{source: jsonl, path: data.jsonl}"
    (folder / "own.yaml").write_text(
        f"suite: own\ntasks:\n  two: {{modality: {backbone.modality}, classes: [cat, dog], "
        f"head: linear-probe, data: {data}}}\n"
    )
    return tv.load_suite(folder / "own.yaml").task("two")


@pytest.mark.parametrize("name", OWN)
def test_features_are_those_of_the_module_in_eval_mode(name: str) -> None:
    backbone = OWN[name]()
    network = backbone.network
    modes = [part.training for part in network.modules()]
    batch = backbone.collate(inputs_of(backbone))
    with torch.no_grad():
        found, again = backbone(**batch), backbone(**batch)
    assert found.shape == (4, backbone.dim)
    assert torch.equal(found, again)
    assert [part.training for part in network.modules()] == modes and all(modes)
    network.eval()
    with torch.no_grad():
        expected = {
            "vit": lambda: network.forward_features(batch["_0"]).mean(1),  # type: ignore[operator]
            "two towers": lambda: network.encode_image(batch["_0"]),  # type: ignore[operator]
        }.get(name, lambda: network(*batch.values()))()
    assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", OWN)
def test_names_are_the_modules_own_and_those_that_features_depend_on(name: str) -> None:
    backbone = OWN[name]()
    own = dict(backbone.network.named_parameters())
    left_out = {"vit": ("head.",), "two towers": ("token_embedding", "text_projection")}.get(
        name, ("nothing",)
    )
    assert set(backbone.encoder_parameters()) == {key for key in own if not key.startswith(left_out)}


def test_attention_with_a_joint_projection_is_selected() -> None:
    assert tv.select(OWN["vit"](), "attention") == [
        f"blocks.{place}.attn.{kind}.weight".replace("in_proj.weight", "in_proj_weight")
        for place in (0, 1)
        for kind in ("in_proj", "out_proj")
    ]
    assert len(tv.select(OWN["reader"](), "attention")) == 4


@pytest.mark.parametrize("regime", ["full", "tangent"])
@pytest.mark.parametrize("name", OWN)
def test_it_is_trained_edited_and_measured(name: str, regime: str, tmp_path: Path) -> None:
    backbone = OWN[name]()
    before = {key: value.clone() for key, value in backbone.network.state_dict().items()}
    evaluator = tv.Evaluator(backbone, [task_of(backbone, tmp_path)])
    steps: list[float] = []
    vector = tv.finetune(
        backbone,
        evaluator.part("two"),
        regime=regime,
        settings=RECIPE,
        log=lambda step, values: steps.append(values["loss"]),
    )
    assert steps[-1] < steps[0]
    space: Space = "tangent" if regime == "tangent" else "ordinary"
    points = evaluator.points({"two": vector}, space=space)
    assert evaluator.values(points.at({"two": 1.0}), ["two"], "test")["two"] >= 0.8
    after = backbone.network.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)
    vector.save(tmp_path / "two.safetensors")
    loaded = tv.TaskVector.load(tmp_path / "two.safetensors")
    edited = tv.apply(backbone.network, loaded)
    moved = {key: before[key] + vector[key] for key in vector}
    assert_close({key: edited[key] for key in moved}, moved)
    tv.save_weights(before, tmp_path / "saved.safetensors")
    tv.apply(tmp_path / "saved.safetensors", loaded)
    with pytest.raises(BaseMismatch):
        tv.apply({key: value + 1 for key, value in before.items() if value.is_floating_point()}, loaded)


@pytest.mark.parametrize("name", OWN)
def test_a_copy_runs_its_own_weights(name: str, tmp_path: Path) -> None:
    """Functions around the module know the original: a copy must not fall back on it."""
    backbone = OWN[name]()
    steps = {key: 0.1 * torch.ones_like(value) for key, value in backbone.encoder_parameters().items()}
    vector = tv.TaskVector.from_tensors(steps, base=backbone.source)
    batch = backbone.collate(inputs_of(backbone))
    with torch.no_grad():
        before = backbone(**batch)
        moved = add_vector(backbone, vector)
        params = {key: value + steps[key] for key, value in backbone.encoder_parameters().items()}
        assert_close(moved(**batch), encode(backbone, params, batch))
        assert_close(backbone(**batch), before, rtol=0, atol=0)
        wide = deepcopy(moved).double()
        exact = {key: value.double() if value.is_floating_point() else value for key, value in batch.items()}
        assert_close(wide(**exact).float(), moved(**batch), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", OWN)
def test_the_tangent_is_that_of_the_module_in_double_precision(name: str) -> None:
    own = OWN[name]()
    assert own.names
    backbone, inputs = deepcopy(own).double(), inputs_of(own)
    batch = {k: v.double() if v.is_floating_point() else v for k, v in backbone.collate(inputs).items()}
    theta = {key: value.detach() for key, value in backbone.encoder_parameters().items()}
    draw = torch.Generator().manual_seed(0)
    tau = {k: 0.01 * torch.randn(v.shape, generator=draw, dtype=v.dtype) for k, v in theta.items()}
    backbone.example = lambda: {key: value[:1] for key, value in batch.items()}  # type: ignore[method-assign]
    found = linearized(backbone)(tau, batch)
    h = 1e-5
    ahead, behind = (
        encode(backbone, {key: theta[key] + sign * h * tau[key] for key in theta}, batch) for sign in (1, -1)
    )
    expected = encode(backbone, theta, batch) + (ahead - behind) / (2 * h)
    assert_close(found, expected, rtol=1e-7, atol=1e-8)


def test_prompts_go_through_the_text_tower_that_is_given() -> None:
    backbone = OWN["two towers"]()
    assert backbone.embed_text(["cat", "dog of"]).shape == (2, 10)
    with pytest.raises(InputError, match=r"Vit: has no embeddings of texts.*'head: linear-probe'"):
        OWN["vit"]().embed_text(["cat"])


@pytest.mark.parametrize("kind", ["tensor", "array", "tuple", "list", "mapping"])
def test_a_batch_is_a_tensor_several_or_a_mapping(kind: str) -> None:
    def collate(images: list[Any]) -> Any:
        one = pixels(images)
        shapes = {"tensor": one, "array": one.numpy(), "tuple": (one, one), "list": [one, one]}
        return shapes.get(kind, {"left": one, "right": one})

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, left: Tensor, right: Tensor | None = None) -> Tensor:
            return (left + (left if right is None else right)).mean((2, 3)) * self.weight

    backbone = tv.wrap(Sum(), collate=collate, example=BLANK)
    assert_close(backbone(**backbone.collate([BLANK + 255])), torch.full((1, 3), 2.0))


def test_a_collate_that_asks_for_it_gets_the_length_of_the_task() -> None:
    seen = []

    def collate(texts: list[str], max_length: int = 8) -> dict[str, Tensor]:
        seen.append(max_length)
        rows = [[WORDS.get(word, 0) for word in text.split()] for text in texts]
        ids = torch.tensor([(row + [0] * 8)[:max_length] for row in rows])
        return {"tokens": ids, "mask": ids == 0}

    backbone = tv.wrap(Reader(), collate=collate, example="one film")
    assert backbone.collate(["cat of a film"], 2)["tokens"].shape == (1, 2)
    assert backbone.collate(["cat of a film"])["tokens"].shape == (1, 8)
    assert seen == [8, 2, 8]


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "logits of tokens": (
        {"features": lambda x: x.flatten(2)},
        r"Vit: .* a tensor \(1, 3, 64\), expected a tensor",
    ),
    "several outputs": ({"features": lambda x: (x, x)}, r"Vit: .* are tuple, expected a tensor \(1, d\)"),
    "no batch": ({"collate": lambda images: [1]}, r"collate: '_0' is int, expected tensors"),
    "another shape": (
        {"example": BLANK[:4, :4, :2]},
        r"Vit: the network fails .*\(1, 2, 4, 4\).*RuntimeError",
    ),
    "a collate that raises": ({"example": "text"}, r"Vit: collate\(\[example\]\) fails \(\w+Error"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_together_is_said_when_it_is_wrapped(case: str) -> None:
    changed, complaint = WRONG[case]
    with pytest.raises(InputError, match=complaint) as refused:
        tv.wrap(Vit(), **{"collate": pixels, "example": BLANK, **changed})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("kind", ["compiled", "parallel", "both"])
def test_of_a_compiled_or_parallel_network_the_one_inside_is_taken(kind: str) -> None:
    torch.manual_seed(0)
    inside = convnet()
    outside: Any = nn.DataParallel(inside) if kind != "compiled" else inside
    if kind != "parallel":
        outside = torch.compile(outside, backend="eager")
    backbone = tv.wrap(outside, collate=pixels, example=BLANK)
    assert backbone.network is inside
    assert set(backbone.encoder_parameters()) == set(dict(inside.named_parameters()))


def test_recurrent_layers_run_on_kernels_that_can_be_trained_in_eval_mode() -> None:
    seen = []
    backbone = OWN["recurrent"]()
    backbone.network.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.enabled))
    before = torch.backends.cudnn.enabled
    backbone(**backbone.collate(["one film"]))
    assert not any(seen) and torch.backends.cudnn.enabled == before


def random_in_eval_mode(module: nn.Module) -> Any:
    return lambda x: nn.functional.dropout(module(x), 0.5)


def without_gradient(module: nn.Module) -> Any:
    return torch.no_grad()(module.forward)


def of_another_module(module: nn.Module) -> Any:
    return convnet().eval()


@pytest.mark.parametrize(
    ("around", "complaint"),
    [
        (random_in_eval_mode, "two passes over the example give different features.*training=self.training"),
        (without_gradient, "no gradient of the outputs can be had.*without no_grad"),
        (of_another_module, "depend on none of its parameters; do features run the module that is given"),
    ],
)
def test_features_that_cannot_be_trained_are_said(around: Any, complaint: str) -> None:
    torch.manual_seed(0)
    net = convnet()
    with pytest.raises(InputError, match=f"Sequential: .*{complaint}"):
        tv.wrap(net, collate=pixels, example=BLANK + 9, features=around(net)).encoder_parameters()


def test_frozen_weights_are_trained_all_the_same() -> None:
    net = convnet().requires_grad_(False)
    assert len(tv.wrap(net, collate=pixels, example=BLANK).encoder_parameters()) == 4
    assert not any(value.requires_grad for value in net.parameters())


def test_weights_that_training_would_get_wrong_are_refused() -> None:
    for change, complaint in ((Vit().bfloat16(), "bfloat16, expected float32"), (Vit().double(), "float64")):
        with pytest.raises(InputError, match=f"'cls_token' is {complaint}"):
            tv.wrap(change, collate=pixels, example=BLANK)
    packed = Vit()
    packed.head.weight = nn.Parameter(torch.zeros(10, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(InputError, match=r"'head.weight' is uint8, quantized or packed"):
        tv.wrap(packed, collate=pixels, example=BLANK)
    with pytest.raises(InputError, match="is a backbone already"):
        tv.wrap(OWN["vit"](), collate=pixels, example=BLANK)


def test_a_function_is_named_in_a_file_or_a_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from models.own_networks import vit as good\n"
        "def bare():\n    return good().network\n"
        "def bad():\n    raise KeyError('weights')\n"
        "def quits():\n    raise SystemExit(3)\n"
    )
    backbone = load_backbone("net.py:good")
    assert (backbone.ref, backbone.dim) == ("net.py:good", 16)
    assert load_backbone("models.own_networks:conv").modality == "image"
    for ref, complaint in {
        "net.py:bare": "net.py:bare: gives Vit, expected a backbone; return taskvec.wrap",
        "net.py:bad": "net.py:bad: raises KeyError: 'weights'",
        "net.py:none": "--model: net.py has no function 'none'",
        "nets.py:good": "--model: nets.py cannot be imported",
        "net.py:quits": "net.py:quits: raises SystemExit: 3",
        "net.py": r"net.py: names no function of a Python file, expected FILE\.py:FUNCTION",
        "net.py:good.net": r"net.py:good.net: names no function of a Python file",
    }.items():
        with pytest.raises(InputError, match=complaint):
            load_backbone(ref)


def test_an_edit_of_what_a_function_gives_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net.py").write_text(
        "from pathlib import Path\nfrom models.own_networks import recurrent\n\n"
        "def net():\n    Path('ran').touch()\n    return recurrent()\n"
    )
    base = OWN["recurrent"]().network
    steps = {name: torch.randn_like(value) for name, value in base.named_parameters()}
    tv.TaskVector.from_tensors(steps, base=base).save("v.safetensors")
    with pytest.raises(SystemExit) as stopped:
        main(
            ["apply", "net.py:net", "-v", "a=v.safetensors", "-e", "0.5*a", "-o", "edited.safetensors", "-q"]
        )
    assert stopped.value.code == 0
    base.load_state_dict({name: value + 0.5 * steps[name] for name, value in base.state_dict().items()})
    assert_close(load_file("edited.safetensors"), base.state_dict())
    (tmp_path / "ran").unlink()
    (tmp_path / "recipe.yaml").write_text("base: net.py:net\nvectors: {a: v.safetensors}\nexpression: a\n")
    with pytest.raises(SystemExit) as stopped:
        main(["merge", "recipe.yaml", "-o", "merged"])
    assert stopped.value.code == 2 and not (tmp_path / "ran").exists()
    assert "base: net.py:net: no such file or folder" in capsys.readouterr().err
