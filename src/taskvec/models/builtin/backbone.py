"""The built-in dual encoder as a backbone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from pydantic import ConfigDict
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
            network = DualEncoder(len(config.vocabulary), config.shape)
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


class _Configuration(Config):
    """What is used of config.json."""

    model_config = ConfigDict(extra="ignore")

    shape: Shape
    vocabulary: tuple[str, ...]


def random_initialised(seed: int) -> BuiltinBackbone:
    """The built-in model before its pre-training: the counter-example in which task arithmetic fails."""
    vocabulary = _read_config(FOLDER).vocabulary
    network = initialised(len(vocabulary), seed)
    return BuiltinBackbone(network.eval(), vocabulary, ref=f"builtin, random weights of seed {seed}")


def configuration(vocabulary: Sequence[str]) -> dict[str, object]:
    """What config.json holds beside the weights."""
    return {"model_type": "builtin", "shape": DEFAULT.model_dump(), "vocabulary": list(vocabulary)}
