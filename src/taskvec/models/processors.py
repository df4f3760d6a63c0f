"""What a preprocessor_config.json says: the image processors of transformers that resize, crop and scale."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from taskvec.errors import InputError
from taskvec.models.checkpoint import transformers
from taskvec.reading import read_mapping, shown

Filter = Literal["nearest-exact", "bilinear", "bicubic", "lanczos"]
Sides = tuple[int, int]
"""Height and width, in pixels."""

LARGEST = 1 << 13
"""Pixels of the longest side that images are brought to."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION = (0.26862954, 0.26130258, 0.27577711)

_SQUARE = {"height": 224, "width": 224}
_SHORTEST = {"shortest_edge": 224}
_IMAGENET = {"image_mean": (0.485, 0.456, 0.406), "image_std": (0.229, 0.224, 0.225)}
_CROPPED = {"size": _SHORTEST, "do_center_crop": True, "crop_size": _SQUARE}
_CLIP = {**_CROPPED, "image_mean": CLIP_MEAN, "image_std": CLIP_DEVIATION}
_MOBILENET = {**_CROPPED, "size": {"shortest_edge": 256}, "resample": 2}

_USUAL: Mapping[str, Any] = {
    "size": _SQUARE,
    "crop_size": _SQUARE,
    "resample": 3,
    "do_resize": True,
    "do_center_crop": False,
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": (0.5, 0.5, 0.5),
    "image_std": (0.5, 0.5, 0.5),
    "do_flip_channel_order": False,
    "rescale_offset": False,
    "include_top": False,
    "crop_pct": None,
}

PROCESSORS: Mapping[str, Mapping[str, Any]] = {
    "BeitImageProcessor": {},
    "BitImageProcessor": _CLIP,
    "BlipImageProcessor": {
        "size": {"height": 384, "width": 384},
        "image_mean": CLIP_MEAN,
        "image_std": CLIP_DEVIATION,
    },
    "CLIPImageProcessor": _CLIP,
    "ChineseCLIPImageProcessor": _CLIP,
    "ConvNextImageProcessor": {"size": {"shortest_edge": 384}, "crop_pct": 224 / 256},
    "DINOv3ViTImageProcessor": {"resample": 2, **_IMAGENET},
    "DPTImageProcessor": {"size": {"height": 384, "width": 384}},
    "DeiTImageProcessor": {"size": {"height": 256, "width": 256}, "do_center_crop": True},
    "EfficientNetImageProcessor": {
        "size": {"height": 346, "width": 346},
        "crop_size": {"height": 289, "width": 289},
        "include_top": True,
    },
    "LevitImageProcessor": {**_CROPPED, **_IMAGENET, "crop_pct": 224 / 256},
    "MobileNetV1ImageProcessor": _MOBILENET,
    "MobileNetV2ImageProcessor": _MOBILENET,
    "MobileViTImageProcessor": {
        **_CROPPED,
        "crop_size": {"height": 256, "width": 256},
        "do_normalize": False,
        "do_flip_channel_order": True,
    },
    "PoolFormerImageProcessor": {**_CROPPED, **_IMAGENET, "crop_pct": 0.9},
    "PvtImageProcessor": _IMAGENET,
    "SegformerImageProcessor": {"size": {"height": 512, "width": 512}, "resample": 2, **_IMAGENET},
    "SiglipImageProcessor": {},
    "Tipsv2ImageProcessor": {
        "size": {"height": 448, "width": 448},
        "resample": 2,
        "do_normalize": False,
    },
    "ViTImageProcessor": {"resample": 2},
}
"""In what each differs from the usual: transformers' defaults, for what a file leaves out."""

_FILTERS: Mapping[object, Filter] = {0: "nearest-exact", 1: "lanczos", 2: "bilinear", 3: "bicubic"}

_REFUSED = ("keep_aspect_ratio", "crop_to_patches", "pad_size", "do_thumbnail")
"""Options that change the picture in ways that are not followed here."""


def read_processor(folder: Path, kind: str, size: Sides | None, channels: int) -> dict[str, Any]:
    """The arguments of ``Preprocessing`` that a checkpoint folder asks for.

    Without a file they are those of the processor that transformers takes for such a model.

    Raises: InputError, naming the file, for a processor that is not known or makes no sense.
    """
    path, stated = _stated(folder)
    name = _name(stated, kind, path)
    usual = {**_USUAL, **PROCESSORS[name]}
    if not stated and size is not None:
        usual |= {"size": _alike(usual["size"], size), "crop_size": list(size)}
    options = {**usual, **stated}
    try:
        _check_followed(options)
        return {
            **_geometry(name, options, "height" in usual["size"]),
            **_statistics(options, channels),
            "filter": _FILTERS[options["resample"]],
            "reversed": _flag(options, "do_flip_channel_order"),
        }
    except ValueError as error:
        raise InputError(f"{path}: image preprocessing not understood ({error})") from None


def _stated(folder: Path) -> tuple[Path, Mapping[str, Any]]:
    """The file that says how images are processed, and what it says; nothing where there is none."""
    for name in ("preprocessor_config.json", "processor_config.json"):
        if (folder / name).is_file():
            whole = read_mapping(folder / name)
            part = whole.get("image_processor", whole)
            return folder / name, part if isinstance(part, dict) else whole
    return folder / "preprocessor_config.json", {}


