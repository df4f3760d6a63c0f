"""What the built-in world can show: characters, shapes and pointers, with the masks that draw them.

A mask is a 64 x 64 grey image, 255 where there is ink. Masks are drawn once, enlarged and without
anti-aliasing, then averaged down: that leaves nothing to the rounding of a machine or of a font renderer.
"""

from collections.abc import Callable, Sequence
from functools import cache, lru_cache
from math import cos, pi, sin
from pathlib import Path

from PIL import Image, ImageChops, ImageDraw, ImageFont

from taskvec.errors import InputError, optional

SIDE = 64
_LARGE = 4 * SIDE

SEEN_FONTS = (
    "DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSerif",
    "DejaVuSerif-Bold", "STIXGeneral", "STIXGeneralBol", "cmr10", "cmb10", "cmss10", "cmtt10",
)  # fmt: skip
"""Upright fonts, for pre-training and the control task."""

UNSEEN_FONTS = (
    "DejaVuSans-Oblique", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneralItalic", "STIXGeneralBolIta", "cmti10",
)  # fmt: skip
"""Slanted fonts, for the tasks alone."""

ICON_FONTS = ("DejaVuSans", "DejaVuSans-Bold")
GREEK_FONTS = tuple(font for font in SEEN_FONTS if not font.startswith("cm"))
UNSEEN_GREEK_FONTS = tuple(font for font in UNSEEN_FONTS if not font.startswith("cm"))

