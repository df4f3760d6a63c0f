"""Settings of a config.json that say of what kind each layer is, made anew for a model of other layers.

Some list a kind for each layer, some the numbers of the layers of a kind, some say by counts and periods
which they are. Names are those of transformers.
"""

import re
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from itertools import islice, product
from typing import Any, NamedTuple

from taskvec.weights.depth import PREDICTING

Settings = Mapping[str, Any]
Layer = tuple[Settings, int]
"""The settings that describe a layer, and its number among them."""

NUMBER_OF_LAYERS = ("num_hidden_layers", "n_layer", "num_layers", "n_layers")

_BY_LAYER = re.compile(
    r"layer|block|pattern|types$|windows?$|intermediate_size|heads|ffn_multipliers|compress_ratios"
)
_NUMBERS = re.compile(r"(layers|ids|idxs|indices|indexes)$")
_OTHERS = re.compile(r"^mtp|token|image|norm_eps|^out_|^backbone|^summary|hidden_state")
_FLAGS = ("no_rope_layers",)
"""Lists with an entry for each layer that are called as lists of numbers are."""

_MOST = 100_000
"""Values of a setting that are tried."""


class _Setting(NamedTuple):
    """Numbers that together decide of which of two kinds a layer is.

    Attributes:
        keys: the numbers, each with its default; the first must be given.
        kind: layer, number of layers and the numbers -> the kind.
        least: of each number.
        fixed: those that stay as they are.
        instead: a list by layer that decides where it is given.
        needs: a switch without which they decide nothing.
    """

    keys: Mapping[str, int]
    kind: Callable[..., bool]
    least: tuple[int, ...] = (0,)
    instead: str = ""
    needs: str = ""
    fixed: tuple[str, ...] = ()

    def values(self, settings: Settings) -> tuple[int, ...] | None:
        """The numbers that are given; ``None`` if they are none, or decide nothing."""
        first, *_ = self.keys
        if self.needs and not settings.get(self.needs):
            return None
        given = (settings.get(key) for key in self.keys)
        values = tuple(
            value if type(value) is int else default
            for value, default in zip(given, self.keys.values(), strict=True)
        )
        usable = type(settings.get(first)) is int and all(map(int.__ge__, values, self.least))
        return values if usable else None

    def candidates(self, values: tuple[int, ...], held: Settings, depth: int) -> Iterator[tuple[int, ...]]:
        """Values to try, those that are given first; of what a config does not hold, the defaults alone."""
        yield values
        spans = (
            range(least, depth + 2) if key in held and key not in self.fixed else (value,)
            for key, least, value in zip(self.keys, self.least, values, strict=True)
        )
        within = self.kind is _periodic  # an offset
        tried = (each for each in product(*spans) if not within or each[1] < each[0])
        yield from islice(tried, _MOST)


def _from(layer: int, _: int, first: int) -> bool:
    return layer >= first


def _sparse(layer: int, _: int, first: int, step: int) -> bool:
    return layer >= first and layer % step == 0


def _last(layer: int, depth: int, number: int) -> bool:
    return layer >= depth - number


def _every(layer: int, _: int, step: int) -> bool:
    return (layer + 1) % step == 0


def _each(layer: int, _: int, step: int) -> bool:
    return layer % step == 0


def _periodic(layer: int, _: int, period: int, offset: int) -> bool:
    return layer % period == offset


def _between(layer: int, depth: int, step: int, first: int, last: int) -> bool:
    return first <= layer <= (last if last >= 0 else depth - 1) and (layer + 1) % step == 0


