"""Kernel regression with a tangent kernel, its eigenfunctions, and where a solution made of them lives."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from taskvec.errors import InputError
from taskvec.tangent.ntk import Mode

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
    mean = kernel.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]  # of its eigenvalues
    damped = kernel.double() + ridge * mean * torch.eye(side, dtype=torch.float64)
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


@dataclass(frozen=True)
class Solution:
    """Kernel regression on samples, and the eigenfunctions that it is made of; kernels as `ntk` has them."""

    mode: Mode
    classes: int
    weights: Tensor
    functions: Eigenfunctions
    carried: Tensor

    @classmethod
    def of(cls, kernel: Tensor, residual: Tensor, mode: Mode, ridge: float) -> "Solution":
        """Of the samples' kernel, and y - f0 (N, C)."""
        classes = residual.shape[1]
        parts, outputs = blocks(kernel, mode, classes), outputs_of(residual, mode)
        functions = Eigenfunctions.of(parts)
        carried = functions.carrying(functions.coefficients(outputs, ridge))
        return cls(mode, classes, solve(parts, outputs, ridge), functions, carried)

    def moved(self, kernel: Tensor) -> Tensor:
        """f - f0 (M, C) of samples whose kernel against the solution's is given."""
        return values_of(blocks(kernel, self.mode, self.classes) @ self.weights, self.mode, self.classes)

    def local_energy(self, kernel: Tensor) -> Tensor:
        """:func:`local_energy` of such samples, (M,)."""
        phi = self.functions.at(blocks(kernel, self.mode, self.classes))
        return local_energy(phi, self.carried, self.mode, self.classes)


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
