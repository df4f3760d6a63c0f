"""Slices of models whose layers are of several kinds load as what they were made of, or are refused."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
import yaml

from edits.deep_models import GROUPED, MODELS, class_of, save
from taskvec import open_recipe, save_merge
from taskvec.cli import main
from taskvec.edits.merge import Merge
from taskvec.errors import InputError
from taskvec.names import block_of, count_blocks, renumber
from taskvec.weights import save_weights

Ranges = Sequence[tuple[int, int]]


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("deep")


@pytest.fixture
def model(request: pytest.FixtureRequest, saved: Path) -> tuple[str, Path, int]:
    """Name, folder and number of layers of a model."""
    name: str = request.param
    folder = saved / name.replace(" ", "-")
    return name, folder if folder.exists() else save(name, folder), MODELS[name][1]


def stacked(*pieces: tuple[Path, Ranges]) -> Merge:
    slices = [
        {"sources": [{"model": str(folder), "layer_range": list(span)}]}
        for folder, ranges in pieces
        for span in ranges
    ]
    recipe = pieces[0][0].parent / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"merge_method": "passthrough", "slices": slices}))
    return open_recipe(recipe)


def load(kind: Any, folder: Path) -> tuple[Mapping[str, torch.Tensor], Mapping[str, Any]]:
    """The weights that a model has after loading, and what transformers says about it."""
    loaded, info = kind.from_pretrained(folder, output_loading_info=True)
    return loaded.state_dict(), {key: value for key, value in info.items() if value}


def check_layers(kind: Any, folder: Path, ranges: Ranges, made: Path) -> None:
    """Loaded by transformers, each layer is, bit by bit, the one that it was."""
    (before, _), (after, wrong) = load(kind, folder), load(kind, made)
    assert not wrong
    origin = [number for span in ranges for number in range(*span)]
    [count] = count_blocks(after).values()
    assert count == len(origin)
    for name, tensor in after.items():
        block = block_of(name)
        source = name if block is None else renumber(name, origin[block.number])
        assert torch.equal(tensor, before[source]), name


REFUSED: dict[str, Mapping[str, str]] = {
    # What the error names, where no value of a setting describes the result.
    "repeated": {
        "DeepSeek-V3": "layer 4 is layer 1 of .* no first_k_dense_replace",
        "ERNIE 4.5": "layer 6 is layer 2 of .* moe_layer_start_index",
        "Jamba": "layer 8 is layer 2 of .* no attn_layer_period and attn_layer_offset",
        "Zamba 2": "layer 1 is layer 1 of .*gate_up_proj_adapter_list",
    },
    "in other order": {
        "DeepSeek-V2": "layer 3 is layer 0 of .* no first_k_dense_replace",
        "DeepSeek-V3": "layer 3 is layer 0 of .* no first_k_dense_replace",
        "ERNIE 4.5": "layer 5 is layer 2 of .* moe_layer_start_index",
        "GLM-4-MoE": "layer 3 is layer 0 of .* no first_k_dense_replace",
        "ModernBERT": "layer 0 is layer 3 of .* where attn_norm is LayerNorm, but Identity",
        "T5, encoder": "layer 0 is layer 2 of .*has_relative_attention_bias",
    },
}


def ranges_of(kind: str, layers: int) -> Ranges:
    if kind == "repeated":
        return [(0, layers - 1), (1, layers)]
    return [(layers // 2, layers), (0, layers // 2 + 1)]


@pytest.mark.parametrize("kind", REFUSED)
@pytest.mark.parametrize("model", [name for name in MODELS if name != "T5"], indirect=True)
def test_slices_load_as_what_they_were_or_are_refused(
    model: tuple[str, Path, int], kind: str, tmp_path: Path
) -> None:
    name, folder, layers = model
    ranges, out = ranges_of(kind, layers), tmp_path / "out"
    made = stacked((folder, ranges))
    if name in REFUSED[kind]:
        with pytest.raises(InputError, match=REFUSED[kind][name]):
            save_merge(made, out)
        assert not list(tmp_path.glob("*out*"))
    else:
        save_merge(made, out)
        check_layers(class_of(name), folder, ranges, out)


@pytest.mark.parametrize("model", ["T5"], indirect=True)
def test_two_stacks_of_layers_are_not_sliced(model: tuple[str, Path, int]) -> None:
    with pytest.raises(InputError, match=r"one stack of layers, found decoder\.block, encoder\.block"):
        stacked((model[1], [(0, 1)]))


def test_an_encoder_with_its_settings_for_a_decoder_is_sliced(saved: Path, tmp_path: Path) -> None:
    folder = save("T5, encoder", tmp_path / "t5")
    save_merge(stacked((folder, [(0, 2), (1, 4)])), tmp_path / "out")
    check_layers(class_of("T5, encoder"), folder, [(0, 2), (1, 4)], tmp_path / "out")


PUBLISHED = {
    # Older files lack what transformers now writes: it follows from the number of a layer.
    "Gemma 2": "layer_types",
    "Gemma 3": "layer_types",
    "OLMo 3": "layer_types",
    "Qwen2": "layer_types",
    "Qwen3-Next": "layer_types",
    "SmolLM3": "no_rope_layers",
    "Llama 4": "moe_layers",
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_follows_from_the_number_of_a_layer_is_written_where_it_no_longer_does(
    name: str, tmp_path: Path
) -> None:
    folder, layers = save(name, tmp_path / "model"), MODELS[name][1]
    kinds = json.loads((folder / "config.json").read_text())[PUBLISHED[name]]
    by_layer = [place in kinds for place in range(layers)] if name == "Llama 4" else kinds
    rewrite(folder, **{PUBLISHED[name]: None})
    ranges = [(layers - 1, layers), (0, layers)]
    save_merge(stacked((folder, ranges)), tmp_path / "out")
    found = getattr(class_of(name).from_pretrained(tmp_path / "out").config, PUBLISHED[name])
    if name == "Llama 4":
        found = [place in found for place in range(layers + 1)]
    assert found == [by_layer[-1], *by_layer]
    check_layers(class_of(name), folder, ranges, tmp_path / "out")


def rewrite(folder: Path, **settings: object) -> None:
    """Other settings in a config.json; ``None`` takes one out."""
    config = json.loads((folder / "config.json").read_text()) | settings
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def test_windows_that_are_not_used_need_not_be_followed(tmp_path: Path) -> None:
    """As published: Qwen2.5 has windows from a layer on, switched off."""
    folder = save("Qwen2", tmp_path / "model")
    rewrite(folder, use_sliding_window=False, max_window_layers=2, layer_types=None)
    save_merge(stacked((folder, [(1, 6), (0, 3)])), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["num_hidden_layers"], config["max_window_layers"]) == (8, 2)
    check_layers(class_of("Qwen2"), folder, [(1, 6), (0, 3)], tmp_path / "out")


@pytest.mark.parametrize("other", ["MistralForCausalLM", "Qwen2ForCausalLM"])
def test_layers_of_other_architectures_with_the_same_tensors_may_be_stacked(
    other: str, tmp_path: Path
) -> None:
    kind: Any = transformers.LlamaForCausalLM
    torch.manual_seed(0)
    kind(kind.config_class(**GROUPED, num_hidden_layers=3, attention_bias=other[0] == "Q")).save_pretrained(
        tmp_path / "llama"
    )
    another: Any = getattr(transformers, other)
    another(another.config_class(**GROUPED, num_hidden_layers=3)).save_pretrained(tmp_path / "other")
    made = stacked((tmp_path / "other", [(0, 2)]), (tmp_path / "llama", [(1, 3)]))
    if other == "Qwen2ForCausalLM":  # which has no bias of the output projection
        with pytest.raises(InputError, match=r"layers\.2\.self_attn\.o_proj\.bias', for which its config"):
            save_merge(made, tmp_path / "out")
        return
    save_merge(made, tmp_path / "out")
    assert not load(another, tmp_path / "out")[1]


@pytest.fixture
def without_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)


@pytest.mark.usefixtures("without_transformers")
def test_without_transformers_known_settings_are_followed(tmp_path: Path) -> None:
    settings = {"num_hidden_layers": 4, "mlp_only_layers": [0], "vocab_size": 8, "hidden_size": 4}
    folder = write(tmp_path / "model", settings)
    save_merge(stacked((folder, [(0, 3), (0, 4)])), tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert config == {**settings, "num_hidden_layers": 7, "mlp_only_layers": [0, 3]}


@pytest.mark.usefixtures("without_transformers")
def test_without_transformers_settings_that_cannot_be_right_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "model", {"num_hidden_layers": 4, "first_k_dense_replace": 1, "hidden_size": 4})
    made = stacked((folder, [(0, 4), (0, 2)]))
    with pytest.raises(InputError, match=r"layer 4 is layer 0 of .*model, and no first_k_dense_replace"):
        save_merge(made, tmp_path / "out")
    save_merge(made, tmp_path / "out.safetensors")
    save_merge(replace(made, allow_unloadable=True), tmp_path / "out")
    assert (tmp_path / "out/config.json").exists()


STRANGE: dict[str, tuple[dict[str, object], Ranges, str]] = {
    # Settings of models with code of their own; their layers 0 and 2 hold a tensor more.
    "unknown": (
        {"dense_ones": "0,2"},
        [(1, 4), (0, 2)],
        "layer 1 is layer 2 of .* other tensors than layer 1",
    ),
    "nested, from one on": (
        {"attention": {"full_layers": [1, 3], "linear_layers": [2, 4]}},
        [(0, 4), (1, 4)],
        "layer 1 is layer 1 of .* other tensors than layer 0",
    ),
    "none": ({}, [(2, 4), (2, 3)], "layer 1 is layer 3 of .* other tensors than layer 2"),
    "of one kind": ({}, [(1, 2), (3, 4), (1, 2)], ""),
    "in their places": ({"dense_ones": "0,2"}, [(0, 3)], ""),
    "listed": ({"some_layers": [0, 2]}, [(1, 4), (0, 2)], ""),
    "by a period": ({"expert_layer_period": 2, "expert_layer_offset": 0}, [(1, 4), (2, 4)], ""),
}


@pytest.mark.parametrize("case", STRANGE)
def test_layers_of_models_unknown_here_are_moved_if_known_settings_tell_them_apart(
    case: str, tmp_path: Path
) -> None:
    settings, ranges, message = STRANGE[case]
    more = [f"model.layers.{number}.gate.weight" for number in (0, 2)]
    config = {"model_type": "strange", "num_hidden_layers": 4, "hidden_size": 4, **settings}
    made = stacked((write(tmp_path / "model", config, more), ranges))
    if message:
        with pytest.raises(InputError, match=message):
            save_merge(made, tmp_path / "out")
    else:
        save_merge(made, tmp_path / "out")


def write(folder: Path, config: Mapping[str, object], more: Sequence[str] = ()) -> Path:
    """A model of four layers that transformers does not know."""
    names = ["model.embed_tokens.weight", *(f"model.layers.{n}.mlp.weight" for n in range(4)), *more]
    save_weights({name: torch.randn(8, 4) for name in names}, folder)
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_the_command_refuses_what_would_not_load_and_writes_it_if_told_to(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = save("GLM-4-MoE", tmp_path / "model"), tmp_path / "out"
    stacked((folder, [(0, 5), (0, 5)]))
    for options in ([], ["--dry-run"]):
        with pytest.raises(SystemExit) as ended:
            main(["merge", str(tmp_path / "recipe.yaml"), "-o", str(out), *options])
        assert ended.value.code == 2
        assert "layer 5 is layer 0" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main(["merge", str(tmp_path / "recipe.yaml"), "-o", str(out), "--allow-unloadable"])
    assert ended.value.code == 0
    assert json.loads((out / "config.json").read_text())["num_hidden_layers"] == 10
