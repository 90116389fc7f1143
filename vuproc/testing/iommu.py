"""An IOMMU between a guest's memory and its device, as far as the device can tell."""

from __future__ import annotations

import random
import threading
from collections import Counter
from typing import TYPE_CHECKING

from vuproc.errors import ConnectionBroken, Disconnected
from vuproc.spec.iotlb import ACCESS_MAX, IOTLB_PAGE, IotlbType
from vuproc.spec.vhost_user import U64
from vuproc.testing.channel import BackEndChannel
from vuproc.vhost_user.wire import Message, reply, send

if TYPE_CHECKING:
    from vuproc.testing.frontend import FrontEnd

LOWEST = 1 << 32
HIGHEST = 1 << 47
"""Between these two lie the addresses that `map` gives: no guest's memory, and no front-end's."""
LOOK_S = 0.2
"""Seconds between two looks whether it is to end."""
CLOSE_S = 10.0
MISS_S = 30.0


class Iommu:
    """Maps pages of the front-end's memory to I/O virtual addresses chosen at random, and answers
    the back-end's misses from a thread of its own.

    It answers with one page at a time. Other messages of the channel are left for nobody.
    """

    def __init__(self, front_end: FrontEnd, *, seed: int = 0) -> None:
        self.misses: Counter[int] = Counter()
        """How often each page was asked for."""
        self.answers = True
        """Whether misses are answered; those that come meanwhile never are."""
        self.grants: int | None = None
        """What answers allow, whatever a page is mapped for; None: just that."""
        self._front_end = front_end
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._asked = threading.Condition()
        self._pages: dict[int, tuple[int, int]] = {}
        """User address and access by I/O virtual address, of whole pages."""
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    # What a guest's kernel does.

    def map(self, user_addr: int, size: int, access: int = ACCESS_MAX) -> int:
        """Have the device reach `size` bytes of the front-end's memory; the address for it."""
        within = user_addr % IOTLB_PAGE
        pages = -(-(within + size) // IOTLB_PAGE)
        with self._lock:
            while True:
                first = self._chance.randrange(LOWEST, HIGHEST, IOTLB_PAGE)
                wanted = [first + i * IOTLB_PAGE for i in range(pages)]
                if not any(page in self._pages for page in wanted):
                    break
            for i, page in enumerate(wanted):
                self._pages[page] = user_addr - within + i * IOTLB_PAGE, access
        return first + within

    def map_at(self, iova: int, user_addr: int, access: int = ACCESS_MAX) -> None:
        """Have one page be at an address of the caller's choice; the device is not told."""
        with self._lock:
            self._pages[iova] = user_addr, access

    def unmap(self, iova: int, size: int) -> None:
        """Take a range away again; when this returns the device does not use it any more."""
        self.forget(iova, size)
        first = iova - iova % IOTLB_PAGE
        self.invalidate(first, -(-(iova + size - first) // IOTLB_PAGE) * IOTLB_PAGE)

    def forget(self, iova: int, size: int) -> None:
        """Take a range away without a word to the device, which may go on with it."""
        first = iova - iova % IOTLB_PAGE
        with self._lock:
            for page in range(first, iova + size, IOTLB_PAGE):
                self._pages.pop(page, None)

    def invalidate(self, iova: int, size: int) -> None:
        """Have the device ask anew about a range; 0: about everything."""
        self._front_end.iotlb(IotlbType.INVALIDATE, iova, size)

    # What the VMM does.

    def wait_for_misses(self, count: int, timeout_s: float = MISS_S) -> None:
        """Wait until so many pages were asked for, all in all. Raises TimeoutError."""
        with self._asked:
            if not self._asked.wait_for(lambda: self.misses.total() >= count, timeout_s):
                raise TimeoutError(f"{self.misses.total()} misses came, not {count}")

    def reopen(self) -> None:
        """Have another back-end channel: what was asked on the one before is forgotten."""
        self.close()
        self._stopping.clear()
        self.listen(self._front_end.open_channel())

    def listen(self, channel: BackEndChannel) -> None:
        """Answer what comes on the back-end channel from now on."""
        channel.on_miss = self._answer
        self._thread = threading.Thread(
            target=self._listen, args=(channel,), name="iommu", daemon=True
        )
        self._thread.start()

    def close(self) -> None:
        """Answer nothing any more. Raises what went wrong in the meantime."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(CLOSE_S)
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def _listen(self, channel: BackEndChannel) -> None:
        while not self._stopping.is_set():
            try:
                channel.read(LOOK_S)
            except (Disconnected, ConnectionBroken, OSError):
                return  # the back-end is gone; whoever talks with it finds out
            except BaseException as error:
                self._failure = error
                return

    def _answer(self, channel: BackEndChannel, message: Message) -> None:
        fields = message.fields()
        page, wanted = fields["iova"] - fields["iova"] % IOTLB_PAGE, fields["perm"]
        with self._asked:
            self.misses[page] += 1
            self._asked.notify_all()
        if not self.answers:
            return
        with self._lock:
            user_addr, access = self._pages.get(page, (0, 0))
        if self.grants is not None:
            access = self.grants
        known = wanted & ~access == 0 or self.grants is not None
        if known:
            self._front_end.iotlb(
                IotlbType.UPDATE, page, IOTLB_PAGE, user_addr=user_addr, access=access
            )
        if message.need_reply:
            send(channel.socket, reply(message, U64.pack(value=int(not known))))
