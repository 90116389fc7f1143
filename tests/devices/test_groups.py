"""Several queues in one worker: they spin together, and a native device may serve several rings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.devices.grouped import OneForAll, Together
from vuproc.testing import Guest, serve


@pytest.mark.parametrize("poll", ["auto", "off", 1000])
def test_each_way_to_wait_serves_every_queue(poll: Any) -> None:
    with serve(Together, poll=poll) as served, served.guest(queues=4) as guest:
        for number in range(200):
            answer = guest.do(number % 4, in_=[8])
            assert answer.content == b"%d" % (number + 1)
        tokens = [guest.submit(n % 4, in_=[8]) for n in range(80)]
        assert {int(guest.wait(token).content) for token in tokens} == set(range(201, 281))


BLOCK = 512


@pytest.mark.parametrize("engine", ["sync", "io_uring"])
def test_a_native_device_serves_several_rings(tmp_path: Path, engine: str) -> None:
    image = tmp_path / "disk.raw"
    image.write_bytes(bytes(1 << 20))
    content = {}
    with (
        serve(OneForAll, image=str(image), queues=3, engine=engine) as served,
        served.guest(queues=3) as guest,
    ):
        pid = served.status().queues[0].pid
        for turn in range(4):
            tokens = []
            for number in range(60):
                sector = 60 * turn + number
                content[sector] = bytes([turn + 1, number]) * (BLOCK // 2)
                head = (1).to_bytes(8, "little") + sector.to_bytes(8, "little")
                tokens.append(guest.submit(number % 3, [head, content[sector]], [1]))
            assert {guest.wait(token).content for token in tokens} == {b"\0"}
            # One of its rings goes and comes back, the others go on.
            guest.stop_queue(turn % 3)
            for queue in range(3):
                if queue != turn % 3:
                    assert read_block(guest, queue, 60 * turn) == content[60 * turn]
            guest.start_queue(turn % 3)
        assert served.status().queues[0].pid == pid
        killed = served.kill_worker()
        for sector, expected in content.items():
            assert read_block(guest, sector % 3, sector) == expected
        assert served.wait_worker(other_than=killed) != killed
        # Outside of the disk.
        for queue in range(3):
            assert read_block(guest, queue, 1 << 30) is None


def read_block(guest: Guest, queue: int, sector: int) -> bytes | None:
    """What is there; None for an error."""
    head = bytes(8) + sector.to_bytes(8, "little")
    data, status = guest.do(queue, [head], [BLOCK, 1]).data
    return data if status == b"\0" else None
