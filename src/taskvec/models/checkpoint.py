"""Checkpoint folders in the transformers layout, local or on the hub."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import nn

from taskvec.errors import CorruptFile, InputError, optional
from taskvec.models import gguf
from taskvec.models.gguf import gguf_file
from taskvec.reading import is_folder, kind_of, read_json, read_mapping, shortened
from taskvec.weights import open_weights
from taskvec.weights.network import Network, quiet
from taskvec.weights.quantized import check_config, check_whole

EDITING = "taskvec diff, apply and merge edit any checkpoint without running it"

_PREFIX, _SUFFIX = "MODEL_FOR_", "_MAPPING_NAMES"
_SENSES = ("IMAGE", "VIDEO", "VIS", "AUDIO", "SPEECH", "WAVEFORM", "SPECTROGRAM", "MULTIMODAL")
"""In the names of transformers' tables: of models that need more than text, or give more."""

_LAYERS = re.compile(r"(num|n)_(hidden_|decoder_)?layers?$|(encoder|decoder)_layers$|depth$")
"""Settings that say how many layers there are."""

Build = Callable[[Any, str], Any]
"""Makes the network of a transformers class, with the weights of a folder or hub id."""

_SHARED = 1000
"""Layers that may share their tensors, as those of ALBERT do; others have one at least."""

_MORE = 4
"""Parameters for each byte of weights that a config may describe: none has fewer than two bits."""

_HEADS = 10_000_000
"""Parameters that may lack besides, such as those of a new head."""

_VOCABULARIES = ("tokenizer.json", "vocab.*", "*.model", "*.spm", "*.tiktoken", "tekken.json", "merges.txt")


def transformers() -> Any:
    """The package, or the command that installs it."""
    missing = "transformers is not installed, needed to load models; pip install 'taskvec[hf]'"
    return optional("transformers", missing)


def config_file(ref: str) -> Path:
    """The config.json of a folder or hub id.

    A GGUF file is taken for a folder that holds its own: ``FILE.gguf/config.json``.

    Raises: InputError if there is none, or the hub cannot be reached.
    """
    if (file := gguf_file(ref)) is not None:
        return file / "config.json"
    if is_folder(ref):
        path = Path(ref) / "config.json"
        if not path.is_file():
            raise InputError(f"{ref}: no config.json in the folder; {_instead(Path(ref))}")
        return path
    transformers()
    from transformers.utils.hub import cached_file

    try:
        return Path(str(cached_file(**located(ref), filename="config.json")))
    except OSError as error:
        line = str(error).splitlines()[0]
        raise InputError(f"{ref}: not a folder, and the hub did not give it ({line})") from None


def fetch(ref: str, filename: str) -> None:
    """Put one more file of a hub id beside its config.json, if the hub has it; of a folder, all are there."""
    if is_folder(ref):
        return
    from transformers.utils.hub import cached_file

    cached_file(
        **located(ref),
        filename=filename,
        _raise_exceptions_for_missing_entries=False,
        _raise_exceptions_for_connection_errors=False,
    )


def _instead(folder: Path) -> str:
    if (folder / "adapter_config.json").is_file():
        return (
            "it holds a LoRA adapter; write the model that it makes with: "
            f"taskvec apply BASE -v a={folder} -o OUT"
        )
    return f"expected a transformers checkpoint ({EDITING})"


def read_config(path: Path) -> dict[str, Any]:
    """The settings in the file that ``config_file`` names."""
    return read_mapping(path) if (file := gguf_file(path.parent)) is None else gguf.read_config(file)


def model_type(path: Path) -> str:
    """The type of model that a config.json states.

    Raises: InputError, CorruptFile if it states none.
    """
    wanted = "expected a model's configuration with its 'model_type'"
    try:
        stated = read_config(path).get("model_type")
    except CorruptFile as error:
        raise CorruptFile(f"{error}; {wanted}") from None
    if not isinstance(stated, str) or not stated:
        raise InputError(f"{path}: 'model_type' is {kind_of(stated)}, a name is needed; {wanted}")
    return stated


