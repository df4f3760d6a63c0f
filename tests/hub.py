"""A stand-in of the hub on loopback: repositories in memory, behind the part of its API that clients use.

It checks tokens, keeps every commit, serves files by ranges as the hub does, and counts what it sends.
"""

import base64
import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest

TOKEN = "hf_" + "s3cr3tT0k3nOfTheTests"

LARGE = 1 << 12
"""Bytes from which a file is stored apart, as large files are."""

Files = dict[str, bytes]


def oid_of(content: bytes) -> str:
    """As git names a file."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@dataclass
class Repo:
    """A repository: its commits by name, and the commit that each branch or tag stands for."""

    private: bool = False
    commits: dict[str, Files] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def commit(self, branch: str, files: Files, message: str = "") -> str:
        """Put files on a branch."""
        told = json.dumps([len(self.commits), sorted(files), message])
        name = hashlib.sha1(told.encode() + b"".join(files[path] for path in sorted(files))).hexdigest()
        self.commits[name] = dict(files)
        self.branches[branch] = name
        self.messages.append(message)
        return name

    def find(self, revision: str) -> str | None:
        """The commit that a branch, or a name, stands for."""
        return self.branches.get(revision, revision if revision in self.commits else None)

    def files(self, revision: str = "main") -> Files:
        """What a revision holds."""
        return self.commits[self.branches.get(revision, revision)]


@dataclass
class Hub:
    """What the stand-in holds, and what it was asked.

    Attributes:
        asked: method and path of every request.
        leaks: requests to where large files lie, on another host, that came with a token.
        sent: bytes of bodies sent in answers to requests for files.
        spoil: may answer a request itself, by returning true.
    """

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    large: Files = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    leaks: list[str] = field(default_factory=list)
    sent: int = 0
    spoil: "Callable[[_Handler, str], bool]" = lambda handler, path: False
    lock: Lock = field(default_factory=Lock)

    @property
    def elsewhere(self) -> str:
        """Where large files lie: another host in name."""
        return self.url.replace("127.0.0.1", "localhost")

    def put(self, name: str, folder: Path, *, branch: str = "main", private: bool = False) -> str:
        """Make, or change, a repository of the files of a folder; the name of the commit."""
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        repo = self.repos.setdefault(name, Repo(private=private))
        commit = repo.commit(branch, files, "by hand")
        repo.branches.setdefault("main", commit)
        return commit

    def environment(self, home: Path, *, token: str | None = TOKEN) -> dict[str, str]:
        """What leads a client here: variables of its environment."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_OFFLINE": "0",
            **({"HF_TOKEN": token} if token else {}),
        }


