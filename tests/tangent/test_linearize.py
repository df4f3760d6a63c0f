"""The linearized model: a tangent to the model, with exact gradients, that refuses to be silently wrong."""

from collections import OrderedDict
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from taskvec.errors import InputError
from taskvec.tangent.forward import NoTangent, jvp
from taskvec.tangent.linearization import Linearization, Route
from taskvec.tangent.linearize import TangentModel, linearize

ROUTES: tuple[Route, ...] = ("rules", "lean", "func")


class Tied(nn.Module):
    """One matrix used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(7, 4)
        self.mix = nn.Linear(4, 4)
        self.out = nn.Linear(4, 7, bias=False)
        self.out.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.mix(self.embedding(ids))), self.out.weight)


class Nested(nn.Module):
    """Outputs in a nest, some of them no tensors or no floats."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(3, 2)

    def forward(self, x: Tensor, *, shift: float = 0.0) -> dict[str, Any]:
        y = self.inner(x) + shift
        return {"logits": (y, y.exp()), "best": y.argmax(-1), "constant": torch.ones(2), "none": None}


class Custom(torch.autograd.Function):
    """A fused kernel that knows its backward pass only."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.sin()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return slope.mul(x.cos())


class Around(nn.Module):
    """A layer, and any function around it."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.layer, self.last, self.function = nn.Linear(3, 3), nn.Linear(3, 2), function

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.function(self.layer(x)))  # type: ignore[no-any-return]


def mlp(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 5), nn.GELU(), nn.LayerNorm(5), nn.Linear(5, 2)).double()


def displaced(lin: TangentModel, seed: int = 1, scale: float = 0.1) -> TangentModel:
    draw = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for leaf in lin.tau.values():
            leaf.copy_(scale * torch.randn(leaf.shape, generator=draw))
    return lin


def inputs(rows: int = 6) -> Tensor:
    return torch.randn(rows, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)


# What it is


def test_at_zero_it_is_the_model() -> None:
    model = mlp()
    assert_close(linearize(model)(inputs()), model(inputs()))


@given(st.integers(0, 2**20), st.floats(-3, 3), st.floats(-3, 3))
def test_it_is_affine_in_tau(seed: int, a: float, b: float) -> None:
    model, x = mlp(), inputs()
    lin = linearize(model).linearization
    draw = torch.Generator().manual_seed(seed)
    one, two = (
        {n: torch.randn(p.shape, generator=draw, dtype=p.dtype) for n, p in model.named_parameters()}
        for _ in range(2)
    )
    f0 = model(x).detach()
    mixed = lin({n: a * one[n] + b * two[n] for n in one}, x)
    assert_close(mixed - f0, a * (lin(one, x) - f0) + b * (lin(two, x) - f0), rtol=1e-10, atol=1e-10)


def test_the_model_leaves_its_tangent_quadratically() -> None:
    model, x = mlp(), inputs()
    step = {n: torch.randn_like(p) for n, p in model.named_parameters()}
    lin = linearize(model).linearization

    def gap(size: float) -> float:
        moved = {n: p + size * step[n] for n, p in model.named_parameters()}
        tau = {n: size * s for n, s in step.items()}
        return float((functional_call(model, moved, (x,)) - lin(tau, x)).norm().detach())

    assert torch.tensor(gap(1e-3) / gap(1e-4)).log10() == pytest.approx(2, abs=0.02)


