"""Recipes: YAML files that say which model to make of a base and task vectors, or of fine-tuned models."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field, PositiveFloat

from taskvec.edits import contradictions
from taskvec.edits.configs import config_of
from taskvec.edits.inputs import check_sound, copies, said_of_copy, told
from taskvec.edits.merge import Merge
from taskvec.edits.parameters import FORMS, Documented, Each, Value, by_vector, constant, for_rule, settle
from taskvec.edits.passes import passes
from taskvec.edits.tokens import check_in_order
from taskvec.edits.vocabulary import Vocab, align
from taskvec.errors import InputError, and_more
from taskvec.reading import exists, local_path
from taskvec.rules import RULES, Rule
from taskvec.vectors import TaskVector, apply, combine, parse_expression
from taskvec.vectors.checks import OnExtra, OnMissing, check_point, differing_buffers
from taskvec.vectors.combining import bind_all
from taskvec.vectors.expression import names_in
from taskvec.vectors.opening import with_task
from taskvec.vectors.stored.files import summary
from taskvec.vectors.stored.masked import MaskedVectors
from taskvec.weights import Weights, hub, open_weights
from taskvec.weights.dtypes import EDITABLE

Names = dict[str, Annotated[str, Field(min_length=1)]]

Known = Callable[[str], str | None]

RESERVED = ("base", *FORMS)
"""What no vector or model may be called, since the keys have another meaning."""


class Recipe(Documented):
    """A model to be made. Paths are relative to the file that says so."""

    base: str | None = None
    """The weights the edit starts from: a folder, a file, a hub id. Only averages of models need none."""
    vectors: Names = Field(default_factory=dict)
    """Name -> a task vector or an adapter of the base; of masked vectors, ``PATH#TASK``."""
    models: Names = Field(default_factory=dict)
    """Name -> weights fine-tuned from the base; what counts is their difference to it."""
    expression: str | None = None
    """A linear expression over the names: ``0.4*a + 0.4*b - 0.3*c``."""
    rule: str | None = None
    """Instead of an expression: a rule (``taskvec rules``) or a chain, such as ``dare+ties``. It sees the
    vectors, then the models, each in the order of the file."""
    parameters: dict[str, Each] = Field(default_factory=dict)
    """Of the rule; for each vector by name, by filters on names of tensors, or as a gradient over depth."""
    statistics: Names = Field(default_factory=dict)
    """Name of each vector and model -> its statistics (``taskvec stats``), for rules that need them."""
    scale: Value = 1.0
    """The scaling coefficient of the whole edit, or of each tensor by filters or as a gradient."""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] | None = None
    """Element type of the result; by default that of the base, tensor by tensor."""
    precision: Literal["float32", "float64"] = "float32"
    """What deltas, rules and sums are computed in, before the result is rounded once; float64 tensors always
    take float64."""
    max_shard_gb: PositiveFloat = 5.0
    """Size of a shard of the result, in GB."""
    on_extra: OnExtra = "error"
    """``drop`` leaves out tensors that a model has and the base lacks."""
    on_missing: OnMissing = "error"
    """``zero`` takes tensors that a model lacks as unchanged."""
    vocab: Vocab | None = None
    """Bring models of different vocabularies to one: that of the ``base``, or the ``union`` or
    ``intersection`` of all."""
    allow_other_base: bool = False
    """Apply vectors that were taken from another base, or from an unknown one."""
    allow_nonfinite: bool = False
    """Write NaN and infinities instead of refusing them."""


def none_known(_: str) -> None:
    """No short names of models."""


