"""SentencePiece models: which piece has which row, read without the library."""

from collections.abc import Iterator
from pathlib import Path

from taskvec.reading import read_bytes


def pieces_of(file: Path) -> dict[str, int] | None:
    """The pieces of a SentencePiece model and their rows; ``None`` for a file that is none.

    Rows are those of the file, which some libraries shift by a few.

    Raises: InputError if it cannot be read.
    """
    content = read_bytes(file)
    try:
        pieces = [piece for number, piece in _fields(content) if number == 1]
        texts = [next(text for number, text in _fields(piece) if number == 1) for piece in pieces]
        return {text.decode("utf-8"): row for row, text in enumerate(texts)} or None
    except (ValueError, IndexError, StopIteration):
        return None


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a protocol-buffer message that hold bytes: number and content.

    Raises: ValueError, IndexError if it is none.
    """
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        kind = tag & 7
        if kind == 2:
            size, place = _varint(message, place)
            if place + size > len(message):
                raise ValueError("cut off")
            yield tag >> 3, message[place : place + size]
            place += size
        elif kind == 0:
            _, place = _varint(message, place)
        elif kind in (1, 5):
            place += 8 if kind == 1 else 4
        else:
            raise ValueError(f"wire type {kind}")


def _varint(message: bytes, place: int) -> tuple[int, int]:
    """A number of variable length, and where it ends."""
    value = shift = 0
    while shift < 64:
        byte = message[place]
        value, place, shift = value | (byte & 127) << shift, place + 1, shift + 7
        if byte < 128:
            return value, place
    raise ValueError("a number of more than 64 bits")
