"""What a file is, by its first bytes: the kinds that are read, and for others a sentence on what to do."""

import os
import struct
import zipfile
from pathlib import Path

from taskvec.errors import CorruptFile, InputError
from taskvec.reading import check_pointer, exists, open_regular, printable, shortened

PICKLES = (".bin", ".pt", ".pth", ".ckpt")
"""Endings of files that ``torch.save`` wrote."""

_HEAD = 1024
"""Bytes at the beginning of a file that tell its kind."""

_UNPACK = "unpack it and open the folder, or the file of weights in it"
TENSORFLOW = (
    "load it with transformers 4 and TensorFlow (from_pretrained(…, from_tf=True)) and save_pretrained() it"
)
_FLAX = "load it with transformers 4 and Flax (from_pretrained(…, from_flax=True)) and save_pretrained() it"
_ONNX = "open the checkpoint that it was exported from"
_NUMPY = "save its arrays as a state dict: safetensors.numpy.save_file(dict(numpy.load(file)), …)"
_GGML = "of llama.cpp before GGUF; open the checkpoint that it was converted from"
_SCRIPT = "save the state_dict() of torch.jit.load(file)"
_EXPORTED = "save the state_dict of torch.export.load(file)"

_MAGIC: tuple[tuple[int, bytes, str, str], ...] = (
    (0, b"7z\xbc\xaf\x27\x1c", "a 7z archive", _UNPACK),
    (0, b"\x1f\x8b", "a gzip archive", _UNPACK),
    (0, b"BZh", "a bzip2 archive", _UNPACK),
    (0, b"\xfd7zXZ\x00", "an xz archive", _UNPACK),
    (0, b"\x28\xb5\x2f\xfd", "a zstd archive", _UNPACK),
    (0, b"Rar!\x1a\x07", "a rar archive", _UNPACK),
    (257, b"ustar", "a tar archive", _UNPACK),
    (0, b"\x89HDF\r\n\x1a\n", "an HDF5 file, as Keras and TensorFlow write", TENSORFLOW),
    (0, b"\x93NUMPY", "a numpy array", _NUMPY),
    (0, b"ggjt", "a GGML file", _GGML),
    (0, b"tjgg", "a GGML file", _GGML),
    (0, b"lmgg", "a GGML file", _GGML),
    (0, b"fmgg", "a GGML file", _GGML),
    (4, b"ET12", "an ExecuTorch program", _ONNX),
    (4, b"TFL3", "a TensorFlow Lite model", _ONNX),
)
"""Place, bytes there, what the file is, and what to do."""

_ENDINGS: dict[str, tuple[str, str]] = {
    ".onnx": ("an ONNX graph", _ONNX),
    ".onnx_data": ("the tensors of an ONNX graph", _ONNX),
    ".msgpack": ("a Flax checkpoint", _FLAX),
    ".h5": ("a Keras or TensorFlow file", TENSORFLOW),
    ".keras": ("a Keras model", TENSORFLOW),
    ".pb": ("a TensorFlow graph", TENSORFLOW),
    ".index": ("the index of a TensorFlow checkpoint", TENSORFLOW),
    ".meta": ("the graph of a TensorFlow checkpoint", TENSORFLOW),
    ".tflite": ("a TensorFlow Lite model", _ONNX),
    ".ot": ("a file of rust-bert", "open the checkpoint that it was converted from"),
    ".pte": ("an ExecuTorch program", _ONNX),
    ".engine": ("a TensorRT engine", _ONNX),
    ".mlmodel": ("a Core ML model", _ONNX),
    ".joblib": (
        "a joblib pickle",
        "it holds no weights of a network that taskvec knows; save a state_dict()",
    ),
    ".distcp": ("a part of a distributed checkpoint", "name its folder"),
    ".nemo": ("a NeMo archive", "unpack it (tar -xf) and open the .ckpt in it"),
    ".mar": ("a TorchServe archive", _UNPACK),
}
"""What files of other tools are, where their bytes do not say it."""

_UNFINISHED = (".incomplete", ".part", ".partial", ".crdownload", ".aria2", ".download", ".!qB")
"""Endings of downloads that have not come to their end."""

_ZIPPED: tuple[tuple[str, str, str], ...] = (
    ("constants.pkl", "a TorchScript archive", _SCRIPT),
    ("bytecode.pkl", "a TorchScript archive for mobiles", _SCRIPT),
    ("serialized_exported_program.json", "a torch.export program", _EXPORTED),
    ("archive_format", "a torch.export program", _EXPORTED),
)


