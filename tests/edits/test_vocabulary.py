"""Embeddings of different size and order: every row goes with its token."""

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertForMaskedLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    ViTConfig,
    ViTModel,
)

from checkpoints import SHAPE
from taskvec.cli import main
from taskvec.edits.tokens import tokens_of
from taskvec.edits.vocabulary import Vocab, align
from taskvec.errors import CorruptFile, InputError, KeyMismatch
from taskvec.vectors import TaskVector, apply, combine
from taskvec.weights import Weights, open_weights, save_weights
from taskvec.weights.source import MemoryWeights

WORDS = ["[UNK]", *(f"word{number}" for number in range(20))]
CHAT = ["<start>", "<end>"]


def llama(size: int) -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(vocab_size=size, max_position_embeddings=8, **SHAPE))


def gpt2(size: int) -> GPT2LMHeadModel:
    config = GPT2Config(
        vocab_size=size, n_positions=8, n_embd=16, n_layer=2, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return GPT2LMHeadModel(config)


def bert(size: int) -> BertForMaskedLM:
    return BertForMaskedLM(BertConfig(vocab_size=size, max_position_embeddings=8, **SHAPE))


KINDS: dict[str, tuple[Callable[[int], Any], Any]] = {
    "llama": (llama, AutoModelForCausalLM),
    "gpt2": (gpt2, AutoModelForCausalLM),
    "bert": (bert, AutoModelForMaskedLM),
}


def save_tokenizer(tokens: Sequence[str], folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    words = {token: row for row, token in enumerate(tokens)}
    Tokenizer(WordLevel(words, unk_token="[UNK]")).save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


def save_base(folder: Path, kind: str = "llama", tokens: Sequence[str] = WORDS, padding: int = 0) -> Path:
    torch.manual_seed(0)
    KINDS[kind][0](len(tokens) + padding).save_pretrained(folder)
    save_tokenizer(tokens, folder)
    return folder


def save_tuned(
    base: Path, folder: Path, kind: str, tokens: Sequence[str], padding: int = 0, seed: int = 1
) -> Path:
    """The base's network moved a little, its rows in the order of ``tokens``; new tokens are random."""
    own = list(tokens_of(base) or {})
    start = KINDS[kind][1].from_pretrained(base).state_dict()
    torch.manual_seed(seed)
    network = KINDS[kind][0](len(tokens) + padding)
    state = network.state_dict()
    with torch.no_grad():
        for name, value in state.items():
            if value.shape == start[name].shape and value.shape[0] != len(own):
                value.copy_(start[name] + 0.01 * torch.randn(value.shape))
            else:
                for row, token in enumerate(tokens):
                    if token in own:
                        value[row] = start[name][own.index(token)]
                value.add_(0.01 * torch.randn(value.shape))
    network.save_pretrained(folder)
    save_tokenizer(tokens, folder)
    return folder


def aligned_edit(base: Path, tuned: Path, target: Path, vocab: Vocab = "base") -> Path:
    views = align(open_weights(base), [open_weights(tuned)], vocab)
    return save_weights(apply(views.base, TaskVector.between(views.base, views.tuned[0])), target)


def loaded(kind: str, folder: Path) -> tuple[Any, dict[str, int]]:
    network, info = KINDS[kind][1].from_pretrained(folder, output_loading_info=True)
    assert not any(info[what] for what in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return network.eval(), tokenizer.get_vocab()


@torch.no_grad()
def logits(kind: str, folder: Path, text: Sequence[str], over: Sequence[str]) -> Tensor:
    """What the model says of the tokens ``over`` after each token of ``text``."""
    network, rows = loaded(kind, folder)
    out: Tensor = network(input_ids=torch.tensor([[rows[token] for token in text]])).logits
    return out[0][:, [rows[token] for token in over]]


ORDERS: dict[str, Sequence[str]] = {
    "two more": [*WORDS, *CHAT],
    "two more in front": [*CHAT, *WORDS],
    "five fewer": WORDS[:-5],
    "shuffled": [WORDS[0], *reversed(WORDS[1:])],
    "one exchanged": [*WORDS[:-1], "<new>"],
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("order", ORDERS)
def test_the_edited_model_says_of_common_tokens_what_the_tuned_one_says(
    order: str, kind: str, tmp_path: Path
) -> None:
    tokens = ORDERS[order]
    base = save_base(tmp_path / "base", kind)
    tuned = save_tuned(base, tmp_path / "tuned", kind, tokens)
    edited = aligned_edit(base, tuned, tmp_path / "edited")
    common = [token for token in WORDS if token in tokens]
    text = common[3:8]
    assert torch.equal(logits(kind, edited, text, common), logits(kind, tuned, text, common))
    network, rows = loaded(kind, edited)
    assert list(rows) and rows == {token: row for row, token in enumerate(WORDS)}
    assert network.config.vocab_size == len(WORDS)


@pytest.mark.parametrize("kind", KINDS)
def test_a_token_that_the_tuned_model_lacks_keeps_the_row_of_the_base(kind: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", kind)
    tuned = save_tuned(base, tmp_path / "tuned", kind, [*CHAT, *WORDS[:-5]])
    edited = loaded(kind, aligned_edit(base, tuned, tmp_path / "edited"))[0].get_input_embeddings().weight
    start = loaded(kind, base)[0].get_input_embeddings().weight
    end = loaded(kind, tuned)[0].get_input_embeddings().weight
    assert torch.equal(edited[-5:], start[-5:])
    assert torch.equal(edited[:-5], end[2:])


@pytest.mark.parametrize("kind", KINDS)
def test_a_union_has_the_new_tokens_as_the_model_that_has_them(kind: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", kind)
    tokens = [*CHAT, *WORDS]
    tuned = save_tuned(base, tmp_path / "tuned", kind, tokens)
    other = save_tuned(base, tmp_path / "other", kind, WORDS[:15], seed=2)
    start, *ends = map(open_weights, (base, tuned, other))
    views = align(start, ends, "union")
    half = 0.5 * TaskVector.between(views.base, views.tuned[0])
    quarter = 0.25 * TaskVector.between(views.base, views.tuned[1])
    edited = save_weights(apply(views.base, half + quarter), tmp_path / "edited")
    network, rows = loaded(kind, edited)
    assert rows == {token: row for row, token in enumerate(tokens)}
    assert network.config.vocab_size == len(tokens)
    found = network.get_input_embeddings().weight.double()
    b, t, o = (loaded(kind, path)[0].get_input_embeddings().weight.double() for path in (base, tuned, other))
    assert torch.equal(found[:2], t[:2]), "one model alone has these: its rows, whatever the coefficient"
    torch.testing.assert_close(found[17:], b[15:] + 0.5 * (t[17:] - b[15:]), rtol=0, atol=1e-6)
    expected = b[:15] + 0.5 * (t[2:17] - b[:15]) + 0.25 * (o - b[:15])
    torch.testing.assert_close(found[2:17], expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_an_intersection_has_the_tokens_of_all(kind: str, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", kind)
    tuned = save_tuned(base, tmp_path / "tuned", kind, WORDS[:-5])
    edited = aligned_edit(base, tuned, tmp_path / "edited", "intersection")
    network, rows = loaded(kind, edited)
    assert network.config.vocab_size == len(rows) == len(WORDS) - 5
    common = WORDS[:-5]
    assert torch.equal(logits(kind, edited, common[:4], common), logits(kind, tuned, common[:4], common))


def test_the_bias_of_logits_of_bart_goes_with_the_tokens(tmp_path: Path) -> None:
    """It lies along the second axis."""
    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_ffn_dim": 32,
        "decoder_ffn_dim": 32,
    }
    heads: dict[str, Any] = {"encoder_attention_heads": 2, "decoder_attention_heads": 2}
    config = BartConfig(vocab_size=21, d_model=16, max_position_embeddings=8, **shape, **heads)
    network = BartForConditionalGeneration(config)
    network.save_pretrained(tmp_path / "base")
    bias = torch.arange(23.0)[None]
    network.resize_token_embeddings(23, mean_resizing=False)
    network.final_logits_bias.copy_(bias)
    network.save_pretrained(tmp_path / "tuned")
    save_tokenizer(WORDS, tmp_path / "base")
    save_tokenizer([*CHAT, *WORDS], tmp_path / "tuned")
    start, end = open_weights(tmp_path / "base"), open_weights(tmp_path / "tuned")
    views = align(start, [end])
    assert views.base is start
    assert torch.equal(views.tuned[0].read("final_logits_bias"), bias[:, 2:])
    wider = align(start, [end], "union").base
    assert torch.equal(wider.read("final_logits_bias"), torch.tensor([[0.0, 1.0, *[0.0] * 21]]))
    assert torch.equal(wider.read("final_logits_bias", slice(0, 1)), wider.read("final_logits_bias"))


# Rows against a dictionary from tokens to rows, in float64.


def in_memory(folder: Path, tokens: Sequence[str] | None, rows: Tensor, **more: Tensor) -> Weights:
    folder.mkdir(parents=True, exist_ok=True)
    if tokens is not None:
        save_tokenizer(tokens, folder)
    return MemoryWeights(folder.name, {"embed_tokens.weight": rows, **more}, folder=folder)


@given(data=st.data())
def test_every_row_is_the_one_that_the_tokens_say(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place = tmp_path_factory.mktemp("rows")
    vocab: Vocab = data.draw(st.sampled_from(["base", "union"]))
    core = WORDS[:8]
    ours = data.draw(st.permutations(core))
    one = data.draw(st.permutations([*core, *CHAT]))
    two = data.draw(st.permutations(data.draw(st.sampled_from([core, core[:5], [*core, CHAT[1]]]))))
    orders = {"base": ours, "one": one, "two": two}
    dtype = data.draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64]))
    tensors = {
        name: torch.randn(len(order) + data.draw(st.integers(0, 2)), 3, dtype=torch.float64).to(dtype)
        for name, order in orders.items()
    }
    models = {name: in_memory(place / name, order, tensors[name]) for name, order in orders.items()}
    base, tuned, facts = align(models["base"], [models["one"], models["two"]], vocab)
    target = "base" if vocab == "base" else "one"
    assert facts["rows"] == len(tensors[target])

    def expected(name: str, row: int) -> Tensor:
        if row >= len(orders[target]):  # padding: by number, where the model has padding there too
            own = name if len(orders[name]) <= row < len(tensors[name]) else None
            based = "base" if len(orders["base"]) <= row < len(tensors["base"]) else None
            others = [n for n in orders if len(orders[n]) <= row < len(tensors[n])]
        else:
            token = orders[target][row]
            own = name if token in orders[name] else None
            based = "base" if token in orders["base"] else None
            others = [n for n in orders if token in orders[n]]
            row = -1
        who = [own] if own else [based] if based else others
        values = [tensors[n][row if row >= 0 else orders[n].index(token)].double() for n in who]
        return torch.stack(values).mean(0)

    for name, view in zip(orders, (base, *tuned), strict=True):
        whole = view.read("embed_tokens.weight")
        oracle = torch.stack([expected(name, row) for row in range(len(tensors[target]))])
        torch.testing.assert_close(whole.double(), oracle.to(dtype).double(), rtol=1e-6, atol=0)
        start = data.draw(st.integers(0, len(whole) - 1))
        stop = data.draw(st.integers(start + 1, len(whole)))
        assert torch.equal(view.read("embed_tokens.weight", slice(start, stop)), whole[start:stop])


def test_a_token_of_two_models_only_is_their_mean_in_the_base_and_in_the_third(tmp_path: Path) -> None:
    rows = torch.arange(24.0).reshape(12, 2)
    base = in_memory(tmp_path / "base", WORDS[:10], rows[:10])
    one = in_memory(tmp_path / "one", [*WORDS[:10], *CHAT], rows)
    two = in_memory(tmp_path / "two", [*WORDS[:10], *CHAT], rows + 1)
    three = in_memory(tmp_path / "three", WORDS[:10], rows[:10] - 1)
    views = align(base, [one, two, three], "union")
    for view in (views.base, views.tuned[2]):
        assert torch.equal(view.read("embed_tokens.weight")[10:], rows[10:] + 0.5)
    total = combine("sum", [TaskVector.between(views.base, tuned) for tuned in views.tuned])
    assert torch.equal(total["embed_tokens.weight"][10:], torch.zeros(2, 2))


def test_where_nothing_has_to_move_the_weights_are_the_very_same(tmp_path: Path) -> None:
    rows = torch.randn(10, 2)
    base = in_memory(tmp_path / "base", WORDS[:10], rows)
    tuned = in_memory(tmp_path / "tuned", WORDS[:10], rows + 0.1)
    for vocab in ("base", "union", "intersection"):
        views = align(base, [tuned], vocab)
        assert views.base is base
        assert views.tuned == (tuned,)
        assert views.facts["notes"] == []


def test_views_of_other_rows_are_other_weights_and_of_the_same_the_same(tmp_path: Path) -> None:
    rows = torch.randn(10, 2)
    base = in_memory(tmp_path / "base", WORDS[:10], rows)
    tuned = in_memory(tmp_path / "tuned", WORDS[9::-1], rows)
    again = align(base, [tuned]).tuned[0]
    assert align(base, [tuned]).tuned[0].identity == again.identity != tuned.identity
    assert again.fingerprint() == align(base, [tuned]).tuned[0].fingerprint() != tuned.fingerprint()


def test_whole_numbers_of_a_token_are_copied_not_averaged(tmp_path: Path) -> None:
    table = torch.tensor([[2**60 + row] for row in range(12)])
    rows = torch.randn(12, 2)
    base = in_memory(tmp_path / "base", WORDS[:10], rows[:10], routes=table[:10])
    ends = [in_memory(tmp_path / n, [*WORDS[:10], *CHAT], rows, routes=table + k) for k, n in enumerate("ab")]
    views = align(base, ends, "union")
    assert torch.equal(views.base.read("routes"), table)
    assert torch.equal(views.tuned[1].read("routes"), table + 1)


# What is said, and what is refused.


def notes(base: Weights, *tuned: Weights, vocab: Vocab = "base") -> str:
    return "; ".join(align(base, tuned, vocab).facts["notes"])


def test_what_is_left_out_lacking_moved_or_assumed_is_said(tmp_path: Path) -> None:
    rows = torch.randn(12, 2)
    base = in_memory(tmp_path / "base", WORDS[:10], rows[:10])
    more = in_memory(tmp_path / "more", [*CHAT, *WORDS[:10]], rows.roll(2, 0))
    said = notes(base, more)
    assert "more: token '<end>' and 1 more left out, not in the vocabulary of base" in said
    assert "more: 10 tokens stand in other rows than in base" in said
    said = notes(base, more, vocab="union")
    assert "base: token '<end>' and 1 more lacking, set to the mean of the models that have them" in said
    fewer = in_memory(tmp_path / "fewer", WORDS[:9], rows[:9])
    assert "fewer: token 'word8' lacking, taken as unchanged" in notes(base, fewer)
    silent = in_memory(tmp_path / "silent", None, rows)
    assert "silent: rows matched by number, no tokenizer file tells the tokens of silent" in notes(
        base, silent
    )
    assert "silent: 2 rows without a known token left out" in notes(base, silent)
    assert "no tokenizer file tells the tokens of silent" in notes(silent, base)
    short = in_memory(tmp_path / "short", WORDS[:10], rows[:9])
    assert "short: 1 tokens of its tokenizer have no row" in notes(base, short)


def test_without_tokenizers_rows_go_by_number(tmp_path: Path) -> None:
    rows = torch.randn(12, 2)
    small, large = in_memory(tmp_path / "a", None, rows[:10]), in_memory(tmp_path / "b", None, rows + 0.01)
    assert torch.equal(align(small, [large]).tuned[0].read("embed_tokens.weight"), (rows + 0.01)[:10])
    wider = align(small, [large], "union")
    assert torch.equal(wider.base.read("embed_tokens.weight")[10:], (rows + 0.01)[10:])
    assert wider.base.folder == large.folder
    assert len(align(large, [small], "intersection").base.read("embed_tokens.weight")) == 10


def test_tuned_models_that_name_their_tokens_are_matched_with_each_other_over_a_base_that_does_not(
    tmp_path: Path,
) -> None:
    rows = torch.randn(10, 2)
    base = in_memory(tmp_path / "base", None, rows)
    one = in_memory(tmp_path / "one", WORDS[:10], rows + 0.01)
    two = in_memory(tmp_path / "two", [WORDS[1], WORDS[0], *WORDS[2:10]], rows[[1, 0, *range(2, 10)]] + 0.02)
    views = align(base, [one, two])
    torch.testing.assert_close(views.tuned[1].read("embed_tokens.weight"), rows + 0.02)


def refused(base: Weights, *tuned: Weights, vocab: Vocab = "base") -> str:
    with pytest.raises(InputError) as caught:
        align(base, tuned, vocab)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_a_union_that_no_tokenizer_holds_is_refused(tmp_path: Path) -> None:
    rows = torch.randn(11, 2)
    base = in_memory(tmp_path / "base", WORDS[:10], rows[:10])
    one = in_memory(tmp_path / "one", [*WORDS[:10], CHAT[0]], rows)
    two = in_memory(tmp_path / "two", [*WORDS[:10], CHAT[1]], rows)
    message = refused(base, one, two, vocab="union")
    assert "no model has exactly its 12 tokens (one lacks '<end>')" in message
    assert "use --vocab base" in message
    assert align(base, [one, two], "intersection").base is base
    less = in_memory(tmp_path / "less", WORDS[1:10], rows[1:10])
    message = refused(less, in_memory(tmp_path / "c", WORDS[:9], rows[:9]), vocab="intersection")
    assert "(less has beyond them 'word8')" in message


def test_unnamed_rows_of_a_union_are_refused(tmp_path: Path) -> None:
    rows = torch.randn(12, 2)
    message = refused(
        in_memory(tmp_path / "base", WORDS[:10], rows[:10]),
        in_memory(tmp_path / "x", None, rows),
        vocab="union",
    )
    assert "x: 2 rows more than the base and no tokenizer files" in message


def test_rows_that_are_not_alike_are_not_matched_by_number(tmp_path: Path) -> None:
    rows = torch.randn(20, 8)
    base = in_memory(tmp_path / "base", None, rows)
    message = refused(base, in_memory(tmp_path / "other", None, rows.roll(1, 0)))
    assert (
        "other: rows of 'embed_tokens.weight' are not those of base by number (0 of 20 compared are)"
        in message
    )


def test_tokenizers_that_cannot_be_read_must_be_the_same_file(tmp_path: Path) -> None:
    rows = torch.randn(10, 2)
    models = [in_memory(tmp_path / name, None, rows) for name in "ab"]
    for name in "ab":
        (tmp_path / name / "tokenizer.model").write_bytes(b"pieces")
    assert align(models[0], models[1:]).tuned == (models[1],)
    (tmp_path / "b" / "tokenizer.model").write_bytes(b"other pieces")
    assert "tokenizer.model differs from that of a and is not read" in refused(*models)


def test_a_vocabulary_of_another_kind_is_refused(tmp_path: Path) -> None:
    rows = torch.randn(10, 2)
    base = in_memory(tmp_path / "base", WORDS[:10], rows)
    other = in_memory(tmp_path / "other", [*WORDS[:4], *"abcdef"], rows)
    assert "other: 4 of 10 tokens are those of base, expected at least half" in refused(base, other)


def test_a_config_at_odds_with_the_weights_is_refused(tmp_path: Path) -> None:
    model = in_memory(tmp_path / "m", WORDS[:10], torch.randn(10, 2))
    (tmp_path / "m" / "config.json").write_text('{"text_config": {"vocab_size": 12}}')
    message = refused(model, model)
    assert "m: 'embed_tokens.weight' has 10 rows, config.json says vocab_size 12" in message


def test_a_head_of_another_size_than_the_embedding_is_refused(tmp_path: Path) -> None:
    base = in_memory(
        tmp_path / "base", WORDS[:10], torch.randn(10, 2), **{"lm_head.weight": torch.randn(10, 2)}
    )
    tuned = in_memory(
        tmp_path / "tuned", [*WORDS[:10], *CHAT], torch.randn(12, 2), **{"lm_head.weight": torch.randn(10, 2)}
    )
    with pytest.raises(KeyMismatch, match=r"tuned: 'lm_head.weight' has shape \(10, 2\), expected 12 rows"):
        align(base, [tuned])


def test_an_unknown_tensor_as_long_as_the_vocabulary_is_refused_when_tokens_move(tmp_path: Path) -> None:
    rows, extra = torch.randn(10, 2), {"prior": torch.randn(10)}
    base = in_memory(tmp_path / "base", WORDS[:10], rows, **extra)
    same = in_memory(tmp_path / "same", WORDS[:10], rows, **extra)
    assert align(base, [same]).tuned == (same,)
    turned = in_memory(tmp_path / "turned", WORDS[9::-1], rows, **extra)
    assert "base: 'prior' has a side of 10, as many as tokens" in refused(base, turned)


def test_a_classifier_of_other_classes_is_left_to_the_check_of_shapes(tmp_path: Path) -> None:
    rows = torch.randn(12, 2)
    base = in_memory(tmp_path / "base", WORDS[:10], rows[:10], score=torch.randn(3, 2))
    tuned = in_memory(tmp_path / "tuned", [*WORDS[:10], *CHAT], rows, score=torch.randn(4, 2))
    views = align(base, [tuned])
    with pytest.raises(KeyMismatch, match="'score' has shape"):
        TaskVector.between(views.base, views.tuned[0])


def test_a_model_without_tokens_is_refused(tmp_path: Path) -> None:
    ViTModel(ViTConfig(image_size=8, patch_size=4, **SHAPE)).save_pretrained(tmp_path)
    assert "no embedding of tokens found" in refused(open_weights(tmp_path), open_weights(tmp_path))


def test_embeddings_of_several_sizes_need_a_config(tmp_path: Path) -> None:
    model = in_memory(
        tmp_path / "m", None, torch.randn(10, 2), **{"decoder.embed_tokens.weight": torch.randn(12, 2)}
    )
    assert "has 10 rows and 'decoder.embed_tokens.weight' 12, expected one vocabulary" in refused(
        model, model
    )
    (tmp_path / "m" / "config.json").write_text('{"vocab_size": 12}')
    assert align(model, [model]).facts["tensors"] == ["decoder.embed_tokens.weight"]


# Tokens from files.

TOKENIZERS: dict[str, Callable[[], Any]] = {
    "words": lambda: WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"),
    "pairs": lambda: BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]),
    "pieces": lambda: WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"),
    "scored": lambda: Unigram([("<unk>", 0.0), ("a", -1.0), ("b", -2.0)], 0),
}


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_tokens_are_those_that_the_tokenizer_knows(kind: str, tmp_path: Path) -> None:
    tokenizer = Tokenizer(TOKENIZERS[kind]())
    tokenizer.add_special_tokens(["<s>", "a"])
    tokenizer.add_tokens(["new"])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert tokens_of(tmp_path) == tokenizer.get_vocab(with_added_tokens=True)


def test_tokens_of_plain_vocabularies(tmp_path: Path) -> None:
    assert tokens_of(None) is None
    assert tokens_of(tmp_path) is None
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nä\n\u2028\n", encoding="utf-8")
    assert tokens_of(tmp_path) == {"[PAD]": 0, "[UNK]": 1, "ä": 2, "\u2028": 3}
    (tmp_path / "vocab.json").write_text('{"x": 1, "y": 0}')
    (tmp_path / "added_tokens.json").write_text('{"z": 2}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"2": {"content": "z"}, "3": {"content": "<t>"}}}'
    )
    assert tokens_of(tmp_path) == {"x": 1, "y": 0, "z": 2, "<t>": 3}
    (tmp_path / "bpe.codes").write_text("")
    assert tokens_of(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", "{", "not valid JSON"),
        ("tokenizer.json", "[]", "holds list, expected a mapping"),
        ("tokenizer.json", '{"model": {}}', "'model.vocab' is missing"),
        ("tokenizer.json", '{"model": {"vocab": {"a": "0"}}}', "token 'a' has row '0'"),
        ("tokenizer.json", '{"model": {"vocab": [1]}}', "expected token and score"),
        ("tokenizer.json", '{"model": {"vocab": {"a": 0}}, "added_tokens": [3]}', "'added_tokens' holds 3"),
        ("vocab.json", '{"a": -1}', "token 'a' has row -1"),
    ],
)
def test_damaged_tokenizer_files_are_named(name: str, text: str, said: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(CorruptFile, match=said):
        tokens_of(tmp_path)


def test_no_code_beside_the_weights_is_run(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    shutil.copytree(base, tmp_path / "tuned")
    (tmp_path / "tuned" / "tokenization_own.py").write_text("raise SystemExit('was run')")
    (tmp_path / "tuned" / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["tokenization_own.Own", null]}}'
    )
    assert align(open_weights(base), [open_weights(tmp_path / "tuned")]).facts["notes"] == []


# On the command line.


def run(*arguments: object) -> int:
    with pytest.raises(SystemExit) as done:
        main((*map(str, arguments),))
    return int(done.value.code or 0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_merge_of_a_union_writes_a_model_of_all_tokens(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tmp_path / "base", kind)
    tokens = [*CHAT, *WORDS]
    save_tuned(base, tmp_path / "chat", kind, tokens)
    save_tuned(base, tmp_path / "short", kind, WORDS[:15], seed=2)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "base: base\nmodels: {chat: chat, short: short}\nexpression: 0.5*chat + 0.25*short\nvocab: union\n"
    )
    assert run("merge", recipe, "-o", tmp_path / "union") == 0
    said = capsys.readouterr().err
    assert f"note: {base}: token '<end>' and 1 more lacking, set to the mean of the models" in said
    network, rows = loaded(kind, tmp_path / "union")
    assert rows == {token: row for row, token in enumerate(tokens)}
    assert network.config.vocab_size == len(tokens)
    start, *ends = map(open_weights, (base, tmp_path / "chat", tmp_path / "short"))
    views = align(start, ends, "union")
    name = views.facts["tensors"][0]
    wide = [view.read(name).double() for view in (views.base, *views.tuned)]
    expected = wide[0] + 0.5 * (wide[1] - wide[0]) + 0.25 * (wide[2] - wide[0])
    written = open_weights(tmp_path / "union")
    torch.testing.assert_close(written[name].double(), expected, rtol=1e-6, atol=1e-7)
    manifest = json.loads((tmp_path / "union" / "taskvec.json").read_text())
    assert manifest["vocabulary"]["vocab"] == "union"
    assert manifest["inputs"]["base"]["fingerprint"] == open_weights(base).fingerprint()

    assert run("merge", recipe, "-o", tmp_path / "plain", "--vocab", "base", "-q") == 0
    assert loaded(kind, tmp_path / "plain")[0].config.vocab_size == len(WORDS)
    text = WORDS[2:6]
    half = logits(kind, tmp_path / "plain", text, WORDS)
    assert bool(half.isfinite().all())


def test_a_mean_without_a_base_in_one_vocabulary(tmp_path: Path) -> None:
    base = save_base(tmp_path / "a")
    save_tuned(base, tmp_path / "b", "llama", [*CHAT, *WORDS])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("models: {a: a, b: b}\nrule: mean\nvocab: union\n")
    assert run("merge", recipe, "-o", tmp_path / "mean", "-q") == 0
    name = "model.embed_tokens.weight"
    a, b, mean = (open_weights(tmp_path / folder)[name] for folder in ("a", "b", "mean"))
    torch.testing.assert_close(mean[2:], (a + b[2:]) / 2)
    torch.testing.assert_close(mean[:2], b[:2])


def test_stored_vectors_are_bound_to_the_vocabulary_of_the_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tmp_path / "base")
    tuned = save_tuned(base, tmp_path / "tuned", "llama", [*CHAT, *WORDS])
    assert run("diff", base, tuned, "--vocab", "base", "-o", tmp_path / "v.safetensors") == 0
    assert "2 rows" not in capsys.readouterr().err
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "base: base\nvectors: {v: v.safetensors}\nmodels: {t: tuned}\n"
        "expression: 0.5*v + 0.5*t\nvocab: union\n"
    )
    assert run("merge", recipe, "-o", tmp_path / "out") == 2
    assert "'v' is of the vocabulary of the base; use base" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    assert run("merge", recipe, "-o", tmp_path / "out", "--vocab", "base", "-q") == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_diff_in_the_vocabulary_of_the_base_applies_to_the_base(
    kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tmp_path / "base", kind)
    tuned = save_tuned(base, tmp_path / "tuned", kind, [*CHAT, *WORDS])
    vector = tmp_path / "v.safetensors"
    assert run("diff", base, tuned, "-o", vector) == 2
    assert "--vocab base" in capsys.readouterr().err
    assert run("diff", base, tuned, "--vocab", "base", "-o", vector, "--json") == 0
    assert f"note: {tuned}: token '<end>' and 1 more left out" in capsys.readouterr().err
    assert run("apply", base, "-v", f"v={vector}", "-o", tmp_path / "edited", "-q") == 0
    text = WORDS[2:7]
    torch.testing.assert_close(
        logits(kind, tmp_path / "edited", text, WORDS), logits(kind, tuned, text, WORDS), rtol=1e-4, atol=1e-6
    )
