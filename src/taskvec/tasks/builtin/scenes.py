"""What the tasks look like: one function a scene, each unlike the others and unlike pre-training.

A scene takes a generator and the labels to draw, int64 (n,), and returns pictures, uint8 (n, 32, 32, 3).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from taskvec.errors import InputError
from taskvec.registry import nearest
from taskvec.tasks.builtin import contents as c
from taskvec.tasks.builtin.drawing import (
    WIDTH,
    Bytes,
    Integers,
    Look,
    Pose,
    affines,
    colours,
    paint,
    plane,
    swell,
    uniform,
    warp,
)
from taskvec.tasks.builtin.pretraining import contents_of, generator, neighbours, patterns, pick

Scene = Callable[[np.random.Generator, Integers], Bytes]

PAPER = Look(
    ("blue", "black", "purple", "brown"), ("white", "yellow"), jitter=12, ramp=15, rule=45, noise=8, soft=0.0
)
STREET = Look(contrast=260, jitter=30, ramp=50, blotch=25, noise=14, soft=0.1)
STONE = Look(("black",), ("gray",), contrast=0, jitter=14, ramp=25, blotch=14, noise=10, soft=0.0, relief=110)
PENCIL = Look(("gray", "black"), ("white",), contrast=150, jitter=12, ramp=12, noise=22, soft=0.0)
NEON = Look(
    ("green", "cyan", "pink", "orange"), ("black",), contrast=100, jitter=25, ramp=10, noise=0, soft=1.0
)
CLOTH = Look(
    ("red", "brown", "purple", "blue"),
    ("brown", "gray", "orange"),
    contrast=110,
    jitter=15,
    ramp=25,
    noise=10,
)


def _bytes(values: NDArray[Any]) -> Bytes:
    clipped: Bytes = np.clip(values, 0, 255).astype(np.uint8)
    return clipped


def letters(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Slanted small letters on ruled paper."""
    n = len(labels)
    masks = contents_of(rng, "letter", [c.LETTERS[i] for i in labels], c.UNSEEN_FONTS, ["plain"] * n)
    ink, ground = colours(rng, n, PAPER)
    return paint(rng, warp(masks, affines(rng, n, Pose(turn=6.0))), ink, ground, PAPER)


