"""What each real front-end says is answered: the messages and bits that it has, in one short
session.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.guest.test_qtest import BLOCK, Request, started
from vuproc.spec.blk import BlkStatus, BlkType
from vuproc.spec.virtio import DeviceId
from vuproc.testing.serve import Served, serve
from vuproc.testing.vms import Blkio, Dpdk, HaltedQemu, Qemu, VhostUserDevice, boot_uml

Shown = Callable[[Iterable[str]], None]

pytestmark = pytest.mark.timeout(150)

VERBOSE = {"log_level": "debug"}
QUEUES = 2


def disk(folder: Path, queues: int = QUEUES) -> dict[str, Any]:
    image = folder / "disk.raw"
    image.touch()
    os.truncate(image, 8 << 20)
    return {"type": "blk", "image": image, "queues": queues}


def drive(served: Served, qemu: Qemu) -> None:
    """A start, a write on each queue, and a reset."""
    device = VhostUserDevice(socket=served.socket, properties={"num-queues": QUEUES})
    with HaltedQemu([device], qemu=qemu) as machine:
        driver, queues = started(machine)
        for queue in queues:
            write = Request(queue, BlkType.OUT, 8 * queue.index, b"w" * BLOCK)
            assert (write.run(queue, indirect=True), write.verdict()) == (1, BlkStatus.OK)
        driver.reset()


@pytest.mark.proves(
    "GET_FEATURES",
    "SET_FEATURES",
    "SET_OWNER",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "GET_QUEUE_NUM",
    "SET_BACKEND_REQ_FD",
    "GET_CONFIG",
    "GET_STATUS",
    "SET_STATUS",
    "GET_INFLIGHT_FD",
    "SET_INFLIGHT_FD",
    "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "GET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ERR",
    "SET_VRING_ENABLE",
    "PROTOCOL_F_MQ",
    "PROTOCOL_F_REPLY_ACK",
    "PROTOCOL_F_BACKEND_REQ",
    "PROTOCOL_F_CONFIG",
    "PROTOCOL_F_INFLIGHT_SHMFD",
    "PROTOCOL_F_CONFIGURE_MEM_SLOTS",
    "PROTOCOL_F_STATUS",
    "VIRTIO_F_INDIRECT_DESC",
    "VIRTIO_F_EVENT_IDX",
    "VHOST_USER_F_PROTOCOL_FEATURES",
    "VIRTIO_F_VERSION_1",
    front_end="QEMU 7.2",
)
def test_qemu_7_2(tmp_path: Path, shown: Shown) -> None:
    with serve(disk(tmp_path), file=VERBOSE) as served:
        drive(served, Qemu.INSTALLED)
    shown(served.lines)


@pytest.mark.proves(
    "GET_FEATURES",
    "SET_FEATURES",
    "SET_OWNER",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "GET_QUEUE_NUM",
    "SET_BACKEND_REQ_FD",
    "GET_CONFIG",
    "GET_STATUS",
    "SET_STATUS",
    "GET_INFLIGHT_FD",
    "SET_INFLIGHT_FD",
    "RESET_DEVICE",
    "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "GET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ERR",
    "SET_VRING_ENABLE",
    "PROTOCOL_F_MQ",
    "PROTOCOL_F_REPLY_ACK",
    "PROTOCOL_F_BACKEND_REQ",
    "PROTOCOL_F_CONFIG",
    "PROTOCOL_F_INFLIGHT_SHMFD",
    "PROTOCOL_F_RESET_DEVICE",
    "PROTOCOL_F_CONFIGURE_MEM_SLOTS",
    "PROTOCOL_F_STATUS",
    "VIRTIO_F_INDIRECT_DESC",
    "VIRTIO_F_EVENT_IDX",
    "VHOST_USER_F_PROTOCOL_FEATURES",
    "VIRTIO_F_VERSION_1",
    front_end="QEMU 10.0",
)
def test_qemu_10_0(tmp_path: Path, shown: Shown) -> None:
    with serve(disk(tmp_path), file=VERBOSE) as served:
        drive(served, Qemu.TRIXIE)
    shown(served.lines)


@pytest.mark.proves(
    "GET_FEATURES",
    "SET_FEATURES",
    "SET_OWNER",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "GET_QUEUE_NUM",
    "GET_CONFIG",
    "GET_MAX_MEM_SLOTS",
    "ADD_MEM_REG",
    "REM_MEM_REG",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ENABLE",
    "PROTOCOL_F_MQ",
    "PROTOCOL_F_REPLY_ACK",
    "PROTOCOL_F_CONFIG",
    "PROTOCOL_F_CONFIGURE_MEM_SLOTS",
    "VIRTIO_F_EVENT_IDX",
    "VHOST_USER_F_PROTOCOL_FEATURES",
    "VIRTIO_F_VERSION_1",
    front_end="libblkio 1.5",
)
def test_libblkio(tmp_path: Path, shown: Shown) -> None:
    with serve(disk(tmp_path), file=VERBOSE) as served:
        with Blkio(served.socket, queues=QUEUES) as blkio:
            memory = blkio.allocate(QUEUES * BLOCK)
            for number, queue in enumerate(blkio.queues):
                queue.write(number * BLOCK, memory, number * BLOCK, BLOCK)
                assert queue.wait() == {0: 0}
            blkio.free(memory)
    shown(served.lines)


@pytest.mark.proves(
    "GET_FEATURES",
    "SET_FEATURES",
    "SET_OWNER",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "SET_MEM_TABLE",
    "GET_STATUS",
    "SET_STATUS",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "GET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ENABLE",
    "PROTOCOL_F_MQ",
    "PROTOCOL_F_REPLY_ACK",
    "PROTOCOL_F_STATUS",
    "VIRTIO_F_INDIRECT_DESC",
    "VIRTIO_F_RING_PACKED",
    "VHOST_USER_F_PROTOCOL_FEATURES",
    "VIRTIO_F_VERSION_1",
    front_end="DPDK 22.11",
)
def test_dpdk(shown: Shown) -> None:
    with serve({"type": "net"}, file=VERBOSE) as served:
        with Dpdk(served.socket, packed=True) as port:
            port.start("txonly")
            port.stop()
            port.quit()
    shown(served.lines)


@pytest.mark.proves(
    "GET_FEATURES",
    "SET_FEATURES",
    "SET_OWNER",
    "GET_PROTOCOL_FEATURES",
    "SET_PROTOCOL_FEATURES",
    "SET_MEM_TABLE",
    "SET_BACKEND_REQ_FD",
    "GET_CONFIG",
    "SET_VRING_NUM",
    "SET_VRING_ADDR",
    "SET_VRING_BASE",
    "SET_VRING_KICK",
    "SET_VRING_CALL",
    "SET_VRING_ENABLE",
    "PROTOCOL_F_REPLY_ACK",
    "PROTOCOL_F_BACKEND_REQ",
    "PROTOCOL_F_CONFIG",
    "VIRTIO_F_INDIRECT_DESC",
    "VIRTIO_F_EVENT_IDX",
    "VIRTIO_F_RING_PACKED",
    "VHOST_USER_F_PROTOCOL_FEATURES",
    "VIRTIO_F_VERSION_1",
    front_end="User-Mode Linux 6.1",
)
def test_user_mode_linux(tmp_path: Path, shown: Shown) -> None:
    script = "dd if=/dev/vda of=/tmp/read bs=4096 count=1 2>/dev/null && say read yes\n"
    with serve(disk(tmp_path, 1), file=VERBOSE) as served:
        with boot_uml({served.socket: DeviceId.BLK}, script=script) as guest:
            assert guest.finish().values == {"read": "yes"}
    shown(served.lines)
