"""The ++ form: trimmed vectors that agree in sign, not added up."""

import pytest
import torch
from torch.testing import assert_close

import taskvec as tv
from taskvec.coefficients.presets import preset
from taskvec.coefficients.trimming import trimmed

Vectors = dict[str, tv.TaskVector]


def made(count: int, seed: int, shapes: dict[str, tuple[int, ...]]) -> Vectors:
    draw = torch.Generator().manual_seed(seed)
    base = {name: torch.zeros(shape) for name, shape in shapes.items()}
    return {
        f"t{t}": tv.TaskVector.from_tensors(
            {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}, base=base
        )
        for t in range(count)
    }


SHAPES: list[dict[str, tuple[int, ...]]] = [
    {"w": (40, 30), "b": (7,), "scalar": (), "kernel": (3, 2, 5, 5)},
    {"long": (1025, 1031)},  # more than a block, and no whole bytes a row
    {"line": (600_001,)},
]


@pytest.mark.parametrize("shapes", SHAPES, ids=["mixed", "blocks", "line"])
@pytest.mark.parametrize("share", [1.0, 0.2, 0.03])
def test_entries_are_the_largest_that_agree(shapes: dict[str, tuple[int, ...]], share: float) -> None:
    vectors = made(3, 1, shapes)
    flat = {label: torch.cat([of[name].reshape(-1) for name in shapes]) for label, of in vectors.items()}
    count = max(1, round(share * len(flat["t0"])))
    cut = {label: of * (of.abs() >= of.abs().topk(count).values[-1]) for label, of in flat.items()}
    sign = torch.stack(list(cut.values())).double().sum(0) >= 0
    found = trimmed(vectors, share)
    for label, of in cut.items():
        wanted = torch.where((of >= 0) == sign, of, 0.0)
        assert_close(torch.cat([found[label][name].reshape(-1) for name in shapes]), wanted, rtol=0, atol=0)


def test_some_rows_are_those_of_the_whole() -> None:
    found = trimmed(made(2, 5, {"long": (300, 1003)}), 0.3)["t1"]
    whole = found["long"]
    for rows in (slice(0, 5), slice(7, 120), slice(1, 299, 3)):
        assert torch.equal(found.read("long", rows), whole[rows])


def test_one_vector_kept_whole_is_itself() -> None:
    [vector] = made(1, 2, SHAPES[0]).values()
    [found] = trimmed({"a": vector}, 1.0).values()
    assert all(torch.equal(found[name], vector[name]) for name in vector)


def test_what_nothing_is_cut_from_is_learned_as_it_is(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    one = {"pets": vectors["pets"]}
    plain = tv.CoefficientSettings(scope="tensor", steps=3, batch=8)
    cut = plain.model_copy(update={"trim": 1.0})
    first, second = (tv.learn_coefficients(evaluator, one, ["pets"], each) for each in (plain, cut))
    assert first.trace == second.trace and first.coefficients == second.coefficients
    assert all(torch.equal(first.vector[name], second.vector[name]) for name in first.vector)


def test_the_plus_forms_learn_from_less(evaluator: tv.Evaluator, vectors: Vectors) -> None:
    learned = tv.learn_coefficients(
        evaluator, vectors, list(vectors), preset("adamerging++", {"steps": 2, "batch": 8})
    )
    entries = sum(int((learned.vector[name] != 0).sum()) for name in learned.vector)
    assert entries < 0.6 * sum(learned.vector[name].numel() for name in learned.vector)
