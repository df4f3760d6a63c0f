"""Quantized weights: turned back into floating point where that is exact, refused elsewhere."""

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.errors import CorruptFile, InputError, and_more
from taskvec.later import torch
from taskvec.reading import shown
from taskvec.weights.blocks import TensorSpec, rows_of
from taskvec.weights.configs import config_beside
from taskvec.weights.dtypes import EDITABLE, dtype_of, name_of, short
from taskvec.weights.lazy import Lazy, Weights

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

_EIGHT = frozenset({"F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ"})
"""Codes of the element types whose products with a scale are the weights."""

_SCALES = ("_scale_inv", "_scale")
"""What the name of a matrix's scales adds to its own."""

_ORIGINAL = "start from the checkpoint that it was made from"
_BNB = "from_pretrained(…).dequantize() and save_pretrained() it"
_CONFIGURED = "from_pretrained(…, quantization_config={}(dequantize=True)) and save_pretrained() it"
_COMPRESSED = _CONFIGURED.format("CompressedTensorsConfig")
_MXFP4 = _CONFIGURED.format("Mxfp4Config")

_REMEDIES = {
    "bitsandbytes": _BNB,
    "compressed-tensors": _COMPRESSED,
    "fp8": _CONFIGURED.format("FineGrainedFP8Config"),
    "mxfp4": _MXFP4,
}
"""What to do with the quantizations that transformers can undo, by their names in config.json."""

_QUANTIZATIONS = ("quantization_config", "compression_config")
"""Settings in config.json by which loaders take weights for quantized ones."""

_BESIDE = "hf_quant_config.json"
"""The same settings in a file of their own, as ModelOpt writes."""

_SCHEMES: tuple[tuple[str, str, str], ...] = (
    (r"\.qweight$", "GPTQ or AWQ", _ORIGINAL),
    (r"\.(absmax|quant_map|nested_absmax|quant_state\.bitsandbytes__\w+)$", "bitsandbytes", _BNB),
    (r"\.(SCB|weight_format)$", "bitsandbytes", _BNB),
    (r"_blocks$", "MXFP4", _MXFP4),
    (r"\.weight_packed$", "compressed-tensors", _COMPRESSED),
    (r"\.weight_scale_2$", "ModelOpt (NVFP4)", _ORIGINAL),
    (r"\.codebooks$", "AQLM", _ORIGINAL),
    (r"\.W_q$", "HQQ", _ORIGINAL),
    (r"\.weight\._(data|scale|shift)$", "quanto", _ORIGINAL),
)
"""Endings of names that only quantized weights have, what makes them, and what to do."""


def check_plain(weights: Weights) -> None:
    """Refuse weights in which a matrix lies as codes and scales: a difference of those means nothing.

    Raises: InputError.
    """
    if all(spec.editable for spec in map(weights.spec, weights)):
        return
    for pattern, what, remedy in _SCHEMES:
        ending = re.compile(pattern)
        found = [name for name in weights if ending.search(name)]
        if found and _has_codes(weights):
            raise InputError(
                f"{weights.ref}: quantized by {what} ({found[0]!r}{and_more(found)}), expected plain "
                f"floating-point weights; {remedy}"
            )
    for name in weights:
        spec = weights.spec(name)
        if not spec.editable and f"{name}_scale" in weights:
            raise InputError(
                f"{weights.ref}: {name!r} holds {name_of(spec.code)} codes with scales, expected plain "
                f"floating-point weights; {_ORIGINAL}"
            )
    if (codes := _mlx_codes(weights)) is not None:
        raise InputError(
            f"{weights.ref}: quantized by MLX ({codes!r}), expected plain floating-point weights; "
            "mlx_lm.convert --dequantize writes such ones"
        )


def check_whole(weights: Weights) -> None:
    """Refuse weights that only a quantized network computes with: a plain one would take codes for numbers.

    Raises: InputError.
    """
    check_plain(weights)
    if isinstance(weights, Dequantized):
        raise InputError(
            f"{weights.ref}: quantized in 8 bits, expected plain floating-point weights to train or "
            f"evaluate; {_REMEDIES['fp8']}"
        )


def check_config(path: Path, settings: Mapping[str, Any]) -> None:
    """Refuse the config.json of a quantized network: its weights could not be moved, or not by so little.

    Raises: InputError.
    """
    stated = next((settings[key] for key in _QUANTIZATIONS if settings.get(key)), _quantization(settings))
    if not stated and not (path.parent / _BESIDE).is_file():
        return
    method = str(stated.get("quant_method") or "") if isinstance(stated, Mapping) else ""
    raise InputError(
        f"{path}: quantized weights{f' ({shown(method)})' if method else ''}, expected plain floating-point "
        f"ones to train or evaluate; {_REMEDIES.get(method, _ORIGINAL)}"
    )


def _has_codes(weights: Weights) -> bool:
    """Whether some matrix holds no floating-point numbers of 16 bits or more."""
    return any(not spec.editable and len(spec.shape) > 1 for spec in map(weights.spec, weights))


def _mlx_codes(weights: Weights) -> str | None:
    packed = (name for name in weights if weights.spec(name).code == "U32")
    return next((name for name in packed if name.removesuffix("weight") + "scales" in weights), None)


def dequantized(weights: Weights) -> Weights:
    """Weights in which matrices of eight bits are multiplied by the scales beside them; others as they are.

    Raises: CorruptFile for scales that do not fit their matrix.
    """
    scales = {name: scale for name in weights if (scale := _scale_of(weights, name)) is not None}
    if not scales:
        return weights
    settings = config_beside(weights.folder)
    dtype = _dtype(settings)
    _log.warning(
        "%s: %d matrices in 8 bits are multiplied by their scales and read as %s",
        weights.ref,
        len(scales),
        short(dtype),
    )
    return Dequantized(weights, scales, dtype, settings)


