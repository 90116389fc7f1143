"""The devices of test rigs, attached to QEMUs that have them, whose driver is the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest

from tests.guest.qemus import newer
from vuproc.devices.spi_flash import Opcode
from vuproc.spec.can import CONFIG as CAN_CONFIG
from vuproc.spec.can import CONTROL_OUT, RX, TX_OUT, CanFeature, CanMessage
from vuproc.spec.rtc import NOTIFICATION, REQUESTS, RESPONSES, RtcFeature, RtcRequest
from vuproc.spec.spi import CONFIG, TRANSFER_HEAD
from vuproc.testing import serve
from vuproc.testing.vms import (
    GuestFailed,
    HaltedQemu,
    PciQueue,
    Qemu,
    Segment,
    VhostUserDevice,
    VirtioPci,
    clients,
)
from vuproc.testing.vms.pci_queue import COMPLETION_TIMEOUT_S, poll_until
from vuproc.testing.vms.qemu import FIRST_SLOT
from vuproc.testing.vms.qtest import FIRST_FREE

pytestmark = pytest.mark.timeout(120)

FIRST_WITH_THEM = (11, 1)


class Chain:
    """One request in guest memory."""

    def __init__(self, queue: PciQueue, out: bytes, room: int) -> None:
        self.queue, self.room = queue, room
        machine = queue.machine
        sent, self.answer = machine.allocate(max(1, len(out))), machine.allocate(room)
        machine.write(sent, out)
        segments = [Segment(sent, len(out))] if out else []
        self.head = queue.add([*segments, Segment(self.answer, room, True)])
        queue.notify()

    def wait(self) -> bytes:
        """What the device has written, once it is done. The ring is looked at: QEMU 11.1 gives
        these devices one vector, so that but one queue has an interrupt of its own.
        """
        done: dict[int, int] = {}

        def look() -> bool:
            done.update(self.queue.completed())
            return self.head in done

        poll_until(look, COMPLETION_TIMEOUT_S, f"queue {self.queue.index} has not completed it")
        return self.queue.machine.read(self.answer, self.room)[: done[self.head]]


def do(queue: PciQueue, out: bytes, room: int) -> bytes:
    return Chain(queue, out, room).wait()


def rtc(device: VirtioPci, queues: list[PciQueue]) -> None:
    def ask(kind: RtcRequest, **fields: int) -> dict[str, int]:
        request = REQUESTS[kind].pack(msg_type=kind, **fields)
        answer = RESPONSES[kind].unpack(do(queues[0], request, RESPONSES[kind].size))
        assert answer["status"] == 0
        return answer

    assert ask(RtcRequest.CFG)["num_clocks"] == 2
    assert ask(RtcRequest.READ)["clock_reading"] >= 12 * 10**9
    if device.features & RtcFeature.ALARM:
        buffer = Chain(queues[1], b"", NOTIFICATION.size)
        ask(RtcRequest.SET_ALARM, alarm_time=1, flags=1)
        assert NOTIFICATION.unpack(buffer.wait())["clock_id"] == 0


def spi(device: VirtioPci, queues: list[PciQueue]) -> None:
    assert CONFIG.unpack(device.config(0, CONFIG.size))["cs_max_number"] == 1
    head = TRANSFER_HEAD.pack(bits_per_word=8)
    assert do(queues[0], head + bytes((Opcode.RDID,)), 1) == b"\0"
    assert do(queues[0], head, 4) == b"\xef\x40\x14\0"


def can(device: VirtioPci, queues: list[PciQueue]) -> None:
    assert len(device.config(0, CAN_CONFIG.size)) == 2
    buffer = Chain(queues[1], b"", 80)
    start = CONTROL_OUT.pack(msg_type=CanMessage.SET_CTRL_MODE_START)
    assert do(queues[2], start, 1) == b"\0"
    frame = TX_OUT.pack(msg_type=CanMessage.TX, length=2, can_id=0x123) + b"ab"
    assert do(queues[0], frame, 1) == b"\0"
    came = buffer.wait()
    assert (RX.unpack(came)["can_id"], came[RX.size :]) == (0x123, b"ab")


@dataclass(frozen=True)
class Case:
    """A device of ours, one of QEMU's for it, and what its driver does."""

    described: dict[str, object]
    driver: str
    features: int
    drive: Callable[[VirtioPci, list[PciQueue]], None]
    properties: dict[str, str | int]


CASES = {
    "rtc": Case({"epoch": 12}, "vhost-user-rtc-pci", RtcFeature.ALARM, rtc, {}),
    "spi": Case({"chips": ["flash"]}, "vhost-user-spi-pci", 0, spi, {}),
    "can": Case(
        {},
        "vhost-user-test-device-pci",
        CanFeature.CAN_CLASSIC | CanFeature.CAN_FD,
        can,
        {"virtio-id": 36, "num_vqs": 3, "vq_size": 256, "config_size": 2},
    ),
}


def pairs() -> list[tuple[Qemu, str]]:
    """Each QEMU with each device; for those that have none of them, one is enough."""
    return [(qemu, name) for qemu in newer() for name in CASES if qemu is Qemu.SID or name == "spi"]


@pytest.mark.parametrize(("qemu", "name"), pairs())
def test_a_qemu_that_has_the_device_attaches_ours(qemu: Qemu, name: str) -> None:
    case = CASES[name]
    has_it = clients.qemu_version(clients.qemu(qemu)) >= FIRST_WITH_THEM
    with serve({"type": name, "queue_size": 1024, **case.described}) as served:
        attached = VhostUserDevice(
            socket=served.socket, driver=case.driver, properties=case.properties
        )
        with HaltedQemu([attached], qemu=qemu) as machine:
            if not has_it:
                with pytest.raises(GuestFailed, match="not a valid device model name"):
                    machine.read(FIRST_FREE, 1)
                return
            device = VirtioPci(machine, FIRST_SLOT)
            device.negotiate(case.features)
            queues = [device.queue(index) for index in range(device.common("num_queues"))]
            device.start()
            case.drive(device, queues)
        assert not [line for line in served.lines if "WARNING" in line or "ERROR" in line]
