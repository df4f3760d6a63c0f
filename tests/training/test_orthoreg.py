"""OrthoReg: displacements of matrices with orthogonal columns."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

import taskvec as tv
from taskvec.errors import InputError
from taskvec.training.penalties.orthoreg import bind
from taskvec.training.penalties.settings import OrthoReg

FORMS = ["paper", "code", "cosine"]


def deviation(form: Any, **tau: Tensor) -> Tensor:
    """The penalty of a model so displaced."""
    moved: Any = SimpleNamespace(tau=lambda: tau)
    given: Any = SimpleNamespace(moved=moved)
    return bind(OrthoReg(form=form), given)(0)


def slope_of(form: str, tau: Tensor) -> Tensor:
    leaf = tau.double().requires_grad_()
    [slope] = torch.autograd.grad(deviation(form, w=leaf), leaf)
    return slope


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def by_hand(form: str, tau: Tensor) -> float:
    """By numpy, from columns, or from rows where there are fewer of them."""
    matrix = tau.reshape(len(tau), -1).numpy()
    matrix = matrix if matrix.shape[0] >= matrix.shape[1] else matrix.T
    gram = np.einsum("ki,kj->ij", matrix, matrix)
    if form == "cosine":
        corr = gram / np.sqrt(np.outer(gram.diagonal(), gram.diagonal()))
        off = corr[~np.eye(len(corr), dtype=bool)]
        return float((off**2).mean()) if len(off) else 0.0
    norm = np.linalg.norm(gram - np.eye(len(gram)))
    return float(norm**2 if form == "paper" else norm)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", [(5, 3), (3, 5), (4, 4), (6, 2, 3, 3), (7, 1)])
def test_of_a_matrix_it_is_the_deviation_of_its_gram_matrix(form: str, shape: tuple[int, ...]) -> None:
    tau = drawn(*shape)
    assert_close(deviation(form, w=tau).item(), by_hand(form, tau))


@pytest.mark.parametrize("form", FORMS)
def test_matrices_add_up_and_vectors_do_not_count(form: str) -> None:
    one, two = drawn(4, 3), drawn(3, 6, seed=1)
    together = deviation(form, one=one, bias=drawn(4), two=two, scale=drawn())
    assert_close(together.item(), by_hand(form, one) + by_hand(form, two))


@pytest.mark.parametrize("form", FORMS)
def test_orthogonal_columns_cost_nothing(form: str) -> None:
    basis = torch.linalg.qr(drawn(6, 4)).Q
    assert deviation(form, w=basis).item() < 1e-14


@pytest.mark.parametrize(("form", "expected"), [("paper", 3.0), ("code", 3**0.5), ("cosine", 0.0)])
def test_of_no_displacement_it_is_that_of_the_identity(form: str, expected: float) -> None:
    assert_close(deviation(form, w=torch.zeros(5, 3, dtype=torch.float64)).item(), expected)
    assert not slope_of(form, torch.zeros(5, 3)).any()


def test_the_form_of_the_code_inflates_small_updates() -> None:
    # ||D^T D - I|| is about sqrt(n) - ||D||^2 / sqrt(n): a step down its gradient goes along D.
    tau = 1e-5 * drawn(6, 4)
    assert_close(slope_of("code", tau), -2 * tau / 4**0.5, rtol=1e-6, atol=0)
    assert_close(slope_of("paper", tau), -4 * tau, rtol=1e-6, atol=0)


@pytest.mark.parametrize("scale", [1e-6, 0.1, 30.0])
def test_the_cosine_does_not_depend_on_the_size(scale: float) -> None:
    tau = drawn(6, 4)
    assert_close(deviation("cosine", w=scale * tau).item(), deviation("cosine", w=tau).item())
    assert_close((slope_of("cosine", tau) * tau).sum().item(), 0.0)


@pytest.mark.parametrize("form", FORMS)
def test_its_gradient_is_that_of_finite_differences(form: str) -> None:
    assert torch.autograd.gradcheck(lambda tau: deviation(form, w=tau), drawn(3, 5).requires_grad_())


@pytest.mark.parametrize("regime", ["full", "attention", "tangent", "lora", "tangent-lora"])
@pytest.mark.parametrize("form", FORMS)
def test_it_goes_with_every_regime(evaluator: tv.Evaluator, regime: str, form: Any) -> None:
    logged: list[float] = []
    settings = tv.TrainSettings(lr=1e-3, steps=3, batch_size=8, penalty=(OrthoReg(form=form, strength=1e-3),))
    vector = tv.finetune(
        evaluator.backbone,
        evaluator.part("pets"),
        regime=regime,
        settings=settings,
        log=lambda _, values: logged.append(values["penalty"]),
    )
    assert vector.norm() > 0 and len(logged) == 3 and all(value >= 0 for value in logged)


def test_a_selection_without_matrices_is_refused(evaluator: tv.Evaluator) -> None:
    with pytest.raises(InputError, match="penalty orthoreg: no matrix"):
        tv.finetune(
            evaluator.backbone,
            evaluator.part("pets"),
            regime="attention-biases",
            settings=tv.TrainSettings(steps=1, penalty=(OrthoReg(),)),
        )
