"""Files that lie, and names in them that lead elsewhere: one sentence; nothing allocated, opened, lost."""

import io
import json
import os
import pickle
import struct
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from hostile import little_memory, mutations, refused, texts
from taskvec.errors import CorruptFile, InputError
from taskvec.weights import Weights, open_weights, save_weights

STATE = {"a.weight": torch.ones(2, 3), "b": torch.arange(4.0)}


def read_all(path: Path) -> None:
    with open_weights(path) as weights:
        weights.fingerprint()


def with_header(path: Path, header: bytes, data: bytes) -> Path:
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    return path


def test_every_header_is_refused_in_words_or_right(tmp_path: Path) -> None:
    save_file(STATE, tmp_path / "whole.safetensors", metadata={"format": "pt"})
    content = (tmp_path / "whole.safetensors").read_bytes()
    size = struct.unpack("<Q", content[:8])[0]
    header, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    for text in texts(header):
        path = with_header(tmp_path / "m.safetensors", text.encode(), data)
        if not refused(lambda path=path: read_all(path)):  # type: ignore[misc]
            assert sum(w.nbytes for w in open_weights(path).values()) == len(data)


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [([0, 2**63], "F32"), ([0, 2**62, 4], "F32"), ([0, 2**61], "F64"), ([True], "F32"), ([-1, -1], "F32")],
)
def test_sizes_that_no_tensor_has_are_refused(shape: list[int], dtype: str, tmp_path: Path) -> None:
    held = 4 if shape[0] is True else 0
    header = {"x": {"dtype": dtype, "shape": shape, "data_offsets": [0, held]}}
    path = with_header(tmp_path / "x.safetensors", json.dumps(header).encode(), b"\0" * held)
    with pytest.raises(CorruptFile, match=r"'x' has shape .*, expected a list of sizes"):
        open_weights(path)


def test_a_header_larger_than_any_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    path.write_bytes(struct.pack("<Q", 200_000_000))
    os.truncate(path, 300_000_000)
    with little_memory(64 << 20), pytest.raises(InputError, match="a header of 200 MB, expected 100 MB"):
        open_weights(path)


def test_bytes_that_are_half_a_character_are_refused(tmp_path: Path) -> None:
    header = b'{"a\xed\xa0\x80":{"dtype":"F32","shape":[0],"data_offsets":[0,0]}}'
    with pytest.raises(CorruptFile, match="not valid JSON"):
        open_weights(with_header(tmp_path / "x.safetensors", header, b""))


def test_every_index_is_refused_in_words_or_right(tmp_path: Path) -> None:
    folder = save_weights(STATE, tmp_path / "model", max_shard_size=20)
    index = folder / "model.safetensors.index.json"
    for text in texts(json.loads(index.read_text())):
        index.write_text(text)
        if not refused(lambda: read_all(folder)):
            assert all(torch.equal(tensor, STATE[name]) for name, tensor in open_weights(folder).items())


def test_an_index_leads_to_no_other_folder(tmp_path: Path) -> None:
    folder = save_weights(STATE, tmp_path / "model", max_shard_size=20)
    shard = next(folder.glob("*.safetensors"))
    shard.rename(tmp_path / "elsewhere.safetensors")
    shard.symlink_to(tmp_path / "elsewhere.safetensors")
    with pytest.raises(InputError, match="leads out of its folder"):
        open_weights(folder)
    shard.unlink()
    os.mkfifo(shard)
    with pytest.raises(InputError, match="is a pipe, expected a file"):
        open_weights(folder)


