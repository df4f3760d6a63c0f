"""What the tangent kernel of a pre-trained model says about a task: its solution, and where that lives."""

from collections.abc import Mapping
from statistics import median
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from taskvec.errors import InputError
from taskvec.progress import Watch, unwatched
from taskvec.reports.drawing import hide_spines
from taskvec.reports.numbers import Mean, percent
from taskvec.reports.tables import Table
from taskvec.studies.analysis import AnalysisOfModel, AnalysisRecord, Say, load_vector_of
from taskvec.studies.record import Record
from taskvec.tasks.source import SplitName

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from taskvec.evaluation.evaluator import Evaluator
    from taskvec.models.heads import Classifier
    from taskvec.tasks.task import Split
    from taskvec.vectors import TaskVector

    Inputs = Mapping[str, Tensor]
    """Of a batch, by argument of the backbone."""

SPLITS: tuple[SplitName, ...] = ("train", "test", "test")
"""Of the task, of the task, of the control."""

Kind = Literal["local_energy", "movement", "score"]

_LABELS: dict[Kind, str] = {
    "local_energy": "local energy",
    "movement": "‖kernel solution‖²",
    "score": "‖J τ‖²",
}


class KernelAnalysis(AnalysisOfModel):
    """Show whether the gradients of a pre-trained model know a task: its tangent kernel, and where it lives.

    Example: `taskvec analyze ntk builtin -s builtin8 -t gabor --control display -o kernel`
    """

    task: str
    """The task whose logits and training examples make the kernel."""
    control: str
    """Another task; its test examples are the outside, its labels are not used."""
    vector: str | None = None
    """A task vector of the task: adds the cheap score of its displacement, and its accuracy."""
    samples: int = Field(default=48, ge=1)
    """Training examples, and test examples of each task."""
    mode: Literal["full", "class", "trace"] = "trace"
    """`full` compares all pairs of classes, `class` equal ones; `trace` shares the classes' mean kernel. A
    full kernel costs as many times more as there are classes."""
    params: str = "full"
    """`full`, `attention`, another selection, or `re:PATTERN`."""
    ridge: float = Field(default=1e-3, ge=0)
    """Of the kernel regression, in units of the kernel's mean eigenvalue."""
    seed: int = 0
    """Draws the examples."""
    memory: float = Field(default=4.0, gt=0)
    """Gigabytes to work with."""

    def measure(self, watch: Watch, say: Say) -> "KernelRecord":
        """The task beside the control."""
        vector = None if self.vector is None else load_vector_of(self.vector, self.task)
        evaluator, _ = self.load_evaluator(dict.fromkeys((self.task, self.control)))
        return self.explain(evaluator, vector, watch)

    def explain(
        self, evaluator: "Evaluator", vector: "TaskVector | None" = None, watch: Watch = unwatched
    ) -> "KernelRecord":
        """A task in the eyes of the pre-trained model's tangent kernel, beside another task.

        The kernel of the task's own logits is taken on training examples of the task. Three numbers a
        held-out example then ask whether its gradients know the task, for test examples of the task and of
        the control (whose labels are not used): the local energy; the squared movement of its logits by the
        kernel's solution; and with ``vector`` the cheap score ``||J(x) tau||^2`` of its features, by forward
        mode.

        Args:
            vector: of the task, in any regime; only its displacement counts.

        Raises: InputError for unknown tasks, a task as its own control, no parameter selected.
        """
        import torch

        from taskvec.models.heads import Classifier
        from taskvec.models.selection import select
        from taskvec.studies.numerics import ntk as numerics
        from taskvec.tasks.objective import on_device

        if self.task == self.control:
            raise InputError(f"{self.task}: is task and control; take another control")
        head, backbone = evaluator.head(self.task), evaluator.backbone
        evaluator.task(self.control)
        model = Classifier(backbone, on_device(head, backbone.device)).eval()
        selected = select(backbone, self.params)
        train, inside, outside = (
            evaluator.split(name, split).draw(self.samples, self.seed)
            for name, split in zip((self.task, self.task, self.control), SPLITS, strict=True)
        )
        data = {
            "train": self._collate(evaluator, train),
            "held out": self._collate(evaluator, inside, outside),
        }
        with torch.no_grad():
            start = {name: model(**inputs).cpu().double() for name, inputs in data.items()}
        kernels = self._kernels(model, data, [model.names[stored] for stored in selected], watch)
        targets = numerics.regression_targets(train.labels, start["train"])
        solution = numerics.Solution.of(kernels["train"], targets - start["train"], self.mode, self.ridge)
        moved = {name: solution.moved(kernel) for name, kernel in kernels.items()}
        numbers: dict[Kind, Tensor] = {
            "local_energy": solution.local_energy(kernels["held out"]),
            "movement": (moved["held out"] ** 2).sum(-1),
        }
        logits = {"pre-trained": start, "kernel": {name: start[name] + moved[name] for name in start}}
        if vector is not None:
            features = _tangents(evaluator, vector, data)
            numbers["score"] = (features["held out"][1] ** 2).sum(-1)
            logits["vector, tangent"] = {name: head(sum(both)) for name, both in features.items()}
        settings = self.model_dump(include={"samples", "params", "mode", "ridge", "seed"})
        return KernelRecord(
            model=backbone.ref,
            task=self.task,
            control=self.control,
            settings=KernelSettings(**settings, memory=1e9 * self.memory),
            vector=None if vector is None else vector.ref,
            regime=None if vector is None else vector.info.regime,
            classes=solution.classes,
            parameters=sum(evaluator.pretrained[stored].numel() for stored in selected),
            examples=Examples(train=len(train), task=len(inside), control=len(outside)),
            accuracy={name: _score(outputs, train, inside) for name, outputs in logits.items()},
            spectrum=solution.functions.values.tolist(),
            carried=solution.carried.tolist(),
            carried_share=numerics.CARRIED,
            numbers={kind: _compare(values, len(inside)) for kind, values in numbers.items()},
        )

    def _collate(self, evaluator: "Evaluator", *splits: "Split") -> "Inputs":
        rows = [row for split in splits for row in split.inputs]
        batch = evaluator.backbone.collate(rows, evaluator.task(self.task).max_length)
        return {name: value.to(evaluator.backbone.device) for name, value in batch.items()}

    def _kernels(
        self, model: "Classifier", data: "Mapping[str, Inputs]", params: list[str], watch: Watch
    ) -> "dict[str, Tensor]":
        """Of the training examples, and of the held-out ones against them."""
        from taskvec.tangent.ntk import ntk

        kernels = {}
        for done, (name, inputs) in enumerate(data.items(), start=1):
            other, memory = None if name == "train" else data["train"], 1e9 * self.memory
            kernel = ntk(model, inputs, other, params=params, mode=self.mode, memory=memory)
            kernels[name] = kernel.cpu()
            watch("kernel", done, len(data))
        return kernels


