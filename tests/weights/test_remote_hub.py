"""Models of the hub, read in place."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hub import Hub, lead_here, serving
from taskvec.errors import InputError
from taskvec.weights import open_weights, save_weights
from taskvec.weights.remote import connections, file

huggingface_hub = pytest.importorskip("huggingface_hub")

MODEL = {f"layers.{number}.weight": torch.randn(64, 100) for number in range(6)}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    monkeypatch.setattr(file, "PAUSE", 0.01)
    with serving() as served:
        lead_here(served, monkeypatch)
        yield served
    connections.close_connections()
    huggingface_hub.close_session()


@pytest.fixture
def model(tmp_path: Path) -> Path:
    save_weights(MODEL, tmp_path / "model", max_shard_size=6e4)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "none such"}')
    (tmp_path / "model" / "tokenizer.json").write_text('{"padding": "' + "x" * 9000 + '"}')
    return tmp_path / "model"


def same(weights: Any) -> bool:
    return open_weights(weights).fingerprint() == open_weights(MODEL).fingerprint()


@pytest.mark.parametrize("private", [False, True])
def test_a_model_is_read_in_place_and_the_token_goes_to_the_hub_alone(
    hub: Hub, model: Path, tmp_path: Path, *, private: bool
) -> None:
    commit = hub.put("me/model", model, private=private)
    weights = open_weights("hf://me/model")
    assert hub.sent < 6000
    assert weights.ref == f"hf://me/model@{commit}"
    assert same(weights)
    save_weights(weights, tmp_path / "copy")
    assert (tmp_path / "copy" / "tokenizer.json").read_bytes() == (model / "tokenizer.json").read_bytes()
    assert not hub.leaks


def test_the_revision_is_a_commit_from_the_start(hub: Hub, model: Path) -> None:
    commit = hub.put("me/model", model)
    weights = open_weights("hf://me/model@main")
    weights["layers.0.weight"]
    (model / "model-00002-of-00003.safetensors").write_bytes(b"another")
    assert hub.put("me/model", model) != commit
    assert same(weights)
    assert same(f"hf://me/model@{commit}")
    with pytest.raises(InputError, match="hf://me/model@"):
        open_weights("hf://me/model")


def test_a_folder_or_a_file_of_a_model_is_meant_by_its_path(hub: Hub, model: Path, tmp_path: Path) -> None:
    (tmp_path / "both" / "inner").mkdir(parents=True)
    model.rename(tmp_path / "both" / "inner" / "model")
    hub.put("me/both", tmp_path / "both")
    assert same("hf://me/both@main/inner/model")
    names = [*open_weights("hf://me/both/inner/model/model-00001-of-00003.safetensors")]
    assert names == ["layers.0.weight", "layers.1.weight"]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("hf://me/none", "no such model, or a private one"),
        ("hf://me/model@nope", "no such revision"),
        ("hf://me/model/folder", "no such file or folder in the model"),
        ("hf://me/model/config.json", "unknown kind of file, expected .safetensors"),
    ],
)
def test_what_the_hub_has_not_is_refused_in_a_sentence(hub: Hub, model: Path, url: str, said: str) -> None:
    hub.put("me/model", model)
    with pytest.raises(InputError, match=said) as error:
        open_weights(url)
    assert "\n" not in str(error.value) and str(error.value).startswith("hf://me/")


def test_without_a_token_private_models_are_none(
    hub: Hub, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.put("me/model", model, private=True)
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    with pytest.raises(InputError, match="no such model, or a private one") as error:
        open_weights("hf://me/model")
    assert "hf_wrong" not in str(error.value)


def test_a_busy_hub_is_asked_again(hub: Hub, model: Path) -> None:
    hub.put("me/model", model)
    busy = iter(range(2))

    def spoil(handler: Any, path: str) -> bool:
        if not path.startswith("api") or next(busy, None) is None:
            return False
        handler._send(503, {"error": "busy"})
        return True

    hub.spoil = spoil
    assert same("hf://me/model")


def test_a_hub_that_breaks_off_is_survived(hub: Hub, model: Path) -> None:
    hub.put("me/model", model)
    cuts = iter(range(3))

    def spoil(handler: Any, path: str) -> bool:
        if not path.startswith("large") or next(cuts, None) is None:
            return False
        handler.connection.close()
        handler.close_connection = True
        return True

    hub.spoil = spoil
    assert same("hf://me/model")
