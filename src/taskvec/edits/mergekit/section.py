"""Layers of the output that are merged from the same sources, and how."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from taskvec.edits.contradictions import note_distances
from taskvec.edits.inputs import errors_at
from taskvec.edits.layers import Joined, Origin
from taskvec.edits.mergekit.methods import Method, Values
from taskvec.edits.mergekit.values import Scope, Value, join
from taskvec.edits.parameters import value_at
from taskvec.errors import InputError, KeyMismatch
from taskvec.vectors import TaskVector
from taskvec.vectors.checks import Fit, note_left_out
from taskvec.vectors.edited import EditedWeights, edit
from taskvec.weights import Weights
from taskvec.weights.matched import Seen, see_as, without, without_computed
from taskvec.weights.picked import widen


@dataclass(frozen=True)
class Section:
    """Layers of the output that are merged from the same sources.

    Attributes:
        where: opens messages.
        method: how they are merged.
        sources: the models, as views under the names of the output.
        names: for each source, name in the output -> name in the model.
        base: which source is the base, if any.
        depth: name -> 0 for the first layer to 1 for the last, 0 outside layers.
        shared: parameters for all sources, the most specific first.
        of_models: for each source, its own parameters, which win over the shared ones.
        may_be_base: whether it may have no source but the base, which it is then.
        fit: what becomes of tensors that the base, or the first source, has alone, or lacks.
    """

    where: str
    method: Method
    sources: tuple[Weights, ...]
    names: tuple[Mapping[str, str], ...]
    base: int | None
    depth: Mapping[str, float]
    shared: tuple[Scope, ...]
    of_models: tuple[Scope, ...]
    may_be_base: bool = False
    fit: Fit = field(default_factory=Fit)

    def merge(self, dtype: str | None) -> EditedWeights:
        """The layers, merged; lazy."""
        models, _ = self._seen
        _check_same_names(self.where, models, models[self.base or 0])
        order = list(range(len(models)))
        start: Weights
        if self.base is None or self.method.base == "first":
            order.sort(key=lambda place: place != self.base)
            start = Origin(models[0])
        else:
            order.remove(self.base)
            start = models[self.base]
        if not order and self.may_be_base:
            return edit(start, 0 * TaskVector.between(start, start), dtype=dtype)
        self._check_number(len(order))
        with errors_at(self.where):
            vectors = [TaskVector.between(start, models[place]) for place in order]
            merged = self.method.combine(vectors, list(self._values(order, list(vectors[0]))))
        return edit(start, merged, dtype=dtype, start=models[order[0] if self.base is None else self.base])

    def notes(self) -> list[str]:
        """Notes on tensors that sources have under other names, twice, or without need; and on sources that
        are further from the base, or the first, than fine-tuning leads.

        Other layers of a model are as far away as any, and meant.
        """
        models, notes = self._seen
        first = self.base or 0
        vectors = {
            model.ref: TaskVector.between(models[first], model)
            for place, model in enumerate(models)
            if place != first and self.names[place] == self.names[first]
        }
        return [*notes, *note_distances(models[first], vectors)]

    @cached_property
    def _seen(self) -> tuple[Sequence[Weights], Sequence[str]]:
        """The sources under the names of the base, or of the first, in one dtype; and notes on that."""
        like = self.sources[self.base or 0]
        with errors_at(self.where):
            seen = [Seen(model) if model is like else see_as(like, model) for model in self.sources]
        models, dropped = without_computed([view.weights for view in seen])
        notes = [*dropped, *(note for view in seen for note in view.notes)]
        first = models[self.base or 0]
        notes += [note for model in models for note in note_left_out(first, model, self.fit)]
        return widen([_fitted(first, model, self.fit) for model in models]), notes

    def given(self) -> list[Value]:
        """All values that the file gives."""
        return [value for scope in (*self.shared, *self.of_models) for value in scope.values()]

    def _values(self, order: Sequence[int], names: Sequence[str]) -> Iterator[Values]:
        """The parameters of every tensor."""
        shared = self._joined("tensor", self.shared)
        joined = {place: self._joined("model", (self.of_models[place], *self.shared)) for place in order}
        for name in names:
            of_models = (
                self._at(
                    name, self.names[place].get(name, name), joined[place], f" for {self.sources[place].ref}"
                )
                for place in order
            )
            yield Values(name, self._at(name, name, shared, ""), tuple(of_models))

    def _joined(self, of: str, scopes: Sequence[Scope]) -> dict[str, Value]:
        known = self.method.parameters
        return {key: join(scopes, key, known[key].default) for key in known if known[key].of == of}

    def _at(self, name: str, stored: str, values: Mapping[str, Value], whom: str) -> dict[str, Any]:
        """The values for a tensor, which filters know by its name in the model."""
        given = {key: value_at(value, stored, self.depth[name]) for key, value in values.items()}
        missing = next((key for key, value in given.items() if value is None), None)
        if missing is not None:
            raise InputError(
                f"{self.where}: parameter {missing!r} is missing{whom}, tensor {stored!r}, expected a value; "
                "give it in parameters"
            )
        return given

    def _check_number(self, number: int) -> None:
        least, most = self.method.vectors
        if number < least or (most is not None and number > most):
            wanted = f"{least}" if least == most else f"at least {least}"
            beside = " beside the base" if self.method.base == "start" else ""
            raise InputError(f"{self.where}: {number} models{beside}, expected {wanted}")


def _fitted(first: Weights, model: Weights, fit: Fit) -> Weights:
    """A model without what the first lacks, and with what it lacks itself, where that is let pass."""
    extra = [name for name in model if name not in first] if fit.on_extra == "drop" else []
    missing = [name for name in first if name not in model] if fit.on_missing == "zero" else []
    held = without(model, extra)
    return Joined([held, first], [list(held), missing], model.ref) if missing else held


def _check_same_names(where: str, models: Sequence[Weights], first: Weights) -> None:
    """Refuse models of which one lacks a floating-point tensor that another has."""
    held = dict.fromkeys(
        name for model in models for name in (*model, *model.tied) if model.spec(name).floating
    )
    for model in models:
        for name in held:
            if name not in model and not _is_alias(name, models):
                holder = next(other for other in models if name in other)
                way = (
                    "--on-missing zero takes it as unchanged"
                    if name in first
                    else "--on-extra drop leaves it out"
                )
                raise KeyMismatch(
                    f"{where}: {model.ref} lacks {name!r}, expected it as in {holder.ref}; "
                    f"only models with the same tensors are merged; {way}"
                )


def _is_alias(name: str, models: Sequence[Weights]) -> bool:
    """Whether a name is an alias in every model that has it."""
    return all(name in model.tied for model in models if name in model)
