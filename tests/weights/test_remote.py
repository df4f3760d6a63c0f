"""Weights elsewhere: what is fetched, and what becomes of servers that break off, lie or change."""

import json
import pickle
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import pytest
import torch
from torch import Tensor

from buckets import bucket
from remote import Handler, Web, serving
from taskvec.errors import CorruptFile, InputError, TaskvecError
from taskvec.vectors import TaskVector
from taskvec.weights import open_weights, save_weights
from taskvec.weights.remote import connections, file
from taskvec.weights.remote import store as store_files
from taskvec.weights.remote import web as web_files

MODEL = {f"layers.{number}.weight": torch.randn(64, 300) for number in range(12)}
MODEL |= {"embed.weight": torch.randn(2000, 64), "norm.weight": torch.randn(64)}

FACTORS = {"A": (2, 4), "B": (4, 2)}


@pytest.fixture(autouse=True)
def quickly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file, "PAUSE", 0.01)
    monkeypatch.setattr(file, "PATIENCE", 2.0)
    monkeypatch.setattr(connections, "TIMEOUT", 1.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model in shards, the same in one file, and what lies beside a model."""
    top = tmp_path_factory.mktemp("served")
    save_weights(MODEL, top / "model", max_shard_size=3e5)
    (top / "model" / "config.json").write_text('{"model_type": "none such"}')
    (top / "model" / "tokenizer.json").write_text(json.dumps({"padding": "x" * 200_000}))
    save_weights(MODEL, top / "alone" / "weights.safetensors")
    return top


@pytest.fixture
def web(folder: Path) -> Iterator[Web]:
    with serving(folder) as served:
        yield served
    connections.close_connections()


def same(weights: object, expected: dict[str, Tensor] = MODEL) -> bool:
    return open_weights(weights).fingerprint() == open_weights(expected).fingerprint()  # type: ignore[arg-type]


# What is read


@pytest.mark.parametrize(
    "place", ["model", "model/", "model/model.safetensors.index.json", "alone/weights.safetensors"]
)
def test_a_url_reads_as_the_files_do(web: Web, place: str) -> None:
    with open_weights(f"{web.url}/{place}") as weights:
        assert same(weights)
        assert torch.equal(weights.read("embed.weight", slice(5, 9)), MODEL["embed.weight"][5:9])


def test_five_tensors_cost_their_bytes_the_headers_and_the_index(web: Web, folder: Path) -> None:
    wanted = [*MODEL][2:7]
    with open_weights(f"{web.url}/model") as weights:
        for name in wanted:
            assert torch.equal(weights[name], MODEL[name])
    size = sum(MODEL[name].nbytes for name in wanted)
    shards = [*(folder / "model").glob("*.safetensors")]
    headers = sum(8 + int.from_bytes(shard.read_bytes()[:8], "little") for shard in shards)
    index = (folder / "model" / "model.safetensors.index.json").stat().st_size
    assert web.sent <= 1.01 * (size + headers + index)
    assert not web.ranges("tokenizer.json")


def test_rows_cost_their_bytes(web: Web) -> None:
    with open_weights(f"{web.url}/alone/weights.safetensors") as weights:
        before = web.sent
        weights.read("embed.weight", slice(100, 110))
        assert web.sent - before == 10 * 64 * 4


def test_what_lies_beside_goes_along(web: Web, folder: Path, tmp_path: Path) -> None:
    save_weights(open_weights(f"{web.url}/model"), tmp_path / "copy")
    for name in ("config.json", "tokenizer.json"):
        assert (tmp_path / "copy" / name).read_bytes() == (folder / "model" / name).read_bytes()
    assert same(tmp_path / "copy")


def test_two_openings_of_the_same_files_are_alike(web: Web) -> None:
    first, other = (open_weights(f"{web.url}/model") for _ in range(2))
    assert first.identity == other.identity
    assert first.folder != other.folder


def test_the_folder_that_stands_for_a_place_goes_with_its_weights(web: Web) -> None:
    weights = open_weights(f"{web.url}/model")
    folder = weights.folder
    assert folder is not None and (folder / "config.json").exists()
    del weights
    assert not folder.parent.exists()


def test_forked_workers_read_with_connections_of_their_own(web: Web, tmp_path: Path) -> None:
    weights = open_weights(f"{web.url}/model")
    save_weights(weights, tmp_path / "copy", processes=2)
    assert same(tmp_path / "copy")


def test_weights_elsewhere_can_be_pickled(web: Web) -> None:
    weights = open_weights(f"{web.url}/model")
    assert same(pickle.loads(pickle.dumps(weights)))


def test_a_password_is_sent_and_never_told(web: Web) -> None:
    url = web.url.replace("//", "//me:hush@") + "/alone/weights.safetensors?key=hidden"
    with open_weights(url) as weights:
        assert "hush" not in repr(weights) + repr(weights.identity) + str(weights.files)
        assert "hidden" not in repr(weights) + repr(weights.identity)
    assert web.headers[-1]["authorization"].startswith("Basic ")
    with pytest.raises(InputError) as error:
        open_weights(url.replace("weights.", "others."))
    assert "hush" not in str(error.value) and "hidden" not in str(error.value)


@pytest.mark.parametrize("place", ["memory://box/model", "memory://box/model/model.safetensors.index.json"])
def test_stores_read_as_files_do(folder: Path, place: str) -> None:
    store = fsspec.filesystem("memory")
    store.put(str(folder / "model"), "/box/model", recursive=True)
    try:
        with open_weights(place) as weights:
            assert same(weights)
            assert weights.folder is not None
            assert "padding" in (weights.folder / "config.json").read_text() or weights.folder.is_dir()
    finally:
        store.rm("/box", recursive=True)


def test_large_tensors_come_in_several_answers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.put(str(folder / "alone"), "/pieces/alone", recursive=True)
    monkeypatch.setattr(store_files, "_LARGEST", 300_000)
    with open_weights("memory://pieces/alone") as weights:
        assert torch.equal(weights["embed.weight"], MODEL["embed.weight"])
    memory.rm("/pieces", recursive=True)


def test_a_file_url_is_a_path(folder: Path) -> None:
    with open_weights(f"file://{folder}/model") as weights:
        assert weights.ref == str(folder / "model")


# Servers that break off


def test_an_answer_that_is_cut_goes_on_where_it_stopped(web: Web) -> None:
    cuts = iter(range(4))

    def spoil(handler: Handler, path: Path) -> bool:
        there = handler.asked_range(path.stat().st_size) if path.is_file() else None
        if there is None or there[1] - there[0] < 1000 or next(cuts, None) is None:
            return False
        content = path.read_bytes()
        half = content[there[0] : (there[0] + there[1]) // 2]
        claims = {"Content-Range": f"bytes {there[0]}-{there[1]}/{len(content)}"}
        handler.reply(206, half, {**claims, "Content-Length": str(there[1] - there[0] + 1)})
        handler.cut()
        return True

    web.spoil = spoil
    assert same(f"{web.url}/alone/weights.safetensors")


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_a_busy_server_is_asked_again(web: Web, status: int) -> None:
    busy = iter(range(2))

    def spoil(handler: Handler, path: Path) -> bool:
        if handler.headers.get("Range") is None or next(busy, None) is None:
            return False
        handler.reply(status, b"later", {"Retry-After": "0"})
        return True

    web.spoil = spoil
    assert same(f"{web.url}/alone/weights.safetensors")


def test_a_server_that_asks_to_wait_for_long_is_not_waited_for(web: Web) -> None:
    def spoil(handler: Handler, path: Path) -> bool:
        handler.reply(503, b"", {"Retry-After": "3600"})
        return True

    web.spoil = spoil
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"answered 503\); the server asks to wait 3600 seconds"):
        open_weights(f"{web.url}/alone/weights.safetensors")
    assert time.monotonic() - begun < 1


def cut_off(handler: Handler, path: Path) -> None:
    handler.cut()


def cut_after_a_byte(handler: Handler, path: Path) -> None:
    first, last = handler.asked_range(1000) or (0, 7)
    handler.reply(206, b"x", {"Content-Range": f"bytes {first}-{last}/1000", "Content-Length": "8"})
    handler.cut()


def no_http(handler: Handler, path: Path) -> None:
    handler.wfile.write(b"SSH-2.0-OpenSSH\r\n")
    handler.cut()


def endless_header(handler: Handler, path: Path) -> None:
    handler.wfile.write(b"HTTP/1.1 206 OK\r\nX: " + b"x" * 200_000)
    handler.cut()


def silence(handler: Handler, path: Path) -> None:
    time.sleep(3)


def half_and_silence(handler: Handler, path: Path) -> None:
    handler.reply(206, b"1234", {"Content-Range": "bytes 0-7/1000", "Content-Length": "8"})
    time.sleep(3)


def busy_for_ever(handler: Handler, path: Path) -> None:
    handler.reply(500, b"")


def whole(handler: Handler, path: Path) -> None:
    handler.reply(200, path.read_bytes())


def endless(handler: Handler, path: Path) -> None:
    handler.send_response(200)
    handler.end_headers()
    with Path("/dev/zero").open("rb") as zeros:
        while True:
            handler.wfile.write(zeros.read(1 << 20))


def zipped(handler: Handler, path: Path) -> None:
    handler.part(path.read_bytes(), 0, 7, {"Content-Encoding": "gzip"})


def other_bytes(handler: Handler, path: Path) -> None:
    handler.part(path.read_bytes(), 100, 107)


def no_total(handler: Handler, path: Path) -> None:
    handler.part(path.read_bytes(), 0, 7, {"Content-Range": "bytes 0-7/*"})


def no_range(handler: Handler, path: Path) -> None:
    handler.reply(206, b"12345678")


def several_ranges(handler: Handler, path: Path) -> None:
    handler.reply(206, b"--x\r\n", {"Content-Type": "multipart/byteranges; boundary=x"})


def shorter(handler: Handler, path: Path) -> None:
    handler.reply(206, path.read_bytes()[:8], {"Content-Range": "bytes 0-7/1000"})


def longer(handler: Handler, path: Path) -> None:
    content = path.read_bytes()
    first, last = handler.asked_range(len(content)) or (0, 7)
    handler.part(content, first, last, {"Content-Range": f"bytes {first}-{last}/{1 << 60}"})


def a_huge_header(handler: Handler, path: Path) -> None:
    handler.reply(206, (1 << 40).to_bytes(8, "little"), {"Content-Range": f"bytes 0-7/{1 << 50}"})


def a_page(handler: Handler, path: Path) -> None:
    handler.reply(200, b"<html>please log in</html>", {"Content-Type": "text/html"})


def answers(status: int) -> Callable[[Handler, Path], object]:
    return lambda handler, path: handler.reply(status, b"")


def leads_to(place: str) -> Callable[[Handler, Path], object]:
    return lambda handler, path: handler.reply(302, b"", {"Location": place})


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (cut_off, "connection was cut"),
        (cut_after_a_byte, "cut off|no safetensors file"),
        (no_http, "makes no sense: BadStatusLine"),
        (endless_header, "makes no sense: LineTooLong"),
        (silence, "no answer for 1 seconds"),
        (half_and_silence, "stopped in the middle"),
        (busy_for_ever, "answered 500"),
        (whole, "whole files alone"),
        (endless, "whole files alone"),
        (zipped, "sent as 'gzip'"),
        (other_bytes, "sends bytes 100 to 107 of .*, asked for 0 to 7"),
        (no_total, "does not say which bytes"),
        (no_range, "does not say which bytes"),
        (several_ranges, "does not say which bytes"),
        (shorter, "cut off in its header|does not fit|holds .* bytes of data|changed while"),
        (longer, "holds .* bytes of data, expected|changed while"),
        (a_huge_header, "a header of .* MB"),
        (a_page, "whole files alone"),
        (answers(401), r"without a login \(401\)"),
        (answers(403), r"may not be read \(403\)"),
        (answers(404), r"no such file \(404\)"),
        (answers(410), "no longer there"),
        (answers(416), "shorter than it was said"),
        (answers(418), "answered 418"),
        (answers(304), "answered 304"),
        (leads_to("file:///etc/passwd"), "sent on to 'file:///etc/passwd', which is not followed"),
        (leads_to("gopher://127.0.0.1/x"), "not followed"),
        (leads_to("https://[::1"), "not followed"),
        (leads_to("/alone/weights.safetensors"), "sent on more than"),
        (leads_to("http://127.0.0.1:1/x"), "connection refused"),
    ],
)
def test_a_bad_server_is_refused_in_a_sentence(
    web: Web, spoil: Callable[[Handler, Path], object], said: str
) -> None:
    def spoiled(handler: Handler, path: Path) -> bool:
        if handler.command == "HEAD":
            handler.reply(404, b"")
        else:
            spoil(handler, path)
        return True

    web.spoil = spoiled
    url = f"{web.url}/alone/weights.safetensors"
    begun = time.monotonic()
    with pytest.raises(InputError, match=said) as error:
        open_weights(url)
    assert time.monotonic() - begun < 8
    assert "\n" not in str(error.value)
    assert str(error.value).startswith(("http://127.0.0.1:1/", url))
    assert web.sent < 1 << 24


def test_what_fails_in_the_middle_of_work_is_no_bad_input(web: Web) -> None:
    with open_weights(f"{web.url}/alone/weights.safetensors") as weights:
        web.spoil = lambda handler, path: handler.reply(500, b"")
        with pytest.raises(TaskvecError, match="cannot be read from there") as error:
            weights.read("embed.weight")
        assert error.value.exit_code == 1


def test_a_drip_ends(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    def drip(handler: Handler, path: Path) -> bool:
        if handler.command == "HEAD":
            return False
        handler.send_response(206)
        handler.send_header("Content-Range", "bytes 0-7/1000")
        handler.end_headers()
        for _ in range(8):
            handler.wfile.write(b"x")
            time.sleep(0.8)
        return True

    monkeypatch.setattr(file, "TRIES", 2)
    web.spoil = drip
    begun = time.monotonic()
    with pytest.raises(InputError, match=r"cannot be read from there|holds|cut off"):
        open_weights(f"{web.url}/alone/weights.safetensors")
    assert time.monotonic() - begun < 10


def test_short_answers_are_put_together(web: Web) -> None:
    def at_most(handler: Handler, path: Path) -> bool:
        there = handler.asked_range(path.stat().st_size) if path.is_file() else None
        if there is None or there[1] - there[0] < 8:
            return False
        handler.part(path.read_bytes(), there[0], there[0] + (there[1] - there[0]) // 2)
        return True

    web.spoil = at_most
    with open_weights(f"{web.url}/model") as weights:
        assert torch.equal(weights["norm.weight"], MODEL["norm.weight"])


# Files that change


@pytest.mark.parametrize("tags", [True, False])
def test_a_file_that_changes_between_two_reads_is_refused(tmp_path: Path, *, tags: bool) -> None:
    save_weights(MODEL, tmp_path / "w.safetensors")
    with serving(tmp_path) as web:
        web.tags = tags
        with open_weights(f"{web.url}/w.safetensors") as weights:
            weights.read("norm.weight")
            more = {"": torch.zeros(1)} if not tags else {}  # nothing but its length tells without a tag
            save_weights(
                {**MODEL, "norm.weight": torch.zeros(64), **more}, tmp_path / "w.safetensors", force=True
            )
            with pytest.raises(CorruptFile, match="changed while it was read"):
                weights.read("embed.weight")
            with pytest.raises(CorruptFile, match="changed while it was read; run again"):
                save_weights(weights, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_object_that_changes_between_two_reads_is_refused(tmp_path: Path) -> None:
    store = fsspec.filesystem("memory")
    save_weights(MODEL, tmp_path / "w.safetensors")
    store.put(str(tmp_path / "w.safetensors"), "/changing/w.safetensors")
    with open_weights("memory://changing/w.safetensors") as weights:
        weights.read("norm.weight")
        content = store.cat("/changing/w.safetensors")
        store.pipe("/changing/w.safetensors", content[:-4] + b"....")
        with pytest.raises(CorruptFile, match=r"memory://changing/w\.safetensors: changed while"):
            weights.read("embed.weight")
        store.rm("/changing", recursive=True)
        with pytest.raises(InputError):
            weights.read("embed.weight")


def test_another_content_than_the_manifest_states_is_refused(web: Web, folder: Path, tmp_path: Path) -> None:
    def spoil(handler: Handler, path: Path) -> bool:
        there = handler.asked_range(path.stat().st_size) if path.suffix == ".safetensors" else None
        if there is None or there[1] - there[0] < 50_000:
            return False
        content = bytearray(path.read_bytes())
        content[there[1]] ^= 1
        handler.part(bytes(content), *there)
        return True

    web.spoil = spoil
    with open_weights(f"{web.url}/model") as weights:
        with pytest.raises(
            CorruptFile, match=r"model: what was read has the fingerprint \w+, its taskvec.json"
        ):
            weights.fingerprint()
        manifest = {"input": weights}
        weights.fingerprint_while_reading()
        with pytest.raises(CorruptFile, match=r"its taskvec\.json states"):
            save_weights(
                weights,
                tmp_path / "out",
                manifest=lambda: {name: each.fingerprint() for name, each in manifest.items()},
            )
    assert not (tmp_path / "out").exists()


# Other servers, other places


def test_a_bucket_reads_as_a_folder_does(folder: Path) -> None:
    with bucket("ranges") as url:
        store = fsspec.filesystem("s3")
        store.put(str(folder / "alone"), "ranges/alone", recursive=True)
        with (
            open_weights(f"{url}/alone") as whole,
            open_weights(f"{url}/alone/weights.safetensors") as weights,
        ):
            assert same(whole)
            assert weights.identity == whole.identity
            with pytest.raises(InputError, match="no such file or folder"):
                open_weights(f"{url}/none")
            store.pipe("ranges/alone/weights.safetensors", b"another")
            with pytest.raises(CorruptFile, match="changed while it was read"):
                weights.read("norm.weight")


def test_a_token_goes_to_no_other_server(web: Web, folder: Path) -> None:
    with serving(folder) as other:
        there = {"Location": f"{other.url}/alone/weights.safetensors"}
        web.spoil = lambda handler, path: handler.reply(302, b"moved", there)
        place = web_files.WebFile(f"{web.url}/x", "x", {"Authorization": "Bearer secret"})
        assert place.read(8) and place.read(100, 8) and place.read(100, 300)
        assert web.headers[0]["authorization"] == "Bearer secret"
        assert not any("authorization" in headers for headers in other.headers)
        assert len(web.asked) == 1  # what it led to is asked at once


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "http://127.0.0.1/x.safetensors", "/etc/passwd", ""]
)
def test_an_index_leads_nowhere_else(tmp_path: Path, name: str) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))
    with serving(tmp_path) as web, pytest.raises(InputError) as error:
        open_weights(f"{web.url}/m")
    assert "/tmp" not in str(error.value)
    assert not [path for _, path, _ in web.asked if "secret" in path or "passwd" in path]


@pytest.mark.parametrize("name", ["model.bin", "model.gguf", "model.pt"])
def test_only_safetensors_are_read_in_place(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"GGUF" * 100)
    with serving(tmp_path) as web:
        with pytest.raises(InputError, match=f"{web.url}/{name}: only safetensors files are read in place"):
            open_weights(f"{web.url}/{name}")
        assert web.sent == 0


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("http://127.0.0.1:1/model.safetensors", "connection refused"),
        ("http:///model.safetensors", "names no server"),
        ("http://127.0.0.1:x/model.safetensors", "no address"),
        ("https://nobody.invalid/model.safetensors", "no such server"),
        ("s4://bucket/model", "nobody knows the protocol"),
        ("memory://nothing/here", "no such file or folder"),
        ("simplecache::http://host/model.safetensors", "inside another one"),
        ("hf://only", "expected a model"),
        ("hf://datasets/org/name", "expected a model"),
        ("hf://org/name@a/../b", "."),
    ],
)
def test_urls_that_lead_nowhere_are_refused_in_a_sentence(url: str, said: str) -> None:
    with pytest.raises(InputError, match=said) as error:
        open_weights(url)
    assert "\n" not in str(error.value)


def test_a_proxy_of_the_environment_is_asked(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", web.url.replace("//", "//me:hush@"))
    assert same("http://models.invalid/alone/weights.safetensors")
    assert {headers["host"] for headers in web.headers} == {"models.invalid"}
    assert all(headers["proxy-authorization"].startswith("Basic ") for headers in web.headers)
    monkeypatch.setenv("no_proxy", "models.invalid")
    connections.close_connections()
    with pytest.raises(InputError, match="no such server"):
        open_weights("http://models.invalid/alone/weights.safetensors")


@pytest.mark.parametrize("status", [405, 501])
def test_a_server_need_not_know_head(web: Web, folder: Path, tmp_path: Path, status: int) -> None:
    web.spoil = lambda handler, path: handler.command == "HEAD" and handler.reply(status, b"")
    save_weights(open_weights(f"{web.url}/model"), tmp_path / "copy")
    assert (tmp_path / "copy" / "config.json").read_bytes() == (folder / "model" / "config.json").read_bytes()
    assert same(tmp_path / "copy")


@pytest.mark.parametrize("kind", ["web", "store"])
def test_modules_in_folders_of_their_own_are_part_of_a_model(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "served" / "model"
    (home / "2_Dense").mkdir(parents=True)
    (home / "1_Pooling").mkdir()
    save_weights({"embed.weight": torch.ones(3, 2)}, home / "model.safetensors")
    save_weights({"linear.weight": torch.ones(2, 2)}, home / "2_Dense" / "model.safetensors")
    for name in ("config.json", "2_Dense/config.json", "1_Pooling/config.json"):
        (home / name).write_text('{"model_type": "none such"}')
    (home / "modules.json").write_text(json.dumps([{"path": p} for p in ("", "1_Pooling", "2_Dense")]))
    memory = fsspec.filesystem("memory")
    memory.put(str(home), "/modular/model", recursive=True)
    with serving(tmp_path / "served") as web:
        url = f"{web.url}/model" if kind == "web" else "memory://modular/model"
        save_weights(open_weights(url), tmp_path / "copy")
        made, expected = open_weights(tmp_path / "copy"), open_weights(home)
        assert same(made, dict(expected)) and set(made) == {"embed.weight", "2_Dense.linear.weight"}
        assert (tmp_path / "copy" / "1_Pooling" / "config.json").exists()
    memory.rm("/modular", recursive=True)


@pytest.mark.parametrize("kind", ["web", "store"])
def test_an_adapter_elsewhere_is_one(tmp_path: Path, kind: str) -> None:
    home = tmp_path / "adapter"
    home.mkdir()
    factors = {
        f"base_model.model.q.lora_{side}.weight": torch.randn(shape) for side, shape in FACTORS.items()
    }
    save_weights(factors, home / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": 2, "lora_alpha": 2, "target_modules": ["q"]}
    (home / "adapter_config.json").write_text(json.dumps(settings))
    memory = fsspec.filesystem("memory")
    memory.put(str(home), "/adapters/adapter", recursive=True)
    base = {"q.weight": torch.randn(4, 4)}
    with serving(tmp_path) as web:
        url = f"{web.url}/adapter" if kind == "web" else "memory://adapters/adapter"
        for place in (url, f"{url}/adapter_model.safetensors"):
            found = TaskVector.load(place).with_base(base)
            assert torch.equal(found["q.weight"], TaskVector.load(home).with_base(base)["q.weight"])
    memory.rm("/adapters", recursive=True)


def test_a_part_of_a_place_is_refused(web: Web) -> None:
    with pytest.raises(
        InputError, match=r"weights\.safetensors: holds one set of tensors, no parts to choose"
    ):
        open_weights(f"{web.url}/alone/weights.safetensors#model")


def test_threads_share_nothing_but_idle_connections(web: Web) -> None:
    weights = open_weights(f"{web.url}/model")
    wrong: list[str] = []

    def read(name: str) -> None:
        if not torch.equal(weights[name], MODEL[name]):
            wrong.append(name)

    threads = [threading.Thread(target=read, args=(name,)) for name in [*MODEL] * 3]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
