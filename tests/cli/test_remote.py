"""Commands on models and vectors that are elsewhere: the same output as with copies of them."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch
import yaml
from torch import Tensor

from hub import lead_here
from hub import serving as serving_hub
from remote import Web, serving
from snippets import commands, snippets
from taskvec.cli import main
from taskvec.vectors import TaskVector
from taskvec.vectors.stored.masked import emr
from taskvec.weights import save_weights
from taskvec.weights.remote import connections

SHAPES = {"embed.weight": (40, 8), "layers.0.mlp.weight": (8, 8), "layers.1.mlp.weight": (8, 8)}


def state(seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator) for name, shape in SHAPES.items()}


def tuned(seed: int) -> dict[str, Tensor]:
    step = state(seed)
    return {name: value + 0.1 * step[name] for name, value in state(0).items()}


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, fine-tuned models, vectors."""
    folder = tmp_path_factory.mktemp("here")
    save_weights(state(0), folder / "base", max_shard_size=1000)
    (folder / "base" / "config.json").write_text('{"model_type": "tiny"}')
    (folder / "base" / "vocab.json").write_text('{"a": 0}')
    for seed, name in enumerate(("a", "b"), start=1):
        save_weights(tuned(seed), folder / name)
        TaskVector.between(folder / "base", folder / name).save(folder / f"{name}.safetensors")
    vectors = {name: TaskVector.load(folder / f"{name}.safetensors") for name in "ab"}
    emr(vectors).save(folder / "masked.safetensors")
    return folder


@pytest.fixture
def web(here: Path) -> Iterator[Web]:
    with serving(here) as served:
        yield served
    connections.close_connections()


@pytest.fixture
def store(here: Path) -> Iterator[str]:
    memory = fsspec.filesystem("memory")
    memory.put(str(here), "/shelf", recursive=True)
    yield "memory://shelf"
    memory.rm("/shelf", recursive=True)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def run(*arguments: str) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as done:
            main(arguments)
        return (int(done.value.code or 0), *capsys.readouterr())

    return run


Run = Callable[..., tuple[int, str, str]]

WRITINGS = {
    "diff": ("diff", "AT/base", "AT/a", "-o", "OUT.safetensors"),
    "apply": (
        "apply",
        "AT/base",
        "-v",
        "a=AT/a.safetensors",
        "-v",
        "b=AT/b.safetensors",
        "-e",
        "0.5*a - 0.2*b",
        "-o",
        "OUT",
    ),
    "a rule": (
        *("apply", "AT/base", "-v", "a=AT/a.safetensors", "-v", "b=AT/b.safetensors"),
        *("--rule", "ties", "-o", "OUT"),
    ),
    "a task of masked ones": ("apply", "AT/base", "-v", "a=AT/masked.safetensors#a", "-e", "a", "-o", "OUT"),
    "compress": (
        "compress",
        "AT/a.safetensors",
        "--form",
        "low-rank",
        "--rank",
        "2",
        "-o",
        "OUT.safetensors",
    ),
    "mask": ("mask", "-v", "a=AT/a.safetensors", "-v", "b=AT/b.safetensors", "-o", "OUT.safetensors"),
    "recipe": ("merge", "recipe.yaml", "-o", "OUT"),
    "mergekit": ("merge", "mergekit.yaml", "-o", "OUT"),
}


def recipes(at: str) -> None:
    ours = {
        "base": f"{at}/base",
        "vectors": {"a": f"{at}/a.safetensors", "m": f"{at}/masked.safetensors#b"},
        "models": {"b": f"{at}/b"},
        "expression": "0.4*a - b + 0.1*m",
    }
    models = [{"model": f"{at}/{name}", "parameters": {"weight": 0.3}} for name in "ab"]
    theirs = {"merge_method": "task_arithmetic", "base_model": f"{at}/base", "models": models}
    Path("recipe.yaml").write_text(yaml.safe_dump(ours))
    Path("mergekit.yaml").write_text(yaml.safe_dump({**theirs, "dtype": "float32"}))


def written(place: Path) -> dict[str, bytes]:
    """The bytes of what was written, without what tells where it came from."""
    if place.is_file():
        content = place.read_bytes()
        return {"data": content[8 + int.from_bytes(content[:8], "little") :]}
    files = {file.name: file.read_bytes() for file in place.iterdir()}
    return {name: content for name, content in files.items() if name not in ("taskvec.json", "README.md")}


@pytest.mark.parametrize("kind", ["web", "store"])
@pytest.mark.parametrize("arguments", WRITINGS.values(), ids=WRITINGS)
def test_the_output_is_that_of_copies(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    run: Run,
    here: Path,
    tmp_path: Path,
    kind: str,
    arguments: tuple[str, ...],
) -> None:
    monkeypatch.chdir(tmp_path)
    made = request.getfixturevalue(kind)
    there = made if isinstance(made, str) else made.url
    for at, out in ((str(here), "near"), (there, "far")):
        recipes(at)
        code, _, err = run(*(text.replace("AT", at).replace("OUT", out) for text in arguments))
        assert code == 0, err
        assert "/tmp/taskvec-" not in err
    end = next(text for text in arguments if text.startswith("OUT")).removeprefix("OUT")
    assert written(Path(f"far{end}")) == written(Path(f"near{end}"))


