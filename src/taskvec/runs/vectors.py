"""The vectors of an experiment: from their files where a run holds them, else from training."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.metrics import absolute
from taskvec.runs.experiment import Experiment
from taskvec.progress import Watch, unwatched
from taskvec.runs.store import Store, key_of
from taskvec.studies.study import recipe
from taskvec.training.atm import atm
from taskvec.training.finetune import finetune
from taskvec.training.regimes import regime_called
from taskvec.training.settings import TrainSettings
from taskvec.vectors import TaskVector, combine
from taskvec.weights.staging import check_space


class Vectors:
    """Trains what is missing, once.

    Args:
        evaluator: gives that of the experiment's model and tasks; called when something is trained.
        store: of the run folder.
        model: the base model's fingerprint.
        digests: fingerprint of every task.
    """

    def __init__(
        self,
        experiment: Experiment,
        evaluator: Callable[[], Evaluator],
        store: Store,
        *,
        model: str,
        digests: Mapping[str, str],
        watch: Watch = unwatched,
    ) -> None:
        self._experiment, self._evaluator, self._store, self._watch = experiment, evaluator, store, watch
        self._model, self._digests = model, digests

    def of(self, regime: str, seed: int, tasks: Sequence[str], ascend: bool = False) -> TaskVector:
        """The vector trained on ``tasks`` together; of a post-hoc regime, the ordinary one it evaluates."""
        trained = self._experiment.trained(regime)
        settings = self._experiment.settings(trained, seed)
        inputs = self._inputs(trained, tasks, settings, {"ascend": ascend} if ascend else {})
        name = f"{'ascent-' if ascend else ''}{'+'.join(tasks)}"

        def compute(checkpoint: Path) -> TaskVector:
            return finetune(
                self._evaluator().backbone,
                [self._evaluator().part(task) for task in tasks],
                regime=trained,
                settings=settings,
                ascend=ascend,
                checkpoint=checkpoint,
                validate=lambda vector: {"validation": self._validated(trained, vector, tasks)},
                watch=self._watch,
            )

        return self._stored(trained, seed, name, inputs, compute)

    def atm(self, regime: str, seed: int, tasks: Sequence[str], rounds: int) -> TaskVector:
        """The displacement of ATM in so many rounds on ``tasks``."""
        block = self._experiment.atm
        assert block is not None
        if rounds == 1:  # tuning apart and merging once: the vectors are there already
            vectors = [self.of(regime, seed, (task,)) for task in tasks]
            return block.scale * combine(block.rule, vectors)
        settings = self._experiment.settings(regime, seed)
        chosen = {"rounds": rounds, "rule": block.rule, "scale": block.scale}

        def compute(checkpoint: Path) -> TaskVector:
            return atm(
                self._evaluator().backbone,
                [self._evaluator().part(task) for task in tasks],
                rounds=rounds,
                regime=regime,
                settings=settings,
                rule=block.rule,
                scale=block.scale,
                checkpoint=checkpoint,
                watch=self._watch,
            )

        inputs = self._inputs(regime, tasks, settings, chosen)
        return self._stored(regime, seed, f"atm{rounds}", inputs, compute)

    def _validated(self, regime: str, vector: TaskVector, tasks: Sequence[str]) -> float:
        points = self._evaluator().points({"tau": vector}, space=regime_called(regime).space)
        return absolute(self._evaluator().values(points.at({"tau": 1.0}), tasks, "validation"))

    def _inputs(
        self, regime: str, tasks: Sequence[str], settings: TrainSettings, more: Mapping[str, object]
    ) -> dict[str, object]:
        return {
            "model": self._model,
            "train_limit": self._experiment.limits.get("train"),
            "tasks": {task: self._digests[task] for task in tasks},
            "regime": regime,
            "settings": recipe(settings),
            **more,
        }

    def _stored(
        self,
        regime: str,
        seed: int,
        name: str,
        inputs: Mapping[str, object],
        compute: Callable[[Path], TaskVector],
    ) -> TaskVector:
        key = key_of("vector", inputs)
        name = name if len(name.encode()) <= 200 else "many"  # the key tells them apart
        home = self._store.folder / "vectors" / f"seed{seed}" / _folder(regime)
        path = home / f"{name}-{key[:8]}.safetensors"
        checkpoint = self._store.folder / "partial" / f"{name}-{key[:8]}.pt"

        def make() -> dict[str, str]:
            check_space(path, sum(value.nbytes for value in self._evaluator().pretrained.values()))
            path.parent.mkdir(parents=True, exist_ok=True)
            compute(checkpoint).save(path, force=True)
            return {"file": str(path.relative_to(self._store.folder))}

        if self._store.has("vector", inputs) and not path.exists():
            make()  # the record outlived its file; training is deterministic, so the record still holds
        self._store.result("vector", inputs, make)
        return TaskVector.load(path)


def _folder(regime: str) -> str:
    """The regime as the name of a folder, which a pattern may be none of."""
    return regime if re.fullmatch(r"[\w-]+", regime) else f"pattern-{key_of('regime', {'name': regime})[:8]}"
