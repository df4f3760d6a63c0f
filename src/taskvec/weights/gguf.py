"""GGUF files of llama.cpp, read tensor by tensor under transformers' names and in floating point.

The header is parsed here, bounded by the size of the file; how codes become numbers, and which tensor is
which, the packages ``gguf`` and ``transformers`` say.
"""

import logging
import math
import os
import struct
import weakref
from collections.abc import Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from importlib import import_module
from io import BufferedReader
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np

from taskvec.errors import CorruptFile, InputError, optional
from taskvec.later import torch
from taskvec.reading import fill, open_file, open_regular, shown
from taskvec.weights.blocks import TensorSpec, rows_of
from taskvec.weights.dtypes import HEADER_LIMIT
from taskvec.weights.lazy import Weights
from taskvec.weights.network import quiet
from taskvec.weights.stored import file_identity

if TYPE_CHECKING:
    from torch import Tensor

_log = logging.getLogger(__name__)

_AGAIN = "download or write it again"
_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
"""Bytes of a value by its type in the header; texts (8) and lists (9) have their length in front."""
_TEXT, _LIST = 8, 9
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
_MIXTURES = ("qwen2moe", "qwen3moe", "gpt-oss", "gpt_oss", "minimax-m2")
"""Architectures whose experts transformers puts together out of several tensors."""


@dataclass(frozen=True)
class _Entry:
    """A tensor as the header describes it; the last axis is the one along which codes are packed."""

    shape: tuple[int, ...]
    kind: int
    place: int


