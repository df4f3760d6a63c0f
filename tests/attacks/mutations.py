"""Ways to spoil a file: its bytes, a tree of plain data in it, the header of a safetensors file, an archive.

Each takes a ``random.Random`` and gives what it made; nothing here knows of taskvec.
"""

import io
import json
import re
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from random import Random
from typing import Any

Tree = Any
"""Plain data: dictionaries, lists, texts, numbers."""

DEEP = 100_000
"""Levels that no reader with a stack survives."""

VALUES: tuple[Tree, ...] = (
    None, True, False, 0, 1, -1, 2, 3.5, -0.0, 1e-300, 1e308, 10**9, 2**31, 2**63, -(2**63), 10**30, "",
    " ", "0", "1", "nan", "inf", "..", "../..", ".", "/", "/etc/passwd", "/dev/zero", "~nosuchuser/x", "~",
    "a/../../b", "a" * 300, "²", "é", "\0", "a\0b", "\n", "\r\x1b[2J\x1b[31mred", "\x9b31m", "\u202egnp",
    "\ud800", "\U0001f600", "%s{}{0}", "$HOME", "${HOME}", "${NOSUCH}", "{task}", "__import__('os')",
    "org/name", "org/name@main", "base", "a", "a.safetensors", "float32", "re:(", "re:(a+)+$",
    "re:(([a-z._0-9]+)+)+!", [], {}, [None], [[]], [1, 2], ["a", 1], {"": 1}, {"a": {}}, {"value": 1},
    [{"a": 1}], [0] * 1000,
)  # fmt: skip
"""What may stand anywhere instead of what should."""

JSON_TEXTS = (
    "NaN", "-Infinity", "1e999", "-0", "9" * 6000, "0." + "1" * 6000, "[" * 2000 + "]" * 2000, "[" * DEEP,
    '{"a":' * 2000 + "1" + "}" * 2000, '{"a": 1, "a": 2}', '"\\ud800"', '"\\u0000"', '"\\x41"', "'single'",
    "nul", "0x10", "1_000", "[1,]", '"unterminated', "\ufeff1", "// comment\n1",
)  # fmt: skip
"""What only a text can say, or not even that."""

YAML_TEXTS = (
    "!!bool foo", "!!int ''", "!!int foo", "!!float ''", "!!float foo", "!!timestamp foo",
    "!!timestamp 2020-13-45", "!!null foo", "!!binary '=='", "!!set {a, b}", "!!omap [a: 1]",
    "!!pairs [a: 1]", "!!python/object/apply:os.system [id]", "!foo bar", '"\\UFFFFFFFF"', '"\\uD800"',
    '"\\xZZ"', '"\\0"', "9" * 6000, "0x" + "f" * 6000, "0b" + "1" * 20000, "1:" * 3000 + "1", ".inf",
    "-.inf", ".nan", "1e999", "&x [*x]", "&x {a: *x}", "*nothing", "{<<: 1}", "{<<: [1, {a: 1}]}",
    "&x {<<: *x}", "{<<: {a: 1}, a: 2}", "? [a]\n", "{[a]: 1}", "{{a: 1}: 1}", "{!!set {a}: 1}",
    "{a: 1, a: 2}", "{1: a, 1.0: b, true: c}", "=", "2020-01-01", "2020-01-01 25:61:61",
    "[" * 2000 + "]" * 2000, "[" * 20_000, "- - - - a", "@a", "`a", "%a", "\t- a", "a: b: c",
    "[&l0 [x, x], " + ", ".join(f"&l{i + 1} [{', '.join([f'*l{i}'] * 8)}]" for i in range(9)) + "]",
)  # fmt: skip
"""The same for YAML, with its tags, anchors and merge keys."""