def kind_of_file(path: Path) -> str | None:
    """``safetensors``, ``pickle`` or ``gguf``, by content; ``None`` where that says nothing.

    Raises: InputError for what is no plain file; CorruptFile for a file of another kind, with what to do.
    """
    head, size = _head(path)
    check_unfinished(path)
    check_pointer(head, path)
    if not size:
        raise CorruptFile(f"{path}: an empty file, cut off before it began; download or write it again")
    for place, magic, what, remedy in _MAGIC:
        if head[place : place + len(magic)] == magic:
            raise _foreign(path, what, remedy)
    if head.startswith(b"PK\x03\x04"):
        return _zipped(path)
    _refuse_page(path, head)
    if head.startswith(b"GGUF"):
        return "gguf"
    if len(head) > 8 and head[8:9] == b"{" and 8 + struct.unpack("<Q", head[:8])[0] <= size:
        return "safetensors"
    _refuse_ending(path)
    return "pickle" if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05") else None


def _head(path: Path) -> tuple[bytes, int]:
    handle = open_regular(path)
    try:
        return os.pread(handle, _HEAD, 0), os.fstat(handle).st_size
    finally:
        os.close(handle)


def check_unfinished(path: Path) -> None:
    """Refuse a file that is still being downloaded.

    Raises: CorruptFile.
    """
    control = next((end for end in (".aria2", ".part") if exists(f"{path}{end}")), None)
    if path.name.endswith(_UNFINISHED) or control == ".aria2":
        beside = f" ({path.name}{control} lies beside it)" if control else ""
        raise CorruptFile(
            f"{path}: a download that is not finished{beside}; let it finish, or start it again"
        )


def _refuse_page(path: Path, head: bytes) -> None:
    """Refuse a page, or an answer, that was saved in the place of the file."""
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:15].lower().startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--", b"<script")):
        raise CorruptFile(
            f"{path}: a web page, saved instead of the file (a login, an error); download the file itself"
        )
    if start[:1] == b"{" and head[:1] != b"\x80" and start[1:].lstrip()[:1] in (b'"', b"}"):
        text = printable(" ".join(start[:60].decode("utf-8", "replace").split()))
        raise CorruptFile(f"{path}: JSON ({text}), expected weights; download the file itself")
    if path.suffix.lower() in (".safetensors", *PICKLES) and (words := _as_text(head)):
        what = "safetensors file" if path.suffix == ".safetensors" else "state dict"
        raise CorruptFile(
            f"{path}: a text ({words!r}), no {what}, or cut off in its header; download or write it again"
        )
    if not head.strip(b"\0") and len(head) == _HEAD:
        raise CorruptFile(f"{path}: begins with zeros, as a download that is not finished; download it again")


def _as_text(head: bytes) -> str | None:
    """The first words of what can only be a text."""
    try:
        text = " ".join(head.decode("ascii").split())
    except UnicodeDecodeError:
        return None
    return shortened(text, 60) if text.isprintable() and len(head) < _HEAD else None


def _zipped(path: Path) -> str:
    """The kind of a zip archive: torch's own, or another."""
    try:
        with zipfile.ZipFile(path) as archive:
            names = [member.filename for member in archive.infolist()]
    except Exception:  # cut off, or odd: the reader of pickles says it
        return "pickle"
    own = {name.rpartition("/")[2] for name in names}
    for name, what, remedy in _ZIPPED:
        if name in own:
            raise _foreign(path, what, remedy)
    if "data.pkl" in own:
        return "pickle"
    _refuse_ending(path)
    if names and all(name.endswith(".npy") for name in names):
        raise _foreign(path, "numpy arrays in an archive", _NUMPY)
    raise _foreign(path, "a zip archive", _UNPACK)


def _refuse_ending(path: Path) -> None:
    if path.suffix.lower() in _ENDINGS:
        raise _foreign(path, *_ENDINGS[path.suffix.lower()])


def _foreign(path: Path, what: str, remedy: str) -> CorruptFile:
    return CorruptFile(f"{path}: {what}, expected safetensors or a state dict; {remedy}")


def unknown_kind(path: Path, ref: str) -> InputError:
    """The refusal of a file that neither its name nor its content tells the kind of."""
    if path.name.endswith(".index.json"):
        return InputError(f"{path}: expected a name such as model.safetensors.index.json")
    return InputError(
        f"{ref}: unknown kind of file, expected .safetensors, *.index.json, {', '.join(PICKLES)}"
    )
