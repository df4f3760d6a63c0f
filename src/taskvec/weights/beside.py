"""The files beside the weights of a model: which go with a copy, and which stay behind.

What stays is listed here, and all else goes: a loader may need any of it.
"""

import re
from collections.abc import Collection, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from taskvec.errors import CorruptFile, InputError, first_few
from taskvec.reading import check_inside, check_regular, is_folder, read_bytes, reason, shown
from taskvec.weights.modules import LISTED, module_folders

_WEIGHTS = re.compile(
    r".*\.(safetensors|sft|bin|pt|pth|ckpt|gguf|ggml|onnx|onnx[._]data|msgpack|h5|hdf5|keras|tflite|mlmodel"
    r"|mlpackage|pb|ot|nemo|pdparams|params|distcp|flashpack|engine|joblib|pickle)"
    r"|(?!vocab|tokenizer|corpus).*\.pkl|.*\.data-\d+-of-\d+|(weights|model)\S*\.npz|openvino_.*"
    r"|adapter_config\.json|.*\.index(\.[\w-]+)?\.json"
)
"""Weights in any format, and what is read as if weights lay beside it."""

_EXPECTED = re.compile(
    r"\..*|.*~|.*\.(log|lock|incomplete|part|tmp|aria2|pyc)|thumbs\.db|desktop\.ini"
    r"|readme.*|model_?card.*|taskvec\.json|.*\.index(\.[\w-]+)?\.json"
    r"|((pytorch_|tf_|flax_|rust_|openvino_|diffusion_(pytorch_|flax_)?|open_clip_(pytorch_)?)?model|consolidated)"
    r"([.-].*)?\.(safetensors|bin|pth|onnx|onnx[._]data|msgpack|h5|ot|xml)"
    r"|(optimizer|scheduler|scaler|sampler|dataloader|rng_state|random_states|custom_checkpoint|training_args)"
    r"[\w.-]*\.(bin|pt|pth|pkl|safetensors|ckpt)"
    r"|trainer_state\.json|(all|train|eval|predict|test)_results\.json|zero_to_fp32\.py"
    r"|latest(_checkpointed_iteration\.txt)?|events\.out\.tfevents.*"
)
"""What stays behind without a word: the state of a training, weights that are written anew, texts about the
model, hidden and unfinished files."""

_EXPECTED_FOLDERS = re.compile(
    r"\..*|__pycache__|runs|logs|wandb|mlruns|lightning_logs|tensorboard|original|onnx|openvino|coreml|tflite"
    r"|(checkpoint-|global_step)\d+"
)

_MODULE = re.compile(r"\d+_.*")
"""A folder called as those of modules are."""

_LARGEST = 1 << 29
"""Bytes of a file, or of a folder, from which on it is taken for something else, such as data."""

_MOST = 1 << 32
"""Bytes of all that is copied."""

_FILES = 2000
"""Files of a folder, itself or below, from which on they are taken for something else; a model's voices are
some hundred."""


_POINTER = 1 << 10
"""Bytes of the longest pointer of git's to a large file."""


class Beside(NamedTuple):
    """What lies beside weights.

    Attributes:
        folder: of the model.
        copied: the files that go with a copy, each with its place in it.
        left: what stays behind and might be missed, in words.
    """

    folder: Path | None
    copied: list[tuple[Path, Path]]
    left: list[str]

    @property
    def size(self) -> int:
        """Bytes of what is copied."""
        return sum(file.stat().st_size for file, _ in self.copied)

    @property
    def notes(self) -> list[str]:
        """What stays behind and might be missed; what goes along and might be run."""
        code = [shown(str(place)) for _, place in self.copied if place.suffix == ".py"]
        notes = {
            "left behind: {}": self.left,
            "{} goes with the output as it is: code of the model's author, which loaders run if told to "
            "trust it (trust_remote_code)": code,
        }
        return [f"{self.folder}: {note.format(first_few(names))}" for note, names in notes.items() if names]


