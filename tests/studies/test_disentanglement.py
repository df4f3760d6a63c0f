"""The disentanglement error against its definition, on toys and on a tiny model in both spaces."""

from collections.abc import Callable
from dataclasses import replace
from itertools import product
from types import MethodType

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import InputError, TaskvecError
from taskvec.evaluation.points import Points
from taskvec.studies.disentanglement import (
    DISTANCES,
    Panel,
    disentangle,
    disentanglement,
    summarize,
)
from taskvec.studies.numerics.disentanglement import (
    cosine_distance,
    disagreement,
    disentanglement_maps,
    in_box,
    in_quadrant,
    mean_where,
    square_grid,
    symmetric_kl,
)
from taskvec.training.regimes import Space

PAIR = ("pets", "taste")
GRID = [-1.0, 0.0, 0.5, 1.0]
HARD = {"prediction": (disagreement, disagreement)}

Visit = Callable[[float, float], tuple[Tensor, Tensor]]


def linear_world(*, separable: bool, sizes: tuple[int, int] = (7, 5)) -> Visit:
    """Outputs W(a1, a2) x of a matrix that two vectors move; separable: each task has columns of its own."""
    draw = torch.Generator().manual_seed(3)
    base, one, other = torch.randn(3, 4, 6, generator=draw, dtype=torch.float64)
    data = [torch.randn(size, 6, generator=draw, dtype=torch.float64) for size in sizes]
    if separable:
        one[:, 3:], other[:, :3] = 0, 0
        data[0][:, 3:], data[1][:, :3] = 0, 0

    def visit(a1: float, a2: float) -> tuple[Tensor, Tensor]:
        weight = base + a1 * one + a2 * other
        return data[0] @ weight.T, data[1] @ weight.T

    return visit


def by_definition(visit: Visit, a1: float, a2: float) -> float:
    """Every term computed by itself, as the formula is written."""
    both, alone = visit(a1, a2), (visit(a1, 0.0)[0], visit(0.0, a2)[1])
    return sum(
        sum(float(x.argmax() != y.argmax()) for x, y in zip(one, joint, strict=True)) / len(one)
        for one, joint in zip(alone, both, strict=True)
    )


@pytest.mark.parametrize("grid", [GRID, [-0.7, 0.3, 2.0]], ids=["with 0", "without 0"])
def test_every_cell_is_the_definition(grid: list[float]) -> None:
    visit = linear_world(separable=False)
    found = disentanglement_maps(visit, grid, HARD)["prediction"].error
    expected = [[by_definition(visit, a1, a2) for a2 in grid] for a1 in grid]
    assert_close(found, torch.tensor(expected, dtype=torch.float64))
    assert found.max() > 0


def test_the_error_is_zero_at_the_origin_and_between_0_and_2_elsewhere() -> None:
    found = disentanglement_maps(linear_world(separable=False), GRID, HARD)["prediction"].error
    assert found[1, 1] == 0
    assert 0 <= found.min() < found.max() <= 2


def test_an_axis_is_the_disturbance_of_the_pretrained_model_on_the_other_task() -> None:
    visit = linear_world(separable=False)
    found = disentanglement_maps(visit, GRID, HARD)["prediction"].error
    for place, a2 in enumerate(GRID):
        changed = disagreement(visit(0.0, 0.0)[0], visit(0.0, a2)[0]).double().mean()
        assert found[1, place] == changed
    assert found[1].max() > 0


def test_block_separable_tasks_do_not_disturb_each_other_anywhere() -> None:
    soft = {**HARD, "kl": (symmetric_kl, symmetric_kl)}
    maps = disentanglement_maps(linear_world(separable=True), square_grid(), soft)
    assert maps["prediction"].error.max() == 0
    assert maps["kl"].error.max() < 1e-12
    assert maps["kl"].movement.max() > 1


def test_swapping_the_tasks_transposes_the_map() -> None:
    visit = linear_world(separable=False)
    found = disentanglement_maps(visit, GRID, HARD)["prediction"].error
    swapped = disentanglement_maps(lambda a, b: visit(b, a)[::-1], GRID, HARD)["prediction"].error
    assert_close(swapped, found.T)