_SPARSE_STEP = _Setting({"decoder_sparse_step": 1}, _every, (1,))
_SETTINGS = (
    _Setting(
        {"first_k_dense_replace": 0, "moe_layer_freq": 1},
        _sparse,
        (0, 1),
        "mlp_layer_types",
        fixed=("moe_layer_freq",),
    ),
    _Setting({"num_dense_layers": 0}, _from, instead="mlp_layer_types"),
    _Setting({"max_window_layers": 0}, _from, instead="layer_types", needs="use_sliding_window"),
    _Setting({"num_kv_shared_layers": 0}, _last),
    _Setting({"attn_layer_period": 1, "attn_layer_offset": 0}, _periodic, (1, 0), "layers_block_type"),
    _Setting({"expert_layer_period": 1, "expert_layer_offset": 0}, _periodic, (1, 0)),
    _SPARSE_STEP,
    _Setting({"interleave_moe_layer_step": 1}, _every, (1,), "moe_layers"),
    _Setting({"sliding_window_pattern": 1}, _every, (1,), "layer_types"),
    _Setting({"_sliding_window_pattern": 1}, _every, (1,), "layer_types"),
    _Setting({"full_attention_interval": 1}, _every, (1,), "layer_types"),
    _Setting({"no_rope_layer_interval": 1}, _every, (1,), "no_rope_layers"),
    _Setting({"global_attn_every_n_layers": 1}, _each, (1,), "layer_types"),
    _Setting({"cross_attention_frequency": 1}, _each, (1,)),
    _Setting(
        {"moe_layer_interval": 1, "moe_layer_start_index": 0, "moe_layer_end_index": -1},
        _between,
        (1, 0, -1),
        "mlp_layer_types",
    ),
)


class Unsettled(NamedTuple):
    """A setting that no value makes right.

    Attributes:
        keys: its names.
        layer: the first that is of another kind, by the values that are right for the most before it.
    """

    keys: str
    layer: int


def describe(config: Settings, layers: Sequence[Layer]) -> tuple[dict[str, Any], list[Unsettled]]:
    """The settings for a model of the given layers, with those that stay as they are as no value is right."""
    before, behind, unsettled = count(config), config.get(PREDICTING), list[Unsettled]()
    depths = {before, before + behind} if isinstance(behind, int) else {before}
    made = {name: _listed(name, value, before, depths, layers) for name, value in config.items()}
    made |= {key: len(layers) for key in _number_keys(config) if key in config and config[key] == before}
    made = _without_stages(made, before)
    for setting in _SETTINGS:
        found = _follow(setting, made, config, layers)
        if isinstance(found, Unsettled):
            unsettled.append(found)
        else:
            made |= found
    return made, unsettled


def count(config: Settings) -> int:
    """The number of layers; 0 if a config tells none."""
    told = (config.get(key) for key in _number_keys(config))
    kinds = config.get("layers_block_type")
    listed = len(kinds) if isinstance(kinds, list) else 0
    return next((number for number in told if type(number) is int), listed)


def _number_keys(config: Settings) -> tuple[str, ...]:
    """Where a config may tell its number of layers; a decoder by itself has settings of encoders too."""
    decoder = "CausalLM" in str(config.get("architectures"))
    return (*NUMBER_OF_LAYERS, *(["decoder_layers"] if decoder else []))


def label(config: Settings, layer: int) -> tuple[str, ...]:
    """What the settings known here say of a layer."""
    depth = count(config)
    listed = (_said(name, value, layer, depth) for name, value in config.items())
    given = ((setting, setting.values(config)) for setting in _SETTINGS)
    counted = (setting.kind(layer, depth, *values) for setting, values in given if values is not None)
    return tuple(map(str, (*listed, *counted)))


def _said(name: str, value: Any, layer: int, depth: int) -> object:
    """What a list says of a layer; nothing if it is of no layers."""
    if isinstance(value, list) and _is_numbers(name, value, depth):
        return layer in value
    letters = isinstance(value, str) and "pattern" in name
    by_layer = isinstance(value, list) and (name == "block_types" or _is_by_layer(name, value, {depth}))
    return _entry(value, layer) if value and (letters or by_layer) else None


def lists_layers(name: str, value: object, depth: int) -> bool:
    """Whether a setting says something for each of so many layers, or which of them something holds for."""
    return isinstance(value, list) and (_is_numbers(name, value, depth) or _is_by_layer(name, value, {depth}))


