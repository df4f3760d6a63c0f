"""A task: splits of labelled examples, the recipe of its frozen head, its metric."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import xxhash
from pydantic import (
    Field,
    PositiveInt,
    PrivateAttr,
    SerializeAsAny,
    field_serializer,
    field_validator,
    model_validator,
)

from taskvec.arguments import checked
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.reading import shown
from taskvec.registry import nearest
from taskvec.tasks.metrics import METRICS
from taskvec.tasks.source import SOURCES, SPLITS, Rows, Source, SplitName

if TYPE_CHECKING:
    from torch import Tensor


Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]

_WHERE = {"path", "files", "local"}
"""Options of a source that say where data lie and not what they are."""


@checked
@dataclass(frozen=True)
class Split:
    """Examples of one split.

    Args:
        inputs: texts, pairs of texts, a uint8 tensor (N, H, W, 3), or images read on access.
        labels: (N,), int64, places in the task's classes.
    """

    inputs: Sequence[Any]
    labels: "Tensor"

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, places: "Tensor") -> list[Any]:
        """The inputs at some places, in the order given."""
        return [self.inputs[place] for place in places.tolist()]

    def first(self, limit: int | None) -> "Split":
        """The first ``limit`` examples; all for none."""
        if limit is None or limit >= len(self):
            return self
        return Split(self.inputs[:limit], self.labels[:limit])

    def draw(self, count: int, seed: int) -> "Split":
        """Some examples, drawn without replacement; all of them, shuffled, if there are fewer."""
        import torch

        places = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        return self.at(places)

    def at(self, places: "Tensor") -> "Split":
        """The examples at some places, in the order given."""
        return Split(taken(self.inputs, places.tolist()), self.labels[places])


class Task(Config):
    """One classification task, as a suite file declares it. Data are read when a split is asked for."""

    name: str = Field(pattern=r"^[\w-][\w.-]*$", max_length=100)
    """Also the name of files: letters, digits and ``_ . -``, not beginning with a dot."""
    version: PositiveInt = 1
    """Raised when data, classes, prompts or splits change: figures of two versions do not compare."""
    description: str = ""
    modality: Literal["text", "image"] = "text"
    data: SerializeAsAny[Source]
    names: Words | None = Field(alias="classes")
    """Class names by label; ``from-data`` in a suite file, none here, where the data carry them."""
    templates: Words = ("{}",)
    """Prompts of a zero-shot head, ``{}`` standing for the class."""
    wordings: dict[str, Words] = Field(default_factory=dict)
    """What stands in a prompt for a class, where its name does not describe it well."""
    labels: dict[int | str, str | None] | None = None
    """Class of each label found in the data; none drops its rows. Needed when the two differ."""
    keep: Words | None = None
    """Classes whose rows make up the task; the head keeps all classes. None keeps every row."""
    head: Literal["zero-shot", "linear-probe"] = "zero-shot"
    metric: str = "accuracy"
    """One of ``METRICS``; more is better."""
    max_length: PositiveInt | None = None
    """Tokens that a text is cut to."""
    epochs: PositiveInt | None = None
    """Epochs of the usual fine-tuning recipe, where one is established."""

    _loaded: dict[str, Split] = PrivateAttr(default_factory=dict)

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str) -> str:
        if name not in METRICS:
            raise ValueError(f"no metric called {name!r}; {nearest(name, METRICS)}")
        return name

    @field_validator("names", mode="before")
    @classmethod
    def _names_from_data(cls, value: object) -> object:
        return None if value == "from-data" else value

    @field_serializer("names")
    def _as_in_a_file(self, names: Words | None) -> Words | str:
        return "from-data" if names is None else names

    @field_validator("data", mode="before")
    @classmethod
    def _typed_source(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        if "source" not in value:
            raise ValueError(f"no 'source'; known: {', '.join(sorted(SOURCES))}")
        name = str(value["source"])
        return SOURCES[name].parse(name, value)

    @model_validator(mode="after")
    def _consistent(self) -> "Task":
        for template in self.templates:
            if "{}" not in template:
                raise ValueError(f"template {template!r} has no '{{}}' for the name of the class")
        if self.names is None:
            return self
        if len(set(self.names)) != len(self.names) or len(self.names) < 2:
            raise ValueError(f"classes {list(self.names)}, expected two or more, each once")
        for name in (*self.wordings, *(self.keep or ()), *filter(None, (self.labels or {}).values())):
            if name not in self.names:
                raise ValueError(f"no class called {name!r}; {nearest(name, self.names)}")
        return self

    def __copy__(self) -> "Task":
        # A copy with other fields (``model_copy``) must not answer with rows read under the old ones.
        copied = super().__copy__()
        copied._loaded = {}
        return copied

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; reads the data if they alone carry them."""
        if self.names is not None:
            return self.names
        stated = self.data.class_names()
        if stated is None:
            raise InputError(f"{self.name}: the data carry no class names; list them under 'classes'")
        if len(stated) < 2 or len(set(stated)) < len(stated):
            raise InputError(
                f"{self.name}: the classes in the data are {shown(stated)}, expected several, each once"
            )
        return stated

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides what a figure on this task means, data included."""
        fields = self.model_dump_json(exclude={"description", "data", "epochs"})
        options = self.data.model_dump_json(exclude=_WHERE)
        return xxhash.xxh3_128(f"{fields}{options}{self.data.digest()}".encode()).hexdigest()

    def split(self, split: SplitName, limit: int | None = None) -> Split:
        """Examples of ``train``, ``validation`` or ``test``; the first ``limit`` of them.

        Data without a validation split lend a tenth of the training rows, at most 5000, drawn with seed 0, to
        it; ``train`` is then the rest.

        Raises: InputError for an empty or missing split, a missing file, a row without a field, or a label
            that is no class.
        """
        if split not in SPLITS:
            raise InputError(f"{self.name}: no split called {split!r}; {nearest(split, SPLITS)}")
        if split not in self._loaded:
            self._loaded.update(self._load(split))
        return self._loaded[split].first(limit)

    def _load(self, split: SplitName) -> dict[str, Split]:
        if split == "test":
            return {"test": self._labelled("test", self.data.rows("test"))}
        held_out = self.data.rows("validation")
        if held_out is not None and split == "validation":
            return {"validation": self._labelled("validation", held_out)}
        train = self._labelled("train", self.data.rows("train"))
        if held_out is not None:
            return {"train": train}
        try:
            return dict(zip(("train", "validation"), held_out_split(train), strict=True))
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None

    def _labelled(self, split: SplitName, rows: Rows | None) -> Split:
        """Rows with their labels as places in the classes; dropped ones left out."""
        import torch

        if rows is None or not len(rows.inputs):
            raise InputError(f"{self.name}: the {split} split is empty")
        classes = self.classes
        places = {name: place for place, name in enumerate(classes)}
        kept: list[int] = []
        labels: list[int] = []
        for row, label in enumerate(rows.labels):
            name = self._class_of(label, classes, rows, row)
            if name is not None and (self.keep is None or name in self.keep):
                kept.append(row)
                labels.append(places[name])
        if not kept:
            raise InputError(f"{self.name}: the {split} split is empty after dropping labels")
        inputs = rows.inputs if len(kept) == len(rows.inputs) else taken(rows.inputs, kept)
        examples: Any = torch.from_numpy(inputs) if isinstance(inputs, np.ndarray) else inputs
        return Split(examples, torch.tensor(labels))

    def _class_of(self, label: int | str, classes: Sequence[str], rows: Rows, row: int) -> str | None:
        if self.labels is not None:
            if label in self.labels:
                return self.labels[label]
            known = ", ".join(map(repr, self.labels))
            raise InputError(f"{rows.where(row)}: label {shown(label)}, expected one of 'labels' ({known})")
        if isinstance(label, int) and 0 <= label < len(classes):
            return classes[label]
        if label in classes:
            return str(label)
        raise InputError(
            f"{rows.where(row)}: label {shown(label)} is outside the {len(classes)} classes of {self.name!r}"
        )


def held_out_split(train: Split, share: float = 0.1, most: int = 5000) -> tuple[Split, Split]:
    """A training split cut into train and validation by a permutation of seed 0.

    Source: the ``...Val`` data sets of the task-arithmetic code, arXiv:2212.04089.
    """
    import torch

    count = min(int(share * len(train)), most)
    if count == 0:
        raise InputError(f"{len(train)} training rows are too few to hold out a validation split; give one")
    order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
    return train.at(order[:-count]), train.at(order[-count:])


def taken(inputs: Sequence[Any], places: Sequence[int]) -> Sequence[Any]:
    """Inputs at some places, of the same kind as given: a list of a list, an array of an array."""
    if isinstance(inputs, list):
        return [inputs[place] for place in places]
    several: Any = inputs
    return several[list(places)]  # type: ignore[no-any-return]
