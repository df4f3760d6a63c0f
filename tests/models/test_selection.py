"""What each selection means on real architectures."""

import os
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    PreTrainedModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

import taskvec as tv
from architectures.families import LARGEST, count_parameters, families
from taskvec.errors import InputError
from taskvec.models.selection import select
from taskvec.names import select_names
from taskvec.training.regimes import regime_called

SHAPE: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SMALL: dict[str, Any] = {"vocab_size": 30, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}

# Model, attention weights a block, attention biases a block, MLP tensors a block.
ARCHITECTURES: dict[str, tuple[Callable[[], PreTrainedModel], int, int, int]] = {
    "bert": (lambda: BertModel(BertConfig(**SHAPE, **SMALL)), 4, 4, 4),
    "roberta": (lambda: RobertaModel(RobertaConfig(**SHAPE, **SMALL)), 4, 4, 4),
    "distilbert": (
        lambda: DistilBertModel(DistilBertConfig(dim=16, n_layers=2, n_heads=2, hidden_dim=32, **SMALL)),
        4,
        4,
        4,
    ),
    "vit": (lambda: ViTModel(ViTConfig(**SHAPE, image_size=16, patch_size=8)), 4, 4, 4),
    "clip": (lambda: CLIPVisionModel(CLIPVisionConfig(**SHAPE, image_size=16, patch_size=8)), 4, 4, 4),
    "gpt2": (lambda: GPT2Model(GPT2Config(n_embd=16, n_layer=2, n_head=2, **SMALL)), 2, 2, 4),
    "llama": (lambda: LlamaModel(LlamaConfig(**SHAPE, **SMALL, num_key_value_heads=1)), 4, 0, 3),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_selections_take_what_they_say_from_every_block(name: str) -> None:
    build, weights, biases, mlp = ARCHITECTURES[name]
    names = [parameter for parameter, _ in build().named_parameters()]
    for selection, count in {"attention": weights, "attention-biases": biases, "mlp": mlp}.items():
        if count:
            assert len(select_names(names, selection, name)) == 2 * count, selection
    assert select_names(names, "full", name) == names
    both = select_names(names, "attention-with-biases", name)
    assert len(both) == 2 * (weights + biases)
    assert set(select_names(names, "attention", name)) <= set(both)


# What two blocks of each family have (of Swin four, of ALBERT one): weights and biases of attention, tensors
# of the MLP; and what the whole model has of embeddings and of a head.
FAMILIES: dict[str, tuple[int, int, int, int, int]] = {
    "albert": (4, 4, 4, 3, 3),
    "bart": (24, 24, 16, 3, 0),
    "bloom": (4, 4, 8, 1, 0),
    "clip": (16, 16, 16, 3, 0),
    "deberta-v2": (8, 8, 8, 3, 1),
    "deepseek_v3": (10, 0, 6, 1, 1),
    "dinov2": (8, 8, 8, 1, 0),
    "falcon": (4, 0, 4, 1, 0),
    "gemma3_text": (8, 0, 6, 1, 0),
    "gpt2": (4, 4, 8, 2, 0),
    "gpt_neox": (4, 4, 8, 1, 1),
    "llama": (8, 0, 6, 1, 1),
    "mixtral": (8, 0, 6, 1, 1),
    "modernbert": (4, 0, 4, 1, 0),
    "mpt": (4, 0, 4, 1, 0),
    "opt": (8, 8, 8, 2, 0),
    "phi3": (4, 0, 4, 1, 1),
    "qwen2": (8, 6, 6, 1, 1),
    "qwen3_next": (6, 0, 14, 1, 1),
    "siglip": (18, 18, 20, 3, 0),
    "swin": (16, 16, 16, 0, 0),
    "t5": (24, 0, 8, 1, 0),
    "vit": (8, 8, 8, 1, 0),
    "wav2vec2": (8, 8, 8, 0, 2),
    "xlnet": (8, 0, 8, 1, 1),
}


@pytest.mark.parametrize("name", FAMILIES)
def test_selections_of_a_family_are_complete(name: str) -> None:
    with torch.device("meta"):
        family = families()[name]
        names = [parameter for parameter, _ in family.model_class(family.config()).named_parameters()]
    chosen = ("attention", "attention-biases", "mlp", "embeddings", "head")
    found = {
        selection: select_names(names, selection, name) if count else []
        for selection, count in zip(chosen, FAMILIES[name], strict=True)
    }
    assert tuple(map(len, found.values())) == FAMILIES[name]
    rest = {*names} - {*found["embeddings"], *found["head"]}
    assert set(select_names(names, "body", name)) == rest
    assert len({one for held in found.values() for one in held}) == sum(FAMILIES[name])  # none is in two
    assert not any("norm" in one.lower() for held in found.values() for one in held)


NO_ATTENTION = {
    *("bamba", "convnext", "convnextv2", "dinov3_convnext", "falcon_mamba", "fnet", "focalnet"),
    *("glm_image_vqmodel", "granitemoehybrid", "levit", "lfm3", "lfm3_vl", "lfm3_vl_vision", "mamba"),
    *("mamba2", "nemotron_h", "patchtsmixer", "poolformer", "pp_lcnet", "recurrent_gemma", "regnet"),
    *("resnet", "sam3_lite_text_text_model", "textnet", "xlstm"),
}
"""Families without attention, with none in the blocks that a tiny model has, or with one of other names."""


@pytest.mark.skipif("TASKVEC_ARCHITECTURES" not in os.environ, reason="all families: make architectures")
@pytest.mark.parametrize("name", families() if "TASKVEC_ARCHITECTURES" in os.environ else [])
def test_attention_is_found_wherever_it_is(name: str) -> None:
    try:
        small = count_parameters(families()[name]) <= LARGEST
        with torch.device("meta"):
            network = families()[name].model_class(families()[name].config()) if small else None
    except Exception as error:
        pytest.skip(f"cannot be built tiny ({type(error).__name__})")
    if network is None:
        pytest.skip("not tiny")
    names = [parameter for parameter, _ in network.named_parameters()]
    if name in NO_ATTENTION:
        with pytest.raises(InputError, match="leaves nothing to train"):
            select_names(names, "attention", name)
    else:
        assert select_names(names, "attention", name)


def test_an_output_layer_that_shares_the_embeddings_goes_by_their_name() -> None:
    with pytest.raises(
        InputError, match=r"'head' leaves nothing .* goes by their name; choose another: full, emb"
    ):
        select_names(["transformer.wte.weight", "transformer.ln_f.weight"], "head", "gpt2")


def test_t5_has_cross_attention_too() -> None:
    model = T5Model(T5Config(d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, **SMALL))
    names = [name for name, _ in model.named_parameters()]
    assert len(select_names(names, "attention", "t5")) == 4 * (2 + 2 + 2)
    assert len(select_names(names, "mlp", "t5")) == 2 * 4


def test_fused_projections_of_torch_are_attention() -> None:
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    names = [f"layers.{n}.{name}" for n in range(2) for name, _ in layer.named_parameters()]
    assert select_names(names, "attention", "torch")[:2] == [
        "layers.0.self_attn.in_proj_weight",
        "layers.0.self_attn.out_proj.weight",
    ]
    assert len(select_names(names, "attention-biases", "torch")) == 4
    assert len(select_names(names, "mlp", "torch")) == 8


def test_open_clip_names_are_known() -> None:
    block = "visual.transformer.resblocks.0"
    attention = [f"{block}.attn.in_proj_weight", f"{block}.attn.out_proj.weight"]
    others = [f"{block}.attn.in_proj_bias", f"{block}.mlp.c_fc.weight", f"{block}.ln_1.weight", "visual.proj"]
    assert select_names([*others, *attention], "attention", "open_clip") == attention


@pytest.mark.parametrize(
    "other", ["self_attn.q_norm.weight", "attention.output.LayerNorm.weight", "attn.ln.weight"]
)
def test_norms_inside_attention_are_not_projections(other: str) -> None:
    with pytest.raises(InputError):
        select_names([f"layers.0.{other}"], "attention", "model")


def test_a_pattern_matches_whole_names() -> None:
    assert select_names(["a.weight", "a.weight.more", "b.weight"], r"re:a\..*ght", "model") == ["a.weight"]


def test_a_selection_that_trains_nothing_is_an_error() -> None:
    with pytest.raises(InputError, match="nothing to train of 1 parameters"):
        select_names(["conv.weight"], "attention", "model")


def test_every_selection_that_the_message_offers_is_taken_by_training(evaluator: tv.Evaluator) -> None:
    with pytest.raises(InputError) as refused:
        tv.finetune(evaluator.backbone, evaluator.part("pets"), regime="re:nowhere")
    _, advice = str(refused.value).split("choose another: ")
    offered, pattern = advice.split(" or ")
    assert pattern == "re:PATTERN"
    settings = tv.TrainSettings(steps=1, batch_size=4)
    for selection in (*offered.split(", "), r"re:.*layer\.1\..*query\.weight"):
        for space in ("ordinary", "tangent"):
            regime = selection if space == "ordinary" else f"tangent-{selection}"
            if regime == "tangent-full":
                regime = "tangent"
            part = evaluator.part("pets")
            vector = tv.finetune(evaluator.backbone, part, regime=regime, settings=settings)
            assert (vector.info.regime, vector.info.space) == (regime, space)
            moved = {name for name in vector if bool(vector[name].any())}
            assert moved and moved <= set(select(evaluator.backbone, selection))


@pytest.mark.parametrize(
    ("regime", "complaint"),
    [
        ("atention", "did you mean 'attention'"),
        ("mlps", "did you mean 'mlp'"),
        ("tangent-full", "no regime called 'tangent-full'; did you mean"),
        ("re:(", "regime 're:\\(': .* is not a regular expression"),
    ],
)
def test_a_regime_that_is_none_is_refused_with_what_there_is(regime: str, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        regime_called(regime)


def test_an_unknown_selection_names_the_nearest() -> None:
    with pytest.raises(InputError, match="did you mean 'attention'"):
        select_names(["conv.weight"], "atention", "model")


def test_a_broken_pattern_is_an_error() -> None:
    with pytest.raises(InputError, match="not a regular expression"):
        select_names(["conv.weight"], "re:(", "model")
