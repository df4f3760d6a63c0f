"""The blocks of real architectures: rules equal torch.func to 1e-12 in float64."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import taskvec as tv
from taskvec.tangent.linearize import TangentModel, linearize

transformers = pytest.importorskip("transformers")

SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
WORDS = {"vocab_size": 99, "bos_token_id": None, "eos_token_id": None}
VISION = {"image_size": 16, "patch_size": 8, **SMALL}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16, **WORDS}
T5 = {"vocab_size": 99, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}


def texts() -> dict[str, Tensor]:
    ids = torch.randint(5, 90, (2, 7), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 4:] = 0
    return {"input_ids": ids, "attention_mask": mask}


def images() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)}


def made(kind: str, options: dict[str, Any], attention: str = "sdpa") -> nn.Module:
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**options, attn_implementation=attention)
    name = {"T5": "T5EncoderModel", "CLIPVision": "CLIPVisionModel"}.get(kind, f"{kind}Model")
    model: nn.Module = getattr(transformers, name)(config)
    return model.double().eval()


def llama() -> nn.Module:
    """With norms that stay in float64: Llama's own go through float32, and equality ends at its rounding."""
    model = made("Llama", {**SMALL, **WORDS, "num_key_value_heads": 2})
    for name, part in list(model.named_modules()):
        if type(part).__name__ == "LlamaRMSNorm":
            norm = nn.RMSNorm(32, eps=1e-6, dtype=torch.float64)
            model.set_submodule(name, norm)
    return model


BLOCKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Tensor]], str]] = {
    "BERT": (lambda: made("Bert", {**SMALL, **WORDS}), texts, "attention"),
    "BERT, eager attention": (lambda: made("Bert", {**SMALL, **WORDS}, "eager"), texts, "attention"),
    "RoBERTa": (lambda: made("Roberta", {**SMALL, **WORDS, "pad_token_id": 1}), texts, "attention"),
    "CLIP vision": (lambda: made("CLIPVision", VISION), images, "attention"),
    "ViT": (lambda: made("ViT", VISION), images, "attention"),
    "GPT-2": (lambda: made("GPT2", GPT2), texts, "attention"),
    "Llama, grouped queries": (
        llama,
        texts,
        "attention",
    ),
    "T5 encoder": (lambda: made("T5", T5), texts, "attention"),
}


def features(lin: TangentModel, batch: dict[str, Tensor]) -> Tensor:
    out: Tensor = lin(**batch).last_hidden_state
    return out


def displaced(lin: TangentModel) -> TangentModel:
    draw = torch.Generator().manual_seed(1)
    lin.double()
    with torch.no_grad():
        for leaf in lin.tau.values():
            leaf.copy_(0.02 * torch.randn(leaf.shape, generator=draw))
    return lin


@pytest.mark.parametrize("block", BLOCKS)
@pytest.mark.parametrize("selection", ["all", "attention"])
def test_rules_and_the_lean_way_equal_torch_func(block: str, selection: str) -> None:
    make, batch, attention = BLOCKS[block]
    model = make()
    chosen = attention if selection == "attention" else "all"
    values, slopes = [], []
    for route in ("func", "rules", "lean"):
        lin = displaced(linearize(model, chosen, route=route))
        out = features(lin, batch())
        pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(2), dtype=out.dtype)
        slopes.append(torch.autograd.grad(out, list(lin.tau.values()), pull, allow_unused=True))
        values.append(out.detach())
    largest = max(float(slope.abs().max()) for slope in slopes[0] if slope is not None)
    for value, slope in zip(values[1:], slopes[1:], strict=True):
        assert float((value - values[0]).abs().max()) <= 1e-12 * float(values[0].abs().max())
        for name, found, exact in zip(lin.tau, slope, slopes[0], strict=True):
            exact = torch.zeros(1) if exact is None else exact
            found = torch.zeros(1) if found is None else found
            assert float((found - exact).abs().max()) <= 1e-12 * largest, name


@pytest.mark.parametrize("block", BLOCKS)
def test_rules_are_chosen_by_themselves(block: str) -> None:
    make, batch, _ = BLOCKS[block]
    lin = displaced(linearize(make()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        features(lin, batch())
    assert lin.linearization.route == "rules"


def test_padding_on_the_left_of_a_decoder_keeps_gradients_finite() -> None:
    """There, first positions see nothing, and the gradient of the math attention kernel is NaN."""
    batch = texts()
    batch["attention_mask"] = batch["attention_mask"].flip(1)
    lin = displaced(linearize(made("Llama", {**SMALL, **WORDS, "num_key_value_heads": 2})))
    slopes = torch.autograd.grad(features(lin, batch).sum(), list(lin.tau.values()))
    assert lin.linearization.route == "rules"
    assert all(bool(slope.isfinite().all()) for slope in slopes)


def test_rules_are_chosen_for_the_built_in_model() -> None:
    from taskvec.training.space import linearized

    assert linearized(tv.load_backbone("builtin")).route == "rules"


@pytest.mark.parametrize("selection", ["all", "attention"])
@pytest.mark.parametrize("block", BLOCKS)
def test_bfloat16_matrix_products_stay_near_float32(block: str, selection: str) -> None:
    """tau is an operand of its own: a change a thousand times smaller than the weights survives."""
    make, batch, attention = BLOCKS[block]
    model = make().float()
    inputs = {k: v.float() if v.is_floating_point() else v for k, v in batch().items()}
    lin = linearize(model, attention if selection == "attention" else "all")
    with torch.no_grad():
        for name, leaf in lin.tau.items():
            leaf.copy_(1e-3 * model.get_parameter(name))
    exact = (features(lin, inputs) - model(**inputs).last_hidden_state).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, [slope] = lin.linearization.jvps([lin.tau], **inputs)
        features(lin, inputs).float().sum().backward()  # type: ignore[no-untyped-call]
    assert float((slope.last_hidden_state - exact).norm() / exact.norm()) < 0.02
    assert all(leaf.grad is None or leaf.grad.dtype == torch.float32 for leaf in lin.tau.values())


def test_weights_narrowed_once_follow_the_model_when_it_is_changed_in_place() -> None:
    model = made("Bert", {**SMALL, **WORDS}).float()
    lin = linearize(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features(lin, texts())
        with torch.no_grad():
            model.get_parameter("encoder.layer.0.attention.self.query.weight").mul_(2.0)
        late, fresh = features(lin, texts()), features(linearize(model), texts())
    assert torch.equal(late, fresh)
