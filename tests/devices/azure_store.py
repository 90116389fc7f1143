"""One container of Azure's Blob Storage, in Azurite, Microsoft's own emulator, where that is
installed: it is neither on PyPI nor among Debian's packages, and nothing here fetches it.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
import shutil
import subprocess
import urllib.request
import xml.etree.ElementTree as xml
from collections.abc import Iterator
from contextlib import contextmanager
from email.utils import formatdate
from pathlib import Path

CONTAINER = "images"
ACCOUNT = "devstoreaccount1"
KEY = base64.b64decode(
    "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="
)
"""The account and its key that every Azurite has, as Microsoft documents them."""
VERSION = "2021-08-06"
PROGRAM = "azurite-blob"
BOUND_S = 60.0
_LISTENS = re.compile(r"listens on http://127\.0\.0\.1:(\d+)")


class Azure:
    """A plain client of the container, by the rules of Shared Key and no code of ours."""

    def __init__(self, port: int) -> None:
        self._where = f"http://127.0.0.1:{port}"
        self._ask("PUT", "", {"restype": "container"})

    @property
    def url(self) -> str:
        return f"az://{CONTAINER}"

    @property
    def environment(self) -> dict[str, str]:
        """What clients find it by."""
        return {
            "AZURE_STORAGE_USE_EMULATOR": "true",
            "AZURITE_BLOB_STORAGE_URL": self._where,
            "NO_PROXY": "127.0.0.1",
        }

    def get(self, name: str) -> bytes:
        return self._ask("GET", name)

    def put(self, name: str, data: bytes) -> None:
        self._ask("PUT", name, {}, data)

    def names(self) -> list[str]:
        found = xml.fromstring(self._ask("GET", "", {"comp": "list", "restype": "container"}))
        return sorted(each.text or "" for each in found.iter("Name"))

    def _ask(
        self, method: str, name: str, query: dict[str, str] | None = None, data: bytes = b""
    ) -> bytes:
        path = f"/{ACCOUNT}/{CONTAINER}" + (f"/{name}" if name else "")
        headers = {"x-ms-date": formatdate(usegmt=True), "x-ms-version": VERSION}
        kind = ""
        if method == "PUT" and name:
            headers["x-ms-blob-type"] = "BlockBlob"
            kind = "application/octet-stream"
        lines = [method, "", "", str(len(data)) if data else "", "", kind, *[""] * 6]
        lines += [f"{key}:{headers[key]}" for key in sorted(headers)]
        lines.append(f"/{ACCOUNT}{path}")
        lines += [f"{key}:{value}" for key, value in sorted((query or {}).items())]
        signature = hmac.new(KEY, "\n".join(lines).encode(), hashlib.sha256).digest()
        headers["Authorization"] = f"SharedKey {ACCOUNT}:{base64.b64encode(signature).decode()}"
        if kind:
            headers["Content-Type"] = kind
        words = "&".join(f"{key}={value}" for key, value in (query or {}).items())
        request = urllib.request.Request(
            f"{self._where}{path}" + (f"?{words}" if words else ""),
            data=data or None,
            headers=headers,
            method=method,
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(request, timeout=BOUND_S) as answer:
            said: bytes = answer.read()
            return said


@contextmanager
def running(folder: Path) -> Iterator[Azure]:
    """`folder` is for what it writes beside itself. Raises LookupError where there is none."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise LookupError(f"there is no {PROGRAM} (Azurite) on the PATH")
    words = ["--inMemoryPersistence", "--blobPort", "0", "--disableTelemetry"]
    with subprocess.Popen(
        [program, *words],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            lines = iter(process.stdout.readline, "")
            port = next(found[1] for line in lines if (found := _LISTENS.search(line)))
            yield Azure(int(port))
        finally:
            process.terminate()
            process.wait(BOUND_S)
