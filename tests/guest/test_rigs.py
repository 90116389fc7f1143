"""Devices of test rigs with QEMU's own front-ends, and without a guest: no kernel of Debian's has
their drivers.
"""

from __future__ import annotations

import pytest

from tests.guest.qemus import QUEUE_SIZE, newer
from vuproc.spec.gpio import (
    CONFIG,
    IRQ_REQUEST,
    REQUEST,
    Direction,
    GpioFeature,
    GpioMessage,
    GpioStatus,
    IrqStatus,
    IrqType,
)
from vuproc.spec.i2c import OUT_HEADER, I2cFeature, I2cFlag, I2cStatus, in_request
from vuproc.testing import serve
from vuproc.testing.vms import HaltedQemu, PciQueue, Qemu, Segment, VhostUserDevice, VirtioPci
from vuproc.testing.vms.qemu import FIRST_SLOT

pytestmark = pytest.mark.timeout(90)

UNSET = 0xFF


def submit(queue: PciQueue, out: bytes, room: int) -> tuple[int, int]:
    """A request in guest memory; its head, and where its answer will be."""
    machine = queue.machine
    asked, answered = machine.allocate(len(out)), machine.allocate(room)
    machine.write(asked, out)
    machine.write(answered, bytes([UNSET]) * room)
    segments = [Segment(asked, len(out)), Segment(answered, room, True)]
    return queue.add(segments), answered


def do(queue: PciQueue, out: bytes, room: int) -> bytes:
    """One request, and its answer."""
    head, answered = submit(queue, out, room)
    queue.notify()
    assert head in queue.wait(1)
    return queue.machine.read(answered, room)


@pytest.mark.parametrize("qemu", [Qemu.INSTALLED, *newer()])
def test_an_i2c_adapter_of_qemu_reads_a_register(qemu: Qemu) -> None:
    chips = [{"address": 0x20, "kind": "registers", "size": 16, "content": "00112233"}]
    with serve({"type": "i2c", "chips": chips, "queue_size": QUEUE_SIZE}) as served:
        devices = [VhostUserDevice(socket=served.socket, driver="vhost-user-i2c-pci")]
        with HaltedQemu(devices, qemu=qemu) as machine:
            device = VirtioPci(machine, FIRST_SLOT)
            assert device.negotiate(I2cFeature.ZERO_LENGTH_REQUEST) & 1
            queue = device.queue(0)
            device.start()
            to, back = in_request(0x20), I2cFlag.M_RD
            where = OUT_HEADER.pack(addr=to, flags=I2cFlag.FAIL_NEXT) + b"\1"
            assert do(queue, where, 1) == bytes([I2cStatus.OK])
            served.wait_worker(other_than=served.kill_worker())
            assert do(queue, OUT_HEADER.pack(addr=to, flags=back), 3) == b"\x11\x22\0"
            nobody = OUT_HEADER.pack(addr=in_request(0x21))
            assert do(queue, nobody, 1) == bytes([I2cStatus.ERR])


@pytest.mark.parametrize("qemu", [Qemu.INSTALLED, *newer()])
def test_a_gpio_controller_of_qemu_sets_lines_and_interrupts(qemu: Qemu) -> None:
    lines = [{"name": "LED"}, {"name": "SENSE", "wired_to": "LED"}]
    with serve({"type": "gpio", "lines": lines, "queue_size": QUEUE_SIZE}) as served:
        devices = [VhostUserDevice(socket=served.socket, driver="vhost-user-gpio-pci")]
        with HaltedQemu(devices, qemu=qemu) as machine:
            device = VirtioPci(machine, FIRST_SLOT)
            # QEMU 7.2 does not pass the feature on.
            interrupts = bool(device.negotiate(GpioFeature.IRQ) & GpioFeature.IRQ)
            assert interrupts == (qemu is not Qemu.INSTALLED)
            assert CONFIG.unpack(device.config(0, CONFIG.size)) == {
                "ngpio": 2,
                "gpio_names_size": len(b"LED\0SENSE\0"),
            }
            requests, events = device.queue(0), device.queue(1)
            device.start()

            def tell(kind: GpioMessage, line: int, value: int = 0) -> tuple[int, int]:
                message = REQUEST.pack(type=kind, gpio=line, value=value)
                status, result = do(requests, message, 2)
                return status, result

            done = GpioStatus.OK, 0
            assert tell(GpioMessage.SET_DIRECTION, 0, Direction.OUT) == done
            enabled = tell(GpioMessage.SET_IRQ_TYPE, 1, IrqType.EDGE_RISING)
            assert (enabled == done) == interrupts
            if interrupts:
                head, answered = submit(events, IRQ_REQUEST.pack(gpio=1), 1)
                events.notify()
            served.wait_worker(other_than=served.kill_worker())
            assert tell(GpioMessage.SET_VALUE, 0, 1) == done
            assert tell(GpioMessage.GET_VALUE, 1) == (GpioStatus.OK, 1)
            if interrupts:
                assert head in events.wait(1)
                assert machine.read(answered, 1) == bytes([IrqStatus.VALID])
