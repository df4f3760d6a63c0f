"""Inputs that are not what they seem, and outputs in their midst."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import taskvec as tv
from taskvec.cli import main
from taskvec.edits.inputs import alike
from taskvec.weights import open_weights, save_weights

Ended = tuple[int, str]


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "embed.weight": torch.arange(4000.0).reshape(1000, 4),  # the same in all
        "layer.0.weight": torch.randn(8, 8, generator=generator),
        "steps": torch.tensor(3),
    }


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Ended]:
    """A command in a folder with a base, models a and b, and their vectors; its code and what it said."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "a", "b")):
        save_weights(state(seed), name, max_shard_size=9000)
        Path(name, "config.json").write_text('{"model_type": "tiny"}')
    for name in "ab":
        tv.TaskVector.between("base", name).save(f"v{name}")

    def ended(*words: str) -> Ended:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main(words)
        return int(done.value.code or 0), capsys.readouterr().err

    return ended


def recipe(**models: str) -> None:
    lines = "".join(f"  {name}: {path}\n" for name, path in models.items())
    Path("r.yaml").write_text(f"base: base\nmodels:\n{lines}rule: sum\n")
    entries = "".join(f"  - {{model: {path}, parameters: {{weight: 1}}}}\n" for path in models.values())
    Path("m.yaml").write_text(f"merge_method: task_arithmetic\nbase_model: base\nmodels:\n{entries}")


@pytest.mark.parametrize("file", ["r.yaml", "m.yaml"])
def test_a_copy_of_a_model_is_said_to_count_as_well(run: Callable[..., Ended], file: str) -> None:
    save_weights(open_weights("a"), "copy.safetensors")  # other files, the same tensors
    recipe(a="a", b="b", c="copy.safetensors")
    code, said = run("merge", file, "-o", "out")
    name = "c" if file == "r.yaml" else "copy.safetensors"
    assert code == 0 and said.count(f"note: {name}: holds the same tensors as a, and both count\n") == 1
    recipe(a="a", b="b")
    assert "same tensors" not in run("merge", file, "-o", "apart")[1]


def test_a_copy_of_the_base_is_said_to_change_nothing(run: Callable[..., Ended]) -> None:
    shutil.copytree("base", "copy")
    recipe(a="a", c="copy")
    assert "note: c: the base itself, so its task vector is zero\n" in run("merge", "r.yaml", "-o", "out")[1]


@pytest.mark.parametrize("command", [("apply", "base", "-e", "a + b"), ("mask",)])
def test_a_copy_of_a_vector_is_said_to_count_as_well(
    run: Callable[..., Ended], command: tuple[str, ...]
) -> None:
    shutil.copytree("va", "copy")
    code, said = run(*command, "-v", "a=va", "-v", "b=copy", "-o", "out")
    assert code == 0 and "note: b: holds the same tensors as a, and both count\n" in said


def test_a_look_at_the_first_entries_does_not_settle_that_two_are_alike() -> None:
    changed = state(0)
    changed["embed.weight"] = changed["embed.weight"].clone()
    changed["embed.weight"][-1, -1] += 1
    assert alike(open_weights(state(0)), open_weights(state(0)))
    assert not alike(open_weights(state(0)), open_weights(changed))
    assert not alike(open_weights(state(0)), open_weights(state(1)))


EDITS = [("diff", "base", "a"), ("merge", "r.yaml"), ("merge", "m.yaml"), ("apply", "a", "-v", "v=vb")]


@pytest.mark.parametrize("edit", EDITS, ids=" ".join)
@pytest.mark.parametrize("what", ["shard", "config"])
def test_a_folder_that_is_not_sound_is_refused(
    run: Callable[..., Ended], edit: tuple[str, ...], what: str
) -> None:
    recipe(a="a", b="b")
    if what == "shard":
        shutil.copy("b/model-00001-of-00002.safetensors", "a/model-00004-of-00003.safetensors")
        wanted = "a/model-00004-of-00003.safetensors: no part of the weights in this folder"
    else:
        Path("a/config.json").write_text("{")
        wanted = "a/config.json: not valid JSON"
    code, said = run(*edit, "-o", "out")
    assert code == 2 and wanted in said and said.count("\n") == 1 and not Path("out").exists()


@pytest.mark.parametrize("file", ["r.yaml", "m.yaml"])
def test_what_does_not_fit_is_said_with_the_recipe(run: Callable[..., Ended], file: str) -> None:
    save_weights({**state(1), "layer.0.weight": torch.zeros(3, 3)}, "odd.safetensors")
    recipe(a="a", b="odd.safetensors")
    code, said = run("merge", file, "-o", "out")
    assert code == 2 and said.startswith(
        f"taskvec: {file}: odd.safetensors: 'layer.0.weight' has shape (3, 3)"
    )


def test_a_file_that_is_named_is_what_was_meant(run: Callable[..., Ended]) -> None:
    shutil.copy("b/model-00001-of-00002.safetensors", "a/model-00004-of-00003.safetensors")
    assert run("diff", "base", "a/model.safetensors.index.json", "-o", "v.safetensors")[0] == 0


INSIDE = [
    ("diff", "base", "a", "-o", "base/v.safetensors"),
    ("diff", "base", "a", "-o", "a/deep/v"),
    ("diff", "base", "a", "--rank", "1", "-o", "a/lora"),
    ("apply", "base", "-v", "v=va", "-o", "base/out"),
    ("apply", "base", "-v", "v=va", "-o", "va/out"),
    ("compress", "va", "--form", "bf16", "-o", "va/small.safetensors"),
    ("mask", "-v", "a=va", "-v", "b=vb", "-o", "vb/both"),
    ("merge", "r.yaml", "-o", "b/out"),
    ("merge", "r.yaml", "-o", "b/out", "--dry-run"),
    ("merge", "m.yaml", "-o", "base/out"),
]


@pytest.mark.parametrize("edit", INSIDE, ids=" ".join)
def test_an_output_inside_an_input_is_refused(run: Callable[..., Ended], edit: tuple[str, ...]) -> None:
    recipe(a="a", b="b")
    before = sorted(Path().rglob("*"))
    code, said = run(*edit, "-q")
    assert code == 2 and "lies inside the input" in said and said.count("\n") == 1
    assert sorted(Path().rglob("*")) == before


def test_a_known_name_is_a_base_and_a_file_of_that_name_wins(run: Callable[..., Ended]) -> None:
    save_weights({name: value + 0.5 for name, value in open_weights(known()).items()}, "tuned")
    Path("r.yaml").write_text("base: builtin\nmodels: {t: tuned}\n")
    assert run("merge", "r.yaml", "-o", "out")[0] == 0
    assert open_weights("out").fingerprint() == open_weights("tuned").fingerprint()
    shutil.copytree("base", "builtin")
    assert "tuned: " in run("merge", "r.yaml", "-o", "other")[1]


def known() -> str:
    from taskvec.models.known import MODELS

    return MODELS["builtin"].ref()
