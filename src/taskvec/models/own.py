"""A user's own network as a backbone: an encoder, or a language model."""

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from inspect import signature
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from taskvec.arguments import checked
from taskvec.code import named_callable, names_code
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone, evaluating
from taskvec.models.decoding import NextLogits
from taskvec.models.language import LanguageModel
from taskvec.reading import exists, local_path, shortened
from taskvec.substitution import substituted

Collate = Callable[..., Any]
Features = Callable[..., Tensor]
EmbedText = Callable[[Sequence[str]], Tensor]

_ADVICE = "do features run the module that is given, without no_grad or detach?"


@checked
def wrap(
    module: nn.Module,
    *,
    collate: Collate | None = None,
    example: Any = None,
    features: Features | None = None,
    embed_text: EmbedText | None = None,
    logit_scale: float = 100.0,
    tokenizer: Any = None,
    positions: int | None = None,
    ref: Any = None,
) -> "OwnBackbone | OwnLanguageModel":
    """Your own network, to be trained, edited and measured like any other; used as it is, never changed.

    Args:
        module: holds the weights, float32; vectors are of its ``state_dict``. Of one that ``torch.compile``
            or ``DataParallel`` gave, the network inside is taken.
        collate: makes a batch of inputs as tasks give them: images (H, W, 3), uint8, texts, or pairs of
            texts. It returns a tensor, a tuple of tensors or a mapping of them, which ``features`` is called
            with. If it has a parameter ``max_length``, it gets that of the task.
        example: one such input.
        features: (N, d) of a batch; by default ``module`` itself.
        embed_text: (P, d) of texts, for zero-shot heads; without it tasks take ``head: linear-probe``.
        logit_scale: factor of zero-shot heads.
        tokenizer: of transformers, in place of ``collate`` and ``example``: ``module``, or ``features``, is a
            causal language model, token ids (N, L) to logits (N, L, V), for tasks of kind ``language``.
        positions: most tokens of a sequence of such a model; none for no bound.
        ref: where the same weights can be read, for the vectors to remember; by default the module.

    Raises: InputError for weights that are not float32, an example that the network does not take, and
        features that are random in eval mode.
    """
    module = _inside(module)
    _check_weights(module)
    where = module if ref is None else ref
    if tokenizer is not None:
        if collate is not None or example is not None or embed_text is not None:
            raise InputError(
                "wrap: a language model takes a tokenizer alone, without collate, example, embed_text"
            )
        own = _Parts(module, list, features or module, None, None)
        return OwnLanguageModel(own, tokenizer, vocabulary=_vocabulary(own), positions=positions, ref=where)
    if collate is None or example is None:
        raise InputError(
            "wrap: expected collate=FUNCTION, which makes a batch, and example=INPUT; or tokenizer=… "
            "of a language model"
        )
    parts = _Parts(module, collate, features or module, embed_text, example)
    return OwnBackbone(parts, dim=_dim(parts), logit_scale=logit_scale, ref=where)


