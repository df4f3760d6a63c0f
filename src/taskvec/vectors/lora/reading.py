"""Adapters as PEFT saves them: factors and rows of layers, and what was saved whole beside them."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

from taskvec.errors import KeyMismatch
from taskvec.names import CLASSIFIERS
from taskvec.vectors.delta import computing
from taskvec.vectors.lora.contents import Contents, Layer, Piece, Product, Rows, Saved, Scales, Stacked
from taskvec.vectors.lora.factors import Found, check_floating, is_pair, pieces_of
from taskvec.vectors.lora.foreign import read_foreign
from taskvec.vectors.lora.keys import Part, check_one_adapter, is_trained, part_of, plain, whole_name
from taskvec.vectors.lora.settings import Settings, read_settings
from taskvec.weights import TensorSpec, Weights
from taskvec.weights.dtypes import raw_bytes

_BASE_LAYER = ".base_layer"

Parts = dict[str, dict[str, str]]
"""Module -> part of its adapter -> key in the file."""


def read_contents(weights: Weights) -> Contents:
    """The contents of the adapter whose factors ``weights`` are.

    Raises: InputError for a kind of adapter that is no known change of weights; CorruptFile; KeyMismatch for
        a tensor without its partner, of another rank, or not explained by the settings; for a layer that is
        there twice, or is not there though the settings say that it was saved whole.
    """
    assert weights.adapter is not None, f"{weights.ref} is no adapter"
    foreign = read_foreign(weights)
    if foreign is not None:
        return foreign
    settings = read_settings(weights.adapter)
    parts, saved = _read_parts(weights)
    if not parts and settings.peft_type != "LN_TUNING":
        raise KeyMismatch(f"{weights.ref}: no factors of a layer in it, expected lora_A and lora_B of some")
    _check_saved(weights, settings, saved)
    pieces: dict[str, Piece] = {}
    specs: dict[str, TensorSpec] = {}
    for name, piece, spec in _read_pieces(weights, settings, parts):
        pieces[name] = piece
        if spec is not None:
            specs[name] = spec
    for name, key in saved.items():
        pieces[name] = _on_saved(weights, name, key, pieces.get(name))
        specs.setdefault(name, computing(weights.spec(key)))
    return Contents(weights, settings, pieces, specs)


def _on_saved(weights: Weights, name: str, key: str, changed: Piece | None) -> Piece:
    """A tensor that was saved whole, or a change that starts from it."""
    if isinstance(changed, Product | Rows):
        return replace(changed, start=key)
    if changed is None or isinstance(changed, Scales):
        return changed or Saved(key)
    raise KeyMismatch(f"{weights.ref}: {name!r} is changed and saved whole ({key!r}), expected one of them")


def _read_parts(weights: Weights) -> tuple[Parts, dict[str, str]]:
    """The parts of layers, and the tensors saved whole: name in the model -> name in the file."""
    read: list[tuple[str, str, Part | None]] = []
    for key in weights:
        name = plain(key)
        part = part_of(name)
        if part is None and "lora_" in name:
            raise KeyMismatch(
                f"{weights.ref}: {key!r} found, expected lora_A.weight, lora_B.weight, lora_B.bias, "
                "lora_embedding_A, lora_embedding_B or lora_magnitude_vector"
            )
        read.append((key, name, part))
    adapters = check_one_adapter(weights.ref, (part.adapter for _, _, part in read if part is not None))
    parts: Parts = {}
    saved: dict[str, str] = {}
    for key, name, part in read:
        if part is not None:
            check_floating(weights, key)
            _keep_once(weights, parts.setdefault(part.module, {}), part.part, key)
        elif is_trained(name):
            _keep_once(weights, saved, whole_name(name, adapters), key)
    return parts, saved


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


def _read_pieces(weights: Weights, settings: Settings, parts: Parts) -> Iterator[Found]:
    stacks: dict[str, list[str]] = {}
    for module, keys in parts.items():
        if "ia3_l" in keys:
            _check_kind(weights, settings, keys["ia3_l"], "IA3")
            _check_parts(weights, settings, module, keys, {"ia3_l"})
            yield f"{module}.weight", Scales(keys["ia3_l"], settings.is_feedforward(module)), None
        elif "trainable_tokens_delta" in keys:
            _check_parts(weights, settings, module, keys, {"trainable_tokens_delta"})
            yield f"{module}.weight", _rows(weights, settings, module, keys["trainable_tokens_delta"]), None
        elif _is_stacked(weights, settings, module, keys):
            stacks.setdefault(_unwrapped(module), []).append(module)
        else:
            _check_kind(weights, settings, next(iter(keys.values())), "LORA")
            yield from pieces_of(weights, _layer(weights, settings, module, keys))
    for module, wrappers in stacks.items():
        yield from _stacked(weights, settings, module, [parts[w] for w in sorted(wrappers, key=len)[::-1]])
    _check_tokens(weights, settings, parts)


def _check_kind(weights: Weights, settings: Settings, key: str, kind: str) -> None:
    if settings.peft_type != kind:
        raise KeyMismatch(
            f"{weights.adapter}: an adapter of the kind {settings.peft_type}, expected {kind}, "
            f"as {weights.ref} holds {key!r}; is it the file of another adapter?"
        )


def _check_tokens(weights: Weights, settings: Settings, parts: Parts) -> None:
    if settings.trainable_token_indices and not any("trainable_tokens_delta" in p for p in parts.values()):
        raise KeyMismatch(
            f"{weights.adapter}: 'trainable_token_indices' is set, but {weights.ref} holds no "
            "trainable_tokens_delta, expected the rows of these tokens; save the adapter again"
        )


def _unwrapped(module: str) -> str:
    while module.endswith(_BASE_LAYER):
        module = module.removesuffix(_BASE_LAYER)
    return module


def _rows(weights: Weights, settings: Settings, module: str, key: str) -> Rows:
    indices, shape = settings.tokens(module), weights.spec(key).shape
    if len(shape) != 2 or shape[0] != len(indices) or len(set(indices)) != len(indices):
        raise KeyMismatch(
            f"{weights.ref}: {key!r} has shape {shape}, expected a row for each of the {len(indices)} "
            "tokens that adapter_config.json names"
        )
    return Rows(key, indices)


def _is_stacked(weights: Weights, settings: Settings, module: str, keys: Mapping[str, str]) -> bool:
    """Whether the factors are of a parameter with a matrix for each expert, not of a layer.

    A target such as ``gate_up_proj`` may be a parameter of any module; the number of factors tells of which.
    """
    names = [name for name in settings.parameters(_unwrapped(module)) if name != "weight"]
    if not names or keys.keys() != {"lora_A.weight", "lora_B.weight"}:
        return False
    inner, layer = weights.spec(keys["lora_A.weight"]).shape, _unwrapped(module)
    meant = any(f"{layer}.{name}" in (settings.target_parameters or ()) for name in names)
    return meant or module.endswith(_BASE_LAYER) or inner[:1] != (settings.rank(module),)


def _stacked(
    weights: Weights, settings: Settings, module: str, layers: list[dict[str, str]]
) -> Iterator[Found]:
    """The factors of the parameters of one module, innermost first: PEFT wraps them in their order."""
    names = settings.parameters(module)
    if len(names) < len(layers):
        raise KeyMismatch(
            f"{weights.ref}: factors of {len(layers)} parameters of {module!r} found, expected "
            f"{len(names)}, as target_parameters in adapter_config.json says"
        )
    for name, keys in zip(names, layers, strict=False):
        yield f"{module}.{name}", read_stacked(weights, settings, f"{module}.{name}", keys), None


def read_stacked(weights: Weights, settings: Settings, name: str, keys: Mapping[str, str]) -> Stacked:
    """The factors of a parameter with a matrix for each expert.

    Raises: KeyMismatch for one of them alone, or of another rank.
    """
    _check_parts(weights, settings, name, keys, {"lora_A.weight", "lora_B.weight"})
    a, b = keys["lora_A.weight"], keys["lora_B.weight"]
    rank, inner, outer = settings.rank(name), weights.spec(a).shape, weights.spec(b).shape
    if len(inner) != 2 or len(outer) != 2 or inner[0] != outer[1] or inner[0] % rank:
        raise KeyMismatch(
            f"{weights.ref}: {a!r} has shape {inner} and {b!r} {outer}, expected a multiple of rank {rank} "
            "as in the settings: (experts rank, in) and (out, rank experts)"
        )
    return Stacked(Layer(name, a, b, settings.scaling(name)), inner[0] // rank)


def _check_parts(
    weights: Weights, settings: Settings, module: str, keys: Mapping[str, str], wanted: set[str]
) -> None:
    """Refuse a layer that lacks a part, or has one that nothing explains.

    Raises: KeyMismatch.
    """
    missing, extra = sorted(wanted - keys.keys()), sorted(keys.keys() - wanted)
    if missing:
        name, partner = f"{module}.{missing[0]}", next(iter(keys.values()))
        raise KeyMismatch(f"{weights.ref}: {name!r} is missing, expected it beside {partner!r}")
    if extra:
        raise KeyMismatch(
            f"{weights.ref}: {keys[extra[0]]!r} found, expected none by the adapter's settings "
            f"(use_dora {settings.use_dora}, lora_bias {settings.lora_bias})"
        )


def _layer(weights: Weights, settings: Settings, module: str, keys: Mapping[str, str]) -> Layer:
    embedding = "lora_embedding_A" in keys or "lora_embedding_B" in keys
    names = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A.weight", "lora_B.weight")
    wanted = {*names}
    wanted |= {"lora_magnitude_vector"} if settings.use_dora else set()
    wanted |= {"lora_B.bias"} if settings.lora_bias and not embedding else set()
    _check_parts(weights, settings, module, keys, wanted)
    a, b = (keys[name] for name in names)
    rank, (inner, outer) = settings.rank(module), (weights.spec(a).shape, weights.spec(b).shape)
    if not is_pair(inner, outer) or inner[0] != rank or math.prod(outer[1:]) != rank:
        raise KeyMismatch(
            f"{weights.ref}: {a!r} has shape {inner} and {b!r} {outer}, expected rank {rank} as in the "
            "settings: (rank, in) and (out, rank)"
        )
    magnitude, bias = keys.get("lora_magnitude_vector"), keys.get("lora_B.bias")
    for vector in (magnitude, bias):
        if vector and math.prod(weights.spec(vector).shape) != outer[0]:
            shape = weights.spec(vector).shape
            raise KeyMismatch(f"{weights.ref}: {vector!r} has shape {shape}, expected {outer[:1]}")
    # PEFT adds the factors of this layer twice, in training too: before and in the merge that attention runs.
    times = 2 if ".base_layer.out_proj." in a else 1
    return Layer(module, a, b, times * settings.scaling(module), embedding, magnitude, bias)
