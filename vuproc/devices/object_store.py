"""Objects of a store, or files of a web server: s3://, gs://, az://, https:// and http://."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from vuproc import texts

SCHEMES = ("s3", "gs", "az", "https", "http")
WRITABLE = ("s3", "gs", "az")
"""Those where an object can be exchanged on the condition that it is still the one that it was."""
TIMEOUT_S = 20
"""Seconds that an attempt may take. None begins later than that after the first."""
RETRIES = 3


class ObjectUnavailable(Exception):
    """There is no such object to be had; the text says why."""


class StoreAway(ObjectUnavailable):
    """Nobody is there, or whoever is there has no answer: there may be one later."""


class ObjectAbsent(ObjectUnavailable):
    """The store answers, and has none of that name."""


class Exchanged(ObjectUnavailable):
    """The object is another by now, or there is one already."""


class Object(msgspec.Struct, frozen=True):
    """Bytes, the entity tag if it is a strong one, and when it was changed, in ns since 1970."""

    size: int
    tag: str
    changed: int


Version = dict[str, str]
"""Which one of an object's contents it is, in the words of its store."""


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


def key_of(url: str) -> str:
    """The name of the object inside its bucket."""
    return unquote(urlsplit(url).path.lstrip("/"))


class ObjectStore:
    """The bucket that a URL is in; by any thread. Each method raises ObjectUnavailable."""

    def __init__(self, url: str) -> None:
        # Not before it is wanted: few disks are objects, and it is an extra.
        try:
            import obstore
            from obstore import exceptions
            from obstore.store import from_url
        except ImportError as error:
            raise ObjectUnavailable(f"obstore is not installed ({error})") from error
        parts = urlsplit(url)
        self._obstore = obstore
        self._exchanged = (exceptions.PreconditionError, exceptions.AlreadyExistsError)
        # What is neither the object's fault nor a matter of rights.
        self._away = exceptions.GenericError
        try:
            self._store: Any = from_url(
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

    def describe(self, key: str) -> Object:
        """What the object is."""
        try:
            found = self._obstore.head(self._store, key)
        except Exception as error:
            raise self._failure(error) from error
        tag = found.get("e_tag") or ""
        changed = int(found["last_modified"].timestamp()) * 1_000_000_000
        return Object(found["size"], "" if tag.startswith("W/") else tag, max(0, changed))

    def part(self, key: str, offset: int, length: int, tag: str = "") -> bytes:
        """That many bytes; fewer are an error, and so is an object with another tag."""
        options: Any = {"range": (offset, offset + length)}
        if tag:
            options["if_match"] = tag
        try:
            found = self._obstore.get(self._store, key, options=options)
            came, data = found.range, bytes(found.bytes())
        except Exception as error:
            raise self._failure(error) from error
        if came != (offset, offset + length) or len(data) != length:
            raise ObjectUnavailable(f"{len(data)} bytes {came} came, and not {options['range']}")
        return data

    def whole(self, key: str, most: int) -> tuple[bytes, Version]:
        """All of an object that has at most so many bytes."""
        try:
            found = self._obstore.get(self._store, key)
            if found.meta["size"] > most:
                raise ObjectUnavailable(f"{key} has {found.meta['size']} bytes, more than {most}")
            return bytes(found.bytes()), _version(found.meta)
        except ObjectUnavailable:
            raise
        except Exception as error:
            raise self._failure(error) from error

    def put(self, key: str, data: bytes) -> None:
        """Have an object with this content, whatever was there."""
        try:
            self._obstore.put(self._store, key, data, use_multipart=False)
        except Exception as error:
            raise self._failure(error) from error

    def exchange(self, key: str, data: bytes, before: Version | None) -> Version:
        """The same if it is still what it was `before`; None: if there is none. Raises Exchanged if
        it is not; then it may be ours all the same, of an attempt whose answer was lost.
        """
        mode: Any = "create" if before is None else before
        try:
            return _version(self._obstore.put(self._store, key, data, mode=mode))
        except Exception as error:
            raise self._failure(error) from error

    def delete(self, keys: Sequence[str]) -> None:
        """Have none of these; it is well if there are none."""
        if not keys:
            return
        try:
            self._obstore.delete(self._store, list(keys))
        except FileNotFoundError:
            if len(keys) > 1:
                for key in keys:
                    self.delete([key])
        except Exception as error:
            raise self._failure(error) from error

    def below(self, folder: str) -> Iterator[list[str]]:
        """The names of all objects in a folder, some at a time."""
        try:
            for found in self._obstore.list(self._store, folder.rstrip("/")):
                yield [str(each["path"]) for each in found]
        except Exception as error:
            raise self._failure(error) from error

    def _failure(self, error: Exception) -> ObjectUnavailable:
        kind = ObjectUnavailable
        if isinstance(error, FileNotFoundError):
            kind = ObjectAbsent
        elif isinstance(error, self._exchanged):
            kind = Exchanged
        elif isinstance(error, self._away):
            kind = StoreAway
        return kind(_in_a_line(error))


def _version(meta: Any) -> Version:
    """Without what the store does not say: the library takes no None for it."""
    return {name: meta[name] for name in ("e_tag", "version") if meta.get(name)}


def _in_a_line(error: Exception) -> str:
    text = str(error).split("\n\nDebug source:")[0].strip()
    return texts.line(" ".join(text.split()) or type(error).__name__, texts.ERROR_BYTES)