@pytest.mark.parametrize("name", ["x.safetensors", "x.bin", "x.safetensors.index.json"])
def test_pipes_are_not_opened(name: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / name)
    with pytest.raises(InputError, match="is a pipe, expected a file"):
        open_weights(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("", "an empty name"),
        ("~nosuchuser/x", "no such user"),
        ("x" * 300, "too long"),
        ("a/" * 3000, "long"),
    ],
)
def test_names_that_no_file_has_are_refused_in_words(name: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        open_weights(name)
    with pytest.raises(InputError, match=words):
        save_weights(STATE, name)


# Pickles


class Stored:
    """A storage, said to have ``numel`` entries."""

    def __init__(self, numel: int) -> None:
        self.numel = numel


class Viewed:
    """A tensor of a storage, as torch writes one."""

    def __init__(self, numel: int, offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> None:
        self._said: tuple[Any, ...] = (Stored(numel), offset, size, stride, False, OrderedDict())

    def __reduce__(self) -> tuple[Any, ...]:
        return torch._utils._rebuild_tensor_v2, self._said


def as_zip(path: Path, content: object, *, compressed: bool = False, twice: bool = False) -> Path:
    method = zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED
    with zipfile.ZipFile(path, "w", compression=method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        archive.writestr("x/data.pkl", pickled(content, zipped=True))
        archive.writestr("x/byteorder", "little")
        for value in (1.0, 2.0)[: 1 + twice]:
            archive.writestr("x/data/0", struct.pack("<4f", *[value] * 4))
        archive.writestr("x/version", "3\n")
    return path


def the_old_way(path: Path, content: object) -> Path:
    head = (torch.serialization.MAGIC_NUMBER, 1001, {"protocol_version": 1001, "little_endian": True})
    parts = [pickle.dumps(one, 2) for one in head]
    data = struct.pack("<q4f", 4, 1.0, 1.0, 1.0, 1.0)
    path.write_bytes(b"".join([*parts, pickled(content, zipped=False), pickle.dumps(["0"], 2), data]))
    return path


def pickled(content: object, *, zipped: bool) -> bytes:
    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> object:
            if not isinstance(value, Stored):
                return None
            said = ("storage", torch.FloatStorage, "0", "cpu", value.numel)
            return said if zipped else (*said, None)

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump(content)
    return buffer.getvalue()


def test_what_the_crafted_files_would_hold_is_read(tmp_path: Path) -> None:
    honest = {"w": Viewed(4, 0, (2, 2), (2, 1))}
    for path in (as_zip(tmp_path / "zip.bin", honest), the_old_way(tmp_path / "old.bin", honest)):
        assert torch.equal(open_weights(path)["w"], torch.ones(2, 2))


@pytest.mark.parametrize("write", [as_zip, the_old_way])
@pytest.mark.parametrize(
    "view",
    [
        Viewed(4, 0, (10**12,), (0,)),
        Viewed(4, 0, (10**6, 10**6), (0, 1)),
        Viewed(4, 0, (10**9,), (1,)),
        Viewed(10**9, 0, (10**9,), (1,)),
        Viewed(4, 10**9, (4,), (1,)),
        Viewed(4, 0, (-1,), (1,)),
        Viewed(4, 3, (4,), (-1,)),
    ],
    ids=lambda view: str(view._said[1:4]),
)
def test_a_pickle_has_what_it_holds_and_no_more(
    write: Callable[[Path, object], Path], view: Viewed, tmp_path: Path
) -> None:
    path = write(tmp_path / "x.bin", {"w": view})
    with little_memory(), pytest.raises(CorruptFile, match=r"x\.bin: "):
        read_all(path)


def test_many_views_of_one_memory_are_bounded_together(tmp_path: Path) -> None:
    shared = torch.zeros(1 << 18)
    torch.save({f"{n}": shared.reshape(1 << n, -1) for n in range(12)}, tmp_path / "x.bin")
    with pytest.raises(CorruptFile, match=r"tensors of 12\.6 MB .* in a file of 1\.\d MB, expected 4 times"):
        open_weights(tmp_path / "x.bin")
    fused = torch.arange(30.0)
    torch.save({"q": fused[:10], "k": fused[10:20], "qkv": fused}, tmp_path / "y.bin")
    assert torch.equal(open_weights(tmp_path / "y.bin")["k"], fused[10:20])


def test_archives_that_torch_did_not_write_are_refused(tmp_path: Path) -> None:
    content = {"w": Viewed(4, 0, (4,), (1,))}
    with pytest.raises(CorruptFile, match=r"is compressed; save it again"):
        open_weights(as_zip(tmp_path / "compressed.bin", content, compressed=True))
    with pytest.raises(CorruptFile, match=r"two parts have the same name"):
        open_weights(as_zip(tmp_path / "twice.bin", content, twice=True))


def test_views_that_are_conjugate_or_negated_are_read_as_they_count(tmp_path: Path) -> None:
    held = torch.tensor([1 + 2j, 3 - 1j])
    state = {"c": held.conj(), "n": held.clone().conj().imag, "one": held[:1].clone().conj().imag}
    torch.save(state, tmp_path / "x.bin")
    for weights in (open_weights(tmp_path / "x.bin"), open_weights({"c": held.conj(), "h": held})):
        copy = open_weights(save_weights(weights, tmp_path / "copy.safetensors", force=True))
        assert torch.equal(copy["c"], torch.tensor([1 - 2j, 3 + 1j]))
    assert torch.equal(open_weights(tmp_path / "x.bin")["n"], torch.tensor([-2.0, 1.0]))
    assert torch.equal(copy["h"], held)  # not tied to what is its conjugate


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]),
        lambda: torch.eye(3).to_sparse(),
        lambda: torch.eye(3).to_sparse_csr(),
        lambda: torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
        lambda: torch.ones(3, device="meta"),
        lambda: torch.ones(3, dtype=torch.complex32),
    ],
    ids=["nested", "sparse", "csr", "quantized", "meta", "half complex"],
)
@pytest.mark.filterwarnings("ignore")
def test_tensors_that_are_not_dense_are_refused(make: Callable[[], torch.Tensor], tmp_path: Path) -> None:
    torch.save({"w": make()}, tmp_path / "x.bin")
    with pytest.raises(InputError, match=r"'w' is .*, expected a dense tensor"):
        open_weights(tmp_path / "x.bin")