def test_each_mean_divides_by_the_examples_seen() -> None:
    """Of 4 examples of one task 1 changes, of 2 of the other 1: 1/4 + 1/2, however they are batched."""
    before = torch.eye(2)

    def visit(a1: float, a2: float) -> tuple[Tensor, Tensor]:
        flipped = before.flip(0)
        one = torch.stack([before[0]] * 3 + [flipped[0] if a2 else before[0]])
        return one, torch.stack([before[0], flipped[0] if a1 else before[0]])

    assert disentanglement_maps(visit, [0.0, 1.0], HARD)["prediction"].error[1, 1] == 0.75


def test_a_grid_with_0_is_visited_once_a_point() -> None:
    visit, seen = linear_world(separable=False), []

    def counting(a1: float, a2: float) -> tuple[Tensor, Tensor]:
        seen.append((a1, a2))
        return visit(a1, a2)

    disentanglement_maps(counting, GRID, HARD)
    assert sorted(seen) == sorted(product(GRID, GRID))


def test_the_default_grid_holds_0_exactly_and_both_ends() -> None:
    grid = square_grid()
    assert (len(grid), grid[0], grid[10], grid[-1]) == (21, -3.0, 0.0, 3.0)
    assert sum(in_box(a, 0.0) for a in grid) == 7


@pytest.mark.parametrize("bad", [(1.0, 1.0, 5), (-1.0, 1.0, 1)])
def test_a_grid_that_is_none_is_refused(bad: tuple[float, float, int]) -> None:
    with pytest.raises(InputError, match="START < STOP"):
        square_grid(*bad)


logits = st.lists(st.floats(-5, 5, width=32), min_size=6, max_size=6)


@settings(max_examples=30)
@given(logits, logits)
def test_distances_are_symmetric_and_zero_between_equals(first: list[float], other: list[float]) -> None:
    a, b = torch.tensor(first).view(2, 3), torch.tensor(other).view(2, 3)
    for distance in (disagreement, symmetric_kl, cosine_distance):
        assert torch.equal(distance(a, b), distance(b, a))
        assert bool((distance(a, b) >= 0).all())
    assert disagreement(a, a).max() == 0
    assert symmetric_kl(a, a).max() == 0


def test_the_divergence_is_that_of_the_closed_form() -> None:
    p, q = torch.tensor([0.2, 0.8]), torch.tensor([0.5, 0.5])
    expected = 0.5 * (0.2 * torch.tensor(0.4).log() + 0.8 * torch.tensor(1.6).log())
    expected += 0.5 * (0.5 * torch.tensor(2.5).log() + 0.5 * torch.tensor(0.625).log())
    assert_close(symmetric_kl(p.log()[None], q.log()[None])[0], expected)


def test_the_angle_is_that_of_the_closed_form() -> None:
    a, b = (
        torch.tensor([[3.0, 0.0], [1.0, 0.0], [1.0, 0.0]]),
        torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]]),
    )
    assert_close(cosine_distance(a, b), torch.tensor([0.0, 1.0, 2.0]))


def test_the_head_effect_is_what_the_head_adds_to_the_share_of_interference() -> None:
    maps = disentanglement_maps(
        linear_world(separable=False),
        GRID,
        dict.fromkeys(DISTANCES, (symmetric_kl, symmetric_kl)),
    )
    doubled = replace(maps["output_kl"], error=2 * maps["output_kl"].error)
    summary = summarize(GRID, {**maps, "output_kl": doubled}).summary
    quadrant = maps["feature_kl"]
    share = float(quadrant.error[2:, 2:].mean() / quadrant.movement[2:, 2:].mean())
    assert summary.share_before_head == pytest.approx(share)
    assert summary.share_behind_head == pytest.approx(2 * share)
    assert summary.head_effect == pytest.approx(share)


def test_a_region_without_grid_points_has_no_mean() -> None:
    values = torch.ones(2, 2)
    assert mean_where(in_box, [2.0, 3.0], values) is None
    assert mean_where(in_quadrant, [-1.0, 0.0], values) is None
    assert mean_where(in_quadrant, [0.0, 1.0], values) == 1


def vectors(evaluator: tv.Evaluator, scale: float = 0.1) -> dict[str, tv.TaskVector]:
    draw = torch.Generator().manual_seed(0)
    return {
        task: tv.TaskVector.from_tensors(
            {name: scale * torch.randn(p.shape, generator=draw) for name, p in evaluator.pretrained.items()},
            base=evaluator.backbone.ref,
            task=task,
            regime="full",
        )
        for task in PAIR
    }


