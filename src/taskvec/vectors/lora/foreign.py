"""Adapters in the layouts of other tools: kohya and its kin, diffusers, MLX."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from taskvec.errors import InputError, KeyMismatch
from taskvec.reading import parse_json, read_mapping, shown
from taskvec.vectors.delta import computing
from taskvec.vectors.lora.contents import Contents, Layer, Piece, Saved
from taskvec.vectors.lora.factors import check_pair, pieces_of
from taskvec.vectors.lora.settings import Settings, check_numbers, check_present
from taskvec.weights import TensorSpec, Weights

_COMPONENT = (
    r"(?P<component>unet|transformer(?:_2)?|diffusion_model|text_encoder(?:_[23])?|prior|image_encoder)"
)
_PART_OF_DIFFUSERS = (
    r"(?P<module>.+?)(?:\.lora_(?P<new>[AB])\.weight"
    r"|(?:\.lora[._]|\.lora_linear_layer\.|_lora\.)(?P<old>down|up)\.weight|\.(?P<alpha>alpha))"
)
_DIFFUSERS = re.compile(rf"{_COMPONENT}\.{_PART_OF_DIFFUSERS}")
_ONE_OF_DIFFUSERS = re.compile(rf"(?P<component>){_PART_OF_DIFFUSERS}")
_KOHYA = re.compile(
    r"(?P<component>lora_(?:unet|te[123]?|transformer|prior_unet|prior_te))_(?P<module>[^.]+)"
    r"\.(?:lora_(?P<old>down|up)\.weight|(?P<alpha>alpha))"
)
_MLX = re.compile(r"(?P<module>.+)\.(?P<part>lora_a|lora_b|m)")
_UNREAD = re.compile(
    r"\.(hada_\w+|lokr_\w+|oft_\w+|oft_blocks|dora_scale|lora_mid\.weight|diff(_b)?|w_norm|b_norm|on_input)$"
)
_METADATA = "lora_adapter_metadata"

Parts = dict[tuple[str, str], dict[str, str]]
"""Component and module -> ``a``, ``b`` or ``alpha`` -> key in the file."""


def read_foreign(weights: Weights) -> Contents | None:
    """The contents of an adapter that is in the layout of another tool than PEFT; ``None`` for PEFT's.

    Raises: InputError, KeyMismatch, for kinds and parts that are not read, with a tool that does.
    """
    assert weights.adapter is not None
    if any(name.endswith((".lora_a", ".lora_b")) for name in weights) or _is_whole_mlx(weights.adapter):
        return _read_mlx(weights, weights.adapter)
    if weights.adapter.is_file():
        return None
    if any(_KOHYA.fullmatch(name) or _UNREAD.search(name) for name in weights):
        return _read_parts(weights, _KOHYA, joined=True)
    if any(_DIFFUSERS.fullmatch(name) for name in weights):
        return _read_parts(weights, _DIFFUSERS, joined=False)
    if _METADATA in weights.metadata:  # of one model, saved by itself
        return _read_parts(weights, _ONE_OF_DIFFUSERS, joined=False)
    return None


def _read_parts(weights: Weights, pattern: re.Pattern[str], *, joined: bool) -> Contents:
    """Factors of several models, such as a network and its text encoders, in one file."""
    parts: Parts = {}
    for key in weights:
        match = pattern.fullmatch(key)
        if match is None:
            raise KeyMismatch(f"{weights.ref}: {key!r} found, {_unread(key, joined)}")
        part = "alpha" if match["alpha"] else "a" if _is_down(match) else "b"
        held = parts.setdefault((match["component"], match["module"].replace(".processor.", ".")), {})
        if held.setdefault(part, key) != key:
            raise KeyMismatch(f"{weights.ref}: {held[part]!r} and {key!r} are the same part, expected one")
    settings = {} if joined else _recorded(weights)
    mark = "_" if joined else "."
    starts = {component: component and f"{component}{mark}" for component, _ in parts}
    found = [
        _layer(weights, starts[component] + module, module, held, settings.get(component))
        for (component, module), held in parts.items()
    ]
    components = frozenset(filter(None, starts.values()))
    pieces, specs = _collected(weights, found)
    return Contents(weights, Settings(peft_type="LORA"), pieces, specs, components, joined)


def _is_down(match: re.Match[str]) -> bool:
    return match["old"] == "down" or match.groupdict().get("new") == "A"


def _unread(key: str, joined: bool) -> str:
    kind = _UNREAD.search(key)
    what = f"{kind[1]} of LyCORIS or DoRA, which" if kind else "which"
    tool = (
        "merge it with kohya's sd-scripts (networks/merge_lora.py) or LyCORIS (tools/merge.py)"
        if joined
        else "merge it with diffusers: load_lora_weights, fuse_lora, save_pretrained"
    )
    return f"{what} is not read, expected pairs of plain LoRA; {tool} and use the merged model"


def _layer(
    weights: Weights, name: str, module: str, held: Mapping[str, str], settings: Settings | None
) -> Layer:
    if not {"a", "b"} <= held.keys():
        raise KeyMismatch(
            f"{weights.ref}: {next(iter(held.values()))!r} is alone, expected both factors of {name!r}"
        )
    layer = Layer(name, held["a"], held["b"], 1.0)
    check_pair(weights, layer)
    return replace(layer, scaling=_scaling(weights, module, held, settings))


def _scaling(weights: Weights, module: str, held: Mapping[str, str], settings: Settings | None) -> float:
    """``alpha / rank``; 1 where no alpha is recorded, as the tools take it."""
    if "alpha" in held:
        shape = weights.spec(held["alpha"]).shape
        if math.prod(shape) != 1:
            raise KeyMismatch(f"{weights.ref}: {held['alpha']!r} has shape {shape}, expected one number")
        return float(weights.read(held["alpha"]).reshape(())) / weights.spec(held["a"]).shape[0]
    return 1.0 if settings is None else settings.scaling(module)


def _recorded(weights: Weights) -> dict[str, Settings]:
    """The settings of each component, as diffusers puts them into the header."""
    where = f"{weights.ref}: {_METADATA}"
    text = weights.metadata.get(_METADATA)
    content = parse_json(text, where) if text else {}
    if not isinstance(content, Mapping):
        raise InputError(f"{where}: {shown(content)}, expected settings of each component")
    found: dict[str, dict[str, object]] = {}
    for name, value in content.items():
        component, _, field = str(name).rpartition(".")
        found.setdefault(component, {})[field] = value
    read = {
        component: Settings.parse(
            where, {"peft_type": "LORA", **{f: fields[f] for f in fields if f in _FIELDS}}
        )
        for component, fields in found.items()
    }
    for settings in read.values():
        check_numbers(where, settings)
    return read


_FIELDS = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")


def _is_whole_mlx(path: Path) -> bool:
    """Whether mlx-lm trained all weights, without factors."""
    return path.is_file() and read_mapping(path).get("fine_tune_type") == "full"


def _read_mlx(weights: Weights, path: Path) -> Contents:
    """The factors that mlx-lm writes: (in, rank) and (rank, out), times one scale."""
    scale = 1.0 if _is_whole_mlx(path) else _mlx_scale(path)
    parts: dict[str, dict[str, str]] = {}
    saved: dict[str, str] = {}
    for key in weights:
        match = _MLX.fullmatch(key)
        if match is not None and (match["part"] != "m" or f"{match['module']}.lora_a" in weights):
            parts.setdefault(match["module"], {})[match["part"]] = key
        else:
            saved[key] = key
    pieces, specs = _collected(weights, [_mlx_layer(weights, *entry, scale) for entry in parts.items()])
    for name, key in saved.items():
        pieces[name], specs[name] = Saved(key), computing(weights.spec(key))
    return Contents(weights, Settings(peft_type="LORA"), pieces, specs)


def _mlx_layer(weights: Weights, module: str, held: Mapping[str, str], scale: float) -> Layer:
    a, b = held.get("lora_a"), held.get("lora_b")
    if a is None or b is None:
        raise KeyMismatch(
            f"{weights.ref}: {next(iter(held.values()))!r} is alone, expected lora_a and lora_b of {module!r}"
        )
    if len(weights.spec(a).shape) != 2:
        raise KeyMismatch(
            f"{weights.ref}: {a!r} has shape {weights.spec(a).shape}, expected (in, rank), as "
            "of one matrix; merge it with: mlx_lm.fuse --model BASE --adapter-path ADAPTER --save-path OUT"
        )
    layer = Layer(module, a, b, scale, magnitude=held.get("m"), flipped=True)
    check_pair(weights, layer)
    return layer


def _mlx_scale(path: Path) -> float:
    check_present(path)
    content = read_mapping(path)
    given = content.get("lora_parameters")
    parameters: Mapping[str, object] = given if isinstance(given, Mapping) else {}
    scale = parameters.get("scale")
    if "alpha" in parameters or isinstance(scale, bool) or not isinstance(scale, int | float):
        raise InputError(
            f"{path}: lora_parameters is {shown(given)}, expected the scale of mlx-lm, and no alpha, "
            "which its versions take differently; write the scale that the factors are multiplied by"
        )
    return float(scale)


def _collected(weights: Weights, layers: list[Layer]) -> tuple[dict[str, Piece], dict[str, TensorSpec]]:
    pieces: dict[str, Piece] = {}
    specs: dict[str, TensorSpec] = {}
    for layer in layers:
        for name, piece, spec in pieces_of(weights, layer):
            pieces[name], specs[name] = piece, spec
    return pieces, specs


def choose_component(contents: Contents, base: Weights, warn: Callable[[str], None]) -> Contents:
    """Of an adapter of several models the part that is of ``base``, under its names.

    Args:
        warn: told what is left out.

    Raises: KeyMismatch where no part is.
    """
    if not contents.components:
        return contents
    known = {_spelled(name, contents.joined): name for name in base}
    groups = {
        start: [name for name in contents.pieces if name.startswith(start)] for start in contents.components
    }
    names: dict[str, str] = {}
    others: list[str] = []
    for start, group in sorted(groups.items()):
        found = {name: known.get(_spelled(name.removeprefix(start), contents.joined)) for name in group}
        if not any(found.values()):
            others.append(start)
            continue
        names |= {name: there or name.removeprefix(start) for name, there in found.items()}
    if not names:
        raise KeyMismatch(f"{contents.weights.ref}: {_foreign(contents, base)}")
    if others:
        listed = ", ".join(other.rstrip("._") for other in others)
        warn(f"{contents.weights.ref}: {listed} left out: of other models than {base.ref}, to be edited too")
    return contents.renamed(names)


def _foreign(contents: Contents, base: Weights) -> str:
    first = next(iter(contents.pieces)).removesuffix(".weight")
    return (
        f"{first!r} found, expected a layer of {base.ref}; is that another component (unet, transformer, "
        "text_encoder)? if it has other names, convert the adapter with diffusers: load_lora_weights and "
        "save_lora_weights"
    )


def _spelled(name: str, joined: bool) -> str:
    """A name as it is compared: text encoders have a leading word in some files and not in others."""
    if not joined:
        return name.removeprefix("text_model.").replace(".to_out.weight", ".to_out.0.weight")
    module, _, last = name.removeprefix("model.diffusion_model.").rpartition(".")
    return f"{module.replace('.', '_').removeprefix('text_model_')}.{last}"
