"""Curvature of a model's outputs against derivatives of single examples in float64."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from transformers import AlbertConfig, AlbertModel, GPT2Config, GPT2Model

import taskvec as tv
from checkpoints import save_clip
from language_models import TEXT, save_language_model
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.models.text import TextBackbone
from taskvec.statistics.blocks import Block, blocks
from taskvec.statistics.curvature import curvature, measure
from taskvec.statistics.probes import Probes, Probing
from taskvec.tangent.ntk.terms import jacobian
from taskvec.tasks.loaders import Batches, batches

THREE = Probing(probes=3, normalize=False)
Model = Callable[[], tuple[nn.Module, tuple[int, ...]]]


class Tokens(nn.Module):
    """A linear layer on every token, and the mean of what it gives."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).mean(1)  # type: ignore[no-any-return]


class Twice(nn.Module):
    """A layer that is called two times."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.last = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.layer(self.layer(x).tanh()).tanh())  # type: ignore[no-any-return]


class Attending(nn.Module):
    """torch's own attention, whose projections are one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.norm = nn.MultiheadAttention(4, 2, batch_first=True), nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.attention(x, x, x, need_weights=False)[0])[:, 0, :3]  # type: ignore[no-any-return]


MODELS: dict[str, Model] = {
    "linear": lambda: (nn.Linear(4, 3), (4,)),
    "mlp": lambda: (nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3, bias=False)), (4,)),
    "deep": lambda: (
        nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5), nn.GELU(), nn.Linear(5, 3)),
        (4,),
    ),
    "norm": lambda: (nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)), (4,)),
    "tokens": lambda: (Tokens(), (5, 4)),
    "convolution": lambda: (
        nn.Sequential(nn.Conv2d(2, 3, 2, stride=2), nn.GELU(), nn.Flatten(), nn.Linear(12, 3)),
        (2, 4, 4),
    ),
    "grouped": lambda: (nn.Sequential(nn.Conv1d(4, 4, 2, groups=2), nn.Flatten(), nn.Linear(12, 3)), (4, 4)),
    "twice": lambda: (Twice(), (4,)),
    "attention": lambda: (Attending(), (3, 4)),
}


