"""taskvec merge, as a user types it."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from taskvec.cli import main
from taskvec.vectors import TaskVector
from taskvec.weights import open_weights, save_weights

SHAPES = {"embed.weight": (6, 4), "layers.0.mlp.weight": (4, 4), "layers.1.mlp.weight": (4, 4)}


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def tuned(seed: int) -> dict[str, Tensor]:
    step = state(seed)
    return {name: value + 0.1 * step[name] for name, value in state(0).items()}


def write(path: str, **content: object) -> None:
    Path(path).write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A base, two fine-tuned models, one stored vector, and a recipe."""
    monkeypatch.chdir(tmp_path)
    save_weights(state(0), "base")
    Path("base/config.json").write_text('{"model_type": "tiny"}')
    Path("base/README.md").write_text("of the base")
    for seed, name in enumerate(("a", "b"), start=1):
        save_weights(tuned(seed), name, max_shard_size=100)
    TaskVector.between("base", "b").save("b.safetensors", task="second")
    write(
        "recipe.yaml", base="base", vectors={"b": "b.safetensors"}, models={"a": "a"}, expression="0.4*a - b"
    )
    return tmp_path


class Run:
    """What a command printed and how it ended."""

    def __init__(self, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]) -> None:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main(["merge", *arguments])
        self.code = int(done.value.code or 0)
        self.out, self.err = capsys.readouterr()


Runner = Callable[..., Run]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return lambda *arguments: Run(capsys, arguments)


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected(scale: float = 1.0) -> dict[str, Tensor]:
    base = {name: value.double() for name, value in state(0).items()}
    a, b = ({name: value.double() for name, value in tuned(seed).items()} for seed in (1, 2))
    return {n: base[n] + scale * (0.4 * (a[n] - base[n]) - (b[n] - base[n])) for n in SHAPES}


def test_merge_writes_what_the_recipe_says(place: Path, run: Runner) -> None:
    before = snapshot(place)
    done = run("recipe.yaml", "-o", "out", "--json")
    assert (done.code, json.loads(done.out)["edited_tensors"]) == (0, 3)
    written = load_file("out/model.safetensors")
    for name, wanted in expected().items():
        torch.testing.assert_close(written[name].double(), wanted, rtol=0, atol=1e-6)
    assert Path("out/config.json").read_text() == '{"model_type": "tiny"}'
    assert before.items() <= snapshot(place).items()


def test_the_manifest_and_the_card_say_where_it_comes_from(place: Path, run: Runner) -> None:
    run("recipe.yaml", "-o", "out", "-q")
    manifest = json.loads(Path("out/taskvec.json").read_text())
    for name, path in {"base": "base", "a": "a"}.items():
        assert manifest["inputs"][name] == {"ref": path, "fingerprint": open_weights(path).fingerprint()}
    assert manifest["recipe"]["expression"] == "0.4*a - b"
    assert manifest["fingerprint"] == open_weights("out").fingerprint()
    text = Path("out/README.md").read_text()
    assert manifest["inputs"]["a"]["fingerprint"] in text
    assert yaml.safe_load(text.split("```yaml\n")[1].split("```")[0]) == manifest["recipe"]


def test_a_recipe_is_read_from_where_it_lies(
    place: Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "elsewhere").mkdir()
    monkeypatch.chdir(place / "elsewhere")
    assert run("../recipe.yaml", "-o", "out", "-q").code == 0
    assert (place / "elsewhere" / "out" / "model.safetensors").is_file()


def test_a_dry_run_prints_the_plan_and_writes_nothing(place: Path, run: Runner) -> None:
    before = snapshot(place)
    done = run("recipe.yaml", "-o", "out", "--dry-run", "--json")
    found = json.loads(done.out)
    assert (found["edited"], found["copied"], found["passes"], len(found["shards"])) == (3, 0, 1, 1)
    assert "Nothing was written" in run("recipe.yaml", "-o", "out", "--dry-run").out
    assert snapshot(place) == before
    assert run("recipe.yaml", "-o", "out", "-q").code == 0
    assert Path("out/model.safetensors").stat().st_size == found["shards"][0]