def test_names_of_tensors_are_text(tmp_path: Path) -> None:
    torch.save({"a\ud800": torch.ones(1)}, tmp_path / "x.bin")
    with pytest.raises(InputError, match="holds half a character"):
        open_weights(tmp_path / "x.bin")


def test_every_cut_and_flipped_pickle_is_refused_in_words_or_read(tmp_path: Path) -> None:
    for whole in (
        as_zip(tmp_path / "zip.bin", {"w": Viewed(4, 0, (4,), (1,))}),
        the_old_way(tmp_path / "old.bin", {"w": Viewed(4, 0, (4,), (1,))}),
    ):
        content = whole.read_bytes()
        for place in range(0, len(content), 40):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            for data in (bytes(changed), content[:place]):
                (tmp_path / "x.bin").write_bytes(data)
                refused(lambda: read_all(tmp_path / "x.bin"))


# Files beside the weights


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    (folder / "1_Pooling").mkdir(parents=True)
    save_file(STATE, folder / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "bert"}')
    (folder / "1_Pooling" / "config.json").write_text("{}")
    (folder / "modules.json").write_text(
        '[{"idx": 0, "path": ""}, {"path": "1_Pooling", "type": "x.Pooling"}]'
    )
    (tmp_path / "secret.txt").write_text("secret")
    return folder


def everything(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in folder.rglob("*") if f.is_file()}


def test_every_list_of_modules_is_refused_in_words_or_copies_from_its_folder(model: Path) -> None:
    modules, mine = model / "modules.json", {*everything(model), "taskvec.json"}
    around = everything(model.parent)
    for text in texts(json.loads(modules.read_text()), most=30):
        modules.write_text(text)
        refused(lambda: save_weights(open_weights(model), model.parent / "out", force=True))
        if (model.parent / "out").exists():
            assert set(everything(model.parent / "out")) <= mine
    assert everything(model.parent / "model").keys() <= mine
    assert around["secret.txt"] == (model.parent / "secret.txt").read_bytes()


@pytest.mark.parametrize("path", ["..", "../other", "/etc", ".", "./", "1_Pooling/../..", "out", "a\0b"])
def test_no_module_brings_files_from_elsewhere(path: str, model: Path) -> None:
    other = save_weights({"a.weight": torch.zeros(2, 3), "b": torch.zeros(4)}, model.parent / "other")
    (model.parent / "out").mkdir()
    (model / "modules.json").write_text(json.dumps([{"path": path}]))
    out = model.parent / "result" / "out"
    if not refused(lambda: save_weights(open_weights(model), out, force=True)):
        assert set(everything(out)) == {"model.safetensors", "config.json", "modules.json", "taskvec.json"}
        assert torch.equal(open_weights(out)["b"], STATE["b"])
    assert float(open_weights(other)["b"].sum()) == 0


