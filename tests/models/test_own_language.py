"""A causal language model of one's own: training, tangent space, rows by a plain loop."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import AutoTokenizer

import taskvec as tv
from language_models import TEXT, save_byte_tokenizer
from models.own_networks import BLANK, Causal, pixels
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.language import Passage

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
    model.network.load_state_dict({name: edited[name] for name in edited}, strict=False)


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
