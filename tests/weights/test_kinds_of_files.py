"""Checkpoints as they lie on disks: each kind is read, or said in one sentence with what to do."""

import argparse
import collections
import datetime
import gzip
import json
import pathlib
import pickle
import tarfile
import types
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from taskvec.errors import CorruptFile, InputError, UnsafeFile
from taskvec.weights import open_weights

STATE = {"encoder.weight": torch.arange(6.0).reshape(2, 3), "encoder.bias": torch.tensor([1.0, -2.0])}
ONE, OTHER = ({name: tensor} for name, tensor in STATE.items())
EMA = {name: tensor + 1 for name, tensor in STATE.items()}
POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 99\n".encode()


@dataclass
class Settings:
    lr: float = 0.1


class Mode(Enum):
    FAST = 1


class Kept(dict[str, int]):
    """As EasyDict and its like: a mapping with attributes."""


def kept() -> Kept:
    settings = Kept(rank=2)
    settings.__dict__["lr"] = 0.1
    return settings


def trained() -> torch.optim.Optimizer:
    layer = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(layer.parameters())
    layer(torch.ones(2)).sum().backward()
    optimizer.step()
    return optimizer


def assert_holds(ref: str | Path, state: Mapping[str, Tensor] = STATE) -> None:
    with open_weights(ref) as weights:
        assert set(weights) == set(state)
        assert all(torch.equal(weights[name], tensor) for name, tensor in state.items())


# One state dict in what a trainer saved

ARGUMENTS = argparse.Namespace(lr=0.1, out=pathlib.Path("/runs/1"), since=datetime.date(2024, 1, 1))
NESTED: dict[str, Callable[[], Any]] = {
    "model": lambda: {"model": STATE, "optimizer": trained().state_dict(), "epoch": 3, "args": ARGUMENTS},
    "module": lambda: {"module": STATE, "ds_config": {"stage": 2}, "param_shapes": [{"a": torch.Size([2])}]},
    "net": lambda: {"net": STATE, "best": np.float64(0.9), "curve": np.zeros(3), "seen": {1, 2}},
    "ema": lambda: {"ema": STATE, "step": torch.tensor(7), "counts": collections.Counter("abca")},
    "generator": lambda: {"generator": STATE, "optim_g": trained().state_dict(), "cfg": Settings()},
    "params": lambda: {"params": STATE, "cfg": kept(), "log": collections.defaultdict(list, a=[1])},
    "ema.shadow": lambda: {"ema": {"decay": 0.999, "shadow": STATE}, "rng_state": torch.get_rng_state()},
    "model.state_dict": lambda: {"model": {"state_dict": STATE, "epoch": 1}, "range": range(3)},
    "state_dict": lambda: {
        "state_dict": STATE,
        "callbacks": {"EMA": {"weights": EMA}},
        "loops": {"fit_loop": {"state_dict": {}}},
        "hyper_parameters": types.SimpleNamespace(lr=0.1),
    },
    "student": lambda: {"student": STATE, "center": torch.zeros(1), "optimizer": trained()},
}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "old"])
@pytest.mark.parametrize("part", NESTED)
def test_the_one_state_dict_inside_is_read_and_said(
    part: str, zipped: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save(NESTED[part](), tmp_path / "last.pt", _use_new_zipfile_serialization=zipped)
    assert_holds(tmp_path / "last.pt")
    assert f"last.pt: the tensors under {part!r} are read" in caplog.text
    assert_holds(f"{tmp_path / 'last.pt'}#{part}")


@pytest.mark.parametrize(
    "keys",
    [
        ("state_dict", "state_dict_ema"),
        ("params", "params_ema"),
        ("student", "teacher"),
        ("model", "ema.model"),
    ],
)
def test_of_several_state_dicts_the_user_names_one(keys: tuple[str, str], tmp_path: Path) -> None:
    first, second = keys
    outer, _, inner = second.partition(".")
    torch.save({first: STATE, outer: {inner: EMA} if inner else EMA}, tmp_path / "x.pth")
    with pytest.raises(InputError, match=rf"'{first}' \(2\), '{second}' \(2\); name .* x\.pth#{first}$"):
        open_weights(tmp_path / "x.pth")
    assert_holds(f"{tmp_path / 'x.pth'}#{first}")
    assert_holds(f"{tmp_path / 'x.pth'}#{second}", EMA)
    identities = {open_weights(f"{tmp_path / 'x.pth'}#{key}").identity for key in keys}
    assert len(identities) == 2
    with pytest.raises(InputError, match=r"x\.pth: no state dict under 'modle'; "):
        open_weights(f"{tmp_path / 'x.pth'}#modle")


def test_a_name_with_a_mark_is_a_file_if_there_is_one(tmp_path: Path) -> None:
    torch.save(STATE, tmp_path / "run#3.pt")
    assert_holds(tmp_path / "run#3.pt")
    with pytest.raises(InputError, match="no parts to choose; leave '#x' out"):
        save_file(STATE, tmp_path / "m.safetensors")
        open_weights(f"{tmp_path / 'm.safetensors'}#x")


@pytest.mark.parametrize("beside", [3, "text", None, [1, 2], Settings(), np.float32(1), {"a": 1}])
def test_what_is_no_tensor_in_a_state_dict_is_left_out_and_said(
    beside: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    torch.save({"step": beside, **STATE}, tmp_path / "x.pt")
    assert_holds(tmp_path / "x.pt")
    assert "'step' is " in caplog.text and "left out" in caplog.text


def test_large_buffers_beside_a_model_do_not_hide_it(tmp_path: Path) -> None:
    torch.save({"model": STATE, "rng": torch.zeros(5000, dtype=torch.uint8)}, tmp_path / "x.pt")
    assert_holds(tmp_path / "x.pt")
    torch.save({**STATE, "head._extra_state": {"scale": torch.ones(1)}}, tmp_path / "x.pt")
    assert_holds(tmp_path / "x.pt")
    torch.save({"weights": STATE, "losses": torch.rand(500), "amp": {"a": torch.ones(2)}}, tmp_path / "x.pt")
    assert_holds(tmp_path / "x.pt")


class Calls:
    """Of another package, and pickled as a call."""

    def __reduce__(self) -> tuple[Any, ...]:
        return eval, ("1",)


@pytest.mark.parametrize("beside", [Calls(), torch.nn.Linear(2, 2), Mode.FAST], ids=["call", "layer", "enum"])
def test_what_would_run_code_is_refused_wherever_it_lies(beside: object, tmp_path: Path) -> None:
    for content in (
        {"model": STATE, "x": beside},
        {**STATE, "x": beside},
        {"model": STATE, "x": [{1: beside}]},
    ):
        torch.save(content, tmp_path / "x.pt")
        with pytest.raises(UnsafeFile, match=r"x\.pt: holds more than tensors"):
            open_weights(tmp_path / "x.pt")


class NotLoaded:
    def __setstate__(self, state: object) -> None:
        pytest.fail("ran")

    def __getstate__(self) -> object:
        return {"a": 1}


def test_nothing_of_a_class_in_a_file_is_run(tmp_path: Path) -> None:
    torch.save({"model": STATE, "x": NotLoaded()}, tmp_path / "x.pt")
    assert_holds(tmp_path / "x.pt")
    torch.save(NotLoaded(), tmp_path / "x.pt")
    with pytest.raises(UnsafeFile, match=r"NotLoaded\), and loading it could run code"):
        open_weights(tmp_path / "x.pt")


NO_MODEL: list[tuple[object, str]] = [
    ({"encoder.weight": np.zeros(3)}, "'encoder.weight' is a numpy array, expected a tensor"),
    ({"model": {"encoder.weight": np.zeros(3)}}, "'encoder.weight' is a numpy array, expected a tensor"),
    (trained().state_dict(), "the state of an optimizer"),
    ({"module": {"a": torch.empty(0)}, "ds_config": {}, "param_shapes": []}, r"zero_to_fp32\.py"),
    ([STATE], "holds list, expected a state dict"),
]


@pytest.mark.parametrize(("content", "words"), NO_MODEL)
def test_a_file_without_a_state_dict_says_what_it_is(content: object, words: str, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(InputError, match=words):
        open_weights(tmp_path / "x.pt")


# Single files


def test_content_decides_where_a_name_says_little(tmp_path: Path) -> None:
    for name in ("model.pth.tar", "model.th", "weights.pkl", "0f3a9c"):
        torch.save(STATE, tmp_path / name)
        assert_holds(tmp_path / name)
    for name in ("model.bin", "model.pt", "1b7d2e"):
        save_file(STATE, tmp_path / name)
        assert_holds(tmp_path / name)
    torch.save(STATE, tmp_path / "x.safetensors")
    with pytest.raises(CorruptFile, match=r"a file of torch\.save, no safetensors file; rename it to x\.bin"):
        open_weights(tmp_path / "x.safetensors")


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/config.json", "{}")


def tarred(path: Path) -> None:
    (path.parent / "config.json").write_text("{}")
    with tarfile.open(path, "w") as archive:
        archive.add(path.parent / "config.json", "config.json")


def scripted(path: Path) -> None:
    with pytest.warns(DeprecationWarning):
        torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)


def exported(path: Path) -> None:
    torch.export.save(torch.export.export(torch.nn.Linear(2, 2), (torch.ones(1, 2),)), path)


def learned(path: Path) -> None:
    from sklearn.linear_model import LinearRegression

    path.write_bytes(pickle.dumps(LinearRegression().fit([[0.0], [1.0]], [0.0, 1.0])))


def holding(content: bytes) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(content)


FILES: list[tuple[str, Callable[[Path], object], str]] = [
    ("m.safetensors", holding(POINTER), "an LFS pointer, not the file itself; run git lfs pull"),
    ("m.pth", holding(POINTER), "an LFS pointer, not the file itself; run git lfs pull"),
    ("m.gguf", holding(POINTER), "an LFS pointer"),
    ("model.safetensors.index.json", holding(POINTER), "an LFS pointer"),
    ("m.bin", holding(b"<!DOCTYPE html>\n<html><title>Log in</title>"), "a web page"),
    ("m.safetensors", holding(b"\n <html lang='en'>"), "a web page"),
    ("m.pt", holding(b'{"error": "Repository not found"}'), "JSON .*Repository not found"),
    ("m.safetensors", holding(b'{\n "message": "Not Found"}'), "JSON .*Not Found"),
    ("m.bin", holding(b"Entry not found"), "a text \\('Entry not found'\\), no state dict"),
    ("m.safetensors", holding(b"Access denied.\n"), "a text \\('Access denied.'\\), no safetensors file"),
    ("m.pt", holding(b""), "an empty file"),
    ("m.safetensors", holding(b""), "an empty file"),
    ("m.safetensors", holding(b"\0" * 4096), "begins with zeros, as a download that is not finished"),
    ("m.safetensors.incomplete", holding(b"x"), "a download that is not finished"),
    ("m.bin.part", holding(b"x"), "a download that is not finished"),
    ("m.pt.crdownload", holding(b"x"), "a download that is not finished"),
    ("m.zip", zipped, "a zip archive.*unpack it"),
    ("m.pt", zipped, "a zip archive.*unpack it"),
    ("m.tar", tarred, "a tar archive.*unpack it"),
    ("m.tar.gz", lambda path: path.write_bytes(gzip.compress(b"x")), "a gzip archive.*unpack it"),
    ("m.7z", holding(b"7z\xbc\xaf\x27\x1c\0\4"), "a 7z archive.*unpack it"),
    ("m.nemo", tarred, "a tar archive.*unpack it"),
    ("m.pt", scripted, r"a TorchScript archive.*torch\.jit\.load"),
    ("m.pt2", exported, r"a torch\.export program.*torch\.export\.load"),
    ("m.onnx", holding(b"\x08\x08\x12\x07pytorch"), "an ONNX graph"),
    ("tf_model.h5", holding(b"\x89HDF\r\n\x1a\n\0\0"), "HDF5.*from_tf=True"),
    ("flax_model.msgpack", holding(b"\x81\xa1a"), "a Flax checkpoint.*from_flax=True"),
    ("m.npz", lambda path: np.savez(path, a=np.ones(2)), r"numpy arrays.*safetensors\.numpy\.save_file"),
    ("m.npy", lambda path: np.save(path, np.ones(2)), "a numpy array"),
    ("m.pkl", learned, r"sklearn.*it is no model of torch"),
    ("__0_0.distcp", holding(b"\x01"), "a part of a distributed checkpoint.*name its folder"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "make", "words"), FILES, ids=[f"{n} {i}" for i, (n, *_) in enumerate(FILES)]
)
def test_a_file_of_another_kind_says_what_it_is(
    name: str, make: Callable[[Path], object], words: str, tmp_path: Path
) -> None:
    make(tmp_path / name)
    with pytest.raises(InputError, match=words) as caught:
        open_weights(tmp_path / name)
    message = str(caught.value)
    assert message.startswith(str(tmp_path / name)) and "\n" not in message


def test_a_file_that_aria_has_not_finished_is_not_read(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "m.safetensors")
    (tmp_path / "m.safetensors.aria2").touch()
    with pytest.raises(CorruptFile, match=r"not finished \(m\.safetensors\.aria2 lies beside it\)"):
        open_weights(tmp_path / "m.safetensors")


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json"])
def test_a_pointer_in_the_place_of_a_text_is_said(name: str, tmp_path: Path) -> None:
    from taskvec.reading import read_json

    (tmp_path / name).write_bytes(POINTER)
    with pytest.raises(CorruptFile, match=rf"{name}: an LFS pointer.*git lfs pull"):
        read_json(tmp_path / name)


# Folders

Content = Mapping[str, Tensor] | Mapping[str, object] | str


def fill(folder: Path, files: Mapping[str, Content]) -> Path:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, str):
            path.write_text(content)
        elif path.suffix == ".safetensors":
            save_file({name: held for name, held in content.items() if isinstance(held, Tensor)}, path)
        else:
            torch.save(content, path)
    return folder


def index(names: Mapping[str, str]) -> str:
    return json.dumps({"weight_map": names})


def shards(pattern: str, *parts: Mapping[str, Tensor]) -> dict[str, Content]:
    total = f"{len(parts):05d}"
    return {pattern.format(f"{number:05d}-of-{total}"): part for number, part in enumerate(parts, 1)}


SPLIT = shards("model-{}.safetensors", ONE, OTHER)
LISTED = index(dict(zip(STATE, SPLIT, strict=True)))
VARIANT = shards("diffusion_pytorch_model.fp16-{}.safetensors", ONE, OTHER)

READ: dict[str, dict[str, Content]] = {
    "shards without an index": SPLIT,
    "pickled shards without an index": shards("pytorch_model-{}.bin", ONE, OTHER),
    "shards numbered from zero": {"w_00000_of_00002.pt": ONE, "w_00001_of_00002.pt": OTHER},
    "an index beside Mistral's own file": {
        **SPLIT,
        "model.safetensors.index.json": LISTED,
        "consolidated.safetensors": EMA,
    },
    "shards beside Mistral's own file": {**SPLIT, "consolidated.safetensors": EMA},
    "a download of another format that was broken off": {
        **SPLIT,
        "pytorch_model-00002-of-00002.bin": OTHER,
    },
    "two formats": {"model.safetensors": STATE, "pytorch_model.bin": STATE},
    "Mistral's own file": {"consolidated.safetensors": STATE, "params.json": "{}"},
    "one part of Meta's": {"consolidated.00.pth": STATE, "params.json": "{}"},
    "a variant": {"model.fp16.safetensors": STATE, "config.json": "{}"},
    "a variant of diffusers": {"diffusion_pytorch_model.fp16.safetensors": STATE},
    "a variant in shards": {
        **VARIANT,
        "diffusion_pytorch_model.safetensors.index.fp16.json": index(dict(zip(STATE, VARIANT, strict=True))),
    },
    "the plain one of two variants": {
        "diffusion_pytorch_model.safetensors": STATE,
        "diffusion_pytorch_model.fp16.safetensors": EMA,
    },
    "OpenCLIP": {"open_clip_pytorch_model.bin": STATE, "open_clip_config.json": "{}"},
    "OpenCLIP twice": {"open_clip_model.safetensors": STATE, "open_clip_pytorch_model.bin": STATE},
    "a trainer's": {
        "model.pt": STATE,
        "optimizer.pt": {},
        "scheduler.pt": {},
        "rng_state_0.pth": {},
        "training_args.bin": {},
    },
    "Lightning": {"last.ckpt": {"state_dict": STATE, "epoch": 1}, "hparams.yaml": "lr: 1"},
    "DeepSpeed's second stage": {
        "mp_rank_00_model_states.pt": {"module": STATE, "ds_config": {}},
        "bf16_zero_pp_rank_0_mp_rank_00_optim_states.pt": {"optimizer_state_dict": {}},
    },
    "a model in a hub cache": {"snapshots/1f3/model.safetensors": STATE, "refs/main": "1f3"},
    "the main one in a hub cache": {
        "snapshots/1f3/model.safetensors": EMA,
        "snapshots/2aa/model.safetensors": STATE,
        "refs/main": "2aa\n",
    },
}


@pytest.mark.parametrize("kind", READ)
def test_a_folder_is_read(kind: str, tmp_path: Path) -> None:
    assert_holds(fill(tmp_path / "folder", READ[kind]))


SAID: list[tuple[dict[str, Content], str]] = [
    (
        {"checkpoint-500/model.safetensors": STATE, "checkpoint-900/model.safetensors": STATE},
        "name one: checkpoint-500, checkpoint-900",
    ),
    ({"epoch_1/pytorch_model.bin": STATE, "epoch_2/pytorch_model.bin": STATE}, "name one: epoch_1, epoch_2"),
    (
        {
            "model_index.json": "{}",
            "unet/m.safetensors": STATE,
            "vae/m.safetensors": STATE,
            "scheduler/c.json": "{}",
        },
        "a diffusers pipeline.*: unet, vae$",
    ),
    (
        {"latest": "global_step5", "zero_to_fp32.py": "", "global_step5/x.pt": {}},
        r"DeepSpeed.*python zero_to_fp32\.py",
    ),
    ({"zero_pp_rank_0_mp_rank_00_model_states.pt": {"module": {}}}, r"DeepSpeed.*zero_to_fp32\.py"),
    (
        {"mp_rank_00_model_states.pt": {"module": STATE}, "mp_rank_01_model_states.pt": {"module": STATE}},
        "DeepSpeed.*tensor parallel",
    ),
    ({".metadata": "", "__0_0.distcp": "x", "__1_0.distcp": "x"}, "dcp_to_torch"),
    (
        {"pytorch_model_fsdp_0/.metadata": "", "pytorch_model_fsdp_0/__0_0.distcp": "x"},
        "accelerate merge-weights",
    ),
    (
        {"latest_checkpointed_iteration.txt": "9", "iter_0000009/mp_rank_00/model_optim_rng.pt": {}},
        "Megatron",
    ),
    ({"mp_rank_00/model_optim_rng.pt": {}}, "Megatron"),
    ({"common.pt": {"args": 1}, ".metadata": "", "__0_0.distcp": "x"}, "Megatron"),
    (
        {"consolidated.00.pth": ONE, "consolidated.01.pth": ONE, "params.json": "{}"},
        r"convert_llama_weights_to_hf\.py",
    ),
    (
        {"model.fp16.safetensors": STATE, "model.non_ema.safetensors": STATE},
        "2 safetensors files and no index.*: model.fp16",
    ),
    (
        {"a.pt": STATE, "b.pt": STATE},
        "2 files of torch.save and no index, expected one; name the file: a.pt, b.pt",
    ),
    ({"flax_model.msgpack": "x", "config.json": "{}"}, "a Flax checkpoint"),
    ({"model.onnx": "x", "config.json": "{}"}, "an ONNX graph"),
    ({"saved_model.pb": "x", "variables/variables.index": "x"}, "a TensorFlow checkpoint"),
    ({"model.safetensors.incomplete": "x", "config.json": "{}"}, "a download that is not finished"),
    (
        {"a-Q4.gguf": "GGUF", "a-Q8.gguf": "GGUF"},
        "2 GGUF files, expected one; name the file: a-Q4.gguf, a-Q8.gguf",
    ),
    ({"notes.txt": "x", "config.json": "{}"}, "no weights in this folder, expected one of model.safetensors"),
]


@pytest.mark.parametrize(("files", "words"), SAID, ids=["+".join(list(files)[:2]) for files, _ in SAID])
def test_a_folder_of_another_kind_says_what_it_is(
    files: dict[str, Content], words: str, tmp_path: Path
) -> None:
    folder = fill(tmp_path / "folder", files)
    with pytest.raises(InputError, match=words) as caught:
        open_weights(folder)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("gone", "words"),
    [((2,), "00002-of-00003.bin' is missing, "), ((1, 3), "00001-of-00003.bin' is missing \\(1 more\\)")],
)
def test_the_shard_that_is_missing_is_named(gone: tuple[int, ...], words: str, tmp_path: Path) -> None:
    fill(tmp_path, shards("pytorch_model-{}.bin", ONE, OTHER, EMA))
    for number in gone:
        (tmp_path / f"pytorch_model-{number:05d}-of-00003.bin").unlink()
    with pytest.raises(CorruptFile, match=words):
        open_weights(tmp_path)