@pytest.fixture
def exactly(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three orthogonal directions in place of random ones: of three outputs nothing is lost."""
    basis = 3**0.5 * torch.eye(3)
    monkeypatch.setattr(Probes, "_draw", lambda *_: (basis, 0))


def wrapped(kind: str, seed: int = 0) -> tuple[Backbone, tuple[int, ...]]:
    """A network of one's own in float64, whose inputs are lists of numbers."""
    torch.manual_seed(seed)
    network, shape = MODELS[kind]()

    def collate(inputs: Sequence[Any]) -> Tensor:
        weight = next(network.parameters())
        return torch.as_tensor(np.stack(inputs)).to(weight.dtype)

    return tv.wrap(network, collate=collate, example=np.ones(shape)).double(), shape


def examples(model: Backbone, shape: tuple[int, ...], n: int = 6, size: int = 64) -> Batches:
    rows = np.random.default_rng(0).normal(size=(n, *shape))
    return batches(model, tv.Split(list(rows), torch.zeros(n, dtype=torch.int64)), size)


def rows_of(inputs: Batches) -> Tensor:
    return torch.cat([next(iter(batch.inputs.values())) for batch in inputs]).double()


def jacobians(model: Backbone, inputs: Batches, normalize: bool = False) -> dict[str, Tensor]:
    """(n, d, *shape) by a backward pass an example and output."""
    parameters = model.encoder_parameters()
    rows: dict[str, list[Tensor]] = {name: [] for name in parameters}
    for batch in inputs:
        for i in range(len(batch.labels)):
            out = model(**{key: value[i : i + 1] for key, value in batch.inputs.items()})[0]
            out = out / out.norm() if normalize else out
            slopes = [torch.autograd.grad(one, list(parameters.values()), retain_graph=True) for one in out]
            for place, name in enumerate(parameters):
                rows[name].append(torch.stack([slope[place] for slope in slopes]))
    return {name: torch.stack(found) for name, found in rows.items()}


def whole(found: dict[str, Tensor], block: Block) -> Tensor:
    """The block's matrix, row by row, from its factors."""
    if f"{block.weight}#D" in found:
        basis = torch.kron(found[f"{block.weight}#UB"], found[f"{block.weight}#UA"])
        return basis * found[f"{block.weight}#D"].flatten() @ basis.T
    return torch.kron(found[f"{block.weight}#B"], found[f"{block.weight}#A"])


def exact_block(slopes: dict[str, Tensor], block: Block) -> Tensor:
    """The mean over examples of J^T J, from (n, directions, *shape)."""
    bias = None if block.bias is None else slopes[block.bias]
    rows = block.joined(slopes[block.weight], bias).flatten(2)
    return torch.einsum("ndi,ndj->ij", rows, rows) / len(rows)


def probed(model: Backbone, inputs: Batches, how: Probing) -> dict[str, Tensor]:
    """Gradients (n, probes, *shape) along the directions that are drawn."""
    probes = Probes(model, list(model.encoder_parameters()), how, 1e9)
    [piece] = probes.passes(inputs, lambda *_, **__: None, "")
    shapes = {name: value.shape for name, value in model.encoder_parameters().items()}
    return {name: jacobian(piece.features[name], piece.n, how.probes, shapes[name]) for name in shapes}


@pytest.mark.usefixtures("exactly")
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("normalize", [False, True])
def test_the_diagonal_is_the_mean_square_of_the_exact_derivative(kind: str, normalize: bool) -> None:
    model, shape = wrapped(kind)
    inputs = examples(model, shape)
    found = measure(model, inputs, list(model.encoder_parameters()), "ggn", Probing(3, normalize))
    for name, slopes in jacobians(model, inputs, normalize).items():
        assert_close(found[name], slopes.square().sum(1).mean(0))


def test_directions_are_standard_normal_and_each_example_has_its_own() -> None:
    model, _ = wrapped("linear")
    probes = Probes(model, ["weight"], Probing(20_000), 1e9)
    first, again, other = (probes._draw(place, 1)[0].double() for place in (0, 0, 1))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert_close(first.T @ first / len(first), torch.eye(3).double(), rtol=0, atol=0.05)
    assert float((first * other).mean()) == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("kind", ["linear", "mlp", "twice", "attention"])
def test_one_direction_gives_the_squares_of_its_own_gradients(kind: str) -> None:
    model, shape = wrapped(kind)
    inputs = examples(model, shape)
    found = measure(model, inputs, list(model.encoder_parameters()), "ggn", Probing())
    for name, slopes in probed(model, inputs, Probing()).items():
        assert_close(found[name], slopes.square().sum(1).mean(0))


@pytest.mark.usefixtures("exactly")
def test_factors_of_a_linear_layer_are_exact() -> None:
    """All examples have the same derivative at its outputs, so that the two factors are independent."""
    model, shape = wrapped("linear")
    inputs = examples(model, shape)
    found = measure(model, inputs, list(model.encoder_parameters()), "kfac", THREE)
    [block] = blocks(model, model.encoder_parameters())
    x = rows_of(inputs)
    extended = torch.cat([x, torch.ones(len(x), 1).double()], 1)
    assert_close(found["weight#A"], extended.T @ extended / len(x))
    assert_close(found["weight#B"], torch.eye(3).double())
    assert_close(whole(found, block), exact_block(jacobians(model, inputs), block))


def test_random_directions_come_close_to_the_factors_of_a_linear_layer() -> None:
    model, shape = wrapped("linear")
    inputs = examples(model, shape, 40)
    found = measure(model, inputs, list(model.encoder_parameters()), "kfac", Probing(50, normalize=False))
    assert_close(found["weight#B"], torch.eye(3).double(), rtol=0, atol=0.1)


def test_a_layer_with_constant_inputs_has_the_moments_of_those_and_of_one() -> None:
    model, _ = wrapped("linear")
    rows = [np.array([1.0, 2.0, 0.0, -1.0])] * 3
    found = measure(
        model,
        batches(model, tv.Split(rows, torch.zeros(3, dtype=torch.int64))),
        ["weight", "bias"],
        "kfac",
        Probing(),
    )
    a = torch.as_tensor(rows[0])
    expected = torch.cat(
        [torch.cat([a.outer(a), a[:, None]], 1), torch.cat([a, torch.ones(1).double()])[None]]
    )
    assert_close(found["weight#A"], expected)


@pytest.mark.parametrize("kind", MODELS)
def test_factors_are_symmetric_and_have_no_negative_direction(kind: str) -> None:
    model, shape = wrapped(kind)
    found = measure(model, examples(model, shape), list(model.encoder_parameters()), "kfac", Probing())
    for name, value in found.items():
        if "#" in name:
            assert torch.equal(value, value.mT), name
            assert torch.linalg.eigvalsh(value).min() >= -1e-12 * value.trace(), name
        assert (value.diagonal() if "#" in name else value).min() >= 0


@pytest.mark.parametrize("kind", MODELS)
def test_factors_hold_the_mean_squared_gradient_of_a_block_of_one_token(kind: str) -> None:
    """tr A tr B is E |a|^2 E |g|^2, and exact where gradients do not come as products of a layer."""
    model, shape = wrapped(kind)
    inputs = examples(model, shape)
    found = measure(model, inputs, list(model.encoder_parameters()), "kfac", Probing())
    exact = probed(model, inputs, Probing())
    for block in blocks(model, model.encoder_parameters()):
        total = sum(float(exact[name].square().sum()) for name in block.names) / 6
        size = float(found[f"{block.weight}#A"].trace() * found[f"{block.weight}#B"].trace())
        assert 0.3 * total < size < 8 * total, block.weight
        if block.weight.startswith(("attention.in_proj", "norm")) or len(block.shape) == 1:
            assert size == pytest.approx(total)


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("seed", [0, 1])
def test_exact_values_along_the_eigenvectors_are_no_worse(kind: str, seed: int) -> None:
    model, shape = wrapped(kind, seed)
    inputs, names = examples(model, shape), list(model.encoder_parameters())
    plain, turned = (measure(model, inputs, names, form, Probing(2, seed=seed)) for form in ("kfac", "ekfac"))
    slopes = probed(model, inputs, Probing(2, seed=seed))
    for block in blocks(model, names):
        exact = exact_block(slopes, block) / 2
        errors = [float((whole(found, block) - exact).norm()) for found in (turned, plain)]
        assert errors[0] <= errors[1] + 1e-9 * float(exact.norm())
        assert float(whole(turned, block).trace()) == pytest.approx(float(exact.trace()))


def test_all_moments_of_a_vector_are_kept() -> None:
    model, shape = wrapped("norm")
    inputs, names = examples(model, shape), list(model.encoder_parameters())
    slopes = probed(model, inputs, Probing())
    for form in ("kfac", "ekfac"):
        found = measure(model, inputs, names, form, Probing())
        for block in blocks(model, names):
            if len(block.shape) == 1:
                assert_close(whole(found, block), exact_block(slopes, block))


@pytest.fixture(scope="module")
def texts(tiny_suite: Path) -> tv.Task:
    """Texts of unequal length, so that batches are padded."""
    found = tv.load_suite(tiny_suite).task("pets")
    rows = found.split("train")
    cut = [" ".join(text.split()[place % 3 :]) for place, text in enumerate(rows.inputs)]
    found._loaded["train"] = tv.Split(cut, rows.labels)
    return found


@pytest.mark.parametrize("form", ["kfac", "ekfac", "ggn"])
def test_batches_and_padding_change_nothing(tiny_model: Path, texts: tv.Task, form: Any) -> None:
    model = tv.load_backbone(tiny_model).double()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    found = curvature(model, texts, 12, kind=form)
    split = texts.split("train").draw(12, 0)
    alone = measure(model, batches(model, split, 1), list(model.encoder_parameters()), form, Probing())
    few = curvature(model, texts, 12, kind=form, memory=1)
    for other in (alone, few):
        assert found.keys() == other.keys()
        for name, value in found.items():
            if "#U" not in name and "#D" not in name:  # an eigenvector has no sign
                assert_close(other[name], value, rtol=1e-9, atol=1e-9 * float(value.abs().max()) + 1e-20)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters()) and not model.training


