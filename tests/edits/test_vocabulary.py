"""Embeddings of different size and order: every row goes with its token."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import ViTConfig, ViTModel

from checkpoints import SHAPE
from taskvec.edits.vocabulary import Vocab, align
from taskvec.errors import InputError, KeyMismatch
from taskvec.vectors import TaskVector, combine
from taskvec.weights import Weights, open_weights
from taskvec.weights.in_memory import MemoryWeights
from vocabularies import CHAT, WORDS, save_tokenizer

# Rows against a dictionary from tokens to rows, in float64.


def in_memory(folder: Path, tokens: Sequence[str] | None, rows: Tensor, **more: Tensor) -> Weights:
    folder.mkdir(parents=True, exist_ok=True)
    if tokens is not None:
        save_tokenizer(tokens, folder)
    return MemoryWeights(folder.name, {"embed_tokens.weight": rows, **more}, folder=folder)


@settings(deadline=None)  # it writes files
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
    base, tuned, rows, *_ = align(models["base"], [models["one"], models["two"]], vocab)
    target = "base" if vocab == "base" else "one"
    assert rows == len(tensors[target])

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


@pytest.mark.parametrize("axis", [0, 1])
def test_rows_of_tensors_of_more_than_two_axes_are_not_taken_for_tokens(tmp_path: Path, axis: int) -> None:
    rows = torch.arange(24.0).reshape(12, 2)
    table = torch.arange(72.0).reshape(12, 2, 3).movedim(0, axis).contiguous()
    base = in_memory(tmp_path / "base", WORDS[:10], rows[:10], table=table.narrow(axis, 0, 10))
    tuned = in_memory(tmp_path / "tuned", WORDS[2:10] + WORDS[:2] + CHAT, rows, table=table)
    view = align(base, [tuned], "base").tuned[0]
    moved = table.index_select(axis, torch.tensor([8, 9, *range(8)]))
    assert torch.equal(view["table"], moved)
    assert torch.equal(view.read("table", slice(3, 17)), moved.reshape(-1, 3)[3:17])


def test_where_nothing_has_to_move_the_weights_are_the_very_same(tmp_path: Path) -> None:
    rows = torch.randn(10, 2)
    base = in_memory(tmp_path / "base", WORDS[:10], rows)
    tuned = in_memory(tmp_path / "tuned", WORDS[:10], rows + 0.1)
    for vocab in ("base", "union", "intersection"):
        views = align(base, [tuned], vocab)
        assert views.base is base
        assert views.tuned == (tuned,)
        assert views.notes == ()


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
    return "; ".join(align(base, tuned, vocab).notes)


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


def test_a_union_that_no_tokenizer_can_hold_is_refused(tmp_path: Path) -> None:
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


@pytest.mark.parametrize(
    "name",
    ["model.layers.0.mlp.up_proj.weight", "h.11.ln_1.bias", "model.norm.weight", "transformer.ln_f.bias"],
)
def test_a_tensor_of_a_layer_or_a_norm_may_be_as_long_as_the_vocabulary(name: str, tmp_path: Path) -> None:
    rows, other = torch.randn(10, 2), {name: torch.randn(10)}
    base = in_memory(tmp_path / "base", WORDS[:10], rows, **other)
    turned = in_memory(tmp_path / "turned", WORDS[9::-1], rows, **other)
    view = align(base, [turned]).tuned[0]
    assert torch.equal(view["embed_tokens.weight"], rows.flip(0))
    assert torch.equal(view[name], other[name])


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
    assert align(model, [model]).record["tensors"] == ["decoder.embed_tokens.weight"]
