"""Classification: a frozen head over classes, cross entropy, accuracy and its kin."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, PositiveInt, field_serializer, field_validator, model_validator

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.reading import shown
from taskvec.registry import nearest
from taskvec.tasks import intervals
from taskvec.tasks.headed import HeadedTask
from taskvec.tasks.intervals import Interval
from taskvec.tasks.metrics import OwnMetric, check_metric, figure_of, metric_called, own_interval
from taskvec.tasks.objective import Batch, Objective, Tally
from taskvec.tasks.score import Score, wilson
from taskvec.tasks.source import Rows, SplitName
from taskvec.tasks.split import Split, taken

if TYPE_CHECKING:
    from torch import Tensor

    from taskvec.models.backbone import Backbone
    from taskvec.models.heads import Head
    from taskvec.tasks.loaders import Examples

Words = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]

_STANDARD = ("accuracy", "macro_f1", "matthews")
"""The metrics that every score holds, whatever the task's own is."""


class Classification(HeadedTask):
    """Examples with one class each, behind a frozen head."""

    unkeyed = frozenset({"kind"})

    kind: Literal["classification"] = "classification"
    names: Words | None = Field(alias="classes")
    """Class names by label; ``from-data`` in a suite file, none here, where the data carry them."""
    templates: Words = ("{}",)
    """Prompts of a zero-shot head, ``{}`` standing for the class."""
    wordings: dict[str, Words] = Field(default_factory=dict)
    """What stands in a prompt for a class, where its name does not describe it well; with ``head: own``, what
    the checkpoint calls it."""
    labels: dict[int | str, str | None] | None = None
    """Class of each label found in the data; none drops its rows. Needed when the two differ."""
    keep: Words | None = None
    """Classes whose rows make up the task; the head keeps all classes. None keeps every row."""
    head: Literal["own", "zero-shot", "linear-probe"] = "zero-shot"
    metric: str = "accuracy"
    """One of ``METRICS``, or ``module:function``; more is better."""
    max_length: PositiveInt | None = None
    """Tokens that a text is cut to."""
    epochs: PositiveInt | None = None
    """Epochs of the usual fine-tuning recipe, where one is established."""

    @field_validator("metric")
    @classmethod
    def _known_metric(cls, name: str) -> str:
        return check_metric(name)

    @field_validator("names", mode="before")
    @classmethod
    def _names_from_data(cls, value: object) -> object:
        return None if value == "from-data" else value

    @field_serializer("names")
    def _as_in_a_file(self, names: Words | None) -> Words | str:
        return "from-data" if names is None else names

    @model_validator(mode="after")
    def _consistent(self) -> Self:
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

    def objective(self, backbone: "Backbone") -> "Classifying":
        from taskvec.tasks.loaders import head_for

        own = metric_called(self.metric, f"{self.name}: metric", self.data.folder)
        return Classifying(head_for(backbone, self), self.metric, self.max_length, own)

    def examples(self, split: SplitName, rows: Rows) -> Split:
        """Rows with their labels as places in the classes; dropped ones left out."""
        import torch

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

    def _class_of(self, label: int | float | str, classes: Sequence[str], rows: Rows, row: int) -> str | None:
        if isinstance(label, float):
            field = getattr(self.data, "label", "label")
            raise InputError(
                f"{rows.where(row)}: {field} {shown(label)}, expected a whole number or a class name"
            )
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


