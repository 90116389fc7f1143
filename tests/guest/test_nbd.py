"""A real guest on a disk that QEMU's storage daemon has, which goes away and comes back."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.guest.deaths import Gate, WorkerKiller, meanwhile
from tests.guest.files import SAY_SUMS, WRITE_FILES, check_file_system, sums_of
from vuproc.spec.virtio import DeviceId
from vuproc.testing.serve import serve
from vuproc.testing.vms import boot_uml, clients

pytestmark = pytest.mark.timeout(150)

SIZE = 64 << 20
STOP_TIMEOUT_S = 10.0
BUSY = """
say busy yes
until [ -e UNTIL ]; do
    for n in 1 2 3 4 5 6; do { echo $n; cat /tmp/seed; } >/mnt/more$n; sync; done
done
rm /mnt/more*
"""


@contextlib.contextmanager
def storage_daemon(image: Path, socket: Path) -> Iterator[str]:
    """The image as an export of its, and where that is. Returns once it is there."""
    program = clients.storage_daemon()
    ready = socket.with_suffix(".pid")
    ready.unlink(missing_ok=True)
    process = subprocess.Popen(
        [
            program,
            *("--blockdev", f"driver=file,node-name=disk,discard=unmap,filename={image}"),
            *("--nbd-server", f"addr.type=unix,addr.path={socket},max-connections=0"),
            *("--export", "type=nbd,id=e,node-name=disk,name=disk,writable=on"),
            *("--daemonize", "--pidfile", ready),
        ],
        stdin=subprocess.DEVNULL,
    )
    # It comes back from that once it listens.
    assert process.wait(STOP_TIMEOUT_S) == 0
    pid = int(ready.read_text())
    pidfd = os.pidfd_open(pid)
    try:
        yield f"nbd+unix:///disk?socket={socket}"
    finally:
        os.kill(pid, signal.SIGTERM)
        with os.fdopen(pidfd) as ended:
            assert select.select([ended], [], [], STOP_TIMEOUT_S)[0]
            os.waitpid(pid, 0)


def test_files_are_right_though_server_and_worker_come_and_go(tmp_path: Path) -> None:
    image, socket = tmp_path / "disk.raw", tmp_path / "nbd.sock"
    gate = Gate(tmp_path)
    image.touch()
    os.truncate(image, SIZE)
    with contextlib.ExitStack() as stack:
        server = stack.enter_context(contextlib.ExitStack())
        uri = server.enter_context(storage_daemon(image, socket))
        served = stack.enter_context(serve({"type": "blk", "nbd": uri}))
        again = "umount /mnt; mount -t ext4 /dev/vda /mnt" + SAY_SUMS + "umount /mnt\n"
        script = gate.script(WRITE_FILES + BUSY + again)
        devices = {served.socket: DeviceId.BLK}
        programs = [clients.mke2fs()]
        with boot_uml(devices, script=script, programs=programs) as guest:
            guest.wait_for("busy=yes")
            server.close()
            served.wait_for_line(f"{socket}: ")  # hung up, or nobody there any more
            server.enter_context(storage_daemon(image, socket))
            served.wait_for_line("connected again")
            killer = WorkerKiller(served.socket)
            with meanwhile(killer):
                killer.await_deaths()
                gate.open()
                said = dict(guest.finish().values)
        print(f"{killer.kills.total()} workers were killed")
        assert not [line for line in served.lines if "ERROR" in line]
    del said["busy"]
    check_file_system(image)
    assert sums_of(image) == said
