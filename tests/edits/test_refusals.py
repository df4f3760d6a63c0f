"""What other tools let pass in silence is refused in one line, and nothing is written."""
# ruff: noqa: E501  # the tables of bad input read best with a case on a line

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from taskvec.cli import main
from taskvec.vectors import TaskVector
from taskvec.weights import open_weights, save_weights

SHAPES = {
    "model.embed_tokens.weight": (6, 4),
    **{f"model.layers.{i}.mlp.up_proj.weight": (8, 4) for i in range(2)},
    **{f"model.layers.{i}.input_layernorm.weight": (4,) for i in range(2)},
    "lm_head.weight": (6, 4),
}
EMBED, UP, NORM = (
    "model.embed_tokens.weight",
    "model.layers.0.mlp.up_proj.weight",
    "model.layers.0.input_layernorm.weight",
)
CONFIG = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": 2}
State = dict[str, Tensor]


def state(seed: int) -> State:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def moved(seed: int) -> State:
    step = state(seed)
    return {name: value + 0.1 * step[name] for name, value in state(0).items()}


def save(tensors: State, folder: str) -> None:
    """A model in two shards or so, in place of what was there."""
    shutil.rmtree(folder, ignore_errors=True)
    save_weights(tensors, folder, max_shard_size=200)
    Path(folder, "config.json").write_text(json.dumps(CONFIG))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, models a and b fine-tuned from it, and the vector of b. Not to be written to."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for seed, name in enumerate(("base", "a", "b")):
            save(moved(seed) if seed else state(0), name)
        TaskVector.between("base", "b").save("b.safetensors")
    return folder


@pytest.fixture
def place(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, as the working directory."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(made, tmp_path, dirs_exist_ok=True))


def snapshot(folder: Path) -> dict[str, bytes]:
    """Every file, and every folder, as it is."""
    paths = folder.rglob("*")
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else b"" for path in paths}


class Run:
    """How a command ended and what it said."""

    def __init__(self, capsys: pytest.CaptureFixture[str], *arguments: str) -> None:
        with pytest.raises(SystemExit) as done:
            main(arguments)
        self.code = int(done.value.code or 0)
        self.out, self.err = capsys.readouterr()


Runner = Callable[..., Run]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Runner:
    return lambda *arguments: Run(capsys, *arguments)


def write(content: object) -> str:
    Path("recipe.yaml").write_text(yaml.safe_dump(content, sort_keys=False))
    return "recipe.yaml"


# The ways to say: of base, a and b make one model.


def ours(**keys: Any) -> list[str]:
    """A recipe."""
    return ["merge", write({"base": "base", "models": {"a": "a", "b": "b"}, "rule": "sum", **keys})]


def average(**keys: Any) -> list[str]:
    """A recipe without a base."""
    return ["merge", write({"models": {"origin": "base", "a": "a", "b": "b"}, "rule": "mean", **keys})]


def theirs(method: str = "task_arithmetic", **keys: Any) -> list[str]:
    """A recipe of mergekit."""
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in "ab"]
    return ["merge", write({"merge_method": method, "base_model": "base", "models": models, **keys})]


def their_average(**keys: Any) -> list[str]:
    """A recipe of mergekit without a base."""
    models = [{"model": name, "parameters": {"weight": 0.5}} for name in ("base", "a", "b")]
    return ["merge", write({"merge_method": "linear", "models": models, **keys})]


def diff() -> list[str]:
    return ["diff", "base", "a"]


WAYS = {way.__name__: way for way in (ours, average, theirs, their_average, diff)}


# What may be wrong with a model.


def with_tensor(name: str, tensor: Tensor, folder: str = "a") -> Callable[[], None]:
    """One tensor other than it was, or new."""
    return lambda: save({**(state(0) if folder == "base" else moved(1)), name: tensor}, folder)


def without(name: str, folder: str = "a") -> Callable[[], None]:
    """One tensor less."""

    def damage() -> None:
        tensors = state(0) if folder == "base" else moved(1)
        save({key: value for key, value in tensors.items() if key != name}, folder)

    return damage


def holding(value: float, folder: str = "a") -> Callable[[], None]:
    """One entry that is no number."""

    def damage() -> None:
        tensors = state(0) if folder == "base" else moved(1)
        tensors[UP][3, 1] = value
        shutil.rmtree(folder)
        save_weights(tensors, folder, allow_nonfinite=True)
        Path(folder, "config.json").write_text(json.dumps(CONFIG))

    return damage