def files_beside(folder: Path | None, written: Collection[str] = ()) -> Beside:
    """What lies beside the weights in a model folder, sorted.

    The folders of a sentence-transformers model's modules belong to it whole.

    Args:
        written: folders of modules whose weights are written anew.

    Raises: InputError for what goes with a copy and leads out of the folder, or is no plain file; CorruptFile
        for a list of modules that is none.
    """
    copied: list[tuple[Path, Path]] = []
    left: list[str] = []
    if folder is None:
        return Beside(folder, copied, left)
    total = 0
    for path, goes in _sorted_out(folder, written):
        place = path.relative_to(folder)
        name = shown(f"{place}/" if is_folder(path) else str(place))
        if goes:
            check_inside(path, folder)
            check_regular(path)
            size = path.stat().st_size
            if _is_pointer(path, size):
                name += " (an LFS pointer; run git lfs pull)"
            elif size <= _LARGEST and total + size <= _MOST:
                copied.append((path, place))
                total += size
                continue
        left.append(name)
    return Beside(folder, copied, left)


def _sorted_out(folder: Path, written: Collection[str]) -> Iterator[tuple[Path, bool]]:
    """Files, and folders that stay behind, each with whether it goes with a copy."""
    modules = module_folders(folder)
    for number, path in enumerate(path for path in _listed(folder) if not _is_expected(path)):
        if not is_folder(path):
            yield path, number < _FILES and not _is_weights(path)
        elif not any(module.is_relative_to(path) for module in modules):
            yield from _of_folder(path, listed=(folder / LISTED).is_file())
    for module in modules:
        inner = [other for other in modules if other != module and other.is_relative_to(module)]
        anew = module.relative_to(folder).as_posix() in written
        for path in _files_in(module) if is_folder(module) else ():
            if not any(path.is_relative_to(other) for other in inner) and _is_of_module(path, anew):
                yield path, True


def _is_of_module(path: Path, anew: bool) -> bool:
    """Whether a file in the folder of a module goes, where its weights may be written anew."""
    return not (anew if _is_weights(path) else _is_expected(path))


def _of_folder(folder: Path, *, listed: bool) -> Iterator[tuple[Path, bool]]:
    """The files of a folder that belongs to a model, or the folder, which stays behind.

    Args:
        listed: whether folders of modules are listed, as this one is not.
    """
    if folder.is_symlink() or (listed and _MODULE.fullmatch(folder.name)):
        yield folder, False
        return
    try:
        files = [*islice(_files_in(folder), _FILES + 1)]
    except InputError:  # it belongs to somebody else
        yield folder, False
        return
    others = [path for path in files if not _is_expected(path)]
    size = sum(path.lstat().st_size for path in others)
    if len(files) > _FILES or _is_model(folder, files) or size > _LARGEST:
        yield folder, False
    else:
        yield from ((path, True) for path in others)


def _is_model(folder: Path, files: Iterable[Path]) -> bool:
    """Whether a folder holds weights: then its other files are of no use without them."""
    # The n-grams that speech models decode with are no weights, whatever they are called.
    return folder.name != "language_model" and any(map(_is_weights, files))


def _is_pointer(path: Path, size: int) -> bool:
    """Whether git has yet to fetch a file."""
    if size > _POINTER:
        return False
    try:
        read_bytes(path)
    except CorruptFile:
        return True
    return False


def _is_weights(path: Path) -> bool:
    return _WEIGHTS.fullmatch(path.name.casefold()) is not None


def _is_expected(path: Path) -> bool:
    pattern = _EXPECTED_FOLDERS if is_folder(path) else _EXPECTED
    return pattern.fullmatch(path.name.casefold()) is not None


def _files_in(folder: Path) -> Iterator[Path]:
    """All files in a folder and below, links to folders left aside.

    Raises: InputError if one of the folders cannot be read.
    """
    waiting = [folder]
    while waiting:
        for path in _listed(waiting.pop()):
            if not is_folder(path):
                yield path
            elif not path.is_symlink() and not _is_expected(path):
                waiting.append(path)


def _listed(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: {reason(error)}") from None
