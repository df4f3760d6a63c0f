"""Adapters that add tokens to their base: the config and the tokenizer that go with the larger model."""

from collections.abc import Iterable

from taskvec.edits.rows import find_embeddings
from taskvec.edits.tokens import read_tokens, replace_tokenizer
from taskvec.edits.vocabulary import Aligned
from taskvec.errors import KeyMismatch
from taskvec.vectors.opening import delta_in
from taskvec.weights import Weights


def grow(seen: Aligned, adapters: Iterable[Weights]) -> Aligned:
    """A base with the rows that an adapter adds to it, and the adapter's tokenizer.

    Raises: KeyMismatch where two adapters add rows, or one adds some to a part of the tables of tokens.
    """
    base = seen.base
    rooms = [(adapter, delta_in(adapter).room(base)) for adapter in adapters]
    grown = [(adapter, room) for adapter, room in rooms if room is not base]
    for adapter, room in grown[:1]:
        seen = _enlarged(seen, room, adapter)
    if len(grown) > 1:
        raise KeyMismatch(
            f"{grown[1][0].ref}: adds rows to the vocabulary of {base.ref}, and so does {grown[0][0].ref}, "
            "expected one at most; apply each by itself, and merge the results as models with vocab: union"
        )
    return seen


def _enlarged(seen: Aligned, room: Weights, adapter: Weights) -> Aligned:
    before, sizes = find_embeddings(seen.base), find_embeddings(room)
    name = next((name for name in sizes if sizes[name] != before[name]), None)
    if name is None:  # of a head alone, which no config tells
        return seen._replace(base=room)
    rows, home = sizes[name], None if adapter.adapter is None else adapter.adapter.parent
    added = f"{adapter.ref}: adds {rows - before[name]} rows to {name!r}, as trained whatever its coefficient"
    if rows < before[name]:
        added = f"{adapter.ref}: has the first {rows} rows of {name!r} only, and so has the output"
    files: dict[str, str] = {}
    if home is not None and read_tokens(home) is not None:
        files = replace_tokenizer(room.folder, home, rows)
        note = f"{added}; its tokenizer goes with the output"
    else:
        note = f"{added}; no tokenizer lies beside it, so put that of its tokens beside the output"
    return seen._replace(
        base=room,
        rows=rows,
        files={**seen.files, **files, **room.texts},
        notes=(*seen.notes, note),
        record={"rows": rows, "vocabulary of": adapter.ref},
    )