def read(path: Path, content: object, *, known: Known = none_known, **instead: object) -> Merge:
    """The model that a recipe describes, with every input opened and matched.

    Reads headers, and a few thousand entries of each matrix, to say which models look unrelated to the base.
    Vectors that were stored with the fingerprint of their base make the base be read once, to compare.

    Args:
        path: of the recipe, for messages and for the paths in it.
        content: the plain data in it.
        known: the path or hub id that a short name stands for, where no file has that name.
        **instead: fields in place of the recipe's, such as ``scale``; ``None`` for its own.

    Raises: InputError, opening with the path, for whatever does not fit.
    """
    where = str(path)
    if not isinstance(content, Mapping):
        found = "nothing" if content is None else f"a {type(content).__name__}"
        raise InputError(f"{where}: {found}, expected a recipe: keys and values")
    given = {name: value for name, value in instead.items() if value is not None}
    try:
        recipe = Recipe.parse(where, {**content, **given})
    except RecursionError:
        raise InputError(f"{where}: nested too deeply, or in itself") from None
    return build(recipe, where=where, folder=path.parent, known=known)


def build(recipe: Recipe, *, where: str = "", folder: Path = Path(), known: Known = none_known) -> Merge:
    """The model that a recipe describes; as ``read``, with paths that are relative to ``folder``.

    Args:
        where: opens messages.
    """
    with told(where):
        _check(recipe)
        return _Reading(recipe, folder, known).merge()


def _check(recipe: Recipe) -> None:
    """What the fields say together.

    Raises: InputError.
    """
    names = [*recipe.vectors, *recipe.models]
    if not names:
        raise InputError("no vectors and no models, expected at least one")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name!r} is a vector and a model, expected a name for each")
        if not name.isidentifier() or name in RESERVED:
            raise InputError(
                f"the name {name!r}, expected one word of letters, digits and _, "
                f"none of {', '.join(RESERVED)}"
            )
    if recipe.expression is not None and recipe.rule is not None:
        raise InputError("an expression and a rule, expected one of them")
    if recipe.expression is None and recipe.rule is None and len(names) > 1:
        raise InputError(f"{len(names)} names, expected an expression over them, or a rule")
    for field in ("parameters", "statistics"):
        if getattr(recipe, field) and recipe.rule is None:
            raise InputError(f"{field} without a rule; leave them out, or name the rule")
    if recipe.base is None and recipe.scale != 1:
        raise InputError("a scale without a base, expected the base that it is a distance from")
    if recipe.expression is not None:
        used = names_in(recipe.expression)
        unused = [name for name in names if name not in used]
        if unused and set(used) <= set(names):
            raise InputError(f"{unused[0]!r} is not in the expression; leave it out")


