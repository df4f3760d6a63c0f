"""What the tasks look like: one function a scene, each unlike the others and unlike pre-training.

A scene takes a generator and the labels to draw, int64 (n,), and returns pictures, uint8 (n, 32, 32, 3).
"""

from collections.abc import Callable
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
    generator,
    glyphs,
    neighbours,
    paint,
    pick,
    plane,
    swell,
    uniform,
    warp,
)

Scene = Callable[[np.random.Generator, Integers], Bytes]

BOARD = Look(
    ("red", "orange", "yellow"), ("black", "brown", "green"), 200, jitter=15, ramp=10, noise=14, soft=0.3
)
LCD = Look(("black",), ("white",), jitter=12, ramp=12, noise=14, soft=0.5, light=(200, 216, 168))
STREET = Look(contrast=260, jitter=30, ramp=50, blotch=25, noise=14, soft=0.1)
STONE = Look(("black",), ("gray",), contrast=0, jitter=14, ramp=25, blotch=14, noise=10, soft=0.0, relief=110)
SKY = Look(("white", "yellow"), ("blue", "purple"), contrast=150, jitter=25, ramp=20, noise=8, soft=0.0)
NEON = Look(
    ("green", "cyan", "pink", "orange"), ("black",), contrast=100, jitter=25, ramp=10, noise=0, soft=1.0
)

_BOLD_SLANTED = ("DejaVuSans-BoldOblique", "DejaVuSerif-BoldItalic", "STIXGeneralBolIta")
_LAMP_FONTS = (*c.SEEN_FONTS[:4], *c.UNSEEN_FONTS[:3])


def _bytes(values: NDArray[Any]) -> Bytes:
    clipped: Bytes = np.clip(values, 0, 255).astype(np.uint8)
    return clipped