class _Parts:
    """What the user gave. A copy of a backbone keeps them: functions go on running the module they know."""

    def __init__(
        self,
        module: nn.Module,
        collate: Collate,
        features: Features,
        embed_text: EmbedText | None,
        example: Any,
    ) -> None:
        self.module, self.collate, self.features = module, collate, features
        self.embed_text, self.example = embed_text, example
        self.cuts = _takes(collate, "max_length")

    def __deepcopy__(self, memo: object) -> "_Parts":
        return self

    def run(self, network: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
        """What the functions give of a batch at the weights of a network, a copy of theirs or that itself."""
        with evaluating(self.module), _recurrent_kernels(self.module):
            if network is self.module:
                return _call(self.features, batch)
            held = {**dict(network.named_parameters()), **dict(network.named_buffers())}
            with substituted(self.module, held):
                return _call(self.features, batch)


def _takes(function: Collate, parameter: str) -> bool:
    """Whether a function has a parameter; one written in C, such as ``torch.stack``, does not say."""
    try:
        return parameter in signature(function).parameters
    except ValueError:
        return False


def _recurrent_kernels(module: nn.Module) -> AbstractContextManager[None]:
    """No cuDNN where there are recurrent layers: in eval mode its kernels of them have no backward pass."""
    recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    return torch.backends.cudnn.flags(enabled=False) if recurrent else nullcontext()


class _Cut(NamedTuple):
    """An input, and the tokens that its task cuts it to."""

    value: Any
    max_length: int


class _Own(Backbone, ABC):
    """What is said of a network that cannot be trained."""

    _parts: _Parts

    @property
    def running(self) -> nn.Module:
        """The user's module, for a copy of it too."""
        return self._parts.module

    @cached_property
    def names(self) -> Mapping[str, str]:
        """As of any model. Raises: InputError if the outputs depend on no parameter."""
        reached = super().names
        if not reached:
            raise InputError(f"{self.ref}: the outputs depend on none of its parameters; {_ADVICE}")
        return reached

    def unfit(self, error: Exception) -> InputError:
        """What to say of a network through which no gradient goes."""
        return InputError(f"{self.ref}: no gradient of the outputs can be had ({_said(error)}); {_ADVICE}")


class OwnBackbone(_Own):
    """A module and the functions around it; see :func:`wrap`."""

    def __init__(self, parts: _Parts, *, dim: int, logit_scale: float, ref: Any) -> None:
        super().__init__(parts.module, ref=ref, dim=dim, logit_scale=logit_scale)
        self._parts = parts
        self.modality = "text" if _is_text(parts.example) else "image"

    def forward(self, **batch: Tensor) -> Tensor:
        """Features (N, d), without dropout."""
        return self._parts.run(self.network, batch)

    def prepare(self, inputs: Sequence[Any], max_length: int | None = None) -> Sequence[Any]:
        """The inputs as they are; with the bound of their task where ``collate`` wants to know it."""
        if max_length is None or not self._parts.cuts:
            return inputs
        return [_Cut(value, max_length) for value in inputs]

    def stack(self, prepared: Sequence[Any]) -> dict[str, Tensor]:
        """What ``collate`` makes of them, by name; what has no name under its place."""
        if prepared and isinstance(prepared[0], _Cut):
            values = [cut.value for cut in prepared]
            return _named(self._parts.collate(values, max_length=prepared[0].max_length))
        return _named(self._parts.collate(list(prepared)))

    @torch.no_grad()
    def embed_text(self, texts: Sequence[str]) -> Tensor:
        """Embeddings (P, d). Raises: InputError if the network has no text tower."""
        if self._parts.embed_text is None:
            raise InputError(
                f"{self.ref}: has no embeddings of texts, which zero-shot heads are made of; give the task "
                "'head: linear-probe', or wrap(…, embed_text=…)"
            )
        with evaluating(self._parts.module):
            return self._parts.embed_text(texts)

    def example(self) -> dict[str, Tensor]:
        """The user's one."""
        return self.stack([self._parts.example])


class OwnLanguageModel(_Own, LanguageModel):
    """A causal language model of the user's own, and a tokenizer; see :func:`wrap`."""

    def __init__(
        self, parts: _Parts, tokenizer: Any, *, vocabulary: int, positions: int | None, ref: Any
    ) -> None:
        Backbone.__init__(self, parts.module, ref=ref, dim=vocabulary, logit_scale=1.0)
        self._parts = parts
        self.tokenizer, self.encodes, self.positions = tokenizer, False, positions

    def forward(self, **batch: Tensor) -> Tensor:
        """Logits (R, V) at ``scored``. Padding is on the right, where no causal model sees it."""
        logits = _logits(self._parts.run(self.network, {"_0": batch["input_ids"]}))
        return logits.flatten(0, -2)[batch["scored"]]

    @property
    def writer(self) -> NextLogits:
        """The whole text is read for every token."""
        return lambda ids: _logits(self._parts.run(self.network, {"_0": ids.to(self.device)}))[:, -1].cpu()


def _inside(module: nn.Module) -> nn.Module:
    """The network that a compiled or parallel one runs: names of its parameters are the user's own."""
    while isinstance(inner := getattr(module, "_orig_mod", None) or _parallel(module), nn.Module):
        module = inner
    return module


def _parallel(module: nn.Module) -> nn.Module | None:
    kinds = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    return module.module if isinstance(module, kinds) else None


def _logits(found: Any) -> Tensor:
    logits: Tensor = getattr(found, "logits", found)
    return logits


def _is_text(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, tuple) and all(isinstance(one, str) for one in value))