def test_inspect_shows_the_same(web: Web, store: str, here: Path, run: Run) -> None:
    shown = []
    for at in (str(here), web.url, store):
        code, out, err = run("inspect", f"{at}/base", f"{at}/a.safetensors", f"{at}/b.safetensors", "--json")
        assert code == 0, err
        shown.append(json.loads(out.replace(at, "AT").replace(str(here), "AT")))
    assert shown[0] == shown[1] == shown[2]


def test_no_secret_of_a_url_is_told_or_kept(web: Web, run: Run, tmp_path: Path) -> None:
    at = web.url.replace("//", "//me:hush@")
    vector = f"v={at}/a.safetensors?signature=hidden"
    code, out, err = run(
        "apply", f"{at}/base", "-v", vector, "-e", "v", "-o", str(tmp_path / "out"), "--json"
    )
    assert code == 0, err
    kept = "".join(file.read_text() for file in (tmp_path / "out").glob("*.[jm][sd]*"))
    for text in (out, err, kept):
        assert "hush" not in text and "hidden" not in text
    code, out, err = run(
        "apply", f"{at}/base", "-v", vector, "-v", vector.replace("v=", "w="), "-e", "v", "-o", "x"
    )
    assert code == 2 and "hush" not in err and "hidden" not in err


def test_a_merge_by_urls_keeps_no_secret_of_them(web: Web, run: Run, tmp_path: Path) -> None:
    at = web.url.replace("//", "//me:hush@")
    models = [{"model": f"{at}/{name}?key=hidden", "parameters": {"weight": 0.5}} for name in "ab"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump({"merge_method": "linear", "models": models, "dtype": "float32"}))
    code, out, err = run("merge", str(recipe), "-o", str(tmp_path / "out"), "--json")
    assert code == 0, err
    kept = "".join((tmp_path / "out" / name).read_text() for name in ("taskvec.json", "README.md"))
    assert "hush" not in out + err + kept and "hidden" not in out + err + kept
    assert set(json.loads((tmp_path / "out" / "taskvec.json").read_text())["inputs"]) == {
        f"{web.url}/{name}" for name in "ab"
    }


@pytest.mark.parametrize("command", ["merge", "run", "report"])
def test_a_url_where_a_path_is_due_is_said(command: str, run: Run, tmp_path: Path) -> None:
    code, _, err = run(command, "https://me:hush@host/x?key=hidden", "-o", str(tmp_path / "out"))
    assert code == 2 and "hush" not in err and "hidden" not in err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("inspect", "AT/none.safetensors"), "AT/none.safetensors: no such file (404)"),
        (("inspect", "AT/nothing"), "AT/nothing: no weights found there, and a web server lists no files"),
        (
            ("eval", "AT/base", "--suite", "text8"),
            "AT/base: a model that runs has to lie on the disk; download",
        ),
        (("diff", "AT/base", "hf://one", "-o", "x"), "hf://one: expected a model, hf://ORG/NAME"),
        (("diff", "AT/base", "s4://b/x", "-o", "x"), "s4://b/x: nobody knows the protocol s4://"),
        (("merge", "odd.yaml", "-o", "x"), "AT/none.safetensors: no such file (404)"),
    ],
)
def test_bad_urls_are_refused_in_a_line(
    web: Web, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    odd = {"base": f"{web.url}/base", "vectors": {"a": f"{web.url}/none.safetensors"}, "expression": "a"}
    Path("odd.yaml").write_text(yaml.safe_dump(odd))
    code, _, err = run(*(text.replace("AT", web.url) for text in arguments))
    assert code == 2
    assert said.replace("AT", web.url) in err
    assert err.count("\n") == 1
    assert not Path("x").exists()


def test_the_page_works_as_it_is_printed(
    web: Web, store: str, here: Path, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    pytest.importorskip("huggingface_hub")
    memory = fsspec.filesystem("memory")
    memory.cp("/shelf/a.safetensors", "/shelf/tuned.safetensors")
    memory.cp("/shelf/a", "/shelf/tuned", recursive=True)

    def led(text: str) -> str:
        text = text.replace("https://models.example.com/base", f"{web.url}/a")
        return text.replace("s3://bucket", store)

    blocks = [snippet for snippet in snippets() if snippet.page == "docs/remote.md" and "\n" in snippet.text]
    [recipe] = [block.text for block in blocks if block.language == "yaml"]
    Path("recipe.yaml").write_text(led(recipe))
    with serving_hub() as hub:
        lead_here(hub, monkeypatch)
        hub.put("org/base", here / "base")
        for page, words in commands():
            if page == "docs/remote.md":
                code, _, err = run(*map(led, words))
                assert code == 0, (words, err)
    [python] = [block.text for block in blocks if block.language == "python"]
    exec(led(python), {})
