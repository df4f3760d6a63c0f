"""Which file, or files, of a folder hold its weights; and what a folder of another tool is."""

import re
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path

from taskvec.errors import CorruptFile, InputError
from taskvec.reading import printable, reason
from taskvec.weights.adapters import NAMES as ADAPTERS
from taskvec.weights.formats import PICKLES, TENSORFLOW, kind_of_file

_KNOWN = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_OTHERS = (
    *(f"{name}{ending}" for name in ADAPTERS for ending in (".safetensors", ".bin")),
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model.safetensors.index.json",
    "open_clip_model.safetensors",
    "diffusion_pytorch_model.bin",
    "open_clip_pytorch_model.bin",
)

_SHARD = re.compile(r"(?P<stem>.+?)[-_](?P<number>\d{1,6})[-_]of[-_](?P<total>\d{1,6})(?P<rest>\..+)")
_INDEX = re.compile(r"\.(safetensors|bin|pt|pth|ckpt)\.index(\.\w+)?\.json$")
_TRAINERS = re.compile(
    r"((optimizer|(lr_)?scheduler|scaler|training_args|rng_state|random_states)(_\d+)*\.\w+)"
    r"|model_optim_rng\.pt|(bf16_)?zero_pp_rank_.*|.*_optim_states\.pt"
)
"""Names of what trainers save beside a model."""

_BESIDE = (
    ".json",
    ".txt",
    ".md",
    ".py",
    ".model",
    ".jinja",
    ".yaml",
    ".yml",
    ".jsonl",
    ".log",
    ".png",
    ".jpg",
)
"""Endings of what lies beside weights, and is none."""

Found = tuple[Path, ...]
"""One file, or index, or the shards of a model in order."""


def find_weights(folder: Path) -> Found:
    """The file of a folder's weights, or their index, or the shards where there is no index.

    Raises: InputError if there are none, or several that could be meant; CorruptFile for a shard that is
        missing.
    """
    for name in (*_KNOWN, *_OTHERS):
        if (folder / name).is_file():
            return (folder / name,)
    files = [file for file in _entries(folder) if file.is_file() and not _TRAINERS.fullmatch(file.name)]
    sets = _sets(folder, [file for file in files if ".safetensors" in file.suffixes])
    if not sets and not any(file.suffix == ".distcp" for file in files):
        pickled = _sets(folder, [file for file in files if file.suffix in PICKLES or is_index(file)])
        sets = [found for found in pickled if not _of_parts(found)]
    # Mistral publishes its own file beside the shards that transformers reads.
    sets = [found for found in sets if not found[0].name.startswith("consolidated.")] or sets
    if len(sets) == 1:
        return sets[0]
    if sets:
        _refuse_choice(folder, sets)
    if (inner := _in_cache(folder)) is not None:
        return find_weights(inner)
    if gguf := [file for file in files if file.suffix == ".gguf"]:
        if len(gguf) == 1:
            return (gguf[0],)
        raise InputError(f"{folder}: {len(gguf)} GGUF files, expected one; name the file: {_list(gguf)}")
    raise InputError(f"{folder}: {_diagnose(folder, files)}")


def _entries(folder: Path) -> list[Path]:
    """What lies in a folder, by name; nothing for what is none."""
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise InputError(f"{folder}: {reason(error)}") from None


def is_index(file: Path) -> bool:
    """Whether a file is named as an index of shards is, also as diffusers names one of a variant."""
    return _INDEX.search(file.name) is not None


def _sets(folder: Path, files: Sequence[Path]) -> list[Found]:
    """The models that files of one format hold: an index, all shards of one, or a single file each."""
    indexes = [file for file in files if is_index(file)]
    shards: dict[tuple[str, str], list[Path]] = {}
    sets: list[Found] = [(file,) for file in indexes]
    for file in files:
        shard = _SHARD.fullmatch(file.name)
        if shard is not None:
            shards.setdefault((shard["stem"], shard["total"] + shard["rest"]), []).append(file)
        elif file.suffix != ".json":
            sets.append((file,))
    stems = tuple(index.name.split(".")[0] for index in indexes)
    unlisted = [held for (stem, _), held in shards.items() if not stem.startswith(stems or "\0")]
    return sets + [_complete(folder, held) for held in unlisted]


def _complete(folder: Path, files: Sequence[Path]) -> Found:
    """The shards of one model in order, none missing."""
    numbers = {int(_part(file, "number")): file for file in files}
    total, first = int(_part(files[0], "total")), min(1, min(numbers))
    if len(numbers) < total:
        lacking = next(number for number in count(first) if number not in numbers)
        more = f" ({total - len(numbers) - 1} more)" if total - len(numbers) > 1 else ""
        wanted = re.sub(
            r"\d+(?=[-_]of[-_])", lambda digits: f"{lacking:0{len(digits[0])}d}", files[0].name, count=1
        )
        raise CorruptFile(
            f"{folder}: shard {wanted!r} is missing{more}, and there is no index; download it again"
        )
    return tuple(numbers[number] for number in sorted(numbers))