def test_the_plan_says_what_its_time_leaves_out(place: Path, run: Runner) -> None:
    said = "base: base\nmodels: {a: a, c: base/model.safetensors}\nrule: ties\nparameters: {trim: global}\n"
    Path("passes.yaml").write_text(said)
    shown = run("passes.yaml", "-o", "out", "--dry-run").out
    assert " times over " in shown and "to read, computing comes on top, estimated" in shown
    assert "to read and compute, estimated" in run("recipe.yaml", "-o", "out", "--dry-run").out


def test_the_scale_and_the_shards_of_the_command_line_win(place: Path, run: Runner) -> None:
    assert run("recipe.yaml", "-o", "out", "--scale", "0.5", "--max-shard-gb", "1e-7", "-q").code == 0
    assert len(list(Path("out").glob("model-*.safetensors"))) == 3
    merged = open_weights("out")
    for name, wanted in expected(0.5).items():
        torch.testing.assert_close(merged[name].double(), wanted, rtol=0, atol=1e-6)
    assert json.loads(Path("out/taskvec.json").read_text())["recipe"]["scale"] == 0.5


def test_memory_threads_and_resume_do_not_change_a_byte(place: Path, run: Runner) -> None:
    run("recipe.yaml", "-o", "out", "-q")
    run("recipe.yaml", "-o", "again", "--memory", "1MB", "--resume", "-q")
    assert load_bytes("out") == load_bytes("again")


def load_bytes(folder: str) -> bytes:
    return Path(folder, "model.safetensors").read_bytes()


def test_the_schema_is_printed_for_editors(run: Runner) -> None:
    done = run("--schema")
    assert done.code == 0
    assert {"base", "models", "parameters"} <= json.loads(done.out)["properties"].keys()


def test_a_recipe_of_mergekit_is_read_too(place: Path, run: Runner) -> None:
    weight = {"parameters": {"weight": 0.5}}
    write(
        "kit.yaml",
        merge_method="task_arithmetic",
        base_model="base",
        models=[{"model": name, **weight} for name in ("a", "b")],
        dtype="float32",
    )
    assert run("kit.yaml", "-o", "out", "-q").code == 0
    merged = load_file("out/model.safetensors")
    for name, value in state(0).items():
        wanted = (tuned(1)[name].double() + tuned(2)[name].double()) / 2
        assert merged[name].shape == value.shape
        torch.testing.assert_close(merged[name].double(), wanted, rtol=0, atol=1e-6)
    refused = run("kit.yaml", "-o", "other", "--scale", "2")
    assert (refused.code, "--scale" in refused.err) == (2, True)


def test_nan_in_an_input_is_refused_unless_it_is_allowed(place: Path, run: Runner) -> None:
    bad = tuned(1)
    bad["embed.weight"][0, 0] = float("nan")
    save_weights(bad, "a", force=True, allow_nonfinite=True)
    done = run("recipe.yaml", "-o", "out", "-q")
    assert done.code == 2
    assert "'embed.weight' holds 1 values that are NaN or infinite" in done.err
    assert not Path("out").exists()
    assert run("recipe.yaml", "-o", "out", "-q", "--allow-nonfinite").code == 0
    assert bool(load_file("out/model.safetensors")["embed.weight"][0, 0].isnan())


