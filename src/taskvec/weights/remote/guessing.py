"""What lies on a web server, which lists nothing: asked for by the names that models have."""

from collections.abc import Iterable, Iterator
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from taskvec.errors import InputError
from taskvec.reading import parse_json
from taskvec.urls import said
from taskvec.weights.modules import LISTED
from taskvec.weights.remote.file import RemoteFile
from taskvec.weights.remote.place import Place
from taskvec.weights.remote.web import WebFile, ask_sizes

_SHARDS = 10_000
_INDEX = 1 << 27
"""Bytes of the largest index."""

_WEIGHTS = (
    *("model.safetensors.index.json", "model.safetensors", "adapter_model.safetensors"),
    *("diffusion_pytorch_model.safetensors.index.json", "diffusion_pytorch_model.safetensors"),
    *("pytorch_model.bin.index.json", "pytorch_model.bin"),
)
_SETTINGS = ("config.json", "adapter_config.json", "taskvec.json")
_BESIDE = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model"),
    *("sentencepiece.bpe.model", "chat_template.jinja", "preprocessor_config.json", "processor_config.json"),
    *(
        "modules.json",
        "config_sentence_transformers.json",
        "sentence_bert_config.json",
        "README.md",
        "LICENSE",
    ),
)

_IN_MODULES = ("config.json", "model.safetensors", "pytorch_model.bin", "vocab.txt", "tokenizer.json")
_MODULES = 20


def find_on_server(url: str) -> Place:
    """A file, an index with its shards, or a folder of a model on a web server.

    Raises: InputError if there is no such thing.
    """
    parts = urlsplit(url)
    folder, _, name = parts.path.rstrip("/").rpartition("/")
    name = unquote(name)
    if not name.endswith((".safetensors", ".json", ".bin", ".pt", ".pth", ".ckpt", ".gguf")):
        return _of_folder(url)
    if "/" in name or name in ("", "..", "."):
        raise InputError(f"{said(url)}: no name of a file")
    home = urlunsplit(parts._replace(path=folder, query="", fragment=""))
    file = WebFile(url.partition("#")[0], said(url))
    files: dict[str, RemoteFile] = {name: file}
    if name.endswith(".index.json"):
        files |= _shards(home, file)
    return Place(said(home), {**files, **dict(_beside(home))}, name)


def _of_folder(url: str) -> Place:
    parts = urlsplit(url)
    home = urlunsplit(parts._replace(path=parts.path.rstrip("/"), query="", fragment=""))
    found = dict(_there(home, _WEIGHTS))
    if not found:
        raise InputError(
            f"{said(home)}: no weights found there, and a web server lists no files; name the file, such as "
            f"{said(home)}/model.safetensors"
        )
    files: dict[str, RemoteFile] = {**found}
    for name, file in found.items():
        if name.endswith(".safetensors.index.json"):
            files |= _shards(home, file)
    return Place(said(home), {**files, **dict(_beside(home))})


def _shards(home: str, index: WebFile) -> dict[str, RemoteFile]:
    """The files that an index names beside itself; the reader of indexes refuses all others."""
    if index.size > _INDEX:
        raise InputError(f"{index.said}: {index.size / 1e6:,.0f} MB, too much for an index")
    content = parse_json(index.read_whole(), index.said)
    listed = content.get("weight_map") if isinstance(content, dict) else None
    names = listed.values() if isinstance(listed, dict) else ()
    plain = {
        name for name in names if isinstance(name, str) and name not in ("", ".", "..") and "/" not in name
    }
    if len(plain) > _SHARDS:
        raise InputError(f"{index.said}: names {len(plain)} files, expected {_SHARDS} at most")
    return {name: _file(home, name) for name in sorted(plain)}


def _beside(home: str) -> Iterator[tuple[str, WebFile]]:
    settings = list(_there(home, _SETTINGS))
    yield from settings
    if any(name == "config.json" for name, _ in settings):
        beside = dict(_there(home, _BESIDE))
        yield from beside.items()
        if LISTED in beside:
            yield from _there(home, _of_modules(beside[LISTED]))


def _of_modules(listed: WebFile) -> list[str]:
    """What may lie in the folders of modules; the reader of their list refuses one that is none."""
    content = parse_json(listed.read_whole(), listed.said) if listed.size < _INDEX else None
    entries = content[:_MODULES] if isinstance(content, list) else ()
    paths = {str(entry.get("path") or "").strip("/") for entry in entries if isinstance(entry, dict)}
    plain = sorted(path for path in paths if path and ".." not in path.split("/"))
    return [f"{path}/{name}" for path in plain for name in _IN_MODULES]


def _there(home: str, names: Iterable[str]) -> Iterator[tuple[str, WebFile]]:
    """Those files that the server has."""
    files = {name: _file(home, name) for name in names}
    found = ask_sizes([*files.values()])
    yield from ((name, file) for (name, file), there in zip(files.items(), found, strict=True) if there)


def _file(home: str, name: str) -> WebFile:
    url = f"{home}/{quote(name)}"
    return WebFile(url, said(url))
