"""What every encoder offers to training and evaluation, whatever its modality."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from taskvec.arguments import label
from taskvec.errors import InputError, OutOfMemory, and_more
from taskvec.models.sharding import REPLICATED, Sharding
from taskvec.place import enough_memory
from taskvec.reading import shortened

Modality = Literal["text", "image"]

Outputs = Literal["features", "tokens", "classifier"]
"""What a model gives: features, a row an example; the logits of tokens, a row a token that is scored; or the
features that a classifier's trained head reads, with that head."""


class Backbone(nn.Module, ABC):
    """An encoder: inputs of one modality in, features (N, d) out, not normalised.

    Args:
        network: the module that holds the weights.
        ref: what ``open_weights`` takes for the same weights: a path, a hub id, a module or a mapping.
        dim: d, the size of a feature.
        logit_scale: factor of a zero-shot head built with this encoder.
        checkpoint: name in ``network`` -> name in the checkpoint, where they may differ; none when they are
            the same.

    Attributes:
        ref: the same in one short line, for messages and records.
        source: the same as it was given, to be opened.
    """

    modality: Modality
    outputs: Outputs = "features"

    def __init__(
        self,
        network: nn.Module,
        *,
        ref: Any,
        dim: int,
        logit_scale: float,
        checkpoint: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.network = network
        self.ref = label(ref)
        self._source = (ref,)  # in a tuple, or a module would become a part of this one
        self.dim = dim
        self.logit_scale = logit_scale
        self._checkpoint = checkpoint

    @abstractmethod
    def forward(self, **batch: Tensor) -> Tensor:
        """Features (N, d) of a collated batch."""

    @abstractmethod
    def stack(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        """One batch of prepared inputs, padded to the longest; the keyword arguments of ``forward``."""

    @abstractmethod
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (P, d) of texts, without gradient: what zero-shot heads are made of."""

    @abstractmethod
    def example(self) -> dict[str, Tensor]:
        """The smallest batch that reaches every parameter the features depend on."""

    def prepare(self, inputs: Sequence[Any], max_length: int | None = None) -> Sequence[Any]:
        """The part of collating that is done once for each input: texts are tokenised, images stay."""
        return inputs

    def size(self, prepared: Any) -> int:
        """What a prepared input costs, relative to others: its tokens; equal for images."""
        return 1

    def collate(self, inputs: Sequence[Any], max_length: int | None = None) -> dict[str, Tensor]:
        """One batch of raw inputs, cut to ``max_length`` tokens; the keyword arguments of ``forward``."""
        return self.stack(self.prepare(inputs, max_length))

    def encoder_parameters(self) -> dict[str, nn.Parameter]:
        """What fine-tuning may move, by checkpoint name: the parameters that the features depend on.

        A tied parameter comes once. Parameters that no feature depends on (a pooler, the text tower of CLIP)
        are not in it: they would never receive a gradient.
        """
        named = dict(self.network.named_parameters())
        return {checkpoint: named[name] for name, checkpoint in self.names.items()}

    def head_parameters(self) -> dict[str, Tensor]:
        """Of a trained head, by checkpoint name: training leaves them, an edit moves them."""
        return {}

    def statistics(self) -> dict[str, Tensor]:
        """Running statistics of batch norms and their like, by checkpoint name: training leaves them, an edit
        moves them."""
        buffers = dict(self.network.named_buffers())
        return {stored: buffers[name] for name, stored in self._statistics.items()}

    @cached_property
    def _statistics(self) -> Mapping[str, str]:
        """Name in the network -> name in the checkpoint, for every buffer of floats that is stored."""
        kept = self.network.state_dict().keys()
        held = {
            name: name if self._checkpoint is None else self._checkpoint.get(name)
            for name, value in self.network.named_buffers()
            if name in kept and value.is_floating_point()
        }
        return {name: stored for name, stored in held.items() if stored is not None}

    @cached_property
    def places(self) -> Mapping[str, str]:
        """Name in the checkpoint -> name in the network, for all that an edit of the encoder moves."""
        return {stored: name for name, stored in (*self._statistics.items(), *self.names.items())}

    @cached_property
    def names(self) -> Mapping[str, str]:
        """Name in the network -> name in the checkpoint, for every encoder parameter.

        Raises: InputError if the checkpoint lacks one of them, and the features would be random; or if the
            model does not run.
        """
        remedy = "take a smaller model, or a device with more memory"
        try:
            with enough_memory(self.device, "a pass over the smallest input", remedy):
                reached = _reached(self)
        except OutOfMemory:
            raise
        except Exception as error:  # whatever a network can raise that does not fit its inputs
            raise self.unfit(error) from error
        if self._checkpoint is None:
            return {name: name for name in reached}
        missing = [name for name in reached if name not in self._checkpoint]
        if missing:
            raise InputError(
                f"{self.ref}: the checkpoint has no {missing[0]!r}{and_more(missing)}, which the model "
                "needs; is the configuration of another model? If transformers splits or joins tensors while "
                "loading, save it again with save_pretrained(FOLDER, save_original_format=False)"
            )
        return {name: self._checkpoint[name] for name in reached}

    def unfit(self, error: Exception) -> InputError:
        """What to say of a network that raises on the smallest input."""
        message = shortened(" ".join(str(error).split()), 160)
        return InputError(
            f"{self.ref}: the model fails on its smallest input ({type(error).__name__}: {message}); do "
            "configuration, weights and tokenizer belong together?"
        )

    @property
    def source(self) -> Any:
        """What ``open_weights`` takes for the weights."""
        return self._source[0]

    @property
    def running(self) -> nn.Module:
        """The module whose layers are called, at the weights of ``network``: that itself."""
        return self.network

    @property
    def sharding(self) -> Sharding | None:
        """How the parameters are sharded, if they are; then training moves them in place."""
        return cast("Sharding | None", vars(self.network).get("taskvec_sharding"))

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device


def in_batches(embed: Callable[[Sequence[str]], Tensor], texts: Sequence[str], size: int = 64) -> Tensor:
    """What ``embed`` gives for so many texts at a time, one below the other."""
    return torch.cat([embed(texts[start : start + size]) for start in range(0, len(texts), size)])


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """A collated batch on a device; what is in pinned memory is copied while the processor goes on."""
    return {key: value.to(device, non_blocking=True) for key, value in batch.items()}


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Eval mode for a while: no dropout, and afterwards the mode that each part had."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode


def _reached(backbone: Backbone) -> list[str]:
    """Names of the network's floating-point parameters that a feature depends on, in the network's order."""
    named = {name: p for name, p in backbone.network.named_parameters() if p.is_floating_point()}
    frozen = [p for p in named.values() if not p.requires_grad]
    for p in frozen:
        p.requires_grad_(True)
    try:
        with torch.enable_grad(), evaluating(backbone):
            total = backbone(**on_device(backbone.example(), backbone.device)).sum()
        slopes = _slopes(total, list(named.values()), sharded=backbone.sharding is not None)
    finally:
        for p in frozen:
            p.requires_grad_(False)
    return [name for name, slope in zip(named, slopes, strict=True) if slope is not None]


def _slopes(total: Tensor, parameters: Sequence[nn.Parameter], *, sharded: bool) -> Sequence[Tensor | None]:
    """Gradients of a number; no entry for parameters that it does not depend on."""
    if not sharded:
        return torch.autograd.grad(total, parameters, allow_unused=True)
    total.backward()  # type: ignore[no-untyped-call]  # FSDP2 computes with others
    slopes = [parameter.grad for parameter in parameters]
    for parameter in parameters:
        parameter.grad = None
    return slopes


def refuse_sharded(backbone: Backbone, what: str) -> None:
    """Refuse what needs all parameters of a model in one process. Raises: InputError."""
    if backbone.sharding is not None:
        raise InputError(f"{what}: not with fsdp, where no process has the whole model; {REPLICATED}")
