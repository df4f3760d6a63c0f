"""A module in its tangent space."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.names import select_names
from taskvec.substitution import substituted
from taskvec.tangent.forward import NoTangent
from taskvec.tangent.linearization import Linearization, Route

Choice = str | Callable[[str], bool]


class TangentModel(nn.Module):
    """``f(x; theta0) + J(x; theta0) tau``, called like f; made by :func:`linearize`.

    Its parameters are tau alone: an optimizer over ``parameters()`` and a ``state_dict()`` hold nothing else.
    """

    @checked
    def __init__(self, model: nn.Module, names: list[str], route: Route) -> None:
        super().__init__()
        params = dict(model.named_parameters())
        self.displacement = nn.Module()
        for name in names:
            _plant(self.displacement, name, torch.zeros_like(params[name], dtype=torch.float32))
        self._linearization = Linearization(partial(_called, model), params, route=route, module=model)

    @property
    def tau(self) -> dict[str, nn.Parameter]:
        """The displacement: float32 leaves under the model's own parameter names."""
        return dict(self.displacement.named_parameters())

    @property
    def linearization(self) -> Linearization:
        """The same as a function of tau, for other displacements and for many at once."""
        return self._linearization

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model returns, every floating-point tensor in it to first order in tau."""
        return self._linearization(self.tau, *args, **kwargs)


@checked
def linearize(model: nn.Module, params: Choice = "all", *, route: Route = "auto") -> TangentModel:
    """The tangent of a model at its present weights, with the model's own call signature.

        f_lin(x; tau) = f(x; theta0) + J(x; theta0) tau

    Args:
        model: shared, not copied: theta0 are its own weights, buffers stay as they are. It is neither changed
            nor owned; leave its weights alone and move it to another device before, not after.
        params: what tau holds: ``all``, ``attention``, another selection of :mod:`taskvec.names`,
            ``re:PATTERN`` or a predicate on names. Other parameters have no tangent and cost none. A tied
            parameter comes once, under its first name.
        route: how derivatives are computed, see :class:`~taskvec.tangent.linearization.Linearization`.

    Returns: a module whose tau starts at zero, where it equals the model.
    Raises: InputError if nothing is selected; NoTangent, naming the module and what to do about it, for one
        that cannot be linearized: batch norm or dropout in training mode, an in-place activation, compiled
        or scripted code, and on the first call an operation without a forward-mode derivative.
    Source: Ortiz-Jimenez et al. 2023, arXiv:2305.12827, equation 3.

    >>> model = nn.Sequential(nn.Linear(3, 4), nn.GELU(), nn.Linear(4, 2))
    >>> lin, x = linearize(model), torch.ones(1, 3)
    >>> bool(torch.equal(lin(x), model(x)))
    True
    """
    check_modules(model)
    known = [name for name, value in model.named_parameters() if value.is_floating_point()]
    where = type(model).__name__
    chosen = select_names(known, params, where) if isinstance(params, str) else list(filter(params, known))
    if not chosen:
        raise InputError(f"{where}: the predicate selects none of {len(known)} parameters")
    return TangentModel(model, chosen, route)


def check_modules(model: nn.Module) -> None:
    """Refuse modules whose tangent would be wrong or missing.

    Raises: NoTangent naming the first of them.
    """
    for name, module in model.named_modules():
        trouble = _trouble(module)
        if trouble:
            raise NoTangent(f"{name or 'the model'!r} ({type(module).__name__}) {trouble}")


def _trouble(module: nn.Module) -> str | None:
    if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
        return "is in training mode, where it mixes examples and moves its buffers; call model.eval()"
    if isinstance(module, nn.modules.dropout._DropoutNd) and module.training and module.p:
        return "is in training mode, where the function is random; call model.eval()"
    if isinstance(module, TangentModel):
        return "is linear in tau already; linearize the model that it was made from"
    if getattr(module, "max_norm", None) is not None:
        return "rescales its weights in place; set its max_norm=None"
    if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.sparse:
        return "has sparse gradients; set its sparse=False"
    if getattr(module, "inplace", False):
        return "overwrites a value that its derivative needs; set its inplace=False"
    if isinstance(module, torch.jit.ScriptModule) or type(module).__name__ == "OptimizedModule":
        return "is compiled and may lose the tangent silently; linearize the original, compile the result"
    return None


def _called(model: nn.Module, params: dict[str, Tensor], *args: Any, **kwargs: Any) -> Any:
    """The model with other parameters; buffers that it replaces on the way are put back."""
    check_modules(model)  # its mode may have changed since
    with substituted(model, {**params, **dict(model.named_buffers())}):
        return model(*args, **kwargs)


def _plant(root: nn.Module, name: str, value: Tensor) -> None:
    """Register a parameter under a dotted name."""
    *path, last = name.split(".")
    for part in path:
        if part not in root._modules:
            root.add_module(part, nn.Module())
        root = root.get_submodule(part)
    root.register_parameter(last, nn.Parameter(value))
