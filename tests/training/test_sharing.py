"""Steps and measurements that processes share: each token and example counts as it does in one process."""

from typing import Any

import pytest
import torch

import taskvec as tv
from language_models import TEXT, save_language_model
from taskvec.group import Group
from taskvec.models.loading import load_backbone
from taskvec.tasks.task import Task
from taskvec.training.sharing import Terms, add_shared
from threads_together import in_threads


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A language model, and a task whose windows differ in length."""
    folder = tmp_path_factory.mktemp("kinds")
    (folder / "a.txt").write_text(TEXT)
    texts = {"source": "text", "path": str(folder / "a.txt")}
    return {
        "model": str(save_language_model(folder / "model", "gpt2")),
        "language": {"name": "cats", "kind": "language", "data": texts, "context": 13},
    }


@pytest.mark.parametrize("regime", ["full", "tangent"])
@pytest.mark.parametrize("size", [2, 3])
def test_a_token_counts_the_same_in_whatever_process_it_is(
    kinds: dict[str, Any], size: int, regime: str
) -> None:
    settings = tv.TrainSettings(lr=1e-3, steps=3, batch_size=5, validations=0)

    def trained() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
        backbone = load_backbone(kinds["model"], outputs="tokens").double()
        evaluator = tv.Evaluator(backbone, [Task.parse("task", kinds["language"])], batch_size=2)
        vector = tv.finetune(backbone, evaluator.part("cats"), regime=regime, settings=settings)
        point = evaluator.points({"v": vector}, space="tangent" if regime == "tangent" else "ordinary")
        return dict(vector), evaluator.score(point.at({"v": 1.0}), "cats", "test").record()

    alone, score = trained()
    for shared, found in in_threads(size, trained):
        for name, value in alone.items():
            assert float((shared[name] - value).abs().max()) <= 1e-10
        assert found["examples"] == score["examples"]
        assert found["value"] == pytest.approx(score["value"], rel=1e-9)


@pytest.mark.parametrize("batch", [1, 7, 64])
def test_measuring_together_gives_the_bits_of_one_process(evaluator: tv.Evaluator, batch: int) -> None:
    tasks, ref = list(evaluator.tasks.values()), evaluator.backbone.ref

    def measured() -> tuple[torch.Tensor, dict[str, Any]]:
        own = tv.Evaluator(tv.load_backbone(ref), tasks, batch_size=batch, limits={"test": 31})
        features, _ = own.features(own.pretrained, "pets", "test")
        return features, own.score(own.pretrained, "pets", "test").record()

    features, score = measured()
    for shared, found in in_threads(3, measured):
        assert torch.equal(shared, features)
        assert found == score


def test_what_lay_in_leaves_stays_and_each_loss_is_a_sum() -> None:
    def added() -> tuple[list[float], list[float]]:
        from taskvec.group import current

        leaf, other = torch.zeros(2, requires_grad=True), torch.zeros(1, requires_grad=True)
        leaf.grad = torch.ones(2)

        def add() -> Terms:
            if current().rank == 1:
                (leaf * torch.tensor([2.0, 3.0])).sum().backward()  # type: ignore[no-untyped-call]
            return [[torch.tensor(1.0)] * current().rank, [torch.tensor(5.0)]]

        [first], [second] = add_shared(current(), [leaf, other], add)
        assert leaf.grad is not None and other.grad is not None
        return leaf.grad.tolist() + other.grad.tolist(), [float(first), float(second)]

    for slopes, losses in in_threads(3, added):
        assert slopes == [3, 4, 0]
        assert losses == [3, 15]


def test_a_group_of_one_adds_as_ever() -> None:
    leaf = torch.zeros(2, requires_grad=True)
    terms = [torch.tensor(1.0), torch.tensor(2.0)]
    assert add_shared(Group(), [leaf], lambda: [terms]) == [terms]
    assert leaf.grad is None
