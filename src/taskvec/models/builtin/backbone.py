"""The built-in dual encoder as a backbone."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import ConfigDict, Field, model_validator
from torch import Tensor

from taskvec.config import Config
from taskvec.errors import CorruptFile, InputError
from taskvec.models.backbone import Backbone
from taskvec.models.builtin.network import (
    DEFAULT,
    WIDTH,
    DualEncoder,
    Shape,
    initialised,
    pixels,
    word_numbers,
)
from taskvec.reading import printable, read_mapping
from taskvec.weights import open_weights

FOLDER = Path(__file__).parent / "model"
"""The checkpoint that comes with the package: config.json and model.safetensors."""


class BuiltinBackbone(Backbone):
    """Images of the built-in world to features (N, 128); texts of its vocabulary to the same space.

    Args:
        vocabulary: the words that texts may hold, in the order of their numbers.
    """

    modality = "image"
    network: DualEncoder

    def __init__(self, network: DualEncoder, vocabulary: Sequence[str], *, ref: str) -> None:
        scale = network.logit_scale.detach().exp().item()
        super().__init__(network, ref=ref, dim=network.shape.dim, logit_scale=scale)
        self.vocabulary = tuple(vocabulary)

    def forward(self, *, pixel_values: Tensor) -> Tensor:  # type: ignore[override]
        """Features (N, d) of pixels (N, 3, 32, 32), about -1 to 1."""
        features: Tensor = self.network.image(pixel_values)
        return features

    def prepare(self, inputs: Sequence[Any], max_length: int | None = None) -> Sequence[Any]:
        """The images as they are, uint8 (32, 32, 3) each."""
        return inputs

    def stack(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        """``pixel_values``, float32 (N, 3, 32, 32).

        Raises: InputError for images of another size or dtype.
        """
        images = torch.stack([torch.as_tensor(image) for image in prepared])
        return {"pixel_values": pixels(images)}

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (P, d) of texts.

        Raises: InputError for a word outside the vocabulary, with the nearest one.
        """
        words = word_numbers(texts, self.vocabulary, self.network.shape.text_length)
        features: Tensor = self.network.text(words.to(self.device))
        return features

    def example(self) -> dict[str, Tensor]:
        """One grey picture."""
        return self.collate([torch.full((WIDTH, WIDTH, 3), 127, dtype=torch.uint8)])


def load(ref: str | Path) -> BuiltinBackbone:
    """The dual encoder in a checkpoint folder, in float32.

    Raises: CorruptFile when configuration and weights do not belong together.
    """
    folder = Path(ref)
    try:
        config = _read_config(folder)
        # Without memory of its own: what a configuration asks for is had once the weights have it.
        with torch.device("meta"):
            network = DualEncoder(len(config.vocabulary), Shape(**dict(config.shape)))
        with open_weights(folder / "model.safetensors") as halves:
            network.load_state_dict({name: half.float() for name, half in halves.items()}, assign=True)
    except (InputError, OSError, RuntimeError) as error:
        reason = printable(next(iter(str(error).splitlines()), type(error).__name__))
        raise CorruptFile(
            f"{folder}: not a built-in model ({reason}); expected config.json and its weights"
        ) from None
    return BuiltinBackbone(network.eval(), config.vocabulary, ref=str(ref))


def _read_config(folder: Path) -> "_Configuration":
    return _Configuration.parse("config.json", read_mapping(folder / "config.json"))


Size = Annotated[int, Field(ge=1, le=1 << 16)]
Depth = Annotated[int, Field(ge=0, le=1 << 8)]


class _Sizes(Config):
    """The fields of ``Shape``."""

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


class _Configuration(Config):
    """What is used of config.json."""

    model_config = ConfigDict(extra="ignore")

    shape: _Sizes
    vocabulary: tuple[str, ...]


def random_initialised(seed: int) -> BuiltinBackbone:
    """The built-in model before its pre-training: the counter-example in which task arithmetic fails."""
    vocabulary = _read_config(FOLDER).vocabulary
    network = initialised(len(vocabulary), seed)
    return BuiltinBackbone(network.eval(), vocabulary, ref=f"builtin, random weights of seed {seed}")


def configuration(vocabulary: Sequence[str], shape: Shape = DEFAULT) -> dict[str, object]:
    """What config.json holds beside the weights."""
    return {"model_type": "builtin", "shape": asdict(shape), "vocabulary": list(vocabulary)}
