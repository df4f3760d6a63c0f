"""A vocabulary asked for in detail: of a model or a tokenizer, with rows given to tokens, and rows behind."""

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer
from torch import Tensor

from edits.test_vocabulary import in_memory
from taskvec.edits.vocabulary import Given, Wanted, align
from taskvec.errors import InputError
from taskvec.weights import Weights
from vocabularies import CHAT, WORDS, save_tokenizer

NAME = "embed_tokens.weight"
CORE = WORDS[:8]


def rows(seed: int, number: int) -> Tensor:
    return torch.randn(number, 3, generator=torch.Generator().manual_seed(seed))


def models(place: Path, *orders: Sequence[str], spare: int = 0) -> list[Weights]:
    return [
        in_memory(place / f"m{seed}", order, rows(seed, len(order) + spare))
        for seed, order in enumerate(orders)
    ]


def row_of(model: Weights, order: Sequence[str], token: str) -> Tensor:
    return model[NAME][list(order).index(token)]


ORDERS = {
    "more tokens": [*CORE, *CHAT],
    "other rows": [*CHAT, *reversed(CORE)],
    "fewer tokens": [*CORE[3:], CHAT[0]],
    "those of the base": CORE,
}


@pytest.mark.parametrize("kind", ORDERS)
def test_rows_come_in_the_order_of_the_model_that_is_named(kind: str, tmp_path: Path) -> None:
    order = ORDERS[kind]
    base, other, third = models(tmp_path, CORE, order, CORE[::-1])
    seen = align(base, [other, third], Wanted(other))
    assert seen.like is other
    assert torch.equal(seen.tuned[0][NAME], other[NAME])
    expected = {
        token: row_of(base, CORE, token) if token in CORE else row_of(other, order, token) for token in order
    }
    assert torch.equal(seen.base[NAME], torch.stack(list(expected.values())))
    mine = [row_of(third, CORE[::-1], token) if token in CORE else expected[token] for token in order]
    assert torch.equal(seen.tuned[1][NAME], torch.stack(mine))


def test_without_a_base_a_token_that_some_lack_is_the_mean_of_the_others(tmp_path: Path) -> None:
    held = models(tmp_path, [*CORE, *CHAT], [*CORE, *CHAT], CORE)
    lifted = align(held[0], held[1:], Wanted("union", based=False)).tuned[1][NAME]
    assert torch.equal(lifted[8:], (held[0][NAME][8:] + held[1][NAME][8:]) / 2)
    based = align(held[0], held[1:], Wanted("union")).tuned[1][NAME]
    assert torch.equal(based[8:], held[0][NAME][8:])


def test_a_folder_with_a_tokenizer_alone_names_the_tokens(tmp_path: Path) -> None:
    base, other = models(tmp_path, CORE, [*CORE, CHAT[0]])
    (tmp_path / "m0" / "config.json").write_text('{"vocab_size": 8, "model_type": "x"}')
    (tmp_path / "m0" / "added_tokens.json").write_text("{}")
    order = [CHAT[1], CHAT[0], *CORE[::-1]]
    source = in_memory(tmp_path / "tokenizer", order, torch.zeros(0, 3))
    seen = align(base, [other], Wanted(source))
    assert seen.like is base
    assert json.loads(seen.files["config.json"])["vocab_size"] == seen.rows == 10
    assert Tokenizer.from_str(seen.files["tokenizer.json"]).get_vocab() == {t: n for n, t in enumerate(order)}
    assert torch.equal(seen.base[NAME][2:], base[NAME].flip(0))
    assert torch.equal(seen.base[NAME][1], other[NAME][8])
    assert not seen.tuned[0][NAME][0].any(), "a token of no model has a row of zeros"
    assert any("of no model, rows of zeros" in note for note in seen.notes)


def test_an_unrelated_tokenizer_is_refused(tmp_path: Path) -> None:
    base, other = models(tmp_path, CORE, CORE)
    source = in_memory(tmp_path / "tokenizer", [CORE[0], *"abcdefghijk"], torch.zeros(0, 3))
    with pytest.raises(InputError, match="tokenizer: 1 of 8 tokens are those of m0"):
        align(base, [other], Wanted(source))


@pytest.mark.parametrize("force", [True, False])
@pytest.mark.parametrize("of", [None, WORDS[2], 5])
def test_a_token_gets_the_row_it_is_given(of: str | int | None, force: bool, tmp_path: Path) -> None:
    base, other = models(tmp_path, CORE, [*CORE, *CHAT])
    token = CORE[6] if of is None else CHAT[0]
    given = Given(base if of is None else other, of, force)
    seen = align(base, [other], Wanted("union", {token: given}))
    row = {None: base[NAME][6], WORDS[2]: other[NAME][2], 5: other[NAME][5]}[of]
    at = CORE.index(token) if of is None else 8
    assert torch.equal(seen.base[NAME][at], row)
    assert torch.equal(seen.tuned[0][NAME][at], row if force else other[NAME][at])
    assert torch.equal(seen.tuned[0][NAME][:6], other[NAME][:6])


