"""Reading an object of a store, or a file of a web server: s3://, gs://, az://, https:// and http://.

As a program, `python -m vuproc.devices.object_reader URL`, it says what the object is. The master
asks so, for the library has threads of its own.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from vuproc import texts

SCHEMES = ("s3", "gs", "az", "https", "http")
TIMEOUT_S = 20
"""Seconds that an attempt may take. None begins later than that after the first."""
RETRIES = 3
ASK_S = 15.0
"""Seconds for the program as a whole: whoever asks waits meanwhile."""


class ObjectUnavailable(Exception):
    """There is no such object to be had; the text says why."""


class Object(msgspec.Struct, frozen=True):
    """Bytes, the entity tag if it is a strong one, and when it was changed, in ns since 1970."""

    size: int
    tag: str
    changed: int


def problem_of(url: str) -> str | None:
    """What is wrong with a URL by its form."""
    try:
        parts = urlsplit(url)
    except ValueError as error:
        return str(error).lower()
    if parts.scheme not in SCHEMES or not parts.netloc or not parts.path.strip("/"):
        return f"it is one of {', '.join(f'{scheme}://' for scheme in SCHEMES)} and an object"
    if parts.query or parts.fragment:
        return "an object is named without ? and #"
    return None


def ask(url: str) -> Object:
    """What the object is, from a process of its own. Raises ObjectUnavailable."""
    command = [sys.executable, "-P", "-m", __name__, url]
    try:
        done = subprocess.run(
            command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, timeout=ASK_S
        )
    except subprocess.TimeoutExpired:
        raise ObjectUnavailable(f"no answer within {ASK_S:.0f} s") from None
    if done.returncode:
        said = done.stderr.decode("utf-8", "backslashreplace").strip().splitlines()
        raise ObjectUnavailable(said[-1] if said else f"exit code {done.returncode}")
    try:
        return msgspec.json.decode(done.stdout, type=Object)
    except msgspec.MsgspecError as error:
        raise ObjectUnavailable(f"an answer that is none: {error}") from error


class ObjectReader:
    """Reads parts of one object; by any thread."""

    def __init__(self, url: str, tag: str = "") -> None:
        """Raises ObjectUnavailable. `tag`: of what is to be read; another is an error."""
        # Not before it is wanted: few disks are objects, and it is an extra.
        try:
            import obstore
            from obstore.store import from_url
        except ImportError as error:
            raise ObjectUnavailable(f"obstore is not installed ({error})") from error
        parts = urlsplit(url)
        self._obstore = obstore
        self._key = unquote(parts.path.lstrip("/"))
        self._tag = tag
        try:
            self._store = from_url(
                f"{parts.scheme}://{parts.netloc}",
                client_options={
                    "timeout": f"{TIMEOUT_S}s",
                    "connect_timeout": "5s",
                    # For stores it is the endpoint's affair, which the environment names.
                    "allow_http": parts.scheme != "https",
                },
                retry_config={
                    "max_retries": RETRIES,
                    "retry_timeout": datetime.timedelta(seconds=TIMEOUT_S),
                },
            )
        except Exception as error:
            raise ObjectUnavailable(_in_a_line(error)) from error

    def describe(self) -> Object:
        """Raises ObjectUnavailable."""
        try:
            found = self._obstore.head(self._store, self._key)
        except Exception as error:
            raise ObjectUnavailable(_in_a_line(error)) from error
        tag = found.get("e_tag") or ""
        changed = int(found["last_modified"].timestamp()) * 1_000_000_000
        return Object(found["size"], "" if tag.startswith("W/") else tag, max(0, changed))

    def read(self, offset: int, length: int) -> bytes:
        """That many bytes. Raises ObjectUnavailable, also for fewer or if it is another by now."""
        options: Any = {"range": (offset, offset + length)}
        if self._tag:
            options["if_match"] = self._tag
        try:
            found = self._obstore.get(self._store, self._key, options=options)
            if found.range != (offset, offset + length):
                raise ObjectUnavailable(f"bytes {found.range} came, and not {options['range']}")
            data = bytes(found.bytes())
        except ObjectUnavailable:
            raise
        except Exception as error:
            raise ObjectUnavailable(_in_a_line(error)) from error
        if len(data) != length:
            raise ObjectUnavailable(f"{len(data)} bytes came instead of {length}")
        return data


def _in_a_line(error: Exception) -> str:
    text = str(error).split("\n\nDebug source:")[0].strip()
    return texts.line(" ".join(text.split()) or type(error).__name__, texts.ERROR_BYTES)


def main() -> int:
    """Say what the object is, as JSON."""
    try:
        found = ObjectReader(sys.argv[1]).describe()
    except ObjectUnavailable as error:
        print(error, file=sys.stderr)
        return 1
    sys.stdout.buffer.write(msgspec.json.encode(found))
    sys.stdout.buffer.flush()
    # The library's threads have nothing to be waited for.
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main())
