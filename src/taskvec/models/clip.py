"""CLIP of transformers: an image encoder with a text encoder for zero-shot heads."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from taskvec.errors import InputError
from taskvec.models.backbone import Backbone, evaluating, in_batches
from taskvec.models.checkpoint import (
    config_file,
    load_network,
    load_tokenizer,
    rows_of,
    stored_names,
    transformers,
)
from taskvec.reading import read_mapping, shown

LARGEST = 1 << 13
"""Pixels of the longest side that images are brought to."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of the encoder: shortest edge, centre crop, mean and deviation."""

    edge: int = 224
    crop: int = 224
    mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    deviation: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)

    @classmethod
    def read(cls, folder: Path, size: int) -> "Preprocessing":
        """From the processor's configuration in a checkpoint folder; CLIP's own without one."""
        for name in ("preprocessor_config.json", "processor_config.json"):
            if (folder / name).is_file():
                whole = read_mapping(folder / name)
                part = whole.get("image_processor", whole)
                return cls._from(part if isinstance(part, dict) else whole, size, folder / name)
        return cls(size, size)

    @classmethod
    def _from(cls, options: Mapping[str, Any], size: int, path: Path) -> "Preprocessing":
        try:
            return cls(
                _edge(options.get("size", size)),
                _edge(options.get("crop_size", size)),
                _channels(options.get("image_mean", cls.mean)),
                _channels(options.get("image_std", cls.deviation), above=0.0),
            )
        except ValueError as error:
            raise InputError(f"{path}: image preprocessing not understood ({error})") from None

    def __call__(self, image: Tensor) -> Tensor:
        """Resize the shortest edge (bicubic, antialiased) and crop the centre.

        Args:
            image: (N, H, W, 3), uint8.

        Returns: (N, 3, crop, crop), uint8, within one grey level of Pillow's on photographs.
        """
        pixels = image.permute(0, 3, 1, 2)
        sides = list(pixels.shape[-2:])
        size = [self.edge * side // min(sides) for side in sides]
        if size != sides:
            # On bytes, as Pillow does: it rounds and clips after each of the two passes.
            pixels = interpolate(pixels, size=size, mode="bicubic", antialias=True)
        return self._cropped(pixels)

    def _cropped(self, pixels: Tensor) -> Tensor:
        """The centre; images smaller than the crop are padded with black."""
        height, width = pixels.shape[-2:]
        if min(height, width) < self.crop:
            canvas = pixels.new_zeros(*pixels.shape[:2], max(height, self.crop), max(width, self.crop))
            top, left = (canvas.shape[-2] - height) // 2, (canvas.shape[-1] - width) // 2
            canvas[..., top : top + height, left : left + width] = pixels
            return self._cropped(canvas)
        top, left = (height - self.crop) // 2, (width - self.crop) // 2
        return pixels[..., top : top + self.crop, left : left + self.crop]


class ClipBackbone(Backbone):
    """The projected image embedding of CLIP; the text tower makes heads and is not fine-tuned."""

    modality = "image"
    mean: Tensor
    deviation: Tensor

    def __init__(
        self,
        network: nn.Module,
        tokenizer: Any,
        preprocessing: Preprocessing,
        *,
        ref: str,
        checkpoint: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(
            network,
            ref=ref,
            dim=int(network.config.projection_dim),  # type: ignore[union-attr, arg-type]
            logit_scale=float(network.logit_scale.detach().exp()),  # type: ignore[operator]
            checkpoint=checkpoint,
        )
        self.tokenizer = tokenizer
        self.preprocessing = preprocessing
        for name, values in (("mean", preprocessing.mean), ("deviation", preprocessing.deviation)):
            self.register_buffer(name, torch.tensor(values).view(1, 3, 1, 1), persistent=False)

    def forward(self, **batch: Tensor) -> Tensor:
        """Image embeddings (N, d); ``pixel_values`` are (N, 3, S, S), uint8, and are normalised here."""
        network: Any = self.network
        pixels = (batch["pixel_values"].to(self.mean.dtype) / 255 - self.mean) / self.deviation
        embedded: Tensor = network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)
        return embedded

    def stack(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        """Images (H, W, 3), uint8, of any sizes, as ``pixel_values`` (N, 3, S, S), uint8."""
        images = [torch.as_tensor(image) for image in prepared]
        if len({image.shape for image in images}) == 1:
            return {"pixel_values": self.preprocessing(torch.stack(images))}
        return {"pixel_values": torch.cat([self.preprocessing(image[None]) for image in images])}

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Projected text embeddings (P, d), in batches of 64."""
        with evaluating(self):
            return in_batches(self._texts, texts)

    def _texts(self, texts: Sequence[str]) -> Tensor:
        network: Any = self.network
        tokens = self.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
        pooled = network.text_model(
            input_ids=tokens["input_ids"].to(self.device),
            attention_mask=tokens["attention_mask"].to(self.device),
        ).pooler_output
        return network.text_projection(pooled)  # type: ignore[no-any-return]

    def example(self) -> dict[str, Tensor]:
        """One black image."""
        crop = self.preprocessing.crop
        return {"pixel_values": torch.zeros(1, 3, crop, crop, dtype=torch.uint8)}


def load(ref: str) -> ClipBackbone:
    """The CLIP model in a checkpoint folder or on the hub, in float32."""
    package = transformers()
    folder = config_file(ref).parent
    network = load_network(package.CLIPModel, ref)
    tokenizer = load_tokenizer(ref, folder, rows_of(network.text_model.get_input_embeddings()))
    preprocessing = Preprocessing.read(folder, int(network.config.vision_config.image_size))
    return ClipBackbone(network, tokenizer, preprocessing, ref=ref, checkpoint=stored_names(folder, network))


def _edge(size: Any) -> int:
    """A side in pixels, from the three ways in which configurations write it."""
    side = size.get("shortest_edge", size.get("height")) if isinstance(size, Mapping) else size
    if type(side) is not int or not 0 < side <= LARGEST:
        raise ValueError(f"a side of {shown(side)} pixels")
    return side


def _channels(values: Any, above: float = -math.inf) -> tuple[float, ...]:
    """A number for each of red, green and blue."""
    match values:
        case [int() | float(), int() | float(), int() | float()] if all(
            above < float(value) < math.inf for value in values
        ):
            return tuple(map(float, values))
    raise ValueError(f"{shown(values)} for three channels")
