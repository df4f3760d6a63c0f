"""The tangent kernel is the contraction of the Jacobian, whatever the model, the mode and the memory."""

import math
from collections.abc import Callable
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse.linalg import cg, eigsh  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    GPT2Config,
    GPT2Model,
    T5Config,
    T5EncoderModel,
)

import taskvec as tv
from taskvec.errors import InputError
from taskvec.studies.cost import QUIET
from taskvec.tangent.ntk import Mode, ntk, ntk_operator, ntk_product
from taskvec.tangent.ntk.gradients import SampleGradients
from taskvec.tangent.ntk.samples import Inputs, Samples, selected

MODES: tuple[Mode, ...] = ("full", "class", "trace")


def jacobian(model: nn.Module, x: Inputs, names: set[str] | None = None) -> Tensor:
    """(N, C, P) by one backward pass an output."""
    samples, rows = Samples.of(x, "x"), []
    params = [p for name, p in model.named_parameters() if names is None or name in names]
    before = [p.requires_grad for p in params]
    for p in params:
        p.requires_grad_(True)
    out = samples.outputs(model)
    for value in out.flatten():
        slopes = torch.autograd.grad(value, params, retain_graph=True, allow_unused=True)
        pieces = [torch.zeros_like(p) if s is None else s for s, p in zip(slopes, params, strict=True)]
        rows.append(torch.cat([piece.flatten() for piece in pieces]))
    for p, was in zip(params, before, strict=True):
        p.requires_grad_(was)
    return torch.stack(rows).view(*out.shape, -1).detach()


def in_mode(kernel: Tensor, mode: Mode) -> Tensor:
    if mode == "full":
        return kernel
    diagonal = torch.einsum("icjc->ijc", kernel)
    return diagonal if mode == "class" else diagonal.sum(-1)


def contracted(left: Tensor, right: Tensor, mode: Mode) -> Tensor:
    return in_mode(torch.einsum("icp,jdp->icjd", left, right), mode)


def error(found: Tensor, exact: Tensor) -> float:
    assert found.shape == exact.shape
    return float((found - exact).abs().max() / exact.abs().max())


def cut(x: Inputs, piece: slice) -> Inputs:
    if isinstance(x, Tensor):
        return x[piece]
    if isinstance(x, tuple):
        return tuple(value[piece] for value in x)
    return {key: value[piece] for key, value in x.items()}


class Head(nn.Module):
    """Three logits from a transformer's tokens: of their mean, of the first, or of what it pools."""

    def __init__(self, encoder: nn.Module, width: int, read: str) -> None:
        super().__init__()
        self.encoder, self.head, self.read = encoder, nn.Linear(width, 3), read

    def forward(self, **batch: Tensor) -> Tensor:
        found = self.encoder(**batch)
        hidden = found.last_hidden_state
        features = {"mean": hidden.mean(1), "first": hidden[:, 0], "pooler": found.get("pooler_output")}
        return self.head(features[self.read])  # type: ignore[no-any-return]


class Direct(nn.Module):
    """Parameters used by ``forward`` itself: class token, positions, a scale, a projection, a temperature."""

    def __init__(self) -> None:
        super().__init__()
        self.token, self.position = nn.Parameter(torch.randn(1, 1, 4)), nn.Parameter(torch.randn(9, 4))
        self.scale, self.temperature = nn.Parameter(torch.randn(4)), nn.Parameter(torch.tensor(0.3))
        self.inner, self.norm = nn.Linear(5, 4), nn.RMSNorm(4)
        self.projection = nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.inner(x)], 1)
        x = (self.norm(x + self.position[: x.shape[1]]).tanh() * self.scale - self.scale)[:, 0]
        logits: Tensor = (x.tanh() @ self.projection) * self.temperature.exp()
        return logits


class Tokens(nn.Module):
    """A class token and positions, shaped as image transformers have them, or for one sample."""

    def __init__(self, *leading: int) -> None:
        super().__init__()
        self.token, self.position = (
            nn.Parameter(torch.randn(1, 1, 4)),
            nn.Parameter(torch.randn(*leading, 6, 4)),
        )
        self.inner, self.head = nn.Linear(3, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.token.expand(len(x), -1, -1), self.inner(x)], 1) + self.position
        return self.head(x.tanh().mean(1))  # type: ignore[no-any-return]


