"""A web server on loopback that serves files by ranges, counts what it sends, and misbehaves if told to."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Web:
    """What the server has, and what it was asked.

    Attributes:
        asked: method, path and range of every request, in order.
        headers: those of every request.
        sent: bytes of bodies.
        spoil: may answer a request itself, by returning true; the path is that of the file.
        tags: whether answers have an ETag.
    """

    folder: Path
    url: str = ""
    asked: list[tuple[str, str, str]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    sent: int = 0
    spoil: "Callable[[Handler, Path], bool]" = lambda handler, path: False
    tags: bool = True
    lock: Lock = field(default_factory=Lock)

    def ranges(self, name: str) -> list[str]:
        """What was asked for of a file."""
        return [there for method, path, there in self.asked if method == "GET" and path.endswith(name)]


class Handler(BaseHTTPRequestHandler):
    """Answers of an honest server; ``spoil`` makes others of the same pieces."""

    protocol_version = "HTTP/1.1"
    web: Web

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        with self.web.lock:
            self.web.asked.append((self.command, path, self.headers.get("Range") or ""))
            self.web.headers.append({name.lower(): text for name, text in self.headers.items()})
        file = self.web.folder / path.lstrip("/")
        if not self.web.spoil(self, file):
            self.serve(file)

    do_HEAD = do_GET

    def serve(self, file: Path) -> None:
        """The file, or the part of it that was asked for."""
        if not file.is_file():
            self.reply(404, b"no such file")
            return
        size, tag = file.stat().st_size, {"ETag": f'"{file.stat().st_mtime_ns:x}"'} if self.web.tags else {}
        asked = self.asked_range(size)
        if asked is None:
            self.reply(200, file.read_bytes(), tag)
        elif asked[0] >= size:
            self.reply(416, b"", {"Content-Range": f"bytes */{size}"})
        else:
            with file.open("rb") as content:
                content.seek(asked[0])
                body = content.read(asked[1] + 1 - asked[0])
            self.reply(206, body, {"Content-Range": f"bytes {asked[0]}-{asked[1]}/{size}", **tag})

    def part(self, content: bytes, first: int, last: int, headers: Mapping[str, str] | None = None) -> None:
        """Bytes of a file, the last included."""
        there = {"Content-Range": f"bytes {first}-{last}/{len(content)}"}
        self.reply(206, content[first : last + 1], {**there, **(headers or {})})

    def asked_range(self, size: int) -> tuple[int, int] | None:
        """The first and the last byte that were asked for."""
        asked = self.headers.get("Range")
        if asked is None:
            return None
        first, last = asked.removeprefix("bytes=").split("-")
        return int(first), min(int(last), size - 1)

    def reply(self, status: int, body: bytes, headers: Mapping[str, str] | None = None) -> bool:
        """An answer, whose headers may lie; true, as what ``spoil`` gives."""
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
            with self.web.lock:
                self.web.sent += len(body)
        return True

    def cut(self) -> None:
        """End the connection in the middle of an answer."""
        self.wfile.flush()
        self.close_connection = True
        self.connection.close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: clients hang up."""


@contextmanager
def serving(folder: Path) -> Iterator[Web]:
    """A server for the files of a folder."""
    web = Web(folder)
    handler = type("Bound", (Handler,), {"web": web})
    with _Server(("127.0.0.1", 0), handler) as server:
        web.url = f"http://127.0.0.1:{server.server_port}"
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield web
        finally:
            server.shutdown()
            thread.join()
