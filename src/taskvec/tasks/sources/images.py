"""Images: numpy archives and folders of files, one folder a class."""

import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import xxhash
from numpy.typing import NDArray
from pydantic import Field

from taskvec.errors import InputError, MissingExtra
from taskvec.tasks.source import Rows, Source, SplitName, chunks

Pixels = NDArray[np.uint8]

SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})


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


def rgb(image: Any) -> Pixels:
    """A PIL image as an array (H, W, 3), uint8."""
    return np.asarray(image.convert("RGB"), dtype=np.uint8).copy()


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
    """Key of the labels (N,), places in the classes."""
    names: str = "classes"
    """Key of the class names, where the archive has them."""
    splits: dict[SplitName, str] = Field(default_factory=_usual_splits)
    """What stands for ``{split}`` in the keys."""

    def rows(self, split: SplitName) -> Rows | None:
        """Images (N, H, W, 3) and labels of a split."""
        path = self.existing_file(self.path)
        if split not in self.splits:
            return None
        keys = [key.replace("{split}", self.splits[split]) for key in (self.images, self.labels)]
        with _archive(path) as archive:
            if keys[0] not in archive and split == "validation":
                return None
            pixels, labels = (_array(archive, key, path) for key in keys)
        if (
            pixels.dtype != np.uint8
            or pixels.ndim not in (3, 4)
            or (pixels.ndim == 4 and pixels.shape[3] != 3)
        ):
            raise InputError(
                f"{path}: {keys[0]!r} is {pixels.dtype} {pixels.shape}, "
                "expected uint8 (N, H, W) or (N, H, W, 3)"
            )
        if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) != len(pixels):
            raise InputError(
                f"{path}: {keys[1]!r} is {labels.dtype} {labels.shape}, expected {len(pixels)} whole numbers"
            )
        coloured = pixels if pixels.ndim == 4 else np.repeat(pixels[..., None], 3, axis=3)
        return Rows(coloured, labels.tolist(), lambda place: f"{path}: {keys[1]}[{place}]")

    def class_names(self) -> tuple[str, ...] | None:
        """The names in the archive."""
        path = self.existing_file(self.path)
        with _archive(path) as archive:
            return tuple(map(str, archive[self.names].tolist())) if self.names in archive else None

    def digest(self) -> str:
        """Of the bytes of the archive."""
        digest = xxhash.xxh3_128()
        for piece in chunks(self.existing_file(self.path)):
            digest.update(piece)
        return digest.hexdigest()


class ImageFolder(Source):
    """Image files in a folder for each class, in a folder for each split: ``path/train/cat/1.png``."""

    source: Literal["images"] = "images"
    path: str
    splits: dict[SplitName, str] = Field(default_factory=_usual_splits)
    """Folder of each split; one of validation may be missing."""

    def rows(self, split: SplitName) -> Rows | None:
        """Images in the order of class and file name, read when they are looked at.

        Labels are folder names: numbers where they are written in digits, readable class names otherwise.
        """
        root = self.existing(self.path)
        place = self.splits.get(split)
        if place is None or (split == "validation" and not (root / place).is_dir()):
            return None
        files = [file for folder in _folders(root / place) for file in _files(folder)]
        labels = [_label(file.parent.name) for file in files]
        return Rows(
            LazyImages(lambda at: _opened(files[at]), range(len(files))), labels, lambda at: str(files[at])
        )

    def class_names(self) -> tuple[str, ...]:
        """The training folders' names, in their order."""
        root = self.existing(self.path)
        labels = {_label(folder.name) for folder in _folders(root / self.splits["train"])}
        numbers = sorted(label for label in labels if isinstance(label, int))
        if numbers == list(range(len(labels))):
            return tuple(map(str, numbers))
        return tuple(sorted(map(str, labels)))

    def digest(self) -> str:
        """Of the names and sizes of the files: reading every image would take minutes."""
        root = self.existing(self.path)
        digest = xxhash.xxh3_128()
        for place in self.splits.values():
            for folder in _folders(root / place) if (root / place).is_dir() else ():
                for file in _files(folder):
                    digest.update(f"{file.relative_to(root)}\0{file.stat().st_size}\0".encode())
        return digest.hexdigest()


def _archive(path: Path) -> Any:
    try:
        return np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not a numpy archive ({error})") from None


def _array(archive: Any, key: str, path: Path) -> NDArray[Any]:
    if key not in archive:
        raise InputError(f"{path}: no array {key!r}; there are {', '.join(archive.files)}")
    try:
        return np.asarray(archive[key])
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: array {key!r} cannot be read ({error})") from None


def _folders(split: Path) -> list[Path]:
    if not split.is_dir():
        raise InputError(f"{split}: no such folder, expected one folder of images for each class")
    return sorted(folder for folder in split.iterdir() if folder.is_dir())


def _files(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES)


def _label(folder: str) -> int | str:
    return int(folder) if folder.isdigit() else readable(folder)


def _opened(file: Path) -> Pixels:
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError:
        raise MissingExtra(
            "pillow is not installed, needed to read images; pip install 'taskvec[data]'"
        ) from None
    try:
        with Image.open(file) as image:
            return rgb(image)
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{file}: cannot be read as an image ({error})") from None
