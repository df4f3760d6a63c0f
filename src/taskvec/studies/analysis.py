"""What an analysis is: what it is asked, what comes out, and how that is shown.

An analysis is one file here and one line in ``ANALYSES`` (``studies/__init__.py``). The file holds

- an :class:`Analysis`: its fields are the options of ``taskvec analyze NAME`` and its docstrings the help;
- an :class:`AnalysisRecord`: what ``record.json`` says, with its tables and figures.

The file imports neither torch nor matplotlib before it runs, so that the help costs nothing; what it computes
with tensors is in ``numerics/``.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic import Field

from taskvec.arguments import distinct
from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.place import Precision
from taskvec.progress import Watch
from taskvec.reports.tables import Table
from taskvec.studies.record import Record
from taskvec.tasks.source import SplitName

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.tasks.task import Task
    from taskvec.vectors import TaskVector

    Regimes = Mapping[str, Mapping[str, TaskVector]]
    """By regime, then by task."""

Say = Callable[[str], None]


class AnalysisRecord(Record):
    """All that decides an analysis, and what came out."""

    analysis: str
    given: dict[str, object] = Field(default_factory=dict, exclude=True)
    """Where the inputs came from, by the names that ``record.json`` has for them."""

    def tables(self) -> Iterable[Table]:
        """What a reader wants to know first."""
        raise NotImplementedError

    def figures(self) -> "Mapping[str, Figure]":
        """Figures by name; ``figure`` is the main one."""
        raise NotImplementedError


class Analysis(Config, use_attribute_docstrings=True, allow_inf_nan=True):
    """What is asked: the fields are options; ``vectors``, or else ``model``, is given without its name."""

    def measure(self, watch: Watch, say: Say) -> AnalysisRecord:
        """Do the work; ``say`` is told what a user should know of the inputs."""
        raise NotImplementedError


class AnalysisOfModel(Analysis):
    """An analysis of a pre-trained model, on tasks of a suite."""

    model: str
    """The pre-trained model: a known name (`taskvec models`), a folder, or a hub id."""
    suite: str
    """A shipped suite (`taskvec suites`) or a suite file."""
    device: str = "auto"
    """Where the model computes: `cpu`, `cuda`, `cuda:N`, `mps`, or `auto`: a CUDA device if there is one,
    else the CPU."""

    def load_evaluator(self, tasks: Iterable[str], **options: Any) -> "tuple[Evaluator, str]":
        """The model with the tasks, and the name of the suite.

        Args:
            **options: of the evaluator.

        Raises: UnknownName for a task that the suite lacks; InputError.
        """
        from taskvec.evaluation.evaluator import Evaluator
        from taskvec.models.loading import load_backbone
        from taskvec.tasks.suite import load_suite
        from taskvec.tasks.task import outputs_for

        suite = load_suite(self.suite)
        chosen = [suite.task(name) for name in tasks]
        check_classes(chosen)
        backbone = load_backbone(self.model, outputs_for(chosen), device=self.device)
        return Evaluator(backbone, chosen, **options), suite.name


class AnalysisOfVectors(AnalysisOfModel):
    """An analysis of vectors by regime and task, on a model with the tasks of a suite."""

    vectors: tuple[str, ...]
    """Task-vector files, each of one task."""
    split: SplitName = "test"
    """The examples looked at."""
    samples: int = Field(default=200, ge=1)
    """Examples of each task, the first ones."""
    batch_size: int = Field(default=64, ge=1)
    """Examples a forward pass."""
    precision: Precision = "float32"
    """`bf16` computes matrix products in bfloat16."""

    def open(self, say: Say, only: Sequence[str] = ()) -> "tuple[Evaluator, Regimes, dict[str, object]]":
        """The model on the tasks that every regime has a vector of, these vectors, and what was given.

        Args:
            only: the tasks, if some names are here.
        """
        regimes = _load_by_regime(self.vectors, say)
        tasks = _shared_tasks(regimes, only)
        options = self.model_dump(include={"batch_size", "precision"})
        evaluator, suite = self.load_evaluator(tasks, limits={self.split: self.samples}, **options)
        chosen = {regime: {task: vectors[task] for task in tasks} for regime, vectors in regimes.items()}
        files = {regime: {task: vectors[task].ref for task in tasks} for regime, vectors in regimes.items()}
        return evaluator, chosen, {"suite": suite, "vectors": files}


def check_classes(tasks: "Iterable[Task]") -> None:
    """Refuse tasks without classes, for what compares predictions of heads. Raises: InputError."""
    from taskvec.tasks.kinds.classification import Classification

    for task in tasks:
        if not isinstance(task, Classification):
            raise InputError(
                f"{task.name}: a task of kind {task.kind!r}, and this analysis compares predictions among "
                "classes; name tasks of kind 'classification'"
            )


def describe(evaluator: "Evaluator", tasks: Sequence[str], split: SplitName) -> dict[str, Any]:
    """What records say of the model and its data."""
    return {
        "model": evaluator.backbone.ref,
        "split": split,
        "examples": {task: len(evaluator.split(task, split)) for task in tasks},
        "data": {task: evaluator.task(task).fingerprint for task in tasks},
        "tasks": list(tasks),
    }


def sizes(examples: Iterable[int]) -> str:
    """How many examples tasks have, every number once."""
    return "–".join(map(str, sorted(set(examples))))


def _load_by_regime(paths: Iterable[str], say: Say) -> "dict[str, dict[str, TaskVector]]":
    """``{regime: {task: vector}}`` of files that state both; others are left out, which is said in one line.

    Raises: InputError for two vectors of the same task and regime, or when nothing is left.
    """
    from taskvec.vectors import TaskVector

    regimes: dict[str, dict[str, TaskVector]] = {}
    origin: dict[tuple[str, str], str] = {}
    left_out = []
    for path in paths:
        vector = TaskVector.load(path)
        task, regime = vector.info.task, vector.info.regime
        if task is None or regime is None or "+" in task or " (" in regime:
            left_out.append(path)
            continue
        if (regime, task) in origin:
            raise InputError(
                f"{origin[regime, task]} and {path}: both hold a {regime!r} vector of {task!r}; "
                "give one of them"
            )
        origin[regime, task] = path
        regimes.setdefault(regime, {})[task] = vector
    if left_out:
        say(f"left out, not a plain vector of one task: {', '.join(left_out)}")
    if not regimes:
        raise InputError("vectors: none is of a single task; train some with: taskvec train")
    return regimes


def _shared_tasks(regimes: "Regimes", only: Sequence[str] = ()) -> list[str]:
    """The tasks that every regime has a vector of, in the order given; ``only`` some of them if it names any.

    Raises: InputError if a regime lacks a task that another one has, or none has a task of ``only``.
    """
    known = list(dict.fromkeys(task for vectors in regimes.values() for task in vectors))
    for name in only:
        if name not in known:
            raise InputError(f"no vector of {name!r} is given, only of {', '.join(known)}")
    tasks = [task for task in known if not only or task in only]
    for regime, vectors in regimes.items():
        for task in tasks:
            if task not in vectors:
                raise InputError(
                    f"regime {regime!r} has no vector of {task!r}, and others have; give one, or leave the "
                    "regime or the task out"
                )
    return tasks


def load_labelled(paths: Collection[str]) -> "dict[str, TaskVector]":
    """Vectors of any kind under the shortest labels that tell them apart: task, task and regime, or path.

    Raises: InputError for a path given twice.
    """
    from taskvec.vectors import TaskVector

    vectors = {path: TaskVector.load(path) for path in distinct(paths, "vectors")}
    infos = [vector.info for vector in vectors.values()]
    tasks = [info.task for info in infos]
    for labels in (tasks, [info.task and f"{info.task} ({info.regime})" for info in infos]):
        if all(labels) and len(set(labels)) == len(labels):
            return dict(zip(map(str, labels), vectors.values(), strict=True))
    return vectors


def load_vector_of(path: str, task: str) -> "TaskVector":
    """A task vector of a task, or of none that it states, without NaN and infinity.

    Raises: InputError for one of another task; NonFinite.
    """
    import math

    from taskvec.errors import NonFinite
    from taskvec.vectors import TaskVector

    vector = TaskVector.load(path)
    if vector.info.task not in (None, task):
        raise InputError(f"{path}: a vector of {vector.info.task!r}, expected one of {task!r}")
    if not math.isfinite(vector.norm()):
        raise NonFinite(f"{path}: holds NaN or infinity; extract or train it again")
    return vector
