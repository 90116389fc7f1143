"""A guest under load moves between two hosts whose disk a third one has, each with a network of its
own: of the long form.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.guest import load
from tests.guest.hosts import Host, cabled
from tests.guest.migrating import Machine, tell
from vuproc.testing.serve import Served, serve
from vuproc.testing.vms import clients
from vuproc.testing.vms.linux import LinuxGuest

pytestmark = pytest.mark.timeout(360)

CPUS = 2
BOUND_S = 60.0
NBD_PORT, MIGRATION_PORT = 10809, 4444
Linux = Machine[LinuxGuest]


@contextmanager
def storage(host: Host, image: Path, folder: Path) -> Iterator[None]:
    """The image as an export of that host's, over TCP."""
    ready = folder / "storage.pid"
    command: list[str | Path] = [
        clients.storage_daemon(),
        *("--blockdev", f"driver=file,node-name=disk,discard=unmap,filename={image}"),
        *("--nbd-server", f"addr.type=inet,addr.host=0.0.0.0,addr.port={NBD_PORT},"
                          "max-connections=0"),
        *("--export", "type=nbd,id=e,node-name=disk,name=disk,writable=on"),
        *("--daemonize", "--pidfile", ready),
    ]  # fmt: skip
    with host.inside():
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    assert process.wait(BOUND_S) == 0
    pid = int(ready.read_text())
    pidfd = os.pidfd_open(pid)
    try:
        assert host.has(pid)
        yield
    finally:
        os.kill(pid, signal.SIGTERM)
        with os.fdopen(pidfd) as ended:
            assert select.select([ended], [], [], BOUND_S)[0]
            os.waitpid(pid, 0)


@contextmanager
def serving(host: Host, at: str) -> Iterator[Served]:
    """vuproc on that host, for the disk that is at that address."""
    device = {"type": "blk", "nbd": f"nbd://{at}:{NBD_PORT}/disk", "queues": CPUS}
    with ExitStack() as stack:
        with host.inside():
            served = stack.enter_context(serve(device))
        assert host.has(served.pid)
        yield served


def booted(host: Host, served: Served, home: Path, *, address: str = "") -> Linux:
    """QEMU on that host; with its `address` it waits for a guest that comes over the network."""
    with host.inside():
        machine = Linux(
            home,
            lambda extra: load.qemu_until_told(served.socket, extra, packed=False),
            waits=bool(address),
        )
    assert host.has(machine.guest.process.pid)
    if address:
        machine.way = f"tcp:{address}:{MIGRATION_PORT}"
    return machine


def test_a_guest_moves_between_two_hosts_forth_and_back_and_outlives_a_failure(
    tmp_path: Path,
) -> None:
    image, _ = load.new_disk(tmp_path, CPUS, "auto")
    with ExitStack() as stack:
        one, two, store = stack.enter_context(cabled(["one", "two", "store"]))
        stack.enter_context(storage(store, image, tmp_path))
        left = stack.enter_context(serving(one, store.addresses["one"]))
        right = stack.enter_context(serving(two, store.addresses["two"]))
        machine = stack.enter_context(booted(one, left, tmp_path / "0"))
        machine.guest.wait_for(load.BEGINS)
        for _ in range(CPUS):
            machine.guest.wait_for("pass=1")

        # The destination dies on the way: the guest stays where it is.
        lost = stack.enter_context(booted(two, right, tmp_path / "1", address=two.addresses["one"]))
        machine.qmp.execute("migrate-set-parameters", max_bandwidth=1 << 20)
        machine.begin_to(lost)
        machine.qmp.wait_event("MIGRATION", lambda data: data["status"] == "active", BOUND_S)
        lost.kill()
        machine.qmp.wait_event("MIGRATION", lambda data: data["status"] == "failed", BOUND_S)
        assert machine.qmp.execute("query-status")["status"] == "running"
        machine.guest.wait_for("pass=")

        # Forth, and back.
        ways = ((two, right, two.addresses["one"]), (one, left, one.addresses["two"]))
        for number, (host, served, address) in enumerate(ways, 2):
            other = stack.enter_context(
                booted(host, served, tmp_path / str(number), address=address)
            )
            machine.migrate_to(other)
            assert not machine.guest.said("different")
            machine.kill()
            machine = other
            machine.guest.wait_for("pass=")
        tell(machine)
        report = machine.guest.finish()
        for served in (left, right):
            assert not [line for line in served.lines if "ERROR" in line]
    load.check(report, image, load.qemu)
