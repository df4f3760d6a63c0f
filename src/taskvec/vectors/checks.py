"""Whether two sets of weights, or a vector and a base, fit together; and in which words they do not."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Literal, NamedTuple

from taskvec.errors import InputError, KeyMismatch, and_more
from taskvec.names import goes_by_token, is_lookup
from taskvec.vectors.advice import advise
from taskvec.vectors.info import has_info
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.buffers import is_computed
from taskvec.weights.dtypes import EDITABLE, name_of, raw_bytes
from taskvec.weights.matched import SHOWN, list_some
from taskvec.weights.quantized import check_plain
from taskvec.weights.selecting import Choice

OnExtra = Literal["error", "drop"]
OnMissing = Literal["error", "zero"]

_LEAST = 10
"""One in so many tensors of a base must have a partner."""

_MATCHING = (
    "resize the embeddings to one size, match their tokens (--vocab base, tokenizer_source in mergekit's "
    "YAML), or "
)
"""Advice for whole models of different vocabularies."""


class Fit(NamedTuple):
    """How far the tensors of two models must be the same.

    Attributes:
        on_extra: ``drop`` leaves out tensors that only the fine-tuned model has.
        on_missing: ``zero`` takes tensors that it lacks as unchanged.
        choice: which tensors take part.
        allow_partial: whether a difference of less than a tenth of the base's tensors is meant.
    """

    on_extra: OnExtra = "error"
    on_missing: OnMissing = "error"
    choice: Choice = Choice()
    allow_partial: bool = False


def editable_names(base: Weights, tuned: Weights, fit: Fit) -> list[str]:
    """The tensors that a vector from ``base`` to ``tuned`` consists of, in the order of the base.

    Integers and booleans are no part of a vector. Eight-bit floats and complex numbers are not either,
    but if they differ, the vector would not hold what was trained, so that is an error.

    Raises: KeyMismatch for missing, extra or differing tensors, the first of which is named.
    """
    _check_same_names(base, tuned, fit)
    shared = [name for name in base if name in tuned and fit.choice.takes(name)]
    counting = [name for name in shared if _counts(base.spec(name))]
    _check_specs(tuned.ref, {name: tuned.spec(name) for name in counting}, base)
    _check_still_tied(base, tuned)
    for name in counting:
        if not base.spec(name).editable and not _same_bytes(base, tuned, name):
            raise KeyMismatch(
                f"{tuned.ref}: {name!r} has dtype {name_of(base.spec(name).code)} and differs from the base, "
                f"expected {', '.join(sorted(map(name_of, EDITABLE)))}; convert both models first"
            )
    _check_plain(base, tuned, [name for name in shared if not _counts(base.spec(name))])
    _check_enough(base, tuned, fit)
    return [name for name in base if base.spec(name).editable and fit.choice.takes(name)]


def _check_same_names(base: Weights, tuned: Weights, fit: Fit) -> None:
    extra, missing = _surplus(base, tuned, fit), _lacking(base, tuned, fit)
    if extra and fit.on_extra == "error":
        drop = "leave such tensors out with on_extra=drop (--on-extra drop)"
        raise KeyMismatch(
            f"{tuned.ref}: {extra[0]!r} found, expected no such tensor as the base lacks it{and_more(extra)}"
            f"; {advise(base, tuned, extra, _numbers(tuned, fit), drop, alone=not missing)}"
        )
    if missing and fit.on_missing == "error":
        zero = "take it as unchanged with on_missing=zero (--on-missing zero)"
        raise KeyMismatch(
            f"{tuned.ref}: {missing[0]!r} is missing, expected it as in the base{and_more(missing)}; "
            f"{advise(base, tuned, missing, _numbers(base, fit), zero, alone=not extra)}"
        )


def note_left_out(base: Weights, tuned: Weights, fit: Fit) -> Iterator[str]:
    """Notes on the tensors that only one of two models has, where that is let pass."""
    lacking = [name for name in _numbers(base, fit) if name not in tuned]
    for names, what, why in (
        (_surplus(base, tuned, fit), "left out", "the base lacks"),
        (lacking, "taken as unchanged", "it lacks"),
    ):
        verb, them = ("is", "it") if len(names) == 1 else ("are", "them")
        if names:
            yield f"{tuned.ref}: {list_some(names)} {verb} {what}, as {why} {them}"


def _surplus(base: Weights, tuned: Weights, fit: Fit) -> list[str]:
    """What only the fine-tuned model has."""
    return [name for name in _numbers(tuned, fit) if not _has(base, tuned, name)]


def _lacking(base: Weights, tuned: Weights, fit: Fit) -> list[str]:
    """What it lacks, and the model does not compute."""
    held = (name for name in _numbers(base, fit) if name not in tuned)
    return [name for name in held if not is_computed(name, base.spec(name))]


def _numbers(weights: Weights, fit: Fit) -> list[str]:
    """The tensors that hold numbers and take part."""
    return [name for name in weights if _counts(weights.spec(name)) and fit.choice.takes(name)]


def _check_enough(base: Weights, tuned: Weights, fit: Fit) -> None:
    """Refuse a difference that holds next to nothing, unless it is asked for."""
    held = [name for name in base if base.spec(name).editable]
    shared, choice = [name for name in held if name in tuned], fit.choice
    if choice and shared and not any(choice.takes(name) or name in choice.left for name in shared):
        raise KeyMismatch(
            f"{tuned.ref}: include and exclude leave none of the {len(shared)} floating-point tensors that "
            f"{base.ref} has too, expected some; change the patterns"
        )
    asked = fit.allow_partial or choice
    if held and (not shared or (not asked and _LEAST * len(shared) < len(held))):
        partial = "" if asked or not shared else "; allow_partial=True (--allow-partial) takes them alone"
        raise KeyMismatch(
            f"{tuned.ref}: {len(shared) or 'none'} of the {len(held)} floating-point tensors of {base.ref} "
            "found, expected a tenth or more; say how names correspond with rename (--rename OLD=NEW)"
            f"{partial}"
        )


def _check_plain(base: Weights, tuned: Weights, names: Iterable[str]) -> None:
    """Refuse matrices of integers that differ: weights that are quantized, which no difference describes."""
    for name in names:
        shape, spec = base.spec(name).shape, tuned.spec(name)
        if len(shape) > 1 and shape[0] > 1 and not _is_same(base, tuned, name):
            raise KeyMismatch(
                f"{tuned.ref}: {name!r} has dtype {name_of(spec.code)} and differs from the base, "
                "expected floating-point weights; if both are quantized, convert them back first"
            )


def check_point(weights: Weights) -> None:
    """Refuse a task-vector file, or an adapter, where weights are wanted.

    Raises: InputError.
    """
    check_plain(weights)
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
    fixed = [name for name in vector if not base.spec(name).editable]
    if fixed:
        raise KeyMismatch(
            f"{where}: {fixed[0]!r} has dtype {name_of(base.spec(fixed[0]).code)} in {base.ref}, expected "
            f"a floating-point tensor{and_more(fixed)}"
        )
    _check_specs(where, vector, base, dtypes=False)


def _check_specs(where: str, specs: Mapping[str, TensorSpec], base: Weights, *, dtypes: bool = True) -> None:
    """Compare shapes, and dtypes if asked, with those of the base.

    Raises: KeyMismatch naming the first tensor that differs, and the number of others.
    """
    shaped = [name for name, spec in specs.items() if spec.shape != base.spec(name).shape]
    if shaped:
        have, want = specs[shaped[0]].shape, base.spec(shaped[0]).shape
        transposed = "; was it saved transposed?" if have == want[::-1] else ""
        raise KeyMismatch(
            f"{where}: {shaped[0]!r} has shape {have}, expected {want} as in the base{transposed}"
            f"{and_more(shaped)}{_vocabulary_hint(shaped, specs, base, _MATCHING if dtypes else '')}"
        )
    pairs = ((name, {spec.code, base.spec(name).code}) for name, spec in specs.items())
    typed = [name for name, found in pairs if dtypes and len(found) > 1 and not found <= EDITABLE]
    if typed:
        have_type, want_type = (name_of(spec.code) for spec in (specs[typed[0]], base.spec(typed[0])))
        raise KeyMismatch(
            f"{where}: {typed[0]!r} has dtype {have_type}, expected {want_type} as in the base"
            f"{and_more(typed)}; save both models in the same dtype"
        )


def differing_buffers(base: Weights, tuned: Weights) -> list[str]:
    """Integer and boolean tensors that differ; an edit passes those of the base through."""
    shared = [name for name in base if name in tuned and not _counts(base.spec(name))]
    return [name for name in shared if not _is_same(base, tuned, name)]


def _counts(spec: TensorSpec) -> bool:
    """Whether a tensor holds real or complex numbers, not integers or truth values."""
    return spec.floating or spec.code == "C64"


def _same_bytes(base: Weights, tuned: Weights, name: str) -> bool:
    return raw_bytes(base.read_array(name)) == raw_bytes(tuned.read_array(name))


def _is_same(base: Weights, tuned: Weights, name: str) -> bool:
    return base.spec(name) == tuned.spec(name) and _same_bytes(base, tuned, name)


def _has(base: Weights, tuned: Weights, name: str) -> bool:
    """Whether the base has a tensor of the other model, under this name or one that it is tied to there."""
    return name in base or any(alias in base for alias, kept in tuned.tied.items() if kept == name)


def _check_still_tied(base: Weights, tuned: Weights) -> None:
    for alias, kept in base.tied.items():
        apart = alias in tuned and alias not in tuned.tied and kept in tuned
        if apart and raw_bytes(tuned.read(alias)) != raw_bytes(tuned.read(kept)):
            raise KeyMismatch(
                f"{tuned.ref}: {alias!r} differs from {kept!r}, expected them tied as in the base; "
                "save the base untied first"
            )


def _vocabulary_hint(names: Sequence[str], specs: Mapping[str, TensorSpec], base: Weights, vocab: str) -> str:
    """Words for the commonest cause: another number of tokens."""
    for name in names:
        have, want = specs[name].shape, base.spec(name).shape
        if have and have[1:] == want[1:] and (is_lookup(name) or goes_by_token(name)):
            leave = " ".join(f"--exclude {name}" for name in names[:SHOWN])
            return (
                f"; vocabularies of {have[0]} and {want[0]} tokens: {vocab}leave such tensors out with "
                f"exclude ({leave})"
            )
    return ""
