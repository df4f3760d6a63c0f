"""Layers of the output that are merged from the same sources, and how."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from taskvec.edits.contradictions import of_distances
from taskvec.edits.inputs import told
from taskvec.edits.layers import Origin, widened
from taskvec.edits.mergekit.methods import Method
from taskvec.edits.mergekit.settings import Scope, resolve
from taskvec.edits.mergekit.values import Table, Values
from taskvec.errors import InputError, KeyMismatch
from taskvec.vectors import TaskVector
from taskvec.vectors.edited import EditedWeights, edit
from taskvec.weights import Weights


@dataclass(frozen=True)
class Part:
    """Layers of the output that are merged from the same sources.

    Attributes:
        where: opens messages.
        sources: the models, as views under the names of the output.
        own_names: for each source, name in the output -> name in the model.
        base: which source is the base, if any.
        depth: name -> 0 for the first layer to 1 for the last, 0 outside layers.
        shared: parameters for all sources, the most specific first.
        own: for each source, those of its own before the shared ones.
    """

    where: str
    sources: tuple[Weights, ...]
    own_names: tuple[Mapping[str, str], ...]
    base: int | None
    depth: Mapping[str, float]
    shared: tuple[Scope, ...]
    own: tuple[tuple[Scope, ...], ...]

    def merged(self, method: Method, dtype: torch.dtype | None) -> EditedWeights:
        """The layers, merged by a method; lazy."""
        models = widened(self.sources)
        _check_same_names(self.where, models)
        order = list(range(len(models)))
        start: Weights
        if self.base is None or method.base == "first":
            order.sort(key=lambda place: place != self.base)
            start = Origin(models[0])
        else:
            order.remove(self.base)
            start = models[self.base]
        self._check_number(method, len(order))
        with told(self.where):
            vectors = [TaskVector.between(start, models[place]) for place in order]
            merged = method.combine(vectors, self.table(method, order, list(vectors[0])))
        return edit(start, merged, dtype=dtype, start=models[order[0] if self.base is None else self.base])

    def distances(self) -> list[str]:
        """Notes on sources that are further from the base, or the first, than fine-tuning leads.

        Other layers of a model are as far away as any, and meant.
        """
        models = widened(self.sources)
        first = self.base or 0
        vectors = {
            model.ref: TaskVector.between(models[first], model)
            for place, model in enumerate(models)
            if place != first and self.own_names[place] == self.own_names[first]
        }
        return of_distances(models[first], vectors)

    def table(self, method: Method, order: Sequence[int], names: Sequence[str]) -> Table:
        """The parameters of every tensor."""
        return {name: self._values(method, order, name) for name in names}

    def _values(self, method: Method, order: Sequence[int], name: str) -> Values:
        depth = self.depth[name]
        shared = {
            key: self._value(key, method, self.shared, name, depth)
            for key, parameter in method.parameters.items()
            if parameter.of == "tensor"
        }
        own = (
            {
                key: self._value(key, method, self.own[place], self.own_names[place][name], depth, place)
                for key, parameter in method.parameters.items()
                if parameter.of == "model"
            }
            for place in order
        )
        return Values(shared, tuple(own))

    def _value(
        self,
        key: str,
        method: Method,
        scopes: Sequence[Scope],
        name: str,
        depth: float,
        place: int | None = None,
    ) -> Any:
        try:
            return resolve(key, method.parameters[key], scopes, name, depth)
        except LookupError:
            whom = "" if place is None else f" for {self.sources[place].ref}"
            raise InputError(
                f"{self.where}: parameter {key!r} is missing{whom}, tensor {name!r}, expected a value; "
                "give it in parameters"
            ) from None

    def _check_number(self, method: Method, found: int) -> None:
        least, most = method.vectors
        if found < least or (most is not None and found > most):
            wanted = f"{least}" if least == most else f"at least {least}"
            beside = " beside the base" if method.base == "start" else ""
            raise InputError(f"{self.where}: {found} models{beside}, expected {wanted}")


def _check_same_names(where: str, models: Sequence[Weights]) -> None:
    """Refuse models of which one lacks a floating-point tensor that another has.

    Raises: KeyMismatch.
    """
    held = {
        name: None
        for model in models
        for name in (*model, *model.tied)
        if model.spec(name).dtype.is_floating_point
    }
    for model in models:
        for name in held:
            if name not in model and not _is_alias(name, models):
                holder = next(other for other in models if name in other)
                raise KeyMismatch(
                    f"{where}: {model.ref} lacks {name!r}, expected it as in {holder.ref}; "
                    "only models with the same tensors are merged"
                )


def _is_alias(name: str, models: Sequence[Weights]) -> bool:
    """Whether a name is but another one for a tensor, wherever it occurs."""
    return all(name in model.tied for model in models if name in model)
