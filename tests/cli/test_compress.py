"""compress, mask, and what they write in other commands, as a user types them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import taskvec as tv
from taskvec.cli import main

SHAPES = {"emb.weight": (60, 8), "layer.0.weight": (16, 24), "layer.0.bias": (4,), "layer.1.weight": (4, 4)}


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    floats = {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}
    return {**floats, "position_ids": torch.arange(4)}


def tuned(seed: int) -> dict[str, Tensor]:
    """The base, moved; layer.1 stays."""
    step = state(seed)
    held = {"layer.1.weight", "position_ids"}
    return {name: value if name in held else value + 0.1 * step[name] for name, value in state(0).items()}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a base and the vectors of two tasks."""
    monkeypatch.chdir(tmp_path)
    tv.save_weights(state(0), "base")
    for seed, name in enumerate(("a", "b"), start=1):
        tv.TaskVector.between("base", tuned(seed)).save(f"{name}.safetensors", task=name)
    return tmp_path


Runner = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    """Run a command: its exit code, and what it printed."""

    def runner(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main(arguments)
        return int(done.value.code or 0), *capsys.readouterr()

    return runner


@pytest.mark.parametrize(
    "form",
    [
        ["bf16"],
        ["sparse", "--density", "0.1"],
        ["sparse", "--density", "0.1", "--dtype", "bfloat16"],
        ["low-rank", "--rank", "2"],
        ["int8"],
        ["1-bit", "--group", "64"],
    ],
)
def test_compress_says_what_it_lost_and_what_it_wrote_is_applied(
    place: Path, run: Runner, form: list[str]
) -> None:
    code, out, _ = run(
        "compress", "a.safetensors", "--form", *form, "-o", "small.safetensors", "--json", "-q"
    )
    said: dict[str, Any] = json.loads(out)
    small, whole = tv.TaskVector.load("small.safetensors"), tv.TaskVector.load("a.safetensors")
    assert code == 0 and said["form"] == form[0]
    assert said["relative_error"] == pytest.approx((small - whole).norm() / whole.norm(), rel=1e-5)
    assert set(said["errors"]) == {"emb.weight", "layer.0.weight", "layer.0.bias"}
    assert said["bytes"] < said["bytes_before"] == 4 * (480 + 384 + 4)
    assert said["tensors_in_the_form"] + said["tensors_kept_as_they_are"] == 3
    assert small.info.task == "a"
    code, _, _ = run("apply", "base", "-v", "a=small.safetensors", "-e", "0.5*a", "-o", "out", "-q")
    expected = tv.apply("base", 0.5 * small)
    assert code == 0 and torch.equal(tv.open_weights("out")["emb.weight"], expected["emb.weight"])
    code, out, _ = run("inspect", "small.safetensors", "a.safetensors", "--json")
    shown = json.loads(out)["files"][0]
    assert code == 0 and shown["kind"] == "task vector" and shown["unchanged_tensors"] == 1
    assert shown["form"] == form[0] and shown["relative_error"] == said["relative_error"]
    assert run("inspect", "small.safetensors")[0] == 0
    assert run("compress", "a.safetensors", "--form", *form, "-o", "folder")[0] == 0
    assert tv.TaskVector.load("folder").norm() == pytest.approx(small.norm())


@pytest.mark.parametrize(
    "options",
    [
        [],
        ["--rescaler", "tensor_mean"],
        ["--method", "tall"],
        ["--method", "tall", "--lam", "a=0.2", "--lam", "b=0.6"],
        ["--method", "tall", "--lam", "0.3", "--dtype", "bfloat16"],
    ],
)
def test_mask_writes_one_file_and_a_task_of_it_is_applied(
    place: Path, run: Runner, options: list[str]
) -> None:
    code, out, _ = run(
        "mask",
        "-v",
        "a=a.safetensors",
        "-v",
        "b=b.safetensors",
        "-o",
        "both.safetensors",
        "--json",
        "-q",
        *options,
    )
    assert code == 0 and set(json.loads(out)["factors"]) == {"a", "b"}
    one = tv.TaskVector.load("both.safetensors#b")
    assert run("apply", "base", "-v", "v=both.safetensors#b", "-o", "out", "-q")[0] == 0
    expected = tv.apply("base", one)
    assert torch.equal(tv.open_weights("out")["layer.0.weight"], expected["layer.0.weight"])
    code, out, _ = run("inspect", "both.safetensors", "a.safetensors", "--json")
    shown = json.loads(out)["files"][0]
    assert code == 0 and shown["kind"] == "masked task vectors" and set(shown["norms"]) == {"a", "b"}
    assert shown["norms"]["b"] == pytest.approx(one.norm())
    assert run("inspect", "both.safetensors")[0] == run("inspect", "both.safetensors", "--headers")[0] == 0
    assert run("compress", "both.safetensors#b", "--form", "int8", "-o", "b8.safetensors", "-q")[0] == 0
    assert run("mask", "-v", "a=a.safetensors", "-v", "b=b.safetensors", "-o", "folder", *options)[0] == 0
    assert run("apply", "base", "-v", "v=folder#a", "-o", "out2", "-q")[0] == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["compress", "a.safetensors", "--form", "sparse", "-o", "x"],
            "form 'sparse': density: field required",
        ),
        (
            ["compress", "a.safetensors", "--form", "sparse", "--density", "0", "-o", "x"],
            "density: input should be greater than 0",
        ),
        (
            ["compress", "a.safetensors", "--form", "sparse", "--density", "0.1", "--rank", "3", "-o", "x"],
            "form 'sparse': unknown key 'rank'",
        ),
        (
            ["compress", "a.safetensors", "--form", "int8", "--dtype", "float16", "-o", "x"],
            "form 'int8': dtype float16 given",
        ),
        (["compress", "a.safetensors", "--form", "zip", "-o", "x"], "zip"),
        (["compress", "a.safetensors", "--form", "low-rank", "--rank", "0", "-o", "x"], "rank"),
        (["compress", "base", "--form", "int8", "-o", "x"], "base: holds weights, expected a task vector"),
        (["compress", "none", "--form", "int8", "-o", "x"], "none: no such file or folder"),
        (
            ["compress", "a.safetensors", "--form", "int8", "-o", "a.safetensors", "--force"],
            "is an input of this very edit",
        ),
        (
            ["compress", "a.safetensors", "--form", "int8", "-o", "b.safetensors"],
            "b.safetensors: exists already",
        ),
        (["mask", "-o", "x"], "vector"),
        (["mask", "-v", "a=a.safetensors", "-v", "b=a.safetensors", "-o", "x"], "are the same vector"),
        (["mask", "-v", "a=a.safetensors", "-o", "x", "--lam", "0.3"], "--lam: given with --method emr"),
        (
            ["mask", "-v", "a=a.safetensors", "-o", "x", "--method", "tall", "--rescaler", "global"],
            "--rescaler: given with --method tall",
        ),
        (
            ["mask", "-v", "a=a.safetensors", "-o", "x", "--method", "tall", "--lam", "much"],
            "--lam: 'much', expected a number",
        ),
        (
            ["mask", "-v", "a=a.safetensors", "-o", "x", "--method", "tall", "--lam", "-1"],
            "lam is -1.0 for 'a', expected a finite number",
        ),
        (
            ["mask", "-v", "a=a.safetensors", "-o", "x", "--method", "tall", "--lam", "c=1"],
            "lam for c, expected one for each of a",
        ),
        (
            ["mask", "-v", "a=a.safetensors", "-o", "a.safetensors", "--force"],
            "is an input of this very edit",
        ),
        (
            ["apply", "base", "-v", "a=a.safetensors#a", "-o", "x"],
            "a.safetensors: holds one task vector, expected masked ones",
        ),
        (["apply", "base", "-v", "a=nothing#a", "-o", "x"], "nothing: no such file or folder"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(
    place: Path, run: Runner, arguments: list[str], message: str
) -> None:
    before = sorted(path.name for path in place.iterdir())
    code, out, err = run(*arguments)
    assert (code, out) == (2, "") and message.lower() in err.lower()
    assert err.startswith("taskvec: ") and err.count("\n") == 1
    assert sorted(path.name for path in place.iterdir()) == before
