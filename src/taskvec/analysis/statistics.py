"""Statistics of a model on a task's inputs: Fisher information, and Gram matrices of layer inputs.

Neither needs labels. Rules that merge models use them (``fisher``, ``regmean``).
"""

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from copy import deepcopy
from typing import Any, Literal

import torch
from torch import Tensor, nn

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone, evaluating
from taskvec.models.heads import Head
from taskvec.progress import Watch, unwatched
from taskvec.tangent.ntk.features import Plan
from taskvec.tangent.ntk.planning import planned
from taskvec.tangent.ntk.samples import Samples, selected
from taskvec.tangent.ntk.terms import Scatter, Term, matrix_shape
from taskvec.tasks.loaders import Batch, Batches, batches, head_for
from taskvec.tasks.source import SplitName
from taskvec.tasks.task import Split, Task
from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights

Labels = Literal["all", "sampled"]

SLICE = 1 << 21
"""Numbers of per-sample gradients that are written out at a time."""

BATCH = 64


def edited(model: Backbone, vector: TaskVector) -> Backbone:
    """A copy of a backbone, moved by a task vector of it.

    Raises: BaseMismatch if the vector is of another model.
    """
    apply(open_weights(model.source), vector)  # lazy: only refuses a vector of another base
    copied = deepcopy(model)
    with torch.no_grad():
        for name, parameter in copied.encoder_parameters().items():
            if name in vector and vector.terms_at(name):
                parameter.add_(vector[name].to(parameter))
    return copied


class _Scores(nn.Module):
    """Outputs whose squared gradients add up to an example's Fisher information.

    sqrt(p_c) log p_c for every class c, the root held constant; or log p_y for the classes y given
    """

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, drawn: Tensor | None = None, **batch: Tensor) -> Tensor:
        logs: Tensor = self.head(self.backbone(**batch)).log_softmax(-1)
        if drawn is not None:
            return logs.gather(1, drawn[:, None])
        return (logs.detach() / 2).exp() * logs


@checked
def fisher(
    model: Backbone,
    task: Task,
    examples: int = 256,
    *,
    head: Head | None = None,
    labels: Labels = "all",
    split: SplitName = "train",
    seed: int = 0,
    memory: float = 1e9,
    watch: Watch = unwatched,
) -> dict[str, Tensor]:
    """The diagonal of a model's Fisher information on a task, by parameter of its encoder.

        F = E_x E_{y ~ p(y|x)} (d log p(y|x) / d theta)^2

    Gradients are those of single examples; they are squared before they are added up.

    Args:
        model: usually fine-tuned on the task. It does not change.
        task: its inputs are used, not its labels.
        examples: how many inputs, drawn by ``seed``; all if the split has fewer.
        head: the frozen head, by default the model's own for the task. That of a fine-tuned model comes
            from the pre-trained one.
        labels: ``all`` takes the expectation over y exactly; ``sampled`` draws one y for each input.
        memory: bytes to work with beside the model and the result.

    Returns: by checkpoint name, tensors of the parameters' shapes and dtype, 0 or more.
    Cost: a backward pass an example and class (``all``), in batches.
    Source: Matena & Raffel 2022, arXiv:2111.09832.
    """
    scores = _Scores(model, head or head_for(model, task))
    places = {f"backbone.network.{inside}": stored for inside, stored in model.names.items()}
    parameters = selected(scores, list(places))
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    inputs = _inputs(model, task, examples, split, seed)
    generator = torch.Generator().manual_seed(seed)

    def samples(batch: Batch) -> Samples:
        given = _placed(model, batch)
        drawn = {"drawn": _drawn(scores, given, generator)} if labels == "sampled" else {}
        return Samples.of({**given, **drawn}, task.name)

    total, done = len(inputs.labels), 0
    with torch.no_grad(), evaluating(model):
        scores.eval()
        plan, sizes = planned(scores, parameters, samples(inputs[-1]))  # texts: the longest come last
        step = max(1, int(memory / 2 / (sizes.features + 2 * sizes.graph)))
        for piece in map(samples, inputs):
            for start in range(0, len(piece), step):
                _add_squares(sums, plan, piece[start : start + step])
            done += len(piece)
            watch("fisher information", done, total)
    return {places[name]: value / total for name, value in sums.items()}


