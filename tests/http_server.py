"""A web server on 127.0.0.1 that serves bytes from memory, breaks off when told to, and keeps a log."""

import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

COMMIT = "c0ffee" + "0" * 34


@dataclass
class Request:
    """What one GET asked for (`start` of its range) with which credentials, and how much it was given."""

    path: str
    start: int
    authorization: str | None
    sent: int = 0


class WebServer(ThreadingHTTPServer):
    """Serves `files` by path.

    cuts: path -> for each coming GET, after how many bytes of body to close the connection.
    stalls: path -> after how many bytes to send nothing more while the server lives.
    statuses: path -> status codes to answer first, one per GET.
    redirects: path -> path.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.cuts: dict[str, list[int]] = {}
        self.stalls: dict[str, int] = {}
        self.statuses: dict[str, list[int]] = {}
        self.redirects: dict[str, str] = {}
        self.ranges = True
        self.validators = True
        self.requests: list[Request] = []
        self.closing = threading.Event()
        self.stalled = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def sent(self, path: str) -> list[tuple[int, int]]:
        """(start, bytes sent) of every GET of `path`."""
        return [(request.start, request.sent) for request in self.requests if request.path == path]

    def serve_model(self, repo: str, files: Mapping[str, bytes], *, large: tuple[str, ...] = ()) -> None:
        """Publishes a repository as the Hugging Face hub does: `large` files lie behind a redirect."""
        siblings: list[dict[str, Any]] = []
        for name, content in files.items():
            blob = hashlib.sha1(b"blob %d\0%b" % (len(content), content)).hexdigest()
            entry: dict[str, Any] = {"rfilename": name, "size": len(content), "blobId": blob}
            path = f"/{repo}/resolve/{COMMIT}/{name}"
            if name in large:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"sha256": sha256, "size": len(content), "pointerSize": 134}
                self.redirects[path] = path = f"/cdn/{name}"
            self.files[path] = content
            siblings.append(entry)
        info = {"id": repo, "sha": COMMIT, "siblings": siblings}
        self.files[f"/api/models/{repo}"] = json.dumps(info).encode()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that was killed is part of the tests."""


@contextmanager
def web_server() -> Iterator[WebServer]:
    server = WebServer()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: WebServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        server, path = self.server, self.path.partition("?")[0]
        if path in server.redirects:
            self._head(302, {"Location": server.redirects[path], "Content-Length": "0"})
            return
        if server.statuses.get(path):
            self._head(server.statuses[path].pop(0), {"Content-Length": "0"})
            return
        if path not in server.files:
            self._head(404, {"Content-Length": "0"})
            return
        self._send(path, server.files[path])

    def _send(self, path: str, content: bytes) -> None:
        server = self.server
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        headers = {"ETag": etag} if server.validators else {}
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        if not server.ranges or self.headers.get("If-Range", etag) != etag:
            start = 0
        request = Request(path, start, self.headers.get("Authorization"))
        server.requests.append(request)
        if start >= len(content) > 0:
            self._head(416, headers | {"Content-Range": f"bytes */{len(content)}", "Content-Length": "0"})
            return
        body = content[start:]
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._head(206 if start else 200, headers | {"Content-Length": str(len(body))})
        cut = server.cuts[path].pop(0) if server.cuts.get(path) else len(body)
        stall = server.stalls.get(path, len(body))
        request.sent = min(cut, stall, len(body))
        self.wfile.write(body[: request.sent])
        self.wfile.flush()
        if stall < len(body):
            server.stalled.set()
            server.closing.wait()
        self.close_connection = request.sent < len(body)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def log_message(self, format: str, *args: Any) -> None:
        """The log is `WebServer.requests`."""
