"""Recipes: YAML files that say which model to make of a base and task vectors, or of fine-tuned models."""

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from copy import copy
from functools import cached_property, partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, PositiveFloat

from taskvec.edits import contradictions
from taskvec.edits.configs import derive_config, read_config_of, retype_modules
from taskvec.edits.growth import grow
from taskvec.edits.inputs import describe_copy, errors_at, find_copies
from taskvec.edits.merge import Merge
from taskvec.edits.named import Known, Named, check_distinct, none_known
from taskvec.edits.naming import Naming, Renaming, choose, note_left_out, take_part
from taskvec.edits.parameters import (
    FORMS,
    Documented,
    Each,
    Value,
    is_constant,
    order_by_vector,
    settle,
    split_parameters,
)
from taskvec.edits.passes import count_passes
from taskvec.edits.roles import list_left
from taskvec.edits.tokens import check_in_order, replaces_tokenizer
from taskvec.edits.vocabulary import VOCABS, Aligned, Vocab, Wanted, align
from taskvec.errors import InputError
from taskvec.later import torch
from taskvec.registry import nearest
from taskvec.rules import RULES, Rule
from taskvec.vectors import TaskVector, combine, parse_expression
from taskvec.vectors.checks import Fit, OnExtra, OnMissing, check_point
from taskvec.vectors.combining import bind_all
from taskvec.vectors.edited import edit
from taskvec.vectors.expression import names_in
from taskvec.vectors.fitting import chosen
from taskvec.vectors.opening import between, delta_in, difference
from taskvec.weights import Weights
from taskvec.weights.depth import names_behind

Names = dict[str, Annotated[str, Field(min_length=1)]]

_RESERVED = ("base", *FORMS)
"""Names that vectors and models cannot have, as the keys mean something else."""
_NAME = re.compile(r"\w[\w.-]*")


class Recipe(Documented):
    """A model to be made. Paths are relative to the file of the recipe."""

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
    allow_partial: bool = False
    """Take models that have less than a tenth of the base's tensors."""
    rename: Renaming = Field(default_factory=dict)
    """Old name -> new one, with ``*`` for any characters, for tensors that the base calls otherwise; or, for
    a vector or model alone, its name -> such a map."""
    include: tuple[str, ...] = ()
    """Only tensors whose name matches: a part of it, all of it with ``*`` for any characters, or
    ``re:PATTERN``."""
    exclude: tuple[str, ...] = ()
    """No tensors whose name matches. They need no partner and no equal shape."""
    vocab: Annotated[str, Field(min_length=1)] | None = None
    """Bring models of different vocabularies to one: that of the ``base``, the ``union`` or the
    ``intersection`` of all, or that of the model of this name."""
    allow_other_base: bool = False
    """Apply vectors that were taken from another base, or from an unknown one."""
    allow_nonfinite: bool = False
    """Write NaN and infinities instead of refusing them."""


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
        kind = "nothing" if content is None else f"a {type(content).__name__}"
        raise InputError(f"{where}: {kind}, expected a recipe: keys and values")
    given = {name: value for name, value in instead.items() if value is not None}
    try:
        recipe = Recipe.parse(where, {**content, **given})
    except RecursionError:
        raise InputError(f"{where}: nested too deeply, or in itself") from None
    return build(recipe, where=where, folder=path.parent, known=known)


def build(
    recipe: Recipe,
    *,
    where: str = "",
    folder: Path = Path(),
    known: Known = none_known,
    check: Callable[[Sequence[Weights]], None] | None = None,
) -> Merge:
    """The model that a recipe describes; as ``read``, with paths that are relative to ``folder``.

    Args:
        where: the file of the recipe, which opens messages; none for one that was made of options.
        check: called with all inputs once they are open, before anything of them but headers is read.
    """
    with errors_at(where):
        check_fields(recipe)
        building = Building(recipe, where, folder, known)
        if check is not None:
            check(list(building.inputs.values()))
        return building.merge()


