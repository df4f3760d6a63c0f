"""GGUF files are read as transformers reads them, tensor by tensor, and hostile headers are refused."""

import json
import struct
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from taskvec.errors import InputError, MissingExtra
from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights, save_weights

AUTO: Any = transformers.AutoModelForCausalLM
MAGIC = b"GGUF" + struct.pack("<I", 3)


def test_without_the_package_the_command_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    (tmp_path / "m.gguf").write_bytes(MAGIC + b"\0" * 64)
    with pytest.raises(MissingExtra, match=r"m\.gguf: a GGUF file; for those: pip install 'taskvec\[gguf\]'"):
        open_weights(tmp_path / "m.gguf")


@pytest.fixture(scope="module")
def ggufs() -> Any:
    pytest.importorskip("gguf")
    import ggufs

    return ggufs


def theirs(path: Path) -> dict[str, torch.Tensor]:
    """The tensors that transformers gives a model."""
    reading: Any = import_module("transformers.modeling_gguf_pytorch_utils")
    settings = reading.load_gguf_checkpoint(str(path))["config"]
    with torch.device("meta"):
        model = AUTO.from_config(transformers.AutoConfig.for_model(**settings))
    loaded = reading.load_gguf_checkpoint(str(path), return_tensors=True, model_to_load=model)
    return dict(loaded["tensors"])


KINDS = ["llama", "llama, tied", "qwen2", "qwen3", "gemma2", "phi3", "gpt2"]


@pytest.mark.parametrize("kind", KINDS)
def test_unquantized_tensors_come_back_bit_for_bit(kind: str, ggufs: Any, tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "m.gguf", kind)
    state = ggufs.model_of(kind).state_dict()
    with open_weights(path) as weights:
        tied = {"lm_head.weight"} if weights.get("lm_head.weight") is None else set()
        assert set(weights) == set(state) - tied
        for name in weights:
            near = 1e-6 if kind == "gemma2" and "norm" in name else 0  # one is added and taken away
            assert torch.allclose(weights[name], state[name], rtol=0, atol=near), name


@pytest.mark.parametrize("codes", ["F16", "Q8_0", "Q4_0", "Q5_1", "BF16"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_codes_become_what_transformers_makes_of_them(
    kind: str, codes: str, ggufs: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = ggufs.write(tmp_path / "m.gguf", kind, codes)
    expected = theirs(path)
    with open_weights(path) as weights:
        assert set(weights) == set(expected)
        assert all(torch.equal(weights[name].float(), expected[name]) for name in weights)
        held = {weights.spec(name).dtype for name in weights}
        plain = {"F16": torch.float16, "BF16": torch.bfloat16}
        assert held == {torch.float32, plain.get(codes, torch.float32)}
        assert "m.gguf: tensors of GGUF are read under transformers' names, " in caplog.text
        assert codes in plain or f"dequantized from {codes} to float32" in caplog.text
        rows = weights.read(
            "lm_head.weight" if "lm_head.weight" in weights else next(iter(weights)), slice(3, 7)
        )
        assert len(rows) == 4


def test_an_edit_of_it_is_a_model_that_transformers_loads(ggufs: Any, tmp_path: Path) -> None:
    base = ggufs.write(tmp_path / "base.gguf", "llama", "Q8_0")
    start = open_weights(base)
    tuned = {name: tensor + 1 for name, tensor in start.items()}
    out = save_weights(apply(start, TaskVector.between(start, tuned)), tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["architectures"] == ["LlamaForCausalLM"]
    model, report = AUTO.from_pretrained(out, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    state = model.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in tuned.items())


def test_a_folder_with_one_is_read(ggufs: Any, tmp_path: Path) -> None:
    ggufs.write(tmp_path / "m.gguf", "qwen2")
    assert len(open_weights(tmp_path)) == len(open_weights(tmp_path / "m.gguf"))


def test_parts_and_mixtures_say_what_to_do(ggufs: Any, tmp_path: Path) -> None:
    ggufs.write(tmp_path / "m.gguf", "llama", more={"split.count": 2})
    with pytest.raises(InputError, match=r"one of 2 parts; join them with llama-gguf-split --merge"):
        open_weights(tmp_path / "m.gguf")
    pair = struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 8) + b"qwen3moe"
    (tmp_path / "moe.gguf").write_bytes(MAGIC + struct.pack("<QQ", 0, 1) + pair)
    with pytest.raises(InputError, match=r"a mixture of experts \(qwen3moe\).*gguf_file='moe\.gguf'"):
        open_weights(tmp_path / "moe.gguf")


HEADERS = {
    "nothing": b"",
    "a billion tensors": struct.pack("<QQ", 1 << 30, 0),
    "endless pairs": struct.pack("<QQ", 0, 1 << 62),
    "a long key": struct.pack("<QQQ", 0, 1, 1 << 62),
    "a long list": struct.pack("<QQQ", 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 8, 1 << 60),
    "a list of lists": struct.pack("<QQQ", 0, 1, 1) + b"a" + struct.pack("<IIQ", 9, 9, 1),
    "no architecture": struct.pack("<QQ", 0, 0),
    "many layers": struct.pack("<QQ", 0, 2)
    + struct.pack("<Q", 20) + b"general.architecture" + struct.pack("<IQ", 8, 5) + b"llama"
    + struct.pack("<Q", 17) + b"llama.block_count" + struct.pack("<II", 4, 1 << 31),
}  # fmt: skip


@pytest.mark.parametrize("header", HEADERS)
def test_a_header_that_claims_too_much_is_refused(header: str, ggufs: Any, tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(MAGIC + HEADERS[header] + b"\0" * 32)
    with pytest.raises(InputError, match=r"m\.gguf: ") as caught:
        open_weights(tmp_path / "m.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [6, 100, 400, -5000, -1])
def test_a_cut_file_is_refused(cut: int, ggufs: Any, tmp_path: Path) -> None:
    path = ggufs.write(tmp_path / "m.gguf", "llama", "Q8_0")
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"m\.gguf: "):
        open_weights(path)
