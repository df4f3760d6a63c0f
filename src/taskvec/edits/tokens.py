"""Which token each row of an embedding belongs to, as the tokenizer files beside the weights say."""

import json
import os
from collections.abc import Mapping, Sequence
from filecmp import cmp
from hashlib import file_digest
from pathlib import Path
from typing import Any

from taskvec.edits import sentencepiece
from taskvec.edits.configs import read_config, read_if_there, resize
from taskvec.errors import CorruptFile, InputError, and_more
from taskvec.reading import open_file, read_text, shown
from taskvec.weights import Weights

BY_TOKEN = "match the rows by token (--vocab base)"
"""What to do where a token stands in different rows."""

_OPAQUE = ("*.model", "*.tiktoken", "tekken.json", "bpe.codes", "vocab-src.json", "vocab-tgt.json")

_MOST = 1 << 40
"""What the numbers of rows stay below."""


def read_tokens(folder: Path | None) -> dict[str, int] | None:
    """Token strings and their rows, or ``None`` if no file says it in plain text.

    Reads ``tokenizer.json``, or else ``vocab.json`` or ``vocab.txt`` with the tokens added to them. They are
    parsed as data; no tokenizer is built and no code beside the weights is run.

    Raises: CorruptFile for a file that is not what its name says.
    """
    if folder is None:
        return None
    found = _of_tokenizer(folder / "tokenizer.json") or _of_vocabulary(folder)
    if found is None:
        return None
    for token, row in {
        **_entries(folder / "added_tokens.json"),
        **_later(folder / "tokenizer_config.json"),
    }.items():
        found.setdefault(token, row)
    return found


def check_in_order(base: Weights, tuned: Weights, advice: str = BY_TOKEN) -> list[str]:
    """Refuse to go row by row where a token stands in different rows of two models, or most are others.

    Some rows that go by other strings are no such case: reserved tokens get names.

    Args:
        advice: what is to be done about it; closes the message.

    Returns: what is to be said of tokens that differ, or cannot be compared.
    Raises: InputError, with the first such token; CorruptFile.
    Cost: reads both tokenizers, unless they are the same files.
    """
    if base.folder is None or tuned.folder is None:
        return []
    one, other = base.folder / "tokenizer.json", tuned.folder / "tokenizer.json"
    if one.is_file() and other.is_file() and cmp(one, other, shallow=False):
        return []
    ours, theirs = read_tokens(base.folder), read_tokens(tuned.folder)
    if ours is None or theirs is None:
        return _check_opaque(base, tuned, advice)
    return _check_rows(base, tuned, ours, theirs, advice)


def _check_rows(
    base: Weights, tuned: Weights, ours: Mapping[str, int], theirs: Mapping[str, int], advice: str
) -> list[str]:
    moved = [token for token, row in theirs.items() if ours.get(token, row) != row]
    if moved:
        raise InputError(
            f"{tuned.ref}: token {moved[0]!r} has row {theirs[moved[0]]}, expected {ours[moved[0]]} as in "
            f"{base.ref}{and_more(moved)}; {advice}"
        )
    rows = set(ours.values())
    renamed = [token for token, row in theirs.items() if token not in ours and row in rows]
    if not renamed:
        return []
    row = theirs[renamed[0]]
    was = next(token for token, place in ours.items() if place == row)
    if len(renamed) > min(len(ours), len(theirs)) / 2:
        raise InputError(
            f"{tuned.ref}: row {row} is token {renamed[0]!r}, expected {was!r} as in {base.ref} "
            f"({len(renamed)} of {len(theirs)} differ); were both fine-tuned from one model?"
        )
    return [
        f"{tuned.ref}: {len(renamed)} rows go by other tokens than in {base.ref}, such as {renamed[0]!r} for "
        f"{was!r}; taken for the same"
    ]


def _check_opaque(base: Weights, tuned: Weights, advice: str) -> list[str]:
    """The same check of tokenizers that no file tells in plain text."""
    assert base.folder is not None and tuned.folder is not None
    ours, theirs = opaque_files(base.folder), opaque_files(tuned.folder)
    different = [name for name in sorted(ours.keys() & theirs.keys()) if ours[name] != theirs[name]]
    if not different:
        return []
    name = different[0]
    own, others = sentencepiece.pieces_of(base.folder / name), sentencepiece.pieces_of(tuned.folder / name)
    if own is None or others is None:
        said = f"{name} differs from that of {base.ref} and is not read; rows are taken for the same"
        return [f"{tuned.ref}: {said}"]
    return _check_rows(base, tuned, own, others, advice)


def opaque_files(folder: Path | None) -> dict[str, str]:
    """Digests of the tokenizer files that hold tokens in a form not read here, such as SentencePiece."""
    if folder is None:
        return {}
    files = sorted(file for pattern in _OPAQUE for file in folder.glob(pattern))
    return {file.name: _digest(file) for file in files}


