"""The distribution that the built-in model is pre-trained on: pictures of every domain, with captions.

Broad, but not the tasks: upright fonts, no handwriting, no relief, no windows, no pencil, other pointers.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
from numpy.typing import NDArray
from PIL import Image

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
    paint,
    pattern,
    plane,
    step,
    triangle,
    uniform,
    warp,
)

BLOCK = 1024
"""Images that are drawn together; block ``i`` of a seed is always the same."""

SHARES = {
    "letter": 0.13, "capital": 0.12, "digit": 0.09, "greek": 0.12, "icon": 0.16, "shape": 0.08,
    "arrow": 0.08, "place": 0.05, "count": 0.05, "stripes": 0.06, "pattern": 0.06,
}  # fmt: skip
VARIANTS: dict[str, Sequence[str]] = {
    "letter": c.SEEN_FONTS, "capital": c.SEEN_FONTS, "digit": c.SEEN_FONTS, "greek": c.GREEK_FONTS,
    "icon": c.ICON_FONTS, "shape": ("",), "arrow": c.ARROWS,
}  # fmt: skip
STYLES = ("plain", "outlined", "hatched")
LOOKS = (
    (0.4, Look()),
    (0.3, Look(blotch=40, noise=20)),
    (0.3, Look(blotch=70, noise=32, soft=0.3, contrast=200)),
)
PREFIXES = ("", "the ", "picture of the ", "image of the ", "here is the ")

CONTENTS = tuple((domain, name) for domain, about in c.DOMAINS.items() for name in about.names)
"""All contents, in the order of their numbers."""
_FIRST = {domain: next(i for i, (d, _) in enumerate(CONTENTS) if d == domain) for domain in c.DOMAINS}
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


def generator(seed: int, *path: object) -> np.random.Generator:
    """A PCG64 generator for one part of the world, the same on every machine."""
    digest = sha256("/".join(map(str, (seed, *path))).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def true_of(claims: Integers, facts: Integers) -> NDArray[np.bool_]:
    """Which captions (n) hold of which images (m), (n, m)."""
    said = claims[:, None, :]
    agree: NDArray[np.bool_] = ((said == -1) | (said == facts[None, :, :])).all(axis=-1)
    return agree


def pick(rng: np.random.Generator, options: Sequence[str], n: int) -> list[str]:
    """``n`` draws with replacement."""
    return [options[i] for i in rng.integers(0, len(options), n)]


def contents_of(
    rng: np.random.Generator,
    domain: str,
    names: Sequence[str],
    variants: Sequence[str],
    styles: Sequence[str],
) -> list[Image.Image]:
    """One mask a name, in random variants."""
    chosen = pick(rng, variants, len(names))
    return [c.content_mask(domain, *about) for about in zip(names, chosen, styles, strict=True)]


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
        out[rows] = pattern(c.PATTERNS[kind], u[rows], v[rows])
    return out


def neighbours(
    rng: np.random.Generator,
    n: int,
    share: float,
    domains: Sequence[str],
    variants: Mapping[str, Sequence[str]],
    distance: tuple[float, float] = (15.0, 20.0),
    sideways: bool = False,
) -> Bytes:
    """Masks of a second thing near the rim, (n, 32, 32); all zero but for about a ``share`` of the images."""
    names = [(domain, *pick(rng, c.DOMAINS[domain].names, 1)) for domain in pick(rng, domains, n)]
    masks = [contents_of(rng, domain, [name], variants[domain], ["plain"])[0] for domain, name in names]
    compass = rng.integers(0, 2, n) * 4 if sideways else rng.integers(0, 8, n)
    way = np.array([(1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1)], dtype=np.float64)[
        compass
    ]
    place = way * uniform(rng, *distance, (n, 1))
    shown = (rng.random(n) < share).astype(np.uint8)
    return warp(masks, affines(rng, n, Pose(shift=1.0), place=place)) * shown[:, None, None]


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
                contents_of(rng, k, pick(rng, c.DOMAINS[k].names, 1), VARIANTS[k], ["plain"])[0]
                for k in kinds
            ]
            return warp(things, affines(rng, n, Pose(shift=1.5), zoom=0.55, place=place_of(index, 9.5)))
    things = contents_of(rng, domain, [c.DOMAINS[domain].names[i] for i in index], VARIANTS[domain], styles)
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
    about = c.DOMAINS[domain]
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
        index = rng.integers(0, len(c.DOMAINS[domain].names), len(rows))
        styles = _styles(rng, domain, len(rows))
        facts[rows, 1] = _FIRST[domain] + index
        facts[rows, 4] = [STYLES.index(style) for style in styles]
        if len(rows):
            mask[rows] = _masks(rng, domain, index, styles)
    images = np.empty((BLOCK, 32, 32, 3), dtype=np.uint8)
    crowd = ("letter", "capital", "digit", "greek", "icon", "shape")
    alone = np.isin(domain_of, [names.index(d) for d in ("count", "place", *_TWO_TONED)])
    for number, (_, look) in enumerate(LOOKS):
        rows = np.flatnonzero(look_of == number)
        ink, ground = colours(rng, len(rows), look)
        near = neighbours(rng, len(rows), 0.3, crowd, VARIANTS)
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
    captions = tuple(c.DOMAINS[domain].phrase.format(name) for domain, name in CONTENTS)
    claims = np.full((len(CONTENTS), 5), -1, dtype=np.int64)
    claims[:, 0] = [list(SHARES).index(domain) for domain, _ in CONTENTS]
    claims[:, 1] = np.arange(len(CONTENTS))
    return captions, claims


def vocabulary() -> tuple[str, ...]:
    """Every word that a caption can hold, sorted."""
    phrases = [about.phrase.format(name) for about in c.DOMAINS.values() for name in about.names]
    kinds = [about.kind for about in c.DOMAINS.values()]
    return tuple(
        sorted({w for text in (*phrases, *kinds, *PREFIXES, *COLOURS, *STYLES, "on") for w in text.split()})
    )
