"""What the keys of an adapter's file say: which layer of the model, which part of its adapter."""

import re
from collections.abc import Iterable
from typing import NamedTuple

from taskvec.errors import KeyMismatch

_LEADING = re.compile(
    r"(?:base_model\.model\.|module\.|_orig_mod\.|_forward_module\.|_fsdp_wrapped_module\.)+"
)
_INSIDE = re.compile(r"(?<=\.)(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
_PART = re.compile(
    r"(?P<module>.+)\."
    r"(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|ia3_l"
    r"|trainable_tokens_delta)(?:\.(?P<adapter>(?!weight$|bias$)[^.]+))?(?:\.(?P<kind>weight|bias))?"
)
_WHOLE = re.compile(r"\.modules_to_save\.(?P<adapter>[^.]+)\.")
_WRAPPER = re.compile(r"\.(base_layer|modules_to_save|token_adapter|ln_tuning_layers)(?=\.)")
_NAMELESS = {"lora_A": "lora_A.weight", "lora_B": "lora_B.weight"}
_NOT_TRAINED = re.compile(r"\.original_module\.|\.trainable_tokens_original(\.|$)")


class Part(NamedTuple):
    """A tensor of an adapter.

    Attributes:
        module: the layer's name in the model, and ``.base_layer`` for each adapter around this one.
        part: such as ``lora_A.weight``.
        adapter: the name of the adapter, if the key holds it.
    """

    module: str
    part: str
    adapter: str | None


def plain(key: str) -> str:
    """A key without the wrappers of PEFT, ``torch.compile`` and parallel training around the model.

    >>> plain("module.base_model.model.base_model.model.h.0._orig_mod.attn.lora_A.weight")
    'h.0.attn.lora_A.weight'
    """
    return _INSIDE.sub("", key[match.end() :] if (match := _LEADING.match(key)) else key)


def part_of(name: str) -> Part | None:
    """The part of a layer's adapter that a plain name is of; ``None`` for other tensors.

    >>> part_of("h.0.attn.lora_A.default.weight")
    Part(module='h.0.attn', part='lora_A.weight', adapter='default')
    """
    match = _PART.fullmatch(name)
    if match is None:
        return None
    part, kind = str(match["part"]), match["kind"]
    if kind == "bias":
        part = f"{part}.bias"
    elif part in _NAMELESS:
        if kind is None:
            return None
        part = _NAMELESS[part]
    module = str(match["module"]).removesuffix(".token_adapter").replace(".base_layer.", ".")
    return Part(module, part, match["adapter"])


def is_trained(name: str) -> bool:
    """Whether a plain name is not that of what a layer was before it was trained."""
    return _NOT_TRAINED.search(name) is None


def whole_name(name: str, adapters: Iterable[str]) -> str:
    """The name in the model of a tensor that was saved whole.

    >>> whole_name("score.modules_to_save.default.weight", ())
    'score.weight'
    """
    known = set(adapters)
    match = _WHOLE.search(name)
    if match and match["adapter"] in {"default", *known}:
        name = f"{name[: match.start()]}.{name[match.end() :]}"
    module, _, last = _WRAPPER.sub("", name).rpartition(".")
    module, dot, adapter = module.rpartition(".")
    return ".".join((module, last) if dot and adapter in known else filter(None, (module, adapter, last)))


def check_one_adapter(ref: str, names: Iterable[str | None]) -> list[str]:
    """The name of the adapter in the keys of a file, if they hold one.

    Raises: KeyMismatch for several.
    """
    found = list(dict.fromkeys(name for name in names if name is not None))
    if len(found) > 1:
        raise KeyMismatch(
            f"{ref}: holds several adapters, {found[0]!r} and {found[1]!r}, expected one; "
            f"save each by itself: save_pretrained(FOLDER, selected_adapters=[{found[0]!r}])"
        )
    return found
