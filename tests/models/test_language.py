"""Language models: logits against transformers, padding, names, ties, tokens and their bytes."""

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.testing import assert_close

from language_models import CAUSAL, TEXT, WITH_ENCODER, save_language_model
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.models.language import LanguageModel, Passage
from taskvec.models.loading import load_backbone
from taskvec.models.selection import select

PASSAGES = [Passage([5, 6, 7], [8, 9]), Passage([3], [4]), Passage([20, 30], [40, 50, 60, 70, 80])]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def loaded(kind: str) -> LanguageModel:
        folder = save_language_model(tmp_path_factory.mktemp(kind), kind)
        backbone = load_backbone(folder, outputs="tokens")
        assert isinstance(backbone, LanguageModel)
        return backbone

    return loaded


def by_transformers(backbone: LanguageModel, passage: Passage) -> Tensor:
    """The logits of the target's tokens, one passage at a time, without padding."""
    if backbone.encodes:
        start: int = backbone.network.config.decoder_start_token_id  # type: ignore[union-attr, assignment]
        read = torch.tensor([[start, *passage.target[:-1]]])
        out = backbone.network(input_ids=torch.tensor([passage.context]), decoder_input_ids=read)
        return out.logits[0]  # type: ignore[no-any-return]
    whole = torch.tensor([passage.context + passage.target])
    logits: Tensor = backbone.network(input_ids=whole).logits[0]
    return logits[len(passage.context) - 1 : -1]


@pytest.mark.parametrize("kind", [*CAUSAL, *WITH_ENCODER])
def test_rows_are_the_logits_of_transformers_whatever_the_batch(kind: str, model: Any) -> None:
    backbone = model(kind)
    backbone.network.double()
    try:
        with torch.no_grad():
            rows = backbone(**backbone.stack(PASSAGES))
            expected = torch.cat([by_transformers(backbone, passage) for passage in PASSAGES])
    finally:
        backbone.network.float()
    assert rows.shape == (8, backbone.dim)
    assert_close(rows, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [*CAUSAL, *WITH_ENCODER])
def test_parameters_are_those_of_the_checkpoint_each_once(kind: str, tmp_path: Path) -> None:
    stored = load_file(save_language_model(tmp_path, kind) / "model.safetensors")
    backbone = load_backbone(tmp_path, outputs="tokens")
    parameters = backbone.encoder_parameters()
    assert parameters.keys() == {name for name, value in stored.items() if name != "final_logits_bias"}
    assert len({id(value) for value in parameters.values()}) == len(parameters)
    for name, value in parameters.items():
        assert torch.equal(value.detach(), stored[name])


@pytest.mark.parametrize("kind", ["gpt2", "tied", "t5", "bart"])
def test_a_tied_matrix_is_edited_as_embedding_and_as_head(kind: str, model: Any) -> None:
    backbone: Backbone = model(kind)
    [name] = [
        n
        for n in backbone.encoder_parameters()
        if n.endswith(("wte.weight", "embed_tokens.weight", "shared.weight"))
    ]
    moved = backbone.encoder_parameters()[name].detach().clone()
    moved[100] += 1.0  # the embedding of a token that no passage holds
    batch = backbone.stack(PASSAGES)
    with torch.no_grad():
        before, after = backbone(**batch), encode(backbone, {name: moved}, batch)
    assert (after - before)[:, 100].abs().min() > 0
    assert_close(after[:, :100], before[:, :100])


def test_a_tie_under_the_head_s_name_keeps_the_checkpoint_s_name(tmp_path: Path) -> None:
    folder = save_language_model(tmp_path, "tied")
    stored = load_file(folder / "model.safetensors")
    stored["lm_head.weight"] = stored.pop("model.embed_tokens.weight")
    save_file(stored, folder / "model.safetensors", {"format": "pt"})
    parameters = load_backbone(folder, outputs="tokens").encoder_parameters()
    assert parameters.keys() == stored.keys()
    assert torch.equal(parameters["lm_head.weight"].detach(), stored["lm_head.weight"])


@pytest.mark.parametrize("kind", WITH_ENCODER)
def test_tables_of_relative_positions_are_shared_by_the_layers(kind: str, model: Any) -> None:
    tables = [name for name in model(kind).encoder_parameters() if "relative_attention_bias" in name]
    assert len(tables) == (2 if kind == "t5" else 0)


@pytest.mark.parametrize(
    ("kind", "layers"), [("gpt2", 2), ("llama", 4), ("qwen2", 4), ("opt", 4), ("t5", 4), ("bart", 4)]
)
def test_attention_of_every_layer_is_selected(kind: str, layers: int, model: Any) -> None:
    stacks = {"t5": 6, "bart": 6}.get(kind, 2)  # encoder, decoder and what joins them
    assert len(select(model(kind), "attention")) == layers * stacks


def test_a_text_is_tokenised_with_what_its_tokenizer_puts_around_it(model: Any) -> None:
    plain, begun, ended = (model(kind).tokenise("the cat") for kind in ("gpt2", "llama", "t5"))
    assert begun.tokens == [1, *plain.tokens] and ended.tokens == [*plain.tokens, 2]
    assert begun.sizes[0] == 0 == ended.sizes[-1]


@pytest.mark.parametrize("text", [TEXT, "tête", "日本\n\n語 🦜 ", "", " ", "\r\n\tx"])
def test_sizes_are_the_bytes_of_the_text(text: str, model: Any) -> None:
    tokens, sizes = model("llama").tokenise(text)
    assert sum(sizes) == len(text.encode()) or not text
    assert len(sizes) == len(tokens) and min(sizes, default=0) >= 0


def test_a_long_text_is_tokenised_whole_and_without_a_word(
    model: Any, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    assert len(model("gpt2").tokenise("cat " * 5000).tokens) >= 5000
    assert not caplog.records and not recwarn.list


def test_the_number_of_positions_is_known(model: Any) -> None:
    found = {kind: model(kind).positions for kind in ("gpt2", "llama", "t5", "bloom", "bart")}
    assert found == {"gpt2": 64, "llama": 64, "t5": None, "bloom": None, "bart": 64}


def test_a_language_model_gives_no_features(model: Any) -> None:
    with pytest.raises(InputError, match="outputs='features'"):
        model("gpt2").embed_text(["a"])


def test_models_that_read_both_ways_are_refused(bert_folder: Path, clip_folder: Path) -> None:
    for folder in (bert_folder, clip_folder):
        with pytest.raises(InputError, match=r"config\.json: .*no language model"):
            load_backbone(folder, outputs="tokens")


def test_an_encoder_of_the_same_checkpoint_gives_features(tmp_path: Path) -> None:
    backbone = load_backbone(save_language_model(tmp_path, "gpt2"))
    assert backbone.outputs == "features" and backbone.embed_text(["the cat"]).shape == (1, 16)


@pytest.mark.parametrize("kind", CAUSAL)
def test_no_hook_is_left_behind(kind: str, model: Any) -> None:
    backbone = model(kind)
    backbone(**backbone.example())
    assert not any(module._forward_pre_hooks for module in backbone.modules())
