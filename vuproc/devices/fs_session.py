"""What a worker of a file system does with its requests: reads them, has a tree do what they ask,
and answers.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Protocol

from vuproc.devices.fs_call import MALFORMED, Call, answer, read_call, refused
from vuproc.devices.fs_native import NativeFs
from vuproc.devices.fs_nodes import Nodes
from vuproc.devices.fs_records import Record, Records
from vuproc.spec.fuse import (
    BATCH_FORGET_IN,
    ERRNO_MAX,
    FORGET_IN,
    FORGET_ONE,
    INIT_IN,
    INIT_OUT,
    MAJOR,
    MINOR,
    MINOR_MIN,
    InitFlag,
    Opcode,
)
from vuproc.spec.layout import LayoutError

if TYPE_CHECKING:
    from vuproc.shm.request import Request

OFFERED = (
    InitFlag.ASYNC_READ
    | InitFlag.ATOMIC_O_TRUNC
    | InitFlag.BIG_WRITES
    | InitFlag.AUTO_INVAL_DATA
    | InitFlag.DO_READDIRPLUS
    | InitFlag.READDIRPLUS_AUTO
    | InitFlag.PARALLEL_DIROPS
    | InitFlag.MAX_PAGES
)
MAX_PAGES = 256
"""Pages that one READ or WRITE has at most; Linux takes no more."""
PAGE = 4096
MAX_BACKGROUND = 64
"""Requests that the driver may have on their way without waiting for them."""
NO_ANSWER = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})

CHANGES = frozenset(
    {
        Opcode.SETATTR,
        Opcode.SYMLINK,
        Opcode.MKNOD,
        Opcode.MKDIR,
        Opcode.UNLINK,
        Opcode.RMDIR,
        Opcode.RENAME,
        Opcode.RENAME2,
        Opcode.LINK,
        Opcode.WRITE,
        Opcode.SETXATTR,
        Opcode.REMOVEXATTR,
        Opcode.FALLOCATE,
        Opcode.COPY_FILE_RANGE,
    }
)
"""What is an EROFS if nothing may be changed. OPEN and CREATE look at their flags."""

Arm = Callable[[Call], bytes | int]
"""Does what a request asks for. What follows the answer's header, or how many bytes of that the
request has already; OSError is the answer with that error."""


class Tree(Protocol):
    """What is shared, for one worker."""

    writable: bool

    @property
    def arms(self) -> Mapping[int, Arm]:
        """What is done for each opcode; what is not here is an ENOSYS."""

    def forget(self) -> None:
        """The guest has mounted anew: what is open is not its any more."""

    def release(self) -> None:
        """The same, once for all workers."""

    def tick(self) -> bool:
        """Close what was not used of late; whether there is something left."""

    def close(self) -> None:
        """The worker ends."""


class Session:
    """The requests of one worker."""

    def __init__(
        self,
        tree: Tree,
        nodes: Nodes,
        records: Records,
        session: int,
        served: NativeFs | None = None,
    ) -> None:
        """`session`: the one of which `records` were read. `served`: what serves some requests of
        it in native code.
        """
        self._tree = tree
        self._nodes = nodes
        self._records = records
        self._session = session
        self._unique = 0
        """Of the request that is being served."""
        self._served = served
        if served is not None:
            nodes.lead(served, session)

    def begin(self, unique: int, before: int = 0, handle: int = 0) -> Record:
        """Note that a request has begun; what a dead worker has noted of it, if it had."""
        return self._records.begin(self._session, unique, before, handle)

    def serve(self, request: Request) -> None:
        """Do what one request asks for, and complete it."""
        call = read_call(request, self)
        if call is None:
            return
        self._unique = call.unique
        if self._session != self._nodes.session:
            self._mounted_anew()
        try:
            data = self._carry_out(call)
        except OSError as error:
            number = error.errno or errno.EIO
            self._answer(call, number if 0 < number <= ERRNO_MAX else errno.EIO)
        except (LayoutError, OverflowError):
            self._answer(call, errno.EINVAL)
        else:
            self._answer(call, 0, data)

    def fail(self, request: Request) -> None:
        """Answer a request that nobody has carried out."""
        if request.readable == request.readable_total:
            call = read_call(request, self)  # it killed several workers, and was not run again
            self._unique = 0 if call is None else call.unique
        answer(request, self._unique, errno.EIO)

    def tick(self) -> bool:
        """Close what was not used of late; whether there is something left."""
        return self._tree.tick()

    def close(self) -> None:
        """Let go of everything."""
        if self._served is not None:
            self._served.follow(None, 0)
        self._tree.close()
        self._records.close()
        self._nodes.close()

    def _answer(self, call: Call, error: int, data: bytes | int = b"") -> None:
        if call.opcode in NO_ANSWER:
            call.request.finish(0)
        else:
            answer(call.request, call.unique, error, data)

    def _carry_out(self, call: Call) -> bytes | int:
        match call.opcode:
            case Opcode.INIT:
                return self._init(call)
            case Opcode.DESTROY:
                self._reset()
                return b""
            case Opcode.FORGET:
                self._nodes.forget(call.node, call.fields(FORGET_IN)["nlookup"])
                return b""
            case Opcode.BATCH_FORGET:
                return self._forget_many(call)
            case Opcode.INTERRUPT:
                return b""  # what it is about is not waited for: it is done, or will be at once
            case value if value == MALFORMED:
                raise refused(errno.EINVAL)
        if call.opcode in CHANGES and not self._tree.writable:
            raise refused(errno.EROFS)
        arm = self._tree.arms.get(call.opcode)
        if arm is None:
            raise refused(errno.ENOSYS)
        return arm(call)

    def _forget_many(self, call: Call) -> bytes:
        count = call.fields(BATCH_FORGET_IN)["count"]
        there = (len(call.body) - BATCH_FORGET_IN.size) // FORGET_ONE.size
        for number in range(min(count, there)):
            at = BATCH_FORGET_IN.size + number * FORGET_ONE.size
            one = FORGET_ONE.unpack(call.body, at)
            self._nodes.forget(one["nodeid"], one["nlookup"])
        return b""

    def _init(self, call: Call) -> bytes:
        wanted = call.fields(INIT_IN)
        if wanted["major"] > MAJOR:
            # It asks again, with ours.
            return INIT_OUT.pack(major=MAJOR, minor=MINOR)
        if wanted["major"] < MAJOR or wanted["minor"] < MINOR_MIN:
            raise refused(errno.EPROTO)
        self._reset()
        return INIT_OUT.pack(
            major=MAJOR,
            minor=min(wanted["minor"], MINOR),
            max_readahead=wanted["max_readahead"],
            flags=wanted["flags"] & OFFERED,
            max_background=MAX_BACKGROUND,
            congestion_threshold=MAX_BACKGROUND * 3 // 4,
            max_write=MAX_PAGES * PAGE,
            time_gran=1,
            max_pages=MAX_PAGES,
        )

    def _reset(self) -> None:
        """The guest mounts, or has unmounted: it has no node and no file."""
        self._nodes.reset()
        self._tree.release()
        self._mounted_anew()

    def _mounted_anew(self) -> None:
        self._session = self._nodes.session
        self._records.forget()
        self._tree.forget()
        if self._served is not None:
            self._nodes.lead(self._served, self._session)
