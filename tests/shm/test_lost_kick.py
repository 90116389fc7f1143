"""No kick and no call is ever lost between a device that sleeps and a guest that does as it likes.

A device without the full fences of `arm` and of publication hangs here sooner or later: it has not
seen the request, and the driver has not seen that it wants a kick.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.shm.guest import DATA, F_EVENT_IDX, F_INDIRECT, RING, Guest, fail, places
from tests.shm.kicker import SIZE
from vuproc.shm.request import Request
from vuproc.shm.ring import Ring

RUN_S = 2.0
LOST_MS = 20_000
"""The device has slept this long with the guest neither kicking nor gone: something was lost."""


def handle(request: Request) -> None:
    request.write(request.read())


def serve(ring: Ring, kick: int, gone: int, end: threading.Timer) -> None:
    """Sleep, drain, arm, until the guest has gone; its time begins to run at its first kick."""
    poller = select.poll()
    poller.register(kick, select.POLLIN)
    poller.register(gone, 0)
    started = False
    while True:
        while ring.drain(handle, fail, 64) or ring.arm():
            pass
        ready = dict(poller.poll(LOST_MS))
        assert ready, "neither a kick nor the guest's end"
        if kick in ready:
            os.read(kick, 8)
            if not started:
                started = True
                end.start()
        elif gone in ready:
            return


@pytest.mark.parametrize("poll", [True, False], ids=["guest polls", "guest sleeps"])
@pytest.mark.parametrize("features", [0, F_EVENT_IDX], ids=["flags", "event index"])
def test_b25_c26_a_sleeping_device_gets_every_request(features: int, poll: bool) -> None:
    with Guest(SIZE) as guest:
        # A blocking call descriptor, as guests of today have: the ring must not mind.
        kick, call = os.eventfd(0, os.EFD_CLOEXEC), os.eventfd(0, os.EFD_CLOEXEC)
        arguments = [
            guest.fd,
            places(RING, 1)[0][0],
            places(DATA, 1)[0][0],
            DATA,
            kick,
            call,
            int(bool(features & F_EVENT_IDX)),
            int(poll),
        ]
        script = Path(__file__).with_name("kicker.py")
        ring = guest.ring(features | F_INDIRECT, base=0)
        ring.set_call(call)
        with subprocess.Popen(
            [sys.executable, str(script), *map(str, arguments)],
            pass_fds=[guest.fd, kick, call],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        ) as process:
            assert process.stdin is not None and process.stdout is not None
            end = threading.Timer(RUN_S, process.stdin.close)
            try:
                serve(ring, kick, process.stdout.fileno(), end)
                assert process.wait(30) == 0
                completed, kicks = map(int, process.stdout.read().split())
            finally:
                end.cancel()
                if end.is_alive():
                    end.join()
                process.kill()
        os.close(kick)
        os.close(call)
        assert ring.next_used == completed & 0xFFFF
        assert completed > 100 and kicks > 10
        assert guest.intact()