class KernelSettings(Record):
    """What decides an analysis beside model, tasks and vector."""

    samples: int
    params: str
    mode: str
    ridge: float
    seed: int
    memory: float
    """In bytes."""


class Examples(Record):
    """How many there are."""

    train: int
    task: int
    control: int


class Accuracy(Record):
    """On the training examples of the kernel, and on test examples of the task."""

    train: float
    test: float


class Numbers(Record):
    """One number of every held-out example."""

    task: list[float]
    control: list[float]
    auroc: float
    """Probability that an example of the task has the larger number than one of the control."""


class KernelRecord(AnalysisRecord):
    """How well each number tells task from control, accuracies, and the spectrum."""

    analysis: Literal["ntk"] = "ntk"
    model: str
    task: str
    control: str
    settings: KernelSettings
    vector: str | None
    regime: str | None
    classes: int
    parameters: int
    examples: Examples
    accuracy: dict[str, Accuracy]
    spectrum: list[list[float]]
    """Eigenvalues of every block."""
    carried: list[list[bool]]
    """Which eigenfunctions carry the solution."""
    carried_share: float
    numbers: dict[Kind, Numbers]

    def tables(self) -> list[Table]:
        """How well each number tells task from control, and the accuracies."""
        rows = []
        for kind, numbers in self.numbers.items():
            inside, outside = median(numbers.task), median(numbers.control)
            ratio = Mean([inside / max(outside, 1e-300)], ".2f")
            medians = Mean([inside], ".3g"), Mean([outside], ".3g")
            rows.append((_LABELS[kind], Mean([numbers.auroc], ".3f"), *medians, ratio))
        examples, settings = self.examples, self.settings
        separation = Table(
            f"Is it local? {self.task} against {self.control}",
            ("of a held-out example", "AUROC", f"median, {self.task}", f"median, {self.control}", "ratio"),
            rows,
            f"AUROC: probability that an example of {self.task} has the larger number than one of "
            f"{self.control}. Local energy over the {sum(map(sum, self.carried))} of "
            f"{sum(map(len, self.spectrum))} eigenfunctions that hold {100 * self.carried_share:.0f} "
            f"% of the solution. {examples.task} and {examples.control} test examples; kernel of "
            f"{examples.train} training examples, {self.parameters:,} parameters ({settings.params}), "
            f"mode {settings.mode}, ridge {settings.ridge:g}.",
        )
        accuracies = Table(
            f"Accuracy on {self.task}",
            ("", "its training examples", "test examples"),
            [
                (name, percent([accuracy.train]), percent([accuracy.test]))
                for name, accuracy in self.accuracy.items()
            ],
            "Per cent. Kernel: regression on these training examples alone; a vector has seen its own.",
        )
        return [separation, accuracies]

    def figures(self) -> "dict[str, Figure]":
        """Histograms of each number for task and control, and the spectrum."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(3.4 * (len(self.numbers) + 1), 3.2), layout="constrained")
        *histograms, spectrum = figure.subplots(1, len(self.numbers) + 1)
        for ax, (kind, numbers) in zip(histograms, self.numbers.items(), strict=True):
            self._draw_histogram(ax, numbers)
            ax.set_xlabel(_LABELS[kind])
        histograms[0].set_ylabel("share of test examples, %")
        histograms[0].legend(frameon=False, fontsize="small")
        self._draw_spectrum(spectrum)
        for ax in (*histograms, spectrum):
            hide_spines(ax)
        return {"figure": figure}

    def _draw_histogram(self, ax: "Axes", numbers: Numbers) -> None:
        top = max(*numbers.task, *numbers.control)
        bins = [top * place / 24 for place in range(25)]
        sides = ((self.task, numbers.task, "C0"), (self.control, numbers.control, "C1"))
        for label, values, color in sides:
            weights = [100 / len(values)] * len(values)
            ax.hist(values, bins=bins, weights=weights, color=color, alpha=0.6, label=label)
        ax.set_xlim(0, top)
        ax.set_title(f"AUROC {numbers.auroc:.3f}", fontsize="medium")

    def _draw_spectrum(self, ax: "Axes") -> None:
        """Eigenvalues of all blocks; those that carry the solution stand out."""
        blocks = zip(self.spectrum, self.carried, strict=True)
        pairs = [pair for block in blocks for pair in zip(*block, strict=True) if pair[0] > 0]
        ranked = list(enumerate(sorted(pairs, reverse=True), start=1))
        marked = {place: value for place, (value, carried) in ranked if carried}
        ax.plot(
            [place for place, _ in ranked], [value for _, (value, _) in ranked], color="0.6", lw=1, zorder=1
        )
        ax.scatter(list(marked), list(marked.values()), s=9, color="C3", zorder=2, label="carry the solution")
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_xlabel("eigenfunction")
        ax.set_ylabel("eigenvalue")
        ax.legend(frameon=False, fontsize="small")


def _score(logits: "Mapping[str, Tensor]", train: "Split", inside: "Split") -> Accuracy:
    pairs = (logits["train"], train.labels), (logits["held out"][: len(inside)], inside.labels)
    shares = ((outputs.argmax(-1) == labels).double().mean() for outputs, labels in pairs)
    on_train, on_test = map(float, shares)
    return Accuracy(train=on_train, test=on_test)


def _compare(values: "Tensor", inside: int) -> Numbers:
    """Values of the task's examples, then of the control's."""
    from taskvec.studies.numerics.ntk import auroc

    task, control = values[:inside], values[inside:]
    return Numbers(task=task.tolist(), control=control.tolist(), auroc=auroc(task, control))


def _tangents(
    evaluator: "Evaluator", vector: "TaskVector", data: "Mapping[str, Inputs]"
) -> "dict[str, tuple[Tensor, Tensor]]":
    """Features f0 and their derivative J tau along a vector."""
    from taskvec.evaluation.points import dense_deltas

    [deltas] = dense_deltas(evaluator.backbone, [vector])
    tau = {name: delta.float() for name, delta in deltas.items()}
    pairs = {name: evaluator.linearized.jvps([tau], inputs) for name, inputs in data.items()}
    return {name: (value.cpu(), slope.cpu()) for name, (value, [slope]) in pairs.items()}