def reads_text(kind: str) -> bool:
    """Whether transformers has this type among the models that turn a text into hidden states."""
    tables = set(tables_of(kind))
    known: Iterable[str] = _auto().MODEL_MAPPING_NAMES
    if kind not in known or any(sense in table for table in tables for sense in _SENSES):
        return False
    if "SEQ_TO_SEQ_CAUSAL_LM" in tables:  # most of these want the text of the decoder too
        tables -= {"TEXT_ENCODING", "SEQUENCE_CLASSIFICATION"}
    return not tables.isdisjoint({"MASKED_LM", "CAUSAL_LM", "TEXT_ENCODING", "SEQUENCE_CLASSIFICATION"})


def writes_text(path: Path) -> bool:
    """Whether a config.json is of a model that gives the logits of a next token."""
    tables = set(tables_of(model_type(path)))
    both_ways = "MASKED_LM" in tables and not read_config(path).get("is_decoder")
    return "SEQ_TO_SEQ_CAUSAL_LM" in tables or ("CAUSAL_LM" in tables and not both_ways)


def has_encoder(path: Path) -> bool:
    """Whether a config.json is of a language model with an encoder for its context."""
    stated = read_config(path).get("is_encoder_decoder", True)
    return bool(stated) and "SEQ_TO_SEQ_CAUSAL_LM" in tables_of(model_type(path))


def encodes_text(kind: str) -> bool:
    """Whether transformers has this type among encoder-decoders of text whose encoder works by itself."""
    tables = set(tables_of(kind))
    if "SEQ_TO_SEQ_CAUSAL_LM" not in tables or reads_text(kind) or kind not in _auto().MODEL_MAPPING_NAMES:
        return False
    parts = transformers().AutoConfig.for_model(kind).sub_configs
    return not any(sense in table for table in tables for sense in _SENSES) and "audio_config" not in parts


def classifies(kind: str, what: str) -> bool:
    """Whether transformers has a classifier with this type of model, of ``SEQUENCE`` or ``IMAGE``."""
    return f"{what}_CLASSIFICATION" in tables_of(kind)


def purpose_of(kind: str) -> str:
    """What transformers uses a type of model for, in words."""
    if kind not in _auto().CONFIG_MAPPING_NAMES:
        return f"unknown to transformers {transformers().__version__}"
    tables = [table for table in tables_of(kind) if "_" in table]  # not IMAGE, PRETRAINING, BACKBONE
    words = [table.lower().replace("_", " ").replace(" lm", " language modeling") for table in tables]
    return f"for {', '.join(words[:3])}" if words else "for no task of its own"


def tables_of(kind: str) -> list[str]:
    """The tables of transformers that list a type of model, such as ``IMAGE_CLASSIFICATION``."""
    return [
        name[len(_PREFIX) : -len(_SUFFIX)]
        for name, types in vars(_auto()).items()
        if name.startswith(_PREFIX) and name.endswith(_SUFFIX) and kind in types
    ]


def _auto() -> Any:
    transformers()
    from transformers.models.auto import modeling_auto

    return modeling_auto


def located(ref: str) -> dict[str, str]:
    """``org/name@revision`` as the arguments that transformers takes; a folder stays whole."""
    name, at, revision = ref.partition("@")
    if is_folder(ref) or not at:
        return {"path_or_repo_id": ref}
    return {"path_or_repo_id": name, "revision": revision}


def load_network(kind: Any, ref: str) -> Any:
    """A network of a transformers class with the weights of a folder, GGUF file or hub id, in float32.

    Those of GGUF are dequantized. Raises: InputError, CorruptFile, UnsafeFile, one line that names the file
        which is to blame, also for weights that are quantized in another way.
    """
    file = gguf_file(ref)
    check_described(kind, ref)
    options = {"dtype": torch.float32, "output_loading_info": True, "ignore_mismatched_sizes": True}
    try:
        if file is not None:
            network, report = gguf.load_gguf(kind, file, **options)
        else:
            network, report = _from_pretrained(kind, ref, **options)
    except Exception as error:  # what does not fit surfaces as any of a dozen types
        raise unbuilt(ref, error) from None
    for name, stored, expected in sorted(report["mismatched_keys"]):
        raise mismatched(ref, name, stored, expected)
    in_plain_operations(network)
    return network


