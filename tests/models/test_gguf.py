"""GGUF files, and quantized checkpoints, as models that are trained and evaluated."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch.testing import assert_close
from transformers import AutoModel

import taskvec as tv
from taskvec.errors import InputError
from taskvec.models.backbone import Backbone
from taskvec.models.known import MODELS, KnownModel
from taskvec.models.loading import load_backbone
from taskvec.weights import open_weights

pytest.importorskip("gguf")


@pytest.fixture(scope="module", params=["llama", "llama, tied", "gpt2"])
def file(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    import ggufs

    folder = tmp_path_factory.mktemp("gguf")
    return ggufs.write(folder / "m.gguf", request.param, "Q8_0", vocabulary=True)


@pytest.fixture(scope="module")
def backbone(file: Path) -> Backbone:
    return load_backbone(file)


def test_a_file_or_its_folder_is_a_model_with_the_features_that_transformers_reads(
    file: Path, backbone: Backbone
) -> None:
    theirs: Any = AutoModel.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    batch = backbone.collate(["a word", "another"])
    hidden = theirs.eval()(**batch).last_hidden_state
    mask = batch["attention_mask"].unsqueeze(-1)
    expected = (hidden * mask).sum(1) / mask.sum(1)
    assert_close(backbone(**batch), expected)
    assert_close(load_backbone(file.parent)(**batch), expected)


def test_what_is_trained_is_what_is_edited(file: Path, backbone: Backbone, tmp_path: Path) -> None:
    with open_weights(file) as weights:
        moved = backbone.encoder_parameters()
        assert moved.keys() <= weights.keys()
        assert all(torch.equal(value.data, weights[name]) for name, value in moved.items())
        change = tv.TaskVector.from_tensors(
            {name: torch.ones_like(value.data) for name, value in moved.items()}, base=backbone.source
        )
        assert change.base.fingerprint() == weights.fingerprint()
        change.save(tmp_path / "change.safetensors")
        edited = tv.apply(weights, 0.5 * tv.TaskVector.load(tmp_path / "change.safetensors"))
        name = next(iter(moved))
        assert_close(edited[name], weights[name] + 0.5)
        tv.save_weights(edited, tmp_path / "edited")
    written, batch = load_backbone(tmp_path / "edited"), backbone.collate(["a word"])
    assert torch.equal(written.collate(["a word"])["input_ids"], batch["input_ids"])
    assert not torch.equal(written(**batch), backbone(**batch))


def test_a_tokenizer_beside_the_file_wins(file: Path, bert_folder: Path, tmp_path: Path) -> None:
    model = shutil.copy(file, tmp_path / "m.gguf")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(bert_folder / name, tmp_path / name)
    tokenizer: Any = load_backbone(model).tokenizer
    assert tokenizer("good film")["input_ids"][0] == 2


def test_a_file_without_a_vocabulary_says_so(tmp_path: Path) -> None:
    import ggufs

    model = ggufs.write(tmp_path / "m.gguf", "llama")
    with pytest.raises(InputError, match=r"m\.gguf: its vocabulary makes no tokenizer .* tokenizer\.json"):
        load_backbone(model)


def test_a_known_model_may_be_a_file_in_a_package(
    tmp_path: Path, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "packed"
    package.mkdir()
    (package / "__init__.py").touch()
    shutil.copy(file, package / "m.gguf")
    known = KnownModel(
        name="packed", modality="text", about="", parameters=1, package="packed", gguf="m.gguf", install="try"
    )
    monkeypatch.setitem(MODELS, "packed", known)
    with pytest.raises(InputError, match="packed: comes in a package that is not installed; try"):
        load_backbone("packed")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_backbone("packed").ref == str(package / "m.gguf")


SETTINGS: dict[str, tuple[dict[str, Any], str]] = {
    "bitsandbytes": ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "dequantize"),
    "gptq": ({"quant_method": "gptq", "bits": 4}, "start from the checkpoint"),
    "awq": ({"quant_method": "awq"}, "start from the checkpoint"),
    "fp8": ({"quant_method": "fp8"}, "FineGrainedFP8Config"),
    "new": ({"bits": 3}, "start from the checkpoint"),
}


@pytest.mark.parametrize("method", SETTINGS)
def test_the_configuration_of_a_quantized_model_is_refused(
    method: str, bert_folder: Path, tmp_path: Path
) -> None:
    settings, remedy = SETTINGS[method]
    shutil.copytree(bert_folder, tmp_path / "model")
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "quantization_config": settings}))
    with pytest.raises(InputError, match=rf"config\.json: quantized weights.*{remedy}"):
        load_backbone(tmp_path / "model")


def test_matrices_with_scales_are_refused_though_the_configuration_says_nothing(
    bert_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(bert_folder, tmp_path / "model"))
    with open_weights(bert_folder) as weights:
        state = {name: weights[name] for name in weights}
    name = "encoder.layer.0.output.dense.weight"
    codes, scale = state[name].to(torch.float8_e4m3fn), torch.ones(())
    save_file({**state, name: codes, f"{name}_scale": scale}, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match="quantized in 8 bits, expected plain"):
        load_backbone(folder)


def test_a_file_is_a_language_model_whose_parameters_are_those_that_are_edited(file: Path) -> None:
    backbone = load_backbone(file, outputs="tokens")
    with open_weights(file) as weights:
        moved = backbone.encoder_parameters()
        assert moved.keys() == weights.keys()
        assert all(torch.equal(value.data, weights[name]) for name, value in moved.items())
