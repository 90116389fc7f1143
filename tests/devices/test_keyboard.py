"""A keyboard as virtio has it: what the driver selects, what is typed, and the lights."""

from __future__ import annotations

import os
import struct
from pathlib import Path

from tests.devices.keyboard import (
    CONFIG_SIZE,
    EV_BITS,
    EV_KEY,
    EV_LED,
    EV_SYN,
    EVENT,
    EVENTS,
    HEAD,
    ID_DEVIDS,
    ID_NAME,
    ID_SERIAL,
    IDS,
    PROP_BITS,
    STATUS,
    Keyboard,
)
from vuproc.testing import Guest, serve

KEY_A, KEY_B = 30, 48


def read(guest: Guest, select: int, subsel: int = 0) -> bytes:
    """As Linux does: two writes, and then what there is."""
    guest.front_end.set_config(0, bytes([select]))
    guest.front_end.set_config(1, bytes([subsel]))
    _, _, size = HEAD.unpack(guest.config(HEAD.size))
    return guest.config(CONFIG_SIZE)[HEAD.size :][:size]


def typed(guest: Guest, count: int) -> list[tuple[int, ...]]:
    return [EVENT.unpack(guest.receive(EVENTS)) for _ in range(count)]


def hit(key: int) -> list[tuple[int, ...]]:
    """The events of one key."""
    return [(EV_KEY, key, 1), (EV_SYN, 0, 0), (EV_KEY, key, 0), (EV_SYN, 0, 0)]


def test_a_keyboard(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    os.mkfifo(keys)
    with (
        serve(Keyboard, keys=str(keys)) as served,
        served.guest(queues=2) as guest,
        open(keys, "r+b", buffering=0) as pipe,
    ):
        assert read(guest, ID_NAME) == b"vuproc keyboard"
        assert read(guest, ID_SERIAL) == b"no. 17"
        assert struct.unpack("<4H", read(guest, ID_DEVIDS)) == IDS
        assert int.from_bytes(read(guest, EV_BITS, EV_KEY), "little") == (1 << 128) - 2
        assert read(guest, EV_BITS, EV_LED) == b"\7"
        assert read(guest, PROP_BITS) == read(guest, EV_BITS, 5) == b""
        guest.keep_filled(EVENTS, count=64, size=EVENT.size)
        for number in range(40):
            pipe.write(bytes([KEY_A + number % 2]))
            assert typed(guest, 4) == hit(KEY_A + number % 2)
        killed = served.kill_worker()
        served.wait_worker(other_than=killed)
        pipe.write(bytes([KEY_A, KEY_B]))
        assert typed(guest, 8) == hit(KEY_A) + hit(KEY_B)
        guest.do(STATUS, [EVENT.pack(EV_LED, 1, 1)])
        served.wait_for_line("light 1 is on")


def test_what_is_typed_before_there_is_a_buffer_waits(tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    os.mkfifo(keys)
    with (
        serve(Keyboard, keys=str(keys)) as served,
        served.guest(queues=2) as guest,
        open(keys, "r+b", buffering=0) as pipe,
    ):
        pipe.write(bytes([KEY_A]))
        guest.do(STATUS, [EVENT.pack(EV_LED, 0, 0)])
        guest.keep_filled(EVENTS, count=2, size=EVENT.size)
        assert typed(guest, 4) == hit(KEY_A)
