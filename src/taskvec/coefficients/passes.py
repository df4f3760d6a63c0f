"""The network's side of a step: each task's batches, and the gradient of its objective."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache

import torch
import xxhash
from torch import Tensor

from taskvec.coefficients.settings import CoefficientSettings
from taskvec.coefficients.signals import Signal
from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.models.backbone import Backbone, evaluating
from taskvec.models.functional import differentiable_statistics, encode
from taskvec.place import autocast, enough_memory
from taskvec.tasks.loaders import in_batches
from taskvec.tasks.objective import Batch, Objective, Prepared
from taskvec.tasks.split import Split, held_out_split

_AT_ONCE = 64
"""Examples of a pass that only measures."""


class Passes:
    """Passes over batches of several tasks, drawn by a seed.

    Every example of a split comes once before any comes again, in an order of its own that depends on the
    seed and the name of the task.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        splits: Mapping[str, Split],
        settings: CoefficientSettings,
        signal: Signal,
        seed: int,
    ) -> None:
        self._backbone, self._settings, self._signal, self._seed = evaluator.backbone, settings, signal, seed
        self._precision = evaluator.precision
        self._asked: dict[str, tuple[Objective, Prepared]] = {}
        for task, split in splits.items():
            objective = evaluator.objective(task).training().on(evaluator.backbone.device)
            self._asked[task] = objective, objective.prepare(evaluator.backbone, split)

    def backward(self, model: Mapping[str, Tensor], step: int) -> dict[str, float]:
        """Add the gradient of all tasks' objectives to that of the model's tensors; the objectives."""
        leaves = [value for value in model.values() if value.requires_grad]
        values: dict[str, list[Tensor]] = {}
        model = {**_detached(self._backbone), **model}
        with evaluating(self._backbone), self._moving(model):
            for task, (objective, prepared) in self._asked.items():
                asked = objective.moving(model)
                for batch, share in self._batches(task, prepared, step):
                    loss = self._loss(model, task, asked, batch) * share
                    torch.autograd.backward(loss, inputs=leaves)
                    values.setdefault(task, []).append(loss.detach())
        return {task: torch.stack(losses).sum().item() for task, losses in values.items()}

    def _moving(self, model: Mapping[str, Tensor]) -> AbstractContextManager[None]:
        """Room for gradients of running statistics, where vectors move them."""
        if model.keys().isdisjoint(self._backbone.statistics()):
            return nullcontext()
        return differentiable_statistics(self._backbone.network)

    @property
    def guided(self) -> bool:
        """Whether labels are read, whatever the signal."""
        return any(objective.guided for objective, _ in self._asked.values())

    @torch.no_grad()
    def measure(self, model: Mapping[str, Tensor]) -> float:
        """The sum of all tasks' objectives, each over its whole split."""
        model, total = {**_detached(self._backbone), **model}, 0.0
        with evaluating(self._backbone):
            for task, (objective, prepared) in self._asked.items():
                asked, rows = objective.moving(model), int(prepared.rows.sum())
                for batch in in_batches(prepared, _AT_ONCE):
                    there = batch.on(self._backbone.device)
                    share = len(batch.index) / rows
                    total += share * self._loss(model, task, asked, there).item()
        return total

    def fingerprints(self) -> list[list[object]]:
        """What is asked, and of how many examples."""
        return [[task, asked.fingerprint(), len(of.sizes)] for task, (asked, of) in self._asked.items()]

    def _loss(self, model: Mapping[str, Tensor], task: str, asked: Objective, batch: Batch) -> Tensor:
        at_once = f"a step of {len(batch.index)} rows of outputs"
        remedy = f"lower batch (now {self._settings.batch}) and raise batches"
        with enough_memory(self._backbone.device, at_once, remedy):
            return self._signal(task, asked, self._outputs(model, task, batch), batch)

    def _outputs(self, model: Mapping[str, Tensor], task: str, batch: Batch) -> Tensor:
        """(R, d), float32 or more, differentiable in the model's tensors."""
        with autocast(self._precision, self._backbone.device):
            outputs = encode(self._backbone, model, batch.inputs)
        return outputs.to(torch.promote_types(outputs.dtype, torch.float32))

    def _batches(self, task: str, prepared: Prepared, step: int) -> Iterator[tuple[Batch, float]]:
        """Each batch of a step, in as many pieces as memory wants, with the share of its rows."""
        for number in range(self._settings.batches):
            places = self._places(task, len(prepared.sizes), step * self._settings.batches + number)
            rows = int(prepared.rows[places].sum())
            for piece in torch.split(places, prepared.together or len(places)):
                batch = self._batch(prepared, piece)
                yield batch, len(batch.index) / rows

    def _batch(self, prepared: Prepared, places: Tensor) -> Batch:
        return prepared.batch(places).on(self._backbone.device)

    def _places(self, task: str, examples: int, number: int) -> Tensor:
        """The examples of a batch: a stretch of all epochs' orders behind one another."""
        size = min(self._settings.batch, examples)
        begin, found = number * size, list[Tensor]()
        while size:
            epoch, skipped = divmod(begin, examples)
            found.append(_order(self._seed, task, epoch, examples)[skipped : skipped + size])
            begin, size = begin + len(found[-1]), size - len(found[-1])
        return torch.cat(found)


@lru_cache(maxsize=64)
def _order(seed: int, task: str, epoch: int, examples: int) -> Tensor:
    key = xxhash.xxh3_64_intdigest(f"{seed} {epoch} {task}".encode())
    return torch.randperm(examples, generator=torch.Generator().manual_seed(key >> 1))


def splits_of(evaluator: Evaluator, tasks: Sequence[str], settings: CoefficientSettings) -> dict[str, Split]:
    """The split of each task that is learned from. Raises: InputError for one that would teach nonsense."""
    splits = {}
    for task in tasks:
        objective = evaluator.objective(task)
        if objective.guided and settings.split == "test":
            raise InputError(
                f"{task}: the model would read the answers of the test split, which are labels; take split: "
                "validation"
            )
        splits[task] = objective.examples(evaluator.backbone, evaluator.split(task, settings.split))
        if settings.signal == "labels":
            objective.check(task, splits[task])
    return splits


def held_out(splits: Mapping[str, Split]) -> tuple[dict[str, Split], dict[str, Split]]:
    """Each split without a fifth of it, and that fifth. Raises: InputError for fewer than 5 examples."""
    parted = {task: held_out_split(split, share=0.2) for task, split in splits.items()}
    return {task: rest for task, (rest, _) in parted.items()}, {
        task: held for task, (_, held) in parted.items()
    }


def _detached(backbone: Backbone) -> dict[str, Tensor]:
    """The encoder's parameters without a gradient of their own."""
    return {name: value.detach() for name, value in backbone.encoder_parameters().items()}
