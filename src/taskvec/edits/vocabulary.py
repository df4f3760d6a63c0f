"""Models of different vocabularies brought to one: the rows of their embeddings matched token by token."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from taskvec.edits.configs import read_vocabulary_size
from taskvec.edits.realigned import Alignment, Realigned, take_entries
from taskvec.edits.tokens import add_tokens, added_tokens, opaque_files, read_tokens
from taskvec.errors import InputError, KeyMismatch, and_more
from taskvec.names import goes_by_token, is_embedding, is_head
from taskvec.weights import Weights

Vocab = Literal["base", "union", "intersection"]
Key = str | int
"""What a row is known by: its token, or its number where no token has it."""

SAMPLE = 256
"""Rows that are compared before rows of the same number are taken for the same token."""
ALIKE = 0.9
"""The share of them that must be nearest to their own counterpart."""


class Aligned(NamedTuple):
    """Views of all models in one vocabulary, and what was done to get there.

    Attributes:
        rows: of every embedding; ``None`` for those that the models have.
        notes: what was dropped, lacking and assumed, in sentences.
        files: name -> text of side files to be written in place of those beside the base.
        record: for the manifest.
    """

    base: Weights
    tuned: tuple[Weights, ...]
    rows: int | None = None
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = {}
    record: Mapping[str, Any] = {}


def align(base: Weights, tuned: Sequence[Weights], vocab: Vocab = "base") -> Aligned:
    """Bring a base and models fine-tuned from it to one vocabulary, so that their rows can be subtracted.

    Tokens are matched by their strings where tokenizer files lie beside the weights, else by row number,
    after a look at whether the rows are alike. Rows come in the order of one of the models, whose config
    and tokenizer files (the ``folder`` of the base's view) are those of the result. If none has the whole
    union, the base comes with the tokens that were added to others behind its own. A token that a model lacks
    gets the row of the base, so that its delta is zero; one that the base lacks gets, there and in
    every model that lacks it, the mean of the models that have it. Rows without a token are padding,
    matched by number.

    Args:
        vocab: the tokens of the base, of any model, or of every model.

    Returns: views that read rows when asked for, or the very weights where nothing has to change.
    Raises: InputError if no tokenizer has exactly the tokens asked for, if rows cannot be matched, or if a
        config is at odds with its weights; KeyMismatch for an embedding and a head of different sizes;
        CorruptFile for a tokenizer file that cannot be read.
    Cost: reads the tokenizer files; of the weights, a few rows where there are none.
    """
    tokens = [read_tokens(weights.folder) for weights in (base, *tuned)]
    known = next((each for each in tokens if each is not None), {})
    models = [_model(w, each, known) for w, each in zip((base, *tuned), tokens, strict=True)]
    first, *others = models
    axes = _vocabulary_axes(models)
    for model in others:
        _check_related(first, model)
        if not (first.named and model.named):
            _check_same_numbers(first, model, axes)
    target = _target(models, vocab)
    places = torch.stack([_places(model, target) for model in models])
    moved = [not _as_is(place, model) for place, model in zip(places, models, strict=True)]
    if any(moved):
        _check_recognised(models, axes)
    plan = Alignment(tuple(model.weights for model in models), places, axes, target.weights)
    views = [Realigned(plan, n) if moved[n] else model.weights for n, model in enumerate(models)]
    rows, notes = len(target.keys), tuple(note for model in models for note in _notes(model, first, target))
    record = {
        "vocab": vocab,
        "rows": rows,
        "vocabulary of": target.weights.ref,
        "tensors": sorted(axes),
        "notes": notes,
    }
    return Aligned(views[0], tuple(views[1:]), rows, notes, target.files, record)


@dataclass(frozen=True)
class _Model:
    """One model, what each row of its embedding is known by, and where each token is."""

    weights: Weights
    named: bool
    keys: tuple[Key, ...]
    at: Mapping[Key, int]
    beyond: int = 0
    files: Mapping[str, str] = field(default_factory=dict)

    @cached_property
    def names(self) -> frozenset[Key]:
        """What counts as its vocabulary: the tokens, or every row where no file tells any."""
        tokens = frozenset(key for key in self.at if isinstance(key, str))
        return tokens or frozenset(self.keys)


def _model(weights: Weights, own: Mapping[str, int] | None, known: Mapping[str, int]) -> _Model:
    """Rows go by the model's own tokens, by those of the first model that says them, or else by number."""
    rows = _rows(weights)
    tokens = {token: row for token, row in (known if own is None else own).items() if row < rows}
    keys: list[Key] = list(range(rows))
    for token, row in tokens.items():
        keys[row] = token
    at: dict[Key, int] = {key: row for row, key in enumerate(keys)}
    at.update(tokens)
    beyond = 0 if own is None else len(own) - len(tokens)
    return _Model(weights, own is not None, tuple(keys), at, beyond)


def find_embeddings(weights: Weights) -> dict[str, int]:
    """The embeddings of tokens by name, with their numbers of rows."""
    return {name: weights.spec(name).shape[0] for name in weights if _is_input(name, weights)}


def find_heads(weights: Weights) -> list[str]:
    """The matrices of output layers over the tokens, where they have tensors of their own."""
    return [name for name in weights if is_head(name) and len(weights.spec(name).shape) == 2]


def _rows(weights: Weights) -> int:
    """How many rows the embedding of tokens has.

    Raises: InputError if there is none, if there are several sizes, or if the config says another number.
    """
    embeddings = find_embeddings(weights)
    said = read_vocabulary_size(weights.folder)
    if not embeddings:
        raise InputError(f"{weights.ref}: no embedding of tokens found, expected one; leave --vocab out")
    if said in embeddings.values():
        return said or 0
    name, rows = next(iter(embeddings.items()))
    if said is not None:
        raise InputError(
            f"{weights.ref}: {name!r} has {rows} rows, config.json says vocab_size {said}; correct the config"
        )
    if len(Counter(embeddings.values())) > 1:
        other = next(other for other, size in embeddings.items() if size != rows)
        raise InputError(
            f"{weights.ref}: {name!r} has {rows} rows and {other!r} {embeddings[other]}, "
            "expected one vocabulary; put a config.json with vocab_size beside the weights"
        )
    return rows


def _is_input(name: str, weights: Weights) -> bool:
    shape = weights.spec(name).shape
    return is_embedding(name) and len(shape) == 2 and 0 not in shape


def _vocabulary_axes(models: Sequence[_Model]) -> dict[str, int]:
    """Tensors with an entry for each token, and the axis it lies along.

    Such are the tensors whose size follows the number of rows from model to model; and where all models
    have as many, those of the names that embeddings and heads go by.

    Raises: KeyMismatch for one of these names that fits the embedding in one model and not in another.
    """
    axes: dict[str, int] = {}
    for name in dict.fromkeys(name for model in models for name in model.weights):
        known = goes_by_token(name)
        holders = [model for model in models if name in model.weights]
        axis, fits = _common_axis(name, holders)
        if axis is not None and (known or len({len(model.keys) for model in holders}) > 1):
            axes[name] = axis
        elif axis is None and known and any(fits):
            odd = holders[fits.index(False)]
            raise KeyMismatch(
                f"{odd.weights.ref}: {name!r} has shape {odd.weights.spec(name).shape}, expected "
                f"{len(odd.keys)} rows as in the embedding; resize both to one size"
            )
    return axes


def _common_axis(name: str, holders: Sequence[_Model]) -> tuple[int | None, list[bool]]:
    """The axis as long as the vocabulary in every model; and in which models there is one."""
    found = [
        {axis for axis, size in enumerate(model.weights.spec(name).shape[:2]) if size == len(model.keys)}
        for model in holders
    ]
    shared = set.intersection(*found)
    return min(shared, default=None), [bool(axes) for axes in found]


def _check_recognised(models: Sequence[_Model], axes: Mapping[str, int]) -> None:
    """Refuse to move rows while a tensor may belong to the vocabulary without our knowing.

    Raises: InputError.
    """
    for name in models[0].weights:
        holders = [model for model in models if name in model.weights]
        if name not in axes and _common_axis(name, holders)[0] is not None:
            raise InputError(
                f"{models[0].weights.ref}: {name!r} has a side of {len(models[0].keys)}, as many as tokens, "
                "expected none that might go by tokens, as these move; save the models in one order"
            )


def _check_related(base: _Model, model: _Model) -> None:
    """Refuse a vocabulary of another kind: a fine-tuned model adds tokens, or drops them, but knows the rest.

    Raises: InputError.
    """
    shared, smaller = len(base.names & model.names), min(len(base.names), len(model.names))
    if shared < smaller / 2:
        raise InputError(
            f"{model.weights.ref}: {shared} of {smaller} tokens are those of {base.weights.ref}, expected at "
            "least half; was it fine-tuned from another model?"
        )


def _check_same_numbers(base: _Model, model: _Model, axes: Mapping[str, int]) -> None:
    """Refuse to match rows by number where that would be wrong.

    Raises: InputError if tokenizers of a kind that is not read differ, or rows of one number are not alike.
    """
    ours, theirs = opaque_files(base.weights.folder), opaque_files(model.weights.folder)
    other = next((name for name, digest in theirs.items() if ours.get(name, digest) != digest), None)
    if other is not None:
        raise InputError(
            f"{model.weights.ref}: {other} differs from that of {base.weights.ref} and is not read, expected "
            "tokenizer.json in both to match tokens; save both tokenizers again as tokenizer.json"
        )
    name = next(
        name for name in axes if _is_input(name, base.weights) and name in model.weights and axes[name] == 0
    )
    shared = [key for key in base.keys if key in model.at]
    sample = shared[:: -(-len(shared) // SAMPLE)]
    rows, expected = (
        take_entries(one.weights, name, torch.tensor([one.at[key] for key in sample]), 0).double()
        for one in (model, base)
    )
    apart = torch.cdist(rows, expected, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = (apart.diagonal() <= apart.amin(1)) | apart.amin(1).isnan()
    if nearest.double().mean() < ALIKE:
        raise InputError(
            f"{model.weights.ref}: rows of {name!r} are not those of {base.weights.ref} by number "
            f"({int(nearest.sum())} of {len(nearest)} compared are), and no tokenizer files tell the tokens; "
            "put tokenizer.json beside both"
        )


def _target(models: Sequence[_Model], vocab: Vocab) -> _Model:
    """The model whose vocabulary becomes that of all, or the base with more tokens.

    Raises: InputError if neither has exactly the tokens asked for.
    """
    base = models[0]
    if vocab == "base":
        return base
    if vocab == "union":
        unnamed = next((m for m in models if not m.named and len(m.keys) > len(base.keys)), None)
        if unnamed is not None and any(model.named for model in models):
            raise InputError(
                f"{unnamed.weights.ref}: {len(unnamed.keys) - len(base.keys)} rows more than the base and no "
                "tokenizer files to tell their tokens, expected tokenizer.json; or use --vocab base"
            )
    sets = [model.names for model in models]
    wanted = frozenset.union(*sets) if vocab == "union" else frozenset.intersection(*sets)
    for model in models:
        if model.names == wanted:
            return model
    extended = _extended(base, models[1:]) if vocab == "union" else base
    if extended.names == wanted:
        return extended
    nearest = min(models, key=lambda model: len(model.names ^ wanted))
    odd = sorted(map(str, nearest.names ^ wanted))
    word = "lacks" if vocab == "union" else "has beyond them"
    raise InputError(
        f"--vocab {vocab}: no model has exactly its {len(wanted)} tokens ({nearest.weights.ref} {word} "
        f"{odd[0]!r}{and_more(odd)}), expected one whose tokenizer can be kept; use --vocab base"
    )


def _extended(base: _Model, others: Sequence[_Model]) -> _Model:
    """The base with the tokens that were added to other models in the rows behind its own; or as it is."""
    new: dict[str, Mapping[str, Any]] = {}
    if base.beyond:
        return base
    for model in others:
        entries = added_tokens(model.weights.folder)
        lacking = sorted(
            (key for key in model.names - base.names if key in entries), key=model.at.__getitem__
        )
        new |= {str(key): entries[str(key)] for key in lacking if key not in new}
    first, folder = len(base.names), base.weights.folder
    keys = [*base.keys[:first], *new, *base.keys[first + len(new) :]]
    files = add_tokens(folder, list(new.values()), len(keys)) if folder is not None else {}
    at: dict[Key, int] = dict(base.at)
    at.update((token, row) for row, token in enumerate(new, start=first))
    return replace(base, keys=tuple(keys), at=at, files=files) if files else base


def _places(model: _Model, target: _Model) -> Tensor:
    """The row of ``model`` for each row of ``target``, int64; -1 for a token that it lacks."""
    return torch.tensor([model.at.get(key, -1) for key in target.keys])


def _as_is(places: Tensor, model: _Model) -> bool:
    return torch.equal(places, torch.arange(len(model.keys)))


def _notes(model: _Model, base: _Model, target: _Model) -> Iterator[str]:
    """What is to be said of one model, in sentences."""
    where = model.weights.ref
    if model is not base and not (model.named and base.named):
        silent = model if base.named else base
        yield f"{where}: rows matched by number, no tokenizer file tells the tokens of {silent.weights.ref}"
    if model.beyond:
        yield f"{where}: {model.beyond} tokens of its tokenizer have no row in the embedding"
    if dropped := model.names - target.names:
        yield f"{where}: {_some(dropped)} left out, not in the vocabulary of {target.weights.ref}"
    if spare := len(set(model.keys) - model.names - set(target.keys)):
        yield f"{where}: {spare} rows without a known token left out"
    if lacking := target.names - model.names:
        filled = "set to the mean of the models that have them" if model is base else "taken as unchanged"
        yield f"{where}: {_some(lacking)} lacking, {filled}"
    if model is base and target.files:
        yield f"{where}: its tokenizer gets them as added tokens; special roles and chat template stay"
    if moved := sum(model.at[key] != target.at[key] for key in model.names & target.names):
        yield f"{where}: {moved} tokens stand in other rows than in {target.weights.ref}"


def _some(names: Iterable[Key]) -> str:
    """How many tokens, or rows, and the first."""
    first, *others = sorted(names, key=str)
    many = "" if not others else f" and {len(others)} more"
    return f"token {first!r}{many}" if isinstance(first, str) else f"row {first}{many}"