class _Reading:
    """A recipe, opened."""

    def __init__(self, recipe: Recipe, folder: Path, known: Known) -> None:
        self.recipe, self.folder, self.known = recipe, folder, known
        said = recipe.model_dump(mode="json", exclude_defaults=True)
        self.record: dict[str, Any] = {"kind": "edited model", "recipe": said}
        self.files: Mapping[str, str] = {}
        self.rule: Rule | None = RULES[recipe.rule] if recipe.rule is not None else None
        self.base, self.inputs, self.vectors = self._opened()
        if recipe.vectors:
            self.record["vectors"] = {name: _provenance(self.vectors[name]) for name in recipe.vectors}
        own = [name for name in self.base if self.base.spec(name).dtype in EDITABLE]
        named = [name for vector in self.vectors.values() for name in vector.specs]
        self.names = list(dict.fromkeys([*own, *named]))
        self.edited = [name for name in self.names if any(v.terms_at(name) for v in self.vectors.values())]

    def merge(self) -> Merge:
        """The edited model, and what is to be said of it."""
        recipe = self.recipe
        vector = self._combined()
        scale = recipe.scale
        if constant(scale):
            factor = _number("scale", scale)
        else:
            settled = settle("scale", scale, self.names, self.edited)
            vector = vector.scaled({name: _number("scale", settled[name]) for name in self.edited})
            factor = 1.0
        dtype = None if recipe.dtype is None else getattr(torch, recipe.dtype)
        weights = apply(
            self.base,
            vector,
            factor,
            allow_other_base=recipe.allow_other_base,
            dtype=dtype,
            precision=getattr(torch, recipe.precision),
        )
        return Merge(
            weights,
            self.record,
            like=self.base,
            notes=tuple(self._notes()),
            max_shard_size=recipe.max_shard_gb * 1e9,
            inputs=self.inputs,
            passes=partial(passes, vector),
            allow_nonfinite=recipe.allow_nonfinite,
            files=self._files(dtype),
        )

    def _files(self, dtype: torch.dtype | None) -> Mapping[str, str]:
        """The side files that are not those of the base, in another vocabulary or dtype."""
        rows = self.record.get("vocabulary", {}).get("rows")
        config = None if dtype is None else config_of(self.base.folder, dtype=dtype, tokens=rows)
        return self.files if config is None else {**self.files, "config.json": config}

    def _opened(self) -> tuple[Weights, dict[str, Weights], dict[str, TaskVector]]:
        recipe = self.recipe
        held = {name: self._open_vector(name, ref) for name, ref in recipe.vectors.items()}
        tuned = {name: self._open("models", name, ref) for name, ref in recipe.models.items()}
        if recipe.base is not None:
            base = self._open("base", "", recipe.base)
            check_point(base)
            inputs = {"base": base, **{name: file.weights for name, file in held.items()}, **tuned}
        else:
            base = self._stand_in(tuned)
            inputs = {**tuned}
        same = {name: (file.weights.identity, file.task) for name, file in held.items()}
        _check_distinct(same | {name: (weights.identity, None) for name, weights in tuned.items()})
        whole = {name: file.weights for name, file in held.items() if file.task is None} | tuned
        self.copies = list(copies({"base": base, **whole} if recipe.base is not None else whole))
        self.said = contradictions.of_models([base, *tuned.values()], like=base)
        if recipe.vocab is not None:
            base, tuned = self._aligned(base, tuned, recipe.vocab)
        else:
            for weights in tuned.values():
                if weights.adapter is None:
                    self.said += check_in_order(base, weights)
        vectors = {name: self._of_base(file.vector(), base) for name, file in held.items()}
        for name, weights in tuned.items():
            vector = TaskVector.between(base, weights, on_extra=recipe.on_extra, on_missing=recipe.on_missing)
            vectors[name] = 0 * vector if weights is base else vector
        return base, inputs, vectors

    def _aligned(
        self, base: Weights, tuned: Mapping[str, Weights], vocab: Vocab
    ) -> tuple[Weights, dict[str, Weights]]:
        """Base and models, seen in one vocabulary. Vectors and adapters are bound to that of the base."""
        moving = {name: each for name, each in tuned.items() if each is not base and each.adapter is None}
        seen = align(base, list(moving.values()), vocab)
        bound = [*self.recipe.vectors, *(name for name, each in tuned.items() if each.adapter is not None)]
        if bound and seen.base is not base:
            raise InputError(f"vocab: {vocab}, but {bound[0]!r} is of the vocabulary of the base; use base")
        self.record["vocabulary"] = seen.facts
        self.files = seen.files
        views = dict(zip(moving, seen.tuned, strict=True))
        return seen.base, {
            name: seen.base if each is base else views.get(name, each) for name, each in tuned.items()
        }

    def _of_base(self, vector: TaskVector, base: Weights) -> TaskVector:
        return vector.with_base(base) if self.recipe.allow_other_base else bind_all([vector], base)[0]

    def _stand_in(self, tuned: Mapping[str, Weights]) -> Weights:
        """The first model in the place of a base, for a result that the base has no part in."""
        if self.recipe.vectors or not tuned or not self._is_baseless():
            what = f"rule {self.recipe.rule!r}" if self.recipe.rule else "an expression"
            raise InputError(
                f"base: missing, but {what} starts from one; only averages of whole models need none: "
                "mean, and slerp, multislerp and karcher of weights"
            )
        if len(tuned) < 2:
            raise InputError("base: missing, and only one model, expected two or more to average")
        return next(iter(tuned.values()))

    def _is_baseless(self) -> bool:
        if self.rule is None:
            return False
        given = {name: value for name, value in self.recipe.parameters.items() if name == "of"}
        return self.rule.name == "mean" or {**self.rule.parameters(), **given}.get("of") == "weights"

    def _open_vector(self, name: str, ref: str) -> "_File":
        task = with_task(self.folder / local_path(ref))[1]
        return _File(self._open("vectors", name, ref.removesuffix(f"#{task}")), task)

    def _open(self, field: str, name: str, ref: str) -> Weights:
        where = f"{field}: {name}" if name else field
        path = self.folder / local_path(ref)
        if exists(path):
            return check_sound(open_weights(path))
        if (known := self.known(ref)) is not None:
            return open_weights(known)
        # A path into a folder that exists is a slip of the pen, not a wish to download.
        if exists(ref) or not hub.is_reference(ref) or exists(self.folder / Path(ref).parts[0]):
            raise InputError(f"{where}: {path}: no such file or folder; paths are relative to the recipe")
        return check_sound(open_weights(ref))

    def _combined(self) -> TaskVector:
        """The edit before it is scaled."""
        vectors, recipe = self.vectors, self.recipe
        if self.rule is None:
            if recipe.expression is None:
                return next(iter(vectors.values()))
            return parse_expression(recipe.expression, vectors)
        names = list(vectors)
        params, each = for_rule(self.rule, recipe.parameters, names, self.names, self.edited)
        varying = {field for own in each.values() for field in own}
        settings = self.rule.settings(params, len(names))
        self.record["rule"] = {
            "name": self.rule.name,
            **{k: settings[k] for k in settings if k not in varying},
        }
        given = bind_all(list(vectors.values()), self.base)
        return combine(self.rule, given, each=each, stats=self._statistics(), **params)

    def _statistics(self) -> list[Weights] | None:
        if self.rule is not None and "_stats" in self.rule.keywords and not self.recipe.statistics:
            raise InputError(
                f"statistics: missing, but rule {self.rule.name!r} needs them, a file for each vector and "
                "model; make them with: taskvec stats"
            )
        paths = by_vector("statistics", self.recipe.statistics, list(self.vectors))
        opened = {name: self._open("statistics", name, path) for name, path in paths.items()}
        self.inputs |= {f"statistics of {name}": weights for name, weights in opened.items()}
        return list(opened.values()) or None

    def _notes(self) -> Iterator[str]:
        yield from self.record.get("vocabulary", {}).get("notes", ())
        yield from self.said
        yield from contradictions.of_distances(self.base, self.vectors)
        for first, name in self.copies:
            zero = "the base itself, so its task vector is zero"
            yield f"{name}: {zero if first == 'base' else said_of_copy(first)}"
        for name in self.recipe.models:
            tuned = self.inputs[name]
            if tuned.adapter is None:  # which has names of its own
                extra = [one for one in tuned if one not in self.base]
                missing = [one for one in self.base if one not in tuned]
                yield from _first(f"{name}: left out, as the base lacks it", extra)
                yield from _first(f"{name}: unchanged, as the model lacks it", missing)
                integers = differing_buffers(self.base, tuned)
                yield from _first(f"{name}: differs, but integers are those of the base", integers)
        if self.recipe.base is None:
            first = next(iter(self.recipe.models))
            yield f"no base: config, tokenizer and integer tensors are those of the first model, {first!r}"


def _first(what: str, names: Sequence[str]) -> Iterator[str]:
    if names:
        yield f"{what}: {names[0]!r}{and_more(names)}"


def _provenance(vector: TaskVector) -> dict[str, Any]:
    return {"path": vector.ref, **summary(vector.info)}


@dataclass(frozen=True)
class _File:
    """A file of a vector, or of masked vectors with the task that is meant."""

    weights: Weights
    task: str | None

    def vector(self) -> TaskVector:
        if self.task is None:
            return TaskVector.opened(self.weights)
        return MaskedVectors.opened(self.weights).vector(self.task)


def _check_distinct(inputs: Mapping[str, Hashable]) -> None:
    """Refuse the same vector or model under two names."""
    seen: dict[Hashable, str] = {}
    for name, identity in inputs.items():
        earlier = seen.setdefault(identity, name)
        if earlier != name:
            raise InputError(f"{earlier!r} and {name!r} are the same vector or model; give it once")


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: {value!r}, expected a number")
    return float(value)
