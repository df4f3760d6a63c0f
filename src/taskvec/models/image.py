"""Image encoders of transformers' AutoModel: ViT, DINOv2, ConvNeXt, ResNet and their kin."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.checkpoint import (
    Build,
    config_file,
    fetch,
    load_network,
    model_type,
    purpose_of,
    reason,
    stored_names,
    tables_of,
    transformers,
)
from taskvec.models.preprocessing import Preprocessing
from taskvec.models.processors import LARGEST, Sides

Feature = Callable[[Any], Tensor | None]
"""Features (N, d) of what a network returns; none where it returns no such thing."""

_CLASS_TOKENS = ("cls_token", "class_token", "class_embedding")


_ENCODERS = (
    "IMAGE",
    "IMAGE_CLASSIFICATION",
    "MASKED_IMAGE_MODELING",
    "BACKBONE",
    "ZERO_SHOT_IMAGE_CLASSIFICATION",
)
"""Tables of models that read an image, unless they are in one of those below too."""

_NO_ENCODERS = (
    "CAUSAL_IMAGE_MODELING",
    "IMAGE_TEXT_TO_TEXT",
    "IMAGE_TO_IMAGE",
    "MASKED_LM",
    "OBJECT_DETECTION",
    "VIDEO_CLASSIFICATION",
)
"""Tables of models that want more than an image, or give something else."""


def reads_images(kind: str) -> bool:
    """Whether transformers has this type among the models that turn an image into hidden states."""
    tables = set(tables_of(kind))
    if not tables.isdisjoint(_NO_ENCODERS):
        return False
    return not tables.isdisjoint(_ENCODERS) or kind.endswith("vision_model")


class PixelBackbone(Backbone):
    """An encoder of images; they are resized and cut as bytes, and normalised in the network's precision."""

    modality = "image"
    mean: Tensor
    deviation: Tensor

    def __init__(self, network: nn.Module, preprocessing: Preprocessing, **options: Any) -> None:
        super().__init__(network, **options)
        self.preprocessing = preprocessing
        for name, values in (("mean", preprocessing.mean), ("deviation", preprocessing.deviation)):
            self.register_buffer(name, torch.tensor(values).view(1, -1, 1, 1), persistent=False)

    def normalized(self, pixels: Tensor) -> Tensor:
        """What the network reads, of pixels (N, C, height, width), uint8."""
        return (pixels.to(self.mean.dtype) / self.preprocessing.divisor - self.mean) / self.deviation

    def stack(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        """Images (H, W, 3), uint8, of any sizes, as ``pixel_values`` (N, C, height, width), uint8."""
        return {"pixel_values": self.preprocessing.stack(prepared)}

    def example(self) -> dict[str, Tensor]:
        """One black image."""
        edge = self.preprocessing.edge
        size = self.preprocessing.size or (
            (edge, edge) if isinstance(edge, int) else _image_size(self.network.config) or (224, 224)
        )
        return {"pixel_values": torch.zeros(1, len(self.preprocessing.mean), *size, dtype=torch.uint8)}


class ImageBackbone(PixelBackbone):
    """An image encoder without a text tower.

    Args:
        feature: what is taken of the network's output, see :func:`features_of`.
    """

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        feature: Feature,
        *,
        ref: str,
        dim: int = 0,
        checkpoint: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(network, preprocessing, ref=ref, dim=dim, logit_scale=1.0, checkpoint=checkpoint)
        self.feature = feature

    def forward(self, **batch: Tensor) -> Tensor:
        """Features (N, d); ``pixel_values`` are (N, C, height, width), uint8, and are normalised here."""
        features = self.feature(self.run(batch["pixel_values"]))
        assert features is not None
        return features

    def run(self, pixels: Tensor) -> Any:
        """All that the network returns for pixels (N, C, height, width), uint8."""
        network: Any = self.network
        call = network.get_image_features if _has_towers(network) else network
        takes = inspect.signature(getattr(call, "forward", call)).parameters
        options: dict[str, Any] = {}
        if "interpolate_pos_encoding" in takes and tuple(pixels.shape[-2:]) != _image_size(network.config):
            options["interpolate_pos_encoding"] = True
        if network.config.model_type == "vit_mae":  # it sorts patches by noise: they keep their order
            patches = network.embeddings.patch_embeddings.num_patches
            options["noise"] = torch.arange(patches, device=pixels.device).expand(len(pixels), -1)
        # Channels last, as images come, torch 2.13 corrupts memory in the backward pass of small ResNets.
        return call(pixel_values=self.normalized(pixels).contiguous(), **options)

    def example(self) -> dict[str, Tensor]:
        """Two images of noise: one alone, or one that is the same everywhere, would show too little."""
        [black] = super().example().values()
        draw = torch.Generator().manual_seed(0)
        shape = (2, *black.shape[1:])
        return {"pixel_values": torch.randint(256, shape, generator=draw, dtype=torch.uint8)}

    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Raises: InputError: zero-shot heads are made of texts, which this encoder does not read."""
        raise InputError(
            f"{self.ref}: has no text tower, so it makes no zero-shot heads; give its tasks "
            "'head: linear-probe' in the suite file"
        )


class _Forgetful(dict[str, Tensor]):
    """In the place of LeViT's cache in eval mode, which would go on with parameters that have changed."""

    def __contains__(self, key: object) -> bool:
        return False


def features_of(network: nn.Module) -> list[Feature]:
    """What may be taken for the features of an image, best first.

    The network's own pooled output, if it has one; else the class token, or the mean over patches or places.
    """
    config: Any = network.config
    if _has_towers(network):
        return [lambda out: out if isinstance(out, Tensor) else _pooled(out)]
    has_token = any(name.endswith(_CLASS_TOKENS) for name, _ in network.named_parameters())
    if getattr(config, "use_mean_pooling", False):
        return [_pooled, _mean_of_patches]
    return [_pooled, _class_token, _mean] if has_token else [_pooled, _mean]


def _pooled(out: Any) -> Tensor | None:
    """The pooled output; of a convolutional network it is (N, d, 1, 1)."""
    pooled = getattr(out, "pooler_output", None)
    return None if pooled is None else pooled.flatten(1)


def _class_token(out: Any) -> Tensor | None:
    token = getattr(out, "cls_token_value", None)
    hidden = out.last_hidden_state if token is None else token
    return hidden[:, 0] if hidden.ndim == 3 else None


def _mean(out: Any) -> Tensor:
    """Over tokens (N, tokens, d), or over places (N, d, height, width)."""
    hidden: Tensor = out["feature_maps"][-1] if "feature_maps" in out else out.last_hidden_state
    return hidden.mean(1) if hidden.ndim == 3 else hidden.mean((2, 3))


def _mean_of_patches(out: Any) -> Tensor:
    hidden: Tensor = out.last_hidden_state
    return hidden[:, 1:].mean(1)


def load(ref: str, build: Build = load_network) -> ImageBackbone:
    """The image encoder in a checkpoint folder or on the hub, in float32.

    Its feature is the first of :func:`features_of` that depends on stored weights alone: a pooler that a
    checkpoint lacks is random.

    Raises: InputError, one line, for a model that gives no features of an image.
    """
    path = config_file(ref)
    kind = model_type(path)
    network = build(transformers().AutoModel, ref)
    if kind == "vit_mae":
        network.config.mask_ratio = 0.0  # in pre-training the encoder sees a quarter of the image
    preprocessing = prepare(ref, network)
    checkpoint = stored_names(path.parent, network)
    where = f"{path}: model_type {kind!r}, {purpose_of(kind)}"
    made = (
        ImageBackbone(network, preprocessing, feature, ref=ref, checkpoint=checkpoint)
        for feature in features_of(network.eval())
    )
    usable = [backbone for backbone in made if _measure(backbone, where)]
    if not usable:
        raise InputError(f"{where}, gives no features of an image")
    complete = {name for name, _ in network.named_parameters()} <= checkpoint.keys()
    return usable[0] if complete else next(filter(_is_stored, usable), usable[-1])


def prepare(ref: str, network: Any) -> Preprocessing:
    """What happens to an image before it; and the network's caches, which know old parameters, are dropped.

    Raises: InputError for a processor, or a number of channels, that is not known.
    """
    path, config = config_file(ref), network.config
    for module in network.modules():
        if hasattr(module, "attention_bias_cache"):
            module.attention_bias_cache = _Forgetful()
    channels = getattr(getattr(config, "vision_config", config), "num_channels", 3)
    if channels not in (1, 3):
        raise InputError(f"{path}: num_channels is {channels}, expected 3, or 1 for grey images")
    fetch(ref, "preprocessor_config.json")
    return Preprocessing.of(path.parent, model_type(path), _image_size(config), channels)


@torch.no_grad()
def _measure(backbone: ImageBackbone, where: str) -> bool:
    """Whether the network gives this feature, a row for each of two images; sets ``dim``.

    Raises: InputError if it does not run.
    """
    [pixels] = backbone.example().values()
    try:
        features = backbone.feature(backbone.run(pixels))
    except Exception as error:  # whatever a network can raise that wants other inputs
        height, width = pixels.shape[-2:]
        raise InputError(
            f"{where}, gives no features of an image of {height} x {width} pixels ({reason(error)})"
        ) from None
    if features is None or features.ndim != 2 or len(features) != 2:
        return False
    backbone.dim = features.shape[1]
    return True


def _is_stored(backbone: ImageBackbone) -> bool:
    try:
        return bool(backbone.names)
    except InputError:
        return False


def _has_towers(network: Any) -> bool:
    return hasattr(network, "get_image_features") and hasattr(network.config, "vision_config")


def _image_size(config: Any) -> Sides | None:
    """Height and width of the images that a model was made for, where its configuration says so."""
    size = getattr(getattr(config, "vision_config", config), "image_size", None)
    sides = (size, size) if isinstance(size, int) else tuple(size) if isinstance(size, list | tuple) else ()
    if len(sides) != 2 or not all(type(side) is int and 0 < side <= LARGEST for side in sides):
        return None
    return sides[0], sides[1]
