"""Inputs that contradict themselves or each other: refused if that is a mistake, noted if it may be one.

Every command that edits asks here, before it works. Nothing is read but headers, configs, and a few thousand
entries of a matrix.
"""

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from zipfile import is_zipfile

from taskvec.edits.configs import read_config, read_vocabulary_size
from taskvec.edits.loading import fits_its_config
from taskvec.edits.rows import find_embeddings, find_heads
from taskvec.errors import InputError, TaskvecError, and_more
from taskvec.later import torch
from taskvec.names import count_blocks
from taskvec.reading import shortened
from taskvec.vectors import EditedWeights, TaskVector
from taskvec.vectors.bits import is_plain, plain
from taskvec.weights import Weights, change, open_weights
from taskvec.weights.blocks import row_count, row_size
from taskvec.weights.depth import DEPTHS, PREDICTING, flatten

LOOK = 1 << 12
"""Entries of a matrix that are read to judge how far two models are apart."""

LARGE = 1 << 16
"""Entries above which a matrix that can only be had whole is not looked at."""

_FAR = 0.5
"""Distance of a matrix, in units of its norm, from which on it may be a different one.
Fine-tuning moves matrices by a thousandth to a tenth."""

_APART = 5
"""It must also be so many times as far as the lower quartile of all, which swapped pairs leave alone."""

_WIDTHS = ("hidden_size", "n_embd", "d_model")

_HEADS = frozenset(
    {"num_attention_heads", "num_key_value_heads", "num_kv_heads", "n_head", "n_heads", "num_heads"}
    | {"head_dim", "d_kv", "encoder_attention_heads", "decoder_attention_heads"}
)
"""Settings that decide what the rows of a matrix are, though not how many there are."""

_COMPUTING = frozenset(
    {"model_type", "hidden_act", "hidden_activation", "activation_function", "sliding_window"}
    | {"rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps", "num_experts_per_tok"}
)
"""Settings that decide what weights compute, and that fine-tuning rarely changes."""

_ROPE = re.compile(r"rope|rotary")
_SHARD = re.compile(r"-\d+-of-\d+\.")


def compare_models(models: Sequence[Weights], like: Weights | None) -> list[str]:
    """Notes on the models of one edit, each by itself and compared with the first.

    Args:
        like: the model whose config goes with the output, which must load.

    Raises: InputError for what cannot be meant, with the way out.
    """
    distinct = {model.identity: model for model in map(_opened, models) if model.adapter is None}
    held = list(distinct.values())  # none if all are adapters, which are refused where they are used
    written = None if like is None else _opened(like).identity
    alone = [note for model in held for note in _of_model(model, written=model.identity == written)]
    return alone + [note for model in held[1:] for note in _of_pair(held[0], model)]


def note_distances(base: Weights, vectors: Mapping[str, TaskVector]) -> list[str]:
    """Notes on vectors that lead further from their base than fine-tuning does.

    An unrelated model of the same shapes is as far away as its norm; so is a matrix that was swapped with
    another one, or transposed.
    """
    return [note for name, vector in vectors.items() for note in _of_distance(name, base, vector)]


def _opened(model: Weights) -> Weights:
    """The weights that were opened for a model, also for one that an adapter is applied to."""
    return _opened(model.base) if isinstance(model, EditedWeights) else model


# One model


def _of_model(model: Weights, *, written: bool) -> Iterator[str]:
    config = read_config(model.folder)
    if config and not (_is_file(model) and _SHARD.search(model.ref)):
        yield from _depth(model, config)
        yield from _sizes(model, config, written=written)
        yield from _head(model, config)
        yield from _quantized(model, config)
    yield from _beside(model)


def _depth(model: Weights, config: Mapping[str, Any]) -> Iterator[str]:
    """A number of layers in the config that no stack has.

    Encoder or decoder may be missing. Of more than two stacks only the deepest is compared.
    """
    depths = sorted(count_blocks(model).values(), reverse=True)
    stacks = Counter(depths if len(depths) <= 2 else depths[:1])
    settings = dict(flatten(config))
    stated = Counter(
        value
        for key, value in settings.items()
        # EfficientNet calls four times its blocks its layers.
        if _last(key) in DEPTHS and type(value) is int and f"{_before(key)}num_block_repeats" not in settings
    )
    further = [value for key, value in settings.items() if _last(key) == PREDICTING and type(value) is int]
    if stacks & Counter(depth + more for depth in stated for more in further):
        return
    unstated, idle = stacks - stated, stated - stacks
    if unstated and idle:
        depth = max(unstated)
        nearest = min(idle, key=lambda number: abs(number - depth))
        happens = "are left out" if depth > nearest else "that lack are made at random"
        yield (
            f"{model.ref}: config.json says {nearest} layers, the weights have {depth}; when loaded, layers "
            f"{happens}; correct the config"
        )