@pytest.mark.parametrize("route", ROUTES)
def test_every_route_gives_the_value_and_the_gradient_of_torch_func(route: Route) -> None:
    """Oracle: jvp and grad of torch.func, float64."""
    model, x = mlp(), inputs()
    lin = displaced(linearize(model, route=route))
    lin.double()
    target = torch.randn(6, 2, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    loss = F.mse_loss(lin(x), target)
    loss.backward()  # type: ignore[no-untyped-call]
    theta0 = {n: p.detach() for n, p in model.named_parameters()}

    def exact(tau: dict[str, Tensor]) -> Tensor:
        value, slope = jvp(lambda p: functional_call(model, dict(p), (x,)), theta0, tau)
        return F.mse_loss(value + slope, target)

    tau = {n: leaf.detach() for n, leaf in lin.tau.items()}
    assert_close(loss, exact(tau), rtol=1e-13, atol=0)
    for name, slope in torch.func.grad(exact)(tau).items():
        assert_close(lin.tau[name].grad, slope, rtol=1e-12, atol=1e-14)


def test_the_gradient_at_zero_is_that_of_the_model() -> None:
    model, x = mlp(), inputs()
    lin = linearize(model).double()
    lin(x).square().sum().backward()
    model(x).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert_close(lin.tau[name].grad, parameter.grad)


def test_many_displacements_share_one_run() -> None:
    model, x = mlp(), inputs()
    lin = linearize(model).linearization
    taus = [{n: torch.randn_like(p) for n, p in model.named_parameters()} for _ in range(3)]
    taus.append({"0.bias": torch.ones(5).double()})
    for route in ROUTES:
        other = Linearization(lambda p, x: functional_call(model, dict(p), (x,)), lin.theta0, route=route)
        f0, slopes = other.jvps(taus, x)
        assert_close(f0, model(x).detach())
        for tau, slope in zip(taus, slopes, strict=True):
            assert_close(f0 + slope, lin(tau, x), rtol=1e-12, atol=1e-12)


# Modules of many kinds


@pytest.mark.parametrize("route", ROUTES)
def test_tied_weights_move_together(route: Route) -> None:
    model, ids = Tied().double(), torch.tensor([[1, 2, 6]])
    lin = displaced(linearize(model, route=route)).double()
    assert set(lin.tau) == {"embedding.weight", "mix.weight", "mix.bias"}
    small = 1e-6
    with torch.no_grad():
        moved = Tied().double()
        moved.load_state_dict(model.state_dict())
        for name, leaf in lin.tau.items():
            moved.get_parameter(name).add_(leaf, alpha=small)
        slope = (moved(ids) - model(ids)) / small
    assert_close(lin(ids) - model(ids), slope, rtol=1e-4, atol=1e-5)
    lin(ids).square().sum().backward()
    twin = displaced(linearize(model, route="func")).double()
    twin(ids).square().sum().backward()
    assert_close(lin.tau["embedding.weight"].grad, twin.tau["embedding.weight"].grad)


@pytest.mark.parametrize("route", ROUTES)
def test_a_module_with_two_names_gets_its_weights_back(route: Route) -> None:
    layer = nn.Linear(3, 3).double()
    model = nn.Sequential(OrderedDict(one=layer, bend=nn.Tanh(), two=layer))
    x, before = inputs(), layer.weight
    lin = displaced(linearize(model, route=route)).double()
    assert set(lin.tau) == {"one.weight", "one.bias"}
    small = {name: value + 1e-6 * lin.tau[name].detach() for name, value in model.named_parameters()}
    near = F.linear(torch.tanh(F.linear(x, small["one.weight"], small["one.bias"])), *small.values())
    assert_close(lin(x) - model(x), (near - model(x)) / 1e-6, rtol=1e-4, atol=1e-5)
    assert layer.weight is before


@pytest.mark.parametrize("route", ROUTES)
def test_the_output_keeps_its_structure(route: Route) -> None:
    model, x = Nested().double(), inputs()
    found = displaced(linearize(model, route=route)).double()(x, shift=0.5)
    assert_close(found["best"], model(x)["best"])
    assert_close(found["constant"], torch.ones(2))
    assert found["none"] is None
    step = found["logits"][0] - model(x, shift=0.5)["logits"][0]
    assert_close(found["logits"][1], model(x, shift=0.5)["logits"][1] * (1 + step))


def test_batch_norm_in_evaluation_mode_and_buffers_are_constant() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten()).double().eval()
    x = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    values = [displaced(linearize(model, route=route)).double()(x) for route in ROUTES]
    assert_close(values[0], values[2])
    assert_close(values[1], values[2])
    assert_close(dict(model.named_buffers()), before)


