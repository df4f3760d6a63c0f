"""Where commands write, and what they put there beside the weights."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from taskvec.cli import main
from taskvec.vectors import TaskVector
from taskvec.weights import open_weights

Runner = Callable[..., tuple[int, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    def call(*arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main(arguments)
        return int(done.value.code or 0), capsys.readouterr().err

    return call


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base and a model of two layers, a vector between them, recipes of both dialects."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(("base", "tuned")):
        Path(name).mkdir()
        torch.manual_seed(seed)
        save_file({f"layer.{n}.weight": torch.randn(4, 4) for n in range(2)}, f"{name}/model.safetensors")
    TaskVector.between("base", "tuned").save("v.safetensors")
    Path("recipe.yaml").write_text("base: base\nvectors: {v: v.safetensors}\n")
    models = "models: [{model: base, parameters: {weight: 1}}, {model: tuned, parameters: {weight: 1}}]"
    Path("theirs.yaml").write_text(f"merge_method: linear\n{models}\ndtype: float32\n")
    return tmp_path


WRITES = {
    "diff": ("diff", "base", "tuned"),
    "diff --rank": ("diff", "base", "tuned", "--rank", "1"),
    "apply": ("apply", "base", "-v", "v=v.safetensors"),
    "merge": ("merge", "recipe.yaml"),
    "merge mergekit": ("merge", "theirs.yaml"),
    "compress": ("compress", "v.safetensors", "--form", "bf16"),
}
FORMATS = ("m.gguf", "m.bin", "m.pt", "m.pth", "m.ckpt", "m.onnx", "m.h5", "m.msgpack", "m.npz", "m.zip")


def shown(place: Path) -> dict[str, int]:
    return {str(path.relative_to(place)): path.stat().st_mtime_ns for path in place.rglob("*")}


@pytest.mark.parametrize("command", WRITES)
def test_no_command_writes_under_a_name_of_another_format(command: str, place: Path, run: Runner) -> None:
    before = shown(place)
    for name in FORMATS:
        code, said = run(*WRITES[command], "-o", name)
        assert (
            code == 2 and name in said and "expected" in said and said.count("\n") == 1 + said.count("note:")
        )
    assert shown(place) == before


@pytest.mark.parametrize("command", WRITES)
def test_every_command_takes_an_empty_folder_and_no_other(command: str, place: Path, run: Runner) -> None:
    for name in ("out", "full"):
        Path(name).mkdir()
    Path("full/.gitkeep").write_text("")
    code, said = run(*WRITES[command], "-o", "full", "-q")
    assert code == 2 and "full: exists already and holds '.gitkeep'" in said
    assert run(*WRITES[command], "-o", "out", "-q")[0] == 0
    assert Path("out/taskvec.json").is_file()
    assert {path.name for path in Path("full").iterdir()} == {".gitkeep"}


def test_statistics_are_no_pickle_either(place: Path, run: Runner) -> None:
    code, said = run("stats", "base", "-t", "x", "-o", "s.pt")
    assert code == 2 and "s.pt" in said and not Path("s.pt").exists()


def test_an_empty_folder_stays_what_it_was_when_the_edit_is_refused(place: Path, run: Runner) -> None:
    Path("out").mkdir()
    save_file({"layer.0.weight": torch.full((4, 4), torch.nan)}, "base/model.safetensors")
    save_file({"layer.0.weight": torch.ones(4, 4)}, "tuned/model.safetensors")
    assert run("merge", "theirs.yaml", "-o", "out", "-q")[0] == 2
    assert list(Path("out").iterdir()) == [] and not list(place.glob(".out*"))


@pytest.mark.parametrize("command", ["apply", "merge", "merge mergekit"])
def test_what_loading_needs_goes_along_and_is_counted_by_the_plan(
    command: str, place: Path, run: Runner, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("tokenizer.spm", "LICENSE", "additional_chat_templates/rag.jinja", "head.pt", "code.py"):
        Path("base", name).parent.mkdir(exist_ok=True)
        Path("base", name).write_text("x" * 1000)
    code, said = run(*WRITES[command], "-o", "out", "-q")
    assert code == 0
    assert "note: base: left behind: 'head.pt'" in said
    assert "note: base: 'code.py' goes with the output as it is: code of the model's author" in said
    files = {str(path.relative_to("out")) for path in Path("out").rglob("*") if path.is_file()}
    ours = {"README.md", "taskvec.json", "model.safetensors"}
    assert files - ours == {"tokenizer.spm", "LICENSE", "additional_chat_templates/rag.jinja", "code.py"}
    with pytest.raises(SystemExit):
        main([*WRITES[command], "-o", "other", "--dry-run", "--json"])
    plan = capsys.readouterr()
    assert "left behind: 'head.pt'" in plan.err
    assert json.loads(plan.out)["written"] > 4000


def test_modules_of_sentence_transformers_are_edited_by_every_dialect(place: Path, run: Runner) -> None:
    for seed, name in enumerate(("base", "tuned"), start=5):
        torch.manual_seed(seed)
        Path(name, "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
        Path(name, "2_Dense").mkdir()
        save_file({"linear.weight": torch.randn(2, 4)}, f"{name}/2_Dense/model.safetensors")
    assert run("diff", "base", "tuned", "-o", "dense.safetensors", "-q")[0] == 0
    assert "2_Dense.linear.weight" in load_file("dense.safetensors")
    recipe = "base: base\nmodels: {a: tuned}\nscale: 0.5\n"
    Path("recipe.yaml").write_text(recipe)
    first, second = (
        load_file(f"{name}/2_Dense/model.safetensors")["linear.weight"] for name in ("base", "tuned")
    )
    middle = (first.double() + second.double()) / 2
    for out, command in {
        "o1": ("apply", "base", "-v", "a=dense.safetensors", "--scale", "0.5"),
        "o2": ("merge", "recipe.yaml"),
        "o3": ("merge", "theirs.yaml"),
    }.items():
        assert run(*command, "-o", out, "-q")[0] == 0
        made = load_file(f"{out}/2_Dense/model.safetensors")["linear.weight"]
        assert torch.allclose(made.double(), middle, rtol=0, atol=1e-6)
        assert Path(out, "modules.json").is_file()


@pytest.mark.parametrize("dialect", ["recipe.yaml", "theirs.yaml"])
def test_modules_beside_a_network_that_transformers_knows_are_no_strangers(
    dialect: str, place: Path, run: Runner, tiny_model: Path
) -> None:
    for seed, name in enumerate(("base", "tuned"), start=5):
        shutil.rmtree(name)
        shutil.copytree(tiny_model, name)
        Path(name, "modules.json").write_text('[{"path": ""}, {"path": "2_Dense"}]')
        Path(name, "2_Dense").mkdir()
        save_file({"linear.weight": torch.full((2, 4), float(seed))}, f"{name}/2_Dense/model.safetensors")
    Path("recipe.yaml").write_text("base: base\nmodels: {a: tuned}\nscale: 0.5\ndtype: bfloat16\n")
    code, said = run("merge", dialect, "-o", "out", "-q")
    assert code == 0, said
    made = load_file("out/2_Dense/model.safetensors")["linear.weight"]
    assert torch.equal(made.float(), torch.full((2, 4), 5.5))


def test_an_edit_of_an_edit_loads_as_the_base_did(place: Path, run: Runner) -> None:
    for name in ("base", "tuned"):
        Path(name, "model.safetensors").rename(Path(name, "diffusion_pytorch_model.safetensors"))
        Path(name, "config.json").write_text('{"_class_name": "Transformer2DModel"}')
    assert run("apply", "base", "-v", "v=v.safetensors", "-o", "one", "-q", "--max-shard-gb", "7e-8")[0] == 0
    assert run("diff", "base", "one/diffusion_pytorch_model.safetensors.index.json", "-o", "w", "-q")[0] == 0
    assert run("apply", "base", "-v", "w=w", "-o", "two", "-q")[0] == 0
    assert [path.name for path in Path("two").glob("*.safetensors")] == [
        "diffusion_pytorch_model.safetensors"
    ]
    expected = open_weights("tuned")
    assert all(
        torch.allclose(tensor, expected[name], atol=1e-6) for name, tensor in open_weights("two").items()
    )