REFUSED = {
    "no output": (("recipe.yaml",), "--output (-o): missing"),
    "no recipe": (("-o", "out"), "RECIPE: missing"),
    "no such recipe": (("nowhere.yaml", "-o", "out"), "nowhere.yaml: no such file"),
    "no YAML": (("base/model.safetensors", "-o", "out"), "cannot be read as text"),
    "an empty recipe": (("empty.yaml", "-o", "out"), "nothing, expected a recipe"),
    "a key twice": (("twice.yaml", "-o", "out"), "key 'base' is given twice"),
    "memory of nothing": (("recipe.yaml", "-o", "out", "--memory", "0MB"), "--memory: '0MB'"),
    "memory for nothing": (("recipe.yaml", "-o", "out", "--memory", "1B"), "'1B', expected a size from 1MB"),
    "memory in words": (("recipe.yaml", "-o", "out", "--memory", "much"), "such as 512MB or 2GB"),
    "shards of no size": (("recipe.yaml", "-o", "out", "--max-shard-gb", "0"), "--max-shard-gb"),
    "a scale that is no number": (("recipe.yaml", "-o", "out", "--scale", "nan"), "scale: nan"),
    "an input as output": (("recipe.yaml", "-o", "base", "--force"), "is an input of this very edit"),
    "a model as output": (("recipe.yaml", "-o", "a", "--force"), "is an input of this very edit"),
    "the recipe as output": (
        ("recipe.yaml", "-o", "recipe.yaml", "--force"),
        "is an input of this very edit",
    ),
    "the folder of the recipe": (("recipe.yaml", "-o", ".", "--force"), "is an input of this very edit"),
    "an output that exists": (("recipe.yaml", "-o", "b.safetensors"), "exists already"),
    "a folder of somebody else": (("recipe.yaml", "-o", "foreign", "--force"), "remove it yourself"),
    "a truncated input": (("cut.yaml", "-o", "out"), "cut.safetensors"),
    "a pickle that runs code": (("pickle.yaml", "-o", "out"), "evil.bin"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["merge", "dry run"])
def test_bad_input_is_one_line_and_exit_code_2(
    place: Path, run: Runner, case: str, more: tuple[str, ...]
) -> None:
    Path("empty.yaml").write_text("")
    Path("twice.yaml").write_text("base: base\nbase: a\n")
    Path("foreign").mkdir()
    Path("foreign/letter.txt").write_text("mine")
    Path("cut.safetensors").write_bytes(Path("base/model.safetensors").read_bytes()[:-8])
    write("cut.yaml", base="base", models={"cut": "cut.safetensors"})
    Path("evil.bin").write_bytes(b"cposix\nsystem\n(S'touch pwned'\ntR.")
    write("pickle.yaml", base="base", models={"evil": "evil.bin"})
    before = snapshot(place)
    arguments, message = REFUSED[case]
    done = run(*arguments, *more)
    assert done.code == 2
    assert message in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert snapshot(place) == before


def test_a_merged_llama_loads_and_computes_what_it_should(tmp_path: Path, run: Runner) -> None:
    config = LlamaConfig(
        hidden_size=16,
        num_hidden_layers=3,
        num_attention_heads=2,
        num_key_value_heads=1,
        intermediate_size=24,
        vocab_size=40,
        max_position_embeddings=32,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    base = LlamaForCausalLM(config)
    base.save_pretrained(tmp_path / "base")
    models = []
    for name in ("math", "code"):
        model = LlamaForCausalLM(config)
        model.load_state_dict(base.state_dict())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        model.save_pretrained(tmp_path / name)
        models.append({key: value.double() for key, value in model.state_dict().items()})
    recipe = {
        "base": "base",
        "models": {"math": "math", "code": "code"},
        "rule": "sum",
        "parameters": {"weights": {"math": {"gradient": [0, 1], "default": 0.5}, "code": 0.5}},
        "scale": {"filters": [{"match": "self_attn", "value": 0}], "default": 0.8},
    }
    write(str(tmp_path / "recipe.yaml"), **recipe)
    assert run(str(tmp_path / "recipe.yaml"), "-o", str(tmp_path / "out"), "-q").code == 0
    wanted = LlamaForCausalLM(config).double()
    weights = {}
    for name, value in base.state_dict().items():
        block = int(name.split(".")[2]) if ".layers." in name else None
        math, code = (model[name] - value.double() for model in models)
        step = (0.5 if block is None else block / 2) * math + 0.5 * code
        weights[name] = value.double() + (0 if "self_attn" in name else 0.8) * step
    wanted.load_state_dict(weights)
    merged = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        torch.testing.assert_close(
            merged(tokens).logits.double(), wanted(tokens).logits, rtol=1e-4, atol=1e-5
        )
