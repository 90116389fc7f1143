"""QEMU's vhost-user-snd, without a guest: the test is the driver."""

from __future__ import annotations

import wave
from pathlib import Path

import pytest

from tests.guest.qemus import QUEUE_SIZE
from vuproc.spec.layout import Layout
from vuproc.spec.sound import (
    CONFIG,
    CONTROL,
    HEADER,
    PCM_HEADER,
    PCM_INFO,
    PCM_SET_PARAMS,
    QUERY_INFO,
    RATES,
    TRANSFER,
    TRANSFER_STATUS,
    TRANSMIT,
    SampleFormat,
    SoundRequest,
    SoundStatus,
)
from vuproc.spec.virtio import Feature
from vuproc.testing import serve
from vuproc.testing.vms import HaltedQemu, PciQueue, Qemu, Segment, VhostUserDevice, VirtioPci
from vuproc.testing.vms.pci_queue import COMPLETION_TIMEOUT_S, poll_until
from vuproc.testing.vms.qemu import FIRST_SLOT

pytestmark = pytest.mark.timeout(120)

PERIOD = 4096
RATE = 48000


def do(queue: PciQueue, out: bytes, room: int) -> bytes:
    machine = queue.machine
    there, back = machine.allocate(len(out)), machine.allocate(room)
    machine.write(there, out)
    head = queue.add([Segment(there, len(out)), Segment(back, room, True)])
    queue.notify()
    done: dict[int, int] = {}

    def came() -> bool:
        # QEMU 10.0.13 gives this device one MSI-X vector, so three of its queues have none.
        done.update(queue.completed())
        return bool(done)

    poll_until(came, COMPLETION_TIMEOUT_S, f"queue {queue.index} does not answer")
    return machine.read(back, done[head])


def test_a_period_that_is_played_through_qemu_is_recorded(tmp_path: Path) -> None:
    path, data = tmp_path / "played.wav", bytes(range(256)) * (PERIOD // 256)
    stream = {"backend": "wav", "path": str(path)}
    options = {"type": "sound", "queue_size": QUEUE_SIZE, "playback": [stream]}
    with serve(options) as served:
        sound = VhostUserDevice(socket=served.socket, driver="vhost-user-snd-pci")
        with HaltedQemu([sound], qemu=Qemu.TRIXIE) as machine:
            device = VirtioPci(machine, FIRST_SLOT)
            device.negotiate(Feature.INDIRECT_DESC | Feature.EVENT_IDX)
            queues = [device.queue(number) for number in range(device.common("num_queues"))]
            device.start()
            assert CONFIG.unpack(device.config(0, CONFIG.size))["streams"] == 1

            def ask(layout: Layout, room: int = HEADER.size, **fields: int) -> bytes:
                told = do(queues[CONTROL], layout.pack(**fields), room)
                assert HEADER.unpack(told)["code"] == SoundStatus.OK
                return told[HEADER.size :]

            size = PCM_INFO.size
            told = ask(QUERY_INFO, 4 + size, code=SoundRequest.PCM_INFO, count=1, size=size)
            assert PCM_INFO.unpack(told)["formats"] == 1 << SampleFormat.S16
            ask(
                PCM_SET_PARAMS,
                code=SoundRequest.PCM_SET_PARAMS,
                buffer_bytes=PERIOD,
                period_bytes=PERIOD,
                channels=2,
                format=SampleFormat.S16,
                rate=RATES.index(RATE),
            )
            for code in (SoundRequest.PCM_PREPARE, SoundRequest.PCM_START):
                ask(PCM_HEADER, code=code)
            status = do(queues[TRANSMIT], TRANSFER.pack(stream_id=0) + data, TRANSFER_STATUS.size)
            assert TRANSFER_STATUS.unpack(status)["status"] == SoundStatus.OK
            for code in (SoundRequest.PCM_STOP, SoundRequest.PCM_RELEASE):
                ask(PCM_HEADER, code=code)
    with wave.open(str(path), "rb") as file:
        assert (file.getframerate(), file.readframes(PERIOD)) == (RATE, data)
