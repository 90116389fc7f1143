"""One bucket of Google's Cloud Storage, as its XML API is documented: objects with a generation
each, and requests on the condition of one. No emulator that could be had has that API:
fake-gcs-server 1.56.1 takes no plain PUT, gcp-storage-emulator 2026.7.19 knows neither HEAD, DELETE
nor lists.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

BUCKET = "images"
LIST = '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>{}</ListBucketResult>'
ENTRY = (
    "<Contents><Key>{}</Key><Size>{}</Size><ETag>{}</ETag>"
    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
)
BOUND_S = 30.0


class Google(ThreadingHTTPServer):
    """`objects` are the contents with their generations, by name."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.lock = threading.Lock()
        self.generations = itertools.count(1001)
        self._account = folder / "account.json"
        account = {"gcs_base_url": f"http://127.0.0.1:{self.server_port}", "disable_oauth": True}
        account |= {"client_email": "", "private_key": "", "private_key_id": ""}
        self._account.write_text(json.dumps(account))

    @property
    def url(self) -> str:
        return f"gs://{BUCKET}"

    @property
    def environment(self) -> dict[str, str]:
        """What clients find it by."""
        return {"GOOGLE_SERVICE_ACCOUNT": str(self._account), "NO_PROXY": "127.0.0.1"}

    def get(self, name: str) -> bytes:
        return self.objects[name][0]

    def put(self, name: str, data: bytes) -> None:
        """By somebody else."""
        with self.lock:
            self.objects[name] = data, next(self.generations)

    def names(self) -> list[str]:
        return sorted(self.objects)


class _Handler(BaseHTTPRequestHandler):
    server: Google
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.strip("/") == BUCKET:
            prefix = parse_qs(parts.query).get("prefix", [""])[0]
            found = sorted(name for name in self.server.objects if name.startswith(prefix))
            entries = [ENTRY.format(escape(name), *self._described(name)) for name in found]
            self._say(200, LIST.format("".join(entries)).encode())
        else:
            self._send(body=True)

    def do_HEAD(self) -> None:
        self._send(body=False)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        wanted = self.headers.get("x-goog-if-generation-match")
        web, name = self.server, self._name()
        with web.lock:
            _, there = web.objects.get(name, (b"", 0))
            if wanted is not None and int(wanted) != there:
                return self._say(412)
            web.objects[name] = data, next(web.generations)
            return self._say(200, b"", self._headers(name))

    def do_DELETE(self) -> None:
        with self.server.lock:
            there = self.server.objects.pop(self._name(), None)
        self._say(404 if there is None else 204)

    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{BUCKET}/")

    def _described(self, name: str) -> tuple[int, str]:
        data, _ = self.server.objects[name]
        return len(data), f'"{hashlib.md5(data).hexdigest()}"'

    def _headers(self, name: str) -> dict[str, str]:
        generation = self.server.objects[name][1]
        return {"ETag": self._described(name)[1], "x-goog-generation": str(generation)}

    def _send(self, *, body: bool) -> None:
        name = self._name()
        if name not in self.server.objects:
            return self._say(404)
        data, headers, status = self.server.get(name), self._headers(name), 200
        if self.headers.get("If-Match", headers["ETag"]) != headers["ETag"]:
            return self._say(412)
        if (wanted := self.headers.get("Range")) is not None:
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            last = min(last, len(data) - 1)
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[first : last + 1], 206
        return self._say(status, data, headers, body=body)

    def _say(
        self,
        status: int,
        data: bytes = b"",
        headers: dict[str, str] | None = None,
        *,
        body: bool = True,
    ) -> None:
        self.send_response(status)
        headers = {"Last-Modified": "Thu, 01 Jan 2026 00:00:00 GMT", **(headers or {})}
        if status != 204:
            headers["Content-Length"] = str(len(data))
        for key, value in headers.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            with contextlib.suppress(OSError):
                self.wfile.write(data)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing."""


@contextmanager
def running(folder: Path) -> Iterator[Google]:
    with Google(folder) as google:
        thread = threading.Thread(target=google.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield google
        finally:
            google.shutdown()
            thread.join(BOUND_S)
