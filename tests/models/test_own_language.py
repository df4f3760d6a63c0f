"""A causal language model of one's own: training, tangent space, rows by a plain loop."""

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

import taskvec as tv
from language_models import TEXT, save_byte_tokenizer, save_language_model
from models.own_networks import BLANK, Causal, pixels
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.decoding import Decoding, continuations
from taskvec.models.language import Passage
from taskvec.models.loading import load_backbone
from taskvec.tasks.source import SPLITS

CONTEXT = 16


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("tokens")
    save_byte_tokenizer(folder, begin=True)
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture
def model(tokenizer: Any) -> Backbone:
    torch.manual_seed(0)
    return tv.wrap(Causal(len(tokenizer)), tokenizer=tokenizer, positions=32)


@pytest.fixture
def task(tmp_path: Path) -> tv.Task:
    (tmp_path / "corpus.txt").write_text(TEXT)
    (tmp_path / "own.yaml").write_text(
        "suite: own\ntasks:\n  prose: {kind: language, metric: perplexity, "
        f"context: {CONTEXT}, data: {{source: text, path: corpus.txt}}}}\n"
    )
    return tv.load_suite(tmp_path / "own.yaml").task("prose")


def test_names_are_the_modules_own_and_ties_come_once(model: Backbone) -> None:
    own = dict(model.network.named_parameters())
    assert set(model.encoder_parameters()) == set(own) and "lm_head.weight" not in own
    assert model.outputs == "tokens" and model.modality == "text"


def test_rows_are_those_of_the_module_whatever_the_padding(model: Any) -> None:
    network = deepcopy(model.network).eval()
    passages = [Passage([1, 5, 6], [7, 8]), Passage([1], [9, 10, 11, 12])]
    with torch.no_grad():
        rows = model(**model.stack(passages))
        expected = []
        for context, target in passages:
            logits = network(torch.tensor([context + target]))[0]
            expected.append(logits[len(context) - 1 : -1])
    torch.testing.assert_close(rows, torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("regime", ["full", "attention", "tangent"])
def test_it_learns_a_text(model: Backbone, task: tv.Task, regime: str) -> None:
    evaluator = tv.Evaluator(model, [task])
    settings = tv.TrainSettings(lr=1e-2, steps=12, batch_size=8, weight_decay=0, validations=0)
    vector = tv.finetune(model, evaluator.part("prose"), regime=regime, settings=settings)
    space: Any = "tangent" if regime == "tangent" else "ordinary"
    before = evaluator.score(evaluator.pretrained, "prose", "test").value
    point = evaluator.points({"v": vector}, space=space).at({"v": 1.0})
    assert evaluator.score(point, "prose", "test").value < before
    edited = tv.apply(model.network, vector)
    model.network.load_state_dict({name: edited[name] for name in model.network.state_dict()})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "collate beside it": ({"collate": pixels}, "takes a tokenizer alone"),
    "an example beside it": ({"example": BLANK}, "takes a tokenizer alone"),
    "features": ({"features": lambda ids: torch.zeros(len(ids), 4)}, r"a tensor \(1, 4\), expected logits"),
    "raises": ({"features": lambda ids: ids @ ids}, r"fails on token ids \(1, 3\) \(RuntimeError"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_language_model_is_said(case: str, tokenizer: Any) -> None:
    given, complaint = WRONG[case]
    with pytest.raises(InputError, match=complaint):
        tv.wrap(Causal(300), tokenizer=tokenizer, **given)


def test_neither_a_batch_nor_a_tokenizer_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected collate=FUNCTION.* or tokenizer="):
        tv.wrap(nn.Linear(2, 2))


@pytest.mark.parametrize(
    "decoding",
    [Decoding(6), Decoding(6, 1.0, top_k=5, top_p=0.9, repetition_penalty=1.3), Decoding(6, 0.7)],
    ids=["likeliest", "drawn", "warm"],
)
def test_it_writes_what_transformers_would(decoding: Decoding, tmp_path: Path) -> None:
    known: Any = load_backbone(save_language_model(tmp_path / "gpt", "gpt2"), "tokens")
    own: Any = tv.wrap(known.network, tokenizer=known.tokenizer, positions=64)
    contexts = [[5, 6, 7], [8, 9, 10], [4], [11, 12, 13]]
    given: dict[str, Any] = {"end": [3], "seed": 5}
    expected = continuations(known.writer, contexts, decoding, **given)
    assert continuations(own.writer, contexts, decoding, **given) == expected
    ends = expected[1][3]
    cut = continuations(own.writer, contexts, decoding, end=[ends], seed=5)
    assert all(ends not in row for row in cut) and cut[1] == expected[1][: expected[1].index(ends)]


def test_its_texts_are_measured_at_edited_weights(tokenizer: Any, tmp_path: Path) -> None:
    """A network with a ``generate`` of its own kind, as nanoGPT has one."""
    torch.manual_seed(0)
    network = Causal(len(tokenizer))
    network.generate = lambda idx, max_new_tokens: idx  # type: ignore[assignment]
    model = tv.wrap(network, tokenizer=tokenizer, positions=32)
    rows = [{"split": split, "text": "the cat", "label": "sat"} for split in SPLITS] * 4
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "talk.yaml").write_text(
        "suite: talk\ntasks:\n  talk: {kind: generation, metric: exact_match, sampling: {max_new_tokens: 4}, "
        "data: {source: jsonl, path: data.jsonl}}\n"
    )
    evaluator = tv.Evaluator(model, [tv.load_suite(tmp_path / "talk.yaml").task("talk")])
    settings = tv.TrainSettings(lr=1e-2, steps=30, batch_size=4, weight_decay=0, validations=0)
    vector = tv.finetune(model, evaluator.part("talk"), settings=settings)
    points = evaluator.points({"v": vector})
    values = [evaluator.score(points.at({"v": at}), "talk", "test").value for at in (0.0, 1.0)]
    assert values == [0.0, 1.0]