def places(tree: Tree) -> Iterator[tuple[Any, Any]]:
    """Every container in a tree with each of its keys."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from places(tree[key])


def _place(draw: Random, whole: list[Tree]) -> tuple[Any, Any]:
    """One of all places; or one found by going down, so that few large parts do not hide the others."""
    if draw.random() < 0.5:
        return draw.choice(list(places(whole)))
    container, key = whole, 0
    while isinstance(container[key], dict | list) and container[key] and draw.random() < 0.8:
        container = container[key]
        key = draw.choice(list(container)) if isinstance(container, dict) else draw.randrange(len(container))
    return container, key


def spoiled(draw: Random, tree: Tree, texts: Sequence[str], values: Sequence[Tree] = ()) -> str:
    """The text of a tree, which is spoiled, with one to three of its places changed.

    Args:
        texts: of values that plain data cannot hold; what is written is JSON otherwise, which is YAML too.
        values: more of the values to put in, that this kind of file is likely to mind.
    """
    raw: dict[str, str] = {}

    def value() -> Tree:
        if draw.random() < 0.3:
            mark = f"<{len(raw)}>"
            raw[mark] = draw.choice(texts)
            return mark
        return draw.choice(values if values and draw.random() < 0.5 else VALUES)

    whole = [tree]
    for _ in range(draw.choice((1, 1, 1, 2, 3))):
        if whole:  # or nothing is left
            _change(draw, *_place(draw, whole), value)
    text = json.dumps(whole[0] if whole else None, allow_nan=True)
    for mark, content in raw.items():
        text = text.replace(json.dumps(mark), content)
    return _repeated_key(draw, text) if draw.random() < 0.03 else text


def _change(draw: Random, container: Any, key: Any, value: Callable[[], Tree]) -> None:
    old = container[key]
    match draw.randrange(10):
        case 0:
            del container[key]
        case 1 if isinstance(container, dict):
            container[_as_key(value())] = container.pop(key)
        case 2 if isinstance(container, dict):
            container[_as_key(value())] = value()
        case 3:
            container[key] = draw.choice(([old], [old, old], {"a": old}, {str(key): old}, str(old)))
        case 4 if isinstance(old, int | float):
            wide = (-old, old + 1, old - 1, old * 1000, old * 10**9, old / 3, float(old), 10**9, 10**18)
            container[key] = draw.choice(wide)
        case 4 if isinstance(old, str):
            at = draw.randint(0, len(old))
            container[key] = old[:at] + str(draw.choice(VALUES)) + old[at:]
        case 5:
            other, name = draw.choice(list(places([container])))
            container[key] = json.loads(json.dumps(other[name]))
        case _:
            container[key] = value()


def _as_key(value: Tree) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _repeated_key(draw: Random, text: str) -> str:
    """The same with one ``"key": value`` twice, if there is a simple one."""
    found = re.findall(r'"[^"]*": (?:"[^"]*"|[\d.]+)', text)
    if not found:
        return text
    pair = draw.choice(found)
    return text.replace(pair, f"{pair}, {pair}", 1)


def encoded(text: str) -> bytes:
    """As files are written; half a surrogate pair stays what it is."""
    return text.encode("utf-8", "surrogatepass")


def scrambled(draw: Random, data: bytes, other: bytes = b"") -> bytes:
    """Bytes flipped, cut, moved, repeated, replaced, or those of another file."""
    content = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randint(0, len(content))
        size = draw.choice((1, 2, 8, 64, 1024))
        match draw.randrange(9):
            case 0:
                del content[at:]
            case 1:
                del content[at : at + size]
            case 2:
                content[at:at] = draw.randbytes(size)
            case 3:
                content[at : at + size] = bytes(len(content[at : at + size]))
            case 4:
                content[at:at] = content[: draw.randint(0, len(content))][-size:]
            case 5 if other:
                start = draw.randrange(len(other))
                content[at : at + size] = other[start : start + size]
            case 6:
                content += draw.randbytes(size)
            case 7:
                content[at : at + 1] = draw.choice(
                    (b"\0", b"\xff", b"\x1b", b"\n", b"\xed\xa0\x80", b"{", b'"')
                )
            case _ if content:
                content[at % len(content)] ^= 1 << draw.randrange(8)
    return bytes(content)


def split_safetensors(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Header and tensors."""
    (size,) = struct.unpack("<Q", data[:8])
    return json.loads(data[8 : 8 + size]), data[8 + size :]


def joined_safetensors(header: str, tensors: bytes) -> bytes:
    """A file with this header, whatever it says."""
    text = encoded(header)
    return struct.pack("<Q", len(text)) + text + tensors


