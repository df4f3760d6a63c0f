"""What the tangent kernel of a pre-trained model says about a task: its solution, and where that lives."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from taskvec.errors import InputError
from taskvec.evaluation.evaluator import Evaluator
from taskvec.evaluation.points import dense_deltas
from taskvec.models.backbone import Backbone
from taskvec.models.heads import Head
from taskvec.names import select_names
from taskvec.progress import Watch, unwatched
from taskvec.tangent.ntk import Mode, ntk
from taskvec.tasks.source import SplitName
from taskvec.vectors import TaskVector

CARRIED = 0.95
"""Share of the solution's energy on its own data that the eigenfunctions called *carrying* hold."""


def blocks(kernel: Tensor, mode: Mode, classes: int) -> Tensor:
    """A kernel as independent problems: float64 (B, M', N') of samples, or of samples and classes.

    ``full`` is one problem of all outputs, ``class`` one a class. ``trace`` is one that all classes share,
    with the mean of the classes' kernels: ``K = I x trace / C``.

    Args:
        kernel: what :func:`ntk` returns in that mode.
    """
    if mode == "full":
        return kernel.double().reshape(1, kernel.shape[0] * classes, -1)
    return kernel.double().permute(2, 0, 1) if mode == "class" else kernel.double()[None] / classes


def outputs_of(values: Tensor, mode: Mode) -> Tensor:
    """Values (N, C) as right-hand sides of the blocks: float64 (B, N', R)."""
    if mode == "full":
        return values.double().reshape(1, -1, 1)
    return values.double().T[..., None] if mode == "class" else values.double()[None]


def values_of(outputs: Tensor, mode: Mode, classes: int) -> Tensor:
    """The inverse of :func:`outputs_of`: (N, C)."""
    if mode == "full":
        return outputs.reshape(-1, classes)
    return outputs[..., 0].T if mode == "class" else outputs[0]


def ridge_of(kernel: Tensor, ridge: float) -> Tensor:
    """An absolute ridge for each block (B, 1, 1): ``ridge`` in units of the mean eigenvalue."""
    return ridge * kernel.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]


def solve(kernel: Tensor, residual: Tensor, ridge: float = 1e-3) -> Tensor:
    """Weights of kernel regression, (K + ridge)^-1 residual, by a Cholesky factor in float64.

        f(x) = f0(x) + K(x, X) (K(X, X) + ridge)^-1 (y - f0(X))

    is what gradient descent on squared error in tangent space converges to (with ridge 0).

    Args:
        kernel: (B, N', N'), symmetric; see :func:`blocks`. residual: y - f0, (B, N', R).
        ridge: in units of the kernel's mean eigenvalue, so that it does not depend on the model's scale.

    Raises: InputError for a kernel that is not positive definite with this ridge.
    """
    side = kernel.shape[-1]
    damped = kernel.double() + ridge_of(kernel, ridge) * torch.eye(side, dtype=torch.float64)
    factor, failed = torch.linalg.cholesky_ex(damped)
    if bool(failed.any()):
        raise InputError(
            f"kernel regression: the {side} x {side} kernel with ridge {ridge:g} is not positive definite "
            "(equal samples, or fewer parameters than outputs?); take a larger ridge"
        )
    return torch.cholesky_solve(residual.double(), factor)


@dataclass(frozen=True)
class Eigenfunctions:
    """Of a kernel on its data X, continued to any x (Nystrom).

        phi_rho(x) = k(x, X) u_rho / sqrt(lambda_rho),      K(X, X) = sum_rho lambda_rho u_rho u_rho^T

    In this normalisation ``k(x, x') = sum_rho phi_rho(x) phi_rho(x')`` on the data: phi_rho(x) is the
    coordinate of x's gradient along the rho-th principal direction, a unit vector of weight space. On the
    data, the mean of phi_rho^2 is lambda_rho / N'.

    Args:
        values: (B, N'), falling; those below 1e-10 of the largest are zero. vectors: (B, N', N') in columns.
    """

    values: Tensor
    vectors: Tensor

    @classmethod
    def of(cls, kernel: Tensor) -> "Eigenfunctions":
        """Diagonalise (B, N', N') in float64."""
        values, vectors = torch.linalg.eigh(kernel.double())
        values, vectors = values.flip(-1), vectors.flip(-1)
        return cls(torch.where(values > 1e-10 * values[:, :1], values, 0.0), vectors)

    def at(self, kernel: Tensor) -> Tensor:
        """phi (B, M', N') from k(x, X), (B, M', N'); zero for a zero eigenvalue."""
        scale = torch.where(self.values > 0, self.values.rsqrt(), 0.0)
        return kernel.double() @ self.vectors * scale[:, None]

    def coefficients(self, residual: Tensor, ridge: float = 1e-3) -> Tensor:
        """c (B, N', R) of the solution of kernel regression, f - f0 = sum_rho c_rho phi_rho."""
        mean = self.values.mean(-1)[:, None, None]
        damped = self.values[..., None] + ridge * mean
        seen = self.vectors.mT @ residual.double()
        return torch.where(damped > 0, self.values[..., None].sqrt() / damped * seen, 0.0)

    def carrying(self, coefficients: Tensor, share: float = CARRIED) -> Tensor:
        """Which eigenfunctions carry a solution, boolean (B, N').

        The fewest whose energies on the data, lambda_rho c_rho^2, add up to ``share`` of the solution's.
        """
        energy = (self.values[..., None] * coefficients**2).sum(-1)
        order = energy.flatten().argsort(descending=True)
        sums = energy.flatten()[order].cumsum(0)
        count = int((sums < share * sums[-1]).sum()) + 1
        carried = torch.zeros(energy.numel(), dtype=torch.bool)
        carried[order[:count]] = energy.flatten()[order[:count]] > 0
        return carried.view_as(energy)


