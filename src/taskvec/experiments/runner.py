"""From an experiment to its results: every cell computed once, in an order that a reader would choose."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from taskvec.evaluation.addition import addition, single_task, subsets
from taskvec.evaluation.analogy import analogy
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.metrics import absolute, majority, normalized
from taskvec.evaluation.negation import negation
from taskvec.evaluation.points import Points
from taskvec.evaluation.search import maximize
from taskvec.experiments.config import Experiment
from taskvec.models.loading import load_backbone
from taskvec.progress import Watch, unwatched
from taskvec.reports.store import Store, key_of
from taskvec.tasks.suite import Suite
from taskvec.training.atm import atm
from taskvec.training.finetune import finetune
from taskvec.training.settings import TrainSettings
from taskvec.vectors import TaskVector, combine, similarity
from taskvec.weights import open_weights
from taskvec.weights.staging import check_space

Result = dict[str, Any]


class Runner:
    """Runs an experiment in a run folder.

    Args:
        store: of the run folder; cells on record there are taken from it.

    Raises: InputError for a model, or the data of a task, that is not to be had; the folder is not touched.
    """

    def __init__(self, experiment: Experiment, suite: Suite, store: Store, watch: Watch = unwatched) -> None:
        self.experiment, self.suite, self.store, self.watch = experiment, suite, store, watch
        self.tasks = experiment.task_names(suite)
        involved = experiment.involved(suite)
        self.backbone = load_backbone(experiment.model)
        precision = TrainSettings.parse("training", experiment.training).precision
        self.evaluator = Evaluator(
            self.backbone,
            [suite.task(name) for name in involved],
            limits={str(split): limit for split, limit in experiment.limits.items()},
            batch_size=experiment.evaluation_batch,
            precision=precision,
        )
        self._common = {
            "model": open_weights(self.backbone.ref).fingerprint(),
            "limits": {str(split): limit for split, limit in experiment.limits.items()},
            "precision": precision,
        }
        self._digests = {task: suite.task(task).fingerprint for task in involved}

    def run(self) -> Result:
        """All results, nested as reports read them."""
        found: Result = {
            "experiment": self.experiment.model_dump(mode="json", by_alias=True),
            "tasks": self.tasks,
            "model": self._common["model"],
            "zero_shot": {task: self._zero_shot(task) for task in self._mentioned()},
            "seeds": {},
        }
        for seed in self.experiment.seeds:
            found["seeds"][str(seed)] = {
                regime: self._regime(regime, seed) for regime in self.experiment.regimes
            }
        shutil.rmtree(self.store.folder / "partial", ignore_errors=True)
        return found

    def _regime(self, regime: str, seed: int) -> Result:
        """Everything about one regime at one seed."""
        vectors = {task: self._vector(regime, seed, (task,)) for task in self.tasks}
        points = self.evaluator.points(vectors)
        single = self._cell(
            "single",
            regime,
            seed,
            self.tasks,
            {},
            lambda: single_task(self.evaluator, points, self.tasks),
        )
        found: Result = {
            "single": single,
            "norms": {task: vector.norm() for task, vector in vectors.items()},
            "cosine": similarity(list(vectors.values())).tolist(),
            "addition": self._additions(regime, seed, points, single),
        }
        if self.experiment.joint:
            found["joint"] = self._joint(regime, seed, single)
        if self.experiment.atm and regime in (self.experiment.atm.regimes or self.experiment.regimes):
            found["atm"] = [self._atm(regime, seed, rounds, single) for rounds in self.experiment.atm.rounds]
        if self.experiment.negation and regime in (
            self.experiment.negation.regimes or self.experiment.regimes
        ):
            found["negation"] = [
                self._negation(regime, seed, target) for target in self.experiment.negation.targets
            ]
        if self.experiment.analogies:
            found["analogies"] = [
                self._analogy(regime, seed, number) for number in range(len(self.experiment.analogies))
            ]
        return found

    # Cells

    def _zero_shot(self, task: str) -> Result:
        inputs = {**self._common, "tasks": self._fingerprints([task])}

        def compute() -> Result:
            labels = self.evaluator.split(task, "test").labels
            return {
                "majority": majority(labels),
                **{
                    split: self.evaluator.score(self.evaluator.pretrained, task, split).record()
                    for split in ("validation", "test")
                },
            }

        return self._said("zero_shot", task, inputs, compute)

    def _additions(
        self, regime: str, seed: int, points: Points, single: Mapping[str, Mapping[str, float]]
    ) -> list[Result]:
        if self.experiment.addition is None:
            return []
        found = []
        block = self.experiment.addition
        which = block.subsets if regime in (block.regimes or self.experiment.regimes) else "whole"
        for chosen in subsets(self.tasks, which):
            whole = len(chosen) == len(self.tasks)
            fixed = {"1": 1.0, "1/T": 1 / len(chosen)} if whole else {}
            settings = {"grid": self.experiment.search.model_dump(), "fixed": fixed}

            def compute(chosen: tuple[str, ...] = chosen, fixed: dict[str, float] = fixed) -> Result:
                return addition(self.evaluator, points, chosen, single, self.experiment.search, fixed)

            found.append(self._cell("addition", regime, seed, chosen, settings, compute))
        return found

    def _joint(self, regime: str, seed: int, single: Mapping[str, Mapping[str, float]]) -> Result:
        def compute() -> Result:
            vector = self._vector(regime, seed, tuple(self.tasks))
            params = self.evaluator.points({"joint": vector}).at({"joint": 1.0})
            return self._measured(self.evaluator.values(params, self.tasks, "test"), single)

        return self._cell("joint", regime, seed, self.tasks, {}, compute)

    def _atm(self, regime: str, seed: int, rounds: int, single: Mapping[str, Mapping[str, float]]) -> Result:
        """ATM as it is, and with its whole displacement rescaled on validation data."""
        assert self.experiment.atm is not None
        rule, scale = self.experiment.atm.rule, self.experiment.atm.scale
        # A mean of T vectors may have to be scaled back to their sum.
        limit = max(self.experiment.search.limit, float(len(self.tasks)))
        grid = self.experiment.search.model_copy(update={"limit": limit})
        settings = {"rounds": rounds, "rule": rule, "scale": scale, "grid": grid.model_dump()}

        def compute() -> Result:
            points = self.evaluator.points({"atm": self._atm_vector(regime, seed, rounds)})
            found = maximize(
                lambda values: normalized(values, single["validation"]),
                lambda alpha: self.evaluator.values(points.at({"atm": alpha}), self.tasks, "validation"),
                grid,
            )
            plain = self.evaluator.values(points.at({"atm": 1.0}), self.tasks, "test")
            tuned = self.evaluator.values(points.at({"atm": found.coefficient}), self.tasks, "test")
            return {
                "rounds": rounds,
                "plain": self._measured(plain, single),
                "tuned": {**self._measured(tuned, single), **found.record(), "remark": found.remark},
            }

        return self._cell("atm", regime, seed, self.tasks, settings, compute)

    def _negation(self, regime: str, seed: int, target: str) -> Result:
        block = self.experiment.negation
        assert block is not None
        controls = self.experiment.controls(self.suite, target)
        settings = {
            "grid": self.experiment.search.model_dump(),
            "controls": controls,
            **block.model_dump(include={"keep", "baselines"}, mode="json"),
        }

        def compute() -> Result:
            vectors = {"fine-tuned": self._vector(regime, seed, (target,))}
            if "random" in block.baselines:
                vectors["random"] = TaskVector.random_like(vectors["fine-tuned"], seed=seed)
            if "ascent" in block.baselines:
                vectors["ascent"] = self._vector(regime, seed, (target,), ascend=True)
            return negation(
                self.evaluator,
                self.evaluator.points(vectors),
                target,
                controls,
                subtract=[label for label in ("fine-tuned", "random") if label in vectors],
                measure=[label for label in ("fine-tuned", "ascent") if label in vectors],
                grid=self.experiment.search,
                keep=block.keep,
            )

        return self._cell("negation", regime, seed, [target, *controls], settings, compute)

    def _analogy(self, regime: str, seed: int, number: int) -> Result:
        block = self.experiment.analogies[number]
        trained = {block.a, block.b, block.c} | ({block.target} if block.reference else set())
        settings = {"grid": self.experiment.search.model_dump(), **block.model_dump(mode="json")}

        def compute() -> Result:
            vectors = {task: self._vector(regime, seed, (task,)) for task in sorted(trained)}
            return analogy(
                self.evaluator,
                self.evaluator.points(vectors),
                a=block.a,
                b=block.b,
                c=block.c,
                target=block.target,
                coefficients=block.coefficients,
                reference=block.target if block.reference else None,
                grid=self.experiment.search,
            )

        return self._cell("analogy", regime, seed, sorted({*trained, block.target}), settings, compute)

    # Vectors

    def _vector(self, regime: str, seed: int, tasks: tuple[str, ...], ascend: bool = False) -> TaskVector:
        """A trained vector: from its file when the run holds it, else from training."""
        settings = self.experiment.settings(regime, seed)
        inputs = self._training_inputs(regime, tasks, settings, {"ascend": ascend} if ascend else {})
        name = f"{'ascent-' if ascend else ''}{'+'.join(tasks)}"

        def compute(checkpoint: Path) -> TaskVector:
            return finetune(
                self.backbone,
                [self.evaluator.part(task) for task in tasks],
                regime=regime,
                settings=settings,
                ascend=ascend,
                checkpoint=checkpoint,
                validate=lambda vector: {
                    "validation": absolute(
                        self.evaluator.values(
                            self.evaluator.points({"tau": vector}).at({"tau": 1.0}), tasks, "validation"
                        )
                    )
                },
                watch=self.watch,
            )

        return self._stored(regime, seed, name, inputs, compute)

    def _atm_vector(self, regime: str, seed: int, rounds: int) -> TaskVector:
        block = self.experiment.atm
        assert block is not None
        if rounds == 1:  # tuning apart and merging once: the vectors are there already
            vectors = [self._vector(regime, seed, (task,)) for task in self.tasks]
            return block.scale * combine(block.rule, vectors)
        settings = self.experiment.settings(regime, seed)
        chosen = {"rounds": rounds, "rule": block.rule, "scale": block.scale}

        def compute(checkpoint: Path) -> TaskVector:
            return atm(
                self.backbone,
                [self.evaluator.part(task) for task in self.tasks],
                rounds=rounds,
                regime=regime,
                settings=settings,
                rule=block.rule,
                scale=block.scale,
                checkpoint=checkpoint,
                watch=self.watch,
            )

        inputs = self._training_inputs(regime, self.tasks, settings, chosen)
        return self._stored(regime, seed, f"atm{rounds}", inputs, compute)

    def _training_inputs(
        self, regime: str, tasks: Sequence[str], settings: TrainSettings, more: Mapping[str, object]
    ) -> dict[str, object]:
        return {
            "model": self._common["model"],
            "train_limit": self.experiment.limits.get("train"),
            "tasks": self._fingerprints(tasks),
            "regime": regime,
            "settings": settings.model_dump(exclude={"validations"}),
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
        path = self.store.folder / "vectors" / f"seed{seed}" / regime / f"{name}-{key[:8]}.safetensors"
        checkpoint = self.store.folder / "partial" / f"{name}-{key[:8]}.pt"

        def make() -> Result:
            check_space(path, sum(value.nbytes for value in self.evaluator.pretrained.values()))
            path.parent.mkdir(parents=True, exist_ok=True)
            compute(checkpoint).save(path, force=True)
            return {"file": str(path.relative_to(self.store.folder))}

        if self.store.has("vector", inputs) and not path.exists():
            make()  # the record outlived its file; training is deterministic, so the record still holds
        self.store.result("vector", inputs, make)
        return TaskVector.load(path)

    # Helpers

    def _cell(
        self,
        cell: str,
        regime: str,
        seed: int,
        tasks: Sequence[str],
        settings: Mapping[str, object],
        compute: Callable[[], Mapping[str, object]],
    ) -> Result:
        inputs = {
            **self._common,
            "regime": regime,
            "training": self.experiment.settings(regime, seed).model_dump(exclude={"validations"}),
            "tasks": self._fingerprints(tasks),
            **settings,
        }
        return self._said(cell, f"{regime} {'+'.join(tasks)}", inputs, compute)

    def _said(
        self,
        cell: str,
        label: str,
        inputs: Mapping[str, object],
        compute: Callable[[], Mapping[str, object]],
    ) -> Result:
        known = self.store.has(cell, inputs)
        result = self.store.result(cell, inputs, compute)
        if not known:
            self.watch(f"{cell.replace('_', '-')} {label}", 1, 1)
        return result

    def _fingerprints(self, tasks: Sequence[str]) -> dict[str, str]:
        return {task: self._digests[task] for task in tasks}

    def _mentioned(self) -> list[str]:
        """Tasks whose zero-shot figures the tables show."""
        names = dict.fromkeys(self.tasks)
        for target in self.experiment.negation.targets if self.experiment.negation else ():
            names.update(dict.fromkeys([target, *self.experiment.controls(self.suite, target)]))
        names.update(dict.fromkeys(analogy.target for analogy in self.experiment.analogies))
        return list(names)

    def _measured(self, values: Mapping[str, float], single: Mapping[str, Mapping[str, float]]) -> Result:
        return {
            "values": dict(values),
            "absolute": absolute(values),
            "normalized": normalized(values, single["test"]),
        }