HEADER_VALUES: tuple[Tree, ...] = (
    "F32", "F64", "BF16", "BOOL", "U8", "I64", "F8_E4M3", "C64", "F4", ["F32"], {"F32": 1}, "f32", [0], [0,
    2**63], [2**63, 0], [2**32, 2**32], [-1], [1.5], ["3"], [True], [[3]], [2**64], [0, 0], [0, 4], [4, 0],
    [0, 2**63], [0, 10**18], [-4, 0], [1] * 1000, [10**9, 1], [10**9, 0],
)  # fmt: skip


def spoiled_header(draw: Random, data: bytes) -> bytes:
    """A safetensors file whose header lies."""
    header, tensors = split_safetensors(data)
    if draw.random() < 0.1:
        size = draw.choice(
            (0, 1, 7, 2**63, 2**64 - 1, 10**9, len(data), len(data) - 8, draw.randrange(len(data)))
        )
        return struct.pack("<Q", size) + data[8:]
    if draw.random() < 0.1:
        tensors = scrambled(draw, tensors)
    return joined_safetensors(spoiled(draw, header, JSON_TEXTS, HEADER_VALUES), tensors)


def spoiled_metadata(
    draw: Random,
    data: bytes,
    key: str,
    values: Sequence[Tree] = (10**9, 2**62, -1, 0, [10**9, 10**9], [2**40]),
) -> bytes:
    """A safetensors file whose entry ``key`` of the metadata, JSON in itself, lies."""
    header, tensors = split_safetensors(data)
    said = json.loads(header["__metadata__"][key])
    header["__metadata__"][key] = spoiled(draw, said, JSON_TEXTS, values)
    return joined_safetensors(json.dumps(header), tensors)


ARCHIVE_NAMES = (
    "..", "../../x", "/etc/x", "a\0b", "a" * 300, "data.pkl", "data/0", "\x1b[31m", "x.npy", "é", "",
)  # fmt: skip


def spoiled_zip(draw: Random, data: bytes, spoil: Callable[[Random, bytes], bytes] = scrambled) -> bytes:
    """A zip file with members spoiled, renamed, twice, gone, compressed oddly, or an end that lies."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = draw.randrange(len(members))
    name, content = members[at]
    method = zipfile.ZIP_STORED
    match draw.randrange(8):
        case 0:
            members[at] = (draw.choice(ARCHIVE_NAMES), content)
        case 1:
            members.insert(
                draw.randrange(len(members) + 1), (name, draw.choice((content, b"", spoil(draw, content))))
            )
        case 2:
            del members[at]
        case 3:
            method = draw.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
        case 4:
            members[at] = (name, bytes(draw.choice((0, 10**7))))
            method = zipfile.ZIP_DEFLATED
        case _:
            members[at] = (name, spoil(draw, content))
    made = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(made, "w", method) as archive:
        for each, content in members:
            archive.writestr(zipfile.ZipInfo(each or "x"), content, method)
    whole = made.getvalue()
    if draw.random() < 0.15:  # what the central directory says: sizes, method, flags
        start = whole.rfind(b"PK\x01\x02") + draw.choice((8, 10, 20, 24, 42))
        whole = whole[:start] + draw.choice((b"\xff\xff", b"\x63\x00", b"\x01\x00")) + whole[start + 2 :]
    return scrambled(draw, whole) if draw.random() < 0.1 else whole


def rewrite(path: Path, change: Callable[[bytes], bytes]) -> None:
    """Replace what is in a file."""
    path.write_bytes(change(path.read_bytes()))


def spoil_json(draw: Random, path: Path, values: Sequence[Tree] = ()) -> None:
    """Spoil a file of JSON."""
    rewrite(path, lambda data: encoded(spoiled(draw, json.loads(data), JSON_TEXTS, values)))


def spoil_lines(draw: Random, path: Path, values: Sequence[Tree] = ()) -> None:
    """Spoil a line of a file of JSON lines."""
    lines = path.read_bytes().splitlines()
    at = draw.randrange(len(lines))
    lines[at] = encoded(spoiled(draw, json.loads(lines[at]), JSON_TEXTS, values))
    path.write_bytes(b"\n".join(lines) + b"\n")


def spoil_yaml(draw: Random, path: Path, tree: Tree, values: Sequence[Tree] = ()) -> None:
    """Write a tree, spoiled, as YAML."""
    path.write_bytes(encoded(spoiled(draw, json.loads(json.dumps(tree)), YAML_TEXTS, values)))
