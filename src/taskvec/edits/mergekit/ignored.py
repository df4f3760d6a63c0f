"""What mergekit reads over without a word: keys that have no meaning where they stand."""

from collections.abc import Collection, Iterable, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from taskvec.errors import and_more
from taskvec.registry import nearest


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PARAMETERS = _words(
    "alpha density embed_slerp eps epsilon filter_wise gamma int8_mask lambda max_iter normalize "
    "normalize_weights nuslerp_flatten nuslerp_row_wise r rescale rescale_norm scale select_topk t "
    "tol weight"
)
"""Of any method of mergekit, now or in earlier versions."""

_OPTIONS = _words(
    "allow_crimes async_write clone_tensors copy_tokenizer cuda device gpu_rich lazy lazy_unpickle "
    "lora_merge_cache lora_merge_dtype low_cpu_memory max_shard_size multi_gpu num_threads out_path "
    "out_shard_size output_path quiet random_seed read_to_gpu safe_serialization seed "
    "transformers_cache trust_remote_code verbose verbosity write_model_card"
)
"""Of mergekit's command line."""

_CARD = _words(
    "author authors comment comments date datasets description language library_name license "
    "metadata model_name notes pipeline_tag tags title url version"
)
"""Of model cards, and words about the file."""

_AT_TOP = PARAMETERS | _OPTIONS | _CARD
_OF_MODEL = PARAMETERS | {"layer_range", "name", "description", "comment"}
_OF_SOURCE = PARAMETERS | {"name", "description", "comment"}
_OF_SLICE = PARAMETERS | {"residual_weight", "name", "description", "comment"}

_NOTHING = "does nothing, as in mergekit"
_OPTION = "is an option of mergekit's command, and does nothing in a file"
_ARCHITECTURE = "does nothing; tensors are matched by name"
_RANGE = "does nothing for whole models, as in mergekit; layers are merged by slices"
_OUTSIDE = "does nothing outside of parameters, as in mergekit"
_SHARED = (
    "is one for all models, mergekit ignores it here; move it to the parameters of the slice or of the file"
)


class Ignored(NamedTuple):
    """A key that does nothing.

    Attributes:
        key: its name.
        place: where it stands; nothing for the top of the file.
        why: the rest of the sentence that begins with the key.
    """

    key: str
    place: str
    why: str


def describe_ignored(found: Iterable[Ignored]) -> list[str]:
    """A note on each key, which names the first place that it stands in."""
    places: dict[tuple[str, str], list[str]] = {}
    for key, place, why in found:
        places.setdefault((key, why), []).append(place)
    return [
        f"{where[0] + ': ' if where[0] else ''}{key!r} {why}{and_more(where)}"
        for (key, why), where in places.items()
    ]


def find_idle(
    place: str, given: Iterable[str], used: Collection[str], shared: Collection[str], method: str
) -> list[Ignored]:
    """Parameters that only other methods of mergekit have, or that are for all models and given to one.

    Args:
        place: the field that holds them.
        used: what the method takes there.
        shared: what it takes elsewhere.
    """
    idle = [name for name in given if name in PARAMETERS and name not in used]
    unknown = f"is no parameter of {method} and {_NOTHING}"
    return [Ignored(name, place, _SHARED if name in shared else unknown) for name in idle]


def nearest_parameter(name: str, known: Iterable[str]) -> str:
    """A hint for a parameter that no method has: the nearest of this one, of any, or all of this one."""
    near = get_close_matches(name, sorted(known), n=1) or get_close_matches(name, sorted(PARAMETERS), n=1)
    return nearest(name, near or known)


def drop_ignored(content: object) -> tuple[object, list[Ignored]]:
    """A file without the keys that mergekit ignores, and what was left out.

    Keys that begin with a dot, ``_`` or ``x-`` hold text for the aliases of YAML. What is unknown stays, to
    be refused with the nearest name.
    """
    if not isinstance(content, Mapping):
        return content, []
    ignored: list[Ignored] = []
    aliased = {key: value for key, value in content.items() if not str(key).startswith((".", "_", "x-"))}
    top = _with_reference("base_model", "", _keep("", aliased, _AT_TOP, ignored), ignored)
    top = _of_module("", top, ignored)
    modules = top.get("modules")
    if isinstance(modules, Mapping):
        top["modules"] = {
            name: _of_module(f"modules.{name}.", _keep(f"modules.{name}", module, _AT_TOP, ignored), ignored)
            for name, module in modules.items()
        }
    return top, ignored


def _of_module(field: str, module: Any, ignored: list[Ignored]) -> Any:
    """A mapping with models or slices."""
    if not isinstance(module, Mapping):
        return module
    made = dict(module)
    for key, of_entry in (("models", _of_model), ("slices", _of_slice)):
        if isinstance(made.get(key), list):
            made[key] = [of_entry(f"{field}{key}[{n}]", entry, ignored) for n, entry in enumerate(made[key])]
    return made


def _of_model(place: str, entry: Any, ignored: list[Ignored]) -> Any:
    return _with_reference("model", place, _keep(place, entry, _OF_MODEL, ignored), ignored)


def _of_slice(place: str, entry: Any, ignored: list[Ignored]) -> Any:
    made = _with_reference("base_model", place, _keep(place, entry, _OF_SLICE, ignored), ignored)
    if not isinstance(made, Mapping) or not isinstance(made.get("sources"), list):
        return made
    sources = enumerate(made["sources"])
    return {**made, "sources": [_of_source(f"{place}.sources[{n}]", held, ignored) for n, held in sources]}


def _of_source(place: str, entry: Any, ignored: list[Ignored]) -> Any:
    return _with_reference("model", place, _keep(place, entry, _OF_SOURCE, ignored), ignored)


def _with_reference(key: str, place: str, entry: Any, ignored: list[Ignored]) -> Any:
    """A mapping with a model in it; tensors go by their names, whatever architecture that is said to have."""
    model = entry.get(key) if isinstance(entry, Mapping) else None
    if not isinstance(model, Mapping) or "override_architecture" not in model:
        return entry
    if model["override_architecture"] is not None:
        ignored.append(Ignored("override_architecture", f"{place}.{key}".strip("."), _ARCHITECTURE))
    kept = {name: value for name, value in model.items() if name != "override_architecture"}
    return {**entry, key: kept}


def _keep(place: str, entry: Any, idle: frozenset[str], ignored: list[Ignored]) -> Any:
    """A mapping without its idle keys."""
    if not isinstance(entry, Mapping):
        return entry
    ignored += [Ignored(key, place, _why(key)) for key in entry if key in idle]
    return {key: value for key, value in entry.items() if key not in idle}


def _why(key: str) -> str:
    if key in PARAMETERS:
        return _OUTSIDE
    return _OPTION if key in _OPTIONS else _RANGE if key == "layer_range" else _NOTHING