@pytest.fixture(scope="module", params=["ordinary", "tangent"])
def points(request: pytest.FixtureRequest, evaluator: tv.Evaluator) -> Points:
    space: Space = request.param
    return evaluator.points(vectors(evaluator), space=space)


def test_on_a_model_each_task_is_judged_by_its_own_head(evaluator: tv.Evaluator, points: Points) -> None:
    found = disentangle(evaluator, points, PAIR, grid=[0.0, 1.0])["prediction"].error

    def predicted(task: str, coefficients: dict[str, float]) -> Tensor:
        return evaluator.logits(points.at(coefficients), task, "test")[0].argmax(-1)

    both = {"pets": 1.0, "taste": 1.0}
    expected = sum(
        (predicted(task, {task: 1.0}) != predicted(task, both)).double().mean().item() for task in PAIR
    )
    assert found[1, 1].item() == pytest.approx(expected)
    assert found[0, 0] == 0
    assert expected > 0


def test_swapping_the_tasks_of_a_model_transposes_the_map(evaluator: tv.Evaluator, points: Points) -> None:
    found = disentangle(evaluator, points, PAIR, grid=GRID)
    swapped = disentangle(evaluator, points, PAIR[::-1], grid=GRID)
    for name in DISTANCES:
        assert_close(swapped[name].error, found[name].error.T, rtol=1e-4, atol=1e-6)


def test_labels_are_not_read(evaluator: tv.Evaluator, monkeypatch: pytest.MonkeyPatch) -> None:
    blind = tv.Evaluator(evaluator.backbone, list(evaluator.tasks.values()))
    features = blind.features

    def wrong(self: tv.Evaluator, *arguments: object) -> tuple[Tensor, Tensor]:
        found, labels = features(*arguments)  # type: ignore[arg-type]
        return found, torch.full_like(labels, -1)

    monkeypatch.setattr(blind, "features", MethodType(wrong, blind))
    points = evaluator.points(vectors(evaluator))
    seen = disentangle(evaluator, points, PAIR, grid=[0.0, 1.0])
    unseen = disentangle(blind, points, PAIR, grid=[0.0, 1.0])
    assert torch.equal(seen["prediction"].error, unseen["prediction"].error)


def test_a_record_holds_what_decided_it_and_a_map_for_every_pair_and_panel(evaluator: tv.Evaluator) -> None:
    small = tv.Evaluator(evaluator.backbone, list(evaluator.tasks.values()), limits={"test": 10})
    own = vectors(evaluator)
    panels = (
        Panel(space, "full", space, small.points(own, space=space)) for space in ("ordinary", "tangent")
    )
    record = disentanglement(small, panels, PAIR, grid=[-1.0, 0.0, 1.0])
    assert record["examples"] == {"pets": 10, "taste": 10}
    assert record["panels"] == {
        "ordinary": {"regime": "full", "space": "ordinary"},
        "tangent": {"regime": "full", "space": "tangent"},
    }
    [pair] = record["pairs"]
    assert pair["tasks"] == list(PAIR)
    for panel in pair["panels"].values():
        assert panel["maps"].keys() == DISTANCES.keys()
        assert panel["maps"]["prediction"][1][1] == 0
        tenths = [10 * value for row in panel["maps"]["prediction"] for value in row]
        assert tenths == pytest.approx([round(value) for value in tenths])  # shares of 10 examples


def test_a_model_that_overflows_is_an_error(evaluator: tv.Evaluator) -> None:
    points = evaluator.points(vectors(evaluator, scale=1e36))
    with pytest.raises(TaskvecError, match="not finite; choose a smaller grid"):
        disentangle(evaluator, points, PAIR, grid=[0.0, 1e4])


def test_a_pair_needs_two_tasks(evaluator: tv.Evaluator, points: Points) -> None:
    with pytest.raises(InputError, match="twice"):
        disentangle(evaluator, points, ("pets", "pets"))
    with pytest.raises(InputError, match="two or more tasks"):
        disentanglement(evaluator, [], ["pets"])
    with pytest.raises(InputError, match="each once"):
        disentanglement_maps(linear_world(separable=True), [0.0, 0.0], HARD)
