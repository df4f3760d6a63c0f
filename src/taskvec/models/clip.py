"""CLIP of transformers: an image encoder with a text encoder for zero-shot heads."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from taskvec.models.backbone import evaluating, in_batches
from taskvec.models.checkpoint import (
    config_file,
    fetch,
    load_network,
    load_tokenizer,
    rows_of,
    stored_names,
    transformers,
)
from taskvec.models.image import PixelBackbone
from taskvec.models.preprocessing import Preprocessing as Preprocessing


class ClipBackbone(PixelBackbone):
    """The projected image embedding of CLIP; the text tower makes heads and is not fine-tuned."""

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
            preprocessing,
            ref=ref,
            dim=int(network.config.projection_dim),  # type: ignore[union-attr, arg-type]
            logit_scale=float(network.logit_scale.detach().exp()),  # type: ignore[operator]
            checkpoint=checkpoint,
        )
        self.tokenizer = tokenizer

    def forward(self, **batch: Tensor) -> Tensor:
        """Image embeddings (N, d); ``pixel_values`` are (N, 3, S, S), uint8, and are normalised here."""
        network: Any = self.network
        pixels = self.normalized(batch["pixel_values"])
        embedded: Tensor = network.visual_projection(network.vision_model(pixel_values=pixels).pooler_output)
        return embedded

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


def load(ref: str) -> ClipBackbone:
    """The CLIP model in a checkpoint folder or on the hub, in float32."""
    package = transformers()
    folder = config_file(ref).parent
    network = load_network(package.CLIPModel, ref)
    tokenizer = load_tokenizer(ref, folder, rows_of(network.text_model.get_input_embeddings()))
    fetch(ref, "preprocessor_config.json")
    preprocessing = Preprocessing.read(folder, int(network.config.vision_config.image_size))
    return ClipBackbone(network, tokenizer, preprocessing, ref=ref, checkpoint=stored_names(folder, network))
