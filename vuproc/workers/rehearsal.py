"""What a worker in waiting does once before its turn: it serves a ring of its own making.

A forked process shares its memory with the forkserver until it writes to it, and Python writes
wherever it runs: each page that is met first costs a fault and a copy. Those of the way from the
assignment to the first completion are met here, while no driver waits.

None of a device's own code is run before its time, unless the device has said that it opens nothing
(`Device.opens_nothing`): then another instance of it is set up on an empty ring, too.
"""

from __future__ import annotations

import logging
import mmap
import os
import socket
import struct
from contextlib import ExitStack

from vuproc.device import Device
from vuproc.fd import Fd
from vuproc.shm.counters import block_bytes
from vuproc.shm.request import Request
from vuproc.spec.ring_layout import record_room
from vuproc.spec.virtio import Feature
from vuproc.vhost_user.effects import (
    Inflight,
    Region,
    RingSetup,
    SetFeatures,
    SetMemory,
    StartRing,
)
from vuproc.workers.control import (
    AnyOrder,
    AskConfig,
    Command,
    Detach,
    master_end,
    worker_end,
)
from vuproc.workers.log import WorkerLog
from vuproc.workers.loop import Worker

_SIZE = 2
"""Entries of the ring."""
_CHAIN_LIMIT = 2
_DESC, _AVAIL, _USED, _DATA = 0x000, 0x100, 0x200, 0x300
"""Where its areas and its one buffer lie in the memory."""
_BASE = 0x1000_0000
"""The memory's address, as the guest has it and as the front-end does."""
_DESCRIPTOR = struct.Struct("<QIHH")
_WRITABLE = 2
_AVAILABLE = struct.Struct("<HHH")
_USED_INDEX = struct.Struct("<2xH")
ANSWER = b"served"


class _Understudy(Device):
    """Stands for the device."""

    queues = 1

    def handle(self, request: Request) -> None:
        request.write(ANSWER)


def rehearse() -> bool:
    """Be assigned a queue, told of its ring, and serve the one request on it; whether that was
    done. All that was made for it is gone afterwards. Raises OSError.
    """
    with _memfd(mmap.PAGESIZE) as memory:
        _offer(memory)
        _serve(_Understudy(), Worker, memory)
        (used,) = _USED_INDEX.unpack(os.pread(memory.fileno(), _USED_INDEX.size, _USED))
        return used == 1 and os.pread(memory.fileno(), len(ANSWER), _DATA) == ANSWER


def rehearse_with(device: Device, kind: type[Worker]) -> None:
    """The same with `device`, an instance for this alone, and a ring with nothing on it. Nothing is
    logged meanwhile: it would be said once more. Raises OSError, or what the device does.
    """
    cpus = os.sched_getaffinity(0)
    logging.disable()
    try:
        with _memfd(mmap.PAGESIZE) as memory:
            _serve(device, kind, memory)
            device.teardown()
    finally:
        logging.disable(logging.NOTSET)
        os.sched_setaffinity(0, cpus)


def _serve(device: Device, kind: type[Worker], memory: Fd) -> None:
    with ExitStack() as stack:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        stack.enter_context(ours)
        channel = worker_end(theirs)
        stack.callback(channel.close)
        record = stack.enter_context(_memfd(record_room(Feature(0), _SIZE)))
        kick = stack.enter_context(_bell())
        call = stack.enter_context(_bell())
        worker = kind(channel, device, _CHAIN_LIMIT, WorkerLog(channel))
        stack.callback(worker.close)
        worker.take((0,), mmap.mmap(-1, block_bytes(1)))
        orders: tuple[AnyOrder, ...] = (
            SetFeatures(Feature.VERSION_1),
            SetMemory((Region(_BASE, mmap.PAGESIZE, _BASE, 0, memory),)),
            StartRing(
                RingSetup(
                    index=0,
                    size=_SIZE,
                    desc=_BASE + _DESC,
                    avail=_BASE + _AVAIL,
                    used=_BASE + _USED,
                    base=0,
                    enabled=True,
                    kick=kick,
                    call=call,
                    err=None,
                    inflight=Inflight(record, 0, _SIZE),
                )
            ),
        )
        master = master_end(ours)
        master.send(*(Command(serial, order) for serial, order in enumerate(orders)))
        for order in AskConfig(False), Detach():
            master.send(Command(len(orders), order))
        # After the orders it finds that its master has gone, and leaves.
        ours.shutdown(socket.SHUT_WR)
        worker.run()


def _offer(memory: Fd) -> None:
    """One request with a buffer to be written to."""
    buffer = _DESCRIPTOR.pack(_BASE + _DATA, len(ANSWER), _WRITABLE, 0)
    os.pwrite(memory.fileno(), buffer, _DESC)
    os.pwrite(memory.fileno(), _AVAILABLE.pack(0, 1, 0), _AVAIL)


def _bell() -> Fd:
    return Fd(os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK))


def _memfd(size: int) -> Fd:
    fd = Fd(os.memfd_create("vuproc-rehearsal", os.MFD_CLOEXEC))
    try:
        os.posix_fallocate(fd.fileno(), 0, size)
    except BaseException:
        fd.close()
        raise
    return fd
