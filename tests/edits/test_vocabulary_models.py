"""Models of different vocabularies, edited: they load in transformers and know every token as they should."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import AddedToken, Tokenizer
from transformers import AutoTokenizer, BartConfig, BartForConditionalGeneration

from taskvec.cli import main
from taskvec.edits.vocabulary import Vocab, align
from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights, save_weights
from vocabularies import CHAT, KINDS, WORDS, loaded, logits, save_base, save_tokenizer, save_tuned


def aligned_edit(base: Path, tuned: Path, target: Path, vocab: Vocab = "base") -> Path:
    views = align(open_weights(base), [open_weights(tuned)], vocab)
    return save_weights(apply(views.base, TaskVector.between(views.base, views.tuned[0])), target)


ORDERS: dict[str, Sequence[str]] = {
    "two more": [*WORDS, *CHAT],
    "two more in front": [*CHAT, *WORDS],
    "five fewer": WORDS[:-5],
    "shuffled": [WORDS[0], *reversed(WORDS[1:])],
    "one exchanged": [*WORDS[:-1], "<new>"],
}


@pytest.mark.parametrize(
    ("order", "kind"),
    [*((order, "llama") for order in ORDERS), ("two more in front", "gpt2"), ("shuffled", "bert")],
)
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
    name = views.record["tensors"][0]
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


def add_tokens(folder: Path, *tokens: str) -> None:
    """As users add them, to the tokenizer in a folder."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in tokens])
    tokenizer.save(str(folder / "tokenizer.json"))


@pytest.mark.parametrize(("kind", "padding"), [("llama", 0), ("llama", 1), ("gpt2", 5), ("bert", 5)])
def test_a_union_of_added_tokens_that_no_model_has_whole_extends_the_tokenizer_of_the_base(
    kind: str, padding: int, tmp_path: Path
) -> None:
    base = save_base(tmp_path / "base", kind, padding=padding)
    for folder, seed, new in (("one", 1, CHAT), ("two", 2, ["<pad>"])):
        save_tuned(base, tmp_path / folder, kind, [*WORDS, *new], seed=seed)
        save_tokenizer(WORDS, tmp_path / folder)
        add_tokens(tmp_path / folder, *new)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: base\nmodels: {one: one, two: two}\nexpression: one + 0*two\nvocab: union\n")
    assert run("merge", recipe, "-o", tmp_path / "out", "-q") == 0
    network, rows = loaded(kind, tmp_path / "out")
    assert rows == {token: row for row, token in enumerate([*WORDS, *CHAT, "<pad>"])}
    assert network.config.vocab_size == max(len(WORDS) + padding, len(rows))
    text = [*WORDS[3:6], *CHAT]
    torch.testing.assert_close(
        logits(kind, tmp_path / "out", text, [*WORDS, *CHAT]),
        logits(kind, tmp_path / "one", text, [*WORDS, *CHAT]),
    )
    two = loaded(kind, tmp_path / "two")[0].get_input_embeddings().weight
    assert torch.equal(network.get_input_embeddings().weight[rows["<pad>"]], two[len(WORDS)])
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer.tokenize("word3<end><pad>") == ["word3", "<end>", "<pad>"]
    assert (tmp_path / "out" / "config.json").stat().st_size > 0


@pytest.mark.parametrize("padding", [0, 5])
def test_a_mergekit_union_of_added_tokens_has_a_config_that_fits(padding: int, tmp_path: Path) -> None:
    base = save_base(tmp_path / "base", padding=padding)
    for folder, seed, new in (("one", 1, CHAT), ("two", 2, ["<pad>"])):
        save_tuned(base, tmp_path / folder, "llama", [*WORDS, *new], seed=seed)
        save_tokenizer(WORDS, tmp_path / folder)
        add_tokens(tmp_path / folder, *new)
    recipe = tmp_path / "mergekit.yaml"
    models = "".join(
        f"  - {{model: {tmp_path / name}, parameters: {{weight: 0.5}}}}\n" for name in ("one", "two")
    )
    recipe.write_text(
        f"merge_method: task_arithmetic\nbase_model: {base}\nmodels:\n{models}"
        "dtype: bfloat16\ntokenizer_source: union\n"
    )
    assert run("merge", recipe, "-o", tmp_path / "out", "-q") == 0
    network, rows = loaded("llama", tmp_path / "out")
    assert rows == {token: row for row, token in enumerate([*WORDS, *CHAT, "<pad>"])}
    assert network.config.vocab_size == len(network.get_input_embeddings().weight) == max(24, 21 + padding)
    assert network.dtype == torch.bfloat16


def test_tokens_in_other_rows_are_refused_without_a_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = save_base(tmp_path / "base")
    moved = save_tuned(base, tmp_path / "moved", "llama", ORDERS["shuffled"])
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("base: base\nmodels: {moved: moved}\n")
    capsys.readouterr()
    for command in (["diff", base, moved, "-o", tmp_path / "v"], ["merge", recipe, "-o", tmp_path / "out"]):
        assert run(*command) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert "token 'word19' has row 1, expected 20 as in" in said
        assert "(19 more); match the rows by token (--vocab base)" in said
        assert not Path(str(command[-1])).exists()
        assert run(*command, "--vocab", "base", "-q") == 0
        capsys.readouterr()


def test_a_reserved_token_that_got_a_name_stands_where_it_stood(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    named = save_tuned(base, tmp_path / "named", "llama", [*WORDS[:-1], "<start>"])
    assert run("diff", base, named, "-o", tmp_path / "v", "-q") == 0
    name = "model.embed_tokens.weight"
    delta = open_weights(named)[name] - open_weights(base)[name]
    torch.testing.assert_close(TaskVector.load(tmp_path / "v")[name], delta)
