"""Linux guests with a stream to the host: what `python -m tests.bench.vsock --guest` measures.

Linux has one device of this kind at most, so that each side has a guest of its own: User-Mode
Linux, whose driver sleeps. All of them are up at a time, and those that have no turn wait for a
byte. The guest's own time is in the rate; what a back-end takes of the CPUs is measured from
outside.
"""

from __future__ import annotations

import shutil
import socket
import struct
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

from tests.bench import streams
from tests.bench.backends import Missing, Running
from tests.bench.clients import Outcome, compiled
from tests.bench.contenders import Contender
from tests.bench.findings import Finding
from tests.bench.streams import PORT, STALL_S, TO_HOST, UNIT
from tests.bench.work import Case
from vuproc.spec.virtio import DeviceId
from vuproc.testing.vms import ClientMissing, GuestFailed, LinuxGuest, boot_uml
from vuproc.testing.vms.process import family

Serving = Callable[[Path, Path], AbstractContextManager[Running]]
"""Serves a guest, whose port N is the given path and `_N`, by a socket, which may be another one
than the second path.
"""

MODULES = ("vmw_vsock_virtio_transport",)
ORDER = struct.Struct("=QQ")
"""To the program in the guest: whether it receives, and how many bytes. As in clients/bulk.c."""


class Bulk:
    """The host's end of a connection with clients/bulk.c, which runs in processes `pids`."""

    def __init__(
        self, program: socket.socket, case: Case, pids: Callable[[], list[int]] = list
    ) -> None:
        self._program = program
        self._there = case.work is TO_HOST
        self.pids = pids

    def run(self, count: int) -> Outcome:
        """Move `count` units one way. Raises OSError."""
        size = count * UNIT
        began = time.perf_counter()
        self._program.sendall(ORDER.pack(not self._there, size))
        if not self._there:
            streams.write(self._program, size)
        # What it sends when it has all of it is a byte.
        streams.read(self._program, size if self._there else 1)
        return Outcome(count, 0, time.perf_counter() - began)


@contextmanager
def side(name: str, family_name: str, serving: Serving, case: Case) -> Iterator[Contender]:
    """A guest of its own, whose program has connected. Raises Missing, OSError."""
    with ExitStack() as stack:
        made = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vuproc-bench-")))
        path = made / "programs"
        running = stack.enter_context(serving(path, made / "vsock.sock"))
        listener = stack.enter_context(socket.socket(socket.AF_UNIX))
        listener.bind(f"{path}_{PORT}")
        listener.listen(1)
        listener.settimeout(STALL_S)
        guest = stack.enter_context(_booted(running.socket, made))
        try:
            guest.wait_for("connected")
        except GuestFailed as failure:
            raise Missing(f"its guest does not connect: {failure}") from failure
        program = stack.enter_context(listener.accept()[0])
        program.settimeout(STALL_S)
        bulk = Bulk(program, case, lambda: [guest.process.pid, *family(guest.process.pid)])
        yield Contender(name, family_name, case, bulk, running.pids)


def _booted(device: Path, made: Path) -> LinuxGuest:
    # The program's name in the cache is none that the guest's shell takes for a function.
    program = Path(shutil.copy(compiled.build("bulk"), made / "bulk"))
    try:
        return boot_uml(
            {device: DeviceId.VSOCK},
            script=f"bulk {PORT}\n",
            modules=MODULES,
            programs=[program],
        )
    except ClientMissing as missing:
        raise Missing(str(missing)) from missing


def spent(finding: Finding) -> list[str]:
    """Lines with the ratios of CPU time of the same rounds, as the table has those of rates."""
    said = []
    for ours, base in finding.pairs():
        ratio = finding.ratio(ours, base, of=lambda taken: taken.cpu_ns)
        if ratio is not None:
            disturbed = "" if ratio[1] else ", always disturbed"
            said.append(f"  CPU of {ours.name} / {base.name}: {ratio[0].text(2)}{disturbed}")
    return said
