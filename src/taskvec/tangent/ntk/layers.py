"""What a call of a layer contributes to the per-sample gradients of its parameters."""

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn import functional as F
from torch.utils._pytree import TreeSpec, tree_leaves, tree_map_only, tree_unflatten

from taskvec.errors import InputError
from taskvec.substitution import substituted
from taskvec.tangent.forward import differentiable, forward_mode
from taskvec.tangent.ntk.terms import Dense, Outer, Scatter, Term

Names = Mapping[str, str]
"""From a parameter's name in the layer to its name in the model."""
Slopes = Sequence[Tensor]
"""Of one class: gradients at the outputs of a call, or what is kept of them, by parameter."""


class Use(ABC):
    """A call of a layer, whose outputs' gradients are wanted.

    Args:
        names: of the parameters that count.
        inputs: activations that have to be unchanged when the gradients come.
    """

    def __init__(self, names: Names, inputs: Sequence[Tensor]) -> None:
        self.names = names
        self.ends: list[GradientEdge | Tensor] = []
        self._inputs = [(x, x._version) for x in inputs]
        self._zeros: list[Tensor] = []
        self._kept: list[Slopes] = []
        self._reached = False
        self.spread = False
        """Whether the model goes on with copies, one a sample, for which it may not be made."""

    def watch(self, out: Any, n: int) -> Any:
        """The outputs to go on with, after noting where their gradients come by.

        What is the same for all samples (a lookup of positions) is copied for each.
        """
        return tree_map_only(Tensor, partial(self._watch, n), out)

    def _watch(self, n: int, out: Tensor) -> Tensor:
        if not out.is_floating_point():
            return out
        if out.ndim and len(out) == 1 < n:
            self.spread, out = True, out.expand(n, *out.shape[1:])
        self._zeros.append(out.new_zeros(()).expand(out.shape))
        if out.requires_grad:
            self.ends.append(get_gradient_edge(out))
            return out
        leaf = out.detach().requires_grad_()
        self.ends.append(leaf)
        return leaf.clone()  # the model may write over it, and must not write over a leaf

    def check_inputs(self) -> None:
        """Refuse a model that has overwritten an activation: it cannot be trained either.

        Raises: InputError.
        """
        for x, version in self._inputs:
            if x._version != version:
                raise InputError(
                    f"ntk: the model overwrites an activation {tuple(x.shape)} that its gradients need; "
                    "replace the operation in place after it"
                )

    def add(self, slopes: Sequence[Tensor | None]) -> None:
        """Keep what is needed of the gradients of one more class."""
        self._reached |= any(slope is not None for slope in slopes)
        pairs = zip(slopes, self._zeros, strict=True)
        self._kept.append(self._reduce([zero if slope is None else slope for slope, zero in pairs]))

    def terms(self) -> dict[str, Term]:
        """By name in the model, what this call contributes."""
        columns = zip(self.names.items(), zip(*self._kept, strict=True), strict=True) if self._reached else ()
        terms = {name: self._term(inside, slopes) for (inside, name), slopes in columns}
        return {name: term for name, term in terms.items() if term.tensors()[-1].numel()}

    @abstractmethod
    def _reduce(self, slopes: Slopes) -> Slopes:
        """What is kept of the gradients of one class, for every parameter."""

    def _term(self, inside: str, slopes: Slopes) -> Term:
        """What was kept of every class for one parameter, as a term."""
        return Dense.of(slopes)


