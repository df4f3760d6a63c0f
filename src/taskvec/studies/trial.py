"""Cells, and what they work with: the model and its tasks, stored vectors, finished results."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Generic, TypeVar

from taskvec.errors import InputError, TaskvecError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.metrics import absolute
from taskvec.evaluation.points import Points
from taskvec.group import current
from taskvec.models.loading import load_backbone
from taskvec.models.own import is_own
from taskvec.place import describe_device
from taskvec.progress import Watch
from taskvec.studies.experiment import Experiment
from taskvec.studies.given import digest_of, load_given
from taskvec.studies.record import Plain, R, Record
from taskvec.studies.store import Records, key_of
from taskvec.tasks.suite import Suite
from taskvec.tasks.task import outputs_for
from taskvec.training.finetune import finetune
from taskvec.training.logs import Log, recording, replay
from taskvec.training.penalties.factors import told_of_files
from taskvec.training.penalties.settings import foreign, with_files
from taskvec.training.regimes import Regime
from taskvec.training.settings import TrainSettings
from taskvec.vectors import TaskVector
from taskvec.vectors.combining import bind_all
from taskvec.weights import open_weights
from taskvec.weights.staging import check_space

R_co = TypeVar("R_co", bound=Record, covariant=True)


@dataclass(frozen=True)
class Cell(Generic[R_co]):
    """A job whose result is stored and never computed twice.

    Args:
        kind: of its result.
        label: names it in progress messages.
        inputs: everything that decides the result, every argument of the job included; with ``kind.cell`` the
            key, so that two cells with equal inputs are taken for one.
        compute: the job; it may be pickled, so a function of a module, or a ``partial`` of one.
        instead: what stands in for its result if the job fails, and is not stored; without it the run ends.
    """

    kind: type[R_co]
    label: str
    inputs: Plain
    compute: "Callable[[Trial], Plain]"
    instead: "Callable[[TaskvecError], Plain] | None" = None


@dataclass(frozen=True)
class Plan:
    """An experiment whose model and data are there.

    Args:
        model: the base model's fingerprint.
        digests: fingerprint of every task that is trained or measured.
        compared: tasks whose zero-shot figures a reader wants.
    """

    experiment: Experiment
    suite: Suite
    model: str
    digests: Mapping[str, str]
    compared: Sequence[str]

    @cached_property
    def tasks(self) -> list[str]:
        """The tasks whose vectors are studied."""
        return self.experiment.task_names(self.suite)

    @cached_property
    def metrics(self) -> dict[str, str]:
        """The metric of each task whose vector is studied."""
        return {name: self.suite.task(name).metric for name in self.tasks}

    @cached_property
    def evaluation(self) -> dict[str, Any]:
        """The inputs of every cell."""
        return {
            "model": self.model,
            "limits": {str(split): limit for split, limit in self.experiment.limits.items()},
            "precision": TrainSettings.parse("training", self.experiment.training).precision,
        }

    def fingerprints(self, tasks: Iterable[str]) -> dict[str, str]:
        """By task."""
        return {task: self.digests[task] for task in tasks}


@dataclass(frozen=True)
class Lab:
    """A plan at work in a run folder; its model is loaded when a result is first missing."""

    plan: Plan
    store: Records
    watch: Watch

    @cached_property
    def given(self) -> dict[str, TaskVector]:
        """The vectors that are there already, by task. Raises: InputError."""
        return load_given(self.plan.experiment.vectors)

    @cached_property
    def digests(self) -> dict[str, str]:
        """Of these vectors."""
        return {task: digest_of(vector) for task, vector in self.given.items()}

    @cached_property
    def files(self) -> dict[str, str]:
        """What the files of statistics hold that are read in place of tasks; by path."""
        return {}

    def holding(self, path: str) -> str:
        """The digest of a file of statistics. Raises: InputError."""
        if path not in self.files:
            self.files[path] = key_of("statistics", told_of_files([path])[path])
        return self.files[path]

    @cached_property
    def evaluator(self) -> Evaluator:
        """The experiment's model and tasks. Raises: InputError."""
        experiment = self.plan.experiment
        tasks = [self.plan.suite.task(name) for name in self.plan.digests]
        backbone = load_backbone(experiment.checkpoint, outputs_for(tasks), device=experiment.device)
        self.store.device = describe_device(backbone.device)
        if is_own(experiment.model) and open_weights(backbone.source).fingerprint() != self.plan.model:
            raise InputError(
                f"{experiment.model}: gives other weights at every call, expected the same; call "
                "torch.manual_seed before they are drawn, or load them from a file"
            )
        return Evaluator(
            backbone,
            tasks,
            limits=self.plan.evaluation["limits"],
            batch_size=experiment.evaluation_batch,
            precision=self.plan.evaluation["precision"],
            watch=self.watch,
        )


