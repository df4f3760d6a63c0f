"""What an output may take the place of."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from taskvec.errors import InputError, OutputExists
from taskvec.weights import open_weights, save_weights

STATE = {"a": torch.ones(2, 3)}


def a_file(place: Path) -> None:
    place.write_text("text")


def an_empty_folder(place: Path) -> None:
    place.mkdir()


def a_folder_of_ours(place: Path) -> None:
    save_weights({"old": torch.zeros(1)}, place.parent / "made").rename(place)


def a_link_to_a_folder_of_ours(place: Path) -> None:
    place.symlink_to(save_weights({"old": torch.zeros(1)}, place.parent / "linked").name)


def a_link_to_nowhere(place: Path) -> None:
    place.symlink_to("nowhere")


@pytest.mark.parametrize("output", ["out", "out.safetensors"])
@pytest.mark.parametrize(
    "put", [a_file, an_empty_folder, a_folder_of_ours, a_link_to_a_folder_of_ours, a_link_to_nowhere]
)
def test_force_replaces_whatever_is_there_and_leaves_alone_what_links_lead_to(
    put: Callable[[Path], None], output: str, tmp_path: Path
) -> None:
    target = tmp_path / output
    put(target)
    beside = {path.name for path in tmp_path.iterdir()}
    if put is not an_empty_folder or output == "out.safetensors":
        with pytest.raises(OutputExists, match="exists already"):
            save_weights(STATE, target)
    save_weights(STATE, target, force=True)
    assert not target.is_symlink() and list(open_weights(target)) == ["a"]
    assert {path.name for path in tmp_path.iterdir()} == beside
    if (tmp_path / "linked").exists():
        assert list(open_weights(tmp_path / "linked")) == ["old"]


@pytest.mark.parametrize("output", ["out", "out.safetensors"])
@pytest.mark.parametrize("put", [a_file, an_empty_folder, a_folder_of_ours, a_link_to_nowhere])
def test_what_appears_while_work_goes_on_is_not_replaced(
    put: Callable[[Path], None], output: str, tmp_path: Path
) -> None:
    target, placed = tmp_path / output, []

    def appear(label: str, done: int, total: int, **facts: float) -> None:
        put(target)
        placed.append(target.lstat().st_ino)

    with pytest.raises(OutputExists, match="exists already"):
        save_weights(STATE, target, watch=appear)
    assert placed == [target.lstat().st_ino]
    save_weights(STATE, target, force=True, resume=True)
    assert list(open_weights(target)) == ["a"]
    assert not (tmp_path / f".{output}.partial").exists()


@pytest.mark.parametrize("shards", [1, 3])
def test_an_empty_folder_is_taken(shards: int, tmp_path: Path) -> None:
    target = tmp_path / "out"
    target.mkdir()
    state = {name: torch.ones(4) for name in "abc"}
    save_weights(state, target, max_shard_size=48 / shards)
    assert len(list(target.glob("*.safetensors"))) == shards
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", [".", "", "../out", "../out/."])
@pytest.mark.parametrize("force", [False, True])
def test_the_working_directory_is_never_replaced(
    name: str, force: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    monkeypatch.chdir(tmp_path / "out")
    target = name or tmp_path / "out"
    with pytest.raises(OutputExists, match="no folder can take its place; name one inside it"):
        save_weights(STATE, target, force=force)
    assert list(open_weights(save_weights(STATE, "inside"))) == ["a"]


@pytest.mark.parametrize("name", [".gitkeep", ".DS_Store", "lost+found", "model.safetensors"])
def test_a_folder_with_anything_in_it_is_not_empty_and_the_message_names_it(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / name).write_text("")
    for force in (False, True):
        with pytest.raises(OutputExists, match=rf"holds '{re.escape(name)}'"):
            save_weights(STATE, tmp_path / "out", force=force)
    assert [path.name for path in (tmp_path / "out").iterdir()] == [name]


@pytest.mark.parametrize("name", ["m.gguf", "m.BIN", "m.pt", "v1.onnx", "m.sft", "m.SafeTensors", "a.tar.gz"])
def test_a_name_that_promises_another_format_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"m|v1|a.*expected a folder or a name that ends in \.safetensors"):
        save_weights(STATE, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["llama-3.1", "v0.2", "model.merged", "b16", "a.b.safetensors", ".hidden"])
def test_dots_in_names_promise_nothing(name: str, tmp_path: Path) -> None:
    assert open_weights(save_weights(STATE, tmp_path / name)).spec("a").shape == (2, 3)
