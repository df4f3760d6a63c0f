"""Small pictures of images, as PNG data; written with nothing but zlib."""

import struct
import zlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

SIGNATURE = b"\x89PNG\r\n\x1a\n"


def thumbnail(image: "NDArray[np.uint8] | Tensor", side: int = 64) -> bytes:
    """A PNG of an image (H, W, 3), uint8, whose longer side has at most ``side`` pixels; grey if it is.

    Sixteen shades a channel: a page holds many.
    """
    pixels = torch.as_tensor(image).movedim(-1, 0)[None].float()
    height, width = pixels.shape[2:]
    shrink = min(1.0, side / max(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    small = interpolate(pixels, size, mode="area") if shrink < 1 else pixels
    shades = (small[0] / 17).round() * 17
    return encode_png(shades.movedim(0, -1).to(torch.uint8).numpy())


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Pixels (H, W, 3), uint8, as a PNG; each row is stored as its difference to the one above."""
    grey = bool((pixels == pixels[..., :1]).all())
    rows = (pixels[..., :1] if grey else pixels).reshape(len(pixels), -1)
    upwards = np.diff(rows, axis=0, prepend=np.zeros_like(rows[:1]))
    filtered = np.insert(upwards, 0, 2, axis=1).astype(np.uint8)
    header = struct.pack(">IIBBBBB", pixels.shape[1], pixels.shape[0], 8, 0 if grey else 2, 0, 0, 0)
    packed = zlib.compress(filtered.tobytes(), 9)
    return SIGNATURE + _chunk(b"IHDR", header) + _chunk(b"IDAT", packed) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
