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
"""Rows that are compared to see whether rows of the same number are of the same token."""
_ALIKE = 0.9
"""The share of them that must be nearest to the row of the same number."""


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
    models = [_Model.of(w, each, known) for w, each in zip((base, *tuned), tokens, strict=True)]
    first, *others = models
    axes = _vocabulary_axes(models)
    for model in others:
        _check_related(first, model)
        if not (first.named and model.named):
            _check_same_numbers(first, model, axes)
    target = _target(models, vocab)
    places = torch.stack([model.rows_of(target.keys) for model in models])
    moved = [not model.keeps_rows(rows) for rows, model in zip(places, models, strict=True)]
    if any(moved):
        _check_recognised(models, axes)
    alignment = Alignment(tuple(model.weights for model in models), places, axes, target.weights)
    views = [Realigned(alignment, n) if moved[n] else model.weights for n, model in enumerate(models)]
    rows, notes = len(target.keys), tuple(note for model in models for note in _notes(model, first, target))
    record = {
        "vocab": vocab,
        "rows": rows,
        "vocabulary of": target.ref,
        "tensors": sorted(axes),
        "notes": notes,
    }
    return Aligned(views[0], tuple(views[1:]), rows, notes, target.files, record)


@dataclass(frozen=True)
class _Model:
    """One model and its tokens.

    Attributes:
        named: whether its own files say which tokens its rows are.
        keys: what each row of its embedding is known by.
        at: the row of every key; of a row with several tokens, of each.
        beyond: how many tokens of its files have no row.
        files: of a base with more tokens than it had, the side files that say so.
    """

    weights: Weights
    named: bool
    keys: tuple[Key, ...]
    at: Mapping[Key, int]
    beyond: int = 0
    files: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, weights: Weights, tokens: Mapping[str, int] | None, known: Mapping[str, int]) -> "_Model":
        """Rows go by the model's own tokens, by those of another model where it has none, or by number."""
        rows = _count_rows(weights)
        given = known if tokens is None else tokens
        held: dict[Key, int] = {token: row for token, row in given.items() if row < rows}
        by_row = {row: token for token, row in held.items()}
        keys = tuple(by_row.get(row, row) for row in range(rows))
        at: dict[Key, int] = {key: row for row, key in enumerate(keys)}
        beyond = 0 if tokens is None else len(tokens) - len(held)
        return cls(weights, tokens is not None, keys, {**at, **held}, beyond)

    @property
    def ref(self) -> str:
        """What the weights are called in messages."""
        return self.weights.ref

    @cached_property
    def names(self) -> frozenset[Key]:
        """What counts as its vocabulary: the tokens, or every row where no file tells any."""
        tokens = frozenset(key for key in self.at if isinstance(key, str))
        return tokens or frozenset(self.keys)

    def rows_of(self, keys: Sequence[Key]) -> Tensor:
        """The row of each key, int64; -1 for a token that the model lacks."""
        return torch.tensor([self.at.get(key, -1) for key in keys])

    def keeps_rows(self, rows: Tensor) -> bool:
        """Whether these are the model's own rows in their order."""
        return torch.equal(rows, torch.arange(len(self.keys)))


def find_embeddings(weights: Weights) -> dict[str, int]:
    """The embeddings of tokens by name, with their numbers of rows."""
    shapes = {name: weights.spec(name).shape for name in weights if is_embedding(name)}
    return {name: shape[0] for name, shape in shapes.items() if len(shape) == 2 and 0 not in shape}


def find_heads(weights: Weights) -> list[str]:
    """The matrices of output layers over the tokens, where they have tensors of their own."""
    return [name for name in weights if is_head(name) and len(weights.spec(name).shape) == 2]


def _count_rows(weights: Weights) -> int:
    """How many rows the embedding of tokens has.

    Raises: InputError if there is none, if there are several sizes, or if the config says another number.
    """
    embeddings = find_embeddings(weights)
    size = read_vocabulary_size(weights.folder)
    if not embeddings:
        raise InputError(f"{weights.ref}: no embedding of tokens found, expected one; leave --vocab out")
    if size is not None and size in embeddings.values():
        return size
    name, rows = next(iter(embeddings.items()))
    if size is not None:
        raise InputError(
            f"{weights.ref}: {name!r} has {rows} rows, config.json says vocab_size {size}; correct the config"
        )
    if len(Counter(embeddings.values())) > 1:
        other = next(other for other, count in embeddings.items() if count != rows)
        raise InputError(
            f"{weights.ref}: {name!r} has {rows} rows and {other!r} {embeddings[other]}, "
            "expected one vocabulary; put a config.json with vocab_size beside the weights"
        )
    return rows


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
                f"{odd.ref}: {name!r} has shape {odd.weights.spec(name).shape}, expected "
                f"{len(odd.keys)} rows as in the embedding; resize both to one size"
            )
    return axes


def _common_axis(name: str, holders: Sequence[_Model]) -> tuple[int | None, list[bool]]:
    """The axis that is as long as the vocabulary in every model; and in which models any axis is."""
    axes = [
        {axis for axis, size in enumerate(model.weights.spec(name).shape[:2]) if size == len(model.keys)}
        for model in holders
    ]
    return min(set.intersection(*axes), default=None), [bool(fitting) for fitting in axes]


