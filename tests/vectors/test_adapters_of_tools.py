"""Adapters in the layouts of kohya, diffusers and MLX: the same vectors as PEFT's."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from adapters import bert, convnext, llama, merged, save_adapter_of, save_base
from taskvec.cli import main
from taskvec.errors import InputError, KeyMismatch, TaskvecError
from taskvec.vectors import TaskVector, apply
from taskvec.weights import open_weights

Network = Any
Written = dict[str, Tensor]
MADE: dict[str, tuple[Callable[[], Network], dict[str, Any]]] = {
    "a decoder": (llama, {"target_modules": ["q_proj", "down_proj"]}),
    "an encoder": (bert, {"target_modules": ["query", "dense"], "rank_pattern": {"query": 2}}),
    "convolutions": (convnext, {"target_modules": r".*(pwconv1|downsampling_layer\.1)"}),
}


def pairs(folder: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """The factors of PEFT by module."""
    factors = load_file(folder / "adapter_model.safetensors")
    modules = [key.removesuffix(".lora_A.weight") for key in factors if key.endswith(".lora_A.weight")]
    return {
        module.removeprefix("base_model.model."): (
            factors[f"{module}.lora_A.weight"],
            factors[f"{module}.lora_B.weight"],
        )
        for module in modules
    }


def as_kohya(folder: Path, start: str = "lora_unet_") -> Written:
    """Factors with one alpha each; those of PEFT are scaled by 8 / rank."""
    written: Written = {}
    for module, (a, b) in pairs(folder).items():
        name = start + module.replace(".", "_")
        alpha = torch.tensor(8.0, dtype=torch.float64)
        written |= {f"{name}.lora_down.weight": a, f"{name}.lora_up.weight": b, f"{name}.alpha": alpha}
    return written


def as_diffusers(folder: Path) -> Written:
    """Factors without a scale, which is 1 then."""
    written: Written = {}
    for module, (a, b) in pairs(folder).items():
        written |= {f"unet.{module}.lora_A.weight": a, f"unet.{module}.lora_B.weight": b * (8 / len(a))}
    return written


def as_older_diffusers(folder: Path) -> Written:
    return {
        key.replace("lora_A.", "lora.down.").replace("lora_B.", "lora.up."): value
        for key, value in as_diffusers(folder).items()
    }


def as_original(folder: Path) -> Written:
    return {key.replace("unet.", "diffusion_model."): value for key, value in as_diffusers(folder).items()}


def as_dotted_pairs(folder: Path) -> Written:
    """Up and down with dots in the names, as converters write."""
    return {
        key.replace("lora_A.", "lora_down.").replace("lora_B.", "lora_up."): value
        for key, value in as_original(folder).items()
    }


LAYOUTS = {
    "kohya": as_kohya,
    "diffusers": as_diffusers,
    "older diffusers": as_older_diffusers,
    "original": as_original,
    "dotted": as_dotted_pairs,
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("made", MADE)
def test_layouts_without_settings_are_read_from_a_file_of_any_name(
    made: str, layout: str, tmp_path: Path
) -> None:
    make, config = MADE[made]
    base = save_base(make, tmp_path / "base")
    folder = save_adapter_of(base, make, tmp_path / "adapter", **config)
    expected = merged(base, make, folder)
    (tmp_path / "loras").mkdir()
    save_file(LAYOUTS[layout](folder), tmp_path / "loras" / "style_v2.safetensors")
    for place in (tmp_path / "loras", tmp_path / "loras" / "style_v2.safetensors"):
        edited = apply(base, TaskVector.load(place))
        for name in edited:
            torch.testing.assert_close(edited[name], expected[name], rtol=1e-13, atol=1e-13)


def test_settings_in_the_header_scale_the_factors_of_diffusers(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    config: dict[str, Any] = {
        "target_modules": ["q_proj", "v_proj"],
        "alpha_pattern": {"v_proj": 3},
        "use_rslora": True,
    }
    folder = save_adapter_of(base, llama, tmp_path / "adapter", **config)
    expected = merged(base, llama, folder)
    written: Written = {}
    for module, (a, b) in pairs(folder).items():
        written |= {f"transformer.{module}.lora_A.weight": a, f"transformer.{module}.lora_B.weight": b}
    settings = {
        "r": 4,
        "lora_alpha": 8,
        "alpha_pattern": {"v_proj": 3},
        "use_rslora": True,
        "lora_dropout": 0.1,
    }
    header = {"lora_adapter_metadata": json.dumps({f"transformer.{k}": v for k, v in settings.items()})}
    save_file(written, tmp_path / "pytorch_lora_weights.safetensors", metadata=header)
    edited = apply(base, TaskVector.load(tmp_path / "pytorch_lora_weights.safetensors"))
    assert all(torch.allclose(edited[name], expected[name], rtol=0, atol=1e-13) for name in edited)


@pytest.mark.parametrize("rank", [2, 4])
def test_one_model_saved_by_itself_has_its_settings_in_the_header(rank: int, tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "adapter", target_modules=["q_proj"], r=rank)
    expected = merged(base, llama, folder)
    written: Written = {}
    for module, (a, b) in pairs(folder).items():
        written |= {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}
    header = {"lora_adapter_metadata": json.dumps({"r": rank, "lora_alpha": 8, "peft_type": "LORA"})}
    save_file(written, tmp_path / "style.safetensors", metadata=header)
    edited = apply(base, TaskVector.load(tmp_path / "style.safetensors"))
    assert all(torch.allclose(edited[name], expected[name], rtol=0, atol=1e-13) for name in edited)


def clip_text() -> Network:
    shape: dict[str, Any] = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    return CLIPTextModel(
        CLIPTextConfig(vocab_size=20, max_position_embeddings=8, num_hidden_layers=1, **shape)
    )


@pytest.mark.parametrize("start", ["lora_te_text_model_", "lora_te1_text_model_", "text_encoder.text_model."])
@pytest.mark.parametrize("older", [False, True])
def test_text_encoders_fit_with_and_without_their_leading_word(
    older: bool, start: str, tmp_path: Path
) -> None:
    base = save_base(clip_text, tmp_path / "base")
    folder = save_adapter_of(base, clip_text, tmp_path / "adapter", target_modules=["q_proj", "fc1"])
    expected = merged(base, clip_text, folder)
    written = as_kohya(folder, start)
    if "." in start:
        written = {key.replace("unet.", start): value for key, value in as_diffusers(folder).items()}
    save_file(written, tmp_path / "style.safetensors")
    leading = "text_model." if older else ""
    weights = {f"{leading}{name}": value for name, value in load_file(base / "model.safetensors").items()}
    edited = apply(weights, TaskVector.load(tmp_path / "style.safetensors"))
    for name in edited:
        torch.testing.assert_close(edited[name], expected[name.removeprefix(leading)], rtol=1e-13, atol=1e-13)


def test_a_rank_of_zero_in_the_header_is_refused(tmp_path: Path) -> None:
    factors = {"unet.q.lora_A.weight": torch.ones(2, 4), "unet.q.lora_B.weight": torch.ones(4, 2)}
    header = {"lora_adapter_metadata": json.dumps({"unet.r": 0, "unet.lora_alpha": 4})}
    save_file(factors, tmp_path / "style.safetensors", metadata=header)
    with pytest.raises(InputError, match="lora_adapter_metadata: a rank is smaller than 1"):
        TaskVector.load(tmp_path / "style.safetensors")


def test_of_an_adapter_of_several_models_the_part_of_the_base_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    network, encoder = save_base(convnext, tmp_path / "unet"), save_base(bert, tmp_path / "text")
    written: Written = {}
    expected = {}
    for base, make, start, config in (
        (network, convnext, "lora_unet_", {"target_modules": r".*pwconv1"}),
        (encoder, bert, "lora_te_", {"target_modules": ["query"]}),
    ):
        folder = save_adapter_of(base, make, tmp_path / start, **config)
        written |= as_kohya(folder, start)
        expected[base] = merged(base, make, folder)
    save_file(written, tmp_path / "both.safetensors")
    for base, other in ((network, "lora_te"), (encoder, "lora_unet")):
        caplog.clear()
        edited = apply(base, TaskVector.load(tmp_path / "both.safetensors"))
        assert all(torch.allclose(edited[name], expected[base][name], rtol=0, atol=1e-13) for name in edited)
        assert [f"{other} left out" in record.getMessage() for record in caplog.records] == [True]


def as_mlx(folder: Path, **parameters: Any) -> None:
    """The same adapter as mlx-lm writes it: (in, rank), (rank, out)."""
    written: Written = {}
    for module, (a, b) in pairs(folder).items():
        written |= {f"{module}.lora_a": a.T.contiguous(), f"{module}.lora_b": b.T.contiguous()}
    lengths = load_file(folder / "adapter_model.safetensors")
    for key, value in lengths.items():
        if "lora_magnitude_vector" in key:
            written[key.removeprefix("base_model.model.").replace("lora_magnitude_vector", "m")] = value
    settings = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": {"rank": 4, **parameters},
    }
    shutil.rmtree(folder)
    folder.mkdir()
    save_file(written, folder / "adapters.safetensors")
    save_file(written, folder / "0000100_adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps(settings))


@pytest.mark.parametrize("config", [{}, {"use_dora": True}, {"lora_alpha": 3}])
@pytest.mark.parametrize("targets", [["q_proj"], ["k_proj", "down_proj"], "all-linear"])
def test_adapters_of_mlx_are_read(config: dict[str, Any], targets: Any, tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "adapter", target_modules=targets, **config)
    expected = merged(base, llama, folder)
    as_mlx(folder, scale=config.get("lora_alpha", 8) / 4)
    edited = apply(base, TaskVector.load(folder))
    for name in edited:
        torch.testing.assert_close(edited[name], expected[name], rtol=1e-13, atol=1e-13)


def test_all_weights_that_mlx_trained_are_their_difference(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = tmp_path / "adapter"
    folder.mkdir()
    tuned = {name: value + 1 for name, value in open_weights(base).items() if "layers.1" in name}
    save_file(tuned, folder / "adapters.safetensors")
    (folder / "adapter_config.json").write_text(json.dumps({"fine_tune_type": "full"}))
    edited, start = apply(base, TaskVector.load(folder)), open_weights(base)
    for name in edited:
        torch.testing.assert_close(edited[name], tuned.get(name, start[name]))


UNREAD: dict[str, tuple[dict[str, tuple[int, ...]], str]] = {
    "LoHa": (
        {"lora_unet_q.hada_w1_a": (4, 2), "lora_unet_q.alpha": ()},
        "hada_w1_a of LyCORIS.*merge_lora|LyCORIS",
    ),
    "LoKr": ({"lora_unet_q.lokr_w1": (2, 2)}, r"lokr_w1 of LyCORIS.*tools/merge.py"),
    "kohya's DoRA": (
        {
            "lora_te_q.lora_down.weight": (2, 4),
            "lora_te_q.lora_up.weight": (4, 2),
            "lora_te_q.dora_scale": (4,),
        },
        "dora_scale of LyCORIS or DoRA, which is not read",
    ),
    "one factor": (
        {"lora_unet_q.lora_down.weight": (2, 4)},
        "is alone, expected both factors of 'lora_unet_q'",
    ),
    "two ranks": (
        {"unet.q.lora_A.weight": (2, 4), "unet.q.lora_B.weight": (4, 3)},
        "expected factors of one rank",
    ),
    "no rank": (
        {"unet.q.lora_A.weight": (0, 4), "unet.q.lora_B.weight": (4, 0)},
        "expected factors of one rank",
    ),
    "one axis": (
        {"unet.q.lora_A.weight": (4,), "unet.q.lora_B.weight": (4,)},
        "expected factors of one rank",
    ),
    "another model": (
        {"lora_unet_q.lora_down.weight": (2, 4), "lora_unet_q.lora_up.weight": (4, 2)},
        "'lora_unet_q' found, expected a layer of .*convert the adapter with diffusers",
    ),
    "several alphas": (
        {
            "lora_unet_q.lora_down.weight": (2, 4),
            "lora_unet_q.lora_up.weight": (4, 2),
            "lora_unet_q.alpha": (3,),
        },
        r"'lora_unet_q.alpha' has shape \(3,\), expected one number",
    ),
    "no settings of MLX": (
        {"q.lora_a": (4, 2), "q.lora_b": (2, 4)},
        "no such file, expected the settings .*; copy it from where the adapter comes from",
    ),
    "no settings": (
        {"base_model.model.q.lora_A.weight": (2, 4), "base_model.model.q.lora_B.weight": (4, 2)},
        "no such file, expected the settings of the LoRA adapter beside its weights",
    ),
}


@pytest.mark.parametrize("case", UNREAD)
def test_what_is_not_read_names_a_tool_that_does(case: str, tmp_path: Path) -> None:
    shapes, said = UNREAD[case]
    file = tmp_path / "style.safetensors"
    save_file({name: torch.ones(shape) for name, shape in shapes.items()}, file)
    with pytest.raises(TaskvecError, match=said) as caught:
        apply({"layer.weight": torch.zeros(4, 4)}, TaskVector.load(file))
    assert isinstance(caught.value, InputError | KeyMismatch)


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"alpha": 16.0}, "no alpha"),
        ({"scale": "much"}, "the scale of mlx-lm"),
        ({"scale": True}, "the scale"),
    ],
)
def test_scales_that_mlx_took_in_two_ways_are_refused(
    parameters: dict[str, Any], said: str, tmp_path: Path
) -> None:
    base = save_base(llama, tmp_path / "base")
    folder = save_adapter_of(base, llama, tmp_path / "adapter", target_modules=["q_proj"])
    as_mlx(folder, **{"scale": 2.0, **parameters})
    with pytest.raises(InputError, match=said):
        TaskVector.load(folder)


def test_a_model_with_factors_of_its_own_is_a_model(tmp_path: Path) -> None:
    base = save_base(llama, tmp_path / "base")
    weights = load_file(base / "model.safetensors")
    weights["model.layers.0.self_attn.q_proj.lora_A.vision.weight"] = torch.zeros(2, 16, dtype=torch.float64)
    save_file(weights, base / "model.safetensors")
    assert open_weights(base).adapter is None
    vector = TaskVector.between(base, {name: value + 1 for name, value in weights.items()})
    assert len(TaskVector.load(vector.save(tmp_path / "vector.safetensors"))) == len(weights)


def test_commands_take_a_file_of_any_layout(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = save_base(bert, tmp_path / "base")
    folder = save_adapter_of(base, bert, tmp_path / "adapter", target_modules=["query"])
    save_file(as_kohya(folder, "lora_te_"), tmp_path / "te.safetensors")
    for words in (
        ["apply", str(base), "-v", f"a={tmp_path / 'te.safetensors'}", "-o", str(tmp_path / "out")],
        ["diff", str(base), str(tmp_path / "te.safetensors"), "-o", str(tmp_path / "v.safetensors")],
        ["inspect", str(tmp_path / "te.safetensors")],
    ):
        with pytest.raises(SystemExit) as done:
            main(words)
        assert not done.value.code, capsys.readouterr().err
