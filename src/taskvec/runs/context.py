"""What cells of a run work with: the model and its tasks, stored vectors, finished results."""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, lru_cache
from pathlib import Path

from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.metrics import absolute
from taskvec.evaluation.points import Points
from taskvec.models.loading import load_backbone
from taskvec.progress import Watch, unwatched
from taskvec.runs.store import Store, key_of
from taskvec.studies.study import Cell, Plain, Plan, R, recipe
from taskvec.training.finetune import finetune
from taskvec.training.regimes import regime_called
from taskvec.vectors import TaskVector
from taskvec.weights.staging import check_space


class RunContext:
    """The context of the cells of one experiment, in a run folder.

    The model is loaded when a result is first missing: what is on record needs nothing but its fingerprint.

    Args:
        store: of the run folder; cells on record there are taken from it.
    """

    def __init__(self, plan: Plan, store: Store, watch: Watch = unwatched) -> None:
        self.plan, self.watch = plan, watch
        self._store = store
        self.vectors = lru_cache(maxsize=1)(self._vectors)
        self.points = lru_cache(maxsize=1)(self._points)

    def begin(self, regime: str, seed: int) -> None:
        """Train what is missing of a regime's vectors, and forget what the one before it kept in memory."""
        self.points.cache_clear()
        self.vectors.cache_clear()
        self.vectors(regime, seed)

    @cached_property
    def evaluator(self) -> Evaluator:
        """The experiment's model and tasks, loaded on first use. Raises: InputError."""
        return Evaluator(
            load_backbone(self.plan.experiment.model),
            [self.plan.suite.task(name) for name in self.plan.digests],
            limits=self.plan.evaluation["limits"],
            batch_size=self.plan.experiment.evaluation_batch,
            precision=self.plan.evaluation["precision"],
        )

    def stored(self, cell: Cell[R]) -> Plain:
        """The cell's result as stored, computed if it is not on record."""
        known = self._store.has(cell.kind.cell, cell.inputs)
        result = self._store.result(cell.kind.cell, cell.inputs, lambda: cell.compute(self))
        if not known:
            self.watch(f"{cell.kind.cell.replace('_', '-')} {cell.label}", 1, 1)
        return result

    def result(self, cell: Cell[R]) -> R:
        """The same as a record."""
        return cell.kind.model_validate(self.stored(cell))

    def _vectors(self, regime: str, seed: int) -> dict[str, TaskVector]:
        return {task: self.vector(regime, seed, (task,)) for task in self.plan.tasks}

    def _points(self, regime: str, seed: int) -> Points:
        return self.points_of(regime, self.vectors(regime, seed))

    def points_of(self, regime: str, vectors: Mapping[str, TaskVector]) -> Points:
        """Edits by other vectors, in the regime's space."""
        return self.evaluator.points(vectors, space=self.plan.experiment.space(regime))

    def vector(self, regime: str, seed: int, tasks: Sequence[str], *, ascend: bool = False) -> TaskVector:
        """The vector trained on ``tasks`` together; of a post-hoc regime, the one that it evaluates."""
        trained = self.plan.experiment.trained(regime)

        def compute(checkpoint: Path) -> TaskVector:
            return finetune(
                self.evaluator.backbone,
                [self.evaluator.part(task) for task in tasks],
                regime=trained,
                settings=self.plan.experiment.settings(trained, seed),
                ascend=ascend,
                checkpoint=checkpoint,
                validate=lambda vector: {"validation": self._validate(trained, vector, tasks)},
                watch=self.watch,
            )

        name = f"{'ascent-' if ascend else ''}{'+'.join(tasks)}"
        more = {"ascend": True} if ascend else {}
        return self.train(trained, seed, tasks, name, compute, **more)

    def _validate(self, regime: str, vector: TaskVector, tasks: Sequence[str]) -> float:
        points = self.evaluator.points({"tau": vector}, space=regime_called(regime).space)
        return absolute(self.evaluator.values(points.at({"tau": 1.0}), tasks, "validation"))

    def train(
        self,
        regime: str,
        seed: int,
        tasks: Sequence[str],
        name: str,
        compute: Callable[[Path], TaskVector],
        **inputs: object,
    ) -> TaskVector:
        """The stored vector of these inputs, else what ``compute`` returns, given a path for checkpoints."""
        experiment, folder = self.plan.experiment, self._store.folder
        decisive = {
            "model": self.plan.model,
            "train_limit": experiment.limits.get("train"),
            "tasks": self.plan.fingerprints(tasks),
            "regime": regime,
            "settings": recipe(experiment.settings(regime, seed)),
            **inputs,
        }
        key = key_of("vector", decisive)
        name = name if len(name.encode()) <= 200 else "many"  # the key tells them apart
        path = folder / "vectors" / f"seed{seed}" / _folder(regime) / f"{name}-{key[:8]}.safetensors"
        checkpoint = folder / "partial" / f"{name}-{key[:8]}.pt"

        def make() -> dict[str, str]:
            check_space(path, sum(value.nbytes for value in self.evaluator.pretrained.values()))
            path.parent.mkdir(parents=True, exist_ok=True)
            compute(checkpoint).save(path, force=True)
            return {"file": str(path.relative_to(folder))}

        if self._store.has("vector", decisive) and not path.exists():
            make()  # the record outlived its file; training is deterministic, so the record still holds
        self._store.result("vector", decisive, make)
        return TaskVector.load(path)


def _folder(regime: str) -> str:
    """The regime as the name of a folder, which a pattern may be none of."""
    return regime if re.fullmatch(r"[\w-]+", regime) else f"pattern-{key_of('regime', {'name': regime})[:8]}"
