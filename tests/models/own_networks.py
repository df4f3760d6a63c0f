"""Networks of somebody's own: none is of transformers, and each names its parameters in its own way."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import taskvec as tv
from taskvec.models.backbone import Backbone

WORDS = {
    word: place
    for place, word in enumerate(["?", "one", "two", "cat", "dog", "good", "bad", "film", "of", "a"])
}
BLANK = np.zeros((8, 8, 3), np.uint8)


class Block(nn.Module):
    """A residual block as in open_clip and timm: attention with a fused in-projection, dropout, an MLP."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.ln_1, self.ln_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attn = nn.MultiheadAttention(width, 2, dropout=0.1, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, 32), nn.GELU(), nn.Dropout(0.1), nn.Linear(32, width))

    def forward(self, x: Tensor) -> Tensor:
        h = self.ln_1(x)
        x = x + self.attn(h, h, h, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))  # type: ignore[no-any-return]


class Vit(nn.Module):
    """A vision transformer in the manner of timm, with a classifier that features leave out."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.patch_embed = nn.Conv2d(3, width, 4, 4)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 5, width))
        self.blocks = nn.Sequential(Block(width), Block(width))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward_features(self, images: Tensor) -> Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        return self.norm(self.blocks(x))  # type: ignore[no-any-return]

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.forward_features(images)[:, 0])  # type: ignore[no-any-return]


class TwoTowers(nn.Module):
    """Images and texts into one space, in the manner of open_clip."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.visual = Vit(width)
        self.token_embedding = nn.Embedding(len(WORDS), width)
        self.text_projection = nn.Parameter(torch.randn(width, 10))

    def encode_image(self, images: Tensor) -> Tensor:
        return self.visual(images)  # type: ignore[no-any-return]

    def encode_text(self, tokens: Tensor) -> Tensor:
        return self.token_embedding(tokens).mean(1) @ self.text_projection  # type: ignore[no-any-return]


class Reader(nn.Module):
    """Texts by an encoder of torch, whose fast path differs between training and evaluation."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(WORDS), width, padding_idx=0)
        layer = nn.TransformerEncoderLayer(width, 2, 32, batch_first=True)
        self.encoder = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)

    def forward(self, tokens: Tensor, mask: Tensor) -> Tensor:
        hidden = self.encoder(self.embed(tokens), src_key_padding_mask=mask)
        return hidden.masked_fill(mask[..., None], 0).sum(1) / (~mask).sum(1, keepdim=True)  # type: ignore[no-any-return]


def convnet() -> nn.Module:
    """Batch norm with statistics, and dropout."""
    net = nn.Sequential(
        *(
            nn.Conv2d(3, 8, 3, 2),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Dropout(0.5),
            nn.AdaptiveAvgPool2d(2),
            nn.Flatten(),
        )
    )
    for part in net:
        if isinstance(part, nn.BatchNorm2d) and part.running_var is not None:
            nn.init.uniform_(part.running_var, 0.5, 2)
    return net


def pixels(images: list[Any]) -> Tensor:
    return torch.stack([torch.as_tensor(image) for image in images]).permute(0, 3, 1, 2) / 255


def tokens(texts: list[str]) -> Tensor:
    rows = [[WORDS.get(word, 1) for word in text.split()][:8] for text in texts]
    return torch.tensor([row + [0] * (8 - len(row)) for row in rows])


def vit() -> Backbone:
    torch.manual_seed(0)
    net = Vit()
    return tv.wrap(net, collate=pixels, example=BLANK, features=lambda x: net.forward_features(x).mean(1))


def two_towers() -> Backbone:
    torch.manual_seed(1)
    net = TwoTowers()
    return tv.wrap(
        net,
        collate=pixels,
        example=BLANK,
        features=net.encode_image,
        embed_text=lambda texts: net.encode_text(tokens(list(texts))),
    )


def conv() -> Backbone:
    torch.manual_seed(2)
    return tv.wrap(convnet(), collate=pixels, example=BLANK)


def reader() -> Backbone:
    torch.manual_seed(3)

    def collate(texts: list[str]) -> dict[str, Tensor]:
        ids = tokens(texts)
        return {"tokens": ids, "mask": ids == 0}

    return tv.wrap(Reader(), collate=collate, example="one film")


class Recurrent(nn.Module):
    """Texts by an LSTM in both directions, with dropout between its layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(WORDS), width)
        self.lstm = nn.LSTM(width, 8, 2, batch_first=True, bidirectional=True, dropout=0.2)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.lstm(self.embed(tokens))[0].mean(1)  # type: ignore[no-any-return]


def recurrent() -> Backbone:
    torch.manual_seed(4)
    return tv.wrap(Recurrent(), collate=tokens, example="one film")


OWN = {"vit": vit, "two towers": two_towers, "conv": conv, "reader": reader, "recurrent": recurrent}


class Causal(nn.Module):
    """A language model in the manner of nanoGPT: tied, with a mask of its own."""

    def __init__(self, vocabulary: int, width: int = 16, length: int = 32) -> None:
        super().__init__()
        self.wte, self.wpe = nn.Embedding(vocabulary, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 2, 32, dropout=0.1, batch_first=True, norm_first=True)
        self.h = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.lm_head = nn.Linear(width, vocabulary, bias=False)
        self.lm_head.weight = self.wte.weight

    def forward(self, ids: Tensor) -> Tensor:
        places = torch.arange(ids.shape[1], device=ids.device)
        later = places[None] > places[:, None]
        return self.lm_head(self.h(self.wte(ids) + self.wpe(places), mask=later))  # type: ignore[no-any-return]
