"""Data sets of the Hugging Face hub, or local folders that the ``datasets`` library reads."""

import os
from collections.abc import Iterator
from functools import cached_property, partial
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from taskvec.errors import InputError, optional
from taskvec.reading import check_inside, is_folder, open_file
from taskvec.registry import nearest
from taskvec.tasks.source import Rows, Source, SplitName, called, expanded, label_of, one_sentence, text_of
from taskvec.tasks.sources.images import ImageFolder, LazyImages, Pixels, decode, readable


def _usual_splits() -> dict[SplitName, str]:
    return {"train": "train", "test": "test"}


class Hub(Source):
    """A data set by its id; a local image folder, where one is given and there, comes first."""

    source: Literal["hf"] = "hf"
    id: str
    """``org/name``, or a local folder."""
    config: str | None = None
    revision: str | None = None
    """Pins the data; without it, figures depend on the day they were taken."""
    splits: dict[SplitName, str] = Field(default_factory=_usual_splits)
    """Names of the splits; a validation split that is not named is cut from train."""
    text: str | None = None
    """Column of the text."""
    text2: str | None = None
    """Column of the second text, for tasks on pairs."""
    image: str | None = None
    """Column of the image."""
    label: str | None = "label"
    """Column of the label; none for texts without labels."""
    local: str | None = None
    """Folder with the same images as ``train/<class>/*`` and ``test/<class>/*``, for work offline."""

    def rows(self, split: SplitName) -> Rows | None:
        """Rows of a split; images are decoded when they are looked at."""
        if self._folder is not None:
            return self._folder.rows(split)
        if called(split, self.splits) is None:
            return None
        return Rows(self._inputs(split), self._labels(split), partial(self._where, split))

    def _labels(self, split: SplitName) -> list[int | float | str]:
        if self.label is None:
            return [0] * len(self._table(split))
        return [label_of(*cell, self.label) for cell in self._column(split, self.label)]

    def class_names(self) -> tuple[str, ...] | None:
        """Names that the label column declares."""
        if self._folder is not None:
            return self._folder.class_names()
        unnamed = f"{self.id}: 'splits' names no 'train', whose column of labels names the classes"
        if called("train", self.splits) is None:
            raise InputError(unnamed)
        try:
            table = self._table("train")
        except InputError as error:
            if "train" in self.splits:
                raise
            raise InputError(f"{unnamed} ({error})") from None
        names = getattr(table.features.get(self.label or ""), "names", None)
        return tuple(map(readable, names)) if names else None

    def digest(self) -> str:
        """Of the local files, or else the id and revision."""
        if self._folder is not None:
            return self._folder.digest()
        return "@".join(filter(None, (self.id, self.config, self.revision)))

    @cached_property
    def _folder(self) -> ImageFolder | None:
        if self.local is None:
            return None
        try:
            there = is_folder(self.folder / expanded(self.local))
        except InputError:  # the variable is not set: the hub will do
            return None
        return ImageFolder(path=self.local, folder=self.folder) if there else None

    @cached_property
    def _tables(self) -> dict[SplitName, Any]:
        return {}

    def _table(self, split: SplitName) -> Any:
        if split not in self._tables:
            self._tables[split] = self._loaded(split)
        return self._tables[split]

    def _loaded(self, split: SplitName) -> Any:
        missing = f"{self.id}: the package datasets is not installed; pip install 'taskvec[data]'"
        datasets = optional("datasets", missing)
        for place, _, names in os.walk(self._home) if self._home else ():
            for path in (Path(place, name) for name in names):
                if not path.is_file():  # the library would open it all the same
                    raise InputError(
                        f"{path}: is no plain file, and reading it could wait forever; take it out"
                    )
        remedy = (
            f"; or put the images into {self.local}/train/<class>/ and /test/<class>/" if self.local else ""
        )
        name = called(split, self.splits)
        with one_sentence(f"{self.id}: split {name!r} cannot be loaded", remedy):
            return datasets.load_dataset(
                str(self._home or self.id), self.config, split=name, revision=self.revision
            )

    @cached_property
    def _home(self) -> Path | None:
        """The folder that holds the data set, if it is not of the hub."""
        folder = self.folder / self.id
        return folder if is_folder(folder) else None

    def _inputs(self, split: SplitName) -> Any:
        if self.image is not None:
            return self._images(split, self.image)
        if self.text is None:
            columns = ", ".join(self._table(split).column_names)
            raise InputError(f"{self.id}: neither 'text' nor 'image' names a column; there are {columns}")
        texts, *seconds = (self._texts(split, name) for name in (self.text, self.text2) if name)
        return list(zip(texts, *seconds, strict=True)) if seconds else texts

    def _texts(self, split: SplitName, name: str) -> list[str]:
        return [text_of(*cell, name) for cell in self._column(split, name)]

    def _images(self, split: SplitName, name: str) -> LazyImages:
        """Pictures that are decoded here, as are those of any other source."""
        table = self._having(split, name)
        undecoded = import_module("datasets").Image(decode=False)
        with one_sentence(f"{self.id}: the column {name!r} holds no images"):
            images = table.cast_column(name, undecoded)[name]
        return LazyImages(lambda at: self._image(images[at], self._where(split, at)), range(len(images)))

    def _image(self, value: Any, where: str) -> Pixels:
        match value:
            case {"bytes": bytes(content)}:
                return decode(BytesIO(content), where)
            case {"path": str(name)}:
                path = Path(name)
                check_inside(path, self._home or Path(import_module("datasets").config.HF_CACHE_HOME))
                with open_file(path) as file:
                    return decode(file, where)
        raise InputError(f"{where}: no image there")

    def _where(self, split: str, place: int) -> str:
        return f"{self.id}, {split} row {place + 1}"

    def _column(self, split: SplitName, name: str) -> Iterator[tuple[Any, str]]:
        """The values of a column, each with the place it is at."""
        table = self._having(split, name)
        with one_sentence(f"{self.id}: the column {name!r} cannot be read"):
            for place, value in enumerate(table[name]):
                yield value, self._where(split, place)

    def _having(self, split: SplitName, name: str) -> Any:
        """The table of a split, which has this column."""
        table = self._table(split)
        if name not in table.column_names:
            raise InputError(f"{self.id}: no column {name!r}; {nearest(name, table.column_names)}")
        return table
