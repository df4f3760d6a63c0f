"""Fisher merging against its definition, entry by entry, and what the definition implies."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from taskvec.errors import InputError
from taskvec.rules import RULES
from taskvec.rules.rule import Place
from taskvec.vectors import TaskVector, combine
from taskvec.weights import Weights, open_weights

few = settings(max_examples=25, deadline=None)


def merged(deltas: Tensor, information: Tensor, **params: Any) -> Tensor:
    return RULES["fisher"](deltas, _stats=list(information), **params)


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Deltas and Fisher information, (task, *shape) each, of very different sizes, some zero."""
    tasks, shape = draw(st.integers(1, 4)), draw(st.lists(st.integers(1, 4), max_size=3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    deltas = torch.randn(tasks, *shape, generator=generator, dtype=torch.float64)
    sizes = 10 ** (8 * torch.rand(tasks, *shape, generator=generator, dtype=torch.float64) - 7)
    return deltas, sizes * (torch.rand(sizes.shape, generator=generator) > 0.3)


def reference(deltas: Tensor, information: Tensor, floor: float, weights: list[float]) -> Tensor:
    """One entry after another, in Python's own floats; no entry without weight."""
    out = torch.empty_like(deltas[0])
    for place in range(out.numel()):
        f = [w * (one.flatten()[place].item() + floor) for w, one in zip(weights, information, strict=True)]
        d = [one.flatten()[place].item() for one in deltas]
        f = f if sum(f) else weights
        out.view(-1)[place] = sum(a * b for a, b in zip(f, d, strict=True)) / sum(f)
    return out


@few
@given(problems(), st.sampled_from([0.0, 1e-6, 0.1]), st.booleans())
def test_every_entry_is_the_weighted_average_of_the_definition(
    problem: tuple[Tensor, Tensor], floor: float, even: bool
) -> None:
    deltas, information = problem
    weights = [1.0] * len(deltas) if even else [1.0 + task for task in range(len(deltas))]
    found = merged(deltas, information, floor=floor, weights=None if even else weights)
    torch.testing.assert_close(found, reference(deltas, information, floor, weights), rtol=1e-12, atol=1e-14)


@few
@given(problems())
def test_equal_information_averages_and_so_does_none(problem: tuple[Tensor, Tensor]) -> None:
    deltas, information = problem
    weights = [2.0, 1.0, 4.0, 0.5][: len(deltas)]
    expected = combine_mean(deltas, weights)
    for equal in (information[:1].expand_as(information) + 1e-3, torch.zeros_like(information)):
        for floor in (0.0, 1e-6):
            torch.testing.assert_close(merged(deltas, equal, floor=floor, weights=weights), expected)
    absent = RULES["fisher"](deltas, _stats=[None] * len(deltas), weights=weights)
    torch.testing.assert_close(absent, expected)


def combine_mean(deltas: Tensor, weights: list[float]) -> Tensor:
    factors = torch.tensor(weights, dtype=deltas.dtype) / sum(weights)
    return torch.einsum("t,t...->...", factors, deltas)


@few
@given(problems(), st.floats(1e-3, 1e3))
def test_without_a_floor_only_ratios_of_information_count(
    problem: tuple[Tensor, Tensor], factor: float
) -> None:
    deltas, information = problem
    torch.testing.assert_close(
        merged(deltas, factor * information, floor=0), merged(deltas, information, floor=0)
    )


@few
@given(problems())
def test_an_entry_that_one_task_alone_depends_on_is_that_tasks(problem: tuple[Tensor, Tensor]) -> None:
    deltas, information = problem
    alone = torch.zeros_like(information)
    alone[-1] = information[-1] + 1e-6
    assert torch.equal(merged(deltas, alone, floor=0), (alone * deltas)[-1] / alone[-1])


def test_normalizing_makes_the_size_of_a_tasks_information_irrelevant() -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = torch.randn(2, 5, 4, generator=generator, dtype=torch.float64)
    information = torch.rand(2, 5, 4, generator=generator, dtype=torch.float64)
    sizes = torch.tensor([1.0, 1000.0], dtype=torch.float64)[:, None, None]
    even = merged(deltas, information, floor=0, normalize=True)
    torch.testing.assert_close(
        merged(deltas, sizes * information, floor=0, normalize=True), even, rtol=1e-5, atol=1e-5
    )
    assert not torch.allclose(merged(deltas, sizes * information, floor=0), even, rtol=1e-2)


def model(tasks: int) -> tuple[list[TaskVector], list[Weights]]:
    generator = torch.Generator().manual_seed(tasks)
    shapes = {"a": (4, 3), "b": (5,), "c": (2, 2)}
    base = {
        name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()
    }
    vectors, stats = [], []
    for task in range(tasks):
        tuned = {n: b + torch.randn(b.shape, generator=generator, dtype=b.dtype) for n, b in base.items()}
        vectors.append(TaskVector.between(base, tuned))
        sizes = {
            n: torch.rand(b.shape, generator=generator, dtype=b.dtype) * 10**task for n, b in base.items()
        }
        stats.append(open_weights({name: size for name, size in sizes.items() if name != "c"}))
    return vectors, stats


def test_the_norm_is_that_of_all_tensors() -> None:
    vectors, stats = model(3)
    found = combine("fisher", vectors, stats=stats, normalize=True, floor=0)
    norms = [torch.cat([own["a"].flatten(), own["b"]]).norm().item() for own in stats]
    for name in ("a", "b"):
        factors = [own[name] / (norm + 1e-6) for own, norm in zip(stats, norms, strict=True)]
        above = sum(f * vector[name] for f, vector in zip(factors, vectors, strict=True))
        torch.testing.assert_close(found[name], above / sum(factors))
    torch.testing.assert_close(found["c"], torch.stack([vector["c"] for vector in vectors]).mean(0))


def test_a_vector_of_any_base_gives_the_average_of_the_weights_themselves() -> None:
    """The base cancels: theta = sum F theta_t / sum F."""
    vectors, stats = model(2)
    base = vectors[0].base.weights
    assert base is not None
    found = base["a"] + combine("fisher", vectors, stats=stats, floor=0)["a"]
    above = sum(own["a"] * (base["a"] + vector["a"]) for own, vector in zip(stats, vectors, strict=True))
    torch.testing.assert_close(found, above / sum(own["a"] for own in stats))


@pytest.mark.parametrize(
    ("information", "complaint"),
    [
        (
            None,
            r"rule 'fisher' needs statistics, one file for each vector \(--stats, stats=\); .*taskvec stats",
        ),
        ([torch.ones(2, 3)], r"rule 'fisher': 'w': statistics of 1 tasks, expected 2"),
        (
            [torch.ones(2, 3), None],
            r"rule 'fisher': 'w' has statistics in 1 of 2 tasks, expected all or none",
        ),
        ([torch.ones(2, 3), torch.ones(3, 2)], r"'w' has statistics of shape \(3, 2\), expected \(2, 3\)"),
        ([torch.ones(2, 3), -torch.ones(2, 3)], r"'w' has negative statistics"),
        ([torch.ones(2, 3), torch.full((2, 3), torch.nan)], r"'w' has statistics that are NaN or infinite"),
    ],
    ids=["none", "number", "missing", "shape", "negative", "nan"],
)
def test_information_that_does_not_fit_is_named(information: Any, complaint: str) -> None:
    with pytest.raises(InputError, match=complaint):
        RULES["fisher"](torch.ones(2, 2, 3), _stats=information, _place=Place("w"))


@pytest.mark.parametrize("params", [{"floor": -1}, {"weights": [0, 0]}, {"weights": [1, -1]}])
def test_parameters_that_make_no_average_are_refused(params: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"rule 'fisher': (floor|weights)"):
        RULES["fisher"].settings(params, 2)
