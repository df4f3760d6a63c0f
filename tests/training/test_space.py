"""Every space obeys the same laws; that of LoRA is PEFT's, and its tangent the one of the factors."""

import math
from collections.abc import Sequence
from copy import deepcopy
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers as hf
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.models.selection import selected
from taskvec.names import grouped
from taskvec.training.regimes import REGIMES, Lora, Regime
from taskvec.training.space import Factors, Gated, Moved, linearized, move

pytestmark = [
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated"),
    pytest.mark.filterwarnings("ignore:fan_in_fan_out is set to"),
]


class Network(Backbone):
    """Any module as an encoder of inputs that are made beforehand."""

    modality = "image"
    batch: dict[str, Tensor]

    def __init__(self, network: nn.Module, batch: dict[str, Tensor], key: str | None = None) -> None:
        super().__init__(network, ref=network, dim=4, logit_scale=1.0)
        self.batch, self.key = batch, key

    def forward(self, **batch: Tensor) -> Tensor:
        found: Any = self.network(**batch)
        features: Tensor = (found if self.key is None else found[self.key]).flatten(1)
        return features

    def stack(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        return self.batch

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        raise NotImplementedError

    def example(self) -> dict[str, Tensor]:
        return self.batch


class Convolutions(nn.Module):
    """Two convolutions, one of them in groups, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.head = nn.Linear(8, 5)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.head(self.depthwise(self.first(pixels).relu()).tanh().mean((2, 3)))  # type: ignore[no-any-return]


SMALL: dict[str, Any] = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WORDS = {"input_ids": torch.arange(3, 15).reshape(2, 6)}


def gpt2() -> Network:
    network = hf.GPT2Model(hf.GPT2Config(n_embd=16, n_layer=2, n_head=2, n_positions=8, **SMALL))
    return Network(network, WORDS, "last_hidden_state")


def bert() -> Network:
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
    }
    return Network(hf.BertModel(hf.BertConfig(**shape, **SMALL)), WORDS, "pooler_output")


def llama() -> Network:
    shape: dict[str, Any] = {
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    network = hf.LlamaModel(hf.LlamaConfig(**shape, intermediate_size=24, **SMALL))
    return Network(network, WORDS, "last_hidden_state")


def convolutions() -> Network:
    return Network(Convolutions(), {"pixels": torch.linspace(-1, 1, 2 * 3 * 81).reshape(2, 3, 9, 9)})


# A network, what is selected of it, and what PEFT is told to adapt for that.
NETWORKS: dict[str, tuple[Any, str, str]] = {
    "bert": (bert, "attention", r".*attention.*(query|key|value|dense)"),
    "gpt2": (gpt2, "full", r".*(c_attn|c_proj|c_fc)"),
    "llama": (llama, "mlp", r".*(gate|up|down)_proj"),
    "convolutions": (convolutions, "full", "first|head"),
}
KINDS = [
    REGIMES["full"],
    REGIMES["tangent"],
    Regime("full", "lora", rank=3),
    Regime("full", "tangent-lora", rank=2),
    Regime("full", "gated"),
]


def built(name: str) -> Network:
    """In float64, so that oracles agree to ten digits."""
    torch.manual_seed(0)
    backbone: Network = NETWORKS[name][0]().double().eval()
    batch = backbone.batch.items()
    backbone.batch = {key: v.double() if v.is_floating_point() else v for key, v in batch}
    return backbone


def close(name: str) -> dict[str, Any]:
    """How close two ways to the same tangent come: Llama's norms are computed in float32 in any case."""
    return {"rtol": 1e-5, "atol": 5e-6} if name == "llama" else {"rtol": 1e-9, "atol": 1e-10}


def parameters(backbone: Backbone) -> dict[str, Tensor]:
    return {name: value.detach() for name, value in backbone.encoder_parameters().items()}


def made(backbone: Backbone, regime: Regime, *, stirred: bool = True) -> Moved:
    """A space over everything that the regime selects, its leaves drawn at random."""
    start = {name: parameters(backbone)[name] for name in tv.select(backbone, regime.selection)}
    moved = move(backbone, start, regime.evaluated_in, regime.lora, seed=5, gates=regime.gating)
    if stirred:
        generator = torch.Generator().manual_seed(1)
        for leaf in moved.leaves.values():
            step = torch.randn(leaf.shape, generator=generator, dtype=leaf.dtype)
            leaf.data.add_(0.05 * step)
    return moved


@pytest.mark.parametrize("regime", KINDS, ids=lambda regime: regime.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_nothing_is_displaced_at_the_start(name: str, regime: Regime) -> None:
    backbone = built(name)
    moved = made(backbone, regime, stirred=False)
    assert not any(bool(step.any()) for step in moved.displacement().values())
    assert_close(moved.outputs(backbone.example()), backbone(**backbone.example()), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("regime", KINDS, ids=lambda regime: regime.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_displacement_gives_the_function_that_is_trained(name: str, regime: Regime) -> None:
    backbone = built(name)
    moved, batch, theta0 = made(backbone, regime), backbone.example(), parameters(backbone)
    tau = dict(moved.displacement())
    assert tau.keys() <= theta0.keys() and any(bool(step.any()) for step in tau.values())
    if regime.evaluated_in == "tangent":
        whole = {key: tau.get(key, torch.zeros_like(value)) for key, value in theta0.items()}
        with sdpa_kernel(SDPBackend.MATH):
            f0, slope = torch.func.jvp(lambda p: encode(backbone, p, batch), (theta0,), (whole,))  # type: ignore[misc]
        expected = f0 + slope
    else:
        expected = encode(backbone, {key: theta0[key] + step for key, step in tau.items()}, batch)
    assert_close(moved.outputs(batch), expected, **close(name))


@pytest.mark.parametrize("regime", KINDS, ids=lambda regime: regime.name)
@pytest.mark.parametrize("name", NETWORKS)
def test_gradients_of_leaves_follow_from_those_of_the_weights(name: str, regime: Regime) -> None:
    """By the chain rule, from a gradient in the weights that autograd gives of the plain model."""
    backbone = built(name)
    moved, batch, theta0 = made(backbone, regime), backbone.example(), parameters(backbone)
    features = moved.outputs(batch)
    weights = torch.linspace(-1, 1, features.numel(), dtype=features.dtype).reshape(features.shape)
    found = dict(
        zip(
            moved.leaves,
            torch.autograd.grad((features * weights).sum(), list(moved.leaves.values())),
            strict=True,
        )
    )

    steps = moved.displacement() if regime.evaluated_in == "ordinary" else {}
    point = {key: (value + steps.get(key, 0.0)).requires_grad_() for key, value in theta0.items()}
    total = (encode(backbone, point, batch) * weights).sum()
    slopes = dict(zip(point, torch.autograd.grad(total, list(point.values())), strict=True))
    if isinstance(moved, Gated):
        check_gated(moved, found, slopes)
        return
    if regime.lora is None:
        assert_close(found, {key: slopes[key] for key in found}, rtol=1e-9, atol=1e-10)
        return
    assert isinstance(moved, Factors)
    for key in moved.displacement():
        slope = slopes[key].flatten(1).T if "c_" in key else slopes[key].flatten(1)  # Conv1D is (in, out)
        up, down = moved._ups[key].detach(), moved._downs[key].detach()
        assert_close(found[f"{key}#B"], regime.lora.scaling * slope @ down.T, rtol=1e-9, atol=1e-10)
        if regime.space == "lora":
            assert_close(found[f"{key}#A"], regime.lora.scaling * up.T @ slope, rtol=1e-9, atol=1e-10)
        else:
            assert f"{key}#A" not in found


def check_gated(moved: Gated, found: dict[str, Tensor], slopes: dict[str, Tensor]) -> None:
    """A residual has the gradient of its weight where the gate is open; a score that of ``<slope, R>``."""
    layers = list(grouped(moved.tau()).values())
    opened = (moved.scores >= 0.1).tolist()
    assert 0 < sum(opened) < len(layers)  # some of both
    for score, is_open, names in zip(found["#scores"], opened, layers, strict=True):
        along = [torch.sum(slopes[name] * moved.leaves[name]) for name in names]
        assert_close(score, torch.stack(along).sum().detach(), rtol=1e-9, atol=1e-10)
        for name in names:
            assert_close(found[name], slopes[name] * is_open, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", NETWORKS)
def test_lora_is_that_of_peft(name: str) -> None:
    backbone, (_, selection, targets) = built(name), NETWORKS[name]
    rank, alpha = 3, 5.0
    moved = made(backbone, Regime(selection, "lora", rank=rank, alpha=alpha))
    assert isinstance(moved, Factors)
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, lora_dropout=0.0)  # type: ignore[arg-type]
    adapted: Any = peft.get_peft_model(deepcopy(backbone.network), config).double()
    layers = {
        key.removeprefix("base_model.model."): layer
        for key, layer in adapted.named_modules()
        if hasattr(layer, "lora_A")
    }
    assert {f"{key}.weight" for key in layers} == set(moved.displacement())
    bounds = []
    for key, layer in layers.items():
        down, up = layer.lora_A["default"].weight, layer.lora_B["default"].weight
        bounds.append((float(down.detach().abs().max()), 1 / math.sqrt(down[0].numel())))
        fresh = made(backbone, Regime(selection, "lora", rank=rank), stirred=False).leaves[f"{key}.weight#A"]
        bounds.append((float(fresh.detach().abs().max()), bounds[-1][1]))
        down.data = moved.leaves[f"{key}.weight#A"].detach().reshape(down.shape)
        up.data = moved.leaves[f"{key}.weight#B"].detach().reshape(up.shape)
    assert all(0.6 * bound < largest <= bound for largest, bound in bounds)  # both fill the same interval
    found = adapted(**backbone.example())
    expected = (found if not hasattr(found, "keys") else found[backbone.key]).flatten(1)
    assert_close(moved.outputs(backbone.example()), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("name", NETWORKS)
def test_tangent_lora_is_the_tangent_of_the_factors(name: str) -> None:
    """In any direction of both factors, at where LoRA starts: that of A adds nothing, as B is zero there."""
    backbone = built(name)
    moved = made(backbone, Regime("full", "tangent-lora", rank=2))
    assert isinstance(moved, Factors)
    theta0, batch, scaling = parameters(backbone), backbone.example(), Lora(2).scaling
    downs = {key: moved._downs[key].detach() for key in moved.displacement()}
    ups = {key: torch.zeros_like(moved._ups[key]) for key in downs}

    def function(downs: dict[str, Tensor], ups: dict[str, Tensor]) -> Tensor:
        steps = {key: scaling * ups[key] @ downs[key] for key in downs}
        steps = {
            key: (step.T if "c_" in key else step).reshape(theta0[key].shape) for key, step in steps.items()
        }
        return encode(backbone, {key: theta0[key] + step for key, step in steps.items()}, batch)

    anywhere = {key: torch.randn_like(down) for key, down in downs.items()}
    learned = {key: moved._ups[key].detach() for key in downs}
    with sdpa_kernel(SDPBackend.MATH):
        f0, slope = torch.func.jvp(function, (downs, ups), (anywhere, learned))  # type: ignore[misc]
    assert_close(moved.outputs(batch), f0 + slope, **close(name))
    lin = linearized(backbone)
    assert_close(lin(dict(moved.displacement()), batch), f0 + slope, **close(name))


def test_factors_depend_on_the_seed_and_the_name_alone() -> None:
    backbone = built("bert")
    start = selected(backbone, "attention")
    few = {name: start[name] for name in list(start)[:2]}
    one, other = move(backbone, start, "ordinary", Lora(2), 0), move(backbone, few, "ordinary", Lora(2), 0)
    assert all(torch.equal(leaf, one.leaves[name]) for name, leaf in other.leaves.items())
    again = move(backbone, few, "ordinary", Lora(2), 1)
    assert not any(torch.equal(leaf, one.leaves[name]) for name, leaf in again.leaves.items() if "#A" in name)


def test_what_is_no_matrix_stays_and_tables_have_no_factors() -> None:
    backbone = built("gpt2")
    moved = made(backbone, Regime("full", "lora", rank=2))
    assert set(moved.displacement()) == {
        f"h.{n}.{leaf}.weight"
        for n in range(2)
        for leaf in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    depthwise = made(built("convolutions"), Regime("full", "lora", rank=2)).displacement()
    assert set(depthwise) == {"first.weight", "head.weight"}


@pytest.mark.parametrize(
    ("regime", "complaint"),
    [
        (
            Regime("attention", "lora", rank=17),
            r"rank: 17, expected at most 16, that of '.*query.weight' \(16 x 16\)",
        ),
        (
            Regime(r"re:.*bias", "lora"),
            "no matrix of a linear layer or convolution among the .* select others",
        ),
        (
            Regime(r"re:.*word_embeddings\.weight", "tangent-lora"),
            "no matrix of a linear layer or convolution",
        ),
    ],
)
def test_factors_that_cannot_be_are_refused(regime: Regime, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        made(built("bert"), regime)


RECIPE = tv.TrainSettings(lr=2e-2, steps=12, batch_size=16, weight_decay=0.01, validations=0)


@pytest.fixture(scope="module")
def low(evaluator: tv.Evaluator) -> tv.TaskVector:
    thin = Regime("attention", "lora", rank=2, name="thin")
    return tv.finetune(evaluator.backbone, evaluator.part("pets"), regime=thin, settings=RECIPE)


def test_a_lora_vector_learns_and_is_stored_as_its_factors(
    evaluator: tv.Evaluator, low: tv.TaskVector, tmp_path: Path
) -> None:
    after = evaluator.score(evaluator.points({"v": low}).at({"v": 1.0}), "pets", "test").accuracy
    assert after >= 0.75 and (low.info.regime, low.info.space) == ("thin", "ordinary")
    assert low.info.training is not None
    assert [low.info.training[key] for key in ("select", "space", "rank", "alpha")] == [
        "attention",
        "lora",
        2,
        16.0,
    ]
    path = low.save(tmp_path / "v.safetensors")
    loaded = tv.TaskVector.load(path)
    assert all(torch.equal(low[name], loaded[name]) for name in low)
    assert loaded.info.regime == "thin" and loaded.info.base.fingerprint == low.info.base.fingerprint
    dense = tv.TaskVector.from_tensors({n: low[n] for n in low if low[n].any()}, evaluator.backbone.source)
    assert path.stat().st_size < 0.9 * dense.save(tmp_path / "dense.safetensors").stat().st_size
    again = loaded.save(tmp_path / "again.safetensors")
    assert tv.TaskVector.load(again).info.compact == loaded.info.compact
    half = tv.TaskVector.load(low.save(tmp_path / "half.safetensors", dtype=torch.bfloat16))
    assert half.info.dtype == "bfloat16" and half.info.compact is not None
    assert all(torch.linalg.matrix_rank(low[name], rtol=1e-4) <= 2 for name in low if low[name].any())


@pytest.mark.parametrize("build", ["bert", "gpt2"])
@pytest.mark.parametrize("stored", [True, False])
def test_a_lora_vector_goes_to_peft_as_it_is(build: str, stored: bool, tmp_path: Path) -> None:
    torch.manual_seed(0)
    network = NETWORKS[build][0]().network
    network.save_pretrained(tmp_path / "base")
    backbone = Network(network, WORDS, "last_hidden_state").eval()
    moved = made(backbone, Regime("full", "lora", rank=3))
    vector = tv.TaskVector.from_tensors(moved.displacement(), tmp_path / "base")
    if stored:
        vector = tv.TaskVector.load(vector.save(tmp_path / "v.safetensors"))
    written = tv.save_adapter(0.5 * vector, tmp_path / "adapter")
    assert (written.rank, written.error, dict(written.left_out)) == (3, 0.0, {})
    adapted = peft.PeftModel.from_pretrained(deepcopy(network), str(tmp_path / "adapter")).eval()
    tuned = {
        name: backbone.encoder_parameters()[name] + 0.5 * vector[name]
        for name in vector
        if vector.terms_at(name)
    }
    expected = encode(backbone, tuned, WORDS)
    found: Any = adapted(**WORDS)
    assert_close(found["last_hidden_state"].flatten(1), expected, rtol=1e-4, atol=1e-5)
    read = tv.TaskVector.load(tmp_path / "adapter").with_base(tmp_path / "base")
    assert_close({n: read[n] for n in tuned}, {n: 0.5 * vector[n] for n in tuned}, rtol=1e-6, atol=1e-7)


def test_sums_of_trained_factors_and_of_adapters_are_one_adapter(
    evaluator: tv.Evaluator, low: tv.TaskVector, tmp_path: Path
) -> None:
    tv.save_adapter(low, tmp_path / "low")
    adapter = tv.TaskVector.load(tmp_path / "low").with_base(evaluator.backbone.source)
    mixed = tv.save_adapter(low - 0.5 * adapter, tmp_path / "sum")
    assert (mixed.rank, mixed.error) == (4, 0.0)
    read = tv.TaskVector.load(tmp_path / "sum").with_base(evaluator.backbone.source)
    names = [name for name in low if low.terms_at(name)]
    assert_close({n: read[n] for n in names}, {n: 0.5 * low[n] for n in names}, rtol=1e-5, atol=1e-7)


def test_atm_of_lora_moves_the_selected_matrices(evaluator: tv.Evaluator) -> None:
    parts = [evaluator.part(task) for task in evaluator.tasks]
    vector = tv.atm(evaluator.backbone, parts, rounds=2, regime="lora", settings=RECIPE)
    moved = {name for name in vector if bool(vector[name].any())}
    assert moved == set(tv.select(evaluator.backbone, "attention")) and vector.info.regime == "lora (atm)"
    low = tv.atm(evaluator.backbone, parts, rounds=2, regime="tangent-lora", settings=RECIPE)
    moved = {name for name in low if bool(low[name].any())}
    assert moved == set(tv.select(evaluator.backbone, "attention")) and low.info.space == "tangent"


@pytest.mark.parametrize("towards", ["zero", "pretrained"])
def test_weight_decay_shrinks_the_factors(evaluator: tv.Evaluator, towards: str) -> None:
    one = {"optimizer": "adamw", "steps": 2, "warmup": 0.0, "schedule": "constant", "clip": None, "lr": 1e-2}
    bare = tv.TrainSettings.parse("", {**one, "weight_decay": 0.0, "validations": 0})
    strong = bare.model_copy(update={"weight_decay": 50.0, "decay_towards": towards})
    part = evaluator.part("pets")
    plain, shrunk = (
        tv.finetune(evaluator.backbone, part, regime="tangent-lora", settings=s) for s in (bare, strong)
    )
    assert shrunk.norm() < 0.9 * plain.norm()


def test_bf16_multiplies_the_factors_in_float32(evaluator: tv.Evaluator) -> None:
    moved = made(evaluator.backbone, Regime("attention", "lora", rank=2))
    assert isinstance(moved, Factors)
    plain = moved.tau()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert all(torch.equal(step, plain[name]) for name, step in moved.tau().items())
