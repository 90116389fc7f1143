"""Guest memory that comes late, as QEMU has it in postcopy: pages are put into the files of the
destination when somebody asks for them, and all others at the end.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Self

from vuproc.fd import Fd
from vuproc.shm.userfault import wake
from vuproc.spec.vhost_user import FRONT_END, MEM_TABLE_HEADER, U64
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.memory import RamRegion
from vuproc.vhost_user.wire import encode

PAGE = 4096
TABLE = FRONT_END.named("SET_MEM_TABLE")
ADVISE = FRONT_END.named("POSTCOPY_ADVISE")
PUNCH = 0x2 | 0x1
"""Of fallocate(2): a hole, and the file stays as long as it is."""
PAGEFAULT = 0x12
_MESSAGE = struct.Struct("=B7xQQ8x")
_WAIT_S = 30.0


def advise(front_end: FrontEnd) -> Fd:
    """POSTCOPY_ADVISE: the worker's userfaultfd."""
    front_end.send(encode(ADVISE.number))
    answer = front_end.receive("POSTCOPY_ADVISE")
    assert (answer.request, answer.payload, len(answer.fds)) == (ADVISE.number, b"", 1)
    return answer.fds[0]


def stage(front_end: FrontEnd, regions: Sequence[RamRegion]) -> list[int]:
    """SET_MEM_TABLE while listening: where the worker has each region."""
    body = TABLE.payload.encode(items=[region.fields for region in regions])
    front_end.send(encode(TABLE.number, body), [region.fd for region in regions])
    answer = front_end.receive("SET_MEM_TABLE")
    assert answer.request == TABLE.number
    items: list[dict[str, Any]] = TABLE.payload.decode(answer.payload)["items"]
    for item, region in zip(items, regions, strict=True):
        assert {**item, "user_addr": region.user_addr} == region.fields
    assert len(answer.payload) == MEM_TABLE_HEADER.size + 32 * len(regions)
    return [item["user_addr"] for item in items]


def acknowledge(front_end: FrontEnd, value: int = 0) -> None:
    """The SET_MEM_TABLE after that."""
    front_end.send(encode(TABLE.number, U64.pack(value=value)))


class LazyMemory:
    """The pages of one region, which are taken out of its file and put back when asked for.

    The pages that are full of these contents, `hold`, wait until `let_go`. A context manager: at
    its end its thread is over.
    """

    def __init__(self, region: RamRegion, *, hold: Sequence[bytes] = ()) -> None:
        self.region = region
        self.content = bytes(region.buffer)
        self.asked: set[int] = set()
        """Numbers of the pages that the device has asked for."""
        self.placed: set[int] = set()
        self.held = {page for content in hold for page in self._pages_of(content)}
        """Numbers of the pages that wait."""
        self._waiting: set[int] = set()
        self._base = 0
        self._news = threading.Condition()
        self._userfault: Fd | None = None
        self._stop = Fd(os.eventfd(0))
        self._thread: threading.Thread | None = None
        _punch(region)

    def serve(self, userfault: Fd, base: int) -> None:
        """Listen to the worker's userfaultfd, which is ours now; it has the region at `base`."""
        self._base = base
        if self._thread is None:
            self._userfault = userfault
            self._thread = threading.Thread(target=self._run, name="pages")
            self._thread.start()

    def wait_held(self) -> None:
        """Wait until a page was asked for that has to wait."""
        with self._news:
            assert self._news.wait_for(lambda: bool(self._waiting), _WAIT_S)

    def let_go(self) -> None:
        """Give what is held back."""
        with self._news:
            self.held.clear()
            waiting, self._waiting = self._waiting, set()
            for page in sorted(waiting):
                self._place(page)

    def complete(self) -> None:
        """Put all other pages there, too."""
        self.let_go()
        with self._news:
            for page in range(len(self.content) // PAGE):
                self._place(page)

    def _run(self) -> None:
        assert self._userfault is not None
        poller = select.poll()
        poller.register(self._userfault.fileno(), select.POLLIN)
        poller.register(self._stop.fileno(), select.POLLIN)
        while True:
            ready = dict(poller.poll())
            if self._stop.fileno() in ready:
                return
            try:
                event, _flags, address = _MESSAGE.unpack(os.read(self._userfault.fileno(), 32))
            except BlockingIOError:
                continue
            except OSError:
                poller.unregister(self._userfault.fileno())
                continue
            assert event == PAGEFAULT
            with self._news:
                page = (address - self._base) // PAGE
                assert 0 <= page < len(self.content) // PAGE
                self.asked.add(page)
                if page in self.held:
                    self._waiting.add(page)
                else:
                    self._place(page)
                self._news.notify_all()

    def _pages_of(self, content: bytes) -> range:
        """Those that hold nothing else: a ring may be beside it."""
        start = self.content.index(content)
        return range(-(-start // PAGE), (start + len(content)) // PAGE)

    def _place(self, page: int) -> None:
        offset = page * PAGE
        if page not in self.placed:
            self.placed.add(page)
            data = self.content[offset : offset + PAGE]
            os.pwrite(self.region.fd.fileno(), data, self.region.mmap_offset + offset)
        if self._userfault is not None:
            try:
                wake(self._userfault.fileno(), self._base + offset, PAGE)
            except OSError:
                pass  # the worker is gone, and with it who waited

    def close(self) -> None:
        """End the thread; what is held stays so."""
        os.eventfd_write(self._stop.fileno(), 1)
        if self._thread is not None:
            self._thread.join()
        self._stop.close()
        if self._userfault is not None:
            self._userfault.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def _punch(region: RamRegion) -> None:
    """Take all pages out of the region's file."""
    libc = ctypes.CDLL(None, use_errno=True)
    offset, size = ctypes.c_int64(region.mmap_offset), ctypes.c_int64(region.size)
    if libc.fallocate(region.fd.fileno(), PUNCH, offset, size) != 0:
        raise OSError(ctypes.get_errno(), "fallocate")