def unbuilt(ref: str, error: Exception) -> InputError:
    """What to say of a config.json that makes no network."""
    return InputError(
        f"{config_file(ref) if is_folder(ref) else ref}: does not describe a model that can be built "
        f"({reason(error)}); take the config.json that belongs to the weights"
    )


def mismatched(ref: str, name: str, stored: Sequence[int], expected: Sequence[int]) -> InputError:
    """What to say of a tensor of another shape than the network has."""
    return InputError(
        f"{ref}: {name!r} has shape {tuple(stored)} in the weights and {tuple(expected)} by config.json; "
        "take the config.json that belongs to the weights"
    )


def check_described(kind: Any, ref: str) -> None:
    """Refuse a config.json that is of no model, or of another one than the weights beside it.

    Raises: InputError, CorruptFile.
    """
    path, file = config_file(ref), gguf_file(ref)
    config = read_config(path)
    check_config(path, config)
    if is_folder(ref) or file is not None:
        with open_weights(file or ref) as weights:
            check_whole(weights)
            _check_layers(path, config, len(weights))
            _check_size(kind, path, weights.nbytes)


def in_plain_operations(network: nn.Module) -> None:
    """BLOOM's activation without its own autograd function, which cuts derivatives in a direction."""
    for module in network.modules():
        if type(module).__name__ == "BloomGelu":
            module.forward = import_module(type(module).__module__).bloom_gelu_forward


def _check_layers(path: Path, config: Mapping[str, Any], tensors: int) -> None:
    """Refuse a config.json of more layers than there are tensors: they are made one by one, without end.

    Raises: InputError.
    """
    inner = (config.get(part) for part in ("text_config", "vision_config"))
    for part in (config, *(part for part in inner if isinstance(part, dict))):
        for key, value in part.items():
            if _LAYERS.search(key) and isinstance(value, int) and value > max(tensors, _SHARED):
                raise InputError(
                    f"{path}: {key} is {value}, and the weights have {tensors} tensors; "
                    "take the config.json that belongs to them"
                )


def _check_size(kind: Any, path: Path, held: int) -> None:
    """Refuse a config.json of a much larger model than the weights are, all of which would be allocated.

    Raises: InputError.
    """
    try:
        with quiet(), torch.device("meta"):
            config = configuration(path)
            make = kind.from_config if hasattr(kind, "from_config") else kind._from_config
            wanted = sum(tensor.numel() for tensor in make(config).parameters())
    except Exception:  # loading it in earnest finds what is wrong, and says so
        return
    if wanted > _MORE * held + _HEADS:
        raise InputError(
            f"{path}: describes a model of {wanted:,} parameters, and the weights have "
            f"{held:,} bytes; take the config.json that belongs to the weights"
        )


def configuration(path: Path) -> Any:
    """What transformers makes of the config.json of a folder or GGUF file."""
    kind = transformers().AutoConfig
    if (file := gguf_file(path.parent)) is not None:
        return kind.for_model(**gguf.read_config(file))
    return kind.from_pretrained(path.parent, trust_remote_code=False)


def load_tokenizer(ref: str, folder: Path, rows: int, *, padded: bool = True) -> Any:
    """The tokenizer of a folder or hub id.

    Args:
        folder: where its files are.
        rows: of the embedding that its numbers are looked up in.
        padded: whether it has to pad texts.

    Raises: InputError, CorruptFile if it lacks files, they are damaged, or they are of another model.
    """
    if (file := gguf_file(ref)) is None:
        tokenizer = _tokenizer_of_files(ref, folder)
    else:
        tokenizer = _tokenizer_of_gguf(file)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if padded and tokenizer.pad_token_id is None:
        raise InputError(f"{folder}: its tokenizer has no token for padding, and none for the end of a text")
    if tokenizer.vocab_size > rows:
        raise InputError(
            f"{folder}: its tokenizer knows {tokenizer.vocab_size} tokens and the model's embedding has "
            f"{rows} rows; take the tokenizer that belongs to the weights"
        )
    return tokenizer