class Product(Use):
    """Tokens (n, S, in) times a matrix, or images unfolded to such; and a bias."""

    def __init__(
        self,
        names: Names,
        x: Tensor,
        *,
        flipped: bool = False,
        unfold: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        super().__init__(names, [x])
        self._x, self._flipped, self._unfold = x, flipped, unfold

    def _reduce(self, slopes: Slopes) -> Slopes:
        [g] = slopes
        tokens = g.flatten(2).mT if self._unfold else g.reshape(len(self._x), -1, g.shape[-1])
        return [tokens if inside == "weight" else tokens.sum(1) for inside in self.names]

    def _term(self, inside: str, slopes: Slopes) -> Term:
        if inside == "bias":
            return Dense.of(slopes)
        return Outer(self._x, slopes, self._flipped, self._unfold)


class Lookup(Use):
    """Rows of a table: (n, S), -1 where no gradient flows."""

    def __init__(self, names: Names, index: Tensor) -> None:
        super().__init__(names, [])
        self._index = index

    def _reduce(self, slopes: Slopes) -> Slopes:
        return [slopes[0].flatten(1, -2)]

    def _term(self, inside: str, slopes: Slopes) -> Term:
        return Scatter(self._index, torch.stack(list(slopes), 1))


class Affine(Use):
    """A weight and a bias for every entry of what is normalised.

    Args:
        plain: the normalised values; computed again for every class, which is cheaper than to keep them.
    """

    def __init__(
        self, names: Names, n: int, shape: torch.Size, x: Tensor, plain: Callable[[], Tensor]
    ) -> None:
        super().__init__(names, [x])
        self._tokens, self._plain = (n, -1, *shape), plain

    def _reduce(self, slopes: Slopes) -> Slopes:
        g = slopes[0].reshape(self._tokens)
        return [
            (g * self._plain().reshape(self._tokens) if inside == "weight" else g).sum(1)
            for inside in self.names
        ]


class Copied(Use):
    """A parameter outside of layers, of which every sample was given a copy."""

    def __init__(self, name: str, shape: torch.Size) -> None:
        super().__init__({name: name}, [])
        self._shape, self.spread = shape, True

    def _reduce(self, slopes: Slopes) -> Slopes:
        return [slopes[0].reshape(-1, *self._shape)]


class General(Use):
    """Any module: run again by ``vmap``, with parameters that every sample has for itself.

    Args:
        values: all of the module's parameters, by name in it.
        given, form: its arguments, flattened.
        places: 0 for those that hold samples, None for others.
    """

    def __init__(
        self,
        names: Names,
        layer: nn.Module,
        values: Mapping[str, Tensor],
        given: Sequence[Any],
        form: TreeSpec,
        places: list[int | None],
    ) -> None:
        self._given = [value.detach() if isinstance(value, Tensor) else value for value in given]
        super().__init__(names, list(filter(differentiable, self._given)))
        self._layer, self._values, self._form, self._places = layer, values, form, places
        self._leaves: list[Tensor] = []
        self._outs: list[Tensor] = []

    def _reduce(self, slopes: Slopes) -> Slopes:
        if not self._outs:
            self._run()
        pairs = [(o, s.unsqueeze(1)) for o, s in zip(self._outs, slopes, strict=True) if o.requires_grad]
        outs, wanted = zip(*pairs, strict=True)
        return torch.autograd.grad(
            outs, self._leaves, wanted, retain_graph=True, allow_unused=True, materialize_grads=True
        )

    def _run(self) -> None:
        n = len(self._given[self._places.index(0)])
        self._leaves = [self._values[inside].expand(n, *self._values[inside].shape) for inside in self.names]

        def run(leaves: Sequence[Tensor], given: Sequence[Any]) -> list[Tensor]:
            pairs = zip(given, self._places, strict=True)
            alone = [value if place is None else value.unsqueeze(0) for value, place in pairs]
            args, kwargs = tree_unflatten(alone, self._form)
            with substituted(self._layer, {**self._values, **dict(zip(self.names, leaves, strict=True))}):
                return list(filter(differentiable, tree_leaves(self._layer(*args, **kwargs))))

        with torch.enable_grad(), forward_mode(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "There is a performance drop", UserWarning)
            for leaf in self._leaves:
                leaf.requires_grad_()
            self._outs = torch.func.vmap(run, (0, self._places))(self._leaves, self._given)


def use_of(layer: nn.Module, args: Sequence[Any], n: int, names: Names) -> Use | None:
    """What a call contributes, if a rule knows the layer and its input has n samples first."""
    if not (args and isinstance(args[0], Tensor) and args[0].ndim and names.keys() <= {"weight", "bias"}):
        return None
    x = args[0].detach()
    match layer:
        case nn.Embedding(max_norm=None, scale_grad_by_freq=False) if (
            x.ndim > 1 and len(x) in (1, n) and not x.is_floating_point()  # BART's is called with embeddings
        ):
            index, nothing = x.reshape(len(x), -1).expand(n, -1), layer.padding_idx
            return Lookup(names, index if nothing is None else index.masked_fill(index == nothing, -1))
        case nn.Conv2d(groups=1, padding_mode="zeros", padding=tuple() as padding) if (
            x.ndim == 4 and len(x) == n
        ):
            size, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
            return Product(names, x, unfold=lambda x: F.unfold(x, size, dilation, padding, stride).mT)
        case _ if len(x) % n:
            return None
        case nn.LayerNorm(weight=Tensor() as weight):
            shape = list(weight.shape)
            return Affine(names, n, weight.shape, x, lambda: F.layer_norm(x, shape, eps=layer.eps))
        case nn.RMSNorm(weight=Tensor() as weight, eps=eps):
            shape = list(weight.shape)
            return Affine(names, n, weight.shape, x, lambda: F.rms_norm(x, shape, eps=eps))
        case nn.Linear():
            return Product(names, x.reshape(n, -1, x.shape[-1]))
        case nn.Module() if type(layer).__name__ == "Conv1D":  # the linear layer of transformers' GPT-2
            return Product(names, x.reshape(n, -1, x.shape[-1]), flipped=True)
    return None