@dataclass(frozen=True, eq=False)
class Classifying(Objective):
    """The cross entropy of a frozen head's logits.

    Args:
        metric: one of ``METRICS``.
        max_length: tokens that a text is cut to.
        function: behind the metric's name; none for what ``METRICS`` has.
    """

    head: "Head"
    metric: str = "accuracy"
    max_length: int | None = None
    function: OwnMetric | None = None
    outputs: ClassVar = "features"

    def prepare(self, backbone: "Backbone", split: Split) -> "Examples":
        from taskvec.tasks.loaders import Examples

        return Examples(backbone, split, self.max_length)

    def check(self, name: str, split: Split) -> None:
        classes = len(self.head.classes)
        low, high = int(split.labels.min()), int(split.labels.max())
        if low < 0 or high >= classes:
            wrong = low if low < 0 else high
            raise InputError(f"{name}: label {wrong} is outside the head's {classes} classes")

    def loss(self, outputs: "Tensor", batch: Batch) -> "Tensor":
        from torch.nn.functional import cross_entropy

        return cross_entropy(self.head(outputs), batch.labels)

    def tally(self, outputs: "Tensor", batch: Batch) -> Tally:
        return {"logits": self.head(outputs), "labels": batch.labels}

    def score(self, tally: Tally) -> "ClassScore":
        return score(tally["logits"], tally["labels"], self.metric, self.function)

    def value(self, tally: Tally) -> float:
        return value(tally["logits"], tally["labels"], self.metric, self.function)

    def logits(self, outputs: "Tensor") -> "Tensor":
        logits: Tensor = self.head(outputs)
        return logits

    def at(self, params: Mapping[str, "Tensor"]) -> "Classifying":
        return replace(self, head=self.head.at(params))

    def moving(self, params: Mapping[str, "Tensor"]) -> "Classifying":
        return replace(self, head=self.head.moving(params))

    def fingerprint(self) -> str:
        return self.head.fingerprint()


@dataclass(frozen=True)
class ClassScore(Score):
    """All figures of a classifier on one split; fractions, not per cent."""

    metric: str
    """The task's own metric, of ``METRICS``: the one that ``value`` holds and that protocols compare."""
    value: float
    accuracy: float
    interval: tuple[float, float]
    """95 % Wilson interval of the accuracy."""
    macro_f1: float
    matthews: float
    perplexity: float
    """exp of the mean cross entropy of the labels."""
    recall: tuple[float | None, ...]
    """Per class, in class order; none for a class without examples."""
    examples: int

    intervals: dict[str, tuple[float, float] | None]
    """95 % of the other metrics, by the bootstrap; none where it finds none."""

    @property
    def value_interval(self) -> tuple[float, float] | None:
        return self.interval if self.metric == "accuracy" else self.intervals[self.metric]

    @property
    def beside(self) -> dict[str, str]:
        return {"accuracy": f"{100 * self.accuracy:.1f}", "macro-F1": f"{100 * self.macro_f1:.1f}"}


@checked
def score(
    logits: "Tensor", labels: "Tensor", metric: str = "accuracy", function: OwnMetric | None = None
) -> ClassScore:
    """Compare ``logits`` (N, C), any float dtype, with ``labels`` (N,), int64.

    Args:
        function: the metric, where the name stands for one of the user's own.

    Raises: InputError for no examples, or a metric that is not one of ``METRICS``.
    """
    from sklearn.metrics import recall_score  # imports as much as torch does: only what scores pays for it
    from torch.nn.functional import cross_entropy

    figures = {name: value(logits, labels, name) for name in _STANDARD}
    classes, predicted = logits.shape[1], logits.argmax(dim=1)
    recall = recall_score(
        labels.numpy(), predicted.numpy(), labels=list(range(classes)), average=None, zero_division=math.nan
    )
    loss = cross_entropy(logits.float(), labels).item()
    ranges: dict[str, Interval | None] = {
        **intervals.of_classes(labels.numpy(), predicted.numpy(), classes, intervals.FIGURES)
    }
    if metric not in _STANDARD:
        ranges[metric] = own_interval(function or metric_called(metric), labels, predicted)
    return ClassScore(
        metric=metric,
        value=value(logits, labels, metric, function),
        interval=wilson(round(figures["accuracy"] * len(labels)), len(labels)),
        perplexity=math.exp(min(loss, 700.0)),
        recall=tuple(None if math.isnan(r) else float(r) for r in recall),
        examples=len(labels),
        intervals=ranges,
        **figures,
    )


def value(logits: "Tensor", labels: "Tensor", metric: str, function: OwnMetric | None = None) -> float:
    """One metric of ``logits`` (N, C) against ``labels`` (N,), int64.

    Raises: InputError for no examples, or a metric that is not one of ``METRICS`` or raises; TaskvecError for
        one that gives no finite number.
    """
    if len(labels) == 0:
        raise InputError("nothing to score: the split is empty")
    return figure_of(metric, function or metric_called(metric), labels, logits.argmax(dim=1))