def test_a_shard_of_a_million_costs_nothing_to_refuse(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "model-999999-of-999999.safetensors")
    with pytest.raises(CorruptFile, match=r"'model-000001-of-999999\.safetensors' is missing"):
        open_weights(tmp_path)


@pytest.mark.parametrize("listed", [True, False])
def test_shards_may_be_links_to_the_same_shards_elsewhere(listed: bool, tmp_path: Path) -> None:
    store, blobs = fill(tmp_path / "store", SPLIT), tmp_path / "cache" / "blobs"
    (tmp_path / "cache" / "snapshots").mkdir(parents=True)
    fill(blobs, {"a.safetensors": ONE, "b.safetensors": OTHER})
    for name, targets in (("hand", list(store.iterdir())), ("cached", list(blobs.iterdir()))):
        folder = tmp_path / name
        folder.mkdir()
        for shard, target in zip(sorted(SPLIT), sorted(targets), strict=True):
            (folder / shard).symlink_to(target)
        if listed:
            (folder / "model.safetensors.index.json").write_text(LISTED)
        assert_holds(folder)


def test_a_shard_that_leads_to_another_file_is_refused(tmp_path: Path) -> None:
    fill(tmp_path / "private", {"diary.safetensors": OTHER})
    folder = fill(tmp_path / "model", {**SPLIT, "model.safetensors.index.json": LISTED})
    shard = folder / sorted(SPLIT)[1]
    shard.unlink()
    shard.symlink_to(tmp_path / "private" / "diary.safetensors")
    with pytest.raises(InputError, match="is a link that leads out of its folder"):
        open_weights(folder)
    (folder / "model.safetensors.index.json").unlink()
    with pytest.raises(InputError, match="is a link that leads out of its folder"):
        open_weights(folder)
