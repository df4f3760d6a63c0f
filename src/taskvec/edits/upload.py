"""What goes to the hub of a task vector, an adapter or a model: its files, with a card, and no path of this
machine."""

import json
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from taskvec.arguments import checked
from taskvec.edits.card import without_folders
from taskvec.edits.upload_card import render_upload_card
from taskvec.errors import InputError
from taskvec.reading import (
    check_inside,
    check_regular,
    local_path,
    open_file,
    parse_json,
    read_mapping,
    shown,
)
from taskvec.urls import is_url, protocol_of, said
from taskvec.vectors.info import has_info
from taskvec.weights import Weights, open_weights
from taskvec.weights.adapters import SETTINGS
from taskvec.weights.beside import files_beside
from taskvec.weights.pushing import push_files
from taskvec.weights.staging import MANIFEST, SUFFIX

CARD = "README.md"


@dataclass(frozen=True)
class Upload:
    """Files by their place in a repository.

    Attributes:
        kind: of what they hold: ``task vector``, ``adapter`` or ``model``.
        files: place -> file, or what is in it.
    """

    kind: str
    files: Mapping[str, Path | bytes]

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of every file."""
        return {
            place: len(source) if isinstance(source, bytes) else source.stat().st_size
            for place, source in self.files.items()
        }

    @property
    def message(self) -> str:
        """Of the commit, unless the user has a better one."""
        return f"{self.kind} by taskvec"

    @property
    def card(self) -> str:
        """The text of the model card."""
        card = self.files[CARD]
        return (card if isinstance(card, bytes) else card.read_bytes()).decode("utf-8", "replace")


@contextmanager
def prepared(path: str | Path, name: str) -> Iterator[Upload]:
    """What to upload of a file or folder; a card is written where a folder has none.

    Paths of this machine that a header or a manifest names are cut down to their last part.

    Args:
        name: of the repository, ``org/name``.

    Raises: InputError for what is not there, or is no safetensors file.
    """
    if is_url(str(path)) and protocol_of(str(path)) != "file":
        raise InputError(
            f"{said(str(path))}: a URL, expected a file or folder on this machine; download it, and push that"
        )
    place = local_path(path)
    if not place.exists():
        raise InputError(f"{path}: no such file or folder, expected a task vector or a model on this machine")
    with open_weights(place) as weights, TemporaryDirectory(prefix="taskvec-") as scratch:
        kind = _kind_of(weights)
        found = _files(place, weights, kind)
        files: dict[str, Path | bytes] = {
            where: _public(file, Path(scratch, str(number)))
            for number, (where, file) in enumerate(found.items())
        }
        files.setdefault(CARD, render_upload_card(weights, kind, name).encode())
        yield Upload(kind, files)


def _kind_of(weights: Weights) -> str:
    if weights.adapter is not None:
        return "adapter"
    return "task vector" if has_info(weights) else "model"


def _files(place: Path, weights: Weights, kind: str) -> dict[str, Path]:
    """Every file that goes, by its place in the repository."""
    if unsafe := [file for file in weights.files if file.suffix not in (SUFFIX, ".json", ".sft")]:
        raise InputError(
            f"{unsafe[0]}: reading it may run code, so it is not spread; write it as safetensors with "
            "taskvec.save_weights(PATH, FOLDER), and push that"
        )
    if not place.is_dir():
        beside = place.parent / SETTINGS
        return {place.name: place, **({SETTINGS: beside} if kind == "adapter" and beside.is_file() else {})}
    held = set(weights.files)
    ours = {MANIFEST, CARD, *([SETTINGS] if kind == "adapter" else [])}
    files = {
        file.relative_to(place).as_posix(): file
        for file in sorted(place.rglob("*"))
        if file.is_file() and (file.resolve() in held or file.relative_to(place).as_posix() in ours)
    }
    for where in ours & files.keys():
        check_inside(files[where], place)
        check_regular(files[where])
    return files | {where.as_posix(): file for file, where in files_beside(place).copied}


def _public(file: Path, copy: Path) -> Path | bytes:
    """A file as it may be shown to others: itself where it names no path of this machine."""
    if file.name in (MANIFEST, SETTINGS, "config.json"):
        content = read_mapping(file)
        private = ["_name_or_path"] if file.name == "config.json" else list(content)
        public = content | {key: without_folders(content[key]) for key in private if key in content}
        return file if public == content else json.dumps(public, indent=2, ensure_ascii=False).encode()
    return _public_header(file, copy) if file.suffix == SUFFIX else file


def _public_header(file: Path, copy: Path) -> Path:
    """A safetensors file, or a copy of it with another header."""
    with open_file(file) as source:
        (size,) = struct.unpack("<Q", source.read(8))
        header = parse_json(source.read(size), f"{file}: the safetensors header")
        metadata = {key: _public_text(text) for key, text in header.get("__metadata__", {}).items()}
        if metadata == header.get("__metadata__", {}):
            return file
        text = json.dumps({**header, "__metadata__": metadata}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)
        with copy.open("xb") as target:
            target.write(struct.pack("<Q", len(text)) + text)
            while block := source.read(1 << 24):
                target.write(block)
    return copy


def _public_text(text: str) -> str:
    """Free text of a header, which may hold JSON."""
    try:
        content: Any = json.loads(text)
    except ValueError:
        content = text
    public = without_folders(content)
    if public == content:
        return text
    return public if isinstance(public, str) else json.dumps(public, ensure_ascii=False)


def check_name(name: str) -> str:
    """A repository's name, as the hub takes it.

    Raises: InputError.
    """
    org, slash, rest = name.partition("/")
    if "@" in name:
        raise InputError(f"{shown(name)}: name the branch by --revision (revision=…), not after an @")
    if not (org and slash and rest) or "/" in rest:
        raise InputError(f"{shown(name)}: expected ORG/NAME, a user or an organization and a name")
    return name


@checked
def push(
    path: str | Path,
    name: str,
    *,
    private: bool = False,
    revision: str | None = None,
    message: str | None = None,
    force: bool = False,
) -> str:
    """Upload a task vector, an adapter or a model to the hub, with its model card; the URL of the commit.

    Args:
        path: a safetensors file, or a folder.
        name: of the repository, ``org/name``; it is made if it is not there.
        private: make it private; a public one that exists is refused.
        revision: a branch, made from ``main`` if it is not there; ``main`` by default.
        message: of the commit.
        force: replace weights that are there; those of other names are deleted.

    Raises: MissingExtra without ``huggingface_hub``; OutputExists for weights that are there; InputError for
        a path that holds none, or what the hub refuses; TaskvecError if it cannot be reached.
    """
    with prepared(path, check_name(name)) as upload:
        said = message or upload.message
        return push_files(upload.files, name, private=private, revision=revision, message=said, force=force)