class GgufWeights(Weights):
    """One GGUF file as the weights that transformers loads from it.

    Attributes:
        config: the model's config.json, as transformers makes it of the header.

    Raises: MissingExtra without ``gguf`` and ``transformers``; CorruptFile if the header does not describe
        the file; InputError for an architecture that transformers does not read.
    """

    splits = False

    def __init__(self, path: Path, *, ref: str | None = None, folder: Path | None = None) -> None:
        how = f"{path}: a GGUF file; for those: pip install 'taskvec[gguf]'"
        self._gguf = optional("gguf", how)
        optional("transformers", how)
        entries, architecture, layers, speaks = _read_header(path)
        if architecture in _MIXTURES:
            raise InputError(
                f"{path}: a mixture of experts ({architecture}) in GGUF; have transformers write it as "
                "safetensors: AutoModelForCausalLM"
                f".from_pretrained({str(path.parent)!r}, gguf_file={path.name!r})"
                ".save_pretrained(OUT)"
            )
        self.config, model, self._processor, names = _network(
            path, architecture, layers, len(entries), file_identity(path)
        )
        self._entries = {names[name]: (name, entry) for name, entry in entries.items() if name in names}
        state = model.state_dict()
        self._check_places(path, state)
        super().__init__(
            ref or str(path),
            {
                name: TensorSpec(tuple(state[name].shape), _PLAIN.get(self._kind(entry), torch.float32))
                for name, (_, entry) in self._entries.items()
            },
            file_identity(path),
            folder=folder,
            files=(path.resolve(),),
        )
        if folder is None or not (folder / "config.json").is_file():
            self.texts = {"config.json": self.config}
        if speaks and (folder is None or not any(folder.glob("tokenizer*"))):
            self.makes = {name: partial(_vocabulary_file, path, name) for name in _VOCABULARY}
        self._handle = open_regular(path)
        self._close = weakref.finalize(self, os.close, self._handle)
        self._note(entries)

    def _note(self, entries: Mapping[str, _Entry]) -> None:
        kinds = sorted({self._kind(entry) for _, entry in self._entries.values()} - _PLAIN.keys())
        how = f"dequantized from {', '.join(kinds)} to float32" if kinds else "as they are"
        _say("%s: tensors of GGUF are read under transformers' names, %s", self.ref, how)
        used = {name for name, _ in self._entries.values()}
        if left := [name for name in entries if name not in used and not name.startswith("rope_")]:
            _say("%s: %s is no tensor of the model, and left out", self.ref, shown(left[0]))

    def _kind(self, entry: _Entry) -> str:
        return str(self._gguf.GGMLQuantizationType(entry.kind).name)

    def _nbytes(self, entry: _Entry) -> int:
        block, size = self._gguf.GGML_QUANT_SIZES[self._gguf.GGMLQuantizationType(entry.kind)]
        if entry.shape[-1] % block:
            raise ValueError
        return int(math.prod(entry.shape) // block * size)

    def _check_places(self, path: Path, state: "Mapping[str, Tensor]") -> None:
        length = path.stat().st_size
        for place, (name, entry) in self._entries.items():
            expected = tuple(state[place].shape)
            if math.prod(entry.shape) != math.prod(expected):
                raise CorruptFile(
                    f"{path}: {shown(name)} has shape {entry.shape}, expected that of {place!r}, {expected}; "
                    f"{_AGAIN}"
                )
            if entry.place + self._size(path, name, entry) > length:
                raise CorruptFile(f"{path}: ends inside {shown(name)}; {_AGAIN}")

    def _size(self, path: Path, name: str, entry: _Entry) -> int:
        with suppress(ValueError, KeyError):
            return self._nbytes(entry)
        raise CorruptFile(
            f"{path}: {shown(name)} is of a kind ({entry.kind}) and shape {entry.shape} that gguf does not "
            f"know; pip install --upgrade gguf, or {_AGAIN}"
        )

    def _read(self, name: str, rows: slice | None) -> "Tensor":
        there, entry = self._entries[name]
        codes = np.empty(self._nbytes(entry), np.uint8)
        if not fill(self._handle, codes.data, entry.place):
            raise CorruptFile(f"{self.ref}: ends inside {name!r}; was it written to since it was opened?")
        kind = self._gguf.GGMLQuantizationType(entry.kind)
        lines = codes.reshape(*entry.shape[:-1], -1) if entry.shape[:-1] else codes
        values = self._gguf.dequantize(lines, kind).reshape(entry.shape)
        made = self._processor.process(
            weights=values, name=there, tensor_key_mapping={}, parsed_parameters={"tensors": {}}
        ).weights
        tensor = torch.from_numpy(np.ascontiguousarray(made)).to(self.spec(name).dtype)
        if tensor.shape != self.spec(name).shape:
            raise CorruptFile(
                f"{self.ref}: {name!r} has shape {tuple(tensor.shape)}, expected "
                f"{self.spec(name).shape} as the header says; {_AGAIN}"
            )
        return rows_of(tensor, rows)

    def own_bytes(self, name: str) -> int:
        """Bytes of the codes, of the numbers, and of a copy of those."""
        return 12 * self.spec(name).numel

    def close(self) -> None:
        """Close the file. Tensors read before stay valid."""
        self._close()


@lru_cache(maxsize=256)
def _say(line: str, *words: str) -> None:
    """Note something once: training opens its base several times."""
    _log.warning(line, *words)


@lru_cache(maxsize=4)
def _network(
    path: Path, architecture: str, layers: int, tensors: int, identity: Hashable
) -> tuple[str, Any, Any, dict[str, str]]:
    """Of the model of a header: its config.json, itself on the meta device, and what names the tensors.

    Kept, since transformers reads a large vocabulary for seconds; ``identity`` is the file's, so that another
    of the same name is read anew.
    """
    loading: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    transformers: Any = import_module("transformers")
    if layers > tensors:
        raise CorruptFile(f"{path}: says that it has {layers} layers in {tensors} tensors; {_AGAIN}")
    try:
        with quiet(), torch.device("meta"):
            settings = loading.load_gguf_checkpoint(str(path), return_tensors=False)["config"]
            model = _model(transformers, settings)
            processor = loading.TENSOR_PROCESSORS.get(architecture, loading.TensorProcessor)(config=settings)
            names: dict[str, str] = loading.get_gguf_hf_weights_map(model, processor)
    except Exception as error:  # of transformers, which raises any of many kinds
        what = shown(" ".join(str(error).split()[:12]))
        raise InputError(
            f"{path}: transformers makes no model of a GGUF file of architecture {shown(architecture)} "
            f"({what}); open the checkpoint that it was converted from"
        ) from None
    state = model.state_dict()
    model.config.architectures = [type(model).__name__]
    named = {name: place for name, place in names.items() if place in state}
    return model.config.to_json_string(), model, processor, named


def _model(transformers: Any, settings: Mapping[str, Any]) -> Any:
    config = transformers.AutoConfig.for_model(**settings)
    if listed := settings.get("architectures"):
        return getattr(transformers, listed[0])._from_config(config)
    seq2seq = config.is_encoder_decoder
    maker = transformers.AutoModelForSeq2SeqLM if seq2seq else transformers.AutoModelForCausalLM
    return maker.from_config(config)


_VOCABULARY = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def _vocabulary_file(path: Path, name: str) -> str:
    """A file of the tokenizer that transformers makes of the header; empty where it makes none."""
    return _vocabulary(path).get(name, "")


@lru_cache(maxsize=1)
def _vocabulary(path: Path) -> dict[str, str]:
    transformers: Any = import_module("transformers")
    try:
        with quiet(), TemporaryDirectory() as folder:
            transformers.AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(
                folder
            )
            return {file.name: file.read_text("utf-8") for file in Path(folder).iterdir() if file.is_file()}
    except Exception as error:  # of transformers and tokenizers, whatever the vocabulary lacks
        what = shown(" ".join(str(error).split()[:12]))
        _log.warning("%s: no tokenizer is written, as its vocabulary makes none (%s)", path, what)
        return {}


def _read_header(path: Path) -> tuple[dict[str, _Entry], str, int, bool]:
    """Tensors by name, the architecture, the number of layers, and whether there is a vocabulary.

    Raises: CorruptFile if it claims more than the file holds.
    """
    with open_file(path) as file:
        header = _Header(path, file)
        if header.number("I") != _MAGIC or header.number("I") not in (2, 3):
            raise CorruptFile(f"{path}: no GGUF file of version 2 or 3; {_AGAIN}")
        tensors, pairs = header.number("Q"), header.number("Q")
        values = dict(header.pair() for _ in range(header.bounded(pairs, 13)))
        found = [header.tensor() for _ in range(header.bounded(tensors, 24))]
        step = values.get("general.alignment", 32)
        if type(step) is not int or not 0 < step <= 1 << 20:
            raise CorruptFile(f"{path}: an alignment of {shown(step)}; {_AGAIN}")
        begin = -(-file.tell() // step) * step
    entries = {name: _Entry(shape, kind, begin + offset) for name, shape, kind, offset in found}
    if len(entries) < len(found):
        raise CorruptFile(f"{path}: two tensors have the same name; {_AGAIN}")
    if values.get("split.count", 1) not in (0, 1):
        raise InputError(
            f"{path}: one of {shown(values['split.count'])} parts; join them with llama-gguf-split --merge"
        )
    architecture = values.get("general.architecture")
    layers = values.get(f"{architecture}.block_count", 0)
    if not isinstance(architecture, str) or type(layers) is not int:
        raise CorruptFile(f"{path}: no architecture in its header; {_AGAIN}")
    return entries, architecture, layers, "tokenizer.ggml.model" in values


_MAGIC = struct.unpack("<I", b"GGUF")[0]


class _Header:
    """What is read from a header, never more than the file has left."""

    def __init__(self, path: Path, file: BufferedReader) -> None:
        self._path, self._file = path, file
        self._size = min(os.fstat(file.fileno()).st_size, HEADER_LIMIT)

    def number(self, code: str) -> int:
        """One whole number."""
        return int(struct.unpack(f"<{code}", self._bytes(struct.calcsize(code)))[0])

    def bounded(self, count: int, least: int) -> int:
        """A count of things that take ``least`` bytes each, at least."""
        if count * least > self._size - self._file.tell():
            raise CorruptFile(f"{self._path}: its header asks for more than there is; {_AGAIN}")
        return count

    def text(self) -> str:
        """A text with its length in front."""
        return self._bytes(self.number("Q")).decode("utf-8", "replace")

    def pair(self) -> tuple[str, str | int | None]:
        """A key and its value, where that is a text or a whole number."""
        return self.text(), self._value(self.number("I"))

    def tensor(self) -> tuple[str, tuple[int, ...], int, int]:
        """Name, shape, kind and offset of a tensor."""
        name, axes = self.text(), self.number("I")
        if not 0 < axes <= 8:
            raise CorruptFile(f"{self._path}: {shown(name)} has {axes} axes; {_AGAIN}")
        shape = tuple(self.number("Q") for _ in range(axes))[::-1]
        if math.prod(shape) >= 1 << 62:
            raise CorruptFile(f"{self._path}: {shown(name)} has shape {shown(shape)}; {_AGAIN}")
        return name, shape, self.number("I"), self.number("Q")

    def _value(self, kind: int) -> str | int | None:
        if kind == _TEXT:
            return self.text()
        if kind == _LIST:
            inner, count = self.number("I"), self.number("Q")
            if inner in _SIZES:
                self._skip(count * _SIZES[inner])
            elif inner == _TEXT:
                for _ in range(self.bounded(count, 8)):
                    self._skip(self.number("Q"))
            else:
                raise CorruptFile(f"{self._path}: a list of lists in its header; {_AGAIN}")
            return None
        if kind not in _SIZES:
            raise CorruptFile(f"{self._path}: a value of unknown type {kind} in its header; {_AGAIN}")
        raw = self._bytes(_SIZES[kind])
        return None if kind in (6, 7, 12) else int.from_bytes(raw, "little", signed=kind in (1, 3, 5, 11))

    def _skip(self, count: int) -> None:
        self.bounded(count, 1)
        self._file.seek(count, os.SEEK_CUR)

    def _bytes(self, count: int) -> bytes:
        self.bounded(count, 1)
        return self._file.read(count)