def _scale_of(weights: Weights, name: str) -> str | None:
    if weights.spec(name).code not in _EIGHT:
        return None
    return next((name + ending for ending in _SCALES if name + ending in weights), None)


class Dequantized(Weights):
    """A checkpoint in eight bits as the floating-point weights that it stands for.

    Args:
        scales: name of a matrix -> name of its scales: one number, one a row, or one a block.
        dtype: that matrices are rounded to, once.
        settings: of ``config.json``.
    """

    def __init__(
        self, held: Weights, scales: Mapping[str, str], dtype: "torch.dtype", settings: Mapping[str, Any]
    ) -> None:
        self._held, self._scales = held, dict(scales)
        left = {*scales.values(), *(name for name in held if name.endswith(".input_scale"))}
        specs = {
            name: TensorSpec(held.spec(name).shape, dtype) if name in scales else held.spec(name)
            for name in held
            if name not in left
        }
        self._blocks = {name: _block(held, name, scale, settings) for name, scale in scales.items()}
        super().__init__(held.ref, specs, ("dequantized", held.identity), parts=[held])
        plain = json.dumps(plain_config(settings), indent=2, ensure_ascii=False) + "\n" if settings else None
        beside = self.folder is not None and (self.folder / _BESIDE).is_file()
        texts = {"config.json": plain, _BESIDE: "" if beside else None}
        self.texts = {name: text for name, text in texts.items() if text is not None}

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        if name not in self._scales:
            return self._held.read(name, rows)
        if len(self.spec(name).shape) != 2:
            return rows_of(self._product(name, None), rows)
        return self._product(name, rows)

    def _product(self, name: str, rows: slice | None) -> "Tensor":
        codes = self._held.read(name, rows).float()
        scale = _unpacked(self._held.read(self._scales[name]))
        (high, wide), shape = self._blocks[name], self.spec(name).shape
        numbers = torch.arange(shape[-2])[slice(None) if rows is None else rows]
        lines = scale[..., numbers // high, :]
        return (codes * lines[..., torch.arange(shape[-1]) // wide]).to(self.spec(name).dtype)

    def in_rows(self, name: str) -> bool:
        """Whether a matrix, or what lies as it is, can be had in pieces."""
        plain = name not in self._scales or len(self.spec(name).shape) == 2
        return plain and super().in_rows(name)

    @property
    def by_rows(self) -> bool:
        """Whether that holds for every tensor."""
        return super().by_rows and all(len(self.spec(name).shape) == 2 for name in self._scales)

    def made_of(self, name: str) -> Sequence[tuple[Lazy, str]]:
        """The codes, and their scales."""
        stored = self._stored_name(name)
        return [(self._held, part) for part in (stored, self._scales.get(stored)) if part is not None]

    def own_bytes(self, name: str) -> int:
        """Bytes of the product before it is rounded, and of the scales as many."""
        return 8 * self.block_size(name, self.spec(name).shape) if name in self._scales else 0


def _unpacked(scale: "Tensor") -> "Tensor":
    """Scales in float32, with two axes at least."""
    wide = (scale.float() - 127).exp2() if scale.dtype == torch.uint8 else scale.float()
    return wide.reshape(*(1,) * (2 - wide.ndim), *wide.shape) if wide.ndim != 1 else wide[:, None]


def _block(held: Weights, name: str, scale: str, settings: Mapping[str, Any]) -> tuple[int, int]:
    """Rows and columns that share a scale."""
    shape, grid = held.spec(name).shape, held.spec(scale).shape
    grid = (*grid, *(1,) * (2 - len(grid)))
    listed = _quantization(settings).get("weight_block_size")
    fits = len(shape) >= 2 and len(grid) == len(shape) and grid[:-2] in (shape[:-2], (1,) * (len(shape) - 2))
    if fits:
        sizes = listed if isinstance(listed, list) and len(listed) == 2 else (0, 0)
        pairs = list(zip(shape[-2:], grid[-2:], sizes, strict=True))
        blocks = [_step(size, count, given) for size, count, given in pairs]
        if all(blocks):
            return blocks[0], blocks[1]
    raise CorruptFile(
        f"{held.ref}: {scale!r} has shape {held.spec(scale).shape}, which does not fit {name!r} of shape "
        f"{shape}; write the checkpoint again"
    )


def _step(size: int, count: int, given: object) -> int:
    """The entries of an axis that share one of ``count`` scales; 0 if that cannot be."""
    if count == 1:
        return max(1, size)
    if type(given) is int and given > 0 and math.ceil(size / given) == count:
        return given
    return size // count if count and size % count == 0 else 0


def _quantization(settings: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = settings.get("text_config")
    for config in (settings, inner if isinstance(inner, dict) else {}):
        if isinstance(found := config.get("quantization_config"), dict):
            return found
    return {}


def _dtype(settings: Mapping[str, Any]) -> "torch.dtype":
    """The element type that the config names, bfloat16 by default."""
    inner = settings.get("text_config")
    for config in (settings, inner if isinstance(inner, dict) else {}):
        for key in ("dtype", "torch_dtype"):
            found = next((code for code in EDITABLE if name_of(code) == config.get(key)), None)
            if found is not None:
                return dtype_of(found)
    return torch.bfloat16


def plain_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without settings of a quantization, in its parts too: what is written is not quantized."""
    return {
        key: plain_config(value) if isinstance(value, Mapping) else value
        for key, value in config.items()
        if key not in _QUANTIZATIONS
    }
