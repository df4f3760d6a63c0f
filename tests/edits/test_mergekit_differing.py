"""mergekit's YAML for models of which some have tensors that others lack."""

from pathlib import Path

import pytest
import torch

from edits.mergekit_models import SHAPES, STATES, run
from taskvec.edits.opening import open_recipe
from taskvec.errors import KeyMismatch
from taskvec.weights import open_weights, save_weights

HEAD = "lm_head.weight"
BLOCK = ("mtp.layers.0.mlp.up_proj.weight", "mtp.fc.weight", "model.layers.4.mlp.up_proj.weight")
"""Tensors of blocks that predict further tokens, as several families name them."""


def write(folder: Path, text: str) -> Path:
    (folder / "merge.yml").write_text(text)
    return folder / "merge.yml"


def task_vector(base: str, model: str) -> str:
    return (
        f"merge_method: task_arithmetic\nbase_model: {base}\n"
        f"models: [{{model: {model}, parameters: {{weight: 0.5}}}}]"
    )


def with_block(folder: Path, name: str, more: str) -> Path:
    save_weights({**STATES[name], more: torch.ones(2, 2)}, folder / "deeper")
    return folder / "deeper"


@pytest.mark.parametrize("more", BLOCK)
def test_what_only_a_model_has_is_left_out_if_asked(here: Path, tmp_path: Path, more: str) -> None:
    file = write(tmp_path, task_vector("base", str(with_block(tmp_path, "a", more))))
    with pytest.raises(KeyMismatch, match=f"base lacks '{more}'.*--on-extra drop leaves it out"):
        open_recipe(file)
    made = open_recipe(file, on_extra="drop")
    assert set(made.weights) == set(SHAPES)
    assert any(more in note and "left out" in note for note in made.notes)
    expected = STATES["base"][HEAD] + 0.5 * (STATES["a"][HEAD] - STATES["base"][HEAD])
    torch.testing.assert_close(made.weights[HEAD], expected)


@pytest.mark.parametrize("more", BLOCK)
def test_what_a_model_lacks_is_that_of_the_base_if_asked(here: Path, tmp_path: Path, more: str) -> None:
    file = write(tmp_path, task_vector(str(with_block(tmp_path, "base", more)), "a"))
    with pytest.raises(KeyMismatch, match=f"a lacks '{more}'.*--on-missing zero takes it as unchanged"):
        open_recipe(file)
    made = open_recipe(file, on_missing="zero")
    assert torch.equal(made.weights[more], torch.ones(2, 2))
    assert any(more in note and "taken as unchanged" in note for note in made.notes)


def test_of_a_mean_what_a_model_lacks_is_that_of_the_first(here: Path, tmp_path: Path) -> None:
    file = write(
        tmp_path, "merge_method: linear\nmodels: [{model: a}, {model: headless}]\nparameters: {weight: 1}"
    )
    made = open_recipe(file, on_missing="zero")
    torch.testing.assert_close(made.weights[HEAD], STATES["a"][HEAD])


@pytest.mark.parametrize(
    "text",
    [
        "merge_method: slerp\nbase_model: a\nslices: [{sources: [{model: a, layer_range: [0, 4]}, "
        "{model: headless, layer_range: [0, 4]}]}]\nparameters: {t: 0.5}",
        "merge_method: linear\nmodules: {default: {models: [{model: a}, {model: headless}]}}\n"
        "parameters: {weight: 1}",
        "name: mean\nmerge_method: linear\nmodels: [{model: a}, {model: headless}]\nparameters: {weight: 1}\n"
        "---\nmerge_method: passthrough\nmodels: [{model: mean}]",
    ],
    ids=["slices", "modules", "documents"],
)
def test_it_holds_in_every_form_of_a_file(here: Path, tmp_path: Path, text: str) -> None:
    made = open_recipe(write(tmp_path, text), on_missing="zero")
    torch.testing.assert_close(made.weights[HEAD], STATES["a"][HEAD])


def test_the_command_says_what_it_leaves_out(
    here: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path, task_vector("base", str(with_block(tmp_path, "a", BLOCK[0]))))
    run("merge", file, "-o", tmp_path / "out", "--on-extra", "drop", "--quiet")
    assert f"'{BLOCK[0]}' is left out, as the base lacks it" in capsys.readouterr().err
    assert set(open_weights(tmp_path / "out")) == set(SHAPES)
