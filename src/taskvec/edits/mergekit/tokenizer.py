"""The tokenizer of the output, as a mergekit file asks for it, in terms of our vocabularies."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from taskvec.edits.mergekit.document import ModelToken, Row, Tokenizer
from taskvec.edits.tokens import read_tokens
from taskvec.edits.vocabulary import Given, Wanted
from taskvec.errors import InputError
from taskvec.reading import exists, is_folder
from taskvec.registry import nearest
from taskvec.weights import Weights
from taskvec.weights.in_memory import MemoryWeights

Open = Callable[[str, str], Weights]
"""Where the file names a model, and its reference -> the model."""


def find_wanted(tokenizer: Tokenizer, field: str, open_model: Open, *, based: bool) -> Wanted:
    """The vocabulary that is asked for.

    Args:
        field: of the tokenizer's source; for messages.
        based: whether the file names a base model, whose rows stand in for those that others lack.

    Raises: InputError for a model that cannot be opened.
    """
    rows = tokenizer.tokens or {}
    return Wanted(
        _find_source(tokenizer.source, field, open_model),
        {token: _give(f"tokenizer.tokens.{token}", row, open_model) for token, row in rows.items()},
        tokenizer.pad_to_multiple_of,
        based,
        rewritten=True,
    )


def _find_source(source: str, field: str, open_model: Open) -> Weights | Literal["base", "union"]:
    if source == "base":
        return "base"
    if source == "union":
        return "union"
    try:
        return open_model(field, source)
    except InputError as error:
        folder = Path(source)
        if not exists(folder):
            raise InputError(f"{error}; {nearest(source, ('base', 'union'))}") from None
        if not is_folder(folder) or read_tokens(folder) is None:
            raise
        return MemoryWeights(source, {}, ("tokenizer", source), folder=folder)


def _give(field: str, row: Row, open_model: Open) -> Given | None:
    """Where the row of one token comes from; ``None`` for where rows usually do."""
    source = row.source
    if source is None:
        return None
    if isinstance(source, str):
        return Given(open_model(f"{field}.source", source), force=row.force)
    if isinstance(source, ModelToken):
        of = source.token_id if source.token is None else source.token
        return Given(open_model(f"{field}.source.model", source.model), of, row.force)
    return Given(None, force=row.force)


def check_same_tokens(models: Sequence[Weights]) -> None:
    """Refuse slices of models whose tokenizers differ, as rows are moved in whole models only."""
    base = read_tokens(models[0].folder)
    for model in models[1:]:
        tokens = read_tokens(model.folder)
        if base is not None and tokens is not None and tokens != base:
            differing = sorted(tokens.items() ^ base.items(), key=str)[0][0]
            raise InputError(
                f"{model.ref}: its tokenizer differs from that of {models[0].ref}, first in {differing!r}, "
                "expected the same for slices"
            )
