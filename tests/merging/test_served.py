"""Vectors that are stored small and served by task: what comes back, and how many bytes it took."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.testing import assert_close

import taskvec as tv
from evaluation.test_chosen import TASKS, vectors_for
from taskvec.errors import InputError
from taskvec.merging.method import Bench
from taskvec.merging.served import LAMS, compress, emr_method, tall_method, tsv_method

WAYS = {"emr": emr_method, "tall": tall_method, "tsv": tsv_method}


@pytest.fixture(scope="module")
def bench(evaluator: tv.Evaluator) -> Bench:
    return Bench(evaluator, vectors_for(evaluator))


@pytest.mark.parametrize("space", ["ordinary", "tangent"])
@pytest.mark.parametrize("way", WAYS)
def test_one_task_alone_comes_back(evaluator: tv.Evaluator, way: str, space: str) -> None:
    vectors = vectors_for(evaluator, ("pets",))
    bench = Bench(evaluator, vectors, space=space)  # type: ignore[arg-type]
    model = WAYS[way]({}).make(bench)
    own = evaluator.points(vectors, space=space).at({"pets": 1.0})  # type: ignore[call-overload]
    expected = evaluator.tally(own, "pets", "test")["logits"]
    assert_close(model.tally("pets", "test", 1.0)["logits"], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rescaler", ["global", "tensor_mean"])
def test_emr_serves_what_its_masks_say(bench: Bench, rescaler: str) -> None:
    model = emr_method({"rescaler": rescaler}).make(bench)
    made = tv.emr(bench.vectors, rescaler=rescaler)  # type: ignore[arg-type]
    for task in TASKS:
        point = bench.evaluator.points({task: made.vector(task)}).at({task: 1.0})
        served = model.point(task, 1.0)
        assert isinstance(served, dict) and isinstance(point, dict)
        assert all(torch.equal(served[name], point[name]) for name in point)


@pytest.mark.parametrize("way", ["emr", "tall"])
def test_the_bytes_of_masks_are_those_of_a_file(bench: Bench, way: str, tmp_path: Path) -> None:
    facts = WAYS[way]({}).make(bench).facts()
    made = tv.emr(bench.vectors) if way == "emr" else tv.tall_masks(bench.vectors)
    path = made.save(tmp_path / "masked.safetensors")
    header = 8 + int.from_bytes(path.read_bytes()[:8], "little")
    shared, by_task = facts["bytes_shared"], facts["bytes_by_task"]
    assert isinstance(shared, int) and isinstance(by_task, dict)
    assert shared + sum(by_task.values()) - 8 * len(TASKS) == path.stat().st_size - header
    assert facts["bytes_of_vectors"] == dict.fromkeys(TASKS, shared)
    assert isinstance(facts["share"], float) and 1 / 32 < facts["share"] < 0.04


def test_the_threshold_is_the_best_on_validation_data(bench: Bench) -> None:
    method = tall_method({"lam": "validation"})
    assert method.consumes("validation") == ("validation labels", "task id")
    model = method.make(bench)
    chosen = model.facts()["lam"]
    assert isinstance(chosen, dict) and model.coefficients == len(TASKS)
    for task in TASKS:
        values = {}
        for lam in LAMS:
            vector = tv.tall_masks(bench.vectors, lam=lam).vector(task)
            point = bench.evaluator.points({task: vector}).at({task: 1.0})
            values[lam] = bench.evaluator.values(point, [task], "validation")[task]
        assert chosen[task] == min(lam for lam in LAMS if values[lam] == max(values.values()))
    plain = tall_method({})
    assert plain.consumes("validation") == ("task id",) and "lam" not in plain.make(bench).facts()


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5])
def test_leading_components_are_those_of_the_svd(share: float) -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"wide": (12, 30), "tall": (40, 9), "bias": (7,), "filter": (4, 3, 2, 2), "thin": (5, 1)}
    deltas = {name: torch.randn(shape, generator=draw) for name, shape in shapes.items()}
    kept, size = compress(tv.TaskVector.from_tensors(deltas, None), share)
    expected = 0
    for name, delta in deltas.items():
        rank = max(1, int(share * min(delta.shape) + 1e-9))
        if name in ("wide", "tall") and rank * sum(delta.shape) < delta.numel():
            u, s, v = np.linalg.svd(delta.double().numpy(), full_matrices=False)
            np.testing.assert_allclose(kept[name], (u[:, :rank] * s[:rank]) @ v[:rank], rtol=1e-4, atol=1e-5)
            expected += 4 * rank * sum(delta.shape)
        else:
            assert torch.equal(kept[name], delta)
            expected += delta.nbytes
    assert size == expected


def test_all_components_are_the_vector(bench: Bench) -> None:
    model = tsv_method({"components": 1.0}).make(bench)
    facts = model.facts()
    assert facts["share"] == 1.0 and facts["bytes_shared"] == 0
    own = bench.evaluator.points(bench.vectors)
    for task in TASKS:
        expected = bench.evaluator.tally(own.at({task: 1.0}), task, "test")["logits"]
        assert torch.equal(model.tally(task, "test", 1.0)["logits"], expected)


def test_names_and_settings_tell_methods_apart() -> None:
    made = [emr_method({}), tall_method({}), tall_method({"lam": 0.2}), tall_method({"lam": "validation"})]
    made += [tsv_method({}), tsv_method({"components": 0.25}), emr_method({"rescaler": "tensor_mean"})]
    assert [method.name for method in made[:3]] == ["emr (task id)", "tall", "tall (lam 0.2)"]
    assert len({str(method.settings()) for method in made}) == len({method.name for method in made}) == 7
    assert all(method.coefficient is None and "task id" in method.consumes("test") for method in made)


@pytest.mark.parametrize(
    ("way", "given"),
    [
        ("tall", {"lam": -1}),
        ("tall", {"lam": "best"}),
        ("tsv", {"components": 0}),
        ("emr", {"rescale": "global"}),
    ],
)
def test_settings_that_do_not_fit_are_refused(way: str, given: dict[str, object]) -> None:
    with pytest.raises(InputError):
        WAYS[way](given)