def test_a_transformer_of_torch_is_linearized_although_its_fast_path_has_no_tangent() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True).double().eval()
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    values = [displaced(linearize(layer, route=route)).double()(x) for route in (*ROUTES, "auto")]
    for value in values:
        assert_close(value, values[2])
    assert torch.backends.mha.get_fastpath_enabled()


# Selections


def test_parameters_that_are_not_selected_have_no_tangent() -> None:
    model, x = mlp(), inputs()
    for choice in ("re:0\\..*", lambda name: name.startswith("0.")):
        lin = displaced(linearize(model, choice)).double()
        assert set(lin.tau) == {"0.weight", "0.bias"}
        whole = linearize(model).linearization
        zeros = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        assert_close(lin(x), whole({**zeros, **lin.tau}, x))


def test_an_empty_selection_is_refused() -> None:
    for choice, said in (("re:nothing", "leaves nothing"), (lambda name: False, "selects none of 6")):
        with pytest.raises(InputError, match=said):
            linearize(mlp(), choice)
    with pytest.raises(InputError, match="tau names 'other'"):
        linearize(mlp()).linearization({"other": torch.zeros(1)}, inputs())
    with pytest.raises(InputError, match=r"tau: '0.bias' has shape \(1, 5\), expected \(5,\)"):
        linearize(mlp()).linearization.jvps([{"0.bias": torch.zeros(1, 5)}], inputs())
    with pytest.raises(InputError, match="route: 'fast' is not one of"):
        linearize(mlp(), route="fast")  # type: ignore[arg-type]


# What it owns


def test_it_shares_the_weights_and_changes_none_of_the_model() -> None:
    model, x = mlp(), inputs()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.get_parameter("0.weight").requires_grad_(False)
    lin = displaced(linearize(model, "re:.*weight")).double()
    optimizer = torch.optim.AdamW(lin.parameters(), lr=0.1)
    for _ in range(3):
        lin(x).square().sum().backward()
        optimizer.step()
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())
    assert all(p.grad is None for p in model.parameters())
    assert not model.get_parameter("0.weight").requires_grad
    shared = lin.linearization.theta0["0.weight"].data_ptr()
    assert shared == model.get_parameter("0.weight").data_ptr()


def test_tau_is_float32_and_alone_in_the_state() -> None:
    lin = linearize(mlp().bfloat16())
    assert {leaf.dtype for leaf in lin.tau.values()} == {torch.float32}
    assert set(lin.state_dict()) == {f"displacement.{name}" for name in lin.tau}
    assert len(list(lin.parameters())) == len(lin.tau)
    out = displaced(lin)(inputs().bfloat16())
    out.float().sum().backward()
    assert all(leaf.grad is not None and leaf.grad.dtype == torch.float32 for leaf in lin.tau.values())


# What it refuses


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.BatchNorm1d(3), r"'1' \(BatchNorm1d\) is in training mode.*model.eval"),
        (nn.Dropout(0.1), r"'1' \(Dropout\) is in training mode.*model.eval"),
        (nn.ReLU(inplace=True), r"'1' \(ReLU\) overwrites.*inplace=False"),
    ],
)
def test_modules_that_cannot_be_linearized_are_named(module: nn.Module, said: str) -> None:
    with pytest.raises(NoTangent, match=said):
        linearize(nn.Sequential(nn.Linear(3, 3), module))


def test_a_model_put_into_training_mode_later_is_refused() -> None:
    norm = nn.BatchNorm1d(3).eval()
    model = nn.Sequential(nn.Linear(3, 3), norm).eval()
    lin = linearize(model)
    lin(torch.ones(2, 3))
    model.train()
    with pytest.raises(NoTangent, match=r"'1' \(BatchNorm1d\) is in training mode"):
        lin(torch.ones(2, 3))
    assert norm.running_mean is not None
    assert torch.equal(norm.running_mean, torch.zeros(3))


def test_compiled_modules_are_named() -> None:
    compiled = torch.compile(nn.Linear(3, 3), backend="eager")
    assert isinstance(compiled, nn.Module)
    model = nn.Sequential(nn.Linear(3, 3), compiled)
    with pytest.raises(NoTangent, match=r"'1' \(OptimizedModule\) is compiled"):
        linearize(model)


@pytest.mark.parametrize("route", [*ROUTES, "auto"])
def test_a_kernel_without_a_derivative_is_named_and_never_passes_silently(route: Route) -> None:
    model = nn.Sequential(nn.Linear(3, 3), Around(Custom.apply))
    with pytest.raises(NoTangent, match=r"'1' \(Around\).*plain torch operations|'1' \(Around\)"):
        displaced(linearize(model, route=route))(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x.mul_(2.0), "'mul_' works in place"),
        (lambda x: F.relu(x, inplace=True), "in place"),
        (lambda x: x * x.sum().item(), "'item' takes a value out"),
        (lambda x: torch.add(x, 1.0, out=torch.empty(2, 3)), "in place"),
        (lambda x: F.dropout(x, 0.5), "dropout is on"),
    ],
)
def test_rules_refuse_what_would_lose_a_derivative(function: Callable[[Tensor], Tensor], said: str) -> None:
    with pytest.raises(NoTangent, match=said):
        displaced(linearize(Around(function), route="rules"))(torch.ones(2, 3))


def test_rules_refuse_a_stretch_without_grad() -> None:
    model = Around(torch.no_grad()(torch.sin))
    with pytest.raises(NoTangent, match="'sin' runs under no_grad"):
        displaced(linearize(model, route="rules"))(torch.ones(2, 3))


def test_outputs_that_do_not_depend_on_tau_are_refused() -> None:
    for route in ROUTES:
        with pytest.raises(NoTangent, match="no output depends"):
            linearize(Around(lambda x: torch.ones(2, 3)), "re:layer.*", route=route)(torch.ones(2, 3))


def test_a_second_derivative_is_refused_where_it_would_be_wrong() -> None:
    x = inputs()
    for route in ("rules", "lean"):
        lin = displaced(linearize(mlp(), route=route)).double()
        slopes = torch.autograd.grad(lin(x).square().sum(), list(lin.parameters()), create_graph=True)
        with pytest.raises(RuntimeError, match="once_differentiable"):
            sum(slope.square().sum() for slope in slopes).backward()  # type: ignore[union-attr]


def unsteady(x: Tensor) -> Tensor:
    return x * torch.rand(3, dtype=x.dtype)


def spread(x: Tensor) -> Tensor:
    with torch.no_grad():
        width = x.std()
    return x / width


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda x: x * x.sum().item(), "'item' takes a value out"),
        (lambda x: x * float(x.sum()), "'__float__' takes a value out"),
        (lambda x: F.dropout(x, 0.5, True), "dropout is on"),
        (spread, "'std' runs under no_grad"),
        (unsteady, "the function is random"),
        (lambda x: x + torch.randn_like(x), "the function is random"),
    ],
)
def test_what_no_route_gets_right_is_not_handed_to_another(
    function: Callable[[Tensor], Tensor], said: str
) -> None:
    with pytest.raises(NoTangent, match=said):
        displaced(linearize(Around(function)))(torch.ones(2, 3))


class Complex(nn.Linear):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        y = super().forward(x)
        return y, torch.fft.rfft(y)


class Opaque(nn.Linear):
    def forward(self, x: Tensor) -> SimpleNamespace:  # type: ignore[override]
        return SimpleNamespace(y=super().forward(x))


@pytest.mark.parametrize("route", [*ROUTES, "auto"])
def test_outputs_without_a_tangent_are_refused(route: Route) -> None:
    with pytest.raises(NoTangent, match="complex"):
        displaced(linearize(Complex(3, 3), route=route))(torch.ones(2, 3))
    with pytest.raises(NoTangent, match=r"SimpleNamespace.*register_dataclass"):
        displaced(linearize(Opaque(3, 3), route=route))(torch.ones(2, 3))


@pytest.mark.parametrize(
    ("module", "said"),
    [
        (nn.Embedding(3, 3, max_norm=1.0), "max_norm=None"),
        (nn.Embedding(3, 3, sparse=True), "sparse=False"),
        (linearize(nn.Linear(3, 3)), "linear in tau already"),
    ],
)
def test_modules_with_weights_of_another_kind_are_named(module: nn.Module, said: str) -> None:
    with pytest.raises(NoTangent, match=said):
        linearize(nn.Sequential(module))