def local_energy(phi: Tensor, carried: Tensor, mode: Mode, classes: int) -> Tensor:
    """E_loc(x) = sum of phi_rho(x)^2 over the carrying eigenfunctions, and over the classes: (M,).

    Args:
        phi: (B, M', N'). carried: (B, N').

    Source: Ortiz-Jimenez et al. 2023, arXiv:2305.12827, section 5; theirs normalises on the data.
    """
    energy = (phi**2 * carried[:, None]).sum(-1)
    return energy.reshape(-1, classes).sum(-1) if mode == "full" else energy.sum(0)


def auroc(inside: Tensor, outside: Tensor) -> float:
    """Probability that a number of ``inside`` is larger than one of ``outside``; ties count half."""
    from sklearn.metrics import roc_auc_score

    labels = torch.cat([torch.ones(len(inside)), torch.zeros(len(outside))])
    return float(roc_auc_score(labels.numpy(), torch.cat([inside, outside]).double().numpy()))


def regression_targets(labels: Tensor, start: Tensor) -> Tensor:
    """What the logits are to be: ``scale (1[c = label] - 1/C)``, around the mean of each example's logits.

    The scale is the largest distance of a starting logit from that mean, so that targets are as large as the
    logits that the head gives.

    Args:
        labels: (N,). start: f0, (N, C).
    """
    mean = start.mean(-1, keepdim=True)
    onehot = nn.functional.one_hot(labels, start.shape[1]).to(start)
    return mean + (start - mean).abs().max() * (onehot - 1 / start.shape[1])


