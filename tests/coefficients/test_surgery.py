"""Surgery of features: nothing at its start, nothing to do where nothing differs, less to differ after it."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from taskvec.coefficients.after import SurgerySettings
from taskvec.coefficients.surgery import Surgery, fit_surgery, identity_surgery
from taskvec.errors import Diverged, InputError


def features(rows: int = 40, dim: int = 12, seed: int = 0) -> Tensor:
    return torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("dim", "rank"), [(12, 16), (512, 16), (1, 1), (7, 3)])
def test_it_begins_as_the_identity(dim: int, rank: int) -> None:
    z = features(dim=dim)
    surgery = identity_surgery(dim, rank)
    assert torch.equal(surgery(z), z)
    assert surgery.numbers == 2 * rank * dim
    assert torch.equal(fit_surgery(z, features(dim=dim, seed=1), SurgerySettings(steps=0)).surgery(z), z)


def test_a_merged_model_that_is_the_tasks_own_stays_as_it_is() -> None:
    z = features()
    fitted = fit_surgery(z, z.clone(), SurgerySettings(steps=30))
    assert fitted.trace == [0.0] * 30
    assert torch.equal(fitted.surgery(z), z)
    assert (fitted.before, fitted.after) == (0.0, 0.0)


def test_it_is_what_the_equation_says() -> None:
    z, down, up = features(), features(3, 12, 1), features(12, 3, 2)
    expected = torch.stack([row - up @ (down @ row).clamp(min=0) for row in z])
    assert_close(Surgery(down, up)(z), expected)


def test_on_a_linear_toy_the_loss_falls_step_by_step() -> None:
    """All examples at once, to a shift that so few steps do not reach."""
    z = features(32)
    own = z - 3
    fitted = fit_surgery(z, own, SurgerySettings(steps=60, batch=32, lr=1e-3))
    assert all(later <= earlier for earlier, later in zip(fitted.trace, fitted.trace[1:], strict=False))
    assert fitted.after < fitted.before == pytest.approx(float((z - own).abs().mean()))


def test_steps_are_those_of_autograd() -> None:
    z, own = features(16), features(16, seed=8)
    fitted = fit_surgery(z, own, SurgerySettings(steps=25, rank=4, lr=1e-2))
    start = identity_surgery(12, 4)
    leaves = [start.down.clone().requires_grad_(), start.up.clone().requires_grad_()]
    optimizer = torch.optim.Adam(leaves, lr=1e-2)
    for _ in range(25):  # batches of all examples: their order is of no matter
        optimizer.zero_grad()
        torch.autograd.backward((z - (z @ leaves[0].T).relu() @ leaves[1].T - own).abs().mean())
        optimizer.step()
    assert_close(fitted.surgery.up, leaves[1].detach(), rtol=1e-3, atol=1e-5)
    assert_close(fitted.surgery.down, leaves[0].detach(), rtol=1e-3, atol=1e-5)


def test_a_seed_decides_it_and_the_callers_tensors_stay() -> None:
    z, own = features(), features(seed=5)
    before = z.clone(), own.clone()
    one, same, other = (fit_surgery(z, own, SurgerySettings(steps=20), seed=seed) for seed in (1, 1, 2))
    assert one.trace == same.trace and torch.equal(one.surgery.down, same.surgery.down)
    assert one.trace != other.trace
    assert torch.equal(z, before[0]) and torch.equal(own, before[1])


def test_every_example_comes_before_one_comes_again() -> None:
    """Two steps of half the examples see each once: the steps' losses average to that of all."""
    z, own = features(32), features(32, seed=6)
    fitted = fit_surgery(z, own, SurgerySettings(steps=2, batch=16, lr=1e-30))
    assert sum(fitted.trace) / 2 == pytest.approx(float((z - own).abs().mean()), rel=1e-5)


def test_fewer_examples_than_a_batch_are_enough() -> None:
    fitted = fit_surgery(features(3), features(3, seed=7), SurgerySettings(steps=200, lr=1e-2))
    assert fitted.after < fitted.before


def test_features_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match=r"surgery: features \(40, 12\) of the merged model and \(39, 12\)"):
        fit_surgery(features(40), features(39))
    with pytest.raises(InputError, match="expected"):
        fit_surgery(features(0), features(0))
    with pytest.raises(Diverged, match="not finite"):
        fit_surgery(features() / 0, features())
