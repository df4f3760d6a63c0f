"""The vocabulary that several models are brought to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from taskvec.edits.rows import Key, Model, check_related
from taskvec.edits.tokens import add_tokens, added_tokens, plain_token
from taskvec.errors import InputError, and_more
from taskvec.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

Vocab = Literal["base", "union", "intersection"]
VOCABS: tuple[Vocab, ...] = get_args(Vocab)


@dataclass(frozen=True)
class Given:
    """The row that one token gets.

    Attributes:
        model: whose row it is; ``None`` for zeros.
        of: another token of that model, or the number of a row; ``None`` for the token itself.
        force: whether models that have the token get this row as well.
    """

    model: Weights | None
    of: Key | None = None
    force: bool = False


@dataclass(frozen=True)
class Wanted:
    """A vocabulary, and what its rows are filled with.

    Attributes:
        source: whose tokens, in whose order: one of the models, or any folder with a tokenizer.
        tokens: what single tokens get, ``None`` for the usual; those that the source lacks are added to it.
        multiple: rows without a token are dropped, and means of all rows appended until the number of rows
            is a multiple of this.
        based: whether a token that a model lacks gets the base's row, if it has one; else the mean of all
            models that have it.
        rewritten: whether the tokenizer loses tokens that have no row and, in a union, gains the pieces of
            other models' own vocabularies as added tokens.
    """

    source: Vocab | Weights
    tokens: Mapping[str, Given | None] = field(default_factory=dict)
    multiple: int | None = None
    based: bool = True
    rewritten: bool = False


def find_target(models: Sequence[Model], wanted: Wanted) -> Model:
    """The model whose vocabulary becomes that of all, if need be with more tokens.

    Raises: InputError if none has exactly the tokens asked for.
    """
    if not isinstance(wanted.source, str):
        target = _named(wanted.source, models)
    elif wanted.source == "base":
        target = models[0]
    else:
        target = _common(models, wanted.source, in_mergekit=wanted.rewritten)
    if wanted.rewritten and target.beyond and not target.files:
        target = _extended(target, {})
    target = _with_tokens(target, [token for token in wanted.tokens if token not in target.at])
    return target if wanted.multiple is None else _cut(target)


def give_rows(token: str, given: Given, models: Sequence[Model], places: "Tensor", donors: "Tensor") -> None:
    """Enter where the row of one token comes from into the columns of an ``Alignment``.

    Raises: InputError for a model that is not merged, or that lacks the row.
    """
    if given.force:
        places[:] = -1
    donors[:] = -1
    if given.model is None:
        return
    number = next((n for n, m in enumerate(models) if m.weights.identity == given.model.identity), None)
    if number is None:
        raise InputError(
            f"token {token!r}: its row is of {given.model.ref}, expected one of the merged models"
        )
    model, of = models[number], token if given.of is None else given.of
    row = model.at.get(of) if isinstance(of, str) else of
    if row is None or not 0 <= row < len(model.keys):
        what = f"token {of!r}" if isinstance(of, str) else f"row {of}"
        raise InputError(
            f"token {token!r}: {model.ref} has no {what}, expected one of its {len(model.keys)} rows"
        )
    donors[number] = row


def _named(source: Weights, models: Sequence[Model]) -> Model:
    """The model that a vocabulary is taken from, or the base with the tokenizer of another one."""
    merged = next((model for model in models if model.weights.identity == source.identity), None)
    if merged is not None:
        return merged
    other = Model.of_tokenizer(source, models[0].weights)
    check_related(models[0], other)
    return other


def _with_tokens(target: Model, tokens: Sequence[str]) -> Model:
    """A model with more tokens.

    Raises: InputError if they cannot be added.
    """
    if not tokens:
        return target
    extended = _extended(target, {token: plain_token(token) for token in tokens})
    if tokens[0] not in extended.at:
        raise InputError(
            f"{target.ref}: token {tokens[0]!r} cannot be added to its tokenizer{and_more(tokens)}, expected "
            "a tokenizer.json whose tokens have the first rows, without gaps; leave the token out"
        )
    return extended


def _common(models: Sequence[Model], vocab: Vocab, *, in_mergekit: bool) -> Model:
    """The union or intersection of all.

    Args:
        in_mergekit: whether it is as in mergekit, where a union has pieces of models' own vocabularies too.
    """
    base, key = models[0], "tokenizer_source:" if in_mergekit else "--vocab"
    if vocab == "union":
        _check_named(models, key)
    sets = [model.names for model in models]
    wanted = frozenset.union(*sets) if vocab == "union" else frozenset.intersection(*sets)
    for model in models:
        if model.names == wanted:
            return model
    extended = _extended(base, _beyond_the_base(models, pieces=in_mergekit)) if vocab == "union" else base
    if extended.names == wanted:
        return extended
    nearest = min(models, key=lambda model: len(model.names ^ wanted))
    odd = sorted(map(str, nearest.names ^ wanted))
    word = "lacks" if vocab == "union" else "has beyond them"
    raise InputError(
        f"{key} {vocab}: no model has exactly its {len(wanted)} tokens ({nearest.ref} {word} "
        f"{odd[0]!r}{and_more(odd)}), expected one whose tokenizer can be kept; use {key} base"
    )


def _check_named(models: Sequence[Model], key: str) -> None:
    base = models[0]
    unnamed = next((m for m in models if not m.named and len(m.keys) > len(base.keys)), None)
    if unnamed is not None and any(model.named for model in models):
        raise InputError(
            f"{unnamed.ref}: {len(unnamed.keys) - len(base.keys)} rows more than the base and no "
            f"tokenizer files to tell their tokens, expected tokenizer.json; or use {key} base"
        )


def _beyond_the_base(models: Sequence[Model], *, pieces: bool) -> dict[str, Mapping[str, Any]]:
    """Tokens that the base lacks, as they are to be added to it."""
    new: dict[str, Mapping[str, Any]] = {}
    for model in models[1:]:
        entries = added_tokens(model.weights.folder)
        lacking = [key for key in model.names - models[0].names - new.keys() if isinstance(key, str)]
        tokens = [token for token in sorted(lacking, key=model.at.__getitem__) if pieces or token in entries]
        new |= {token: entries.get(token, plain_token(token)) for token in tokens}
    return new


def _extended(base: Model, new: Mapping[str, Mapping[str, Any]]) -> Model:
    """The base with more tokens behind its own, if its tokenizer can be extended."""
    folder = base.weights.folder
    if folder is None or base.files:
        return base
    first = len(base.names)
    keys = [*base.keys[:first], *new, *base.keys[first + len(new) :]]
    files = add_tokens(folder, list(new.values()), len(keys), first)
    added: dict[Key, int] = {token: row for row, token in enumerate(new, start=first)}
    return replace(base, keys=tuple(keys), at={**base.at, **added}, files=files) if files else base


def _cut(model: Model) -> Model:
    """The model without the rows behind those of its tokens."""
    last = max(
        (row for row, key in enumerate(model.keys) if isinstance(key, str)), default=len(model.keys) - 1
    )
    return replace(model, keys=model.keys[: last + 1])
