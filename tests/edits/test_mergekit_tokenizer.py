"""mergekit's ``tokenizer_source`` and ``tokenizer``: rows, files and config of what is written."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor

from taskvec.edits.merge import Merge
from taskvec.edits.opening import open_recipe, save_merge
from taskvec.errors import InputError
from taskvec.vectors import TaskVector
from taskvec.weights import open_weights
from vocabularies import CHAT, WORDS, loaded, save_base, save_tokenizer, save_tuned

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ORDERS = {
    "base": WORDS,
    "same": WORDS,
    "chat": [*WORDS, *CHAT],
    "turned": [*CHAT, *WORDS[::-1]],
    "third": [*WORDS, "<third>"],
}


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = save_base(tmp_path / "base")
    for seed, name in enumerate(["same", "chat", "turned", "third"], start=1):
        save_tuned(base, tmp_path / name, "llama", ORDERS[name], seed=seed)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def opened(models: Sequence[str], method: str = "linear", **content: Any) -> Merge:
    listed = [{"model": name, "parameters": {"weight": 1.0}} for name in models]
    Path("m.yaml").write_text(yaml.safe_dump({"merge_method": method, "models": listed, **content}))
    return open_recipe("m.yaml")


def row(model: str, token: str, name: str = EMBEDDING) -> Tensor:
    return open_weights(model)[name][ORDERS[model].index(token)]


def mean(models: Sequence[str], token: str, name: str = EMBEDDING) -> Tensor:
    return torch.stack([row(model, token, name).double() for model in models]).mean(0).float()


def check_rows(
    made: Merge, tokens: Sequence[str], expected: Mapping[str, Sequence[str]], usual: Sequence[str]
) -> None:
    """Each row is the mean over some models, the same for all tokens but those in ``expected``."""
    for name in (EMBEDDING, HEAD):
        whole = made.weights[name]
        assert len(whole) == len(tokens)
        for place, token in enumerate(tokens):
            torch.testing.assert_close(
                whole[place], mean(expected.get(token, usual), token, name), rtol=0, atol=1e-6
            )


# Sources


@pytest.mark.parametrize("source", ["base", "./base", "same"])
@pytest.mark.parametrize("key", ["tokenizer_source", "tokenizer"])
def test_the_tokens_of_the_base_leave_rows_where_they_are(source: str, key: str, models: Path) -> None:
    content: dict[str, Any] = {key: source if key == "tokenizer_source" else {"source": source}}
    made = opened(["base", "same"], base_model="base", **content)
    check_rows(made, WORDS, {}, ["base", "same"])
    assert made.like.folder == Path("same" if source == "same" else "base")


@pytest.mark.parametrize("source", ["chat", "turned", "third"])
@pytest.mark.parametrize("base", [None, "base"])
def test_the_tokens_of_a_model_come_in_its_order_with_its_files(
    source: str, base: str | None, models: Path
) -> None:
    merged = ["base", source, "same"]
    made = opened(merged, tokenizer_source=source, dtype="float32", **({"base_model": base} if base else {}))
    own = {token: [source] for token in ORDERS[source] if token not in WORDS}
    check_rows(made, ORDERS[source], own, merged)
    save_merge(made, "out")
    network, rows = loaded("llama", Path("out"))
    assert list(rows) == ORDERS[source] or sorted(rows, key=rows.__getitem__) == ORDERS[source]
    assert network.config.vocab_size == len(rows)
    assert Path("out/tokenizer.json").read_bytes() == Path(source, "tokenizer.json").read_bytes()


def test_without_a_base_a_token_that_some_lack_is_the_mean_of_those_that_have_it(models: Path) -> None:
    made = opened(["same", "chat", "turned"], tokenizer_source="chat")
    check_rows(made, ORDERS["chat"], dict.fromkeys(CHAT, ("chat", "turned")), ["same", "chat", "turned"])


def test_a_union_without_a_base_begins_with_the_first_model(models: Path) -> None:
    made = opened(["third", "chat"], tokenizer={"source": "union"})
    tokens = [*WORDS, "<third>", *CHAT]
    # `save_tokenizer` makes them pieces of the vocabularies: they become added tokens
    check_rows(made, tokens, {"<third>": ["third"], **dict.fromkeys(CHAT, ("chat",))}, ["third", "chat"])
    save_merge(made, "out")
    _, rows = loaded("llama", Path("out"))
    assert sorted(rows, key=rows.__getitem__) == tokens


def test_a_tokenizer_that_is_not_merged_keeps_the_config_of_the_base(models: Path) -> None:
    save_tokenizer([CHAT[0], *WORDS[3:], WORDS[0]], models / "tokenizer")
    made = opened(["base", "chat"], base_model="base", tokenizer_source="tokenizer")
    tokens = [CHAT[0], *WORDS[3:], WORDS[0]]
    check_rows(made, tokens, {CHAT[0]: ["chat"]}, ["base", "chat"])
    assert not [note for note in made.notes if "left behind" in note]
    (models / "base" / "added_tokens.json").write_text("{}")
    save_merge(opened(["base", "chat"], base_model="base", tokenizer_source="tokenizer"), "out")
    network, rows = loaded("llama", Path("out"))
    assert sorted(rows, key=rows.__getitem__) == tokens
    assert network.config.vocab_size == len(tokens)
    assert not Path("out/added_tokens.json").exists()


def test_an_adapter_may_be_applied_before_tokens_are_matched(models: Path) -> None:
    vector = TaskVector.between(open_weights("base"), open_weights("same"))
    vector.save("v.safetensors")
    made = opened(["base+v.safetensors", "chat"], tokenizer_source="union")
    check_rows(made, ORDERS["chat"], dict.fromkeys(CHAT, ("chat",)), ["same", "chat"])


@pytest.mark.parametrize("method", ["task_arithmetic", "ties", "dare_linear", "della_linear"])
def test_methods_with_a_base_see_its_rows_for_tokens_that_a_model_lacks(method: str, models: Path) -> None:
    made = opened(
        ["chat", "third"], method, base_model="base", tokenizer_source="union", parameters={"density": 1.0}
    )
    whole = made.weights[EMBEDDING]
    for place, token in enumerate([*CHAT, "<third>"], start=len(WORDS)):
        torch.testing.assert_close(whole[place], row("third" if token == "<third>" else "chat", token))


# Rows by hand


def test_rows_by_hand(models: Path) -> None:
    rows = {
        "word1": {"source": "chat", "force": True},
        "word2": {"source": {"kind": "zero"}, "force": True},
        "word3": {"source": {"kind": "model_token", "model": "chat", "token": CHAT[0]}, "force": True},
        "word4": {"source": {"kind": "model_token", "model": "base", "token_id": 9}, "force": True},
        "word5": {"source": "chat"},
        CHAT[1]: {"source": {"kind": "model_token", "model": "base", "token": "word7"}},
        "<new>": {"source": {"kind": "model_token", "model": "chat", "token": "word8"}},
        "<none>": {"source": {"kind": "zero"}},
    }
    made = opened(["base", "chat"], base_model="base", tokenizer={"source": "union", "tokens": rows})
    tokens = [*ORDERS["chat"], "<new>", "<none>"]
    whole = dict(zip(tokens, made.weights[EMBEDDING], strict=True))
    expected = {
        "word1": row("chat", "word1"),
        "word2": torch.zeros(16),
        "word3": row("chat", CHAT[0]),
        "word4": row("base", WORDS[9]),
        "word5": mean(["base", "chat"], "word5"),
        CHAT[0]: row("chat", CHAT[0]),
        CHAT[1]: (row("chat", CHAT[1]) + row("base", "word7")) / 2,
        "<new>": row("chat", "word8"),
        "<none>": torch.zeros(16),
    }
    for token, value in expected.items():
        torch.testing.assert_close(whole[token], value, msg=token)
    save_merge(made, "out")
    _, held = loaded("llama", Path("out"))
    assert held["<none>"] == len(tokens) - 1


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"source": "third"}, "token 'word1': its row is of third, expected one of the merged models"),
        ({"source": {"kind": "model_token", "model": "base", "token_id": 99}}, "base has no row 99"),
        (
            {"source": {"kind": "model_token", "model": "base", "token": CHAT[0]}},
            "base has no token '<start>'",
        ),
    ],
)
def test_a_row_that_is_not_there_is_refused(row: dict[str, Any], said: str, models: Path) -> None:
    with pytest.raises(InputError, match=said):
        opened(["base", "chat"], tokenizer={"source": "base", "tokens": {"word1": row}})


def test_a_new_token_needs_a_row(models: Path) -> None:
    with pytest.raises(InputError, match="token '<new>' is in no model, expected a source of its row"):
        opened(["base", "chat"], tokenizer={"source": "base", "tokens": {"<new>": {}}})


# Rows behind


@pytest.mark.parametrize(
    ("source", "multiple", "size"), [("base", 8, 24), ("union", 16, 32), ("chat", 5, 25)]
)
def test_rows_up_to_a_multiple_are_means_and_the_config_follows(
    source: str, multiple: int, size: int, models: Path
) -> None:
    tokenizer = {"source": source, "pad_to_multiple_of": multiple}
    save_merge(opened(["base", "chat"], base_model="base", tokenizer=tokenizer), "out")
    network, rows = loaded("llama", Path("out"))
    assert network.config.vocab_size == size
    for name in (EMBEDDING, HEAD):
        whole = open_weights("out")[name]
        assert len(whole) == size
        behind = whole[: len(rows)].mean(0).expand(size - len(rows), -1)
        torch.testing.assert_close(whole[len(rows) :], behind, rtol=0, atol=1e-6)


def test_rows_to_spare_give_way_to_the_multiple(models: Path) -> None:
    save_tuned(Path("base"), models / "spare", "llama", [*WORDS, *CHAT], padding=20)
    made = opened(["base", "spare"], tokenizer={"source": "spare", "pad_to_multiple_of": 8})
    assert made.weights.spec(EMBEDDING).shape[0] == 24
    assert json.loads(made.files["config.json"])["vocab_size"] == 24


def test_slices_are_filled_up_too(models: Path) -> None:
    slices = [{"sources": [{"model": name, "layer_range": [0, 2]}]} for name in ("base", "same")]
    content = {"merge_method": "passthrough", "slices": slices}
    tokenizer = {"source": "base", "pad_to_multiple_of": 8, "tokens": {"<new>": {"source": {"kind": "zero"}}}}
    Path("m.yaml").write_text(yaml.safe_dump({**content, "tokenizer": tokenizer}))
    save_merge(open_recipe("m.yaml"), "out")
    network, rows = loaded("llama", Path("out"))
    assert (network.config.vocab_size, network.config.num_hidden_layers, len(rows)) == (24, 4, 22)
    torch.testing.assert_close(open_weights("out")[EMBEDDING][:21], open_weights("base")[EMBEDDING])
    torch.testing.assert_close(open_weights("out")[HEAD][:21], open_weights("same")[HEAD])


@pytest.mark.parametrize("models_merged", [["chat", "third"], ["third", "chat", "same"]])
def test_a_union_that_no_tokenizer_can_hold_names_the_key_to_change(
    models: Path, models_merged: Sequence[str]
) -> None:
    for name in ORDERS:  # tokenizers as libraries saved them before tokenizer.json
        words = {token: place for place, token in enumerate(ORDERS[name])}
        (models / name / "vocab.json").write_text(json.dumps(words))
        (models / name / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"tokenizer_source: union: no model .* use tokenizer_source: base$"):
        opened(models_merged, tokenizer_source="union", base_model="base")
    made = opened(models_merged, tokenizer_source="base", base_model="base", parameters={"weight": 1})
    assert len(made.weights[EMBEDDING]) == len(WORDS)


def test_rows_without_known_tokens_beside_a_union_name_the_key(models: Path) -> None:
    (models / "third" / "tokenizer.json").unlink()
    with pytest.raises(InputError, match=r"third: 1 rows more than the base.* use tokenizer_source: base$"):
        opened(["base", "third"], tokenizer_source="union", base_model="base")
