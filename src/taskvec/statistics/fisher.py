"""The diagonal of a model's Fisher information on a task, for the rule ``fisher``."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor

from taskvec.arguments import checked
from taskvec.models.backbone import Backbone, evaluating, refuse_sharded
from taskvec.models.heads import Classifier, Head
from taskvec.progress import Watch, unwatched
from taskvec.statistics.squares import add_squares
from taskvec.tangent.ntk.gradients import SampleGradients
from taskvec.tangent.ntk.samples import Samples, selected
from taskvec.tasks.loaders import batches, head_for
from taskvec.tasks.objective import Batch, on_device
from taskvec.tasks.source import SplitName
from taskvec.tasks.task import Task

Labels = Literal["all", "sampled"]


class _Scores(Classifier):
    """Outputs whose squared gradients add up to an example's Fisher information.

    sqrt(p_c) log p_c for every class c, the root held constant; or log p_y for the classes y given
    """

    def forward(self, drawn: Tensor | None = None, **batch: Tensor) -> Tensor:
        logs = super().forward(**batch).log_softmax(-1)
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
    limit: int | None = None,
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
        limit: only the first so many examples of the split are drawn from.
        memory: bytes to work with beside the model and the result.

    Returns: by checkpoint name, tensors of the parameters' shapes and dtype, 0 or more, on the CPU.
    Cost: a backward pass an example and class (``all``), in batches.
    Source: Matena & Raffel 2022, arXiv:2111.09832.
    """
    refuse_sharded(model, "fisher")
    scores = _Scores(model, on_device(head or head_for(model, task), model.device))
    stored = {inside: name for name, inside in scores.names.items()}
    parameters = selected(scores, list(stored))
    sums = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
    inputs = batches(model, task.split(split, limit=limit).draw(examples, seed), max_length=task.max_length)
    generator = torch.Generator().manual_seed(seed)

    def samples(batch: Batch) -> Samples:
        given = batch.on(model.device).inputs
        drawn = {"drawn": _draw_classes(scores, given, generator)} if labels == "sampled" else {}
        return Samples.of({**given, **drawn}, task.name)

    total, done = len(inputs.labels), 0
    with torch.no_grad(), evaluating(model):
        scores.eval()
        # Texts: the longest come last.
        gradients = SampleGradients(scores, parameters, samples(inputs[-1]))
        step = max(1, int(memory / 2 / (gradients.feature_bytes + 2 * gradients.graph_bytes)))
        for piece in map(samples, inputs):
            for start in range(0, len(piece), step):
                some = piece[start : start + step]
                add_squares(sums, gradients.features(some), len(some), gradients.classes)
            done += len(piece)
            watch("fisher information", done, total)
    return {stored[name]: (value / total).cpu() for name, value in sums.items()}


def _draw_classes(scores: _Scores, batch: Mapping[str, Tensor], generator: torch.Generator) -> Tensor:
    """A class for each input, drawn from the model's own prediction: (n,), int64."""
    chances = scores.head(scores.backbone(**batch)).softmax(-1)
    return torch.multinomial(chances.cpu().double(), 1, generator=generator)[:, 0].to(chances.device)
