"""References to models, good and bad."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from taskvec.errors import InputError, UnknownName
from taskvec.models.known import LOADERS, MODELS, known_model
from taskvec.models.loading import load_backbone


def test_a_folder_is_loaded_in_float32_and_eval_mode(bert_folder: Path) -> None:
    backbone = load_backbone(str(bert_folder))
    assert backbone.ref == str(bert_folder)
    assert not backbone.training
    assert {p.dtype for p in backbone.parameters()} == {torch.float32}


def test_a_pickled_checkpoint_loads_as_the_safetensors_one(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path / "model")
    plain = load_backbone(bert_folder)
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(plain.network.state_dict(), tmp_path / "model" / "pytorch_model.bin")
    pickled = load_backbone(tmp_path / "model")
    batch = plain.collate(["good film"])
    assert_close(pickled(**batch), plain(**batch), rtol=0, atol=0)
    assert set(pickled.encoder_parameters()) == set(plain.encoder_parameters())


def test_a_word_that_is_nothing_names_the_nearest_model() -> None:
    with pytest.raises(InputError, match="did you mean 'minilm'"):
        load_backbone("minlm")
    with pytest.raises(UnknownName, match="did you mean 'clip-vit-b-32'"):
        known_model("clip-vit-b32")


def test_a_folder_without_a_configuration_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no config\.json"):
        load_backbone(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("{", "not valid JSON"),
        ("{}", "model_type"),
        ("[]", "holds a list"),
        ('{"model_type": ["bert"]}', "model_type"),
    ],
)
def test_a_broken_configuration_is_named(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(InputError, match=rf"config\.json: .*{words}"):
        load_backbone(tmp_path)


def test_a_truncated_checkpoint_is_one_line(bert_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(bert_folder, tmp_path / "model")
    weights = tmp_path / "model" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    with pytest.raises(InputError) as caught:
        load_backbone(tmp_path / "model")
    assert "\n" not in str(caught.value) and str(tmp_path) in str(caught.value)


def test_the_hub_out_of_reach_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**where: object) -> str:
        raise OSError("offline\nmore")

    monkeypatch.setattr("transformers.utils.hub.cached_file", refuse)
    with pytest.raises(InputError, match=r"^no-such/model@v1: .*\(offline\)$"):
        load_backbone("no-such/model@v1")


def test_every_loader_of_the_registry_is_there() -> None:
    assert all(callable(LOADERS[kind]) for kind in LOADERS)


def test_known_models_state_what_a_listing_shows() -> None:
    for name, model in MODELS.items():
        assert model.name == name and model.about and model.parameters > 0


def test_listing_models_does_not_import_torch() -> None:
    code = (
        "import sys, taskvec.models.known; sys.exit('torch' in sys.modules or 'transformers' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