def _part(file: Path, group: str) -> str:
    shard = _SHARD.fullmatch(file.name)
    assert shard is not None
    return shard[group]


def _of_parts(found: Found) -> bool:
    """Whether a file holds a slice of every tensor, as tensor parallel training and Meta write."""
    others = found[0].parent.glob(re.sub(r"\d+", "*", found[0].name)) if len(found) == 1 else ()
    return bool(re.match(r"consolidated\.\d+|mp_rank_\d+", found[0].name)) and len(list(others)) > 1


def _refuse_choice(folder: Path, sets: Sequence[Found]) -> None:
    firsts = [found[0] for found in sets]
    kind = "safetensors files" if ".safetensors" in firsts[0].suffixes else "files of torch.save"
    raise InputError(
        f"{folder}: {len(sets)} {kind} and no index, expected one; name the file: {_list(firsts)}"
    )


def _list(files: Sequence[Path]) -> str:
    return printable(", ".join(file.name for file in files[:6]) + (", …" if len(files) > 6 else ""))


def _in_cache(folder: Path) -> Path | None:
    """The snapshot that a model's folder in a hub cache stands for."""
    snapshots = list(_folders(folder / "snapshots"))
    if len(snapshots) < 2:
        return snapshots[0] if snapshots else None
    main = folder / "refs" / "main"
    name = main.read_text("utf-8", "replace").strip() if main.is_file() else ""
    return next((inner for inner in snapshots if inner.name == name), None)


def _diagnose(folder: Path, files: Sequence[Path]) -> str:
    """What a folder is in which no weights were found, and what to do."""
    names = {path.name for path in _entries(folder)}
    for there, words in _TOOLS:
        if any(re.fullmatch(there, name) for name in names):
            return words
    inner = [path for path in _folders(folder) if _looks_full(path)]
    if "model_index.json" in names and inner:
        return f"a diffusers pipeline of several models; name the one that is meant: {_list(inner)}"
    if inner:
        return f"no weights in this folder, but in folders inside it; name one: {_list(inner)}"
    for file in files:
        if file.suffix not in _BESIDE:
            kind_of_file(file)
    return f"no weights in this folder, expected one of {', '.join(_KNOWN)}"


def _folders(folder: Path) -> Iterator[Path]:
    yield from (path for path in _entries(folder) if path.is_dir())


def _looks_full(folder: Path) -> bool:
    """Whether a folder holds something that weights are stored in."""
    endings = (".safetensors", ".distcp", ".gguf", *PICKLES)
    return any(
        file.name.endswith(endings) and not _TRAINERS.fullmatch(file.name) for file in _entries(folder)
    )


_TOOLS: tuple[tuple[str, str], ...] = (
    (
        r"zero_to_fp32\.py|(zero_pp|bf16_zero_pp)_rank_.*",
        "a DeepSpeed checkpoint in parts; run `python zero_to_fp32.py . OUT` in the folder that holds "
        "zero_to_fp32.py, and open OUT",
    ),
    (
        r"mp_rank_\d+_model_states\.pt|global_step\d+",
        "a DeepSpeed checkpoint in parts; run DeepSpeed's zero_to_fp32.py (or ds_to_universal.py for tensor "
        "parallel ones) on it, and open what that writes",
    ),
    (
        r"latest_checkpointed_iteration\.txt|iter_\d+|common\.pt|mp_rank_\d+(_\d+)*|model_optim_rng\.pt",
        "a Megatron-LM checkpoint; convert it to Hugging Face's format with Megatron Bridge "
        "(AutoBridge.export_ckpt) or Megatron-LM's tools/checkpoint/convert.py, and open that",
    ),
    (
        r"\.metadata|.*\.distcp",
        "a distributed checkpoint of torch (FSDP, DCP); run `python -m torch.distributed.checkpoint."
        "format_utils dcp_to_torch FOLDER model.pt`, and open model.pt",
    ),
    (
        r"pytorch_model_fsdp_\d+",
        "a checkpoint of FSDP; run `accelerate merge-weights FOLDER/pytorch_model_fsdp_0 OUT`, and open OUT",
    ),
    (
        r"consolidated\.\d+\.pth",
        "parts of each tensor, as Meta publishes Llama; convert them with transformers' "
        "convert_llama_weights_to_hf.py, and open what that writes",
    ),
    (
        r"saved_model\.pb|checkpoint\.index|.*\.data-\d+-of-\d+",
        f"a TensorFlow checkpoint; {TENSORFLOW}",
    ),
    (
        r"_CHECKPOINT_METADATA|_METADATA|ocdbt\.process_\d+|manifest\.ocdbt",
        "an Orbax checkpoint of JAX; restore it there and save its arrays with safetensors.flax.save_file",
    ),
    (
        r".*\.(incomplete|part|crdownload|aria2)",
        "no weights yet, but a download that is not finished; let it finish, or start it again",
    ),
)
"""Names in the folders of other tools, and what such a folder is."""
