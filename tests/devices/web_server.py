"""A web server for tests: one object, parts of it, entity tags, and misbehaviour on demand."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

BOUND_S = 30.0
PATH = "/bucket/golden.raw"


class Web(ThreadingHTTPServer):
    """`asked` are the ranges that were wanted; `status` is the answer instead, if it is not 0."""

    daemon_threads = True

    def __init__(self, content: bytes) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content = content
        self.tag = '"first"'
        self.status = 0
        self.asked: list[tuple[int, int]] = []
        self.open = threading.Event()
        """Parts are given out while it is set."""
        self.open.set()
        self.described = threading.Event()
        """It says what is there while this is set."""
        self.described.set()
        self.heads = 0
        """How often it was to say so."""
        self._news = threading.Condition()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}{PATH}"

    def note(self, first: int, end: int) -> None:
        with self._news:
            self.asked.append((first, end))
            self._news.notify_all()

    def note_head(self) -> None:
        with self._news:
            self.heads += 1
            self._news.notify_all()

    def wait(self, holds: Callable[[], bool]) -> None:
        with self._news:
            assert self._news.wait_for(holds, BOUND_S), self.asked


class _Handler(BaseHTTPRequestHandler):
    server: Web
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        web = self.server
        content, status, more = web.content, 200, {}
        if self.path != PATH:
            return self._say(404, b"", {})
        if not body:
            web.note_head()
            assert web.described.wait(BOUND_S)
        if body:
            first, last = self.headers["Range"].removeprefix("bytes=").split("-")
            web.note(int(first), int(last) + 1)
            assert web.open.wait(BOUND_S)
            if self.headers.get("If-Match", web.tag) != web.tag:
                return self._say(412, b"", {})
            end = min(int(last) + 1, len(content))
            status, more = 206, {"Content-Range": f"bytes {first}-{end - 1}/{len(content)}"}
            content = content[int(first) : end]
        if body and web.status:
            return self._say(web.status, b"", {})
        return self._say(status, content, more, body=body)

    def _say(self, status: int, content: bytes, more: dict[str, str], *, body: bool = True) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", self.server.tag)
        self.send_header("Last-Modified", "Sun, 06 Nov 1994 08:49:37 GMT")
        for name, value in more.items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            with contextlib.suppress(OSError):
                self.wfile.write(content)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def serving(content: bytes) -> Iterator[Web]:
    with Web(content) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield web
        finally:
            web.open.set()
            web.described.set()
            web.shutdown()
            thread.join(BOUND_S)