def _check_recognised(models: Sequence[_Model], axes: Mapping[str, int]) -> None:
    """Refuse to move rows if some other tensor may go by tokens as well.

    Raises: InputError.
    """
    for name in models[0].weights:
        holders = [model for model in models if name in model.weights]
        if name not in axes and _common_axis(name, holders)[0] is not None:
            raise InputError(
                f"{models[0].ref}: {name!r} has a side of {len(models[0].keys)}, as many as tokens, "
                "expected none that might go by tokens, as these move; save the models in one order"
            )


def _check_related(base: _Model, model: _Model) -> None:
    """Refuse an unrelated vocabulary: fine-tuning adds or drops tokens, but most stay.

    Raises: InputError.
    """
    shared, smaller = len(base.names & model.names), min(len(base.names), len(model.names))
    if shared < smaller / 2:
        raise InputError(
            f"{model.ref}: {shared} of {smaller} tokens are those of {base.ref}, expected at "
            "least half; was it fine-tuned from another model?"
        )


def _check_same_numbers(base: _Model, model: _Model, axes: Mapping[str, int]) -> None:
    """Refuse to match rows by number if they are of different tokens.

    Raises: InputError if tokenizers of a kind that is not read differ, or rows of one number are not alike.
    """
    before, after = opaque_files(base.weights.folder), opaque_files(model.weights.folder)
    file = next((name for name, digest in after.items() if before.get(name, digest) != digest), None)
    if file is not None:
        raise InputError(
            f"{model.ref}: {file} differs from that of {base.ref} and is not read, expected "
            "tokenizer.json in both to match tokens; save both tokenizers again as tokenizer.json"
        )
    embeddings = find_embeddings(base.weights)
    name = next(name for name in axes if name in embeddings and name in model.weights and axes[name] == 0)
    shared = [key for key in base.keys if key in model.at]
    sample = shared[:: -(-len(shared) // SAMPLE)]
    rows, expected = (
        take_entries(each.weights, name, each.rows_of(sample), 0).double() for each in (model, base)
    )
    apart = torch.cdist(rows, expected, compute_mode="donot_use_mm_for_euclid_dist")
    nearest = (apart.diagonal() <= apart.amin(1)) | apart.amin(1).isnan()
    if nearest.double().mean() < _ALIKE:
        raise InputError(
            f"{model.ref}: rows of {name!r} are not those of {base.ref} by number "
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
                f"{unnamed.ref}: {len(unnamed.keys) - len(base.keys)} rows more than the base and no "
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
        f"--vocab {vocab}: no model has exactly its {len(wanted)} tokens ({nearest.ref} {word} "
        f"{odd[0]!r}{and_more(odd)}), expected one whose tokenizer can be kept; use --vocab base"
    )


def _extended(base: _Model, others: Sequence[_Model]) -> _Model:
    """The base with the tokens added to other models behind its own, if its tokenizer can be extended."""
    new: dict[Key, Mapping[str, Any]] = {}
    folder = base.weights.folder
    if base.beyond or folder is None:
        return base
    for model in others:
        entries = added_tokens(model.weights.folder)
        lacking = [key for key in model.names - base.names - new.keys() if key in entries]
        new |= {key: entries[str(key)] for key in sorted(lacking, key=model.at.__getitem__)}
    first = len(base.names)
    keys = [*base.keys[:first], *new, *base.keys[first + len(new) :]]
    files = add_tokens(folder, list(new.values()), len(keys))
    at = {**base.at, **{token: row for row, token in enumerate(new, start=first)}}
    return replace(base, keys=tuple(keys), at=at, files=files) if files else base


def _notes(model: _Model, base: _Model, target: _Model) -> Iterator[str]:
    """Notes on one model."""
    where = model.ref
    if model is not base and not (model.named and base.named):
        silent = model if base.named else base
        yield f"{where}: rows matched by number, no tokenizer file tells the tokens of {silent.ref}"
    if model.beyond:
        yield f"{where}: {model.beyond} tokens of its tokenizer have no row in the embedding"
    if dropped := model.names - target.names:
        yield f"{where}: {_some(dropped)} left out, not in the vocabulary of {target.ref}"
    if spare := len(set(model.keys) - model.names - set(target.keys)):
        yield f"{where}: {spare} rows without a known token left out"
    if lacking := target.names - model.names:
        filled = "set to the mean of the models that have them" if model is base else "taken as unchanged"
        yield f"{where}: {_some(lacking)} lacking, {filled}"
    if model is base and target.files:
        yield f"{where}: its tokenizer gets them as added tokens; special roles and chat template stay"
    if moved := sum(model.at[key] != target.at[key] for key in model.names & target.names):
        yield f"{where}: {moved} tokens stand in other rows than in {target.ref}"


def _some(names: Iterable[Key]) -> str:
    """The first of some tokens or rows, and how many more there are."""
    first, *others = sorted(names, key=str)
    many = "" if not others else f" and {len(others)} more"
    return f"token {first!r}{many}" if isinstance(first, str) else f"row {first}{many}"