def streetnum(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Slanted digits between two others, in the middle of a house number."""
    n = len(labels)
    fonts = ("DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic", "STIXGeneralBolIta")
    masks = contents_of(rng, "digit", [c.DIGITS[i] for i in labels], fonts, ["plain"] * n)
    ink, ground = colours(rng, n, STREET)
    beside = [
        (neighbours(rng, n, 1.0, ("digit",), {"digit": fonts}, (13.0, 17.0), sideways=True), ink)
        for _ in "ab"
    ]
    mask = warp(masks, affines(rng, n, Pose(turn=6.0, zoom=(0.85, 1.2), shift=1.5)))
    return paint(rng, mask, ink, ground, STREET, beside)


def greek(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Greek letters carved in stone."""
    n = len(labels)
    fonts = (*c.GREEK_FONTS, *c.UNSEEN_GREEK_FONTS)
    masks = contents_of(rng, "greek", [c.DOMAINS["greek"].names[i] for i in labels], fonts, ["plain"] * n)
    ink, ground = colours(rng, n, STONE)
    return paint(rng, warp(masks, affines(rng, n, Pose(zoom=(0.9, 1.25), shift=2.5))), ink, ground, STONE)


def _wobbly(rng: np.random.Generator, name: str) -> Image.Image:
    """The contour of a shape drawn by an unsteady hand, 64 x 64."""
    canvas = Image.new("L", (4 * c.SIDE, 4 * c.SIDE))
    pen = ImageDraw.Draw(canvas)
    contour = np.array(c.outline_of(name))
    inner = [128 + 0.55 * (contour - 128)] if name in ("ring", "frame") else []
    for line in (contour, contour, *inner):
        corners = (
            line
            + uniform(rng, -7.0, 7.0, line.shape) * min(1.0, 12 / len(line))
            + uniform(rng, -5.0, 5.0, (1, 2))
        )
        closed = np.concatenate([corners, corners[:2]])
        pen.line([tuple(point) for point in np.rint(closed).tolist()], fill=255, width=13, joint="curve")
    return canvas.reduce(4)


def sketch(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Pencil contours of shapes."""
    n = len(labels)
    masks = [_wobbly(rng, c.SHAPES[i]) for i in labels]
    ink, ground = colours(rng, n, PENCIL)
    return paint(rng, warp(masks, affines(rng, n, Pose(turn=12.0, zoom=(0.7, 1.1)))), ink, ground, PENCIL)


def gabor(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Gratings under a soft round window, the light and dark of one colour on gray."""
    n = len(labels)
    turn = 22.5 * labels + uniform(rng, -5.0, 5.0, n)
    _, v = plane(turn, uniform(rng, 4.5, 9.0, n), rng.random((n, 2)))
    middle = uniform(rng, -4.0, 4.0, (n, 2))
    axis = np.arange(WIDTH, dtype=np.float64) - (WIDTH - 1) / 2
    square = (axis[None, None, :] - middle[:, 0, None, None]) ** 2 + (
        axis[None, :, None] - middle[:, 1, None, None]
    ) ** 2
    reach = uniform(rng, 9.0, 13.0, (n, 1, 1))
    window = np.clip(1.0 - square / (reach * reach), 0.0, 1.0)
    wave = (swell(v) - 0.5) * window * window
    tone = uniform(rng, -230.0, 230.0, (n, 1, 1, 3))
    grain = rng.integers(-9, 10, (n, WIDTH, WIDTH, 3))
    return _bytes(np.rint(128.0 + wave[..., None] * tone) + grain)


def pointing(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Glowing pointers of unseen kinds."""
    n = len(labels)
    masks = [c.pointer(kind) for kind in pick(rng, c.POINTERS, n)]
    coefficients = affines(rng, n, Pose(turn=8.0, zoom=(0.65, 1.0)), turn=45.0 * labels.astype(np.float64))
    ink, ground = colours(rng, n, NEON)
    return paint(rng, warp(masks, coefficients), ink, ground, NEON)


def cloth(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Patterns woven into cloth that lies askew, every other thread darker."""
    n = len(labels)
    ink, ground = colours(rng, n, CLOTH)
    turned = patterns(rng, labels, (7.0, 13.0), 45.0)
    fabric = paint(rng, turned, ink, ground, CLOTH).astype(np.int32)
    thread = np.indices((WIDTH, WIDTH)).sum(axis=0) % 2
    depth = rng.integers(30, 70, (n, 1, 1, 1), dtype=np.int32)
    return _bytes(fabric - depth * thread[None, :, :, None].astype(np.int32))


def night(rng: np.random.Generator, labels: Integers) -> Bytes:
    """One lamp among stars: where is it?"""
    n = len(labels)
    place = np.stack([labels % 3 - 1, labels // 3 - 1], axis=1) * 9.5 + uniform(rng, -2.0, 2.0, (n, 2))
    axis = np.arange(WIDTH, dtype=np.float64) - (WIDTH - 1) / 2
    square = (axis[None, None, :] - place[:, 0, None, None]) ** 2 + (
        axis[None, :, None] - place[:, 1, None, None]
    ) ** 2
    glow = 1.0 / (1.0 + square / uniform(rng, 3.0, 12.0, (n, 1, 1)))
    sky = np.array([16, 20, 58]) + rng.integers(-12, 13, (n, 1, 1, 3))
    lamp = np.array([255, 225, 140]) + rng.integers(-40, 1, (n, 1, 1, 3))
    stars = (rng.integers(0, 100, (n, WIDTH, WIDTH, 1)) == 0) * rng.integers(60, 190, (n, WIDTH, WIDTH, 1))
    mixed = sky + np.floor((lamp - sky) * glow[..., None]) + stars
    return _bytes(mixed)


def _plain(
    rng: np.random.Generator, domain: str, names: Sequence[str], variants: Sequence[str], look: Look
) -> Bytes:
    n = len(names)
    ink, ground = colours(rng, n, look)
    masks = contents_of(rng, domain, names, variants, ["plain"] * n)
    return paint(rng, warp(masks, affines(rng, n, Pose())), ink, ground, look)


def control(rng: np.random.Generator, labels: Integers) -> Bytes:
    """What pre-training was full of: icons and printed capitals."""
    names = (*c.ICONS, *c.CAPITALS)
    out = np.empty((len(labels), WIDTH, WIDTH, 3), dtype=np.uint8)
    for domain, fonts in (("icon", c.ICON_FONTS), ("capital", c.SEEN_FONTS)):
        rows = np.flatnonzero((labels < len(c.ICONS)) == (domain == "icon"))
        out[rows] = _plain(rng, domain, [names[i] for i in labels[rows]], fonts, Look(blotch=30))
    return out


def printed(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Upright printed digits, white on black: the plain sister of the handwritten ones."""
    look = Look(("white",), ("black",), jitter=12, ramp=10, noise=8, soft=0.5)
    return _plain(rng, "digit", [c.DIGITS[i] for i in labels], c.SEEN_FONTS, look)


def solid(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Filled shapes in pencil grey on white: the plain sister of the sketches."""
    return _plain(rng, "shape", [c.SHAPES[i] for i in labels], ("",), PENCIL)


SCENES: dict[str, tuple[Scene, int]] = {
    "letters": (letters, 26),
    "streetnum": (streetnum, 10),
    "greek": (greek, len(c.GREEK)),
    "sketch": (sketch, len(c.SHAPES)),
    "gabor": (gabor, len(c.ORIENTATIONS)),
    "pointing": (pointing, len(c.DIRECTIONS)),
    "cloth": (cloth, len(c.PATTERNS)),
    "night": (night, len(c.PLACES)),
    "control": (control, len(c.ICONS) + len(c.CAPITALS)),
    "printed": (printed, 10),
    "solid": (solid, len(c.SHAPES)),
}
"""Drawn scenes and how many classes each has."""

SIZES = {"train": 2000, "validation": 1000, "test": 1000}
HANDWRITTEN_SIZES = {"train": 797, "validation": 400, "test": 600}


@dataclass(frozen=True)
class Pictures:
    """uint8 (n, 32, 32, 3) and int64 (n,)."""

    images: Bytes
    labels: Integers


@cache
def _handwritten() -> Pictures:
    """All scanned digits that scikit-learn carries, shuffled, 8 x 8 brought to 32 x 32."""
    from sklearn.datasets import load_digits

    scans = load_digits()
    order = generator(0, "handwritten").permutation(len(scans.target))
    grey = np.floor(scans.images[order] * 255.0 / 16.0).astype(np.uint8)
    large = np.zeros((len(grey), WIDTH, WIDTH), dtype=np.uint8)
    for row, scan in zip(large, grey, strict=True):
        row[2:30, 2:30] = np.asarray(Image.fromarray(scan).resize((28, 28), Image.Resampling.BILINEAR))
    return Pictures(large[..., None].repeat(3, axis=3), scans.target[order].astype(np.int64))


def pictures(scene: str, split: str, seed: int = 0, classes: Sequence[int] | None = None) -> Pictures:
    """One split of a scene, always the same for the same arguments.

    Args:
        split: ``train``, ``validation`` or ``test``.
        seed: of what is drawn; the scans of ``handwritten`` do not depend on it.
        classes: only these labels; a drawn split keeps its size.

    Raises: InputError for an unknown scene or split.
    """
    if split not in SIZES:
        raise InputError(f"built-in world: no split {split!r}; {nearest(split, SIZES)}")
    if scene == "handwritten":
        every, first = _handwritten(), 0
        for name, size in HANDWRITTEN_SIZES.items():
            if name == split:
                break
            first += size
        rows = np.arange(first, first + HANDWRITTEN_SIZES[split])
        if classes is not None:
            rows = rows[np.isin(every.labels[rows], classes)]
        return Pictures(every.images[rows], every.labels[rows])
    if scene not in SCENES:
        raise InputError(f"built-in world: no scene {scene!r}; {nearest(scene, ['handwritten', *SCENES])}")
    draw, count = SCENES[scene]
    rng = generator(seed, scene, split, *(classes or ()))
    among = np.arange(count) if classes is None else np.array(classes)
    labels = among[rng.permuted(np.resize(np.arange(len(among)), SIZES[split]))].astype(np.int64)
    return Pictures(draw(rng, labels), labels)
