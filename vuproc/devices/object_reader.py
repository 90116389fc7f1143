"""Reading one object of a store, or a file of a web server.

As a program, `python -m vuproc.devices.object_reader URL`, it says what is there: the object, or
the manifest of an image in pieces. The master asks so, for the library has threads of its own.
"""

from __future__ import annotations

import os
import sys

import msgspec

from vuproc import inquiries
from vuproc.devices import pieces_manifest
from vuproc.devices.object_store import (
    Object,
    ObjectStore,
    ObjectUnavailable,
    StoreAway,
    key_of,
)
from vuproc.devices.pieces_manifest import Manifest
from vuproc.inquiries import AWAY, Inquiry

ASK_S = 15.0
"""Seconds for the program as a whole: whoever asks waits meanwhile, or does something else."""


def ask(url: str) -> Object:
    """What the object is, from a process of its own. Raises ObjectUnavailable."""
    try:
        return msgspec.json.decode(_said_of(url), type=Object)
    except msgspec.MsgspecError as error:
        raise ObjectUnavailable(f"an answer that is none: {error}") from error


def ask_manifest(url: str) -> Manifest:
    """What the manifest of an image in pieces says; otherwise as `ask`."""
    return pieces_manifest.decoded(_said_of(url))


def _said_of(url: str) -> bytes:
    inquiry = Inquiry((sys.executable, "-P", "-m", __name__, url), ASK_S, url)
    answer = inquiries.ask(inquiry)
    if answer.code != 0:
        raise ObjectUnavailable(inquiry.reason_of(answer))
    return answer.output


class ObjectReader:
    """Reads parts of one object; by any thread."""

    def __init__(self, url: str, tag: str = "") -> None:
        """Raises ObjectUnavailable. `tag`: of what is to be read; another is an error."""
        self._store = ObjectStore(url)
        self._key = key_of(url)
        self._tag = tag

    def read(self, offset: int, length: int) -> bytes:
        """That many bytes. Raises ObjectUnavailable, also for fewer or if it is another by now."""
        return self._store.part(self._key, offset, length, self._tag)

    def close(self) -> None:
        """There is nothing to give back."""


def _found_at(url: str) -> bytes:
    store = ObjectStore(url)
    if pieces_manifest.is_folder(url):
        data, _ = store.whole(key_of(url) + pieces_manifest.NAME, pieces_manifest.MOST_BYTES)
        return data
    return msgspec.json.encode(store.describe(key_of(url)))


def main() -> int:
    """Say what is at the URL, as JSON."""
    try:
        found = _found_at(sys.argv[1])
    except ObjectUnavailable as error:
        print(error, file=sys.stderr)
        return AWAY if isinstance(error, StoreAway) else 1
    sys.stdout.buffer.write(found)
    sys.stdout.buffer.flush()
    # The library's threads have nothing to be waited for.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
