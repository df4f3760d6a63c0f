"""What lies in the folder of a LoRA adapter: factors, and what was saved whole beside them."""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch

from taskvec.errors import KeyMismatch
from taskvec.names import CLASSIFIERS
from taskvec.vectors.delta import computing
from taskvec.vectors.lora.settings import Settings, read_settings
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.dtypes import EDITABLE, compute_dtype, raw_bytes, short

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector)(?:(?<=vector)\.weight)?"
)
_WRAPPER = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")


@dataclass(frozen=True)
class Layer:
    """The tensors of one adapted layer, by their names in the file.

    Attributes:
        module: the layer's name in the model.
        a: (rank, in, ...).
        b: (out, rank, ...).
        embedding: whether the layer looks up the columns of ``b a``.
        magnitude: (out,), the lengths that DoRA gives the rows, if it is one.
        bias: (out,), added to the layer's bias, if there is one.
    """

    module: str
    a: str
    b: str
    scaling: float
    embedding: bool
    magnitude: str | None
    bias: str | None


@dataclass(frozen=True)
class Product:
    """``scaling b a``; by rows of ``b``, or of ``a`` where the layer keeps its weights transposed.

    ``start`` are the weights that it was added to in training, where they were saved too.
    """

    layer: Layer
    transposed: bool
    start: str | None = None


@dataclass(frozen=True)
class Shift:
    """``scaling b`` for a bias."""

    key: str
    scaling: float


@dataclass(frozen=True)
class Saved:
    """A tensor that was trained and saved whole; the direction is what it differs from the base by."""

    key: str


Piece = Product | Shift | Saved


@dataclass(frozen=True)
class Contents:
    """The changes of tensors that lie in a folder.

    Attributes:
        weights: that hold the factors.
        settings: what they stand for.
        pieces: the changes, by the names of the adapter or, once it was fitted, of a base.
        specs: shape, and dtype of computing, of every tensor, changed or not.
    """

    weights: Weights
    settings: Settings
    pieces: Mapping[str, Piece]
    specs: Mapping[str, TensorSpec]

    @property
    def relative(self) -> bool:
        """Whether some changes are known only relative to the weights of the base."""
        return any(map(_is_relative, self.pieces.values()))


def _is_relative(piece: Piece) -> bool:
    if isinstance(piece, Product):
        return bool(piece.layer.magnitude or piece.start)
    return isinstance(piece, Saved)


def read_contents(weights: Weights) -> Contents:
    """The contents of the adapter whose factors ``weights`` are.

    Raises: InputError for a kind of adapter that is no known change of weights; CorruptFile; KeyMismatch for
        a tensor without its partner, of another rank, or not explained by the settings; for a layer that is
        there twice, or is not there though the settings say that it was saved whole.
    """
    assert weights.adapter is not None, f"{weights.ref} is no adapter"
    settings = read_settings(weights.adapter)
    layers, saved = _read_parts(weights, settings)
    pieces: dict[str, Piece] = {}
    specs: dict[str, TensorSpec] = {}
    for layer in layers:
        for name, piece, spec in _pieces_of(weights, layer):
            pieces[name], specs[name] = piece, spec
    for name, key in saved.items():
        changed = pieces.get(name)
        if isinstance(changed, Shift):
            raise KeyMismatch(
                f"{weights.ref}: {name!r} is changed and saved whole ({key!r}), expected one of them"
            )
        if isinstance(changed, Product):
            pieces[name] = replace(changed, start=key)
        else:
            pieces[name], specs[name] = Saved(key), computing(weights.spec(key))
    return Contents(weights, settings, pieces, specs)


def _pieces_of(weights: Weights, layer: Layer) -> Iterator[tuple[str, Piece, TensorSpec]]:
    """What a layer changes, by name, and its spec."""
    a, b = weights.spec(layer.a), weights.spec(layer.b)
    dtype = compute_dtype(torch.promote_types(a.dtype, b.dtype))
    shape = (b.shape[0], math.prod(a.shape[1:]))
    spec = TensorSpec(shape[::-1] if layer.embedding else shape, dtype)
    yield f"{layer.module}.weight", Product(layer, layer.embedding), spec
    if layer.bias is not None:
        yield f"{layer.module}.bias", Shift(layer.bias, layer.scaling), TensorSpec(shape[:1], dtype)


