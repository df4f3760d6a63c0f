"""The distribution that the built-in model is pre-trained on: pictures of every domain, with captions.

Broad, but not the tasks: upright fonts, no handwriting, no relief, no windows, no pencil, other pointers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageChops, ImageDraw, ImageFilter

from taskvec.tasks.builtin import contents as c
from taskvec.tasks.builtin.drawing import (
    COLOURS,
    Bytes,
    Floats,
    Integers,
    Look,
    Pose,
    affines,
    colours,
    fraction,
    generator,
    neighbours,
    paint,
    pick,
    plane,
    swell,
    triangle,
    uniform,
    warp,
)

BLOCK = 1024
"""Images that are drawn together; block ``i`` of a seed is always the same."""

DIRECTIONS = ("right", "up right", "up", "up left", "left", "down left", "down", "down right")
"""Counter-clockwise from the right, 45 degrees apart."""

ORIENTATIONS = (
    "horizontal", "shallow rising", "rising", "steep rising",
    "vertical", "steep falling", "falling", "shallow falling",
)  # fmt: skip
"""Counter-clockwise from the horizontal, 22.5 degrees apart."""

PLACES = (
    "top left", "top", "top right", "middle left", "middle", "middle right",
    "bottom left", "bottom", "bottom right",
)  # fmt: skip
COUNTS = ("one", "two", "three", "four", "five", "six")
PATTERNS = (
    "checkerboard", "grid", "polka", "brick", "zigzag", "wave", "ripple", "plus", "sawtooth", "lattice",
    "scale",
)  # fmt: skip

ARROWS: dict[str, list[list[c.Point]]] = {
    "thin": [[(36, 120), (220, 120), (220, 136), (36, 136)],
             [(220, 128), (160, 72), (150, 84), (198, 128), (150, 172), (160, 184)]],
    "block": [[(30, 96), (130, 96), (130, 48), (226, 128), (130, 208), (130, 160), (30, 160)]],
    "solid": [[(34, 114), (150, 114), (150, 68), (224, 128), (150, 188), (150, 142), (34, 142)]],
    "double": [[(36, 98), (170, 98), (170, 112), (36, 112)], [(36, 144), (170, 144), (170, 158), (36, 158)],
               [(150, 56), (226, 128), (150, 200), (150, 172), (190, 128), (150, 84)]],
}  # fmt: skip


@dataclass(frozen=True)
class Domain:
    """One kind of content: the names in it, how a caption says one of them, and how it says only the kind."""

    names: tuple[str, ...]
    phrase: str
    kind: str


DOMAINS = {
    "letter": Domain(c.LETTERS, "letter {}", "letter"),
    "capital": Domain(c.CAPITALS, "capital {}", "capital"),
    "digit": Domain(c.DIGITS, "digit {}", "digit"),
    "greek": Domain(tuple(c.GREEK), "greek {}", "greek letter"),
    "icon": Domain(tuple(c.ICONS), "{} icon", "icon"),
    "shape": Domain(c.SHAPES, "{}", "shape"),
    "arrow": Domain(DIRECTIONS, "arrow pointing {}", "arrow"),
    "place": Domain(PLACES, "thing at the {}", "thing"),
    "count": Domain(COUNTS, "{} dots", "dots"),
    "stripes": Domain(ORIENTATIONS, "{} stripes", "stripes"),
    "pattern": Domain(PATTERNS, "{} pattern", "pattern"),
}

SHARES = {
    "letter": 0.13, "capital": 0.12, "digit": 0.09, "greek": 0.12, "icon": 0.16, "shape": 0.08,
    "arrow": 0.08, "place": 0.05, "count": 0.05, "stripes": 0.06, "pattern": 0.06,
}  # fmt: skip
VARIANTS: dict[str, Sequence[str]] = {
    "letter": c.SEEN_FONTS, "capital": c.SEEN_FONTS, "digit": c.SEEN_FONTS, "greek": c.GREEK_FONTS,
    "icon": c.ICON_FONTS, "shape": ("",), "arrow": tuple(ARROWS),
}  # fmt: skip
STYLES = ("plain", "outlined", "hatched")
LOOKS = (
    (0.4, Look()),
    (0.3, Look(blotch=40, noise=20)),
    (0.3, Look(blotch=70, noise=32, soft=0.3, contrast=200)),
)
PREFIXES = ("", "the ", "picture of the ", "image of the ", "here is the ")

CONTENTS = tuple((domain, name) for domain, about in DOMAINS.items() for name in about.names)
"""All contents, in the order of their numbers."""
_FIRST = {domain: next(i for i, (d, _) in enumerate(CONTENTS) if d == domain) for domain in DOMAINS}
_TWO_TONED = ("stripes", "pattern")


@dataclass(frozen=True)
class Captioned:
    """Pictures with captions and what both say.

    ``facts`` and ``claims`` are int64 (n, 5): domain, content, colour of the ink, of the ground, style. A
    claim of -1 is a thing that the caption leaves open.
    """

    images: Bytes
    captions: tuple[str, ...]
    facts: Integers
    claims: Integers


@cache
def shape(name: str) -> Image.Image:
    """A filled shape (a ring and a frame keep their hole)."""
    contour = c.outline_of(name)
    mask = Image.new("L", (256, 256))
    pen = ImageDraw.Draw(mask)
    pen.polygon(contour, fill=255)
    if name in ("ring", "frame"):
        pen.polygon([(128 + 0.6 * (x - 128), 128 + 0.6 * (y - 128)) for x, y in contour], fill=0)
    return mask.reduce(4)


def outlined(mask: Image.Image, width: int = 5) -> Image.Image:
    """Only the rim of a mask, ``width`` pixels of the 64 wide (odd)."""
    return ImageChops.subtract(
        mask.filter(ImageFilter.MaxFilter(width)), mask.filter(ImageFilter.MinFilter(3))
    )


@cache
def _hatching() -> Image.Image:
    screen = Image.new("L", (c.SIDE, c.SIDE))
    pen = ImageDraw.Draw(screen)
    for x in range(-c.SIDE, c.SIDE, 8):
        pen.line((x, c.SIDE, x + c.SIDE, 0), fill=255, width=4)
    return screen


@lru_cache(maxsize=20_000)
def content_mask(domain: str, name: str, variant: str, style: str = "plain") -> Image.Image:
    """The mask of one content.

    Args:
        domain: one of the domains that are drawn from a mask (not counts, stripes, patterns).
        name: a name of that domain; for arrows ignored, since a direction is a rotation.
        variant: the font of a character, the kind of an arrow, ignored for shapes.
        style: ``plain``, ``outlined`` or ``hatched``.
    """
    mask = _plain(domain, name, variant)
    if style == "plain":
        return mask
    return outlined(mask) if style == "outlined" else ImageChops.multiply(mask, _hatching())


def _plain(domain: str, name: str, variant: str) -> Image.Image:
    match domain:
        case "shape":
            return shape(name)
        case "arrow":
            return c.filled(ARROWS[variant])
        case "greek":
            return c.glyph(c.GREEK[name], variant)
    return c.glyph(c.ICONS.get(name, name), variant)


def step(x: Floats, edge: Floats | float, softness: float = 0.12) -> Bytes:
    """255 where x is below the edge, 0 above, a short slope between."""
    slope = (edge - x) / softness + 0.5
    return (np.clip(slope, 0.0, 1.0) * 255.0).astype(np.uint8)


def pattern(kind: str, u: Floats, v: Floats) -> Bytes:
    """A pattern that fills the picture, (n, 32, 32)."""
    fu, fv = fraction(u), fraction(v)
    du, dv = np.abs(fu - 0.5), np.abs(fv - 0.5)
    match kind:
        case "checkerboard":
            return step(-(fu - 0.5) * (fv - 0.5), 0.0, 0.05)
        case "grid":
            return step(np.maximum(du, dv), 0.36)
        case "polka":
            return step(np.sqrt(du * du + dv * dv), 0.3)
        case "brick":
            joint = np.abs(fraction(0.5 * u + 0.5 * (np.floor(v) % 2)) - 0.5)
            return step(np.maximum(2 * joint - 0.5, dv), 0.37)
        case "zigzag":
            return step(triangle(v + 0.5 * triangle(u)), 0.5, 0.2)
        case "wave":
            return step(triangle(v + 0.42 * swell(0.55 * u)), 0.5, 0.2)
        case "ripple":
            return step(triangle(np.sqrt(u * u + v * v)), 0.5, 0.2)
        case "plus":
            bar = np.minimum(np.maximum(2.6 * du, dv), np.maximum(du, 2.6 * dv))
            return step(bar, 0.36)
        case "sawtooth":
            return step(fu - fv, 0.0)
        case "lattice":
            return step(du + dv, 0.36)
        case _:
            row = np.floor(v)
            across = np.abs(fraction(u + 0.5 * (row % 2)) - 0.5)
            return step(np.abs(np.sqrt(across * across + fv * fv) - 0.45), 0.12)


def true_of(claims: Integers, facts: Integers) -> NDArray[np.bool_]:
    """Which captions (n) hold of which images (m), (n, m)."""
    said = claims[:, None, :]
    agree: NDArray[np.bool_] = ((said == -1) | (said == facts[None, :, :])).all(axis=-1)
    return agree


def contents_of(
    rng: np.random.Generator,
    domain: str,
    names: Sequence[str],
    variants: Sequence[str],
    styles: Sequence[str],
) -> list[Image.Image]:
    """One mask a name, in random variants."""
    chosen = pick(rng, variants, len(names))
    return [content_mask(domain, *about) for about in zip(names, chosen, styles, strict=True)]


def heading(domain: str, index: Integers) -> Floats:
    """By how many degrees a content is turned: arrows are one mask in eight directions."""
    return (45.0 if domain == "arrow" else 0.0) * index.astype(np.float64)


def place_of(index: Integers, step: float) -> Floats:
    """Shift of each of the nine places, (n, 2), x to the right, y downwards."""
    return np.stack([(index % 3 - 1) * step, (index // 3 - 1) * step], axis=1)


def dots(rng: np.random.Generator, count: Integers) -> Bytes:
    """That many separate dots, (n, 32, 32)."""
    n = len(count)
    radius = uniform(rng, 1.6, 3.2, (n, 1, 1))
    order = rng.permuted(np.broadcast_to(np.arange(9), (n, 9)), axis=1)
    nearest = np.full((n, 32, 32), 1e9)
    grid = np.arange(32, dtype=np.float64)
    for k in range(int(count.max())):
        centre = place_of(order[:, k], 9.5) + 15.5 + uniform(rng, -1.4, 1.4, (n, 2))
        dx = grid[None, None, :] - centre[:, 0, None, None]
        dy = grid[None, :, None] - centre[:, 1, None, None]
        far = np.where((k < count)[:, None, None], dx * dx + dy * dy, 1e9)
        nearest = np.minimum(nearest, far)
    return step(np.sqrt(nearest), radius, 1.0)


def stripes(rng: np.random.Generator, index: Integers, period: tuple[float, float]) -> Bytes:
    """Stripes of eight orientations, (n, 32, 32)."""
    n = len(index)
    turn = 22.5 * index + uniform(rng, -6.0, 6.0, n)
    _, v = plane(turn, uniform(rng, *period, n), rng.random((n, 2)))
    return step(triangle(v), uniform(rng, 0.35, 0.65, (n, 1, 1)), 0.25)


def patterns(rng: np.random.Generator, index: Integers, period: tuple[float, float], turn: float) -> Bytes:
    """Patterns of all kinds, (n, 32, 32)."""
    n = len(index)
    u, v = plane(uniform(rng, -turn, turn, n), uniform(rng, *period, n), rng.random((n, 2)) * 8)
    out = np.empty((n, 32, 32), dtype=np.uint8)
    for kind in np.unique(index):
        rows = index == kind
        out[rows] = pattern(PATTERNS[kind], u[rows], v[rows])
    return out


def _neighbours(rng: np.random.Generator, n: int) -> Bytes:
    """Masks of a second thing near the rim of about three in ten images, (n, 32, 32)."""
    crowd = ("letter", "capital", "digit", "greek", "icon", "shape")
    names = [(domain, *pick(rng, DOMAINS[domain].names, 1)) for domain in pick(rng, crowd, n)]
    masks = [contents_of(rng, domain, [name], VARIANTS[domain], ["plain"])[0] for domain, name in names]
    return neighbours(rng, masks, rng.integers(0, 8, n), (15.0, 20.0), 0.3)


def _masks(rng: np.random.Generator, domain: str, index: Integers, styles: list[str]) -> Bytes:
    n = len(index)
    match domain:
        case "count":
            return dots(rng, index + 1)
        case "stripes":
            return stripes(rng, index, (5.0, 11.0))
        case "pattern":
            return patterns(rng, index, (6.0, 11.0), 10.0)
        case "place":
            kinds = pick(rng, ("letter", "capital", "digit", "icon", "shape"), n)
            things = [
                contents_of(rng, k, pick(rng, DOMAINS[k].names, 1), VARIANTS[k], ["plain"])[0] for k in kinds
            ]
            return warp(things, affines(rng, n, Pose(shift=1.5), zoom=0.55, place=place_of(index, 9.5)))
    things = contents_of(rng, domain, [DOMAINS[domain].names[i] for i in index], VARIANTS[domain], styles)
    return warp(things, affines(rng, n, Pose(), turn=heading(domain, index)))


def _styles(rng: np.random.Generator, domain: str, n: int) -> list[str]:
    if domain in ("count", "stripes", "pattern", "place"):
        return ["plain"] * n
    outlined, hatched = (0.0, 0.12) if domain in ("letter", "digit") else (0.2, 0.12)
    draw = rng.random(n)
    return ["outlined" if x < outlined else "hatched" if x < outlined + hatched else "plain" for x in draw]


def _statement(content: tuple[str, str], ink: str, ground: str, style: str, says: NDArray[np.bool_]) -> str:
    """``[colour] [style] content [on colour]``, or only the kind of the content."""
    domain, name = content
    colour, behind, manner, vague = says
    about = DOMAINS[domain]
    words = [ink] * bool(colour) + [style] * bool(manner)
    words.append(about.kind if vague else about.phrase.format(name))
    return " ".join(words + [f"on {ground}"] * bool(behind))


def captioned(seed: int, block: int) -> Captioned:
    """Block ``block`` of the pre-training pictures, ``BLOCK`` of them, shuffled."""
    rng = generator(seed, "pretraining", block)
    domain_of = rng.choice(len(SHARES), BLOCK, p=np.array(list(SHARES.values())))
    look_of = rng.choice(len(LOOKS), BLOCK, p=[share for share, _ in LOOKS])
    names = list(SHARES)
    mask = np.empty((BLOCK, 32, 32), dtype=np.uint8)
    facts = np.zeros((BLOCK, 5), dtype=np.int64)
    facts[:, 0] = domain_of
    for number, domain in enumerate(names):
        rows = np.flatnonzero(domain_of == number)
        index = rng.integers(0, len(DOMAINS[domain].names), len(rows))
        styles = _styles(rng, domain, len(rows))
        facts[rows, 1] = _FIRST[domain] + index
        facts[rows, 4] = [STYLES.index(style) for style in styles]
        if len(rows):
            mask[rows] = _masks(rng, domain, index, styles)
    images = np.empty((BLOCK, 32, 32, 3), dtype=np.uint8)
    alone = np.isin(domain_of, [names.index(d) for d in ("count", "place", *_TWO_TONED)])
    for number, (_, look) in enumerate(LOOKS):
        rows = np.flatnonzero(look_of == number)
        ink, ground = colours(rng, len(rows), look)
        near = _neighbours(rng, len(rows))
        near[alone[rows]] = 0
        images[rows] = paint(
            rng, mask[rows], ink, ground, look, [(near, rng.integers(0, len(COLOURS), len(rows)))]
        )
        facts[rows, 2], facts[rows, 3] = ink, ground
    says = rng.random((BLOCK, 4)) < np.array([0.25, 0.12, 0.5, 0.06])
    says[np.isin(domain_of, [names.index(d) for d in _TWO_TONED]), :3] = False
    says[:, 2] &= facts[:, 4] > 0
    prefixes = pick(rng, PREFIXES, BLOCK)
    palette = list(COLOURS)
    captions = tuple(
        prefix + _statement(CONTENTS[content], palette[ink], palette[ground], STYLES[style], said)
        for (_, content, ink, ground, style), said, prefix in zip(facts, says, prefixes, strict=True)
    )
    stated = np.stack([np.ones(BLOCK, dtype=bool), ~says[:, 3], says[:, 0], says[:, 1], says[:, 2]], axis=1)
    return Captioned(images, captions, facts, np.where(stated, facts, -1))


def every_content() -> tuple[tuple[str, ...], Integers]:
    """One short caption for each content there is, and its claims, (contents, 5)."""
    captions = tuple(DOMAINS[domain].phrase.format(name) for domain, name in CONTENTS)
    claims = np.full((len(CONTENTS), 5), -1, dtype=np.int64)
    claims[:, 0] = [list(SHARES).index(domain) for domain, _ in CONTENTS]
    claims[:, 1] = np.arange(len(CONTENTS))
    return captions, claims


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can hold, sorted."""
    phrases = [about.phrase.format(name) for about in DOMAINS.values() for name in about.names]
    kinds = [about.kind for about in DOMAINS.values()]
    return tuple(
        sorted({w for text in (*phrases, *kinds, *PREFIXES, *COLOURS, *STYLES, "on") for w in text.split()})
    )