@pytest.mark.parametrize("place", ["notes.txt", "1_Pooling/notes.txt", "1_Pooling/data"])
def test_a_link_that_leads_out_of_a_model_is_not_followed(place: str, model: Path) -> None:
    (model / place).symlink_to(model.parent / "secret.txt")
    with pytest.raises(InputError, match="is a link that leads out of its folder"):
        save_weights(open_weights(model), model.parent / "out")
    assert not (model.parent / "out").exists()
    (model / place).unlink()
    (model / place).symlink_to(model / "config.json")
    out = save_weights(open_weights(model), model.parent / "out")
    assert (out / place).read_text() == (model / "config.json").read_text()
    assert not (out / place).is_symlink()


def test_a_module_that_is_a_link_to_another_folder_is_refused(model: Path) -> None:
    (model.parent / "private").mkdir()
    (model.parent / "private" / "key.txt").write_text("secret")
    (model / "2_Dense").symlink_to(model.parent / "private")
    (model / "modules.json").write_text('[{"path": "2_Dense"}]')
    with pytest.raises(InputError, match="leads out of its folder"):
        save_weights(open_weights(model), model.parent / "out")


@pytest.mark.parametrize("name", ["model.safetensors", "Model.Safetensors", "taskvec.json", "TASKVEC.JSON"])
def test_no_module_takes_the_place_of_what_is_written(name: str, model: Path) -> None:
    (model / "model.safetensors").rename(model / "weights.safetensors")
    (model / name).mkdir()
    (model / name / "x").write_text("x")
    (model / "modules.json").write_text(json.dumps([{"path": name}]))
    weights = open_weights(model / "weights.safetensors")
    with pytest.raises(InputError, match=r"would lie where .* is written; rename it"):
        save_weights(weights, model.parent / "out")


@pytest.mark.parametrize("name", ["a.txt", "1_Pooling/b"])
def test_files_that_are_no_plain_ones_are_refused(name: str, model: Path) -> None:
    os.mkfifo(model / name)
    with pytest.raises(InputError, match=f"{name}: is a pipe, expected a file"):
        save_weights(open_weights(model), model.parent / "out")
    assert not (model.parent / "out").exists()


class Vanishing(Weights):
    """Weights whose file is gone, or unreadable, by the time that they are read."""

    def __init__(self, held: Weights, lose: Callable[[], object]) -> None:
        specs = {name: held.spec(name) for name in held}
        super().__init__(held.ref, specs, held.identity, folder=held.folder, files=held.files)
        self._held, self._lose = held, lose

    def _read(self, name: str, rows: slice | None) -> torch.Tensor:
        self._lose()
        return self._held.read(name, rows)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_an_input_that_vanishes_is_named_and_the_output_is_not(name: str, model: Path) -> None:
    gone = model / name
    weights = Vanishing(open_weights(model), lambda: gone.unlink(missing_ok=True))
    with pytest.raises(InputError, match=rf"^{gone}: ") as caught:
        save_weights(weights, model.parent / "out")
    assert "could not be written" not in str(caught.value)
    assert not (model.parent / "out").exists()


def test_a_disk_that_fails_to_give_an_input_is_not_taken_for_that_of_the_output(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = open_weights(model)

    def fails(*_: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", fails)
    with pytest.raises(Exception, match=rf"^{model}: could not be read \(input/output error\) inside 'a"):
        save_weights(weights, model.parent / "out")


def test_every_record_of_an_interrupted_run_is_used_rightly_or_not_at_all(tmp_path: Path) -> None:
    expected = everything(save_weights(STATE, tmp_path / "expected", max_shard_size=20))
    del expected["taskvec.json"]
    partial = tmp_path / ".out.partial"
    record = {"key": "0" * 32, "shards": {"model-00001-of-00002.safetensors": {"b": "00"}}}
    for content in mutations(record, most=15):
        partial.mkdir()
        (partial / "journal.json").write_text(json.dumps(content))
        out = save_weights(STATE, tmp_path / "out", max_shard_size=20, resume=True, force=True)
        found = everything(out)
        assert {name: found[name] for name in expected} == expected


def test_a_revision_is_no_path_upward() -> None:
    with pytest.raises(InputError, match=r"a revision of steps upward"):
        open_weights("org/name@refs/../../../x")


def test_no_header_is_written_that_would_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("taskvec.weights.plan.HEADER_LIMIT", 100)
    with pytest.raises(InputError, match=r"2 tensors need a header of .* expected .* at most"):
        save_weights(STATE, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == []
