"""taskvec merge and apply --as-adapter: several adapters, or any edit, as one adapter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from adapters import gpt2, llama, loaded, merged, save_adapter_of, save_base
from taskvec.cli import main
from taskvec.vectors import TaskVector

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """A command by its words: exit code, standard output, standard error."""

    def call(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main([str(word) for word in words])
        return int(done.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and adapters of it: two of other layers and ranks, one with DoRA."""
    monkeypatch.chdir(tmp_path)
    base = save_base(llama, Path("base"), torch.float32)
    save_adapter_of(base, llama, Path("a"), seed=1, r=4, lora_alpha=8, target_modules="all-linear")
    save_adapter_of(
        base, llama, Path("b"), seed=2, r=3, use_rslora=True, target_modules=["q_proj", "up_proj"]
    )
    save_adapter_of(base, llama, Path("dora"), seed=3, use_dora=True)
    return tmp_path


def write(path: str, **content: Any) -> None:
    Path(path).write_text(yaml.safe_dump(content, sort_keys=False))


def sum_of(weights: dict[str, float]) -> dict[str, Tensor]:
    """The base with the weighted changes of adapters, as PEFT merges each."""
    base = loaded(llama, Path("base")).state_dict()
    tuned = {name: merged(Path("base"), llama, Path(name)) for name in weights}
    return {
        name: tensor + sum(weight * (tuned[one][name] - tensor) for one, weight in weights.items())
        for name, tensor in base.items()
    }


def assert_peft_makes(adapter: str, expected: dict[str, Tensor]) -> None:
    made = merged(Path("base"), llama, Path(adapter))
    for name, tensor in expected.items():
        torch.testing.assert_close(made[name], tensor, rtol=1e-5, atol=1e-6)


VECTORS = {"a": "a", "b": "b"}


@pytest.mark.parametrize(
    ("recipe", "weights"),
    [
        ({"vectors": VECTORS, "expression": "a - 0.5*b"}, {"a": 1, "b": -0.5}),
        ({"vectors": {"a": "a"}, "scale": 2.0}, {"a": 2}),
        ({"vectors": VECTORS, "rule": "mean"}, {"a": 0.5, "b": 0.5}),
        ({"base": "base", "vectors": VECTORS, "expression": "a + b", "scale": 0.3}, {"a": 0.3, "b": 0.3}),
        ({"base": "base", "models": VECTORS, "expression": "0.1*a + b"}, {"a": 0.1, "b": 1}),
    ],
)
def test_a_recipe_over_adapters_is_one_adapter(
    recipe: dict[str, Any], weights: dict[str, float], place: Path, run: Run
) -> None:
    write("recipe.yaml", **recipe)
    code, out, _ = run("merge", "recipe.yaml", "--as-adapter", "-o", "sum", "--json", "-q")
    facts = json.loads(out)
    assert code == 0 and facts["relative_error_of_the_task_vector"] == 0 and not facts["left_out"]
    assert facts["rank"] == (7 if len(weights) > 1 else 4)
    assert_peft_makes("sum", sum_of(weights))
    record = json.loads(Path("sum/taskvec.json").read_text())
    assert (
        record["kind"] == "LoRA adapter" and record["recipe"]["vectors" if "vectors" in recipe else "models"]
    )


def test_no_base_need_be_on_the_disk(place: Path, run: Run) -> None:
    expected = sum_of({"a": 0.25, "b": 4})
    Path("base").rename("elsewhere")
    write("recipe.yaml", vectors=VECTORS, expression="0.25*a + 4*b", dtype="float64")
    code, _, error = run("merge", "recipe.yaml", "--as-adapter", "-o", "sum")
    assert code == 0 and "note" not in error
    factors = load_file("sum/adapter_model.safetensors").values()
    assert {factor.dtype for factor in factors} == {torch.float64}
    Path("elsewhere").rename("base")
    assert_peft_makes("sum", expected)


def test_apply_writes_an_adapter_too(place: Path, run: Run) -> None:
    words = ("apply", "base", "-v", "a=a", "-v", "b=b", "-e", "0.4*a - b", "--as-adapter")
    assert run(*words, "-o", "sum")[0] == 0
    assert_peft_makes("sum", sum_of({"a": 0.4, "b": -1}))
    code, out, _ = run(*words, "-o", "low", "--rank", "2", "--only", "attention", "--json")
    facts = json.loads(out)
    assert code == 0 and facts["rank"] == 2 and facts["matrices"] == 8
    assert 0 < facts["relative_error_of_the_matrices"] < facts["relative_error_of_the_task_vector"]
    assert all("self_attn" not in name for name in facts["left_out"])


def test_rules_and_vectors_that_are_no_sums_of_factors_take_a_rank(place: Path, run: Run) -> None:
    TaskVector.load("a").with_base("base").save("a.safetensors")
    forms = {
        "ties.yaml": {"vectors": VECTORS, "rule": "ties"},
        "dora.yaml": {"base": "base", "vectors": {"a": "a", "d": "dora"}, "expression": "a + d"},
        "stored.yaml": {"base": "base", "vectors": {"a": "a.safetensors"}},
    }
    for name, content in forms.items():
        write(name, **content)
        code, _, error = run("merge", name, "--as-adapter", "-o", "sum")
        assert code == 2 and "is not changed by factors alone" in error.splitlines()[-1]
        assert not Path("sum").exists()
        code, out, _ = run("merge", name, "--as-adapter", "--rank", "16", "-o", f"{name}.out", "--json", "-q")
        assert code == 0 and json.loads(out)["relative_error_of_the_matrices"] < 1e-5
    assert_peft_makes("dora.yaml.out", sum_of({"a": 1, "dora": 1}))


def test_mergekit_files_are_written_as_adapters(place: Path, run: Run) -> None:
    models = [
        {"model": f"base+{name}", "parameters": {"weight": weight}}
        for name, weight in (("a", 1.0), ("b", 0.5))
    ]
    write(
        "recipe.yml", merge_method="task_arithmetic", base_model="base", models=models, dtype="torch.float32"
    )
    code, _, _ = run("merge", "recipe.yml", "--as-adapter", "--rank", "8", "-o", "sum")
    assert code == 0
    assert_peft_makes("sum", sum_of({"a": 1, "b": 0.5}))
    slices = [{"sources": [{"model": "base", "layer_range": layers}]} for layers in ([0, 2], [1, 2])]
    write("deeper.yml", merge_method="passthrough", slices=slices)
    code, _, error = run("merge", "deeper.yml", "--as-adapter", "-o", "deeper")
    assert code == 2 and "leave --as-adapter out" in error and not Path("deeper").exists()


def test_square_layers_stored_as_inputs_by_outputs(tmp_path: Path, run: Run) -> None:
    base = save_base(gpt2, tmp_path / "base")
    config = {"fan_in_fan_out": True, "target_modules": ["c_attn", "attn.c_proj"]}
    adapters = [save_adapter_of(base, gpt2, tmp_path / name, seed=n, **config) for n, name in enumerate("ab")]
    write(str(tmp_path / "recipe.yaml"), vectors={"a": "a", "b": "b"}, expression="a + 2*b")
    assert run("merge", tmp_path / "recipe.yaml", "--as-adapter", "-o", tmp_path / "sum")[0] == 0
    settings = json.loads((tmp_path / "sum" / "adapter_config.json").read_text())
    assert settings["fan_in_fan_out"] and settings["r"] == 8
    one, other, both = (merged(base, gpt2, folder) for folder in (*adapters, tmp_path / "sum"))
    start = loaded(gpt2, base).state_dict()
    for name, tensor in start.items():
        expected = tensor + (one[name] - tensor) + 2 * (other[name] - tensor)
        torch.testing.assert_close(both[name], expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            {"vectors": {"a": "a", "d": "dora"}, "expression": "a+d"},
            "'d' holds changes that are known only relative",
        ),
        ({"vectors": {"a": "v.safetensors"}}, "'a' is no adapter; name the base"),
        ({"vectors": VECTORS, "expression": "a + c"}, "'c'"),
        ({"vectors": VECTORS, "models": {"m": "base"}, "rule": "mean"}, "the recipe has models"),
        ({"vectors": VECTORS}, "2 names, expected an expression"),
        ({"vectors": {"a": "none"}}, "none: no such file or folder"),
        (
            {"vectors": VECTORS, "rule": "mean", "scale": {"gradient": [0, 1]}},
            "a scale for each tensor",
        ),
    ],
)
def test_what_needs_a_base_is_refused_without_one(
    content: dict[str, Any], said: str, place: Path, run: Run
) -> None:
    TaskVector.load("a").with_base("base").save("v.safetensors")
    write("recipe.yaml", **content)
    code, _, error = run("merge", "recipe.yaml", "--as-adapter", "-o", "sum")
    assert code == 2 and error.startswith("taskvec: recipe.yaml") and said in error and error.count("\n") == 1
    assert not Path("sum").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--rank", "2"], "--rank: given without --as-adapter"),
        (["--only", "mlp"], "--only: given without --as-adapter"),
        (["--as-adapter", "--dry-run"], "--dry-run: given with --as-adapter"),
        (["--as-adapter", "--resume"], "--resume: given with --as-adapter"),
        (["--as-adapter", "-o", "x.safetensors"], "an adapter is a folder"),
        (["--as-adapter", "-o", "a/sum"], "a/sum: lies inside the input"),
        (["--as-adapter", "-o", "b", "--force"], "b: a folder without taskvec.json"),
    ],
)
def test_options_that_contradict_each_other(words: list[str], said: str, place: Path, run: Run) -> None:
    write("recipe.yaml", vectors=VECTORS, expression="a + b")
    before = sorted(Path("b").iterdir())
    output = [] if "-o" in words else ["-o", "sum"]
    code, _, error = run("merge", "recipe.yaml", *words, *output)
    assert code == 2 and said in error and not Path("sum").exists() and sorted(Path("b").iterdir()) == before