def letters(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Small letters on a board of ten by ten lamps."""
    n = len(labels)
    fonts = pick(rng, _LAMP_FONTS, n)
    masks = [c.lamps(c.LETTERS[i], font) for i, font in zip(labels, fonts, strict=True)]
    ink, ground = colours(rng, n, BOARD)
    pose = Pose(turn=4.0, zoom=(0.9, 1.2), shift=2.0)
    return paint(rng, warp(masks, affines(rng, n, pose)), ink, ground, BOARD)


def display(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Digits of seven segments, dark on a pale display."""
    n = len(labels)
    masks = [c.segments(int(i), int(width)) for i, width in zip(labels, rng.integers(12, 26, n), strict=True)]
    ink, ground = colours(rng, n, LCD)
    pose = Pose(turn=4.0, zoom=(0.75, 1.15), shear=0.25)
    return paint(rng, warp(masks, affines(rng, n, pose)), ink, ground, LCD)


def streetnum(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Slanted digits with others close by, in the middle of a house number."""
    n = len(labels)
    masks = glyphs(rng, [c.DIGITS[i] for i in labels], _BOLD_SLANTED)
    ink, ground = colours(rng, n, STREET)
    beside = [(_close_by(rng, n), ink) for _ in range(2)]
    mask = warp(masks, affines(rng, n, Pose(turn=6.0, zoom=(0.85, 1.2), shift=1.5)))
    return paint(rng, mask, ink, ground, STREET, beside)


def _close_by(rng: np.random.Generator, n: int) -> Bytes:
    """Other digits, to the left or to the right."""
    masks = glyphs(rng, pick(rng, c.DIGITS, n), _BOLD_SLANTED)
    return neighbours(rng, masks, rng.integers(0, 2, n) * 4, (10.0, 13.5))


def greek(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Greek letters carved in stone, leaning either way."""
    n = len(labels)
    characters, fonts = tuple(c.GREEK.values()), (*c.GREEK_FONTS, *c.UNSEEN_GREEK_FONTS)
    masks = glyphs(rng, [characters[i] for i in labels], fonts)
    ink, ground = colours(rng, n, STONE)
    pose = Pose(turn=40.0, zoom=(0.9, 1.25), shift=2.5)
    return paint(rng, warp(masks, affines(rng, n, pose)), ink, ground, STONE)


def _stars(rng: np.random.Generator, name: str) -> Image.Image:
    """A shape as stars on its contour, joined by faint lines, 64 x 64."""
    canvas = Image.new("L", (4 * c.SIDE, 4 * c.SIDE))
    pen = ImageDraw.Draw(canvas)
    contour = np.array(c.outline_of(name))
    inner = [128 + 0.5 * (contour - 128)] if name in ("ring", "frame") else []
    for line in (contour, *inner):
        sparse = line if len(line) < 14 else line[:: len(line) // 12]
        following = np.roll(sparse, -1, axis=0)
        corners = (
            sparse if len(line) >= 14 else np.stack([sparse, (sparse + following) / 2], axis=1).reshape(-1, 2)
        )
        moved = np.rint(corners + uniform(rng, -4.0, 4.0, corners.shape))
        closed = [tuple(point) for point in [*moved.tolist(), moved[0].tolist()]]
        pen.line(closed, fill=120, width=5)
        for (x, y), radius in zip(moved.tolist(), rng.integers(7, 13, len(moved)).tolist(), strict=True):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=255)
    return canvas.reduce(4)


def constellation(rng: np.random.Generator, labels: Integers) -> Bytes:
    """Shapes as constellations in the night sky."""
    n = len(labels)
    masks = [_stars(rng, c.SHAPES[i]) for i in labels]
    ink, ground = colours(rng, n, SKY)
    return paint(rng, warp(masks, affines(rng, n, Pose(zoom=(0.85, 1.15)))), ink, ground, SKY)


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
    masks = [c.pointer(kind) for kind in pick(rng, tuple(c.POINTERS), n)]
    coefficients = affines(rng, n, Pose(turn=8.0, zoom=(0.65, 1.0)), turn=45.0 * labels.astype(np.float64))
    ink, ground = colours(rng, n, NEON)
    return paint(rng, warp(masks, coefficients), ink, ground, NEON)


def control(rng: np.random.Generator, labels: Integers) -> Bytes:
    """What pre-training was full of: icons and printed capitals."""
    look, masks, icons = Look(blotch=30), [], tuple(c.ICONS.values())
    for label in labels.tolist():
        icon = label < len(icons)
        char = icons[label] if icon else c.CAPITALS[label - len(icons)]
        masks += glyphs(rng, [char], c.ICON_FONTS if icon else c.SEEN_FONTS)
    ink, ground = colours(rng, len(labels), look)
    return paint(rng, warp(masks, affines(rng, len(labels), Pose())), ink, ground, look)


SCENES: dict[str, tuple[Scene, int]] = {
    "letters": (letters, 26),
    "display": (display, 10),
    "streetnum": (streetnum, 10),
    "greek": (greek, len(c.GREEK)),
    "constellation": (constellation, len(c.SHAPES)),
    "gabor": (gabor, 8),
    "pointing": (pointing, 8),
    "control": (control, len(c.ICONS) + len(c.CAPITALS)),
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


@cache
def pictures(scene: str, split: str, seed: int = 0, classes: tuple[int, ...] | None = None) -> Pictures:
    """One split of a scene, always the same for the same arguments; drawn once, not to be written to.

    Args:
        split: ``train``, ``validation`` or ``test``.
        seed: of what is drawn; the scans of ``handwritten`` do not depend on it.
        classes: only these labels; a drawn split keeps its size.

    Raises: InputError for an unknown scene or split, or a class that the scene has not.
    """
    if split not in SIZES:
        raise InputError(f"built-in world: no split {split!r}; {nearest(split, SIZES)}")
    if scene not in {"handwritten", *SCENES}:
        raise InputError(f"built-in world: no scene {scene!r}; {nearest(scene, ['handwritten', *SCENES])}")
    count = 10 if scene == "handwritten" else SCENES[scene][1]
    for label in classes or ():
        if label >= count:
            raise InputError(f"built-in world: no class {label} in the scene {scene!r}, which has {count}")
    among = np.arange(count) if classes is None else np.array(classes)
    if scene == "handwritten":
        scans, ends = _handwritten(), np.cumsum([*HANDWRITTEN_SIZES.values()])
        start = dict(zip(HANDWRITTEN_SIZES, [0, *ends], strict=False))[split]
        rows = np.arange(start, start + HANDWRITTEN_SIZES[split])
        rows = rows[np.isin(scans.labels[rows], among)]
        return Pictures(scans.images[rows], scans.labels[rows])
    rng = generator(seed, scene, split, *(classes or ()))
    labels = among[rng.permuted(np.resize(np.arange(len(among)), SIZES[split]))].astype(np.int64)
    return Pictures(SCENES[scene][0](rng, labels), labels)
