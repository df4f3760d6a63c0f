"""Single examples: inputs that the sum got wrong and the task's own model right, kept for readers."""

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, field_validator, model_validator
from xxhash import xxh3_128_hexdigest

from taskvec.errors import CorruptFile
from taskvec.evaluation.evaluator import Evaluator
from taskvec.group import current
from taskvec.reading import parse_json, read_bytes, shortened
from taskvec.studies.addition import sum_of_all
from taskvec.studies.measured import search_inputs
from taskvec.studies.numerics.choosing import (
    How,
    Said,
    choose_classified,
    choose_regressed,
    sorts_of,
)
from taskvec.studies.numerics.thumbnails import SIGNATURE, thumbnail
from taskvec.studies.record import Plain, Record
from taskvec.studies.study import Results, Study
from taskvec.studies.trial import Cell, Trial
from taskvec.tasks.kinds.classification import Classifying
from taskvec.tasks.kinds.regression import Regressing
from taskvec.tasks.objective import Objective, Tally
from taskvec.turns import alone
from taskvec.writing import replace_text

FOLDER = "inspected"
USUAL = 12
"""Examples a task that the sum lost."""

_TEXT = 300
_PICTURE = 1 << 15
"""Bytes of a thumbnail; one of 64 × 64 pixels that are noise has 12 kB."""
_FILE = 1 << 25

Count = bool | Annotated[int, Field(ge=0, le=100)]


class Opinion(Record):
    """What a model says of an example, and the share that it gives to it."""

    says: str
    share: float | None = None


class Example(Record):
    """An input that somebody got wrong."""

    place: int
    """In the test split."""
    how: How
    label: str
    merge: Opinion
    single: Opinion
    text: str | None = Field(None, max_length=_TEXT)
    image: str | None = Field(None, max_length=_PICTURE * 4 // 3 + 4)
    """A PNG as base64."""

    @field_validator("image")
    @classmethod
    def _check_picture(cls, image: str | None) -> str | None:
        if image is not None and not b64decode(image, validate=True).startswith(SIGNATURE):
            raise ValueError("no PNG")
        return image

    @model_validator(mode="after")
    def _check_input(self) -> "Example":
        if (self.text is None) == (self.image is None):
            raise ValueError("needs a text or an image")
        return self


class Kept(Record):
    """The content of a file of examples."""

    format: Literal[1]
    tasks: dict[str, list[Example]]


class Inspection(Record):
    """How two models differ on the test examples of tasks, and the file that shows some of them."""

    cell = "inspected"
    coefficient: float
    file: str
    digest: str
    sorts: dict[str, dict[How, int]]
    """By task: how many there are of a sort; of tasks with classes."""
    examples: dict[str, int]
    left_out: dict[str, str]
    """Tasks that nothing is shown of, and why."""


class Inspect(Study[Count]):
    """Examples of every regime's sum, at its chosen coefficient and the first seed; ``false`` keeps none."""

    title = "Single examples"
    settings = Count
    default = USUAL

    def cells(self, trial: Trial) -> Iterator[Cell[Record]]:
        added = getattr(trial.experiment, "addition", None)
        if added is None or trial.seed != trial.experiment.seeds[0]:
            return
        most = USUAL if self.block is True else int(self.block)
        job = partial(_inspect, most=most)
        yield trial.cell(Inspection, job, trial.tasks, **search_inputs(trial.experiment.search), most=most)

    def facts(self, results: Results, regime: str, seed: int) -> Plain:
        found = results.of(Inspection, regime, seed)
        return {"inspected": found[0].model_dump(exclude={"file", "digest"})} if found else {}


def read_examples(folder: Path, inspection: Inspection) -> dict[str, list[Example]] | None:
    """The examples of a run folder's file, by task; none if it was removed.

    Raises: CorruptFile for a file that is not what the run wrote.
    """
    if not re.fullmatch("[0-9a-f]{32}", inspection.digest):
        raise CorruptFile(f"{folder}: the record of inspected examples names no file; remove it")
    path = folder / FOLDER / f"{inspection.digest}.json"
    if not path.exists():
        return None
    content = read_bytes(path, _FILE)
    remedy = "remove the file, and the page leaves its examples out"
    if xxh3_128_hexdigest(content) != inspection.digest:
        raise CorruptFile(f"{path}: was changed after a run wrote it; {remedy}")
    try:
        return Kept.model_validate(parse_json(content, str(path))).tasks
    except ValidationError:
        raise CorruptFile(f"{path}: holds something else than examples; {remedy}") from None


def _inspect(trial: Trial, most: int) -> Plain:
    """Measure the sum and every task's own model on test data, and keep some examples where they differ."""
    evaluator, alpha = trial.evaluator, sum_of_all(trial).coefficient
    fit = {task: _shown(evaluator.objective(task)) for task in trial.tasks}
    tasks = [task for task, reason in fit.items() if reason is None]
    point = trial.points.shared(trial.tasks, alpha)
    merged = {task: evaluator.tally(point, task, "test") for task in tasks}
    single = {task: evaluator.tally(trial.points.at({task: 1.0}), task, "test") for task in tasks}
    kept = {task: _examples(evaluator, task, merged[task], single[task], most) for task in tasks}
    content = json.dumps({"format": 1, "tasks": kept}, indent=1)
    digest = xxh3_128_hexdigest(content.encode())
    folder = trial.lab.store.folder / FOLDER
    folder.mkdir(exist_ok=True)
    if current().first:
        with alone(digest):  # equal examples are one file
            replace_text(folder / f"{digest}.json", content)
    return {
        "coefficient": alpha,
        "file": f"{FOLDER}/{digest}.json",
        "digest": digest,
        "sorts": {task: _sorts(merged[task], single[task]) for task in tasks if "logits" in merged[task]},
        "examples": {task: len(merged[task]["labels"]) for task in tasks},
        "left_out": {task: reason for task, reason in fit.items() if reason is not None},
    }


def _shown(objective: Objective) -> str | None:
    """Why nothing of a task is shown; none if there is something."""
    if isinstance(objective, Classifying | Regressing):
        return None
    return "it has no single right answer an input"


def _sorts(merge: Tally, single: Tally) -> dict[str, int]:
    return {how: len(rows) for how, rows in sorts_of(merge, single).items()}


def _examples(evaluator: Evaluator, task: str, merge: Tally, single: Tally, most: int) -> list[Plain]:
    objective = evaluator.objective(task)
    said = (
        choose_classified(merge, single, objective.head.classes, most)
        if isinstance(objective, Classifying)
        else choose_regressed(merge, single, most)
    )
    places = evaluator.order(task, "test")
    inputs = evaluator.split(task, "test").take(places[[each.row for each in said]])
    return [
        {"place": int(places[each.row]), **_told(each), **_shown_input(given)}
        for each, given in zip(said, inputs, strict=True)
    ]


def _told(said: Said) -> Plain:
    opinions = {"merge": said.merge, "single": said.single}
    return {
        "how": said.how,
        "label": said.label,
        **{name: {"says": says, "share": share} for name, (says, share) in opinions.items()},
    }


def _shown_input(given: Any) -> dict[str, str]:
    """A text or several cut to a readable length, or a small picture."""
    if isinstance(given, str):
        return {"text": _readable([given])}
    if isinstance(given, tuple | list):
        return {"text": _readable(given)}
    return {"image": b64encode(thumbnail(given)).decode()}


def _readable(texts: Sequence[str]) -> str:
    joined = " ‖ ".join(shortened(text, _TEXT // len(texts) - 3) for text in texts)
    return joined.encode("utf-8", "replace").decode()