def _name(options: Mapping[str, Any], kind: str, path: Path) -> str:
    """The processor that a file names, or that goes with a type of model."""
    stated = options.get("image_processor_type", options.get("feature_extractor_type"))
    if stated is None:
        usual = _usual_name(kind)
        return usual if usual in PROCESSORS else "ViTImageProcessor"
    name = str(stated).removesuffix("Pil").removesuffix("Fast").replace("FeatureExtractor", "ImageProcessor")
    if name not in PROCESSORS:
        raise InputError(
            f"{path}: image_processor_type {shown(stated)}, expected one that resizes, crops and scales: "
            f"{', '.join(PROCESSORS)}; if it does no more than that, write 'ViTImageProcessor'"
        )
    return name


def _usual_name(kind: str) -> str:
    """The processor that transformers takes for a type of model; empty for none."""
    transformers()
    from transformers.models.auto import image_processing_auto

    tables: Any = image_processing_auto
    backends: dict[str, str] = tables.IMAGE_PROCESSOR_MAPPING_NAMES.get(kind, {})
    return next((name.removesuffix("Pil") for name in backends.values()), "")


def _alike(size: Mapping[str, int], sides: Sides) -> Mapping[str, int]:
    if "shortest_edge" in size:
        return {"shortest_edge": min(sides)}
    return {"height": sides[0], "width": sides[1]}


def _check_followed(options: Mapping[str, Any]) -> None:
    for key in _REFUSED:
        if options.get(key):
            raise ValueError(f"{key!r} is {shown(options[key])}, which is not followed here")
    if type(options["resample"]) is not int or options["resample"] not in _FILTERS:
        raise ValueError(f"'resample' is {shown(options['resample'])}, expected 0, 1, 2 or 3")


def _geometry(name: str, options: Mapping[str, Any], square: bool) -> dict[str, Any]:
    """What images are resized to, and the centre that is kept."""
    edge = _edge(options["size"], square) if _flag(options, "do_resize") else None
    crop: Sides | None = None
    if edge is not None and options["crop_pct"] is not None:
        edge, crop = _enlarged(name, edge, _number(options, "crop_pct"))
    if _flag(options, "do_center_crop"):
        crop = _both(_edge(options["crop_size"], square=True))
    return {"edge": edge, "crop": crop}


def _enlarged(name: str, edge: int | Sides, share: float) -> tuple[int | Sides, Sides | None]:
    """Resize to more than is kept, so that this share of it is what was asked for."""
    crops = name == "ConvNextImageProcessor"
    if crops and isinstance(edge, int) and edge >= 384:
        return (edge, edge), None
    if name == "LevitImageProcessor" and not isinstance(edge, int):
        return edge, None
    kept = _both(edge)
    if kept[0] != kept[1]:
        return (_side(int(kept[0] / share)), _side(int(kept[1] / share))), None
    return _side(int(kept[0] / share)), kept if crops else None


def _statistics(options: Mapping[str, Any], channels: int) -> dict[str, Any]:
    """Mean, deviation and divisor of ``(pixel / divisor - mean) / deviation``."""
    mean, deviation = (0.0,) * channels, (1.0,) * channels
    stated = _channels(options["image_std"], channels, above=0.0)
    if _flag(options, "do_normalize"):
        mean, deviation = _channels(options["image_mean"], channels), stated
    if _flag(options, "rescale_offset"):
        mean = tuple(value + 1 for value in mean)
    if _flag(options, "include_top"):
        deviation = tuple(first * second for first, second in zip(deviation, stated, strict=True))
    divisor = 1 / _number(options, "rescale_factor") if _flag(options, "do_rescale") else 1.0
    return {"mean": mean, "deviation": deviation, "divisor": divisor}


def _flag(options: Mapping[str, Any], key: str) -> bool:
    """A switch; null is off."""
    if options[key] is not None and not isinstance(options[key], bool):
        raise ValueError(f"{key!r} is {shown(options[key])}, expected true or false")
    return bool(options[key])


def _number(options: Mapping[str, Any], key: str) -> float:
    value = options[key]
    if isinstance(value, bool) or not isinstance(value, int | float) or not 1e-6 < value < 1e6:
        raise ValueError(f"{key!r} is {shown(value)}, expected a number above 0")
    return float(value)


def _edge(size: Any, square: bool) -> int | Sides:
    """The shortest edge, or height and width, from the ways in which configurations write them."""
    match size:
        case {"height": int() as height, "width": int() as width}:
            return _side(height), _side(width)
        case {"shortest_edge": edge} if not size.get("longest_edge"):
            return _side(edge)
        case [height, width]:
            return _side(height), _side(width)
    return _both(_side(size)) if square else _side(size)


def _side(value: Any) -> int:
    if type(value) is not int or not 0 < value <= LARGEST:
        raise ValueError(f"a side of {shown(value)} pixels")
    return value


def _both(side: int | Sides) -> Sides:
    return side if isinstance(side, tuple) else (side, side)


def _channels(values: Any, channels: int, above: float = -math.inf) -> tuple[float, ...]:
    """A number for each channel; one number is for all of them, and equal ones are one for a grey image."""
    several = list(values) if isinstance(values, list | tuple) else [values] * channels
    if channels == 1 and len(several) > 1 and all(value == several[0] for value in several):
        several = several[:1]
    if len(several) == channels and all(
        isinstance(value, int | float) and above < value < math.inf for value in several
    ):
        return tuple(map(float, several))
    raise ValueError(f"{shown(values)} for {'three channels' if channels == 3 else 'one channel'}")
