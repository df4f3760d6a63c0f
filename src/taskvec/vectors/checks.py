"""Whether two sets of weights, or a vector and a base, fit together; and in which words they do not."""

import logging
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from taskvec.errors import InputError, KeyMismatch, and_more
from taskvec.names import goes_by_token, is_lookup
from taskvec.vectors.info import has_info
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.dtypes import EDITABLE, raw_bytes, short

OnExtra = Literal["error", "drop"]
OnMissing = Literal["error", "zero"]

_log = logging.getLogger(__name__)


def editable_names(base: Weights, tuned: Weights, *, on_extra: OnExtra, on_missing: OnMissing) -> list[str]:
    """The tensors that a vector from ``base`` to ``tuned`` consists of, in the order of the base.

    Integers and booleans are no part of a vector. Eight-bit floats and complex numbers are not either,
    but if they differ, the vector would not hold what was trained, so that is an error.

    Raises: KeyMismatch for missing, extra or differing tensors, the first of which is named.
    """
    where = tuned.ref
    extra = [name for name in tuned if not _known(name, tuned, base) and _counts(tuned.spec(name))]
    if extra and on_extra == "error":
        raise KeyMismatch(
            f"{where}: {extra[0]!r} found, expected no such tensor as the base lacks it{and_more(extra)}; "
            f"{_prefix_hint(base, tuned) or 'leave such tensors out with on_extra=drop (--on-extra drop)'}"
        )
    if extra:
        _log.warning("%s: %r is left out, as the base lacks it%s", where, extra[0], and_more(extra))
    missing = [name for name in base if name not in tuned and _counts(base.spec(name))]
    if missing and on_missing == "error":
        raise KeyMismatch(
            f"{where}: {missing[0]!r} is missing, expected it as in the base{and_more(missing)}; "
            f"{_prefix_hint(base, tuned) or 'take it as unchanged with on_missing=zero (--on-missing zero)'}"
        )
    shared = [name for name in base if name in tuned and _counts(base.spec(name))]
    check_specs(where, {name: tuned.spec(name) for name in shared}, base)
    _check_still_tied(base, tuned)
    for name in shared:
        if base.spec(name).dtype not in EDITABLE and raw_bytes(base.read(name)) != raw_bytes(
            tuned.read(name)
        ):
            raise KeyMismatch(
                f"{where}: {name!r} has dtype {short(base.spec(name).dtype)} and differs from the base, "
                f"expected {', '.join(sorted(map(short, EDITABLE)))}; convert both models first"
            )
    _check_plain(base, tuned)
    return [name for name in base if base.spec(name).dtype in EDITABLE]


def _check_plain(base: Weights, tuned: Weights) -> None:
    """Refuse matrices of integers that differ: weights that are quantized, which no difference describes."""
    for name in base:
        spec = base.spec(name)
        if name in tuned and not _counts(spec) and len(spec.shape) > 1 and spec.shape[0] > 1:
            other = tuned.spec(name)
            if spec != other or raw_bytes(base.read(name)) != raw_bytes(tuned.read(name)):
                raise KeyMismatch(
                    f"{tuned.ref}: {name!r} has dtype {short(other.dtype)} and differs from the base, "
                    "expected floating-point weights; if both are quantized, convert them back first"
                )


def check_point(weights: Weights) -> None:
    """Refuse a task-vector file, or an adapter, where weights are wanted.

    Raises: InputError.
    """
    if weights.adapter is not None:
        raise InputError(f"{weights.ref}: holds a LoRA adapter, expected the weights of a model")
    if has_info(weights):
        raise InputError(f"{weights.ref}: holds a task vector, expected the weights of a model")


