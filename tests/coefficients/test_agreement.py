"""The experts' answers as a signal: only where they are to be believed, and never NaN."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from taskvec.coefficients.agreement import Answers, agreement
from taskvec.coefficients.learning import learn_coefficients
from taskvec.errors import InputError
from taskvec.models.functional import encode

Vectors = dict[str, tv.TaskVector]


def test_rows_count_where_both_agree_or_the_expert_is_as_sure() -> None:
    logits = torch.tensor([[4.0, 0, 0], [0, 3, 0], [0, 0, 0.5], [5, 0, 0]], dtype=torch.float64)
    expert = torch.tensor([[1.0, 0, 0], [9, 0, 0], [0, 5, 0], [0, 0.1, 0]], dtype=torch.float64)
    confidence, labels = expert.softmax(-1).max(-1)
    # agree; expert surer; expert surer; the merged model is surer and they differ
    by_hand = -logits.log_softmax(-1)[[0, 1, 2], [0, 0, 1]].mean()
    assert_close(agreement(logits, labels, confidence), by_hand, rtol=1e-12, atol=1e-12)


def test_equal_confidence_is_enough() -> None:
    logits = torch.tensor([[2.0, 0.0]])
    confidence = logits.softmax(-1).max(-1).values
    assert agreement(logits, torch.tensor([1]), confidence) > 0


def test_a_batch_that_believes_nothing_is_worth_nothing() -> None:
    logits = torch.tensor([[5.0, 0.0], [0.0, 7.0]], requires_grad=True)
    loss = agreement(logits, torch.tensor([1, 0]), torch.tensor([0.5, 0.6]))
    torch.autograd.backward(loss)
    assert loss.item() == 0.0
    assert logits.grad is not None and not logits.grad.any()


def test_answers_are_found_by_example_whatever_the_order_of_batches() -> None:
    """Examples of 2, 1 and 3 rows, measured as 2, 0, 1; asked for in other orders, one of them twice."""
    answers = Answers.of(
        torch.tensor([20, 21, 22, 0, 1, 10]), torch.arange(6) / 10, torch.tensor([2, 2, 2, 0, 0, 1])
    )
    labels, confidence = answers.on(torch.tensor([1, 2, 2, 2, 0, 0]))
    assert labels.tolist() == [10, 20, 21, 22, 0, 1]
    assert_close(confidence, torch.tensor([0.5, 0.0, 0.1, 0.2, 0.3, 0.4]))
    assert answers.on(torch.tensor([0, 0, 0, 0]))[0].tolist() == [0, 1, 0, 1]


def own_logits(evaluator: tv.Evaluator, vector: tv.TaskVector, task: str) -> Tensor:
    """Of the model with a vector, in the order of the validation split."""
    theta = {name: value + vector[name] for name, value in evaluator.pretrained.items()}
    split = evaluator.split(task, "validation")
    with torch.no_grad():
        logits: Tensor = evaluator.head(task)(
            encode(evaluator.backbone, theta, evaluator.backbone.collate(split.inputs))
        )
    return logits


def test_the_objective_is_that_of_the_experts_answers(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    """Before the first step, of all examples at once, against models built by hand."""
    chosen = tv.CoefficientSettings(signal="agreement", steps=1, batch=1000)
    learned = learn_coefficients(evaluator, vectors, list(vectors), chosen)
    merged = sum((0.3 * vector for vector in vectors.values()), start=0 * vectors["pets"])
    total = 0.0
    for task, vector in vectors.items():
        confidence, labels = own_logits(evaluator, vector, task).softmax(-1).max(-1)
        logits = own_logits(evaluator, merged, task)
        shares = logits.softmax(-1)
        sure, likeliest = shares.max(-1)
        rows = (likeliest == labels) | (confidence >= sure)
        total += float(-shares.log()[rows, labels[rows]].mean())
    assert learned.trace == pytest.approx([total], rel=1e-4)
    assert learned.consumed == ("unlabelled validation inputs",)


def test_a_task_without_a_vector_of_its_name_is_refused(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    others = {f"my-{task}": vector for task, vector in vectors.items()}
    chosen = tv.CoefficientSettings(signal="agreement")
    with pytest.raises(InputError, match="pets: signal agreement asks the task's own model"):
        learn_coefficients(evaluator, others, ["pets"], chosen)