@pytest.mark.parametrize("source", ["base", "union"])
@pytest.mark.parametrize("of", [None, CORE[1]])
def test_a_new_token_is_added_behind_the_others(source: str, of: str | None, tmp_path: Path) -> None:
    base, other = models(tmp_path, CORE, CORE)
    given = Given(None) if of is None else Given(other, of)
    seen = align(base, [other], Wanted("union" if source == "union" else "base", {"<new>": given}))
    assert Tokenizer.from_str(seen.files["tokenizer.json"]).token_to_id("<new>") == 8
    row = torch.zeros(3) if of is None else other[NAME][1]
    for view, model in ((seen.base, base), (seen.tuned[0], other)):
        assert torch.equal(view[NAME], torch.cat([model[NAME], row[None]]))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (("model", "<none>"), "m1 has no token '<none>'"),
        (("model", 99), "m1 has no row 99, expected one of its 8 rows"),
        (("stranger", None), "its row is of stranger, expected one of the merged models"),
        (None, "is in no model, expected a source of its row"),
    ],
)
def test_a_row_that_is_not_to_be_had_is_refused(
    given: tuple[str, str | int | None] | None, said: str, tmp_path: Path
) -> None:
    base, other = models(tmp_path, CORE, CORE)
    stranger = in_memory(tmp_path / "stranger", CORE, rows(7, 8))
    wanted = None if given is None else Given(other if given[0] == "model" else stranger, given[1])
    with pytest.raises(InputError, match=said):
        align(base, [other], Wanted("base", {"<new>": wanted}))


@pytest.mark.parametrize(("multiple", "size"), [(4, 12), (5, 10), (16, 16), (1, 10)])
@pytest.mark.parametrize("spare", [0, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rows_behind_the_tokens_are_the_mean_of_all(
    multiple: int, size: int, spare: int, dtype: torch.dtype, tmp_path: Path
) -> None:
    order = [*CORE, *CHAT]
    tensor, other = rows(1, len(order) + spare).to(dtype), rows(2, 7).T.contiguous()
    base = in_memory(tmp_path / "base", order, tensor, **{"lm_head.weight": tensor + 1, "score": other})
    seen = align(base, [], Wanted("base", multiple=multiple))
    assert seen.rows == size
    whole = seen.base[NAME]
    oracle = tensor[:10].double().mean(0).to(dtype).expand(size - 10, 3)
    assert torch.equal(whole, torch.cat([tensor[:10], oracle]))
    assert torch.equal(seen.base.read(NAME, slice(9, size)), whole[9:])
    assert torch.equal(seen.base.read(NAME, slice(size - 1, size)), whole[-1:])
    assert seen.base["lm_head.weight"].shape == (size, 3)
    assert torch.equal(seen.base["score"], other), "a tensor that is no embedding stays"


def test_a_bias_and_a_side_that_is_not_the_first_are_filled_up_too(tmp_path: Path) -> None:
    base = in_memory(
        tmp_path / "m0", CORE, rows(0, 8), bias=torch.arange(8.0), table=rows(1, 8).T.contiguous()
    )
    order = [*CORE, *CHAT]
    other = in_memory(
        tmp_path / "m1", order, rows(2, 10), bias=torch.arange(10.0), table=rows(3, 10).T.contiguous()
    )
    seen = align(base, [other], Wanted("union", multiple=4))
    view = seen.tuned[0]
    torch.testing.assert_close(view["bias"], torch.tensor([*range(10), 4.5, 4.5]))
    mean = other["table"].mean(1, keepdim=True)
    torch.testing.assert_close(view["table"], torch.cat([other["table"], mean, mean], 1))
    torch.testing.assert_close(view.read("table", slice(1, 3)), view["table"][1:3])


def test_pieces_of_other_vocabularies_become_added_tokens_if_asked_for(tmp_path: Path) -> None:
    one, two = models(tmp_path, [*CORE, "left"], [*CORE, "right"])
    with pytest.raises(InputError, match="no model has exactly its 10 tokens"):
        align(one, [two], "union")
    seen = align(one, [two], Wanted("union", rewritten=True))
    assert Tokenizer.from_str(seen.files["tokenizer.json"]).token_to_id("right") == 9
    assert torch.equal(seen.base[NAME], torch.cat([one[NAME], two[NAME][8:]]))


def test_tokens_without_rows_give_way_to_those_of_a_union(tmp_path: Path) -> None:
    one, two = models(tmp_path, CORE, [*CORE, *CHAT])
    save_tokenizer(CORE, tmp_path / "m0")
    tokenizer = Tokenizer.from_file(str(tmp_path / "m0" / "tokenizer.json"))
    tokenizer.add_tokens(["<unused0>", "<unused1>"])
    tokenizer.save(str(tmp_path / "m0" / "tokenizer.json"))
    third = in_memory(tmp_path / "m2", [*CORE, "<third>"], rows(3, 9))
    seen = align(one, [two, third], Wanted("union", rewritten=True))
    made = Tokenizer.from_str(seen.files["tokenizer.json"])
    assert [made.id_to_token(row) for row in range(8, 11)] == [*CHAT, "<third>"]
    assert made.get_vocab_size() == seen.rows == 11
