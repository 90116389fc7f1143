"""The behaviours that the catalogue of hostile input asks for, as assertions.

REJ: the message fails and nothing else does. BRK: one ring is broken, shown, and can be revived.
"""

from __future__ import annotations

import itertools
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from vuproc.errors import ProtocolError
from vuproc.fd import Fd
from vuproc.ops.admin import Request, ask
from vuproc.spec.vhost_user import FLAG_NEED_REPLY, FRONT_END, VERSION
from vuproc.spec.virtio import Status
from vuproc.testing.block import Block
from vuproc.testing.errors import Refused
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.guest import DRIVER_READY, Guest
from vuproc.testing.queue import DriverQueue
from vuproc.testing.serve import Served
from vuproc.vhost_user.wire import encode

SECTOR = 512
BROKEN_WITHIN_S = 30.0
AT_ONCE_S = 30.0
"""What "at once" may take on a machine that is very busy: no test tells how fast anything is."""

LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
"""What holds for a ring of either layout; `packed` is for the guest."""

_serial = itertools.count(1)


def works(guest: Guest, *queues: int) -> None:
    """Write and read back on each of the queues (default: all) of a guest on the block device."""
    block = Block(guest)
    for queue in queues or tuple(guest.queues):
        content = next(_serial).to_bytes(8, "little") * (SECTOR // 8)
        block.write(queue, content, queue=queue)
        assert block.read(queue, SECTOR, queue=queue) == content


def serves_newcomer(served: Served) -> None:
    """A fresh well-behaved client does I/O at once."""
    with served.guest(timeout_s=AT_ONCE_S) as guest:
        works(guest)


def serving(served: Served) -> set[int]:
    """The workers that have a queue. There is another one in waiting, or about to be started."""
    queues = ask(served.socket, Request("status"), AT_ONCE_S)["queues"]
    return {queue["pid"] for queue in queues if queue["pid"] is not None}


def closed(front_end: FrontEnd) -> None:
    """The back-end closes this connection at once."""
    assert front_end.closed_by_peer(AT_ONCE_S), "the back-end kept the connection"


class Rejects:
    """Asserts REJ for one message in both forms: with and without a way to report the failure."""

    def __init__(self, served: Served) -> None:
        self.served = served

    def __call__(
        self,
        name: str,
        *,
        fds: Callable[[], Sequence[Fd]] = tuple,
        payload: bytes | None = None,
        prepare: Callable[[Guest], None] = lambda guest: None,
        guest: Callable[[], Guest] | None = None,
        **fields: Any,
    ) -> None:
        """Send message `name` on a connection whose rings run, and see what becomes of it.

        fds: makes what is attached, anew for each form. prepare: brings the guest to where the
        message is wrong. guest: makes the guest, in place of one with two running queues.
        """
        make = guest or (lambda: self.served.guest(queues=2, timeout_s=AT_ONCE_S))
        with make() as victim:
            prepare(victim)
            with attached(fds()) as sent, pytest.raises(Refused):
                victim.front_end.request(name, sent, payload=payload, need_reply=True, **fields)
            works(victim)
        with make() as victim:
            prepare(victim)
            row = FRONT_END.named(name)
            body = row.payload.encode(**fields) if payload is None else payload
            with attached(fds()) as sent:
                victim.front_end.send(encode(row.number, body), sent)
            closed(victim.front_end)
        serves_newcomer(self.served)


@contextmanager
def attached(fds: Sequence[Fd]) -> Iterator[Sequence[Fd]]:
    """Descriptors that are sent and then closed."""
    try:
        yield fds
    finally:
        for fd in fds:
            fd.close()


def spare_fd() -> Fd:
    """A descriptor of no use to anybody."""
    return Fd(os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC))


def closes_on_bytes(served: Served, data: bytes, fds: Sequence[Fd] = ()) -> None:
    """A running guest's connection ends when these bytes come, and a newcomer is served."""
    with served.guest(queues=2) as victim:
        with attached(fds):
            try:
                victim.front_end.send(data, fds)
            except ProtocolError:
                pass  # closed before it had read all
        closed(victim.front_end)
    serves_newcomer(served)


def header(request: int, size: int, flags: int = VERSION | FLAG_NEED_REPLY) -> bytes:
    """A message header, whatever it says."""
    return request.to_bytes(4, "little") + flags.to_bytes(4, "little") + size.to_bytes(4, "little")


def broken(guest: Guest, queue: int = 0, *, others: Sequence[int] = (1,)) -> None:
    """BRK: the queue is dead and it shows, the others go on, and a reset revives it."""
    victim = guest.queues[queue]
    assert victim.err_bell.wait(BROKEN_WITHIN_S), "the error descriptor was not signalled"
    # The order in which the guest sees it and the worker reports it is not defined: a message to
    # another queue's worker says nothing of this one's, so ask until it shows.
    status = until(lambda: guest.status() & Status.NEEDS_RESET)
    assert status, "the status does not show NEEDS_RESET"
    before = bytes(victim.block.view)
    for other in others:
        works(guest, other)
    victim.kick()
    for other in others:
        works(guest, other)
    assert bytes(victim.block.view) == before, "the broken ring was written to"
    guest.reset()
    assert guest.status() == DRIVER_READY
    works(guest)


def reaped(queue: DriverQueue) -> list[tuple[int, int]]:
    """Sleep on the call descriptor until something is completed; the used elements.

    A call that was left over from an earlier request wakes up too early, so look again.
    """
    while not (elements := queue.ring.reap()):
        if not queue.ring.arm():
            assert queue.call_bell.wait(AT_ONCE_S), "no completion, or no call for it"
    return elements


def until(condition: Callable[[], Any], timeout_s: float = AT_ONCE_S) -> Any:
    """Ask until the answer is true; each question must be an exchange with somebody else."""
    deadline = time.monotonic() + timeout_s
    while not (answer := condition()):
        if time.monotonic() > deadline:
            return answer
    return answer


def readable(fd: Fd, timeout_s: float) -> bool:
    """Wait for a descriptor to become readable."""
    poller = select.poll()
    poller.register(fd.fileno(), select.POLLIN)
    return bool(poller.poll(timeout_s * 1000))
