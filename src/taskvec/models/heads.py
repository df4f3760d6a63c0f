"""Frozen classification heads: zero-shot, from prompts, and linear probes."""

import json
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np
import torch
import xxhash
from torch import Tensor, nn
from torch.nn.functional import linear, normalize

from taskvec.arguments import checked
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone

HeadKind = Literal["zero-shot", "linear-probe", "own"]


class Head(nn.Module):
    """A frozen affine map from features to logits, after L2-normalising the feature if ``normalize``.

    Args:
        weight: (C, d), float.
        bias: (C,) or none.
        classes: C names.
        before: frozen layers of a deeper head, which the feature goes through first.
    """

    weight: Tensor
    bias: Tensor | None

    @checked
    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None,
        *,
        normalize: bool,
        classes: Sequence[str],
        kind: HeadKind,
        before: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if len(classes) != len(weight):
            raise InputError(f"head: {len(classes)} classes for a weight of {len(weight)} rows")
        self.register_buffer("weight", weight.detach().clone())
        self.register_buffer("bias", None if bias is None else bias.detach().clone())
        self.normalize = normalize
        self.classes = tuple(classes)
        self.kind: HeadKind = kind
        self.before = before

    def forward(self, features: Tensor) -> Tensor:
        """Logits (..., C) of features (..., d)."""
        if self.before is not None:
            features = self.before(features)
        return linear(normalize(features, dim=-1) if self.normalize else features, self.weight, self.bias)

    def at(self, params: Mapping[str, Tensor]) -> "Head":
        """The head of a model with these parameters: itself, unless it is the model's own."""
        return self

    def moving(self, params: Mapping[str, Tensor]) -> "Head":
        """The same, and gradients flow into the parameters."""
        return self

    def fingerprint(self) -> str:
        """Digest of kind, classes and numbers."""
        digest = xxhash.xxh3_128(json.dumps([self.kind, self.normalize, self.classes]).encode())
        for tensor in (self.weight, self.bias, *(self.before.state_dict().values() if self.before else ())):
            if tensor is not None:
                digest.update(np.ascontiguousarray(tensor.cpu().numpy()).tobytes())
        return digest.hexdigest()


class Classifier(nn.Module):
    """A backbone behind a frozen head, called like the backbone: logits (N, C)."""

    def __init__(self, backbone: Backbone, head: Head) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, **batch: Tensor) -> Tensor:
        """Logits of a collated batch."""
        logits: Tensor = self.head(self.backbone(**batch))
        return logits

    @property
    def names(self) -> dict[str, str]:
        """What the encoder's parameters are called in here, by their names in the checkpoint."""
        return {stored: f"backbone.network.{inside}" for inside, stored in self.backbone.names.items()}


def prompts(
    classes: Sequence[str], templates: Sequence[str], wordings: Mapping[str, Sequence[str]] | None = None
) -> list[list[str]]:
    """The prompts of each class: every template filled with every wording of its name.

    >>> prompts(["cat", "dog"], ["a {}", "one {}"], {"dog": ["dog", "hound"]})
    [['a cat', 'one cat'], ['a dog', 'a hound', 'one dog', 'one hound']]
    """
    given = wordings or {}
    return [
        [template.replace("{}", wording) for template in templates for wording in given.get(name, [name])]
        for name in classes
    ]


def zero_shot_head(
    backbone: Backbone,
    classes: Sequence[str],
    templates: Sequence[str] = ("{}",),
    wordings: Mapping[str, Sequence[str]] | None = None,
) -> Head:
    """Logits that compare a feature with the embeddings of class prompts.

        w_c = scale * unit(mean over prompts p of c of unit(text(p))),      logits = W unit(z)

    Args:
        templates: each with one ``{}`` for the name of the class.
        wordings: what takes the place of a class's name, where the name itself does not describe it well.

    Source: the zero-shot classifier of CLIP, arXiv:2103.00020.
    """
    by_class = prompts(classes, templates, wordings)
    embedded = normalize(backbone.embed_text([p for of_class in by_class for p in of_class]), dim=-1)
    means = [chunk.mean(0) for chunk in torch.split(embedded, [len(of_class) for of_class in by_class])]
    weight = backbone.logit_scale * normalize(torch.stack(means), dim=-1)
    return Head(weight, None, normalize=True, classes=classes, kind="zero-shot")


def linear_probe(features: Tensor, labels: Tensor, classes: Sequence[str], *, strength: float = 10.0) -> Head:
    """A logistic regression on L2-normalised features, fitted once and then frozen.

    Args:
        features: (N, d). labels: (N,), int64, 0..C-1. Classes without an example keep a logit of their own
            that is never the largest on the training data.
        strength: inverse of the L2 penalty.

    Deterministic: full-batch L-BFGS from zero.
    Raises: InputError when the labels are all of one class.
    """
    from sklearn.linear_model import LogisticRegression

    if len(set(labels.tolist())) < 2:
        raise InputError(f"linear probe: {len(labels)} examples of one class, expected two classes or more")
    x = normalize(features.detach().double(), dim=-1).cpu().numpy()
    fitted = LogisticRegression(C=strength, max_iter=1000).fit(x, labels.cpu().numpy())
    coef, intercept = torch.from_numpy(fitted.coef_), torch.from_numpy(fitted.intercept_)
    if len(fitted.classes_) == 2:
        coef, intercept = torch.cat([-coef, coef]) / 2, torch.cat([-intercept, intercept]) / 2
    weight = torch.zeros(len(classes), features.shape[1], dtype=coef.dtype)
    bias = torch.full((len(classes),), float(intercept.min()) - 10, dtype=coef.dtype)
    seen = torch.from_numpy(fitted.classes_)
    weight[seen], bias[seen] = coef, intercept
    return Head(weight.float(), bias.float(), normalize=True, classes=classes, kind="linear-probe")


def ridge_probe(features: Tensor, labels: Tensor, name: str = "ridge probe") -> Head:
    """A ridge regression on L2-normalised features, fitted once and then frozen; its strength by
    generalised cross-validation.

    Args:
        features: (N, d). labels: (N,), float.
        name: what the labels are of, for messages.

    Raises: InputError when all labels are the same.
    """
    from sklearn.linear_model import RidgeCV

    x, y = normalize(features.detach().double(), dim=-1).cpu().numpy(), labels.double().cpu().numpy()
    if np.ptp(y) == 0:
        raise InputError(f"{name}: all {len(y)} training labels are {y[0]:g}, expected different numbers")
    fitted = RidgeCV(alphas=np.logspace(-4, 4, 17)).fit(x, y)
    weight, bias = torch.from_numpy(fitted.coef_)[None], torch.tensor([float(fitted.intercept_)])
    return Head(weight.float(), bias, normalize=True, classes=["number"], kind="linear-probe")
