"""The config.json that is written describes the weights beside it: their dtype, and no quantization."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from taskvec.edits.opening import open_recipe, save_merge

RECIPES = {
    "ours": "base: base\nmodels: {other: other}\nexpression: 0.5*other\n",
    "ours in a dtype": "base: base\nmodels: {other: other}\nexpression: 0.5*other\ndtype: float32\n",
    "mergekit": "merge_method: linear\ndtype: float32\nparameters: {weight: 0.5}\n"
    "models: [{model: base}, {model: other}]\n",
}


def write(folder: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))


def merged(path: Path, recipe: str, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(path)
    (path / "recipe.yaml").write_text(RECIPES[recipe])
    return save_merge(open_recipe(path / "recipe.yaml"), path / "out")


def quantized(method: str) -> dict[str, Any]:
    return {"quantization_config": {"quant_method": method, "activation_scheme": "dynamic"}}


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    "config",
    [
        {"torch_dtype": "bfloat16", **quantized("fp8")},
        {"torch_dtype": "bfloat16", **quantized("fbgemm_fp8")},
        {"dtype": "bfloat16", **quantized("quark"), "compression_config": {"format": "float"}},
        {"dtype": "bfloat16", "text_config": {"hidden_size": 4, **quantized("fp8")}, "vision_config": {}},
    ],
)
def test_what_is_written_of_eight_bits_is_called_plain(
    config: dict[str, Any], recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = torch.Generator().manual_seed(0)
    codes = torch.randn(4, 4, generator=draw).to(torch.float8_e4m3fn)
    write(tmp_path / "base", {"q.weight": codes, "q.weight_scale": torch.tensor([2.0])}, config)
    (tmp_path / "base/hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    write(
        tmp_path / "other", {"q.weight": torch.randn(4, 4, generator=draw).bfloat16()}, {"dtype": "bfloat16"}
    )
    out = merged(tmp_path, recipe, monkeypatch)
    assert (
        "quant" not in (out / "config.json").read_text()
        and "compress" not in (out / "config.json").read_text()
    )
    assert not (out / "hf_quant_config.json").exists()
    half = (codes.double() * 2 + load_file(tmp_path / "other/model.safetensors")["q.weight"].double()) / 2
    torch.testing.assert_close(
        load_file(out / "model.safetensors")["q.weight"].double(), half, rtol=0.01, atol=0.01
    )


@pytest.mark.parametrize("recipe", ["ours in a dtype", "mergekit"])
@pytest.mark.parametrize(
    ("place", "config"),
    [
        ("0_Transformer", {"model_type": "bert", "dtype": "bfloat16"}),
        ("0_Transformer", {"model_type": "mpnet", "torch_dtype": "bfloat16", "vocab_size": 9}),
        ("modules/text", {"model_type": "clip", "text_config": {"dtype": "bfloat16"}}),
    ],
)
def test_a_network_in_a_folder_of_its_own_names_the_dtype_it_is_written_in(
    place: str, config: dict[str, Any], recipe: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dense = {"in_features": 4, "out_features": 2}
    for seed, name in enumerate(("base", "other")):
        draw = torch.Generator().manual_seed(seed)
        write(tmp_path / name / place, {"q.weight": torch.randn(4, 4, generator=draw).bfloat16()}, config)
        write(tmp_path / name / "2_Dense", {"linear.weight": torch.randn(2, 4, generator=draw)}, dense)
        listed = [{"idx": number, "path": path} for number, path in enumerate((place, "2_Dense"))]
        (tmp_path / name / "modules.json").write_text(json.dumps(listed))
    out = merged(tmp_path, recipe, monkeypatch)
    written = json.loads((out / place / "config.json").read_text())
    assert written.get("torch_dtype", written.get("dtype")) == "float32"
    assert "bfloat16" not in (out / place / "config.json").read_text()
    assert load_file(out / place / "model.safetensors")["q.weight"].dtype == torch.float32
    assert json.loads((out / "2_Dense/config.json").read_text()) == dense
    assert not (out / "config.json").exists()