def test_the_rows_of_padding_do_not_count(tiny_model: Path, texts: tv.Task) -> None:
    """The second moments of inputs are those that are measured for ``regmean``."""
    model = tv.load_backbone(tiny_model).double()
    found, moments = curvature(model, texts, 12), tv.gram(model, texts, 12)
    for name, value in moments.items():
        assert_close(found[f"{name}#A"][:-1, :-1], value, rtol=1e-8, atol=1e-10)


def test_examples_are_drawn_by_the_seed_and_labels_are_not_read(tiny_model: Path, texts: tv.Task) -> None:
    model = tv.load_backbone(tiny_model)
    name = "encoder.layer.1.output.dense.weight#B"
    first = curvature(model, texts, 5)[name]
    assert not torch.equal(curvature(model, texts, 5, seed=1)[name], first)
    rows, shuffled = texts.split("train"), texts.model_copy()
    shuffled._loaded["train"] = tv.Split(rows.inputs, 1 - rows.labels)
    assert torch.equal(curvature(model, shuffled, 5)[name], first)


def test_a_selection_measures_itself_alone(tiny_model: Path, texts: tv.Task) -> None:
    model = tv.load_backbone(tiny_model)
    every = curvature(model, texts, 5)
    some = curvature(model, texts, 5, params="attention-with-biases")
    assert some and all(".attention." in name for name in some)
    for name, value in some.items():
        assert_close(value, every[name], rtol=1e-4, atol=1e-6 * float(value.abs().max()))