class Trial:
    """One regime of an experiment at one seed: what its cells say of themselves, and what they work with."""

    def __init__(self, lab: Lab, regime: str, seed: int) -> None:
        self.lab, self.regime, self.seed = lab, regime, seed
        self.plan, self.experiment, self.tasks = lab.plan, lab.plan.experiment, lab.plan.tasks
        self.space = self.experiment.space(regime)
        self.trains = self.experiment.regime(regime)

    def cell(
        self, kind: type[R], compute: "Callable[[Trial], Plain]", tasks: Sequence[str], **inputs: object
    ) -> Cell[R]:
        """A cell about vectors of the regime, with what decides its result beside ``inputs``.

        Args:
            tasks: those whose data decide the result; they name the cell in messages, too.
        """
        decisive = {**self.decisive(tasks), **inputs}
        return Cell(kind, f"{self.regime} {'+'.join(tasks)}", decisive, compute)

    def decisive(self, tasks: Sequence[str]) -> dict[str, object]:
        """What decides these tasks' vectors and what is measured with them."""
        return {
            **self.plan.evaluation,
            "regime": self.regime,
            "training": self._recipe(),
            "tasks": self.plan.fingerprints(tasks),
            **self._own_settings(tasks),
            **self._read_by(tasks),
        }

    @property
    def settings(self) -> TrainSettings:
        """How the regime's vectors are trained, but for tasks with settings of their own."""
        return self.experiment.settings(self.regime, self.seed)

    def _recipe(self) -> dict[str, Any]:
        """For the key of a cell, how the regime's vectors are trained, but for tasks with settings of their
        own."""
        return recipe(self.settings, self.trains, self.lab.holding)

    def _own_settings(self, tasks: Sequence[str]) -> dict[str, object]:
        """For the key of a cell on these tasks, what their vectors are trained with besides."""
        given = self.experiment.per_task
        own = {
            task: {**given[task], **_held(given[task], self.lab.holding)} for task in tasks if task in given
        }
        ready = {task: digest for task, digest in self.lab.digests.items() if task in tasks}
        return {**({"per_task": own} if own else {}), **({"vectors": ready} if ready else {})}

    def _read_by(self, tasks: Sequence[str]) -> dict[str, object]:
        """For the key of a cell on these tasks, those whose inputs the penalties of their vectors use."""
        others = {other for task in tasks for other in self.references(task)}
        return {"references": self.plan.fingerprints(sorted(others))} if others else {}

    def stored(self, cell: Cell[R]) -> Plain:
        """The cell's result as stored, computed if it is not on record."""
        return self.lab.store.result(cell.kind.cell, cell.inputs, lambda: cell.compute(self))

    def result(self, cell: Cell[R]) -> R:
        """The same as a record."""
        return cell.kind.model_validate(self.stored(cell))

    @property
    def keep(self) -> Path:
        """A folder for what penalties measure once, for all trainings of the run."""
        return self.lab.store.folder / "statistics"

    @property
    def evaluator(self) -> Evaluator:
        """The experiment's model and tasks."""
        return self.lab.evaluator

    @cached_property
    def vectors(self) -> dict[str, TaskVector]:
        """The vector of each task that is studied, trained if it is not there."""
        return {task: self.vector(task) for task in self.tasks}

    @cached_property
    def points(self) -> Points:
        """Edits by these vectors, in the regime's space."""
        return self.points_of(self.vectors)

    def points_of(self, vectors: Mapping[str, TaskVector]) -> Points:
        """Edits by other vectors, in the regime's space."""
        return self.evaluator.points(vectors, space=self.space)

    def joint_vector(self, told: Log | None = None) -> TaskVector:
        """The vector trained on all tasks together, for as long as each of their own vectors, summed up."""
        steps = self.settings.steps
        return self.vector(*self.tasks, steps=steps and steps * len(self.tasks), told=told)

    def vector(
        self,
        *tasks: str,
        ascend: bool = False,
        steps: int | None = None,
        settings: Mapping[str, float] | None = None,
        combiner: Mapping[str, Any] | None = None,
        told: Log | None = None,
    ) -> TaskVector:
        """The vector trained on tasks together; of a post-hoc regime, the one that it evaluates.

        Args:
            steps, settings: in place of the regime's.
            combiner: of the tasks' gradients, with its parameters.
            told: see :meth:`train`.
        """
        trained = self.experiment.trained(self.regime)
        if trained != self.regime:
            there = Trial(self.lab, trained, self.seed)
            return there.vector(
                *tasks, ascend=ascend, steps=steps, settings=settings, combiner=combiner, told=told
            )
        if len(tasks) == 1 and tasks[0] in self.lab.given and not ascend:
            [vector] = bind_all([self.lab.given[tasks[0]]], self.evaluator.backbone.source)
            return vector
        changed = {**(settings or {}), **({"steps": steps} if steps else {})}

        def validate(vector: TaskVector) -> dict[str, float]:
            point = self.points_of({"tau": vector}).at({"tau": 1.0})
            return {"validation": absolute(self.evaluator.values(point, tasks, "validation"))}

        def compute(checkpoint: Path, log: Log | None) -> TaskVector:
            return finetune(
                self.evaluator.backbone,
                [self.evaluator.part(task) for task in tasks],
                regime=self.trains,
                settings=self.experiment.settings(self.regime, self.seed, *tasks).model_copy(update=changed),
                combiner=combiner,
                ascend=ascend,
                checkpoint=checkpoint,
                validate=validate,
                references=[self.evaluator.part(task) for task in self.references(*tasks)],
                keep=self.keep,
                watch=self.lab.watch,
                log=log,
            )

        name = "+".join(tasks)
        more: dict[str, object] = {**changed, **(self._own_settings(tasks) if len(tasks) == 1 else {})}
        if others := self.references(*tasks):
            more["references"] = self.plan.fingerprints(others)
        if ascend:
            more["ascend"] = True
        if combiner:
            more["combiner"] = dict(combiner)
        return self.train(f"ascent-{name}" if ascend else name, compute, tasks, told=told, **more)

    def _searched(self, tasks: Sequence[str]) -> dict[str, object]:
        """For the key of a vector, what a search for its learning rate reads besides the tasks."""
        if self.experiment.settings(self.regime, self.seed, *tasks).lr != "auto":
            return {}
        return {"validation_limit": self.experiment.limits.get("validation")}

    def references(self, *tasks: str) -> list[str]:
        """The tasks beside these whose inputs their penalties use; none where no penalty uses any."""
        penalties = self.experiment.settings(self.regime, self.seed, *tasks).penalty
        return [task for task in self.tasks if task not in tasks] if foreign(penalties) else []

    def train(
        self,
        name: str,
        compute: "Callable[[Path, Log | None], TaskVector]",
        tasks: Sequence[str],
        told: Log | None = None,
        **inputs: object,
    ) -> TaskVector:
        """The stored vector of these inputs, else what ``compute`` makes, given a path for checkpoints and a
        log.

        Args:
            told: called with the figures of every step when all are done, whenever that was.
        """
        store, decisive = (
            self.lab.store,
            {
                "model": self.plan.model,
                "train_limit": self.experiment.limits.get("train"),
                "tasks": self.plan.fingerprints(tasks),
                "regime": self.regime,
                "settings": self._recipe(),
                **self._searched(tasks),
                **inputs,
            },
        )
        key = key_of("vector", decisive)
        name = name if len(name.encode()) <= 200 else "many"  # the key tells them apart
        place = Path(f"seed{self.seed}", folder_of(self.regime))
        home, stem = store.folder / "vectors" / place, f"{name}-{key[:8]}"
        path, lines = home / f"{stem}.safetensors", store.folder / "logs" / place / f"{stem}.jsonl"

        def make() -> dict[str, str]:
            check_space(path, sum(value.nbytes for value in self.evaluator.pretrained.values()))
            home.mkdir(parents=True, exist_ok=True)
            with recording(
                lines if current().first else None,
                self.experiment.log_to if current().first else (),
                folder=store.folder / "logs",
                project=self.experiment.name,
                name=f"{place}/{name}",
                config=decisive,
            ) as log:
                vector = compute(store.folder / "partial" / f"{stem}.pt", log)
            if current().first:
                vector.save(path, force=True)
            return {"file": str(path.relative_to(store.folder))}

        store.result("vector", decisive, make, partial(store.files.fetch, path))
        if told is not None:
            replay(lines, told)
        return TaskVector.load(path)


def recipe(
    settings: TrainSettings, regime: Regime | None = None, holding: Callable[[str], str] = str
) -> dict[str, Any]:
    """What decides a training, for the key of a cell.

    Args:
        holding: what a file of statistics, by its path, holds.

    A setting younger than runs that are on record is left out at its default, so that they keep their keys;
    and so is what the name of a regime tells.
    """
    young = {"decay_towards"} if settings.decay_towards == "zero" else set[str]()
    details = {} if regime is None else regime.details()
    told = settings.told(but={"validations", "checkpoint_activations", *young})
    return {**told, **_held(told, holding), **details}


def _held(given: Mapping[str, Any], holding: Callable[[str], str]) -> dict[str, Any]:
    """The penalties of settings, with what files hold in the place of their paths."""
    return {"penalty": with_files(given["penalty"], holding)} if "penalty" in given else {}


def folder_of(regime: str) -> str:
    """The regime as the name of a folder, which a pattern may be none of."""
    return regime if re.fullmatch(r"[\w-]+", regime) else f"pattern-{key_of('regime', {'name': regime})[:8]}"
