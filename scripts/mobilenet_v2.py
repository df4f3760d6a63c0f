"""Write the MobileNetV2 of the development data as a checkpoint folder of transformers.

    python scripts/mobilenet_v2.py $TASKVEC_DATA/models/mobilenet_v2 runs/mobilenet_v2 --size 96

Its batch norms are folded into the convolutions. Here each one shifts by the bias and does nothing else
(mean 0, variance 1, epsilon 0), which is exact. It was trained on images of 224 pixels a side.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import MobileNetV2Config, MobileNetV2Model

_PARTS = {"expand": "expand_1x1", "depthwise": "conv_3x3", "project": "reduce_1x1"}


def convert(source: Path, target: Path, size: int) -> None:
    """Write ``target``: configuration, weights in float32, and how images are processed."""
    network = MobileNetV2Model(MobileNetV2Config(tf_padding=True, layer_norm_eps=0.0, image_size=size))
    network.load_state_dict(renamed(load_file(source / "model.safetensors")))
    network.save_pretrained(target)
    (target / "preprocessor_config.json").write_text(json.dumps(processor(size), indent=2))


def renamed(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors by transformers' names, without the classifier."""
    state: dict[str, Tensor] = {}
    for name in sorted({name.rpartition(".")[0] for name in stored} - {"classifier"}):
        weight, bias = (stored[f"{name}.{part}"].float() for part in ("weight", "bias"))
        place, norm = _place(name), torch.ones_like(bias)
        state[f"{place}.convolution.weight"] = weight
        state |= {f"{place}.normalization.{part}": norm.clone() for part in ("weight", "running_var")}
        state |= {f"{place}.normalization.bias": bias, f"{place}.normalization.running_mean": 0 * bias}
        state[f"{place}.normalization.num_batches_tracked"] = torch.tensor(0)
    return state


def _place(name: str) -> str:
    """A layer's name in transformers: ``features.5.expand`` is ``layer.3.expand_1x1``."""
    if name == "head":
        return "conv_1x1"
    _, number, part = name.split(".")
    if number == "0":
        return "conv_stem.first_conv"
    return f"conv_stem.{_PARTS[part]}" if number == "1" else f"layer.{int(number) - 2}.{_PARTS[part]}"


def processor(size: int) -> dict[str, Any]:
    """Images are enlarged to the size, bicubic, and scaled to -1 to 1."""
    return {
        "image_processor_type": "MobileNetV2ImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": 3,
        "do_center_crop": False,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }


def main() -> None:
    """Convert what the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--size", type=int, default=224, help="pixels of a side of the images")
    options = parser.parse_args()
    convert(options.source, options.target, options.size)


if __name__ == "__main__":
    main()