SQUARE = torch.arange(9.0, dtype=torch.float64).reshape(3, 3).sin()


@pytest.mark.parametrize(
    ("function", "route"),
    [
        (lambda x: torch.sum(input=x, dim=-1, keepdim=True) * x, "rules"),
        (lambda x: torch.matmul(input=x, other=SQUARE), "rules"),
        (lambda x: torch.add(x, other=SQUARE, alpha=3) * torch.mul(x, other=2.0), "rules"),
        (lambda x: torch.cat(tensors=[x, x.sin()], dim=0)[:3], "rules"),
        (lambda x: F.gelu(input=x) + torch.div(x, other=2.0), "rules"),
        (lambda x: SQUARE[None] @ x.expand(2, 3, 3) @ x[None], "rules"),
        (lambda x: x[None] @ x.expand(2, 3, 3).sin(), "rules"),
        (lambda x: x.H @ SQUARE + x.real, "rules"),
        (lambda x: torch.fft.rfft(x).abs().sum() * x, "func"),
        (lambda x: F.glu(torch.cat([x, x.sin()], -1)), "rules"),
        (lambda x: F.glu(torch.cat([x, x.clone().mul_(2.0)], -1)), "lean"),
        (lambda x: torch.vmap(torch.sin)(x), "func"),
    ],
)
@pytest.mark.filterwarnings("ignore:tangent rules are not used")
def test_unusual_calls_equal_finite_differences(function: Callable[[Tensor], Tensor], route: Route) -> None:
    torch.manual_seed(0)
    model = Around(function).double()
    lin, x, h = displaced(linearize(model)), inputs(3), 1e-5
    tau, theta0 = lin.tau, dict(model.named_parameters())

    def at(scale: float) -> Tensor:
        return functional_call(model, {n: theta0[n] + scale * tau[n] for n in tau}, x)  # type: ignore[no-any-return]

    out = lin(x)
    assert lin.linearization.route == route
    slope = (at(h) - at(-h)) / (2 * h)
    assert_close((out - model(x)).detach(), slope.detach(), rtol=1e-6, atol=1e-8)
    pull = torch.randn(out.shape, generator=torch.Generator().manual_seed(3), dtype=out.dtype)
    grads = torch.autograd.grad(out, list(tau.values()), pull)
    pulled = sum((g.double() * step.detach()).sum() for g, step in zip(grads, tau.values(), strict=True))
    assert_close(pulled, (pull * slope).sum().detach(), rtol=1e-5, atol=1e-6)


def test_wrong_inputs_fail_as_in_the_model_and_decide_nothing() -> None:
    lin = linearize(mlp())
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        lin(torch.ones(2, 7, dtype=torch.float64))
    routes = [lin.linearization.route]
    lin(inputs())
    routes.append(lin.linearization.route)
    assert routes == ["auto", "rules"]
    assert linearize(mlp())(inputs(0)).shape == (0, 2)


def test_a_buffer_that_the_model_replaces_is_put_back() -> None:
    class Running(nn.Linear):
        mean: Tensor

        def __init__(self) -> None:
            super().__init__(3, 3)
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            y = super().forward(x)
            self.mean = 0.9 * self.mean + 0.1 * y.mean(0)
            return y - self.mean

    model = Running()
    lin = linearize(model)
    assert_close(lin(torch.ones(2, 3)), lin(torch.ones(2, 3)))
    assert torch.equal(model.mean, torch.zeros(3))


def test_in_place_sums_go_another_way(recwarn: pytest.WarningsRecorder) -> None:
    def doubled(x: Tensor) -> Tensor:
        y = x.clone()
        y += x
        return y

    model = Around(doubled).double()
    x = inputs()
    lin = displaced(linearize(model)).double()
    assert_close(lin(x), displaced(linearize(model, route="func")).double()(x))
    assert lin.linearization.route == "func"
