"""From what a user writes to a score: names, files, functions, commands, weights and floors."""

import json
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from searching.worlds import World, make
from taskvec.errors import InputError, MissingExtra, UnknownName
from taskvec.searching.command import CommandScore
from taskvec.searching.harness_score import LmEvalScore
from taskvec.searching.objective import Keep
from taskvec.searching.own_score import FunctionScore
from taskvec.searching.scores import Measuring, open_scores, parse_keep, parse_weights
from taskvec.searching.suite_score import SuiteScore

FUNCTION = """
def size(weights):
    return len(weights)

def loss(weights):
    return {"val_loss": 2.0, "accuracy": 0.5}
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make("language", tmp_path_factory.mktemp("world"))


@pytest.fixture
def functions(tmp_path: Path) -> str:
    (tmp_path / "mine.py").write_text(FUNCTION)
    return str(tmp_path / "mine.py")


def test_a_score_is_known_by_its_name(world: World, functions: str) -> None:
    for text, kind in {
        str(world.suite): SuiteScore,
        "text8": SuiteScore,
        f"{functions}:size": FunctionScore,
    }.items():
        score, objective = open_scores([text])
        assert type(score) is kind and objective.weights == {}
    assert type(open_scores([], "echo 1 # {model}")[0]) is CommandScore


def test_names_that_nobody_knows(functions: str) -> None:
    with pytest.raises(UnknownName, match="no suite called 'text9'; did you mean 'text8'"):
        open_scores(["text9"])
    with pytest.raises(InputError, match=r"--score: .* has no function 'sise'; did you mean 'size'"):
        open_scores([f"{functions}:sise"])
    with pytest.raises(InputError, match="--score: missing, expected what candidates are scored by"):
        open_scores([])


@pytest.mark.parametrize(
    ("measuring", "option"),
    [
        (Measuring(tasks=("a",)), "--task"),
        (Measuring(limit=3), "--limit"),
        (Measuring(fewshot=3), "--lm-eval-fewshot"),
        (Measuring(model="gpt"), "--model"),
    ],
)
def test_options_that_no_score_heeds_are_refused(measuring: Measuring, option: str) -> None:
    with pytest.raises(InputError, match=f"^{option}: no score here heeds it; leave it out"):
        open_scores([], "echo {model}", measuring)


def test_several_are_weighed_alike_unless_said(world: World, functions: str, tmp_path: Path) -> None:
    texts = [str(world.suite), f"{functions}:size", f"{functions}:loss"]
    score, objective = open_scores(texts, "echo 3 # {model}", Measuring(tasks=("one",)))
    assert not objective.weights and objective.labels == ("small", "size", "loss", "command")
    figures = score.evaluate(world.merge(), "search", tmp_path)
    wanted = {"small", "small.one", "small.perplexity", "size", "loss.val_loss", "loss.accuracy", "command"}
    assert set(figures) == wanted and not score.parts
    lower = {name for name in figures if score.lower_is_better(name)}
    assert lower == {"small", "small.one", "small.perplexity", "loss.val_loss"}
    assert objective.signed(figures, score) == {"small": -1, "size": 1, "loss.val_loss": -1, "command": 1}
    _, chosen = open_scores(texts, weigh=["small=1", "loss.val_loss=0.5"], keep=["small<1.05x"])
    assert chosen.value(figures, score) == pytest.approx(-figures["small"] - 1.0)
    assert chosen.worth(figures, figures, score).kept == 0


def test_two_of_one_name_are_refused(functions: str) -> None:
    with pytest.raises(InputError, match="--score: two scores called 'size', expected each once"):
        open_scores([f"{functions}:size"] * 2)


@pytest.mark.parametrize(
    ("text", "keep"),
    [
        ("perplexity<1.05x", Keep("perplexity", "<", 1.05, relative=True)),
        ("accuracy>0.8", Keep("accuracy", ">", 0.8)),
        (" small.sst2 >= .98 X ", Keep("small.sst2", ">", 0.98, relative=True)),
        ("loss < -1e-3", Keep("loss", "<", -1e-3)),
        ("exact_match,strict-match>2", Keep("exact_match,strict-match", ">", 2.0)),
    ],
)
def test_floors(text: str, keep: Keep) -> None:
    assert parse_keep(text) == keep


@pytest.mark.parametrize(
    "text", ["", "acc", "acc=0.5", "<1", "acc<", "acc<x", "acc<0.5y", "acc<1.2.3", "acc<1e999"]
)
def test_what_is_no_floor(text: str) -> None:
    with pytest.raises(InputError, match=r"^--keep: .* expected FIGURE>NUMBER or FIGURE<NUMBER"):
        parse_keep(text)


def test_weights() -> None:
    assert parse_weights(["a=1", "b.c = -0.5", "x=y=2"]) == {"a": 1.0, "b.c": -0.5, "x=y": 2.0}
    for wrong in (["a"], ["=1"], ["a=b"], ["a=nan"], ["a="], ["a=1", "a=2"]):
        with pytest.raises(InputError, match=r"^--weigh: "):
            parse_weights(wrong)


class Question:
    """A task of the harness."""

    def __init__(self, count: int, metrics: Mapping[str, bool]) -> None:
        self.eval_docs, self.metrics = list(range(count)), metrics

    def higher_is_better(self) -> Mapping[str, bool]:
        return self.metrics


class Manager:
    """Its index of tasks."""

    all_tasks = ("arc", "wiki")
    made = 0

    def __init__(self, include_path: str | None = None, include_defaults: bool = True) -> None:
        Manager.made += 1

    def match_tasks(self, names: list[str]) -> list[str]:
        return [name for name in names if name in self.all_tasks]

    def load(self, names: list[str]) -> dict[str, Any]:
        known = {
            "arc": Question(7, {"acc": True, "acc_norm": True}),
            "wiki": Question(4, {"word_perplexity": False}),
        }
        return {"tasks": {name: known[name] for name in names}}


class Network:
    """The harness's model."""

    def __init__(self, pretrained: Any, tokenizer: Any, backend: str, batch_size: int) -> None:
        self.network = pretrained


