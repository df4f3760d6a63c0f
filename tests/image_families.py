"""Tiny image encoders of every family, with random weights, as their makers save them."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn

SIDE = 32
"""Pixels of a side of the images that the transformers among them are made for."""

_VIT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": SIDE,
    "patch_size": 8,
}
_STAGES: dict[str, Any] = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
_SWIN: dict[str, Any] = {
    "image_size": SIDE,
    "patch_size": 2,
    "embed_dim": 8,
    "depths": [2, 2],
    "num_heads": [1, 2],
    "window_size": 4,
}
_PYRAMID: dict[str, Any] = {
    "hidden_sizes": [8, 16, 24, 32],
    "depths": [1, 1, 1, 1],
    "num_attention_heads": [1, 1, 1, 1],
    "num_encoder_blocks": 4,
}
_TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 40,
    "max_position_embeddings": 16,
}

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "aimv2_vision_model": ("Aimv2VisionConfig", {**_VIT}),
    "beit": ("BeitConfig", {**_VIT, "use_relative_position_bias": True}),
    "bit": ("BitConfig", {"embedding_size": 8, **_STAGES, "num_groups": 4}),
    "clip_vision_model": ("CLIPVisionConfig", _VIT),
    "convnext": ("ConvNextConfig", _STAGES),
    "convnextv2": ("ConvNextV2Config", _STAGES),
    "cvt": ("CvtConfig", {"embed_dim": [8, 16, 24], "num_heads": [1, 1, 2], "depth": [1, 2, 3]}),
    "data2vec-vision": ("Data2VecVisionConfig", _VIT),
    "deit": ("DeiTConfig", _VIT),
    "dinov2": ("Dinov2Config", _VIT),
    "dinov2_with_registers": ("Dinov2WithRegistersConfig", _VIT),
    "dinov3_convnext": ("DINOv3ConvNextConfig", _STAGES),
    "dinov3_vit": ("DINOv3ViTConfig", _VIT),
    "dpt": ("DPTConfig", _VIT),
    "efficientnet": (
        "EfficientNetConfig",
        {"width_coefficient": 0.25, "depth_coefficient": 0.2, "hidden_dim": 320, "image_size": 64},
    ),
    "focalnet": ("FocalNetConfig", {"image_size": SIDE, "embed_dim": 8, "depths": [1, 1, 1, 1]}),
    "hiera": (
        "HieraConfig",
        {"embed_dim": 8, "image_size": [64, 64], "depths": [1, 1, 1, 1], "num_heads": [1, 1, 2, 2]},
    ),
    "ijepa": ("IJepaConfig", _VIT),
    "levit": (
        "LevitConfig",
        {"hidden_sizes": [16, 32, 48], "key_dim": [8, 8, 8], "image_size": 64, "depths": [1, 1, 1]},
    ),
    "mlcd": ("MLCDVisionConfig", _VIT),
    "mobilenet_v1": ("MobileNetV1Config", {"depth_multiplier": 0.25}),
    "mobilenet_v2": ("MobileNetV2Config", {"depth_multiplier": 0.25, "finegrained_output": False}),
    "mobilevit": (
        "MobileViTConfig",
        {"hidden_sizes": [16, 16, 24], "neck_hidden_sizes": [4, 8, 8, 16, 16, 24, 32]},
    ),
    "mobilevitv2": ("MobileViTV2Config", {"width_multiplier": 0.25, "image_size": 64}),
    "poolformer": ("PoolFormerConfig", _STAGES),
    "pvt": ("PvtConfig", {**_PYRAMID, "image_size": SIDE}),
    "pvt_v2": ("PvtV2Config", _PYRAMID),
    "regnet": ("RegNetConfig", {"embedding_size": 8, **_STAGES, "groups_width": 8}),
    "resnet": ("ResNetConfig", {"embedding_size": 8, **_STAGES}),
    "segformer": ("SegformerConfig", _PYRAMID),
    "siglip": (
        "SiglipConfig",
        {"text_config": {**_TEXT, "projection_size": 16}, "vision_config": _VIT},
    ),
    "siglip_vision_model": ("SiglipVisionConfig", _VIT),
    "swiftformer": (
        "SwiftFormerConfig",
        {"depths": [1, 1, 1, 1], "embed_dims": [8, 16, 24, 32]},
    ),
    "swin": ("SwinConfig", _SWIN),
    "swinv2": ("Swinv2Config", _SWIN),
    "vit": ("ViTConfig", _VIT),
    "vit_mae": ("ViTMAEConfig", _VIT),
    "vit_msn": ("ViTMSNConfig", _VIT),
    "vitdet": ("VitDetConfig", {**_VIT, "num_channels": 3}),
}
"""The configuration of each, by ``model_type``."""


def build(family: str, **more: Any) -> Any:
    """An encoder with weights drawn at random; norms and statistics too, so that nothing is an identity."""
    name, options = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, name)(**{**options, **more})
    auto: Any = transformers.AutoModel
    network = auto.from_config(config).eval()
    with torch.no_grad():
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                assert module.running_mean is not None and module.running_var is not None
                module.running_mean.normal_(0, 0.1)
                module.running_var.uniform_(0.5, 1.5)
    return network


def save(family: str, folder: Path, processor: dict[str, Any] | None = None, **more: Any) -> Path:
    """Write one as a checkpoint folder, with the file of its image processor if there is one."""
    build(family, **more).save_pretrained(folder)
    if processor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder
