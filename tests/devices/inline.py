"""A device on a real ring in the test's own process: no socket, no worker."""

from __future__ import annotations

import os
import select
from collections.abc import Sequence
from typing import Any

from vuproc.errors import UringUnavailable
from vuproc.shm.counters import QueueCounters
from vuproc.shm.memory import GuestMemory
from vuproc.shm.request import Request
from vuproc.shm.split import SplitRing
from vuproc.shm.uring import Uring
from vuproc.spec.blk import REQUEST_HEADER
from vuproc.spec.virtio import Feature
from vuproc.testing.block import Outcome, outcome
from vuproc.testing.memory import Ram
from vuproc.testing.queue import Completion, DriverQueue

QUEUE_SIZE = 256
KERNEL_BOUND_S = 30.0


class Inline:
    """One queue of `device`. `errors` are the exceptions that its `handle` raised."""

    def __init__(
        self,
        device: Any,
        ram: Ram | int = 16 << 20,
        size: int = QUEUE_SIZE,
        counters: QueueCounters | None = None,
    ) -> None:
        self.device = device
        self.errors: list[BaseException] = []
        self.ram = Ram(ram) if isinstance(ram, int) else ram
        self.memory = GuestMemory.from_regions(
            (r.guest_addr, r.size, r.user_addr, r.mmap_offset, r.fd.fileno())
            for r in self.ram.regions
        )
        self.queue = DriverQueue(self.ram, 0, size)
        self.ring = SplitRing(
            0,
            size,
            self.memory,
            self.queue.desc,
            self.queue.avail,
            self.queue.used,
            0,
            features=int(Feature.VERSION_1 | Feature.INDIRECT_DESC),
            chain_limit=size,
            counters=counters,
        )
        self._files = device.shared_files()
        device.shared = self._files
        device.setup(0)
        self.native = device.native(0)
        self._uring: Uring | None = None
        self.register_files()

    def register_files(self) -> None:
        """Make the io_uring that the device wants, of what its descriptors are by now."""
        self._drop_uring()
        files = self.device.uring_files(0)
        try:
            self._uring = Uring(QUEUE_SIZE, files) if files else None
        except UringUnavailable as error:
            print(f"blocking calls: {error}")
        if self.native is not None:
            self.native.set_uring(0, self._uring)
        else:
            self.ring.uring = self._uring

    def _drop_uring(self) -> None:
        if self._uring is not None:
            self._uring.close()
            self._uring = None

    @property
    def syncs(self) -> int:
        """How often a disk's image was synced."""
        return int((self.native or self.device._storage or self.device._store).syncs)

    def chain(
        self, out: Sequence[bytes] = (), in_: Sequence[int] = (), *, indirect: bool = False
    ) -> Completion:
        """Any chain, served at once."""
        token = self.queue.submit(out, in_, indirect=indirect)
        if self.native is None:
            self.ring.drain(self.device.handle, self._fail, 16)
            self._await_kernel()
        else:
            failures = self.native.failures
            self.ring.serve_native(self.native, self._fail, 16)
            self._await_kernel()
            if self.native.failures != failures:
                self.errors.append(OSError(self.native.failure, os.strerror(self.native.failure)))
        return self.queue.wait(token)

    def _await_kernel(self) -> None:
        """Complete what io_uring was given, as the worker's loop does."""
        while self.ring.in_flight:
            assert self._uring is not None
            assert select.select([self._uring], [], [], KERNEL_BOUND_S)[0]
            self.ring.collect(self._fail)
            self.ring.publish()

    def block(
        self,
        kind: int,
        sector: int = 0,
        out: Sequence[bytes] = (),
        in_: Sequence[int] = (),
        *,
        indirect: bool = False,
    ) -> Outcome:
        """A block request with its header and its status byte in descriptors of their own."""
        header = REQUEST_HEADER.pack(type=kind, sector=sector)
        return outcome(self.chain([header, *out], [*in_, 1], indirect=indirect))

    def close(self) -> None:
        """Take everything down again."""
        self.ring.stop()
        self._drop_uring()
        self.device.teardown()
        for file in self._files.values():
            file.close()
        self.queue.close()
        self.ram.close()

    def _fail(self, request: Request, error: BaseException) -> None:
        self.errors.append(error)
        self.device.fail(request, error)
