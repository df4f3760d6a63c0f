"""Tensors of ``torch.save`` are read from their place in the file, whatever views of it they are."""

import os
import zipfile
from pathlib import Path

import pytest
import torch

from taskvec.errors import CorruptFile
from taskvec.weights import open_weights, save_weights
from taskvec.weights.archived import ArchivedWeights

HELD = torch.arange(60.0)
COMPLEX = torch.complex(HELD[:6], HELD[6:12])
STATE = {
    "whole": HELD.clone().reshape(3, 4, 5),
    "turned": HELD.clone().reshape(12, 5).T,
    "part": HELD[7:27].reshape(4, 5),
    "same part": HELD[7:27].reshape(4, 5),
    "every second": HELD[::2],
    "a column": HELD.reshape(12, 5)[:, 3],
    "repeated": torch.tensor([1.5]).expand(4, 3),
    "conjugate": COMPLEX.conj(),
    "negative": COMPLEX.clone().conj().imag,
    "parameter": torch.nn.Parameter(torch.randn(3, 2)),
    "number": torch.tensor(2.0, dtype=torch.bfloat16),
    "nothing": torch.empty(0, 3),
    "eight bits": torch.ones(2, 3).to(torch.float8_e4m3fn),
    "wide": torch.tensor([2**40, 7], dtype=torch.uint64),
    "flags": torch.tensor([True, False]),
    "ones": torch.ones(1, 4)[:, ::2],
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "x.pt")
    return tmp_path / "x.pt"


@pytest.mark.parametrize("name", STATE)
def test_every_view_is_what_torch_loads(name: str, file: Path) -> None:
    expected = torch.load(file, weights_only=True)[name].detach().resolve_conj().resolve_neg()
    with open_weights(file) as weights:
        assert isinstance(weights, ArchivedWeights)
        assert weights.spec(name).shape == expected.shape and weights.spec(name).dtype == expected.dtype
        assert torch.equal(weights[name], expected)
        if expected.ndim > 1 and expected.numel():
            flat = expected.reshape(-1, expected.shape[-1])
            for rows in (slice(1, 3), slice(0, None, 2), slice(2, 2)):
                assert torch.equal(
                    weights.read(name, rows), flat[rows].reshape(weights.read(name, rows).shape)
                )


def test_the_same_bytes_are_one_tensor(file: Path) -> None:
    weights = open_weights(file)
    assert weights.tied == {"same part": "part"}
    copy = open_weights(save_weights(weights, file.parent / "copy.safetensors"))
    assert weights.fingerprint() == open_weights(STATE).fingerprint() == copy.fingerprint()


@pytest.mark.parametrize("name", ["whole", "turned", "every second"])
def test_a_file_that_is_cut_short_while_it_is_read_is_an_error_not_an_end(name: str, file: Path) -> None:
    weights = open_weights(file)
    os.truncate(file, 200)
    with pytest.raises(CorruptFile, match=rf"x\.pt: ends inside '{name}'; was it written to"):
        weights[name]


def test_parts_of_an_archive_in_another_order_are_found(file: Path) -> None:
    again = file.with_name("again.pt")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(again, "w") as new:
        for member in reversed(old.infolist()):
            new.writestr(member.filename, old.read(member.filename))
    assert open_weights(again).fingerprint() == open_weights(file).fingerprint()
    assert isinstance(open_weights(again), ArchivedWeights)


def test_bytes_of_another_order_are_left_to_torch(file: Path) -> None:
    again = file.with_name("big.pt")
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(again, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"big" if name.endswith("byteorder") else old.read(name))
    expected = torch.load(again, weights_only=True, mmap=True)["whole"]
    assert torch.equal(open_weights(again)["whole"], expected)


def test_nothing_is_read_before_it_is_asked_for(tmp_path: Path) -> None:
    torch.save({"small": torch.ones(2), "large": torch.zeros(1 << 20)}, tmp_path / "x.pt")
    weights = open_weights(tmp_path / "x.pt")
    content = bytearray((tmp_path / "x.pt").read_bytes())
    place = content.index(torch.ones(2).numpy().tobytes())
    content[place : place + 4] = torch.tensor([5.0]).numpy().tobytes()
    with (tmp_path / "x.pt").open("r+b") as written:
        written.write(content)
    assert weights["small"].tolist() == [5.0, 1.0]
