"""What transformers builds of the config.json beside the weights: the network's own names for its tensors.

Checkpoints on disk may keep tensors under other names than the network has them, several in one, or one in
several; transformers converts them while it loads. Nothing is allocated here: networks are built on the meta
device.
"""

import re
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from taskvec.errors import InputError
from taskvec.later import torch
from taskvec.reading import read_mapping
from taskvec.weights.blocks import TensorSpec
from taskvec.weights.lazy import Weights

if TYPE_CHECKING:
    from torch import Tensor, nn

_COUNTS = re.compile(
    r"((^|_)(n|num)_(\w+_)?|_|^)(layers?|blocks?|experts?|stages?)$|depths?$|attention_types$"
)
"""Settings that say how many modules are made, one by one."""

_NUMBERS = re.compile(r"(^|_)num_")
_MOST = 1 << 20
"""Things of any kind that a config may ask for: labels, speakers."""

_MODULES = 4096
"""Modules of a kind that a config may ask for whatever the weights are: layers may share their tensors."""

_PARTS = 1 << 16
"""Modules and parameters of a network, whatever the weights are."""

_BUILDING = threading.RLock()


@dataclass(frozen=True)
class Conversion:
    """Tensors of a file that are stacked, split or turned on their way into the network; a linear map.

    Attributes:
        sources: their names in the file.
        targets: names in the network of what they become -> its spec.
    """

    sources: tuple[str, ...]
    targets: Mapping[str, TensorSpec]
    _network: "Network"
    _converter: Any
    _patterns: tuple[str, ...]
    _key: str

    def convert(self, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """The tensors of the network made of those of the file, which must be whole."""
        converter = deepcopy(self._converter)
        for name, pattern in zip(self.sources, self._patterns, strict=True):
            converter.add_tensor(self._key, name, pattern, tensors[name])
        return _converted(converter, self._key, self._network.model)

    def revert(self, tensors: "Mapping[str, Tensor]") -> "dict[str, Tensor]":
        """The tensors of the file made of those of the network; the inverse of ``convert``."""
        converter = self._converter.reverse_transform()
        keys = dict[str, str]()
        for name in self.targets:
            key, pattern = converter.rename_source_key(name)
            keys[key] = name
            converter.add_tensor(key, name, pattern, tensors[name])
        [key, *_] = keys
        made = _converted(converter, key, self._network.model)
        return dict(zip(self._file_names(list(made)), made.values(), strict=True))

    def _file_names(self, made: Sequence[str]) -> list[str]:
        """The names in the file of what ``revert`` made, which are those before the file's other renames."""
        before = {self._network.rename(name): name for name in self.sources}
        if set(before) == set(made):
            return [before[name] for name in made]
        raise InputError(f"{self._network.ref}: {self.sources[0]!r} cannot be made of {self._key!r}")


@dataclass(frozen=True)
class Layout:
    """How the names of a file become those of a network.

    Attributes:
        renamed: name in the file -> name in the network, where the tensor is the same.
        converted: groups of tensors that are others in the network.
        computed: in the file, though the network computes them.
        unknown: in the file, and the network has no place for them.
        missing: in the network, and the file does not give them.
    """

    renamed: Mapping[str, str]
    converted: Sequence[Conversion]
    computed: Sequence[str]
    unknown: Sequence[str]
    missing: Sequence[str]


class Network:
    """A network on the meta device, as transformers builds it.

    Attributes:
        ref: the folder of its config.json, for messages.
        model: the network itself.
        specs: its state dict by its own names; aliases of tied tensors are left out.
        tied: alias -> the name that the tensor has in ``specs``.
    """

    def __init__(self, ref: str, model: "nn.Module") -> None:
        self.ref = ref
        self.model = model
        self._state = model.state_dict()
        tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
        self.tied = {alias: kept for alias, kept in tied.items() if alias in self._state and alias != kept}
        held = (name for name in self._state if name not in self.tied)
        self.specs: Mapping[str, TensorSpec] = {name: _spec(self._state[name]) for name in held}

    @property
    def config(self) -> Mapping[str, Any]:
        """The settings it was built by, with what transformers added to those of the file."""
        settings: Any = self.model.config
        return dict(settings.to_dict())

    def rename(self, name: str) -> str:
        """A name in a file as it is looked up among the conversions: after all plain renames."""
        return str(_loading().apply_renamings(name, self._renamings))

    def layout(self, file: Mapping[str, TensorSpec]) -> Layout:
        """How the tensors of a file of this network become its own."""
        renamed, unknown, computed = dict[str, str](), list[str](), list[str]()
        groups: dict[tuple[str, int], list[tuple[str, str]]] = {}
        for name in file:
            place, pattern = self._locate(name)
            if pattern is not None:
                converter = next(n for n, c in enumerate(self._converters) if pattern in c.source_patterns)
                groups.setdefault((place, converter), []).append((name, pattern))
            elif place in self._state:
                renamed[name] = place
            else:
                (computed if self._is_computed(place) else unknown).append(name)
        made: list[Conversion] = []
        for (place, number), parts in groups.items():
            conversion = self._conversion(file, place, self._converters[number], parts)
            if conversion is None:
                unknown += [name for name, _ in parts]
            else:
                made.append(conversion)
        given = {*renamed.values(), *(name for conversion in made for name in conversion.targets)}
        return Layout(renamed, made, computed, unknown, self._missing(given))

    def _conversion(
        self,
        file: Mapping[str, TensorSpec],
        place: str,
        converter: Any,
        parts: Sequence[tuple[str, str]],
    ) -> Conversion | None:
        """A group of tensors with what they become; ``None`` if it is nothing that the network has."""
        names, patterns = zip(*sorted(parts, key=lambda part: _natural(part[0])), strict=True)
        conversion = Conversion(names, {}, self, converter, patterns, place)
        stand_ins = {
            name: torch.empty(file[name].shape, dtype=file[name].dtype, device="meta") for name in names
        }
        try:
            made = conversion.convert(stand_ins)
        except Exception:  # of transformers, for tensors that do not fit together: any of many kinds
            return None
        if not made or any(name not in self._state for name in made):
            return None
        return replace(conversion, targets={name: _spec(tensor) for name, tensor in made.items()})

    def _locate(self, name: str) -> tuple[str, str | None]:
        """The place of a tensor in the network, and the pattern by which it is converted, if it is."""
        prefix = getattr(self.model, "base_model_prefix", None)
        found, pattern = _loading().rename_source_key(
            name, self._renamings, self._converters, prefix, self._state
        )
        return str(found), pattern

    def _missing(self, given: set[str]) -> list[str]:
        """What the network has and is not given, under any of the names that it is tied under."""
        uses = {name: {name} for name in self.specs}
        for alias, kept in self.tied.items():
            uses.setdefault(kept, {kept}).add(alias)
        ignored = _patterns(self.model, "_keys_to_ignore_on_load_missing")
        lacking = (name for name in self.specs if not uses[name] & given)
        return [name for name in lacking if not any(pattern.search(name) for pattern in ignored)]

    def _is_computed(self, name: str) -> bool:
        ignored = _patterns(self.model, "_keys_to_ignore_on_load_unexpected")
        return name in self._buffers or any(pattern.search(name) for pattern in ignored)

    @cached_property
    def _buffers(self) -> set[str]:
        return {name for name, _ in self.model.named_buffers()}

    @cached_property
    def _conversions(self) -> list[Any]:
        return list(import_module("transformers.conversion_mapping").get_model_conversion_mapping(self.model))

    @cached_property
    def _renamings(self) -> list[Any]:
        return [entry for entry in self._conversions if isinstance(entry, _loading().WeightRenaming)]

    @cached_property
    def _converters(self) -> list[Any]:
        return [entry for entry in self._conversions if isinstance(entry, _loading().WeightConverter)]


def network_of(weights: Weights) -> Network | None:
    """The network of the config.json beside some weights.

    Returns: ``None`` without transformers, without a config of a model that it knows (code of others is never
        run), and for a config of many more layers than the weights have tensors.
    """
    return None if weights.folder is None else network_in(weights.folder, len(weights))


def network_in(folder: Path, tensors: int) -> Network | None:
    """The network of the config.json in a folder; as ``network_of``.

    Args:
        tensors: that the weights have, which bounds how many modules the config may ask for.
    """
    path = folder / "config.json"
    if not path.is_file():
        return None
    return _built(folder, path.stat().st_mtime_ns, max(_MODULES, tensors))


@lru_cache(8)
def _built(folder: Path, _: int, most: int) -> Network | None:
    try:
        content = read_mapping(folder / "config.json")
        if _asks_too_much(content, most):
            return None
        with _at_most(max(_PARTS, 8 * most)):
            model: nn.Module | None = build(folder, content)
    except Exception:  # of transformers, for configs that it cannot make anything of: any of many kinds
        return None
    return None if model is None else Network(str(folder), model)


def build(folder: Path, content: Mapping[str, Any]) -> Any:
    """The network of a config.json on the meta device; ``None`` for one that transformers does not have."""
    transformers: Any = import_module("transformers")
    with quiet(), torch.device("meta"):
        config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False)
        listed = content.get("architectures")
        name = listed[0] if isinstance(listed, list) and listed else None
        if name is None:
            return transformers.AutoModel.from_config(config, attn_implementation="eager")
        kind: Any = getattr(transformers, name, None)
        if not isinstance(kind, type) or not issubclass(kind, transformers.PreTrainedModel):
            return None
        return kind._from_config(config, attn_implementation="eager")  # type: ignore[attr-defined]


def _asks_too_much(content: object, bound: int, key: str = "") -> bool:
    """Whether a config asks for more modules than ``bound``."""
    if isinstance(content, Mapping):
        return any(_asks_too_much(value, bound, str(name)) for name, value in content.items())
    if isinstance(content, list):
        return any(_asks_too_much(value, bound, key) for value in content)
    if not isinstance(content, int | float):
        return False
    many = content > bound and _COUNTS.search(key) is not None
    return many or (content > _MOST and _NUMBERS.search(key) is not None)


@contextmanager
def _at_most(bound: int) -> Iterator[None]:
    """Refuse networks of more modules and parameters, as they are built by this thread.

    Raises: InputError.
    """
    thread, made = threading.get_ident(), count(1)

    def add(*_: object) -> None:
        if threading.get_ident() == thread and next(made) > bound:
            raise InputError(f"a network of more than {bound} modules and parameters")

    hooks = (
        torch.nn.modules.module.register_module_module_registration_hook(add),
        torch.nn.modules.module.register_module_parameter_registration_hook(add),
    )
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _converted(converter: Any, key: str, model: "nn.Module") -> "dict[str, Tensor]":
    made = converter.convert(key, model=model, config=model.config)
    return {name: held[0] if isinstance(held, list) else held for name, held in made.items()}


def _natural(name: str) -> list[tuple[bool, int, str]]:
    """A key to sort by, in which 10 comes after 9."""
    return [(part.isdecimal(), int(part) if part.isdecimal() else 0, part) for part in name.split(".")]


def _patterns(model: "nn.Module", attribute: str) -> list[re.Pattern[str]]:
    return [re.compile(pattern) for pattern in getattr(model, attribute, None) or ()]


def _spec(tensor: "Tensor") -> TensorSpec:
    return TensorSpec(tuple(tensor.shape), tensor.dtype)


def _loading() -> Any:
    return import_module("transformers.core_model_loading")


@contextmanager
def quiet() -> Iterator[None]:
    """No bars and no load reports from transformers, which one thread at a time may build networks with.

    It does so with a default dtype, and methods of its own classes, replaced and put back in the end: of two
    threads the later one would put back what the earlier had put there.
    """
    logging = import_module("transformers.utils.logging")
    with _BUILDING:
        level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()
