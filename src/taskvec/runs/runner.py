"""From an experiment to its results: every cell computed once, in an order that a reader would choose."""

import shutil
from collections.abc import Callable, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from taskvec.analysis.disentanglement import disentangle, square_grid, summary
from taskvec.analysis.linearity import nonlinear_advantage
from taskvec.errors import InputError
from taskvec.studies.addition import addition, single_task, subsets
from taskvec.studies.analogy import analogy
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.metrics import absolute, majority, normalized
from taskvec.studies.negation import negation
from taskvec.evaluation.points import Points
from taskvec.evaluation.search import METHOD, Grid, maximize
from taskvec.runs.experiment import Experiment
from taskvec.studies.cost import training_costs
from taskvec.runs.vectors import Vectors
from taskvec.models.known import path_or_id
from taskvec.models.loading import load_backbone
from taskvec.progress import Watch, unwatched
from taskvec.runs.store import Store
from taskvec.studies.experiment import post_hoc_of
from taskvec.studies.study import recipe
from taskvec.tasks.suite import Suite
from taskvec.training.regimes import linear_of
from taskvec.training.settings import TrainSettings
from taskvec.vectors import TaskVector, similarity
from taskvec.weights import Weights, open_weights

Result = dict[str, Any]


class Runner:
    """Runs an experiment in a run folder.

    The model is loaded when a result is first missing: what is on record needs nothing but its fingerprint.

    Args:
        store: of the run folder; cells on record there are taken from it.

    Raises: InputError for a model, or the data of a task, that is not to be had; the folder is not touched.
    """

    def __init__(self, experiment: Experiment, suite: Suite, store: Store, watch: Watch = unwatched) -> None:
        self.experiment, self.suite, self.store, self.watch = experiment, suite, store, watch
        self.tasks = experiment.task_names(suite)
        self._digests = {task: suite.task(task).fingerprint for task in experiment.involved(suite)}
        self._common: Result = {
            "model": self._weights().fingerprint(),
            "limits": {str(split): limit for split, limit in experiment.limits.items()},
            "precision": TrainSettings.parse("training", experiment.training).precision,
        }
        self._vectors = Vectors(
            experiment,
            lambda: self.evaluator,
            store,
            model=str(self._common["model"]),
            digests=self._digests,
            watch=watch,
        )
        if not store.begun:
            self.load()

    def load(self) -> None:
        """Load the model now, so that what is wrong with it is said before anything else is done.

        Raises: InputError.
        """
        _ = self.evaluator

    @cached_property
    def evaluator(self) -> Evaluator:
        """The model with the tasks of the experiment, loaded on first use."""
        return Evaluator(
            load_backbone(self.experiment.model),
            [self.suite.task(name) for name in self._digests],
            limits=self._common["limits"],
            batch_size=self.experiment.evaluation_batch,
            precision=self._common["precision"],
        )

    def _weights(self) -> Weights:
        try:
            return open_weights(path_or_id(self.experiment.model))
        except InputError:
            load_backbone(self.experiment.model)  # its message names the nearest known model
            raise

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
            regimes = {regime: self._regime(regime, seed) for regime in self.experiment.regimes}
            for regime, advantage in self._advantages(regimes).items():
                regimes[regime]["nonlinear_advantage"] = advantage
            found["seeds"][str(seed)] = regimes
        if self.experiment.costs:
            found["costs"] = self._costs()
        shutil.rmtree(self.store.folder / "partial", ignore_errors=True)
        return found

    def _regime(self, regime: str, seed: int) -> Result:
        """Everything about one regime at one seed, evaluated in the regime's space."""
        experiment = self.experiment
        vectors = {task: self._vectors.of(regime, seed, (task,)) for task in self.tasks}
        points = cache(lambda: self._points(regime, vectors))
        single = self._cell(
            "single",
            regime,
            seed,
            self.tasks,
            {},
            lambda: single_task(self.evaluator, points(), self.tasks),
        )
        geometry = self._cell("geometry", regime, seed, self.tasks, {}, lambda: _geometry(vectors))
        found: Result = {
            "space": experiment.space(regime),
            "single": single,
            "norms": geometry["norms"],
            "addition": self._additions(regime, seed, points, single),
        }
        if experiment.trained(regime) == regime:
            found["cosine"] = geometry["cosine"]
        if self._compares_spaces():
            found["accuracy"] = self._accuracies(regime, seed, points, single)
        if experiment.joint and regime in experiment.regimes_of(experiment.joint):
            found["joint"] = self._joint(regime, seed, single)
        if experiment.atm and regime in experiment.regimes_of(experiment.atm):
            found["atm"] = [self._atm(regime, seed, rounds, single) for rounds in experiment.atm.rounds]
        if experiment.negation and regime in experiment.regimes_of(experiment.negation):
            found["negation"] = [self._negation(regime, seed, t) for t in experiment.negation.targets]
        if experiment.analogies:
            numbers = range(len(experiment.analogies))
            found["analogies"] = [self._analogy(regime, seed, number) for number in numbers]
        if experiment.disentanglement and regime in experiment.regimes_of(experiment.disentanglement):
            found["disentanglement"] = [
                self._disentanglement(regime, seed, points, pair) for pair in experiment.disentanglement.pairs
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
        self, regime: str, seed: int, points: Callable[[], Points], single: Mapping[str, Mapping[str, float]]
    ) -> list[Result]:
        if self.experiment.addition is None:
            return []
        found = []
        block = self.experiment.addition
        linear = [one for one in self.experiment.regimes if self.experiment.space(one) == "tangent"]
        each = linear if block.each is None else block.each
        which = block.subsets if regime in self.experiment.regimes_of(block) else "whole"
        for chosen in subsets(self.tasks, which):
            whole = len(chosen) == len(self.tasks)
            fixed = {"1": 1.0, "1/T": 1 / len(chosen)} if whole else {}
            more = {"each": True} if whole and regime in each else {}
            settings = {**_search_inputs(self.experiment.search), "fixed": fixed, **more}

            def compute(
                chosen: tuple[str, ...] = chosen,
                fixed: dict[str, float] = fixed,
                more: dict[str, bool] = more,
            ) -> Result:
                grid = self.experiment.search
                return addition(self.evaluator, points(), chosen, single, grid, fixed, **more)

            found.append(self._cell("addition", regime, seed, chosen, settings, compute))
        return found

    def _joint(self, regime: str, seed: int, single: Mapping[str, Mapping[str, float]]) -> Result:
        def compute() -> Result:
            vector = self._vectors.of(regime, seed, self.tasks)
            point = self._points(regime, {"joint": vector}).at({"joint": 1.0})
            return self._measured(self.evaluator.values(point, self.tasks, "test"), single)

        return self._cell("joint", regime, seed, self.tasks, {}, compute)

    def _atm(self, regime: str, seed: int, rounds: int, single: Mapping[str, Mapping[str, float]]) -> Result:
        """ATM as it is, and with its whole displacement rescaled on validation data."""
        assert self.experiment.atm is not None
        rule, scale = self.experiment.atm.rule, self.experiment.atm.scale
        grid = self._atm_grid(rounds)
        settings = {"rounds": rounds, "rule": rule, "scale": scale, **_search_inputs(grid)}

        def compute() -> Result:
            points = self.evaluator.points({"atm": self._vectors.atm(regime, seed, self.tasks, rounds)})
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
                "tuned": {**self._measured(tuned, single), **found.record()},
            }

        return self._cell("atm", regime, seed, self.tasks, settings, compute)

    def _atm_grid(self, rounds: int) -> Grid:
        """Addition's grid in the unit of ATM: a factor of T on the mean of T vectors gives their sum.

        One round of means is that mean, so it is searched at the very points of addition. What more rounds
        give lies between a mean and a sum: searched as far, in the steps of addition.
        """
        assert self.experiment.atm is not None
        block, grid = self.experiment.atm, self.experiment.search
        unit = len(self.tasks) / block.scale
        if rounds == 1 and block.rule == "mean":
            return grid.scaled(unit)
        return grid.widened(max(unit, 1.0))

    def _negation(self, regime: str, seed: int, target: str) -> Result:
        block = self.experiment.negation
        assert block is not None
        controls = self.experiment.controls(self.suite, target)
        settings = {
            **_search_inputs(self.experiment.search),
            "controls": controls,
            **block.model_dump(include={"keep", "baselines"}, mode="json"),
        }

        def compute() -> Result:
            vectors = {"fine-tuned": self._vectors.of(regime, seed, (target,))}
            if "random" in block.baselines:
                vectors["random"] = TaskVector.random_like(vectors["fine-tuned"], seed=seed)
            if "ascent" in block.baselines:
                vectors["ascent"] = self._vectors.of(regime, seed, (target,), ascend=True)
            return negation(
                self.evaluator,
                self._points(regime, vectors),
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
        settings = {**_search_inputs(self.experiment.search), **block.model_dump(mode="json")}

        def compute() -> Result:
            vectors = {task: self._vectors.of(regime, seed, (task,)) for task in sorted(trained)}
            return analogy(
                self.evaluator,
                self._points(regime, vectors),
                a=block.a,
                b=block.b,
                c=block.c,
                target=block.target,
                coefficients=block.coefficients,
                reference=block.target if block.reference else None,
                grid=self.experiment.search,
            )

        return self._cell("analogy", regime, seed, sorted({*trained, block.target}), settings, compute)

    def _disentanglement(
        self, regime: str, seed: int, points: Callable[[], Points], pair: tuple[str, str]
    ) -> Result:
        block = self.experiment.disentanglement
        assert block is not None
        settings = {"grid": block.grid.model_dump(), "samples": block.samples, "split": "test"}

        def compute() -> Result:
            grid = square_grid(**block.grid.model_dump())
            few = self.evaluator.limited(test=block.samples)
            label = f"heat map {regime} {'+'.join(pair)}"
            maps = disentangle(few, points(), pair, grid=grid, watch=self.watch, label=label)
            return {
                "tasks": list(pair),
                "grid": grid,
                "examples": [len(few.split(task, "test")) for task in pair],
                "summary": summary(grid, maps),
                "maps": {name: one.error.tolist() for name, one in maps.items()},
            }

        return self._cell("disentanglement", regime, seed, pair, settings, compute)

    def _accuracies(
        self, regime: str, seed: int, points: Callable[[], Points], single: Mapping[str, Mapping[str, float]]
    ) -> dict[str, float]:
        """Test accuracy of each task's own model, whatever the task's metric is."""
        others = [task for task in self.tasks if self.suite.task(task).metric != "accuracy"]

        def compute() -> Result:
            return {
                task: self.evaluator.score(points().at({task: 1.0}), task, "test").accuracy for task in others
            }

        found = self._cell("accuracy", regime, seed, others, {}, compute) if others else {}
        return {task: found.get(task, single["test"][task]) for task in self.tasks}

    def _compares_spaces(self) -> bool:
        return "tangent" in map(self.experiment.space, self.experiment.regimes)

    def _advantages(self, regimes: Mapping[str, Result]) -> dict[str, dict[str, float]]:
        """What leaving the tangent space gains over each regime in it, by task."""
        ordinary = {linear: of for of in regimes for linear in (linear_of(of), post_hoc_of(of))}
        return {
            regime: {
                task: nonlinear_advantage(
                    regimes[ordinary[regime]]["accuracy"][task],
                    regimes[regime]["accuracy"][task],
                    len(self.suite.task(task).classes),
                )
                for task in self.tasks
            }
            for regime in regimes
            if ordinary.get(regime) in regimes
        }

    def _costs(self) -> Result:
        """Of a training step of each regime, on a batch of the first task."""
        task, seed = self.tasks[0], self.experiment.seeds[0]
        regimes = [one for one in self.experiment.regimes if self.experiment.trained(one) == one]
        settings = {regime: self.experiment.settings(regime, seed) for regime in regimes}
        inputs = {
            **self._common,
            "training": {regime: recipe(one) for regime, one in settings.items()},
            "tasks": self._fingerprints([task]),
        }

        def compute() -> Result:
            part = self.evaluator.part(task)
            return {"task": task, "regimes": training_costs(self.evaluator.backbone, part, settings)}

        return self._said("costs", "of training", inputs, compute)

    # Helpers

    def _points(self, regime: str, vectors: Mapping[str, TaskVector]) -> Points:
        return self.evaluator.points(vectors, space=self.experiment.space(regime))

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
            "training": recipe(self.experiment.settings(regime, seed)),
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


def _geometry(vectors: Mapping[str, TaskVector]) -> Result:
    """Lengths of the vectors and cosines between them: the two figures that read every tensor of each."""
    return {
        "norms": {task: vector.norm() for task, vector in vectors.items()},
        "cosine": similarity(list(vectors.values())).tolist(),
    }


def _search_inputs(grid: Grid) -> Result:
    """What decides a search, for the key of its result."""
    return {"grid": grid.model_dump(), "search": METHOD}
