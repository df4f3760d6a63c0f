"""Adapters that were trained with tokens of their own: the base with the rows of these."""

import json
from collections.abc import Mapping, Sequence

from taskvec.errors import KeyMismatch
from taskvec.names import goes_by_token
from taskvec.reading import parse_json, read_mapping
from taskvec.vectors.lora.contents import Contents, Piece, Product, Rows, Saved
from taskvec.vectors.lora.loaded import place
from taskvec.vectors.lora.naming import find_layers
from taskvec.weights import Weights
from taskvec.weights.picked import Added, Grown


def grow(contents: Contents, base: Weights) -> Weights:
    """The base with as many rows as an adapter was trained with, new ones as trained; else the base itself.

    Raises: KeyMismatch if the adapter has another number of rows for some tables of tokens only.
    """
    if not any(isinstance(piece, Saved | Rows | Product) for piece in contents.pieces.values()):
        return base
    if contents.components or not any(map(goes_by_token, contents.pieces)):
        return base
    named, view = place(contents, base)
    names = find_layers(contents.weights.ref, named.pieces, base if view is None else view)
    files = {} if view is None else {there: name for name, there in view.layout.renamed.items()}
    added: dict[str, Added] = {}
    for given, piece in named.pieces.items():
        name = files.get(names[given], names[given])
        rows = _added_rows(contents, piece, base, name)
        if rows is not None:
            added[name] = rows
    if not added:
        return base
    _check_all(contents, base, added)
    first = next(iter(added))
    before = base.spec(first).shape[0]
    return Grown(base, added, _config(base, before, added[first].size))


def _config(base: Weights, before: int, rows: int) -> dict[str, str]:
    """``config.json`` with the new number of tokens, if there is one."""
    path = None if base.folder is None else base.folder / "config.json"
    if path is None or not path.is_file():
        return {}
    text = base.texts.get(path.name)
    config = read_mapping(path) if text is None else parse_json(text, str(path))
    return {path.name: json.dumps(_resized(config, before, rows), indent=2, ensure_ascii=False) + "\n"}


def _resized(config: object, before: int, rows: int) -> object:
    if not isinstance(config, Mapping):
        return config
    return {
        key: rows if key == "vocab_size" and value == before else _resized(value, before, rows)
        for key, value in config.items()
    }


def is_resized(have: Sequence[int], want: Sequence[int]) -> bool:
    """Whether a shape is another with more or fewer rows."""
    return len(have) == len(want) > 0 and have[0] != want[0] and tuple(have[1:]) == tuple(want[1:])


def _added_rows(contents: Contents, piece: Piece, base: Weights, name: str) -> Added | None:
    """Where the rows are that a piece has beyond those of the base, and how many of these it has."""
    if name not in base or not goes_by_token(name):
        return None
    weights, want = contents.weights, base.spec(name).shape
    key = (
        piece.key if isinstance(piece, Saved) else piece.start if isinstance(piece, Product | Rows) else None
    )
    if key is not None:
        have = weights.spec(key).shape
        if not is_resized(have, want):
            return None
        return Added(weights, key, range(want[0], have[0]), min(want[0], have[0]))
    if not isinstance(piece, Rows):
        return None
    new = {row: n for n, row in enumerate(piece.indices) if row >= want[0]}
    if not new:
        return None
    if sorted(new) != list(range(want[0], want[0] + len(new))):
        raise KeyMismatch(
            f"{weights.ref}: token {max(new)} of {name!r} was trained, {base.ref} has {want[0]} rows, "
            "expected all between; save the adapter again with save_embedding_layers=True"
        )
    return Added(weights, piece.key, [new[row] for row in sorted(new)], want[0])


def _check_all(contents: Contents, base: Weights, added: dict[str, Added]) -> None:
    """Refuse a model some of whose tables of tokens have more rows than the others."""
    rows = {base.spec(name).shape[0] for name in added}
    numbers = {each.size for each in added.values()}
    tables = (
        name for name in base if goes_by_token(name) and base.spec(name).shape[:1] in {(n,) for n in rows}
    )
    lacking = next((name for name in tables if name not in added), None)
    if lacking is not None or len(numbers) > 1:
        raise KeyMismatch(
            f"{contents.weights.ref}: has {max(numbers)} rows for {next(iter(added))!r}, {base.ref} has "
            f"{max(rows)}, expected as many for {lacking or list(added)[-1]!r}; save the adapter again with "
            "save_embedding_layers=True"
        )
