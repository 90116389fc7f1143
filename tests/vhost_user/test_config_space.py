"""The configuration space: zero past its end, the driver's writes on top, and back at a reset."""

from __future__ import annotations

from vuproc.vhost_user.config_space import ConfigSpace


def test_reads_are_zero_padded_past_the_end() -> None:
    space = ConfigSpace(lambda: b"abcd")
    assert space.read(2, 5) == b"cd\0\0\0"
    assert space.read(100, 3) == b"\0\0\0"


def test_the_drivers_writes_are_read_back_and_listed_in_runs() -> None:
    space = ConfigSpace(lambda: b"abcdefgh")
    space.write(1, b"XY")
    space.write(6, b"Z")
    assert space.read(0, 8) == b"aXYdefZh"
    assert list(space.written()) == [(1, b"XY"), (6, b"Z")]


def test_neighbouring_writes_make_one_run() -> None:
    space = ConfigSpace(lambda: b"abcd")
    space.write(2, b"Q")
    space.write(3, b"R")
    assert list(space.written()) == [(2, b"QR")]


def test_a_write_past_the_end_keeps_what_fits() -> None:
    space = ConfigSpace(lambda: b"abcd")
    space.write(3, b"XYZ")
    space.write(9, b"W")
    assert space.read(0, 6) == b"abcX\0\0"
    assert len(space) == 4


def test_a_reset_asks_the_device_again() -> None:
    contents = [b"old", b"new"]
    space = ConfigSpace(lambda: contents.pop(0))
    space.write(0, b"X")
    space.reset()
    assert space.read(0, 3) == b"new"
    assert list(space.written()) == []