def _drawn(scores: _Scores, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """A class for each input, drawn from the model's own prediction: (n,), int64."""
    chances = scores.head(scores.backbone(**batch)).softmax(-1)
    return torch.multinomial(chances.cpu().double(), 1, generator=generator)[:, 0].to(chances.device)


def _add_squares(sums: Mapping[str, Tensor], plan: Plan, samples: Samples) -> None:
    features, classes = plan.features(samples)
    for name, terms in features.items():
        rows, columns = matrix_shape(sums[name].shape)
        into = sums[name].view(rows, columns)
        match terms:
            case [Scatter() as table]:  # most rows of a table are read by no sample
                _, read, slopes = table.summed()
                into.index_add_(0, read, slopes.square_().sum(1))
            case _:
                _add_dense(into, terms, len(samples), classes)


def _add_dense(into: Tensor, terms: list[Term], n: int, classes: int) -> None:
    rows, columns = into.shape
    height = max(1, min(rows, SLICE // max(1, n * classes * columns)))
    space = into.new_empty(n * classes * height * columns)
    for start in range(0, rows, height):
        some = slice(start, min(start + height, rows))
        count = some.stop - some.start
        slopes = space[: n * classes * count * columns].view(n, classes, count, columns)
        for place, term in enumerate(terms):
            term.write(slopes, some, fresh=place == 0)
        into[some] += slopes.square_().sum((0, 1))


@checked
def gram(
    model: Backbone,
    task: Task,
    examples: int = 256,
    *,
    split: SplitName = "train",
    seed: int = 0,
    watch: Watch = unwatched,
) -> dict[str, Tensor]:
    """The second moments of what every linear layer of a model's encoder is given, on the inputs of a task.

        G = X^T X / rows,      rows of X: one a token, padding left out

    Args:
        model, task, examples, split, seed: as for :func:`fisher`.

    Returns: by checkpoint name of the layer's weight (out, in), tensors (in, in) of its dtype. Layers that
        share their inputs share the tensor.
    Raises: InputError for an encoder without such layers.
    Cost: a forward pass; memory of twice the result.
    Source: Jin et al. 2023, arXiv:2212.09849.
    """
    stored = {id(parameter): name for name, parameter in model.encoder_parameters().items()}
    sums = _Moments()
    inputs = _inputs(model, task, examples, split, seed)
    total, done = len(inputs.labels), 0
    with ExitStack() as hooks, torch.no_grad(), evaluating(model):
        for layer in model.network.modules():
            if isinstance(layer, nn.Linear) and id(layer.weight) in stored:
                handle = layer.register_forward_pre_hook(sums.seeing(stored[id(layer.weight)]))
                hooks.callback(handle.remove)
        for batch in inputs:
            given = _placed(model, batch)
            sums.mask = given.get("attention_mask")
            model(**given)
            done += len(batch.labels)
            watch("inputs of layers", done, total)
    found = sums.means(next(model.network.parameters()).dtype)
    if not found:
        raise InputError(f"{model.ref}: calls no torch.nn.Linear, whose inputs are measured")
    return found


class _Moments:
    """Sums of x x^T over the rows that pass through hooks, by name, in float64."""

    def __init__(self) -> None:
        self.mask: Tensor | None = None
        self._sums: dict[str, Tensor] = {}
        self._rows: dict[str, int] = {}
        self._given = torch.empty(0)
        self._product: tuple[Tensor, int] = self._given, 0

    def seeing(self, name: str) -> Callable[[nn.Module, tuple[Any, ...]], None]:
        """A hook for one layer."""

        def see(_: nn.Module, args: tuple[Any, ...]) -> None:
            product, rows = self._of(args[0])
            self._sums[name] = self._sums[name] + product if name in self._sums else product.double()
            self._rows[name] = self._rows.get(name, 0) + rows

        return see

    def _of(self, x: Tensor) -> tuple[Tensor, int]:
        if x is not self._given:  # query, key and value are given the same
            padded = self.mask is not None and x.shape[:-1] == self.mask.shape
            rows = x[self.mask.bool()] if self.mask is not None and padded else x.flatten(0, -2)
            self._given, self._product = x, (rows.T @ rows, len(rows))
        return self._product

    def means(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Divided by the number of rows; neighbours that are equal share memory."""
        found: dict[str, Tensor] = {}
        last = torch.empty(0)
        for name, total in self._sums.items():
            mean = (total / self._rows[name]).to(dtype)
            last = found[name] = last if torch.equal(mean, last) else mean
        return found


def _inputs(model: Backbone, task: Task, examples: int, split: SplitName, seed: int) -> Batches:
    """Inputs that ``seed`` draws, in batches; texts of similar length together."""
    rows = task.split(split)
    places = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))[:examples]
    some = Split(rows.take(places), rows.labels[places])
    return batches(model, some, BATCH, max_length=task.max_length)


def _placed(model: Backbone, batch: Batch) -> dict[str, Tensor]:
    return {key: value.to(model.device) for key, value in batch.inputs.items()}
