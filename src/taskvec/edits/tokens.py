"""Which token each row of an embedding belongs to, as the tokenizer files beside the weights say."""

import os
from collections.abc import Mapping, Sequence
from filecmp import cmp
from hashlib import file_digest
from pathlib import Path
from typing import Any

from taskvec.edits import sentencepiece
from taskvec.edits.configs import read_config, read_if_there, render, resize
from taskvec.errors import CorruptFile, InputError, and_more
from taskvec.reading import open_file, read_text, shown
from taskvec.weights import Weights
from taskvec.weights.quantized import plain_config

_BY_TOKEN = "match the rows by token (--vocab base)"
"""Advice for models that hold a token in different rows."""

_OPAQUE = ("*.model", "*.tiktoken", "tekken.json", "bpe.codes", "vocab-src.json", "vocab-tgt.json")

_TEXTS = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "vocab.txt", "merges.txt", "chat_template.jinja", "chat_template.json"),
)
"""Tokenizer files that are text."""

_MOST = 1 << 40
"""Row numbers from here on are taken for a mistake."""


def read_tokens(folder: Path | None) -> dict[str, int] | None:
    """Token strings and their rows, or ``None`` if no file says it in plain text.

    Reads ``tokenizer.json``, or else ``vocab.json`` or ``vocab.txt`` with the tokens added to them. They are
    parsed as data; no tokenizer is built and no code beside the weights is run.

    Raises: CorruptFile for a file that is not what its name says.
    """
    if folder is None:
        return None
    tokens = _of_tokenizer(folder / "tokenizer.json") or _of_vocabulary(folder)
    if tokens is None:
        return None
    added = _read_rows(folder / "added_tokens.json") | _of_slow_tokenizer(folder / "tokenizer_config.json")
    return tokens | added | tokens  # whose rows win


def check_in_order(base: Weights, tuned: Weights, advice: str = _BY_TOKEN) -> list[str]:
    """Refuse to match rows by number if two models hold a token in different rows, or most tokens differ.

    A few rows with another token are fine: fine-tuning gives names to reserved tokens.

    Args:
        advice: closes the message.

    Returns: notes on tokens that differ, or cannot be compared.
    Raises: InputError, with the first such token; CorruptFile.
    Cost: reads both tokenizers, unless they are the same files.
    """
    if base.folder is None or tuned.folder is None:
        return []
    first, second = (folder / "tokenizer.json" for folder in (base.folder, tuned.folder))
    if first.is_file() and second.is_file() and cmp(first, second, shallow=False):
        return []
    expected, tokens, name = read_tokens(base.folder), read_tokens(tuned.folder), None
    if expected is None or tokens is None:
        before, after = opaque_files(base.folder), opaque_files(tuned.folder)
        name = next((name for name in sorted(before) if after.get(name, before[name]) != before[name]), None)
        if name is None:
            return []
        expected, tokens = (sentencepiece.pieces_of(folder / name) for folder in (base.folder, tuned.folder))
    if expected is None or tokens is None:
        unread = f"{name} differs from that of {base.ref} and is not read; rows are taken for the same"
        return [f"{tuned.ref}: {unread}"]
    return _compare_rows(base.ref, tuned.ref, expected, tokens, advice)


def _compare_rows(
    base: str, tuned: str, expected: Mapping[str, int], tokens: Mapping[str, int], advice: str
) -> list[str]:
    moved = [token for token, row in tokens.items() if expected.get(token, row) != row]
    if moved:
        raise InputError(
            f"{tuned}: token {moved[0]!r} has row {tokens[moved[0]]}, expected {expected[moved[0]]} as in "
            f"{base}{and_more(moved)}; {advice}"
        )
    before = {row: token for token, row in reversed(list(expected.items()))}  # of several in a row, the first
    renamed = [token for token, row in tokens.items() if token not in expected and row in before]
    if not renamed:
        return []
    row = tokens[renamed[0]]
    if len(renamed) > min(len(expected), len(tokens)) / 2:
        raise InputError(
            f"{tuned}: row {row} is token {renamed[0]!r}, expected {before[row]!r} as in {base} "
            f"({len(renamed)} of {len(tokens)} differ); were both fine-tuned from one model?"
        )
    return [
        f"{tuned}: {len(renamed)} rows go by other tokens than in {base}, such as {renamed[0]!r} for "
        f"{before[row]!r}; taken for the same"
    ]


def opaque_files(folder: Path | None) -> dict[str, str]:
    """Digests of the tokenizer files that hold tokens in a form not read here, such as SentencePiece."""
    if folder is None:
        return {}
    files = sorted(file for pattern in _OPAQUE for file in folder.glob(pattern))
    digests = {}
    for file in files:
        with open_file(file) as content:
            digests[file.name] = file_digest(content, "sha256").hexdigest()
    return digests


def added_tokens(folder: Path | None) -> dict[str, dict[str, Any]]:
    """The tokens that were added to a tokenizer's own, as ``tokenizer.json`` describes them."""
    if folder is None:
        return {}
    file = folder / "tokenizer.json"
    return {token: entry for token, _, entry in _added(file, read_if_there(file))}


def plain_token(token: str) -> dict[str, Any]:
    """How ``tokenizer.json`` describes an added token that is nothing special."""
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": True, "special": False}
    return {"content": token, **flags}


