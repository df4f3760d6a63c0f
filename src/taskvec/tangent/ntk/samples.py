"""The inputs of a model, cut into pieces; the parameters of a model, chosen by name."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from taskvec.errors import InputError
from taskvec.names import select_names
from taskvec.registry import nearest

Inputs = Tensor | Mapping[str, Any] | tuple[Any, ...]
"""What a model is called with: one tensor, keyword arguments, or positional ones."""
Selection = str | Sequence[str] | Callable[[str], bool]
"""A selection of :mod:`taskvec.names` (``all``, ``attention``, ``re:PATTERN``), names, or a predicate."""


@dataclass(frozen=True)
class Samples:
    """Inputs whose tensors all have the samples first; what is no tensor goes to every piece."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, inputs: Inputs, name: str) -> "Samples":
        """Wrap what the caller gave.

        Raises: InputError for inputs without a tensor, without a sample, or of different lengths.
        """
        if isinstance(inputs, Mapping):
            samples = cls((), dict(inputs))
        else:
            samples = cls(inputs if isinstance(inputs, tuple) else (inputs,), {})
        sizes = [len(tensor) if tensor.ndim else 0 for tensor in samples.tensors()]
        if not sizes or len(set(sizes)) > 1 or sizes[0] == 0:
            raise InputError(
                f"ntk: the tensors of {name} hold {sorted(set(sizes))} samples, expected the same number, "
                "one or more, in the first dimension of each"
            )
        return samples

    def tensors(self) -> Iterator[Tensor]:
        """All tensors."""
        return (value for value in (*self.args, *self.kwargs.values()) if isinstance(value, Tensor))

    def __len__(self) -> int:
        return len(next(self.tensors()))

    def outputs(self, model: nn.Module) -> Tensor:
        """What the model returns for them, (n, C).

        Raises: InputError for anything but a floating-point tensor of that shape.
        """
        out: object = model(*self.args, **self.kwargs)
        if not isinstance(out, Tensor):
            raise InputError(
                f"ntk: the model returns a {type(out).__name__}, expected a tensor (N, C); "
                "wrap it in a module that returns its logits"
            )
        if out.ndim != 2 or len(out) != len(self) or out.shape[1] == 0:
            raise InputError(
                f"ntk: the model's output is {tuple(out.shape)} for {len(self)} samples, "
                f"expected ({len(self)}, C)"
            )
        if not out.is_floating_point():
            raise InputError(f"ntk: the model's output is {out.dtype}, expected floating-point numbers")
        return out

    def __getitem__(self, piece: slice) -> "Samples":
        """Some samples; the tensors are new objects that share memory."""

        def cut(value: Any) -> Any:
            return value[piece].detach() if isinstance(value, Tensor) else value

        return Samples(tuple(map(cut, self.args)), {key: cut(value) for key, value in self.kwargs.items()})


def selected(model: nn.Module, params: Selection) -> dict[str, nn.Parameter]:
    """The chosen floating-point parameters, by their first name; a tied one is chosen by any of its names.

    Raises: InputError when nothing is chosen, or a name is unknown.
    """
    every = [(n, p) for n, p in model.named_parameters(remove_duplicate=False) if p.is_floating_point()]
    names = _choose(f"ntk of {type(model).__name__}", params, [name for name, _ in every])
    chosen = {id(p) for name, p in every if name in names}
    return {name: p for name, p in model.named_parameters() if id(p) in chosen and p.numel()}


def _choose(where: str, params: Selection, names: Sequence[str]) -> set[str]:
    if isinstance(params, str):
        return set(select_names(names, params, where))
    chosen = set(filter(params, names) if callable(params) else params)
    for name in sorted(chosen.difference(names)):
        raise InputError(f"{where}: no parameter called {name!r}; {nearest(name, names)}")
    if not chosen:
        raise InputError(f"{where}: params {params!r} selects none of {len(names)} parameters")
    return chosen