def quadratic(found: dict[str, Tensor], model: Backbone, tau: dict[str, Tensor]) -> float:
    """tau^T G tau, from factors and diagonals."""
    total = 0.0
    known = blocks(model, tau)
    for block in known:
        step = block.joined(tau[block.weight], None if block.bias is None else tau[block.bias])
        total += float(((found[f"{block.weight}#B"] @ step @ found[f"{block.weight}#A"]) * step).sum())
    held = {name for block in known for name in block.names}
    return total + sum(float((found[n] * tau[n] ** 2).sum()) for n in tau if n not in held and n in found)


def mean_change(model: Backbone, inputs: Batches, tau: dict[str, Tensor], normalize: bool) -> float:
    """E ||J tau||^2 by finite differences, parameter by parameter: what blocks are blind to is left out."""
    sizes = []
    known = blocks(model, tau)
    held = {name for block in known for name in block.names}
    groups = [block.names for block in known] + [[name] for name in tau if name not in held]
    theta = {name: value.detach() for name, value in model.encoder_parameters().items()}
    for batch in inputs:
        for names in groups:
            sides = []
            for sign in (1, -1):
                moved = {name: theta[name] + sign * 1e-5 * tau[name] for name in names}
                with torch.no_grad():
                    out = encode(model, moved, batch.inputs)
                sides.append(nn.functional.normalize(out, dim=-1) if normalize else out)
            sizes.append(((sides[0] - sides[1]) / 2e-5).square().sum())
    return float(torch.stack(sizes).sum()) / len(inputs.labels)