def _read_parts(weights: Weights, settings: Settings) -> tuple[list[Layer], dict[str, str]]:
    """The layers of an adapter, and the tensors saved whole: name in the model -> name in the file."""
    parts: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    for key in weights:
        name = key.removeprefix("base_model.model.")
        match = _PART.fullmatch(name)
        if match:
            _check_floating(weights, key)
            _keep_once(weights, parts.setdefault(match["module"], {}), match["part"], key)
        elif "lora_" in name:
            raise KeyMismatch(
                f"{weights.ref}: {key!r} found, expected lora_A.weight, lora_B.weight, lora_B.bias, "
                "lora_embedding_A, lora_embedding_B or lora_magnitude_vector"
            )
        elif ".original_module." not in name:  # what a layer was before it was trained whole
            _keep_once(weights, saved, _WRAPPER.sub("", name), key)
    _check_saved(weights, settings, saved)
    if not parts:
        raise KeyMismatch(f"{weights.ref}: no factors of a layer in it, expected lora_A and lora_B of some")
    return [_layer(weights, settings, module, keys) for module, keys in parts.items()], saved


def _keep_once(weights: Weights, keys: dict[str, str], name: str, key: str) -> None:
    """Note which tensor of the file something is; PEFT writes biases of heads twice, which are equal.

    Raises: KeyMismatch if another tensor, with other content, is the same thing.
    """
    first = keys.setdefault(name, key)
    if first != key and raw_bytes(weights.read(first)) != raw_bytes(weights.read(key)):
        raise KeyMismatch(
            f"{weights.ref}: {first!r} and {key!r} are the same part of the same layer, expected one; "
            "remove the one that is not meant"
        )


def _check_saved(weights: Weights, settings: Settings, saved: Mapping[str, str]) -> None:
    """Refuse an adapter that lacks what it says was trained whole.

    Raises: KeyMismatch.
    """
    present = [f".{name}" for name in saved]
    missing = [
        module for module in settings.modules_to_save or () if not any(f".{module}." in n for n in present)
    ]
    if any(module not in missing for module in CLASSIFIERS):  # PEFT lists every name that a head may have
        missing = [module for module in missing if module not in CLASSIFIERS]
    if missing:
        raise KeyMismatch(
            f"{weights.ref}: no tensor of {missing[0]!r}, expected it saved whole as modules_to_save in "
            "adapter_config.json says; save the adapter again, or remove the name there if it was not trained"
        )


def _layer(weights: Weights, settings: Settings, module: str, keys: Mapping[str, str]) -> Layer:
    embedding = "lora_embedding_A" in keys or "lora_embedding_B" in keys
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    wanted = {*names}
    wanted |= {"lora_magnitude_vector"} if settings.use_dora else set()
    wanted |= {"lora_B.bias"} if settings.lora_bias and not embedding else set()
    missing, extra = sorted(wanted - keys.keys()), sorted(keys.keys() - wanted)
    if missing:
        name, partner = f"{module}.{missing[0]}", next(iter(keys.values()))
        raise KeyMismatch(f"{weights.ref}: {name!r} is missing, expected it beside {partner!r}")
    if extra:
        raise KeyMismatch(
            f"{weights.ref}: {keys[extra[0]]!r} found, expected none by the adapter's settings "
            f"(use_dora {settings.use_dora}, lora_bias {settings.lora_bias})"
        )
    a, b = (keys[name] for name in names)
    rank, (inner, outer) = settings.rank(module), (weights.spec(a).shape, weights.spec(b).shape)
    if min(len(inner), len(outer)) < 2 or inner[0] != rank or math.prod(outer[1:]) != rank:
        raise KeyMismatch(
            f"{weights.ref}: {a!r} has shape {inner} and {b!r} {outer}, expected rank {rank} as in the "
            "settings: (rank, in) and (out, rank)"
        )
    magnitude, bias = keys.get("lora_magnitude_vector"), keys.get("lora_B.bias")
    for vector in (magnitude, bias):
        if vector and math.prod(weights.spec(vector).shape) != outer[0]:
            shape = weights.spec(vector).shape
            raise KeyMismatch(f"{weights.ref}: {vector!r} has shape {shape}, expected {outer[:1]}")
    return Layer(module, a, b, settings.scaling(module), embedding, magnitude, bias)


def _check_floating(weights: Weights, key: str) -> None:
    dtype = weights.spec(key).dtype
    if dtype not in EDITABLE:
        raise KeyMismatch(f"{weights.ref}: {key!r} has dtype {short(dtype)}, expected floating point")