def added_tokens(folder: Path | None) -> dict[str, dict[str, Any]]:
    """The tokens that were added to a tokenizer's own, as ``tokenizer.json`` describes them."""
    if folder is None:
        return {}
    file = folder / "tokenizer.json"
    return {token: entry for token, _, entry in _added(file, read_if_there(file))}


def add_tokens(folder: Path, entries: Sequence[Mapping[str, Any]], rows: int) -> dict[str, str]:
    """``tokenizer.json`` and ``config.json`` for a tokenizer with more added tokens, behind its own.

    An added token is found before a text is cut into pieces, so it works in any tokenizer.

    Args:
        entries: as :func:`added_tokens` gives them, in the order of their rows.
        rows: of the embedding that belongs to it.

    Returns: texts by file name; empty if more tokens would not get the rows that follow.
    """
    tokenizer, config = read_if_there(folder / "tokenizer.json"), read_config(folder)
    own = _of_tokenizer(folder / "tokenizer.json")
    if own is None or own != read_tokens(folder) or sorted(own.values()) != list(range(len(own))):
        return {}
    numbered = [{**entry, "id": row} for row, entry in enumerate(entries, start=len(own))]
    had = [entry for *_, entry in _added(folder / "tokenizer.json", tokenizer)]
    tokenizer["added_tokens"] = [*had, *numbered]
    contents = {"tokenizer.json": tokenizer, **({"config.json": resize(config, rows)} if config else {})}
    return {name: json.dumps(one, indent=2, ensure_ascii=False) + "\n" for name, one in contents.items()}


def _of_tokenizer(file: Path) -> dict[str, int] | None:
    """The vocabulary of the tokenizer's model, then the tokens added to it."""
    content = read_if_there(file)
    if not content:
        return None
    match content.get("model"):
        case {"vocab": dict() as words}:
            found = _checked(file, words)
        case {"vocab": list() as scored}:
            found = _checked(file, {_first(file, entry): row for row, entry in enumerate(scored)})
        case _:
            raise CorruptFile(f"{file}: 'model.vocab' is missing, expected tokens; save the tokenizer again")
    for token, row, _ in _added(file, content):
        found.setdefault(token, row)
    return found


def _added(file: Path, content: Mapping[str, Any]) -> list[tuple[str, int, dict[str, Any]]]:
    """Each token that was added to those of the tokenizer's model, its row, and all that is said of it."""
    listed = content.get("added_tokens") or []
    found = []
    for entry in listed if isinstance(listed, list) else [listed]:
        match entry:
            case {"content": str() as token, "id": row} if _is_row(row):
                found.append((token, row, entry))
            case _:
                raise CorruptFile(
                    f"{file}: 'added_tokens' holds {shown(entry)}, expected id and content; "
                    "save the tokenizer again"
                )
    return found


def _is_row(row: object) -> bool:
    return type(row) is int and 0 <= row < _MOST


def _of_vocabulary(folder: Path) -> dict[str, int] | None:
    if any((folder / name).exists() for name in ("bpe.codes", "vocab-src.json")):
        return None  # beside these, the numbers in a vocabulary file are not those of the rows
    if os.path.lexists(folder / "vocab.json"):
        return _entries(folder / "vocab.json")
    file = folder / "vocab.txt"
    if not os.path.lexists(file):
        return None
    lines = read_text(file).removesuffix("\n").split("\n")
    return {line.removesuffix("\r"): row for row, line in enumerate(lines)}


def _later(file: Path) -> dict[str, int]:
    """Tokens that a slow tokenizer lists in its configuration."""
    listed = read_if_there(file).get("added_tokens_decoder") or {}
    found: dict[str, int] = {}
    for row, entry in listed.items() if isinstance(listed, Mapping) else ():
        match entry:
            case {"content": str() as token} if row.isdecimal() and len(row) <= len(str(_MOST)):
                found[token] = int(row)
            case {"content": _}:
                raise CorruptFile(
                    f"{file}: 'added_tokens_decoder' holds {shown(entry)} for {shown(row)}, expected a row "
                    "and the content of its token; save the tokenizer again"
                )
    return _checked(file, found)


def _first(file: Path, entry: Any) -> str:
    if not isinstance(entry, list) or not entry:
        raise CorruptFile(
            f"{file}: 'model.vocab' holds {shown(entry)}, expected token and score; save it again"
        )
    return str(entry[0])


def _digest(file: Path) -> str:
    with open_file(file) as content:
        return file_digest(content, "sha256").hexdigest()


def _entries(file: Path) -> dict[str, int]:
    return _checked(file, read_if_there(file))


def _checked(file: Path, tokens: Mapping[Any, Any]) -> dict[str, int]:
    for token, row in tokens.items():
        if not isinstance(token, str) or not _is_row(row):
            raise CorruptFile(
                f"{file}: token {shown(token)} has row {shown(row)}, expected a number; "
                "save the tokenizer again"
            )
    return dict(tokens)
