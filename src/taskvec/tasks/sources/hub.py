"""Data sets of the Hugging Face hub, or local folders that the ``datasets`` library reads."""

from functools import cached_property
from typing import Any, Literal

from pydantic import Field

from taskvec.errors import InputError, MissingExtra
from taskvec.registry import nearest
from taskvec.tasks.source import Rows, Source, SplitName, expanded
from taskvec.tasks.sources.images import ImageFolder, LazyImages, readable, rgb


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
    label: str = "label"
    """Column of the label."""
    local: str | None = None
    """Folder with the same images as ``train/<class>/*`` and ``test/<class>/*``, for work offline."""

    def rows(self, split: SplitName) -> Rows | None:
        """Rows of a split; images are decoded when they are looked at."""
        if self._folder is not None:
            return self._folder.rows(split)
        if split not in self.splits:
            return None
        table = self._table(split)
        labels = [_label(value) for value in self._column(table, self.label)]
        return Rows(self._inputs(table), labels, lambda place: f"{self.id}, {split} row {place + 1}")

    def class_names(self) -> tuple[str, ...] | None:
        """Names that the label column declares."""
        if self._folder is not None:
            return self._folder.class_names()
        names = getattr(self._table("train").features.get(self.label), "names", None)
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
            there = (self.folder / expanded(self.local)).is_dir()
        except InputError:  # the variable is not set: the hub will do
            return None
        return ImageFolder(path=self.local, folder=self.folder) if there else None

    @cached_property
    def _tables(self) -> dict[str, Any]:
        return {}

    def _table(self, split: SplitName) -> Any:
        if split not in self._tables:
            self._tables[split] = self._loaded(split)
        return self._tables[split]

    def _loaded(self, split: SplitName) -> Any:
        try:
            import datasets
        except ImportError:
            raise MissingExtra(
                f"{self.id}: the package datasets is not installed; pip install 'taskvec[data]'"
            ) from None
        folder = self.folder / self.id
        place = str(folder) if folder.is_dir() else self.id
        remedy = (
            f"; or put the images into {self.local}/train/<class>/ and /test/<class>/" if self.local else ""
        )
        try:
            return datasets.load_dataset(place, self.config, split=self.splits[split], revision=self.revision)
        except Exception as error:  # the library raises a dozen unrelated types, network ones included
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise InputError(
                f"{self.id}: split {self.splits[split]!r} cannot be loaded ({reason}){remedy}"
            ) from None

    def _inputs(self, table: Any) -> Any:
        if self.image is not None:
            images = self._column(table, self.image)
            return LazyImages(lambda at: rgb(images[at]), range(len(images)))
        if self.text is None:
            columns = ", ".join(table.column_names)
            raise InputError(f"{self.id}: neither 'text' nor 'image' names a column; there are {columns}")
        texts = [str(value) for value in self._column(table, self.text)]
        if self.text2 is None:
            return texts
        return list(zip(texts, (str(value) for value in self._column(table, self.text2)), strict=True))

    def _column(self, table: Any, name: str) -> Any:
        if name not in table.column_names:
            raise InputError(f"{self.id}: no column {name!r}; {nearest(name, table.column_names)}")
        return table[name]


def _label(value: object) -> int | str:
    return int(value) if isinstance(value, int) else str(value)
