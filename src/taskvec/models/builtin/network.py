"""The built-in dual encoder: an image transformer behind a small convolution stem, and a text encoder.

Attention is four separate linear layers, nothing works in place and nothing is random, so that forward-mode
derivatives and selections by name need no special case.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import Annotated, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from taskvec.config import Config
from taskvec.errors import InputError
from taskvec.registry import nearest

WIDTH = 32
"""Pixels of a side of an image."""


Size = Annotated[int, Field(ge=1, le=1 << 16)]
Depth = Annotated[int, Field(ge=0, le=1 << 8)]


class Shape(Config):
    """Sizes of the two towers."""

    width: Size
    depth: Depth
    heads: Size
    stem: tuple[Size, ...] = Field(max_length=4)
    text_width: Size
    text_depth: Depth
    text_heads: Size
    text_length: Size
    dim: Size

    @model_validator(mode="after")
    def _divides(self) -> Self:
        if self.width % self.heads or self.text_width % self.text_heads:
            raise ValueError("a width that its heads do not divide")
        return self


DEFAULT = Shape(
    width=256, depth=3, heads=8, stem=(48, 96),
    text_width=128, text_depth=1, text_heads=4, text_length=16, dim=128,
)  # fmt: skip


def _tokens(shape: Shape) -> int:
    """Every convolution halves both sides of the picture."""
    return int((WIDTH >> (len(shape.stem) + 1)) ** 2)


class Attention(nn.Module):
    """Multi-head self-attention on (n, tokens, width).

    Written out: for sixteen tokens that is faster on a CPU than the fused kernel (whose backward pass alone
    took a third of the training time), and forward-mode derivatives go through it.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Mix the tokens; ``mask`` is boolean, true where to look, like (n, heads, tokens, tokens)."""
        n, tokens, width = x.shape

        def split(projected: Tensor) -> Tensor:
            return projected.view(n, tokens, self.heads, width // self.heads).transpose(1, 2)

        scores = split(self.query(x)) @ split(self.key(x)).transpose(2, 3) * (width // self.heads) ** -0.5
        if mask is not None:
            scores = scores.masked_fill(mask.logical_not(), -torch.inf)
        mixed = scores.softmax(-1) @ split(self.value(x))
        return self.output(mixed.transpose(1, 2).reshape(n, tokens, width))  # type: ignore[no-any-return]


class Mlp(nn.Module):
    """Two linear layers with a GELU between."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        """Each token by itself, (n, tokens, width)."""
        return self.down(F.gelu(self.up(x)))  # type: ignore[no-any-return]


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attention_norm, self.attention = nn.LayerNorm(width), Attention(width, heads)
        self.mlp_norm, self.mlp = nn.LayerNorm(width), Mlp(width, 4 * width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n, tokens, width) to the same."""
        x = x + self.attention(self.attention_norm(x), mask)
        return x + self.mlp(self.mlp_norm(x))  # type: ignore[no-any-return]


class ImageTower(nn.Module):
    """Pixels (n, 3, 32, 32), about -1 to 1, to features (n, dim)."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        channels = (3, *shape.stem, shape.width)
        self.stem = nn.ModuleList(
            nn.Conv2d(fan_in, fan_out, 3, stride=2, padding=1) for fan_in, fan_out in pairwise(channels)
        )
        self.position = nn.Parameter(torch.zeros(_tokens(shape), shape.width))
        self.blocks = nn.ModuleList(Block(shape.width, shape.heads) for _ in range(shape.depth))
        self.norm = nn.LayerNorm(shape.width)
        self.projection = nn.Linear(shape.width, shape.dim, bias=False)

    def forward(self, pixel_values: Tensor) -> Tensor:
        """Un-normalised features of each image."""
        x = pixel_values
        for layer in self.stem[:-1]:
            x = F.gelu(layer(x))
        x = self.stem[-1](x).flatten(2).transpose(1, 2) + self.position
        for block in self.blocks:
            x = block(x)
        return self.projection(self.norm(x).mean(1))  # type: ignore[no-any-return]


class TextTower(nn.Module):
    """Word numbers (n, length), 0 for nothing, to features (n, dim)."""

    def __init__(self, shape: Shape, words: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(words + 1, shape.text_width)
        self.position = nn.Parameter(torch.zeros(shape.text_length, shape.text_width))
        self.blocks = nn.ModuleList(
            Block(shape.text_width, shape.text_heads) for _ in range(shape.text_depth)
        )
        self.norm = nn.LayerNorm(shape.text_width)
        self.projection = nn.Linear(shape.text_width, shape.dim, bias=False)

    def forward(self, words: Tensor) -> Tensor:
        """Un-normalised features of each text: the mean over its words."""
        there = words > 0
        x = self.embedding(words) + self.position[: words.shape[1]]
        for block in self.blocks:
            x = block(x, there[:, None, None, :])
        kept = there[..., None].to(x.dtype)
        return self.projection((self.norm(x) * kept).sum(1) / kept.sum(1))  # type: ignore[no-any-return]


class DualEncoder(nn.Module):
    """Both towers, and the logarithm of the scale of their cosines."""

    def __init__(self, words: int, shape: Shape = DEFAULT) -> None:
        super().__init__()
        self.image, self.text = ImageTower(shape), TextTower(shape, words)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(10.0)))
        self.shape = shape

    def forward(self, pixel_values: Tensor, words: Tensor) -> tuple[Tensor, Tensor]:
        """Features of images and of texts."""
        return self.image(pixel_values), self.text(words)


def initialised(words: int, seed: int) -> DualEncoder:
    """A dual encoder with random weights that only the seed decides."""
    network = DualEncoder(words)
    draws = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if name.endswith(("position", "embedding.weight")):
                weight.normal_(0.0, 0.02 if name.endswith("position") else 0.5, generator=draws)
            elif weight.ndim >= 2:
                weight.normal_(
                    0.0, (2.0 if "stem" in name else 1.0) ** 0.5 / weight[0].numel() ** 0.5, generator=draws
                )
            elif name.endswith("bias"):
                weight.zero_()
    return network


def pixels(images: Tensor) -> Tensor:
    """uint8 (n, 32, 32, 3) to float32 (n, 3, 32, 32) from -1 to 1."""
    if images.dtype != torch.uint8 or images.shape[1:] != (WIDTH, WIDTH, 3):
        raise InputError(
            f"built-in model: images are {images.dtype} {tuple(images.shape)}, "
            f"expected torch.uint8 (n, {WIDTH}, {WIDTH}, 3); draw or resize them so"
        )
    return images.permute(0, 3, 1, 2).to(torch.float32) / 127.5 - 1.0


def word_numbers(texts: Sequence[str], vocabulary: Sequence[str], length: int) -> Tensor:
    """Texts to word numbers, int64 (n, longest text), 0 where a text has ended.

    Raises: InputError for a word that the model never met, or a text that is empty or too long.
    """
    known = {word: number for number, word in enumerate(vocabulary, start=1)}
    rows = [text.split() for text in texts]
    for text, row in zip(texts, rows, strict=True):
        if not 0 < len(row) <= length:
            raise InputError(
                f"built-in model: text {text!r} has {len(row)} words, expected 1 to {length}; reword it"
            )
        for word in row:
            if word not in known:
                raise InputError(
                    f"built-in model: word {word!r} in {text!r}, expected one of its {len(known)} words; "
                    f"{nearest(word, known)}"
                )
    longest = max(map(len, rows), default=0)
    return torch.tensor([[known[word] for word in row] + [0] * (longest - len(row)) for row in rows])