def _tokenizer_of_files(ref: str, folder: Path) -> Any:
    try:
        tokenizer = _from_pretrained(transformers().AutoTokenizer, ref)
    except Exception as error:
        _blame_tokenizer(folder, error)
    # Without a vocabulary some are made all the same, and know no word.
    files = set(tokenizer.vocab_files_names.values())
    if files and not any((folder / name).is_file() for name in {*files, "tokenizer.json"}):
        raise InputError(_no_tokenizer(folder, files))
    return tokenizer


def _tokenizer_of_gguf(file: Path) -> Any:
    """The tokenizer beside a GGUF file, whose own is a copy that may leave rules out; else that one."""
    own = {} if any(_vocabularies(file.parent)) else {"gguf_file": file.name}
    try:
        return _from_pretrained(transformers().AutoTokenizer, str(file.parent), **own)
    except Exception as error:
        raise InputError(
            f"{file}: its vocabulary makes no tokenizer ({reason(error)}); put the tokenizer.json of the "
            "model that it was made from beside it"
        ) from None


def _vocabularies(folder: Path) -> list[str]:
    return sorted({path.name for pattern in _VOCABULARIES for path in folder.glob(pattern)})


def _blame_tokenizer(folder: Path, error: Exception) -> NoReturn:
    """Name the file because of which there is no tokenizer."""
    present = _vocabularies(folder)
    for path in sorted({*folder.glob("*token*.json"), *folder.glob("vocab.json")}):
        read_json(path)
    if not present:
        raise InputError(_no_tokenizer(folder, ("tokenizer.json", "vocab.txt"))) from None
    raise InputError(
        f"{folder}: {', '.join(present)} make no tokenizer ({reason(error)}); take the files that belong to "
        "the weights"
    ) from None


def _no_tokenizer(folder: Path, names: Iterable[str]) -> str:
    kind = model_type(folder / "config.json")
    return (
        f"{folder}: no tokenizer in the folder ({' or '.join(sorted(names))}), and a model of type {kind!r} "
        f"reads text; copy that of the model it was made from ({EDITING})"
    )


def _from_pretrained(kind: Any, ref: str, **options: Any) -> Any:
    """``kind.from_pretrained`` of a folder or hub id, silent, without remote code."""
    place = located(ref)
    where = place.pop("path_or_repo_id")
    with quiet():
        return kind.from_pretrained(where, **place, **options, trust_remote_code=False)


def reason(error: Exception) -> str:
    """What went wrong, from another library's message, which may be a page."""
    message = shortened(" ".join(str(error).split()), 160)
    return f"{type(error).__name__}: {message}" if message else type(error).__name__


def stored_names(folder: Path, network: nn.Module) -> dict[str, str]:
    """Name in a loaded network -> name in the checkpoint folder, for every tensor that is the same in both.

    Raises: InputError, CorruptFile, UnsafeFile naming the file that is missing or damaged.
    """
    if (sharding := vars(network).get("taskvec_sharding")) is not None:
        return dict(sharding.stored)  # found before its classes became others
    with open_weights(folder) as weights:
        names = [*weights, *weights.tied]
        built = Network(str(folder), network)
        layout = built.layout({name: weights.spec(name) for name in names})
    places = {place: name for name, place in layout.renamed.items()}
    # A file may hold a tied tensor under the other of its names.
    return {**{built.tied[place]: places[place] for place in built.tied if place in places}, **places}


def rows_of(embedding: nn.Module | None) -> int:
    """The number of rows of an embedding; no bound if it has no weight."""
    weight = getattr(embedding, "weight", None)
    return len(weight) if isinstance(weight, torch.Tensor) else 1 << 62