def _check_weights(module: nn.Module) -> None:
    """Refuse what training would get wrong."""
    if isinstance(module, Backbone):
        raise InputError(f"{module.ref}: is a backbone already; use it as it is")
    for name, value in module.named_parameters():
        if value.dtype != torch.float32:
            quantized = "" if value.is_floating_point() else ", quantized or packed"
            raise InputError(
                f"{type(module).__name__}: {name!r} is {str(value.dtype).removeprefix('torch.')}{quantized}, "
                "expected float32; take module.float() of weights that are not quantized"
            )


def _dim(parts: _Parts) -> int:
    """The size of a feature, found on the example."""
    name = type(parts.module).__name__
    try:
        batch = _named(parts.collate([parts.example]))
    except Exception as error:
        raise InputError(f"{name}: collate([example]) fails ({_said(error)})") from error
    shapes = {key: tuple(value.shape) for key, value in batch.items()}
    try:
        with torch.no_grad(), evaluating(parts.module):
            found, again = _call(parts.features, batch), _call(parts.features, batch)
    except Exception as error:
        raise InputError(
            f"{name}: the network fails on what collate gives, of shape {shapes} ({_said(error)})"
        ) from error
    if not isinstance(found, Tensor) or found.dim() != 2 or len(found) != 1:
        shape = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"{name}: of one example the features are {shape}, expected a tensor (1, d); give "
            "features=FUNCTION, such as the mean over tokens or places"
        )
    if not torch.allclose(found, again, rtol=1e-3, atol=1e-6, equal_nan=True):
        raise InputError(
            f"{name}: two passes over the example give different features, expected the same; a dropout "
            "that is called as a function needs training=self.training, a network beside the module eval()"
        )
    return found.shape[1]


def _vocabulary(parts: _Parts) -> int:
    """The number of logits, found on three tokens."""
    name = type(parts.module).__name__
    try:
        with torch.no_grad():
            found = _logits(parts.run(parts.module, {"_0": torch.tensor([[0, 1, 2]])}))
    except Exception as error:
        raise InputError(f"{name}: the network fails on token ids (1, 3) ({_said(error)})") from error
    if not isinstance(found, Tensor) or found.dim() != 3 or found.shape[:2] != (1, 3):
        shape = f"a tensor {tuple(found.shape)}" if isinstance(found, Tensor) else type(found).__name__
        raise InputError(
            f"{name}: of token ids (1, 3) the network gives {shape}, expected logits (1, 3, V); give "
            "features=FUNCTION"
        )
    return found.shape[2]


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {shortened(' '.join(str(error).split()), 160)}"


def _named(batch: Any) -> dict[str, Tensor]:
    """What ``collate`` gave, by name."""
    if isinstance(batch, Mapping):
        named = {str(name): value for name, value in batch.items()}
    else:
        values = batch if isinstance(batch, tuple | list) else (batch,)
        named = {f"_{place}": value for place, value in enumerate(values)}
    for name, value in named.items():
        if not isinstance(value, Tensor | np.ndarray):
            raise InputError(f"collate: {name!r} is {type(value).__name__}, expected tensors")
    return {name: torch.as_tensor(value) for name, value in named.items()}


def _call(function: Features, batch: Mapping[str, Tensor]) -> Tensor:
    unnamed = [value for name, value in batch.items() if name.startswith("_") and name[1:].isdigit()]
    return function(*unnamed) if unnamed else function(**batch)


def is_own(ref: str) -> bool:
    """Whether a reference names a function that gives a model; what is on the disk wins."""
    return names_code(ref) and not exists(local_path(ref))


def load(ref: str) -> Backbone:
    """What the function ``module:function`` or ``file.py:function`` gives, called without arguments.

    Raises: InputError if there is none, it raises, or it gives no backbone.
    """
    make = named_callable(ref, "--model")
    try:
        made = make()
    except (Exception, SystemExit) as error:  # whatever its own code raises
        raise InputError(f"{ref}: raises {_said(error)}") from error
    if not isinstance(made, Backbone):
        raise InputError(
            f"{ref}: gives {type(made).__name__}, expected a backbone; return taskvec.wrap(module, "
            "collate=…, example=…)"
        )
    made.ref = ref
    return made