def check_fits(where: str, vector: Mapping[str, TensorSpec], base: Weights) -> None:
    """Refuse a vector that is not one of ``base``'s space.

    Raises: KeyMismatch for tensors that the base lacks, holds as integers, or in another shape.
    """
    foreign = [name for name in vector if name not in base]
    if foreign:
        raise KeyMismatch(
            f"{where}: {foreign[0]!r} found, expected a tensor of the base {base.ref}{and_more(foreign)}; "
            "was it taken from another model?"
        )
    fixed = [name for name in vector if base.spec(name).dtype not in EDITABLE]
    if fixed:
        raise KeyMismatch(
            f"{where}: {fixed[0]!r} has dtype {short(base.spec(fixed[0]).dtype)} in {base.ref}, expected "
            f"a floating-point tensor{and_more(fixed)}"
        )
    check_specs(where, vector, base, dtypes=False)


def check_specs(where: str, found: Mapping[str, TensorSpec], base: Weights, *, dtypes: bool = True) -> None:
    """Compare shapes, and dtypes if asked, with those of the base.

    Raises: KeyMismatch naming the first tensor that differs, and the number of others.
    """
    shaped = [name for name, spec in found.items() if spec.shape != base.spec(name).shape]
    if shaped:
        cause = _vocabulary(shaped, found, base)
        raise KeyMismatch(f"{where}: {_shape_words(shaped[0], found, base)}{and_more(shaped)}{cause}")
    typed = [name for name, spec in found.items() if dtypes and spec.dtype != base.spec(name).dtype]
    if typed:
        have, want = found[typed[0]].dtype, base.spec(typed[0]).dtype
        raise KeyMismatch(
            f"{where}: {typed[0]!r} has dtype {short(have)}, expected {short(want)} as in the base"
            f"{and_more(typed)}; save both models in the same dtype"
        )


def differing_buffers(base: Weights, tuned: Weights) -> list[str]:
    """Integer and boolean tensors that differ; an edit passes those of the base through."""
    return [
        name
        for name in base
        if name in tuned
        and not _counts(base.spec(name))
        and (base.spec(name) != tuned.spec(name) or not torch.equal(base.read(name), tuned.read(name)))
    ]


def _counts(spec: TensorSpec) -> bool:
    """Whether a tensor holds real or complex numbers, not integers or truth values."""
    return spec.dtype.is_floating_point or spec.dtype.is_complex


def _known(name: str, tuned: Weights, base: Weights) -> bool:
    """Whether the base has the tensor, under this name or one that it is tied to."""
    return name in base or any(alias in base for alias, kept in tuned.tied.items() if kept == name)


def _check_still_tied(base: Weights, tuned: Weights) -> None:
    for alias, kept in base.tied.items():
        apart = alias in tuned and alias not in tuned.tied and kept in tuned
        if apart and raw_bytes(tuned.read(alias)) != raw_bytes(tuned.read(kept)):
            raise KeyMismatch(
                f"{tuned.ref}: {alias!r} differs from {kept!r}, expected them tied as in the base; "
                "save the base untied first"
            )


def _shape_words(name: str, found: Mapping[str, TensorSpec], base: Weights) -> str:
    have, want = found[name].shape, base.spec(name).shape
    transposed = "; was it saved transposed?" if have == want[::-1] else ""
    return f"{name!r} has shape {have}, expected {want} as in the base{transposed}"


def _vocabulary(names: Sequence[str], found: Mapping[str, TensorSpec], base: Weights) -> str:
    """Words for the commonest cause: another number of tokens."""
    for name in names:
        have, want = found[name].shape, base.spec(name).shape
        if have and have[1:] == want[1:] and (is_lookup(name) or goes_by_token(name)):
            return (
                f"; vocabularies of {have[0]} and {want[0]} tokens: resize the embeddings to one size, "
                "or match their tokens (--vocab base, tokenizer_source in mergekit's YAML)"
            )
    return ""


def _prefix_hint(base: Weights, tuned: Weights) -> str:
    """Words for names that differ by a leading ``model.`` or the like."""
    for one, other, has, lacks in ((tuned, base, "tuned", "base"), (base, tuned, "base", "tuned")):
        longer, shorter = next(iter(one), ""), next(iter(other), "")
        prefix = longer.split(".")[0] + "."
        if longer and shorter and all(prefix + name in one for name in other):
            return (
                f"names start with {prefix!r} in the {has} model but not in the {lacks} one; save both alike"
            )
    return ""