class Reshaped(nn.Module):
    """Positions that are looked up once for all samples, and reshaped as that."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(5, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        positions = self.table(torch.arange(5)[None]).view(5, 3)
        return self.head((x + positions).tanh().mean(1))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """One table for reading words, for a layer's weight, and directly in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(7, 4, padding_idx=0), nn.Linear(4, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.words.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.words(ids)
        logits: Tensor = self.out(self.inner(x).tanh().mean(1))
        return logits + F.linear(x.sum(1).sin(), self.words.weight)


class Attention(nn.Module):
    """A torch encoder layer, whose attention no rule covers, on sequences that come first or second."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.head = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True), nn.Linear(8, 3)
        self.seqs_first = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.seqs_first(x.transpose(0, 1)).tanh().transpose(0, 1)
        return self.head(self.layer(x).mean(1))  # type: ignore[no-any-return]


class Unusual(nn.Module):
    """What no rule covers: an outer product, a power, a recurrent network; and a parameter without use."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.unused = (nn.Parameter(torch.rand(3) + 0.5) for _ in range(3))
        self.recurrent = nn.GRU(2, 3, batch_first=True)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        hidden = self.recurrent(x)[0][:, -1]
        return torch.einsum("nk,c->nkc", hidden, self.a).sum(1) + y.abs() ** self.b


