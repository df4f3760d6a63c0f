"""Models and the tokens that their rows are known by."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING

from taskvec.edits.configs import read_vocabulary_size
from taskvec.edits.realigned import take_entries
from taskvec.edits.tokens import opaque_files, read_tokens, replace_tokenizer
from taskvec.errors import InputError, KeyMismatch
from taskvec.later import torch
from taskvec.names import block_of, goes_by_token, is_embedding, is_head
from taskvec.weights import Weights

if TYPE_CHECKING:
    from torch import Tensor

Key = str | int
"""What a row is known by: its token, or its number where no token has it."""

SAMPLE = 256
"""Rows that are compared to see whether rows of the same number are of the same token."""
_ALIKE = 0.9
"""The share of them that must be nearest to the row of the same number."""

_NORM = re.compile(r"(norm|(^|[._])ln(_\w+)?)\.(weight|bias)$", re.IGNORECASE)


@dataclass(frozen=True)
class Model:
    """One model and its tokens.

    Attributes:
        named: whether its own files say which tokens its rows are.
        keys: what each row of its embedding is known by.
        at: the row of every key; of a row with several tokens, of each.
        beyond: how many tokens of its files have no row.
        label: what it is called in messages, where that is not what the weights are.
        files: of a model with more tokens than it had, or with another tokenizer, the side files that say so.
    """

    weights: Weights
    named: bool
    keys: tuple[Key, ...]
    at: Mapping[Key, int]
    beyond: int = 0
    files: Mapping[str, str] = field(default_factory=dict)
    label: str = ""

    @classmethod
    def of(cls, weights: Weights, tokens: Mapping[str, int] | None, known: Mapping[str, int]) -> "Model":
        """Rows go by the model's own tokens, by those of another model where it has none, or by number."""
        rows = _count_rows(weights)
        given = known if tokens is None else tokens
        held = {token: row for token, row in given.items() if row < rows}
        beyond = 0 if tokens is None else len(tokens) - len(held)
        return cls(weights, tokens is not None, *_known_by(held, rows), beyond)

    @classmethod
    def of_tokenizer(cls, source: Weights, base: Weights) -> "Model":
        """The base with another tokenizer: as many rows as that needs.

        Raises: InputError if no file tells its tokens.
        """
        tokens = read_tokens(source.folder)
        if not tokens or source.folder is None:
            raise InputError(
                f"{source.ref}: no file tells the tokens, expected tokenizer.json; "
                "save its tokenizer again, or take the tokenizer of one of the models"
            )
        rows = max(tokens.values()) + 1
        files = replace_tokenizer(base.folder, source.folder, rows)
        return cls(base, True, *_known_by(tokens, rows), files=files, label=source.ref)

    @property
    def ref(self) -> str:
        """What the weights are called in messages."""
        return self.label or self.weights.ref

    @cached_property
    def names(self) -> frozenset[Key]:
        """What counts as its vocabulary: the tokens, or every row where no file tells any."""
        tokens = frozenset(key for key in self.at if isinstance(key, str))
        return tokens or frozenset(self.keys)

    def rows_of(self, keys: Sequence[Key]) -> "Tensor":
        """The row of each key, int64; -1 for a token that the model lacks."""
        return torch.tensor([self.at.get(key, -1) for key in keys])

    def keeps_rows(self, rows: "Tensor") -> bool:
        """Whether these are the model's own rows in their order."""
        return torch.equal(rows, torch.arange(len(self.keys)))


def _known_by(tokens: Mapping[str, int], rows: int) -> tuple[tuple[Key, ...], dict[Key, int]]:
    """What each row is known by, and the row of everything that one is known by."""
    by_row = {row: token for token, row in tokens.items()}
    keys = tuple(by_row.get(row, row) for row in range(rows))
    at: dict[Key, int] = {key: row for row, key in enumerate(keys)}
    at.update(tokens)
    return keys, at


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
        raise InputError(
            f"{weights.ref}: no embedding of tokens found, expected one; leave --vocab out "
            "(tokenizer_source in mergekit's YAML)"
        )
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


def vocabulary_axes(models: Sequence[Model]) -> dict[str, int]:
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


def _common_axis(name: str, holders: Sequence[Model]) -> tuple[int | None, list[bool]]:
    """The axis that is as long as the vocabulary in every model; and in which models any axis is."""
    axes = [
        {axis for axis, size in enumerate(model.weights.spec(name).shape[:2]) if size == len(model.keys)}
        for model in holders
    ]
    return min(set.intersection(*axes), default=None), [bool(fitting) for fitting in axes]


def check_recognised(models: Sequence[Model], axes: Mapping[str, int]) -> None:
    """Refuse to move rows if some other tensor may go by tokens as well.

    Those of layers and norms do not, however long they are.

    Raises: InputError.
    """
    for name in models[0].weights:
        if block_of(name) is not None or _NORM.search(name):
            continue
        holders = [model for model in models if name in model.weights]
        if name not in axes and _common_axis(name, holders)[0] is not None:
            raise InputError(
                f"{models[0].ref}: {name!r} has a side of {len(models[0].keys)}, as many as tokens, "
                "expected none that might go by tokens, as these move; save the models in one order"
            )


def check_related(base: Model, model: Model) -> None:
    """Refuse an unrelated vocabulary: fine-tuning adds or drops tokens, but most stay."""
    shared, smaller = len(base.names & model.names), min(len(base.names), len(model.names))
    if shared < smaller / 2:
        raise InputError(
            f"{model.ref}: {shared} of {smaller} tokens are those of {base.ref}, expected at "
            "least half; was it fine-tuned from another model?"
        )


def check_same_numbers(base: Model, model: Model, axes: Mapping[str, int]) -> None:
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
