"""QEMU's own display of a device with a screen, without a guest: what the device shows is on it.

QEMU 7.2 has this device with KVM alone, of which a halted processor needs little; the later ones
that tests run with are without it. Where KVM cannot be had this file is left out (`conftest.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import pytest

from tests.devices.screens import HEIGHT, WIDTH, Filled
from vuproc.testing import serve
from vuproc.testing.vms import HaltedQemu, VhostUserDevice, VirtioPci
from vuproc.testing.vms.qemu import FIRST_SLOT, KVM
from vuproc.testing.vms.qmp import Qmp

pytestmark = pytest.mark.timeout(90)

HEAD = b"P6\n%d %d\n255\n" % (WIDTH, HEIGHT)


def line_of(picture: Path, number: int) -> bytes:
    """One line of a PPM picture: three bytes a pixel."""
    content = picture.read_bytes()
    assert content.startswith(HEAD), content[:20]
    start = len(HEAD) + number * WIDTH * 3
    return content[start : start + WIDTH * 3]


@pytest.mark.proves("GPU_SET_SOCKET", front_end="QEMU 7.2")
def test_qemu_shows_what_the_device_shows(
    tmp_path: Path, shown: Callable[[Iterable[str]], None]
) -> None:
    picture = tmp_path / "screen.ppm"
    with (
        serve(Filled, file={"log_level": "debug"}) as served,
        closing(Qmp(tmp_path / "qmp.sock")) as qmp,
    ):
        properties: dict[str, str | int] = {"id": "gpu", "edid": "off"}
        device = VhostUserDevice(
            socket=served.socket, driver="vhost-user-gpu-pci", properties=properties
        )
        with HaltedQemu([device], qmp.arguments, accel=KVM) as machine:
            qmp.attach(machine.process)
            driver = VirtioPci(machine, FIRST_SLOT)
            driver.negotiate(0)
            for index in range(driver.common("num_queues")):
                driver.queue(index)
            driver.start()
            # A question is answered after all that was said before it.
            served.wait_for_line("screen 0 of")
            qmp.execute("screendump", filename=str(picture), device="gpu")
            background, spot = b"\3\2\1", b"\6\5\4"
            assert line_of(picture, 1) == background * WIDTH
            assert line_of(picture, 2) == background * 4 + spot * 2 + background * (WIDTH - 6)
            served.wait_worker(other_than=served.kill_worker(0))
            served.wait_for_line("display connected, again")
    shown(served.lines)
