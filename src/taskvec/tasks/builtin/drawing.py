"""From masks to pictures: warping, procedural patterns, painting.

Everything that ends in a pixel is integer arithmetic, or float64 additions, multiplications and square roots,
which every machine rounds alike; sines and cosines are rounded to 1/4096 before use. Random numbers come
from the generator that is passed in and from nowhere else.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from taskvec.tasks.builtin.contents import SIDE, glyph

WIDTH = 32
Floats = NDArray[np.float64]
Bytes = NDArray[np.uint8]
Ints = NDArray[np.int32]
Integers = NDArray[np.int64]

COLOURS = {
    "red": (215, 35, 35), "orange": (245, 140, 25), "yellow": (240, 225, 50), "green": (40, 160, 60),
    "cyan": (60, 210, 215), "blue": (40, 60, 205), "purple": (130, 45, 160), "pink": (245, 140, 190),
    "brown": (115, 70, 35), "white": (240, 240, 240), "gray": (135, 135, 135), "black": (18, 18, 18),
}  # fmt: skip
PALETTE = np.array(list(COLOURS.values()), dtype=np.int32)


@dataclass(frozen=True)
class Pose:
    """How far contents are moved about: degrees, zoom range, pixels of 32, shear."""

    turn: float = 9.0
    zoom: tuple[float, float] = (0.75, 1.2)
    shift: float = 3.0
    shear: float = 0.08


@dataclass(frozen=True)
class Look:
    """How masks become pictures. Amplitudes are in grey levels, 0 to 255."""

    inks: tuple[str, ...] = tuple(COLOURS)
    grounds: tuple[str, ...] = tuple(COLOURS)
    contrast: int = 170
    jitter: int = 22
    ramp: int = 35
    blotch: int = 0
    noise: int = 16
    soft: float = 0.2
    relief: int = 0
    light: tuple[int, int, int] = (256, 256, 256)


def generator(seed: int, *path: object) -> np.random.Generator:
    """A PCG64 generator for one part of the world, the same on every machine."""
    digest = sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def pick(rng: np.random.Generator, options: Sequence[str], n: int) -> list[str]:
    """``n`` draws with replacement."""
    return [options[i] for i in rng.integers(0, len(options), n)]


def uniform(rng: np.random.Generator, low: float, high: float, size: int | tuple[int, ...]) -> Floats:
    """Uniform float64 numbers, (size)."""
    return low + (high - low) * rng.random(size)


def _rounded(values: Floats) -> Floats:
    return np.rint(values * 4096.0) / 4096.0


def cosine_sine(degrees: Floats) -> tuple[Floats, Floats]:
    """Cosine and sine, rounded so that all machines agree."""
    radians = degrees * (np.pi / 180.0)
    return _rounded(np.cos(radians)), _rounded(np.sin(radians))


def affines(
    rng: np.random.Generator,
    n: int,
    pose: Pose,
    turn: Floats | float = 0.0,
    zoom: float = 1.0,
    place: Floats | None = None,
) -> Floats:
    """Random coefficients for ``warp``, (n, 6).

    Args:
        turn: degrees counter-clockwise, beside the pose's own; (n,) or one for all.
        place: shift in pixels, (n, 2), x to the right, y downwards.
    """
    cos, sin = cosine_sine(turn + uniform(rng, -pose.turn, pose.turn, n))
    scale = (SIDE / WIDTH) / (zoom * uniform(rng, *pose.zoom, n))
    shear = uniform(rng, -pose.shear, pose.shear, n)
    shift = uniform(rng, -pose.shift, pose.shift, (n, 2)) + (0.0 if place is None else place)
    a, b = scale * (cos + shear * sin), scale * (shear * cos - sin)
    d, e = scale * sin, scale * cos
    x, y = WIDTH / 2 + shift[:, 0], WIDTH / 2 + shift[:, 1]
    return _rounded(np.stack([a, b, SIDE / 2 - a * x - b * y, d, e, SIDE / 2 - d * x - e * y], axis=1))


def warp(masks: Sequence[Image.Image], coefficients: Floats) -> Bytes:
    """Each 64 x 64 mask moved and brought to 32 x 32, (n, 32, 32)."""
    size, affine, bilinear = (WIDTH, WIDTH), Image.Transform.AFFINE, Image.Resampling.BILINEAR
    out = np.empty((len(masks), WIDTH, WIDTH), dtype=np.uint8)
    for row, mask, numbers in zip(out, masks, coefficients.tolist(), strict=True):
        row[:] = np.asarray(mask.transform(size, affine, numbers, bilinear))
    return out


def glyphs(rng: np.random.Generator, chars: Sequence[str], fonts: Sequence[str]) -> list[Image.Image]:
    """One mask a character, in random fonts."""
    return list(map(glyph, chars, pick(rng, fonts, len(chars))))


_COMPASS = np.array([(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)], dtype=np.float64)


def neighbours(
    rng: np.random.Generator,
    masks: Sequence[Image.Image],
    way: Integers,
    distance: tuple[float, float],
    share: float = 1.0,
) -> Bytes:
    """Masks of second things near the rim, (n, 32, 32); all zero but for about a ``share`` of them.

    Args:
        way: which of eight directions each is moved in, counter-clockwise from the right.
        distance: the least and the largest, in pixels.
    """
    place = _COMPASS[way] * uniform(rng, *distance, (len(way), 1))
    shown = (rng.random(len(way)) < share).astype(np.uint8)
    return warp(masks, affines(rng, len(way), Pose(shift=1.0), place=place)) * shown[:, None, None]


_X = np.arange(WIDTH, dtype=np.float64)[None, None, :] - (WIDTH - 1) / 2
_Y = (WIDTH - 1) / 2 - np.arange(WIDTH, dtype=np.float64)[None, :, None]


def plane(degrees: Floats, period: Floats, phase: Floats) -> tuple[Floats, Floats]:
    """Coordinates (u, v), (n, 32, 32) each, in periods; v runs across stripes turned by ``degrees``."""
    cos, sin = (part[:, None, None] for part in cosine_sine(degrees))
    scale = 1.0 / period[:, None, None]
    u = (_X * cos + _Y * sin) * scale + phase[:, :1, None]
    v = (_Y * cos - _X * sin) * scale + phase[:, 1:, None]
    return u, v


def fraction(x: Floats) -> Floats:
    """The part behind the decimal point, 0 <= x < 1."""
    return x - np.floor(x)


def triangle(x: Floats) -> Floats:
    """A wave of straight lines, period 1, from 0 (at 0) to 1 (at one half) and back."""
    return 1.0 - np.abs(2.0 * fraction(x) - 1.0)


def swell(x: Floats) -> Floats:
    """A wave like (1 - cos) / 2, period 1, made of a polynomial."""
    t = triangle(x)
    return t * t * (3.0 - 2.0 * t)


def colours(rng: np.random.Generator, n: int, look: Look) -> tuple[Integers, Integers]:
    """Indices of the colours of ink and ground, (n,) each, that contrast by ``look.contrast``."""
    names = list(COLOURS)
    pairs = [
        (names.index(i), names.index(g)) for i in look.inks for g in look.grounds
        if abs(PALETTE[names.index(i)] - PALETTE[names.index(g)]).sum() >= look.contrast
    ]  # fmt: skip
    chosen = np.array(pairs)[rng.integers(0, len(pairs), n)]
    return chosen[:, 0], chosen[:, 1]


def _jittered(rng: np.random.Generator, index: Integers, by: int) -> Ints:
    return PALETTE[index] + rng.integers(-by, by + 1, (len(index), 3), dtype=np.int32)


def _smoothed(image: Ints) -> Ints:
    """A 1-2-1 filter along both axes, edges repeated; (n, h, w, c) or (n, h, w)."""
    for axis in (1, 2):
        size = image.shape[axis]
        before = image.take([0, *range(size - 1)], axis=axis)
        after = image.take([*range(1, size), size - 1], axis=axis)
        image = (before + 2 * image + after + 2) // 4
    return image


def _blotches(rng: np.random.Generator, n: int, amplitude: int) -> Ints:
    """Coloured clouds, (n, 32, 32, 3), about -amplitude to amplitude."""
    coarse = rng.integers(-amplitude, amplitude + 1, (n, 6, 6, 3), dtype=np.int32)
    fine = coarse.repeat(6, axis=1).repeat(6, axis=2)[:, 2:34, 2:34]
    return _smoothed(_smoothed(_smoothed(fine)))


def _over(canvas: Ints, colour: Ints, mask: Bytes) -> Ints:
    """Paint, through a mask of 0 to 255."""
    return canvas + (colour[:, None, None, :] - canvas) * mask[..., None].astype(np.int32) // 255


def paint(
    rng: np.random.Generator,
    mask: Bytes,
    ink: Integers,
    ground: Integers,
    look: Look,
    clutter: Sequence[tuple[Bytes, Integers]] = (),
) -> Bytes:
    """Pictures, uint8 (n, 32, 32, 3), of masks (n, 32, 32), with clutter painted before them."""
    n = len(mask)
    canvas = np.broadcast_to(_jittered(rng, ground, look.jitter)[:, None, None, :], (n, WIDTH, WIDTH, 3))
    slope = rng.integers(-look.ramp, look.ramp + 1, (n, 2), dtype=np.int32)
    x, y = (2 * np.arange(WIDTH, dtype=np.int32) - WIDTH + 1 for _ in range(2))
    ramp = (slope[:, :1, None] * x[None, None, :] + slope[:, 1:, None] * y[None, :, None]) // WIDTH
    canvas = canvas + ramp[..., None]
    if look.blotch:
        canvas = canvas + _blotches(rng, n, look.blotch)
    for shape, colour in clutter:
        canvas = _over(canvas, _jittered(rng, colour, look.jitter), shape)
    if look.relief:
        height = mask.astype(np.int32)
        edge = height - np.roll(height, (-2, -2), axis=(1, 2))
        canvas = canvas - (look.relief * edge // 255)[..., None]
    else:
        canvas = _over(canvas, _jittered(rng, ink, look.jitter), mask)
    soft = rng.random(n) < look.soft
    if soft.any():
        canvas = np.where(soft[:, None, None, None], _smoothed(canvas), canvas)
    if look.noise:
        amplitude = rng.integers(0, look.noise + 1, (n, 1, 1, 1), dtype=np.int32)
        grain = rng.integers(0, 256, (2, n, WIDTH, WIDTH, 3), dtype=np.uint8).astype(np.int32)
        canvas = canvas + (grain[0] + grain[1] - 255) * amplitude // 128
    lit = np.clip(canvas, 0, 255) * np.array(look.light, dtype=np.int32) // 256
    return np.clip(lit, 0, 255).astype(np.uint8)