def _listed(name: str, value: Any, before: int, depths: Container[int], layers: Sequence[Layer]) -> Any:
    """A list of layers made anew; any other setting as it is.

    Args:
        before: the number of layers it is for.
        depths: numbers of entries that it may have, for blocks behind the layers too.
    """
    if name == "attention_types" and _are_repeated(value):
        return [[[_repeated(_given(config, name, value), number) for config, number in layers], 1]]
    if isinstance(value, str) and "pattern" in name and value:
        return "".join(_entry(_given(config, name, value), number) for config, number in layers)
    if not isinstance(value, list) or not value:
        return value
    if name == "block_types":  # repeated over the layers
        return [_entry(_given(config, name, value), number) for config, number in layers]
    if _is_numbers(name, value, before):
        return [
            place for place, (config, number) in enumerate(layers) if number in _given(config, name, value)
        ]
    if _is_by_layer(name, value, depths):
        made = [_entry(_given(config, name, value), number) for config, number in layers]
        return made + value[before:]
    return value


def _is_numbers(name: str, value: Sequence[Any], depth: int) -> bool:
    """Whether a list holds the numbers of layers, not an entry for each: ascending, none twice."""
    if name in _FLAGS or _OTHERS.search(name) or not _NUMBERS.search(name):
        return False
    whole = all(type(number) is int and 0 <= number < depth for number in value)
    return whole and list(value) == sorted(set(value))


def _is_by_layer(name: str, value: Sequence[Any], depths: Container[int]) -> bool:
    return bool(_BY_LAYER.search(name) and not _OTHERS.search(name)) and len(value) in depths


def _given(config: Settings, name: str, otherwise: Any) -> Any:
    value = config.get(name)
    return value if isinstance(value, type(otherwise)) and value else otherwise


def _entry(listed: Sequence[Any], number: int) -> Any:
    return listed[number % len(listed)]


def _without_stages(config: dict[str, Any], before: int) -> dict[str, Any]:
    """The settings without the names of a backbone's stages, which follow from the number of layers."""
    if "stage_names" not in config:
        return config
    last = config.get("out_indices") in ([before], None)
    dropped = ("stage_names", *(("out_features", "out_indices") if last else ()))
    return {name: value for name, value in config.items() if name not in dropped}


def _are_repeated(types: object) -> bool:
    """Whether a setting lists kinds and how often they come, one after the other, as that of GPT-Neo does."""
    pairs = types if isinstance(types, list) else []
    return bool(pairs) and all(
        isinstance(pair, list) and [*map(type, pair)] == [list, int] and pair[0] for pair in pairs
    )


def _repeated(types: Any, number: int) -> Any:
    kinds = [kind for kinds, times in types for kind in kinds * min(times, number + 1)]
    return kinds[min(number, len(kinds) - 1)] if kinds else None


def _follow(
    setting: _Setting, made: Settings, config: Settings, layers: Sequence[Layer]
) -> dict[str, Any] | Unsettled:
    """The values of a setting under which each layer is of the kind that it was."""
    values, depth = setting.values(config), len(layers)
    if values is None:
        return {}
    wanted = [_kind(setting, described, number, values) for described, number in layers]
    furthest = 0
    for candidate in setting.candidates(values, made, depth):
        wrong = _first_wrong(setting, candidate, wanted)
        if wrong is None:
            given = zip(setting.keys, candidate, strict=True)
            return {key: value for key, value in given if key in made}
        furthest = max(furthest, wrong)
    if isinstance(made.get(setting.instead), list):
        return {}
    if setting is _SPARSE_STEP and isinstance(made.get("mlp_only_layers", []), list):
        dense = {place for place, kind in enumerate(wanted) if not kind}
        return {
            "decoder_sparse_step": 1,
            "mlp_only_layers": sorted({*made.get("mlp_only_layers", []), *dense}),
        }
    return Unsettled(" and ".join(key for key in setting.keys if key in config), furthest)


def _first_wrong(setting: _Setting, candidate: tuple[int, ...], wanted: Sequence[bool]) -> int | None:
    """The first layer that is of another kind with these values."""
    pairs = ((setting.kind(place, len(wanted), *candidate), kind) for place, kind in enumerate(wanted))
    return next((place for place, (found, kind) in enumerate(pairs) if found != kind), None)


def _kind(setting: _Setting, config: Settings, layer: int, otherwise: tuple[int, ...]) -> bool:
    return setting.kind(layer, count(config), *(setting.values(config) or otherwise))