def shards(folder: str = "a") -> list[Path]:
    return sorted(Path(folder).glob("*.safetensors"))


def truncate(number: int) -> Callable[[], None]:
    return lambda: os.truncate(shards()[number], shards()[number].stat().st_size - 7)


def truncate_single() -> None:
    shutil.rmtree("a")
    save_weights(moved(1), "a", max_shard_size=1e9)
    Path("a", "config.json").write_text(json.dumps(CONFIG))
    truncate(0)()


def index(change: Callable[[dict[str, str]], None]) -> Callable[[], None]:
    """Another map from tensors to shards."""

    def damage() -> None:
        path = Path("a", "model.safetensors.index.json")
        content = json.loads(path.read_text())
        change(content["weight_map"])
        path.write_text(json.dumps(content))

    return damage


def swap(where: dict[str, str]) -> None:
    where[UP], where[EMBED] = where[EMBED], where[UP]


def lose(where: dict[str, str]) -> None:
    del where[UP]


def in_two_shards() -> None:
    first, second = shards()[:2]
    save_file({**load_file(second), **load_file(first)}, second)


def twice_in_a_header() -> None:
    path = shards()[0]
    content = path.read_bytes()
    [size] = struct.unpack("<Q", content[:8])
    header = content[8 : 8 + size].strip()
    entry = header[header.index(b'"model.') : header.index(b"}", header.index(b'"model.')) + 1]
    header = header[:-1] + b"," + entry + b"}"
    path.write_bytes(struct.pack("<Q", len(header)) + header + content[8 + size :])


def unfinished() -> None:
    """One of two shards, and no index."""
    Path("a", "model.safetensors.index.json").unlink()
    shards()[1].unlink()


def quantized(dtype: torch.dtype, *folders: str) -> Callable[[], None]:
    """Matrices in eight bits, and no scales that would give them a meaning."""

    def damage() -> None:
        for folder in folders:
            tensors = state(0) if folder == "base" else moved(1 if folder == "a" else 2)
            save({key: (20 * t).to(dtype) if t.ndim == 2 else t for key, t in tensors.items()}, folder)

    return damage


class Trap:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("sprung",))


def hostile() -> None:
    shutil.rmtree("a")
    Path("a").mkdir()
    torch.save({**moved(1), "trap": Trap()}, "a/pytorch_model.bin")


