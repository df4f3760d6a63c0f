"""Tokens and their rows, from files that are read as data."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import BPE, Unigram, WordLevel, WordPiece

from taskvec.edits.tokens import add_tokens, read_tokens
from taskvec.edits.vocabulary import align
from taskvec.errors import CorruptFile
from taskvec.weights import open_weights
from vocabularies import save_base

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
    assert read_tokens(tmp_path) == tokenizer.get_vocab(with_added_tokens=True)


def test_tokens_of_plain_vocabularies(tmp_path: Path) -> None:
    assert read_tokens(None) is None
    assert read_tokens(tmp_path) is None
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\nä\n\u2028\n", encoding="utf-8")
    assert read_tokens(tmp_path) == {"[PAD]": 0, "[UNK]": 1, "ä": 2, "\u2028": 3}
    (tmp_path / "vocab.json").write_text('{"x": 1, "y": 0}')
    (tmp_path / "added_tokens.json").write_text('{"z": 2}')
    (tmp_path / "tokenizer_config.json").write_text(
        '{"added_tokens_decoder": {"2": {"content": "z"}, "3": {"content": "<t>"}}}'
    )
    assert read_tokens(tmp_path) == {"x": 1, "y": 0, "z": 2, "<t>": 3}
    (tmp_path / "bpe.codes").write_text("")
    assert read_tokens(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("tokenizer.json", "{", "not valid JSON"),
        ("tokenizer.json", "[]", "holds a list, expected a mapping"),
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
        read_tokens(tmp_path)


def test_no_code_beside_the_weights_is_run(tmp_path: Path) -> None:
    base = save_base(tmp_path / "base")
    shutil.copytree(base, tmp_path / "tuned")
    (tmp_path / "tuned" / "tokenization_own.py").write_text("raise SystemExit('was run')")
    (tmp_path / "tuned" / "tokenizer_config.json").write_text(
        '{"auto_map": {"AutoTokenizer": ["tokenization_own.Own", null]}}'
    )
    assert align(open_weights(base), [open_weights(tmp_path / "tuned")]).notes == ()


def test_added_tokens_follow_pieces_of_any_kind(tmp_path: Path) -> None:
    for kind, make in TOKENIZERS.items():
        tokenizer = Tokenizer(make())
        tokenizer.add_special_tokens(["<s>"])
        folder = tmp_path / kind
        folder.mkdir()
        tokenizer.save(str(folder / "tokenizer.json"))
        entry = {"content": "<new>", "special": False, "lstrip": False, "rstrip": False}
        texts = add_tokens(folder, [{**entry, "normalized": False, "single_word": False, "id": 0}], 9)
        extended = Tokenizer.from_str(texts["tokenizer.json"])
        known = tokenizer.get_vocab()
        assert extended.get_vocab() == {**known, "<new>": len(known)}
        assert extended.encode("a<new>a").tokens == ["a", "<new>", "a"]
        assert set(texts) == {"tokenizer.json"}


def test_a_tokenizer_with_gaps_is_not_extended(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 2}}}')
    assert add_tokens(tmp_path, [{"content": "c"}], 4) == {}
    (tmp_path / "tokenizer.json").write_text('{"model": {"vocab": {"a": 0, "b": 1}}}')
    (tmp_path / "config.json").write_text('{"text_config": {"vocab_size": 2}, "vocab_size": 2, "name": "x"}')
    texts = add_tokens(tmp_path, [{"content": "c"}], 3)
    assert json.loads(texts["config.json"]) == {
        "text_config": {"vocab_size": 3},
        "vocab_size": 3,
        "name": "x",
    }
    (tmp_path / "added_tokens.json").write_text('{"d": 2}')
    assert add_tokens(tmp_path, [{"content": "c"}], 4) == {}
