"""``taskvec push``: what lies in a repository afterwards, read back as anybody would; and what is refused."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from hub import TOKEN, Hub, Repo, serving
from snippets import commands, snippets
from taskvec import TaskVector, open_weights
from taskvec.edits.upload import check_name, push
from taskvec.errors import InputError

Push = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    with serving() as hub:
        yield hub


@pytest.fixture
def shell(hub: Hub, tmp_path: Path) -> Push:
    """Runs ``taskvec`` where this hub is the hub."""

    def run(*words: object, token: str | None = TOKEN, **more: str) -> "subprocess.CompletedProcess[str]":
        inherited = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
        done = subprocess.run(
            [sys.executable, *([] if words[0] == "-c" else ["-m", "taskvec"]), *map(str, words)],
            env={**inherited, **hub.environment(tmp_path / "home", token=token), **more},
            capture_output=True,
            text=True,
            timeout=120,
            cwd=tmp_path,
        )
        assert TOKEN not in done.stdout + done.stderr
        assert "Traceback" not in done.stderr and "internal error" not in done.stderr
        assert not hub.leaks
        return done

    return run


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    base = {"a.weight": torch.randn(40, 40), "b.weight": torch.randn(40)}
    folders = {}
    for name, moved in {"base": 0.0, "tuned": 0.25}.items():
        folders[name] = tmp_path / name
        folders[name].mkdir()
        save_file(
            {key: value + moved for key, value in base.items()},
            folders[name] / "model.safetensors",
            metadata={"format": "pt"},
        )
        (folders[name] / "config.json").write_text('{"model_type": "own", "_name_or_path": "/home/me/x"}')
    (folders["base"] / "README.md").write_text("---\nlicense: mit\n---\n# Base\n")
    (folders["base"] / ".env").write_text("SECRET=1")
    return folders


@pytest.fixture
def vector(models: dict[str, Path], tmp_path: Path) -> Path:
    made = TaskVector.between(models["base"], models["tuned"])
    made.save(tmp_path / "sum.safetensors")
    return tmp_path / "sum.safetensors"


def inspected(shell: Push, ref: str) -> dict[str, Any]:
    done = shell("inspect", ref, "--json")
    assert done.returncode == 0, done.stderr
    facts: dict[str, Any] = json.loads(done.stdout)["files"][0]
    return facts


def test_a_vector_comes_back_as_it_was(hub: Hub, shell: Push, vector: Path, models: dict[str, Path]) -> None:
    assert str(models["base"]).encode() in vector.read_bytes()
    done = shell("push", vector, "me/vector")
    assert done.returncode == 0, done.stderr
    assert f"Pushed: {hub.url}/me/vector/commit/" in done.stdout
    files = hub.repos["me/vector"].files()
    assert {"sum.safetensors", "README.md"} < files.keys()
    assert not any(str(vector.parent).encode() in content for content in files.values())
    assert not hub.repos["me/vector"].private

    back = shell("apply", models["base"], "-v", "v=me/vector", "-e", "1.0*v", "-o", "out")
    assert back.returncode == 0, back.stderr
    assert "Fetching" not in back.stderr  # the client's bars are for terminals
    made, meant = (
        load_file(vector.parent / "out" / "model.safetensors"),
        load_file(models["tuned"] / "model.safetensors"),
    )
    assert all(torch.equal(made[name], meant[name]) for name in meant)
    shown = inspected(shell, "me/vector")
    assert shown["base_fingerprint"] == open_weights(models["base"]).fingerprint()


def test_the_card_says_what_it_is(hub: Hub, shell: Push, vector: Path) -> None:
    assert shell("push", vector, "me/carded").returncode == 0
    _, front, text = hub.repos["me/carded"].files()["README.md"].decode().split("---\n", 2)
    assert yaml.safe_load(front)["tags"] == ["task-vector", "task-arithmetic", "taskvec"]
    assert text.startswith("# me/carded\n") and "| elements | 1,640 |" in text
    assert "-v v=me/carded" in text and "| base | base |" in text


def test_a_model_goes_with_what_loaders_need_and_nothing_else(
    hub: Hub, shell: Push, models: dict[str, Path], vector: Path
) -> None:
    assert shell("apply", models["base"], "-v", f"v={vector}", "-e", "0.5*v", "-o", "made").returncode == 0
    (vector.parent / "made" / "notes.log").write_text("private")
    done = shell("push", "made", "me/model", "--private", "--json")
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["kind"] == "model" and told["commit"].startswith(hub.url)
    repo = hub.repos["me/model"]
    assert repo.private
    assert repo.files().keys() == {
        *("model.safetensors", "config.json", "taskvec.json", "README.md", ".gitattributes")
    }
    assert not any(str(vector.parent).encode() in content for content in repo.files().values())
    assert b"/home/me" not in repo.files()["config.json"]
    assert "license: mit" in repo.files()["README.md"].decode()
    assert shell("inspect", "me/model", token=None).returncode == 2
    assert inspected(shell, "me/model")["tensors"] == 2


def test_a_dry_run_asks_nobody(hub: Hub, shell: Push, vector: Path) -> None:
    before = len(hub.asked)
    done = shell("push", vector, "me/never", "--dry-run", token=None)
    assert done.returncode == 0
    assert "sum.safetensors" in done.stdout and "# me/never" in done.stdout
    assert "Nothing was uploaded" in done.stdout
    assert len(hub.asked) == before and "me/never" not in hub.repos


def test_revisions_are_branches(hub: Hub, shell: Push, vector: Path, models: dict[str, Path]) -> None:
    other = vector.parent / "half.safetensors"
    (0.5 * TaskVector.load(vector)).save(other)
    assert shell("push", other, "me/revised").returncode == 0
    assert shell("push", vector, "me/revised", "--revision", "v1").returncode == 0
    assert "sum.safetensors" not in hub.repos["me/revised"].files("main")
    assert "half.safetensors" not in hub.repos["me/revised"].files("v1")
    assert "sum.safetensors" in hub.repos["me/revised"].files("v1")
    assert shell("inspect", "me/revised@v1").returncode == 0
    commit = hub.repos["me/revised"].branches["v1"]
    (2 * TaskVector.load(vector)).save(vector.parent / "double.safetensors")
    assert (
        shell("push", vector.parent / "double.safetensors", "me/revised", "--revision", "v1").returncode == 2
    )
    done = shell("push", vector.parent / "double.safetensors", "me/revised", "--revision", "v1", "--force")
    assert done.returncode == 0, done.stderr
    assert hub.repos["me/revised"].files("v1").keys() >= {"double.safetensors"}
    assert "sum.safetensors" not in hub.repos["me/revised"].files("v1")
    norms = [inspected(shell, f"me/revised@{name}")["norm"] for name in (commit, "v1")]
    assert norms[1] == pytest.approx(2 * norms[0])


def test_weights_that_are_there_are_not_replaced_unasked(hub: Hub, shell: Push, vector: Path) -> None:
    assert shell("push", vector, "me/twice").returncode == 0
    before = dict(hub.repos["me/twice"].branches)
    again = shell("push", vector, "me/twice")
    assert again.returncode == 2 and "holds weights already, sum.safetensors" in again.stderr
    assert hub.repos["me/twice"].branches == before


@pytest.mark.parametrize(
    ("name", "more", "token", "complaint"),
    [
        ("me/x", [], None, "the hub does not know who you are (401)"),
        ("me/x", [], "hf_wrong", "the hub does not know who you are (401)"),
        ("others/x", [], TOKEN, "your token may not write there (403)"),
        ("me/x@v1", [], TOKEN, "--revision"),
        ("me/..", [], TOKEN, "me/..: no name for the hub"),
        ("me/public", ["--private"], TOKEN, "exists and is public"),
    ],
)
def test_refusals_are_one_line(
    name: str, more: list[str], token: str | None, complaint: str, hub: Hub, shell: Push, vector: Path
) -> None:
    hub.repos.setdefault("me/public", Repo()).commit("main", {})
    done = shell("push", vector, name, *more, token=token)
    assert done.returncode == 2 and complaint in done.stderr, done.stderr
    assert done.stderr.count("\n") == 1 and (token is None or token not in done.stderr)


@pytest.mark.parametrize("url", ["s3://key:hush@bucket/model", "https://me:hush@host/v.safetensors?s=hush"])
def test_what_lies_elsewhere_is_not_pushed(url: str) -> None:
    with pytest.raises(InputError, match=r"//(bucket|host)\S*: a URL, expected a file or folder") as caught:
        push(url, "me/x")
    assert "hush" not in str(caught.value)


def test_what_may_run_code_is_not_spread(shell: Push, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2)}, tmp_path / "model.bin")
    done = shell("push", tmp_path / "model.bin", "me/pickle")
    assert done.returncode == 2 and "reading it may run code" in done.stderr
    assert shell("push", tmp_path / "nothing", "me/pickle").returncode == 2


def test_a_hub_that_breaks_off_leaves_nothing_and_says_so(hub: Hub, shell: Push, vector: Path) -> None:
    def spoil(handler: object, path: str) -> bool:
        if "/commit/" not in path:
            return False
        handler._send(409, {"error": "busy"})  # type: ignore[attr-defined]
        return True

    hub.spoil = spoil
    try:
        done = shell("push", vector, "me/broken")
    finally:
        hub.spoil = lambda handler, path: False
    assert done.returncode == 2 and "refused by the hub (409)" in done.stderr
    assert hub.repos["me/broken"].files().keys() == {".gitattributes"}
    assert shell("push", vector, "me/broken").returncode == 0
    done = shell("push", vector, "me/away", HF_ENDPOINT="http://127.0.0.1:9")
    assert done.returncode == 1 and "me/away: not uploaded" in done.stderr


def test_an_adapter_goes_with_its_settings(hub: Hub, shell: Push, tmp_path: Path) -> None:
    (tmp_path / "adapter").mkdir()
    save_file(
        {
            "base_model.model.q.lora_A.weight": torch.randn(2, 4),
            "base_model.model.q.lora_B.weight": torch.randn(4, 2),
        },
        tmp_path / "adapter" / "adapter_model.safetensors",
    )
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "base_model_name_or_path": "/home/me/base"}
    (tmp_path / "adapter" / "adapter_config.json").write_text(
        json.dumps({**settings, "target_modules": ["q"]})
    )
    assert shell("push", "adapter", "me/adapter").returncode == 0
    files = hub.repos["me/adapter"].files()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "base"
    assert inspected(shell, "me/adapter")["kind"] == "LoRA adapter"


def test_the_header_alone_changes(hub: Hub, shell: Push, vector: Path, tmp_path: Path) -> None:
    assert shell("push", vector, "me/header").returncode == 0
    (tmp_path / "back.safetensors").write_bytes(hub.repos["me/header"].files()["sum.safetensors"])
    back = tmp_path / "back.safetensors"
    ours, theirs = load_file(vector), load_file(back)
    assert list(ours) == list(theirs)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    told, public = (json.loads(open_weights(path).metadata["taskvec"]) for path in (vector, back))
    assert public.pop("base") == {**told.pop("base"), "ref": "base"}
    assert public.pop("tuned") == Path(told.pop("tuned")).name
    assert told == public


@pytest.mark.parametrize("name", ["x", "me/x/y", "/x", "me/", ""])
def test_a_repository_has_an_owner_and_a_name(name: str) -> None:
    with pytest.raises(InputError, match="expected ORG/NAME"):
        check_name(name)


def test_the_page_works_as_it_is_printed(shell: Push, models: dict[str, Path], vector: Path) -> None:
    home = vector.parent
    vector.rename(home / "chat.safetensors")
    blocks = [snippet for snippet in snippets() if snippet.page == "docs/hub.md" and "\n" in snippet.text]
    [recipe] = [block.text for block in blocks if block.language == "yaml"]
    (home / "recipe.yaml").write_text(recipe)
    for page, words in commands():
        if page == "docs/hub.md":
            done = shell(*words)
            assert done.returncode == 0, (words, done.stderr)
    [code] = [block.text for block in blocks if block.language == "python"]
    assert shell("-c", code).returncode == 0
