"""From a model and samples to the per-sample gradients of every selected parameter."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_flatten

from taskvec.errors import InputError
from taskvec.substitution import substituted
from taskvec.tangent.forward import without_fast_path
from taskvec.tangent.ntk.layers import Copied, General, Names, Use, use_of
from taskvec.tangent.ntk.samples import Samples
from taskvec.tangent.ntk.terms import Dense, Outer, Term, jacobian

Features = dict[str, list[Term]]
"""By parameter, what its uses contribute; a parameter without gradient is not in it."""


@dataclass
class _Noted:
    """What hooks note in a pass.

    Args:
        samples: how many pass.
        uses: calls of modules. calls: how many, by module.
        failed: parameters with a call that cannot be differentiated.
    """

    samples: int
    uses: list[Use] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    failed: set[str] = field(default_factory=set)

    def add(self, use: Use, slopes: Sequence[Tensor | None]) -> None:
        """Give the gradients of one class to a call."""
        if self.failed.isdisjoint(use.names.values()):
            try:
                use.add(slopes)
            except Exception:  # a module that vmap cannot run fails in its own way
                self.failed.update(use.names.values())


class SampleGradients:
    """How the per-sample gradients of a model's outputs are taken.

    Every parameter has its sites: the modules that own it, whose calls are watched by hooks. Where the
    gradients turn out wrong (the parameter is used elsewhere as well) or cannot be had, the module around it
    becomes the site, up to the whole model; what fails there is differentiated sample by sample.
    Parameters of modules that have parts (positions and tokens of transformers) are first tried as copies,
    one a sample: no module has to run again then.

    Args:
        parameters: the selected ones, by name.
        samples: two of them are tried.
        trim: leave out the tokens of layers that no output depends on.

    Raises: InputError for a model in which the samples of a batch influence each other, is random, or has
        other outputs than (N, C).
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        samples: Samples,
        *,
        trim: bool = True,
    ) -> None:
        _check_modules(model)
        few = samples[: min(2, len(samples))]
        self.model, self._trim = model, trim
        self.leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        self.sites: dict[str, list[str]] = {name: [] for name in parameters}
        self._names = {id(p): name for name, p in parameters.items()}
        for path, module in model.named_modules():
            for p in module._parameters.values():
                if id(p) in self._names:
                    self.sites[self._names[id(p)]].append(path)
        self._copied = {name for name, paths in self.sites.items() if all(map(self._has_parts, paths))}
        self._places: dict[tuple[str, int], list[int | None]] = {}
        self._largest = 0.0
        self.classes = _count_classes(model, few)
        wrong = set(self.sites)
        while wrong := self._misread(few, wrong):
            self._widen(wrong)
        self.feature_bytes, self.graph_bytes = self._measure(few)

    def _has_parts(self, path: str) -> bool:
        module = self.model.get_submodule(path)
        return any(module.children()) and not type(module).__module__.startswith("torch.")

    @property
    def one_by_one(self) -> list[str]:
        """Parameters that are differentiated sample by sample."""
        return [name for name, paths in self.sites.items() if not paths]

    def features(self, samples: Samples) -> Features:
        """Per-sample gradients of all outputs."""
        while True:
            out, noted = self._run(samples)
            features = _differentiate(out, noted, self._trim)
            if not noted.failed:
                break
            self._widen(noted.failed)
        for name, values in self._jacobians(
            samples, self.one_by_one, torch.eye(self.classes).to(out)
        ).items():
            features[name] = [Dense.of(values.unbind(1))]
        return features

    @torch.enable_grad()
    def _run(self, samples: Samples) -> tuple[Tensor, _Noted]:
        """Outputs with a graph, and what was noted on the way."""
        noted, owned, spread = _Noted(len(samples)), self._owned(), set[str]()
        with ExitStack() as hooks, substituted(self.model, self._values(noted)), without_fast_path():
            for path, (values, names) in owned.items():
                see = partial(self._see, noted, path, values, names)
                module = self.model.get_submodule(path)
                hooks.callback(module.register_forward_hook(see, with_kwargs=True).remove)
            try:
                out = samples.outputs(self.model)
            except Exception:
                spread = {name for use in noted.uses if use.spread for name in use.names.values()}
                if not spread:
                    raise
        if spread:  # copies did not fit, or the model is at fault and will fail again
            self._widen(spread)
            return self._run(samples)
        for use in noted.uses:
            use.check_inputs()
        return out, noted

    def _values(self, noted: _Noted) -> dict[str, Tensor]:
        """The parameters during a pass: detached, for none of their gradients is wanted there; or copies."""
        values = {name: p.detach() for name, p in self.model.named_parameters()}
        for name in self._copied:
            p, use = values[name], Copied(name, values[name].shape)
            shape = p.shape[1:] if p.ndim > 1 and len(p) == 1 else p.shape
            values[name] = use.watch(p.expand(noted.samples, *shape), noted.samples)
            noted.uses.append(use)
        return values

    def _see(
        self,
        noted: _Noted,
        path: str,
        values: Mapping[str, Tensor],
        names: Names,
        module: nn.Module,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        out: Any,
    ) -> Any:
        """A hook on a module."""
        if not torch.is_grad_enabled():
            return out
        noted.calls[path] += 1
        use = use_of(module, args, noted.samples, names)
        if use is None:
            given, form = tree_flatten((args, dict(kwargs)))
            places = self._sampled((path, noted.calls[path]), given, noted.samples)
            if 0 not in places:
                noted.failed.update(names.values())
                return out
            use = General(names, module, values, given, form, places)
        noted.uses.append(use)
        return use.watch(out, noted.samples)

    def _sampled(self, call: tuple[str, int], given: Sequence[Any], n: int) -> list[int | None]:
        """0 for arguments that hold samples.

        Decided on the two samples that are tried, where a mistake would be seen: later a table of n rows is
        no batch of n samples.
        """
        places = [0 if isinstance(x, Tensor) and x.ndim and len(x) == n else None for x in given]
        return self._places.setdefault(call, places)

    def _owned(self) -> dict[str, tuple[dict[str, Tensor], Names]]:
        """By site, all its parameters by name in it, and names in the model of those whose site it is."""
        owned: dict[str, tuple[dict[str, Tensor], Names]] = {}
        for path in dict.fromkeys(path for paths in self.sites.values() for path in paths):
            inside = dict(self.model.get_submodule(path).named_parameters())
            names = {key: self._names.get(id(p), "") for key, p in inside.items()}
            names = {
                key: name
                for key, name in names.items()
                if path in self.sites.get(name, ()) and name not in self._copied
            }
            if names:
                owned[path] = {key: p.detach() for key, p in inside.items()}, names
        return owned

    def _widen(self, names: Collection[str]) -> None:
        """Let the modules around be the sites of some parameters."""
        self._copied -= (copied := self._copied.intersection(names))
        for name in set(names) - copied:
            paths = [path.split(".") for path in self.sites[name]]
            levels = takewhile(lambda level: len(set(level)) == 1, zip(*paths, strict=False))
            around = [level[0] for level in levels] if len(paths) > 1 else paths[0][:-1]
            self.sites[name] = [] if paths == [[""]] else [".".join(around)]

    def _misread(self, few: Samples, names: Collection[str]) -> set[str]:
        """Which parameters' gradients differ from a backward pass's, in one direction of the outputs."""
        out, noted = self._run(few)
        draws = torch.randn(self.classes, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        direction = draws.to(out)
        with torch.enable_grad():
            features = _differentiate((out @ direction)[:, None], noted, self._trim)
        exact = self._jacobians(few, [name for name in names if self.sites[name]], direction[None])
        self._largest = max([self._largest, *(float(value.norm()) for value in exact.values())])
        tolerance = torch.finfo(out.dtype).eps ** 0.5
        wrong = set(noted.failed)
        for name, true in exact.items():
            ours = jacobian(features[name], len(few), 1, true.shape[2:]) if name in features else 0.0
            if not float((ours - true).norm()) <= tolerance * (float(true.norm()) + 1e-3 * self._largest):
                wrong.add(name)
        return wrong

    def _jacobians(self, samples: Samples, names: Collection[str], directions: Tensor) -> dict[str, Tensor]:
        """(n, R, *shape) of parameters by a backward pass a sample and direction of the outputs, (R, C)."""
        leaves = {name: self.leaves[name] for name in names}
        rows: list[Sequence[Tensor]] = []
        for i in range(len(samples) if leaves else 0):
            with torch.enable_grad(), substituted(self.model, leaves):
                out = samples[i : i + 1].outputs(self.model)
                out = out if out.requires_grad else out.requires_grad_()
            for direction in directions:
                slopes = torch.autograd.grad(
                    out,
                    list(leaves.values()),
                    direction[None],
                    retain_graph=True,
                    allow_unused=True,
                    materialize_grads=True,
                )
                rows.append(slopes)
        return {
            name: torch.stack(slopes).view(len(samples), len(directions), *slopes[0].shape)
            for name, slopes in zip(leaves, zip(*rows, strict=True), strict=True)
        }

    def _measure(self, few: Samples) -> tuple[float, float]:
        """Bytes a sample: of its features, and of a forward pass's graph."""
        parameters = {p.untyped_storage().data_ptr() for p in self.model.parameters()}
        saved: dict[int, int] = {}

        def count(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in parameters:
                saved[storage.data_ptr()] = storage.nbytes()
            return tensor

        with saved_tensors_hooks(count, lambda tensor: tensor):
            features = self.features(few)
        tensors = [tensor for terms in features.values() for term in terms for tensor in term.tensors()]
        held = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
        return sum(held.values()) / len(few), sum(saved.values()) / len(few)


def _differentiate(out: Tensor, noted: _Noted, trim: bool) -> Features:
    """One backward pass a column of ``out`` (n, C), down to the calls that were noted."""
    ends: Any = [end for use in noted.uses for end in use.ends]
    features: Features = {}
    if not ends or not out.requires_grad:
        return features
    with torch.no_grad():
        for c in range(out.shape[1]):
            column = torch.zeros_like(out)
            column[:, c] = 1.0
            more = c + 1 < out.shape[1]
            slopes = iter(torch.autograd.grad(out, ends, column, retain_graph=more, allow_unused=True))
            for use in noted.uses:
                noted.add(use, [next(slopes) for _ in use.ends])
        for use in noted.uses:
            for name, term in use.terms().items() if noted.failed.isdisjoint(use.names.values()) else ():
                kept = term.trimmed() if trim and isinstance(term, Outer) else term
                if kept.tensors()[-1].numel():
                    features.setdefault(name, []).append(kept)
    return features


def _check_modules(model: nn.Module) -> None:
    """Refuse what is random, or lets samples see each other."""
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm) and module.training:
            raise InputError(
                f"ntk: {name or 'the model'} is a batch norm in training mode; call model.eval()"
            )
        if isinstance(module, _BatchNorm) and module.running_mean is None:
            raise InputError(
                "ntk: a batch norm uses the statistics of the batch, so that samples are not independent; "
                "call model.eval(), and give it running statistics"
            )
        if isinstance(module, _DropoutNd) and module.training and module.p:
            raise InputError("ntk: the model draws dropout, so that it is no function; call model.eval()")


def _count_classes(model: nn.Module, few: Samples) -> int:
    """C, of a model in which a sample's outputs do not depend on its company: else there is no J(x)."""
    with torch.no_grad():
        together, alone = few.outputs(model), few[:1].outputs(model)
    tolerance = torch.finfo(together.dtype).eps ** 0.5
    if not torch.allclose(together[:1], alone, rtol=tolerance, atol=tolerance * float(together.abs().max())):
        raise InputError(
            "ntk: the model's outputs for a sample change with the other samples of the batch, or from "
            "call to call; call model.eval(), or give a model that treats samples one by one"
        )
    return together.shape[1]
