"""Plain texts: one UTF-8 file for all splits, or a file for each."""

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from taskvec.errors import InputError
from taskvec.reading import read_text
from taskvec.tasks.source import SPLITS, Rows, Source, SplitName, digest_of

HELD_OUT = 0.1
"""Of the training text, its end is the validation split where there is no other."""

Share = Annotated[float, Field(gt=0, le=1)]


class Text(Source):
    """One text, or several with a separator between them, without labels; whatever ends a line is ``\\n``."""

    source: Literal["text"] = "text"
    path: str | None = None
    """One file for all splits."""
    files: dict[SplitName, str] = Field(default_factory=dict)
    """A file for each split, instead of ``path``."""
    separator: str | None = Field(default=None, min_length=1)
    """What stands between two texts, such as a line break; none for one text."""
    splits: dict[SplitName, Share] = Field(default_factory=dict)
    """Share of the file of each split, one after the other; without it each split is the whole file."""

    @model_validator(mode="after")
    def _one_way_to_files(self) -> Self:
        if (self.path is None) == (not self.files):
            raise ValueError("expected either 'path' (one file) or 'files' (one for each split)")
        if self.files and self.splits:
            raise ValueError("splits: divides the one file of 'path', and 'files' has one for each split")
        if sum(self.splits.values()) > 1 + 1e-9:
            raise ValueError(
                f"splits: the shares add up to {sum(self.splits.values()):g}, expected 1 at most"
            )
        return self

    def rows(self, split: SplitName) -> Rows | None:
        """The texts of a split; those of ``validation`` are the end of ``train`` where it has none."""
        lends = not self._has("validation")
        home: SplitName = "train" if split == "validation" and lends else split
        if not self._has(home):
            return None
        start, stop = self._span(home)
        if lends and home == "train":
            middle = stop - HELD_OUT * (stop - start)
            start, stop = (middle, stop) if split == "validation" else (start, middle)
        file = self.existing_file(self.files[home] if self.path is None else self.path)
        texts = _between(self._texts(file), start, stop)
        return Rows(texts, [0] * len(texts), lambda place: f"{file}, {split} text {place + 1}")

    def digest(self) -> str:
        """Of the bytes of every file."""
        names = (self.path, *(self.files.get(name) for name in SPLITS))
        return digest_of(*(self.existing_file(name) for name in names if name is not None))

    def _has(self, split: SplitName) -> bool:
        """Whether the options say where a split is; the whole file is ``train`` and ``test``."""
        if self.files or self.splits:
            return split in self.files or split in self.splits
        return split != "validation"

    def _span(self, split: SplitName) -> tuple[float, float]:
        """Where a split begins and ends in its file, as shares of it."""
        if not self.splits:
            return 0.0, 1.0
        before = sum(self.splits.get(name, 0.0) for name in SPLITS[: SPLITS.index(split)])
        return before, before + self.splits[split]

    def _texts(self, file: Path) -> list[str]:
        whole = _lines(read_text(file).removeprefix("\ufeff"))
        pieces = [whole] if self.separator is None else whole.split(_lines(self.separator))
        texts = [piece for piece in pieces if piece.strip()]
        if not texts:
            raise InputError(f"{file}: holds no text, expected some")
        return texts


def _lines(text: str) -> str:
    """A text whose lines end as those of Unix do."""
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _between(texts: list[str], start: float, stop: float) -> list[str]:
    """Texts from one place to another; of a single text, the characters between them."""
    if len(texts) == 1:
        size = len(texts[0])
        part = texts[0][round(start * size) : round(stop * size)]
        return [part] if part.strip() else []
    return texts[round(start * len(texts)) : round(stop * len(texts))]