@pytest.mark.parametrize("family", ["bert", "albert", "gpt2", "clip"])
def test_the_quadratic_form_has_the_size_of_the_change_of_outputs(
    tiny_model: Path, texts: tv.Task, tmp_path: Path, family: str
) -> None:
    """A random displacement sees the average over directions, which factors have right."""
    model: Backbone = tv.load_backbone(tiny_model)
    assert isinstance(model, TextBackbone)
    if family == "albert":
        sizes: dict[str, Any] = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32}
        sizes |= {"embedding_size": 8, "vocab_size": 18, "max_position_embeddings": 32}
        config = AlbertConfig(num_hidden_layers=3, **sizes)
        model = TextBackbone(AlbertModel(config), model.tokenizer, ref="albert").eval()
    if family == "gpt2":
        narrow = GPT2Config(vocab_size=18, n_positions=32, n_embd=16, n_layer=1, n_head=2)
        model = TextBackbone(GPT2Model(narrow), model.tokenizer, ref="gpt").eval()
    split = texts.split("train").draw(12, 0)
    if family == "clip":
        model = tv.load_backbone(save_clip(tmp_path))
        draw = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (12, 16, 16, 3), dtype=torch.uint8, generator=draw)
        split = tv.Split(list(images), torch.zeros(12, dtype=torch.int64))
    model.double()
    inputs = batches(model, split)
    found = measure(model, inputs, list(model.encoder_parameters()), "kfac", Probing(40))
    draw, ratios = torch.Generator().manual_seed(1), []
    for _ in range(6):
        tau = {
            name: torch.randn(value.shape, generator=draw).to(value)
            for name, value in model.encoder_parameters().items()
        }
        ratios.append(quadratic(found, model, tau) / mean_change(model, inputs, tau, normalize=True))
    assert 0.4 < float(np.exp(np.mean(np.log(ratios)))) < 2.5


@pytest.mark.parametrize("kind", ["gpt2", "llama", "tied", "t5", "bart", "opt"])
def test_language_models_are_probed_at_a_token_of_each_text(tmp_path: Path, kind: str) -> None:
    words = TEXT.split()
    rows = [
        {
            "prompt": " ".join(words[i : i + 3]),
            "answer": " ".join(words[i + 3 : i + 4 + i % 3]),
            "split": "train",
        }
        for i in range(20)
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "s.yaml").write_text(
        "suite: s\ntasks:\n  answers: {kind: generation, data: {source: jsonl, path: t.jsonl, text: prompt, "
        "label: answer}}\n"
    )
    task = tv.load_suite(tmp_path / "s.yaml").task("answers")
    model = tv.load_backbone(save_language_model(tmp_path / "model", kind), "tokens")
    found = curvature(model, task, 6)
    few = curvature(model, task, 6, memory=1)
    for name, value in found.items():
        assert value.isfinite().all()
        assert_close(few[name], value, rtol=1e-3, atol=1e-4 * float(value.abs().max()))
    measured = {name.partition("#")[0] for name in found}
    weights = {name for name in model.encoder_parameters() if not name.endswith("bias")}
    assert all(
        "embed" in name or "shared" in name or "wte" in name or "lm_head" in name
        for name in weights - measured
    )
    assert any(name.endswith("#B") and value.any() for name, value in found.items())


@pytest.mark.usefixtures("exactly")
@pytest.mark.parametrize("kind", ["linear", "mlp", "deep"])
def test_curvlinops_has_the_same_matrix(kind: str) -> None:
    curvlinops = pytest.importorskip("curvlinops")
    model, shape = wrapped(kind)
    inputs, names = examples(model, shape), list(model.encoder_parameters())
    found = measure(model, inputs, names, "kfac", THREE)
    rows = rows_of(inputs)
    peer = curvlinops.KFACLinearOperator(
        model.network,
        nn.MSELoss(reduction="sum"),
        list(model.network.parameters()),
        [(rows, torch.zeros(len(rows), 3).double())],
        fisher_type="type-2",
        separate_weight_and_bias=False,
    )
    dense = peer @ torch.eye(peer.shape[1]).double() / (2 * len(rows))  # of squares, and their sum
    for block in blocks(model, names):
        (height, width), inner = block.sides, block.sides[1] - (block.bias is not None)
        ours = whole(found, block).view(height, width, height, width)
        weights = ours[:, :inner, :, :inner].reshape(height * inner, -1)
        size = height * inner
        assert_close(dense[:size, :size], weights)
        if block.bias is not None:
            assert_close(dense[size : size + height, size : size + height], ours[:, inner, :, inner])
        dense = dense[height * width :, height * width :]


def test_requests_that_make_no_sense_are_one_line(tiny_model: Path, texts: tv.Task) -> None:
    model = tv.load_backbone(tiny_model)
    with pytest.raises(InputError, match="probes: 0, expected 1 or more"):
        curvature(model, texts, 3, probes=0)
    with pytest.raises(InputError, match="leaves nothing"):
        curvature(model, texts, 3, params="re:nothing")