class Logits(nn.Module):
    """An encoder behind a frozen head, called like the encoder: (N, C)."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, **batch: Tensor) -> Tensor:
        """Logits of a collated batch."""
        logits: Tensor = self.head(self.backbone(**batch))
        return logits


@dataclass(frozen=True)
class Settings:
    """What decides an analysis beside model, tasks and vector.

    Args:
        samples: training examples, and test examples of each task; drawn by ``seed``.
        params: a selection of the encoder's parameters.
        mode: of the kernel; see :func:`blocks`.
        ridge: of the regression, in units of the mean eigenvalue.
    """

    samples: int = 64
    params: str = "all"
    mode: Mode = "trace"
    ridge: float = 1e-3
    seed: int = 0
    memory: float = 4e9


def kernel_analysis(
    evaluator: Evaluator,
    task: str,
    control: str,
    *,
    vector: TaskVector | None = None,
    settings: Settings | None = None,
    watch: Watch = unwatched,
) -> dict[str, Any]:
    """A task in the eyes of the pre-trained model's tangent kernel, beside another task.

    The kernel of the task's own logits is taken on training examples of the task. Three numbers a held-out
    example then ask whether its gradients know the task, for test examples of the task and of the control
    (whose labels are not used): the local energy; the squared movement of its logits by the kernel's
    solution; and with ``vector`` the cheap score ``||J(x) tau||^2`` of its features, by forward mode.

    Args:
        vector: of the task, in any regime; only its displacement counts.

    Returns: plain data: accuracies, the numbers of every example, their AUROC, the spectrum.
    Raises: InputError for unknown tasks, a task as its own control, no parameter selected.
    """
    chosen = settings or Settings()
    if task == control:
        raise InputError(f"{task}: is task and control; take another control")
    head = evaluator.head(task)
    evaluator.task(control)
    model = Logits(evaluator.backbone, head).eval()
    names = _parameters(evaluator, chosen.params)
    train, labels = _drawn(evaluator, task, "train", chosen)
    inside, true = _drawn(evaluator, task, "test", chosen)
    outside, _ = _drawn(evaluator, control, "test", chosen)
    longest, device = evaluator.task(task).max_length, evaluator.backbone.device
    data = {
        name: {key: x.to(device) for key, x in evaluator.backbone.collate(rows, longest).items()}
        for name, rows in (("train", train), ("held out", [*inside, *outside]))
    }
    with torch.no_grad():
        start = {name: model(**inputs).double() for name, inputs in data.items()}
    classes = head.weight.shape[0]

    kernels = {}
    for done, (name, inputs) in enumerate(data.items(), start=1):
        pair = (inputs, None) if name == "train" else (inputs, data["train"])
        found = ntk(model, *pair, params=names, mode=chosen.mode, memory=chosen.memory)
        kernels[name] = blocks(found, chosen.mode, classes)
        watch("kernel", done, len(data))
    targets = regression_targets(labels.to(device), start["train"])
    residual = outputs_of(targets - start["train"], chosen.mode)
    weights = solve(kernels["train"], residual, chosen.ridge)
    moved = {name: values_of(kernel @ weights, chosen.mode, classes) for name, kernel in kernels.items()}
    functions = Eigenfunctions.of(kernels["train"])
    carried = functions.carrying(functions.coefficients(residual, chosen.ridge))
    numbers = {
        "local_energy": local_energy(functions.at(kernels["held out"]), carried, chosen.mode, classes),
        "movement": (moved["held out"] ** 2).sum(-1),
    }

    def accuracies(logits: Mapping[str, Tensor]) -> dict[str, float]:
        held_out = logits["held out"][: len(true)]
        return {"train": _accuracy(logits["train"], labels), "test": _accuracy(held_out, true)}

    accuracy = {
        "pre-trained": accuracies(start),
        "kernel": accuracies({name: start[name] + moved[name] for name in start}),
    }
    if vector is not None:
        features = _tangents(evaluator, vector, data)
        numbers["score"] = (features["held out"][1] ** 2).sum(-1)
        accuracy["vector, tangent"] = accuracies({n: head(sum(both)) for n, both in features.items()})
    return {
        "analysis": "ntk",
        "model": evaluator.backbone.ref,
        "task": task,
        "control": control,
        "settings": asdict(chosen),
        "vector": None if vector is None else vector.ref,
        "regime": None if vector is None else vector.info.regime,
        "classes": classes,
        "parameters": sum(dict(model.named_parameters())[name].numel() for name in names),
        "examples": {"train": len(train), "task": len(inside), "control": len(outside)},
        "accuracy": accuracy,
        "spectrum": functions.values.tolist(),
        "carried": carried.tolist(),
        "carried_share": CARRIED,
        "numbers": {
            kind: {
                "task": found[: len(inside)].tolist(),
                "control": found[len(inside) :].tolist(),
                "auroc": auroc(found[: len(inside)], found[len(inside) :]),
            }
            for kind, found in numbers.items()
        },
    }


def _parameters(evaluator: Evaluator, params: str) -> list[str]:
    """Names within :class:`Logits` of the encoder parameters that a selection holds."""
    stored = select_names(evaluator.pretrained, params, evaluator.backbone.ref)
    inside = {checkpoint: name for name, checkpoint in evaluator.backbone.names.items()}
    return [f"backbone.network.{inside[name]}" for name in stored]


def _drawn(evaluator: Evaluator, task: str, split: SplitName, settings: Settings) -> tuple[list[Any], Tensor]:
    """Some examples of a split, drawn by the seed: inputs and labels."""
    rows = evaluator.split(task, split).draw(settings.samples, settings.seed)
    return list(rows.inputs), rows.labels


def _tangents(
    evaluator: Evaluator, vector: TaskVector, data: Mapping[str, dict[str, Tensor]]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Features f0 and their derivative J tau along a vector."""
    [deltas] = dense_deltas(evaluator.backbone, [vector])
    tau = {name: delta.float() for name, delta in deltas.items()}
    found = {}
    for name, inputs in data.items():
        value, [slope] = evaluator.linearized.jvps([tau], inputs)
        found[name] = (cast(Tensor, value), cast(Tensor, slope))
    return found


def _accuracy(logits: Tensor, labels: Tensor) -> float:
    return float((logits.argmax(-1) == labels.to(logits.device)).double().mean())