class Overwriting(nn.Module):
    """An activation that is written over after a layer used it."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.clone()
        hidden: Tensor = self.layer(x)
        x += 1.0
        return hidden


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 7), nn.ReLU(inplace=True), nn.Linear(7, 3))


def twice() -> nn.Module:
    shared = nn.Linear(4, 4)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), shared, nn.Tanh(), shared, nn.Linear(4, 2))


def convolutions() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, stride=2, padding=1),
        nn.ReLU(inplace=True),
        nn.Conv2d(6, 6, 2, groups=3, dilation=2),
        nn.BatchNorm2d(6),
        nn.GroupNorm(2, 6),
        nn.GELU(),
        nn.Conv2d(6, 3, 1, padding="same"),
        nn.Flatten(),
        nn.Linear(12, 3),
    )


SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2}


def bert(read: str, attention: str) -> nn.Module:
    options = {**SMALL, "attn_implementation": attention}
    config = BertConfig(vocab_size=12, intermediate_size=16, max_position_embeddings=16, **options)
    return Head(BertModel(config), 8, read)


def gpt2() -> nn.Module:
    config = GPT2Config(
        vocab_size=12, n_positions=8, n_embd=8, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return Head(GPT2Model(config), 8, "mean")


def t5() -> nn.Module:
    config = T5Config(vocab_size=12, d_model=8, d_kv=4, d_ff=16, num_layers=2, num_heads=2)
    return Head(T5EncoderModel(config), 8, "mean")


def clip() -> nn.Module:
    config = CLIPVisionConfig(image_size=8, patch_size=4, intermediate_size=16, **SMALL)
    return Head(CLIPVisionModel(config), 8, "pooler")


def vectors(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def words(n: int = 5, length: int = 6) -> Tensor:
    return torch.randint(1, 7, (n, length), generator=torch.Generator().manual_seed(2))


def text() -> dict[str, Tensor]:
    mask = torch.ones(5, 6, dtype=torch.int64)
    mask[1, 4:] = 0
    return {"input_ids": words(), "attention_mask": mask}


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Inputs], frozenset[str]]] = {
    # How to make it, its inputs, and parts of the names that not the layer that owns them accounts for.
    "perceptron": (perceptron, lambda: vectors(5, 5), frozenset()),
    "module used twice": (twice, lambda: vectors(5, 5), frozenset()),
    "convolutions": (convolutions, lambda: vectors(5, 3, 8, 8), frozenset()),
    "convolution of sequences": (
        lambda: nn.Sequential(nn.Conv1d(3, 4, 3, stride=2, padding=1), nn.Tanh(), nn.Flatten()),
        lambda: vectors(5, 3, 6),
        frozenset(),
    ),
    "parameters used directly": (Direct, lambda: vectors(5, 2, 5), frozenset()),
    "as many tokens as samples": (Direct, lambda: vectors(5, 5, 5), frozenset()),
    "token and positions": (lambda: Tokens(1), lambda: vectors(5, 5, 3), frozenset()),
    "positions of one sample": (Tokens, lambda: vectors(5, 5, 3), frozenset()),
    "positions that are reshaped": (Reshaped, lambda: vectors(5, 5, 3), frozenset({"table"})),
    "tied weights": (Tied, words, frozenset({"words"})),
    "weight norm": (
        lambda: nn.Sequential(parametrizations.weight_norm(nn.Linear(5, 4)), nn.Tanh(), nn.Linear(4, 2)),
        lambda: vectors(5, 5),
        frozenset({"original"}),
    ),
    "torch attention": (Attention, lambda: vectors(5, 3, 8), frozenset({"out_proj", "seqs_first"})),
    "unusual uses": (
        Unusual,
        lambda: (vectors(5, 4, 2), vectors(5, 3)),
        frozenset({"a", "b", "unused", "recurrent"}),
    ),
    "BERT, mean": (lambda: bert("mean", "sdpa"), text, frozenset()),
    "BERT, pooled first token": (lambda: bert("pooler", "eager"), text, frozenset()),
    "GPT-2": (gpt2, text, frozenset()),
    "T5": (t5, text, frozenset({"shared", "relative_attention_bias"})),
    "CLIP": (clip, lambda: {"pixel_values": vectors(5, 3, 8, 8)}, frozenset()),
}


def made(name: str) -> tuple[nn.Module, Inputs]:
    torch.manual_seed(0)
    model = MODELS[name][0]().double().eval()
    return model, MODELS[name][1]()


@pytest.mark.parametrize("name", list(MODELS))
def test_equals_the_contraction_of_the_jacobian(name: str) -> None:
    model, x = made(name)
    some, others = cut(x, slice(0, 3)), cut(x, slice(2, None))
    whole, left, right = jacobian(model, x), jacobian(model, some), jacobian(model, others)
    for memory in (2e9, 3e4, 1.0):
        for mode in MODES if memory == 2e9 else MODES[:1]:
            assert error(ntk(model, x, mode=mode, memory=memory), contracted(whole, whole, mode)) < 1e-12
            found = ntk(model, some, others, mode=mode, memory=memory)
            assert error(found, contracted(left, right, mode)) < 1e-12


@pytest.mark.parametrize("name", list(MODELS))
def test_layers_account_for_the_parameters_they_own(name: str) -> None:
    model, x = made(name)
    with torch.no_grad():
        sites = SampleGradients(model, selected(model, "all"), Samples.of(x, "x")).sites
    elsewhere = [known for known, paths in sites.items() if paths != [known.rpartition(".")[0]]]
    pieces = MODELS[name][2]
    assert all(any(piece in known for piece in pieces) for known in elsewhere)
    assert all(any(piece in known for known in elsewhere) for piece in pieces)


@pytest.mark.parametrize(("name", "expected"), [("token and positions", 0), ("parameters used directly", 1)])
def test_no_module_runs_again_for_tokens_and_positions(
    name: str, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = made(name)
    with torch.no_grad():
        gradients = SampleGradients(model, selected(model, "all"), Samples.of(x, "x"))
        vmap = Mock(wraps=torch.func.vmap)
        monkeypatch.setattr(torch.func, "vmap", vmap)
        gradients.features(Samples.of(x, "x"))
    assert vmap.call_count == expected


def test_what_vmap_cannot_run_is_taken_sample_by_sample() -> None:
    model, x = made("unusual uses")
    with torch.no_grad():
        gradients = SampleGradients(model, selected(model, "all"), Samples.of(x, "x"))
    assert set(gradients.one_by_one) == {name for name, _ in model.named_parameters()}


def test_a_table_as_long_as_the_batch_is_no_batch() -> None:
    class Shifted(nn.Module):
        """A layer without a rule, given a table that all samples share."""

        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.rand(4))

        def forward(self, x: Tensor, table: Tensor) -> Tensor:
            return (x[:, None] * self.scale + table).tanh().sum(1)

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Shifted()

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x, vectors(5, 4))  # type: ignore[no-any-return]

    model, x = Model().double(), vectors(5, 4) + 1
    whole = jacobian(model, x)
    assert error(ntk(model, x), contracted(whole, whole, "full")) < 1e-12
    assert error(ntk(model, x[:1], x), contracted(whole[:1], whole, "full")) < 1e-12


@pytest.mark.parametrize("name", ["module used twice", "torch attention", "unusual uses", "BERT, mean"])
def test_the_model_is_left_as_it_was(name: str) -> None:
    model, x = made(name)
    next(model.parameters()).requires_grad_(False)
    slots = [(module, key, p) for module in model.modules() for key, p in module._parameters.items()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    wanted = [p.requires_grad for p in model.parameters()]
    inputs = [value.clone() for value in Samples.of(x, "x").tensors()]
    ntk(model, x)
    ntk_product(model, x, None, torch.ones_like(Samples.of(x, "x").outputs(model)))
    assert all(module._parameters[key] is p for module, key, p in slots)
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert [p.requires_grad for p in model.parameters()] == wanted
    assert all(p.grad is None for p in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(map(torch.equal, inputs, Samples.of(x, "x").tensors()))


def test_frozen_parameters_and_no_grad_make_no_difference() -> None:
    model, x = made("BERT, mean")
    expected = ntk(model, x)
    with torch.no_grad():
        assert torch.equal(ntk(model.requires_grad_(False), x), expected)


@pytest.mark.parametrize(
    "params", ["re:.*bias", ["0.weight"], lambda name: name.startswith("2"), ("4.weight", "5.bias")]
)
def test_only_the_selected_parameters_count(params: Any) -> None:
    model, x = made("module used twice")
    names = set(selected(model, params))
    left = jacobian(model, x, names)
    assert names < {name for name, _ in model.named_parameters()}
    assert error(ntk(model, x, params=params), contracted(left, left, "full")) < 1e-12


def test_a_tied_parameter_is_selected_by_any_of_its_names() -> None:
    model, x = made("tied weights")
    assert torch.equal(ntk(model, x, params=["out.weight"]), ntk(model, x, params=["words.weight"]))


def test_parameters_without_influence_contribute_nothing() -> None:
    model, x = made("unusual uses")
    assert not ntk(model, x, params=["unused"]).any()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 4), st.floats(1, 1e5), st.sampled_from(MODES))
def test_memory_and_batches_do_not_change_the_kernel(
    n1: int, n2: int, batch: int, memory: float, mode: Mode
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(4, 40), nn.Tanh(), nn.Linear(40, 30), nn.Tanh(), nn.Linear(30, 2)
    ).double()
    x, y = vectors(n1, 3, 4).mean(1), vectors(n2, 4)
    left, right = jacobian(model, x), jacobian(model, y)
    found = ntk(model, x, y, mode=mode, memory=memory, batch=batch)
    assert error(found, contracted(left, right, mode)) < 1e-12
    found = ntk(model, y, mode=mode, memory=memory, batch=batch)
    assert error(found, contracted(right, right, mode)) < 1e-12


@pytest.mark.parametrize("mode", MODES)
def test_token_comparisons_equal_written_out_gradients(mode: Mode) -> None:
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 64)).double()

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = layers

        def forward(self, x: Tensor) -> Tensor:
            return self.layers(x).mean(1)[:, :3]  # type: ignore[no-any-return]

    model, x = Pooled(), vectors(6, 2, 64)
    left = jacobian(model, x)
    for memory in (1e9, 4e4):
        assert error(ntk(model, x, mode=mode, memory=memory), contracted(left, left, mode)) < 1e-12
        found = ntk(model, x[:2], x, mode=mode, memory=memory)
        assert error(found, contracted(left[:2], left, mode)) < 1e-12


def test_a_linear_model_has_the_kernel_of_its_inputs() -> None:
    model, x = nn.Linear(4, 3).double(), vectors(6, 4)
    expected = torch.einsum("ij,cd->icjd", x @ x.T + 1, torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(ntk(model, x), expected)


def test_the_built_in_model_behind_a_head() -> None:
    backbone = tv.load_backbone("builtin")
    assert isinstance(backbone.network.image, nn.Module)
    torch.manual_seed(0)
    model = nn.Sequential(backbone.network.image, nn.Linear(backbone.dim, 3)).double()
    x = vectors(3, 3, 32, 32)
    names = {n for n in selected(model, "all") if "stem" in n or "position" in n or "blocks.2" in n}
    left = jacobian(model, x, names)
    assert error(ntk(model, x, params=list(names)), contracted(left, left, "full")) < 1e-12


def test_float32_stays_close_to_float64() -> None:
    model, x = made("BERT, mean")
    exact = ntk(model, x)
    fast = ntk(model.float(), x)
    assert fast.dtype == torch.float32
    assert error(fast.double(), exact) < 64 * torch.finfo(torch.float32).eps


@pytest.mark.parametrize("name", ["module used twice", "torch attention", "tied weights", "BERT, mean"])
def test_products_equal_the_kernel_times_a_vector(name: str) -> None:
    model, x = made(name)
    others = cut(x, slice(1, 4))
    kernel = ntk(model, x, others)
    v = vectors(*kernel.shape[2:])
    expected = torch.einsum("icjd,jd->ic", kernel, v)
    assert error(ntk_product(model, x, others, v, batch=2), expected) < 1e-12


def test_the_operator_gives_eigenpairs_and_solves() -> None:
    model, x = made("perceptron")
    kernel = ntk(model, x).reshape(15, 15)
    operator = ntk_operator(model, x, ridge=0.5)
    damped = kernel + 0.5 * torch.eye(15, dtype=torch.float64)
    top = eigsh(operator, k=2, return_eigenvectors=False)
    assert top == pytest.approx(torch.linalg.eigvalsh(damped)[-2:].tolist())
    right = vectors(15)
    solution, _ = cg(operator, right.numpy(), rtol=1e-10, maxiter=200)
    torch.testing.assert_close(damped @ torch.from_numpy(solution), right, rtol=1e-6, atol=1e-6)


class Mixing(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x - x.mean(0))  # type: ignore[no-any-return]


class Dictionary(Mixing):
    def forward(self, x: Tensor) -> Any:
        return {"logits": self.layer(x)}


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3)), "1 is a batch norm in training mode"),
        (nn.Sequential(nn.Linear(5, 3), nn.BatchNorm1d(3, track_running_stats=False)).eval(), "statistics"),
        (nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)), r"draws dropout.*model.eval\(\)"),
        (nn.Sequential(nn.Linear(5, 3), nn.Flatten(0)), r"output is \(6,\) for 2 samples, expected \(2, C\)"),
        (Overwriting(), "overwrites an activation"),
        (Mixing(), "change with the other samples"),
        (Dictionary(), "returns a dict, expected a tensor"),
    ],
)
def test_a_model_without_a_kernel_is_refused(model: nn.Module, message: str) -> None:
    with pytest.raises(InputError, match=message):
        ntk(model, vectors(4, 5).float())
    assert not any(buffer.any() for name, buffer in model.named_buffers() if name.endswith("tracked"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"params": "re:nothing"}, "re:nothing"),
        ({"params": []}, "selects none"),
        ({"params": ["0.wieght"]}, "did you mean '0.weight'"),
        ({"params": lambda name: False}, "selects none"),
        ({"mode": "diagonal"}, "'diagonal'"),
        ({"x2": {}}, "x2"),
    ],
)
def test_a_wrong_request_is_refused(options: dict[str, Any], message: str) -> None:
    model, x = made("perceptron")
    with pytest.raises(InputError, match=message):
        ntk(model, x, **options)


def test_a_vector_of_another_shape_is_refused() -> None:
    model, x = made("perceptron")
    with pytest.raises(InputError, match=r"v is \(5, 2\), expected \(5, 3\)"):
        ntk_product(model, x, None, vectors(5, 2))


def test_little_memory_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch.profiler import ProfilerActivity, profile

    monkeypatch.setenv("KINETO_LOG_LEVEL", QUIET)  # read once a process: a loud log would reach other tests
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(200, 400), nn.Tanh(), nn.Linear(400, 200), nn.Tanh(), nn.Linear(200, 5))
    x = vectors(200, 200).float()
    kernel, model_bytes = 4 * 1000**2, 4 * sum(p.numel() for p in model.parameters())
    whole = 1000 * model_bytes
    for budget in (4e6, 2e7):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
            ntk(model, x, memory=budget)
        alive = most = 0
        events = [e for e in found.profiler.kineto_results.events() if e.name() == "[memory]"]
        for event in sorted(events, key=lambda event: event.start_ns()):
            alive += event.nbytes()
            most = max(most, alive)
        assert most < budget + 2 * kernel + 4 * model_bytes
        assert math.isfinite(most) and most < whole / 20
