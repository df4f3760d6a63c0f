"""Models of different vocabularies brought to one: the rows of their embeddings matched token by token."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from taskvec.edits.realigned import Alignment, Padded, Realigned
from taskvec.edits.rows import (
    Key,
    Model,
    check_recognised,
    check_related,
    check_same_numbers,
    vocabulary_axes,
)
from taskvec.edits.targets import VOCABS, Given, Vocab, Wanted, find_target, give_rows
from taskvec.edits.tokens import read_tokens
from taskvec.errors import InputError
from taskvec.later import torch
from taskvec.weights import Weights

__all__ = ["VOCABS", "Aligned", "Given", "Vocab", "Wanted", "align"]


class Aligned(NamedTuple):
    """Views of all models in one vocabulary, and what was done to get there.

    Attributes:
        rows: of every embedding; ``None`` for those that the models have.
        notes: what was dropped, lacking and assumed, in sentences.
        files: name -> text of side files, in place of those beside ``like``; an empty one leaves it out.
        record: for the manifest.
        like: whose config and tokenizer files are those of the result; ``None`` for the base.
    """

    base: Weights
    tuned: tuple[Weights, ...]
    rows: int | None = None
    notes: tuple[str, ...] = ()
    files: Mapping[str, str] = {}
    record: Mapping[str, Any] = {}
    like: Weights | None = None


def align(base: Weights, tuned: Sequence[Weights], vocab: Vocab | Wanted = "base") -> Aligned:
    """Bring a base and models fine-tuned from it to one vocabulary, so that their rows can be subtracted.

    Tokens are matched by their strings where tokenizer files lie beside the weights, else by row number,
    after a look at whether the rows are alike. Rows come in the order of one of the models, whose config
    and tokenizer files (the ``folder`` of the base's view) are those of the result. If none has the whole
    union, the base comes with the tokens that were added to others behind its own. A token that a model lacks
    gets the row of the base, so that its delta is zero; one that the base lacks gets, there and in
    every model that lacks it, the mean of the models that have it. Rows without a token are padding,
    matched by number.

    Args:
        vocab: the tokens of the base, of any model, or of every model; or with more said of it.

    Returns: views that read rows when asked for, or the very weights where nothing has to change.
    Raises: InputError if no tokenizer has exactly the tokens asked for, if rows cannot be matched, or if a
        config is at odds with its weights; KeyMismatch for an embedding and a head of different sizes;
        CorruptFile for a tokenizer file that cannot be read.
    Cost: reads the tokenizer files; of the weights, a few rows where there are none.
    """
    tokens = [read_tokens(weights.folder) for weights in (base, *tuned)]
    known = next((each for each in tokens if each is not None), {})
    models = [Model.of(w, each, known) for w, each in zip((base, *tuned), tokens, strict=True)]
    first, *others = models
    axes = vocabulary_axes(models)
    for model in others:
        check_related(first, model)
        if not (first.named and model.named):
            check_same_numbers(first, model, axes)
    wanted = vocab if isinstance(vocab, Wanted) else Wanted(vocab)
    target = find_target(models, wanted)
    alignment = _aligned(models, target, wanted, axes)
    moved = [not model.keeps_rows(rows) for rows, model in zip(alignment.places, models, strict=True)]
    rows = len(target.keys) + -len(target.keys) % (wanted.multiple or 1)
    if any(moved) or rows > len(target.keys):
        check_recognised(models, axes)
    views: list[Weights] = [
        Realigned(alignment, n) if moved[n] else model.weights for n, model in enumerate(models)
    ]
    if rows > len(target.keys):
        views = [Padded(view, axes, rows) for view in views]
    notes = tuple(_notes(models, target, wanted))
    record = {
        "vocab": wanted.source if isinstance(wanted.source, str) else wanted.source.ref,
        "rows": rows,
        "vocabulary of": target.ref,
        "tensors": sorted(axes),
        "notes": notes,
    }
    return Aligned(views[0], tuple(views[1:]), rows, notes, target.files, record, target.weights)


def _aligned(models: Sequence[Model], target: Model, wanted: Wanted, axes: Mapping[str, int]) -> Alignment:
    """Which row of which model each entry of the target is.

    Raises: InputError for tokens whose rows are not to be had.
    """
    places = torch.stack([model.rows_of(target.keys) for model in models])
    donors = places.clone()
    for token, given in wanted.tokens.items():
        column = target.at[token]
        if given is not None:
            give_rows(token, given, models, places[:, column], donors[:, column])
        elif (places[:, column] < 0).all():
            raise InputError(f"token {token!r} is in no model, expected a source of its row")
    held = tuple(model.weights for model in models)
    return Alignment(held, places, axes, target.weights, donors, wanted.based)


def _notes(models: Sequence[Model], target: Model, wanted: Wanted) -> Iterator[str]:
    base, given = models[0], wanted.tokens.keys()
    unknown = target.names - given - frozenset().union(*(model.names for model in models))
    for model in models:
        yield from _notes_on(model, base, target)
        if lacking := target.names - model.names - given - unknown:
            mean = model is base or not wanted.based
            filled = "set to the mean of the models that have them" if mean else "taken as unchanged"
            yield f"{model.ref}: {_some(lacking)} lacking, {filled}"
    if target.files:
        yield from _notes_on_files(models, target)
    if unknown:
        yield f"{target.ref}: {_some(unknown)} of no model, rows of zeros"


def _notes_on(model: Model, base: Model, target: Model) -> Iterator[str]:
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
    if moved := sum(model.at[key] != target.at[key] for key in model.names & target.names):
        yield f"{where}: {moved} tokens stand in other rows than in {target.ref}"


def _notes_on_files(models: Sequence[Model], target: Model) -> Iterator[str]:
    if target.label:
        yield f"{target.ref}: its tokenizer goes with the config of {target.weights.ref}"
        return
    before = next(model for model in models if model.weights is target.weights)
    if target.names > before.names:
        yield f"{target.ref}: its tokenizer gets them as added tokens; special roles and chat template stay"
    if before.beyond:
        yield f"{target.ref}: its tokenizer loses the tokens that have no row"


def _some(names: Iterable[Key]) -> str:
    """The first of some tokens or rows, and how many more there are."""
    first, *others = sorted(names, key=str)
    many = "" if not others else f" and {len(others)} more"
    return f"token {first!r}{many}" if isinstance(first, str) else f"row {first}{many}"
