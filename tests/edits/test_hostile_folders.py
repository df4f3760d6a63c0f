"""Model folders whose configs and tokenizers are odd: one sentence, or a right result."""

import json
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hostile import little_memory, refused, texts
from taskvec.edits.configs import derive_config, read_config, read_vocabulary_size
from taskvec.edits.inputs import check_sound
from taskvec.edits.mergekit.templates import choose_template
from taskvec.edits.stacking import Place, stack_config
from taskvec.edits.tokens import add_tokens, added_tokens, check_in_order, opaque_files, read_tokens
from taskvec.edits.vocabulary import align
from taskvec.errors import InputError
from taskvec.weights import open_weights

TOKENIZER: dict[str, Any] = {
    "added_tokens": [{"id": 2, "content": "<t>", "special": True}],
    "model": {"type": "BPE", "vocab": {"a": 0, "b": 1}, "merges": []},
}
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "layer_types": ["full", "sliding"],
    "vocab_size": 3,
    "dtype": "float32",
    "text_config": {"vocab_size": 3, "num_hidden_layers": 2},
}
FILES: dict[str, Any] = {
    "config.json": CONFIG,
    "tokenizer.json": TOKENIZER,
    "vocab.json": {"a": 0, "b": 1},
    "added_tokens.json": {"<t>": 2},
    "tokenizer_config.json": {
        "chat_template": [{"name": "default", "template": "{x}"}],
        "added_tokens_decoder": {"2": {"content": "<t>", "lstrip": False}},
    },
}


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """Two folders with the same files."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        save_file({"embed_tokens.weight": torch.eye(3)}, tmp_path / name / "model.safetensors")
        (tmp_path / name / "config.json").write_text(json.dumps(CONFIG))
        (tmp_path / name / "tokenizer.json").write_text(json.dumps(TOKENIZER))
    return tmp_path / "one", tmp_path / "two"


@pytest.mark.parametrize("name", FILES)
def test_every_file_beside_weights_is_refused_in_words_or_read(name: str, models: tuple[Path, Path]) -> None:
    folder, other = models
    if name in ("vocab.json", "added_tokens.json"):
        (folder / "tokenizer.json").unlink()
    one, two = open_weights(folder), open_weights(other)
    entry = {"id": 3, "content": "<u>"}
    uses: list[Callable[[], object]] = [
        lambda: check_sound(one),
        lambda: read_tokens(folder),
        lambda: added_tokens(folder),
        lambda: add_tokens(folder, [entry], 4),
        lambda: check_in_order(one, two),
        lambda: align(one, [two], "union"),
        lambda: read_vocabulary_size(folder),
        lambda: derive_config(read_config(folder), dtype=torch.bfloat16, tokens=4),
        lambda: stack_config(folder, [Place("a", folder, 0), Place("b", other, 1)]),
        lambda: choose_template("auto", folder, [folder, other]),
    ]
    for text in texts(FILES[name], most=60):
        (folder / name).write_text(text)
        for use in uses:
            refused(use)


def test_a_number_of_a_row_is_a_number(models: tuple[Path, Path]) -> None:
    for row in (True, -1, 1.0, "1", None, 2**63, 10**100):
        (models[0] / "tokenizer.json").write_text(json.dumps({"model": {"vocab": {"a": row}}}))
        assert refused(lambda: read_tokens(models[0])), row


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "tokenizer_config.json", "added_tokens.json", "x.model"]
)
def test_no_pipe_beside_weights_is_opened(name: str, models: tuple[Path, Path]) -> None:
    folder = models[0]
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(InputError, match="is a pipe, expected a file"):
        check_sound(open_weights(folder))
        read_tokens(folder)
        opaque_files(folder)


@pytest.mark.parametrize("number", ["1" * 10, "9" * 5000, "\u0669"])
def test_blocks_are_numbered_by_numbers(number: str) -> None:
    from taskvec.names import block_depths, count_blocks

    names = [f"model.layers.{number}.weight", "model.layers.0.weight"]
    assert count_blocks(names) == {"model.layers": 1 if len(number) > 1 else 10}
    assert refused(lambda: block_depths(names)) == (len(number) > 1)


def test_an_embedding_of_many_rows_and_no_columns_is_none(models: tuple[Path, Path]) -> None:
    header = {"embed_tokens.weight": {"dtype": "F32", "shape": [1 << 40, 0], "data_offsets": [0, 0]}}
    text = json.dumps(header).encode()
    for folder in models:
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
        (folder / "config.json").write_text('{"vocab_size": 1099511627776}')
    with little_memory(), pytest.raises(InputError, match="no embedding of tokens found"):
        align(open_weights(models[0]), [open_weights(models[1])], "union")
