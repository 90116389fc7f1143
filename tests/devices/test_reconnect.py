"""A front-end that loses its device, and comes back with the in-flight records and an old base.

QEMU is one: of a packed ring it knows no base but the one of its beginning.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from vuproc.testing import Guest, InflightRegion, serve
from vuproc.testing.errors import ServeFailed
from vuproc.testing.frontend import FrontEnd
from vuproc.testing.guest import DRIVER_READY

SIZE = 7
SECTORS = 8
GET_ID, ID_BYTES = 8, 20
LAYOUTS = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@pytest.fixture
def device_file(tmp_path: Path) -> Path:
    image = tmp_path / "image"
    image.write_bytes(bytes(SECTORS * 512))
    device = {"type": "blk", "image": str(image), "serial": "here", "queue_size": 8}
    file = tmp_path / "disk.yaml"
    file.write_text(json.dumps({"socket": str(tmp_path / "disk.sock"), "device": device}))
    return file


def guest_of(path: Path, region: InflightRegion, packed: bool) -> Guest:
    guest = Guest(path, queue_size=8, packed=packed, start=False)
    guest.setup()
    guest.front_end.set_inflight(region)
    guest.start_queue(0, size=SIZE + (not packed))
    guest.set_status(DRIVER_READY)
    return guest


def come_back(guest: Guest, path: Path, region: InflightRegion) -> None:
    """With the memory, the rings and the records that there were."""
    guest.front_end.close()
    guest.front_end = FrontEnd(path, timeout_s=guest.timeout_s)
    guest.setup()
    guest.front_end.set_inflight(region)
    for queue in guest.queues.values():
        guest.configure_queue(queue)
        guest.kick_queue(queue)
        guest.enable_queue(queue.index)
    guest.set_status(DRIVER_READY)


def works(guest: Guest) -> None:
    """More often than the ring has entries."""
    for _ in range(SIZE + 3):
        answer = guest.do(0, [GET_ID.to_bytes(4, "little") + bytes(12)], [ID_BYTES, 1])
        assert b"".join(answer.data) == b"here".ljust(ID_BYTES, b"\0") + b"\0"


@LAYOUTS
def test_the_connection_ends_and_the_device_goes_on(device_file: Path, packed: bool) -> None:
    with serve(device_file) as served, InflightRegion(1, 8) as region:
        with guest_of(served.socket, region, packed) as guest:
            for _ in range(3):
                works(guest)
                come_back(guest, served.socket, region)
            works(guest)


@LAYOUTS
@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_the_device_ends_and_is_started_again(
    device_file: Path, packed: bool, end: signal.Signals
) -> None:
    """After SIGKILL of the master alone the workers see it, and end in order."""
    guest: Guest | None = None
    with InflightRegion(1, 8) as region:
        try:
            for last in (False, False, True):
                with suppress(ServeFailed), serve(device_file) as served:
                    if guest is None:
                        guest = guest_of(served.socket, region, packed)
                    else:
                        come_back(guest, served.socket, region)
                    works(guest)
                    if end == signal.SIGKILL and not last:
                        os.kill(served.pid, end)
                        served.wait(timeout_s=30)
        finally:
            if guest is not None:
                guest.close()
