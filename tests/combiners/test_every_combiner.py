"""What every registered combiner obeys: the laws that ``taskvec.combiners.combiner`` lists."""

from typing import Any

import pytest
import torch
from torch import Tensor

from taskvec.combiners import COMBINERS, Combiner, combiner_called
from taskvec.errors import InputError, NonFinite

NAMES = [name for name in COMBINERS if not COMBINERS[name].entries]
every_combiner = pytest.mark.parametrize("name", NAMES)


def vectors(tasks: int, size: int, seed: int = 0) -> Tensor:
    """Rows that conflict: some of them point away from their mean."""
    return torch.randn(tasks, size, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gram(rows: Tensor) -> Tensor:
    return rows @ rows.T


# Every kind of input that a step, or a set of models, may bring.
HARD: dict[str, Tensor] = {
    "one": vectors(1, 5),
    "two opposed": torch.tensor([[1.0, 2], [-1, -2]], dtype=torch.float64),
    "nearly opposed": torch.tensor([[1.0, 0], [-1, 1e-9]], dtype=torch.float64),
    "nothing": torch.zeros(3, 4, dtype=torch.float64),
    "zero row": vectors(4, 9) * torch.tensor([1.0, 0, 1, 1], dtype=torch.float64)[:, None],
    "only one moves": vectors(4, 9) * torch.tensor([0.0, 0, 1, 0], dtype=torch.float64)[:, None],
    "identical": vectors(1, 6).expand(5, 6),
    "rank two": vectors(6, 2),
    "rank one": vectors(5, 1),
    "thirty": vectors(30, 100),
    "thirty of rank ten": vectors(30, 10),
    "small": 1e-12 * vectors(4, 20),
    "large": 1e12 * vectors(4, 20),
    "tiny": 1e-150 * vectors(4, 20),
    "huge": 1e150 * vectors(3, 20),
    "of all sizes": vectors(5, 20) * torch.logspace(-12, 12, 5, dtype=torch.float64)[:, None],
    "float32": vectors(12, 5).float() @ vectors(12, 5).float().T,  # a Gram matrix, of rank 5 but for noise
}


def hard_gram(kind: str) -> Tensor:
    return HARD[kind] if kind == "float32" else gram(HARD[kind])


@every_combiner
@pytest.mark.parametrize("kind", HARD)
def test_weights_are_finite(name: str, kind: str) -> None:
    given = hard_gram(kind)
    before = given.clone()
    weights = COMBINERS[name].chosen(given)
    assert weights.shape == (len(given),) and weights.dtype == torch.float64
    assert bool(weights.isfinite().all())
    assert torch.equal(given, before)


@every_combiner
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(name: str, bad: float) -> None:
    given = gram(vectors(3, 4))
    given[1, 1] = bad
    with pytest.raises(NonFinite, match="gram: inner products of vector 1 are NaN or infinite"):
        COMBINERS[name].chosen(given)


@every_combiner
@pytest.mark.parametrize("shape", [(3,), (2, 3), (0, 0)])
def test_what_is_no_gram_matrix_is_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match=r"gram: shape .*, expected \(tasks, tasks\)"):
        COMBINERS[name].chosen(torch.zeros(shape))


@every_combiner
def test_a_seed_decides_everything_random(name: str) -> None:
    given = gram(vectors(6, 3))
    torch.manual_seed(5)
    state = torch.get_rng_state()
    combiner = COMBINERS[name]
    seeds = [0, 0, 1, 2, -3, 2**70]
    first, again, *others = (combiner.chosen(given, seed) for seed in seeds)
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), state)
    assert combiner.draws != all(torch.equal(first, other) for other in others)


@every_combiner
def test_an_unknown_parameter_is_refused(name: str) -> None:
    with pytest.raises(InputError, match=f"combiner '{name}': unknown parameter 'zzz'; known: "):
        combiner_called(name, zzz=1)


def test_a_misspelt_combiner_is_named() -> None:
    with pytest.raises(InputError, match="no combiner called 'pcgard'; did you mean 'pcgrad'"):
        combiner_called("pcgard")


def halves(given: Tensor) -> Tensor:
    return torch.full((len(given),), 0.5)


def shifted(given: Tensor, *, by: float = 0.0) -> Tensor:
    return given.diagonal() + by


def test_a_function_of_the_gram_matrix_is_a_combiner() -> None:
    assert combiner_called(halves).chosen(torch.eye(3)).tolist() == [0.5] * 3
    assert combiner_called(shifted, by=1.0).chosen(2 * torch.eye(2)).tolist() == [3, 3]
    assert combiner_called("torch:ones_like").name == "ones_like"
    combiner = combiner_called(halves)
    assert isinstance(combiner, Combiner) and combiner_called(combiner).name == "halves"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda given: given, r"returned weights of shape \(3, 3\), expected \(3,\), a weight for each task"),
        (lambda given: given.sum(), r"returned weights of shape \(\), expected \(3,\)"),
        (lambda given: given.diagonal() / 0, r"returned \[inf, inf, inf\], expected finite weights"),
    ],
)
def test_what_a_function_returns_is_checked(function: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"combiner '<lambda>': {message}"):
        combiner_called(function).chosen(torch.eye(3))
