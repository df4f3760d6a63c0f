"""A backbone, its frozen heads and prepared data: what scores a set of parameters."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Literal, TypeVar, overload

import torch
from torch import Tensor

from taskvec.arguments import checked
from taskvec.errors import Diverged, InputError
from taskvec.evaluation.linear import LinearFeatures
from taskvec.evaluation.points import (
    OrdinaryPoints,
    Point,
    Points,
    TangentPoint,
    TangentPoints,
    beside_encoder,
    can_keep,
    dense_deltas,
)
from taskvec.group import ALONE, Group, apart, current
from taskvec.models.backbone import Backbone, on_device
from taskvec.models.functional import encode, placed
from taskvec.models.heads import Head
from taskvec.place import Precision, autocast, enough_memory
from taskvec.progress import Watch, patient, unwatched
from taskvec.registry import nearest
from taskvec.tangent.linearization import Linearization
from taskvec.tasks.ahead import ahead, for_device
from taskvec.tasks.kinds.classification import Classifying
from taskvec.tasks.loaders import Batches, in_batches
from taskvec.tasks.objective import Batch, Objective, Tally
from taskvec.tasks.score import Score, utility
from taskvec.tasks.source import SplitName
from taskvec.tasks.split import Split
from taskvec.tasks.task import Task
from taskvec.training.loop import Params
from taskvec.training.parts import Part, check_outputs, make_part
from taskvec.training.regimes import Space
from taskvec.training.space import linearized
from taskvec.vectors import TaskVector

T = TypeVar("T")


def _unchanged(outputs: Tensor) -> Tensor:
    return outputs


class Evaluator:
    """Scores edited models on tasks. Data is prepared once, heads are made once from the pre-trained model.

    A model is a *point*: parameters, or a place in the tangent space of the pre-trained ones.

    Args:
        backbone: not modified; its device computes. Features, logits and figures are on the CPU.
        tasks: distinct names.
        limits: at most so many first examples of a split, by split name.
        batch_size: examples a forward pass.
        precision: "float32", "bf16" or "fp16" (autocast).
        watch: told of measurements that take longer than some seconds.

    Raises: InputError for a task of another modality than the backbone's.
    """

    @checked
    def __init__(
        self,
        backbone: Backbone,
        tasks: Sequence[Task],
        *,
        limits: Mapping[str, int] | None = None,
        batch_size: int = 64,
        precision: Precision = "float32",
        watch: Watch = unwatched,
    ) -> None:
        for task in tasks:
            if task.modality != backbone.modality:
                raise InputError(
                    f"{task.name}: a task on {task.modality}s, and {backbone.ref} reads {backbone.modality}s"
                )
            check_outputs(backbone, task.name, task)
        self.backbone = backbone
        self.tasks = {task.name: task for task in tasks}
        self.limits = dict(limits or {})
        self.precision: Precision = precision
        self.watch = watch
        self.batch_size = batch_size
        self._objectives: dict[str, Objective] = {}
        self._batches: dict[tuple[str, SplitName], Batches] = {}
        self._examples: dict[tuple[str, SplitName], Split] = {}

    @cached_property
    def pretrained(self) -> dict[str, Tensor]:
        """The parameters that fine-tuning may move, as they were before it."""
        return {name: value.detach() for name, value in self.backbone.encoder_parameters().items()}

    @cached_property
    def linearized(self) -> Linearization:
        """The encoder in the tangent space of its pre-trained parameters."""
        return linearized(self.backbone)

    @overload
    def points(
        self,
        vectors: Mapping[str, TaskVector],
        start: Params | None = None,
        space: Literal["ordinary"] = "ordinary",
    ) -> OrdinaryPoints: ...

    @overload
    def points(
        self, vectors: Mapping[str, TaskVector], start: Params | None = None, *, space: Literal["tangent"]
    ) -> TangentPoints: ...

    @overload
    def points(
        self, vectors: Mapping[str, TaskVector], start: Params | None = None, *, space: Space
    ) -> Points: ...

    @checked
    def points(
        self, vectors: Mapping[str, TaskVector], start: Params | None = None, space: Space = "ordinary"
    ) -> Points:
        """Edits of the pre-trained parameters, or of ``start``, by vectors under labels of the caller's.

        Args:
            space: ``ordinary`` adds vectors to the weights, ``tangent`` evaluates the linearized model there.
                Any vector goes into either: one trained in ordinary space is *post hoc* in tangent space.

        Tensors that no feature depends on are left out, in tangent space also heads and running statistics.
        Raises: BaseMismatch if a vector is of another model.
        """
        beside = {} if space == "tangent" else beside_encoder(self.backbone)
        found = dense_deltas(self.backbone, vectors.values(), beside)
        deltas = dict(zip(vectors, found, strict=True))
        if space == "tangent":
            lin = self.linearized if start is None else linearized(self.backbone, start)
            return TangentPoints(lin, deltas, precision=self.precision)
        base = self.pretrained if start is None else on_device(start, self.backbone.device)
        return OrdinaryPoints({**beside, **base}, deltas)

    def limited(self, **limits: int) -> "Evaluator":
        """The same model, tasks and heads, on other numbers of first examples by split."""
        return self._copied(self.backbone, {**self.limits, **limits})

    def on_examples(self, split: SplitName, examples: Mapping[str, Split]) -> "Evaluator":
        """The same model, tasks and heads, on other examples of a split, by task."""
        other = self._copied(self.backbone, self.limits)
        other._examples = {(name, split): held for name, held in examples.items()}
        return other

    def on_model(self, backbone: Backbone) -> "Evaluator":
        """The same tasks, examples and heads, on another model that gives features of the same size."""
        other = self._copied(backbone, self.limits)
        other._examples = self._examples
        return other

    def _copied(self, backbone: Backbone, limits: Mapping[str, int]) -> "Evaluator":
        other = Evaluator(
            backbone,
            list(self.tasks.values()),
            limits=limits,
            batch_size=self.batch_size,
            precision=self.precision,
            watch=self.watch,
        )
        other._objectives = self._objectives
        return other

    def task(self, name: str) -> Task:
        """The task of that name."""
        if name not in self.tasks:
            raise InputError(f"no task called {name!r} here; {nearest(name, self.tasks)}")
        return self.tasks[name]

    def split(self, name: str, split: SplitName) -> Split:
        """A split of a task, cut to this evaluator's limit, or the examples given in its place."""
        if (name, split) in self._examples:
            return self._examples[name, split]
        return self.task(name).split(split, limit=self.limits.get(split))

    def objective(self, name: str) -> Objective:
        """What the task asks of a model; with a frozen head, made with the pre-trained model, on the CPU."""
        if name not in self._objectives:
            made = self.task(name).objective(self.backbone)
            self._objectives[name] = made.on(torch.device("cpu"))
        return self._objectives[name]

    def head(self, name: str) -> Head:
        """The frozen head of a classification: class prompts in the text tower, or a probe on features.

        Raises: InputError for another kind of task.
        """
        objective = self.objective(name)
        if not isinstance(objective, Classifying):
            raise InputError(f"{name}: a task of kind {self.task(name).kind!r} has no head over classes")
        return objective.head

    def part(self, name: str) -> Part:
        """What the task brings to training."""
        return make_part(self.backbone, self.task(name), self.limits, self.objective(name))

    def features(self, point: Point, name: str, split: SplitName) -> tuple[Tensor, Tensor]:
        """Features (N, d) float32 and labels (N,) of a split, in an order of this evaluator's own."""
        prepared = self._prepared(name, split)
        return self._features(point, name, split), prepared.labels

    def order(self, name: str, split: SplitName) -> Tensor:
        """The places (N,) in the split of the examples in the order of :meth:`features`."""
        return self._prepared(name, split).targets()[1]

    def linear_features(self, points: TangentPoints, name: str, split: SplitName) -> LinearFeatures:
        """f0 and J tau of each vector, in the order of :meth:`features`."""
        return points.linear_features(self._prepared(name, split))

    def logits(self, point: Point, name: str, split: SplitName) -> tuple[Tensor, Tensor]:
        """Logits (N, C) float32 and labels (N,), in the order of :meth:`features`.

        Raises: Diverged when the model's outputs are no longer finite; InputError for a task that is no
            classification.
        """
        objective = Classifying(self.head(name)).at({} if isinstance(point, TangentPoint) else point)
        features, labels = self.features(point, name, split)
        with torch.no_grad():
            logits: Tensor = objective.on(features.device).head(features)
        _check_finite(logits, name, split)
        return logits, labels

    def outputs(self, point: Point, name: str, split: SplitName) -> Iterator[tuple[Tensor, Batch]]:
        """The model's outputs (R, d), float32 or more, with what they are compared to, on one device.

        Features come in one piece, on the CPU, and so do logits of a tangent space that can be kept; others a
        batch at a time, where they were computed.
        """
        prepared = self._prepared(name, split)
        if self._is_one_piece(point, prepared):
            yield self._features(point, name, split), Batch({}, *prepared.targets())
        else:
            yield from self._pieces(point, name, split, prepared)

    def _pieces(
        self, point: Point, name: str, split: SplitName, prepared: Batches
    ) -> Iterator[tuple[Tensor, Batch]]:
        """Outputs a batch at a time, see ``outputs``."""
        if not isinstance(point, TangentPoint):
            yield from self._run(point, name, split, prepared)
            return
        pieces = (prepared[place : place + 1] for place in range(len(prepared)))
        for piece in self._told(pieces, name, split, len(prepared)):
            yield point.features(piece), Batch({}, *piece.targets())

    @torch.no_grad()
    def tally(
        self, point: Point, name: str, split: SplitName, after: Callable[[Tensor], Tensor] = _unchanged
    ) -> Tally:
        """What the figures of a split are made of, an entry an example.

        Args:
            after: what becomes of the model's outputs (R, d) before the task's head reads them.

        Raises: Diverged when the model's outputs are no longer finite.
        Cost: several processes share it batch by batch, and the bits stay the same.
        """
        group, prepared = self._group, self._prepared(name, split)
        if group.alone or self._is_one_piece(point, prepared):
            made = ((after(given), batch) for given, batch in self.outputs(point, name, split))
            return self._tallied(point, name, split, made)
        with apart():
            own = self._pieces(point, name, split, prepared[group.rank :: group.size])
            made = ((after(given), batch) for given, batch in own)
            pieces = self._tally_pieces(point, name, made)
        held = [{key: value.cpu() for key, value in piece.items()} for piece in pieces]
        return _joined(group.collect(held), name, split)

    @torch.no_grad()
    def tally_chosen(self, at: Callable[[int], Params], chosen: Tensor, name: str, split: SplitName) -> Tally:
        """As ``tally``, each example by a model of its own; of an encoder, in ordinary space.

        Args:
            at: the model of a number, valid until the next call.
            chosen: (N,), int64, the model's number for each example, in the order of :meth:`features`.

        Raises: Diverged when a model's outputs are no longer finite.
        Cost: one pass over the examples, and a call of ``at`` for every model that is chosen.
        """
        groups = [(chosen == number).nonzero().flatten() for number in range(int(chosen.max()) + 1)]
        groups = [rows for rows in groups if len(rows)]
        prepared, tallies = self._prepared(name, split), list[Tally]()
        for rows in groups:
            point = at(int(chosen[rows[0]]))
            outputs = self._run(point, name, split, prepared.picked(rows))
            tallies.append(self._tallied(point, name, split, outputs))
        order = torch.cat(groups).argsort()
        return {key: torch.cat([tally[key] for tally in tallies])[order] for key in tallies[0]}

    def _tallied(
        self, point: Point, name: str, split: SplitName, outputs: Iterable[tuple[Tensor, Batch]]
    ) -> Tally:
        return _joined(self._tally_pieces(point, name, outputs), name, split)

    def _tally_pieces(self, point: Point, name: str, outputs: Iterable[tuple[Tensor, Batch]]) -> list[Tally]:
        objective = self.objective(name).at({} if isinstance(point, TangentPoint) else point)
        return [objective.on(given.device).tally(given, batch) for given, batch in outputs]

    def _is_one_piece(self, point: Point, prepared: Batches) -> bool:
        """Whether outputs of these batches come in one piece, see ``outputs``."""
        return self.backbone.outputs != "tokens" or can_keep(point, prepared, self.backbone.dim)

    def score(self, point: Point, name: str, split: SplitName) -> Score:
        """All figures of a model on one split of one task."""
        if self.objective(name).writes:
            return self._written(point, name, split)
        return self.objective(name).score(self.tally(point, name, split))

    def values(self, point: Point, names: Iterable[str], split: SplitName) -> dict[str, float]:
        """The tasks' own metrics, by task, as protocols compare them: more is better."""
        return {name: self._utility(point, name, split) for name in names}

    def scores(self, point: Point, names: Iterable[str], split: SplitName) -> dict[str, Score]:
        """All figures, by task."""
        return {name: self.score(point, name, split) for name in names}

    def _utility(self, point: Point, name: str, split: SplitName) -> float:
        objective = self.objective(name)
        if objective.writes:
            return self._written(point, name, split).utility
        return utility(self.task(name).metric, objective.value(self.tally(point, name, split)))

    @torch.no_grad()
    def _written(self, point: Point, name: str, split: SplitName) -> Score:
        """The figures of what a model writes."""
        if isinstance(point, TangentPoint):
            raise InputError(
                f"{name}: {self.task(name).metric!r} is measured on texts that the model writes, and a model "
                "in tangent space writes none; measure it in ordinary space, or take perplexity as the metric"
            )
        device = self.backbone.device
        room = enough_memory(
            device, "writing texts", "lower sampling: max_new_tokens, or take shorter prompts"
        )
        with room, autocast(self.precision, device), placed(self.backbone, on_device(point, device)):
            score = self.objective(name).measure(self.backbone, self.split(name, split), split)
        return current().broadcast(score)

    @property
    def _group(self) -> Group:
        """The processes that share the examples; each reads all where every pass is a work of all."""
        return current() if self.backbone.sharding is None else ALONE

    def _prepared(self, name: str, split: SplitName) -> Batches:
        if (name, split) not in self._batches:
            prepared = self.objective(name).prepare(self.backbone, self.split(name, split))
            self._batches[name, split] = in_batches(prepared, self.batch_size)
        return self._batches[name, split]

    def _told(self, batches: Iterable[T], name: str, split: SplitName, total: int) -> Iterator[T]:
        """The batches of a split, or what is made of them, one after the other, before a watcher's eyes."""
        watch = patient(self.watch)
        for done, batch in enumerate(batches, start=1):
            yield batch
            watch(f"measuring {name}, {split}", done, total)

    def _features(self, point: Point, name: str, split: SplitName) -> Tensor:
        if isinstance(point, TangentPoint):
            return point.features(self._prepared(name, split))
        group, prepared = self._group, self._prepared(name, split)
        own = [outputs for outputs, _ in self._run(point, name, split, prepared[group.rank :: group.size])]
        return torch.cat(own).cpu() if group.alone else torch.cat(group.collect([of.cpu() for of in own]))

    @torch.no_grad()
    def _run(
        self, point: Params, name: str, split: SplitName, prepared: Batches
    ) -> Iterator[tuple[Tensor, Batch]]:
        """Outputs (R, d), float32 or more, of some batches of a split, and the batch, on the backbone's
        device."""
        device, remedy = self.backbone.device, f"lower the batch size of evaluation (now {self.batch_size})"
        params = on_device(point, device)
        stacked = ahead(lambda place: for_device(prepared[place], device), range(len(prepared)), device)
        for given in self._told(stacked, name, split, len(prepared)):
            batch = given.on(device)
            at_once = f"a pass of {self.batch_size} examples"
            with enough_memory(device, at_once, remedy), autocast(self.precision, device):
                outputs = encode(self.backbone, params, batch.inputs)
            yield outputs.to(torch.promote_types(outputs.dtype, torch.float32)), batch


def _joined(pieces: Sequence[Tally], name: str, split: SplitName) -> Tally:
    """The tally of a split. Raises: Diverged."""
    tally = {key: torch.cat([piece[key] for piece in pieces]).cpu() for key in pieces[0]}
    for values in tally.values():
        _check_finite(values, name, split)
    return tally


def _check_finite(values: Tensor, name: str, split: SplitName) -> None:
    if not bool(values.isfinite().all()):
        raise Diverged(f"{name}: the model's {split} outputs are not finite; the coefficient is too large")
