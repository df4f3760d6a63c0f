"""What is written without torch is, bit for bit, what reading gives with it."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from taskvec import TaskVector, Weights, apply, open_weights
from taskvec.vectors.stored.files import Uncoded
from taskvec.weights.dtypes import array_of, tensor_of

Form = Callable[[dict[str, TaskVector]], TaskVector]

FORMS: dict[str, Form] = {
    "one": lambda v: v["a"],
    "scaled": lambda v: 0.3 * v["a"],
    "negative": lambda v: -v["a"],
    "two": lambda v: 0.3 * v["a"] + 0.7 * v["b"],
    "difference": lambda v: v["a"] - v["b"],
    "nothing": lambda v: 0 * v["a"],
    "stored": lambda v: v["stored"],
    "stored, two": lambda v: 0.5 * v["stored"] - 1.5 * v["narrow"],
    "mixed": lambda v: v["a"] + 0.5 * v["stored"],
}


def model(path: Path, dtype: torch.dtype, seed: int) -> Weights:
    """A model in a file: a large tensor, small ones, a scalar, integers."""
    g = torch.Generator().manual_seed(seed)
    shapes: list[tuple[int, ...]] = [(530, 1000), (5, 3), (2, 3, 4), (), (0,)]
    tensors = {
        f"w{len(shape)}.{place}": torch.randn(shape, generator=g) for place, shape in enumerate(shapes)
    }
    tensors["still"] = torch.ones(4, 4)
    path.parent.mkdir(exist_ok=True)
    save_file({**{n: t.to(dtype) for n, t in tensors.items()}, "steps": torch.arange(3)}, path)
    return open_weights(path)


@pytest.fixture(scope="module", params=["bfloat16", "float16", "float32", "float64"])
def world(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Weights, dict[str, TaskVector]]:
    """A base, and vectors between models, stored, and stored in a narrower type."""
    folder, dtype = tmp_path_factory.mktemp("bits"), getattr(torch, request.param)
    base, *tuned = (model(folder / f"{seed}.safetensors", dtype, seed) for seed in range(3))
    vectors = {name: TaskVector.between(base, end) for name, end in zip("ab", tuned, strict=True)}
    for name, narrow in (("stored", None), ("narrow", torch.float16)):
        path = folder / f"{name}.safetensors"
        vectors["a"].save(path, dtype=narrow)
        vectors[name] = TaskVector.load(path)
    return base, vectors


def check(weights: Weights) -> None:
    """Every block of some weights, both ways."""
    for name in weights:
        for rows in [*weights.row_blocks(name), *([slice(1, 3)] if weights.spec(name).shape[1:] else [])]:
            tensor, change = weights.read_with_change(name, rows)
            array, found = weights.array_with_change(name, rows)
            assert array.dtype == array_of(tensor).dtype and array.shape == tensor.shape
            assert array.tobytes() == array_of(tensor).tobytes(), name
            assert (change is None) == (found is None)
            if change is not None and found is not None:
                assert found[:2] == change[:2]
                assert found[2:] == pytest.approx(change[2:], rel=1e-6)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    ("dtype", "precision"), [(None, None), (torch.bfloat16, None), (None, torch.float64)]
)
def test_an_edit_is_the_same_as_arrays(
    world: tuple[Weights, dict[str, TaskVector]],
    form: str,
    dtype: torch.dtype | None,
    precision: torch.dtype | None,
) -> None:
    base, vectors = world
    check(apply(base, FORMS[form](vectors), dtype=dtype, precision=precision))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_stored_vector_is_the_same_as_arrays(
    world: tuple[Weights, dict[str, TaskVector]], form: str, dtype: torch.dtype | None
) -> None:
    check(Uncoded(FORMS[form](world[1]), dtype))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0, 1e-40, 3e38])
def test_odd_numbers_come_through(value: float, tmp_path: Path) -> None:
    base, tuned = (model(tmp_path / f"{seed}.safetensors", torch.bfloat16, seed) for seed in range(2))
    tensors = {name: tensor.clone() for name, tensor in tuned.items()}
    tensors["w2.1"][1, 1] = value
    tensors["w2.0"][520, 3] = value
    save_file(tensors, tmp_path / "odd.safetensors")
    with np.errstate(all="ignore"):
        odd = apply(base, 0.5 * TaskVector.between(base, tmp_path / "odd.safetensors"))
        for name in odd:
            array, _ = odd.array_with_change(name)
            assert torch.equal(
                tensor_of(array, odd.spec(name).code).double().nan_to_num(7),
                odd.read(name).double().nan_to_num(7),
            )
