"""A task: splits of examples and what it asks of a model; its kind says the rest."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import xxhash
from pydantic import (
    Field,
    ModelWrapValidatorHandler,
    PositiveInt,
    PrivateAttr,
    SerializeAsAny,
    field_validator,
    model_validator,
)
from pydantic.fields import FieldInfo

from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.registry import nearest
from taskvec.tasks.kinds import KINDS
from taskvec.tasks.source import SOURCES, SPLITS, Rows, Source, SplitName
from taskvec.tasks.split import Split, held_out_split

if TYPE_CHECKING:
    from taskvec.models.backbone import Backbone, Outputs
    from taskvec.tasks.objective import Objective

__all__ = ["Split", "Task", "held_out_split"]

DEFAULT = "classification"
"""The kind of a task that names none."""

_WHERE = {"path", "files", "local"}
"""Options of a source that say where data lie and not what they are."""


class Task(Config, ABC):
    """One task, as a suite file declares it. Data are read when a split is asked for.

    ``Task(kind=...)``, ``Task.parse`` and suites give a task of the class that ``KINDS`` has for its kind.
    """

    outputs: ClassVar["Outputs"]
    """What it needs of a model: its features, or its tokens' logits."""
    unkeyed: ClassVar[frozenset[str]] = frozenset()
    """Fields left out of the fingerprint at their defaults, being younger than records that exist."""

    name: str = Field(pattern=r"^[\w-][\w.-]*$", max_length=100)
    """Also the name of files: letters, digits and ``_ . -``, not beginning with a dot."""
    version: PositiveInt = 1
    """Raised when data, classes, prompts or splits change: figures of two versions do not compare."""
    description: str = ""
    kind: str
    """A key of ``KINDS``."""
    modality: Literal["text", "image"] = "text"
    data: SerializeAsAny[Source]

    _loaded: dict[str, Split] = PrivateAttr(default_factory=dict)

    @property
    def needs(self) -> "Outputs":
        """What this task needs of a model."""
        return self.outputs

    def __new__(cls, **values: Any) -> "Task":
        """Of the class of its kind."""
        kind = values.get("kind", DEFAULT)
        known = isinstance(kind, str) and kind in KINDS  # what is not, validation names
        made: Task = super().__new__(KINDS[kind if known else DEFAULT] if cls is Task else cls)
        return made

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_kind(cls, values: Any, handler: ModelWrapValidatorHandler["Task"]) -> "Task":
        if cls is not Task or not isinstance(values, dict):
            return handler(values)
        kind = values.get("kind", DEFAULT)
        if not isinstance(kind, str) or kind not in KINDS:
            raise ValueError(f"kind: no kind of task called {kind!r}; {nearest(str(kind), KINDS)}")
        _check_keys(values, kind)
        task: Task = KINDS[kind].model_validate(values)
        return task

    @field_validator("data", mode="before")
    @classmethod
    def _typed_source(cls, value: object) -> object:
        if not isinstance(value, Mapping):
            return value
        if "source" not in value:
            raise ValueError(f"no 'source'; known: {', '.join(sorted(SOURCES))}")
        name = str(value["source"])
        return SOURCES[name].parse(name, value)

    def __copy__(self) -> "Task":
        # A copy with other fields (``model_copy``) must not answer with rows read under the old ones.
        copied = super().__copy__()
        copied._loaded = {}
        return copied

    @classmethod
    def known_keys(cls) -> list[str]:
        """What a suite file may say of a task: of this kind, or of any for the base."""
        if cls is not Task:
            return super().known_keys()
        return list(dict.fromkeys(key for kind in KINDS.values() for key in kind.known_keys()))

    @classmethod
    def field_called(cls, name: str) -> FieldInfo | None:
        """The field of that name, of any kind for the base."""
        kinds = [cls] if cls is not Task else [Task, *KINDS.values()]
        return next((kind.model_fields[name] for kind in kinds if name in kind.model_fields), None)

    if TYPE_CHECKING:

        @property
        def metric(self) -> str:
            """What protocols compare; a field of every kind."""

        def __getattr__(self, name: str) -> Any:
            """A field of the task's kind."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What somebody who trains on it should know, a line each."""
        return ()

    @abstractmethod
    def objective(self, backbone: "Backbone") -> "Objective":
        """What the task asks of a model's outputs; a frozen head is made with this, the pre-trained one.

        Raises: InputError if the model does not serve this kind of task.
        """

    @abstractmethod
    def examples(self, split: SplitName, rows: Rows) -> Split:
        """The rows of a split as examples; there is one row at least.

        Raises: InputError naming the row at fault.
        """

    @property
    def fingerprint(self) -> str:
        """Digest of everything that decides what a figure on this task means, data included."""
        young = {
            name for name in self.unkeyed if getattr(self, name) == type(self).model_fields[name].default
        }
        fields = self.model_dump_json(exclude={"description", "data", "epochs", "checkpoint", *young})
        options = self.data.model_dump_json(exclude=_WHERE)
        return xxhash.xxh3_128(f"{fields}{options}{self.data.digest()}{self.digest()}".encode()).hexdigest()

    def digest(self) -> str:
        """Of what else a task reads, besides its data."""
        return ""

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
            return {"test": self._examples("test", self.data.rows("test"))}
        held_out = self.data.rows("validation")
        if held_out is not None and split == "validation":
            return {"validation": self._examples("validation", held_out)}
        train = self._examples("train", self.data.rows("train"))
        if held_out is not None:
            return {"train": train}
        try:
            return dict(zip(("train", "validation"), held_out_split(train), strict=True))
        except InputError as error:
            raise InputError(f"{self.name}: {error}") from None

    def _examples(self, split: SplitName, rows: Rows | None) -> Split:
        if rows is None or not len(rows.inputs):
            raise InputError(f"{self.name}: the {split} split is empty")
        return self.examples(split, rows)


def outputs_for(tasks: Iterable[Task]) -> "Outputs":
    """What tasks need of their model. Raises: InputError if it is not the same for all.

    The features that a classifier's own head reads serve other heads too.
    """
    needed = {task.needs: task for task in tasks}
    if "classifier" in needed:
        needed.pop("features", None)
    if len(needed) > 1:
        one, other = (f"{task.name!r} ({task.kind})" for task in list(needed.values())[:2])
        raise InputError(f"tasks {one} and {other} need models of different outputs; take one kind at a time")
    return next(iter(needed), "features")


def _check_keys(values: Mapping[str, Any], kind: str) -> None:
    """Refuse a key that another kind of task has. Raises: ValueError."""
    for key in values:
        others = [name for name, of in KINDS.items() if key in of.known_keys()]
        if others and kind not in others:
            raise ValueError(f"{key}: a key of kind {others[0]!r}, and this task is of kind {kind!r}")