def add_tokens(
    folder: Path, entries: Sequence[Mapping[str, Any]], rows: int, first: int | None = None
) -> dict[str, str]:
    """``tokenizer.json`` and ``config.json`` for a tokenizer with more added tokens, behind its own.

    An added token is found before a text is cut into pieces, so it works in any tokenizer.

    Args:
        entries: as :func:`added_tokens` gives them, in the order of their rows.
        rows: of the embedding that belongs to it.
        first: the row of the first, by default that behind all tokens; added tokens from there on, which have
            no rows, give way.

    Returns: texts by file name; empty if more tokens would not get the rows that follow.
    """
    file = folder / "tokenizer.json"
    tokenizer, config, tokens = read_if_there(file), read_config(folder), _of_tokenizer(file)
    if tokens is None or tokens != read_tokens(folder):
        return {}
    listed = _added(file, tokenizer)
    first = len(tokens) if first is None else first
    idle = {token for token, row, _ in listed if row >= first}
    if sorted(row for token, row in tokens.items() if token not in idle) != list(range(first)):
        return {}
    numbered = [{**entry, "id": row} for row, entry in enumerate(entries, start=first)]
    tokenizer["added_tokens"] = [*(entry for token, _, entry in listed if token not in idle), *numbered]
    own = {"config.json": resize(plain_config(config), rows)} if config else {}
    contents = {file.name: tokenizer, **own}
    return {name: render(content) for name, content in contents.items()}


def replace_tokenizer(folder: Path | None, source: Path, rows: int) -> dict[str, str]:
    """The tokenizer files of ``source`` to be written over those of a model, and its ``config.json``.

    Returns: texts by file name; empty for a file of the model's own tokenizer.
    """
    config, new = read_config(folder), opaque_files(source)
    stale = {name for name, digest in opaque_files(folder).items() if new.get(name) != digest}
    texts = dict.fromkeys((*stale, *_TEXTS), "")
    texts |= {name: read_text(source / name) for name in _TEXTS if (source / name).is_file()}
    return {**texts, **({"config.json": render(resize(plain_config(config), rows))} if config else {})}


def replaces_tokenizer(files: Mapping[str, str]) -> bool:
    """Whether files are those of ``replace_tokenizer``, not of a tokenizer with more tokens."""
    return "tokenizer_config.json" in files


def _of_tokenizer(file: Path) -> dict[str, int] | None:
    """The vocabulary of the tokenizer's model, then the tokens added to it."""
    content = read_if_there(file)
    if not content:
        return None
    match content.get("model"):
        case {"vocab": dict() as words}:
            tokens = _check_rows(file, words)
        case {"vocab": list() as scored}:
            tokens = {_first(file, entry): row for row, entry in enumerate(scored)}
        case _:
            raise CorruptFile(f"{file}: 'model.vocab' is missing, expected tokens; save the tokenizer again")
    added: dict[str, int] = {}
    for token, row, _ in _added(file, content):
        added.setdefault(token, row)
    return tokens | added | tokens


def _added(file: Path, content: Mapping[str, Any]) -> list[tuple[str, int, dict[str, Any]]]:
    """Each token added to those of the tokenizer's model, its row, and its whole entry."""
    listed = content.get("added_tokens") or []
    added = []
    for entry in listed if isinstance(listed, list) else [listed]:
        match entry:
            case {"content": str() as token, "id": row} if _is_row(row):
                added.append((token, row, entry))
            case _:
                raise CorruptFile(
                    f"{file}: 'added_tokens' holds {shown(entry)}, expected id and content; "
                    "save the tokenizer again"
                )
    return added


def _first(file: Path, entry: Any) -> str:
    if not isinstance(entry, list) or not entry:
        raise CorruptFile(
            f"{file}: 'model.vocab' holds {shown(entry)}, expected token and score; save it again"
        )
    return str(entry[0])


def _of_vocabulary(folder: Path) -> dict[str, int] | None:
    if any((folder / name).exists() for name in ("bpe.codes", "vocab-src.json")):
        return None  # beside these, the numbers in a vocabulary file are not those of the rows
    if os.path.lexists(folder / "vocab.json"):
        return _read_rows(folder / "vocab.json")
    file = folder / "vocab.txt"
    if not os.path.lexists(file):
        return None
    lines = read_text(file).removesuffix("\n").split("\n")
    return {line.removesuffix("\r"): row for row, line in enumerate(lines)}


def _of_slow_tokenizer(file: Path) -> dict[str, int]:
    """The tokens that a slow tokenizer lists in its configuration."""
    listed = read_if_there(file).get("added_tokens_decoder") or {}
    tokens: dict[str, int] = {}
    for row, entry in listed.items() if isinstance(listed, Mapping) else ():
        match entry:
            case {"content": str() as token} if row.isdecimal() and len(row) <= len(str(_MOST)):
                tokens[token] = int(row)
            case {"content": _}:
                raise CorruptFile(
                    f"{file}: 'added_tokens_decoder' holds {shown(entry)} for {shown(row)}, expected a row "
                    "and the content of its token; save the tokenizer again"
                )
    return _check_rows(file, tokens)


def _read_rows(file: Path) -> dict[str, int]:
    return _check_rows(file, read_if_there(file))


def _check_rows(file: Path, tokens: Mapping[Any, Any]) -> dict[str, int]:
    for token, row in tokens.items():
        if not isinstance(token, str) or not _is_row(row):
            raise CorruptFile(
                f"{file}: token {shown(token)} has row {shown(row)}, expected a number; "
                "save the tokenizer again"
            )
    return dict(tokens)


def _is_row(row: object) -> bool:
    return type(row) is int and 0 <= row < _MOST
