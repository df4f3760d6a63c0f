"""What a recipe says of the names of tensors: how they correspond, and which of them take part."""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from taskvec.edits.parameters import Filters, Gradient, Plain, zero_at
from taskvec.errors import InputError
from taskvec.vectors import TaskVector
from taskvec.vectors.checks import check_fits, check_point, differing_buffers
from taskvec.vectors.fitting import chosen, see_delta_as
from taskvec.weights import Weights
from taskvec.weights.depth import names_behind
from taskvec.weights.matched import all_names, list_some, see_as
from taskvec.weights.selecting import Choice, Renames, checked_renames

Renaming = dict[str, str | dict[str, str]]


class Naming:
    """How the vectors and models of a recipe are brought to the names of its base.

    Args:
        renaming: old name -> new one, for all; or name of a vector or model -> such a map, for that alone.
        inputs: vector or model -> what it holds, adapters too.
    """

    def __init__(self, renaming: Renaming, inputs: Mapping[str, Weights]) -> None:
        shared = {old: new for old, new in renaming.items() if isinstance(new, str)}
        own = {name: given for name, given in renaming.items() if not isinstance(given, str)}
        for name in own:
            if name not in inputs:
                raise InputError(f"rename: no vector or model called {name!r}; known: {', '.join(inputs)}")
        plain = {name: weights for name, weights in inputs.items() if weights.adapter is None}
        adapters = {name: given for name, given in own.items() if name not in plain}
        if adapters or (shared and not plain):
            name = next(iter(adapters), next(iter(inputs)))
            raise InputError(
                f"rename: {name!r} is an adapter, whose layers are found by themselves; leave it out"
            )
        names = [name for weights in plain.values() for name in all_names(weights)]
        checked_renames(shared).check_used(names, "the vectors and models")
        for name, given in own.items():
            checked_renames(given).check_used(all_names(plain[name]), plain[name].ref)
        self._renames = {name: checked_renames({**own.get(name, {}), **shared}) for name in inputs}
        self.notes: list[str] = []

    def see_model(self, name: str, base: Weights, model: Weights) -> Weights:
        """A model under the names of the base; an adapter, and the base, as they are."""
        if model is base or model.adapter is not None:
            return model
        check_point(model)
        seen = see_as(base, model, self._of(name))
        self.notes += seen.notes
        return seen.weights

    def see_vector(self, name: str, base: Weights, vector: TaskVector) -> TaskVector:
        """A vector under the names of the base; an adapter, which finds its layers itself, as it is."""
        if vector.base.unbound:
            return vector
        seen, notes = see_delta_as(base, vector, self._of(name))
        self.notes += notes
        return TaskVector.of(seen)

    def _of(self, name: str) -> Renames | None:
        return self._renames[name] if self._renames[name].given else None


def choose(
    include: Sequence[str],
    exclude: Sequence[str],
    scale: Plain | Gradient | Filters,
    base: Weights,
    vectors: Iterable[TaskVector],
) -> Choice:
    """Which tensors take part: those that patterns choose, and whose scale is not zero.

    Raises: InputError for a pattern that matches none.
    """
    names = list(dict.fromkeys([*base, *(name for vector in vectors for name in vector.specs)]))
    Choice(include, exclude).check_used(names)
    return Choice(include, exclude, zero_at(scale, names, names_behind(names, base.folder)))


def take_part(vector: TaskVector, choice: Choice, base: Weights) -> TaskVector:
    """The chosen tensors of a vector of the base's space, or of one that has none yet.

    Raises: KeyMismatch for tensors that the base lacks, holds as integers, or in another shape.
    """
    if vector.base.unbound:
        return vector
    part = TaskVector.of(chosen(vector, choice))
    check_fits(part.ref, part.specs, base)
    return part


def note_left_out(models: Mapping[str, Weights], base: Weights, choice: Choice) -> Iterator[str]:
    """Notes on tensors that take part, and that models have beyond those of the base, or lack."""
    for name, model in models.items():
        if model.adapter is None:  # which has names of its own
            yield from _note(f"{name}: left out, as the base lacks it", model, base, choice)
            yield from _note(f"{name}: unchanged, as the model lacks it", base, model, choice)
            integers = differing_buffers(base, model)
            if integers:
                yield f"{name}: differs, but integers are those of the base: {list_some(integers)}"


def _note(what: str, held: Weights, other: Weights, choice: Choice) -> Iterator[str]:
    names = [name for name in held if name not in other and choice.takes(name)]
    if names:
        yield f"{what}: {list_some(names)}"
