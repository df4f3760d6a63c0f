"""Each example may be scored by a model of its own."""

from collections.abc import Mapping

import pytest
import torch
from torch.testing import assert_close

import taskvec as tv

TASKS = ("pets", "taste", "number")


def vectors_for(evaluator: tv.Evaluator, names: tuple[str, ...] = TASKS) -> dict[str, tv.TaskVector]:
    """Directions strong enough to change what is predicted."""
    base = tv.open_weights(evaluator.backbone.source)
    made = {}
    for seed, name in enumerate(names):
        draw = torch.Generator().manual_seed(seed)
        deltas = {
            tensor: 0.3 * torch.randn(value.shape, generator=draw)
            for tensor, value in evaluator.pretrained.items()
            if value.ndim == 2
        }
        made[name] = tv.TaskVector.from_tensors(deltas, base, task=name)
    return made


@pytest.fixture(scope="module")
def vectors(evaluator: tv.Evaluator) -> dict[str, tv.TaskVector]:
    return vectors_for(evaluator)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("chosen", ["one", "many"])
def test_a_choice_gives_the_rows_of_the_chosen_models(
    evaluator: tv.Evaluator, vectors: Mapping[str, tv.TaskVector], task: str, chosen: str
) -> None:
    points = evaluator.points(vectors)
    whole = [dict(evaluator.tally(points.at({name: 1.0}), task, "test")) for name in TASKS]
    count = len(whole[0]["labels"])
    choice = torch.arange(count) % 3 if chosen == "many" else torch.full((count,), 2)
    tally = evaluator.tally_chosen(lambda number: points.at({TASKS[number]: 1.0}), choice, task, "test")
    for key, values in tally.items():
        expected = torch.stack([whole[number][key][row] for row, number in enumerate(choice.tolist())])
        assert_close(values, expected, rtol=1e-5, atol=1e-5)
