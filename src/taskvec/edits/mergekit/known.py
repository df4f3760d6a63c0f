"""Names that mergekit knows: of parameters, keys and options; and what is said of those that do nothing."""

from collections.abc import Collection, Iterable
from difflib import get_close_matches
from typing import NamedTuple

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

_KEYS = _words(
    "base_model chat_template dtype layer_range merge_method models modules out_dtype residual_weight "
    "slices sources tokenizer tokenizer_source"
)
"""Of files."""

_NOTHING = "does nothing here, as in mergekit"
_WHY = {
    **dict.fromkeys(_KEYS, _NOTHING),
    **dict.fromkeys(_OPTIONS, "is an option of mergekit's command, and does nothing in a file"),
    **dict.fromkeys(_CARD, _NOTHING),
    **dict.fromkeys(PARAMETERS, "does nothing outside of parameters, as in mergekit"),
    "layer_range": "does nothing for whole models, as in mergekit; layers are merged by slices",
    "name": _NOTHING,
    "override_architecture": "does nothing; tensors are matched by name",
}
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


def find_misplaced(place: str, keys: Iterable[object], used: Collection[str]) -> list[Ignored]:
    """Keys that have a meaning for mergekit, but none where they stand."""
    return [
        Ignored(key, place, _WHY[key]) for key in keys if isinstance(key, str) and key in _WHY.keys() - used
    ]


def find_idle(
    place: str, given: Iterable[str], used: Collection[str], shared: Collection[str], method: str
) -> list[Ignored]:
    """Parameters that do nothing: those of other methods, those for all models given to one, and other keys.

    Args:
        place: the field that holds them.
        used: what the method takes there.
        shared: what it takes elsewhere.
    """
    of_other = f"is no parameter of {method} and does nothing, as in mergekit"
    return [
        Ignored(key, place, _SHARED if key in shared else of_other if key in PARAMETERS else why)
        for key, place, why in find_misplaced(place, given, used)
    ]


def nearest_parameter(name: str, known: Iterable[str]) -> str:
    """A hint for a parameter that no method has: the nearest of this one, of any, or all of this one."""
    near = get_close_matches(name, sorted(known), n=1) or get_close_matches(name, sorted(PARAMETERS), n=1)
    return nearest(name, near or known)
