"""The driver's side of FUSE: requests by name, and what comes back."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from typing import Any, Protocol, Self, cast

from tests.devices.inline import Inline
from vuproc import Request
from vuproc.device import Loop
from vuproc.devices.fs import Fs, FsOptions
from vuproc.spec import fuse
from vuproc.spec.fuse import ROOT, Opcode
from vuproc.testing.queue import Completion

HIPRIO, REQUESTS = 0, 1
ROOM = 64 << 10
ENTRY = fuse.ENTRY_OUT.size + fuse.ATTR.size


class FuseError(Exception):
    """An answer with an error."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode[number])
        self.errno = number


class Does(Protocol):
    """Has a request done: a guest."""

    def do(self, queue: int, out: Sequence[bytes], in_: Sequence[int] = ()) -> Completion: ...


class Fuse:
    """A mounted file system. `queue` may be set to another one for the next requests."""

    def __init__(self, guest: Does, flags: int = 0xFFFFFFFF) -> None:
        self.guest = guest
        self.queue = REQUESTS
        self.unique = 0
        self.user = os.geteuid(), os.getegid()
        body = fuse.INIT_IN.pack(major=7, minor=36, max_readahead=1 << 17, flags=flags)
        self.options = fuse.INIT_OUT.unpack(self.ask(Opcode.INIT, 0, body))

    def packed(self, opcode: int, node: int, body: bytes = b"", unique: int | None = None) -> bytes:
        if unique is None:
            self.unique += 2
            unique = self.unique
        size = fuse.IN_HEADER.size + len(body)
        header = fuse.IN_HEADER.pack(
            len=size,
            opcode=opcode,
            unique=unique,
            nodeid=node,
            uid=self.user[0],
            gid=self.user[1],
        )
        return header + body

    def ask(self, opcode: int, node: int, body: bytes = b"", room: int = ROOM) -> bytes:
        """What follows the header of the answer. Raises FuseError."""
        request = self.packed(opcode, node, body)
        # In two parts each way, as Linux has them.
        size = fuse.IN_HEADER.size
        in_ = [fuse.OUT_HEADER.size, *([room] if room else [])]
        return self.answered(self.guest.do(self.queue, [request[:size], request[size:]], in_))

    def answered(self, completion: Completion) -> bytes:
        content = completion.content
        header = fuse.OUT_HEADER.unpack(content)
        assert (header["len"], header["unique"]) == (len(content), self.unique)
        if header["error"]:
            assert len(content) == fuse.OUT_HEADER.size
            raise FuseError(-header["error"])
        return content[fuse.OUT_HEADER.size :]

    def tell(self, opcode: int, node: int, body: bytes = b"") -> None:
        """What has no answer."""
        self.guest.do(HIPRIO, [self.packed(opcode, node, body)])

    # By name.

    def lookup(self, path: str, node: int = ROOT) -> int:
        """The node at a path of names."""
        for name in path.split("/"):
            node = self.entry(self.ask(Opcode.LOOKUP, node, name.encode() + b"\0"))["nodeid"]
        return node

    def entry(self, data: bytes) -> dict[str, Any]:
        found = fuse.ENTRY_OUT.unpack(data) | fuse.ATTR.unpack(data, fuse.ENTRY_OUT.size)
        assert len(data) >= ENTRY
        return found

    def getattr(self, node: int, handle: int | None = None) -> dict[str, Any]:
        flags = 0 if handle is None else fuse.GETATTR_FH
        body = fuse.GETATTR_IN.pack(getattr_flags=flags, fh=handle or 0)
        return fuse.ATTR.unpack(self.ask(Opcode.GETATTR, node, body), fuse.ATTR_OUT.size)

    def setattr(self, node: int, **fields: int) -> dict[str, Any]:
        body = fuse.SETATTR_IN.pack(**fields)
        return fuse.ATTR.unpack(self.ask(Opcode.SETATTR, node, body), fuse.ATTR_OUT.size)

    def open(self, node: int, flags: int = os.O_RDONLY) -> int:
        answer = self.ask(Opcode.OPEN, node, fuse.OPEN_IN.pack(flags=flags))
        return int(fuse.OPEN_OUT.unpack(answer)["fh"])

    def create(
        self, parent: int, name: str, flags: int = os.O_RDWR, mode: int = 0o644
    ) -> tuple[int, int]:
        body = fuse.CREATE_IN.pack(flags=flags | os.O_CREAT, mode=0o100000 | mode)
        answer = self.ask(Opcode.CREATE, parent, body + name.encode() + b"\0")
        return self.entry(answer)["nodeid"], fuse.OPEN_OUT.unpack(answer, ENTRY)["fh"]

    def read(self, node: int, handle: int, offset: int = 0, size: int = ROOM) -> bytes:
        body = fuse.READ_IN.pack(fh=handle, offset=offset, size=size)
        return self.ask(Opcode.READ, node, body)

    def write(self, node: int, handle: int, data: bytes, offset: int = 0) -> int:
        body = fuse.WRITE_IN.pack(fh=handle, offset=offset, size=len(data))
        return int(fuse.WRITE_OUT.unpack(self.ask(Opcode.WRITE, node, body + data))["size"])

    def release(self, node: int, handle: int) -> None:
        self.ask(Opcode.RELEASE, node, fuse.RELEASE_IN.pack(fh=handle), room=0)

    def content(self, path: str) -> bytes:
        node = self.lookup(path)
        handle = self.open(node)
        data = self.read(node, handle)
        self.release(node, handle)
        return data

    def make(self, opcode: int, parent: int, body: bytes) -> dict[str, Any]:
        return self.entry(self.ask(opcode, parent, body))

    def mkdir(self, parent: int, name: str, mode: int = 0o755) -> int:
        body = fuse.MKDIR_IN.pack(mode=mode) + name.encode() + b"\0"
        return int(self.make(Opcode.MKDIR, parent, body)["nodeid"])

    def mknod(self, parent: int, name: str, mode: int) -> int:
        body = fuse.MKNOD_IN.pack(mode=mode) + name.encode() + b"\0"
        return int(self.make(Opcode.MKNOD, parent, body)["nodeid"])

    def symlink(self, parent: int, name: str, target: str) -> int:
        body = f"{name}\0{target}\0".encode()
        return int(self.make(Opcode.SYMLINK, parent, body)["nodeid"])

    def link(self, node: int, parent: int, name: str) -> int:
        body = fuse.LINK_IN.pack(oldnodeid=node) + name.encode() + b"\0"
        return int(self.make(Opcode.LINK, parent, body)["nodeid"])

    def unlink(self, parent: int, name: str, opcode: int = Opcode.UNLINK) -> None:
        self.ask(opcode, parent, name.encode() + b"\0", room=0)

    def rename(self, parent: int, old: str, newdir: int, new: str, flags: int = 0) -> None:
        body = fuse.RENAME2_IN.pack(newdir=newdir, flags=flags) + f"{old}\0{new}\0".encode()
        self.ask(Opcode.RENAME2, parent, body, room=0)

    def opendir(self, node: int) -> int:
        answer = self.ask(Opcode.OPENDIR, node, fuse.OPEN_IN.pack())
        return int(fuse.OPEN_OUT.unpack(answer)["fh"])

    def listed(self, node: int, room: int = 1024, *, plus: bool = False) -> dict[str, int]:
        """Names, and the nodes that they stand for (0: not told)."""
        handle, offset, names = self.opendir(node), 0, {}
        while True:
            opcode = Opcode.READDIRPLUS if plus else Opcode.READDIR
            body = fuse.READ_IN.pack(fh=handle, offset=offset, size=room)
            data = self.ask(opcode, node, body, room=room)
            if not data:
                break
            at = 0
            while at < len(data):
                told = 0
                if plus:
                    told = fuse.ENTRY_OUT.unpack(data, at)["nodeid"]
                    at += ENTRY
                one = fuse.DIRENT.unpack(data, at)
                at += fuse.DIRENT.size
                name = data[at : at + one["namelen"]].decode()
                at += -(-one["namelen"] // fuse.ALIGN) * fuse.ALIGN
                assert name not in names
                names[name] = told
                offset = one["off"]
        self.ask(Opcode.RELEASEDIR, node, fuse.RELEASE_IN.pack(fh=handle), room=0)
        return names

    def forget(self, node: int, count: int) -> None:
        self.tell(Opcode.FORGET, node, fuse.FORGET_IN.pack(nlookup=count))


class NoTimers:
    """The part of a worker's loop that is used."""

    def call_later(self, seconds: float, callback: Any, *, again: bool) -> object:
        return self


class Inlined:
    """A guest whose requests are served in the test's own process, one worker for all queues."""

    def __init__(self, **options: Any) -> None:
        self.options = FsOptions(tag="x", **options)
        self.umask = os.umask(0o022)  # a worker sets that of its process
        self.inline = Inline(self.worker())

    def worker(self) -> Fs:
        device = Fs(self.options)
        device.attach(cast(Loop, NoTimers()))
        return device

    def do(self, queue: int, out: Sequence[bytes], in_: Sequence[int] = ()) -> Completion:
        return self.inline.chain(out, in_)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.inline.close()
        os.umask(self.umask)
        if exception == (None, None, None):
            assert not self.inline.errors


DEADLY = frozenset({Opcode.CREATE, Opcode.UNLINK})


class DyingFs(Fs):
    """Dies each time that it has done something, once a request, before the driver hears of it."""

    def handle(self, request: Request) -> None:
        header = fuse.IN_HEADER.unpack(bytes(request.readable_segments[0]))
        super().handle(request)
        if header["opcode"] in DEADLY:
            try:
                os.mkdir(f"{self.options.directory}-died-{header['unique']}")
            except FileExistsError:
                return
            os.kill(os.getpid(), 9)