LETTERS = tuple("abcdefghijklmnopqrstuvwxyz")
CAPITALS = tuple("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
DIGITS = tuple("0123456789")
GREEK = {
    "alpha": "α", "beta": "β", "gamma": "γ", "delta": "δ", "epsilon": "ε", "zeta": "ζ", "eta": "η",
    "theta": "θ", "lambda": "λ", "mu": "μ", "xi": "ξ", "pi": "π", "rho": "ρ", "sigma": "σ", "tau": "τ",
    "phi": "φ", "chi": "χ", "psi": "ψ", "omega": "ω", "Omega": "Ω",
}  # fmt: skip
ICONS = {
    "sun": "☀", "cloud": "☁", "umbrella": "☂", "snowman": "☃", "telephone": "☎", "cup": "☕", "skull": "☠",
    "radiation": "☢", "biohazard": "☣", "peace": "☮", "balance": "☯", "frown": "☹", "smile": "☺",
    "venus": "♀", "mars": "♂", "king": "♔", "queen": "♕", "rook": "♖", "bishop": "♗", "knight": "♘",
    "pawn": "♙", "spade": "♠", "club": "♣", "heart": "♥", "spring": "♨", "note": "♪", "melody": "♫",
    "flat": "♭", "sharp": "♯", "recycling": "♻", "anchor": "⚓", "swords": "⚔", "weights": "⚖",
    "gear": "⚙", "atom": "⚛", "warning": "⚠", "lightning": "⚡", "scissors": "✂", "airplane": "✈",
    "envelope": "✉", "victory": "✌", "pencil": "✎", "check": "✓", "snowflake": "❄", "ampersand": "&",
    "percent": "%", "at": "@", "paragraph": "¶",
}  # fmt: skip
SHAPES = (
    "circle", "ring", "square", "frame", "triangle", "diamond", "pentagon", "hexagon", "star", "cross",
    "crescent", "drop",
)  # fmt: skip


@cache
def _font_folder() -> Path:
    missing = "built-in world: matplotlib is not installed, expected for fonts; pip install 'taskvec[plots]'"
    return Path(optional("matplotlib", missing).get_data_path()) / "fonts" / "ttf"


@cache
def characters(font: str) -> frozenset[str]:
    """The characters that a font of matplotlib's really holds; others would silently draw a box."""
    folder = _font_folder()
    from matplotlib.ft2font import FT2Font

    return frozenset(map(chr, FT2Font(str(folder / f"{font}.ttf")).get_charmap()))


@lru_cache(maxsize=64)
def _typeface(font: str, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(_font_folder() / f"{font}.ttf"), size, layout_engine=ImageFont.Layout.BASIC)


@cache
def glyph(char: str, font: str) -> Image.Image:
    """One printed character, centred.

    Raises: InputError if the font lacks it.
    """
    if char not in characters(font):
        raise InputError(
            f"built-in world: font {font!r} has no {char!r}, expected one that has it; choose another"
        )
    icon = char in ICONS.values() and not char.isascii()
    face = _typeface(font, 225 if icon else 205)
    left, top, right, bottom = face.getbbox(char)
    canvas = Image.new("L", (_LARGE, _LARGE))
    corner = (round((_LARGE - left - right) / 2), round((_LARGE - top - bottom) / 2))
    ImageDraw.Draw(canvas).text(corner, char, fill=255, font=face)
    return canvas.point(lambda v: 255 if v > 127 else 0).reduce(4)


Point = tuple[float, float]


def _around(angles: Sequence[float], radii: Sequence[float]) -> list[Point]:
    """Corners round the middle of the large canvas; angles in turns, counter-clockwise."""
    middle = _LARGE / 2
    return [
        (middle + r * cos(2 * pi * a), middle - r * sin(2 * pi * a))
        for a, r in zip(angles, radii, strict=True)
    ]


def _regular(corners: int, radius: float, first: float) -> list[Point]:
    return _around([first + k / corners for k in range(corners)], [radius] * corners)


def outline_of(shape: str) -> list[Point]:
    """The closed contour of a shape, as corners on a 256 x 256 canvas; of a ring or frame the outer one."""
    match shape:
        case "circle" | "ring":
            return _regular(48, 84, 0.0)
        case "square" | "frame":
            return _regular(4, 108, 0.125)
        case "triangle":
            return _regular(3, 104, 0.25)
        case "diamond":
            return _around([0, 0.25, 0.5, 0.75], [62, 108, 62, 108])
        case "pentagon":
            return _regular(5, 96, 0.25)
        case "hexagon":
            return _regular(6, 96, 0.0)
        case "star":
            return _around([0.25 + k / 10 for k in range(10)], [108, 44] * 5)
        case "cross":
            arm = [0.05, 0.125, 0.2]
            return _around([q / 4 + a for q in range(4) for a in arm], [102, 46, 102] * 4)
        case "crescent":
            outer = _around([0.11 + 0.78 * k / 30 for k in range(31)], [90] * 31)
            return outer + [(x * 0.55 + 84, y) for x, y in reversed(outer[4:-4])]
        case "drop":
            round_part = [
                (x, y + 26) for x, y in _around([0.58 + 0.84 * k / 30 - 0.25 for k in range(31)], [62] * 31)
            ]
            return [*round_part[:-1], (128, 22)]
    raise InputError(
        f"built-in world: shape {shape!r}, expected one of {', '.join(SHAPES)}; choose one of them"
    )


def _drawn(draw: Callable[[ImageDraw.ImageDraw], None]) -> Image.Image:
    canvas = Image.new("L", (_LARGE, _LARGE))
    draw(ImageDraw.Draw(canvas))
    return canvas.reduce(4)


POINTERS: dict[str, list[list[Point]]] = {
    "chevron": [[(84, 40), (124, 40), (204, 128), (124, 216), (84, 216), (164, 128)]],
    "dart": [[(40, 52), (224, 128), (40, 204), (88, 128)]],
    "wedge": [[(44, 84), (224, 128), (44, 172)]],
    "pin": [[*_around([0.12 + 0.76 * k / 20 for k in range(21)], [56] * 21), (236, 128)]],
    "pennant": [[(36, 40), (54, 40), (54, 216), (36, 216)], [(54, 70), (220, 128), (54, 186)]],
}  # fmt: skip


def filled(parts: Sequence[Sequence[Point]]) -> Image.Image:
    """Polygons of the large canvas, as a mask."""

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for part in parts:
            pen.polygon(part, fill=255)

    return _drawn(draw)


@cache
def pointer(name: str) -> Image.Image:
    """A pointer that pre-training has not seen, pointing right."""
    mask = filled(POINTERS[name])
    return ImageChops.offset(mask, -8, 0) if name == "pin" else mask


_SEGMENTS = (
    ((88, 40), (168, 40)), ((176, 48), (176, 120)), ((176, 136), (176, 208)), ((88, 216), (168, 216)),
    ((80, 136), (80, 208)), ((80, 48), (80, 120)), ((88, 128), (168, 128)),
)  # fmt: skip
_LIT = ("012345", "12", "01643", "01623", "5612", "05623", "056234", "012", "0123456", "012356")


@cache
def segments(digit: int, width: int) -> Image.Image:
    """A digit of seven segments, each ``width`` of 256 pixels wide."""

    def draw(pen: ImageDraw.ImageDraw) -> None:
        for number in _LIT[digit]:
            pen.line(_SEGMENTS[int(number)], fill=255, width=width)

    return _drawn(draw)


_LAMPS = 10


@cache
def _lamp_screen() -> Image.Image:
    screen = Image.new("L", (SIDE, SIDE))
    pen = ImageDraw.Draw(screen)
    for y in range(2, 62, 6):
        for x in range(2, 62, 6):
            pen.ellipse((x, y, x + 4, y + 4), fill=255)
    return screen


@cache
def lamps(char: str, font: str) -> Image.Image:
    """One printed character shown by ten rows of ten lamps, each on or off."""
    coarse = glyph(char, font).resize((_LAMPS, _LAMPS), Image.Resampling.BOX)
    canvas = Image.new("L", (SIDE, SIDE))
    lit = coarse.point(lambda v: 255 if v > 100 else 0)
    canvas.paste(lit.resize((6 * _LAMPS, 6 * _LAMPS), Image.Resampling.NEAREST), (2, 2))
    return ImageChops.multiply(canvas, _lamp_screen())
