"""From images of any size to the input of an encoder, as the image processors of transformers do it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from taskvec.errors import InputError
from taskvec.models.processors import CLIP_DEVIATION, CLIP_MEAN, LARGEST, Filter, Sides, read_processor

_LUMA = (19595, 38470, 7471)
"""Parts in 65536 of red, green and blue in a grey shade; those of Pillow."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the input of an encoder.

    Args:
        edge: what it is resized to: the shortest edge, or height and width; none leaves it as it is.
        crop: the centre that is cut out, square or of height and width; none keeps all of it.
        mean: of each channel, after division; one number for an encoder of grey images.
        deviation: of each channel, likewise.
        divisor: of the pixels, 0 to 255.
        filter: of the resizing, antialiased.
        reversed: whether blue comes first.
    """

    edge: int | Sides | None = 224
    crop: int | Sides | None = 224
    mean: tuple[float, ...] = CLIP_MEAN
    deviation: tuple[float, ...] = CLIP_DEVIATION
    divisor: float = 255.0
    filter: Filter = "bicubic"
    reversed: bool = False

    @classmethod
    def read(cls, folder: Path, size: int) -> "Preprocessing":
        """That of a CLIP, from the processor's configuration in a checkpoint folder; CLIP's own without one.

        Its images are square: height and width mean the shortest edge, too.
        """
        made = cls.of(folder, "clip", (size, size))
        if isinstance(made.edge, tuple):
            made = replace(made, edge=min(made.edge))
        return made if made.crop is None else replace(made, crop=min(_both(made.crop)))

    @classmethod
    def of(cls, folder: Path, kind: str, size: Sides | None, channels: int = 3) -> "Preprocessing":
        """From the processor's configuration in a checkpoint folder; without one, as usual for such models.

        Args:
            kind: type of the model.
            size: of images, where the model's own configuration states it.
            channels: of the model's input, 3 or 1.

        Raises: InputError, naming the file, for a processor that is not known or makes no sense.
        """
        return cls(**read_processor(folder, kind, size, channels))

    @property
    def size(self) -> Sides | None:
        """Height and width of every input; none where they depend on the image."""
        if self.crop is not None:
            return _both(self.crop)
        return self.edge if isinstance(self.edge, tuple) else None

    def __call__(self, image: Tensor) -> Tensor:
        """Resize and crop.

        Args:
            image: (N, H, W, 3), uint8.

        Returns: (N, C, height, width), uint8, within one grey level of Pillow's on photographs.
        Raises: InputError for an image so narrow that it would become longer than ``LARGEST``.
        """
        pixels = image.permute(0, 3, 1, 2)
        if self.reversed:
            pixels = pixels.flip(1)
        if len(self.mean) == 1:
            pixels = _grey(pixels)
        size = self._resized(*pixels.shape[-2:])
        if size != tuple(pixels.shape[-2:]):
            # On bytes, as Pillow does: it rounds and clips after each of the two passes.
            smooth = self.filter != "nearest-exact"
            pixels = interpolate(pixels, size=list(size), mode=self.filter, antialias=smooth)
        return pixels if self.crop is None else _cropped(pixels, *_both(self.crop))

    def _resized(self, height: int, width: int) -> Sides:
        if self.edge is None:
            return height, width
        if isinstance(self.edge, tuple):
            return self.edge
        shortest = min(height, width)
        size = self.edge * height // shortest, self.edge * width // shortest
        if max(size) > LARGEST:
            raise InputError(
                f"an image of {height} x {width} pixels would become one of {size[0]} x {size[1]}, expected "
                f"at most {LARGEST} a side; leave it out, or cut it"
            )
        return size

    def stack(self, images: Sequence[Any]) -> Tensor:
        """A batch of images (H, W, 3), or grey ones (H, W), uint8, of any sizes.

        Returns: (N, C, height, width), uint8.
        Raises: InputError for an image of another form, and for images that do not come to one size.
        """
        tensors = list(map(_coloured, images))
        if len({image.shape for image in tensors}) == 1:
            return self(torch.stack(tensors))
        inputs = [self(image[None]) for image in tensors]
        shapes = sorted({tuple(each.shape[-2:]) for each in inputs})
        if len(shapes) > 1:
            raise InputError(
                f"images of {' and '.join(f'{height} x {width}' for height, width in shapes[:2])} pixels in "
                "one batch, expected one size; let preprocessor_config.json resize to a height and a width, "
                "or cut the centre ('do_center_crop', 'crop_size')"
            )
        return torch.cat(inputs)


def _coloured(image: Any) -> Tensor:
    tensor = torch.as_tensor(image)
    if tensor.ndim == 2 or (tensor.ndim == 3 and tensor.shape[2] == 1):
        tensor = tensor.reshape(*tensor.shape[:2], 1).expand(-1, -1, 3)
    if tensor.dtype != torch.uint8 or tensor.ndim != 3 or tensor.shape[2] != 3 or not tensor.numel():
        kind = str(tensor.dtype).removeprefix("torch.")
        raise InputError(
            f"an image is {kind} {tuple(tensor.shape)}, expected uint8 (height, width, 3); convert it to RGB"
        )
    return tensor


def _grey(pixels: Tensor) -> Tensor:
    """(N, 1, H, W) of (N, 3, H, W), as Pillow makes it."""
    weights = torch.tensor(_LUMA, dtype=torch.int32).view(1, 3, 1, 1)
    total = (pixels.int() * weights).sum(1, keepdim=True, dtype=torch.int32)
    return (total + (1 << 15)).bitwise_right_shift(16).to(torch.uint8)


def _cropped(pixels: Tensor, high: int, wide: int) -> Tensor:
    """The centre; images smaller than the crop are padded with black."""
    height, width = pixels.shape[-2:]
    if height < high or width < wide:
        canvas = pixels.new_zeros(*pixels.shape[:2], max(height, high), max(width, wide))
        top, left = (canvas.shape[-2] - height) // 2, (canvas.shape[-1] - width) // 2
        canvas[..., top : top + height, left : left + width] = pixels
        return _cropped(canvas, high, wide)
    top, left = (height - high) // 2, (width - wide) // 2
    return pixels[..., top : top + high, left : left + wide]


def _both(side: int | Sides) -> Sides:
    return side if isinstance(side, tuple) else (side, side)
