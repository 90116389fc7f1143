"""One request of a file system: what is asked for, checked as a copy."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from vuproc.spec.fuse import IN_HEADER, NAME_MAX, OUT_HEADER, Opcode
from vuproc.spec.layout import Layout

if TYPE_CHECKING:
    from vuproc.devices.fs_records import Record
    from vuproc.shm.request import Request

MOST_BODY = 80 << 10
"""Bytes that follow the header of a request other than WRITE, whose content is not among them: the
largest have the value of an extended attribute, of 64 KiB, or a batch of nodes to forget."""
MOST_LISTED = 128 << 10
"""Bytes of one answer to READDIR; Linux has room for 32 KiB as a rule."""
OFFSET_MAX = (1 << 63) - 1
"""Largest place in a file (off_t)."""
MALFORMED = 0
"""An opcode that FUSE does not have."""


class Begins(Protocol):
    """Where it is noted that a request has begun."""

    def begin(self, unique: int, before: int = 0, handle: int = 0) -> Record: ...  # noqa: D102


def refused(number: int) -> OSError:
    """The answer with this error number."""
    return OSError(number, os.strerror(number))


@dataclass(slots=True)
class Call:
    """A request: whose it is, and what follows its header, unless that is the content of a file."""

    request: Request
    opcode: int
    unique: int
    node: int
    uid: int
    gid: int
    body: bytes
    records: Begins

    @property
    def room(self) -> int:
        """Bytes that an answer may have behind its header."""
        return self.request.writable_total - OUT_HEADER.size

    def fields(self, layout: Layout) -> dict[str, Any]:
        """What the body begins with. LayoutError if it is shorter."""
        return layout.unpack(self.body)

    def strings(self, offset: int, count: int) -> list[bytes]:
        """So many strings that end with a zero. OSError EINVAL if there are fewer."""
        strings = self.body[offset:].split(b"\0", count)
        if len(strings) <= count:
            raise refused(errno.EINVAL)
        return strings[:count]

    def names(self, offset: int, count: int) -> list[bytes]:
        """So many names of entries of a directory. OSError EINVAL, ENAMETOOLONG."""
        return [component(name) for name in self.strings(offset, count)]

    @contextmanager
    def once(self, before: int, explained: int) -> Iterator[None]:
        """Do what must not be done twice. `before`: the inode number of what has the name, 0 if
        nothing has. `explained`: the error that comes of doing it twice, EEXIST if a name is made,
        ENOENT if one is removed; it is none if a dead worker has done this before.
        """
        record = self.records.begin(self.unique, before)
        try:
            yield
        except OSError as error:
            done = record.again and (explained == errno.EEXIST) == (record.before == 0)
            if not (done and error.errno == explained):
                raise


def component(name: bytes) -> bytes:
    """A name that is one component of a path, and leads nowhere but into its directory."""
    if len(name) > NAME_MAX:
        raise refused(errno.ENAMETOOLONG)
    if name in (b"", b".", b"..") or b"/" in name or b"\0" in name:
        raise refused(errno.EINVAL)
    return name


def read_call(request: Request, records: Begins) -> Call | None:
    """The request's header and body; None if there is not even a header, which nobody can answer.
    One whose length is not what the header says, or too long, has MALFORMED for an opcode.
    """
    total = request.readable_total
    data = request.read(IN_HEADER.size)
    if len(data) < IN_HEADER.size:
        return None
    header = IN_HEADER.unpack(data)
    call = Call(
        request,
        header["opcode"],
        header["unique"],
        header["nodeid"],
        header["uid"],
        header["gid"],
        b"",
        records,
    )
    if header["len"] != total:
        call.opcode = MALFORMED
    elif call.opcode != Opcode.WRITE:
        if request.readable > MOST_BODY:
            call.opcode = MALFORMED
        else:
            call.body = request.read()
    return call


def answer(request: Request, unique: int, error: int = 0, data: bytes | int = b"") -> None:
    """Complete a request. `data`: what follows the header, or how many bytes of it are there
    already. Without room for all of that it is an EIO, and without room for that nothing.
    """
    size = data if isinstance(data, int) else len(data)
    if OUT_HEADER.size + size > request.writable_total:
        error, data, size = errno.EIO, b"", 0
    written = OUT_HEADER.size + size
    if written > request.writable_total:
        request.finish(0)
        return
    request.put(0, OUT_HEADER.pack(len=written, error=-error, unique=unique))
    if isinstance(data, bytes) and data:
        request.put(OUT_HEADER.size, data)
    request.finish(written)