def simple_evaluate(**given: Any) -> dict[str, Any]:
    """The sum of all weights, in place of an accuracy; the first question, in place of another."""
    assert given["limit"] is None
    total = sum(float(weight.detach().double().sum()) for weight in given["model"].network.parameters())
    results: dict[str, Any] = {}
    for name, places in given["samples"].items():
        results[name] = (
            {"word_perplexity,none": 4.0}
            if name == "wiki"
            else {"acc_norm,none": float(places[0]), "acc,none": total, "acc,strict": float(len(places))}
        )
    results["group"] = {"acc,none": total}
    counts = {name: {"effective": len(places)} for name, places in given["samples"].items()}
    return {"results": results, "n-samples": counts}


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    package, index, models = (
        ModuleType(name) for name in ("lm_eval", "lm_eval.tasks", "lm_eval.models.huggingface")
    )
    package.simple_evaluate, index.TaskManager, models.HFLM = simple_evaluate, Manager, Network  # type: ignore[attr-defined]
    for module in (package, index, ModuleType("lm_eval.models"), models):
        monkeypatch.setitem(sys.modules, module.__name__, module)


@pytest.mark.usefixtures("stand_in")
def test_lm_eval_measures_every_second_question(world: World, tmp_path: Path) -> None:
    score, _ = open_scores(["lm_eval:arc,wiki"])
    assert isinstance(score, LmEvalScore) and score.parts
    before = Manager.made
    merge = world.merge("0.5*a")
    search, held = (score.evaluate(merge, part, tmp_path) for part in ("search", "holdout"))
    total = sum(float(merge.weights[name].double().sum()) for name in merge.weights)
    assert search["arc"] == search["arc.acc"] == pytest.approx(total) == search["group"]
    assert search["arc.acc,strict"] == 4 and held["arc.acc,strict"] == 3
    assert search["arc.acc_norm"] == 0 and held["arc.acc_norm"] == 1
    assert search["wiki"] == 4 and search["lm_eval"] == pytest.approx((total + 1 / 4) / 2)
    assert {name for name in search if score.lower_is_better(name)} == {"wiki", "wiki.word_perplexity"}
    assert Manager.made == before + 1  # its index of 14,000 tasks is read once
    alone, _ = open_scores(["lm_eval:wiki"], measuring=Measuring(limit=2))
    assert alone.lower_is_better("lm_eval") and json.dumps(alone.key) != json.dumps(score.key)
    assert alone.evaluate(merge, "search", tmp_path)["lm_eval"] == 4
    with pytest.raises(InputError, match=r"^wiki: 1 question, expected two or more"):
        open_scores(["lm_eval:wiki"], measuring=Measuring(limit=1))[0].evaluate(merge, "search", tmp_path)


@pytest.mark.usefixtures("stand_in")
def test_a_task_that_the_harness_does_not_know(world: World, tmp_path: Path) -> None:
    score, _ = open_scores(["lm_eval:ark"])
    with pytest.raises(UnknownName, match="lm-eval: no task called 'ark'; did you mean 'arc'"):
        score.evaluate(world.merge(), "search", tmp_path)


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_without_the_harness_the_command_that_installs_it_is_said() -> None:
    with pytest.raises(MissingExtra, match=r"pip install 'taskvec\[lm-eval\]'"):
        open_scores(["lm_eval:arc"])
