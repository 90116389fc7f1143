"""A real guest on a disk that is written back to an object store, and another from there."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tests.devices import google_store, s3_server
from tests.guest.deaths import Gate, WorkerKiller, meanwhile
from tests.guest.files import SAY_SUMS, WRITE_FILES, check_file_system, sums_of
from tests.guest.load import in_long_form
from vuproc.ops.admin import Request, ask
from vuproc.spec.virtio import DeviceId
from vuproc.testing.serve import Served, serve
from vuproc.testing.vms import boot_uml, clients

pytestmark = pytest.mark.timeout(300)

SIZE = 64 << 20
BOUND_S = 120.0
# Work goes on while versions are written: the one of the store is in the middle of it.
CHURN = """
say churning yes
until [ -e UNTIL ]; do
    for n in 1 2 3 4 5 6; do
        cp /mnt/file1 /mnt/copy$n; sync; rm /mnt/copy$n; cp /mnt/file2 /mnt/more$n
    done
done
umount /mnt
"""


def await_run(served: Served, number: int) -> None:
    """Until what was there when it was asked for is in the store."""
    deadline = time.monotonic() + BOUND_S
    while int(served.status().details["write-back"]["answered"]) < number:
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.parametrize(
    "kind", [s3_server, *in_long_form(google_store)], ids=["s3", *in_long_form("google")]
)
def test_a_guest_of_another_machine_has_what_was_written_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: ModuleType
) -> None:
    raw, middle, flat = (tmp_path / name for name in ("new.raw", "middle.raw", "flat.raw"))
    raw.touch()
    os.truncate(raw, SIZE)

    def image(*words: Any) -> None:
        command = [sys.executable, "-m", "vuproc", "image", *map(str, words)]
        subprocess.run(command, check=True, timeout=120, stdout=subprocess.DEVNULL)

    def disk(cache: str) -> dict[str, Any]:
        return {"type": "blk", "url": url, "image": str(tmp_path / cache), "write_back": 1}

    with kind.running() as server, kind.gated(server) as store:
        for name, value in store.environment.items():
            monkeypatch.setenv(name, value)
        url = f"{store.url}/guest/"
        image("push", raw, url)
        with serve(disk("here.overlay")) as served:
            devices = {served.socket: DeviceId.BLK}
            gate = Gate(tmp_path)
            script = gate.script(WRITE_FILES + SAY_SUMS + CHURN)
            with boot_uml(devices, script=script, programs=[clients.mke2fs()]) as guest:
                killer = WorkerKiller(served.socket)
                with meanwhile(killer):
                    guest.wait_for("churning=yes")
                    number = ask(served.socket, Request("write-back"))["number"]
                    await_run(served, number)
                    killer.await_deaths()
                    gate.open()
                    written = dict(guest.finish().values)
            print(f"{killer.kills.total()} workers were killed")
            runs = served.status().details["write-back"]["runs"]
            image("pull", url, middle)
        del written["churning"]
        assert int(runs) >= 1
        # What was there at some moment, as after a loss of power: the journal makes it whole.
        subprocess.run(["e2fsck", "-fy", middle], stdout=subprocess.DEVNULL, timeout=60)
        check_file_system(middle)

        with serve(disk("there.overlay")) as served:
            devices = {served.socket: DeviceId.BLK}
            again = "mount -t ext4 /dev/vda /mnt" + SAY_SUMS + "umount /mnt\n"
            with boot_uml(devices, script=again) as guest:
                assert guest.finish().values == written
        image("pull", url, flat)
        check_file_system(flat)
        assert sums_of(flat) == written
        store.delete_all()
