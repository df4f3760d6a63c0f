"""Candidates measured by a function of the user's."""

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from searching.worlds import World, make
from taskvec.edits.opening import save_merge
from taskvec.errors import InputError, TaskvecError
from taskvec.searching.own_score import FunctionScore

KINDS = {
    "encoder": "BertModel",
    "classifier": "RobertaForSequenceClassification",
    "language": "GPT2LMHeadModel",
    "tied": "LlamaForCausalLM",
    "images": "ResNetModel",
}


@pytest.fixture(scope="module", params=KINDS)
def world(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> World:
    return make(request.param, tmp_path_factory.mktemp(request.param))


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make("encoder", tmp_path_factory.mktemp("small"))


def test_the_model_is_the_one_that_would_be_written(world: World, tmp_path: Path) -> None:
    """Every tensor, heads and running statistics too, whatever candidate was measured before."""
    seen: dict[str, Any] = {}

    def judge(model: Any) -> float:
        seen.update(kind=type(model), training=model.training)
        seen["state"] = {name: value.clone() for name, value in model.state_dict().items()}
        return 0.0

    score = FunctionScore(judge, "judge")
    for number, expression in enumerate(["a", "0.4*a - 0.2*b", "0.9*b"]):
        folder = save_merge(world.merge(expression), tmp_path / str(number))
        wanted = seen_kind(folder).from_pretrained(folder).state_dict()
        score.evaluate(world.merge(expression), "search", tmp_path)
        assert seen["state"].keys() == wanted.keys() and not seen["training"]
        assert all(torch.equal(seen["state"][name], wanted[name]) for name in wanted)
        assert seen["kind"] is seen_kind(folder)


def seen_kind(folder: Path) -> Any:
    return getattr(hf, hf.AutoConfig.from_pretrained(folder).architectures[0])


def test_a_function_asks_by_name(small: World, tmp_path: Path) -> None:
    def two(weights: Mapping[str, torch.Tensor], part: str) -> dict[str, float]:
        return {"rows": len(weights["pooler.dense.bias"]), "searching": part == "search"}

    def any_name(state: Mapping[str, torch.Tensor], threshold: float = 0.5) -> float:
        return threshold * float(state["pooler.dense.bias"].double().sum())

    def all_of_it(model: Any, tokenizer: Any, *, weights: Any, part: str) -> float:
        batch = tokenizer(["a good film"], return_tensors="pt")
        return float(model(**batch).last_hidden_state.sum())

    merge = small.merge("0.5*a")
    score = FunctionScore(two, "mine.py:two")
    assert score.parts and score.label == "two"
    assert score.evaluate(merge, "holdout", tmp_path) == {"rows": 16.0, "searching": 0.0}
    plain = FunctionScore(any_name, "any_name")
    wanted = 0.5 * float(merge.weights["pooler.dense.bias"].double().sum())
    assert not plain.parts and plain.evaluate(merge, "search", tmp_path) == {"score": wanted}
    assert FunctionScore(all_of_it, "f").evaluate(merge, "search", tmp_path)["score"] != 0
    assert FunctionScore(len, "len").evaluate(merge, "search", tmp_path) == {"score": len(merge.weights)}


def nothing() -> float:
    return 0.0


def more(weights: object, other: object) -> float:
    return 0.0


@pytest.mark.parametrize(("judge", "asked"), [(nothing, "nothing"), (more, "other")])
def test_what_cannot_be_given_is_refused(judge: Callable[..., float], asked: str) -> None:
    with pytest.raises(
        InputError, match=f"asks for {asked}, expected parameters of the names weights, model"
    ):
        FunctionScore(judge, "f.py:f")


def test_errors_of_the_function_count_against_the_candidate(small: World, tmp_path: Path) -> None:
    def fails(weights: object) -> float:
        raise ZeroDivisionError("no\nrows")

    with pytest.raises(TaskvecError, match=r"^--score f: raised ZeroDivisionError: no rows$"):
        FunctionScore(fails, "f").evaluate(small.merge(), "search", tmp_path)
    with pytest.raises(TaskvecError, match=r"^--score f: raised SystemExit: 3$"):
        FunctionScore(lambda weights: sys.exit(3), "f").evaluate(small.merge(), "search", tmp_path)
    for wrong in (None, "high", {"a": [1]}):
        with pytest.raises(TaskvecError, match=r"^--score f: "):
            FunctionScore(lambda weights, wrong=wrong: wrong, "f").evaluate(small.merge(), "search", tmp_path)


def test_less_can_be_better(small: World, tmp_path: Path) -> None:
    score = FunctionScore(lambda weights: 2.0, "f", minimise=True)
    assert score.lower_is_better("score") and score.lower_is_better("val_loss")
    named = FunctionScore(lambda weights: {"error": 2.0}, "f", minimise=True)
    with pytest.raises(InputError, match=r"^--minimise: .* returns error; .*--weigh NAME=-1"):
        named.evaluate(small.merge(), "search", tmp_path)
