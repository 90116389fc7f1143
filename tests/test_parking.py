"""A descriptor that outlives the process that opened it."""

from __future__ import annotations

import os
import socket

import pytest

from vuproc import parking
from vuproc.fd import Fd
from vuproc.parking import Parking


def test_it_is_there_for_whoever_looks_until_it_is_cleared() -> None:
    put, look = parking.lot()
    here, there = socket.socketpair()
    with put, look, here:
        place = Parking(put, look)
        assert place.parked() is None
        place.park(there)
        there.close()
        with pytest.raises(RuntimeError, match="one already"):
            place.park(here)
        for text in (b"one", b"two"):
            found = place.parked()
            assert found is not None and not os.get_inheritable(found.fileno())
            os.write(found.fileno(), text)
            found.close()
            assert here.recv(8) == text
        place.clear()
        assert here.recv(8) == b""
        assert place.parked() is None
        place.clear()


def test_it_outlives_the_process() -> None:
    put, look = parking.lot()
    with put, look:
        if (pid := os.fork()) == 0:
            read, write = os.pipe()
            os.write(write, b"left")
            Parking(put, look).park(Fd(read))
            os._exit(0)
        assert os.waitpid(pid, 0)[1] == 0
        found = Parking(put, look).parked()
        assert found is not None
        assert os.read(found.fileno(), 8) == b"left"
        found.close()
