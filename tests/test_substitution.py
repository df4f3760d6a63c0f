"""Other tensors in the place of a module's own, for a while."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from taskvec.substitution import substituted


class Shared(nn.Module):
    """A module with two names, and a matrix with two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = self.first
        self.third = nn.Linear(3, 3)
        self.third.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.third(self.second(self.first(x)))
        return out


class Counting(nn.Module):
    """A module that replaces a buffer, as some do while they run."""

    calls: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls = self.calls + 1
        return x * self.weight


MODULES: dict[str, Callable[[], nn.Module]] = {
    "shared": Shared,
    "counting": Counting,
    "recurrent": lambda: nn.LSTM(3, 3, num_layers=2),
    "normalised": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(3, 3)),
    "attention": lambda: nn.Sequential(nn.TransformerEncoderLayer(3, 1, 4, dropout=0.0)),
}


def first(out: Tensor | tuple[Tensor, ...]) -> Tensor:
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("name", MODULES)
def test_it_runs_as_a_module_that_holds_the_values_and_holds_its_own_afterwards(name: str) -> None:
    torch.manual_seed(0)
    model, x = MODULES[name](), torch.randn(4, 3)
    own = {key: value.clone() for key, value in model.state_dict().items()}
    before = dict(model.named_parameters(remove_duplicate=False))
    values = {key: torch.randn_like(value).requires_grad_() for key, value in model.named_parameters()}
    other = MODULES[name]()
    with torch.no_grad():
        for key, parameter in other.named_parameters():
            parameter.copy_(values[key])
    with substituted(model, values):
        out = first(model(x))
    torch.testing.assert_close(out, first(other(x)))
    slopes = torch.autograd.grad(out.sum(), list(values.values()))
    assert all(bool(slope.isfinite().all()) for slope in slopes)
    after = dict(model.named_parameters(remove_duplicate=False))
    assert all(after[key] is before[key] for key in before)
    assert all(torch.equal(value, own[key]) for key, value in model.state_dict().items() if key != "calls")
    assert torch.equal(first(model(x)), first(model(x)))


@pytest.mark.parametrize("name", ["first.weight", "second.weight", "third.weight"])
def test_any_name_will_do(name: str) -> None:
    model, x = Shared(), torch.randn(2, 3)
    with substituted(model, {name: torch.zeros(3, 3)}):
        assert torch.equal(model(x), model.third.bias.expand(2, 3))


def test_buffers_that_are_named_are_put_back() -> None:
    model = Counting()
    with substituted(model, dict(model.named_buffers())):
        model(torch.ones(3))
    assert model.calls == 0
    with substituted(model, {"weight": torch.zeros(3)}):
        model(torch.ones(3))
    assert model.calls == 1


def test_after_an_error_the_module_holds_its_own() -> None:
    model = nn.LSTM(3, 3)
    before = list(model._flat_weights)
    with pytest.raises(RuntimeError), substituted(model, {"weight_ih_l0": torch.zeros(12, 3)}):
        model(torch.zeros(2, 5))
    assert all(now is then for now, then in zip(model._flat_weights, before, strict=True))
    assert model.weight_ih_l0 is before[0]


def test_a_name_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError), substituted(nn.Linear(2, 2), {"wight": torch.zeros(2, 2)}):
        pass
