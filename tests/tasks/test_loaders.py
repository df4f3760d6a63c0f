"""Batches, features and declared heads, on a backbone whose features are known."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from taskvec.models.backbone import Backbone
from taskvec.models.heads import zero_shot_head
from taskvec.tasks.loaders import batches, features, head_for
from taskvec.tasks.source import Rows, Source, SplitName
from taskvec.tasks.task import Split, Task


class Letters(Backbone):
    """Texts of the letters a to d; the feature counts them."""

    modality = "text"

    def __init__(self) -> None:
        super().__init__(nn.Linear(4, 4, bias=False), ref="letters", dim=4, logit_scale=20.0)
        nn.init.eye_(self.network.weight)  # type: ignore[arg-type]
        self.prepared = 0

    def forward(self, **batch: Tensor) -> Tensor:
        counts: Tensor = self.network(nn.functional.one_hot(batch["ids"], 5)[..., :4].sum(1).float())
        return counts

    def prepare(self, inputs: Sequence[Any], max_length: int | None = None) -> list[list[int]]:
        self.prepared += len(inputs)
        return [["abcd".index(letter) for letter in text][:max_length] for text in inputs]

    def stack(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        longest = max(map(len, prepared))
        return {"ids": torch.tensor([row + [4] * (longest - len(row)) for row in prepared])}

    def size(self, prepared: Any) -> int:
        return len(prepared)

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        return self.forward(**self.collate(texts)).detach()

    def example(self) -> dict[str, Tensor]:
        return self.collate(["ab"])


class InMemory(Source):
    """Sixty texts whose label is the letter they hold most of."""

    source: str = "memory"

    def rows(self, split: SplitName) -> Rows | None:
        texts = ["aab", "bba", "abaa", "bbab"] * 15
        return Rows(texts, ["a", "b", "a", "b"] * 15, str)

    def digest(self) -> str:
        return "sixty texts"


texts = st.lists(st.text("abcd", min_size=1, max_size=9), min_size=1, max_size=30)


def split(inputs: list[str]) -> Split:
    return Split(inputs, torch.arange(len(inputs)))


@settings(deadline=None)
@given(texts, st.integers(1, 8), st.booleans())
def test_batches_hold_every_example_once_with_its_label(inputs: list[str], size: int, sort: bool) -> None:
    found = batches(Letters(), split(inputs), size, sort=sort)
    places = torch.cat([batch.index for batch in found])
    assert sorted(places.tolist()) == list(range(len(inputs)))
    assert torch.equal(torch.cat([batch.labels for batch in found]), places)
    assert all(len(batch.labels) <= size for batch in found)
    if not sort:
        assert places.tolist() == list(range(len(inputs)))


@settings(deadline=None)
@given(texts, st.integers(1, 8))
def test_sorting_puts_similar_lengths_together(inputs: list[str], size: int) -> None:
    found = batches(Letters(), split(inputs), size)
    lengths = [len(inputs[place]) for batch in found for place in batch.index.tolist()]
    assert lengths == sorted(lengths)


@settings(deadline=None)
@given(texts, st.integers(1, 8), st.booleans())
def test_features_come_in_the_order_of_the_split(inputs: list[str], size: int, sort: bool) -> None:
    backbone = Letters()
    found = features(backbone, batches(backbone, split(inputs), size, sort=sort))
    expected = torch.tensor([[text.count(letter) for letter in "abcd"] for text in inputs]).float()
    assert_close(found, expected)
    assert not found.requires_grad


def test_texts_are_prepared_once() -> None:
    backbone = Letters()
    found = batches(backbone, split(["a", "ab", "abc"]), 2)
    for _ in range(3):
        features(backbone, found)
    assert backbone.prepared == 3


def test_a_slice_of_batches_is_batches() -> None:
    found = batches(Letters(), split(list("abcd")), 1)
    assert [batch.index.item() for batch in found[1:3]] == [1, 2]
    assert [batch.index.item() for batch in found][-1] == found[-1].index.item()


def test_texts_are_cut_before_they_are_sorted() -> None:
    found = batches(Letters(), split(["abcd", "a"]), 2, max_length=2)
    assert found[0].inputs["ids"].shape == (2, 2)


def test_nothing_gives_no_batches() -> None:
    assert len(batches(Letters(), Split([], torch.empty(0, dtype=torch.int64)), 4)) == 0


@pytest.fixture
def task() -> Task:
    return Task(name="most", classes=("a", "b"), templates=("{}{}",), data=InMemory())  # type: ignore[abstract, call-arg]


def test_the_declared_head_is_built_from_prompts(task: Task) -> None:
    backbone = Letters()
    head = head_for(backbone, task)
    assert head.kind == "zero-shot" and head.classes == ("a", "b")
    same = zero_shot_head(backbone, ("a", "b"), ("{}{}",), {})
    assert head.fingerprint() == same.fingerprint()
    assert_close(head.weight.norm(dim=1), torch.tensor([20.0, 20.0]))


def test_the_declared_probe_is_fitted_on_training_features(task: Task) -> None:
    backbone = Letters()
    head = head_for(backbone, task.model_copy(update={"head": "linear-probe"}))
    assert head.kind == "linear-probe"
    train = task.split("train")
    found = features(backbone, batches(backbone, train, 8))
    assert (head(found).argmax(-1) == train.labels).all()
    again = head_for(backbone, task.model_copy(update={"head": "linear-probe"}))
    assert head.fingerprint() == again.fingerprint()