def lead_here(hub: Hub, patch: pytest.MonkeyPatch, token: str = TOKEN) -> None:
    """Lead the client of this process, which has read its environment already, to the stand-in."""
    constants = pytest.importorskip("huggingface_hub.constants")
    template = hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    patch.setattr(constants, "ENDPOINT", hub.url)
    patch.setattr(constants, "HF_HUB_OFFLINE", False)
    patch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    patch.setenv("HF_TOKEN", token)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the tests ask ``Hub.asked``."""

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def _answer(self) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        path = parts.path.strip("/")
        with self.hub.lock:
            self.hub.asked.append(f"{self.command} {path}")
        if self.hub.spoil(self, path):
            return
        with self.hub.lock:
            answer = self._route([unquote(part) for part in path.split("/")])
        if answer is not None:
            self._send(*answer)

    def _send(self, status: int, content: object = None, headers: dict[str, str] | None = None) -> None:
        body = b"" if content is None else json.dumps(content).encode()
        if status >= 400:
            headers = {"X-Error-Message": "as the tests ask for", **(headers or {})}
        self.send_response(status)
        for key, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(key, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    @property
    def _writes(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _route(self, parts: list[str]) -> tuple[Any, ...] | None:
        """Status, content and headers of the answer; none for what was answered already."""
        match self.command, parts:
            case _, ["large", digest]:
                if "Authorization" in self.headers:
                    self.hub.leaks.append(self.path)
                return self._large(digest)
            case "GET", ["api", "whoami-v2"]:
                return (200, {"name": "me", "type": "user"}) if self._writes else (401,)
            case "POST", ["api", "validate-yaml"]:
                return 200, {"errors": [], "warnings": []}
            case "POST", ["api", "repos", "create"]:
                return self._create(json.loads(self.body))
            case _, ["api", "models", org, name, *rest]:
                return self._api(f"{org}/{name}", rest)
            case "POST", [org, git, "info", "lfs", "objects", "batch"] if git.endswith(".git"):
                return self._batch(json.loads(self.body))
            case (("GET" | "HEAD"), [org, name, "resolve", revision, *place]):
                return self._resolve(f"{org}/{name}", revision, "/".join(place))
        return 404, {"error": "no such place"}

    def _create(self, asked: dict[str, Any]) -> tuple[Any, ...]:
        if not self._writes:
            return 401, {"error": "Invalid username or password."}
        name = f"{asked['organization']}/{asked['name']}"
        if asked["organization"] == "others":
            return 403, {"error": "You don't have the rights to create a model under the namespace others"}
        if name in self.hub.repos:
            return 409, {"error": "You already created this model repo", "url": f"{self.hub.url}/{name}"}
        repo = self.hub.repos[name] = Repo(private=asked.get("visibility") == "private")
        repo.commit("main", {".gitattributes": b"*.safetensors filter=lfs\n"}, "initial commit")
        return 200, {"url": f"{self.hub.url}/{name}", "name": name}

    def _seen(self, name: str) -> Repo | None:
        repo = self.hub.repos.get(name)
        return repo if repo is not None and (self._writes or not repo.private) else None

    def _api(self, name: str, rest: list[str]) -> tuple[Any, ...]:
        repo = self._seen(name)
        if repo is None:
            return 401 if not self._writes else 404, None, {"X-Error-Code": "RepoNotFound"}
        if self.command == "POST" and rest[0] != "paths-info" and not self._writes:
            return 401, {"error": "Unauthorized"}
        match rest:
            case ["branch", branch]:
                if branch in repo.branches:
                    return 409, {"error": "Reference already exists"}
                repo.branches[branch] = repo.branches["main"]
                return 200, {}
            case ["refs"]:
                named = [
                    {"name": n, "ref": f"refs/heads/{n}", "targetCommit": c} for n, c in repo.branches.items()
                ]
                return 200, {"branches": named, "tags": [], "converts": []}
        revision = rest[1] if len(rest) > 1 else "main"
        commit = repo.find(revision)
        if commit is None:
            return 404, None, {"X-Error-Code": "RevisionNotFound"}
        files = repo.commits[commit]
        match rest:
            case [] | ["revision", _]:
                named = [{"rfilename": path} for path in sorted(files)]
                return 200, {
                    "id": name,
                    "modelId": name,
                    "sha": commit,
                    "private": repo.private,
                    "siblings": named,
                }
            case ["tree", _, *place]:
                return 200, self._tree(
                    files, "/".join(place), "true" in str(self.query.get("recursive")).lower()
                )
            case ["paths-info", _]:
                asked = (
                    parse_qs(self.body.decode())["paths"]
                    if not self._is_json
                    else json.loads(self.body)["paths"]
                )
                return 200, [entry for entry in self._tree(files, "", True) if entry["path"] in asked]
            case ["preupload", _]:
                return 200, {
                    "files": [self._mode(repo, revision, of) for of in json.loads(self.body)["files"]]
                }
            case ["commit", branch]:
                return self._commit(name, repo, branch)
        return 404, {"error": "no such place"}

    @property
    def _is_json(self) -> bool:
        return "json" in self.headers.get("Content-Type", "")

    def _tree(self, files: Files, place: str, recursive: bool) -> list[dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for path, content in sorted(files.items()):
            if place and not path.startswith(f"{place}/"):
                continue
            *folders, _ = path.removeprefix(f"{place}/" if place else "").split("/")
            for depth in range(1, len(folders) + 1):
                folder = "/".join([*([place] if place else []), *folders[:depth]])
                found[folder] = {
                    "type": "directory",
                    "path": folder,
                    "oid": oid_of(folder.encode()),
                    "size": 0,
                }
            if recursive or not folders:
                found[path] = {"type": "file", "path": path, "oid": oid_of(content), "size": len(content)}
                if len(content) >= LARGE:
                    digest = hashlib.sha256(content).hexdigest()
                    found[path]["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
        return [
            entry
            for entry in found.values()
            if recursive or entry["path"].count("/") == place.count("/") + bool(place)
        ]

    def _mode(self, repo: Repo, revision: str, of: dict[str, Any]) -> dict[str, Any]:
        there = repo.files(revision).get(of["path"])
        mode = "lfs" if of["size"] >= LARGE or of["path"].endswith(".safetensors") else "regular"
        known = None
        if there is not None:
            known = hashlib.sha256(there).hexdigest() if mode == "lfs" else oid_of(there)
        return {"path": of["path"], "uploadMode": mode, "shouldIgnore": False, "oid": known}

    def _batch(self, asked: dict[str, Any]) -> tuple[Any, ...]:
        if not self._writes:
            return 401, {"error": "Unauthorized"}
        objects = [
            {
                **of,
                **(
                    {}
                    if of["oid"] in self.hub.large
                    else {"actions": {"upload": {"href": f"{self.hub.elsewhere}/large/{of['oid']}"}}}
                ),
            }
            for of in asked["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}

    def _large(self, digest: str) -> tuple[Any, ...] | None:
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != digest:
                return 400, {"error": "another content"}
            self.hub.large[digest] = self.body
            return 200, {}
        content = self.hub.large.get(digest)
        return (404,) if content is None else self._serve(content, {"ETag": f'"{digest}"'})

    def _commit(self, name: str, repo: Repo, branch: str) -> tuple[Any, ...]:
        files = dict(repo.files(branch))
        message = ""
        for line in map(json.loads, self.body.splitlines()):
            value = line["value"]
            match line["key"]:
                case "header":
                    message = value["summary"]
                    if value.get("parentCommit", repo.branches[branch]) != repo.branches[branch]:
                        return 412, {"error": "A commit has happened since. Please refresh and try again."}
                case "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                case "lfsFile":
                    files[value["path"]] = self.hub.large[value["oid"]]
                case "deletedFile":
                    files.pop(value["path"])
        made = repo.commit(branch, files, message)
        return 200, {"commitUrl": f"{self.hub.url}/{name}/commit/{made}", "commitOid": made, "success": True}

    def _resolve(self, name: str, revision: str, place: str) -> tuple[Any, ...] | None:
        repo = self._seen(name)
        if repo is None:
            return 401 if not self._writes else 404, None, {"X-Error-Code": "RepoNotFound"}
        commit = repo.find(revision)
        if commit is None:
            return 404, None, {"X-Error-Code": "RevisionNotFound"}
        content = repo.commits[commit].get(place)
        if content is None:
            return 404, None, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}
        known = {"X-Repo-Commit": commit, "Accept-Ranges": "bytes"}
        if len(content) < LARGE:
            return self._serve(content, {**known, "ETag": f'"{oid_of(content)}"'})
        digest = hashlib.sha256(content).hexdigest()
        self.hub.large[digest] = content
        linked = {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
        return 302, None, {**known, **linked, "Location": f"{self.hub.elsewhere}/large/{digest}"}

    def _serve(self, content: bytes, headers: dict[str, str]) -> tuple[Any, ...] | None:
        """A file, or the range of it that is asked for."""
        asked = self.headers.get("Range")
        first, last = 0, len(content) - 1
        if asked:
            begin, _, end = asked.removeprefix("bytes=").partition("-")
            first = int(begin) if begin else len(content) - int(end)
            last = min(last, int(end)) if begin and end else last
        if asked and first > last:
            return 416, None, {"Content-Range": f"bytes */{len(content)}"}
        body = content[first : last + 1]
        self.send_response(206 if asked else 200)
        for key, value in headers.items():
            self.send_header(key, value)
        if asked:
            self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            self.hub.sent += len(body)
        return None


@contextmanager
def serving() -> Iterator[Hub]:
    """A hub at work."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)
