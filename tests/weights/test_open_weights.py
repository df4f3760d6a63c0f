"""Every kind of checkpoint opens as the same mapping, lazily; files that lie are refused by name."""

import json
import os
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from taskvec.errors import CorruptFile, InputError, TaskvecError, UnsafeFile
from taskvec.weights import TensorSpec, Weights, hub, open_weights, save_weights
from taskvec.weights.formats import PICKLES

STATE = {
    "layer.weight": torch.arange(12.0).reshape(4, 3),
    "layer.bias": torch.tensor([0.5, -1.0]),
    "scalar": torch.tensor(2.0, dtype=torch.bfloat16),
    "empty": torch.empty(0, 3),
    "ids": torch.arange(5),
    "flags": torch.tensor([True, False, True]),
    "bytes": torch.arange(7, dtype=torch.uint8),
    "wide": torch.tensor([2**40], dtype=torch.uint64),
    "small": torch.ones(2, 3).to(torch.float8_e4m3fn),
    "phase": torch.tensor([1 + 2j]),
}
OLD = set(STATE) - {"wide", "small"}


def raw_file(path: Path, header: bytes, data: bytes = b"") -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def assert_holds(weights: Weights, state: dict[str, Tensor]) -> None:
    assert set(weights) == set(state)
    for name, tensor in state.items():
        assert weights.spec(name) == TensorSpec(tuple(tensor.shape), tensor.dtype)
        assert weights[name].dtype == tensor.dtype
        assert torch.equal(weights[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def stored(folder: Path) -> Path:
    save_file(STATE, folder / "one.safetensors")
    return folder / "one.safetensors"


def folder_of_one(folder: Path) -> Path:
    return stored(folder).parent


def sharded(folder: Path) -> Path:
    return save_weights(STATE, folder / "shards", max_shard_size=20)


def index(folder: Path) -> Path:
    return sharded(folder) / "model.safetensors.index.json"


def pickled(folder: Path) -> Path:
    torch.save(STATE, folder / "state.pt")
    return folder / "state.pt"


def pickled_the_old_way(folder: Path) -> Path:
    # The old format has no words for the newer element types; and nor does its reader.
    torch.save(
        {n: t for n, t in STATE.items() if n in OLD}, folder / "old.pth", _use_new_zipfile_serialization=False
    )
    return folder / "old.pth"


def pickled_shards(folder: Path) -> Path:
    names = list(STATE)
    files = {"pytorch_model-1.bin": names[:4], "pytorch_model-2.bin": names[4:]}
    for file, held in files.items():
        torch.save({name: STATE[name] for name in held}, folder / file)
    where = {name: file for file, held in files.items() for name in held}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": where}))
    return folder


@pytest.mark.parametrize(
    "make", [stored, folder_of_one, sharded, index, pickled, pickled_the_old_way, pickled_shards]
)
def test_every_kind_of_file_holds_the_same(make: Callable[[Path], Path], tmp_path: Path) -> None:
    with open_weights(make(tmp_path)) as weights:
        state = {name: STATE[name] for name in STATE if name in OLD or make is not pickled_the_old_way}
        assert_holds(weights, state)
        assert weights.fingerprint() == open_weights(state).fingerprint()
        assert torch.equal(weights.read("layer.weight", slice(1, 3)), STATE["layer.weight"][1:3])


def test_two_openings_of_a_file_are_the_same_weights_until_it_changes(tmp_path: Path) -> None:
    path = pickled(tmp_path)
    first = open_weights(path).identity
    assert open_weights(str(path)).identity == first
    torch.save({"a": torch.ones(1)}, path)
    assert open_weights(path).identity != first


def test_a_module_is_read_as_it_is_now(tmp_path: Path) -> None:
    module = nn.Linear(3, 2)
    weights = open_weights(module)
    before = weights.fingerprint()
    with torch.no_grad():
        module.weight.add_(1)
    assert torch.equal(weights["weight"], module.weight)
    assert weights.fingerprint() != before
    assert not weights["weight"].requires_grad


def test_opening_reads_the_header_only(tmp_path: Path) -> None:
    size = 2**37  # 128 GiB of nothing: a sparse file
    header = {"huge": {"dtype": "F32", "shape": [2**20, 2**15], "data_offsets": [0, size]}}
    path = raw_file(tmp_path / "huge.safetensors", json.dumps(header).encode())
    os.truncate(path, path.stat().st_size + size)
    weights = open_weights(path)
    assert weights.spec("huge").nbytes == size
    assert torch.equal(weights.read("huge", slice(2**19, 2**19 + 2)), torch.zeros(2, 2**15))


def test_tied_tensors_are_listed_once_and_read_by_either_name(tmp_path: Path) -> None:
    shared = torch.randn(4, 2)
    state = {"wte": shared, "other": shared[:2], "head": shared}
    torch.save(state, tmp_path / "tied.bin")
    from_pickle = open_weights(tmp_path / "tied.bin")
    from_stored = open_weights(save_weights(from_pickle, tmp_path / "tied.safetensors"))
    for weights in (open_weights(state), from_pickle, from_stored):
        assert list(weights) == ["wte", "other"]
        assert weights.tied == {"head": "wte"}
        assert "head" in weights and torch.equal(weights["head"], shared)
        assert weights.spec("head").shape == (4, 2)


def test_a_name_that_is_not_there_says_which_is_near() -> None:
    with pytest.raises(KeyError, match=r"layer\.weigth.*did you mean 'layer\.weight'"):
        open_weights(STATE)["layer.weigth"]
    assert open_weights(STATE).get("nothing") is None


def test_fingerprints_tell_name_shape_dtype_and_content_apart() -> None:
    states = [
        {"a": torch.zeros(4)},
        {"b": torch.zeros(4)},
        {"a": torch.zeros(2, 2)},
        {"a": torch.zeros(4, dtype=torch.int32)},
        {"a": torch.tensor([0.0, 0.0, 0.0, -0.0])},
        {"a": torch.zeros(2), "b": torch.zeros(2)},
    ]
    assert len({open_weights(state).fingerprint() for state in states}) == len(states)


def entry(shape: list[int], start: int, end: int, dtype: str = "F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


ZERO = b"\0" * 4
ONCE = b'"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}'
TWICE = b"{" + ONCE + b"," + ONCE + b"}"
LIARS: list[tuple[str, Callable[[Path], Path], type[TaskvecError], str]] = [
    ("empty", lambda p: raw_bytes(p, b""), CorruptFile, "cut off"),
    ("text", lambda p: raw_bytes(p, b"not found: 404"), CorruptFile, "cut off"),
    ("no JSON", lambda p: raw_file(p, b"{]"), CorruptFile, "not valid JSON"),
    ("a list", lambda p: raw_file(p, b"[]"), CorruptFile, "no mapping of tensors"),
    (
        "short data",
        lambda p: header_file(p, {"a": entry([2], 0, 8)}, ZERO),
        CorruptFile,
        "holds 4 bytes of data, expected 8",
    ),
    (
        "long data",
        lambda p: header_file(p, {"a": entry([1], 0, 4)}, ZERO * 2),
        CorruptFile,
        "holds 8 bytes of data, expected 4",
    ),
    ("no offsets", lambda p: header_file(p, {"a": {"dtype": "F32", "shape": [1]}}, ZERO), CorruptFile, "'a'"),
    ("a gap", lambda p: header_file(p, {"a": entry([1], 4, 8)}, ZERO * 2), CorruptFile, "does not fit"),
    ("wrong size", lambda p: header_file(p, {"a": entry([3], 0, 4)}, ZERO), CorruptFile, "does not fit"),
    ("a name twice", lambda p: raw_file(p, TWICE, ZERO), CorruptFile, "'a' is given twice"),
    ("odd dtype", lambda p: header_file(p, {"a": entry([4], 0, 4, "F7")}, ZERO), InputError, "dtype F7"),
]


def raw_bytes(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def header_file(path: Path, header: dict[str, object], data: bytes) -> Path:
    return raw_file(path, json.dumps(header).encode(), data)


@pytest.mark.parametrize(("make", "kind", "words"), [case[1:] for case in LIARS], ids=[c[0] for c in LIARS])
def test_a_damaged_file_is_named(
    make: Callable[[Path], Path], kind: type[TaskvecError], words: str, tmp_path: Path
) -> None:
    path = make(tmp_path / "bad.safetensors")
    with pytest.raises(kind, match=words) as caught:
        open_weights(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("cut", [9, 60, 200, -1])
def test_a_truncated_file_is_named_wherever_it_ends(cut: int, tmp_path: Path) -> None:
    for path in (stored(tmp_path), pickled(tmp_path), pickled_the_old_way(tmp_path)):
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(CorruptFile, match=path.name):
            open_weights(path)


class Trap:
    """What a hostile pickle does when it is loaded."""

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (os.mkdir, (os.environ["TRAP"],))


@pytest.mark.parametrize("save", ["zip", "old", "plain"])
def test_a_pickle_with_code_is_refused_and_not_run(
    save: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sprung, path = tmp_path / "sprung", tmp_path / "evil.bin"
    monkeypatch.setenv("TRAP", str(sprung))
    if save == "plain":
        path.write_bytes(pickle.dumps({"a": Trap()}))
    else:
        torch.save({"a": Trap()}, path, _use_new_zipfile_serialization=save == "zip")
    with pytest.raises(UnsafeFile, match=r"evil\.bin: holds more than tensors"):
        open_weights(path)
    assert not sprung.exists()


def test_a_pickled_module_is_refused_in_words(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(UnsafeFile, match=r"module\.pt.*Linear.*state_dict"):
        open_weights(tmp_path / "module.pt")


@pytest.mark.parametrize("ending", PICKLES)
def test_a_state_dict_inside_a_trainer_s_checkpoint_is_found_whatever_the_file_is_called(
    ending: str, tmp_path: Path
) -> None:
    beside = {"epoch": 3, "hyper_parameters": {"lr": 0.1}, "optimizer_states": [{"state": {}}]}
    torch.save({**beside, "state_dict": {"a": torch.ones(2)}}, tmp_path / f"last{ending}")
    assert list(open_weights(tmp_path / f"last{ending}")) == ["a"]


def test_a_trainer_s_checkpoint_that_would_run_code_is_refused_under_every_ending(tmp_path: Path) -> None:
    for ending in PICKLES:
        torch.save({"state_dict": {"a": torch.ones(2)}, "model": nn.Linear(2, 2)}, tmp_path / f"last{ending}")
        with pytest.raises(UnsafeFile, match=rf"last{ending}: holds more than tensors"):
            open_weights(tmp_path / f"last{ending}")


@pytest.mark.parametrize("content", [{"a": 3}, [torch.ones(1)], {3: torch.ones(1)}])
def test_what_is_no_state_dict_is_refused(content: object, tmp_path: Path) -> None:
    torch.save(content, tmp_path / "odd.pt")
    with pytest.raises(InputError, match=r"odd\.pt"):
        open_weights(tmp_path / "odd.pt")


def change_index(folder: Path, change: Callable[[dict[str, str]], object]) -> Path:
    path = folder / "model.safetensors.index.json"
    content = json.loads(path.read_text())
    change(content["weight_map"])
    path.write_text(json.dumps(content))
    return path


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    second = sorted(sharded(tmp_path).glob("*.safetensors"))[1]
    second.unlink()
    with pytest.raises(CorruptFile, match=f"shard '{second.name}' is missing"):
        open_weights(tmp_path / "shards")


def test_an_index_that_lies_is_refused(tmp_path: Path) -> None:
    first, second, *_ = sorted(path.name for path in sharded(tmp_path).glob("*.safetensors"))
    lies: list[tuple[Callable[[dict[str, str]], object], str]] = [
        (lambda where: where.update(ghost=first), "'ghost' is not in .* no shard holds it"),
        (lambda where: where.update({"layer.bias": first}), f"'layer.bias' .* it lies in '{second}'"),
        (lambda where: where.pop("wide"), "'wide' in .* is not listed"),
        (lambda where: where.update({"ids": "../elsewhere.safetensors"}), "expected a file beside the index"),
        (lambda where: where.clear(), "'weight_map' is missing or empty"),
    ]
    for number, (lie, words) in enumerate(lies):
        folder = save_weights(STATE, tmp_path / str(number), max_shard_size=20)
        path = change_index(folder, lie)
        with pytest.raises(CorruptFile, match=words) as caught:
            open_weights(folder)
        assert str(path) in str(caught.value) or str(folder) in str(caught.value)


def test_a_tensor_in_two_shards_is_refused(tmp_path: Path) -> None:
    for shard in ("one", "two"):
        save_file({"a": torch.ones(1), shard: torch.ones(1)}, tmp_path / f"{shard}.safetensors")
    where = {"a": "one.safetensors", "one": "one.safetensors", "two": "two.safetensors"}
    (tmp_path / "x.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    with pytest.raises(CorruptFile, match="'a' lies in both"):
        open_weights(tmp_path / "x.safetensors.index.json")


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("no/such/place", "no such file"),
        (".", "no weights in this folder"),
        ("notes.txt", "unknown kind of file"),
    ],
)
def test_what_holds_no_weights_is_said(
    ref: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "notes.txt").write_text("weights?")
    with pytest.raises(InputError, match=words):
        open_weights(ref)


def test_two_files_and_no_index_are_ambiguous(tmp_path: Path) -> None:
    for name in ("a", "b"):
        save_file({"x": torch.ones(1)}, tmp_path / f"{name}.safetensors")
    with pytest.raises(InputError, match="2 safetensors files and no index"):
        open_weights(tmp_path)


def test_a_hub_id_becomes_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def snapshot(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.append((name, revision, allow_patterns[0]))
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot)
    torch.save({"a": torch.ones(1)}, tmp_path / "pytorch_model.bin")
    assert list(open_weights("org/model@v1.0")) == ["a"]
    assert asked == [("org/model", "v1.0", "*.safetensors"), ("org/model", "v1.0", "*.bin")]


def test_a_path_that_exists_wins_over_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "resolve", lambda ref: pytest.fail("asked the hub"))
    save_weights(STATE, tmp_path / "org" / "model")
    assert len(open_weights("org/model")) == len(STATE)


def test_a_slip_in_a_local_path_asks_no_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "resolve", lambda ref: pytest.fail("asked the hub"))
    (tmp_path / "models").mkdir()
    with pytest.raises(InputError, match=r"models/brt: no such file or folder$"):
        open_weights("models/brt")


def test_a_hub_that_does_not_answer_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object, **options: object) -> str:
        raise OSError("connection refused\nand a long story")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    with pytest.raises(InputError, match=r"org/model: no such file.*\(connection refused\)$"):
        open_weights("org/model")


def test_without_the_hub_client_the_install_command_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"pip install 'taskvec\[hf\]'"):
        open_weights("org/model")
