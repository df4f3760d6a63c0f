"""Every rule, one operation at a time: value, tangent and gradient are those of torch.func."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from taskvec.tangent.dual import RULES
from taskvec.tangent.linearization import Linearization, Route

FIXED = torch.randn(3, 4, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
SEEN = torch.tensor([[True, True, False, True], [False, False, False, True], [True] * 4])
IMAGE = torch.randn(2, 4, 7, 6, generator=torch.Generator().manual_seed(8), dtype=torch.float64)


def shaped(x: Tensor, *shape: int) -> Tensor:
    """As many of the entries as the shape needs, repeated."""
    needed = int(torch.Size(shape).numel())
    return x.flatten().repeat(needed // x.numel() + 1)[:needed].view(shape)


def attention(**options: object) -> Callable[[Tensor, Tensor], Tensor]:
    def run(x: Tensor, y: Tensor) -> Tensor:
        query, key = shaped(x, 2, 4, 3, 6), shaped(y, 2, 4, 4, 6)
        return F.scaled_dot_product_attention(query, key, key + shaped(x, 2, 4, 4, 6), **options)  # type: ignore[arg-type]

    return run


def grouped(x: Tensor, y: Tensor) -> Tensor:
    query, key = shaped(x, 2, 4, 3, 6), shaped(y, 2, 2, 3, 6)
    return F.scaled_dot_product_attention(query, key, key, is_causal=True, enable_gqa=True)


OPERATIONS: dict[str, Callable[[Tensor, Tensor], Tensor | tuple[Tensor, ...]]] = {
    # x and y are (3, 4); both move.
    "sum": lambda x, y: x + y,
    "sum with alpha": lambda x, y: torch.add(x, y, alpha=-0.3),
    "sum, broadcast": lambda x, y: x[0] + FIXED + y[:, :1],
    "sum with a number": lambda x, y: 2 + x + 1.5,
    "difference": lambda x, y: x - y,
    "difference with alpha": lambda x, y: torch.sub(FIXED, y, alpha=2.0),
    "difference from a number": lambda x, y: 1 - x,
    "difference, reversed": lambda x, y: torch.rsub(x, y[0]),
    "product": lambda x, y: x * y,
    "product, broadcast": lambda x, y: x[:1] * y[:, 1:2] * FIXED,
    "square": lambda x, y: x * x,
    "quotient": lambda x, y: x / (2 + y * y),
    "quotient by a constant": lambda x, y: x / FIXED,
    "quotient of a constant": lambda x, y: FIXED / (2 + x * x),
    "reciprocal": lambda x, y: 1 / (2 + x * x),
    "matrices": lambda x, y: x @ y.T,
    "matrix and vector": lambda x, y: x @ y[0],
    "batched matrices": lambda x, y: shaped(x, 2, 3, 4) @ shaped(y, 2, 4, 2),
    "deep matrices": lambda x, y: shaped(x, 2, 2, 3, 4) @ shaped(y, 2, 2, 4, 2),
    "matrix times constant": lambda x, y: FIXED.T @ x,
    "einsum": lambda x, y: torch.einsum("ij,kj->ik", x, y),
    "linear": lambda x, y: F.linear(x, y, x[:, 0]),
    "linear of a constant": lambda x, y: F.linear(FIXED, y),
    "linear, bias alone": lambda x, y: F.linear(FIXED, FIXED, x[:, 0]),
    "linear, deep": lambda x, y: F.linear(shaped(x, 2, 3, 4), y, y[:, 1]),
    "addmm": lambda x, y: torch.addmm(x[0, :3], x, y.T),
    "addmm with beta": lambda x, y: torch.addmm(x[0, :3], x, y.T, beta=0.5),
    "embedding": lambda x, y: F.embedding(torch.tensor([[2, 0, 2], [1, 1, 0]]), x),
    "convolution": lambda x, y: F.conv2d(IMAGE, shaped(x, 2, 4, 3, 3), y[0, :2], padding=1),
    "convolution, both": lambda x, y: F.conv2d(shaped(x, 2, 4, 5, 5), shaped(y, 2, 2, 3, 3), groups=2),
    "convolution, strided": lambda x, y: F.conv2d(shaped(x, 1, 4, 8, 8), shaped(y, 2, 4, 3, 3), None, 2),
    "convolution, bias alone": lambda x, y: F.conv2d(IMAGE, shaped(FIXED, 2, 4, 3, 3), y[0, :2]),
    "convolution, one-dimensional": lambda x, y: F.conv1d(shaped(x, 2, 4, 9), shaped(y, 3, 4, 2), y[:, 0]),
    "patches": lambda x, y: F.conv2d(IMAGE, shaped(x, 3, 4, 3, 3), y[:, 0], stride=3),
    "patches, both": lambda x, y: F.conv2d(shaped(x, 2, 4, 6, 4), shaped(y, 3, 4, 2, 2), stride=(2, 2)),
    "batch norm": lambda x, y: F.batch_norm(
        shaped(x, 2, 4, 3, 2), FIXED[0], FIXED[1] ** 2 + 1, shaped(y, 4), y[0]
    ),
    "batch norm, weight alone": lambda x, y: F.batch_norm(IMAGE, FIXED[0], FIXED[1] ** 2 + 1, y[0], FIXED[2]),
    "batch norm, bias alone": lambda x, y: F.batch_norm(IMAGE, FIXED[0], FIXED[1] ** 2 + 1, FIXED[2], y[0]),
    "batch norm, plain": lambda x, y: F.batch_norm(x * y, FIXED[0], FIXED[1] ** 2 + 1, eps=0.1),
    "batch norm of the batch": lambda x, y: F.batch_norm(x, None, None, y[0], y[1], training=True),
    "pad": lambda x, y: F.pad(x, (1, 2), value=3.0) * F.pad(y, (1, 2)),
    "pad, reflected": lambda x, y: F.pad(x[None], (1, 2), mode="reflect"),
    "hardtanh": lambda x, y: F.hardtanh(3 * x) + F.hardtanh(3 * y, -0.5, 0.8),
    "relu6": lambda x, y: F.relu6(5 * x) * F.hardtanh(5 * y, min_val=0.0, max_val=6.0),
    "average pool": lambda x, y: F.avg_pool2d(shaped(x, 1, 4, 7, 6), 2) * shaped(y, 1),
    "adaptive average pool": lambda x, y: F.adaptive_avg_pool2d(shaped(x, 1, 4, 7, 6), (1, 2)) * shaped(y, 1),
    "1 x 1 convolution": lambda x, y: F.conv2d(IMAGE, shaped(x, 5, 4, 1, 1), shaped(y, 5)),
    "layer norm": lambda x, y: F.layer_norm(x, (4,), y[0], y[1]),
    "layer norm, plain": lambda x, y: F.layer_norm(x * y, (4,)),
    "layer norm of a constant": lambda x, y: F.layer_norm(FIXED, (3, 4), x, y),
    "layer norm, bias alone": lambda x, y: F.layer_norm(FIXED, (4,), FIXED[0], y[1]),
    "rms norm": lambda x, y: F.rms_norm(x, (4,), y[0]),
    "group norm": lambda x, y: F.group_norm(shaped(x, 2, 4, 5), 2, y[0], y[1]),
    "softmax": lambda x, y: x.softmax(-1),
    "softmax over rows": lambda x, y: F.softmax(x + y, dim=0),
    "softmax, another dtype": lambda x, y: torch.softmax(x.float(), 1, dtype=torch.float64),
    "log-softmax": lambda x, y: x.log_softmax(-1),
    "GELU": lambda x, y: F.gelu(x),
    "GELU, tanh": lambda x, y: F.gelu(x, approximate="tanh"),
    "SiLU": lambda x, y: F.silu(x),
    "tanh": lambda x, y: x.tanh(),
    "sigmoid": lambda x, y: torch.sigmoid(x),
    "ReLU": lambda x, y: F.relu(x),
    "powers": lambda x, y: x.pow(3) + (2 + y * y) ** -0.5,
    "other functions": lambda x, y: x.exp() + y.sin() - x.erf() + (1 + y * y).rsqrt(),
    "attention": attention(),
    "attention, scaled": attention(scale=0.3),
    "attention, boolean mask": attention(attn_mask=SEEN),
    "attention, additive mask": attention(attn_mask=FIXED),
    "attention, causal": attention(is_causal=True),
    "attention, grouped queries": grouped,
    "mask": lambda x, y: x.masked_fill(x > 0, 0.5),
    "mask, moving value": lambda x, y: x.masked_fill(x > 0, y.sum()),
    "where": lambda x, y: torch.where(x > 0, x, y),
    "concatenation": lambda x, y: torch.cat([x, FIXED, y], dim=1),
    "stack": lambda x, y: torch.stack((FIXED, y)),
    "pieces": lambda x, y: torch.split(x, 2, dim=1) + y.chunk(2, dim=1) + x.unbind(0),
    "unpacking": lambda x, y: tuple(row * 2 for row in x),
    "largest": lambda x, y: x.max(dim=1).values,
    "sorted": lambda x, y: torch.sort(x, dim=1)[0] * y.argsort(dim=1),
    "indexing": lambda x, y: x[1:, [0, 3]] + y[..., None, 0][:2],
    "transposes": lambda x, y: x.T + y.mT + x.transpose(0, 1) + y.permute(1, 0),
    "shapes": lambda x, y: x.reshape(2, 6).expand(3, 2, 6).flatten(1).unsqueeze(0).squeeze() + y[0, 0],
    "like another": lambda x, y: x[0].expand_as(y) + FIXED.view_as(x) * y.type_as(x),
    "dtypes": lambda x, y: x.float().double() + y.to(torch.float32).to(x.dtype),
    "reductions": lambda x, y: x.mean(0) + y.sum(0) + x.var() + y.norm() + x.cumsum(0)[1],
    "constants": lambda x, y: x * torch.ones_like(x) + y.new_zeros(3, 4) + x.detach() * y,
    "padding": lambda x, y: F.pad(x, (1, 1), value=2.0),
    "dropout that is off": lambda x, y: F.dropout(x, 0.5, training=False) + F.dropout(y, 0.0),
    "upsampling": lambda x, y: F.interpolate(shaped(x, 1, 4, 3, 3), scale_factor=2, mode="bilinear"),
    "pooling": lambda x, y: F.avg_pool2d(shaped(x, 1, 4, 4, 4), 2),
}


def run(params: dict[str, Tensor], operation: Callable[[Tensor, Tensor], object]) -> object:
    return operation(params["x"], params["y"])


def at_zero() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {name: torch.randn(3, 4, generator=draw, dtype=torch.float64) for name in ("x", "y")}


@pytest.mark.parametrize("moved", [("x", "y"), ("x",), ("y",)], ids="+".join)
@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
def test_a_rule_equals_torch_func(
    operation: Callable[[Tensor, Tensor], object], moved: tuple[str, ...]
) -> None:
    outcomes: list[tuple[list[Tensor], list[Tensor]] | None] = []
    routes: tuple[Route, ...] = ("func", "rules")
    for route in routes:
        draw = torch.Generator().manual_seed(1)
        tau = {
            name: torch.randn(3, 4, generator=draw, dtype=torch.float64).requires_grad_() for name in moved
        }
        lin = Linearization(run, at_zero(), route=route)
        try:
            found = lin(tau, operation)
        except Exception as error:
            if "no output depends" not in str(error):
                raise
            outcomes.append(None)
            continue
        outs = [found] if isinstance(found, Tensor) else list(found)
        total = sum((out * shaped(FIXED, *out.shape)).sum() for out in outs)
        slopes = torch.autograd.grad(total, list(tau.values()), allow_unused=True)  # type: ignore[arg-type]
        filled = [
            torch.zeros_like(leaf) if slope is None else slope
            for leaf, slope in zip(tau.values(), slopes, strict=True)
        ]
        outcomes.append(([out.detach() for out in outs], filled))
    assert_close(outcomes[1], outcomes[0], rtol=1e-7, atol=1e-7, equal_nan=False)


def test_a_query_that_sees_nothing_attends_to_nothing() -> None:
    """As in the fused kernel, whose own forward-mode derivative is NaN there."""
    seen = SEEN.clone()
    seen[1] = False
    operation = attention(attn_mask=seen)
    tau = {"y": torch.ones(3, 4, dtype=torch.float64).requires_grad_()}
    found = Linearization(run, at_zero(), route="rules")(tau, operation)
    [slope] = torch.autograd.grad(found.sum(), [tau["y"]])
    moved = {name: value + (1e-6 if name == "y" else 0) for name, value in at_zero().items()}
    f0, near = run(at_zero(), operation), run(moved, operation)
    assert isinstance(f0, Tensor) and isinstance(near, Tensor)
    assert not found[:, :, 1].any()
    assert slope.isfinite().all()
    assert_close(found.detach(), f0 + (near - f0) / 1e-6, rtol=1e-4, atol=1e-5)


def test_directions_that_do_not_reach_an_operation_stay_apart() -> None:
    """Two displacements, of x alone and of y alone: each product sees one moving factor."""
    lin = Linearization(run, at_zero(), route="rules")
    theta0 = at_zero()
    taus = [{"x": torch.ones(3, 4).double()}, {"y": torch.ones(3, 4).double()}]
    _, slopes = lin.jvps(taus, lambda x, y: x * y)
    assert_close(slopes, [theta0["y"], theta0["x"]])


def test_every_rule_has_been_tried() -> None:
    """Rules are found by the name of the torch function; a name that torch lacks would never be met."""
    known = {*dir(torch), *dir(Tensor), *dir(F)}
    assert [name for name in RULES if name not in known] == []
