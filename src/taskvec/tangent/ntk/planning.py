"""What a model needs: which rules hold for it, and how much memory a sample takes."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from taskvec.errors import InputError
from taskvec.tangent.ntk.features import Features, Plan, collect
from taskvec.tangent.ntk.recording import check_modules
from taskvec.tangent.ntk.samples import Samples
from taskvec.tangent.ntk.terms import jacobian


@dataclass(frozen=True)
class Sizes:
    """Bytes a sample: of the features of all classes, and of a forward pass's graph."""

    features: float
    graph: float
    classes: int
    dtype: torch.dtype
    device: torch.device


def planned(model: nn.Module, parameters: Mapping[str, nn.Parameter], samples: Samples) -> tuple[Plan, Sizes]:
    """A plan that was tried on the first two samples, and what a sample costs.

    Gradients by the rules are compared with plain backward passes, one random direction of the outputs a
    sample; a parameter whose uses the rules did not see (inside a compiled or custom function), or read
    wrongly, is taken sample by sample from then on.

    Raises: InputError for a model in which the samples of a batch influence each other, is random, or has
        other outputs than (N, C).
    """
    check_modules(model)
    few = samples[: min(2, len(samples))]
    plan = Plan(model, parameters)
    sizes = _measure(plan, few)
    _check_independence(model, few)
    wrong = _misread(plan, few)
    if wrong:
        plan.generic |= wrong
        plan.signature = None
        sizes = _measure(plan, few)
    return plan, sizes


def _measure(plan: Plan, few: Samples) -> Sizes:
    """One pass over a few samples, counting what it keeps."""
    saved: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for p in plan.model.parameters()}

    def count(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(count, lambda tensor: tensor):
        found, classes = plan.features(few)
    held = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for terms in found.values()
        for term in terms
        for tensor in term.tensors()
    }
    leaf = next(iter(plan.leaves.values()))
    return Sizes(
        sum(held.values()) / len(few), sum(saved.values()) / len(few), classes, leaf.dtype, leaf.device
    )


def _check_independence(model: nn.Module, few: Samples) -> None:
    """A sample's outputs must not depend on its company: there would be no J(x)."""
    with torch.no_grad():
        together: Tensor = few.through(model)
        alone: Tensor = few[:1].through(model)
    tolerance = torch.finfo(together.dtype).eps ** 0.5
    if not torch.allclose(together[:1], alone, rtol=tolerance, atol=tolerance * float(together.abs().max())):
        raise InputError(
            "ntk: the model's outputs for a sample change with the other samples of the batch, or from "
            "call to call; call model.eval(), or give a model that treats samples one by one"
        )


def _misread(plan: Plan, few: Samples) -> frozenset[str]:
    """Names whose gradients by the rules differ from those of a backward pass."""
    n = len(few)
    out, noted = plan.recorded(few)
    draws = torch.randn(out.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    direction = draws.to(out)
    with torch.enable_grad():
        found: Features = collect((out @ direction)[:, None], noted)
    names = [name for name in plan.leaves if name not in plan.generic]
    leaves = {name: plan.leaves[name] for name in names}
    with torch.enable_grad():
        plain = plan.called(leaves, few) @ direction
    exact: list[tuple[Tensor | None, ...]] = [(None,) * len(names)] * n
    if plain.requires_grad and names:
        exact = [
            torch.autograd.grad(plain, list(leaves.values()), one, retain_graph=i + 1 < n, allow_unused=True)
            for i, one in enumerate(torch.eye(n).to(plain))
        ]
    errors, norms = {}, {}
    for place, name in enumerate(names):
        shape = leaves[name].shape
        ours = jacobian(found[name], n, 1, shape)[:, 0] if name in found else torch.zeros(n, *shape).to(out)
        true = torch.stack(
            [torch.zeros_like(ours[0]) if row[place] is None else row[place] for row in exact]  # type: ignore[misc]
        )
        errors[name], norms[name] = float((ours - true).norm()), float(true.norm())
    tolerance = torch.finfo(out.dtype).eps ** 0.5
    floor = 1e-3 * tolerance * max(norms.values(), default=0.0)
    return frozenset(name for name in names if not errors[name] <= tolerance * norms[name] + floor)
