"""Recipes: YAML files that say which model to make of a base and task vectors, or of fine-tuned models."""

from collections.abc import Hashable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat

from taskvec.config import Config
from taskvec.edits.merge import Merge
from taskvec.edits.parameters import FORMS, Each, Value, constant, settle
from taskvec.edits.plan import passes
from taskvec.errors import InputError
from taskvec.registry import nearest
from taskvec.rules import RULES, Rule
from taskvec.vectors import TaskVector, apply, combine, parse_expression
from taskvec.vectors.checks import OnExtra, OnMissing
from taskvec.vectors.combining import grounded
from taskvec.vectors.expression import names_in
from taskvec.weights import Weights, hub, open_weights

Names = dict[str, Annotated[str, Field(min_length=1)]]

RESERVED = ("base", *FORMS)
"""What no vector or model may be called, since the keys have another meaning."""


class Recipe(Config):
    """A model to be made. Paths are relative to the file that says so."""

    base: str | None = None
    """The weights the edit starts from: a folder, a file, a hub id. Only averages of models need none."""
    vectors: Names = Field(default_factory=dict)
    """Name -> a task vector, or an adapter, of the base."""
    models: Names = Field(default_factory=dict)
    """Name -> weights fine-tuned from the base; what counts is their difference to it."""
    expression: str | None = None
    """A linear expression over the names: ``0.4*a + 0.4*b - 0.3*c``."""
    rule: str | None = None
    """Instead of an expression: a rule (``taskvec rules``) or a chain, such as ``dare+ties``. It sees the
    vectors, then the models, each in the order of the file."""
    parameters: dict[str, Each] = Field(default_factory=dict)
    """Of the rule; for each vector by name, by filters on names of tensors, or as a gradient over depth."""
    scale: Value = 1.0
    """The scaling coefficient of the whole edit, or of each tensor by filters or as a gradient."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    """Element type of the result; by default that of the base, tensor by tensor."""
    max_shard_gb: PositiveFloat = 5.0
    on_extra: OnExtra = "error"
    """``drop`` leaves out tensors that a model has and the base lacks."""
    on_missing: OnMissing = "error"
    """``zero`` takes tensors that a model lacks as unchanged."""
    allow_other_base: bool = False
    """Apply vectors that were taken from another base, or from an unknown one."""
    allow_nonfinite: bool = False
    """Write NaN and infinities instead of refusing them."""


def read(path: Path, content: object, *, scale: float | None = None) -> Merge:
    """The model that a recipe describes, with every input opened and matched; reads headers only.

    Vectors that were stored with the fingerprint of their base make the base be read once, to compare.

    Args:
        path: of the recipe, for messages and for the paths in it.
        content: the plain data in it.
        scale: in place of the recipe's.

    Raises: InputError, opening with the path, for whatever does not fit.
    """
    where = str(path)
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: {type(content).__name__} found, expected a recipe: keys and values")
    recipe = Recipe.parse(where, {**content, **({} if scale is None else {"scale": scale})})
    _check(where, recipe)
    with _told(where):
        return _Reading(path, recipe).merge()


def _check(where: str, recipe: Recipe) -> None:
    """What the fields say together.

    Raises: InputError.
    """
    names = [*recipe.vectors, *recipe.models]
    if not names:
        raise InputError(f"{where}: no vectors and no models, expected at least one")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{where}: {name!r} is a vector and a model, expected a name for each")
        if not name.isidentifier() or name in RESERVED:
            raise InputError(
                f"{where}: the name {name!r}, expected one word of letters, digits and _, "
                f"none of {', '.join(RESERVED)}"
            )
    if recipe.expression is not None and recipe.rule is not None:
        raise InputError(f"{where}: an expression and a rule, expected one of them")
    if recipe.expression is None and recipe.rule is None and len(names) > 1:
        raise InputError(f"{where}: {len(names)} names, expected an expression over them, or a rule")
    if recipe.parameters and recipe.rule is None:
        raise InputError(f"{where}: parameters without a rule; leave them out, or name the rule")
    if recipe.expression is not None:
        unused = [name for name in names if name not in names_in(recipe.expression)]
        if unused:
            raise InputError(f"{where}: {unused[0]!r} is not in the expression; leave it out")


@contextmanager
def _told(where: str) -> Iterator[None]:
    """Open the messages of errors with the recipe they come from."""
    try:
        yield
    except InputError as error:
        said = str(error)
        raise type(error)(said if said.startswith(where) else f"{where}: {said}") from None


class _Reading:
    """A recipe, opened."""

    def __init__(self, path: Path, recipe: Recipe) -> None:
        self.path, self.recipe = path, recipe
        self.rule: Rule | None = RULES[recipe.rule] if recipe.rule is not None else None
        self.base, self.inputs, self.vectors = self._opened()
        first = next(iter(self.vectors.values()))
        self.names = list(first.specs)
        self.edited = [name for name in self.names if any(v.terms_at(name) for v in self.vectors.values())]

    def merge(self) -> Merge:
        """The edited model, and what is to be said of it."""
        recipe = self.recipe
        vector, rounds = self._combined()
        scale = recipe.scale
        if constant(scale):
            factor = _number("scale", scale)
        else:
            settled = settle("scale", scale, self.names, self.edited)
            vector = vector.scaled({name: _number("scale", settled[name]) for name in self.edited})
            factor = 1.0
        dtype = None if recipe.dtype is None else getattr(torch, recipe.dtype)
        weights = apply(self.base, vector, factor, allow_other_base=recipe.allow_other_base, dtype=dtype)
        return Merge(
            weights,
            {"kind": "edited model", "recipe": recipe.model_dump(mode="json", exclude_defaults=True)},
            like=self.base,
            notes=tuple(self._notes()),
            max_shard_size=recipe.max_shard_gb * 1e9,
            inputs=self.inputs,
            passes=rounds,
            allow_nonfinite=recipe.allow_nonfinite,
        )

    def _opened(self) -> tuple[Weights, dict[str, Weights], dict[str, TaskVector]]:
        recipe = self.recipe
        held = {name: self._open("vectors", name, ref) for name, ref in recipe.vectors.items()}
        tuned = {name: self._open("models", name, ref) for name, ref in recipe.models.items()}
        if recipe.base is not None:
            base = self._open("base", "", recipe.base)
            inputs = {"base": base, **held, **tuned}
        else:
            base = self._stand_in(tuned)
            inputs = {**tuned}
        check_distinct({**held, **tuned})
        vectors = {name: TaskVector.opened(weights) for name, weights in held.items()}
        if recipe.allow_other_base:
            vectors = {name: vector.with_base(base) for name, vector in vectors.items()}
        for name, weights in tuned.items():
            vector = TaskVector.between(base, weights, on_extra=recipe.on_extra, on_missing=recipe.on_missing)
            vectors[name] = 0 * vector if weights is base else vector
        return base, inputs, vectors

    def _stand_in(self, tuned: Mapping[str, Weights]) -> Weights:
        """The first model in the place of a base, for a result that the base has no part in."""
        if self.recipe.vectors or not tuned or not self._is_baseless():
            what = f"rule {self.recipe.rule!r}" if self.recipe.rule else "an expression"
            raise InputError(
                f"base: missing, but {what} starts from one; only averages of whole models need none: "
                "mean, and slerp, multislerp and karcher of weights"
            )
        return next(iter(tuned.values()))

    def _is_baseless(self) -> bool:
        if self.rule is None:
            return False
        given = {name: value for name, value in self.recipe.parameters.items() if name == "of"}
        return self.rule.name == "mean" or {**self.rule.parameters(), **given}.get("of") == "weights"

    def _open(self, field: str, name: str, ref: str) -> Weights:
        where = f"{field}: {name}" if name else field
        path = self.path.parent / Path(ref).expanduser()
        if not path.exists():
            if not hub.is_reference(ref) or Path(ref).exists():
                raise InputError(f"{where}: {path}: no such file or folder; paths are relative to the recipe")
            return open_weights(ref)
        return open_weights(path)

    def _combined(self) -> tuple[TaskVector, int]:
        """The edit before it is scaled, and how often the inputs are read for it."""
        vectors, recipe = self.vectors, self.recipe
        if self.rule is None:
            if recipe.expression is None:
                return next(iter(vectors.values())), 1
            return parse_expression(recipe.expression, vectors), 1
        params, each = self._parameters(self.rule)
        rounds = passes(self.rule, params, len(vectors), self.names)
        return combine(self.rule, grounded(list(vectors.values()), self.base), each=each, **params), rounds

    def _parameters(self, rule: Rule) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
        """Parameters for all tensors, and those of single ones."""
        params: dict[str, Any] = {}
        each: dict[str, dict[str, Any]] = {name: {} for name in self.edited}
        known = rule.parameters()
        for field, value in self.recipe.parameters.items():
            if field not in known:
                raise InputError(f"rule {rule.name!r}: unknown parameter {field!r}; {nearest(field, known)}")
            where = f"parameters.{field}"
            parts = self._by_vector(where, value) if isinstance(value, Mapping) else value
            if constant(value):
                one = list(parts.values()) if isinstance(parts, dict) else parts
                params[field] = self._for_all(field, one)
                continue
            settled = self._settled(where, parts)
            for name in self.edited:
                each[name][field] = self._for_all(field, settled[name])
        return params, {name: own for name, own in each.items() if own}

    def _by_vector(self, where: str, value: Mapping[str, Any]) -> dict[str, Any]:
        """A mapping from vectors to values, in the order of the vectors.

        Raises: InputError for a name that is no vector's, and for a vector without value.
        """
        for name in value:
            if name not in self.vectors:
                hint = nearest(name, [*self.vectors, *FORMS])
                raise InputError(f"{where}: no vector or model called {name!r}; {hint}")
        lacking = [name for name in self.vectors if name not in value]
        if lacking:
            raise InputError(f"{where}: no value for {lacking[0]!r}, expected one for each vector and model")
        return {name: value[name] for name in self.vectors}

    def _settled(self, where: str, value: Any) -> Mapping[str, Any]:
        """Tensor name -> value, or the list of the vectors' values."""
        if not isinstance(value, dict):
            return settle(where, value, self.names, self.edited)
        columns = [settle(f"{where}.{name}", one, self.names, self.edited) for name, one in value.items()]
        return {name: [column[name] for column in columns] for name in self.edited}

    def _for_all(self, field: str, value: Any) -> Any:
        """One weight stands for that of every vector."""
        if field == "weights" and not isinstance(value, list):
            return [value] * len(self.vectors)
        return value

    def _notes(self) -> Iterator[str]:
        if self.recipe.base is None:
            first = next(iter(self.recipe.models))
            yield f"no base: config, tokenizer and integer tensors are those of the first model, {first!r}"


def check_distinct(inputs: Mapping[str, Weights]) -> None:
    """Refuse the same vector or model under two names.

    Raises: InputError.
    """
    seen: dict[Hashable, str] = {}
    for name, weights in inputs.items():
        earlier = seen.setdefault(weights.identity, name)
        if earlier != name:
            raise InputError(f"{earlier!r} and {name!r} are the same, {weights.ref}; give it once")


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: {value!r}, expected a number")
    return float(value)