def _sizes(model: Weights, config: Mapping[str, Any], *, written: bool) -> Iterator[str]:
    """Sizes in the config that no tensor has; libraries that check shapes refuse to load such a model."""
    for message in (*_vocabulary(model, config), *_width(model, config)):
        if written and "model_type" in config:
            raise InputError(f"{message}, so that the result would not load; correct the config")
        yield f"{message}; correct the config"
    for part in ("text_config", "vision_config"):  # of which a part of the model may lack
        inner = config.get(part)
        if isinstance(inner, Mapping):
            yield from (f"{message}; correct the config" for message in _width(model, inner, f"{part}."))


def _vocabulary(model: Weights, config: Mapping[str, Any]) -> Iterator[str]:
    size, embeddings = read_vocabulary_size(model.folder), find_embeddings(model)
    multiple = config.get("pad_vocab_size_multiple")
    padded = -(-size // multiple) * multiple if size and isinstance(multiple, int) and multiple > 0 else size
    missed = size is not None and embeddings and not {size, padded} & set(embeddings.values())
    if missed and not fits_its_config(model):  # some embed more tokens than their config says
        name, rows = next(iter(embeddings.items()))
        yield f"{model.ref}: config.json says vocab_size {size}, {name!r} has {rows} rows"


def _width(model: Weights, config: Mapping[str, Any], place: str = "") -> Iterator[str]:
    key = next((key for key in _WIDTHS if isinstance(config.get(key), int)), None)
    matrices = [name for name in model if len(model.spec(name).shape) > 1]
    if key and matrices and not any(config[key] in model.spec(name).shape for name in model):
        name = matrices[0]
        yield (
            f"{model.ref}: config.json says {place}{key} {config[key]}, no tensor has that size ({name!r} "
            f"has {model.spec(name).shape})"
        )


def _head(model: Weights, config: Mapping[str, Any]) -> Iterator[str]:
    """An output layer of its own, where the config says that it is the embedding."""
    tied = any(value is True for key, value in flatten(config) if _last(key) == "tie_word_embeddings")
    for head in find_heads(model) if tied else ():
        alike = [name for name in find_embeddings(model) if model.spec(name) == model.spec(head)]
        if alike and not any(_equal(model, name, head) for name in alike):
            yield (
                f"{model.ref}: {head!r} differs from {alike[0]!r}, but config.json has tie_word_embeddings; "
                "when loaded, one of them is lost; set that to false, or remove the tensor that is not meant"
            )


def _equal(model: Weights, name: str, other: str) -> bool:
    return all(
        torch.equal(model.read(name, rows), model.read(other, rows)) for rows in model.row_blocks(name)
    )


def _quantized(model: Weights, config: Mapping[str, Any]) -> Iterator[str]:
    quantized = isinstance(config.get("quantization_config"), Mapping) and "config.json" not in model.texts
    matrices = [model.spec(name) for name in model if len(model.spec(name).shape) > 1]
    if quantized and matrices and all(spec.editable for spec in matrices):
        yield (
            f"{model.ref}: config.json has a quantization_config, but all matrices are plain floating point; "
            "remove it, unless they are to be quantized when loaded"
        )


def _beside(model: Weights) -> Iterator[str]:
    """A pickle in the same folder that holds other weights than the safetensors files that are read."""
    if model.folder is None or _is_file(model) or {file.suffix for file in model.files} != {".safetensors"}:
        return
    for name in ("pytorch_model.bin", "pytorch_model.bin.index.json"):
        file = model.folder / name
        if not file.is_file() or (file.suffix == ".bin" and not is_zipfile(file)):
            continue  # a pickle of before 1.6 would have to be read whole
        try:
            with open_weights(file) as other:
                different = _first_difference(model, other)
        except (TaskvecError, OSError):  # it is not read, so it need not be sound
            continue
        if different is not None:
            yield f"{file}: differs from the safetensors files, first in {different!r}; those are read"


def _first_difference(model: Weights, other: Weights) -> str | None:
    """A floating-point tensor that one of two lacks, or whose shape or first entries differ."""
    held = [(name, each.spec(name)) for each in (model, other) for name in each]
    for name in dict.fromkeys(name for name, spec in held if spec.editable):
        if name not in model or name not in other or model.spec(name).shape != other.spec(name).shape:
            return name
        rows = _looked_at(model, name, first=True)
        pair = [model.read(name, rows), other.read(name, rows)]
        narrow = min((tensor.dtype for tensor in pair), key=lambda dtype: dtype.itemsize)
        if pair[0].dtype != pair[1].dtype:  # saved once more, in another precision
            pair = [tensor.to(narrow) for tensor in pair]
        if not torch.equal(*(tensor.nan_to_num() for tensor in pair)):
            return name
    return None


# Two models


def _of_pair(first: Weights, model: Weights) -> Iterator[str]:
    expected, held = _settings(first), _settings(model)
    different = [key for key in expected if key in held and expected[key] != held[key]]
    wrong = next((key for key in different if _last(key) in _HEADS), None)
    if wrong is not None:
        raise InputError(
            f"{model.ref}: config.json says {wrong} {_text(held[wrong])}, expected {_text(expected[wrong])} "
            f"as in {first.ref}, else the same rows belong to other heads; correct the config that is wrong"
        )
    if different:
        words = ", ".join(f"{key} {_text(held[key])} and {_text(expected[key])}" for key in different)
        yield f"{model.ref}: its config.json and that of {first.ref} differ in what weights compute: {words}"


def _settings(model: Weights) -> dict[str, Any]:
    """The settings that decide what weights compute, by their place in the config."""
    config = read_config(model.folder)
    decisive = ((key, value) for key, value in flatten(config) if _last(key) in _COMPUTING | _HEADS)
    settings = {key: value for key, value in decisive if value is not None}
    return settings | (_rope(config) if config else {})


def _rope(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of rotary embeddings, as transformers 4 or 5 writes them."""
    text = config.get("text_config")
    config = text if isinstance(text, Mapping) else config
    rope = {key: value for key, value in config.items() if _ROPE.search(key) and value is not None}
    for nested in ("rope_scaling", "rope_parameters"):
        inner = rope.pop(nested, None)
        rope |= inner if isinstance(inner, Mapping) else {}
    return {"rope_type": rope.pop("type", "default"), **rope}


def _text(value: object) -> str:
    return shortened(repr(value), 40)


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _before(key: str) -> str:
    return key.removesuffix(_last(key))


def _is_file(model: Weights) -> bool:
    return any(site.chosen for site in model.sites)


# Distances


def _of_distance(title: str, base: Weights, vector: TaskVector) -> Iterator[str]:
    judged = {name: _looked_at(base, name) for name in vector if _is_judged(base, vector, name)}
    glimpses = {name: _glimpse(base, vector, name, rows) for name, rows in judged.items()}
    seen = {name: part for name, part in glimpses.items() if part.norm and part.finite}
    if not seen:
        return
    whole = change.total(part.times(base.spec(name).numel / part.entries) for name, part in seen.items())
    if whole.relative > 1:
        yield (
            f"{title}: {whole.relative:.2g} times the norm of {base.ref} away from it, as far as an "
            "unrelated model; was it fine-tuned from another?"
        )
        return
    # Of those that moved, as an adapter leaves most as they are.
    moved = sorted(part.relative for part in seen.values() if part.distance)
    others = moved[len(moved) // 4] if moved else 0.0
    far = {name: part.relative for name, part in seen.items() if part.relative > max(_FAR, _APART * others)}
    if far:
        tensor = max(far, key=far.__getitem__)
        yield (
            f"{title}: {tensor!r} is {far[tensor]:.2g} times its norm away from that of {base.ref}, others "
            f"{others:.2g} times{and_more(far)}; was it swapped, transposed or made anew?"
        )


def _glimpse(base: Weights, vector: TaskVector, name: str, rows: slice | None) -> change.Change:
    terms, code = vector.terms_at(name), base.spec(name).code
    if is_plain(terms, name) and code in ("F32", "BF16"):  # without torch, if all lies in files
        return change.step_of_array(base.read_array(name, rows), code, plain(terms, name, rows))
    return change.step(base.read(name, rows), vector.read(name, rows))


def _is_judged(base: Weights, vector: TaskVector, tensor: str) -> bool:
    spec = base.spec(tensor)
    return len(spec.shape) > 1 and (spec.numel <= LARGE or (base.in_rows(tensor) and vector.in_rows(tensor)))


def _looked_at(weights: Weights, name: str, *, first: bool = False) -> slice | None:
    """Rows from the middle of a tensor, or the first; ``None`` for all of a small one."""
    shape = weights.spec(name).shape
    if math.prod(shape) <= LOOK or not shape:
        return None
    rows = row_count(shape)
    taken = min(rows, 1 + LOOK // row_size(shape))
    start = 0 if first else (rows - taken) // 2
    return slice(start, start + taken)
