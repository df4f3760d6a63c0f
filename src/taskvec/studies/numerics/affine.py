"""A classifier's predictions at every point of a tangent space, from a few numbers an example."""

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

_STEPS = (1 << 23) - 1
"""Of fixed-point numbers in three bytes, on either side of 0."""

_NOTHING = 1e-30
"""The length of a feature without any: the largest offset decides, as behind a head."""

A = TypeVar("A", bound="np.generic")


@dataclass(frozen=True)
class AffineScores:
    """What an argmax over classes depends on, at every place ``a`` of a tangent space with T directions.

        [1, a] @ numbers[i]  ->  C - 1 margins of class c = 1 ... C-1 over class 0, before the offsets
        class c scores           margin_c + |rest| * offset_c

    For a head that normalises features, scores are those of the logits times the length of the feature: an
    argmax is the same. Without a bias the length cancels. With one, ``rest`` holds R a of a QR decomposition
    of the example's feature and slopes, which is as long as the feature.

    Args:
        numbers: (N, T + 1, K), float32: first the model before any step, then each direction. K is C - 1
            without offsets, and C - 1 + T + 1 with them.
        labels: (N,), int64.
        offsets: (C - 1,), float64, at most 1 in magnitude; none for a head without a bias, or that does not
            normalise, whose bias is in the margins.
    """

    numbers: NDArray[np.float32]
    labels: NDArray[np.int64]
    offsets: NDArray[np.float64] | None = None

    @property
    def classes(self) -> int:
        """C."""
        return 1 + (self.numbers.shape[2] if self.offsets is None else len(self.offsets))

    def predictions(self, coefficients: Sequence[float]) -> NDArray[np.int64]:
        """Predicted classes (N,) at a coefficient for each direction; of equal scores the first."""
        at = np.array([1.0, *coefficients])
        summed = np.einsum("itk,t->ik", self.numbers, at, dtype=np.float64)
        scores = np.zeros((len(summed), self.classes))
        scores[:, 1:] = summed[:, : self.classes - 1]
        if self.offsets is not None:
            length = np.linalg.norm(summed[:, self.classes - 1 :], axis=1, keepdims=True)
            scores[:, 1:] += np.maximum(length, _NOTHING) * self.offsets
        predicted: NDArray[np.int64] = scores.argmax(axis=1).astype(np.int64)
        return predicted

    def accuracy(self, coefficients: Sequence[float]) -> float:
        """Share of the examples that are right there."""
        return float((self.predictions(coefficients) == self.labels).mean())


def affine_scores(
    features: NDArray[np.float64],
    labels: NDArray[np.int64],
    weight: NDArray[np.float64],
    bias: NDArray[np.float64] | None,
    *,
    normalize: bool,
) -> AffineScores:
    """The scores of an affine head.

    Args:
        features: (N, T + 1, d): the pre-trained model's, then slopes J tau_t.
        weight: (C, d). bias: (C,) or none.
        normalize: whether the head divides a feature by its length first.
    """
    numbers = features @ (weight[1:] - weight[:1]).T
    over_first = np.zeros(len(weight) - 1) if bias is None else bias[1:] - bias[0]
    if not normalize:
        numbers[:, 0] += over_first
    largest = float(np.abs(over_first).max())
    if not normalize or largest == 0:
        return AffineScores(numbers.astype(np.float32), labels)
    rest = largest * _lengths(features)
    both = np.concatenate([numbers, rest], axis=2).astype(np.float32)
    return AffineScores(both, labels, over_first / largest)


def _lengths(features: NDArray[np.float64]) -> NDArray[np.float64]:
    """(N, T + 1, T + 1): of every row a shorter one, such that sums of either are equally long."""
    short = np.asarray(np.linalg.qr(np.swapaxes(features, 1, 2), mode="r"))
    rest = np.zeros((*features.shape[:2], features.shape[1]))
    rest[:, :, : short.shape[1]] = np.swapaxes(short, 1, 2)
    return rest


def packed(scores: AffineScores) -> dict[str, object]:
    """The same as plain data: three bytes a number, direction by direction, in steps of its example.

    An example's largest number has 24 bits, as in float32; the others have as many digits behind the point.
    """
    numbers = scores.numbers.astype(np.float64)
    steps = np.abs(numbers).max(axis=(1, 2)) / _STEPS
    steps[steps == 0] = 1.0
    whole = np.rint(numbers / steps[:, None, None]).astype("<i4").transpose(1, 0, 2)
    three = np.ascontiguousarray(whole).view(np.uint8).reshape(-1, 4)[:, :3]
    return {
        "examples": len(numbers),
        "classes": scores.classes,
        "numbers": b64encode(three.tobytes()).decode(),
        "steps": b64encode(steps.astype("<f8").tobytes()).decode(),
        "labels": b64encode(scores.labels.astype("<u2").tobytes()).decode(),
        "offsets": None if scores.offsets is None else scores.offsets.tolist(),
    }


def unpacked(data: Mapping[str, object], directions: int) -> AffineScores:
    """What :func:`packed` says, as a page reads it."""
    three = _array(data["numbers"], np.dtype(np.uint8)).reshape(-1, 3).astype(np.int64)
    whole = ((three @ np.array([1, 1 << 8, 1 << 16])) ^ (1 << 23)) - (1 << 23)
    steps = _array(data["steps"], np.dtype("<f8"))
    numbers = whole.reshape(directions + 1, len(steps), -1).transpose(1, 0, 2) * steps[:, None, None]
    labels = _array(data["labels"], np.dtype("<u2")).astype(np.int64)
    offsets = data["offsets"]
    return AffineScores(numbers.astype(np.float32), labels, None if offsets is None else np.array(offsets))


def _array(text: object, kind: "np.dtype[A]") -> NDArray[A]:
    return np.frombuffer(b64decode(str(text)), kind)