def _check_name(name: str, *, in_expression: bool) -> None:
    """Refuse names of vectors and models that cannot be told from other words."""
    if name in _RESERVED or not _NAME.fullmatch(name):
        raise InputError(
            f"the name {name!r}, expected one word of letters, digits and _, none of {', '.join(_RESERVED)}"
        )
    if in_expression and not name.isidentifier():
        raise InputError(
            f"the name {name!r}, expected one word of letters, digits and _; "
            "an expression takes - and . for its own signs"
        )


def check_fields(recipe: Recipe) -> None:
    """Refuse fields that contradict each other."""
    names = [*recipe.vectors, *recipe.models]
    if not names:
        raise InputError("no vectors and no models, expected at least one")
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"{name!r} is a vector and a model, expected a name for each")
        _check_name(name, in_expression=recipe.expression is not None)
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


class Building:
    """A recipe on its way to a model: its inputs, opened."""

    def __init__(self, recipe: Recipe, where: str, folder: Path, known: Known) -> None:
        self.recipe, self.named, self.again = recipe, Named(where, folder, known), False
        self.rule: Rule | None = RULES[recipe.rule] if recipe.rule is not None else None
        self.held = {name: self.named.open_vector(name, ref) for name, ref in recipe.vectors.items()}
        self.models = {name: self.named.open(f"models: {name}", ref) for name, ref in recipe.models.items()}
        self.base = self._stand_in() if recipe.base is None else self.named.open("base", recipe.base)
        check_point(self.base)
        files = {name: weights for name, (weights, _) in self.held.items()}
        start = {} if recipe.base is None else {"base": self.base}
        self.inputs: dict[str, Weights] = {**start, **files, **self.models}
        check_distinct(self.held, self.models)
        self.naming = Naming(recipe.rename, {**files, **self.models})
        masked = [name for name, (_, task) in self.held.items() if task is not None]
        self.copies = list(
            find_copies({name: self.inputs[name] for name in self.inputs if name not in masked})
        )

    def merge(self) -> Merge:
        """The edited model, lazily, with notes and a record."""
        recipe, (seen, notes) = self.recipe, self.seen
        base, vectors = seen.base, self._vectors(seen)
        vector, rule = self._edit(base, vectors)
        dtype = recipe.dtype
        precision = torch.float64 if recipe.precision == "float64" else None
        other = recipe.allow_other_base
        config = None if dtype is None else derive_config(read_config_of(base), dtype=dtype, tokens=seen.rows)
        files = {**seen.files, **retype_modules(base, dtype)}
        return Merge(
            edit(base, vector, allow_other_base=other, dtype=dtype, precision=precision),
            self._record(seen, rule),
            like=seen.like or base,
            notes=()
            if self.again
            else (*self.naming.notes, *seen.notes, *notes, *self._notes(seen, vectors)),
            max_shard_size=recipe.max_shard_gb * 1e9,
            inputs=self.inputs,
            vectors={name: vectors[name] for name in self.held},
            passes=partial(count_passes, vector),
            allow_nonfinite=recipe.allow_nonfinite,
            files=files if config is None else {**files, "config.json": config},
        )

    def _record(self, seen: Aligned, rule: Mapping[str, Any]) -> dict[str, Any]:
        """Provenance for the manifest."""
        dumped = self.recipe.model_dump(mode="json", exclude_defaults=True)
        further = {"vocabulary": seen.record, "rule": rule}
        used = {key: value for key, value in further.items() if value}
        return {"kind": "edited model", "recipe": dumped, **used}

    def with_numbers_of(self, recipe: Recipe) -> "Building":
        """Of a recipe that differs in its rule, parameters, expression or scale only; without notes.

        What was opened and compared is not looked at again.
        """
        variant = copy(self)
        variant.recipe, variant.again = recipe, True
        variant.rule = RULES[recipe.rule] if recipe.rule is not None else None
        return variant

    @cached_property
    def seen(self) -> tuple[Aligned, list[str]]:
        """Base and models with the same rows, and what is odd about them."""
        seen, notes = self._see()
        inputs = [*(weights for weights, _ in self.held.values()), *self.models.values()]
        return grow(seen, (weights for weights in inputs if weights.adapter is not None)), notes

    def _see(self) -> tuple[Aligned, list[str]]:
        """Base and models in one vocabulary, and what is odd about them."""
        notes = contradictions.compare_models([self.base, *self.models.values()], like=self.base)
        for name, model in self.models.items():
            self.models[name] = self.naming.see_model(name, self.base, model)
        if self.recipe.vocab is not None:
            return self._align(self._wanted(self.recipe.vocab)), notes
        plain = (model for model in self.models.values() if model.adapter is None)
        notes += [note for model in plain for note in check_in_order(self.base, model)]
        return Aligned(self.base, tuple(self.models.values())), notes

    def _wanted(self, vocab: str) -> Vocab | Wanted:
        """The vocabulary of that name, or of the model of that name."""
        known = next((known for known in VOCABS if known == vocab), None)
        if known is not None:
            return known
        plain = [name for name, model in self.models.items() if model.adapter is None]
        if vocab not in plain:
            raise InputError(
                f"vocab: {vocab!r}, expected a model or one of them; {nearest(vocab, (*VOCABS, *plain))}"
            )
        return Wanted(self.models[vocab])

    def _align(self, vocab: Vocab | Wanted) -> Aligned:
        """Base and models, seen in one vocabulary. Vectors and adapters are bound to that of the base."""
        bound = [*self.held, *(name for name, model in self.models.items() if model.adapter is not None)]
        moving = [model for model in self.models.values() if model is not self.base and model.adapter is None]
        seen = align(self.base, moving, vocab)
        if bound and seen.base is not self.base:
            raise InputError(
                f"vocab: {self.recipe.vocab}, but {bound[0]!r} is of the vocabulary of the base; use base, "
                f"or apply it first (taskvec apply BASE -v {bound[0]}=PATH -o MODEL) "
                "and give MODEL under models"
            )
        views = {id(self.base): seen.base, **dict(zip(map(id, moving), seen.tuned, strict=True))}
        return seen._replace(tuned=tuple(views.get(id(model), model) for model in self.models.values()))

    def _vectors(self, seen: Aligned) -> dict[str, TaskVector]:
        """The vectors, then the models as vectors, all of one base."""
        recipe, base = self.recipe, seen.base
        vectors = {
            name: self.naming.see_vector(name, base, TaskVector.of(delta_in(weights, task)))
            for name, (weights, task) in self.held.items()
        }
        choice = choose(recipe.include, recipe.exclude, recipe.scale, base, vectors.values())
        # All of them first: headers cost less than comparing fingerprints.
        parts = {name: take_part(vector, choice, base) for name, vector in vectors.items()}
        for name, part in parts.items():
            bound = part.with_base(base) if recipe.allow_other_base else bind_all([part], base)[0]
            vectors[name] = TaskVector.of(chosen(bound, choice))
        fit = Fit(recipe.on_extra, recipe.on_missing, choice, recipe.allow_partial)
        for name, model in zip(self.models, seen.tuned, strict=True):
            leads = between if model.adapter is not None else difference
            vector = TaskVector.of(leads(base, model, fit))
            vectors[name] = 0 * vector if model is base else vector
        self.choice = choice
        return vectors

    def _edit(self, base: Weights, vectors: Mapping[str, TaskVector]) -> tuple[TaskVector, Mapping[str, Any]]:
        """The scaled edit, and its rule with the parameters that are the same for all tensors."""
        held = [name for name in base if base.spec(name).editable]
        named = [name for vector in vectors.values() for name in vector.specs]
        names = list(dict.fromkeys([*held, *named]))
        edited = [name for name in names if any(vector.terms_at(name) for vector in vectors.values())]
        scale, behind, stats = self.recipe.scale, names_behind(names, base.folder), None
        if self.rule is not None:
            stats = self._statistics(self.rule)
            vectors = dict(zip(vectors, bind_all(list(vectors.values()), base), strict=True))
        edit, rule = combine_by(self.recipe, vectors, names, edited, behind, stats)
        if is_constant(scale):
            return _number("scale", scale) * edit, rule
        factors = settle("scale", scale, names, edited, behind)
        return edit.scaled({name: _number("scale", factors[name]) for name in edited}), rule

    def _statistics(self, rule: Rule) -> list[Weights] | None:
        if "_stats" in rule.keywords and not self.recipe.statistics:
            raise InputError(
                f"statistics: missing, but rule {rule.name!r} needs them, a file for each vector and model; "
                "make them with: taskvec stats"
            )
        paths = order_by_vector("statistics", self.recipe.statistics, [*self.held, *self.models])
        opened = {name: self.named.open(f"statistics: {name}", path) for name, path in paths.items()}
        self.inputs |= {f"statistics of {name}": weights for name, weights in opened.items()}
        return list(opened.values()) or None

    # Inputs

    def _stand_in(self) -> Weights:
        """The first model in place of a base, for averages, which need none."""
        recipe, rule = self.recipe, self.rule
        of = None if rule is None else {**rule.parameters(), **recipe.parameters}.get("of")
        if self.held or not self.models or rule is None or (rule.name != "mean" and of != "weights"):
            what = f"rule {rule.name!r}" if rule else "an expression"
            raise InputError(
                f"base: missing, but {what} starts from one; only averages of whole models need none: "
                "mean, and slerp, multislerp and karcher of weights"
            )
        if len(self.models) < 2:
            raise InputError("base: missing, and only one model, expected two or more to average")
        return next(iter(self.models.values()))

    def _notes(self, seen: Aligned, vectors: Mapping[str, TaskVector]) -> Iterator[str]:
        yield from contradictions.note_distances(seen.base, vectors)
        for first, name in self.copies:
            zero = "the base itself, so its task vector is zero"
            yield f"{name}: {zero if first == 'base' else describe_copy(first)}"
        yield from note_left_out(self.models, seen.base, self.choice)
        if self.recipe.base is None:
            first = next(iter(self.recipe.models))
            yield f"no base: config, tokenizer and integer tensors are those of the first model, {first!r}"
        if not replaces_tokenizer(seen.files):
            adapters = {name: held for name, (held, _) in self.held.items() if held.adapter is not None}
            tokens = self.recipe.vocab is None
            yield from list_left(self.models | adapters, seen.like or self.base, "vocab", tokens=tokens)


def combine_by(
    recipe: Recipe,
    vectors: Mapping[str, TaskVector],
    names: Sequence[str],
    edited: Sequence[str],
    behind: Container[str] = (),
    stats: Sequence[Weights] | None = None,
) -> tuple[TaskVector, Mapping[str, Any]]:
    """What a recipe makes of its vectors, before its scale; with its rule, and the parameters that are the
    same for all tensors.

    Args:
        names, edited, behind: as for ``split_parameters``.
    """
    if recipe.expression is not None:
        return parse_expression(recipe.expression, vectors), {}
    if recipe.rule is None:
        [edit] = vectors.values()
        return edit, {}
    rule = RULES[recipe.rule]
    params, each = split_parameters(rule, recipe.parameters, list(vectors), names, edited, behind)
    varying = {field for values in each.values() for field in values}
    settings = rule.settings(params, len(vectors))
    record = {"name": rule.name, **{key: settings[key] for key in settings if key not in varying}}
    return combine(rule, list(vectors.values()), each=each, stats=stats, **params), record


def _number(where: str, value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{where}: {value!r}, expected a number")
    return float(value)
