"""Images: numpy archives and folders of files, one folder a class."""

import math
import os
import re
import warnings
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from taskvec.errors import InputError, optional
from taskvec.reading import is_folder, open_file, shortened
from taskvec.tasks.source import (
    SPLITS,
    Rows,
    Source,
    SplitName,
    called,
    digest_of,
    most_unpacked,
    one_sentence,
)

Pixels = NDArray[np.uint8]

_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})

_FORMATS = ("BMP", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
"""What Pillow may take a file for, whatever its name: PostScript, for one, it would have run."""


class LazyImages(Sequence[Any]):
    """Images read when they are asked for: arrays (H, W, 3), uint8, of whatever size each has.

    An index gives an array; a slice or a list of places gives the images at them, still unread.
    """

    def __init__(self, read: Callable[[int], Pixels], places: Sequence[int]) -> None:
        self._read, self._places = read, places

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, at: Any) -> Any:
        if isinstance(at, slice):
            return LazyImages(self._read, self._places[at])
        if isinstance(at, list):
            return LazyImages(self._read, [self._places[place] for place in at])
        return self._read(self._places[at])


def decode(file: BinaryIO, where: str) -> Pixels:
    """The first picture in a file as an array (H, W, 3), uint8.

    Raises: InputError for a file that is damaged, no picture, or larger than ``PIL.Image.MAX_IMAGE_PIXELS``.
    """
    missing = "pillow is not installed, needed to read images; pip install 'taskvec[data]'"
    image_module = optional("PIL.Image", missing)
    with one_sentence(f"{where}: cannot be read as an image"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of odd tags, which nobody looks at
        warnings.simplefilter("error", image_module.DecompressionBombWarning)
        with image_module.open(file, formats=_FORMATS) as image:
            return _rgb(image)


def _rgb(image: Any) -> Pixels:
    """A PIL image as an array (H, W, 3), uint8; of 16 bits, the upper eight.

    Raises: ValueError for numbers that are no shades.
    """
    if image.mode[0] not in "IF":
        return np.asarray(image.convert("RGB"), dtype=np.uint8).copy()
    # Pillow would make everything above 255 white.
    shades = np.asarray(image)
    if image.mode == "F" or shades.min() < 0 or shades.max() > 0xFFFF:
        raise ValueError("pixels of 32 bits, expected 8 or 16")
    return np.repeat((shades >> 8).astype(np.uint8)[..., None], 3, axis=2)


def readable(name: str) -> str:
    """A folder's or a field's class name as it reads in a sentence.

    >>> readable("baseball_diamond")
    'baseball diamond'
    """
    return " ".join(name.replace("_", " ").split())


def _usual_splits() -> dict[SplitName, str]:
    return {"train": "train", "validation": "val", "test": "test"}


class Npz(Source):
    """A numpy archive with an array of images and one of labels for each split."""

    source: Literal["npz"] = "npz"
    path: str
    images: str = "x_{split}"
    """Key of the images (N, H, W) or (N, H, W, 3), uint8; grey ones become RGB."""
    labels: str = "y_{split}"
    """Key of the labels (N,), places in the classes, or numbers for a regression."""
    names: str = "classes"
    """Key of the class names, where the archive has them."""
    splits: dict[SplitName, str] = Field(default_factory=_usual_splits)
    """What stands for ``{split}`` in the keys."""

    def rows(self, split: SplitName) -> Rows | None:
        """Images (N, H, W, 3) and labels of a split."""
        path = self.existing_file(self.path)
        name = called(split, self.splits)
        if name is None:
            return None
        keys = [key.replace("{split}", name) for key in (self.images, self.labels)]
        with _archive(path) as archive:
            if keys[0] not in archive.members and split == "validation":
                return None
            pixels, labels = map(archive.read, keys)
        if (
            pixels.dtype != np.uint8
            or pixels.ndim not in (3, 4)
            or (pixels.ndim == 4 and pixels.shape[3] != 3)
            or 0 in pixels.shape[1:]
        ):
            raise InputError(
                f"{path}: {keys[0]!r} is {pixels.dtype} {pixels.shape}, "
                "expected uint8 (N, H, W) or (N, H, W, 3)"
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iuf" or len(labels) != len(pixels):
            raise InputError(
                f"{path}: {keys[1]!r} is {labels.dtype} {labels.shape}, expected {len(pixels)} whole numbers"
            )
        coloured = pixels if pixels.ndim == 4 else np.repeat(pixels[..., None], 3, axis=3)
        return Rows(coloured, labels.tolist(), lambda place: f"{path}: {keys[1]}[{place}]")

    def class_names(self) -> tuple[str, ...] | None:
        """The names in the archive."""
        path = self.existing_file(self.path)
        with _archive(path) as archive:
            if self.names not in archive.members:
                return None
            stored = archive.read(self.names)
        if stored.ndim != 1 or stored.dtype.kind not in "Uiu":
            raise InputError(f"{path}: {self.names!r} is {stored.dtype} {stored.shape}, expected names")
        with one_sentence(f"{path}: {self.names!r} holds what is no text"):
            names = tuple(map(str, stored.tolist()))
            "".join(names).encode()
        return names

    def digest(self) -> str:
        """Of the bytes of the archive."""
        return digest_of(self.existing_file(self.path))


class ImageFolder(Source):
    """Image files in a folder for each class, in a folder for each split: ``path/train/cat/1.png``."""

    source: Literal["images"] = "images"
    path: str
    splits: dict[SplitName, str] = Field(default_factory=_usual_splits)
    """Folder of each split; one of validation may be missing."""

    def rows(self, split: SplitName) -> Rows | None:
        """Images in the order of class and file name, read when they are looked at.

        Labels are folder names: numbers where they are written in digits, readable class names otherwise.
        Hidden files and folders are left out; links are followed, but in folders below that of a class.
        """
        root = self.existing(self.path)
        place = called(split, self.splits)
        if place is None or (split == "validation" and not is_folder(root / place)):
            return None
        listed = {folder: _files(folder) for folder in _folders(root / place)}
        files = [file for of_class in listed.values() for file in of_class]
        labels = [_label(folder.name) for folder, of_class in listed.items() for _ in of_class]
        images = LazyImages(lambda at: _picture(files[at]), range(len(files)))
        return Rows(images, labels, lambda at: str(files[at]))

    def class_names(self) -> tuple[str, ...]:
        """The training folders' names, in their order."""
        root = self.existing(self.path)
        place = called("train", self.splits)
        if place is None or ("train" not in self.splits and not is_folder(root / place)):
            raise InputError(f"{root}: 'splits' names no folder for 'train', whose folders are the classes")
        labels = {_label(folder.name) for folder in _folders(root / place)}
        numbers = sorted(label for label in labels if isinstance(label, int))
        if numbers == list(range(len(labels))):
            return tuple(map(str, numbers))
        return tuple(sorted(map(str, labels)))

    def digest(self) -> str:
        """Of the names and sizes of the files: reading every image would take minutes."""
        root = self.existing(self.path)
        digest = xxhash.xxh3_128()
        with one_sentence(f"{root}: cannot be looked through"):
            unnamed = (called(split, self.splits) for split in SPLITS if split not in self.splits)
            for place in (*self.splits.values(), *filter(None, unnamed)):
                for folder in _folders(root / place) if is_folder(root / place) else ():
                    for file in _files(folder):
                        digest.update(os.fsencode(f"{file.relative_to(root)}\0{file.stat().st_size}\0"))
        return digest.hexdigest()


@dataclass(frozen=True)
class _Archive:
    """The arrays of a numpy archive by name; none may claim more than the file holds of it."""

    path: Path
    archive: zipfile.ZipFile
    members: dict[str, zipfile.ZipInfo]

    def read(self, key: str) -> NDArray[Any]:
        """One array.

        Raises: InputError for one that is not there, is damaged or holds Python objects.
        """
        if key not in self.members:
            there = shortened(", ".join(map(repr, self.members)))
            raise InputError(f"{self.path}: no array {key!r}; there are {there}")
        with one_sentence(f"{self.path}: array {key!r} cannot be read"):
            member = self.members[key]
            if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or member.flag_bits & 1:
                raise ValueError("packed otherwise than numpy does it")
            self._check_honest(member)
            with self.archive.open(member) as stream:
                return np.lib.format.read_array(stream, allow_pickle=False)

    def _check_honest(self, member: zipfile.ZipInfo) -> None:
        """Refuse a header that claims more than its file can hold, before anything is allocated for it."""
        with self.archive.open(member) as stream:
            head = BytesIO(stream.read(1 << 16))  # a header may claim any length, and would be unpacked
        version = np.lib.format.read_magic(head)
        if version not in ((1, 0), (2, 0)):
            raise ValueError(f"version {version}")
        v1 = version == (1, 0)
        read = np.lib.format.read_array_header_1_0 if v1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(head)
        size, held = math.prod(shape) * dtype.itemsize, member.file_size - head.tell()
        if dtype.hasobject:
            raise ValueError("holds Python objects, which are not read")
        packed = min(member.compress_size, self.path.stat().st_size)
        unpacked = packed if member.compress_type == zipfile.ZIP_STORED else most_unpacked(packed)
        if min(shape, default=0) < 0 or size != held:
            raise ValueError(f"claims to be {dtype} {shape}, and there are {held:,} bytes")
        if size > unpacked:
            raise ValueError("holds far more than so few bytes can in good faith; store it with numpy.savez")


@contextmanager
def _archive(path: Path) -> Iterator[_Archive]:
    with open_file(path) as file:
        with one_sentence(f"{path}: not a numpy archive"):
            archive = zipfile.ZipFile(file)
            members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
            if len(members) < len(archive.infolist()):
                raise ValueError("two arrays of one name")
        yield _Archive(path, archive, members)


def _folders(split: Path) -> list[Path]:
    if not is_folder(split):
        raise InputError(f"{split}: no such folder, expected one folder of images for each class")
    with one_sentence(f"{split}: cannot be looked through"):
        classes = sorted(path for path in split.iterdir() if path.name[0] != "." and path.is_dir())
    for folder in classes:
        if not folder.name.isprintable():
            raise InputError(f"{folder}: the name of a class holds what is no character; rename it")
    return classes


def _files(folder: Path) -> list[Path]:
    with one_sentence(f"{folder}: cannot be looked through"):
        return sorted(_walk(folder))


def _walk(folder: Path) -> Iterator[Path]:
    def fail(error: OSError) -> None:
        raise error

    for place, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [name for name in folders if name[0] != "."]
        for name in files:
            if name[0] != "." and Path(name).suffix.lower() in _SUFFIXES:
                yield Path(place, name)


_DIGITS = re.compile(r"[0-9]{1,18}")


def _label(folder: str) -> int | str:
    return int(folder) if _DIGITS.fullmatch(folder) else readable(folder)


def _picture(path: Path) -> Pixels:
    with open_file(path) as file:
        return decode(file, str(path))
