"""Language models: entropy and loss of the next token; answers that a model reads are labels."""

import json
from pathlib import Path

import pytest
import torch

import taskvec as tv
from language_models import TEXT, save_language_model
from taskvec.errors import InputError


@pytest.fixture
def evaluator(tmp_path: Path) -> tv.Evaluator:
    model = save_language_model(tmp_path / "gpt", "gpt2")
    for name, text in {"a": TEXT, "b": TEXT[::-1]}.items():
        (tmp_path / f"{name}.txt").write_text(text)
    rows = [{"split": s, "text": f"word {n}", "label": n % 2} for s in ("train", "test") for n in range(24)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    texts = {"kind": "language", "context": 16}
    parts = {"train": 0.6, "validation": 0.2, "test": 0.2}
    tasks = {
        name: {**texts, "data": {"source": "text", "path": f"{name}.txt", "splits": parts}} for name in "ab"
    }
    answers = {"kind": "generation", "prompt": "{}", "answers": ["yes", "no"]}
    tasks["c"] = {**answers, "data": {"source": "jsonl", "path": "rows.jsonl"}}
    (tmp_path / "suite.yaml").write_text(json.dumps({"suite": "mine", "tasks": tasks}))
    suite = tv.load_suite(tmp_path / "suite.yaml")
    return tv.Evaluator(tv.load_backbone(str(model), "tokens"), list(suite.tasks.values()))


def vectors_of(evaluator: tv.Evaluator) -> dict[str, tv.TaskVector]:
    draw = torch.Generator().manual_seed(0)
    return {
        name: tv.TaskVector.from_tensors(
            {n: 0.02 * torch.randn(p.shape, generator=draw) for n, p in evaluator.pretrained.items()},
            evaluator.backbone.source,
        )
        for name in ("a", "b")
    }


def settings(**values: object) -> tv.CoefficientSettings:
    return tv.CoefficientSettings.model_validate({"steps": 1, "batch": 1000, "scope": "layer", **values})


def test_the_objective_is_the_mean_over_scored_tokens(evaluator: tv.Evaluator) -> None:
    vectors = vectors_of(evaluator)
    point = evaluator.points(vectors).shared(["a", "b"], 0.3)
    found = tv.learn_coefficients(evaluator, vectors, ["a"], settings(signal="labels"))
    tally = evaluator.tally(point, "a", "validation")
    assert found.trace[0] == pytest.approx(float(tally["nats"].sum() / tally["tokens"].sum()), rel=1e-5)
    assert found.consumed == ("validation labels",)
    entropies = torch.cat(
        [torch.special.entr(o.softmax(1)).sum(1) for o, _ in evaluator.outputs(point, "a", "validation")]
    )
    unlabelled = tv.learn_coefficients(evaluator, vectors, ["a"], settings())
    assert unlabelled.trace[0] == pytest.approx(float(entropies.mean()), rel=1e-5)
    assert unlabelled.consumed == ("unlabelled validation inputs",)


def test_answers_that_the_model_reads_are_labels(evaluator: tv.Evaluator) -> None:
    vectors = vectors_of(evaluator)
    learned = tv.learn_coefficients(evaluator, vectors, ["c"], settings(split="train"))
    assert learned.consumed == ("train labels",)
    with pytest.raises(InputError, match=r"c: the model would read the answers of the test split"):
        tv.learn_coefficients(evaluator, vectors, ["c"], settings(split="test", allow_test_inputs=True))
