"""One bucket of Google's Cloud Storage, as its XML API is documented at
https://cloud.google.com/storage/docs/xml-api: objects with a generation each (get-object with a
range and If-Match, head-object, put-object on x-goog-if-generation-match, delete-object), and lists
in pages (get-bucket-list). That each version has a generation that is no other's, and that 0 stands
for none, is in generations-preconditions there; that a name that is written too often is answered
with 429, in quotas. There are no uploads in parts, since nothing here may ask for them: they are
answered with 501.

No emulator that could be had has that API: fake-gcs-server 1.56.1 takes no plain PUT,
gcp-storage-emulator 2026.7.19 knows neither HEAD, DELETE nor lists.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit
from xml.sax.saxutils import escape

from tests.devices.bucket import NAME, Bucket
from tests.devices.store_gate import BOUND_S, LOOPBACK

LOST = 0
"""What was asked for is done, and the answer to it is lost."""
PAGE = 2
"""Objects of a list that come at a time, for which Google has up to 1000."""
LIST = (
    '<?xml version="1.0" encoding="UTF-8"?><ListBucketResult>{}'
    "<IsTruncated>{}</IsTruncated>{}</ListBucketResult>"
)
NEXT = "<NextContinuationToken>{}</NextContinuationToken>"
ENTRY = (
    "<Contents><Key>{}</Key><Size>{}</Size><ETag>{}</ETag>"
    "<LastModified>2026-01-01T00:00:00.000Z</LastModified></Contents>"
)


class Server(ThreadingHTTPServer):
    """`objects` are the contents with their generations, by name. `answers` are those to the next
    requests for manifests, by method: a status, and nothing is done, or LOST.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__((LOOPBACK, 0), _Handler)
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.answers: dict[str, list[int]] = {}
        self.lock = threading.Lock()
        self.generations = itertools.count(1001)


class Google(Bucket):
    """The bucket of one."""

    scheme = "gs"

    def __init__(self, server: Server) -> None:
        super().__init__(server.server_port)
        self.server = server

    def _credentials(self) -> dict[str, str]:
        account = {"gcs_base_url": f"http://{LOOPBACK}:{self.gate.port}", "disable_oauth": True}
        account |= {"client_email": "", "private_key": "", "private_key_id": ""}
        return {"GOOGLE_SERVICE_ACCOUNT_KEY": json.dumps(account)}

    def get(self, name: str) -> bytes:
        return self.server.objects[name][0]

    def put(self, name: str, data: bytes) -> None:
        with self.server.lock:
            self.server.objects[name] = data, next(self.server.generations)

    def names(self) -> list[str]:
        return sorted(self.server.objects)

    def delete_all(self) -> None:
        self.server.objects.clear()

    def close(self) -> None:
        self.gate.shut()


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        if parts.path.strip("/") == NAME:
            self._list({key: values[0] for key, values in parse_qs(parts.query).items()})
        else:
            self._send(body=True)

    def do_HEAD(self) -> None:
        self._send(body=False)

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        with self.server.lock:
            answer = self._foreseen()
            if answer:
                return self._say(answer)
            status, headers = self._write(self._name(), data)
        if answer != LOST:
            return self._say(status, b"", headers)
        self.close_connection = True
        return None

    def _write(self, name: str, data: bytes) -> tuple[int, dict[str, str]]:
        objects = self.server.objects
        wanted = self.headers.get("x-goog-if-generation-match")
        if wanted is not None and int(wanted) != objects.get(name, (b"", 0))[1]:
            return 412, {}
        objects[name] = data, next(self.server.generations)
        return 200, self._headers(name)

    def _foreseen(self) -> int | None:
        """The answer to this request, if a test says it."""
        answers = self.server.answers.get(self.command)
        if not answers or not self._name().endswith("/manifest.json"):
            return None
        return answers.pop(0)

    def do_DELETE(self) -> None:
        with self.server.lock:
            there = self.server.objects.pop(self._name(), None)
        self._say(404 if there is None else 204)

    def do_POST(self) -> None:
        self._say(501)
        self.close_connection = True  # what it has to say is not read

    def _list(self, query: dict[str, str]) -> None:
        prefix, after = query.get("prefix", ""), query.get("continuation-token", "")
        with self.server.lock:
            found = sorted(
                name for name in self.server.objects if name.startswith(prefix) and name > after
            )
            page, rest = found[:PAGE], found[PAGE:]
            entries = [ENTRY.format(escape(name), *self._described(name)) for name in page]
        following = NEXT.format(escape(page[-1])) if rest else ""
        data = LIST.format("".join(entries), str(bool(rest)).lower(), following)
        self._say(200, data.encode())

    def _name(self) -> str:
        return unquote(urlsplit(self.path).path).removeprefix(f"/{NAME}/")

    def _described(self, name: str) -> tuple[int, str]:
        data, _ = self.server.objects[name]
        return len(data), f'"{hashlib.md5(data).hexdigest()}"'

    def _headers(self, name: str) -> dict[str, str]:
        generation = self.server.objects[name][1]
        return {"ETag": self._described(name)[1], "x-goog-generation": str(generation)}

    def _send(self, *, body: bool) -> None:
        with self.server.lock:
            if answer := self._foreseen():
                return self._say(answer)
            data, generation = self.server.objects.get(self._name(), (b"", 0))
            if not generation:
                return self._say(404)
            headers = self._headers(self._name())
        if self.headers.get("If-Match", headers["ETag"]) != headers["ETag"]:
            return self._say(412)
        status = 200
        if (wanted := self.headers.get("Range")) is not None:
            first, last = map(int, wanted.removeprefix("bytes=").split("-"))
            if first >= len(data):
                return self._say(416, b"", {"Content-Range": f"bytes */{len(data)}"})
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
def gated(server: Server) -> Iterator[Google]:
    """What a test has of a server that is there."""
    with closing(Google(server)) as google:
        yield google


@contextmanager
def running() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join(BOUND_S)
