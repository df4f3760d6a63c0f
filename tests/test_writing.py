"""Working names may hold anything: nothing is written, emptied or removed through them."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from taskvec.errors import InputError, OutputExists
from taskvec.studies.store import MADE, Store
from taskvec.weights import open_weights, save_weights
from taskvec.writing import open_own, open_own_folder, remove, replace_text

STATE = {"a": torch.ones(2, 3)}


@pytest.fixture
def treasure(tmp_path: Path) -> Path:
    """A folder that is somebody's, with files of the names that we work under."""
    folder = tmp_path / "treasure"
    (folder / "out").mkdir(parents=True)
    for name in ("thesis.txt", "out/model.safetensors", "journal.json", "replaced"):
        (folder / name).write_text("precious")
    return folder


def content(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write(work: Path, *, resume: bool) -> None:
    save_weights(STATE, work / "out", force=True, resume=resume)


@pytest.mark.parametrize("resume", [False, True])
def test_a_link_at_a_working_name_is_refused_and_what_it_leads_to_is_untouched(
    treasure: Path, tmp_path: Path, resume: bool
) -> None:
    before = content(treasure)
    link = tmp_path / ".out.partial"
    link.symlink_to(treasure, target_is_directory=True)
    with pytest.raises(InputError, match=r"\.out\.partial: is a link, and taskvec works under that name"):
        write(tmp_path, resume=resume)
    assert content(treasure) == before and link.is_symlink()
    assert not (tmp_path / "out").exists()
    link.unlink()
    write(tmp_path, resume=resume)
    assert list(open_weights(tmp_path / "out")) == ["a"]


@pytest.mark.parametrize("resume", [False, True])
def test_a_folder_at_a_working_name_that_is_not_ours_is_refused_and_untouched(
    treasure: Path, tmp_path: Path, resume: bool
) -> None:
    before = content(treasure)
    treasure.rename(tmp_path / ".out.partial")
    with pytest.raises(InputError, match=r"holds 'thesis\.txt', which taskvec did not write"):
        write(tmp_path, resume=resume)
    assert content(tmp_path / ".out.partial") == before


def test_an_interrupted_output_with_a_link_inside_leaves_alone_where_it_leads(
    treasure: Path, tmp_path: Path
) -> None:
    before = content(treasure)
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial" / "out").symlink_to(treasure, target_is_directory=True)
    write(tmp_path, resume=False)
    assert content(treasure) == before
    assert not (tmp_path / "out").is_symlink()


@pytest.mark.parametrize("name", ["replaced", "out", "old"])
def test_outputs_may_have_any_name(name: str, tmp_path: Path) -> None:
    for _ in range(2):
        save_weights(STATE, tmp_path / name, force=True)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
def test_what_belongs_to_another_user_is_refused(tmp_path: Path) -> None:
    for make in (Path.touch, Path.mkdir):
        place = tmp_path / ".lock"
        make(place)
        os.chown(place, 12345, 12345)
        with pytest.raises(InputError, match="belongs to another user"):
            (open_own if make is Path.touch else open_own_folder)(place)
        remove(place)


def as_a_link(path: Path, treasure: Path) -> None:
    path.symlink_to(treasure / "thesis.txt")


def as_a_pipe(path: Path, treasure: Path) -> None:
    os.mkfifo(path)


def as_a_folder(path: Path, treasure: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("put", [as_a_link, as_a_pipe, as_a_folder])
@pytest.mark.parametrize("name", [".lock", "records.jsonl"])
def test_a_run_writes_through_no_link(
    put: Callable[[Path, Path], None], name: str, treasure: Path, tmp_path: Path
) -> None:
    before, run = content(treasure), tmp_path / "run"
    run.mkdir()
    (run / "records.jsonl").touch()
    remove(run / name)
    put(run / name, treasure)
    with pytest.raises((InputError, OutputExists), match=f"{name}: is a "), Store(run).locked():
        pass
    assert content(treasure) == before


@pytest.mark.parametrize("name", [name for name in MADE if name != "records.jsonl"])
@pytest.mark.parametrize("fresh", [False, True])
def test_links_among_what_runs_make_are_refused_or_removed_but_never_followed(
    name: str, fresh: bool, treasure: Path, tmp_path: Path
) -> None:
    before, run = content(treasure), tmp_path / "run"
    run.mkdir()
    (run / "records.jsonl").touch()
    (run / name).symlink_to(treasure, target_is_directory=True)
    if fresh:
        with Store(run).locked(fresh=True):
            assert not (run / name).is_symlink()
    else:
        with pytest.raises(InputError, match="is a link"), Store(run).locked():
            pass
    assert content(treasure) == before


@pytest.mark.parametrize("kind", ["a link", "a file", "a pipe"])
def test_what_is_no_folder_at_the_name_of_a_working_folder_is_told(kind: str, tmp_path: Path) -> None:
    path = tmp_path / ".out.partial"
    if kind == "a link":
        path.symlink_to(tmp_path / "nowhere")
    elif kind == "a file":
        path.touch()
    else:
        os.mkfifo(path)
    with pytest.raises(InputError, match=rf"\.out\.partial: is {kind}, and taskvec works under that name"):
        open_own_folder(path)
    assert os.path.lexists(path)


def test_a_text_is_replaced_and_not_what_a_link_in_its_place_leads_to(treasure: Path, tmp_path: Path) -> None:
    before = content(treasure)
    for name in ("report.md", ".report.md.partial"):
        (tmp_path / name).symlink_to(treasure / "thesis.txt")
    replace_text(tmp_path / "report.md", "new")
    assert (tmp_path / "report.md").read_text() == "new" and not (tmp_path / "report.md").is_symlink()
    assert content(treasure) == before


@pytest.mark.parametrize("force", [False, True])
def test_pipes_and_devices_are_never_replaced(force: bool, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "out")
    with pytest.raises(OutputExists, match="is a pipe, which is never replaced"):
        save_weights(STATE, tmp_path / "out", force=force)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_somebody_put_into_an_output_is_named_when_it_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = save_weights(STATE, tmp_path / "out")
    save_weights({"b": torch.ones(2)}, out, force=True)
    assert not caplog.records
    (out / "gguf").mkdir()
    (out / "gguf" / "model.gguf").write_text("precious")
    with pytest.raises(OutputExists):
        save_weights(STATE, out)
    assert (out / "gguf" / "model.gguf").read_text() == "precious"
    save_weights(STATE, out, force=True)
    [record] = caplog.records
    assert "'gguf/model.gguf' goes with what is replaced" in record.message


def test_a_foreign_working_folder_is_not_said_to_hold_finished_shards(treasure: Path, tmp_path: Path) -> None:
    treasure.rename(tmp_path / ".out.partial")
    with pytest.raises(InputError, match="did not write") as refused:
        write(tmp_path, resume=True)
    assert "--resume" not in str(refused.value)


def test_pipes_beside_weights_are_refused_and_not_left_out(tmp_path: Path) -> None:
    base = save_weights(STATE, tmp_path / "base")
    os.mkfifo(base / "tokenizer.json")
    with pytest.raises(InputError, match=r"tokenizer\.json: is a pipe"):
        save_weights(open_weights(base), tmp_path / "out")