EVERY = set(WAYS)
STRICT = {"ours", "average", "diff"}  # mergekit's files may mix dtypes: all is cast
DAMAGES: dict[str, tuple[Callable[[], None], set[str], str]] = {
    "another shape": (with_tensor(UP, torch.ones(8, 5)), EVERY, f"'{UP}' has shape"),
    "another shape in the base": (with_tensor(UP, torch.ones(7, 4), "base"), EVERY, f"'{UP}' has shape"),
    "transposed": (with_tensor(UP, torch.ones(4, 8)), EVERY, "was it saved transposed?"),
    "more tokens": (with_tensor(EMBED, torch.ones(9, 4)), EVERY, "vocabularies of"),
    "more tokens in the base": (with_tensor(EMBED, torch.ones(9, 4), "base"), EVERY, "vocabularies of"),
    "a tensor too few": (without(UP), EVERY, f"'{UP}'"),
    "a tensor too many": (with_tensor("model.layers.2.extra.weight", torch.ones(3)), EVERY, "'model.layers.2.extra.weight'"),
    "a tensor too few in the base": (without(UP, "base"), EVERY, f"'{UP}'"),
    "another dtype": (with_tensor(UP, moved(1)[UP].to(torch.complex64)), STRICT, f"'{UP}' has dtype complex64"),
    "NaN": (holding(float("nan")), EVERY, "1 values that are NaN or infinite"),
    "infinity": (holding(float("inf")), EVERY, "1 values that are NaN or infinite"),
    "NaN in the base": (holding(float("nan"), "base"), EVERY, "1 values that are NaN or infinite"),
    "a file that was cut off": (truncate_single, EVERY, "a/model.safetensors: holds"),
    "a second shard that was cut off": (truncate(1), EVERY, "a/model-00002-of-"),
    "a missing shard": (lambda: shards()[1].unlink(), EVERY, "shard 'model-00002-of-"),
    "an index that lies": (index(swap), EVERY, "is not in 'model-0000"),
    "an index with a ghost": (index(lambda where: where.update(ghost=where[UP])), EVERY, "'ghost' is not in"),
    "an index with a gap": (index(lose), EVERY, "no part of the weights in this folder"),
    "a tensor in two shards": (in_two_shards, EVERY, "lies in both"),
    "a name twice in a header": (twice_in_a_header, EVERY, "is given twice"),
    "a shard without an index": (unfinished, EVERY, "no index"),
    "int8 without scales": (quantized(torch.int8, "a"), EVERY, "has dtype int8"),
    "fp8 without scales": (quantized(torch.float8_e4m3fn, "a"), EVERY, "has dtype float8_e4m3fn"),
    "only int8": (quantized(torch.int8, "base", "a", "b"), EVERY, "int8"),
    "only fp8": (quantized(torch.float8_e4m3fn, "base", "a", "b"), EVERY, "float8_e4m3fn"),
    "a pickle with code": (hostile, EVERY, "holds more than tensors"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("damage", "way"),
    [(damage, way) for damage, (_, ways, _) in DAMAGES.items() for way in WAYS if way in ways],
)
def test_a_model_that_does_not_fit_is_refused(damage: str, way: str, place: Path, run: Runner) -> None:
    inflict, _, words = DAMAGES[damage]
    inflict()
    refused(place, run, WAYS[way](), words)


def refused(place: Path, run: Runner, arguments: list[str], words: str, *more: str) -> None:
    """Exit code 2, a line that holds ``words``, and no change on the disk."""
    before = snapshot(place)
    done = run(*arguments, *(more or ("-o", "out")), "-q")
    said = [line for line in done.err.splitlines() if not line.startswith("note: ")]
    assert (done.code, done.out, len(said)) == (2, "", 1), done.err
    assert words in said[0]
    assert snapshot(place) == before
    assert not Path("sprung").exists()


NAN, INF = float("nan"), float("inf")
TWICE = {"models": {"a": "a", "b": "./a"}}


def ours_with(rule: str, **parameters: Any) -> Callable[[], list[str]]:
    return lambda: ours(rule=rule, parameters=parameters)


def theirs_with(method: str, **parameters: Any) -> Callable[[], list[str]]:
    return lambda: theirs(method, parameters=parameters)


def weighing(weight: float) -> list[dict[str, Any]]:
    return [{"model": name, "parameters": {"weight": weight}} for name in "ab"]


REQUESTS: dict[str, tuple[Callable[[], list[str]], str]] = {
    "a weight of NaN": (ours_with("sum", weights=[NAN, 1]), "weights"),
    "a weight of NaN by name": (ours_with("sum", weights={"a": NAN, "b": 1}), "weights"),
    "an infinite weight": (ours_with("mean", weights=[INF, 1]), "weights"),
    "a scale of NaN": (lambda: ours(scale=NAN), "scale"),
    "an infinite scale": (lambda: ours(scale=INF), "scale"),
    "a scale of NaN on a line": (lambda: ours(scale={"gradient": [0, NAN]}), "scale"),
    "a scale that overflows": (lambda: ours(scale=1e39), "1e+39, expected a finite number"),
    "a weight that overflows": (ours_with("sum", weights=[1e39, 1]), "1e+39, expected a finite number"),
    "factors that overflow together": (lambda: ours(scale=1e30, parameters={"weights": [1e30, 1]}), "finite"),
    "a dtype that overflows": (lambda: ours(scale=1e6, dtype="float16"), "NaN or infinite"),
    "an unknown key": (lambda: ours(paramaters={"weights": [1, 1]}), "did you mean 'parameters'?"),
    "an unknown parameter": (ours_with("ties", kep=0.2), "did you mean 'keep'?"),
    "an unknown rule": (ours_with("tise"), "did you mean 'ties'?"),
    "an unknown dtype": (lambda: ours(dtype="bf16"), "dtype"),
    "an unknown filter key": (lambda: ours(scale={"filter": [{"match": "mlp", "value": 1}]}), "did you mean 'filters'?"),
    "a filter that matches nothing": (lambda: ours(scale={"filters": [{"match": "mpl", "value": 1}], "default": 1}), "'mpl'"),
    "nothing kept": (ours_with("ties", keep=0), "keep is 0"),
    "nothing kept of each": (ours_with("dare", density=0), "density is 0"),
    "nothing left between two cuts": (ours_with("breadcrumbs", density=0.1, gamma=0.95), "gamma"),
    "the same model twice, to be averaged": (lambda: ours(rule="mean", **TWICE), "the same"),
    "the same model twice, to be elected": (lambda: ours(rule="ties", **TWICE), "the same"),
    "an empty file": (lambda: ["merge", write(None)], "recipe.yaml"),
    "mergekit: a weight of NaN": (lambda: theirs(models=weighing(NAN)), "weight"),
    "mergekit: an infinite weight": (lambda: theirs(models=weighing(INF)), "weight"),
    "mergekit: a weight that overflows": (lambda: theirs(models=weighing(1e39)), "finite"),
    "mergekit: a lambda of NaN": (theirs_with("task_arithmetic", **{"lambda": NAN}), "lambda"),
    "mergekit: an unknown key": (lambda: theirs(paramaters={"density": 0.2}), "did you mean 'parameters'?"),
    "mergekit: an unknown parameter": (theirs_with("task_arithmetic", lamda=5), "did you mean 'lambda'?"),
    "mergekit: an unknown method": (lambda: theirs("task_arithmetics"), "did you mean 'task_arithmetic'?"),
    "mergekit: an unknown method, dashed": (lambda: theirs("dare-ties"), "dare_ties"),
    "mergekit: an unknown dtype": (lambda: theirs(dtype="bf16"), "bfloat16"),
    "mergekit: a density of 0": (theirs_with("ties", density=0), "density"),
    "mergekit: the same model twice": (lambda: theirs(models=[*weighing(0.5)[:1], *weighing(0.5)[:1]]), "twice"),
    "mergekit: no models": (lambda: theirs(models=[]), "models"),
}  # fmt: skip


@pytest.mark.parametrize("request_", REQUESTS)
def test_a_request_that_makes_no_sense_is_refused(request_: str, place: Path, run: Runner) -> None:
    ask, words = REQUESTS[request_]
    refused(place, run, ask(), words)


@pytest.mark.parametrize("way", [ours, average, theirs, their_average])
@pytest.mark.parametrize("target", ["base", "a", "b/", ".", "shard", "link"])
def test_an_output_that_is_an_input_is_refused(
    target: str, way: Callable[[], list[str]], place: Path, run: Runner
) -> None:
    Path("link").symlink_to("a")
    path = str(shards("a")[0]) if target == "shard" else target
    refused(place, run, way(), "", "-o", path)
    refused(place, run, way(), "is an input", "-o", path, "--force")
    refused(place, run, way(), "is an input", "-o", path, "--force", "--resume")


@pytest.mark.parametrize("way", [ours, theirs])
def test_shards_of_someone_else_in_the_target_are_never_mixed_in(
    way: Callable[[], list[str]], place: Path, run: Runner
) -> None:
    shutil.copytree("b", "out")
    Path("out/taskvec.json").unlink()
    refused(place, run, way(), "out: exists already")
    refused(place, run, way(), "not written by taskvec", "-o", "out", "--force")
    refused(place, run, way(), "not written by taskvec", "-o", "out", "--force", "--resume")


def test_an_older_output_is_replaced_whole(place: Path, run: Runner) -> None:
    few = ("--max-shard-gb", "1")
    assert run(*ours(), "-o", "out", "--max-shard-gb", "1e-7").code == 0
    assert len(shards("out")) > 1
    refused(place, run, ours(scale=0.5), "out: exists already; --force")
    assert run(*ours(scale=0.5), "-o", "out", *few, "--force").code == 0
    assert run(*ours(scale=0.5), "-o", "afresh", *few).code == 0
    assert [path.name for path in shards("out")] == ["model.safetensors"]
    assert snapshot(Path("out")).keys() == snapshot(Path("afresh")).keys()
    assert open_weights("out").fingerprint() == open_weights("afresh").fingerprint()


@pytest.mark.parametrize(
    "ask",
    [
        ours_with("ties", keep=1e-6),
        ours_with("breadcrumbs", density=0.01, gamma=0),
        ours_with("della", density=0.3, epsilon=0.1),
        theirs_with("ties", density=1e-6),
        theirs_with("breadcrumbs", density=0.9, gamma=0),
        theirs_with("breadcrumbs", density=0.5, gamma=1),
    ],
)
def test_a_small_fraction_of_a_small_tensor_is_never_nothing(
    ask: Callable[[], list[str]], place: Path, run: Runner
) -> None:
    assert run(*ask(), "-o", "out").code == 0
    base, edited = open_weights("base"), open_weights("out")
    assert [name for name in base if torch.equal(base[name], edited[name])] == []
